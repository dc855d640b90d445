//! What programs do that people run all day: git, tar, cargo.

use super::POOL_BYTES;
use super::measure::{Bound, Quantity, Report};
use super::targets::{Ground, Kind, Target, run};
use crate::shell;
use anyhow::{Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Files of the repository that is cloned and looked through.
const FILES: usize = 20_000;

pub(super) fn git_and_tar(ground: &Ground, report: &mut Report) -> Result<()> {
    let repository = make_repository(ground)?;
    let mut targets = ground.targets(&[Kind::Aegis, Kind::Ext4], POOL_BYTES)?;
    let quantities = [
        Quantity { name: "git clone, 20,000 files", unit: "s" },
        Quantity { name: "git status, cold", unit: "s" },
        Quantity { name: "tar of it, cold", unit: "s" },
    ];
    let from = repository.to_string_lossy().into_owned();
    let figures = report.compare(&mut targets, &quantities, |target, seed| {
        let copy = target.place.join(format!("clone{seed}")).to_string_lossy().into_owned();
        target.settle()?;
        let clone = timed(&["git", "clone", "--quiet", "--no-hardlinks", &from, &copy])?;
        target.chill()?;
        let status = timed(&["git", "-C", &copy, "status", "--porcelain"])?;
        target.chill()?;
        let tar = timed(&["bash", "-c", &format!("tar --create --directory {copy} . | cat > /dev/null")])?;
        if !run(300, &["git", "-C", &copy, "status", "--porcelain"])?.is_empty() {
            bail!("git says that the clone differs");
        }
        fs::remove_dir_all(&copy)?;
        Ok(vec![clone, status, tar])
    })?;
    for (n, bar) in [0.8, 0.4, 1.0].into_iter().enumerate() {
        let speed = figures.against(Kind::Ext4, n).map(|times| 1.0 / times);
        report.bar(&format!("{}: speed to ext4", quantities[n].name), Bound::AtLeast(bar), speed);
    }
    finish(report, "git and tar", &targets);
    Ok(())
}

pub(super) fn cargo_build(ground: &Ground, report: &mut Report) -> Result<()> {
    let mut targets = ground.targets(&[Kind::Aegis, Kind::Ext4], POOL_BYTES)?;
    let sources = shell::root().to_string_lossy().into_owned();
    let name = "cargo build of three crates";
    let figures = report.compare(&mut targets, &[Quantity { name, unit: "s" }], |target, seed| {
        let place = target.place.join(format!("build{seed}"));
        fs::create_dir_all(&place)?;
        let (source, built) = (place.join("src"), place.join("target"));
        run(120, &["git", "clone", "--quiet", "--no-hardlinks", &sources, &source.to_string_lossy()])?;
        target.chill()?;
        let manifest = source.join("Cargo.toml").to_string_lossy().into_owned();
        let line = ["cargo", "build", "--quiet", "--offline", "--manifest-path", &manifest];
        let crates =
            ["--package", "aegisfs-base", "--package", "aegisfs-format", "--package", "aegisfs-device"];
        let built = built.to_string_lossy().into_owned();
        let seconds = timed(&[&line[..], &crates, &["--target-dir", &built]].concat())?;
        fs::remove_dir_all(&place)?;
        Ok(vec![seconds])
    })?;
    let speed = figures.against(Kind::Ext4, 0).map(|times| 1.0 / times);
    report.bar(&format!("{name}: speed to ext4"), Bound::AtLeast(0.9), speed);
    finish(report, name, &targets);
    Ok(())
}

fn finish(report: &mut Report, row: &str, targets: &[Target]) {
    for target in targets.iter().filter(|target| target.kind == Kind::Aegis) {
        match target.check() {
            Ok(()) => println!("  verified: what git compared, and check"),
            Err(error) => report.fail(format!("{row}: {error:#}")),
        }
    }
}

fn timed(line: &[&str]) -> Result<f64> {
    let start = Instant::now();
    run(300, line)?;
    Ok(start.elapsed().as_secs_f64())
}

/// A repository on the disk that is measured: files of a few lines to a few hundred, in folders of fifty.
fn make_repository(ground: &Ground) -> Result<PathBuf> {
    let repository = ground.images.join("repository");
    let _ = fs::remove_dir_all(&repository);
    for n in 0..FILES {
        let folder = repository.join(format!("part{}/folder{}", n / 1000, n / 50));
        fs::create_dir_all(&folder)?;
        let lines = 5 + (n * 7919) % 200;
        let text: String =
            (0..lines).map(|line| format!("line {line} of file {n}: {}\n", (line * n) % 9973)).collect();
        fs::write(folder.join(format!("file{n}.txt")), text)?;
    }
    let path = repository.to_string_lossy().into_owned();
    let git = |words: &[&str]| {
        let identity = ["-c", "user.name=bench", "-c", "user.email=bench@localhost", "-c", "gc.auto=0"];
        run(300, &[&["git", "-C", &path], &identity[..], words].concat())
    };
    git(&["init", "--quiet"])?;
    git(&["add", "."])?;
    git(&["commit", "--quiet", "--message", "all"])?;
    run(120, &["sync", "--file-system", &Path::new(&path).to_string_lossy()])?;
    Ok(repository)
}
