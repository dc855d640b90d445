//! What a device is asked for, how it answers, and how fast.

use aegisfs_device::DeviceError;
use aegisfs_format::value::DeviceCounts;
use parking_lot::Mutex;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What a device can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    Flush,
}

const KINDS: usize = 3;
/// Calls of different size are compared as if each took so much longer for each of so many bytes: by the time of a step.
const STEP_BYTES: usize = 256 << 10;
/// A new time counts for one part in so many of the average.
const AVERAGE_OVER: u64 = 16;
/// An average of times counts half after so long without a call: who was slow may be fast by now.
const FORGET: Duration = Duration::from_secs(5);
/// A call that takes so long is counted.
const SLOW: Duration = Duration::from_secs(1);
/// A read that takes so long, and so many times the average, is a hesitation.
const HESITATION: Duration = Duration::from_millis(100);
const HESITATION_TIMES: u64 = 8;
/// Devices are compared by calls that are no older than this.
const RECENT: Duration = Duration::from_secs(60);
/// For so long after a hesitation nobody waits for the device who can have the bytes otherwise.
const WARY: Duration = Duration::from_secs(600);
/// Trouble counts half after so long.
const TROUBLE_HALVES: Duration = Duration::from_secs(3600);
/// After so many calls in a row that failed for good, none is tried again: the device is gone.
const FAILURES_IN_A_ROW: u32 = 3;
/// Bounds of the times told by [`DeviceSpeed`] are powers of two of this.
const BUCKET: u64 = 16_000;
const BUCKETS: usize = 24;

/// How much trouble something is. From [`crate::health`] on sums of it change what a device is taken for.
pub(crate) const TROUBLE_RETRIED: f64 = 1.0;
pub(crate) const TROUBLE_DAMAGED: f64 = 1.0;
pub(crate) const TROUBLE_FAILED: f64 = 10.0;

/// Nanoseconds since this process asked first.
pub(crate) fn now() -> u64 {
    static BEGINNING: OnceLock<Instant> = OnceLock::new();
    nanos(BEGINNING.get_or_init(Instant::now).elapsed())
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// How many steps a call with so many bytes is.
pub(crate) fn steps(bytes: usize) -> u64 {
    1 + (bytes / STEP_BYTES) as u64
}

/// A value that counts half after every `half` that passes.
fn fade(value: f64, passed: u64, half: Duration) -> f64 {
    value * (-(passed as f64) / nanos(half) as f64).exp2()
}

/// How fast a device is, of one kind of calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceSpeed {
    /// What a call takes on average, the latest counting most.
    pub average: Duration,
    /// What half of the calls took at most, to a power of two.
    pub median: Duration,
    /// What 99 of 100 took at most, to a power of two.
    pub p99: Duration,
}

#[derive(Debug)]
struct Times {
    average_ns: AtomicU64,
    /// The average of what a step took.
    step_ns: AtomicU64,
    /// When the last one was answered.
    last: AtomicU64,
    /// Calls by their time: up to [`BUCKET`] ns, twice that, and so on.
    buckets: [AtomicU64; BUCKETS],
}

