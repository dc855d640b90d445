//! A device of the pool and what of it still has to be flushed.

use crate::trim::TrimCounts;
use aegisfs_device::{Device, DeviceError};
use aegisfs_format::layout::DeviceLayout;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A present device.
pub(crate) struct Member {
    pub(crate) device: Arc<dyn Device>,
    pub(crate) layout: DeviceLayout,
    /// Whether its content counts; cleared when it is marked out.
    pub(crate) counted: AtomicBool,
    /// It is out, but what is written reaches it again: it is being brought up to date.
    pub(crate) returning: AtomicBool,
    /// Writes that have returned.
    written: AtomicU64,
    /// Of those, how many are known to be on stable storage.
    flushed: AtomicU64,
    /// What it was told to forget.
    pub(crate) trims: TrimCounts,
}

impl Member {
    pub(crate) fn new(device: Arc<dyn Device>, layout: DeviceLayout, counted: bool) -> Self {
        Self {
            device,
            layout,
            counted: AtomicBool::new(counted),
            returning: AtomicBool::new(false),
            written: AtomicU64::new(0),
            flushed: AtomicU64::new(0),
            trims: TrimCounts::default(),
        }
    }

    pub(crate) fn counted(&self) -> bool {
        self.counted.load(Ordering::Acquire)
    }

    /// Whether what is written goes there.
    pub(crate) fn takes_writes(&self) -> bool {
        self.counted() || self.returning.load(Ordering::Acquire)
    }

    pub(crate) fn write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        let outcome = self.device.write_at(offset, data);
        // Counted after the write returned, so that a flush that began before does not claim it; and
        // counted even if it failed, because part of it may have arrived.
        self.written.fetch_add(1, Ordering::AcqRel);
        outcome
    }

    pub(crate) fn needs_flush(&self) -> bool {
        self.flushed.load(Ordering::Acquire) < self.written.load(Ordering::Acquire)
    }

    /// Makes every write that has returned so far durable.
    pub(crate) fn flush(&self) -> Result<(), DeviceError> {
        let covered = self.written.load(Ordering::Acquire);
        self.device.flush()?;
        self.flushed.fetch_max(covered, Ordering::AcqRel);
        Ok(())
    }
}
