//! Time comes from the caller, so that the simulator owns it.

use rustix::time::{ClockId, clock_gettime};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Nanoseconds since 1970, negative before; covers the years 1677 to 2262.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Puts seconds and nanoseconds together; what does not fit is clamped to the nearest that does.
    pub fn from_parts(seconds: i64, nanoseconds: u32) -> Self {
        let total = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
        Self(i64::try_from(total).unwrap_or(if total < 0 { i64::MIN } else { i64::MAX }))
    }

    /// Whole seconds, rounded towards the past.
    pub const fn seconds(self) -> i64 {
        self.0.div_euclid(1_000_000_000)
    }

    /// Nanoseconds within the second.
    pub const fn nanoseconds(self) -> u32 {
        self.0.rem_euclid(1_000_000_000) as u32
    }
}

/// A source of time: one clock that people read, one that only moves forward.
pub trait Clock: Send + Sync {
    /// The time of day; an operator may set it back.
    fn now(&self) -> Timestamp;
    /// Time since some fixed moment; never goes back.
    fn elapsed(&self) -> Duration;
}

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for SystemClock {
    /// The kernel's own, by ticks: it stamps cached writes with it, and no file may look older than what was made before
    /// it.
    fn now(&self) -> Timestamp {
        let now = clock_gettime(ClockId::RealtimeCoarse);
        Timestamp::from_parts(now.tv_sec, now.tv_nsec as u32)
    }

    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

/// A clock that moves only when it is told to; every reading adds one microsecond so that order shows.
#[derive(Debug, Default)]
pub struct ManualClock {
    state: Mutex<(i64, u64)>,
}

impl ManualClock {
    /// Moves both clocks forward.
    pub fn advance(&self, by: Duration) {
        let mut state = self.state.lock().expect("no holder panics");
        state.0 += i64::try_from(by.as_nanos()).expect("steps are short");
        state.1 += u64::try_from(by.as_nanos()).expect("steps are short");
    }

    /// Sets the time of day, as an operator might; the other clock does not notice.
    pub fn set(&self, now: Timestamp) {
        self.state.lock().expect("no holder panics").0 = now.0;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        let mut state = self.state.lock().expect("no holder panics");
        state.0 += 1_000;
        Timestamp(state.0)
    }

    fn elapsed(&self) -> Duration {
        let mut state = self.state.lock().expect("no holder panics");
        state.1 += 1_000;
        Duration::from_nanos(state.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_before_1970_and_far_away() {
        assert_eq!(Timestamp::from_parts(-1, 999_999_999).0, -1);
        assert_eq!((Timestamp(-1).seconds(), Timestamp(-1).nanoseconds()), (-1, 999_999_999));
        assert_eq!(Timestamp::from_parts(i64::MAX, 0).0, i64::MAX);
        assert_eq!(Timestamp::from_parts(i64::MIN, 0).0, i64::MIN);
    }

    #[test]
    fn a_clock_set_back_does_not_stop_elapsed_time() {
        let clock = ManualClock::default();
        clock.advance(Duration::from_secs(10));
        let before = clock.elapsed();
        clock.set(Timestamp(0));
        assert!(clock.elapsed() > before);
        assert!(clock.now() < Timestamp(1_000_000));
    }
}
