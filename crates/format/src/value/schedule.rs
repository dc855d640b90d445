//! When something is done by itself again and again.

use super::{ENVELOPE_PLAIN, unwrap};
use crate::FormatError;
use crate::wire::{Append, Reader};
use aegisfs_base::Timestamp;

const WHAT: &str = "schedule";
const DAY: i64 = 86_400;
/// Minutes of a day.
const MINUTES: u16 = 24 * 60;
/// Longest time between two, in seconds.
const EVERY_MAX: u64 = 10 * 366 * 86_400;
/// Days that are looked at until one fits: the longest there is between two 29ths of February that are Mondays.
const DAYS_MAX: i64 = 41 * 366;

/// When it is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// So many seconds after it was begun last.
    Every {
        /// Seconds, from one minute to ten years.
        seconds: u64,
    },
    /// On certain days, in UTC.
    Calendar {
        /// Days of the week on which it is due, one bit each from Monday, the lowest, on; 0 is any.
        weekdays: u8,
        /// Day of the month, 1 to 31; 0 is any. A month that has no such day is left out.
        month_day: u8,
        /// Minutes after midnight.
        minute: u16,
    },
}

impl When {
    /// Whether all parts of it are within their bounds.
    pub const fn is_valid(&self) -> bool {
        match self {
            Self::Every { seconds } => *seconds >= 60 && *seconds <= EVERY_MAX,
            Self::Calendar { weekdays, month_day, minute } => {
                *weekdays < 0x80 && *month_day <= 31 && *minute < MINUTES
            }
        }
    }

    /// The first time after another at which it is due; none where there is no such day.
    pub fn after(&self, before: Timestamp) -> Option<Timestamp> {
        let seconds = before.seconds();
        let due = match *self {
            Self::Every { seconds: every } => Some(seconds.saturating_add(every.cast_signed())),
            Self::Calendar { weekdays, month_day, minute } => {
                let today = seconds.div_euclid(DAY);
                let fits = |day: &i64| {
                    // The first of January 1970 was a Thursday.
                    let weekday = (day + 3).rem_euclid(7);
                    (weekdays == 0 || weekdays >> weekday & 1 == 1)
                        && (month_day == 0 || day_of_month(*day) == i64::from(month_day))
                };
                let at = |day: i64| day * DAY + i64::from(minute) * 60;
                (today..=today + DAYS_MAX).filter(fits).map(at).find(|due| *due > seconds)
            }
        };
        due.map(|seconds| Timestamp(seconds.saturating_mul(1_000_000_000)))
    }
}

/// The day of the month, from days since 1970 (Howard Hinnant, "chrono-compatible low-level date algorithms": `civil_from_days`).
const fn day_of_month(day: i64) -> i64 {
    // Years begin in March, so that the day that is not always there is their last.
    let of_era = (day + 719_468).rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    of_year - (153 * month + 2) / 5 + 1
}

/// What is done by itself, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// When it is due.
    pub when: When,
    /// How much it may take then from those who read and write: 0 low, 1 medium, 2 high.
    pub intensity: u8,
    /// Whether damage is mended.
    pub repairs: bool,
    /// When somebody said so.
    pub set: Timestamp,
}

