//! What programs are told when there is no room, when the device fails, and when there is only reading.

use crate::stage::{RemountHelper, Stage, can_mount, must, run, shell};
use serde_json::Value;

/// Fills a filesystem in several ways. What was acknowledged is there, and what is not was told.
const FULL: &str = r#"
import errno, os, sys
os.chdir(sys.argv[1]); cached = sys.argv[2] == "on"; MIB = 1 << 20
def full(work):
    try: work(); return False
    except OSError as error: assert error.errno == errno.ENOSPC, error; return True
def fill(name, each):
    """Writes until it is told that there is no room; returns what was synced, and by whom it was told."""
    fd = os.open(name, os.O_RDWR | os.O_CREAT); pieces, synced, told = [], 0, []
    for n in range(400):
        piece = os.urandom(MIB); written = []
        if full(lambda: written.append(os.write(fd, piece))): told.append("write")
        elif written[0] < MIB: told.append("write"); pieces.append(piece[:written[0]])
        else: pieces.append(piece)
        if not told and len(pieces) % each == 0:
            if full(lambda: os.fsync(fd)): told.append("fsync")
            else: synced = len(pieces)
        if told: break
    if full(lambda: os.close(fd)): told.append("close")
    assert told, "there is no end"
    found = open(name, "rb").read(); expected = b"".join(pieces[:synced])
    assert found[:len(expected)] == expected, "what was synced is not there"
    return synced, told
# One file open since before, for those who are told late.
late = os.open("late", os.O_RDWR | os.O_CREAT); os.write(late, b"early"); os.fsync(late)
synced, told = fill("synced", 4); print("synced", synced, told); assert synced > 100
if not cached: assert told[0] == "write", told
free = os.statvfs("."); assert free.f_bavail * free.f_frsize < 16 * MIB, free
# Much more than there is, through a descriptor that the kernel caches for: it is told at the latest by fsync or close.
told = []
for n in range(96):
    if full(lambda: os.pwrite(late, os.urandom(MIB), n * MIB)): told.append("write"); break
if full(lambda: os.fsync(late)): told.append("fsync")
if full(lambda: os.close(late)): told.append("close")
print("late", told); assert told
# The same with close alone, which is where cp looks.
os.unlink("late"); os.unlink("synced")
def until_room(work):
    import time
    for n in range(100):
        try: return work()
        except OSError as error: assert error.errno == errno.ENOSPC; time.sleep(0.1)
    assert False, "room does not come back"
until_room(lambda: open("small", "w").write("room"))
told = []; fd = os.open("closed", os.O_WRONLY | os.O_CREAT)
for n in range(400):
    if full(lambda: os.write(fd, os.urandom(MIB))): told.append("write"); break
if full(lambda: os.close(fd)): told.append("close")
print("closed", told); assert told
os.unlink("closed"); until_room(lambda: open("after", "wb").write(b"a" * MIB)); assert open("after", "rb").read() == b"a" * MIB
"#;

#[test]
fn whoever_writes_to_a_full_device_is_told() {
    if !can_mount("whoever_writes_to_a_full_device_is_told") {
        return;
    }
    for writeback in ["on", "off"] {
        let stage = Stage::image("256M");
        stage.mount_with(&format!("writeback={writeback}"));
        println!("{writeback}: {}", must("python3", &["-c", FULL, &stage.mnt(), writeback]));
        assert_eq!(stage.json("status")["poisoned"], Value::Null);
        stage.umount();
        stage.check();
    }
}

/// A device that takes no writes for a while.
struct WriteProtected(String);

impl WriteProtected {
    fn new(device: &str) -> Self {
        must("blockdev", &["--setro", device]);
        Self(device.to_owned())
    }
}

impl Drop for WriteProtected {
    fn drop(&mut self) {
        let _ = run("blockdev", &["--setrw", &self.0]);
    }
}

/// Writes and syncs until it fails, after which nothing is taken and everything is told.
const FAILING: &str = r#"
import errno, mmap, os, sys, time
os.chdir(sys.argv[1])
def told(work):
    try: work(); return None
    except OSError as error: return errno.errorcode[error.errno]
