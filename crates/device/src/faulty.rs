//! A device that fails on command, for tests of everything above.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::io::Errno;

use crate::error::{DeviceError, Operation};
use crate::{Device, DiscardLimits};

/// A failure to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which calls count and fail; `None` is any of read, write, flush and discard.
    pub operation: Option<Operation>,
    /// Calls that still succeed, counted from when the fault is planned.
    pub after: u64,
    /// Fail from then on, not only once.
    pub lasting: bool,
    /// What the system says.
    pub errno: Errno,
}

impl Fault {
    /// Fails once, after so many calls of this kind, with EIO.
    pub const fn once(operation: Operation, after: u64) -> Self {
        Self { operation: Some(operation), after, lasting: false, errno: Errno::IO }
    }

    /// Fails once, after so many calls of this kind, with ENODEV: nobody tries that again.
    pub const fn final_once(operation: Operation, after: u64) -> Self {
        Self { errno: Errno::NODEV, ..Self::once(operation, after) }
    }

    /// Fails every call of this kind after so many, with EIO.
    pub const fn lasting(operation: Operation, after: u64) -> Self {
        Self { operation: Some(operation), after, lasting: true, errno: Errno::IO }
    }
}

/// Wraps a device and fails its calls as planned.
///
/// A call that fails does not reach the device below. Flipped bits are laid over what is read; the
/// data below stays pristine, and writing over a flipped bit heals it.
pub struct FaultyDevice<D> {
    inner: D,
    dead: AtomicBool,
    faults: Mutex<Vec<Fault>>,
    flips: Mutex<BTreeMap<u64, u8>>,
    calls: [AtomicU64; 4],
}

impl<D: Device> FaultyDevice<D> {
    /// Wraps a device; nothing fails until told to.
    pub fn new(inner: D) -> Self {
        let (faults, flips) = (Mutex::default(), Mutex::default());
        Self { inner, dead: AtomicBool::new(false), faults, flips, calls: Default::default() }
    }

    /// The device below.
    pub fn inner(&self) -> &D {
        &self.inner
    }

    /// Plans a failure, beside those already planned.
    pub fn plan(&self, fault: Fault) {
        self.faults.lock().push(fault);
    }

    /// Forgets all planned failures, lasting ones included.
    pub fn clear(&self) {
        self.faults.lock().clear();
    }

    /// Every call fails with ENODEV from now on, as if the cable was pulled.
    pub fn kill(&self) {
        self.dead.store(true, Ordering::SeqCst);
    }

    /// The device answers again, with what it held.
    pub fn revive(&self) {
        self.dead.store(false, Ordering::SeqCst);
    }

    /// Flips the bits of `mask` in the byte at `offset`, as seen by readers; doing it twice undoes it.
    pub fn flip(&self, offset: u64, mask: u8) {
        let mut flips = self.flips.lock();
        let bits = flips.entry(offset).or_default();
        *bits ^= mask;
        if *bits == 0 {
            flips.remove(&offset);
        }
    }

    /// How many calls of this kind came so far, failed ones included.
    pub fn calls(&self, operation: Operation) -> u64 {
        counter(operation).map_or(0, |index| self.calls[index].load(Ordering::SeqCst))
    }

    fn pass(&self, op: Operation, offset: u64, length: u64) -> Result<(), DeviceError> {
        let index = counter(op).expect("only counted operations get here");
        self.calls[index].fetch_add(1, Ordering::SeqCst);
        let fail = |errno| DeviceError::Io { op, offset, length, device: self.describe(), errno };
        // Faults count calls even while the device is dead, so that a plan does not shift.
        let mut failure = None;
        self.faults.lock().retain_mut(|fault| {
            if fault.operation.is_some_and(|wanted| wanted != op) {
                return true;
            }
            if fault.after > 0 {
                fault.after -= 1;
                return true;
            }
            failure = failure.or(Some(fault.errno));
            fault.lasting
        });
        if self.dead.load(Ordering::SeqCst) {
            return Err(fail(Errno::NODEV));
        }
        failure.map_or(Ok(()), |errno| Err(fail(errno)))
    }
}

