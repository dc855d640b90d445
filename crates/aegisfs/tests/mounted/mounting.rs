//! How a mount is made, found, changed, watched and taken away.

use crate::stage::{AEGISFS, RemountHelper, Stage, aegisfs, can_mount, must, run, shell};
use serde_json::Value;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;
use std::time::{Duration, Instant};

/// Seconds for which an idle mount is watched.
const IDLE_SECONDS: u64 = 5;

/// How often the threads went to sleep. The one that answers commands is left out: a command for any mount asks
/// every daemon, and other tests run at the same time.
fn wake_ups(pid: u32) -> u64 {
    let read =
        |task: &std::path::Path, name: &str| std::fs::read_to_string(task.join(name)).unwrap_or_default();
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten().map(|task| task.path());
    let count = |task: std::path::PathBuf| -> u64 {
        let status = read(&task, "status");
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.and_then(|count| count.trim().parse().ok()).expect("the kernel counts")
    };
    threads.filter(|task| read(task, "comm") != "control\n").map(count).sum()
}

fn kib(pid: u32, what: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches("kB").trim().parse().unwrap()
}

fn written_bytes(pid: u32) -> String {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    io.lines().find(|line| line.starts_with("write_bytes")).unwrap().to_owned()
}

#[test]
fn an_idle_mount_sleeps() {
    if !can_mount("an_idle_mount_sleeps") {
        return;
    }
    let stage = Stage::image("512M");
    stage.mount();
    std::fs::write(stage.at("f"), vec![7; 1 << 20]).unwrap();
    stage.sync();
    let pid = stage.pid();
    // What the write began comes to its end.
    std::thread::sleep(Duration::from_secs(3));
    let (before, written) = (wake_ups(pid), written_bytes(pid));
    std::thread::sleep(Duration::from_secs(IDLE_SECONDS));
    let woken = wake_ups(pid) - before;
    println!("{woken} wake-ups in {IDLE_SECONDS} s, {} KiB resident", kib(pid, "VmRSS"));
    assert!(woken < IDLE_SECONDS, "{woken} wake-ups in {IDLE_SECONDS} s");
    assert_eq!(written, written_bytes(pid));
    assert!(kib(pid, "VmRSS") < 64 << 10, "{} KiB resident", kib(pid, "VmRSS"));
}

#[test]
fn a_mapping_holds_a_mount_too() {
    if !can_mount("a_mapping_holds_a_mount_too") {
        return;
    }
    let stage = Stage::image("256M");
    stage.mount();
    std::fs::write(stage.at("f"), b"mapped").unwrap();
    // The file is closed, so that nothing but the mapping is left of it.
    let line = "import mmap,sys,time\nf=open(sys.argv[1],'r+b')\nm=mmap.mmap(f.fileno(),0)\nf.close()\n\
                print('x',flush=True)\ntime.sleep(60)";
    let mut command = Command::new("python3");
    command.args(["-c", line]).arg(stage.at("f")).stdout(std::process::Stdio::piped());
    let mut holder = command.spawn().unwrap();
    let mut word = [0u8; 2];
    std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut word).unwrap();
    let (code, text) = aegisfs(&["umount", &stage.mnt()]);
    let _ = holder.kill();
    let _ = holder.wait();
    assert_eq!(code, 6, "{text}");
    assert!(text.contains(&format!("({})", holder.id())) && text.contains("--lazy"), "{text}");
    stage.umount();
}

#[test]
fn commands_wait_for_a_daemon_that_ends_but_not_for_one_that_serves() {
    if !can_mount("commands_wait_for_a_daemon_that_ends_but_not_for_one_that_serves") {
        return;
    }
    let stage = Stage::block("512M");
    stage.mount();
    let started = Instant::now();
    for args in [&["check", stage.device()][..], &["format", "--yes", stage.device()]] {
        let (code, text) = aegisfs(args);
        assert_eq!(code, 6, "{args:?}: {text}");
        assert!(text.contains("mounted"), "{text}");
    }
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    // Detached, the daemon serves whoever still uses the mount, and lets go of the device after that.
    let mut holder = Command::new("sleep").arg("2").current_dir(stage.mnt()).spawn().unwrap();
    must(AEGISFS, &["umount", "--lazy", &stage.mnt()]);
    assert!(must(AEGISFS, &["status", stage.device()]).contains("detached, still in use"));
    let started = Instant::now();
    stage.check();
    assert!(started.elapsed() > Duration::from_millis(500), "it did not wait");
    holder.wait().unwrap();
    stage.mount();
    stage.umount();
    must(AEGISFS, &["format", "--yes", stage.device()]);
}

