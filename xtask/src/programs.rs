//! The programs of `tests/programs`: what people run on a filesystem, run on a mount.

use crate::setup::{self, FSX};
use crate::shell;
use crate::skips::{self, Skip};
use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

/// Whether the kernel lets filesystems use io_uring; not there where it cannot.
pub(crate) const RINGS_SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";
/// The scripts, those that take longest first, so that none of these is left alone at the end.
const SCRIPTS: [&str; 18] = [
    "fill",
    "aging",
    "stress_ng",
    "fsx",
    "postgresql",
    "restic",
    "kill_postgresql",
    "npm",
    "fio",
    "tar_rsync",
    "cargo",
    "borg",
    "sqlite",
    "kill_sqlite",
    "kill_cleaner",
    "full_of_pieces",
    "failing_disk",
    "git",
];
/// Scripts that run at a time: each has an image and a mount of its own, and waits for flushes most of the time.
const AT_A_TIME: usize = 2;
/// Seconds that one may take; well above what any takes on two cores.
const SECONDS_MAX: &str = "300";
const SECONDS_MAX_LONG: &str = "10800";
/// Seconds that one has to take its mount away after it was told to end.
const SECONDS_CLEANING: &str = "--kill-after=90";
/// Lines of a failed one's output that are shown; the file has them all.
const LINES_SHOWN: usize = 40;
const REASONS_SHOWN: usize = 6;

/// How much the scripts do, and how they mount.
struct Run<'a> {
    /// As `aegisfs mount -o` takes them; the environment's own, or none, where this is none.
    mount_options: Option<&'a str>,
    long: bool,
}

/// Each script's short run, with the program that was built before, through io_uring where the kernel has that.
pub(crate) fn run() -> Result<Vec<Skip>> {
    let has_rings = Path::new(RINGS_SWITCH).exists();
    let asked = std::env::var_os("AEGISFS_MOUNT_OPTIONS").is_some();
    Run { mount_options: (has_rings && !asked).then_some("io_uring=on"), long: false }.all(&SCRIPTS)
}

/// The same outside of a run of all tests, or one script of them.
pub(crate) fn run_alone(name: Option<&str>) -> Result<()> {
    let named = SCRIPTS.iter().position(|script| Some(*script) == name);
    ensure!(name.is_none() || named.is_some(), "there are {}", SCRIPTS.join(", "));
    prepare()?;
    build()?;
    let scripts = named.map_or(&SCRIPTS[..], |at| &SCRIPTS[at..=at]);
    let start = Instant::now();
    let skips = Run { mount_options: None, long: false }.all(scripts)?;
    skips.iter().for_each(|skip| println!("{skip}"));
    println!("{} of {} in {} s", scripts.len() - skips.len(), scripts.len(), start.elapsed().as_secs());
    Ok(())
}

fn prepare() -> Result<()> {
    setup::install_packages();
    setup::install_program_packages();
    setup::install_tool(&FSX)
}

/// Each script's long run with each of these mount options.
pub(crate) fn soak(option_sets: &[String]) -> Result<()> {
    prepare()?;
    build()?;
    for options in option_sets {
        println!("soak: programs on a mount with {options}");
        let skips = Run { mount_options: Some(options), long: true }.all(&SCRIPTS)?;
        let allowed = skips::allowed();
        if let Some(skip) = skips::refused(&skips, &allowed).first() {
            bail!("{skip}, and it is not in tests/skips.txt");
        }
    }
    Ok(())
}

/// Optimised, as people use it; otherwise the programs would take all of the time.
pub(crate) fn build() -> Result<()> {
    shell::run(&["cargo", "build", "--quiet", "--release", "--package", "aegisfs"])
}

impl Run<'_> {
    fn all(&self, scripts: &[&str]) -> Result<Vec<Skip>> {
        fs::create_dir_all(logs())?;
        let next = AtomicUsize::new(0);
        let (skips, failed) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
        let work = || {
            while let Some(script) = scripts.get(next.fetch_add(1, Ordering::Relaxed)) {
                match self.one(script) {
                    Ok(found) => skips.lock().expect("no holder panics").extend(found),
                    Err(error) => {
                        println!("   {script}: {error:#}");
                        failed.lock().expect("no holder panics").push(format!("{script}: {error:#}"));
                    }
                }
            }
        };
        thread::scope(|scope| (0..AT_A_TIME).for_each(|_| drop(scope.spawn(work))));
        let failed = failed.into_inner().expect("no holder panics");
        if !failed.is_empty() {
            bail!("{}", failed.join("; "));
        }
        Ok(skips.into_inner().expect("no holder panics"))
    }

    /// Runs one script; what it said is shown only if it failed.
    fn one(&self, script: &str) -> Result<Vec<Skip>> {
        let path = logs().join(format!("{script}.log"));
        let log = File::create(&path)?;
        let seconds_max = if self.long { SECONDS_MAX_LONG } else { SECONDS_MAX };
        let file = shell::root().join("tests/programs").join(format!("{script}.sh"));
        // In our own group of processes, so that an interrupt reaches the script too.
        let mut command = shell::command(&["timeout", "--foreground", SECONDS_CLEANING, seconds_max, "bash"]);
        command.arg(file).stdout(log.try_clone()?).stderr(log);
        command.env("AEGISFS", shell::target().join("release/aegisfs"));
        command.env("AEGISFS_LONG", if self.long { "1" } else { "" });
        if let Some(options) = self.mount_options {
            command.env("AEGISFS_MOUNT_OPTIONS", options);
        }
        let start = Instant::now();
        let status = command.status().context("cannot run timeout")?;
        let seconds = start.elapsed().as_secs_f64();
        let said = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
        if !status.success() {
            println!("   {script:<16} FAILED after {seconds:.1} s:\n{}", last_lines(&said, LINES_SHOWN));
            // Said again at the end of the whole run, which may be all that is kept of it.
            let reasons = last_lines(&said, REASONS_SHOWN);
            bail!("{status}; all it said is in {}; it ended with\n{reasons}", path.display());
        }
        let skips = skips::find(&said);
        println!("   {script:<16} {}, {seconds:.1} s", if skips.is_empty() { "ok" } else { "skipped" });
        Ok(skips)
    }
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let shown = &lines[lines.len().saturating_sub(count)..];
    shown.iter().map(|line| format!("      {line}\n")).collect()
}

/// What the scripts said; that of each run takes the place of the last.
fn logs() -> PathBuf {
    shell::target().join("programs")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn every_script_runs() {
        let folder = fs::read_dir(shell::root().join("tests/programs")).expect("the folder is there");
        let files = folder.flatten().filter(|file| {
            // What the scripts share is not executable.
            file.metadata().is_ok_and(|metadata| metadata.permissions().mode() & 0o111 != 0)
        });
        let there: BTreeSet<String> =
            files.map(|file| file.file_name().to_string_lossy().trim_end_matches(".sh").to_owned()).collect();
        let listed: BTreeSet<String> = SCRIPTS.into_iter().map(str::to_owned).collect();
        assert_eq!(there, listed);
    }

    #[test]
    fn the_last_lines_are_shown() {
        let text: String = (0..100).map(|n| format!("{n}\n")).collect();
        let shown = last_lines(&text, 40);
        assert_eq!(shown.lines().count(), 40);
        assert!(shown.ends_with("      99\n"));
        assert_eq!(last_lines("one", 40), "      one\n");
    }
}
