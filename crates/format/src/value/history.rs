//! Values that hold history together: branches, the epochs of them that are pinned, snapshots, volumes.
//!
//! An epoch's number says which branch it belongs to: the branch in the upper half, counted from 1 in the
//! lower. So the epochs of a branch are one unbroken interval whatever other branches do meanwhile, and
//! as a branch is always younger than its origin, what it writes sorts before all that it inherits.

use super::{ENVELOPE_PLAIN, unwrap};
use crate::FormatError;
use crate::wire::{Append, Reader};
use aegisfs_base::{BranchId, EpochId, Timestamp};

/// Bits of an epoch that count within its branch. Changing it is a format change.
const EPOCH_COUNT_BITS: u32 = 32;

/// The first epoch of a branch.
pub const fn first_epoch(branch: BranchId) -> EpochId {
    EpochId((branch.0 as u64) << EPOCH_COUNT_BITS | 1)
}

/// The branch that an epoch belongs to.
pub const fn branch_of(epoch: EpochId) -> BranchId {
    BranchId((epoch.0 >> EPOCH_COUNT_BITS) as u32)
}

/// A line of history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    /// The branch it was forked from, and the last epoch it shares with it.
    pub origin: Option<(BranchId, EpochId)>,
    /// The first epoch of its own.
    pub first: EpochId,
    /// The epoch that is being written; 0 once the branch is closed and only holds what is pinned in it.
    pub head: EpochId,
    /// The last epoch that a snapshot or fork pins, or the last one shared with the origin; what is
    /// older is not dropped at once.
    pub pinned: Option<EpochId>,
}

impl Branch {
    /// Whether nothing is written to it any more.
    pub fn is_closed(&self) -> bool {
        self.head == EpochId(0)
    }

    /// The last epoch of its own that is pinned.
    pub fn last_pin(&self) -> Option<EpochId> {
        self.pinned.filter(|pinned| *pinned >= self.first)
    }

    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        let mut value =
            vec![ENVELOPE_PLAIN, u8::from(self.origin.is_some()), u8::from(self.pinned.is_some())];
        let (branch, epoch) = self.origin.unwrap_or_default();
        value.put_u32(branch.0);
        value.put_u64(epoch.0);
        value.put_u64(self.first.0);
        value.put_u64(self.head.0);
        value.put_u64(self.pinned.unwrap_or_default().0);
        value
    }

    /// Reads a stored branch.
    ///
    /// # Errors
    /// When it is cut short.
    pub fn decode(value: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new("branch", unwrap(value)?);
        let (has_origin, has_pinned) = (reader.u8()? != 0, reader.u8()? != 0);
        let origin = (BranchId(reader.u32()?), EpochId(reader.u64()?));
        let (first, head) = (EpochId(reader.u64()?), EpochId(reader.u64()?));
        let pinned = EpochId(reader.u64()?);
        reader.finish()?;
        Ok(Self { origin: has_origin.then_some(origin), first, head, pinned: has_pinned.then_some(pinned) })
    }
}

/// An epoch that is kept as it was at its end: a snapshot has named it, or branches were forked there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// The pinned epoch before it in the same branch.
    pub previous: Option<EpochId>,
    /// Branches that were forked there and still exist.
    pub forks: u32,
    /// Whether a snapshot names it.
    pub named: bool,
}

impl Pin {
    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        let mut value = vec![ENVELOPE_PLAIN, u8::from(self.previous.is_some()) | u8::from(self.named) << 1];
        value.put_u64(self.previous.unwrap_or_default().0);
        value.put_u32(self.forks);
        value
    }

    /// Reads a stored pin.
    ///
    /// # Errors
    /// When it is cut short or has unknown flags.
    pub fn decode(value: &[u8]) -> Result<Self, FormatError> {
        const WHAT: &str = "pin";
        let mut reader = Reader::new(WHAT, unwrap(value)?);
        let flags = reader.u8()?;
        if flags > 3 {
            return Err(FormatError::Value { what: WHAT, field: "flags", value: u64::from(flags) });
        }
        let (previous, forks) = (EpochId(reader.u64()?), reader.u32()?);
        reader.finish()?;
        Ok(Self { previous: (flags & 1 != 0).then_some(previous), forks, named: flags & 2 != 0 })
    }
}

