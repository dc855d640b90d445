//! What a source tree takes, alone and beside its likes.

use super::measure::{Bound, Figure, Quantity, Report, number};
use super::targets::{Ground, Kind, Target, run};
use super::verify;
use anyhow::{Context, Result, bail};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Small enough for slots of 4 MiB, in whole ones of which space is told.
const POOL_BYTES: u64 = 3 << 30;
const TREE_FILES: usize = 10_000;
const TREE_BYTES: u64 = 180_000_000;
/// Further copies, so that growth is seen beside the size of a slot.
const FURTHER_COPIES: u64 = 4;

/// A source tree, its tar, and that tar with a byte in front, on the disk that is measured.
struct Tree {
    folder: PathBuf,
    files: u64,
    bytes: u64,
}

impl Tree {
    /// Gathers files that every machine with a Rust toolchain has.
    fn gather(ground: &Ground) -> Result<Self> {
        let mut tree = Self { folder: ground.images.join("space"), files: 0, bytes: 0 };
        let cargo = std::env::var_os("CARGO_HOME").map(PathBuf::from);
        let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"));
        let registry = cargo.or(home).map(|cargo| cargo.join("registry/src"));
        let sources = registry.into_iter().chain(["/usr/include".into(), "/usr/share".into()]);
        for (number, source) in sources.enumerate() {
            tree.take(&source, &tree.folder.join("tree").join(number.to_string()))?;
        }
        if tree.files < TREE_FILES as u64 / 2 {
            bail!("there are only {} files to take", tree.files);
        }
        let folder = tree.folder.to_string_lossy().into_owned();
        let (tar, shifted) = (tree.part("tree.tar"), tree.part("shifted.tar"));
        run(120, &["tar", "--create", "--sort=name", "--file", &tar, "--directory", &folder, "tree"])?;
        let mut file = fs::File::create(&shifted)?;
        file.write_all(b"x")?;
        io::copy(&mut fs::File::open(&tar)?, &mut file)?;
        // Else the disk would still be writing while a row is timed.
        file.sync_all()?;
        run(120, &["sync", "--file-system", &folder])?;
        println!("  a tree of {} files, {} MB", tree.files, tree.bytes / 1_000_000);
        Ok(tree)
    }

    /// Copies what is below a folder in the order of names, until there is enough.
    fn take(&mut self, from: &Path, to: &Path) -> Result<()> {
        let Ok(entries) = fs::read_dir(from) else { return Ok(()) };
        let mut entries: Vec<_> = entries.flatten().collect();
        entries.sort_by_key(std::fs::DirEntry::file_name);
        fs::create_dir_all(to)?;
        for entry in entries {
            if self.files >= TREE_FILES as u64 || self.bytes >= TREE_BYTES {
                return Ok(());
            }
            let kind = entry.file_type()?;
            let target = to.join(entry.file_name());
            if kind.is_dir() {
                self.take(&entry.path(), &target)?;
            } else if kind.is_file() {
                self.bytes += fs::copy(entry.path(), target)?;
                self.files += 1;
            }
        }
        Ok(())
    }

    fn part(&self, name: &str) -> String {
        self.folder.join(name).to_string_lossy().into_owned()
    }

