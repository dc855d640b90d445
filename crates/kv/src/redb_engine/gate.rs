//! Stands between redb and the backing storage, and decides what reaches it.
//!
//! redb writes when it opens (page 0, always) and when it closes (a whole commit). A pool that is
//! mounted read-only must not be written at all, and a handle that is dropped after a failure must
//! not write what nobody asked for. So writes can be kept in memory, and the gate can be shut.

use crate::Backing;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const PAGE_BYTES: u64 = 4096;

/// Shuts a gate: after this nothing is read or written any more.
#[derive(Clone, Debug, Default)]
pub(super) struct Latch(Arc<AtomicBool>);

impl Latch {
    pub(super) fn shut(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// What the database sees as its storage.
#[derive(Debug)]
pub(super) struct Gate<B> {
    backing: B,
    latch: Latch,
    overlay: Option<Mutex<Overlay>>,
}

/// Writes that stay in memory. redb writes the first page and, if it has to repair, a few more.
#[derive(Debug)]
struct Overlay {
    len: u64,
    pages: BTreeMap<u64, Box<[u8]>>,
}

impl<B: Backing> Gate<B> {
    /// Lets everything through.
    pub(super) fn new(backing: B) -> (Self, Latch) {
        let latch = Latch::default();
        (Self { backing, latch: latch.clone(), overlay: None }, latch)
    }

    /// Lets reads through and keeps writes in memory.
    pub(super) fn read_only(backing: B) -> io::Result<(Self, Latch)> {
        let overlay = Overlay { len: backing.len()?, pages: BTreeMap::new() };
        let (mut gate, latch) = Self::new(backing);
        gate.overlay = Some(Mutex::new(overlay));
        Ok((gate, latch))
    }

    fn check_open(&self) -> io::Result<()> {
        if self.latch.0.load(Ordering::Acquire) {
            return Err(io::Error::other("the database handle was closed"));
        }
        Ok(())
    }

    /// One page as the database sees it, for patching.
    fn load_page(&self, page: u64) -> io::Result<Box<[u8]>> {
        let mut bytes = vec![0; PAGE_BYTES as usize].into_boxed_slice();
        let start = page * PAGE_BYTES;
        let stored = self.backing.len()?.saturating_sub(start).min(PAGE_BYTES) as usize;
        if stored > 0 {
            self.backing.read(start, &mut bytes[..stored])?;
        }
        Ok(bytes)
    }

    fn read_overlaid(&self, overlay: &Overlay, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let end = offset + out.len() as u64;
        if end > overlay.len {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        for page in offset / PAGE_BYTES..end.div_ceil(PAGE_BYTES) {
            let (from, to) = (offset.max(page * PAGE_BYTES), end.min((page + 1) * PAGE_BYTES));
            let target = &mut out[(from - offset) as usize..(to - offset) as usize];
            let within = (from % PAGE_BYTES) as usize;
            let patched = overlay.pages.get(&page);
            let loaded = if patched.is_none() { Some(self.load_page(page)?) } else { None };
            if let Some(source) = patched.or(loaded.as_ref()) {
                target.copy_from_slice(&source[within..within + target.len()]);
            }
        }
        Ok(())
    }

    fn write_overlaid(&self, overlay: &mut Overlay, offset: u64, data: &[u8]) -> io::Result<()> {
        let end = offset + data.len() as u64;
        for page in offset / PAGE_BYTES..end.div_ceil(PAGE_BYTES) {
            let (from, to) = (offset.max(page * PAGE_BYTES), end.min((page + 1) * PAGE_BYTES));
            let source = &data[(from - offset) as usize..(to - offset) as usize];
            let within = (from % PAGE_BYTES) as usize;
            let target = match overlay.pages.entry(page) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(self.load_page(page)?),
            };
            target[within..within + source.len()].copy_from_slice(source);
        }
        overlay.len = overlay.len.max(end);
        Ok(())
    }
}

impl<B: Backing> Backing for Gate<B> {
    fn len(&self) -> io::Result<u64> {
        self.check_open()?;
        match &self.overlay {
            Some(overlay) => Ok(overlay.lock().len),
            None => self.backing.len(),
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.check_open()?;
        match &self.overlay {
            Some(overlay) => {
                let overlay = overlay.lock();
                if overlay.pages.is_empty() {
                    drop(overlay);
                    return self.backing.read(offset, out);
                }
                self.read_overlaid(&overlay, offset, out)
            }
            None => self.backing.read(offset, out),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check_open()?;
        match &self.overlay {
            Some(overlay) => {
                overlay.lock().len = len;
                Ok(())
            }
            None => self.backing.set_len(len),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.check_open()?;
        if self.overlay.is_some() { Ok(()) } else { self.backing.sync_data() }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check_open()?;
        match &self.overlay {
            Some(overlay) => self.write_overlaid(&mut overlay.lock(), offset, data),
            None => self.backing.write(offset, data),
        }
    }

    fn close(&self) -> io::Result<()> {
        self.backing.close()
    }
}
