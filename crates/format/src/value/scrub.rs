//! How far a scrub is, or what the last one found.

use super::{ENVELOPE_PLAIN, unwrap};
use crate::FormatError;
use crate::wire::{Append, Reader};
use aegisfs_base::{SegmentId, Timestamp};

const WHAT: &str = "scrub";

/// What a scrub is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ScrubState {
    /// It goes on, also after the next mount.
    #[default]
    Running,
    /// It waits until somebody has it go on.
    Paused,
    /// It came to its end.
    Done,
    /// It was ended before.
    Cancelled,
}

impl ScrubState {
    const ALL: [Self; 4] = [Self::Running, Self::Paused, Self::Done, Self::Cancelled];

    /// What it is called.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What was looked at, and what of it was wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubCounts {
    /// Segments of which every cell was read on every device.
    pub segments: u64,
    /// Their cells, each copy counted.
    pub cells: u64,
    /// Bytes of those, and of the metadata pages.
    pub bytes: u64,
    /// Metadata pages and their checksum blocks, each copy counted.
    pub pages: u64,
    /// Cells, headers, pages and checksum blocks that were not what they should be.
    pub damaged: u64,
    /// Of those, how many were written anew from a sound copy.
    pub repaired: u64,
    /// Places of which no copy is sound.
    pub lost: u64,
}

/// A scrub.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scrub {
    /// What it is at.
    pub state: ScrubState,
    /// Whether it mends what it finds.
    pub repairs: bool,
    /// When it began.
    pub started: Timestamp,
    /// When it ended, if it has.
    pub ended: Timestamp,
    /// The next segment.
    pub cursor: SegmentId,
    /// Whether all segments were looked at, and the metadata is next.
    pub segments_done: bool,
    /// What it has seen so far.
    pub counts: ScrubCounts,
}

impl Scrub {
    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        let flags = u8::from(self.repairs) | u8::from(self.segments_done) << 1;
        let mut value = vec![ENVELOPE_PLAIN, self.state as u8, flags];
        value.put_u64(self.started.0.cast_unsigned());
        value.put_u64(self.ended.0.cast_unsigned());
        value.put_u64(self.cursor.0);
        let ScrubCounts { segments, cells, bytes, pages, damaged, repaired, lost } = self.counts;
        [segments, cells, bytes, pages, damaged, repaired, lost]
            .iter()
            .for_each(|count| value.put_u64(*count));
        value
    }

    /// Reads a stored scrub.
    ///
    /// # Errors
    /// When it is cut short, or of a kind that is not known.
    pub fn decode(value: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(WHAT, unwrap(value)?);
        let (state, flags) = (reader.u8()?, reader.u8()?);
        let unknown = |field, value: u8| FormatError::Value { what: WHAT, field, value: u64::from(value) };
        let state = *ScrubState::ALL.get(usize::from(state)).ok_or_else(|| unknown("state", state))?;
        if flags > 3 {
            return Err(unknown("flags", flags));
        }
        let mut number = || reader.u64();
        let (started, ended) = (Timestamp(number()?.cast_signed()), Timestamp(number()?.cast_signed()));
        let cursor = SegmentId(number()?);
        let counts = ScrubCounts {
            segments: number()?,
            cells: number()?,
            bytes: number()?,
            pages: number()?,
            damaged: number()?,
            repaired: number()?,
            lost: number()?,
        };
        reader.finish()?;
        let (repairs, segments_done) = (flags & 1 != 0, flags & 2 != 0);
        Ok(Self { state, repairs, started, ended, cursor, segments_done, counts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrub_round_trips_and_what_is_not_whole_is_refused() {
        for state in ScrubState::ALL {
            let counts =
                ScrubCounts { segments: 1, cells: 2, bytes: 3, pages: 4, damaged: 5, repaired: 6, lost: 7 };
            let scrub = Scrub {
                state,
                repairs: true,
                started: Timestamp(-8),
                ended: Timestamp(9),
                cursor: SegmentId(10),
                segments_done: state == ScrubState::Done,
                counts,
            };
            let value = scrub.encode();
            assert_eq!(Scrub::decode(&value).unwrap(), scrub);
            for length in 0..value.len() {
                assert!(Scrub::decode(&value[..length]).is_err(), "{length}");
            }
            assert!(Scrub::decode(&[&value[..], &[0]].concat()).is_err());
            for (place, wrong) in [(0, 7), (1, 4), (2, 4)] {
                let mut bad = value.clone();
                bad[place] = wrong;
                assert!(Scrub::decode(&bad).is_err(), "{place}");
            }
        }
    }
}
