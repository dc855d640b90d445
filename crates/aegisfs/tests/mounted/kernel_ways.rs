//! The ways to the kernel: /dev/fuse and io_uring, mounts of images and of block devices.

use crate::stage::{AEGISFS, Stage, aegisfs, can_mount, must, run, shell};
use std::fs;
use std::time::{Duration, Instant};

/// Whether requests come through io_uring, and by how many threads.
fn way(stage: &Stage) -> (String, u64) {
    let status = stage.json("status");
    let way = status["transport"].as_str().expect("it says").to_owned();
    (way, status["ring_threads"].as_u64().expect("it says"))
}

#[test]
fn requests_come_the_way_that_was_asked_for() {
    if !can_mount("requests_come_the_way_that_was_asked_for") {
        return;
    }
    let stage = Stage::image("256M");
    stage.mount_with("io_uring=off");
    assert_eq!(way(&stage), ("/dev/fuse".into(), 0));
    let (code, text) = aegisfs(&["mount", "-o", "remount,io_uring=on", &stage.mnt()]);
    assert!(code == 2 && text.contains("io_uring cannot be changed"), "{text}");
    stage.umount();
    // Root turns it on in the kernel by asking for it. Other tests have it already, or do not care.
    let switch = "/sys/module/fuse/parameters/enable_uring";
    let was_off = fs::read_to_string(switch).expect("a kernel with io_uring").trim() == "N";
    let told = must(AEGISFS, &["mount", "-o", "io_uring=on", stage.device(), &stage.mnt()]);
    assert!(!was_off || told.contains("is now on"), "{told}");
    assert_eq!(fs::read_to_string(switch).unwrap().trim(), "Y");
    let (name, threads) = way(&stage);
    assert!(name == "io_uring" && threads >= 2, "{name} {threads}");
    fs::write(stage.at("file"), "through the ring").unwrap();
    assert_eq!(fs::read_to_string(stage.at("file")).unwrap(), "through the ring");
    stage.umount();
    stage.mount_with("io_uring=auto");
    assert_eq!(way(&stage).0, "io_uring");
    assert_eq!(fs::read_to_string(stage.at("file")).unwrap(), "through the ring");
    stage.umount();
    let (code, text) = aegisfs(&["mount", "-o", "io_uring=maybe", stage.device(), &stage.mnt()]);
    assert!(code == 2 && text.contains("none of auto, on, off"), "{text}");
    stage.check();
}

/// Each asks for holes of a file that it has just written, all from one processor.
const HOLES_AT_ONCE: &str = r#"
import os, sys
os.chdir(sys.argv[1])
start, go = os.pipe()
children = []
for n in range(40):
    child = os.fork()
    if child == 0:
        os.sched_setaffinity(0, {0})
        os.read(start, 1)
        fd = os.open(f"f{n}", os.O_RDWR | os.O_CREAT)
        for size in range(1, 6):
            os.pwrite(fd, b"x" * 131072, (size - 1) * 131072)
            found = os.lseek(fd, 0, os.SEEK_DATA), os.lseek(fd, 0, os.SEEK_HOLE)
            if found != (0, size * 131072): print(n, size, found); os._exit(1)
        os._exit(0)
    children.append(child)
os.write(go, b"x" * 40)
assert all(os.waitpid(child, 0)[1] == 0 for child in children)
"#;

/// Whoever asks for holes waits until the kernel has written back, and those writes come to the same queue.
#[test]
fn many_may_wait_for_the_kernel_at_once() {
    if !can_mount("many_may_wait_for_the_kernel_at_once") {
        return;
    }
    for ways in ["io_uring=on", "io_uring=off"] {
        let stage = Stage::image("512M");
        stage.mount_with(ways);
        must("timeout", &["60", "python3", "-c", HOLES_AT_ONCE, &stage.mnt()]);
        let (_, threads) = way(&stage);
        assert!(threads <= 160, "{threads} threads");
        stage.umount();
        stage.check();
    }
}

