//! Suites that judge any filesystem.

use crate::stage::{Stage, can_mount, run};
use std::process::Command;

/// Cases of pjdfstest that must pass.
const PJDFSTEST_PASSED_MIN: u32 = 383;
/// Cases that may be skipped: those that remount, and one that needs a limit which this system does not tell.
const PJDFSTEST_SKIPPED_MAX: u32 = 14;

const PJDFSTEST_SETTINGS: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utimensat = {}
utime_now = {}

[settings]
naptime = 0.01
allow_remount = false

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

#[test]
fn pjdfstest_passes() {
    let name = "pjdfstest_passes";
    if !can_mount(name) || !is_there(name, "pjdfstest") {
        return;
    }
    let stage = Stage::image("2G");
    stage.mount_with("suid,dev");
    run("chmod", &["777", &stage.mnt()]);
    let settings = stage.path("pjdfstest.toml");
    std::fs::write(&settings, PJDFSTEST_SETTINGS).unwrap();
    let second = stage.path("second");
    std::fs::create_dir(&second).unwrap();
    run("mount", &["-t", "tmpfs", "none", &second]);
    let out = run("pjdfstest", &["-c", &settings, "-p", &stage.mnt(), "-s", &second]);
    run("umount", &["-l", &second]);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let summary = text.lines().find(|line| line.starts_with("Summary")).unwrap_or_default().to_owned();
    let number = |word: &str| -> u32 {
        let before = summary.split(word).next().unwrap_or_default();
        before.split_whitespace().last().and_then(|n| n.parse().ok()).unwrap_or(u32::MAX)
    };
    println!("{summary}");
    let failed: Vec<&str> = text.lines().filter(|line| line.ends_with("FAILED")).collect();
    assert_eq!(number(" failed"), 0, "{failed:#?}");
    assert!(
        number(" passed") >= PJDFSTEST_PASSED_MIN && number(" skipped") <= PJDFSTEST_SKIPPED_MAX,
        "{summary}"
    );
    stage.umount();
    stage.check();
}
