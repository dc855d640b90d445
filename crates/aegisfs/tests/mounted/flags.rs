//! The flags of chattr(1): what they forbid here is what they forbid on ext4.

use crate::requirements::has;
use crate::stage::{Ext4, Stage, can_mount, must, run, shell};

/// Tries everything with flagged files and directories in a folder of any filesystem, prints what came of it. What
/// a descriptor may do that was opened before its file became immutable is only tried where writes are `direct`.
const SCRIPT: &str = r#"
import ctypes, errno, fcntl, os, struct, subprocess, sys, time
os.chdir(sys.argv[1])
late = sys.argv[2] == "direct"
GET, SET = 0x80086601, 0x40086602
XGET, XSET = 0x801c581f, 0x401c5820
def flags(path):
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try: return struct.unpack("i", fcntl.ioctl(fd, GET, b"\0" * 4))[0] & 0xf8
    finally: os.close(fd)
def chattr(how, *paths): subprocess.run(["chattr", how, *paths], check=True)
def say(what, work):
    try: outcome = work(); outcome = "done" if outcome is None or not isinstance(outcome, (str, bytes)) else outcome
    except OSError as error: outcome = errno.errorcode[error.errno]
    print(what, outcome)
def close(fd): os.close(fd)
def as_user(work):
    child = os.fork()
    if child == 0:
        os.setgroups([]); os.setgid(1234); os.setuid(1234)
        work(); sys.stdout.flush(); os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
def make(name, content=b"content"):
    with open(name, "wb") as f: f.write(content)
    os.setxattr(name, "user.old", b"1")
    return name
libc = ctypes.CDLL(None, use_errno=True)
def fallocate(fd, mode, offset, length):
    if libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)): raise OSError(ctypes.get_errno(), "")
def rename2(a, b, how):
    if libc.renameat2(-100, a.encode(), -100, b.encode(), how): raise OSError(ctypes.get_errno(), "")
NOW, OMIT = (1 << 30) - 1, (1 << 30) - 2
def utimens(path, atime, mtime):
    times = (ctypes.c_long * 4)(*atime, *mtime)
    if libc.utimensat(-100, path.encode(), times, 0): raise OSError(ctypes.get_errno(), "")
def write_late(fd, data, offset=None):
    if offset is None: os.write(fd, data)
    else: os.pwrite(fd, data, offset)
    os.fsync(fd)
