//! Bytes: appending, vectors, mappings, direct access, times, allocation, sparse and shared ranges.

use crate::requirements::{figure, noise};
use crate::stage::{Ext4, Stage, agree_with_ext4, can_mount, must};
use rustix::fs::copy_file_range;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

/// Prints what comes of everything that a program does with bytes; with the word "full" also of what ext4 cannot.
const SCRIPT: &str = r#"
import ctypes, errno, mmap, os, select, subprocess, sys
os.chdir(sys.argv[1]); full = sys.argv[2] == "full"
libc = ctypes.CDLL(None, use_errno=True)
def say(what, work):
    try: outcome = work()
    except OSError as error: outcome = errno.errorcode[error.errno]
    print(what, outcome)
def little_left(fd, last):
    # What is left of the last page may be data, all of it zeros.
    try: return os.lseek(fd, 0, os.SEEK_DATA) >= last - 4096
    except OSError as error: return error.errno == errno.ENXIO
def give(fd, name): os.link(f"/proc/self/fd/{fd}", name, src_dir_fd=fd, follow_symlinks=True)
def aligned(count, byte=b"\0"):
    memory = mmap.mmap(-1, count); memory.write(byte * count); return memory
# Two processes append at the same time, each its own lines; nothing is lost or torn.
def append(name, flags, size):
    children = []
    for who in range(2):
        child = os.fork()
        if child == 0:
            fd = os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT | flags)
            for n in range(400 if not flags else 40): os.write(fd, (f"{who} {n:06} ".encode() + b"x" * size)[:size - 1] + b"\n")
            os._exit(0)
        children.append(child)
    for child in children: assert os.waitpid(child, 0)[1] == 0
    lines = open(name, "rb").read().split(b"\n")[:-1]
    assert all(len(line) == size - 1 for line in lines), "torn"
    for who in range(2):
        mine = [line for line in lines if line.startswith(b"%d " % who)]
        assert mine == sorted(mine), "order"
        print("append", size, flags, len(mine))
for size in (20, 777, 5000): append(f"log{size}", 0, size)
append("sync", os.O_SYNC, 300); append("dsync", os.O_DSYNC, 300)
# Flags of single writes and reads.
APPEND, DSYNC, SYNC, NOWAIT, HIPRI = 0x10, 2, 4, 8, 1
open("f", "wb").write(b"0123456789"); fd = os.open("f", os.O_RDWR)
for name, flags in [("none", 0), ("append", APPEND), ("dsync", DSYNC), ("sync", SYNC), ("append sync", APPEND | SYNC), ("unknown", 1 << 20)]:
    say("pwritev2 " + name, lambda: os.pwritev(fd, [b"ab", b"c"], 2, flags)); say("then", lambda: (os.fstat(fd).st_size, os.pread(fd, 30, 0)))
