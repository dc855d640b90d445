//! Pools with an erasure code: what rots or is lost of them, and what gives it back.

use crate::members::{pool, states, status, sums, until_whole};
use crate::stage::{AEGISFS, Stage, aegisfs, can_mount, must, shell};
use serde_json::Value;

/// Writes random bytes over a tenth of an image's blocks, the header areas aside.
fn rot(path: &str) {
    let script = r#"
import os, random, sys
path = sys.argv[1]
chance, size, area = random.Random(path), os.path.getsize(path), 1 << 20
with open(path, "r+b") as image:
    for block in range(area, size - area, 4096):
        if chance.random() < 0.1:
            image.seek(block)
            image.write(chance.randbytes(4096))
"#;
    must("python3", &["-c", script, path]);
}

#[test]
fn six_devices_rot_and_are_lost_as_far_as_the_code_carries() {
    if !can_mount("six_devices_rot_and_are_lost_as_far_as_the_code_carries") {
        return;
    }
    let stage = Stage::empty();
    let mnt = stage.mnt();
    let names = ["a.img", "b.img", "c.img", "d.img", "e.img", "f.img"];
    let paths = pool(&stage, &names, &["--size", "256M"]);
    must(AEGISFS, &["mount", &paths[3], &mnt]);
    let (code, now) = status(&stage);
    assert_eq!((code, &now["redundancy"]), (0, &"ec:4+2".into()), "{now}");
    shell(&format!(
        "cp -r /usr/share/common-licenses {mnt}/tree; dd if=/dev/urandom of={mnt}/noise bs=1M count=150 status=none"
    ));
    // A tebibyte of hole takes no room here either.
    shell(&format!(
        "truncate -s 1T {mnt}/hole; echo end >> {mnt}/hole; cmp -n 4096 {mnt}/hole /dev/zero; \
         test $(du -k {mnt}/hole | cut -f1) -le 8; test $(stat -c %s {mnt}/hole) = $((1024 ** 4 + 4)); \
         tail -c 4 {mnt}/hole | grep -q end; rm {mnt}/hole"
    ));
    must(AEGISFS, &["sync", &mnt]);
    let expected = sums(&stage);
    must(AEGISFS, &["umount", &mnt]);

    // A tenth of two of them rots: nobody who reads is told, and a scrub mends it.
    rot(&paths[1]);
    rot(&paths[4]);
    must(AEGISFS, &["mount", &paths[0], &mnt]);
    assert_eq!(sums(&stage), expected);
    let scrub = || {
        must(AEGISFS, &["scrub", "start", "--wait", &mnt]);
        let (code, text) = aegisfs(&["--json", "scrub", "status", &mnt]);
        assert_eq!(code, 0, "{text}");
        let status: Value = serde_json::from_str(&text).expect("JSON");
        let count = |name: &str| status[name].as_u64().unwrap_or_else(|| panic!("{name}: {status}"));
        (count("damaged"), count("repaired"), count("lost"))
    };
    let (damaged, repaired, lost) = scrub();
    assert!(damaged > 20 && damaged == repaired && lost == 0, "{damaged} {repaired} {lost}");
    assert_eq!(scrub(), (0, 0, 0));
    must(AEGISFS, &["umount", &mnt]);

    // Then two others are gone, and what had rotted is needed.
    shell(&format!("mv {0} {0}.away; mv {1} {1}.away", paths[0], paths[2]));
    must(AEGISFS, &["mount", &paths[5], &mnt]);
    let (code, now) = status(&stage);
    assert_eq!((code, states(&now).iter().filter(|state| *state == "missing").count()), (3, 2), "{now}");
    assert_eq!(sums(&stage), expected);
    shell(&format!("dd if=/dev/urandom of={mnt}/later bs=1M count=60 status=none"));
    let expected = sums(&stage);
    must(AEGISFS, &["umount", &mnt]);
    let (code, text) = aegisfs(&["check", &paths[1]]);
    assert!(code == 0 && text.contains("not there"), "{text}");

    // A third one is more than the code carries.
    shell(&format!("mv {0} {0}.away", paths[3]));
    let (code, text) = aegisfs(&["mount", &paths[1], &mnt]);
    assert!(code != 0 && text.contains(&paths[3]), "{text}");
    shell(&format!("mv {0}.away {0}; mv {1}.away {1}; mv {2}.away {2}", paths[3], paths[0], paths[2]));
    must(AEGISFS, &["mount", &paths[1], &mnt]);
    until_whole(&stage);
    assert_eq!(sums(&stage), expected);
    must(AEGISFS, &["umount", &mnt]);
    for words in [&["check", "--shallow", &paths[0]][..], &["check", &paths[0]]] {
        let (code, text) = aegisfs(words);
        assert!(code == 0 && !text.contains("note"), "{text}");
    }
}

