//! Damage that nothing here can mend: chunks that are on record as lost, and what gives them back.
//!
//! A chunk goes on record when a reader was told that it is damaged, or a scrub found a row of which too few cells are sound.
//! It leaves the record when it can be read again, when nothing refers to it any more, or when somebody brings its bytes:
//! any file that holds them does. New data never refer to it; they are stored anew.
//!
//! The record stands in the metadata, under `damage/` and the chunk's number.

use crate::StoreError;
use crate::ingest::frames::NewChunk;
use crate::store::Store;
use crate::tables::Tables;
use aegisfs_base::limits::CHUNK_BYTES_MAX;
use aegisfs_base::{BranchId, ChunkId, DeviceIndex, InodeId, SegmentId};
use aegisfs_chunk::{ChunkHash, next_cut};
use aegisfs_format::descriptor::{Descriptor, FramePlace};
use aegisfs_format::extent::decode_window;
use aegisfs_format::key::{self, Table};
use aegisfs_format::op::Op;
use aegisfs_format::value::{Damage, Mended, MendedList, is_tombstone};
use parking_lot::Mutex;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io::{self, Read};
use std::ops::ControlFlow;

/// How keys begin, behind which the chunk's number follows.
const DAMAGE_KEY: &[u8] = b"damage/";
/// Where it stands in the configuration what was mended, and how much of that is kept.
const MENDED_KEY: &[u8] = b"mended";
const MENDED_MAX: usize = 256;
/// Chunks that are taken on record; whoever finds more knows that it is bad, and reading tells.
const RECORDED_MAX: usize = 1 << 20;
/// Bytes of a source that are looked at in one go.
const SOURCE_BYTES: usize = 16 * CHUNK_BYTES_MAX;
/// Records dropped in one change.
const DROPPED_PER_CHANGE: usize = 1000;

/// The chunks on record.
#[derive(Debug, Default)]
pub(crate) struct DamageBook {
    chunks: Mutex<BTreeSet<ChunkId>>,
    mended: Mutex<MendedBook>,
}

/// The last things that were mended.
#[derive(Debug, Default)]
struct MendedBook {
    list: VecDeque<Mended>,
    /// Not all of them are stored.
    has_news: bool,
}

/// A part of a file that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LostRange {
    /// The file.
    pub inode: InodeId,
    /// Where the part begins in it.
    pub offset: u64,
    /// Its bytes.
    pub length: u64,
    /// The chunk that it lies in.
    pub chunk: ChunkId,
    /// Where in the chunk the part begins.
    pub offset_in_chunk: u32,
}

/// A chunk that somebody's bytes may mend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostChunk {
    /// The chunk.
    pub chunk: ChunkId,
    /// BLAKE3 of its bytes.
    pub hash: [u8; 32],
    /// How many they are.
    pub bytes: u32,
    /// Where it is, and since when that is known.
    pub damage: Damage,
}

impl LostChunk {
    /// Whether these are its bytes.
    pub fn is(&self, bytes: &[u8]) -> bool {
        are_bytes(bytes, self.bytes, &self.hash)
    }
}

/// Whether bytes are as many as these, with this hash.
fn are_bytes(bytes: &[u8], length: u32, hash: &[u8; 32]) -> bool {
    bytes.len() == length as usize && ChunkHash::of(bytes).0 == *hash
}

fn damage_key(chunk: ChunkId) -> Vec<u8> {
    [DAMAGE_KEY, &chunk.0.to_be_bytes()].concat()
}

impl Store {
    /// Reads the record, once, when the store is opened.
    pub(crate) fn load_damage(&self) -> Result<(), StoreError> {
        if let Some(stored) = self.view().get(Table::Config, MENDED_KEY)? {
            self.damage.mended.lock().list = MendedList::decode(&stored)?.0.into();
        }
        let mut chunks = self.damage.chunks.lock();
        self.view().scan(Table::Config, DAMAGE_KEY, key::prefix_end(DAMAGE_KEY).as_deref(), &mut |key, _| {
            let number = key[DAMAGE_KEY.len()..].first_chunk::<8>();
            chunks.extend(number.map(|number| ChunkId(u64::from_be_bytes(*number))));
            ControlFlow::Continue(())
        })
    }

