//! What the daemon answers about scrubs, and what it is told.

use aegisfs_format::value::ScrubState;
use aegisfs_store::{Intensity, Store, StoreError};
use serde_json::{Value, json};

/// How far a scrub is, or what the last one found.
pub(super) fn describe(store: &Store) -> Result<Value, StoreError> {
    let intensity = store.scrub_intensity().name();
    let Some(scrub) = store.scrub_status()? else {
        return Ok(json!({ "state": null, "intensity": intensity }));
    };
    let is_over = matches!(scrub.state, ScrubState::Done | ScrubState::Cancelled);
    let counts = scrub.counts;
    Ok(json!({
        "state": scrub.state.name(),
        "repairs": scrub.repairs,
        "intensity": intensity,
        "started_unix_seconds": scrub.started.seconds(),
        "ended_unix_seconds": is_over.then(|| scrub.ended.seconds()),
        "seconds": is_over.then(|| scrub.ended.seconds().saturating_sub(scrub.started.seconds()).max(0)),
        "next_segment": scrub.cursor.0,
        "segments": counts.segments,
        "cells": counts.cells,
        "bytes": counts.bytes,
        "pages": counts.pages,
        "damaged": counts.damaged,
        "repaired": counts.repaired,
        "lost": counts.lost,
    }))
}

/// Does what the scrubber is told; an error says why not.
pub(super) fn order(store: &Store, order: &str) -> Result<(), String> {
    let nothing = || Err("no scrub is under way".to_owned());
    let told = |state| store.order_scrub(state).map_err(|error| error.to_string());
    let begin = |repairs| store.start_scrub(repairs).map_err(|error| error.to_string());
    match order {
        "start" | "start-dry" if !begin(order == "start")? => Err("a scrub is under way already".to_owned()),
        "start" | "start-dry" => Ok(()),
        "pause" if !told(ScrubState::Paused)? => nothing(),
        "resume" if !told(ScrubState::Running)? => nothing(),
        "cancel" if !told(ScrubState::Cancelled)? => nothing(),
        "pause" | "resume" | "cancel" => Ok(()),
        _ => {
            let wanted = order.strip_prefix("intensity/");
            let known = Intensity::ALL.into_iter().find(|known| Some(known.name()) == wanted);
            store.set_scrub_intensity(known.ok_or_else(|| format!("the scrubber knows no order '{order}'"))?);
            Ok(())
        }
    }
}