impl Schedule {
    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        let mut value = vec![ENVELOPE_PLAIN];
        match self.when {
            When::Every { seconds } => {
                value.push(0);
                value.put_u64(seconds);
            }
            When::Calendar { weekdays, month_day, minute } => {
                value.push(1);
                value.put_u64(u64::from(weekdays) | u64::from(month_day) << 8 | u64::from(minute) << 16);
            }
        }
        value.extend_from_slice(&[self.intensity, u8::from(self.repairs)]);
        value.put_u64(self.set.0.cast_unsigned());
        value
    }

    /// Reads a stored schedule.
    ///
    /// # Errors
    /// When it is cut short, of a kind that is not known, or out of bounds.
    pub fn decode(value: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(WHAT, unwrap(value)?);
        let wrong = |field, value| FormatError::Value { what: WHAT, field, value };
        let (kind, parts) = (reader.u8()?, reader.u64()?);
        let when = match kind {
            0 => When::Every { seconds: parts },
            1 if parts >> 32 == 0 => When::Calendar {
                weekdays: parts as u8,
                month_day: (parts >> 8) as u8,
                minute: (parts >> 16) as u16,
            },
            _ => return Err(wrong("kind", u64::from(kind))),
        };
        let (intensity, repairs) = (reader.u8()?, reader.u8()?);
        if !when.is_valid() {
            return Err(wrong("when", parts));
        }
        if intensity > 2 || repairs > 1 {
            return Err(wrong("intensity", u64::from(intensity)));
        }
        let set = Timestamp(reader.u64()?.cast_signed());
        reader.finish()?;
        Ok(Self { when, intensity, repairs: repairs == 1, set })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp(seconds * 1_000_000_000)
    }

    fn calendar(weekdays: u8, month_day: u8, minute: u16) -> When {
        When::Calendar { weekdays, month_day, minute }
    }

    #[test]
    fn days_of_the_month_are_right() {
        // Days since 1970 as date(1) tells them.
        for (day, expected) in
            [(0, 1), (30, 31), (31, 1), (58, 28), (59, 1), (789, 29), (11_016, 29), (-1, 31)]
        {
            assert_eq!(day_of_month(day), expected, "day {day}");
        }
        // 24855 days: the 19th of January 2038.
        assert_eq!(day_of_month(24_855), 19);
    }

    #[test]
    fn the_next_time_is_found() {
        let every = When::Every { seconds: 3600 };
        assert_eq!(every.after(at(10)), Some(at(3610)));
        // The first of January 1970, a Thursday, at 02:00.
        let nightly = calendar(0, 0, 120);
        assert_eq!(nightly.after(at(0)), Some(at(7200)));
        assert_eq!(nightly.after(at(7199)), Some(at(7200)));
        assert_eq!(nightly.after(at(7200)), Some(at(DAY + 7200)));
        // Sundays: the fourth.
        assert_eq!(calendar(1 << 6, 0, 0).after(at(0)), Some(at(3 * DAY)));
        // Mondays and Fridays.
        let both = calendar(1 | 1 << 4, 0, 0);
        assert_eq!((both.after(at(0)), both.after(at(DAY))), (Some(at(DAY)), Some(at(4 * DAY))));
        // The 31st: January, then March.
        let last = calendar(0, 31, 0);
        assert_eq!((last.after(at(0)), last.after(at(30 * DAY))), (Some(at(30 * DAY)), Some(at(89 * DAY))));
        assert_eq!(calendar(0, 31, 0).after(at(-2 * DAY)), Some(at(-DAY)));
        // A Friday the 13th: February 1970.
        assert_eq!(calendar(1 << 4, 13, 0).after(at(0)), Some(at(43 * DAY)));
    }

    #[test]
    fn a_schedule_survives_and_what_is_out_of_bounds_is_refused() {
        for when in [When::Every { seconds: 30 * 86_400 }, calendar(0x41, 31, 1439)] {
            let schedule = Schedule { when, intensity: 2, repairs: true, set: Timestamp(-5) };
            let stored = schedule.encode();
            assert_eq!(Schedule::decode(&stored), Ok(schedule));
            for length in 0..stored.len() {
                assert!(Schedule::decode(&stored[..length]).is_err(), "{length}");
            }
            for (place, wrong) in [(0, 1), (1, 2), (10, 3), (11, 2)] {
                let mut bad = stored.clone();
                bad[place] = wrong;
                assert!(Schedule::decode(&bad).is_err(), "{place}");
            }
        }
        for when in
            [When::Every { seconds: 59 }, calendar(0x80, 0, 0), calendar(0, 32, 0), calendar(0, 0, MINUTES)]
        {
            let schedule = Schedule { when, intensity: 0, repairs: false, set: Timestamp(0) };
            assert!(!when.is_valid() && Schedule::decode(&schedule.encode()).is_err(), "{when:?}");
        }
    }
}
