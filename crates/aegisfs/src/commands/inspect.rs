//! inspect: what stands on a device that is not mounted. Nothing is written.
//!
//! For people who debug, or who write another reader and want something to compare with.

mod segments;

use crate::cli::InspectArgs;
use crate::failure::{Exit, Failure};
use crate::{devices, output};
use aegisfs_base::{DeviceIndex, SegmentId, SlotIndex, SystemClock, SystemRng};
use aegisfs_chunk::Codec;
use aegisfs_format::map::MapOwner;
use aegisfs_format::superblock::{DeviceEntry, INCOMPAT_KNOWN, Membership, SUPERBLOCK_VERSION};
use aegisfs_pool::{Opening, Pool};
use aegisfs_store::{KeySpace, Recovered, Store, StoreOptions};
use serde_json::{Value, json};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

// A superblock with a bit that is not known is refused, so while none is known none is set.
const _: () = assert!(INCOMPAT_KNOWN == 0);

/// An answer as it grows, for programs and for people.
struct Answer {
    json: Value,
    lines: Vec<String>,
    damaged: bool,
}

impl Answer {
    fn new(device: &Path) -> Self {
        let mut json = json!({});
        output::put_path(&mut json, "device", device);
        Self { json, lines: Vec::new(), damaged: false }
    }

    /// Prints what there is and, if that is not all, why.
    fn print(mut self, as_json: bool, outcome: Result<(), Failure>) -> ExitCode {
        let code = match (&outcome, self.damaged) {
            (Err(failure), _) => failure.exit.into(),
            (Ok(()), true) => Exit::Damage.into(),
            (Ok(()), false) => ExitCode::SUCCESS,
        };
        self.json["damaged"] = self.damaged.into();
        if let (Err(failure), true) = (&outcome, as_json) {
            self.json["error"] = failure.json();
        }
        output::print(as_json, self.json, &self.lines);
        match outcome {
            Err(failure) if !as_json => failure.report(false),
            _ => code,
        }
    }
}

/// Shows a device, or one of its segments.
pub(crate) fn run(args: &InspectArgs, as_json: bool) -> Result<ExitCode, Failure> {
    let members = devices::open_members(&devices::resolve_all(&args.devices)?, true)?;
    let (pool, opening) = devices::open_pool_on(&members, true, true)?;
    let mut answer = Answer::new(&members[0].path);
    if let Some(number) = args.segment {
        let (store, _) = open_store(&pool)?;
        return segments::dump(&store, SegmentId(number), answer, as_json);
    }
    describe_superblock(&mut answer, &pool, &opening);
    describe_members(&mut answer, &pool);
    let outcome = open_store(&pool).and_then(|(store, recovered)| {
        describe_recovery(&mut answer, &recovered);
        describe_slots(&mut answer, &pool);
        describe_key_spaces(&mut answer, &store)?;
        Ok(store)
    });
    match outcome {
        Ok(store) if args.segments => segments::list(&store, answer, as_json),
        outcome => Ok(answer.print(as_json, outcome.map(|_| ()))),
    }
}

fn open_store(pool: &Arc<Pool>) -> Result<(Store, Recovered), Failure> {
    let options =
        StoreOptions { read_only: true, workers: 0, chunk_cache_bytes: 1 << 20, ..StoreOptions::default() };
    let clock = Arc::new(SystemClock::default());
    Ok(aegisfs_store::open(Arc::clone(pool), &options, clock, &SystemRng::new()?)?)
}

fn describe_superblock(answer: &mut Answer, pool: &Pool, opening: &Opening) {
    let block = pool.superblock();
    let own = &block.devices[usize::from(block.device.0)];
    let newest = format!("{:#018x}", pool.incarnation().0);
    answer.json["superblock"] = json!({
        "pool": block.pool.to_string(),
        "device": own.uuid.to_string(),
        "device_index": block.device.0,
        "label": block.label,
        "version": SUPERBLOCK_VERSION,
        "compat": block.compat,
        "ro_compat": block.ro_compat,
        "incompat": INCOMPAT_KNOWN,
        "generation": block.generation.0,
        "created_ns": block.created.0,
        "dirty": opening.dirty,
        "places_damaged": opening.superblocks_damaged,
        "incarnations": block.incarnations.len(),
        "incarnation": newest,
        "slot_bytes": block.slot_bytes,
        "shards_data": block.shards_data,
        "shards_parity": block.shards_parity,
        "metadata_copies": block.metadata_copies,
        "log_copies": block.log_copies,
        "codec": codec(block.compression.0),
        "codec_level": block.compression.1,
    });
    let state = if opening.dirty { "not unmounted the last time" } else { "unmounted in order" };
    answer.lines = vec![
        "superblock".into(),
        format!("  pool          {}", block.pool),
        format!("  device        {}, number {}", own.uuid, block.device),
        format!("  label         {}", block.label),
        format!(
            "  version       {SUPERBLOCK_VERSION}; features compat {:#x}, ro_compat {:#x}, incompat {:#x}",
            block.compat, block.ro_compat, INCOMPAT_KNOWN
        ),
        format!("  generation    {}, {state}", block.generation),
        format!("  incarnations  {} remembered, the newest {newest}", block.incarnations.len()),
        format!(
            "  copies        {} of data, {} of metadata, {} of the log",
            block.shards_data + block.shards_parity,
            block.metadata_copies,
            block.log_copies
        ),
        format!("  compression   {}, level {}", codec(block.compression.0), block.compression.1),
    ];
    // As in a check this is no damage that is left: the next mount mends it.
    if opening.superblocks_damaged > 0 {
        let count = opening.superblocks_damaged;
        answer
            .lines
            .push(format!("  note: {count} of its places do not verify; the next mount writes them anew"));
    }
}