/// A daemon that is killed under load leaves no process waiting for ever, whichever way requests came.
#[test]
fn a_killed_daemon_lets_everybody_go() {
    if !can_mount("a_killed_daemon_lets_everybody_go") {
        return;
    }
    for ways in ["io_uring=on", "io_uring=off"] {
        for stage in [Stage::image("512M"), Stage::block("512M")] {
            stage.mount_with(ways);
            let mnt = stage.mnt();
            let line = format!(
                "for n in 1 2 3 4; do (for k in $(seq 100000); do echo $k > {mnt}/$n.$k && \
                 cat {mnt}/$n.$k > /dev/null || exit 0; done) 2>/dev/null & done; wait"
            );
            let load = std::process::Command::new("timeout").args(["60", "bash", "-c", &line]).spawn();
            let mut load = load.expect("bash can be run");
            std::thread::sleep(Duration::from_millis(700));
            // The log is written every half second; how long that takes is the device's affair.
            let begun = Instant::now();
            while fs::read_dir(stage.mnt()).unwrap().next().is_none()
                || stage.json("status")["log_transactions_flushed"].as_u64() < Some(100)
            {
                assert!(begun.elapsed() < Duration::from_secs(20), "the log is not written");
                std::thread::sleep(Duration::from_millis(50));
            }
            stage.kill();
            let killed = Instant::now();
            assert!(load.wait().unwrap().success(), "somebody waits for ever");
            assert!(killed.elapsed() < Duration::from_secs(20));
            stage.mount_with(ways);
            let there = fs::read_dir(stage.mnt()).unwrap().count();
            assert!(there > 0, "what the log has is there");
            stage.umount();
            stage.check();
        }
    }
}

/// Writes much and asks for holes, again and again, until that fails.
const SEEK_UNTIL_DEAD: &str = r#"
import os, sys
os.chdir(sys.argv[1])
data = os.urandom(1 << 20)
try:
    fd = os.open(f"f{os.getpid()}", os.O_RDWR | os.O_CREAT)
    while True:
        for n in range(8): os.pwrite(fd, data, n << 20)
        os.lseek(fd, 0, os.SEEK_HOLE)
except OSError: os._exit(0)
"#;

// A thread of the daemon waited in the kernel for writes that only the daemon could take. Killed meanwhile, it did not
// end, and neither did the mount: everybody on it hung, and whoever looked at it.
#[test]
fn a_daemon_that_is_killed_while_the_kernel_writes_back_is_gone() {
    if !can_mount("a_daemon_that_is_killed_while_the_kernel_writes_back_is_gone") {
        return;
    }
    for ways in ["io_uring=on", "io_uring=off"] {
        let stage = Stage::image("512M");
        for _ in 0..3 {
            stage.mount_with(ways);
            let line = format!(
                "for n in 1 2 3 4 5 6; do python3 -c '{SEEK_UNTIL_DEAD}' {} & done; wait",
                stage.mnt()
            );
            let load = std::process::Command::new("timeout").args(["60", "bash", "-c", &line]).spawn();
            let mut load = load.expect("bash can be run");
            std::thread::sleep(Duration::from_millis(600));
            stage.kill();
            let killed = Instant::now();
            assert!(load.wait().unwrap().success(), "somebody waits for ever");
            assert!(killed.elapsed() < Duration::from_secs(20), "{:?}", killed.elapsed());
            must("umount", &["-l", &stage.mnt()]);
        }
        stage.mount_with(ways);
        stage.umount();
        stage.check();
    }
}

/// Writes with and without leaving files open, tells the whole system to sync, and kills the daemon.
const WRITE_AND_SYNC: &str = r#"
import os, sys
os.chdir(sys.argv[1])
for n in range(300): open(f"small {n}", "w").write(f"{n} " * n)
fds = [os.open(f"open {n}", os.O_RDWR | os.O_CREAT) for n in range(20)]
for n, fd in enumerate(fds): os.write(fd, bytes([n]) * 1_000_003)
big = os.open("big", os.O_RDWR | os.O_CREAT)
for n in range(40): os.write(big, os.urandom(1 << 20))
import hashlib
digest = hashlib.sha256(open("big", "rb").read()).hexdigest()
if sys.argv[3] == "sync": os.sync()
else:
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(big) != 0: raise OSError(ctypes.get_errno(), "syncfs")
os.kill(int(sys.argv[2]), 9)
print(digest)
"#;

