//! Whatever is wrong ends in one clear sentence, the right exit code, and no loss.

use crate::stage::{AEGISFS, Stage, aegisfs, can_mount, must, run, shell};

fn expect(args: &[&str], code: i32, words: &str) {
    let (found, text) = aegisfs(args);
    assert_eq!(found, code, "{args:?}: {text}");
    assert!(text.contains(words), "{args:?}: {text}");
}

#[test]
fn devices_that_cannot_be_formatted() {
    let stage = Stage::empty();
    let device = stage.device();
    expect(&["format", "--size", "100M", device], 2, "at least 256.0 MiB");
    expect(&["format", "--size", "soon", device], 2, "not a size");
    expect(&["format", device], 5, "disk.img");
    must("truncate", &["-s", "100M", device]);
    expect(&["format", device], 1, "at least");
    must("truncate", &["-s", "300M", device]);
    expect(&["format", "--compression", "rar", device], 2, "'rar' is not known");
    must("mkfs.ext4", &["-q", "-F", device]);
    expect(&["format", device], 1, "--force");
    must(AEGISFS, &["format", "--force", device]);
    expect(&["format", device], 1, "--yes");
    must(AEGISFS, &["format", "--yes", device]);
}

#[test]
fn devices_that_cannot_be_mounted() {
    if !can_mount("devices_that_cannot_be_mounted") {
        return;
    }
    let stage = Stage::empty();
    let (device, mnt) = (stage.device().to_owned(), stage.mnt());
    expect(&["mount", &device, &mnt], 5, "is not there");
    must("truncate", &["-s", "300M", &device]);
    expect(&["mount", &device, &mnt], 1, "not formatted");
    expect(&["check", &device], 1, "not formatted");
    must(AEGISFS, &["format", &device]);
    expect(&["mount", &device, "/no/such/place"], 5, "mkdir");
    expect(&["mount", "-o", "colour=blue", &device, &mnt], 2, "'colour=blue'");
    must("touch", &[&format!("{mnt}/file")]);
    expect(&["mount", &device, &mnt], 2, "not empty");
    must("rm", &[&format!("{mnt}/file")]);
    stage.mount();
    expect(&["mount", &device, &mnt], 6, "a mount already");
    expect(&["format", "--yes", &device], 6, "");
    stage.umount();
    expect(&["umount", &mnt], 5, "not an AegisFS mount");
    expect(&["status", &mnt], 5, "no living daemon");
    expect(&["sync", &mnt], 5, "not an AegisFS mount");
    must("truncate", &["-s", "280M", &device]);
    expect(&["mount", &device, &mnt], 1, "truncated");
}

#[test]
fn a_destroyed_header_is_replaced_by_the_other() {
    if !can_mount("a_destroyed_header_is_replaced_by_the_other") {
        return;
    }
    let stage = Stage::image("256M");
    stage.mount();
    std::fs::write(stage.at("f"), b"kept").unwrap();
    stage.umount();
    for seek in ["0", "255"] {
        must(
            "dd",
            &[
                "if=/dev/urandom",
                &format!("of={}", stage.device()),
                "bs=1M",
                "count=1",
                &format!("seek={seek}"),
                "conv=notrunc",
                "status=none",
            ],
        );
        stage.mount();
        assert_eq!(std::fs::read(stage.at("f")).unwrap(), b"kept");
        stage.umount();
        let (code, text) = aegisfs(&["--json", "check", stage.device()]);
        assert_eq!(code, 0);
        assert!(text.contains("\"notes\":[]"), "the header was not mended: {text}");
    }
}

#[test]
fn a_busy_mount_names_who_holds_it() {
    if !can_mount("a_busy_mount_names_who_holds_it") {
        return;
    }
    let stage = Stage::image("256M");
    stage.mount();
    let mut holder = std::process::Command::new("sleep").arg("60").current_dir(stage.mnt()).spawn().unwrap();
    let (code, text) = aegisfs(&["umount", &stage.mnt()]);
    let lazy = run(AEGISFS, &["umount", "--lazy", &stage.mnt()]);
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!(code, 6, "{text}");
    assert!(text.contains("sleep (") && text.contains("--lazy"), "{text}");
    assert!(lazy.status.success());
    stage.check();
}