fn codec(number: u8) -> String {
    Codec::from_raw(number).map_or_else(|_| format!("codec {number}"), |codec| codec.to_string())
}

fn describe_members(answer: &mut Answer, pool: &Pool) {
    let devices = pool.superblock().devices;
    answer.lines.push("members".into());
    let mut members = Vec::new();
    for (index, entry) in devices.iter().enumerate() {
        let present = pool.readable((DeviceIndex(index as u16), SlotIndex(0)));
        let (state, out_since) = state_of(entry, present);
        let health = entry.health.name();
        let mut member = json!({
            "index": index,
            "uuid": entry.uuid.to_string(),
            "state": state,
            "out_since": out_since,
            "health": health,
            "tier": entry.tier,
            "failure_domain": entry.failure_domain,
            "bytes": entry.bytes,
            "slots": entry.slots,
        });
        let path = std::ffi::OsStr::from_bytes(&entry.path);
        output::put_path(&mut member, "path", Path::new(path));
        answer.lines.push(format!(
            "  {index:<3} {}  {state}, {health}, {} bytes, {} slots, last seen as {}",
            entry.uuid,
            entry.bytes,
            entry.slots,
            path.to_string_lossy()
        ));
        members.push(member);
    }
    answer.json["members"] = members.into();
}

/// Whether a member takes part, and since which generation it does not.
fn state_of(entry: &DeviceEntry, present: bool) -> (&'static str, Option<u64>) {
    match entry.membership {
        Membership::Out { since } => ("out", Some(since.0)),
        Membership::In if present => ("in", None),
        Membership::In => ("missing", None),
    }
}

fn describe_recovery(answer: &mut Answer, recovered: &Recovered) {
    answer.json["log_records_replayed"] = recovered.records.into();
    answer.json["log_damage"] = recovered.read_only.clone().into();
    if recovered.records > 0 {
        answer.lines.push(format!("log: {} records replayed in memory", recovered.records));
    }
    if let Some(reason) = &recovered.read_only {
        answer.damaged = true;
        answer.lines.push(format!("DAMAGED: {reason}"));
    }
}

fn describe_slots(answer: &mut Answer, pool: &Pool) {
    let space = pool.space();
    let mapped = pool.mapped_slots();
    let log = mapped.iter().filter(|entry| entry.owner == MapOwner::Log).count() as u64;
    let databases = mapped.len() as u64 - log;
    let segments = space.slots - space.free - space.freeing - mapped.len() as u64;
    answer.json["slots"] = json!({
        "all": space.slots,
        "free": space.free,
        "freeing": space.freeing,
        "segments": segments,
        "databases": databases,
        "log": log,
    });
    answer.lines.push(format!(
        "slots of {} bytes: {} free, {} segments, {} databases, {} log; {} in all",
        pool.slot_bytes(),
        space.free + space.freeing,
        segments,
        databases,
        log,
        space.slots
    ));
}

fn describe_key_spaces(answer: &mut Answer, store: &Store) -> Result<(), Failure> {
    let metadata = store.key_spaces()?;
    answer.json["metadata"] = tables(&metadata);
    answer.lines.push("metadata (database 0)".into());
    answer.lines.extend(metadata.iter().map(table_line));
    answer.lines.push("dedup (database 1)".into());
    match store.dedup_key_spaces() {
        Ok(dedup) => {
            answer.json["dedup"] = tables(&dedup);
            answer.lines.extend(dedup.iter().map(table_line));
        }
        // Derived data: the next mount makes it anew.
        Err(error) => {
            let note = format!("it cannot be read and is made anew at the next mount: {error}");
            answer.lines.push(format!("  note: {note}"));
            answer.json["dedup"] = json!([]);
            answer.json["dedup_note"] = note.into();
        }
    }
    Ok(())
}

fn tables(spaces: &[KeySpace]) -> Value {
    let table = |space: &KeySpace| {
        json!({
            "table": space.number,
            "name": space.name,
            "entries": space.entries,
            "bytes": space.bytes,
        })
    };
    spaces.iter().map(table).collect()
}

fn table_line(space: &KeySpace) -> String {
    format!(
        "  t{:02} {:<11} {:>12} entries {:>15} bytes",
        space.number, space.name, space.entries, space.bytes
    )
}