say("preadv2", lambda: os.preadv(fd, [bytearray(3), bytearray(30)], 0, 0))
say("preadv2 unknown", lambda: os.preadv(fd, [bytearray(3)], 0, 1 << 20)); say("preadv2 hipri", lambda: os.preadv(fd, [bytearray(3)], 0, HIPRI))
say("pwritev2 hipri", lambda: os.pwritev(fd, [b"x"], 0, HIPRI)); os.lseek(fd, 4, 0); say("position", lambda: (os.pwritev(fd, [b"zz"], 0, 0), os.lseek(fd, 0, 1)))
buffers = [bytearray(2), bytearray(3), bytearray(100)]; say("readv", lambda: (os.readv(fd, buffers), [bytes(b[:9]) for b in buffers])); say("pread behind", lambda: os.pread(fd, 5, 1000))
# Appending descriptors: where a pwrite goes, and a seek.
a = os.open("f", os.O_RDWR | os.O_APPEND); size = os.fstat(a).st_size
say("pwrite on append", lambda: (os.pwrite(a, b"END", 0), os.fstat(a).st_size - size)); say("after seek", lambda: (os.lseek(a, 0, 0), os.write(a, b"!"), os.lseek(a, 0, 1) - size, os.read(a, 5)))
# Mappings beside everything else.
open("m", "wb").write(b"a" * 20000); m = os.open("m", os.O_RDWR); d = os.open("m", os.O_RDWR | os.O_DIRECT)
shared = mmap.mmap(m, 20000); private = mmap.mmap(m, 20000, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
def direct(offset, count): 
    with aligned(count) as memory: n = os.preadv(d, [memory], offset); return memory[:n]
os.pwrite(m, b"W" * 100, 0); assert shared[:101] == b"W" * 100 + b"a" and private[:2] == b"WW"
private[0:2] = b"PP"; assert os.pread(m, 2, 0) == b"WW" and shared[0:2] == b"WW" and direct(0, 4096)[:2] == b"WW"
os.pwrite(m, b"XX", 0); assert private[0:2] == b"PP"
shared[5000:5004] = b"MAPD"; assert os.pread(m, 4, 5000) == b"MAPD" and direct(4096, 4096)[904:908] == b"MAPD", "direct reads see mapped bytes"
with aligned(4096, b"D") as memory: os.pwritev(d, [memory], 8192)
assert os.pread(m, 4, 8190) == b"aaDD" and shared[8191:8193] == b"aD" and shared[12287:12289] == b"Da", "a direct write is seen"
assert direct(16384, 8192) == b"a" * (20000 - 16384); os.ftruncate(m, 8194); assert shared[8192:8195] == b"DD\0"; assert direct(8192, 4096) == b"DD"
os.ftruncate(m, 30000); assert shared[8190:8196] == b"aaDD\0\0" and os.pread(m, 30000, 8194) == bytes(30000 - 8194), "what was cut off is gone"
child = os.fork()
if child == 0: shared[100:105] = b"child"; os._exit(0)
os.waitpid(child, 0); assert shared[100:105] == b"child" == os.pread(m, 5, 100)
child = os.fork()
if child == 0:
    import signal; signal.signal(signal.SIGBUS, signal.SIG_DFL); os.ftruncate(m, 100); shared[9000]; os._exit(0)
print("behind the end", os.waitpid(child, 0)[1])
for how in (os.O_RDONLY, os.O_WRONLY):
    x = os.open("m", how)
    say(f"map writable {how}", lambda: mmap.mmap(x, 100, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE).close()); os.close(x)
# Unaligned direct access, and vectors of it.
say("direct unaligned", lambda: os.pread(d, 10, 3) if full else "either")
# Times.
def times(name, ns): os.utime(name, ns=(ns, ns)); s = os.stat(name); return (s.st_atime_ns, s.st_mtime_ns)
open("t", "w")
for ns in (0, 1, 999999999, 2**31 * 10**9, 2**31 * 10**9 + 123456789, -1, -10**9, -2**31 * 10**9, 2**32 * 10**9 + 5, 2**33 * 10**9 + 987654321): say(f"time {ns}", lambda: times("t", ns))
# Waiting for files: they are always ready.
r = os.open("t", os.O_RDWR); p = select.poll(); p.register(r, select.POLLIN | select.POLLOUT | select.POLLPRI)
say("poll", lambda: [e for _, e in p.poll(0)]); say("select", lambda: [len(x) for x in select.select([r], [r], [r], 0)])
# Allocating.
def fallocate(mode, offset, length, name="alloc"):
    f = os.open(name, os.O_RDWR)
    try:
        if libc.fallocate(f, mode, ctypes.c_long(offset), ctypes.c_long(length)): raise OSError(ctypes.get_errno(), "")
        content = open(name, "rb").read(); return (len(content), content.count(b"A"), content.count(b"\0"))
    finally: os.close(f)
for mode, offset, length in [(0, 0, 100), (0, 90000, 20000), (1, 200000, 100000), (3, 5000, 10000), (3, 4096, 4096), (3, 1 << 40, 4096), (16, 1000, 100), (16, 119000, 2000), (17, 119000, 20000), (17, 500, 2),
                             (2, 0, 10), (0, 0, 0), (0, -1, 10), (0, 0, -1), (0, 2**63 - 1, 2), (128, 0, 10), (0x48, 0, 10)]:
    if not os.path.exists("alloc"): open("alloc", "wb").write(b"A" * 100000)
    say(f"fallocate {mode} {offset} {length}", lambda: fallocate(mode, offset, length))
say("fallocate read-only", lambda: libc.fallocate(os.open("alloc", os.O_RDONLY), 0, ctypes.c_long(0), ctypes.c_long(10))); os.mkdir("dd")
# Truncating, and what cannot be.
for what, work in [("negative", lambda: os.ftruncate(m, -1)), ("directory", lambda: os.truncate("dd", 0)), ("reader", lambda: os.ftruncate(os.open("m", os.O_RDONLY), 0)),
                   ("seek negative", lambda: os.lseek(m, -1, 0)), ("seek end", lambda: os.lseek(m, 5, 2)), ("seek data behind", lambda: os.lseek(m, 10**6, os.SEEK_DATA)), ("seek hole end", lambda: os.lseek(m, 0, os.SEEK_HOLE)),
                   ("read directory", lambda: os.read(os.open("dd", os.O_RDONLY), 10)), ("write to reader", lambda: os.write(os.open("m", os.O_RDONLY), b"x")), ("open directory", lambda: os.open("dd", os.O_RDWR)),
                   ("negative offset", lambda: os.pread(m, 1, -1)), ("tmpfile", lambda: os.open(".", os.O_TMPFILE | os.O_RDONLY)), ("exclusive", lambda: os.open("m", os.O_CREAT | os.O_EXCL)), ("not a directory", lambda: os.open("m/x", os.O_RDONLY)),
                   ("nofollow", lambda: (os.symlink("m", "sl"), os.open("sl", os.O_NOFOLLOW | os.O_RDONLY))), ("is directory", lambda: os.open("m", os.O_DIRECTORY))]: say(what, work)
# A file without a name gets one, unless it is not to.
t = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o640); os.write(t, b"nameless"); before = len(os.listdir("."))
print("tmpfile", os.fstat(t).st_nlink, len(os.listdir(".")) - before); give(t, "named")
print(open("named").read(), os.stat("named").st_nlink, oct(os.stat("named").st_mode)); say("again", lambda: give(t, "named")); give(t, "two"); print(os.fstat(t).st_nlink)
x = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o600); say("exclusive tmpfile", lambda: give(x, "never"))
# copy_file_range: what is refused.
open("src", "wb").write(b"s" * 100000); open("dst", "wb").write(b"d" * 10)
s, t = os.open("src", os.O_RDWR), os.open("dst", os.O_RDWR)
for what, work in [("copy", lambda: os.copy_file_range(s, t, 70000, 1000, 5)), ("behind", lambda: os.copy_file_range(s, t, 10, 100000, 0)), ("overlap", lambda: os.copy_file_range(s, s, 1000, 0, 500)), ("within", lambda: os.copy_file_range(s, s, 1000, 0, 50000)),
                   ("appending", lambda: os.copy_file_range(s, os.open("dst", os.O_WRONLY | os.O_APPEND), 10)), ("to reader", lambda: os.copy_file_range(s, os.open("dst", os.O_RDONLY), 10)), ("from writer", lambda: os.copy_file_range(os.open("src", os.O_WRONLY), t, 10)),
                   ("from directory", lambda: os.copy_file_range(os.open("dd", os.O_RDONLY), t, 10)), ("zero", lambda: os.copy_file_range(s, t, 0)), ("to pipe", lambda: os.copy_file_range(s, os.pipe()[1], 10))]: say("range " + what, work)
