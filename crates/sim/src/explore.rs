//! Which events to cut at, and how to say where it went wrong.

use crate::power::{PowerCutter, mix};
use crate::trace::Trace;
use crate::world::SimWorld;
use aegisfs_base::{Rng, SeededRng};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Subset seeds that are not random: 0 none of the unflushed writes arrives, 1 all, 2 only the last.
pub const SUBSETS_FIXED: u64 = 3;

/// A cut just before an event, and what of the unflushed writes arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CrashPoint {
    /// The first event that does not happen.
    pub event: u64,
    /// Seed of the subset of unflushed writes that arrives; see [`SUBSETS_FIXED`].
    pub subset: u64,
}

impl fmt::Display for CrashPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.event, self.subset)
    }
}

impl CrashPoint {
    fn parse(text: &str) -> Option<Self> {
        let (event, subset) = text.split_once('.')?;
        Some(Self { event: event.parse().ok()?, subset: subset.parse().ok()? })
    }
}

/// Which points of a trace to try.
///
/// `AEGISFS_SIM_SEED`, `AEGISFS_SIM_POINTS` and `AEGISFS_SIM_POINT` in the environment replace the seed,
/// the budget, and all points by a single one.
#[derive(Clone, Debug)]
pub struct Plan {
    /// From which the history and the choice of points follow.
    pub seed: u64,
    /// How many points, at most.
    pub budget: u64,
    /// The only point to try, from an earlier failure.
    pub only: Option<CrashPoint>,
}

impl Plan {
    /// These values, unless the environment says otherwise.
    ///
    /// # Panics
    /// When the environment holds something that cannot be read.
    pub fn from_env(seed: u64, budget: u64) -> Self {
        let number = |name: &str| {
            std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
        };
        let only = std::env::var("AEGISFS_SIM_POINT")
            .ok()
            .map(|text| CrashPoint::parse(&text).unwrap_or_else(|| panic!("AEGISFS_SIM_POINT={text}")));
        Self {
            seed: number("AEGISFS_SIM_SEED").unwrap_or(seed),
            budget: number("AEGISFS_SIM_POINTS").unwrap_or(budget),
            only,
        }
    }
}

/// A point at which the oracle was not content.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The plan's seed.
    pub seed: u64,
    /// Where.
    pub point: CrashPoint,
    /// How many points were tried before it.
    pub passed: u64,
    /// What the oracle said.
    pub reason: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "power cut before event {}, subset {}: {}\nrerun with AEGISFS_SIM_SEED={} AEGISFS_SIM_POINT={}",
            self.point.event, self.point.subset, self.reason, self.seed, self.point
        )
    }
}

/// Chooses points in the order of their events: each event with every fixed subset and some random ones
/// while the budget lasts for that; then each event once; then a seeded choice of events.
pub fn crash_points(total_events: u64, budget: u64, seed: u64) -> Vec<CrashPoint> {
    let rng = SeededRng::new(mix(&[seed, total_events]));
    let random = |rng: &SeededRng| SUBSETS_FIXED + rng.below(1 << 20);
    let cuts = total_events + 1;
    let rounds = budget / cuts;
    let mut points = Vec::new();
    if rounds > SUBSETS_FIXED {
        for event in 0..cuts {
            points.extend((0..SUBSETS_FIXED).map(|subset| CrashPoint { event, subset }));
            let more = (SUBSETS_FIXED..rounds).map(|_| CrashPoint { event, subset: random(&rng) });
            points.extend(more);
        }
        return points;
    }
    // One fixed subset to three random ones: those tear.
    let any = |rng: &SeededRng| if rng.below(4) == 0 { rng.below(SUBSETS_FIXED) } else { random(rng) };
    if rounds > 0 {
        for event in 0..cuts {
            points.extend((0..rounds).map(|_| CrashPoint { event, subset: any(&rng) }));
        }
        return points;
    }
    points.extend((0..budget).map(|_| CrashPoint { event: rng.below(cuts), subset: any(&rng) }));
    points.sort_unstable();
    points.dedup();
    points
}

/// Cuts the power at the plan's points of a trace and asks the oracle about each; says how many there were.
///
/// # Errors
/// At the first point with which the oracle is not content; a panic in it is such a case.
pub fn explore(
    trace: &Trace,
    plan: &Plan,
    mut oracle: impl FnMut(&SimWorld, CrashPoint) -> Result<(), String>,
) -> Result<u64, Failure> {
    let points = match plan.only {
        Some(point) => vec![point],
        None => crash_points(trace.events(), plan.budget, plan.seed),
    };
    let mut cutter = PowerCutter::new(trace);
    let mut passed = 0;
    for point in points {
        let world = cutter.cut(point);
        let verdict = catch_unwind(AssertUnwindSafe(|| oracle(&world, point)))
            .unwrap_or_else(|panic| Err(format!("panic: {}", panic_text(&*panic))));
        verdict.map_err(|reason| Failure { seed: plan.seed, point, passed, reason })?;
        passed += 1;
    }
    Ok(passed)
}

/// Prints how many points a suite survived, as `cargo xtask soak` adds them up.
#[expect(clippy::print_stdout, reason = "a test tells what it did")]
pub fn tell(suite: &str, points: u64) {
    println!("crash points: {suite}: {points}");
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("of unknown type")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_keep_to_the_budget_and_to_their_order() {
        for (events, budget) in [(0, 1), (10, 5), (10, 11), (10, 40), (10, 100), (5000, 64), (3, 0)] {
            let points = crash_points(events, budget, 9);
            assert!(points.len() as u64 <= budget, "{events} {budget}");
            assert!(points.is_sorted_by_key(|p| p.event));
            assert!(points.iter().all(|p| p.event <= events));
            assert_eq!(points, crash_points(events, budget, 9));
            if budget > events {
                for event in 0..=events {
                    assert!(points.iter().any(|p| p.event == event), "every event is cut at");
                }
            }
        }
    }

    #[test]
    fn points_can_be_read_back() {
        let point = CrashPoint { event: 12, subset: 99 };
        assert_eq!(CrashPoint::parse(&point.to_string()), Some(point));
        assert_eq!(CrashPoint::parse("12"), None);
    }

    #[test]
    fn a_failure_says_where() {
        let mut world = SimWorld::new();
        let device = world.add("d", 1 << 20);
        for _ in 0..5 {
            aegisfs_device::Device::flush(&*device).unwrap();
        }
        let plan = Plan { seed: 3, budget: 100, only: None };
        let failure = explore(&world.trace(), &plan, |_, point| {
            assert!(point.event != 4, "not here");
            Ok(())
        })
        .unwrap_err();
        assert_eq!((failure.point.event, failure.seed), (4, 3));
        assert!(failure.to_string().contains("AEGISFS_SIM_POINT=4.0"), "{failure}");
    }
}
