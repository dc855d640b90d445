//! The naive model: every head and every pinned epoch is a full copy of plain data.

use aegisfs_base::limits::WINDOW_BYTES;
use aegisfs_base::{BranchId, ChunkId, EpochId, InodeId, Sequence};
use aegisfs_format::key::{self, Table};
use aegisfs_format::op::{NewRef, Op};
use aegisfs_format::value::{Inode, branch_of};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

/// Windows of a file that are written to.
const WINDOWS: u64 = 4;

/// Where a run of a file begins, its length, its chunk, and where it begins in that.
pub(crate) type Run = (u64, u64, ChunkId, u32);

/// The places at which references may begin and end: quarters of windows, and one byte to each side.
pub(crate) fn cuts() -> &'static [u64] {
    static CUTS: LazyLock<Vec<u64>> = LazyLock::new(|| {
        let quarters = (1..=WINDOWS * 4).map(|quarter| quarter * (WINDOW_BYTES / 4));
        [0, 1].into_iter().chain(quarters.flat_map(|at| [at - 1, at, at + 1])).collect()
    });
    &CUTS
}

/// A file: what each stretch between two cuts refers to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Content(BTreeMap<u64, (ChunkId, u32)>);

/// Everything that one view sees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plain {
    pub(crate) stems: BTreeMap<(Table, Vec<u8>), Vec<u8>>,
    files: BTreeMap<InodeId, Content>,
}

impl Plain {
    /// The runs of a file, neighbours that continue each other being one.
    pub(crate) fn runs(&self) -> BTreeMap<InodeId, Vec<Run>> {
        let cuts = cuts();
        let mut files = BTreeMap::new();
        for (inode, content) in &self.files {
            let atoms = content.0.iter().map(|(offset, (chunk, in_chunk))| {
                let next = cuts[cuts.partition_point(|cut| cut <= offset)];
                (*offset, next - offset, *chunk, *in_chunk)
            });
            files.insert(*inode, joined(atoms));
        }
        files.retain(|_, runs: &mut Vec<Run>| !runs.is_empty());
        files
    }

    pub(crate) fn chunks(&self) -> impl Iterator<Item = ChunkId> {
        self.files.values().flat_map(|content| content.0.values().map(|(chunk, _)| *chunk))
    }

    /// Has a range refer to that part of some references.
    pub(crate) fn refer(&mut self, inode: InodeId, from: u64, to: u64, references: &[NewRef]) {
        let part = |reference: &NewRef| {
            let (start, end) = (reference.offset, reference.offset + u64::from(reference.length));
            let (offset, end) = (start.max(from), end.min(to));
            (offset < end).then(|| NewRef {
                offset,
                length: (end - offset) as u32,
                offset_in_chunk: reference.offset_in_chunk + (offset - start) as u32,
                ..*reference
            })
        };
        self.replace(inode, from, to, &references.iter().filter_map(part).collect::<Vec<_>>());
    }

    fn replace(&mut self, inode: InodeId, from: u64, to: u64, references: &[NewRef]) {
        let content = &mut self.files.entry(inode).or_default().0;
        let cuts = cuts();
        let bytes = |content: &BTreeMap<u64, _>| -> i64 {
            let length = |at: &u64| cuts[cuts.partition_point(|cut| cut <= at)] - at;
            content.keys().map(length).sum::<u64>().cast_signed()
        };
        let before = bytes(content);
        for cut in cuts.iter().filter(|cut| (from..to).contains(cut)) {
            content.remove(cut);
        }
        for reference in references {
            let end = reference.offset + u64::from(reference.length);
            for cut in cuts.iter().filter(|cut| (reference.offset..end).contains(cut)) {
                let skipped = (cut - reference.offset) as u32;
                content.insert(*cut, (reference.chunk, reference.offset_in_chunk + skipped));
            }
        }
        let by = bytes(content) - before;
        if let Some(stored) = self.stems.get_mut(&(Table::Inode, key::inode(inode).to_vec())) {
            let mut value = Inode::decode(stored).unwrap();
            value.allocated = value.allocated.saturating_add_signed(by);
            *stored = value.encode();
        }
    }
}

