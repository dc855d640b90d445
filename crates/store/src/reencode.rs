//! What a file has of another policy than its own is stored anew.
//!
//! The bytes are read and become chunks that follow the file's policy, or are found among those that do; then the file's
//! references are pointed to these. What was written meanwhile stays as it is, and chunks to which others refer stay too.

use crate::StoreError;
use crate::clean::Restraint;
use crate::ingest::Piece;
use crate::store::Store;
use aegisfs_base::{BranchId, ChunkId, InodeId, PolicyId, SegmentId};
use aegisfs_format::op::{NewRef, Op};
use std::collections::HashMap;
use std::time::Instant;

/// Bytes, and references to them, that one change stores anew; bounds memory and the log record.
const BYTES_PER_CHANGE: u64 = 4 << 20;
const REFERENCES_PER_CHANGE: usize = 500;

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reencoded {
    /// Bytes that follow the policy by now and did not before.
    pub bytes: u64,
    /// Bytes that could not be read, and stay where they are.
    pub unreadable_bytes: u64,
    /// Something was stored elsewhere meanwhile: it should be looked at again.
    pub is_outdated: bool,
}

impl Store {
    /// Which policy a chunk follows; none if it is gone.
    ///
    /// # Errors
    /// When the metadata cannot be read.
    pub fn policy_of_chunk(&self, chunk: ChunkId) -> Result<Option<PolicyId>, StoreError> {
        let Some(segment) = self.segment_of(chunk)? else { return Ok(None) };
        Ok(self.read_segment(segment)?.map(|segment| segment.policy))
    }

    fn segment_of(&self, chunk: ChunkId) -> Result<Option<SegmentId>, StoreError> {
        match self.descriptor(chunk) {
            Ok(descriptor) => Ok(Some(descriptor.frame.segment)),
            Err(StoreError::StaleChunk { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Stores what files have of other policies anew, without being in anybody's way.
pub struct Reencoder<'s> {
    store: &'s Store,
    restraint: Restraint,
    /// Which policy segments follow. One that is gone is never asked for again.
    policies: HashMap<SegmentId, PolicyId>,
}

impl<'s> Reencoder<'s> {
    /// Begins.
    pub fn new(store: &'s Store) -> Self {
        Self { store, restraint: Restraint::new(store), policies: HashMap::new() }
    }

    /// Stores those of a file's references anew that do not follow a policy. `goes_on` is asked between the steps; `leave` is
    /// the room that stays for others.
    ///
    /// # Errors
    /// [`StoreError::Stopped`] when it was told to stop; when there is no room, nothing may be written, or the metadata or a
    /// device fails. What was done by then stays done.
    pub fn reencode(
        &mut self,
        inode: InodeId,
        references: &[NewRef],
        policy: PolicyId,
        leave: u64,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<Reencoded, StoreError> {
        let mut done = Reencoded::default();
        let mut batch: Vec<(NewRef, Vec<u8>)> = Vec::new();
        let mut bytes = 0;
        let mut begun = Instant::now();
        for (number, reference) in references.iter().enumerate() {
            let found = self.policy_of(reference.chunk)?;
            done.is_outdated |= found.is_none();
            if found.is_some_and(|found| found != policy) {
                let mut plain = vec![0; reference.length as usize];
                self.store.count_background_use();
                match self.store.read_chunk(reference.chunk, reference.offset_in_chunk, &mut plain) {
                    Ok(()) => {
                        bytes += plain.len() as u64;
                        batch.push((*reference, plain));
                    }
                    // Somebody wrote over it, or what was left of it is a chunk of its own by now.
                    Err(StoreError::StaleChunk { .. }) => done.is_outdated = true,
                    Err(StoreError::Damaged { .. }) => {
                        done.unreadable_bytes += u64::from(reference.length);
                    }
                    Err(error) => return Err(error),
                }
            }
            let is_last = number + 1 == references.len();
            let is_full = bytes >= BYTES_PER_CHANGE || batch.len() >= REFERENCES_PER_CHANGE;
            if !batch.is_empty() && (is_last || is_full) {
                self.plant(inode, &batch, policy, leave)?;
                done.bytes += bytes;
                batch.clear();
                self.restraint.wait(self.store, bytes, begun.elapsed(), goes_on);
                (bytes, begun) = (0, Instant::now());
            }
            if !goes_on() {
                return Err(StoreError::Stopped);
            }
        }
        Ok(done)
    }

    /// Which policy a chunk follows; none if it is gone.
    fn policy_of(&mut self, chunk: ChunkId) -> Result<Option<PolicyId>, StoreError> {
        let Some(segment) = self.store.segment_of(chunk)? else { return Ok(None) };
        if let Some(policy) = self.policies.get(&segment) {
            return Ok(Some(*policy));
        }
        let policy = self.store.read_segment(segment)?.map(|segment| segment.policy);
        self.policies.extend(policy.map(|policy| (segment, policy)));
        Ok(policy)
    }

    fn plant(
        &self,
        inode: InodeId,
        batch: &[(NewRef, Vec<u8>)],
        policy: PolicyId,
        leave: u64,
    ) -> Result<(), StoreError> {
        let bytes = batch.iter().map(|(_, plain)| plain.len() as u64).sum();
        let worst = self.store.worst_case_bytes(bytes, batch.len() as u64, policy);
        let _room = self.store.reserve_stored(worst, leave, policy)?;
        let pieces: Vec<Piece<'_>> = (0..)
            .zip(batch)
            .map(|(number, (reference, plain))| Piece::new(number, reference.offset, plain))
            .collect();
        for trusting in [true, false] {
            let mut ingested = self.store.ingest(batch.len(), &pieces, policy, trusting)?;
            let references = std::mem::take(&mut ingested.references);
            let ops = batch.iter().zip(references).map(|((from, _), references)| Op::Repoint {
                inode,
                from: *from,
                references,
            });
            self.store.count_background_use();
            match self.store.commit_ingested(BranchId(0), ingested, ops.collect()) {
                // What was found has died meanwhile.
                Err(StoreError::StaleChunk { .. }) if trusting => {}
                outcome => return outcome.map(|_| ()),
            }
        }
        Ok(())
    }
}
