//! A metadata database on mirrored slots: the engine's storage, every page checksummed.
//!
//! The engine never overwrites a page that its last durable root can reach, except page 0, where the roots
//! themselves stand. So a crash may leave any page of the unfinished commit torn without harm, as long as
//! the checksums of all others stay right: a sync writes, together with the pages, the *older* of the two
//! copies of each checksum block it changes, and opening takes the newest copy that verifies.
//!
//! Page 0 is written like a checksum block: it has two places in the slot that alternate with the
//! generation of the first checksum block, which therefore names exactly one of them. An older checksum
//! block thus brings back the older page 0, and the root in it.

mod groups;
mod pages;
mod returning;
mod scrub;

use crate::PoolError;
use crate::pool::Pool;
use crate::slots::Placement;
use aegisfs_base::FaultKind;
use aegisfs_base::limits::BLOCK_BYTES;
use aegisfs_base::sabotage::{Edge, removed};
use aegisfs_format::map::{MapEntry, MapOwner};
use aegisfs_format::page::DatabaseSlotLayout;
use groups::Groups;
use pages::PageBuffer;
use parking_lot::{Mutex, RwLock};
pub use scrub::Scrubbed;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The database that may take the slots that are kept for metadata; what others hold can be had from it.
const FIRST: u8 = 0;
/// Buffered page writes above this are written out, though not flushed, before the next sync.
const BUFFER_BYTES_MAX: usize = 32 << 20;

/// One of the pool's metadata databases.
///
/// Lock order: `sync` before `pieces` before `groups` before `buffer`; only `sync` is held across I/O,
/// and reads never take it.
pub struct Database {
    pool: Arc<Pool>,
    number: u8,
    layout: DatabaseSlotLayout,
    /// Bytes as the engine sees them.
    length: AtomicU64,
    /// Places by piece, then by copy.
    pieces: RwLock<Vec<Vec<Placement>>>,
    groups: Mutex<Groups>,
    buffer: Mutex<PageBuffer>,
    /// Held by whoever writes pages out, so that two never do so at once.
    sync: Mutex<()>,
    copies: u8,
    /// Pages healed from another copy since the database was opened.
    healed: AtomicU64,
    /// Pages written since then, one copy counted.
    written: AtomicU64,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "metadata database {}", self.number)
    }
}

impl Database {
    /// The database with this number, which may still be empty. `copies` counts for slots it grows by.
    pub fn new(pool: Arc<Pool>, number: u8, copies: u8) -> Self {
        let layout = DatabaseSlotLayout::new(pool.slot_bytes());
        let mut pieces: Vec<Vec<Placement>> = Vec::new();
        let mut entries = pool.mapped(MapOwner::Database(number));
        entries.sort_by_key(|e| (e.piece, e.copy));
        for entry in entries {
            let index = entry.piece as usize;
            if pieces.len() <= index {
                pieces.resize(index + 1, Vec::new());
            }
            pieces[index].push((entry.device, entry.slot));
        }
        let length = pool.state.lock().superblock.database_bytes[usize::from(number)];
        Self {
            pool,
            number,
            layout,
            length: AtomicU64::new(length),
            pieces: RwLock::new(pieces),
            groups: Mutex::new(Groups::default()),
            buffer: Mutex::new(PageBuffer::default()),
            sync: Mutex::new(()),
            copies,
            healed: AtomicU64::new(0),
            written: AtomicU64::new(0),
        }
    }

    /// Which of the pool's databases it is.
    pub const fn number(&self) -> u8 {
        self.number
    }

    /// Pages healed from another copy since the database was opened.
    pub fn healed(&self) -> u64 {
        self.healed.load(Ordering::Relaxed)
    }

