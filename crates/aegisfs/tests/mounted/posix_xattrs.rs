//! Extended attributes: namespaces, modes, sizes, limits, and setters beside each other.

use crate::stage::{Ext4, Stage, agree_with_ext4, can_mount, must};

/// Prints what comes of every kind of attribute; with the word "full" also of what ext4 has no room for.
const SCRIPT: &str = r#"
import errno, os, sys, threading
os.chdir(sys.argv[1]); full = sys.argv[2] == "full"
def name_of(error): return errno.errorcode[error.errno]
def say(what, work):
    try: outcome = work()
    except OSError as error: outcome = name_of(error)
    print(what, outcome if isinstance(outcome, (str, int, list)) else repr(outcome))
def as_user(work):
    child = os.fork()
    if child == 0:
        os.setgroups([]); os.setgid(1234); os.setuid(1234); work(); sys.stdout.flush(); os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
open("f", "w").write("x"); os.mkdir("d"); os.symlink("f", "s"); os.mkfifo("p")
C, R = os.XATTR_CREATE, os.XATTR_REPLACE
for name in ("f", "d", "s", "p"):
    for key in ("user.a", "trusted.a", "security.a", "system.a", "other.a", "user.", "trusted.", "noprefix", "user.\xe4\xff", "user.a.b.c", "system.posix_acl_none"):
        say(f"set {name} {key}", lambda: os.setxattr(name, key, b"value", follow_symlinks=False))
        say(f"get {name} {key}", lambda: os.getxattr(name, key, follow_symlinks=False))
    say(f"list {name}", lambda: sorted(n for n in os.listxattr(name, follow_symlinks=False) if n != "security.selinux"))
for flags in (0, C, R, C | R, 8):
    say(f"there {flags}", lambda: os.setxattr("f", "user.a", b"2", flags)); say(f"not there {flags}", lambda: os.setxattr("f", f"user.n{flags}", b"2", flags))
say("get", lambda: os.getxattr("f", "user.a")); say("no", lambda: os.getxattr("f", "user.no")); say("remove no", lambda: os.removexattr("f", "user.no"))
say("empty", lambda: (os.setxattr("f", "user.empty", b""), os.getxattr("f", "user.empty"))[1])
say("binary", lambda: (os.setxattr("f", "user.bin", bytes(range(256))), os.getxattr("f", "user.bin"))[1])
for length in (255, 256): say(f"name of {length}", lambda: os.setxattr("f", "user." + "n" * (length - 5), b"1"))
def user():
    for key in ("user.u", "trusted.a", "security.a"):
        say(f"user sets {key}", lambda: os.setxattr("f", key, b"u")); say(f"user gets {key}", lambda: os.getxattr("f", key)); say(f"user removes {key}", lambda: os.removexattr("f", key))
    say("user lists", lambda: sorted(n for n in os.listxattr("f") if n.startswith("trusted")))
    os.close(os.open("mine", os.O_CREAT | os.O_WRONLY, 0o600)); say("own", lambda: os.setxattr("mine", "user.mine", b"1"))
    say("sticky", lambda: os.setxattr("sticky", "user.x", b"1"))
os.mkdir("sticky"); os.chmod("sticky", 0o1777); os.chmod(".", 0o777)
as_user(user)
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def raw(name, key, size):
    buffer = ctypes.create_string_buffer(70000); n = libc.getxattr(name, key, buffer if size else None, size)
    return n if n >= 0 else errno.errorcode[ctypes.get_errno()]
def raw_list(name, size):
    buffer = ctypes.create_string_buffer(70000); n = libc.listxattr(name, buffer if size else None, size)
    return n if n >= 0 else errno.errorcode[ctypes.get_errno()]