/// On a block device sync(2) and syncfs(2) wait until everything is on the device; through the kernel's
/// ordinary FUSE mounts they would not.
#[test]
fn sync_waits_on_a_block_device() {
    if !can_mount("sync_waits_on_a_block_device") {
        return;
    }
    let stage = Stage::block("1G");
    for (call, options) in [("sync", "io_uring=on"), ("syncfs", "io_uring=off,fuseblk=on")] {
        stage.mount_with(options);
        assert_eq!(stage.json("status")["fuseblk"], true);
        let pid = stage.pid().to_string();
        let digest = must("timeout", &["60", "python3", "-c", WRITE_AND_SYNC, &stage.mnt(), &pid, call]);
        let (code, text) = aegisfs(&["check", stage.device()]);
        assert!(code == 6 && text.contains("without a living daemon"), "{text}");
        stage.mount_with(options);
        for n in 0..300 {
            let content = fs::read_to_string(stage.at(&format!("small {n}"))).unwrap();
            assert_eq!(content, format!("{n} ").repeat(n), "{call}");
        }
        for n in 0..20u8 {
            assert!(fs::read(stage.at(&format!("open {n}"))).unwrap() == vec![n; 1_000_003], "{call} {n}");
        }
        let now = must("sha256sum", &[stage.at("big").to_str().unwrap()]);
        assert_eq!(now.split(' ').next(), Some(digest.trim()), "{call}");
        // umount(8) waits for the daemon too, and the device is free then.
        must("umount", &[&stage.mnt()]);
        stage.check();
        stage.mount();
        shell(&format!("rm -rf {}/*", stage.mnt()));
        stage.umount();
    }
}

/// Removes open files, closes them and unmounts at once; whoever then claims the device has it alone.
const CLAIM: &str = r#"
import ctypes, mmap, os, sys, time
device, mnt = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
fds = [os.open(f"{mnt}/f{n}", os.O_RDWR | os.O_CREAT) for n in range(300)]
for n, fd in enumerate(fds): os.write(fd, b"x" * 20000)
for n in range(300): os.unlink(f"{mnt}/f{n}")
os.fsync(fds[0])
time.sleep(1.2)
for fd in fds: os.close(fd)
assert libc.umount2(mnt.encode(), 0) == 0, os.strerror(ctypes.get_errno())
for attempt in range(200):
    try: fd = os.open(device, os.O_RDWR | os.O_EXCL | os.O_DIRECT); break
    except OSError: time.sleep(0.005)
zeros = mmap.mmap(-1, 1 << 20)
for n in range(64): os.pwrite(fd, zeros, n << 20)
os.fsync(fd)
time.sleep(2)
page = mmap.mmap(-1, 1 << 20)
for n in range(64):
    os.preadv(fd, [page], n << 20)
    assert page[:] == bytes(1 << 20), f"somebody wrote to MiB {n}"
"#;

// The daemon's service went on for a while after the kernel had let go of the device, and reaped what had been removed:
// its log records landed in what others had made of the device meanwhile.
#[test]
fn nothing_is_written_once_a_block_device_is_unmounted() {
    if !can_mount("nothing_is_written_once_a_block_device_is_unmounted") {
        return;
    }
    for ways in ["io_uring=on", "io_uring=off"] {
        for _ in 0..3 {
            let stage = Stage::block("512M");
            stage.mount_with(ways);
            must("timeout", &["60", "python3", "-c", CLAIM, stage.device(), &stage.mnt()]);
        }
    }
}