/// Joins runs that continue each other; they are in order.
pub(crate) fn joined(runs: impl Iterator<Item = Run>) -> Vec<Run> {
    let mut all: Vec<Run> = Vec::new();
    for (offset, length, chunk, in_chunk) in runs {
        match all.last_mut() {
            Some(last)
                if last.0 + last.1 == offset
                    && last.2 == chunk
                    && u64::from(last.3) + last.1 == u64::from(in_chunk) =>
            {
                last.1 += length;
            }
            _ => all.push((offset, length, chunk, in_chunk)),
        }
    }
    all
}

/// Bytes that stand only in the log: by file and write, its parts in order, each byte by its offset.
pub(crate) type PendingBytes = BTreeMap<(InodeId, Sequence), Vec<BTreeMap<u64, u8>>>;

/// A branch that can be written to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Line {
    pub(crate) now: Plain,
    pub(crate) pending: PendingBytes,
}

impl Line {
    pub(crate) fn apply(&mut self, op: &Op, sequence: Sequence) {
        match op {
            Op::PutVersion { table, stem, value } => {
                self.now.stems.insert((*table, stem.clone()), value.clone());
            }
            Op::RemoveVersion { table, stem } => {
                self.now.stems.remove(&(*table, stem.clone()));
            }
            Op::Replace { inode, from, to, pending_up_to, references } => {
                self.now.replace(*inode, *from, *to, references);
                for ((of, sequence), parts) in &mut self.pending {
                    if of == inode && sequence <= pending_up_to {
                        parts.iter_mut().for_each(|part| part.retain(|at, _| !(*from..*to).contains(at)));
                    }
                }
                self.pending.retain(|_, parts| parts.iter().any(|part| !part.is_empty()));
            }
            Op::Pending { inode, offset, bytes } => {
                let part = (*offset..).zip(bytes.iter().copied()).collect();
                self.pending.entry((*inode, sequence)).or_default().push(part);
            }
            _ => {}
        }
    }
}

/// A pinned epoch.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub(crate) name: Option<Vec<u8>>,
    pub(crate) then: Plain,
}

/// All of history.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    pub(crate) open: BTreeMap<BranchId, Line>,
    pub(crate) kept: BTreeMap<EpochId, Kept>,
    /// Where each branch that still exists began.
    pub(crate) origins: BTreeMap<BranchId, Option<EpochId>>,
    /// Branches shown by volumes.
    pub(crate) volumes: BTreeMap<Vec<u8>, BranchId>,
}

impl History {
    /// Snapshots of a branch by age, or of all branches.
    pub(crate) fn named(&self, branch: Option<BranchId>) -> Vec<EpochId> {
        let wanted = |epoch: EpochId| branch.is_none_or(|branch| branch_of(epoch) == branch);
        let named = self.kept.iter().filter(|(epoch, kept)| kept.name.is_some() && wanted(**epoch));
        named.map(|(epoch, _)| *epoch).collect()
    }

    /// Forgets epochs that nothing names and no branch begins at, and branches of which nothing is left.
    pub(crate) fn forget_unheld(&mut self) {
        loop {
            let origins: BTreeSet<_> = self.origins.values().flatten().copied().collect();
            let before = (self.kept.len(), self.origins.len());
            self.kept.retain(|epoch, kept| kept.name.is_some() || origins.contains(epoch));
            let kept: BTreeSet<_> = self.kept.keys().map(|epoch| branch_of(*epoch)).collect();
            self.origins.retain(|branch, _| self.open.contains_key(branch) || kept.contains(branch));
            if (self.kept.len(), self.origins.len()) == before {
                return;
            }
        }
    }

    /// Every chunk that anything refers to.
    pub(crate) fn chunks(&self) -> BTreeSet<ChunkId> {
        let open = self.open.values().flat_map(|line| line.now.chunks());
        open.chain(self.kept.values().flat_map(|kept| kept.then.chunks())).collect()
    }
}
