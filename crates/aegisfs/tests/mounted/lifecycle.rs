//! From format to remount, with and without accidents.

use crate::stage::{Stage, aegisfs, can_mount, must, run, shell};

/// The tree that is copied: real files of all sizes, links and directories.
const TREE: &str = "/usr/include/";

fn copy_tree(stage: &Stage) {
    must("rsync", &["-aHAX", TREE, &format!("{}/inc/", stage.mnt())]);
}

/// Nothing that rsync compares, content included, is different.
fn assert_same_tree(stage: &Stage) {
    let target = format!("{}/inc/", stage.mnt());
    let differences =
        must("rsync", &["-aHAXn", "--checksum", "--itemize-changes", "--delete", TREE, &target]);
    assert_eq!(differences, "");
}

fn live_and_die(stage: &Stage) {
    stage.mount();
    copy_tree(stage);
    assert_same_tree(stage);
    stage.umount();
    stage.check();
    stage.mount();
    assert_same_tree(stage);
    must("rm", &["-rf", &format!("{}/inc/linux", stage.mnt())]);
    copy_tree(stage);
    stage.sync();
    stage.kill();
    stage.umount();
    stage.mount();
    assert_same_tree(stage);
    stage.umount();
    stage.check();
}

#[test]
fn a_tree_survives_remount_and_kill_on_an_image() {
    if can_mount("a_tree_survives_remount_and_kill_on_an_image") {
        live_and_die(&Stage::image("2G"));
    }
}

#[test]
fn a_tree_survives_remount_and_kill_on_a_block_device() {
    if can_mount("a_tree_survives_remount_and_kill_on_a_block_device") {
        live_and_die(&Stage::block("3G"));
    }
}

#[test]
fn a_shifted_copy_costs_next_to_nothing() {
    if !can_mount("a_shifted_copy_costs_next_to_nothing") {
        return;
    }
    let stage = Stage::image("2G");
    stage.mount();
    let tar = stage.path("t.tar");
    must("tar", &["cf", &tar, TREE, "/usr/lib/gcc"]);
    must("cp", &[&tar, &stage.mnt()]);
    stage.sync();
    let first = stage.json("usage");
    shell(&format!("(printf x; cat {tar}) > {}/shifted.tar", stage.mnt()));
    stage.sync();
    let second = stage.json("usage");
    let grown = second["compressed_bytes"].as_u64().unwrap() - first["compressed_bytes"].as_u64().unwrap();
    let before = first["compressed_bytes"].as_u64().unwrap();
    assert!(grown * 50 < before, "{grown} bytes on top of {before}");
    shell(&format!("cmp {tar} {0}/t.tar && cmp <(printf x; cat {tar}) {0}/shifted.tar", stage.mnt()));
    stage.umount();
    stage.check();
}

#[test]
fn a_killed_daemon_leaves_a_mount_that_can_be_taken_away_or_over() {
    if !can_mount("a_killed_daemon_leaves_a_mount_that_can_be_taken_away_or_over") {
        return;
    }
    let stage = Stage::image("256M");
    stage.mount();
    std::fs::write(stage.at("kept"), b"kept").unwrap();
    stage.sync();
    stage.kill();
    assert!(std::fs::metadata(stage.at("kept")).is_err());
    // Mounting over the dead mount takes it away first.
    stage.mount();
    assert_eq!(std::fs::read(stage.at("kept")).unwrap(), b"kept");
    stage.kill();
    stage.umount();
    stage.mount();
    assert_eq!(std::fs::read(stage.at("kept")).unwrap(), b"kept");
    stage.umount();
    stage.check();
}

#[test]
fn a_signal_ends_in_order() {
    if !can_mount("a_signal_ends_in_order") {
        return;
    }
    let stage = Stage::image("256M");
    for signal in ["-INT", "-TERM"] {
        stage.mount();
        std::fs::write(stage.at(signal), signal).unwrap();
        let pid = stage.json("status")["pid"].to_string();
        must("kill", &[signal, &pid]);
        shell(&format!(
            "for n in $(seq 200); do kill -0 {pid} 2>/dev/null || exit 0; sleep 0.05; done; exit 1"
        ));
        let (code, text) = aegisfs(&["--json", "check", stage.device()]);
        assert_eq!(code, 0, "{text}");
        assert!(text.contains("\"notes\":[]"), "it was not unmounted in order: {text}");
    }
    stage.mount();
    assert_eq!(std::fs::read(stage.at("-TERM")).unwrap(), b"-TERM");
}

