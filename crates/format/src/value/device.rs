//! What a device was asked for since it is a member, and how it answered.

use super::{ENVELOPE_PLAIN, unwrap};
use crate::FormatError;
use crate::wire::{Append, Reader};

const WHAT: &str = "device counts";

/// Counts of a device. They only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceCounts {
    /// Reads that were answered.
    pub reads: u64,
    /// Their bytes.
    pub read_bytes: u64,
    /// Writes that were answered.
    pub writes: u64,
    /// Their bytes.
    pub written_bytes: u64,
    /// Flushes that were answered.
    pub flushes: u64,
    /// Calls that failed, and were answered when they were made again.
    pub retried: u64,
    /// Calls that failed for good.
    pub failed: u64,
    /// Calls that took longer than a second.
    pub slow: u64,
    /// What was read from it and did not verify.
    pub damaged: u64,
}

impl DeviceCounts {
    /// How many counts there are.
    pub const COUNT: usize = 9;

    /// Each count with its name, in the order in which they are stored.
    pub const fn named(&self) -> [(&'static str, u64); Self::COUNT] {
        [
            ("reads", self.reads),
            ("read_bytes", self.read_bytes),
            ("writes", self.writes),
            ("written_bytes", self.written_bytes),
            ("flushes", self.flushes),
            ("retried", self.retried),
            ("failed", self.failed),
            ("slow", self.slow),
            ("damaged", self.damaged),
        ]
    }

    /// The counts from their stored order.
    pub const fn from_array(counts: [u64; Self::COUNT]) -> Self {
        let [reads, read_bytes, writes, written_bytes, flushes, retried, failed, slow, damaged] = counts;
        Self { reads, read_bytes, writes, written_bytes, flushes, retried, failed, slow, damaged }
    }

    /// What both count together.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        let (one, two) = (self.named(), other.named());
        Self::from_array(std::array::from_fn(|n| one[n].1.saturating_add(two[n].1)))
    }

    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        let mut value = vec![ENVELOPE_PLAIN];
        self.named().iter().for_each(|(_, count)| value.put_u64(*count));
        value
    }

    /// Reads a stored record.
    ///
    /// # Errors
    /// When it is cut short, or of a kind that is not known.
    pub fn decode(value: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(WHAT, unwrap(value)?);
        let mut counts = [0; Self::COUNT];
        for count in &mut counts {
            *count = reader.u64()?;
        }
        reader.finish()?;
        Ok(Self::from_array(counts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_survive_and_are_not_cut_short() {
        let counts = DeviceCounts::from_array(std::array::from_fn(|n| 1 << (7 * n)));
        assert_eq!((counts.reads, counts.damaged), (1, 1 << 56));
        assert_eq!(counts.plus(&counts).damaged, 2 << 56);
        let stored = counts.encode();
        assert_eq!(DeviceCounts::decode(&stored), Ok(counts));
        for length in 0..stored.len() {
            assert!(DeviceCounts::decode(&stored[..length]).is_err(), "{length}");
        }
    }
}