os.chmod(".", 0o777)
for flag in ("+i", "+a"):
    name = "file" + flag[1]; make(name); make("other"); make("third"); os.mkdir("into"); make("source", b"s" * 5000)
    before = os.open(name, os.O_RDWR)
    for f in (name,): chattr(flag, f)
    print("==", flag, flags(name))
    for label, how in [("r", os.O_RDONLY), ("w", os.O_WRONLY), ("rw", os.O_RDWR), ("a", os.O_WRONLY | os.O_APPEND),
                       ("at", os.O_WRONLY | os.O_APPEND | os.O_TRUNC), ("rt", os.O_RDONLY | os.O_TRUNC),
                       ("ca", os.O_RDWR | os.O_CREAT | os.O_APPEND), ("cw", os.O_RDWR | os.O_CREAT)]:
        say("open " + label, lambda: close(os.open(name, how)))
    if flag == "+a":
        fd = os.open(name, os.O_WRONLY | os.O_APPEND); say("append", lambda: os.write(fd, b" and more")); close(fd)
    say("truncate", lambda: os.truncate(name, 3)); say("truncate up", lambda: os.truncate(name, 300))
    say("ftruncate before", lambda: os.ftruncate(before, 3))
    say("utime now", lambda: os.utime(name)); say("utime", lambda: os.utime(name, (1, 1)))
    say("utimes ns", lambda: os.utime(name, ns=(5, 5)))
    say("mtime only", lambda: utimens(name, (0, OMIT), (77, 5))); say("atime only", lambda: utimens(name, (77, 5), (0, OMIT)))
    time.sleep(0.02); say("mtime now", lambda: utimens(name, (0, OMIT), (0, NOW))); say("both now", lambda: utimens(name, (0, NOW), (0, NOW)))
    say("atime now, mtime", lambda: utimens(name, (0, NOW), (9, 9))); say("atime, mtime now", lambda: utimens(name, (9, 9), (0, NOW)))
    say("chmod", lambda: os.chmod(name, 0o600)); say("chmod same", lambda: os.chmod(name, 0o644))
    say("chown", lambda: os.chown(name, 1, 1)); say("chgrp", lambda: os.chown(name, -1, 5))
    say("unlink", lambda: os.unlink(name)); say("link", lambda: os.link(name, "link")); say("rename", lambda: os.rename(name, "x"))
    say("rename over", lambda: os.rename("other", name)); say("rename into", lambda: os.rename(name, "into/x"))
    say("exchange", lambda: rename2(name, "third", 2)); say("exchange other", lambda: rename2("third", name, 2))
    say("noreplace", lambda: rename2("third", name, 1))
    for key in ("user.new", "user.old", "trusted.new", "security.new"):
        say("setxattr " + key, lambda: os.setxattr(name, key, b"2"))
    say("removexattr", lambda: os.removexattr(name, "user.old")); say("getxattr", lambda: os.getxattr(name, "user.old"))
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in [(1, 6, 0xffffffff), (4, 4, 0xffffffff), (0x20, 0, 0xffffffff)])
    say("acl", lambda: os.setxattr(name, "system.posix_acl_access", acl))
    for mode in (0, 1, 3, 16, 17):
        say("fallocate %d" % mode, lambda: fallocate(before, mode, 0, 100))
    s = os.open("source", os.O_RDONLY)
    say("copy into", lambda: os.copy_file_range(s, before, 10, 0, 0)); close(s)
    if late: say("write before", lambda: write_late(before, b"LATE", 0))
    if late: say("read", lambda: str(os.pread(before, 3, 0)))
    chattr(flag.replace("+", "-"), name); say("write after", lambda: write_late(before, b"AFTER", 0)); close(before)
    print(open(name, "rb").read().strip(b"\0"), os.stat(name).st_size)
    say("unlink after", lambda: os.unlink(name)); subprocess.run("rm -rf other third into source", shell=True)
for flag in ("+i", "+a"):
    d = "dir" + flag[1]; os.mkdir(d); make(d + "/in"); os.mkdir(d + "/sub"); make("out"); os.symlink("in", d + "/sym")
    inside = os.open(d + "/in", os.O_RDWR)
    chattr(flag, d); print("==", flag, d, flags(d))
    for kind, work in [("create", lambda: close(os.open(d + "/new", os.O_CREAT | os.O_WRONLY))), ("mkdir", lambda: os.mkdir(d + "/newdir")),
                       ("mknod", lambda: os.mknod(d + "/fifo", 0o10644)), ("symlink", lambda: os.symlink("a", d + "/s")),
                       ("link", lambda: os.link("out", d + "/l")), ("rename in", lambda: os.rename("out", d + "/moved")),
                       ("rename out", lambda: os.rename(d + "/in", "moved")), ("rename within", lambda: os.rename(d + "/in", d + "/in2")),
                       ("rename over", lambda: (make("out2"), os.rename("out2", d + "/in"))), ("unlink", lambda: os.unlink(d + "/in")),
                       ("unlink none", lambda: os.unlink(d + "/none")), ("rmdir in", lambda: os.rmdir(d + "/sub")), ("mkdir there", lambda: os.mkdir(d + "/sub")),
                       ("tmpfile", lambda: close(os.open(d, os.O_TMPFILE | os.O_RDWR))), ("open in", lambda: close(os.open(d + "/in", os.O_RDWR | os.O_TRUNC))),
                       ("chmod in", lambda: os.chmod(d + "/in", 0o600)), ("chmod", lambda: os.chmod(d, 0o700)), ("chown", lambda: os.chown(d, 3, 3)),
                       ("touch", lambda: os.utime(d)), ("utime", lambda: os.utime(d, (1, 1))), ("mtime", lambda: utimens(d, (0, OMIT), (77, 5))),
                       ("setxattr", lambda: os.setxattr(d, "user.x", b"1")), ("rename dir", lambda: os.rename(d, "d2")), ("rmdir", lambda: os.rmdir(d)),
                       ("write in", lambda: write_late(inside, b"fine")), ("list", lambda: str(sorted(os.listdir(d))))]:
        say(kind, work)
    close(inside); chattr("-i" if flag == "+i" else "-a", d); subprocess.run(["rm", "-rf", d, "out", "out2", "moved"])
