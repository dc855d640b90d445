//! trim and orphans: the commands act on the live daemon, and tell what it really did.

use crate::requirements::noise;
use crate::stage::{Stage, aegisfs, can_mount, must};
use serde_json::Value;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

fn ask(stage: &Stage, words: &[&str]) -> Value {
    let (code, text) = aegisfs(&[&["--json"], words, &[&stage.mnt()]].concat());
    assert_eq!(code, 0, "{text}");
    // What is told on the way comes behind it, since it goes to another place.
    let answer = text.lines().next().expect("there is an answer");
    serde_json::from_str(answer).expect("one JSON object")
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("{key} is no number in {value}"))
}

/// Bytes that a file takes where it lies.
fn taken(path: &str) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).unwrap().blocks() * 512
}

fn fill(stage: &Stage, files: u64) {
    for n in 0..files {
        std::fs::write(stage.at(&format!("file-{n}")), noise(n, 1 << 20)).unwrap();
    }
    stage.sync();
}

fn empty(stage: &Stage, files: u64) {
    for n in 0..files {
        std::fs::remove_file(stage.at(&format!("file-{n}"))).unwrap();
    }
}

#[test]
fn the_image_is_small_again_after_a_bulk_delete() {
    if !can_mount("the_image_is_small_again_after_a_bulk_delete") {
        return;
    }
    let stage = Stage::image("400M");
    stage.mount_with("nodiscard");
    let fresh = taken(stage.device());
    fill(&stage, 150);
    let full = taken(stage.device());
    assert!(full > fresh + (145 << 20), "{full} bytes, {fresh} before");
    empty(&stage, 150);
    let before = ask(&stage, &["trim", "status"]);
    assert_eq!((&before["background"], number(&before, "discarded_bytes")), (&Value::Bool(false), 0));
    // Deletions may still be on their way to the daemon.
    let patience = Instant::now();
    loop {
        let now = ask(&stage, &["trim", "now"]);
        assert_eq!((number(&now, "failures"), &now["requested"]), (0, &Value::Bool(false)), "{now}");
        assert_eq!((number(&now, "waiting_bytes"), number(&now, "unknown_bytes")), (0, 0), "{now}");
        if taken(stage.device()) < fresh + (20 << 20) {
            assert!(number(&now, "discarded_bytes") > 140 << 20, "{now}");
            assert!(number(&now, "calls") < 60, "neighbours go together: {now}");
            break;
        }
        assert!(patience.elapsed() < Duration::from_secs(30), "{} bytes left: {now}", taken(stage.device()));
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(number(&ask(&stage, &["trim", "now"]), "discarded_now_bytes"), 0);
    let (code, text) = aegisfs(&["trim", "status", &stage.mnt()]);
    assert!(code == 0 && text.contains("only when told to") && text.contains("since the mount"), "{text}");
    stage.umount();
    stage.check();

    // By itself, which the end of a mount does not wait for.
    must(
        crate::stage::AEGISFS,
        &[
            "mount",
            "--set",
            "trim.settle_s=1",
            "--set",
            "checkpoint.interval_s=1",
            stage.device(),
            &stage.mnt(),
        ],
    );
    fill(&stage, 100);
    empty(&stage, 100);
    let patience = Instant::now();
    while taken(stage.device()) > fresh + (30 << 20) {
        assert!(patience.elapsed() < Duration::from_secs(60), "{}", ask(&stage, &["trim", "status"]));
        std::thread::sleep(Duration::from_millis(500));
    }
    stage.umount();
    // Only half of it is removed after a crash, and what was free then is found.
    stage.mount_with("nodiscard");
    fill(&stage, 100);
    empty(&stage, 100);
    stage.sync();
    stage.kill();
    must("umount", &["-l", &stage.mnt()]);
    stage.mount_with("nodiscard");
    let status = ask(&stage, &["trim", "status"]);
    assert!(number(&status, "unknown_bytes") > 0, "{status}");
    ask(&stage, &["trim", "now"]);
    assert!(taken(stage.device()) < fresh + (30 << 20), "{}", taken(stage.device()));
    stage.umount();
    stage.check();
}

/// Also while the kernel itself has the device.
#[test]
fn a_block_device_is_told() {
    if !can_mount("a_block_device_is_told") {
        return;
    }
    let stage = Stage::block("400M");
    let backing = stage.path("disk.img");
    for options in ["fuseblk=off", "fuseblk=auto"] {
        stage.mount_with(options);
        println!("{options}: mounted as a block device: {}", stage.json("status")["fuseblk"]);
        let fresh = taken(&backing);
        fill(&stage, 100);
        empty(&stage, 100);
        let patience = Instant::now();
        let status = loop {
            let now = ask(&stage, &["trim", "now"]);
            if number(&now, "discarded_bytes") > 90 << 20 {
                break now;
            }
            assert!(patience.elapsed() < Duration::from_secs(30), "{options}: {now}");
            std::thread::sleep(Duration::from_millis(200));
        };
        assert_eq!(status["devices"][0]["supported"], true, "{options}: {status}");
        assert_eq!(number(&status, "failures"), 0, "{options}: {status}");
        assert!(taken(&backing) < fresh + (30 << 20), "{options}: {} bytes, {fresh} before", taken(&backing));
        stage.umount();
        stage.check();
    }
}

#[test]
fn a_healthy_mount_has_no_orphans_under_load() {
    if !can_mount("a_healthy_mount_has_no_orphans_under_load") {
        return;
    }
    let stage = Stage::image("400M");
    stage.mount();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for writer in 0..2u64 {
            let (stage, stop) = (&stage, &stop);
            scope.spawn(move || {
                let mut next = 0;
                while !stop.load(Ordering::Acquire) {
                    let path = stage.at(&format!("load-{writer}-{}", next % 20));
                    std::fs::write(&path, noise(next, 1 << 20)).unwrap();
                    // One that is removed while somebody has it open, and written to from then on.
                    let held = std::fs::File::options().write(true).open(&path).unwrap();
                    std::fs::remove_file(&path).unwrap();
                    held.set_len(5 << 20).unwrap();
                    std::fs::write(&path, noise(next + 1, 300_000)).unwrap();
                    next += 1;
                }
            });
        }
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(6) {
            let found = ask(&stage, &["orphans", "list"]);
            assert_eq!(
                (found["orphans"].as_array().unwrap().len(), &found["more"]),
                (0, &Value::Bool(false)),
                "{found}"
            );
            let done = ask(&stage, &["orphans", "clean", "--older-than", "0"]);
            let sums = ["cleaned", "young", "kept", "spared"].map(|key| number(&done, key));
            assert_eq!(sums, [0; 4], "{done}");
        }
        stop.store(true, Ordering::Release);
    });
    for words in [&["detect-orphans"][..], &["orphans", "list"]] {
        let (code, text) = aegisfs(&[words, &[&stage.mnt()]].concat());
        assert_eq!((code, text.as_str()), (0, "no orphans\n"));
    }
    let stats = ask(&stage, &["orphan-stats"]);
    assert_eq!(
        (&stats["kinds"]["slot"]["count"], &stats["orphans"]),
        (&Value::from(0), &Value::Null),
        "{stats}"
    );
    let tried = ask(&stage, &["cleanup-orphans", "--dry-run"]);
    assert_eq!((&tried["dry_run"], number(&tried, "older_than_seconds")), (&Value::Bool(true), 86_400));
    let (code, text) = aegisfs(&["orphans", "clean", "--older-than", "soon", &stage.mnt()]);
    assert!(code == 2 && text.contains("'soon' is not a time"), "{text}");
    stage.umount();
    stage.check();
}