    /// Pages written since the database was opened, one copy counted.
    pub fn pages_written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Bytes of its slots that were written, all copies counted: the rest of a mapped slot is still a hole
    /// in an image file.
    ///
    /// # Errors
    /// When its checksum blocks cannot be read.
    pub fn written_bytes(&self) -> Result<u64, PoolError> {
        let pieces = self.pieces.read().clone();
        let mut blocks = 0u64;
        for (piece, places) in pieces.iter().enumerate().filter(|(_, places)| !places.is_empty()) {
            let mut pages = 0u64;
            for page in 0..self.layout.pages {
                pages += u64::from(self.page_entry(piece as u32, page)?.0.counter > 0);
            }
            let frame = 1 + 2 * u64::from(self.layout.groups);
            blocks += (pages + frame) * places.len() as u64;
        }
        Ok(blocks * BLOCK_BYTES as u64)
    }

    /// Which piece a page is in, and which page of the piece it is.
    fn locate(&self, page: u64) -> (u32, u32) {
        let pages = u64::from(self.layout.pages);
        (u32::try_from(page / pages).expect("pieces are bounded"), (page % pages) as u32)
    }

    /// Pages that lie in slots of it, used or not.
    pub fn mapped_pages(&self) -> u64 {
        let pieces = self.pieces.read().iter().filter(|places| !places.is_empty()).count() as u64;
        pieces * self.pages_per_piece()
    }

    /// Pages by which it grows at a time.
    pub fn pages_per_piece(&self) -> u64 {
        u64::from(self.layout.pages)
    }

    /// Slots that it grows by at a time.
    pub fn copies(&self) -> u8 {
        self.copies
    }

    fn places(&self, piece: u32) -> Vec<Placement> {
        self.pieces.read().get(piece as usize).cloned().unwrap_or_default()
    }

    /// Gives the database another length, which costs no slots: those are taken when pages are written.
    ///
    /// The superblock keeps the longest length there ever was, durable before it is used: the engine takes
    /// a length that is too long, but never one that is too short.
    fn resize(&self, length: u64) -> Result<(), PoolError> {
        let _writing = self.sync.lock();
        let old = self.length.load(Ordering::Acquire);
        if length < old {
            self.buffer.lock().truncate(length.div_ceil(BLOCK_BYTES as u64));
        } else {
            let mut state = self.pool.state.lock();
            let recorded = &mut state.superblock.database_bytes[usize::from(self.number)];
            let before = *recorded;
            if before < length {
                *recorded = length;
                if !removed(Edge::GrowthMapFirst) {
                    let outcome = self.pool.publish(&mut state);
                    if outcome.is_err() {
                        // Not durable, so the next attempt has to publish it again.
                        state.superblock.database_bytes[usize::from(self.number)] = before;
                    }
                    outcome?;
                }
            }
        }
        self.length.store(length, Ordering::Release);
        Ok(())
    }

    /// Makes sure that a piece has slots, durably mapped before anything is written to them.
    fn map_piece(&self, piece: u32) -> Result<(), PoolError> {
        if self.pieces.read().get(piece as usize).is_some_and(|places| !places.is_empty()) {
            return Ok(());
        }
        let entries = self.prepare_piece(piece)?;
        if !removed(Edge::GrowthMapFirst) {
            // The map must never lead to a slot whose checksum blocks are not there yet.
            self.pool.flush()?;
            let mut state = self.pool.state.lock();
            let mapped = state.map.len();
            state.map.extend(&entries);
            let outcome = self.pool.publish(&mut state);
            if outcome.is_err() {
                // Some device may have the new map all the same, so the slots stay taken until the pool is
                // opened again.
                state.map.truncate(mapped);
            }
            outcome?;
        } else {
            self.pool.state.lock().map.extend(&entries);
        }
        self.pool.database_slots.fetch_add(entries.len() as u64, Ordering::AcqRel);
        let mut pieces = self.pieces.write();
        if pieces.len() <= piece as usize {
            pieces.resize(piece as usize + 1, Vec::new());
        }
        pieces[piece as usize] = entries.iter().map(|entry| (entry.device, entry.slot)).collect();
        Ok(())
    }

