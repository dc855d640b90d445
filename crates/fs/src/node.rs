//! An inode in memory.

use crate::FsError;
use crate::locks::{self, CountedRwLock};
use crate::overlay::Overlay;
use aegisfs_base::{InodeId, PolicyId, Sequence, Share};
use aegisfs_format::value::Inode;
use aegisfs_store::{Reservation, Store};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

/// File type bits of `st_mode`.
pub(crate) const S_IFMT: u32 = 0o170_000;
pub(crate) const S_IFREG: u32 = 0o100_000;
pub(crate) const S_IFDIR: u32 = 0o040_000;
pub(crate) const S_IFLNK: u32 = 0o120_000;
pub(crate) const S_IFCHR: u32 = 0o020_000;
pub(crate) const S_ISUID: u32 = 0o4_000;
pub(crate) const S_ISGID: u32 = 0o2_000;

/// An inode in memory. Lock order: `flushing`, then `state`; several nodes by ascending number.
pub(crate) struct Node {
    pub(crate) id: InodeId,
    /// Held by whoever moves the node's bytes to the store, or changes them other than by writing.
    pub(crate) flushing: Mutex<()>,
    pub(crate) state: CountedRwLock<NodeState>,
    /// Open handles.
    pub(crate) opens: AtomicU64,
    /// Bytes were written past the kernel's cache.
    pub(crate) past_cache: AtomicBool,
    /// Whether it is in the list of nodes that may be dirty.
    pub(crate) listed: AtomicBool,
}

/// What of an inode changes.
#[derive(Default)]
pub(crate) struct NodeState {
    /// As the caller sees it.
    pub(crate) inode: Inode,
    /// The size that the metadata has: it never covers bytes that are only here.
    pub(crate) committed_size: u64,
    /// Attributes differ from the metadata by more than the size.
    pub(crate) attributes_dirty: bool,
    /// Bytes over what is stored.
    pub(crate) overlay: Overlay,
    /// Bytes on their way into rows; still over what is stored, under `overlay`.
    pub(crate) leaving: Option<Arc<Overlay>>,
    /// The last change of this node that passed the sequencer.
    pub(crate) last: Sequence,
    /// The last change that put bytes of this node into the log.
    pub(crate) last_pending: Sequence,
    /// Bytes that the log was given since all of them left, also those that were overwritten since.
    pub(crate) logged: Option<Share>,
    /// Room promised for `overlay`.
    pub(crate) promised: Option<Reservation>,
    /// When the overlay last grew, by the clock that only moves forward.
    pub(crate) written: Duration,
    /// When the oldest of the overlay's bytes came, by the same clock.
    pub(crate) dirty_since: Duration,
    /// Its content goes into rows however little it is, since more is about to lie beside it.
    pub(crate) outlined: bool,
    /// It is known to have no attribute that gives powers.
    pub(crate) powerless: bool,
    /// Without a name; goes when nobody has it any more.
    pub(crate) orphan: bool,
    /// Handles to write anywhere with.
    pub(crate) writers: u32,
    /// Those of them through a kernel that caches: it may hold bytes, and know of a greater length.
    pub(crate) cached_writers: u32,
    /// Gone; whoever still finds it here looks again.
    pub(crate) dead: bool,
}

impl Node {
    pub(crate) fn new(id: InodeId, state: NodeState) -> Self {
        Self {
            id,
            flushing: Mutex::new(()),
            state: CountedRwLock::new(&locks::NODES, state),
            opens: AtomicU64::new(0),
            past_cache: AtomicBool::new(false),
            listed: AtomicBool::new(false),
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.opens.load(Ordering::Acquire) > 0
    }
}

impl NodeState {
    /// Bytes on their way into rows.
    pub(crate) fn leaving(&self) -> &Overlay {
        static NOTHING: LazyLock<Overlay> = LazyLock::new(Overlay::default);
        self.leaving.as_deref().unwrap_or(&NOTHING)
    }

    /// Bytes that wait in memory, those on their way into rows among them.
    pub(crate) fn bytes_in_memory(&self) -> u64 {
        self.overlay.waiting_bytes() + self.leaving().waiting_bytes()
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.inode.mode & S_IFMT == S_IFDIR
    }

    pub(crate) fn is_regular(&self) -> bool {
        self.inode.mode & S_IFMT == S_IFREG
    }

    /// Refuses what an immutable inode does not take: new names in it, bytes, room.
    pub(crate) fn refuse_immutable(&self) -> Result<(), FsError> {
        if self.inode.has_any(Inode::IMMUTABLE) { Err(FsError::NotPermitted) } else { Ok(()) }
    }

    /// Refuses what an append-only inode does not take either: fewer names in it, other names of it, other
    /// attributes, other bytes than those at the end.
    pub(crate) fn refuse_flagged(&self) -> Result<(), FsError> {
        if self.inode.has_any(Inode::IMMUTABLE | Inode::APPEND_ONLY) {
            return Err(FsError::NotPermitted);
        }
        Ok(())
    }

    /// Whether the metadata lacks something of it.
    pub(crate) fn is_dirty(&self) -> bool {
        !self.dead && (self.attributes_dirty || self.overlay.needs_flush() || !self.leaving().is_empty())
    }

    /// The size that the metadata may claim: it waits for bytes that are only here.
    pub(crate) fn claimable_size(&self) -> u64 {
        let waiting = self.overlay.new_bytes() > 0 || self.leaving().new_bytes() > 0;
        if waiting && self.is_regular() { self.committed_size.min(self.inode.size) } else { self.inode.size }
    }

    /// What the bytes in `overlay` take on the devices at worst.
    pub(crate) fn worst_case_bytes(&self, store: &Store) -> u64 {
        self.worst_case_bytes_with(store, self.inode.policy)
    }

    /// The same if it followed a certain policy.
    pub(crate) fn worst_case_bytes_with(&self, store: &Store, policy: PolicyId) -> u64 {
        store.worst_case_bytes(self.overlay.waiting_bytes(), self.overlay.run_count(), policy)
    }

    /// Takes a promise for bytes that came, and gives back what the overlay does not need: bytes written over
    /// others need no room of their own, and those cut off need none at all.
    pub(crate) fn fit_promise(&mut self, store: &Store, more: Option<Reservation>) {
        let needed = self.worst_case_bytes(store);
        Share::join(&mut self.promised, more);
        if let Some(promised) = &mut self.promised {
            drop(promised.split_off(promised.bytes().saturating_sub(needed)));
        }
        // Nothing of it is needed any more: whoever took the bytes away had the log forget them too.
        if self.overlay.waiting_bytes() == 0 && self.leaving.is_none() {
            self.logged = None;
        }
    }

    /// The stored form of its attributes as they may be claimed now.
    pub(crate) fn encode_committed(&self) -> Vec<u8> {
        Inode { size: self.claimable_size(), ..self.inode }.encode()
    }
}
