//! What the kernel can ask a filesystem, opcode by opcode: what came of it on a live mount is what
//! docs/semantics.md says.

use crate::stage::{AEGISFS, Stage, can_mount, must};
use aegisfs_fuse::opcode_name;
use std::fmt::Write;

/// Does for each opcode, twice, what could make the kernel ask for it. Prints whether the second time did, how often
/// it was asked in all by the daemon's own count, and what the call answered.
const SCRIPT: &str = r#"
import array, ctypes, errno, fcntl, json, mmap, os, select, signal, struct, subprocess, sys, time
program, mnt = sys.argv[1:]
os.chdir(mnt)
libc = ctypes.CDLL(None, use_errno=True)
def call(result):
    if result < 0: raise OSError(ctypes.get_errno(), "")
def counts():
    out = subprocess.run([program, "--json", "status", mnt], capture_output=True, check=True, cwd="/")
    return json.loads(out.stdout)["opcodes"]
def opened(name, flags=os.O_RDWR):
    global fd
    if fd is not None: os.close(fd)
    fd = os.open(name, flags)
    return fd
fd = None
def made(name, content=b"content"):
    f = os.open(name, os.O_CREAT | os.O_WRONLY, 0o644); os.write(f, content); os.close(f)
    return name
def statx(name, mask):
    buffer = ctypes.create_string_buffer(256)
    call(libc.statx(-100, name.encode(), 0x2000, mask, buffer))
def drop_caches(): open("/proc/sys/vm/drop_caches", "w").write("3")
def lock(how, kind):
    with open(made("locked"), "r+b") as f: fcntl.fcntl(f, how, struct.pack("hhqqi4x", kind, 0, 0, 0, 0))
def read(n):
    f = os.open(made(f"read{n}"), os.O_RDONLY); os.fsync(f); drop_caches(); os.read(f, 10); os.close(f)
def list_all(name):
    with os.scandir(name) as entries: return sum(1 for _ in entries)
def many(name):
    os.mkdir(name); [made(f"{name}/{k:0100}", b"") for k in range(3000)]; drop_caches(); list_all(name)
def forget(n, count):
    for k in range(count): made(f"forget{n}-{k}", b"")
    if count == 1: os.unlink(f"forget{n}-0")
    else: drop_caches()
def renamed(n, flags):
    made(f"old{n}"); call(libc.renameat2(-100, f"old{n}".encode(), -100, f"new{n}".encode(), flags))
def interrupted(n):
    # The daemon has the kernel write back first, which takes a while.
    signal.signal(signal.SIGALRM, lambda *_: None)
    before = counts().get("interrupt", 0)
    f = os.open(made(f"interrupted{n}"), os.O_RDWR); data = os.urandom(4 << 20)
    for attempt in range(30):
        for k in range(10): os.pwrite(f, data, k << 22)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        os.lseek(f, 0, os.SEEK_HOLE)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if counts().get("interrupt", 0) > before: break
    os.close(f)
def copied(n):
    made(f"from{n}", b"c" * 100000); made(f"to{n}")
    with open(f"from{n}", "rb") as a, open(f"to{n}", "r+b") as b: os.copy_file_range(a.fileno(), b.fileno(), 100000)
def waited(n):
    poll = select.poll(); f = open(made("polled")); poll.register(f, select.POLLIN | select.POLLOUT)
    assert poll.poll(0)[0][1] == select.POLLIN | select.POLLOUT
def mapped(n):
    with open(made("mapped"), "r+b") as f, mmap.mmap(f.fileno(), 0, 3 | 0x80000): pass
def bmap(n):
    with open(made("bmap")) as f: fcntl.ioctl(f, 1, array.array("i", [0]), True)
