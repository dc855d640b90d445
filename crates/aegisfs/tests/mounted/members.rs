//! Pools of several devices: any member leads to the others, one may be away, and comes back.

use crate::stage::{AEGISFS, Stage, aegisfs, can_mount, must, shell};
use serde_json::Value;
use std::time::{Duration, Instant};

/// Formats image files as one pool.
pub(crate) fn pool(stage: &Stage, names: &[&str], words: &[&str]) -> Vec<String> {
    let paths: Vec<String> = names.iter().map(|name| stage.path(name)).collect();
    let images: Vec<&str> = paths.iter().map(String::as_str).collect();
    must(AEGISFS, &[&["format"], words, &images].concat());
    paths
}

/// What the daemon says, and the code with which status ends.
pub(crate) fn status(stage: &Stage) -> (i32, Value) {
    let (code, text) = aegisfs(&["--json", "status", &stage.mnt()]);
    (code, serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}")))
}

pub(crate) fn states(status: &Value) -> Vec<String> {
    let members = status["members"].as_array().expect("members");
    members.iter().map(|member| member["state"].as_str().expect("a state").to_owned()).collect()
}

pub(crate) fn until_whole(stage: &Stage) {
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

pub(crate) fn sums(stage: &Stage) -> String {
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
