//! Handles that outlive paths, caches and daemons, as a server for NFS needs them: name_to_handle_at(2) and
//! open_by_handle_at(2).

use crate::stage::{Ext4, Stage, can_mount, must, shell};

/// Makes handles of everything in a folder, writes them to a list ("make FOLDER LIST"), and opens them again
/// ("open FOLDER LIST", with a fourth word what the path of the deepest directory ends with).
const SCRIPT: &str = r#"
import ctypes, errno, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
class Handle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("data", ctypes.c_ubyte * 128)]
def check(result):
    if result < 0: raise OSError(ctypes.get_errno(), "")
    return result
def handle_of(path, flags=0):
    h, mount = Handle(bytes=128), ctypes.c_int()
    check(libc.name_to_handle_at(-100, path.encode(), ctypes.byref(h), ctypes.byref(mount), flags))
    return [h.type, bytes(h.data[:h.bytes]).hex()]
def open_handle(root, handle, flags):
    data = bytes.fromhex(handle[1])
    h = Handle(bytes=len(data), type=handle[0]); h.data[:len(data)] = data
    return check(libc.open_by_handle_at(root, ctypes.byref(h), flags))
verb, folder, listed = sys.argv[1:4]
os.chdir(folder)
NAMES = ["f", "big", "d", "d/deep/er/f", "d/deep/er", "d/deep", "link", "fifo", "."]
if verb == "make":
    os.makedirs("d/deep/er"); open("f", "w").write("f"); open("big", "wb").write(b"b" * 1000000); open("d/deep/er/f", "w").write("deep")
    os.symlink("f", "link"); os.mkfifo("fifo"); open("gone", "w").write("gone"); os.mkdir("gonedir")
    handles = {name: handle_of(name) for name in NAMES + ["gone", "gonedir"]}
    for name in NAMES: assert handle_of(name, 0) == handles[name], name
    held = os.open("gone", os.O_RDONLY)
    os.unlink("gone"); os.rmdir("gonedir")
    # Somebody has it open still, so it is there.
    root = os.open(".", os.O_RDONLY)
    assert os.read(open_handle(root, handles["gone"], os.O_RDONLY), 9) == b"gone"
    os.close(held)
    open("after", "w").write("another inode")
    json.dump({"handles": handles, "inodes": {name: os.lstat(name).st_ino for name in NAMES}}, open(listed, "w"))
else:
    known = json.load(open(listed)); handles = known["handles"]
    root = os.open(".", os.O_RDONLY)
    order = sorted(NAMES, reverse=verb == "open")
    for name in order:
        kind = os.O_PATH if name in ("link", "fifo") else os.O_DIRECTORY | os.O_RDONLY if name in ("d", "d/deep", "d/deep/er", ".") else os.O_RDWR
        fd = open_handle(root, handles[name], kind)
        assert os.fstat(fd).st_ino == known["inodes"][name], name
        if name == "f" or name.endswith("/f"): assert os.read(fd, 9) in (b"f", b"deep")
        if name == "d/deep/er":
            # The way up to the root is found from below.
            path = os.readlink(f"/proc/self/fd/{fd}")
            assert path.endswith(sys.argv[4] if len(sys.argv) > 4 else "d/deep/er"), path
            assert os.listdir(fd) == ["f"]
            assert os.fstat(os.open("..", os.O_RDONLY, dir_fd=fd)).st_ino == known["inodes"]["d/deep"]
        os.close(fd)
    for name in ("gone", "gonedir"):
        try: open_handle(root, handles[name], os.O_RDONLY); print(name, "is there")
        except OSError as error: print(name, errno.errorcode[error.errno])
    # A handle that nobody was given.
    for handle in ([handles["f"][0], "ff" * (len(handles["f"][1]) // 2)], [handles["f"][0], handles["f"][1][:-2] + "07"], [handles["f"][0], "00" * 12]):
        try: open_handle(root, handle, os.O_RDONLY); print("a forged one is there")
        except OSError as error: print(errno.errorcode[error.errno])
"#;

/// What a handle of something that is gone, and forged ones, answer.
const REFUSED: &str = "gone ESTALE\ngonedir ESTALE\nESTALE\nESTALE\nESTALE\n";

#[test]
fn handles_outlive_caches_daemons_and_names() {
    if !can_mount("handles_outlive_caches_daemons_and_names") {
        return;
    }
    let drop_caches = || drop(shell("sync; echo 3 > /proc/sys/vm/drop_caches"));
    let stage = Stage::image("256M");
    let list = stage.path("handles");
    let ask = |words: &[&str]| must("python3", &[&["-c", SCRIPT], words].concat());
    let ext4 = Ext4::new(&stage);
    ask(&["make", &ext4.path(), &list]);
    drop_caches();
    assert_eq!(ask(&["open", &ext4.path(), &list]), REFUSED, "ext4 itself");

    stage.mount();
    let mnt = stage.mnt();
    ask(&["make", &mnt, &list]);
    assert_eq!(ask(&["open", &mnt, &list]), REFUSED, "with everything in the cache");
    for order in ["open", "open upwards"] {
        drop_caches();
        assert_eq!(ask(&[order, &mnt, &list]), REFUSED, "{order}, with nothing in the cache");
    }
    stage.umount();
    stage.mount();
    assert_eq!(ask(&["open", &mnt, &list]), REFUSED, "after a remount");
    stage.sync();
    stage.kill();
    stage.mount();
    assert_eq!(ask(&["open", &mnt, &list]), REFUSED, "after a crash");
    shell(&format!(
        "cd {mnt}; mkdir elsewhere; mv d/deep elsewhere/moved; mkdir d/deep; mv elsewhere/moved/er elsewhere"
    ));
    // The directory that was above the deepest one has moved too; each handle finds its own.
    drop_caches();
    shell(&format!("cd {mnt}; mv elsewhere/er elsewhere/moved/er"));
    drop_caches();
    assert_eq!(ask(&["open", &mnt, &list, "elsewhere/moved/er"]), REFUSED, "after a rename");
    stage.umount();
    stage.check();
}