fd = os.open("file", os.O_RDWR | os.O_CREAT); other = os.open("other", os.O_RDWR | os.O_CREAT); os.write(other, b"o" * 100000)
m = os.open("mapped", os.O_RDWR | os.O_CREAT); os.ftruncate(m, 8192); memory = mmap.mmap(m, 8192); memory[:3] = b"map"
error = told(lambda: (os.write(fd, os.urandom(200000)), os.fsync(fd)))
assert error == "EIO", error
# From now on it is read-only, and nobody is told that bytes are safe which are not.
assert told(lambda: os.fsync(other)) in ("EIO", "EROFS") and told(lambda: memory.flush()) in ("EIO", "EROFS")
assert told(lambda: (os.write(fd, b"x"), os.fsync(fd))) in ("EIO", "EROFS")
assert told(lambda: (os.write(other, b"x"), os.close(other))) in ("EIO", "EROFS"), "close tells"
for work in (lambda: open("new", "w"), lambda: os.unlink("kept"), lambda: os.mkdir("dir"), lambda: os.rename("kept", "moved"), lambda: os.chmod("kept", 0), lambda: os.link("kept", "link"),
             lambda: os.symlink("a", "b"), lambda: os.truncate("kept", 0), lambda: os.setxattr("kept", "user.a", b"1")):
    assert told(work) == "EROFS", told(work)
assert open("kept").read() == "synced before\n" and sorted(os.listdir("."))[0] == "file"
"#;

#[test]
fn a_device_that_fails_is_told_and_shown() {
    if !can_mount("a_device_that_fails_is_told_and_shown") {
        return;
    }
    for writeback in ["on", "off"] {
        let stage = Stage::block("256M");
        stage.mount_with(&format!("writeback={writeback}"));
        std::fs::write(stage.at("kept"), b"synced before\n").unwrap();
        stage.sync();
        let protected = WriteProtected::new(stage.device());
        must("python3", &["-c", FAILING, &stage.mnt()]);
        let reason = stage.json("status")["poisoned"].as_str().expect("a reason").to_owned();
        assert!(reason.contains(stage.device()) && reason.contains("not permitted"), "{reason}");
        let shown = shell(&format!("{} status {}", crate::stage::AEGISFS, stage.mnt()));
        assert!(shown.contains("READ-ONLY") && shown.contains(&reason), "{shown}");
        // What could not be written is told once more at the end.
        let ended = run(crate::stage::AEGISFS, &["umount", &stage.mnt()]);
        assert!(!ended.status.success() && String::from_utf8_lossy(&ended.stderr).contains("not everything"));
        drop(protected);
        stage.mount();
        assert_eq!(stage.json("status")["poisoned"], Value::Null);
        assert_eq!(std::fs::read(stage.at("kept")).unwrap(), b"synced before\n");
        std::fs::write(stage.at("again"), b"it takes writes").unwrap();
        stage.umount();
        stage.check();
    }
}

/// Everything that changes something, on a mount that is for reading only.
const READ_ONLY: &str = r#"
import errno, os, sys, fcntl, struct
os.chdir(sys.argv[1])
def told(work):
    try: work(); return None
    except OSError as error: return errno.errorcode[error.errno]
for work in (lambda: open("new", "w"), lambda: open("f", "a"), lambda: open("f", "r+"), lambda: os.unlink("f"), lambda: os.mkdir("dir"), lambda: os.rename("f", "moved"), lambda: os.chmod("f", 0), lambda: os.chown("f", 1, 1),
             lambda: os.link("f", "link"), lambda: os.symlink("a", "b"), lambda: os.truncate("f", 0), lambda: os.setxattr("f", "user.b", b"1"), lambda: os.removexattr("f", "user.a"), lambda: os.utime("f"), lambda: os.mkfifo("p"),
             lambda: os.open(".", os.O_TMPFILE | os.O_RDWR), lambda: fcntl.ioctl(os.open("f", os.O_RDONLY), 0x40086602, struct.pack("q", 0x40))):
    assert told(work) == "EROFS", told(work)
assert not os.access("f", os.W_OK) and os.access("f", os.R_OK)
f = os.open("f", os.O_RDONLY); assert os.read(f, 9) == b"content" and os.getxattr("f", "user.a") == b"1" and os.listdir(".") == ["f"]; os.fsync(f)
fcntl.flock(f, fcntl.LOCK_EX); assert os.statvfs(".").f_flag & 1
"#;

#[test]
fn reading_only_refuses_every_change() {
    if !can_mount("reading_only_refuses_every_change") {
        return;
    }
    let stage = Stage::image("256M");
    stage.mount();
    std::fs::write(stage.at("f"), b"content").unwrap();
    shell(&format!("setfattr -n user.a -v 1 {}/f", stage.mnt()));
    let refuses = || drop(must("python3", &["-c", READ_ONLY, &stage.mnt()]));
    let helper = RemountHelper::install();
    for _ in 0..2 {
        must("mount", &["-o", "remount,ro", &stage.mnt()]);
        refuses();
        must("mount", &["-o", "remount,rw", &stage.mnt()]);
        shell(&format!("cd {}; echo more > g; rm g", stage.mnt()));
    }
    drop(helper);
    stage.umount();
    stage.mount_with("ro");
    refuses();
    stage.umount();
    stage.check();
}
