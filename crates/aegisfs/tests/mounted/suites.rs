//! Suites that judge any filesystem.

use crate::stage::{RemountHelper, Stage, can_mount, run};
use std::process::Command;

/// Cases of pjdfstest that must pass in one process, without remounting.
const PJDFSTEST_PASSED_MIN: u32 = 383;
/// Cases that may be skipped there: those that remount, and one that needs a limit which this system does not
/// tell.
const PJDFSTEST_SKIPPED_MAX: u32 = 14;
/// Cases that remount. They run in a process of their own: an earlier case of this suite leaves a file open for
/// writing, so that no filesystem can become read-only after it (ext4 fails the same six).
const PJDFSTEST_REMOUNTING: u32 = 13;

/// `naptime` is how finely times are told: they are of the kernel's coarse clock, which stood still for 13 ms on a busy machine.
const PJDFSTEST_SETTINGS: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utimensat = {}
utime_now = {}

[settings]
naptime = 0.05
allow_remount = REMOUNT

[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

fn is_there(test: &str, program: &str) -> bool {
    let there = Command::new(program).arg("--version").output().is_ok();
    if !there {
        println!("SKIPPED: {test}: {program} is not installed");
    }
    there
}

/// Cases that failed, and how many passed and were skipped.
struct Outcome {
    failed: Vec<String>,
    passed: u32,
    skipped: u32,
}

fn pjdfstest(stage: &Stage, second: &str, remount: bool, filter: &[&str]) -> Outcome {
    let settings = stage.path("pjdfstest.toml");
    std::fs::write(&settings, PJDFSTEST_SETTINGS.replace("REMOUNT", &remount.to_string())).unwrap();
    let mnt = stage.mnt();
    let out = run("pjdfstest", &[&["-c", &settings, "-p", &mnt, "-s", second], filter].concat());
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let summary = text.lines().find(|line| line.starts_with("Summary")).unwrap_or_default();
    println!("{summary}");
    let number = |word: &str| -> u32 {
        let before = summary.split(word).next().unwrap_or_default();
        before.split_whitespace().last().and_then(|n| n.parse().ok()).expect("the summary has it")
    };
    let failed: Vec<String> =
        text.lines().filter(|line| line.ends_with("FAILED")).map(str::to_owned).collect();
    assert_eq!(failed.len(), number(" failed") as usize, "{text}");
    Outcome { failed, passed: number(" passed"), skipped: number(" skipped") }
}

#[test]
fn pjdfstest_passes() {
    let name = "pjdfstest_passes";
    if !can_mount(name) || !is_there(name, "pjdfstest") {
        return;
    }
    let stage = Stage::image("2G");
    stage.mount_with("suid,dev");
    run("chmod", &["777", &stage.mnt()]);
    let second = stage.path("second");
    std::fs::create_dir(&second).unwrap();
    run("mount", &["-t", "tmpfs", "none", &second]);
    let all = pjdfstest(&stage, &second, false, &[]);
    let helper = RemountHelper::install();
    let remounting = pjdfstest(&stage, &second, true, &["erofs"]);
    drop(helper);
    run("umount", &["-l", &second]);
    assert!(all.failed.is_empty() && remounting.failed.is_empty(), "{:#?}", (all.failed, remounting.failed));
    assert!(
        all.passed >= PJDFSTEST_PASSED_MIN && all.skipped <= PJDFSTEST_SKIPPED_MAX,
        "{} passed, {} skipped",
        all.passed,
        all.skipped
    );
    assert_eq!((remounting.passed, remounting.skipped), (PJDFSTEST_REMOUNTING, 0));
    stage.umount();
    stage.check();
}