# Who may.
make("mine"); os.chown("mine", 1234, 1234); make("roots"); os.chmod("roots", 0o666)
def set_flags(name, value):
    fd = os.open(name, os.O_RDONLY)
    try: fcntl.ioctl(fd, SET, struct.pack("i", (struct.unpack("i", fcntl.ioctl(fd, GET, b"\0" * 4))[0] & ~0xf8) | value))
    finally: os.close(fd)
def user():
    for value in (0x10, 0x20, 0x40, 0x80, 0x08, 0xc8, 0): say("user mine %#x" % value, lambda: set_flags("mine", value))
    for value in (0x40, 0): say("user roots %#x" % value, lambda: set_flags("roots", value))
as_user(user)
chattr("+i", "mine")
def user(): say("user -i", lambda: set_flags("mine", 0)); say("user same", lambda: set_flags("mine", 0x10)); say("user open", lambda: close(os.open("mine", os.O_RDWR)))
as_user(user)
for value in (0x30, 0x50, 0x10, 0x40, 0xf8, 0xc8, 0): say("root mine %#x" % value, lambda: set_flags("mine", value)); print(hex(flags("mine")))
def xget(name):
    fd = os.open(name, os.O_RDONLY)
    try: return struct.unpack("5I", fcntl.ioctl(fd, XGET, bytes(28))[:20])
    finally: os.close(fd)
def xset(name, xflags, *rest):
    fd = os.open(name, os.O_RDONLY)
    try: fcntl.ioctl(fd, XSET, struct.pack("5I8x", xflags, *(rest or (0, 0, 0, 0))))
    finally: os.close(fd)
for value in (0x8, 0, 0x10, 0x20, 0x40, 0x80, 0xe0, 0): say("xset %#x" % value, lambda: xset("mine", value)); print(hex(xget("mine")[0]), hex(flags("mine")))
# What is made inherits some.
os.mkdir("from"); chattr("+dAS", "from"); make("from/f"); os.mkdir("from/d"); os.close(os.open("from/t", os.O_CREAT))
for n in ("from/f", "from/d", "from/t"): print(n, hex(flags(n)))
chattr("-dAS", "from"); chattr("+i", "from"); os.path.exists("from/q"); chattr("-i", "from"); open("from/q", "w").close(); print(flags("from/q"))
# Special files have none.
os.mkfifo("fifo"); os.symlink("mine", "sym")
say("fifo", lambda: str(flags("fifo")))
print(subprocess.run(["lsattr", "-d", "mine", "from/d"], capture_output=True, text=True).stdout.replace("e", "-"))
"#;

