//! Sets of byte ranges: what of a read was found already, and what an overlay covers.

use std::collections::BTreeMap;

/// A set of byte ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranges {
    ranges: BTreeMap<u64, u64>,
}

impl Ranges {
    /// Ranges that do not touch each other.
    pub(super) fn from_apart(ranges: impl Iterator<Item = (u64, u64)>) -> Self {
        Self { ranges: ranges.collect() }
    }

    /// Adds a range, joining what touches.
    pub(crate) fn add(&mut self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        let (mut from, mut to) = (from, to);
        let touching: Vec<u64> = self
            .ranges
            .range(..=to)
            .rev()
            .take_while(|(_, end)| **end >= from)
            .map(|(start, _)| *start)
            .collect();
        for start in touching {
            let end = self.ranges.remove(&start).expect("it was just found");
            from = from.min(start);
            to = to.max(end);
        }
        self.ranges.insert(from, to);
    }

    /// What of a range is not in the set.
    pub(crate) fn gaps(&self, from: u64, to: u64) -> Vec<(u64, u64)> {
        let mut gaps = Vec::new();
        let mut at = from;
        let before = self.ranges.range(..from).next_back().into_iter();
        for (start, end) in before.chain(self.ranges.range(from..to)) {
            if *end <= at {
                continue;
            }
            if *start > at {
                gaps.push((at, (*start).min(to)));
            }
            at = at.max(*end);
        }
        if at < to {
            gaps.push((at, to));
        }
        gaps
    }

    /// The ranges in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.ranges.iter().map(|(from, to)| (*from, *to))
    }
}
