//! Pages of the dedup filter, as they are kept in the dedup database.
//!
//! The filter is a blocked Bloom filter in pages; a page covers the hashes that begin alike. Which bits a
//! hash sets stands in `docs/format.md`; changing it takes another [`FILTER_ALGORITHM`], and a reader that
//! does not know one makes the filter anew.

use crate::{FormatError, Sum128, sum128_of_parts};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

/// How bits are chosen, so far the only way.
pub const FILTER_ALGORITHM: u8 = 1;
/// Bytes of bits in a page: with its header and key it fits into a page of the database.
pub const FILTER_PAGE_BYTES: usize = 62 * 64;

const WHAT: &str = "page of the dedup filter";

on_disk! {
    /// What the saved filter is, as a whole.
    pub struct FilterHeadV1 [24] {
        /// How bits are chosen: 1.
        algorithm: u8,
        /// Reserved, zero.
        reserved: [u8; 3],
        /// Pages.
        pages: U32,
        /// The `indexed_below` that was stored together with it.
        indexed_below: U64,
        /// Reserved, zero.
        reserved_too: U64,
    }
}

on_disk! {
    /// Begins a saved page of the filter.
    pub struct FilterPageV1 [32] {
        /// The first hash that it covers, by its first four bytes as a big-endian number.
        start: U32,
        /// Hashes that it covers agree with `start` in so many bits.
        depth: u8,
        /// How bits are chosen: 1.
        algorithm: u8,
        /// Reserved, zero.
        reserved: [u8; 2],
        /// Hashes put in since it was made, more or less.
        hashes: U32,
        /// Reserved, zero.
        reserved_too: U32,
        /// XXH3-128 of the header before it and of the bits.
        sum: [u8; 16],
    }
}

/// What the saved filter is, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilterHead {
    /// Pages.
    pub pages: u32,
    /// The mark of the index that it was stored with.
    pub indexed_below: u64,
}

impl FilterHead {
    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        let raw = FilterHeadV1 {
            algorithm: FILTER_ALGORITHM,
            reserved: [0; 3],
            pages: U32::new(self.pages),
            indexed_below: U64::new(self.indexed_below),
            reserved_too: U64::new(0),
        };
        raw.as_bytes().to_vec()
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// When the bytes are not of that form.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let raw = FilterHeadV1::read_from_bytes(bytes).map_err(|_| FormatError::Short { what: WHAT })?;
        check(raw.algorithm, raw.reserved == [0; 3] && raw.reserved_too.get() == 0)?;
        Ok(Self { pages: raw.pages.get(), indexed_below: raw.indexed_below.get() })
    }
}

/// A page of the filter, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterPage {
    /// The first hash that it covers, by its first four bytes as a big-endian number.
    pub start: u32,
    /// Hashes that it covers agree with `start` in so many bits.
    pub depth: u8,
    /// Hashes put in since it was made, more or less.
    pub hashes: u32,
    /// The bits, as little-endian words.
    pub words: Box<[u64; FILTER_PAGE_BYTES / 8]>,
}

impl FilterPage {
    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        let mut raw = FilterPageV1 {
            start: U32::new(self.start),
            depth: self.depth,
            algorithm: FILTER_ALGORITHM,
            reserved: [0; 2],
            hashes: U32::new(self.hashes),
            reserved_too: U32::new(0),
            sum: [0; 16],
        };
        let mut bytes = vec![0; size_of::<FilterPageV1>()];
        bytes.extend(self.words.iter().flat_map(|word| word.to_le_bytes()));
        raw.sum = page_sum(&raw, &bytes[size_of::<FilterPageV1>()..]);
        bytes[..size_of::<FilterPageV1>()].copy_from_slice(raw.as_bytes());
        bytes
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// When the bytes are not of that form or do not verify.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let (raw, bits) =
            FilterPageV1::read_from_prefix(bytes).map_err(|_| FormatError::Short { what: WHAT })?;
        if bits.len() != FILTER_PAGE_BYTES {
            return Err(FormatError::Short { what: WHAT });
        }
        if page_sum(&raw, bits) != raw.sum {
            return Err(FormatError::Checksum { what: WHAT });
        }
        check(raw.algorithm, raw.reserved == [0; 2] && raw.reserved_too.get() == 0)?;
        if raw.depth > 32 {
            return Err(FormatError::Value { what: WHAT, field: "depth", value: u64::from(raw.depth) });
        }
        let mut words = Box::new([0; FILTER_PAGE_BYTES / 8]);
        for (word, bytes) in words.iter_mut().zip(bits.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        Ok(Self { start: raw.start.get(), depth: raw.depth, hashes: raw.hashes.get(), words })
    }
}

fn page_sum(raw: &FilterPageV1, bits: &[u8]) -> Sum128 {
    sum128_of_parts(&[&raw.as_bytes()[..size_of::<FilterPageV1>() - 16], bits])
}

fn check(algorithm: u8, reserve_is_zero: bool) -> Result<(), FormatError> {
    if algorithm != FILTER_ALGORITHM {
        return Err(FormatError::Value { what: WHAT, field: "algorithm", value: u64::from(algorithm) });
    }
    if !reserve_is_zero {
        return Err(FormatError::Value { what: WHAT, field: "reserved", value: 1 });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_every_damage_is_noticed() {
        let mut page = FilterPage { start: 7 << 28, depth: 4, hashes: 9, words: Box::new([0; 496]) };
        page.words[3] = 0x0123_4567_89ab_cdef;
        page.words[495] = u64::MAX;
        let bytes = page.encode();
        assert_eq!(FilterPage::decode(&bytes), Ok(page));
        for at in (0..bytes.len()).step_by(61) {
            let mut bad = bytes.clone();
            bad[at] ^= 4;
            assert!(FilterPage::decode(&bad).is_err(), "byte {at}");
        }
        for length in [0, 31, 32, bytes.len() - 1] {
            assert!(FilterPage::decode(&bytes[..length]).is_err(), "{length} bytes");
        }
        let head = FilterHead { pages: 5, indexed_below: 77 };
        assert_eq!(FilterHead::decode(&head.encode()), Ok(head));
        let mut bad = head.encode();
        bad[0] = 2;
        assert!(FilterHead::decode(&bad).is_err());
        assert!(FilterHead::decode(&bad[..20]).is_err());
    }
}