#[test]
fn flags_forbid_what_they_forbid_on_ext4() {
    let name = "flags_forbid_what_they_forbid_on_ext4";
    if !can_mount(name) || !has(name, "chattr") {
        return;
    }
    let stage = Stage::image("256M");
    let ext4 = Ext4::new(&stage);
    for (options, writes) in [("writeback=on", "cached"), ("writeback=off", "direct")] {
        stage.mount_with(options);
        let answers = [ext4.path(), stage.mnt()].map(|root| {
            let folder = format!("{root}/{writes}");
            std::fs::create_dir(&folder).unwrap();
            must("python3", &["-c", SCRIPT, &folder, writes])
        });
        let [expected, found] = &answers;
        assert!(expected.lines().filter(|line| line.ends_with("EPERM")).count() > 100, "{expected}");
        let difference = expected.lines().zip(found.lines()).find(|(theirs, ours)| theirs != ours);
        assert!(difference.is_none() && expected.len() == found.len(), "{options}: {difference:?}");
        assert_eq!(stage.json("status")["poisoned"], serde_json::Value::Null);
        stage.umount();
        stage.check();
    }
}

/// Of what is opened as append-only nothing can be overwritten, neither through a mapping, which ext4 refuses to
/// make, nor by taking `O_APPEND` off, which it refuses to do.
const APPEND: &str = r#"
import errno, fcntl, mmap, os, subprocess, sys
os.chdir(sys.argv[1])
def say(what, work):
    try: outcome = work(); outcome = "done"
    except OSError as error: outcome = errno.errorcode[error.errno]
    print(what, outcome)
open("log", "w").write("first line\n" * 1000); subprocess.run(["chattr", "+a", "log"], check=True)
whole = lambda: open("log", "rb").read()
fd = os.open("log", os.O_RDWR | os.O_APPEND)
os.write(fd, b"second\n"); os.pwrite(fd, b"third\n", 0)
assert whole() == b"first line\n" * 1000 + b"second\nthird\n"
expected = whole()
def mapped():
    with mmap.mmap(fd, 4096) as m: m[0:4] = b"evil"; m.flush()
say("map", mapped)
def seek():
    fcntl.fcntl(fd, fcntl.F_SETFL, 0); os.pwrite(fd, b"evil", 0)
say("unset", seek)
say("fallocate", lambda: os.posix_fallocate(fd, 0, 20000))
os.close(fd)
open("/proc/sys/vm/drop_caches", "w").write("3")
assert whole().rstrip(b"\0") == expected, "changed"
fd = os.open("log", os.O_RDWR | os.O_APPEND); subprocess.run(["chattr", "-a", "log"], check=True); fcntl.fcntl(fd, fcntl.F_SETFL, 0); os.pwrite(fd, b"fine", 0); os.close(fd)
assert whole()[:4] == b"fine"
"#;

#[test]
fn a_log_only_grows() {
    let name = "a_log_only_grows";
    if !can_mount(name) || !has(name, "chattr") {
        return;
    }
    let stage = Stage::image("256M");
    for options in ["writeback=on", "writeback=off"] {
        stage.mount_with(options);
        assert_eq!(
            must("python3", &["-c", APPEND, &stage.mnt()]),
            "map EPERM\nunset EPERM\nfallocate done\n"
        );
        stage.umount();
        stage.check();
    }
}

/// Writes, maps and stamps a file without syncing it, makes it immutable while it is open, and goes.
const LATE: &str = r#"
import mmap, os, subprocess, sys
os.chdir(sys.argv[1])
def flag(*names): subprocess.run(["chattr", "+i", *names], check=True)
written = os.open("written", os.O_RDWR | os.O_CREAT); os.write(written, b"w" * 300000)
os.utime("written", ns=(10**18 + 1, 10**18 + 2)); flag("written")
mapped = os.open("mapped", os.O_RDWR | os.O_CREAT); os.ftruncate(mapped, 100000)
m = mmap.mmap(mapped, 100000); m[:] = b"m" * 100000; flag("mapped")
m[99990:] = b"after flag"
open("named", "w").write("n"); os.rename("named", "renamed"); os.link("renamed", "linked"); os.chmod("linked", 0o600); flag("renamed")
os.mkdir("dir"); open("dir/in", "w").write("in"); flag("dir")
os.close(written); m.close(); os.close(mapped)
"#;