    /// Copies one of the parts to a target and syncs; says how long it took.
    fn copy(&self, part: &str, target: &Target, name: &str) -> Result<f64> {
        let to = target.place.join(name).to_string_lossy().into_owned();
        let start = std::time::Instant::now();
        run(180, &["cp", "--recursive", &self.part(part), &to])?;
        target.sync()?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Compares a copy with what it was taken from.
    fn is_same(&self, part: &str, target: &Target, name: &str) -> Result<()> {
        let copy = target.place.join(name).to_string_lossy().into_owned();
        run(180, &["diff", "--recursive", "--brief", "--no-dereference", &self.part(part), &copy]).map(|_| ())
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Bytes of AegisFS, after a checkpoint.
#[derive(Clone, Copy)]
struct Usage {
    logical: f64,
    compressed: f64,
    data: f64,
    metadata: f64,
}

impl Usage {
    fn of(target: &Target) -> Result<Self> {
        // What is in the log only is not counted; unmounting moves it to where it stays.
        target.chill()?;
        let usage = target.usage()?;
        let bytes = |key: &str| usage[key].as_f64().with_context(|| format!("usage tells {key}"));
        Ok(Self {
            logical: bytes("logical_bytes")?,
            compressed: bytes("compressed_bytes")?,
            data: bytes("data_bytes")?,
            metadata: bytes("metadata_bytes")?,
        })
    }
}

pub(super) fn stored(ground: &Ground, report: &mut Report) -> Result<()> {
    let tree = Tree::gather(ground)?;
    let targets = ground.targets(&[Kind::Aegis, Kind::Btrfs], POOL_BYTES)?;
    let empty: Vec<u64> = targets.iter().map(Target::used_bytes).collect::<Result<_>>()?;
    let parts = [("tree", "first"), ("tree", "second"), ("tree.tar", "tar"), ("shifted.tar", "shifted")];
    println!(
        "  {:<24} {:>8} {:>8} {:>10} {:>8}",
        "in parts of logical", "data", "stored", "metadata", "btrfs"
    );
    let before = Usage::of(&targets[0])?;
    let mut ratios = Vec::new();
    for (part, name) in parts {
        for target in &targets {
            tree.copy(part, target, name)?;
        }
        let usage = Usage::of(&targets[0])?;
        let logical = usage.logical - before.logical;
        let ratio = (usage.data - before.data) / logical;
        let btrfs = match targets.get(1) {
            Some(target) => number((target.used_bytes()? - empty[1]) as f64 / logical),
            None => "-".into(),
        };
        println!(
            "  {:<24} {:>8} {:>8} {:>10} {btrfs:>8}",
            format!("with the {name}"),
            number(ratio),
            number((usage.compressed - before.compressed) / logical),
            number((usage.metadata - before.metadata) / logical),
        );
        ratios.push(ratio);
    }
    report.bar("a source tree, data in parts of logical", Bound::AtMost(0.20), ratios.first().copied());
    report.bar(
        "with its copy, its tar and that shifted by a byte",
        Bound::AtMost(0.10),
        ratios.last().copied(),
    );
    verify(report, "space", &targets, |target| {
        parts.iter().try_for_each(|(part, name)| tree.is_same(part, target, name))
    });
    Ok(())
}

pub(super) fn copied_again(ground: &Ground, report: &mut Report) -> Result<()> {
    let tree = Tree::gather(ground)?;
    let mut targets = ground.targets(&[Kind::Aegis, Kind::Ext4, Kind::Btrfs], POOL_BYTES)?;
    let quantities = [
        Quantity { name: "a tree copied and synced", unit: "s" },
        Quantity { name: "the same tree copied again", unit: "s" },
    ];
    let mut ratios = Vec::new();
    report.compare(&mut targets, &quantities, |target, _| {
        ground.renew(target, POOL_BYTES)?;
        target.settle()?;
        warm(&tree.folder.join("tree"))?;
        let first = tree.copy("tree", target, "first")?;
        let second = tree.copy("tree", target, "second")?;
        if target.kind == Kind::Aegis {
            ratios.push(second / first);
        }
        Ok(vec![first, second])
    })?;
    let aegis = &targets[0];
    let before = (Usage::of(aegis)?, row_bytes(aegis)?);
    for copy in 0..FURTHER_COPIES {
        tree.copy("tree", aegis, &format!("further{copy}"))?;
    }
    let written = row_bytes(aegis)? - before.1;
    let after = Usage::of(aegis)?;
    let logical = (FURTHER_COPIES * tree.bytes) as f64;
    let per_file = (after.metadata - before.0.metadata) / (FURTHER_COPIES * tree.files) as f64;
    println!(
        "  a further copy writes {} of logical as data (slots grow by {}), metadata grows by {} bytes a file",
        number(written / logical),
        number((after.data - before.0.data) / logical),
        number(per_file)
    );
    report.bar(
        "a stored tree copied again, time to the first copy's",
        Bound::AtMost(1.0),
        Some(Figure::of(ratios).median),
    );
    report.bar(
        "a stored tree copied again, data in parts of logical",
        Bound::AtMost(0.002),
        Some(written / logical),
    );
    report.bar("a stored tree copied again, metadata bytes per file", Bound::AtMost(600.0), Some(per_file));
    verify(report, "copied again", &targets, |target| {
        let further = (0..FURTHER_COPIES).map(|copy| format!("further{copy}"));
        ["first".to_owned(), "second".to_owned()]
            .into_iter()
            .chain(further)
            .try_for_each(|name| tree.is_same("tree", target, &name))
    });
    Ok(())
}

/// Brings files into the kernel's cache, so that the first copy does not wait for the disk either.
fn warm(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            warm(&entry.path())?;
        } else {
            io::copy(&mut fs::File::open(entry.path())?, &mut io::sink())?;
        }
    }
    Ok(())
}

/// Bytes of rows that AegisFS has written since it was mounted, headers and padding included.
fn row_bytes(target: &Target) -> Result<f64> {
    target.status()?["store"]["row_bytes"].as_f64().context("the daemon counts the bytes of its rows")
}
