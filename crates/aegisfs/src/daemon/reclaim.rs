//! What the daemon answers about room that comes back: cleaning, discards, orphans.

use aegisfs_pool::DeviceTrim;
use aegisfs_store::{OrphanFound, OrphanKind, Store, StoreError};
use serde_json::{Value, json};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// What the cleaner is at.
pub(super) fn cleaning(store: &Store) -> Result<Value, StoreError> {
    let status = store.cleaning_status()?;
    let counters = store.counters();
    let [rows, moved] =
        [&counters.row_bytes, &counters.moved_row_bytes].map(|counter| counter.load(Ordering::Relaxed));
    Ok(json!({
        "intensity": status.intensity.name(),
        "bandwidth_bytes": status.bandwidth,
        "paused": status.paused,
        "running": status.running,
        "requested": status.requested,
        "reclaimable_bytes": status.reclaimable_bytes,
        "candidates": status.candidates,
        "stuck": status.stuck,
        "segments_cleaned": counters.segments_cleaned.load(Ordering::Relaxed),
        "moved_bytes": counters.moved_bytes.load(Ordering::Relaxed),
        "remains_bytes": counters.remains_bytes.load(Ordering::Relaxed),
        "row_bytes": rows,
        "moved_row_bytes": moved,
        "row_amplification": (rows > moved).then(|| rows as f64 / (rows - moved) as f64),
    }))
}

/// What the devices were told to forget.
pub(super) fn trimming(store: &Store) -> Value {
    let devices = store.pool().trim_status();
    let sum = |number: &dyn Fn(&DeviceTrim) -> u64| devices.iter().map(number).sum::<u64>();
    let mut answer = json!({
        "background": store.trim_options().background,
        "requested": store.trim_requested(),
        "problem": store.trim_problem(),
        "waiting_bytes": sum(&|device| device.waiting_bytes),
        "unknown_bytes": sum(&|device| device.unknown_bytes),
        "discarded_bytes": sum(&|device| device.discarded_bytes),
        "calls": sum(&|device| device.calls),
        "failures": sum(&|device| device.failures),
    });
    let one = |device: &DeviceTrim| {
        json!({
            "device": device.name,
            "supported": device.supported,
            "granularity": device.granularity,
            "call_bytes_max": device.bytes_max,
            "waiting_bytes": device.waiting_bytes,
            "unknown_bytes": device.unknown_bytes,
            "discarded_bytes": device.discarded_bytes,
            "calls": device.calls,
            "failures": device.failures,
            "last_failure": device.last_failure,
        })
    };
    answer["devices"] = devices.iter().map(one).collect();
    answer
}

/// What takes room although nothing refers to it.
pub(super) fn orphans(store: &Store) -> Result<Value, StoreError> {
    let report = store.find_orphans()?;
    let mut kinds = serde_json::Map::new();
    for kind in OrphanKind::ALL {
        let of_kind = report.found.iter().filter(|found| found.orphan.kind() == kind);
        let sums = json!({
            "count": of_kind.clone().count(),
            "bytes": of_kind.map(|found| found.bytes).sum::<u64>(),
        });
        kinds.insert(kind.name().to_owned(), sums);
    }
    let orphans: Vec<Value> = report.found.iter().map(describe_orphan).collect();
    Ok(json!({ "orphans": orphans, "kinds": kinds, "more": report.more }))
}

/// Cleans orphans, or says which would be.
pub(super) fn clean_orphans(store: &Store, older_than: Duration, dry_run: bool) -> Result<Value, StoreError> {
    let done = store.clean_orphans(older_than, dry_run)?;
    let orphans: Vec<Value> = done.cleaned.iter().map(describe_orphan).collect();
    Ok(json!({
        "orphans": orphans,
        "dry_run": dry_run,
        "older_than_seconds": older_than.as_secs(),
        "cleaned": done.cleaned.len(),
        "cleaned_bytes": done.cleaned.iter().map(|found| found.bytes).sum::<u64>(),
        "young": done.young,
        "kept": done.kept,
        "spared": done.spared,
    }))
}

fn describe_orphan(found: &OrphanFound) -> Value {
    let kind = found.orphan.kind();
    json!({
        "kind": kind.name(),
        "place": found.orphan.to_string(),
        "bytes": found.bytes,
        "first_seen_unix_seconds": found.first_seen.seconds(),
        "age_seconds": found.age.as_secs(),
        "kept_because": kind.kept_because(),
    })
}
