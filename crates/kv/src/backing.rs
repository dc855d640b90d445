//! What a database stands on: bytes that can be read, written, flushed and resized.
//!
//! The facts about redb that an implementation has to rely on stand in the comment of
//! `redb_engine.rs` and are asserted by `tests/backing_facts.rs`.
//!
//! An implementation says by the kind of its `io::Error` what happened: `InvalidData` when what it
//! read does not verify and no copy could mend it, `StorageFull` when there is no room to grow,
//! anything else is an outage. After any error the engine refuses everything until it is reopened,
//! so an implementation retries and heals before it gives up.

pub use redb::StorageBackend as Backing;

use parking_lot::RwLock;
use std::io;
use std::sync::Arc;

/// Bytes in memory. Clones are handles to the same bytes, so a database can be reopened on them.
#[derive(Clone, Debug, Default)]
pub struct MemoryBacking {
    bytes: Arc<RwLock<Vec<u8>>>,
}

impl MemoryBacking {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts with these bytes.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self { bytes: Arc::new(RwLock::new(bytes)) }
    }

    /// A copy of all bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.bytes.read().clone()
    }
}

fn span(offset: u64, bytes: usize, len: usize) -> io::Result<std::ops::Range<usize>> {
    let beyond = || io::Error::new(io::ErrorKind::UnexpectedEof, "access beyond the end");
    let start = usize::try_from(offset).map_err(|_| beyond())?;
    let end = start.checked_add(bytes).ok_or_else(beyond)?;
    if end > len {
        return Err(beyond());
    }
    Ok(start..end)
}

impl Backing for MemoryBacking {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.read().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let bytes = self.bytes.read();
        out.copy_from_slice(&bytes[span(offset, out.len(), bytes.len())?]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::StorageFull))?;
        self.bytes.write().resize(len, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut bytes = self.bytes.write();
        let span = span(offset, data.len(), bytes.len())?;
        bytes[span].copy_from_slice(data);
        Ok(())
    }
}