/// What is there afterwards, and that it stays.
const AFTER: &str = r#"
import os, subprocess, sys
os.chdir(sys.argv[1])
assert open("written", "rb").read() == b"w" * 300000
assert os.stat("written").st_mtime_ns == 10**18 + 2, os.stat("written")
assert open("mapped", "rb").read() == b"m" * 99990 + b"after flag"
assert open("renamed").read() == "n" and os.stat("linked").st_nlink == 2
for name in ("written", "mapped", "renamed", "linked"):
    try: open(name, "a"); assert False, name
    except PermissionError as error: assert error.errno == 1
try: os.unlink("dir/in"); assert False
except PermissionError: pass
print(subprocess.run(["lsattr", "-d", "written", "mapped", "linked", "dir"], capture_output=True, text=True, check=True).stdout)
"#;

// What the kernel holds of a file when it becomes immutable was written before, and arrives; so do its times.
#[test]
fn what_was_written_before_the_flag_arrives() {
    let name = "what_was_written_before_the_flag_arrives";
    if !can_mount(name) || !has(name, "chattr") {
        return;
    }
    for options in ["writeback=on", "writeback=off"] {
        let stage = Stage::image("256M");
        let look = || must("python3", &["-c", AFTER, &stage.mnt()]);
        stage.mount_with(options);
        must("python3", &["-c", LATE, &stage.mnt()]);
        // The kernel hands over what times it kept of inodes that nobody has open.
        shell("sync; echo 3 > /proc/sys/vm/drop_caches");
        let before = look();
        assert_eq!(before.matches("----i----").count(), 4, "{before}");
        stage.umount();
        stage.check();
        stage.mount_with(options);
        assert_eq!(look(), before, "after a remount");
        stage.sync();
        stage.kill();
        stage.mount_with(options);
        assert_eq!(look(), before, "after a crash");
        let log = shell(&format!("cd {}; chattr -i *; rm -r *; ls", stage.mnt()));
        assert_eq!(log, "");
    }
}

#[test]
fn what_is_marked_sync_survives_without_a_sync() {
    let name = "what_is_marked_sync_survives_without_a_sync";
    if !can_mount(name) || !has(name, "chattr") {
        return;
    }
    let stage = Stage::image("256M");
    stage.mount();
    // Nothing is written by itself so soon.
    shell(&format!(
        "cd {}; touch file; mkdir dir; chattr +S file dir; head -c 100000 /dev/zero | tr '\\0' x >> file; \
         echo more >> file; echo new > dir/new; mv dir/new dir/renamed",
        stage.mnt()
    ));
    stage.kill();
    stage.mount();
    assert_eq!(std::fs::metadata(stage.at("file")).unwrap().len(), 100_005);
    assert_eq!(std::fs::read(stage.at("dir/renamed")).unwrap(), b"new\n");
    assert!(!stage.at("dir/new").exists());
}

// A copy that preserves everything asks for flags too, and backups look at them.
#[test]
fn tools_see_and_set_flags() {
    let name = "tools_see_and_set_flags";
    if !can_mount(name) || !has(name, "lsattr") {
        return;
    }
    let stage = Stage::image("256M");
    stage.mount();
    let mnt = stage.mnt();
    shell(&format!("cd {mnt}; echo x > f; mkdir d; chattr +d f; chattr +AS d"));
    let listed = shell(&format!("cd {mnt}; lsattr -R ."));
    assert!(
        listed.contains("------d--------------- ./f") && listed.contains("--S----A-------------- ./d"),
        "{listed}"
    );
    for unknown in ["+c", "+j", "+u", "+T", "+C", "+P"] {
        let refused = run("chattr", &[unknown, &format!("{mnt}/d")]);
        assert!(!refused.status.success(), "{unknown}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("not supported"), "{unknown}: {refused:?}");
    }
    assert_eq!(shell(&format!("cd {mnt}; lsattr -R .")), listed);
}