impl Default for Times {
    fn default() -> Self {
        Self {
            average_ns: AtomicU64::new(0),
            step_ns: AtomicU64::new(0),
            last: AtomicU64::new(0),
            buckets: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl Times {
    fn note(&self, took: u64, step: u64, now: u64) {
        for (average, time) in [(&self.average_ns, took), (&self.step_ns, step)] {
            let before = average.load(Ordering::Relaxed);
            // Of two at once one may be lost; it is an average.
            let after = if before == 0 { time } else { before - before / AVERAGE_OVER + time / AVERAGE_OVER };
            average.store(after.max(1), Ordering::Relaxed);
        }
        self.last.store(now, Ordering::Relaxed);
        let bucket = (took / BUCKET).checked_ilog2().map_or(0, |power| power as usize + 1);
        self.buckets[bucket.min(BUCKETS - 1)].fetch_add(1, Ordering::Relaxed);
    }

    fn within(&self, part: f64) -> Duration {
        let counts: Vec<u64> = self.buckets.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let wanted = (counts.iter().sum::<u64>() as f64 * part).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in counts.iter().enumerate() {
            seen += count;
            if *count > 0 && seen >= wanted {
                return Duration::from_nanos(BUCKET << bucket);
            }
        }
        Duration::ZERO
    }

    fn speed(&self) -> DeviceSpeed {
        DeviceSpeed {
            average: Duration::from_nanos(self.average_ns.load(Ordering::Relaxed)),
            median: self.within(0.5),
            p99: self.within(0.99),
        }
    }
}

/// Of one device, in this life.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    counts: [AtomicU64; DeviceCounts::COUNT],
    times: [Times; KINDS],
    in_flight: AtomicU32,
    /// How many of them there were at most.
    in_flight_most: AtomicU32,
    /// When it answered last, or was asked when it had nothing to do.
    waiting_since: AtomicU64,
    wary_until: AtomicU64,
    failures_in_a_row: AtomicU32,
    /// How much trouble there was, and as of when.
    trouble: Mutex<(f64, u64)>,
}

/// The places of [`DeviceCounts`].
#[derive(Clone, Copy, Debug)]
enum Count {
    Reads,
    ReadBytes,
    Writes,
    WrittenBytes,
    Flushes,
    Retried,
    Failed,
    Slow,
    Damaged,
}

/// A call under way.
#[derive(Debug)]
pub(crate) struct Running<'a>(&'a Activity);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.waiting_since.store(now(), Ordering::Relaxed);
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Activity {
    pub(crate) fn begin(&self) -> Running<'_> {
        let others = self.in_flight.fetch_add(1, Ordering::Relaxed);
        if others == 0 {
            self.waiting_since.store(now(), Ordering::Relaxed);
        }
        self.in_flight_most.fetch_max(others + 1, Ordering::Relaxed);
        Running(self)
    }

    fn add(&self, count: Count, n: u64) {
        self.counts[count as usize].fetch_add(n, Ordering::Relaxed);
    }

    /// Notes how long one call took, whatever came of it.
    pub(crate) fn took(&self, kind: Kind, bytes: usize, took: u64, now: u64) {
        let times = &self.times[kind as usize];
        let usual = times.step_ns.load(Ordering::Relaxed);
        let step = took / steps(bytes);
        times.note(took, step, now);
        if took >= nanos(SLOW) {
            self.add(Count::Slow, 1);
        }
        if kind == Kind::Read && took >= nanos(HESITATION) && usual > 0 && step / HESITATION_TIMES >= usual {
            self.wary_until.store(now + nanos(WARY), Ordering::Relaxed);
        }
    }

    pub(crate) fn answered(&self, kind: Kind, bytes: usize, retries: u32, now: u64) {
        self.failures_in_a_row.store(0, Ordering::Relaxed);
        match kind {
            Kind::Read => {
                self.add(Count::Reads, 1);
                self.add(Count::ReadBytes, bytes as u64);
            }
            Kind::Write => {
                self.add(Count::Writes, 1);
                self.add(Count::WrittenBytes, bytes as u64);
            }
            Kind::Flush => self.add(Count::Flushes, 1),
        }
        if retries > 0 {
            self.add(Count::Retried, 1);
            self.trouble(TROUBLE_RETRIED, now);
        }
    }

    pub(crate) fn failed(&self, error: &DeviceError, now: u64) {
        // Whoever asks for what cannot be says nothing about the device.
        if is_own_fault(error) {
            self.failures_in_a_row.fetch_add(1, Ordering::Relaxed);
            self.add(Count::Failed, 1);
            self.trouble(TROUBLE_FAILED, now);
        }
    }

    pub(crate) fn damaged(&self, n: u64) {
        self.add(Count::Damaged, n);
        self.trouble(TROUBLE_DAMAGED * n as f64, now());
    }