#[test]
fn a_mount_changes_to_reading_only_and_back() {
    if !can_mount("a_mount_changes_to_reading_only_and_back") {
        return;
    }
    let stage = Stage::image("256M");
    stage.mount();
    let helper = RemountHelper::install();
    std::fs::write(stage.at("f"), b"before").unwrap();
    let open = std::fs::File::create(stage.at("open")).unwrap();
    let busy = run("mount", &["-o", "remount,ro", &stage.mnt()]);
    let told = String::from_utf8_lossy(&busy.stderr).into_owned();
    assert_eq!(busy.status.code(), Some(32), "{told}");
    assert!(
        told.contains("open for writing") && told.contains(&format!("({})", std::process::id())),
        "{told}"
    );
    drop(open);
    must("mount", &["-o", "remount,ro", &stage.mnt()]);
    assert_eq!(std::fs::write(stage.at("g"), b"x").unwrap_err().raw_os_error(), Some(30));
    let status = stage.json("status");
    assert!(status["read_only"] == true && status["opened_read_only"] == false);
    // Everything is on the device, in a checkpoint: a copy of the image replays nothing.
    shell(&format!("cp {} {}", stage.device(), stage.path("copy.img")));
    let (code, text) = aegisfs(&["--json", "check", &stage.path("copy.img")]);
    let found: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &found["log_records_replayed"], &found["names"]), (0, &0.into(), &2.into()), "{text}");
    must("mount", &["-o", "remount,rw", &stage.mnt()]);
    std::fs::write(stage.at("g"), b"after").unwrap();
    assert_eq!(stage.json("status")["read_only"], false);
    // The program does the same without mount(8), and refuses what cannot be changed.
    must(AEGISFS, &["mount", "-o", "remount,ro", &stage.mnt()]);
    must(AEGISFS, &["mount", "-o", "remount,rw", &stage.mnt()]);
    for fixed in ["verify=full", "writeback=off"] {
        let (code, text) = aegisfs(&["mount", "-o", &format!("remount,{fixed}"), &stage.mnt()]);
        assert!(code == 2 && text.contains("cannot be changed while it is mounted"), "{code}: {text}");
    }
    let (code, text) = aegisfs(&["mount", "-o", "remount,writeback=off", &stage.mnt()]);
    assert!(code == 2 && text.contains("writeback"), "{text}");
    stage.umount();
    stage.mount_with("ro");
    let refused = run("mount", &["-o", "remount,rw", &stage.mnt()]);
    drop(helper);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(32), "{told}");
    assert!(told.contains("was mounted for reading only"), "{told}");
    assert_eq!(std::fs::read(stage.at("g")).unwrap(), b"after");
    stage.umount();
    stage.check();
}

/// A folder, a copy of the program and a mount point that belong to the user nobody.
struct Unprivileged {
    stage: Stage,
}

impl Unprivileged {
    fn new() -> Self {
        let stage = Stage::empty();
        shell(&format!(
            "cp {AEGISFS} {0}/aegisfs && mkdir {0}/run && chown -R nobody {0} && chmod 755 {0}",
            stage.path("")
        ));
        // As udev sets it; a system without it keeps the device for root.
        shell("chmod 666 /dev/fuse");
        Self { stage }
    }

    /// Runs a shell line as nobody; returns its exit code and what it printed.
    fn run(&self, line: &str) -> (i32, String) {
        let folder = self.stage.path("");
        let line = format!(
            "cd {folder}; unset XDG_STATE_HOME XDG_CONFIG_HOME; export HOME=/nonexistent XDG_RUNTIME_DIR={folder}run; {line}"
        );
        let out =
            run("setpriv", &["--reuid=nobody", "--regid=nogroup", "--clear-groups", "bash", "-c", &line]);
        let text = [out.stdout, out.stderr].concat();
        (out.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned())
    }

