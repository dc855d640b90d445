//! scrub schedule: scrubs that begin by themselves.

use crate::cli::ScheduleCommand;
use crate::commands::living;
use crate::failure::Failure;
use crate::output;
use aegisfs_base::units::{format_duration, parse_duration};
use serde_json::Value;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Minutes after midnight at which what is due on a day begins, unless somebody says otherwise.
const NIGHT: u16 = 120;
const WEEKDAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// Says when scrubs begin by themselves, or shows it.
pub(crate) fn run(command: &ScheduleCommand, as_json: bool) -> Result<ExitCode, Failure> {
    let (mount, order) = match command {
        ScheduleCommand::Show { mount } => (mount, None),
        ScheduleCommand::Clear { mount } => (mount, Some("clear".to_owned())),
        ScheduleCommand::Set { every, at, intensity, dry_run, mount } => {
            let when = match (every, at) {
                (Some(every), _) => order_every(*every)?,
                (None, at) => order_at(at.as_deref().unwrap_or_default())?,
            };
            let how = if *dry_run { "look" } else { "mend" };
            (mount, Some(format!("{when}/{intensity}/{how}")))
        }
    };
    let daemon = living(mount)?;
    if let Some(order) = order {
        daemon.call("POST", &format!("/v1/scrub/schedule/{order}"))?;
    }
    let schedule = daemon.call("GET", "/v1/scrub")?["schedule"].clone();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let line = describe(&schedule, now);
    output::print(as_json, serde_json::json!({ "schedule": schedule }), &[line]);
    Ok(ExitCode::SUCCESS)
}

/// The same in the words of a roadmap: a time, or days.
///
/// # Errors
/// When it is neither.
pub(crate) fn frequency(words: &str) -> Result<(Option<Duration>, Option<String>), Failure> {
    match parse_duration(words) {
        Some(every) => Ok((Some(every), None)),
        None => order_at(words).map(|_| (None, Some(words.to_owned()))),
    }
}

fn order_every(every: Duration) -> Result<String, Failure> {
    const MIN: Duration = Duration::from_secs(60);
    if every < MIN {
        return Err(Failure::usage(format!("{} is shorter than a minute", format_duration(every))));
    }
    Ok(format!("every/{}", every.as_secs()))
}

/// Days and a time, as the daemon wants them.
fn order_at(words: &str) -> Result<String, Failure> {
    let wrong = || {
        Failure::usage(format!("'{words}' does not say when"))
            .hint("nightly, weekly, monthly, 'Sun 03:30', 'Mon,Thu 22:00', '15 04:00' and '02:00' do, in UTC")
    };
    let text = words.trim().to_lowercase();
    let (weekdays, month_day, minute) = match text.as_str() {
        "nightly" | "daily" => (0, 0, NIGHT),
        "weekly" => (1 << 6, 0, NIGHT),
        "monthly" => (0, 1, NIGHT),
        text => {
            let (days, time) = text.rsplit_once(' ').map_or(("", text), |(days, time)| (days.trim(), time));
            let minute = minute_of(time).ok_or_else(wrong)?;
            match days.parse::<u8>() {
                Ok(day) if (1..=31).contains(&day) => (0, day, minute),
                Ok(_) => return Err(wrong()),
                Err(_) if days.is_empty() => (0, 0, minute),
                Err(_) => {
                    let one = |name: &str| WEEKDAYS.iter().position(|known| name.trim().starts_with(known));
                    let mut bits = days.split(',').map(|name| Some(1u8 << one(name)?));
                    let weekdays = bits.try_fold(0, |all, bit| Some(all | bit?)).ok_or_else(wrong)?;
                    (weekdays, 0, minute)
                }
            }
        }
    };
    Ok(format!("calendar/{weekdays}/{month_day}/{minute}"))
}

fn minute_of(time: &str) -> Option<u16> {
    let (hours, minutes) = time.split_once(':')?;
    let (hours, minutes) = (hours.parse::<u16>().ok()?, minutes.parse::<u16>().ok()?);
    (hours < 24 && minutes < 60).then_some(hours * 60 + minutes)
}

/// In a line, as of some time.
pub(crate) fn describe(schedule: &Value, now: u64) -> String {
    let Some(intensity) = schedule["intensity"].as_str() else {
        return "no scrub begins by itself".into();
    };
    let number = |key: &str| schedule[key].as_u64().unwrap_or(0);
    let when = match schedule["every_seconds"].as_u64() {
        Some(seconds) => {
            format!("{} after the last one was begun", format_duration(Duration::from_secs(seconds)))
        }
        None => {
            let time = format!("at {:02}:{:02} UTC", number("minute") / 60, number("minute") % 60);
            let is_one = |day: &usize| number("weekdays") >> day & 1 == 1;
            let named: Vec<&str> = (0..7).filter(is_one).map(|day| WEEKDAYS[day]).collect();
            match (named.is_empty(), number("month_day")) {
                (true, 0) => format!("every day {time}"),
                (true, day) => format!("on day {day} of the month {time}"),
                (false, 0) => format!("on {} {time}", named.join(", ")),
                (false, day) => format!("on day {day} of the month if it is {} {time}", named.join(" or ")),
            }
        }
    };
    let next = match number("next_unix_seconds").checked_sub(now) {
        Some(seconds) if seconds > 0 => format!("in {}", format_duration(Duration::from_secs(seconds))),
        _ => "now".into(),
    };
    let dry = if schedule["repairs"] == true { "" } else { ", only looking" };
    format!("a scrub begins {when}, intensity {intensity}{dry}; the next one {next}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn days_and_times_are_understood() {
        for (words, order) in [
            ("nightly", "calendar/0/0/120"),
            ("Weekly", "calendar/64/0/120"),
            ("monthly", "calendar/0/1/120"),
            ("23:59", "calendar/0/0/1439"),
            ("Sun 03:30", "calendar/64/0/210"),
            ("monday,Thu 22:00", "calendar/9/0/1320"),
            ("15 04:00", "calendar/0/15/240"),
        ] {
            assert_eq!(order_at(words).unwrap(), order, "{words}");
        }
        for wrong in ["", "soon", "24:00", "12:60", "32 01:00", "0 01:00", "xyz 01:00", "Sun", "Sun,, 01:00"]
        {
            assert!(order_at(wrong).is_err(), "{wrong}");
        }
        assert_eq!(frequency("7d").unwrap().0, Some(Duration::from_secs(7 * 86_400)));
        assert_eq!(frequency("nightly").unwrap().1.as_deref(), Some("nightly"));
        assert!(frequency("sometimes").is_err() && order_every(Duration::from_secs(1)).is_err());
    }

    #[test]
    fn a_schedule_is_told_in_a_line() {
        assert_eq!(describe(&Value::Null, 5), "no scrub begins by itself");
        let every =
            json!({ "intensity": "low", "repairs": true, "every_seconds": 86400, "next_unix_seconds": 65 });
        assert_eq!(
            describe(&every, 5),
            "a scrub begins 1d after the last one was begun, intensity low; the next one in 1m"
        );
        let days = json!({
            "intensity": "high", "repairs": false, "weekdays": 65, "month_day": 0, "minute": 150, "next_unix_seconds": 4,
        });
        assert_eq!(
            describe(&days, 5),
            "a scrub begins on mon, sun at 02:30 UTC, intensity high, only looking; the next one now"
        );
    }
}
