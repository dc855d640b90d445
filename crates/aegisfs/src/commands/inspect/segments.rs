//! Segments: one line for each, or one of them with every row and chunk.

use super::{Answer, codec};
use crate::failure::{Exit, Failure};
use crate::output::Listing;
use aegisfs_base::SegmentId;
use aegisfs_format::value::{Segment, SegmentState};
use aegisfs_store::{CellSeen, ChunkSeen, Seen, Store};
use serde_json::{Value, json};
use std::io;
use std::ops::ControlFlow;
use std::process::ExitCode;

/// Everything, with a line for each segment.
pub(super) fn list(store: &Store, answer: Answer, as_json: bool) -> Result<ExitCode, Failure> {
    let mut lines = answer.lines;
    lines.push(format!(
        "{:>8} {:<6} {:>6} {:>12} {:>12}  slots (device:slot)",
        "segment", "state", "rows", "live", "written"
    ));
    let mut listing = Listing::begin(as_json, answer.json, &lines, "segments")?;
    let mut written = Ok(());
    let read = store.each_segment(&mut |id, segment| {
        let line = format!(
            "{:>8} {:<6} {:>6} {:>12} {:>12}  {}",
            id,
            state(&segment),
            segment.rows,
            segment.live_bytes,
            segment.written_bytes,
            slots(&segment)
        );
        keep_on(listing.item(&segment_json(id, &segment), &[line]), &mut written)
    });
    written?;
    finish(listing, answer.damaged, read.map_err(Failure::from), as_json)
}

/// Notes a failure to write and says whether to go on.
fn keep_on(flow: io::Result<ControlFlow<()>>, written: &mut io::Result<()>) -> ControlFlow<()> {
    flow.unwrap_or_else(|error| {
        *written = Err(error);
        ControlFlow::Break(())
    })
}

/// Ends a list, also one that could not be read to its end.
fn finish(
    listing: Listing,
    damaged: bool,
    outcome: Result<(), Failure>,
    as_json: bool,
) -> Result<ExitCode, Failure> {
    let mut more = json!({ "damaged": damaged });
    if let Err(failure) = &outcome {
        more["error"] = failure.json();
    }
    listing.end(more.as_object().expect("made so"), &[])?;
    match outcome {
        Err(failure) if as_json => Ok(failure.exit.into()),
        Err(failure) => Err(failure),
        Ok(()) if damaged => Ok(Exit::Damage.into()),
        Ok(()) => Ok(ExitCode::SUCCESS),
    }
}

fn state(segment: &Segment) -> &'static str {
    match segment.state {
        SegmentState::Open => "open",
        SegmentState::Sealed => "sealed",
    }
}

fn slots(segment: &Segment) -> String {
    let places = segment.placements.iter();
    places.map(|(device, slot)| format!("{device}:{slot}")).collect::<Vec<_>>().join(" ")
}

fn segment_json(id: SegmentId, segment: &Segment) -> Value {
    let places = segment.placements.iter();
    let slots: Vec<Value> =
        places.map(|(device, slot)| json!({ "device": device.0, "slot": slot.0 })).collect();
    json!({
        "segment": id.0,
        "state": state(segment),
        "shards_data": segment.shards.0,
        "shards_parity": segment.shards.1,
        "policy": segment.policy.0,
        "tier": segment.tier,
        "rows": segment.rows,
        "live_bytes": segment.live_bytes,
        "written_bytes": segment.written_bytes,
        "opened": segment.opened,
        "slots": slots,
    })
}

/// One segment with everything in it.
pub(super) fn dump(store: &Store, id: SegmentId, answer: Answer, as_json: bool) -> Result<ExitCode, Failure> {
    let Some(segment) = store.segment(id)? else {
        let message = format!("there is no segment {id}");
        return Err(Failure::new("E_NOT_FOUND", Exit::NotFound, message)
            .hint("aegisfs inspect --segments lists those there are"));
    };
    let mut json = answer.json;
    json["segment"] = segment_json(id, &segment);
    let head = format!(
        "segment {id}: {}, {} rows, {} bytes live of {} written",
        state(&segment),
        segment.rows,
        segment.live_bytes,
        segment.written_bytes
    );
    let mut listing = Listing::begin(as_json, json, &[head], "found")?;
    let mut written = Ok(());
    let mut damaged = false;
    let read = store.walk_segment(id, &segment, &mut |seen| {
        damaged |= seen.is_damage();
        keep_on(listing.item(&seen_json(&seen), &seen_lines(&seen)), &mut written)
    });
    written?;
    finish(listing, damaged, read.map_err(Failure::from), as_json)
}