os.setxattr("f", "user.ten", b"0123456789")
for size in (0, 1, 9, 10, 11, 65536): print("size", size, raw(b"f", b"user.ten", size))
open("g", "w"); os.setxattr("g", "user.ten", b"0123456789"); os.setxattr("g", "user.eleven", b"0")
for size in (0, 1, 21, 22, 1000): print("list size", size, raw_list(b"g", size))
say("long", lambda: os.setxattr("f", "user.long", b"v" * 65537))
say("dangling", lambda: (os.symlink("nowhere", "dang"), os.getxattr("dang", "user.a")))
if full:
    # Beyond what ext4 can: values of 64 KiB, and many of them.
    for length in (4096, 65535, 65536):
        value = os.urandom(length); os.setxattr("f", "user.large", value); assert os.getxattr("f", "user.large") == value
    open("many", "w")
    for n in range(260): os.setxattr("many", f"user.{n:03}" + "x" * 240, b"%d" % n)
    # A list is 64 KiB at most, which the kernel cannot tell otherwise than by an error.
    say("all", lambda: len(os.listxattr("many")))
    for n in range(259): assert os.getxattr("many", f"user.{n:03}" + "x" * 240) == b"%d" % n
    for n in range(20): os.removexattr("many", f"user.{n:03}" + "x" * 240)
    for n in range(20): os.setxattr("many", f"user.{n:03}" + "x" * 240, b"%d" % n)
    for n in range(260, 280): os.setxattr("many", f"user.{n:03}" + "x" * 240, b"%d" % n)
    say("too many", lambda: len(os.listxattr("many")))
    for n in range(30): os.removexattr("many", f"user.{n:03}" + "x" * 240)
    say("fewer", lambda: len(os.listxattr("many")))
    # Setters of one name and of different ones at the same time.
    open("par", "w"); failures = []
    def setter(n):
        try:
            for k in range(60):
                os.setxattr("par", f"user.own{n}", bytes([k]) * 3000); os.setxattr("par", "user.shared", bytes([n]) * 5000)
                shared = os.getxattr("par", "user.shared"); assert len(shared) == 5000 and len(set(shared)) == 1
                if k % 10 == 9:
                    try: os.removexattr("par", "user.shared")
                    except OSError as error: assert error.errno == errno.ENODATA
                    os.setxattr("par", "user.shared", bytes([n]) * 5000)
        except OSError as error:
            if error.errno != errno.ENODATA: failures.append(repr(error))
        except BaseException as error: failures.append(repr(error))
    threads = [threading.Thread(target=setter, args=(n,)) for n in range(8)]
    [t.start() for t in threads]; [t.join() for t in threads]
    assert not failures, failures
    assert all(len(os.getxattr("par", f"user.own{n}")) == 3000 for n in range(8))
    winners = []
    def creator(n):
        try: os.setxattr("par", "user.once", b"%d" % n, C); winners.append(n)
        except FileExistsError: pass
    threads = [threading.Thread(target=creator, args=(n,)) for n in range(8)]
    [t.start() for t in threads]; [t.join() for t in threads]
    assert len(winners) == 1 and os.getxattr("par", "user.once") == b"%d" % winners[0]
"#;

// Attributes of any namespace were taken, and those of `system.` from anybody; users saw the names of `trusted.`.
#[test]
fn attributes_are_those_of_ext4() {
    if !can_mount("attributes_are_those_of_ext4") {
        return;
    }
    let stage = Stage::image("256M");
    let ext4 = Ext4::new(&stage);
    stage.mount();
    agree_with_ext4(&stage, &ext4, SCRIPT, &["part"]);
    let folder = format!("{}/full", stage.mnt());
    std::fs::create_dir(&folder).unwrap();
    let printed = must("python3", &["-c", SCRIPT, &folder, "full"]);
    for line in ["long E2BIG", "all 260", "too many E2BIG", "fewer 250"] {
        assert!(printed.lines().any(|printed| printed == line), "{line}: {printed}");
    }
    stage.umount();
    stage.check();
    // What was set is there in another life, to the last byte.
    let dump = |what: &str| must("getfattr", &["-R", "-h", "-d", "-m", "-", "-e", "hex", what]);
    stage.mount();
    let before = dump(&folder);
    assert!(before.len() > 200_000, "64 KiB are there");
    stage.sync();
    stage.kill();
    stage.mount();
    assert!(dump(&folder) == before, "attributes after a crash");
}
