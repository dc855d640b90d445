//! What the filesystem has to do for whoever works on it: names, directories, trees, mixed work.
//!
//! With `AEGISFS_SOAK_MINUTES` in the environment the long ones run for so many minutes, and the large ones are
//! as large as the requirement says.

use crate::stage::{Stage, can_mount, must, run, shell};
use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::{Duration, Instant};

/// How long to soak, if this is a soak.
pub(crate) fn soak_minutes() -> Option<u64> {
    let minutes = std::env::var("AEGISFS_SOAK_MINUTES").ok()?;
    Some(minutes.parse().expect("AEGISFS_SOAK_MINUTES is a number"))
}

/// Whether the program is there; says so if not.
pub(crate) fn has(test: &str, program: &str) -> bool {
    let there = run("which", &[program]).status.success();
    if !there {
        println!("SKIPPED: {test}: {program} is not installed");
    }
    there
}

/// Resident memory of a mount's daemon.
pub(crate) struct Memory {
    pid: String,
    before_kib: u64,
}

impl Memory {
    /// From now on.
    pub(crate) fn watch(stage: &Stage) -> Self {
        let pid = stage.json("status")["pid"].to_string();
        // The peak counts from here.
        fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("it is our own daemon");
        let before_kib = Self::field(&pid, "VmRSS:");
        Self { pid, before_kib }
    }

    fn field(pid: &str, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the daemon lives");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel tells it");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    pub(crate) fn peak_mib(&self) -> u64 {
        Self::field(&self.pid, "VmHWM:") >> 10
    }

    pub(crate) fn growth_mib(&self) -> u64 {
        Self::field(&self.pid, "VmHWM:").saturating_sub(self.before_kib) >> 10
    }
}

/// A number in what a verb tells.
pub(crate) fn figure(stage: &Stage, verb: &str, key: &str) -> u64 {
    stage.json(verb)[key].as_u64().unwrap_or_else(|| panic!("{verb} tells no {key}"))
}

/// Bytes that do not compress and differ for each seed.
pub(crate) fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut data = Vec::with_capacity(bytes + 8);
    while data.len() < bytes {
        state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        data.extend_from_slice(&(state ^ (state >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9).to_le_bytes());
    }
    data.truncate(bytes);
    data
}

const LIVES: usize = 3;
const FILES_EACH: usize = 3_334;

#[test]
fn inode_numbers_never_repeat_and_space_comes_back() {
    if !can_mount("inode_numbers_never_repeat_and_space_comes_back") {
        return;
    }
    let stage = Stage::image("256M");
    let mut seen = HashSet::new();
    let mut free = Vec::new();
    for life in 0..LIVES {
        stage.mount();
        // Thrice this does not fit.
        fs::write(stage.at("large"), noise(life as u64, 60 << 20)).unwrap();
        for n in 0..FILES_EACH {
            let path = stage.at(&format!("f{n}"));
            fs::write(&path, [life as u8; 100]).unwrap();
            assert!(seen.insert(fs::metadata(&path).unwrap().ino()), "life {life}, file {n}");
        }
        assert!(seen.insert(fs::metadata(stage.at("large")).unwrap().ino()));
        stage.sync();
        (0..FILES_EACH).for_each(|n| fs::remove_file(stage.at(&format!("f{n}"))).unwrap());
        fs::remove_file(stage.at("large")).unwrap();
        stage.umount();
        stage.check();
        stage.mount();
        free.push(figure(&stage, "usage", "free_bytes"));
        assert_eq!(figure(&stage, "usage", "logical_bytes"), 0);
        stage.umount();
    }
    // Slots that metadata once took stay with it.
    assert!(free[LIVES - 1] + (4 << 20) >= free[0], "space gets lost: {free:?}");
}