/// Random bytes over three of the six slots of every other segment that is coded.
fn destroy_half(paths: &[String]) {
    let inspected = must(AEGISFS, &["inspect", "--json", "--segments", &paths[0]]);
    let inspected: Value = serde_json::from_str(&inspected).expect("JSON");
    let coded = inspected["segments"].as_array().expect("segments").iter();
    let coded: Vec<&Value> = coded.filter(|segment| segment["shards_data"] == 4).collect();
    assert!(coded.len() > 2, "{} segments are coded", coded.len());
    for segment in coded.iter().step_by(2) {
        for slot in segment["slots"].as_array().expect("slots").iter().take(3) {
            let image = &paths[slot["device"].as_u64().expect("a device") as usize];
            let start = (1 << 20) + slot["slot"].as_u64().expect("a slot") * (4 << 20) + 4096;
            shell(&format!(
                "dd if=/dev/urandom of={image} bs=4096 seek={} count=1000 conv=notrunc status=none",
                start / 4096
            ));
        }
    }
}

/// More is lost than the code carries: what is in it cannot be read and is named, all else can; and the files themselves, from
/// elsewhere, give it back.
#[test]
fn what_is_lost_is_named_and_given_back() {
    if !can_mount("what_is_lost_is_named_and_given_back") {
        return;
    }
    let stage = Stage::empty();
    let mnt = stage.mnt();
    let names = ["a.img", "b.img", "c.img", "d.img", "e.img", "f.img"];
    let paths = pool(&stage, &names, &["--size", "256M", "--redundancy", "ec:4+2"]);
    must(AEGISFS, &["mount", &paths[0], &mnt]);
    let original = stage.path("original");
    shell(&format!(
        "mkdir -p {original}/deep/down; cp -r /usr/share/common-licenses {original}/deep; \
         for n in 1 2 3 4 5 6; do dd if=/dev/urandom of={original}/deep/down/noise$n bs=1M count=6 status=none; done; \
         cp -r {original} {mnt}/tree"
    ));
    // One that was written in pieces is cut otherwise than one that is read from its beginning.
    shell(&format!(
        "for n in 1 2 3; do dd if=/dev/urandom bs=70001 count=9 status=none >> {mnt}/tree/deep/down/pieces; \
         sync {mnt}/tree/deep/down/pieces; done; cp {mnt}/tree/deep/down/pieces {original}/deep/down/"
    ));
    let (code, text) = aegisfs(&["damage", "list", &mnt]);
    assert!(code == 0 && text.contains("no damage"), "{text}");
    must(AEGISFS, &["umount", &mnt]);

    destroy_half(&paths);
    must(AEGISFS, &["mount", &paths[0], &mnt]);
    let compare = || {
        shell(&format!(
            "cd {original}; find . -type f | while read -r f; do cmp -s $f {mnt}/tree/$f || echo $f; done"
        ))
    };
    let bad = compare();
    assert!(bad.lines().count() > 0, "nothing is lost");
    // Whatever cannot be read was an error, never other bytes.
    let told = shell(&format!(
        "cd {original}; find . -type f | while read -r f; do cat {mnt}/tree/$f 2>/dev/null | cmp - $f 2>&1 | grep differ; done; true"
    ));
    assert_eq!(told.trim(), "", "something reads wrong");
    // A scrub finds what nobody has read.
    let (code, _) = aegisfs(&["scrub", "start", "--wait", &mnt]);
    assert_eq!(code, 4);
    let (code, text) = aegisfs(&["--json", "damage", "list", &mnt]);
    assert_eq!(code, 4, "{text}");
    let listed: Value = serde_json::from_str(&text).expect("JSON");
    let mut named: Vec<String> = listed["parts"]
        .as_array()
        .expect("parts")
        .iter()
        .map(|part| part["path"].as_str().expect("a path").replacen("/tree", ".", 1))
        .collect();
    named.sort();
    named.dedup();
    let mut expected: Vec<&str> = bad.lines().collect();
    expected.sort_unstable();
    assert_eq!(named, expected);

    // It outlives a mount, and what is brought is written.
    must(AEGISFS, &["umount", &mnt]);
    must(AEGISFS, &["mount", &paths[0], &mnt]);
    let (code, text) = aegisfs(&["damage", "list", &mnt]);
    assert!(code == 4 && text.contains("cannot be read"), "{text}");
    let (code, text) = aegisfs(&["damage", "heal", "--from", "/usr/share/common-licenses/GPL-3", &mnt]);
    assert!(code == 4 || code == 0, "{text}");
    let (code, text) = aegisfs(&["damage", "heal", "--from", &original, &mnt]);
    assert!(code == 0, "{text}");
    assert_eq!(compare(), "");
    let (code, text) = aegisfs(&["damage", "list", &mnt]);
    assert!(code == 0 && text.contains("no damage"), "{text}");
    must(AEGISFS, &["umount", &mnt]);
    let (code, text) = aegisfs(&["check", &paths[0]]);
    assert!(code == 0, "{text}");
}
