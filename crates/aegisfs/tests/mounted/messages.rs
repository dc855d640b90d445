//! How many messages the kernel needs for what programs do all day. Each costs a change of context or two.

use crate::stage::{Stage, can_mount, shell};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

/// How often each opcode comes while something is done, once the last of them has been answered.
fn messages(stage: &Stage, act: impl FnOnce()) -> BTreeMap<String, u64> {
    let counts = || -> BTreeMap<String, u64> {
        let status = stage.json("status");
        let all = status["opcodes"].as_object().expect("an object");
        all.iter().map(|(name, count)| (name.clone(), count.as_u64().expect("a number"))).collect()
    };
    let settled = || {
        let mut last = counts();
        loop {
            std::thread::sleep(Duration::from_millis(50));
            let now = counts();
            if now == last {
                return now;
            }
            last = now;
        }
    };
    let before = settled();
    act();
    let mut after = settled();
    for (name, count) in &mut after {
        *count -= before.get(name).unwrap_or(&0);
    }
    // What the kernel drops when it likes is no cost of the act.
    after.retain(|name, count| *count > 0 && !name.ends_with("forget"));
    after
}

fn expected(list: &[(&str, u64)]) -> BTreeMap<String, u64> {
    list.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

#[test]
fn messages_are_as_few_as_the_kernel_allows() {
    if !can_mount("messages_are_as_few_as_the_kernel_allows") {
        return;
    }
    const FILES: u64 = 20;
    for ways in ["io_uring=on", "io_uring=off"] {
        let stage = Stage::image("256M");
        stage.mount_with(ways);
        fs::create_dir(stage.at("folder")).unwrap();
        fs::write(stage.at("folder/first"), "the answer to the first flush holds for all").unwrap();
        let name = |n: u64| stage.at(&format!("folder/{n}"));
        let write = |n: u64| fs::write(name(n), [7; 4096]).unwrap();

        // A file made, written and closed: the name is looked for (1), made (2), asked for capabilities before its
        // first write (3), written (4) and released (5). The kernel forgets what it knows of a directory that has
        // changed, and asks again (6). It leaves us nothing to save here; and where its clock has gone on since the
        // file was made, it tells at close when that was changed.
        let mut made = messages(&stage, || (0..FILES).for_each(write));
        assert!(
            made.remove("setattr").is_none_or(|times| times <= FILES),
            "{ways}: the times of a file, twice"
        );
        let once = ["lookup", "create", "getxattr", "write", "release", "getattr"];
        assert_eq!(made, expected(&once.map(|name| (name, FILES))), "{ways}: make, write, close");

        // What is known of a file is asked for once.
        let stat = |n: u64| assert_eq!(rustix::fs::stat(name(n)).unwrap().st_size, 4096);
        // Once each: what a file takes is known to us only, and has changed since the kernel was told. Once more for
        // the directory, which has changed since its last use.
        let first = messages(&stage, || (0..FILES).for_each(stat));
        assert_eq!(first, expected(&[("getattr", FILES + 1)]), "{ways}: stat after close");
        let again = messages(&stage, || (0..FILES).for_each(stat));
        assert_eq!(again, expected(&[]), "{ways}: stat of known files");
        // Whoever wants the time of birth too has it asked for, once for each file.
        let birth = |n: u64| assert!(fs::metadata(name(n)).unwrap().created().is_ok());
        let first = messages(&stage, || (0..FILES).for_each(birth));
        assert_eq!(first, expected(&[("statx", FILES)]), "{ways}: time of birth");
        let again = messages(&stage, || (0..FILES).for_each(birth));
        assert_eq!(again, expected(&[]), "{ways}: time of birth again");

        // The kernel holds what is written and knows size and times by itself, but not what the file takes. The other
        // messages are the write itself, which the kernel sends when it likes.
        let mut file = File::options().append(true).open(name(0)).unwrap();
        let written = messages(&stage, || {
            file.write_all(b"more").unwrap();
            assert_eq!(rustix::fs::stat(name(0)).unwrap().st_size, 4100);
        });
        let asked = |name: &str| written.get(name).copied().unwrap_or(0);
        assert!(asked("getattr") <= 1 && asked("statx") == 0, "{ways}: stat after write: {written:?}");
        assert!(written.values().sum::<u64>() <= 4, "{ways}: stat after write: {written:?}");
        // Or the kernel would send the rest when it likes.
        file.sync_all().unwrap();
        drop(file);

        // What is not there is remembered too.
        let missing = || assert!(fs::metadata(stage.at("folder/none")).is_err());
        messages(&stage, missing);
        assert_eq!(messages(&stage, missing), expected(&[]), "{ways}: a name that is not there");

        let list = || {
            let found = fs::read_dir(stage.at("folder")).unwrap().map(Result::unwrap);
            let sizes = found.map(|entry| rustix::fs::lstat(entry.path()).unwrap().st_size);
            assert_eq!(sizes.count(), 21);
        };
        // The C library asks for all attributes of a directory that it opens, of which reading its names through us
        // has made the time of access unknown: that is one message more the second time.
        messages(&stage, list);
        messages(&stage, list);
        assert_eq!(messages(&stage, list), expected(&[]), "{ways}: names and attributes again");
        // ls -l also asks for a file's label, of which the kernel remembers nothing for a FUSE mount. Its questions
        // for ACLs are answered from memory.
        let long = || drop(shell(&format!("ls -l {}/folder", stage.mnt())));
        messages(&stage, long);
        let labels = if has_selinux() { 22 } else { 1 };
        assert_eq!(messages(&stage, long), expected(&[("getxattr", labels)]), "{ways}: ls -l again");

        shell("echo 1 > /proc/sys/vm/drop_caches");
        let mut content = Vec::new();
        let mut file = File::open(name(1)).unwrap();
        file.read_to_end(&mut content).unwrap();
        let read = messages(&stage, || file.read_exact_at(&mut content, 0).unwrap());
        assert_eq!(read, expected(&[]), "{ways}: a second read");
        let reopened = messages(&stage, || {
            File::open(name(1)).unwrap().read_exact_at(&mut content, 0).unwrap();
        });
        assert_eq!(reopened, expected(&[("open", 1), ("release", 1)]), "{ways}: opened and read again");

        drop(file);
        std::os::unix::fs::symlink("folder/2", stage.at("link")).unwrap();
        let follow = || assert_eq!(fs::read_link(stage.at("link")).unwrap().to_str(), Some("folder/2"));
        messages(&stage, follow);
        assert_eq!(messages(&stage, follow), expected(&[]), "{ways}: a symlink read again");
        stage.umount();
    }
}

/// Whoever reads from front to end is read ahead for, in few large messages that nobody waits for; whoever jumps
/// about gets what was asked for and no more.
#[test]
fn sequential_readers_are_read_ahead_for() {
    const MIB: u64 = 24;
    const JUMPS: u64 = 200;
    if !can_mount("sequential_readers_are_read_ahead_for") {
        return;
    }
    let stage = Stage::image("512M");
    stage.mount();
    let content = crate::requirements::noise(7, (MIB << 20) as usize);
    fs::write(stage.at("file"), &content).unwrap();
    stage.umount();
    stage.mount();
    let reads = |act: &mut dyn FnMut()| messages(&stage, act).get("read").copied().unwrap_or(0);
    let file = File::open(stage.at("file")).unwrap();
    let mut block = [0; 4096];
    let jumping = reads(&mut || {
        for n in 0..JUMPS {
            let at = (n * 7919 * 4096) % (MIB << 20);
            file.read_exact_at(&mut block, at).unwrap();
            assert!(block == content[at as usize..][..4096], "at {at}");
        }
    });
    assert!((JUMPS * 9 / 10..=JUMPS).contains(&jumping), "{jumping} reads for {JUMPS} blocks");
    let cached = shell(&format!("fincore --bytes --noheadings --output RES {}", stage.at("file").display()));
    let cached: u64 = cached.trim().parse().unwrap();
    assert!(cached <= JUMPS * 4096 * 2, "{cached} bytes are cached after {JUMPS} jumps");
    drop(file);
    shell("echo 1 > /proc/sys/vm/drop_caches");
    let file = File::open(stage.at("file")).unwrap();
    let streaming = reads(&mut || {
        for n in 0..MIB << 8 {
            file.read_exact_at(&mut block, n << 12).unwrap();
            assert!(block == content[(n << 12) as usize..][..4096], "block {n}");
        }
    });
    assert!(streaming <= MIB * 3, "{streaming} reads for {MIB} MiB in pieces of 4 KiB");
    drop(file);
    stage.umount();
}

/// Whether files have labels here, for which everybody has to ask.
fn has_selinux() -> bool {
    let modules = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    Path::new("/sys/fs/selinux").exists() || modules.contains("selinux")
}

/// ls -l wants the label of each file, a message each, unless it hears that there are none here.
#[test]
fn a_long_listing_asks_once_for_labels_where_there_are_none() {
    const FILES: u64 = 100;
    const NAME: &str = "security.selinux";
    if !can_mount("a_long_listing_asks_once_for_labels_where_there_are_none") {
        return;
    }
    let stage = Stage::image("256M");
    stage.mount();
    fs::create_dir(stage.at("folder")).unwrap();
    (0..FILES).for_each(|n| fs::write(stage.at(&format!("folder/{n}")), "x").unwrap());
    let list = || drop(shell(&format!("ls -l {}/folder", stage.mnt())));
    // Reading names makes the directory's time of access unknown, and with new attributes its ACLs are asked for again.
    for _ in 0..3 {
        messages(&stage, list);
    }
    let again = messages(&stage, list);
    let most = if has_selinux() { FILES + 1 } else { 1 };
    assert!(again.values().sum::<u64>() <= most, "ls -l again: {again:?}");
    // What a backup brings is kept and told: this file has one.
    let (labelled, bare) = (stage.at("folder/1"), stage.at("folder/2"));
    let get = |file: &Path, name: &str| {
        let mut value = [0; 64];
        rustix::fs::getxattr(file, name, &mut value).map(|length| value[..length].to_vec())
    };
    let label = b"system_u:object_r:etc_t:s0\0";
    rustix::fs::setxattr(&labelled, NAME, label, rustix::fs::XattrFlags::empty()).unwrap();
    assert_eq!(get(&labelled, NAME).as_deref(), Ok(&label[..]));
    let names = shell(&format!("getfattr -m - {}", labelled.display()));
    assert!(names.lines().any(|line| line == NAME), "{names}");
    if !has_selinux() {
        assert_eq!(get(&bare, NAME), Err(rustix::io::Errno::OPNOTSUPP));
    }
    assert_eq!(get(&bare, "security.other"), Err(rustix::io::Errno::NODATA));
    rustix::fs::removexattr(&labelled, NAME).unwrap();
    stage.umount();
    stage.check();
}