    /// Takes slots for a new piece and writes blank checksum blocks to both of their places, so that nothing
    /// left there by an earlier use is believed.
    fn prepare_piece(&self, piece: u32) -> Result<Vec<MapEntry>, PoolError> {
        let places = self.pool.take_mirror_slots(self.copies, "metadata", self.number == FIRST)?;
        let owner = MapOwner::Database(self.number);
        let entries: Vec<MapEntry> = (0..self.copies)
            .zip(&places)
            .map(|(copy, (device, slot))| MapEntry { owner, piece, copy, device: *device, slot: *slot })
            .collect();
        let blank = self.blank_sums(piece);
        let outcome = self.pool.write_copies(&places, self.layout.sum_block_offset(0, 0), &blank);
        let outcome =
            outcome.and_then(|()| entries.iter().try_for_each(|e| self.pool.write_mapped_header(e)));
        if let Err(error) = outcome {
            self.pool.abandon(&places);
            return Err(error);
        }
        Ok(entries)
    }

    /// Lets go of its slots, which are about to be another's: nothing is read or written through it any more.
    pub fn let_go(&self) {
        let _writing = self.sync.lock();
        self.pieces.write().clear();
    }

    /// Writes buffered pages and the checksum blocks they change, then flushes.
    fn sync(&self) -> Result<(), PoolError> {
        let _writing = self.sync.lock();
        self.write_out()?;
        self.write_sums()?;
        if !removed(Edge::PageFlush) {
            self.pool.flush()?;
        }
        Ok(())
    }
}

impl Pool {
    /// Forgets a database whose content can be had from elsewhere; its slots are free then. After a crash it is
    /// as it was, or empty.
    ///
    /// # Errors
    /// When a superblock cannot be written.
    pub fn forget_database(&self, number: u8) -> Result<(), PoolError> {
        self.ensure_dirty()?;
        let mut state = self.state.lock();
        let before = (state.map.clone(), state.superblock.database_bytes[usize::from(number)]);
        let (gone, kept): (Vec<_>, Vec<_>) =
            before.0.iter().partition(|entry| entry.owner == MapOwner::Database(number));
        state.map = kept;
        state.superblock.database_bytes[usize::from(number)] = 0;
        if let Err(error) = self.publish(&mut state) {
            // Some device may say so already, so the slots stay taken until the pool is opened again.
            (state.map, state.superblock.database_bytes[usize::from(number)]) = before;
            return Err(error);
        }
        drop(state);
        self.database_slots.fetch_sub(gone.len() as u64, Ordering::AcqRel);
        self.abandon(&gone.iter().map(|entry| (entry.device, entry.slot)).collect::<Vec<_>>());
        Ok(())
    }
}

/// The engine's view. Errors tell by their kind what happened, as `kv` asks for.
impl aegisfs_kv::Backing for Database {
    fn len(&self) -> io::Result<u64> {
        Ok(self.length.load(Ordering::Acquire))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if offset + out.len() as u64 > self.length.load(Ordering::Acquire) {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "read beyond the end of a database"));
        }
        self.read_bytes(offset, out).map_err(into_io)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.resize(len).map_err(into_io)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync().map_err(into_io)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if offset + data.len() as u64 > self.length.load(Ordering::Acquire) {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "write beyond the end of a database"));
        }
        self.write_bytes(offset, data).map_err(into_io)
    }
}

/// A database that others hold as well, as the engine's storage.
#[derive(Clone, Debug)]
pub struct OnPool(pub Arc<Database>);

impl aegisfs_kv::Backing for OnPool {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
}

fn into_io(error: PoolError) -> io::Error {
    let kind = match error.kind() {
        FaultKind::Corrupt => io::ErrorKind::InvalidData,
        FaultKind::NoSpace => io::ErrorKind::StorageFull,
        FaultKind::Unavailable | FaultKind::Poisoned | FaultKind::Invalid | FaultKind::Internal => {
            io::ErrorKind::Other
        }
    };
    io::Error::new(kind, error)
}