print(os.fstat(t).st_size, open("dst", "rb").read(6))
if full:
    e = select.epoll(); say("epoll", lambda: (e.register(r, select.EPOLLIN | select.EPOLLOUT), e.poll(0)[0][1]))
    for ns in (-9223372036854775808, 9223372036854775807, -9223372036000000000, 9223372036000000001): assert times("t", ns) == (ns, ns), ns
    # Further than that the nearest time is kept. With a writeback cache the kernel shows what it was given until then.
    for seconds, nearest in ((-10**10, -2**63), (10**10, 2**63 - 1)):
        open("far", "w").close(); os.utime("far", ns=(seconds * 10**9, seconds * 10**9)); subprocess.run("sync; echo 3 > /proc/sys/vm/drop_caches", shell=True)
        assert os.stat("far").st_mtime_ns == nearest, os.stat("far").st_mtime_ns
    def nowait(): return os.preadv(fd, [bytearray(3)], 0, NOWAIT)
    say("preadv2 nowait", nowait); say("pwritev2 nowait", lambda: os.pwritev(fd, [b"x"], 0, NOWAIT))
    f = os.open("huge", os.O_RDWR | os.O_CREAT); last = 2**63 - 2
    for what, work in [("last byte", lambda: os.pwrite(f, b"L", last)), ("size", lambda: os.fstat(f).st_size == last + 1), ("read it", lambda: os.pread(f, 1, last)), ("around", lambda: os.pread(f, 4, last - 3)),
                       ("one more", lambda: os.pwrite(f, b"M", last + 1)), ("two there", lambda: os.pwrite(f, b"NO", last)), ("data", lambda: os.lseek(f, 0, os.SEEK_DATA) >= last - 4096), ("hole", lambda: os.lseek(f, 0, os.SEEK_HOLE)),
                       ("hole at the end", lambda: os.lseek(f, last, os.SEEK_HOLE) == last + 1), ("blocks", lambda: os.fstat(f).st_blocks < 100), ("cut", lambda: (os.ftruncate(f, last - 5), os.fstat(f).st_size == last - 5)[1]),
                       ("grow", lambda: (os.ftruncate(f, 2**63 - 1), os.fstat(f).st_size == 2**63 - 1)[1]), ("zeros", lambda: os.pread(f, 8, last - 7)), ("little left", lambda: little_left(f, last)),
                       ("middle", lambda: os.pwrite(f, b"mid", 2**62)), ("data in the middle", lambda: 2**62 - 4096 <= os.lseek(f, 0, os.SEEK_DATA) <= 2**62), ("sync", lambda: os.fsync(f)), ("punch", lambda: libc.fallocate(f, 3, ctypes.c_long(0), ctypes.c_long(2**63 - 1))),
                       ("hole again", lambda: os.lseek(f, 0, os.SEEK_DATA)), ("empty", lambda: os.ftruncate(f, 0))]: say("huge " + what, work)