#[test]
fn a_large_directory_is_listed_in_bounded_memory() {
    if !can_mount("a_large_directory_is_listed_in_bounded_memory") {
        return;
    }
    let entries = if soak_minutes().is_some() { 1_000_000 } else { 200_000 };
    let stage = Stage::image("2G");
    fill_directory(&stage, entries);
    stage.mount();
    let memory = Memory::watch(&stage);
    let start = Instant::now();
    let listed = shell(&format!("ls -f {} | wc -l", stage.mnt()));
    assert_eq!(listed.trim(), (entries + 2).to_string());
    let found = shell(&format!("find {} -type f | sort -u | wc -l", stage.mnt()));
    assert_eq!(found.trim(), entries.to_string());
    println!(
        "{entries} entries twice in {:.1} s, the daemon grew by {} MiB",
        start.elapsed().as_secs_f64(),
        memory.growth_mib()
    );
    assert!(memory.growth_mib() < 64, "{} MiB more", memory.growth_mib());
}

/// Makes so many files below the root; without a mount, because that takes much longer.
fn fill_directory(stage: &Stage, entries: u64) {
    use aegisfs_base::{SystemClock, SystemRng};
    use aegisfs_fs::{Fs, FsOptions, Kind, MakeOptions, ROOT};
    use std::sync::Arc;
    let options = aegisfs_device::OpenOptions::default();
    let device = aegisfs_device::open(stage.device().as_ref(), &options).expect("it is an image");
    let (pool, _) = aegisfs_pool::Pool::open(vec![device], aegisfs_pool::OpenOptions::default()).unwrap();
    let options = aegisfs_store::StoreOptions::default();
    let clock = Arc::new(SystemClock::default());
    let (store, _) = aegisfs_store::open(pool, &options, clock, &SystemRng::new().unwrap()).unwrap();
    let store = Arc::new(store);
    let fs = Fs::mount(Arc::clone(&store), FsOptions { background: false, ..FsOptions::default() }).unwrap();
    for n in 0..entries {
        let made = fs.make(ROOT, format!("file {n:07}").as_bytes(), Kind::File, &MakeOptions::default());
        fs.forget(made.unwrap().id, 1);
    }
    fs.sync().unwrap();
    store.close().unwrap();
}

/// Work that never ends by itself, each under its own time limit.
const MIXED: [&str; 4] = [
    "rsync -a --delete /usr/include/linux/ $DIR/linux/ && rm -rf $DIR/linux/netfilter",
    "tar cf $DIR/t.tar -C /usr/include/linux . && mkdir -p $DIR/x && tar xf $DIR/t.tar -C $DIR/x && \
     diff -r /usr/include/linux $DIR/x && mv $DIR/x $DIR/y && rm -rf $DIR/y $DIR/t.tar",
    "for n in 1 2 3 4 5 6 7 8; do echo $n >> $DIR/log; ln -sf log $DIR/link; ln -f log $DIR/hard 2>/dev/null; \
     cp $DIR/log $DIR/log.new && mv $DIR/log.new $DIR/log; done; wc -l $DIR/log; truncate -s 0 $DIR/log",
    "dd if=/dev/urandom of=$DIR/r bs=1M count=8 conv=fsync status=none && cp $DIR/r $DIR/s && \
     cmp $DIR/r $DIR/s && find $DIR -type f -exec cat {} + > /dev/null && rm $DIR/r $DIR/s",
];

#[test]
fn mixed_work_never_hangs() {
    let name = "mixed_work_never_hangs";
    if !can_mount(name) || !has(name, "stress-ng") {
        return;
    }
    let seconds = soak_minutes().map_or(20, |minutes| minutes * 60);
    let stage = Stage::image("1G");
    stage.mount();
    let end = Instant::now() + Duration::from_secs(seconds);
    let rounds = |number: usize, line: &str| {
        let folder = stage.at(&format!("work{number}"));
        fs::create_dir(&folder).unwrap();
        let line = line.replace("$DIR", &folder.to_string_lossy());
        let mut rounds = 0;
        while Instant::now() < end {
            shell(&line);
            rounds += 1;
        }
        rounds
    };
    let counts: Vec<u32> = thread::scope(|scope| {
        let working: Vec<_> =
            MIXED.iter().enumerate().map(|(n, line)| scope.spawn(move || rounds(n, line))).collect();
        stress(&stage, end);
        working.into_iter().map(|thread| thread.join().expect("no command fails")).collect()
    });
    println!("rounds in {seconds} s: {counts:?}");
    assert_eq!(stage.json("status")["poisoned"], serde_json::Value::Null);
    stage.umount();
    stage.check();
}