    fn must(&self, line: &str) -> String {
        let (code, text) = self.run(line);
        assert_eq!(code, 0, "{line}: {text}");
        text
    }
}

#[test]
fn a_user_mounts_what_is_theirs() {
    if !can_mount("a_user_mounts_what_is_theirs") {
        return;
    }
    let user = Unprivileged::new();
    user.must("./aegisfs format --size 512M disk.img && ./aegisfs mount disk.img mnt");
    user.must("cp -r /usr/include/linux mnt/ && diff -r /usr/include/linux mnt/linux && ./aegisfs sync mnt");
    let entry = shell(&format!("grep ' {} ' /proc/self/mountinfo", user.stage.mnt()));
    assert!(entry.contains("nosuid,nodev") && !entry.contains("allow_other"), "{entry}");
    assert_eq!(user.must("stat -c %U:%a run/aegisfs").trim(), "nobody:700");
    user.must("kill -9 $(./aegisfs --json status mnt | grep -o '\"pid\":[0-9]*' | cut -d: -f2); sleep 0.5");
    user.must("./aegisfs umount mnt && ./aegisfs mount disk.img mnt && diff -r /usr/include/linux mnt/linux");
    user.must("kill -TERM $(./aegisfs --json status mnt | grep -o '\"pid\":[0-9]*' | cut -d: -f2)");
    user.must("./aegisfs --json check disk.img | grep '\"notes\":\\[\\]' && ./aegisfs mount disk.img mnt");
    let (code, text) =
        user.run("sleep 30 < mnt/linux/fs.h & ./aegisfs umount mnt; code=$?; kill $!; exit $code");
    assert!(code == 6 && text.contains("sleep ("), "{code}: {text}");
    user.must("for n in $(seq 50); do ./aegisfs umount mnt && exit 0; sleep 0.1; done; exit 1");
    user.must("./aegisfs check disk.img");
    let conf = std::fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    if !conf.lines().any(|line| line.trim() == "user_allow_other") {
        let (code, text) = user.run("./aegisfs mount -o allow_other disk.img mnt");
        assert!(code == 7 && text.contains("user_allow_other"), "{code}: {text}");
    }
    let (code, text) = user.run("p=$PWD; PATH=/nowhere; $p/aegisfs mount disk.img mnt");
    assert!(code == 1 && text.contains("fusermount3 is not installed"), "{code}: {text}");
}

#[test]
fn private_folders_are_not_taken_from_others() {
    if !can_mount("private_folders_are_not_taken_from_others") {
        return;
    }
    let user = Unprivileged::new();
    user.must("./aegisfs format --size 256M disk.img");
    shell(&format!("mkdir {0}run/aegisfs 2>/dev/null; chown root {0}run/aegisfs", user.stage.path("")));
    let (code, text) = user.run("./aegisfs mount disk.img mnt");
    assert!(code == 1 && text.contains("belongs to somebody else"), "{code}: {text}");
}

#[test]
fn devices_are_found_by_label_and_number() {
    if !can_mount("devices_are_found_by_label_and_number") {
        return;
    }
    let (first, second) = (Stage::block("300M"), Stage::block("300M"));
    let label = format!("test-{}", std::process::id());
    let other = format!("{label}-other");
    must(AEGISFS, &["format", "--yes", "-L", &label, first.device()]);
    must(AEGISFS, &["format", "--yes", "-L", &other, second.device()]);
    let by_label = format!("LABEL={label}");
    must(AEGISFS, &["mount", &by_label, &first.mnt()]);
    let status: Value = serde_json::from_str(&must(AEGISFS, &["--json", "status", &by_label])).unwrap();
    assert_eq!(status["device"], first.device());
    let uuid = format!("UUID={}", status["pool"].as_str().unwrap().to_uppercase());
    first.umount();
    must(AEGISFS, &["check", &uuid]);
    // mount(8) would look for LABEL= itself, in vain; the word with a prefix it leaves to the helper.
    must("ln", &["-s", AEGISFS, &first.path("mount.aegisfs")]);
    for word in [&uuid, &format!("aegisfs:{by_label}")] {
        must(&first.path("mount.aegisfs"), &[word, &first.mnt(), "-o", "ro"]);
        first.umount();
    }
    must(AEGISFS, &["format", "--yes", "-L", &label, second.device()]);
    let (code, text) = aegisfs(&["check", &by_label]);
    assert!(code == 2 && text.contains(first.device()) && text.contains(second.device()), "{code}: {text}");
    let (code, text) = aegisfs(&["check", &format!("LABEL={other}")]);
    assert!(code == 5 && text.contains("no device has"), "{code}: {text}");
    // An image file is found once it was formatted here.
    let image = Stage::empty();
    must(AEGISFS, &["format", "--size", "256M", "-L", &other, image.device()]);
    must(AEGISFS, &["check", &format!("LABEL={other}")]);
}