"#;

/// What the last part prints: the largest file there can be, and what the kernel refuses for every FUSE mount.
const FULL: &str = "\
preadv2 nowait ENOTSUP
pwritev2 nowait ENOTSUP
huge last byte 1
huge size True
huge read it b'L'
huge around b'\\x00\\x00\\x00L'
huge one more EINVAL
huge two there EINVAL
huge data True
huge hole 0
huge hole at the end True
huge blocks True
huge cut True
huge grow True
huge zeros b'\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00'
huge little left True
huge middle 3
huge data in the middle True
huge sync None
huge punch 0
huge hole again ENXIO
huge empty None
";

#[test]
fn bytes_are_those_of_ext4() {
    if !can_mount("bytes_are_those_of_ext4") {
        return;
    }
    let stage = Stage::image("256M");
    let ext4 = Ext4::new(&stage);
    for options in ["writeback=on", "writeback=off"] {
        stage.mount_with(options);
        agree_with_ext4(&stage, &ext4, SCRIPT, &["part"]);
        let folder = format!("{}/{options}", stage.mnt());
        fs::create_dir(&folder).unwrap();
        let printed = must("python3", &["-c", SCRIPT, &folder, "full"]);
        assert!(printed.ends_with(FULL), "{options}: {printed}");
        stage.umount();
        stage.check();
    }
}

