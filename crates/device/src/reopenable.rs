//! A device of the host that can be opened again while somebody has it.

use crate::error::{DeviceError, Operation};
use crate::host::{OpenOptions, open};
use crate::{Device, DiscardLimits};
use parking_lot::RwLock;
use rustix::io::Errno;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What a path leads to, and leads to again after [`Device::reopen`].
pub struct ReopenableDevice {
    path: PathBuf,
    options: OpenOptions,
    bytes: u64,
    name: String,
    /// None while it could not be opened again.
    current: RwLock<Option<Arc<dyn Device>>>,
    /// The kernel keeps others away.
    handed_over: AtomicBool,
}

impl ReopenableDevice {
    /// Opens what a path leads to, as [`open`] does.
    ///
    /// # Errors
    /// As [`open`].
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self, DeviceError> {
        let device = open(path, options)?;
        Ok(Self {
            path: path.to_owned(),
            // Whoever has it then will hardly let go of it.
            options: OpenOptions { wait: Duration::ZERO, ..options.clone() },
            bytes: device.bytes(),
            name: device.describe(),
            current: RwLock::new(Some(device)),
            handed_over: AtomicBool::new(false),
        })
    }

    fn current(&self, op: Operation) -> Result<Arc<dyn Device>, DeviceError> {
        // Not held while the device is at work: it may hang.
        self.current.read().clone().ok_or_else(|| self.gone(op))
    }

    fn gone(&self, op: Operation) -> DeviceError {
        DeviceError::Io { op, offset: 0, length: 0, device: self.name.clone(), errno: Errno::NODEV }
    }
}

impl Device for ReopenableDevice {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        self.current(Operation::Read)?.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        self.current(Operation::Write)?.write_at(offset, data)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.current(Operation::Flush)?.flush()
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        self.current(Operation::Discard)?.discard(offset, length)
    }

    fn discard_limits(&self) -> DiscardLimits {
        self.current(Operation::Discard).map(|device| device.discard_limits()).unwrap_or_default()
    }

    fn allocated_bytes(&self) -> Option<u64> {
        self.current(Operation::Open).ok()?.allocated_bytes()
    }

    fn describe(&self) -> String {
        self.name.clone()
    }

    fn read_only(&self) -> bool {
        self.current(Operation::Open).map_or(self.options.read_only, |device| device.read_only())
    }

    fn reopen(&self, is_it: &dyn Fn(&dyn Device) -> bool) -> Result<(), DeviceError> {
        if self.handed_over.load(Ordering::Acquire) {
            // The kernel keeps everybody away, ourselves included.
            return Err(DeviceError::Busy { device: self.name.clone() });
        }
        // Its own claim would keep us away. Nobody waits while it is opened: that may hang.
        *self.current.write() = None;
        let device = open(&self.path, &self.options)?;
        if device.bytes() < self.bytes {
            let device = self.name.clone();
            return Err(DeviceError::Truncated { offset: self.bytes, bytes: self.bytes, device });
        }
        if !is_it(&*device) {
            return Err(self.gone(Operation::Open));
        }
        *self.current.write() = Some(device);
        Ok(())
    }

    fn hand_over(&self) {
        self.handed_over.store(true, Ordering::Release);
        if let Ok(device) = self.current(Operation::Open) {
            device.hand_over();
        }
    }

    fn take_back(&self) -> Result<(), DeviceError> {
        // What is not open is not written to, and needs no guard.
        let outcome = self.current(Operation::Open).map_or(Ok(()), |device| device.take_back());
        self.handed_over.store(outcome.is_err(), Ordering::Release);
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{ImageOptions, create_image};

    #[test]
    fn it_leads_to_what_is_there_by_then() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let options = ImageOptions { bytes: 8 << 20, reuse: false };
        create_image(&path, &options).unwrap();
        let device = ReopenableDevice::open(&path, &OpenOptions::default()).unwrap();
        device.write_at(0, &[7; 4096]).unwrap();
        device.flush().unwrap();
        let any = |_: &dyn Device| true;
        device.reopen(&any).unwrap();
        let mut block = [0; 4096];
        device.read_at(0, &mut block).unwrap();
        assert_eq!(block, [7; 4096]);
        // Nobody else gets it.
        assert!(matches!(open(&path, &OpenOptions::default()), Err(DeviceError::Busy { .. })));
        std::fs::rename(&path, folder.path().join("away")).unwrap();
        assert!(matches!(device.reopen(&any), Err(DeviceError::NotFound { .. })));
        assert!(device.read_at(0, &mut block).is_err() && device.flush().is_err());
        assert_eq!((device.bytes(), device.read_only()), (8 << 20, false));
        create_image(&path, &ImageOptions { bytes: 4 << 20, reuse: false }).unwrap();
        assert!(matches!(device.reopen(&any), Err(DeviceError::Truncated { .. })));
        std::fs::rename(folder.path().join("away"), &path).unwrap();
        assert!(device.reopen(&|_| false).is_err() && device.read_at(0, &mut block).is_err());
        device.reopen(&any).unwrap();
        device.read_at(0, &mut block).unwrap();
        assert_eq!(block, [7; 4096]);
    }
}