/// Short runs of stressors until the end.
fn stress(stage: &Stage, end: Instant) {
    let folder = stage.path("mnt/stress");
    fs::create_dir(&folder).unwrap();
    let stressors = ["dir", "rename", "link", "symlink", "xattr", "flock", "fallocate", "mmap", "iomix"];
    for stressor in stressors.iter().cycle() {
        if Instant::now() >= end {
            return;
        }
        let option = format!("--{stressor}");
        let out = run(
            "stress-ng",
            &["--temp-path", &folder, "--timeout", "2", "--verify", "--quiet", &option, "1"],
        );
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        // 3: no resources, 4: not implemented here.
        assert!(matches!(out.status.code(), Some(0 | 3 | 4)), "{stressor}: {text}");
    }
}

/// Modes, owners, times, links: what cp and tar carry over is what arrives, and what stays over a remount.
#[test]
fn copies_keep_what_files_had() {
    if !can_mount("copies_keep_what_files_had") {
        return;
    }
    let stage = Stage::image("256M");
    stage.mount();
    let (from, mnt) = (stage.path("from"), stage.mnt());
    shell(&format!(
        "mkdir -p {from}/a/b {from}/sticky; cd {from}; umask 0; \
         for m in 0 1 751 640 444 4755 2751 1666 6777; do echo $m > f$m; chmod $m f$m; done; \
         chown 12:34 f640 a; chmod 2775 a; chmod 0 a/b; chmod 1777 sticky; ln f444 hard; ln -s nowhere dangling; \
         mkfifo -m 621 fifo; mknod -m 604 null c 1 3; truncate -s 3M sparse; chmod 517 sparse; \
         touch -d '1969-03-04 05:06:07.123456789Z' f0; touch -d '2141-03-04 05:06:07.987654321Z' f1; \
         touch -h -d @86400.5 dangling; touch -d @1000000000 a a/b ."
    ));
    let seen = |folder: &str| {
        shell(&format!(
            "cd {folder}; find . '(' -type d -printf '%P %m %U %G %T@\\n' -o -printf '%P %y %m %U %G %n %s %T@ %l\\n' ')' \
             | sort"
        ))
    };
    let expected = seen(&from);
    assert_eq!(expected.lines().count(), 18, "{expected}");
    for copy in [
        "cp -a {from} {mnt}/cp",
        "mkdir {mnt}/tar; tar -C {from} --format=pax -c . | tar -C {mnt}/tar -xp",
        "cp -a {mnt}/cp {mnt}/again",
    ] {
        shell(&copy.replace("{from}", &from).replace("{mnt}", &mnt));
    }
    let compare = || {
        for copy in ["cp", "tar", "again"] {
            assert_eq!(seen(&format!("{mnt}/{copy}")), expected, "{copy}");
        }
    };
    compare();
    stage.umount();
    stage.check();
    stage.mount();
    compare();
}

#[test]
fn rsync_in_all_its_ways() {
    let name = "rsync_in_all_its_ways";
    if !can_mount(name) || !has(name, "rsync") {
        return;
    }
    let stage = Stage::image("512M");
    stage.mount();
    let (from, to) = (stage.path("from/"), format!("{}/to/", stage.mnt()));
    must("cp", &["-a", "/usr/include/linux", &from]);
    let same = |options: &[&str]| {
        must("rsync", &[options, &[from.as_str(), to.as_str()]].concat());
        let compare = ["-an", "--checksum", "--itemize-changes", "--delete", &from, &to];
        assert_eq!(must("rsync", &compare), "", "after {options:?}");
        must("diff", &["-r", "--no-dereference", &from, &to]);
    };
    same(&["-a"]);
    shell(&format!(
        "cd {from}; for f in *.h; do echo more >> $f; done; printf x | dd of=fs.h bs=1 seek=100 conv=notrunc \
         status=none; ln -s fs.h link; ln fuse.h hard; chmod 600 elf.h; touch -d @1000000000 elf.h"
    ));
    same(&["-a", "--inplace"]);
    shell(&format!("cd {from}; rm -rf netfilter a*.h; mkdir new; seq 100000 > new/numbers; mv elf.h new"));
    same(&["--delete", "-a"]);
    stage.umount();
    stage.check();
    stage.mount();
    must("diff", &["-r", "--no-dereference", &from, &to]);
}
