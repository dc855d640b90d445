//! Counts what passes through to a device, for status and for tests that bound the work done.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::DeviceError;
use crate::{Device, DiscardLimits};

/// What a device was asked to do since it was wrapped. Failed calls count as calls and as errors,
/// and their bytes do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct DeviceStats {
    pub reads: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub write_bytes: u64,
    pub flushes: u64,
    pub discards: u64,
    pub discard_bytes: u64,
    pub errors: u64,
}

impl DeviceStats {
    /// What was added since an earlier look.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self {
            reads: self.reads - earlier.reads,
            read_bytes: self.read_bytes - earlier.read_bytes,
            writes: self.writes - earlier.writes,
            write_bytes: self.write_bytes - earlier.write_bytes,
            flushes: self.flushes - earlier.flushes,
            discards: self.discards - earlier.discards,
            discard_bytes: self.discard_bytes - earlier.discard_bytes,
            errors: self.errors - earlier.errors,
        }
    }
}

/// Wraps a device and counts.
pub struct StatsDevice<D> {
    inner: D,
    reads: Counter,
    writes: Counter,
    flushes: Counter,
    discards: Counter,
    errors: AtomicU64,
}

#[derive(Default)]
struct Counter {
    calls: AtomicU64,
    bytes: AtomicU64,
}

impl Counter {
    // The counters are statistics and order nothing, hence relaxed.
    fn load(&self) -> (u64, u64) {
        (self.calls.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

impl<D: Device> StatsDevice<D> {
    /// Wraps a device; all counts are zero.
    pub fn new(inner: D) -> Self {
        Self {
            inner,
            reads: Counter::default(),
            writes: Counter::default(),
            flushes: Counter::default(),
            discards: Counter::default(),
            errors: AtomicU64::new(0),
        }
    }

    /// The device below.
    pub fn inner(&self) -> &D {
        &self.inner
    }

    /// The counts so far.
    pub fn stats(&self) -> DeviceStats {
        let ((reads, read_bytes), (writes, write_bytes)) = (self.reads.load(), self.writes.load());
        let ((flushes, _), (discards, discard_bytes)) = (self.flushes.load(), self.discards.load());
        let errors = self.errors.load(Ordering::Relaxed);
        DeviceStats { reads, read_bytes, writes, write_bytes, flushes, discards, discard_bytes, errors }
    }

    fn count(
        &self,
        counter: &Counter,
        bytes: u64,
        result: Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        counter.calls.fetch_add(1, Ordering::Relaxed);
        match &result {
            Ok(()) => counter.bytes.fetch_add(bytes, Ordering::Relaxed),
            Err(_) => self.errors.fetch_add(1, Ordering::Relaxed),
        };
        result
    }
}

impl<D: Device> Device for StatsDevice<D> {
    fn bytes(&self) -> u64 {
        self.inner.bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        let result = self.inner.read_at(offset, buffer);
        self.count(&self.reads, buffer.len() as u64, result)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        let result = self.inner.write_at(offset, data);
        self.count(&self.writes, data.len() as u64, result)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        let result = self.inner.flush();
        self.count(&self.flushes, 0, result)
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        let result = self.inner.discard(offset, length);
        self.count(&self.discards, length, result)
    }

    fn discard_limits(&self) -> DiscardLimits {
        self.inner.discard_limits()
    }

    fn allocated_bytes(&self) -> Option<u64> {
        self.inner.allocated_bytes()
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn read_only(&self) -> bool {
        self.inner.read_only()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryDevice;

    #[test]
    fn calls_bytes_and_errors_are_counted() {
        let device = StatsDevice::new(MemoryDevice::new("m", 1 << 20));
        device.write_at(0, &[1; 8192]).unwrap();
        let early = device.stats();
        device.read_at(0, &mut [0; 4096]).unwrap();
        device.flush().unwrap();
        device.discard(0, 8192).unwrap();
        device.read_at(1, &mut [0; 4096]).unwrap_err();
        let expected = DeviceStats {
            reads: 2,
            read_bytes: 4096,
            flushes: 1,
            discards: 1,
            discard_bytes: 8192,
            errors: 1,
            ..DeviceStats::default()
        };
        assert_eq!(device.stats().since(early), expected);
        assert_eq!((early.writes, early.write_bytes), (1, 8192));
    }
}