fn seen_json(seen: &Seen) -> Value {
    match seen {
        Seen::Shard(shard) => json!({
            "kind": "slot",
            "shard": shard.number,
            "device": shard.place.0.0,
            "slot": shard.place.1.0,
            "problem": shard.problem,
        }),
        Seen::Cell(cell) => cell_json(cell),
        Seen::Gap(gap) => json!({
            "kind": "gap",
            "slot_offset": gap.slot_offset,
            "bytes": gap.bytes,
            "chunks": gap.chunks,
            "damaged": gap.damaged,
            "problem": gap.reason,
        }),
        Seen::Missing { chunks } => json!({ "kind": "missing", "chunks": chunks }),
    }
}

fn cell_json(cell: &CellSeen) -> Value {
    let chunks = cell.chunks.iter().map(|chunk| {
        json!({
            "chunk": chunk.entry.chunk.0,
            "hash": hash_head(&chunk.entry.hash),
            "frame_offset": chunk.entry.frame_offset,
            "frame_stored": chunk.entry.frame_stored,
            "frame_plain": chunk.entry.frame_plain,
            "offset_in_frame": chunk.entry.offset_in_frame,
            "plain_bytes": chunk.entry.plain_bytes,
            "codec": codec(chunk.entry.codec),
            "references": chunk.references,
            "problem": chunk.problem,
        })
    });
    json!({
        "kind": "row",
        "row": cell.row.0,
        "cell": cell.cell,
        "slot_offset": cell.slot_offset,
        "cell_bytes": cell.cell_bytes,
        "payload_start": cell.payload_start,
        "payload_bytes": cell.payload_bytes,
        "incarnation": format!("{:#018x}", cell.incarnation.0),
        "problem": cell.problem,
        "chunks": chunks.collect::<Vec<_>>(),
    })
}

/// The first eight bytes of a hash.
fn hash_head(hash: &[u8; 32]) -> String {
    hash[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn seen_lines(seen: &Seen) -> Vec<String> {
    match seen {
        Seen::Shard(shard) => {
            let (device, slot) = shard.place;
            vec![format!("shard {}: slot {slot} of device {device}{}", shard.number, damage(&shard.problem))]
        }
        Seen::Cell(cell) => {
            let mut lines = vec![format!(
                "  row {} at {}: {} bytes, {} of them payload from {}, {} chunks{}",
                cell.row,
                cell.slot_offset,
                cell.cell_bytes,
                cell.payload_bytes,
                cell.payload_start,
                cell.chunks.len(),
                damage(&cell.problem)
            )];
            lines.extend(cell.chunks.iter().map(chunk_line));
            lines
        }
        Seen::Gap(gap) => vec![format!(
            "  {} at {}: {} bytes, {} chunks in use: {}",
            if gap.damaged { "DAMAGED" } else { "nothing" },
            gap.slot_offset,
            gap.bytes,
            gap.chunks,
            gap.reason
        )],
        Seen::Missing { chunks } => vec![format!("  DAMAGED: {chunks} chunks in use were not found")],
    }
}

fn chunk_line(chunk: &ChunkSeen) -> String {
    let entry = &chunk.entry;
    format!(
        "    chunk {} {}  frame {}+{} {} of {} plain, chunk {}+{} in it, references {}{}",
        entry.chunk,
        hash_head(&entry.hash),
        entry.frame_offset,
        entry.frame_stored,
        codec(entry.codec),
        entry.frame_plain,
        entry.offset_in_frame,
        entry.plain_bytes,
        chunk.references,
        damage(&chunk.problem)
    )
}

fn damage(problem: &Option<String>) -> String {
    problem.as_ref().map_or_else(String::new, |problem| format!("  DAMAGED: {problem}"))
}