/// A snapshot: a name for a pinned epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The epoch that it shows the end of.
    pub epoch: EpochId,
    /// When it was made.
    pub created: Timestamp,
}

impl Snapshot {
    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        let mut value = vec![ENVELOPE_PLAIN];
        value.put_u64(self.epoch.0);
        value.extend_from_slice(&self.created.0.to_le_bytes());
        value
    }

    /// Reads a stored snapshot.
    ///
    /// # Errors
    /// When it is cut short.
    pub fn decode(value: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new("snapshot", unwrap(value)?);
        let (epoch, created) = (EpochId(reader.u64()?), Timestamp(reader.u64()?.cast_signed()));
        reader.finish()?;
        Ok(Self { epoch, created })
    }
}

/// A volume: a name for a branch that is mounted and written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// The branch it shows; a rollback puts another one here.
    pub head: BranchId,
}

impl Volume {
    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        let mut value = vec![ENVELOPE_PLAIN];
        value.put_u32(self.head.0);
        value
    }

    /// Reads a stored volume.
    ///
    /// # Errors
    /// When it is cut short.
    pub fn decode(value: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new("volume", unwrap(value)?);
        let head = BranchId(reader.u32()?);
        reader.finish()?;
        Ok(Self { head })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever is cut off, added, or sealed in a way not yet known is refused.
    fn refuses_what_is_not_whole<T>(value: &[u8], decode: impl Fn(&[u8]) -> Result<T, FormatError>) {
        for length in 0..value.len() {
            assert!(decode(&value[..length]).is_err(), "{length}");
        }
        assert!(decode(&[value, &[0]].concat()).is_err());
        assert!(decode(&[&[7], &value[1..]].concat()).is_err());
    }

    #[test]
    fn history_round_trips() {
        for origin in [None, Some((BranchId(1), EpochId(5)))] {
            let branch = Branch { origin, first: EpochId(6), head: EpochId(8), pinned: origin.map(|o| o.1) };
            assert_eq!(Branch::decode(&branch.encode()).unwrap(), branch);
            refuses_what_is_not_whole(&branch.encode(), Branch::decode);
        }
        for (previous, named) in [(None, true), (Some(EpochId(4)), false), (Some(EpochId(1)), true)] {
            let pin = Pin { previous, forks: 3, named };
            assert_eq!(Pin::decode(&pin.encode()).unwrap(), pin);
            refuses_what_is_not_whole(&pin.encode(), Pin::decode);
        }
        let mut unknown = Pin { previous: None, forks: 0, named: true }.encode();
        unknown[1] |= 4;
        assert!(Pin::decode(&unknown).is_err());
        let snapshot = Snapshot { epoch: EpochId(9), created: Timestamp(-5) };
        assert_eq!(Snapshot::decode(&snapshot.encode()).unwrap(), snapshot);
        refuses_what_is_not_whole(&snapshot.encode(), Snapshot::decode);
        let volume = Volume { head: BranchId(7) };
        assert_eq!(Volume::decode(&volume.encode()).unwrap(), volume);
        refuses_what_is_not_whole(&volume.encode(), Volume::decode);
    }

    #[test]
    fn an_epoch_knows_its_branch_and_a_branch_its_epochs() {
        assert_eq!(first_epoch(BranchId(0)), EpochId(1));
        for branch in [BranchId(0), BranchId(1), BranchId(u32::MAX)] {
            assert_eq!(branch_of(first_epoch(branch)), branch);
            assert_eq!(branch_of(first_epoch(branch).next()), branch);
        }
        assert!(first_epoch(BranchId(1)) > EpochId(first_epoch(BranchId(0)).0 + 1_000_000));
    }

    #[test]
    fn pins_of_the_branch_itself_are_told_from_the_origin() {
        let branch = Branch { origin: None, first: EpochId(6), head: EpochId(8), pinned: Some(EpochId(5)) };
        assert_eq!(branch.last_pin(), None);
        assert_eq!(Branch { pinned: Some(EpochId(6)), ..branch.clone() }.last_pin(), Some(EpochId(6)));
        assert!(!branch.is_closed() && Branch { head: EpochId(0), ..branch }.is_closed());
    }
}
