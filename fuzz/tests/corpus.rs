//! The fuzz targets without a fuzzer: over the files of the corpus, and over seeded mutations.
//!
//! A file named `valid-N` must be accepted for ever, since that is what lies on somebody's devices; any other
//! file is an input that was trouble once and must not panic. `AEGISFS_FUZZ_SEED` and `AEGISFS_FUZZ_ROUNDS`
//! in the environment replace the seed and the number of mutations of each target.

use aegisfs_base::{Rng, SeededRng};
use aegisfs_fuzz::mutate::mutate;
use aegisfs_fuzz::{TARGETS, Target};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Mutations of each target in an ordinary run.
const ROUNDS: u64 = 20_000;
/// A corpus file is an example, not a data set.
const FILE_BYTES_MAX: u64 = 8 << 10;

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

fn folder(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name)
}

fn files(target: &Target) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder(target)).unwrap_or_else(|error| panic!("{}: {error}", target.name));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("it can be listed").path()).collect();
    files.sort();
    files
}

fn is_valid(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("valid-"))
}

#[test]
fn corpus_files_do_not_panic_and_valid_ones_are_accepted() {
    for target in TARGETS {
        let files = files(target);
        assert!(files.iter().any(|path| is_valid(path)), "{} has no valid file", target.name);
        for path in files {
            let bytes = fs::read(&path).expect("it can be read");
            assert!(bytes.len() as u64 <= FILE_BYTES_MAX, "{} is not tiny", path.display());
            let accepted = (target.run)(&bytes);
            assert!(accepted || !is_valid(&path), "{} is no longer accepted", path.display());
        }
    }
}

#[test]
fn every_folder_of_the_corpus_has_a_target() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for entry in fs::read_dir(corpus).expect("there is a corpus") {
        let name = entry.expect("it can be listed").file_name();
        assert!(TARGETS.iter().any(|t| name.to_string_lossy() == t.name), "{name:?} has no target");
    }
    let bins = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz_targets");
    for target in TARGETS {
        assert!(
            bins.join(format!("{}.rs", target.name)).exists(),
            "{} is not given to libFuzzer",
            target.name
        );
    }
}

#[test]
fn samples_are_accepted_and_their_mutations_do_not_panic() {
    let (seed, rounds) = (number("AEGISFS_FUZZ_SEED", 1), number("AEGISFS_FUZZ_ROUNDS", ROUNDS));
    for target in TARGETS {
        let samples = (target.samples)();
        assert!(samples.iter().all(|sample| (target.run)(sample)), "{} refuses a sample", target.name);
        let rng = SeededRng::new(seed);
        let mut current = samples[0].clone();
        for round in 0..rounds {
            // Mutations pile up for a while, then a sample starts afresh.
            if round % 8 == 0 || current.is_empty() {
                current = samples[rng.below(samples.len() as u64) as usize].clone();
            }
            let other = &samples[rng.below(samples.len() as u64) as usize];
            mutate(&mut current, other, &rng);
            let outcome = catch_unwind(AssertUnwindSafe(|| (target.run)(&current)));
            assert!(
                outcome.is_ok(),
                "{} panicked in round {round} of AEGISFS_FUZZ_SEED={seed} on {:02x?}",
                target.name,
                current
            );
        }
    }
}

/// Writes the samples into the corpus, where there is no such file yet: what is there is never replaced.
#[test]
#[ignore = "changes the corpus; run it after a sample was added"]
fn write_samples() {
    for target in TARGETS {
        fs::create_dir_all(folder(target)).expect("a folder can be made");
        for (number, sample) in (target.samples)().into_iter().enumerate() {
            let path = folder(target).join(format!("valid-{number}"));
            if !path.exists() {
                fs::write(path, sample).expect("a file can be written");
            }
        }
    }
}