#[test]
fn a_tebibyte_of_hole_takes_no_room() {
    if !can_mount("a_tebibyte_of_hole_takes_no_room") {
        return;
    }
    let stage = Stage::image("256M");
    stage.mount();
    let before = figure(&stage, "usage", "free_bytes");
    let file = File::create_new(stage.at("sparse")).unwrap();
    file.set_len(1 << 40).unwrap();
    for place in [0, 1 << 30, (1 << 39) + 12_345, (1 << 40) - 5] {
        file.write_all_at(b"bytes", place).unwrap();
    }
    file.sync_all().unwrap();
    stage.sync();
    let taken = before.saturating_sub(figure(&stage, "usage", "free_bytes"));
    assert!(taken < 1 << 20, "{taken} bytes");
    assert!(file.metadata().unwrap().blocks() * 512 < 1 << 20);
    drop(file);
    stage.umount();
    stage.check();
    stage.mount();
    let file = File::open(stage.at("sparse")).unwrap();
    let mut found = [1; 15];
    file.read_exact_at(&mut found, (1 << 39) + 12_340).unwrap();
    assert_eq!(&found, b"\0\0\0\0\0bytes\0\0\0\0\0");
    let mut place = 0;
    let mut pieces = Vec::new();
    while let Ok(data) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(place)) {
        place = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(data)).unwrap();
        pieces.push((data, place));
    }
    assert_eq!(pieces.len(), 4, "{pieces:?}");
    // The kernel writes whole pages.
    assert_eq!(pieces[3], ((1 << 40) - 4096, 1 << 40));
}

#[test]
fn a_copied_range_is_shared_across_files() {
    if !can_mount("a_copied_range_is_shared_across_files") {
        return;
    }
    const BYTES: usize = 48 << 20;
    let stage = Stage::image("512M");
    stage.mount();
    let content = noise(3, BYTES);
    fs::write(stage.at("from"), &content).unwrap();
    stage.sync();
    let used = || figure(&stage, "usage", "data_bytes");
    let before = used();
    let (from, to) = (File::open(stage.at("from")).unwrap(), File::create(stage.at("to")).unwrap());
    let mut copied = 0;
    while copied < BYTES {
        copied += copy_file_range(&from, None, &to, None, BYTES).unwrap();
    }
    stage.sync();
    let more = used().saturating_sub(before);
    assert!(more < 64 << 10, "the copy took {more} bytes");
    assert_eq!(figure(&stage, "usage", "logical_bytes"), 2 * BYTES as u64);
    assert!(fs::read(stage.at("to")).unwrap() == content);
    // They share, but neither is changed with the other.
    let original = File::options().write(true).open(stage.at("from")).unwrap();
    original.write_all_at(b"changed", 1 << 20).unwrap();
    to.write_all_at(b"other", 2 << 20).unwrap();
    drop((from, to, original));
    let (from, to) = (fs::read(stage.at("from")).unwrap(), fs::read(stage.at("to")).unwrap());
    assert!(from[1 << 20..].starts_with(b"changed") && from[2 << 20..] == content[2 << 20..]);
    assert!(to[2 << 20..].starts_with(b"other") && to[..2 << 20] == content[..2 << 20]);
    stage.umount();
    stage.check();
}

/// Writes a file past the kernel's cache without waiting, while others read it through the cache; whoever opens it
/// afterwards has to read what was written.
const ASYNCHRONOUS: &str = r#"
import ctypes, mmap, os, platform, struct, sys, time
PIECE, PIECES = 65536, 10
SETUP, GETEVENTS, SUBMIT = {"x86_64": (206, 208, 209), "aarch64": (0, 4, 2)}[platform.machine()]
system = ctypes.CDLL(None, use_errno=True).syscall

def checked(result):
    assert result >= 0, os.strerror(ctypes.get_errno())
    return result

path = sys.argv[1]
open(path, "wb").write(bytes(PIECE * PIECES))
readers = []
for _ in range(2):
    child = os.fork()
    if child == 0:
        while True:
            with open(path, "rb", buffering=0) as f:
                while f.read(PIECE):
                    pass
    readers.append(child)
