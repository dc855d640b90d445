//! A device of the pool and what of it still has to be flushed.

use crate::activity::{Activity, Kind, now};
use crate::readers::Readers;
use crate::trim::TrimCounts;
use aegisfs_device::{Device, DeviceError};
use aegisfs_format::layout::DeviceLayout;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// How long is waited before a call that failed is made again, each time.
const PAUSES: [Duration; 3] = [Duration::from_millis(1), Duration::from_millis(5), Duration::from_millis(25)];

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
    /// What it was asked for.
    pub(crate) activity: Arc<Activity>,
    readers: Readers,
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
            activity: Arc::default(),
            readers: Readers::default(),
        }
    }

    pub(crate) fn counted(&self) -> bool {
        self.counted.load(Ordering::Acquire)
    }

    /// Whether what is written goes there.
    pub(crate) fn takes_writes(&self) -> bool {
        self.counted() || self.returning.load(Ordering::Acquire)
    }

    /// Reads; what may pass is tried again.
    pub(crate) fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        read(&*self.device, &self.activity, offset, out)
    }

    /// Reads, but gives up waiting after a while: nothing is returned then, and the device goes on by itself.
    pub(crate) fn read_within(
        &self,
        offset: u64,
        out: &mut [u8],
        patience: Duration,
    ) -> Option<Result<(), DeviceError>> {
        self.readers.read(&self.device, &self.activity, offset, out, patience)
    }

    pub(crate) fn write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        let outcome = tried(&self.activity, Kind::Write, data.len(), || self.device.write_at(offset, data));
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
        tried(&self.activity, Kind::Flush, 0, || self.device.flush())?;
        self.flushed.fetch_max(covered, Ordering::AcqRel);
        Ok(())
    }
}

/// Reads; what may pass is tried again.
pub(crate) fn read(
    device: &dyn Device,
    activity: &Activity,
    offset: u64,
    out: &mut [u8],
) -> Result<(), DeviceError> {
    let bytes = out.len();
    tried(activity, Kind::Read, bytes, || device.read_at(offset, out))
}

/// Has a device do something, and again if it may do it then.
fn tried(
    activity: &Activity,
    kind: Kind,
    bytes: usize,
    mut call: impl FnMut() -> Result<(), DeviceError>,
) -> Result<(), DeviceError> {
    let _running = activity.begin();
    let mut retries = 0;
    loop {
        let begun = now();
        let outcome = call();
        let ended = now();
        activity.took(kind, bytes, ended - begun, ended);
        let Err(error) = outcome else {
            activity.answered(kind, bytes, retries, ended);
            return Ok(());
        };
        let pause = PAUSES.get(retries as usize);
        let Some(pause) = pause.filter(|_| error.may_pass() && !activity.is_gone()) else {
            activity.failed(&error, ended);
            return Err(error);
        };
        tracing::warn!(%error, "tried again");
        std::thread::sleep(*pause);
        retries += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aegisfs_device::{AlignedBuffer, Fault, FaultyDevice, MemoryDevice, Operation};

    fn member() -> (Arc<FaultyDevice<MemoryDevice>>, Member) {
        let device = Arc::new(FaultyDevice::new(MemoryDevice::new("d", 16 << 20)));
        let layout = DeviceLayout::new(16 << 20, 1 << 20).unwrap();
        (Arc::clone(&device), Member::new(device, layout, true))
    }

    #[test]
    fn what_fails_twice_and_then_works_is_no_error() {
        let (device, member) = member();
        let mut block = AlignedBuffer::zeroed(4096);
        for _ in 0..2 {
            device.plan(Fault::once(Operation::Write, 0));
            device.plan(Fault::once(Operation::Read, 0));
        }
        // Two faults that are due at once are one call.
        device.plan(Fault::once(Operation::Write, 1));
        device.plan(Fault::once(Operation::Read, 1));
        member.write(0, &block).unwrap();
        member.read(0, &mut block).unwrap();
        let counts = member.activity.counts();
        assert_eq!((counts.reads, counts.writes, counts.retried, counts.failed), (1, 1, 2, 0));
        assert_eq!(device.calls(Operation::Write), 3);
        assert_eq!(counts.written_bytes, 4096);
    }

    #[test]
    fn what_keeps_failing_is_an_error_and_in_the_end_at_once() {
        let (device, member) = member();
        let mut block = AlignedBuffer::zeroed(4096);
        device.plan(Fault::lasting(Operation::Read, 0));
        for _ in 0..3 {
            assert!(member.read(0, &mut block).is_err());
        }
        assert_eq!(device.calls(Operation::Read), 12, "each was tried three times more");
        assert!(member.read(0, &mut block).is_err());
        assert_eq!(device.calls(Operation::Read), 13, "by then it is gone");
        assert_eq!(member.activity.counts().failed, 4);
        device.clear();
        member.read(0, &mut block).unwrap();
        assert!(!member.activity.is_gone());
    }

    #[test]
    fn a_failed_flush_and_a_lost_device_are_not_tried_again() {
        let (device, member) = member();
        member.write(0, &AlignedBuffer::zeroed(4096)).unwrap();
        device.plan(Fault::once(Operation::Flush, 0));
        assert!(member.flush().is_err() && member.needs_flush());
        assert_eq!(device.calls(Operation::Flush), 1);
        device.kill();
        assert!(member.read(0, &mut AlignedBuffer::zeroed(4096)).is_err());
        assert_eq!(device.calls(Operation::Read), 1);
    }
}