/// What reached the daemon is written out even if the mount is torn away while somebody has a file open.
#[test]
fn a_mount_that_is_torn_away_keeps_what_reached_it() {
    if !can_mount("a_mount_that_is_torn_away_keeps_what_reached_it") {
        return;
    }
    for stage in [Stage::image("512M"), Stage::block("512M")] {
        stage.mount();
        let pid = stage.pid();
        let script = "import mmap, os, subprocess, sys\n\
            fd = os.open(sys.argv[1] + '/file', os.O_RDWR | os.O_CREAT | os.O_DIRECT)\n\
            page = mmap.mmap(-1, 1 << 20)\n\
            for n in range(20): page[:] = bytes([n]) * (1 << 20); os.pwrite(fd, page, n << 20)\n\
            subprocess.run(['umount', '-f', '-l', sys.argv[1]], check=True)\n\
            os.system(f'for n in $(seq 400); do kill -0 {sys.argv[2]} 2>/dev/null || exit 0; sleep 0.05; done')\n";
        must("timeout", &["60", "python3", "-c", script, &stage.mnt(), &pid.to_string()]);
        stage.mount();
        let content = fs::read(stage.at("file")).unwrap();
        assert_eq!(content.len(), 20 << 20);
        assert!((0..20).all(|n| content[n << 20..(n + 1) << 20].iter().all(|byte| usize::from(*byte) == n)));
        stage.umount();
        stage.check();
    }
}

/// What is no block device, or not mounted by its own name, is mounted in the plain way, or not at all if asked.
#[test]
fn only_block_devices_are_mounted_as_such() {
    if !can_mount("only_block_devices_are_mounted_as_such") {
        return;
    }
    let image = Stage::image("256M");
    image.mount();
    assert_eq!(image.json("status")["fuseblk"], false);
    image.umount();
    let (code, text) = aegisfs(&["mount", "-o", "fuseblk=on", image.device(), &image.mnt()]);
    assert!(code == 1 && text.contains("the source is no block device"), "{text}");
    let block = Stage::block("256M");
    for (options, expected) in [("fuseblk=off", false), ("fsname=disk", false), ("defaults", true)] {
        block.mount_with(options);
        assert_eq!(block.json("status")["fuseblk"], expected, "{options}");
        // Nobody else gets the device while it is mounted, either way.
        let refused = run("mkfs.ext4", &["-q", "-F", block.device()]);
        assert!(!refused.status.success(), "{options}");
        let (code, text) = aegisfs(&["check", block.device()]);
        assert!(code == 6 && text.contains("is mounted on"), "{options}: {text}");
        block.umount();
        block.check();
    }
}

/// What is used most is named, and work on different files waits for no lock that they share.
#[test]
fn the_hottest_files_and_waits_for_locks_are_told() {
    if !can_mount("the_hottest_files_and_waits_for_locks_are_told") {
        return;
    }
    let stage = Stage::image("512M");
    stage.mount_with("writeback=off");
    let waits = || -> u64 {
        let status = stage.json("status");
        let locks = status["lock_waits"].as_object().expect("an object").clone();
        locks.values().map(|count| count.as_u64().unwrap()).sum::<u64>()
            + status["store"]["sequencer_waits"].as_u64().expect("a number")
    };
    fs::write(stage.at("hot"), [1; 8192]).unwrap();
    let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(stage.at("hot")).unwrap());
    let before = waits();
    let line = format!(
        "cd {}; for n in 1 2 3 4; do (mkdir $n; for k in $(seq 250); do echo $k > $n/$k; \
         dd if=/dev/zero of=hot bs=512 count=8 conv=notrunc status=none; done) & done; wait",
        stage.mnt()
    );
    shell(&line);
    let status = stage.json("status");
    let hottest = status["hottest_files"].as_array().expect("a list");
    assert_eq!(hottest[0]["inode"], inode, "{hottest:?}");
    assert!(hottest.len() <= 10 && hottest[0]["operations"].as_u64().unwrap() > 2000, "{hottest:?}");
    let requests: u64 = status["opcodes"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
    let waited = waits() - before;
    println!("{waited} waits for locks in {requests} requests of four writers, who share one file of theirs");
    assert!(waited * 4 < requests, "{waited} waits in {requests} requests");
    stage.umount();
}