    /// Whether nothing it is asked for is answered any more.
    pub(crate) fn is_gone(&self) -> bool {
        self.failures_in_a_row.load(Ordering::Relaxed) >= FAILURES_IN_A_ROW
    }

    fn trouble(&self, much: f64, now: u64) {
        let mut trouble = self.trouble.lock();
        let before = fade(trouble.0, now.saturating_sub(trouble.1), TROUBLE_HALVES);
        *trouble = (before + much, now);
    }

    /// How much trouble there was of late.
    pub(crate) fn trouble_now(&self, now: u64) -> f64 {
        let trouble = self.trouble.lock();
        fade(trouble.0, now.saturating_sub(trouble.1), TROUBLE_HALVES)
    }

    /// Begins anew with what it has to answer for.
    pub(crate) fn forgive(&self) {
        *self.trouble.lock() = (0.0, now());
        self.wary_until.store(0, Ordering::Relaxed);
        self.failures_in_a_row.store(0, Ordering::Relaxed);
    }

    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// How many calls it had to deal with at the same time at most.
    pub(crate) fn in_flight_most(&self) -> u32 {
        self.in_flight_most.load(Ordering::Relaxed)
    }

    /// What a step of a call takes now on average, in ns: less the longer there was none. One that is not answered yet counts.
    pub(crate) fn expected_ns(&self, kind: Kind, now: u64) -> u64 {
        let times = &self.times[kind as usize];
        let average = times.step_ns.load(Ordering::Relaxed) as f64;
        let rested = now.saturating_sub(times.last.load(Ordering::Relaxed));
        let waits = match self.in_flight() {
            0 => 0,
            _ => now.saturating_sub(self.waiting_since.load(Ordering::Relaxed)),
        };
        (fade(average, rested, FORGET) as u64).max(waits)
    }

    /// What a call took on average, in ns, whenever that was.
    pub(crate) fn usual_ns(&self, kind: Kind) -> u64 {
        self.times[kind as usize].average_ns.load(Ordering::Relaxed)
    }

    /// What a step of a call took on average, in ns, whenever that was; 0 where there was none.
    pub(crate) fn step_ns(&self, kind: Kind) -> u64 {
        self.times[kind as usize].step_ns.load(Ordering::Relaxed)
    }

    /// The same, if there were any of late.
    pub(crate) fn recent_ns(&self, kind: Kind, now: u64) -> Option<u64> {
        let times = &self.times[kind as usize];
        let is_recent = now.saturating_sub(times.last.load(Ordering::Relaxed)) <= nanos(RECENT);
        Some(times.step_ns.load(Ordering::Relaxed)).filter(|average| is_recent && *average > 0)
    }

    /// Whether it hesitated not long ago, or does now.
    pub(crate) fn is_erratic(&self, now: u64) -> bool {
        self.wary_until.load(Ordering::Relaxed) > now
            || self.in_flight() > 0
                && now.saturating_sub(self.waiting_since.load(Ordering::Relaxed)) > nanos(HESITATION)
    }

    /// Calls that came to an end, or are under way.
    pub(crate) fn calls(&self) -> u64 {
        let ended = [Count::Reads, Count::Writes, Count::Flushes, Count::Failed];
        let ended: u64 = ended.iter().map(|n| self.counts[*n as usize].load(Ordering::Relaxed)).sum();
        ended + u64::from(self.in_flight())
    }

    pub(crate) fn counts(&self) -> DeviceCounts {
        DeviceCounts::from_array(std::array::from_fn(|n| self.counts[n].load(Ordering::Relaxed)))
    }

    pub(crate) fn speed(&self, kind: Kind) -> DeviceSpeed {
        self.times[kind as usize].speed()
    }
}

