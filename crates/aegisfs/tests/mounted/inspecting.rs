//! inspect: what it shows is what was written, and what is damaged is named.

use crate::stage::{AEGISFS, Stage, aegisfs, can_mount, must, shell};
use serde_json::Value;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

const FILES: u64 = 24;
const HEADER_AREA: u64 = 1 << 20;

/// Files that neither shrink nor repeat.
fn fill(stage: &Stage) {
    for n in 0..FILES {
        let mut state = n + 1;
        let content: Vec<u8> = (0..200_000)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            })
            .collect();
        std::fs::write(stage.at(&format!("file-{n}")), content).unwrap();
    }
}

fn inspect(stage: &Stage, args: &[&str], code: i32) -> Value {
    let (found, text) = aegisfs(&[&["--json", "inspect"], args, &[stage.device()]].concat());
    assert_eq!(found, code, "{text}");
    serde_json::from_str(&text).expect("one JSON object")
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is not a number"))
}

/// Entries of a table.
fn entries(answer: &Value, database: &str, table: &str) -> u64 {
    let tables = answer[database].as_array().expect("tables");
    let found = tables.iter().find(|found| found["name"] == table);
    number(&found.unwrap_or_else(|| panic!("no table {table}"))["entries"])
}

fn segments(stage: &Stage) -> (Value, Vec<u64>) {
    let answer = inspect(stage, &["--segments"], 0);
    let numbers = answer["segments"].as_array().expect("a list").iter().map(|s| number(&s["segment"]));
    let numbers = numbers.collect();
    (answer, numbers)
}

/// What a dump of a segment found, of one kind.
fn found<'a>(dump: &'a Value, kind: &str) -> Vec<&'a Value> {
    dump["found"].as_array().expect("a list").iter().filter(|found| found["kind"] == kind).collect()
}

#[test]
fn what_is_shown_is_what_was_written() {
    if !can_mount("what_is_shown_is_what_was_written") {
        return;
    }
    let stage = Stage::image("300M");
    stage.mount();
    fill(&stage);
    let (code, text) = aegisfs(&["inspect", stage.device()]);
    assert_eq!(code, 6, "{text}");
    assert!(text.contains("is mounted on"), "{text}");
    stage.umount();
    stage.mount_with("ro");
    let usage = stage.json("usage");
    stage.umount();

    let before = shell(&format!("sha256sum {}", stage.device()));
    let (answer, numbers) = segments(&stage);
    assert_eq!(entries(&answer, "metadata", "inode"), FILES + 1);
    assert_eq!(entries(&answer, "metadata", "dirent"), FILES);
    assert_eq!(entries(&answer, "metadata", "chunks"), number(&usage["chunks"]));
    assert_eq!(entries(&answer, "metadata", "segments"), numbers.len() as u64);
    assert_eq!(entries(&answer, "dedup", "index"), number(&usage["chunks"]));
    let slots = &answer["slots"];
    let parts = ["free", "freeing", "segments", "databases", "log"].map(|key| number(&slots[key]));
    assert_eq!(number(&slots["all"]), parts.iter().sum::<u64>());
    assert_eq!(number(&slots["segments"]), numbers.len() as u64);
    assert_eq!(answer["members"].as_array().map(Vec::len), Some(1));
    assert_eq!(answer["superblock"]["dirty"], false);

    let (mut chunks, mut references) = (0, 0);
    for segment in &numbers {
        let dump = inspect(&stage, &["--segment", &segment.to_string()], 0);
        assert_eq!(dump["damaged"], false);
        assert!(found(&dump, "gap").is_empty() && found(&dump, "missing").is_empty());
        assert_eq!(found(&dump, "row").len() as u64, number(&dump["segment"]["rows"]));
        for row in found(&dump, "row") {
            for chunk in row["chunks"].as_array().expect("a directory") {
                assert_eq!(chunk["hash"].as_str().map(str::len), Some(16));
                chunks += u64::from(number(&chunk["references"]) > 0);
                references += number(&chunk["references"]);
            }
        }
    }
    assert_eq!((chunks, references), (number(&usage["chunks"]), number(&usage["references"])));
    assert_eq!(shell(&format!("sha256sum {}", stage.device())), before, "inspect wrote to the device");

    inspect(&stage, &["--segment", "999999"], 5);
    let first = shell(&format!("set -o pipefail; {AEGISFS} inspect --segments {} | head -1", stage.device()));
    assert_eq!(first, "superblock\n");
    let text = must(AEGISFS, &["inspect", "--segment", &numbers[0].to_string(), stage.device()]);
    assert!(text.contains("row 0 at 4096") && !text.contains("DAMAGED"), "{text}");
}