def nothing(n): pass
PROBES = {
    "lookup": lambda n: os.stat(made(f"dir/lookup{n}")) if os.makedirs("dir", exist_ok=True) is None else None,
    "forget": lambda n: forget(n, 1), "getattr": lambda n: statx(made("getattr"), 0x7ff), "setattr": lambda n: os.chmod(made(f"setattr{n}"), 0o600),
    "readlink": lambda n: (os.symlink("target", f"link{n}"), os.readlink(f"link{n}")), "symlink": lambda n: os.symlink("target", f"symlink{n}"),
    "mknod": lambda n: os.mknod(f"fifo{n}", 0o10644), "mkdir": lambda n: os.mkdir(f"mkdir{n}"), "unlink": lambda n: os.unlink(made(f"unlink{n}")),
    "rmdir": lambda n: (os.mkdir(f"rmdir{n}"), os.rmdir(f"rmdir{n}")), "rename": lambda n: renamed(n, 0), "link": lambda n: os.link(made(f"link-{n}"), f"linked{n}"),
    "open": lambda n: os.close(os.open(made("open"), os.O_RDONLY)), "read": read, "write": lambda n: (opened(made("write")), os.write(fd, b"x"), os.fsync(fd)),
    "statfs": lambda n: os.statvfs("."), "release": lambda n: made("release"), "fsync": lambda n: (opened(made("fsync")), os.write(fd, b"x"), os.fsync(fd)),
    "setxattr": lambda n: os.setxattr(made("xattr"), "user.a", b"1"), "getxattr": lambda n: (os.setxattr(made("xattr"), "user.a", b"1"), os.getxattr("xattr", "user.a")),
    "listxattr": lambda n: os.listxattr(made("xattr")), "removexattr": lambda n: (os.setxattr(made("xattr"), "user.b", b"1"), os.removexattr("xattr", "user.b")),
    "flush": lambda n: made(f"flush{n}"), "init": nothing, "opendir": lambda n: os.close(os.open(".", os.O_RDONLY)), "readdir": lambda n: many(f"many{n}"),
    "releasedir": lambda n: os.close(os.open(".", os.O_RDONLY)), "fsyncdir": lambda n: (opened(".", os.O_RDONLY), os.fsync(fd)),
    "getlk": lambda n: lock(fcntl.F_GETLK, fcntl.F_WRLCK), "setlk": lambda n: lock(fcntl.F_SETLK, fcntl.F_WRLCK), "setlkw": lambda n: lock(fcntl.F_SETLKW, fcntl.F_WRLCK),
    "access": lambda n: os.access(made("access"), os.R_OK), "create": lambda n: made(f"create{n}"), "interrupt": interrupted, "bmap": bmap, "destroy": nothing,
    "ioctl": lambda n: subprocess.run(["lsattr", made("ioctl")], check=True, stdout=subprocess.DEVNULL), "poll": waited, "notify_reply": nothing,
    "batch_forget": lambda n: forget(n, 100), "fallocate": lambda n: (opened(made("fallocate")), os.posix_fallocate(fd, 0, 100)), "readdirplus": lambda n: many(f"more{n}"),
    "rename2": lambda n: renamed(f"2-{n}", 1), "lseek": lambda n: (opened(made("lseek", b"x" * 5000)), os.lseek(fd, 0, os.SEEK_HOLE)), "copy_file_range": copied,
    "setupmapping": mapped, "removemapping": nothing, "syncfs": lambda n: (opened(".", os.O_RDONLY), call(libc.syncfs(fd))),
    "tmpfile": lambda n: os.close(os.open(".", os.O_TMPFILE | os.O_RDWR)), "statx": lambda n: statx(made("statx"), 0xfff), "copy_file_range_64": copied,
}
# What the kernel sends when it comes to it, or only if nobody else has had it drop its caches just now.
LATER = ("release", "releasedir", "forget", "batch_forget", "read", "readdir", "readdirplus", "interrupt")
found = {}
for name, probe in PROBES.items():
    outcome = "done"
    for n in range(6 if name in LATER else 2):
        before = counts().get(name, 0)
        try: probe(n)
        except OSError as error: outcome = errno.errorcode[error.errno]
        # What follows an answer, such as a release, may come a little later.
        for wait in range(20):
            after = counts().get(name, 0)
            if after > before or wait > 3 and name not in LATER: break
            time.sleep(0.02)
        if n > 0 and after > before: break
    found[name] = [after > before, after, outcome]
print(json.dumps(found))
"#;

/// Where the table stands.
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/semantics.md");
/// How its head begins; the kernel it was made on stands before it.
const HEAD: &str = "| number | opcode | tried by | asked | outcome | why |\n|---:|---|---|---|---|---|\n";
/// Writes the table into the page instead of comparing it.
const WRITE: &str = "AEGISFS_WRITE_DOCS";

