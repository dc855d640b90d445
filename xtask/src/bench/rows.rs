//! The rows: each does one kind of work on a target and says how fast it went.

use super::targets::Target;
use anyhow::Result;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::time::Instant;

/// One kind of work.
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) unit: &'static str,
    /// Whether it reads back what was written, so that a filesystem without data is left out.
    pub(super) needs_data: bool,
    /// Returns units per second; larger is better.
    pub(super) run: fn(&Target, usize) -> Result<f64>,
}

/// All rows, in the order in which they stand on what came before.
pub(super) const ROWS: [Row; 11] = [
    Row { name: "write, half compressible", unit: "MB/s", needs_data: false, run: write_half },
    Row { name: "write, incompressible", unit: "MB/s", needs_data: false, run: write_noise },
    Row { name: "read, cold", unit: "MB/s", needs_data: true, run: read_cold },
    Row { name: "read, warm", unit: "MB/s", needs_data: true, run: read_warm },
    Row { name: "random 4 KiB reads, cold", unit: "1/s", needs_data: true, run: random_reads },
    Row { name: "4 KiB write and fsync", unit: "1/s", needs_data: false, run: synced_writes },
    Row { name: "create 4 KiB files and sync", unit: "1/s", needs_data: false, run: create_files },
    Row { name: "stat them", unit: "1/s", needs_data: false, run: stat_files },
    Row { name: "read them, cold", unit: "1/s", needs_data: true, run: read_files },
    Row { name: "unlink them", unit: "1/s", needs_data: false, run: unlink_files },
    Row { name: "the same stream again", unit: "MB/s", needs_data: true, run: write_again },
];

const STREAM_BYTES: usize = 1 << 30;
const CALL_BYTES: usize = 1 << 20;
const FILES: usize = 10_000;
const RANDOM_READS: usize = 5_000;
const SYNCED_WRITES: usize = 1_000;

/// A small generator: speed matters, quality does not.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn fill(&mut self, buffer: &mut [u8]) {
        for piece in buffer.chunks_mut(8) {
            piece.copy_from_slice(&self.next().to_le_bytes()[..piece.len()]);
        }
    }
}

/// A megabyte of which the second half compresses well.
fn block(noise: &mut Noise, compressible: bool) -> Vec<u8> {
    let mut block = vec![0; CALL_BYTES];
    let half = if compressible { CALL_BYTES / 2 } else { CALL_BYTES };
    noise.fill(&mut block[..half]);
    let words = format!("{:016x} the quick brown fox jumps over the lazy dog\n", noise.next());
    for (place, byte) in block[half..].iter_mut().zip(words.bytes().cycle()) {
        *place = byte;
    }
    block
}

fn stream(target: &Target, name: &str, seed: u64, compressible: bool) -> Result<f64> {
    let path = target.mount.join(name);
    let _ = fs::remove_file(&path);
    target.sync()?;
    // Made before the clock runs; one fresh block in eight is enough to keep dedup out of it when all differ.
    let mut noise = Noise(seed);
    let blocks: Vec<Vec<u8>> =
        (0..STREAM_BYTES / CALL_BYTES).map(|_| block(&mut noise, compressible)).collect();
    let start = Instant::now();
    let mut file = File::create(&path)?;
    for block in &blocks {
        file.write_all(block)?;
    }
    file.sync_all()?;
    Ok(STREAM_BYTES as f64 / 1e6 / start.elapsed().as_secs_f64())
}

fn write_half(target: &Target, round: usize) -> Result<f64> {
    stream(target, "half", 0x1234_5678 + round as u64, true)
}

fn write_noise(target: &Target, round: usize) -> Result<f64> {
    stream(target, "noise", 0x8765_4321 + round as u64, false)
}

fn write_again(target: &Target, _: usize) -> Result<f64> {
    // The seed of the last round of the row above: this content is stored already.
    stream(target, "again", 0x8765_4321 + 2, false)
}

fn read_stream(target: &Target) -> Result<f64> {
    let mut file = File::open(target.mount.join("half"))?;
    let mut buffer = vec![0; CALL_BYTES];
    let start = Instant::now();
    let mut total = 0;
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(total as f64 / 1e6 / start.elapsed().as_secs_f64());
        }
        total += count;
    }
}

fn read_cold(target: &Target, _: usize) -> Result<f64> {
    target.chill()?;
    read_stream(target)
}

fn read_warm(target: &Target, _: usize) -> Result<f64> {
    read_stream(target)?;
    read_stream(target)
}

fn random_reads(target: &Target, round: usize) -> Result<f64> {
    target.chill()?;
    let file = File::open(target.mount.join("noise"))?;
    let mut noise = Noise(99 + round as u64);
    let mut buffer = [0; 4096];
    let start = Instant::now();
    for _ in 0..RANDOM_READS {
        let at = noise.next() % (STREAM_BYTES as u64 / 4096) * 4096;
        file.read_exact_at(&mut buffer, at)?;
    }
    Ok(RANDOM_READS as f64 / start.elapsed().as_secs_f64())
}

fn synced_writes(target: &Target, round: usize) -> Result<f64> {
    let path = target.mount.join("synced");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
    let mut noise = Noise(7 + round as u64);
    let mut buffer = [0; 4096];
    let start = Instant::now();
    for n in 0..SYNCED_WRITES {
        noise.fill(&mut buffer);
        file.write_all_at(&buffer, n as u64 * 4096)?;
        file.sync_data()?;
    }
    Ok(SYNCED_WRITES as f64 / start.elapsed().as_secs_f64())
}

fn create_files(target: &Target, round: usize) -> Result<f64> {
    let folder = target.mount.join(format!("files{round}"));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir(&folder)?;
    let mut noise = Noise(1000 + round as u64);
    let mut buffer = [0; 4096];
    let start = Instant::now();
    for n in 0..FILES {
        noise.fill(&mut buffer);
        File::create(folder.join(n.to_string()))?.write_all(&buffer)?;
    }
    target.sync()?;
    Ok(FILES as f64 / start.elapsed().as_secs_f64())
}

fn each_file(target: &Target, round: usize, work: impl Fn(&std::path::Path) -> Result<()>) -> Result<f64> {
    let folder = target.mount.join(format!("files{round}"));
    let start = Instant::now();
    for n in 0..FILES {
        work(&folder.join(n.to_string()))?;
    }
    Ok(FILES as f64 / start.elapsed().as_secs_f64())
}

fn stat_files(target: &Target, round: usize) -> Result<f64> {
    each_file(target, round, |path| Ok(fs::metadata(path).map(|_| ())?))
}

fn read_files(target: &Target, round: usize) -> Result<f64> {
    target.chill()?;
    each_file(target, round, |path| Ok(fs::read(path).map(|_| ())?))
}

fn unlink_files(target: &Target, round: usize) -> Result<f64> {
    if !target.mount.join(format!("files{round}/0")).exists() {
        create_files(target, round)?;
    }
    each_file(target, round, |path| Ok(fs::remove_file(path)?))
}