    /// Notes that something was damaged and is mended; of what came before only the latest is kept.
    pub(crate) fn note_mended(
        &self,
        chunk: Option<ChunkId>,
        (segment, slot_offset, cell): (SegmentId, u32, u8),
        device: DeviceIndex,
    ) {
        let damage = Damage { found: self.clock.now(), segment, slot_offset, cell, device };
        let mut mended = self.damage.mended.lock();
        if mended.list.len() >= MENDED_MAX {
            mended.list.pop_front();
        }
        mended.list.push_back(Mended { damage, chunk });
        mended.has_news = true;
    }

    /// The last things that were mended, the oldest first.
    pub fn mended(&self) -> Vec<Mended> {
        self.damage.mended.lock().list.iter().copied().collect()
    }

    /// What has to be stored of that, if anything has.
    pub(crate) fn take_mended_news(&self) -> Option<Op> {
        let mut mended = self.damage.mended.lock();
        if !std::mem::take(&mut mended.has_news) {
            return None;
        }
        let value = MendedList(mended.list.iter().copied().collect()).encode();
        Some(Op::Put { table: Table::Config, key: MENDED_KEY.to_vec(), value })
    }

    /// Whether a chunk is on record as lost.
    pub(crate) fn is_recorded(&self, chunk: ChunkId) -> bool {
        let chunks = self.damage.chunks.lock();
        !chunks.is_empty() && chunks.contains(&chunk)
    }

    /// Takes a chunk on record. Whatever keeps it from being written down: whoever reads is told all the same.
    pub(crate) fn record_damage(&self, chunk: ChunkId, place: &FramePlace) {
        {
            let mut chunks = self.damage.chunks.lock();
            let is_new = chunks.len() < RECORDED_MAX && self.check_writable().is_ok() && chunks.insert(chunk);
            if !is_new {
                return;
            }
        }
        let FramePlace { segment, slot_offset, cell, .. } = *place;
        let damage =
            Damage { found: self.clock.now(), segment, slot_offset, cell, device: self.device_of(place) };
        let put = Op::Put { table: Table::Config, key: damage_key(chunk), value: damage.encode() };
        if let Err(error) = self.commit(BranchId(0), vec![put], Vec::new()) {
            tracing::warn!(%error, "damage could not be put on record");
        }
    }

    fn device_of(&self, place: &FramePlace) -> DeviceIndex {
        let layout = self.layout(place.segment).ok();
        let slot = layout.and_then(|layout| layout.copies(place.cell).first().copied());
        slot.unwrap_or_default().0
    }

    /// The chunks on record that still cannot be read; the others leave it.
    ///
    /// # Errors
    /// When the metadata cannot be read.
    pub fn lost_chunks(&self) -> Result<Vec<LostChunk>, StoreError> {
        let recorded: Vec<ChunkId> = self.damage.chunks.lock().iter().copied().collect();
        let (mut lost, mut gone) = (Vec::new(), Vec::new());
        for chunk in recorded {
            let Some(stored) = self.view().get(Table::Config, &damage_key(chunk))? else {
                gone.push(chunk);
                continue;
            };
            match self.descriptor(chunk) {
                Err(StoreError::StaleChunk { .. }) => gone.push(chunk),
                Err(error) => return Err(error),
                Ok(_) if self.read_chunk(chunk, 0, &mut [0; 1]).is_ok() => gone.push(chunk),
                Ok(Descriptor { hash, plain_bytes, .. }) => {
                    let damage = Damage::decode(&stored)?;
                    lost.push(LostChunk { chunk, hash, bytes: plain_bytes, damage });
                }
            }
        }
        self.drop_records(&gone)?;
        Ok(lost)
    }

    fn drop_records(&self, gone: &[ChunkId]) -> Result<(), StoreError> {
        if self.check_writable().is_err() {
            return Ok(());
        }
        for some in gone.chunks(DROPPED_PER_CHANGE) {
            let delete = |chunk: &ChunkId| Op::Delete { table: Table::Config, key: damage_key(*chunk) };
            self.commit(BranchId(0), some.iter().map(delete).collect(), Vec::new())?;
            let mut chunks = self.damage.chunks.lock();
            for chunk in some {
                chunks.remove(chunk);
            }
        }
        Ok(())
    }

