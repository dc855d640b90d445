//! Files and directories that are stored in another way than their pool: what the commands say and do, and what is on the
//! devices then.

use crate::members::{pool, sums};
use crate::stage::{AEGISFS, Stage, aegisfs, can_mount, must, shell};
use serde_json::Value;

/// The geometries of the segments that hold data by now, as inspect tells them.
fn geometries(device: &str) -> Vec<(u64, u64)> {
    let text = must(AEGISFS, &["inspect", "--json", "--segments", device]);
    let inspected: Value = serde_json::from_str(&text).expect("JSON");
    let segments = inspected["segments"].as_array().expect("segments").iter();
    let number = |segment: &Value, key: &str| segment[key].as_u64().unwrap_or_else(|| panic!("{segment}"));
    let living = segments.filter(|segment| number(segment, "live_bytes") > 0);
    let mut found: Vec<_> =
        living.map(|segment| (number(segment, "shards_data"), number(segment, "shards_parity"))).collect();
    found.sort_unstable();
    found.dedup();
    found
}

fn policy(words: &[&str]) -> String {
    must(AEGISFS, &[&["policy"], words].concat())
}

#[test]
fn a_directory_is_stored_as_somebody_says() {
    if !can_mount("a_directory_is_stored_as_somebody_says") {
        return;
    }
    let stage = Stage::empty();
    let mnt = stage.mnt();
    let paths = pool(&stage, &["a.img", "b.img", "c.img", "d.img"], &["--size", "300M"]);
    must(AEGISFS, &["mount", &paths[0], &mnt]);
    shell(&format!(
        "mkdir -p {mnt}/top/deep {mnt}/plain; cp -r /usr/share/common-licenses {mnt}/top/deep/tree; \
         dd if=/dev/urandom of={mnt}/top/noise bs=1M count=40 status=none; cp {mnt}/top/noise {mnt}/plain/noise"
    ));
    must(AEGISFS, &["sync", &mnt]);
    let expected = sums(&stage);
    let (top, deep, noise) = (format!("{mnt}/top"), format!("{mnt}/top/deep"), format!("{mnt}/top/noise"));
    assert!(policy(&["get", &noise]).contains("ec:2+2, as the directory"));

    let text = policy(&["set", "redundancy=mirror:3", "--wait", &top]);
    assert!(text.contains("mirror:3") && !text.contains("as the directory"), "{text}");
    assert!(policy(&["get", &noise]).contains("mirror:3, as the directory"));
    assert!(policy(&["get", &deep]).contains("mirror:3, as the directory"));
    assert!(policy(&["show", &format!("{mnt}/plain/noise")]).contains("ec:2+2"));
    let status: Value = serde_json::from_str(&policy(&["status", "--json", &mnt])).expect("JSON");
    assert!(
        status["bytes"].as_u64() > Some(40 << 20) && status["waiting"] == serde_json::json!([]),
        "{status}"
    );
    assert_eq!(sums(&stage), expected);
    // A directory of its own within.
    policy(&["set", "redundancy=single", "--wait", &deep]);
    shell(&format!("cp {mnt}/plain/noise {deep}/again"));
    assert!(policy(&["get", &format!("{deep}/again")]).contains("single, as the directory"));
    let expected = sums(&stage);

    for (words, code, says) in [
        (&["set", "redundancy=mirror:9", top.as_str()][..], 1, "devices"),
        (&["set", "redundancy=raid5", &top], 2, "known are"),
        (&["set", "colour=blue", &top], 2, "redundancy="),
        (&["get", &format!("{mnt}/nothing")], 5, "No such file"),
        (&["get", "/proc"], 5, "not an AegisFS mount"),
    ] {
        let (found, text) = aegisfs(&[&["policy"], words].concat());
        assert!(found == code && text.contains(says), "{words:?}: {found} {text}");
    }
    must(AEGISFS, &["umount", &mnt]);
    assert_eq!(geometries(&paths[1]), [(1, 0), (1, 2), (2, 2)]);
    let (code, text) = aegisfs(&["check", &paths[0]]);
    assert!(code == 0 && text.contains("clean"), "{text}");

    // Two devices may be lost, as before; of what is single some is gone until they are back, and nothing else.
    shell(&format!("mv {0} {0}.away; mv {1} {1}.away", paths[0], paths[2]));
    must(AEGISFS, &["mount", "-o", "degraded", &paths[1], &mnt]);
    let others = format!(
        "cd {mnt} && find . -type f -not -path './top/deep/*' -print0 | sort -z | xargs -0 sha256sum"
    );
    let without: Vec<&str> = expected.lines().filter(|line| !line.contains("./top/deep/")).collect();
    assert_eq!(shell(&others).lines().collect::<Vec<_>>(), without);
    must(AEGISFS, &["umount", &mnt]);
    shell(&format!("mv {0}.away {0}; mv {1}.away {1}", paths[0], paths[2]));

    // Everything as the pool again; what is interrupted goes on.
    must(AEGISFS, &["mount", &paths[1], &mnt]);
    crate::members::until_whole(&stage);
    assert_eq!(sums(&stage), expected);
    policy(&["clear", &top]);
    stage.kill();
    must(AEGISFS, &["mount", &paths[1], &mnt]);
    policy(&["clear", "--wait", &top]);
    policy(&["clear", "--wait", &deep]);
    assert!(policy(&["get", &noise]).contains("ec:2+2, as the directory"));
    assert!(policy(&["get", &format!("{deep}/again")]).contains("ec:2+2"));
    assert!(policy(&["clear", &mnt]).contains("ec:2+2"));
    must(AEGISFS, &["clean", "run", &mnt]);
    assert_eq!(sums(&stage), expected);
    must(AEGISFS, &["umount", &mnt]);
    assert!(geometries(&paths[0]).iter().all(|(_, parity)| *parity == 2), "{:?}", geometries(&paths[0]));
    let (code, text) = aegisfs(&["check", &paths[0]]);
    assert!(code == 0 && text.contains("clean"), "{text}");
}
