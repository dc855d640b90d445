//! Pools of several devices: any member leads to the others, one may be away, and comes back.

use crate::stage::{AEGISFS, Stage, aegisfs, can_mount, must, shell};
use serde_json::Value;
use std::time::{Duration, Instant};

/// Formats image files as one pool.
fn pool(stage: &Stage, names: &[&str], words: &[&str]) -> Vec<String> {
    let paths: Vec<String> = names.iter().map(|name| stage.path(name)).collect();
    let images: Vec<&str> = paths.iter().map(String::as_str).collect();
    must(AEGISFS, &[&["format"], words, &images].concat());
    paths
}

/// What the daemon says, and the code with which status ends.
fn status(stage: &Stage) -> (i32, Value) {
    let (code, text) = aegisfs(&["--json", "status", &stage.mnt()]);
    (code, serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}")))
}

fn states(status: &Value) -> Vec<String> {
    let members = status["members"].as_array().expect("members");
    members.iter().map(|member| member["state"].as_str().expect("a state").to_owned()).collect()
}

fn until_whole(stage: &Stage) {
    let patience = Instant::now();
    loop {
        let (code, status) = status(stage);
        if code == 0 {
            assert!(states(&status).iter().all(|state| state == "in"), "{status}");
            return;
        }
        assert!(patience.elapsed() < Duration::from_secs(60), "{status}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn sums(stage: &Stage) -> String {
    shell(&format!("cd {} && find . -type f -print0 | sort -z | xargs -0 sha256sum", stage.mnt()))
}

#[test]
fn a_mirror_goes_on_alone_and_is_made_whole() {
    if !can_mount("a_mirror_goes_on_alone_and_is_made_whole") {
        return;
    }
    let stage = Stage::empty();
    let mnt = stage.mnt();
    let paths = pool(&stage, &["a.img", "b.img"], &["--size", "300M", "--redundancy", "mirror:2"]);
    let [a, b] = [&paths[0], &paths[1]];

    // Any of them leads to the other.
    must(AEGISFS, &["mount", b, &mnt]);
    let (code, now) = status(&stage);
    assert_eq!((code, &now["redundancy"], &now["degraded"]), (0, &"mirror:2".into(), &false.into()), "{now}");
    assert_eq!(states(&now), ["in", "in"]);
    shell(&format!(
        "cp -r /usr/share/common-licenses {mnt}/tree; dd if=/dev/urandom of={mnt}/noise bs=1M count=40 status=none"
    ));
    must(AEGISFS, &["sync", &mnt]);
    let (code, text) = aegisfs(&["status", a]);
    assert!(code == 0 && text.contains("mirror:2"), "either of its devices names the mount: {text}");
    must(AEGISFS, &["umount", &mnt]);
    let (code, text) = aegisfs(&["check", a]);
    assert!(code == 0 && text.contains("clean"), "{text}");
    let (code, text) = aegisfs(&["mount", a, a, &mnt]);
    assert!(code == 2 && text.contains("named twice"), "{text}");

    // One is away: that it is not the one that was left behind nobody can know but the operator.
    shell(&format!("mv {b} {b}.away"));
    let (code, text) = aegisfs(&["mount", a, &mnt]);
    assert!(code != 0 && text.contains(b) && text.contains("degraded"), "{text}");
    must(AEGISFS, &["mount", "-o", "degraded", a, &mnt]);
    let (code, now) = status(&stage);
    assert_eq!((code, states(&now)), (3, vec!["in".to_owned(), "missing".into()]), "{now}");
    let (code, text) = aegisfs(&["status", &mnt]);
    assert!(code == 3 && text.contains("DEGRADED") && text.contains("missing"), "{text}");
    shell(&format!(
        "rm -r {mnt}/tree; dd if=/dev/urandom of={mnt}/alone bs=1M count=50 status=none; cp -r /usr/share/doc/bash {mnt}/more"
    ));
    must(AEGISFS, &["sync", &mnt]);
    let expected = sums(&stage);
    must(AEGISFS, &["umount", &mnt]);

    // It comes back, and is brought up to date while others read and write.
    shell(&format!("mv {b}.away {b}"));
    let (code, text) = aegisfs(&["check", a]);
    assert!(code == 0 && text.contains("went on without"), "{text}");
    must(AEGISFS, &["mount", a, &mnt]);
    assert_eq!(sums(&stage), expected);
    until_whole(&stage);
    assert_eq!(sums(&stage), expected);
    must(AEGISFS, &["umount", &mnt]);

    // Now it holds everything alone.
    shell(&format!("mv {a} {a}.away"));
    must(AEGISFS, &["mount", "-o", "degraded", b, &mnt]);
    assert_eq!(sums(&stage), expected);
    must(AEGISFS, &["umount", &mnt]);
    let (code, text) = aegisfs(&["check", b]);
    assert!(code == 0 && text.contains("not there"), "{text}");

    // And the other one, which nobody has told of that, comes back as well.
    shell(&format!("mv {a}.away {a}"));
    must(AEGISFS, &["mount", a, b, &mnt]);
    until_whole(&stage);
    assert_eq!(sums(&stage), expected);
    must(AEGISFS, &["umount", &mnt]);
    let (code, text) = aegisfs(&["check", a, b]);
    assert!(code == 0 && !text.contains("note"), "{text}");
}

#[test]
fn what_does_not_belong_together_is_told() {
    if !can_mount("what_does_not_belong_together_is_told") {
        return;
    }
    let stage = Stage::empty();
    let mnt = stage.mnt();
    let paths = pool(&stage, &["a.img", "b.img"], &["--size", "256M"]);
    let other = pool(&stage, &["c.img"], &["--size", "256M", "--label", "another"]);
    let [a, b] = [&paths[0], &paths[1]];
    let refused = |words: &[&str], part: &str| {
        let (code, text) = aegisfs(words);
        assert!(code != 0 && text.contains(part), "{words:?}: {text}");
    };
    refused(&["mount", a, &other[0], &mnt], "belongs to pool");
    shell(&format!("cp {a} {a}.copy"));
    refused(&["mount", a, &format!("{a}.copy"), &mnt], "the same member");
    refused(&["format", "--redundancy", "mirror:3", "--yes", a, b], "3 devices");
    refused(&["format", "--redundancy", "raid5", "--yes", a, b], "not known");
    refused(&["format", a, b], "holds an AegisFS filesystem");

    // Each half was mounted once without the other: nobody knows which is right.
    for (one, another) in [(a, b), (b, a)] {
        shell(&format!("mv {another} {another}.away"));
        must(AEGISFS, &["mount", "-o", "degraded", one, &mnt]);
        shell(&format!("echo {one} > {mnt}/whose"));
        must(AEGISFS, &["umount", &mnt]);
        shell(&format!("mv {another}.away {another}"));
    }
    refused(&["mount", a, b, &mnt], "each written to without the other");

    let (code, text) = aegisfs(&["--json", "scan", &stage.path("")]);
    let found: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"));
    let pools = found["pools"].as_array().expect("pools");
    let labels: Vec<&Value> = pools.iter().map(|pool| &pool["label"]).collect();
    assert!(code == 0 && labels.contains(&&Value::from("another")), "{found}");
}

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
    let (code, text) = aegisfs(&["check", &paths[0]]);
    assert!(code == 0 && !text.contains("note"), "{text}");
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

    // Three of the six slots of every other segment that is coded.
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
                "dd if=/dev/urandom of={image} bs=4096 seek={} count=1023 conv=notrunc status=none",
                start / 4096
            ));
        }
    }
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