    /// Which parts of files lie in some chunks, at the head and in snapshots. Reads all extents.
    ///
    /// # Errors
    /// When the metadata cannot be read.
    pub fn ranges_in(&self, chunks: &BTreeSet<ChunkId>) -> Result<BTreeSet<LostRange>, StoreError> {
        let mut found = BTreeSet::new();
        let mut problem = None;
        self.view().scan(Table::Extents, &[], None, &mut |stem, stored| {
            if is_tombstone(stored) {
                return ControlFlow::Continue(());
            }
            let found_here = decode_window(stored)
                .and_then(|references| Ok((key::stem_inode(stem)?, key::extents_window(stem)?, references)));
            let (inode, window, references) = match found_here {
                Ok(found_here) => found_here,
                Err(error) => {
                    problem = Some(error.into());
                    return ControlFlow::Break(());
                }
            };
            let start = window * aegisfs_base::limits::WINDOW_BYTES;
            for reference in references.iter().filter(|reference| chunks.contains(&reference.chunk)) {
                found.insert(LostRange {
                    inode,
                    offset: start + u64::from(reference.offset),
                    length: u64::from(reference.length),
                    chunk: reference.chunk,
                    offset_in_chunk: reference.offset_in_chunk,
                });
            }
            ControlFlow::Continue(())
        })?;
        problem.map_or(Ok(found), Err)
    }

    /// Writes the bytes of lost chunks anew, where they are what they should be; returns those that are there again.
    ///
    /// # Errors
    /// When there is no room, or a device or the metadata fails.
    pub fn give_back(&self, found: &BTreeMap<ChunkId, Vec<u8>>) -> Result<Vec<ChunkId>, StoreError> {
        self.check_writable()?;
        let mut by_segment: BTreeMap<SegmentId, Vec<(NewChunk<'_>, u32)>> = BTreeMap::new();
        for (chunk, bytes) in found {
            let descriptor = match self.descriptor(*chunk) {
                Err(StoreError::StaleChunk { .. }) => continue,
                descriptor => descriptor?,
            };
            if !are_bytes(bytes, descriptor.plain_bytes, &descriptor.hash) {
                continue;
            }
            let new = NewChunk { chunk: *chunk, hash: descriptor.hash, data: Cow::Borrowed(&bytes[..]) };
            let place = descriptor.frame;
            by_segment.entry(place.segment).or_default().push((new, place.slot_offset));
        }
        let mut done = Vec::new();
        for (segment, chunks) in by_segment {
            let bytes = chunks.iter().map(|(new, _)| new.data.len() as u64).sum();
            let Some(policy) = self.read_segment(segment)?.map(|segment| segment.policy) else { continue };
            let _room = self.reserve(bytes, 0, policy)?;
            done.extend(chunks.iter().map(|(new, _)| new.chunk));
            self.store_again(segment, chunks)?;
        }
        self.drop_records(&done)?;
        Ok(done)
    }

    /// Looks in a source for the bytes of lost chunks, by cutting it as a file is cut. Memory does not grow with it.
    ///
    /// # Errors
    /// When the source cannot be read.
    pub fn look_for_chunks(
        lost: &HashMap<[u8; 32], Vec<ChunkId>>,
        source: &mut dyn Read,
        found: &mut dyn FnMut(ChunkId, &[u8]) -> io::Result<()>,
    ) -> io::Result<u64> {
        let mut buffer = vec![0; SOURCE_BYTES];
        let (mut filled, mut total, mut ended) = (0, 0, false);
        loop {
            while filled < buffer.len() && !ended {
                let count = source.read(&mut buffer[filled..])?;
                ended = count == 0;
                filled += count;
                total += count as u64;
            }
            let mut at = 0;
            while let Some(length) = next_cut(&buffer[at..filled], ended).filter(|length| *length > 0) {
                let bytes = &buffer[at..at + length];
                for chunk in lost.get(&ChunkHash::of(bytes).0).into_iter().flatten() {
                    found(*chunk, bytes)?;
                }
                at += length;
            }
            if ended {
                return Ok(total);
            }
            buffer.copy_within(at..filled, 0);
            filled -= at;
        }
    }
}