#[test]
fn a_killed_daemon_leaves_something_to_inspect() {
    if !can_mount("a_killed_daemon_leaves_something_to_inspect") {
        return;
    }
    let stage = Stage::image("300M");
    stage.mount();
    fill(&stage);
    stage.sync();
    stage.kill();
    let (answer, numbers) = segments(&stage);
    assert_eq!(answer["superblock"]["dirty"], true);
    assert!(number(&answer["log_records_replayed"]) > 0);
    assert_eq!(entries(&answer, "metadata", "inode"), FILES + 1);
    for segment in &numbers {
        inspect(&stage, &["--segment", &segment.to_string()], 0);
    }
}

#[test]
fn damage_in_a_cell_is_named() {
    if !can_mount("damage_in_a_cell_is_named") {
        return;
    }
    let stage = Stage::image("300M");
    stage.mount();
    fill(&stage);
    stage.umount();
    let (answer, numbers) = segments(&stage);
    let segment = numbers[0].to_string();
    let sound = inspect(&stage, &["--segment", &segment], 0);
    let slot_bytes = number(&answer["superblock"]["slot_bytes"]);
    let slot = HEADER_AREA + number(&found(&sound, "slot")[0]["slot"]) * slot_bytes;
    let row = found(&sound, "row")[1].clone();
    // Small neighbours share a frame, which holds them as they are, one behind the other.
    let chunk = &row["chunks"][0];
    assert_eq!(chunk["codec"], "plain");
    let image = OpenOptions::new().read(true).write(true).open(stage.device()).unwrap();
    let flip = |offset: u64| {
        let mut byte = [0];
        image.read_exact_at(&mut byte, offset).unwrap();
        image.write_all_at(&[byte[0] ^ 4], offset).unwrap();
    };

    // A bit of a frame: the row and its chunk are named, and the others are not.
    let cell = slot + number(&row["slot_offset"]);
    let inside = ["frame_offset", "offset_in_frame"].map(|key| number(&chunk[key])).iter().sum::<u64>();
    let inside = inside + number(&chunk["plain_bytes"]) / 2;
    flip(cell + number(&row["payload_start"]) + inside);
    let dump = inspect(&stage, &["--segment", &segment], 4);
    let rows = found(&dump, "row");
    let bad: Vec<_> = rows.iter().filter(|row| !row["problem"].is_null()).collect();
    assert_eq!(bad.len(), 1);
    assert_eq!(bad[0]["row"], row["row"]);
    let chunks = bad[0]["chunks"].as_array().unwrap().iter().filter(|chunk| !chunk["problem"].is_null());
    assert_eq!(chunks.map(|bad| &bad["chunk"]).collect::<Vec<_>>(), [&chunk["chunk"]]);
    let (code, text) = aegisfs(&["inspect", "--segment", &segment, stage.device()]);
    assert_eq!(code, 4);
    assert!(text.contains("DAMAGED: cell payload: checksum mismatch"), "{text}");
    flip(cell + number(&row["payload_start"]) + inside);

    // A bit of the header: the walk goes on behind the cell, and says what lies in it.
    flip(cell + 50);
    let dump = inspect(&stage, &["--segment", &segment], 4);
    let gaps = found(&dump, "gap");
    assert_eq!(gaps.len(), 1);
    assert_eq!((&gaps[0]["slot_offset"], &gaps[0]["bytes"]), (&row["slot_offset"], &row["cell_bytes"]));
    assert_eq!(number(&gaps[0]["chunks"]), row["chunks"].as_array().unwrap().len() as u64);
    assert_eq!(found(&dump, "row").len(), found(&sound, "row").len() - 1);
    assert_eq!(found(&dump, "missing")[0]["chunks"], gaps[0]["chunks"]);
    flip(cell + 50);
    assert_eq!(inspect(&stage, &["--segment", &segment], 0), sound);
}