fn counter(operation: Operation) -> Option<usize> {
    match operation {
        Operation::Read => Some(0),
        Operation::Write => Some(1),
        Operation::Flush => Some(2),
        Operation::Discard => Some(3),
        Operation::Open | Operation::Create => None,
    }
}

impl<D: Device> Device for FaultyDevice<D> {
    fn bytes(&self) -> u64 {
        self.inner.bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        let length = buffer.len() as u64;
        self.pass(Operation::Read, offset, length)?;
        self.inner.read_at(offset, buffer)?;
        for (at, bits) in self.flips.lock().range(offset..offset + length) {
            let index = usize::try_from(at - offset).expect("inside the buffer");
            buffer[index] ^= bits;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        self.pass(Operation::Write, offset, data.len() as u64)?;
        self.inner.write_at(offset, data)?;
        let end = offset + data.len() as u64;
        self.flips.lock().retain(|at, _| !(offset..end).contains(at));
        Ok(())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.pass(Operation::Flush, 0, 0)?;
        self.inner.flush()
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        self.pass(Operation::Discard, offset, length)?;
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
    use aegisfs_base::limits::BLOCK_BYTES;

    fn device() -> FaultyDevice<MemoryDevice> {
        FaultyDevice::new(MemoryDevice::new("m", 1 << 20))
    }

    #[test]
    fn the_planned_call_fails_and_changes_nothing() {
        let device = device();
        let block = [1; BLOCK_BYTES];
        device.plan(Fault::once(Operation::Write, 1));
        device.write_at(0, &block).unwrap();
        device.flush().unwrap();
        let error = device.write_at(4096, &block).unwrap_err();
        assert!(matches!(error, DeviceError::Io { op: Operation::Write, offset: 4096, .. }));
        let mut read = [9; BLOCK_BYTES];
        device.read_at(4096, &mut read).unwrap();
        assert_eq!(read, [0; BLOCK_BYTES]);
        device.write_at(4096, &block).unwrap();
        assert_eq!((device.calls(Operation::Write), device.calls(Operation::Flush)), (3, 1));
    }

    #[test]
    fn lasting_faults_last_until_cleared_and_any_means_any() {
        let device = device();
        device.plan(Fault { operation: None, after: 2, lasting: true, errno: Errno::NOSPC });
        device.flush().unwrap();
        device.discard(0, 4096).unwrap();
        for _ in 0..3 {
            assert!(device.flush().is_err());
            assert!(device.read_at(0, &mut [0; BLOCK_BYTES]).is_err());
        }
        device.clear();
        device.flush().unwrap();
    }

    #[test]
    fn flipped_bits_lie_over_the_data_and_a_write_heals_them() {
        let device = device();
        device.write_at(4096, &[0xff; BLOCK_BYTES]).unwrap();
        device.flip(4096 + 17, 0b11);
        let mut block = [0; BLOCK_BYTES];
        device.read_at(4096, &mut block).unwrap();
        assert_eq!((block[16], block[17]), (0xff, 0xfc));
        device.inner().read_at(4096, &mut block).unwrap();
        assert_eq!(block[17], 0xff);
        device.flip(4096 + 17, 0b01);
        device.read_at(4096, &mut block).unwrap();
        assert_eq!(block[17], 0xfd);
        device.write_at(4096, &[7; BLOCK_BYTES]).unwrap();
        device.read_at(4096, &mut block).unwrap();
        assert_eq!(block, [7; BLOCK_BYTES]);
    }

    #[test]
    fn a_dead_device_answers_nothing_and_keeps_its_data() {
        let device = device();
        device.write_at(0, &[3; BLOCK_BYTES]).unwrap();
        device.kill();
        let mut block = [0; BLOCK_BYTES];
        assert!(matches!(device.flush(), Err(DeviceError::Io { errno: Errno::NODEV, .. })));
        assert!(device.read_at(0, &mut block).is_err());
        device.revive();
        device.read_at(0, &mut block).unwrap();
        assert_eq!(block, [3; BLOCK_BYTES]);
    }
}