#[test]
fn settings_come_from_file_environment_and_flag() {
    if !can_mount("settings_come_from_file_environment_and_flag") {
        return;
    }
    let stage = Stage::image("512M");
    let config = stage.path("aegisfs.toml");
    let (device, mnt) = (stage.device(), stage.mnt());
    std::fs::write(&config, "[log]\nsync_intervall_ms = 20\n").unwrap();
    let (code, text) = aegisfs(&["mount", "--config", &config, device, &mnt]);
    assert!(code == 2 && text.contains("did you mean log.sync_interval_ms?"), "{code}: {text}");
    std::fs::write(&config, "[log]\nsync_interval_ms = 20\n[flush]\nsettle_ms = 100\n").unwrap();
    let set = "checkpoint.interval_s=30";
    shell(&format!(
        "AEGISFS_CONFIG={config} AEGISFS_FLUSH_SETTLE_MS=50 {AEGISFS} mount --set {set} -o writeback=off {device} {mnt}"
    ));
    let settings = stage.json("status")["settings"].clone();
    let of = |section: &str, key: &str| {
        let found = &settings[section][key];
        (found["value"].to_string(), found["source"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(of("log", "sync_interval_ms"), ("20".into(), "file".into()));
    assert_eq!(of("flush", "settle_ms"), ("50".into(), "environment".into()));
    assert_eq!(of("checkpoint", "interval_s"), ("30".into(), "flag".into()));
    assert_eq!(of("mount", "writeback"), ("false".into(), "flag".into()));
    assert_eq!(of("cache", "chunk_bytes"), ((96 << 20).to_string(), "built-in".into()));
    let quick = log_flushes(&stage, "quick");
    stage.umount();
    must(AEGISFS, &["mount", "--set", "log.sync_interval_ms=60000", device, &mnt]);
    let slow = log_flushes(&stage, "slow");
    println!("{quick} flushes of the log at 20 ms, {slow} at 60 s");
    assert!(quick >= 10 && slow <= 1, "{quick} and {slow}");
    stage.umount();
    what_survives(&stage);
}

/// Flushes of the log during a second with a change every 20 ms.
fn log_flushes(stage: &Stage, name: &str) -> u64 {
    let count = || stage.json("status")["log_flushes"].as_u64().unwrap();
    let before = count();
    for n in 0..50 {
        std::fs::create_dir(stage.at(&format!("{name}-{n}"))).unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    count() - before
}

/// What nobody synced survives a killed daemon exactly when the log's interval has passed, or its number of
/// changes was there.
fn what_survives(stage: &Stage) {
    for (set, name, survives) in [
        ("log.sync_interval_ms=100", "short", true),
        ("log.sync_interval_ms=60000", "long", false),
        ("log.sync_transactions=5", "few", true),
    ] {
        let long = "log.sync_interval_ms=60000";
        must(AEGISFS, &["mount", "--set", long, "--set", set, stage.device(), &stage.mnt()]);
        for n in 0..20 {
            std::fs::create_dir(stage.at(&format!("{name}-{n}"))).unwrap();
        }
        std::thread::sleep(Duration::from_secs(1));
        stage.kill();
        stage.mount();
        assert_eq!(stage.at(&format!("{name}-0")).exists(), survives, "{set}");
        stage.umount();
    }
    stage.check();
}

#[test]
fn paths_that_are_no_text_are_exact_in_json() {
    if !can_mount("paths_that_are_no_text_are_exact_in_json") {
        return;
    }
    let stage = Stage::image("256M");
    let mnt = std::path::PathBuf::from(stage.path("")).join(std::ffi::OsStr::from_bytes(b"m\xff"));
    std::fs::create_dir(&mnt).unwrap();
    let program = |verb: &[&str]| {
        let out = Command::new("timeout").arg("60").arg(AEGISFS).arg("--json").args(verb).arg(&mnt).output();
        let out = out.unwrap();
        assert!(out.status.success(), "{verb:?}: {}", String::from_utf8_lossy(&out.stdout));
        serde_json::from_slice::<Value>(&out.stdout).unwrap()
    };
    let mounted = program(&["mount", stage.device()]);
    let status = program(&["status"]);
    let synced = program(&["sync"]);
    let gone = program(&["umount"]);
    for answer in [mounted, status, synced, gone] {
        assert!(answer["mount"].as_str().unwrap().ends_with("m\u{fffd}"), "{answer}");
        assert!(answer["mount_base64"].is_string() && answer["device_base64"].is_null(), "{answer}");
    }
}

#[test]
fn terminals_are_not_here() {
    if !can_mount("terminals_are_not_here") {
        return;
    }
    let stage = Stage::image("256M");
    stage.mount();
    std::fs::write(stage.at("f"), b"x").unwrap();
    let file = stage.at("f").to_string_lossy().into_owned();
    let line = "import fcntl,sys,termios\nf=open(sys.argv[1])\n\
                for c in (termios.TCGETS,0xdead,0x40049409):\n try: fcntl.ioctl(f,c,b'0'*8); print('done')\n \
                except OSError as e: print(e.errno)";
    let answers = must("python3", &["-c", line, &file]);
    // TCGETS, a number that nobody knows, and FICLONE, which the kernel answers itself.
    let answers: Vec<&str> = answers.lines().collect();
    assert_eq!(answers[..2], ["25", "25"]);
    assert_ne!(answers[2], "done");
}

#[test]
fn the_kernel_holds_only_so_much() {
    if !can_mount("the_kernel_holds_only_so_much") {
        return;
    }
    let stage = Stage::image("256M");
    for (options, bounded) in [("writeback=on", true), ("writeback=off", false)] {
        stage.mount_with(options);
        let entry = shell(&format!("grep ' {} ' /proc/self/mountinfo", stage.mnt()));
        let number = entry.split(' ').nth(2).unwrap().to_owned();
        let of = |what: &str| std::fs::read_to_string(format!("/sys/class/bdi/{number}/{what}")).unwrap();
        assert_eq!(of("read_ahead_kb").trim(), "2048");
        // FUSE bounds strictly of its own accord, so only the number of bytes tells.
        let bytes: u64 = of("max_bytes").trim().parse().unwrap();
        println!("{options}: at most {bytes} bytes, strict {}", of("strict_limit").trim());
        assert_eq!(bytes.abs_diff(64 << 20) < 1 << 20, bounded, "{bytes}");
        stage.umount();
    }
}

// Commands found a daemon by the path alone: one that had been detached from there and lived on was waited for,
// and synced, in place of the one that was mounted there now.
#[test]
fn a_detached_daemon_is_not_taken_for_the_mount_that_followed() {
    if !can_mount("a_detached_daemon_is_not_taken_for_the_mount_that_followed") {
        return;
    }
    // Which of two daemons is found first depends on random numbers.
    for _ in 0..3 {
        let (first, second) = (Stage::image("256M"), Stage::image("256M"));
        first.mount();
        let held = std::fs::File::create(first.at("held")).unwrap();
        must(AEGISFS, &["umount", "--lazy", &first.mnt()]);
        must(AEGISFS, &["mount", second.device(), &first.mnt()]);
        std::fs::write(first.at("new"), "of the second").unwrap();
        first.sync();
        let pid = first.pid();
        must("kill", &["-9", &pid.to_string()]);
        must(AEGISFS, &["umount", &first.mnt()]);
        must(AEGISFS, &["mount", second.device(), &first.mnt()]);
        assert_eq!(std::fs::read_to_string(first.at("new")).unwrap(), "of the second");
        let started = Instant::now();
        must(AEGISFS, &["umount", &first.mnt()]);
        assert!(started.elapsed() < Duration::from_secs(20), "it waited for the wrong one");
        second.check();
        drop(held);
        first.check();
    }
}
