//! A growable buffer whose first byte sits on a block boundary, so that direct I/O needs no copy.
//!
//! It is kept as whole blocks that are always initialised; `length` says how many of their bytes
//! count. Clearing keeps the blocks, so a buffer that is reused pays for zeroing only once.

use std::fmt;
use std::ops::{Deref, DerefMut};

use aegisfs_base::limits::BLOCK_BYTES;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C, align(4096))]
struct Block([u8; BLOCK_BYTES]);
const _: () = assert!(size_of::<Block>() == BLOCK_BYTES && align_of::<Block>() == BLOCK_BYTES);

/// Bytes whose address is a multiple of 4096.
#[derive(Default)]
pub struct AlignedBuffer {
    blocks: Vec<Block>,
    length: usize,
}

impl AlignedBuffer {
    /// An empty buffer that takes no memory yet.
    pub const fn new() -> Self {
        Self { blocks: Vec::new(), length: 0 }
    }

    /// An empty buffer that can take `bytes` without moving.
    pub fn with_capacity(bytes: usize) -> Self {
        Self { blocks: zeroed_blocks(bytes.div_ceil(BLOCK_BYTES)), length: 0 }
    }

    /// A buffer of `length` zeros.
    pub fn zeroed(length: usize) -> Self {
        Self { blocks: zeroed_blocks(length.div_ceil(BLOCK_BYTES)), length }
    }

    /// Whether a slice can be handed to direct I/O as it is.
    pub fn is_aligned(bytes: &[u8]) -> bool {
        bytes.as_ptr().addr().is_multiple_of(BLOCK_BYTES)
    }

    /// Bytes that fit without moving.
    pub fn capacity(&self) -> usize {
        self.blocks.len() * BLOCK_BYTES
    }

    /// Makes room for `additional` bytes beyond the length.
    ///
    /// # Panics
    /// When the sum is not a possible size.
    pub fn reserve(&mut self, additional: usize) {
        let needed = self.length.checked_add(additional).expect("a buffer fits in memory");
        if needed <= self.capacity() {
            return;
        }
        // At least doubling keeps a sequence of appends linear.
        let mut blocks = zeroed_blocks(needed.div_ceil(BLOCK_BYTES).max(self.blocks.len() * 2));
        blocks.as_mut_bytes()[..self.length].copy_from_slice(&self.blocks.as_bytes()[..self.length]);
        self.blocks = blocks;
    }

    /// Appends bytes.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len());
        let end = self.length + bytes.len();
        self.blocks.as_mut_bytes()[self.length..end].copy_from_slice(bytes);
        self.length = end;
    }

    /// Sets the length; bytes that are added have this value.
    pub fn resize(&mut self, length: usize, value: u8) {
        if length > self.length {
            self.reserve(length - self.length);
            self.blocks.as_mut_bytes()[self.length..length].fill(value);
        }
        self.length = length;
    }

    /// Sets the length; bytes that are added have whatever value they had last. For a buffer that is about to
    /// be filled from a device.
    pub fn set_length(&mut self, length: usize) {
        self.reserve(length.saturating_sub(self.length));
        self.length = length;
    }

    /// Appends zeros up to the next block boundary.
    pub fn pad_to_block(&mut self) {
        self.resize(self.length.next_multiple_of(BLOCK_BYTES), 0);
    }

    /// Shortens the buffer; does nothing when it is shorter already.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }

    /// Empties the buffer and keeps its memory.
    pub fn clear(&mut self) {
        self.length = 0;
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.blocks.as_bytes()[..self.length]
    }

    /// The bytes, to be changed in place.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.blocks.as_mut_bytes()[..self.length]
    }
}

fn zeroed_blocks(count: usize) -> Vec<Block> {
    // Failure here is running out of memory, which ends the program elsewhere too.
    Block::new_vec_zeroed(count).expect("the system has memory")
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.as_mut_slice()
    }
}

impl Clone for AlignedBuffer {
    fn clone(&self) -> Self {
        Self::from(self.as_slice())
    }
}

impl From<&[u8]> for AlignedBuffer {
    fn from(bytes: &[u8]) -> Self {
        let mut buffer = Self::with_capacity(bytes.len());
        buffer.extend_from_slice(bytes);
        buffer
    }
}

impl fmt::Debug for AlignedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedBuffer").field("length", &self.length).finish_non_exhaustive()
    }
}

impl PartialEq for AlignedBuffer {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for AlignedBuffer {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Act {
        Extend(Vec<u8>),
        Resize(usize, u8),
        Truncate(usize),
        Clear,
        Pad,
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..6000).prop_map(Act::Extend),
            (0usize..20_000, any::<u8>()).prop_map(|(length, value)| Act::Resize(length, value)),
            (0usize..20_000).prop_map(Act::Truncate),
            Just(Act::Clear),
            Just(Act::Pad),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn behaves_as_a_vec_and_stays_aligned(acts in proptest::collection::vec(act(), 0..20)) {
            let (mut buffer, mut model) = (AlignedBuffer::new(), Vec::new());
            for act in acts {
                match act {
                    Act::Extend(bytes) => {
                        buffer.extend_from_slice(&bytes);
                        model.extend_from_slice(&bytes);
                    }
                    Act::Resize(length, value) => {
                        buffer.resize(length, value);
                        model.resize(length, value);
                    }
                    Act::Truncate(length) => {
                        buffer.truncate(length);
                        model.truncate(length);
                    }
                    Act::Clear => {
                        buffer.clear();
                        model.clear();
                    }
                    Act::Pad => {
                        buffer.pad_to_block();
                        model.resize(model.len().next_multiple_of(BLOCK_BYTES), 0);
                    }
                }
                prop_assert_eq!(buffer.as_slice(), model.as_slice());
                prop_assert!(AlignedBuffer::is_aligned(&buffer));
            }
        }
    }

    #[test]
    fn reuse_after_clear_does_not_move_or_leak_old_bytes() {
        let mut buffer = AlignedBuffer::with_capacity(10_000);
        let address = buffer.as_slice().as_ptr();
        buffer.resize(9_000, 7);
        buffer.clear();
        buffer.resize(9_000, 0);
        assert_eq!(buffer.as_slice().as_ptr(), address);
        assert!(buffer.iter().all(|b| *b == 0));
        assert_eq!(AlignedBuffer::zeroed(5).as_slice(), [0; 5]);
        assert!(AlignedBuffer::new().is_empty());
    }
}