/// Number, what was done, and what there is to say about it.
const OPCODES: [(u32, &str, &str); 52] = [
    (1, "stat(2) of a new name", "names that are not there are remembered too"),
    (2, "unlink(2)", "has no answer"),
    (3, "statx(2) with `AT_STATX_FORCE_SYNC`", "otherwise the kernel has the attributes"),
    (4, "chmod(2)", ""),
    (5, "readlink(2)", "targets are kept by the kernel"),
    (6, "symlink(2)", ""),
    (8, "mknod(2)", ""),
    (9, "mkdir(2)", ""),
    (10, "unlink(2)", ""),
    (11, "rmdir(2)", ""),
    (12, "rename(2)", ""),
    (13, "link(2)", ""),
    (14, "open(2)", ""),
    (15, "read(2) of what is not cached", ""),
    (16, "write(2) and fsync(2)", ""),
    (17, "statvfs(3)", ""),
    (18, "the last close(2)", ""),
    (20, "fsync(2)", ""),
    (21, "setxattr(2)", ""),
    (22, "getxattr(2)", ""),
    (23, "listxattr(2)", ""),
    (24, "removexattr(2)", ""),
    (25, "close(2)", "`ENOSYS` with `writeback=on`: the kernel has written, and told errors, before it asks"),
    (26, "mount(2)", ""),
    (27, "open(2) of a directory", "`ENOSYS`, which means: nothing to keep for it"),
    (28, "readdir(3) without a look at what is found", ""),
    (29, "close(2) of a directory", ""),
    (30, "fsync(2) of a directory", ""),
    (31, "fcntl(2) with `F_GETLK`", "locks are the kernel's own"),
    (32, "fcntl(2) with `F_SETLK`", "locks are the kernel's own"),
    (33, "fcntl(2) with `F_SETLKW`", "locks are the kernel's own"),
    (34, "access(2)", "the kernel checks permissions"),
    (35, "open(2) with `O_CREAT`", ""),
    (36, "a signal during lseek(2)", "has no answer; every request runs to its end"),
    (37, "ioctl(2) with `FIBMAP`", "only on block devices; `ENOSYS`, and block 0 is said to be a hole"),
    (38, "", "when a block device is unmounted; elsewhere the connection ends"),
    (39, "lsattr(1)", "other numbers than those of flags: `ENOTTY`"),
    (40, "poll(2)", "`ENOSYS`, which means: files are always ready"),
    (41, "", "answers a question that is never put"),
    (42, "dropping the kernel's caches", "has no answer"),
    (43, "posix_fallocate(3)", "modes that move bytes: `EOPNOTSUPP` by the kernel"),
    (44, "the first readdir(3)", ""),
    (45, "renameat2(2) with `RENAME_NOREPLACE`", ""),
    (46, "lseek(2) with `SEEK_HOLE`", ""),
    (47, "", "what older kernels ask in place of 53; answered likewise"),
    (48, "mmap(2) with `MAP_SYNC`", "only for virtiofs"),
    (49, "", "only for virtiofs"),
    (50, "syncfs(2)", "only on block devices; see [Making things durable](#making-things-durable)"),
    (51, "open(2) with `O_TMPFILE`", ""),
    (52, "statx(2) of the time of birth", ""),
    (53, "copy_file_range(2)", ""),
    (4096, "", "only for character devices"),
];

/// Linux as the page says it, without what differs between builds.
fn kernel() -> String {
    let release = must("uname", &["-r"]);
    let numbers: Vec<&str> = release.trim().split('.').take(2).collect();
    format!("On Linux {}, protocol 7.45:\n\n", numbers.join("."))
}

fn table() -> String {
    // On a block device the kernel asks for more than on an image.
    let stage = Stage::block("512M");
    stage.mount_with("fuseblk=on");
    let found = must("python3", &["-c", SCRIPT, AEGISFS, &stage.mnt()]);
    let found: serde_json::Value = serde_json::from_str(&found).expect("one JSON object");
    assert_eq!(
        stage.json("status")["opcodes"]["other"],
        serde_json::Value::Null,
        "an opcode that is not listed"
    );
    stage.umount();
    stage.check();
    let mut table = HEAD.to_owned();
    for (number, call, why) in OPCODES {
        let name = opcode_name(number);
        let probed = &found[name];
        let (again, count) = (probed[0].as_bool() == Some(true), probed[1].as_u64().unwrap_or(0));
        let answer = probed[2].as_str().unwrap_or("");
        let asked = if again {
            "yes"
        } else if count > 0 {
            "once"
        } else {
            "no"
        };
        let outcome = match (count > 0, answer) {
            _ if call.is_empty() => String::new(),
            (_, "") => String::new(),
            (true, "done") => "done".to_owned(),
            (true, errno) => format!("refused: `{errno}`"),
            (false, "done") => "done by the kernel".to_owned(),
            (false, errno) => format!("refused by the kernel: `{errno}`"),
        };
        writeln!(table, "| {number} | {name} | {call} | {asked} | {outcome} | {why} |")
            .expect("memory takes it");
    }
    table
}

#[test]
fn what_the_kernel_asks_is_what_the_page_says() {
    if !can_mount("what_the_kernel_asks_is_what_the_page_says") {
        return;
    }
    let table = table();
    println!("{table}");
    let page = std::fs::read_to_string(PAGE).expect("the page is there");
    let (before, rest) = page.split_once(HEAD).expect("the page has the table");
    if !before.ends_with(&kernel()) && std::env::var_os(WRITE).is_none() {
        println!("the table of the page was made on another kernel than {}", kernel().trim());
        return;
    }
    let rows: usize = rest.split_inclusive('\n').take_while(|line| line.starts_with('|')).map(str::len).sum();
    let (drawn, behind) = rest.split_at(rows);
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(PAGE, format!("{before}{table}{behind}")).expect("the page can be written");
        return;
    }
    let difference = table[HEAD.len()..].lines().zip(drawn.lines()).find(|(found, said)| found != said);
    assert!(
        difference.is_none() && drawn.len() == table.len() - HEAD.len(),
        "{WRITE}=1 writes the table anew; found and said: {difference:?}"
    );
}
