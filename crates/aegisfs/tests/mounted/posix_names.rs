//! Names: any bytes, very many of one file and in one directory, and listings beside changes.
//!
//! With `AEGISFS_SOAK_MINUTES` in the environment the directory has a million entries, and listings go on for so long.

use crate::requirements::soak_minutes;
use crate::stage::{Stage, can_mount, must, run, shell};
use std::fs;

/// Makes names of all kinds, so many links of one file, and lists a directory for so many seconds while it changes.
const SCRIPT: &str = r#"
import ctypes, errno, os, struct, sys, threading, time
os.chdir(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
def listed(path=b"."): return sorted(os.listdir(path))
# Names are any bytes.
os.mkdir("bytes"); os.chdir("bytes")
names = [bytes([n]) for n in range(1, 256) if n not in (0x2f, 0x2e)] + [b"\xff\xfe", b"\xc3\x28", b"..." , b". ", b"a" * 255, b"\xff" * 255, "e\u0301".encode(), "\u00e9".encode(), b"A" * 255, b"-rf", b"new\nline", b" ", b"*"]
names = sorted(set(names))
for name in names: os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)); os.stat(name)
assert listed() == names, "each name is there as it was given"
for name in names: os.rename(name, b"x" + name[:254]); os.rename(b"x" + name[:254], name)
open("/proc/sys/vm/drop_caches", "w").write("3"); assert listed() == names
for name in names: assert os.lstat(name).st_size == 0
for bad, number in ((b"a" * 256, errno.ENAMETOOLONG), (b"", errno.ENOENT), (b"none/" + b"a" * 256, errno.ENOENT)):
    for work in (os.stat, lambda n: os.open(n, os.O_CREAT | os.O_WRONLY), os.mkdir, os.unlink, lambda n: os.symlink("t", n), lambda n: os.rename(b"a", n), lambda n: os.link(b"a", n)):
        try: work(bad); assert False, bad
        except OSError as error: assert error.errno == number, (bad[:3], error)
for name in names: os.unlink(name)
assert listed() == []; os.chdir("..")
# A path as long as paths can be.
deep = "/".join(["d" * 200] * 20); os.makedirs(deep); open(deep + "/f", "w").write("deep"); assert open(deep + "/f").read() == "deep"; os.symlink("t" * 4095, "long link"); assert len(os.readlink("long link")) == 4095
try: os.symlink("t" * 4096, "longer"); assert False
except OSError as error: assert error.errno == errno.ENAMETOOLONG
# Very many names of one file.
links = int(sys.argv[2]); os.mkdir("links"); open("links/0", "w").write("one file")
for n in range(1, links): os.link("links/0", f"links/{n}")
assert os.stat("links/0").st_nlink == links and os.stat(f"links/{links - 1}").st_ino == os.stat("links/0").st_ino and len(os.listdir("links")) == links
for n in range(0, links - 1): os.unlink(f"links/{n}")
assert os.stat(f"links/{links - 1}").st_nlink == 1 and open(f"links/{links - 1}").read() == "one file"
# What stays is listed once while others come and go, whatever the buffer and wherever reading goes on.
os.mkdir("busy"); stays = {f"stays {n}" for n in range(1500)}
for name in stays: os.close(os.open("busy/" + name, os.O_CREAT | os.O_WRONLY))
end = time.monotonic() + float(sys.argv[3]); rounds, changes, failures = [0], [0], []
def churn(who):
    n = 0
    while time.monotonic() < end:
        n += 1; name = f"busy/comes {who} {n}"; os.close(os.open(name, os.O_CREAT | os.O_WRONLY)); changes[0] += 1
        if n > 50: os.unlink(f"busy/comes {who} {n - 50}")
        if n % 7 == 0: os.rename(name, name := name + " renamed"); os.rename(name, f"busy/comes {who} {n}")
libc.syscall.restype = ctypes.c_long
def getdents(fd, size):
    buffer = ctypes.create_string_buffer(size); count = libc.syscall(217, fd, buffer, size)
    if count < 0: raise OSError(ctypes.get_errno(), "")
    entries, at = [], 0
    while at < count:
        inode, offset, length, kind = struct.unpack_from("=QqHB", buffer, at); entries.append((buffer.raw[at + 19:at + length].split(b"\0")[0].decode(), offset)); at += length
    return entries
