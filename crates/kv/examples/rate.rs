//! How fast the redb engine is on memory: what the tree costs, without any device.
#![expect(clippy::print_stdout, reason = "an example prints")]

use aegisfs_base::{Rng, SeededRng};
use aegisfs_kv::{KvError, MemoryBacking, OrderedKv, RedbKv, TableId};
use std::time::Instant;

const ENTRIES: u64 = 100_000;
const TABLE: TableId = TableId(1);

fn rate(what: &str, count: u64, start: Instant) {
    let seconds = start.elapsed().as_secs_f64();
    println!("{what:<44} {:>10.0}/s   {:.1} ms", count as f64 / seconds, seconds * 1e3);
}

fn key(number: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&number.to_be_bytes());
    key
}

fn put_all(kv: &RedbKv, numbers: impl Iterator<Item = u64>) -> Result<(), KvError> {
    let mut transaction = kv.begin()?;
    for number in numbers {
        transaction.put(TABLE, &key(number), &[number as u8; 64])?;
    }
    transaction.commit()
}

fn main() -> Result<(), KvError> {
    let backing = MemoryBacking::new();
    let kv = RedbKv::create(backing.clone(), 256 << 20)?;
    let start = Instant::now();
    put_all(&kv, 0..ENTRIES)?;
    rate("ascending puts, one commit", ENTRIES, start);
    let start = Instant::now();
    put_all(&kv, (0..ENTRIES).map(|number| number * 3))?;
    rate("ascending puts into them, one commit", ENTRIES, start);
    let start = Instant::now();
    for number in 0..200 {
        put_all(&kv, std::iter::once(number))?;
    }
    rate("commits of one put", 200, start);

    let rng = SeededRng::new(1);
    let snapshot = kv.snapshot()?;
    let start = Instant::now();
    let mut found = 0_u64;
    for _ in 0..1_000_000 {
        found += u64::from(snapshot.get_with(TABLE, &key(rng.below(ENTRIES)), &mut |_| {})?);
    }
    rate("random gets, one thread", found, start);
    let start = Instant::now();
    let mut seen = 0;
    snapshot.scan(TABLE, &[], None, &mut |_, _| {
        seen += 1;
        std::ops::ControlFlow::Continue(())
    })?;
    rate("entries scanned", seen, start);
    let start = Instant::now();
    for _ in 0..10_000 {
        kv.snapshot()?.get(TABLE, &key(1))?;
    }
    rate("a new snapshot for every get", 10_000, start);
    println!("usage {:?}, backing {} bytes", snapshot.usage(TABLE)?, backing.to_bytes().len());
    drop(snapshot);

    drop(kv);
    let start = Instant::now();
    let kv = RedbKv::open(backing.clone(), 256 << 20)?;
    rate("reopening after a drop", 1, start);
    let start = Instant::now();
    kv.close();
    rate("closing", 1, start);
    let start = Instant::now();
    let mut kv = RedbKv::open(backing, 256 << 20)?;
    rate("reopening after closing", 1, start);
    let start = Instant::now();
    assert!(kv.check()?);
    rate("checking", 1, start);
    Ok(())
}
