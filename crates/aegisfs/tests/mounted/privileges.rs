//! Powers of a program do not outlive a change of it: setuid, setgid and capabilities.

use crate::stage::{Stage, can_mount, must};

/// Writes, truncates, allocates or gives away files that have powers, as an ordinary user where that matters.
const SCRIPT: &str = r#"
import mmap, os, subprocess, sys
os.chdir(sys.argv[1])
CAPS = bytes([1, 0, 0, 2, 0, 0x20]) + bytes(14)

def made(name, mode=0o6777, caps=False):
    with open(name, "wb") as f:
        f.write(b"program")
    os.chmod(name, mode)
    if caps:
        os.setxattr(name, "security.capability", CAPS)
    return name

def as_user(work):
    child = os.fork()
    if child == 0:
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        try:
            work()
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0

def append(name):
    with open(name, "ab") as f:
        f.write(b"!")
        os.fsync(f.fileno())

def mode(name):
    return os.stat(name).st_mode & 0o7777

def has_caps(name):
    return "security.capability" in os.listxattr(name)

os.chmod(".", 0o777)
name = made("written"); as_user(lambda: append(name)); assert mode(name) == 0o777, oct(mode(name))
name = made("nogroup", 0o6767); as_user(lambda: append(name)); assert mode(name) == 0o2767, oct(mode(name))
name = made("cut"); as_user(lambda: os.truncate(name, 2)); assert mode(name) == 0o777, oct(mode(name))
name = made("root"); append(name); os.truncate(name, 3); assert mode(name) == 0o6777, oct(mode(name))
name = made("given"); os.chown(name, 65534, 65534); assert mode(name) == 0o777, oct(mode(name))
def allocate():
    with open("allocated", "r+b") as f:
        os.posix_fallocate(f.fileno(), 0, 100000)
name = made("allocated"); as_user(allocate); assert mode(name) == 0o777, oct(mode(name))
# Seen at once by whoever asks for the mode alone, which the kernel may have kept.
def shown(name):
    return int(subprocess.check_output(["stat", "-c", "%a", name]), 8)
def past_the_cache(name):
    fd = os.open(name, os.O_WRONLY | os.O_DIRECT)
    os.fstat(fd)
    os.writev(fd, [mmap.mmap(-1, 4096)])
    assert shown(name) == 0o777, oct(shown(name))
    os.close(fd)
name = made("direct"); mode(name); as_user(lambda: past_the_cache(name)); assert mode(name) == 0o777, oct(mode(name))
def within(name):
    with open(name, "r+b") as f:
        os.fstat(f.fileno())
        os.posix_fallocate(f.fileno(), 0, 3)
        assert shown(name) & 0o4000 == 0, oct(shown(name))
name = made("within"); mode(name); as_user(lambda: within(name)); assert mode(name) == 0o777, oct(mode(name))
# Setgid without the group's execution bit stays with the group's own.
name = made("foreign", 0o6666); as_user(lambda: within(name)); assert mode(name) == 0o666, oct(mode(name))
name = made("own", 0o666); os.chown(name, 65534, 65534); os.chmod(name, 0o6666)
as_user(lambda: within(name)); assert mode(name) == 0o2666, oct(mode(name))
for n, change in enumerate([append, lambda n: os.truncate(n, 1), lambda n: os.chown(n, 1, 1)]):
    name = made("caps%d" % n, 0o755, True)
    assert has_caps(name)
    change(name)
    assert not has_caps(name), n
name = made("kept", 0o755, True); open(name, "rb").read(); os.chmod(name, 0o700); assert has_caps(name)
# A file with attributes of another kind keeps them.
name = made("user", 0o755); os.setxattr(name, "user.note", b"x"); append(name)
assert os.getxattr(name, "user.note") == b"x"
"#;

#[test]
fn powers_do_not_outlive_a_change() {
    if !can_mount("powers_do_not_outlive_a_change") {
        return;
    }
    for options in ["writeback=on", "writeback=off"] {
        let stage = Stage::image("256M");
        stage.mount_with(options);
        must("python3", &["-c", SCRIPT, &stage.mnt()]);
        stage.umount();
        stage.check();
    }
}
