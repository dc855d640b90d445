//! Devices of different sizes: filled to the last slot that the geometry allows.

use crate::stage::{AEGISFS, Stage, aegisfs, can_mount, must, shell};

/// Of the devices, in parts of the smallest.
const SIZES: [u64; 6] = [4, 2, 2, 1, 1, 1];

/// The largest S of which sum(min(size, S)) is enough for so many shards, times the shards of data.
fn allowed(unit: u64, data: u64, parity: u64) -> u64 {
    let sizes = SIZES.map(|size| size * unit);
    let fits = |s: u64| sizes.iter().map(|size| size.min(&s)).sum::<u64>() >= s * (data + parity);
    let most = (0..=sizes.iter().sum::<u64>() >> 20).rev().find(|mib| fits(mib << 20));
    (most.expect("nothing always fits") * data) << 20
}

/// Fills a pool with noise until there is no room, and says how many bytes its files have, and how much df promised.
fn fill(redundancy: &str, unit: u64) -> (u64, u64) {
    let stage = Stage::empty();
    let mnt = stage.mnt();
    let paths: Vec<String> = (0..SIZES.len()).map(|n| stage.path(&format!("{n}.img"))).collect();
    for (path, size) in paths.iter().zip(SIZES) {
        shell(&format!("truncate -s {} {path}", size * unit));
    }
    let images: Vec<&str> = paths.iter().map(String::as_str).collect();
    must(AEGISFS, &[&["format", "--redundancy", redundancy], &images[..]].concat());
    must(AEGISFS, &["mount", "-o", "writeback=off", &paths[0], &mnt]);
    let total = shell(&format!("df -B1 --output=avail {mnt} | tail -1")).trim().parse().expect("a number");
    // What cannot be told apart by a cipher cannot be compressed either.
    let noise = "openssl enc -aes-128-ctr -pass pass:mixed -nosalt -pbkdf2 -iter 1 < /dev/zero 2>/dev/null";
    let script = format!(
        "{noise} | dd of={mnt}/noise bs=1M iflag=fullblock 2>&1 | grep -c 'No space' ; \
         for n in $(seq 40); do {noise} | dd of={mnt}/more$n bs=64K iflag=fullblock count=4 status=none skip=$((n * 10)) \
         2>/dev/null || true; done; \
         sync {mnt}/noise && find {mnt} -type f -printf '%s\\n' | awk '{{ sum += $1 }} END {{ printf \"%.0f\\n\", sum }}'"
    );
    let told = shell(&script);
    let mut lines = told.lines();
    assert_eq!(lines.next(), Some("1"), "{told}");
    let written = lines.next().and_then(|line| line.parse().ok()).expect("a number");
    let sums = shell(&format!("cd {mnt} && sha256sum noise"));
    must(AEGISFS, &["umount", &mnt]);
    must(AEGISFS, &["mount", &paths[5], &mnt]);
    assert_eq!(shell(&format!("cd {mnt} && sha256sum noise")), sums);
    must(AEGISFS, &["umount", &mnt]);
    let (code, text) = aegisfs(&["check", &paths[2]]);
    assert!(code == 0 && text.contains("clean"), "{text}");
    (written, total)
}

#[test]
fn mixed_sizes_are_filled_as_far_as_the_geometry_allows() {
    if !can_mount("mixed_sizes_are_filled_as_far_as_the_geometry_allows") {
        return;
    }
    let is_long = std::env::var_os("AEGISFS_LONG").is_some();
    let unit = if is_long { 1 << 30 } else { 256 << 20 };
    // The second takes more than the first, and is in the unit tests of the store as well.
    let shapes = [("ec:3+2", 3, 2), ("mirror:2", 1, 1)];
    for (redundancy, data, parity) in shapes.into_iter().take(if is_long { 2 } else { 1 }) {
        let (written, total) = fill(redundancy, unit);
        let allowed = allowed(unit, data, parity);
        println!(
            "{redundancy}: {} MiB written, df promised {}, the geometry allows {}",
            written >> 20,
            total >> 20,
            allowed >> 20
        );
        // What df does not promise is the reserve: so small a pool leaves much to the log and to what metadata may grow to.
        assert!(written * 100 >= total * 95, "{redundancy}: {written} of {total}");
        assert!(total * 100 >= allowed * 80, "{redundancy}: {total} of {allowed}");
    }
}

/// Where more devices are missing than the pool can do without, what lies on the others can still be read, and nothing else is
/// made up.
#[test]
fn with_too_few_devices_what_can_be_read_is_read() {
    if !can_mount("with_too_few_devices_what_can_be_read_is_read") {
        return;
    }
    let stage = Stage::empty();
    let mnt = stage.mnt();
    let paths = [stage.path("a.img"), stage.path("b.img")];
    must(AEGISFS, &["format", "--redundancy", "single", "--size", "300M", &paths[0], &paths[1]]);
    must(AEGISFS, &["mount", &paths[0], &mnt]);
    shell(&format!(
        "mkdir {mnt}/kept; {AEGISFS} policy set redundancy=mirror:2 {mnt}/kept; \
         for n in $(seq 20); do head -c 3000000 /dev/urandom > {mnt}/$n; done; head -c 9000000 /dev/urandom > {mnt}/kept/file; \
         echo few > {mnt}/few"
    ));
    let sums: Vec<String> = shell(&format!("cd {mnt} && sha256sum $(find . -type f | sort)"))
        .lines()
        .map(str::to_owned)
        .collect();
    must(AEGISFS, &["umount", &mnt]);
    for (gone, left) in [(0, 1), (1, 0)] {
        shell(&format!("mv {0} {0}.away", paths[gone]));
        for options in ["rw", "ro", "degraded"] {
            let (code, text) = aegisfs(&["mount", "-o", options, &paths[left], &mnt]);
            assert!(
                code != 0 && text.contains(&paths[gone]) && text.contains("degraded,ro"),
                "{options}: {text}"
            );
        }
        must(AEGISFS, &["mount", "-o", "degraded,ro", &paths[left], &mnt]);
        let (code, status) = crate::members::status(&stage);
        assert!(code == 3 && status["degraded"] == true && status["read_only"] == true, "{status}");
        let script = format!(
            "cd {mnt} && for f in $(find . -type f | sort); do sha256sum $f 2>/dev/null || true; done"
        );
        let found: Vec<String> = shell(&script).lines().map(str::to_owned).collect();
        assert!(found.iter().all(|line| sums.contains(line)), "{found:?}");
        assert!(found.len() > 2 && found.len() < sums.len(), "{} of {}", found.len(), sums.len());
        assert!(found.iter().any(|line| line.ends_with("./kept/file")), "{found:?}");
        assert!(found.iter().any(|line| line.ends_with("./few")), "{found:?}");
        must(AEGISFS, &["umount", &mnt]);
        shell(&format!("mv {0}.away {0}", paths[gone]));
    }
    must(AEGISFS, &["mount", &paths[1], &mnt]);
    let again: Vec<String> = shell(&format!("cd {mnt} && sha256sum $(find . -type f | sort)"))
        .lines()
        .map(str::to_owned)
        .collect();
    assert_eq!(again, sums);
    must(AEGISFS, &["umount", &mnt]);
}
