//! A device made slow, to see what waits for it.
//!
//! Time is real here and not the caller's: the point is to hold real threads back. The simulator
//! has no use for it.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::DeviceError;
use crate::{Device, DiscardLimits};

/// How slow.
#[derive(Clone, Copy, Debug, Default)]
pub struct Throttle {
    /// Added to every read, write, flush and discard. Calls at the same time wait side by side.
    pub latency: Duration,
    /// Reads and writes together move no faster than this; `None` is no limit.
    pub bytes_per_second: Option<u64>,
}

/// Wraps a device and makes its calls wait.
pub struct ThrottledDevice<D> {
    inner: D,
    throttle: Throttle,
    // When the bytes that were admitted so far will have passed.
    busy_until: Mutex<Option<Instant>>,
}

impl<D: Device> ThrottledDevice<D> {
    /// Wraps a device.
    pub fn new(inner: D, throttle: Throttle) -> Self {
        Self { inner, throttle, busy_until: Mutex::new(None) }
    }

    /// The device below.
    pub fn inner(&self) -> &D {
        &self.inner
    }

    fn wait(&self, bytes: usize) {
        let now = Instant::now();
        let mut ready = now;
        if let Some(rate) = self.throttle.bytes_per_second {
            let takes = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
            let mut busy_until = self.busy_until.lock();
            ready = busy_until.map_or(now, |until| until.max(now)) + takes;
            *busy_until = Some(ready);
        }
        let pause = ready.duration_since(now) + self.throttle.latency;
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }
}

impl<D: Device> Device for ThrottledDevice<D> {
    fn bytes(&self) -> u64 {
        self.inner.bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        self.wait(buffer.len());
        self.inner.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        self.wait(data.len());
        self.inner.write_at(offset, data)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.wait(0);
        self.inner.flush()
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        self.wait(0);
        self.inner.discard(offset, length)
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

    // Only lower bounds: a busy machine may always be slower.
    #[test]
    fn latency_and_bandwidth_hold_callers_back() {
        let memory = || MemoryDevice::new("m", 1 << 20);
        let latency = Duration::from_millis(20);
        let slow = ThrottledDevice::new(memory(), Throttle { latency, bytes_per_second: None });
        let start = Instant::now();
        slow.flush().unwrap();
        assert!(start.elapsed() >= latency);

        let narrow = Throttle { latency: Duration::ZERO, bytes_per_second: Some(1 << 20) };
        let narrow = ThrottledDevice::new(memory(), narrow);
        let start = Instant::now();
        std::thread::scope(|scope| {
            for i in 0..2u64 {
                let narrow = &narrow;
                scope.spawn(move || narrow.write_at(i * 32768, &[1; 32768]).unwrap());
            }
        });
        assert!(start.elapsed() >= Duration::from_millis(62), "64 KiB at 1 MiB/s");
    }
}