#[test]
fn names_that_are_too_long() {
    if !can_mount("names_that_are_too_long") {
        return;
    }
    let stage = Stage::image("256M");
    stage.mount();
    let longest = "x".repeat(255);
    std::fs::write(stage.at(&longest), b"fits").unwrap();
    let error = std::fs::write(stage.at(&"x".repeat(256)), b"does not").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(36));
    shell(&format!("[ $(ls {} | wc -l) = 1 ]", stage.mnt()));
}

#[test]
fn an_image_has_one_user_whatever_way_leads_to_it() {
    if !can_mount("an_image_has_one_user_whatever_way_leads_to_it") {
        return;
    }
    struct Loop(String);
    impl Loop {
        fn over(file: &str, more: &[&str]) -> Self {
            let line = [&["--find", "--show"], more, &[file]].concat();
            Self(must("losetup", &line).trim().to_owned())
        }
    }
    impl Drop for Loop {
        fn drop(&mut self) {
            let _ = run("losetup", &["-d", &self.0]);
        }
    }
    let stage = Stage::image("256M");
    let file = stage.device().to_owned();
    let refused = |line: &[&str]| {
        let (code, text) = aegisfs(line);
        assert!(code == 6 && text.contains("disk.img"), "{line:?}: {code}: {text}");
    };
    let other = stage.path("other");
    std::fs::create_dir(&other).unwrap();
    stage.mount();
    let first = Loop::over(&file, &[]);
    refused(&["mount", &first.0, &other]);
    refused(&["check", &first.0]);
    refused(&["format", "--force", "--yes", &first.0]);
    stage.umount();
    // The file belongs to the loop device now, and one loop device is enough.
    must(AEGISFS, &["mount", &first.0, &stage.mnt()]);
    let second = Loop::over(&file, &[]);
    for line in [
        &["mount", &file, &other][..],
        &["mount", &second.0, &other],
        &["check", &file],
        &["check", &second.0],
    ] {
        refused(line);
    }
    std::fs::write(stage.at("file"), b"one writer").unwrap();
    stage.umount();
    must(AEGISFS, &["check", &second.0]);
    // Two parts of one file are two devices.
    let parts = stage.path("parts");
    shell(&format!("truncate -s 512M {parts}"));
    let half = (256u64 << 20).to_string();
    let halves = [Loop::over(&parts, &["--sizelimit", &half]), Loop::over(&parts, &["--offset", &half])];
    halves.iter().for_each(|half| drop(must(AEGISFS, &["format", "--yes", &half.0])));
    must(AEGISFS, &["mount", &halves[0].0, &stage.mnt()]);
    must(AEGISFS, &["mount", &halves[1].0, &other]);
    must(AEGISFS, &["umount", &other]);
    stage.umount();
    halves.iter().for_each(|half| drop(must(AEGISFS, &["check", &half.0])));
}

// The daemon woke its control thread through the socket's path, and waited for ever where that was gone.
#[test]
fn a_daemon_ends_in_order_without_its_socket() {
    if !can_mount("a_daemon_ends_in_order_without_its_socket") {
        return;
    }
    let stage = Stage::image("256M");
    stage.mount();
    let pool = stage.json("status")["pool"].as_str().unwrap().to_owned();
    std::fs::write(stage.at("file"), b"to be kept").unwrap();
    shell(&format!("rm /run/aegisfs/{pool}.sock"));
    must("umount", &[&stage.mnt()]);
    stage.check();
    stage.mount();
    assert_eq!(std::fs::read(stage.at("file")).unwrap(), b"to be kept");
}