try:
    context = ctypes.c_ulong(0)
    checked(system(SETUP, 16, ctypes.byref(context)))
    file = os.open(path, os.O_WRONLY | os.O_DIRECT)
    buffer = mmap.mmap(-1, PIECE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    end, rounds = time.monotonic() + 6, 0
    while time.monotonic() < end or rounds < 20:
        rounds += 1
        buffer[:] = bytes([rounds % 255 + 1]) * PIECE
        orders = [ctypes.create_string_buffer(
            struct.pack("=QIIHhIQQqQII", n, 0, 0, 1, 0, file, address, PIECE, n * PIECE, 0, 0, 0)) for n in range(PIECES)]
        pointers = (ctypes.c_void_p * PIECES)(*[ctypes.addressof(order) for order in orders])
        assert checked(system(SUBMIT, context, ctypes.c_long(PIECES), pointers)) == PIECES
        events = ctypes.create_string_buffer(32 * PIECES)
        got = checked(system(GETEVENTS, context, ctypes.c_long(PIECES), ctypes.c_long(PIECES), events, None))
        assert got == PIECES
        for n in range(PIECES):
            assert struct.unpack_from("=q", events, 32 * n + 16)[0] == PIECE
        plain = os.open(path, os.O_RDONLY)
        for n in range(PIECES):
            read = os.pread(plain, PIECE, n * PIECE)
            assert read == buffer[:], "round %d, piece %d: %d where %d was written" % (rounds, n, read[0], buffer[0])
        os.close(plain)
finally:
    for child in readers:
        os.kill(child, 9)
        os.waitpid(child, 0)
"#;

#[test]
fn what_is_written_past_the_cache_is_read_through_it() {
    if !can_mount("what_is_written_past_the_cache_is_read_through_it") {
        return;
    }
    let stage = Stage::image("256M");
    stage.mount();
    must("timeout", &["120", "python3", "-c", ASYNCHRONOUS, &stage.path("mnt/file")]);
    stage.umount();
    stage.check();
}

/// The kernel stamps what it caches, we the rest.
#[test]
fn nothing_looks_older_than_what_was_before_it() {
    if !can_mount("nothing_looks_older_than_what_was_before_it") {
        return;
    }
    let stage = Stage::image("256M");
    stage.mount();
    let (mut last, mut wrong) = (std::time::UNIX_EPOCH, 0);
    for n in 0..300 {
        let path = stage.at(&format!("file-{n}"));
        let file = File::create(&path).unwrap();
        let born = file.metadata().unwrap().created().unwrap();
        file.write_all_at(b"x", 0).unwrap();
        let changed = file.metadata().unwrap().modified().unwrap();
        wrong += u32::from(last > born || born > changed);
        last = changed;
    }
    // Other filesystems of the machine may move the kernel's clock on by a part of a tick, of which we do not hear.
    assert!(wrong < 30, "{wrong} files look older than what was before them");
    stage.umount();
}

// Asked for by statx(2) like this, the time of birth is the one thing that the kernel does not have.
#[test]
fn the_time_of_birth_stays() {
    if !can_mount("the_time_of_birth_stays") {
        return;
    }
    let stage = Stage::image("256M");
    stage.mount();
    let start = std::time::SystemTime::now() - std::time::Duration::from_secs(1);
    fs::write(stage.at("file"), b"x").unwrap();
    let born = fs::metadata(stage.at("file")).unwrap().created().unwrap();
    assert!(born >= start && born <= std::time::SystemTime::now());
    let file = File::options().append(true).open(stage.at("file")).unwrap();
    file.set_len(100).unwrap();
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    drop(file);
    fs::rename(stage.at("file"), stage.at("other")).unwrap();
    stage.umount();
    stage.mount();
    let found = fs::metadata(stage.at("other")).unwrap();
    assert_eq!((found.created().unwrap(), found.mtime()), (born, 0));
}
