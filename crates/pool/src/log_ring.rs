//! The intent log's address space: endless positions on a ring of mirrored slots.
//!
//! Position p lies in piece (p / payload) mod pieces. An access never crosses a piece.

use crate::PoolError;
use crate::pool::Pool;
use crate::slots::Placement;
use aegisfs_format::map::MapOwner;
use aegisfs_format::slot::SLOT_HEADER_BYTES;
use std::sync::Arc;

/// The intent log's slots.
pub struct LogRing {
    pool: Arc<Pool>,
    /// Places by piece, then by copy.
    pieces: Vec<Vec<Placement>>,
}

impl LogRing {
    /// The log of a pool.
    pub fn new(pool: Arc<Pool>) -> Self {
        let mut pieces: Vec<Vec<Placement>> = Vec::new();
        let mut entries = pool.mapped(MapOwner::Log);
        entries.sort_by_key(|e| (e.piece, e.copy));
        for entry in entries {
            let index = entry.piece as usize;
            if pieces.len() <= index {
                pieces.resize(index + 1, Vec::new());
            }
            pieces[index].push((entry.device, entry.slot));
        }
        Self { pool, pieces }
    }

    /// Bytes of the log in one piece.
    pub fn piece_bytes(&self) -> u64 {
        self.pool.slot_bytes() - SLOT_HEADER_BYTES
    }

    /// Bytes that the ring holds.
    pub fn capacity(&self) -> u64 {
        self.piece_bytes() * self.pieces.len() as u64
    }

    /// Bytes from a position to the end of its piece.
    pub fn room_in_piece(&self, position: u64) -> u64 {
        self.piece_bytes() - position % self.piece_bytes()
    }

    /// Copies of each piece.
    pub fn copies(&self) -> usize {
        self.pieces.first().map_or(0, Vec::len)
    }

    fn locate(&self, position: u64, bytes: usize) -> (&[Placement], u64) {
        assert!(bytes as u64 <= self.room_in_piece(position), "a log access stays within its piece");
        let piece = (position / self.piece_bytes()) % self.pieces.len() as u64;
        let offset = SLOT_HEADER_BYTES + position % self.piece_bytes();
        (&self.pieces[usize::try_from(piece).expect("pieces fit in memory")], offset)
    }

    /// Reads one copy.
    ///
    /// # Errors
    /// When its device is missing or fails.
    pub fn read(&self, position: u64, copy: usize, out: &mut [u8]) -> Result<(), PoolError> {
        let (places, offset) = self.locate(position, out.len());
        self.pool.read_slot(places[copy], offset, out)
    }

    /// Writes all copies; durable after the pool's next flush.
    ///
    /// # Errors
    /// When a device fails that cannot be spared.
    pub fn write(&self, position: u64, data: &[u8]) -> Result<(), PoolError> {
        let (places, offset) = self.locate(position, data.len());
        self.pool.write_copies(places, offset, data)
    }
}