def read_all(fd, size, seek):
    seen = []
    while entries := getdents(fd, size):
        if seek and len(entries) > 2: os.lseek(fd, entries[len(entries) // 2][1], 0); entries = entries[:len(entries) // 2 + 1]
        seen += [name for name, _ in entries]
    return seen
def read(size, seek):
    try:
        while time.monotonic() < end:
            fd = os.open("busy", os.O_RDONLY); first = read_all(fd, size, seek); os.lseek(fd, 0, 0); second = read_all(fd, size, seek); os.close(fd)
            for seen in (first, second):
                kept = [name for name in seen if name in stays]
                assert len(kept) == len(stays) == len(set(kept)), (size, seek, len(kept), len(set(kept)))
                assert seen.count(".") == 1 == seen.count("..")
            rounds[0] += 1
    except BaseException as error: failures.append(repr(error))
threads = [threading.Thread(target=churn, args=(n,)) for n in range(2)] + [threading.Thread(target=read, args=args) for args in ((280, False), (4096, True), (65536, False), (32768, True))]
[t.start() for t in threads]; [t.join() for t in threads]
assert not failures, failures
print(rounds[0], "listings beside", changes[0], "changes")
# Places of a directory stay what they were.
fd = os.open("busy", os.O_RDONLY); entries = []
while some := getdents(fd, 400): entries += some
for place in range(0, len(entries) - 1, 97):
    os.lseek(fd, entries[place][1], 0); assert getdents(fd, 400)[0][0] == entries[place + 1][0]
"#;

#[test]
fn names_are_any_bytes_and_listed_once() {
    if !can_mount("names_are_any_bytes_and_listed_once") {
        return;
    }
    let stage = Stage::image("512M");
    stage.mount();
    let folder = format!("{}/names", stage.mnt());
    fs::create_dir(&folder).unwrap();
    // A command has two minutes.
    let seconds = soak_minutes().map_or(2, |_| 60);
    println!("{}", must("python3", &["-c", SCRIPT, &folder, "32768", &seconds.to_string()]));
    stage.umount();
    stage.check();
}

#[test]
fn a_large_directory_is_made_and_removed() {
    if !can_mount("a_large_directory_is_made_and_removed") {
        return;
    }
    let entries = if soak_minutes().is_some() { 1_000_000 } else { 100_000 };
    let stage = Stage::image(if entries > 100_000 { "4G" } else { "512M" });
    stage.mount();
    let start = std::time::Instant::now();
    // In pieces, each of which a command has its time for.
    fs::create_dir(stage.at("large")).unwrap();
    for first in (0..entries).step_by(100_000) {
        let make = "import os, sys\nfor n in range(int(sys.argv[2]), int(sys.argv[2]) + 100000): \
                    os.close(os.open(f'{sys.argv[1]}/entry {n}', os.O_CREAT | os.O_WRONLY))";
        must("python3", &["-c", make, &format!("{}/large", stage.mnt()), &first.to_string()]);
    }
    let made = start.elapsed();
    assert_eq!(fs::metadata(stage.at("large")).unwrap().len(), entries);
    assert_eq!(
        shell(&format!("ls -f {}/large | sort -u | wc -l", stage.mnt())).trim(),
        (entries + 2).to_string()
    );
    if entries > 100_000 {
        // What one command cannot remove in its time goes in pieces.
        for n in 0..9 {
            shell(&format!("cd {}/large; find . -name 'entry *{n}' -delete", stage.mnt()));
        }
    }
    must("rm", &["-rf", &format!("{}/large", stage.mnt())]);
    println!(
        "{entries} entries made in {:.1} s, all in {:.1} s",
        made.as_secs_f64(),
        start.elapsed().as_secs_f64()
    );
    assert!(!stage.at("large").exists());
    stage.umount();
    stage.check();
}

/// What an overlay does to its upper layer when files of the lower one are removed, renamed and written.
const OVERLAY: &str = r#"
set -e
cd "$1"
mkdir lower lower/dir upper work merged
echo one > lower/one; echo two > lower/two; echo in > lower/dir/in
mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged
echo more >> merged/one
mv merged/one merged/renamed
rm merged/two
rm -r merged/dir; mkdir merged/dir; echo new > merged/dir/new
chown 12:34 merged/renamed
cd merged; find . -type f -exec grep -H . {} + | sort; cd ..
umount merged
stat -c '%n %F %t:%T' upper/one upper/two
"#;

#[test]
fn an_overlay_can_lie_on_top() {
    if !can_mount("an_overlay_can_lie_on_top") {
        return;
    }
    let known = fs::read_to_string("/proc/filesystems").unwrap().contains("overlay");
    if !known && !run("modprobe", &["overlay"]).status.success() {
        println!("SKIPPED: an_overlay_can_lie_on_top: needs a kernel with overlayfs");
        return;
    }
    let stage = Stage::image("256M");
    stage.mount();
    // In a namespace of its own, with which the overlay ends.
    let told = must("unshare", &["--mount", "bash", "-c", OVERLAY, "overlay", &stage.mnt()]);
    let expected = "./dir/new:new\n./renamed:more\n./renamed:one\nupper/one character special file 0:0\n\
                    upper/two character special file 0:0\n";
    assert_eq!(told, expected);
    stage.umount();
    stage.check();
}