/// Whether an error is the device's, rather than of whoever asked.
fn is_own_fault(error: &DeviceError) -> bool {
    matches!(
        error,
        DeviceError::Io { .. }
            | DeviceError::Truncated { .. }
            | DeviceError::ReadBack { .. }
            | DeviceError::FlushLost { .. }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn times_are_averaged_and_counted() {
        let activity = Activity::default();
        for _ in 0..99 {
            activity.took(Kind::Read, 4096, MS, MS);
        }
        activity.took(Kind::Read, 4096, 40 * MS, MS);
        let speed = activity.speed(Kind::Read);
        assert!(speed.average > Duration::from_millis(3) && speed.average < Duration::from_millis(4));
        assert_eq!(
            (speed.median, speed.p99),
            (Duration::from_nanos(BUCKET << 6), Duration::from_nanos(BUCKET << 6))
        );
        activity.took(Kind::Read, 4096, 40 * MS, MS);
        assert_eq!(activity.speed(Kind::Read).p99, Duration::from_nanos(BUCKET << 12));
        assert_eq!(activity.speed(Kind::Write), DeviceSpeed::default());
        // Longer than any bucket.
        activity.took(Kind::Flush, 4096, u64::MAX / 2, MS);
        assert_eq!(activity.speed(Kind::Flush).p99, Duration::from_nanos(BUCKET << (BUCKETS - 1)));
    }

    #[test]
    fn who_was_slow_is_asked_again_after_a_while() {
        let activity = Activity::default();
        let second = 1000 * MS;
        activity.took(Kind::Read, 4096, 800 * MS, second);
        assert_eq!(activity.expected_ns(Kind::Read, second), 800 * MS);
        assert_eq!(activity.expected_ns(Kind::Read, 6 * second), 400 * MS);
        assert!(activity.expected_ns(Kind::Read, 100 * second) < MS);
        // One that is not answered counts while it waits.
        let running = activity.begin();
        let begun = now();
        assert!(activity.expected_ns(Kind::Read, begun + 70 * second) > 60 * second);
        assert!(activity.is_erratic(begun + second) && activity.in_flight() == 1);
        drop(running);
        assert!(!activity.is_erratic(now()) && activity.in_flight() == 0);
    }

    #[test]
    fn a_hesitation_is_remembered_and_a_slow_device_is_none() {
        let activity = Activity::default();
        // It always takes that long.
        activity.took(Kind::Read, 4096, 200 * MS, MS);
        activity.took(Kind::Read, 4096, 200 * MS, 2 * MS);
        assert!(!activity.is_erratic(3 * MS));
        let activity = Activity::default();
        activity.took(Kind::Read, 4096, MS, MS);
        activity.took(Kind::Read, 4096, 200 * MS, 300 * MS);
        assert!(activity.is_erratic(301 * MS) && !activity.is_erratic(301 * MS + nanos(WARY)));
        activity.forgive();
        assert!(!activity.is_erratic(301 * MS));
    }

    #[test]
    fn large_calls_are_not_slow_for_that() {
        let (small, large) = (Activity::default(), Activity::default());
        for _ in 0..100 {
            small.took(Kind::Read, 4096, 8 * MS, MS);
            large.took(Kind::Read, 1 << 20, 16 * MS, MS);
        }
        assert!(large.expected_ns(Kind::Read, MS) < small.expected_ns(Kind::Read, MS));
        assert!(large.usual_ns(Kind::Read) > small.usual_ns(Kind::Read));
        large.took(Kind::Read, 8 << 20, 120 * MS, MS);
        assert!(!large.is_erratic(MS));
    }

    #[test]
    fn trouble_fades() {
        let activity = Activity::default();
        activity.trouble(8.0, 0);
        assert!((activity.trouble_now(nanos(TROUBLE_HALVES)) - 4.0).abs() < 1e-9);
        activity.trouble(4.0, nanos(TROUBLE_HALVES));
        assert!((activity.trouble_now(3 * nanos(TROUBLE_HALVES)) - 2.0).abs() < 1e-9);
        let error = DeviceError::ReadOnly { op: aegisfs_device::Operation::Write, device: "d".into() };
        activity.failed(&error, 0);
        assert_eq!(activity.counts().failed, 0, "that was not its fault");
    }
}
