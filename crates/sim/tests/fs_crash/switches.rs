//! Each safeguard taken out in turn: the suite must notice.
//!
//! `LogChain` and `LogIncarnation` cover each other; `old_records` takes out both.

use crate::history::{History, Shape};
use crate::oracle;
use aegisfs_base::sabotage::{Edge, without};
use aegisfs_sim::{Failure, Plan, explore};

/// Points within which a missing safeguard must show.
const POINTS_MAX: u64 = 1000;

/// Runs histories without a safeguard until one fails; says where.
fn first_failure(edge: Edge, shape: &Shape) -> Option<Failure> {
    without(edge, || {
        let mut spent = 0;
        for seed in 0.. {
            if spent >= POINTS_MAX {
                return None;
            }
            // Without a safeguard even the live history may go wrong; that says nothing about cuts.
            let Ok(history) = std::panic::catch_unwind(|| History::run(shape, seed)) else {
                spent += 1;
                continue;
            };
            let plan = Plan { seed, budget: 100, only: None };
            let outcome =
                explore(&history.world.trace(), &plan, |world, point| oracle::judge(&history, world, point));
            match outcome {
                Ok(passed) => spent += passed,
                Err(failure) => return Some(Failure { passed: spent + failure.passed, ..failure }),
            }
        }
        None
    })
}

fn must_show(edges: &[Edge], shape: &Shape) {
    let silent: Vec<Edge> = edges
        .iter()
        .copied()
        .filter(|edge| match first_failure(*edge, shape) {
            Some(failure) => {
                let reason = failure.reason.lines().next().unwrap_or_default();
                println!(
                    "{edge:?}: seed {}, point {}, after {} points: {reason}",
                    failure.seed, failure.point, failure.passed
                );
                false
            }
            None => true,
        })
        .collect();
    assert!(silent.is_empty(), "taken out, these did not show within {POINTS_MAX} points: {silent:?}");
}

#[test]
fn every_safeguard_of_log_and_rows_is_needed() {
    let edges = [
        Edge::LogFlush,
        Edge::LogChecksum,
        Edge::LogTrimAfterCheckpoint,
        Edge::TailRowsVerified,
        Edge::RowsBeforeRecord,
        Edge::PageFlush,
        Edge::RenameFlushesSource,
        Edge::SealAtRecovery,
        Edge::ChunkIdsNeverReused,
    ];
    must_show(&edges, &Shape { operations: 60, ..Shape::default() });
}

#[test]
fn freed_slots_wait_for_the_checkpoint() {
    let shape =
        Shape { operations: 200, large: true, device_bytes: 8 << 20, log_pieces: 2, ..Shape::default() };
    must_show(&[Edge::SlotsFreedAfterCheckpoint, Edge::SlotsTrimmedAfterCheckpoint], &shape);
}

/// What the cleaner relies on: its rows are there before the record that mentions them, and the old slots are nobody's
/// until the checkpoint.
#[test]
fn the_cleaner_needs_its_safeguards() {
    must_show(
        &[
            Edge::RowsBeforeRecord,
            Edge::TailRowsVerified,
            Edge::SlotsFreedAfterCheckpoint,
            Edge::SlotsTrimmedAfterCheckpoint,
        ],
        &crate::WITH_CLEANING,
    );
}

#[test]
fn what_is_marked_sync_has_to_be_synced() {
    must_show(&[Edge::SyncFlag], &crate::flags::WITH_FLAGS);
}
