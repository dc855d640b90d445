//! What a device can forget, and in which units.

use aegisfs_base::limits::BLOCK_BYTES;

/// How a device wants to be told that ranges hold nothing of worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiscardLimits {
    /// Whether it can forget anything, as far as is known: one that has refused once cannot.
    pub supported: bool,
    /// It forgets whole units of this many bytes.
    pub granularity: u64,
    /// Where the first whole unit begins.
    pub alignment: u64,
    /// Bytes that one call may name.
    pub bytes_max: u64,
}

impl Default for DiscardLimits {
    /// Any block, and as many as one likes.
    fn default() -> Self {
        Self { supported: true, granularity: BLOCK_BYTES as u64, alignment: 0, bytes_max: u64::MAX }
    }
}

impl DiscardLimits {
    /// What the host says. Units that are no multiples of a block are left to the host: it rounds by itself.
    pub fn new(granularity: u64, alignment: u64, bytes_max: u64) -> Self {
        let block = BLOCK_BYTES as u64;
        let is_usable =
            granularity >= block && granularity.is_multiple_of(block) && alignment.is_multiple_of(block);
        let (granularity, alignment) =
            if is_usable { (granularity, alignment % granularity) } else { (block, 0) };
        let bytes_max_whole = bytes_max - bytes_max % granularity;
        Self { supported: bytes_max > 0, granularity, alignment, bytes_max: bytes_max_whole.max(granularity) }
    }

    /// The whole units within a range, as offset and length, if there are any.
    pub fn inward(&self, offset: u64, length: u64) -> Option<(u64, u64)> {
        let unit = self.granularity;
        // Counted from one unit before the start of the device, where an aligned one begins as well.
        let shift = unit - self.alignment;
        let start = offset.checked_add(shift)?.checked_next_multiple_of(unit)?;
        let end = offset.checked_add(length)?.checked_add(shift)? / unit * unit;
        (end > start).then(|| (start - shift, end - start))
    }

    /// The calls that a range is told in.
    pub fn calls(&self, offset: u64, length: u64) -> impl Iterator<Item = (u64, u64)> {
        let most = self.bytes_max;
        let starts = (0..length).step_by(usize::try_from(most).unwrap_or(usize::MAX));
        starts.map(move |start| (offset + start, most.min(length - start)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: u64 = 1 << 20;

    #[test]
    fn ranges_are_rounded_inward() {
        let limits = DiscardLimits::new(UNIT, 0, u64::MAX);
        assert_eq!(limits.inward(0, UNIT), Some((0, UNIT)));
        assert_eq!(limits.inward(4096, 3 * UNIT), Some((UNIT, 2 * UNIT)));
        assert_eq!(limits.inward(4096, UNIT), None);
        assert_eq!(limits.inward(UNIT, 0), None);
        let shifted = DiscardLimits::new(UNIT, 8192, u64::MAX);
        assert_eq!(shifted.inward(0, 2 * UNIT), Some((8192, UNIT)));
        assert_eq!(shifted.inward(8192, 2 * UNIT), Some((8192, 2 * UNIT)));
        assert_eq!(shifted.inward(0, 8192), None);
        assert_eq!(DiscardLimits::default().inward(4096, 8192), Some((4096, 8192)));
    }

    #[test]
    fn what_the_host_says_is_made_usable() {
        assert!(!DiscardLimits::new(4096, 0, 0).supported);
        assert_eq!(DiscardLimits::new(512, 0, 1 << 30).granularity, 4096);
        assert_eq!(DiscardLimits::new(6144, 0, 1 << 30).granularity, 4096);
        assert_eq!(DiscardLimits::new(UNIT, 512, 1 << 30).granularity, 4096);
        // As loop devices have it: no multiple of the unit.
        assert_eq!(DiscardLimits::new(4096, 0, u64::from(u32::MAX) - 511).bytes_max, (1 << 32) - 4096);
        assert_eq!(DiscardLimits::new(UNIT, 0, 4096).bytes_max, UNIT);
    }

    #[test]
    fn long_ranges_are_told_in_several_calls() {
        let limits = DiscardLimits::new(UNIT, 0, 2 * UNIT);
        let calls: Vec<_> = limits.calls(UNIT, 5 * UNIT).collect();
        assert_eq!(calls, [(UNIT, 2 * UNIT), (3 * UNIT, 2 * UNIT), (5 * UNIT, UNIT)]);
        assert_eq!(DiscardLimits::default().calls(0, 1 << 40).count(), 1);
    }
}
