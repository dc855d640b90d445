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
