//! What is stored in another way than the pool stores by itself.

use super::{ENVELOPE_PLAIN, unwrap};
use crate::FormatError;
use crate::cell::is_geometry;
use crate::wire::Reader;

const WHAT: &str = "policy";

/// How files that follow a policy are stored. What a number stands for never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Shards of data in a wide segment.
    pub shards_data: u8,
    /// Shards of parity, or further copies where there is one of data.
    pub shards_parity: u8,
}

impl Policy {
    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        vec![ENVELOPE_PLAIN, self.shards_data, self.shards_parity]
    }

    /// Reads a stored policy.
    ///
    /// # Errors
    /// When it is cut short, or there is no such geometry.
    pub fn decode(value: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(WHAT, unwrap(value)?);
        let (shards_data, shards_parity) = (reader.u8()?, reader.u8()?);
        reader.finish()?;
        if !is_geometry((shards_data, shards_parity)) {
            let value = u64::from(shards_data);
            return Err(FormatError::Value { what: WHAT, field: "shards_data", value });
        }
        Ok(Self { shards_data, shards_parity })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_survives_and_is_not_taken_for_another() {
        let policy = Policy { shards_data: 4, shards_parity: 2 };
        let stored = policy.encode();
        assert_eq!(Policy::decode(&stored), Ok(policy));
        for length in 0..stored.len() {
            assert!(Policy::decode(&stored[..length]).is_err(), "{length}");
        }
        assert!(Policy::decode(&[stored, vec![0]].concat()).is_err());
        for bad in [(0, 1), (17, 0), (1, 9)] {
            assert!(Policy::decode(&[ENVELOPE_PLAIN, bad.0, bad.1]).is_err(), "{bad:?}");
        }
    }
}