#[test]
fn a_full_device_loses_nothing_and_can_be_emptied() {
    if !can_mount("a_full_device_loses_nothing_and_can_be_emptied") {
        return;
    }
    let stage = Stage::image("256M");
    stage.mount();
    for _ in 0..2 {
        let fill = format!(
            "cd {}; n=0; while head -c 8M /dev/urandom > f$n 2>/dev/null && sync f$n 2>/dev/null; do n=$((n+1)); \
             [ $n -lt 60 ] || exit 9; done; rm -f f$n; [ $n -ge 18 ] && sha256sum f* > ../sums",
            stage.mnt()
        );
        shell(&fill);
        shell(&format!("cd {}; sha256sum --quiet -c ../sums", stage.mnt()));
        shell(&format!("rm {}/f*", stage.mnt()));
        stage.sync();
    }
    stage.umount();
    stage.check();
}

#[test]
fn reading_only_changes_nothing() {
    if !can_mount("reading_only_changes_nothing") {
        return;
    }
    let stage = Stage::image("256M");
    stage.mount();
    std::fs::write(stage.at("f"), b"content").unwrap();
    stage.sync();
    stage.kill();
    stage.umount();
    let before = shell(&format!("sha256sum < {}", stage.device()));
    stage.mount_with("ro");
    assert_eq!(std::fs::read(stage.at("f")).unwrap(), b"content");
    assert!(std::fs::write(stage.at("g"), b"x").is_err());
    stage.umount();
    stage.check();
    assert_eq!(before, shell(&format!("sha256sum < {}", stage.device())));
}

#[test]
fn the_tools_that_look_for_helpers_find_them() {
    if !can_mount("the_tools_that_look_for_helpers_find_them") {
        return;
    }
    let stage = Stage::empty();
    for helper in ["mkfs.aegisfs", "mount.aegisfs", "fsck.aegisfs"] {
        must("ln", &["-s", crate::stage::AEGISFS, &stage.path(helper)]);
    }
    must(&stage.path("mkfs.aegisfs"), &["--size", "256M", "-L", "name", stage.device()]);
    must(&stage.path("mount.aegisfs"), &[stage.device(), &stage.mnt(), "-o", "rw,nofail,x-test"]);
    assert_eq!(stage.json("status")["label"], "name");
    std::fs::write(stage.at("f"), b"x").unwrap();
    must("umount", &[&stage.mnt()]);
    must(&stage.path("fsck.aegisfs"), &["-a", stage.device()]);
    let wrong = run(&stage.path("mount.aegisfs"), &[stage.device(), &stage.mnt(), "-o", "colour=blue"]);
    assert_eq!(wrong.status.code(), Some(1));
}

/// The kernel keeps a block device as long as somebody uses files of a mount on it, also when its daemon was killed.
#[test]
fn who_keeps_a_device_busy_after_a_kill_is_named() {
    if !can_mount("who_keeps_a_device_busy_after_a_kill_is_named") {
        return;
    }
    let stage = Stage::block("256M");
    stage.mount();
    if stage.json("status")["fuseblk"] != true {
        println!("SKIPPED: who_keeps_a_device_busy_after_a_kill_is_named: needs Linux 6.18");
        return;
    }
    std::fs::write(stage.at("file"), "content").unwrap();
    stage.sync();
    let open = std::fs::File::open(stage.at("file")).unwrap();
    let mut user = std::process::Command::new("sleep").arg("100").stdin(open).spawn().unwrap();
    stage.kill();
    let (code, text) = aegisfs(&["mount", stage.device(), &stage.mnt()]);
    user.kill().unwrap();
    user.wait().unwrap();
    assert!(code == 6 && text.contains(&format!("still used by sleep ({})", user.id())), "{code}: {text}");
    stage.mount();
    assert_eq!(std::fs::read(stage.at("file")).unwrap(), b"content");
    stage.umount();
    stage.check();
}
