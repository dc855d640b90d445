//! What the daemon answers about scrubs, and what it is told.

use aegisfs_format::value::{ScrubCounts, ScrubState, When};
use aegisfs_store::{Intensity, Store, StoreError};
use serde_json::{Value, json};

/// How orders about the schedule begin.
const SCHEDULE: &str = "schedule/";

/// How far a scrub is, or what the last one found.
pub(super) fn describe(store: &Store) -> Result<Value, StoreError> {
    let intensity = store.scrub_intensity()?.name();
    let schedule = describe_schedule(store)?;
    let Some(scrub) = store.scrub_status()? else {
        return Ok(json!({ "state": null, "intensity": intensity, "schedule": schedule }));
    };
    let is_over = matches!(scrub.state, ScrubState::Done | ScrubState::Cancelled);
    let counts = scrub.counts;
    Ok(json!({
        "state": scrub.state.name(),
        "repairs": scrub.repairs,
        "intensity": intensity,
        "schedule": schedule,
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
        "references_counted": store.references_counted().map(|counted| counted.chunks),
        "references_wrong": store.references_counted().map(|counted| counted.wrong),
        "verdict": verdict(&counts),
        "advice": advice(&counts, scrub.repairs),
    }))
}

/// What it comes to: everything has all of its copies, something lacks one, or something is gone.
const fn verdict(counts: &ScrubCounts) -> &'static str {
    match counts {
        ScrubCounts { lost, .. } if *lost > 0 => "unrecoverable",
        ScrubCounts { damaged, repaired, .. } if *damaged > *repaired => "degraded",
        _ => "healthy",
    }
}

/// What to do about it, if anything.
const fn advice(counts: &ScrubCounts, repairs: bool) -> Option<&'static str> {
    match counts {
        ScrubCounts { lost, .. } if *lost > 0 => Some(
            "aegisfs damage list names what files lack; aegisfs damage heal gives it back from any copy of them",
        ),
        ScrubCounts { damaged, repaired, .. } if *damaged > *repaired && !repairs => {
            Some("aegisfs scrub start without --dry-run mends what is damaged")
        }
        ScrubCounts { damaged, repaired, .. } if *damaged > *repaired => {
            Some("not everything could be written anew; aegisfs disk list shows whether a device fails")
        }
        ScrubCounts { damaged, .. } if *damaged > 0 => {
            Some("what was damaged is mended; aegisfs disk list shows which device it was on")
        }
        _ => None,
    }
}

fn describe_schedule(store: &Store) -> Result<Value, StoreError> {
    let Some(schedule) = store.scrub_schedule()? else { return Ok(Value::Null) };
    let mut answer = json!({
        "intensity": Intensity::ALL.get(usize::from(schedule.intensity)).map(|intensity| intensity.name()),
        "repairs": schedule.repairs,
        "next_unix_seconds": store.next_scrub()?.map(aegisfs_base::Timestamp::seconds),
    });
    match schedule.when {
        When::Every { seconds } => answer["every_seconds"] = seconds.into(),
        When::Calendar { weekdays, month_day, minute } => {
            answer["weekdays"] = weekdays.into();
            answer["month_day"] = month_day.into();
            answer["minute"] = minute.into();
        }
    }
    Ok(answer)
}

/// `clear`, or `every/SECONDS` or `calendar/WEEKDAYS/DAY/MINUTE` with `/INTENSITY/mend` or `/INTENSITY/look` behind it.
fn read_schedule(order: &str) -> Result<Option<(When, Intensity, bool)>, String> {
    let words: Vec<&str> = order.split('/').collect();
    let unknown = || format!("'{order}' is no schedule");
    let (when, how) = match words[..] {
        ["clear"] => return Ok(None),
        ["every", seconds, ref how @ ..] => {
            (When::Every { seconds: seconds.parse().map_err(|_| unknown())? }, how)
        }
        ["calendar", weekdays, month_day, minute, ref how @ ..] => {
            let when = When::Calendar {
                weekdays: weekdays.parse().map_err(|_| unknown())?,
                month_day: month_day.parse().map_err(|_| unknown())?,
                minute: minute.parse().map_err(|_| unknown())?,
            };
            (when, how)
        }
        _ => return Err(unknown()),
    };
    let (intensity, mends) = match how {
        [intensity, "mend"] => (*intensity, true),
        [intensity, "look"] => (*intensity, false),
        _ => return Err(unknown()),
    };
    let intensity = Intensity::ALL.into_iter().find(|known| known.name() == intensity).ok_or_else(unknown)?;
    if when.is_valid() { Ok(Some((when, intensity, mends))) } else { Err(unknown()) }
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
        _ if order.starts_with(SCHEDULE) => {
            let schedule = read_schedule(&order[SCHEDULE.len()..])?;
            store.set_scrub_schedule(schedule).map_err(|error| error.to_string())
        }
        _ => {
            let wanted = order.strip_prefix("intensity/");
            let known = Intensity::ALL.into_iter().find(|known| Some(known.name()) == wanted);
            let known = known.ok_or_else(|| format!("the scrubber knows no order '{order}'"))?;
            store.set_scrub_intensity(known).map_err(|error| error.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_about_the_schedule_are_read() {
        let every = When::Every { seconds: 3600 };
        assert_eq!(read_schedule("every/3600/low/mend"), Ok(Some((every, Intensity::Low, true))));
        let calendar = When::Calendar { weekdays: 64, month_day: 0, minute: 120 };
        assert_eq!(
            read_schedule("calendar/64/0/120/high/look"),
            Ok(Some((calendar, Intensity::High, false)))
        );
        assert_eq!(read_schedule("clear"), Ok(None));
        for wrong in [
            "",
            "every",
            "every/59/low/mend",
            "every/3600/low",
            "every/3600/most/mend",
            "calendar/1/2/low/mend",
        ] {
            assert!(read_schedule(wrong).is_err(), "{wrong}");
        }
    }
    #[test]
    fn what_a_scrub_found_comes_to_one_of_three_and_advice() {
        let told = |damaged, repaired, lost| {
            let counts = ScrubCounts { damaged, repaired, lost, ..ScrubCounts::default() };
            (verdict(&counts), advice(&counts, true))
        };
        assert_eq!(told(0, 0, 0), ("healthy", None));
        assert_eq!(told(3, 3, 0).0, "healthy");
        assert!(told(3, 3, 0).1.unwrap().contains("which device"));
        assert_eq!(told(3, 2, 0).0, "degraded");
        assert_eq!(told(3, 2, 1).0, "unrecoverable");
        assert!(told(3, 2, 1).1.unwrap().contains("damage heal"));
        let looked = ScrubCounts { damaged: 1, ..ScrubCounts::default() };
        assert!(advice(&looked, false).unwrap().contains("--dry-run"));
    }
}
