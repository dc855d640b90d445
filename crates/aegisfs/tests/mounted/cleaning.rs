//! clean: the commands act on the live daemon, and tell what it really did.

use crate::requirements::noise;
use crate::stage::{Stage, aegisfs, can_mount};
use serde_json::Value;

fn clean(stage: &Stage, words: &[&str]) -> Value {
    let (code, text) = aegisfs(&[&["--json", "clean"], words, &[&stage.mnt()]].concat());
    assert_eq!(code, 0, "{text}");
    // What is told on the way comes behind it, since it goes to another place.
    let answer = text.lines().next().expect("there is an answer");
    serde_json::from_str(answer).expect("one JSON object")
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("{key} is no number in {value}"))
}

/// Bytes that the image takes where it lies.
fn taken(stage: &Stage) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(stage.device()).unwrap().blocks() * 512
}

#[test]
fn what_died_here_and_there_comes_back_when_asked_for() {
    if !can_mount("what_died_here_and_there_comes_back_when_asked_for") {
        return;
    }
    let stage = Stage::image("400M");
    stage.mount();
    assert_eq!(clean(&stage, &["pause"])["paused"], true);
    for n in 0..100 {
        std::fs::write(stage.at(&format!("file-{n}")), noise(n, 1 << 20)).unwrap();
    }
    stage.sync();
    let full = taken(&stage);
    for n in (0..100).filter(|n| n % 4 != 0) {
        std::fs::remove_file(stage.at(&format!("file-{n}"))).unwrap();
    }
    stage.sync();
    // Nothing happens while it is paused. What was removed is reaped in the background.
    std::thread::sleep(std::time::Duration::from_secs(3));
    let before = clean(&stage, &["status"]);
    assert_eq!((number(&before, "segments_cleaned"), &before["paused"]), (0, &Value::Bool(true)));
    assert!(number(&before, "reclaimable_bytes") > 60 << 20, "{before}");
    let after = clean(&stage, &["run", "--intensity", "high"]);
    assert_eq!((&after["requested"], &after["paused"]), (&Value::Bool(false), &Value::Bool(false)));
    assert!(number(&after, "segments_cleaned") > 15, "{after}");
    assert!(number(&after, "moved_bytes") < 40 << 20, "{after}");
    assert!(number(&after, "reclaimable_bytes") < 12 << 20, "{after}");
    assert!(after["row_amplification"].as_f64().is_some_and(|times| times > 1.0 && times < 1.5), "{after}");
    // What was freed is discarded a little later, unless asked for.
    let (code, text) = aegisfs(&["trim", "now", &stage.mnt()]);
    assert_eq!(code, 0, "{text}");
    assert!(taken(&stage) + (55 << 20) < full, "{} bytes, {full} before", taken(&stage));
    assert_eq!(clean(&stage, &["intensity", "low"])["intensity"], "low");
    assert_eq!(clean(&stage, &["status"])["intensity"], "low");
    let (code, text) = aegisfs(&["clean", "intensity", "much", &stage.mnt()]);
    assert!(code != 0 && text.contains("much"), "{text}");
    for n in (0..100).step_by(4) {
        assert!(std::fs::read(stage.at(&format!("file-{n}"))).unwrap() == noise(n, 1 << 20), "file {n}");
    }
    stage.umount();
    stage.check();
    stage.mount();
    for n in (0..100).step_by(4) {
        assert!(std::fs::read(stage.at(&format!("file-{n}"))).unwrap() == noise(n, 1 << 20), "file {n}");
    }
    stage.umount();
}
