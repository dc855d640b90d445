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
fn who_was_missing_at_the_mount_comes_back_under_it() {
    if !can_mount("who_was_missing_at_the_mount_comes_back_under_it") {
        return;
    }
    let stage = Stage::empty();
    let mnt = stage.mnt();
    let paths = pool(&stage, &["a.img", "b.img", "c.img", "d.img"], &["--size", "300M"]);
    must(AEGISFS, &["mount", &paths[0], &mnt]);
    shell(&format!("dd if=/dev/urandom of={mnt}/before bs=1M count=30 status=none"));
    must(AEGISFS, &["umount", &mnt]);
    shell(&format!("mv {0} {0}.away", paths[2]));
    must(AEGISFS, &["mount", &paths[0], &mnt]);
    let (code, now) = status(&stage);
    assert_eq!((code, states(&now)[2].as_str()), (3, "missing"), "{now}");
    shell(&format!("dd if=/dev/urandom of={mnt}/while bs=1M count=30 status=none"));
    must(AEGISFS, &["sync", &mnt]);
    let expected = sums(&stage);
    // Another device in its place is not taken for it.
    shell(&format!("cp {} {}", paths[3], paths[2]));
    for n in 0..7 {
        // A mount that is used looks more often.
        shell(&format!("echo {n} > {mnt}/beat && sync {mnt}/beat && rm {mnt}/beat"));
        std::thread::sleep(Duration::from_secs(1));
    }
    assert_eq!(states(&status(&stage).1)[2], "missing");
    shell(&format!("mv {0}.away {0}", paths[2]));
    until_whole(&stage);
    assert_eq!(sums(&stage), expected);
    must(AEGISFS, &["umount", &mnt]);
    // It has everything that it should: two others may be gone.
    shell(&format!("mv {0} {0}.away; mv {1} {1}.away", paths[0], paths[1]));
    must(AEGISFS, &["mount", "-o", "degraded", &paths[2], &mnt]);
    assert_eq!(sums(&stage), expected);
    must(AEGISFS, &["umount", &mnt]);
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

fn disks(stage: &Stage) -> (i32, Vec<Value>) {
    let (code, text) = aegisfs(&["--json", "disk", "list", &stage.mnt()]);
    let answer: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"));
    (code, answer["disks"].as_array().expect("disks").clone())
}

#[test]
fn devices_are_trusted_as_far_as_somebody_says() {
    if !can_mount("devices_are_trusted_as_far_as_somebody_says") {
        return;
    }
    let stage = Stage::empty();
    let mnt = stage.mnt();
    let names = ["a.img", "b.img", "c.img", "d.img"];
    let domain = |name: &str, domain: &str| format!("{}={domain}", stage.path(name));
    let words = ["--size", "256M", "--redundancy", "ec:2+2"];
    let together: Vec<String> = names.iter().map(|name| domain(name, "one")).collect();
    let named = |domains: &[String]| {
        domains.iter().flat_map(|one| ["--failure-domain".to_owned(), one.clone()]).collect::<Vec<_>>()
    };
    let all = [named(&together), names.iter().map(|name| stage.path(name)).collect()].concat();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let (code, text) = aegisfs(&[&["format"], &words[..], &all].concat());
    assert!(code != 0 && text.contains("failure domain"), "{text}");
    shell(&format!("rm -f {}/*.img", stage.path("")));
    let apart = named(&together[..2]);
    let paths =
        pool(&stage, &names, &[&words[..], &apart.iter().map(String::as_str).collect::<Vec<_>>()].concat());
    must(AEGISFS, &["mount", &paths[0], &mnt]);
    let (code, all) = disks(&stage);
    assert_eq!(code, 0, "{all:?}");
    assert!(
        all.iter().all(|disk| disk["health"] == "healthy" && disk["counts"]["writes"].as_u64() > Some(0))
    );
    assert_eq!((&all[1]["failure_domain"], &all[2]["failure_domain"]), (&"one".into(), &"".into()));
    assert_eq!(all[0]["smart"]["available"], false, "it is an image file: {}", all[0]);

    // By its path, its number, or in the words of a roadmap.
    must(AEGISFS, &["disk", "set-health", &paths[1], "suspect", &mnt]);
    let (code, now) = disks(&stage);
    assert_eq!((code, &now[1]["health"], &now[1]["placed_on"]), (3, &"suspect".into(), &false.into()));
    let write = |name: &str| {
        shell(&format!("dd if=/dev/urandom of={mnt}/{name} bs=1M count=20 status=none"));
        must(AEGISFS, &["sync", &mnt]);
    };
    let free =
        |disks: &[Value]| disks.iter().map(|disk| disk["slots_free"].as_u64().unwrap()).collect::<Vec<_>>();
    write("one");
    let (_, later) = disks(&stage);
    assert_eq!(free(&later)[1], free(&now)[1], "nothing new is placed there");
    assert!(free(&later)[0] < free(&now)[0]);
    must(AEGISFS, &["umount", &mnt]);
    must(AEGISFS, &["mount", &paths[0], &mnt]);
    let (_, now) = disks(&stage);
    assert_eq!(now[1]["health"], "suspect", "it is remembered");
    assert!(now[1]["counts"]["writes"].as_u64() >= later[1]["counts"]["writes"].as_u64());
    let (code, text) = aegisfs(&["set-disk-health", "1", "HEALTHY", &mnt]);
    assert!(code == 0 && text.contains("it was suspect"), "{text}");
    let (code, text) = aegisfs(&["probe-disks", &mnt]);
    assert!(code == 0 && text.lines().count() == 4 && text.contains("16 places read"), "{text}");
    assert_eq!(aegisfs(&["health", &mnt]).0, 0);
    let (code, text) = aegisfs(&["disk", "set-health", "/dev/null", "healthy", &mnt]);
    assert!(code == 5 && text.contains("no device"), "{text}");

    // Given up, and brought up to date once it is trusted again, under the same mount.
    let uuid = now[2]["uuid"].as_str().unwrap().to_owned();
    must(AEGISFS, &["disk", "set-health", &uuid, "failed", &mnt]);
    write("two");
    let (code, now) = status(&stage);
    assert_eq!(
        (code, states(&now)[2].as_str(), &now["members"][2]["health"]),
        (3, "out", &"failed".into()),
        "{now}"
    );
    must(AEGISFS, &["disk", "set-health", "3", "failed", &mnt]);
    let (code, text) = aegisfs(&["disk", "set-health", "0", "failed", &mnt]);
    assert!(code != 0 && text.contains("can do without 2"), "{text}");
    let expected = sums(&stage);
    for disk in ["2", "3"] {
        must(AEGISFS, &["disk", "set-health", disk, "healthy", &mnt]);
    }
    until_whole(&stage);
    must(AEGISFS, &["umount", &mnt]);
    shell(&format!("mv {0} {0}.away; mv {1} {1}.away", paths[0], paths[1]));
    must(AEGISFS, &["mount", "-o", "degraded", &paths[2], &mnt]);
    assert_eq!(sums(&stage), expected);
    must(AEGISFS, &["umount", &mnt]);
}

#[test]
fn scrubs_have_a_schedule() {
    if !can_mount("scrubs_have_a_schedule") {
        return;
    }
    let stage = Stage::image("256M");
    stage.mount();
    let mnt = stage.mnt();
    let told = |words: &[&str], part: &str| {
        let (code, text) = aegisfs(words);
        assert!(code == 0 && text.contains(part), "{words:?}: {text}");
    };
    told(&["scrub", "schedule", "show", &mnt], "no scrub begins by itself");
    told(&["scrub", "schedule", "set", "--every", "30d", "--intensity", "medium", &mnt], "begins 30d after");
    told(&["scrub-schedule", "--frequency", "nightly", "--intensity", "low", &mnt], "every day at 02:00 UTC");
    let (code, text) = aegisfs(&["scrub", "schedule", "set", "--at", "whenever", &mnt]);
    assert!(code == 2 && text.contains("nightly"), "{text}");
    told(&["scrub-daemon", "set-intensity", "high", &mnt], "intensity high");
    stage.umount();
    stage.mount();
    told(&["scrub", "schedule", "show", &mnt], "every day at 02:00 UTC, intensity low");
    told(&["scrub", "status", &mnt], "no scrub yet");
    let (_, text) = aegisfs(&["--json", "scrub", "status", &mnt]);
    let now: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"));
    assert_eq!((&now["intensity"], &now["schedule"]["minute"]), (&"high".into(), &120.into()), "{now}");
    told(&["scrub", "schedule", "clear", &mnt], "no scrub begins by itself");
    stage.umount();
    stage.check();
}
