//! Reading back what was written: for devices that nobody trusts.
//!
//! Off by default, since every read is verified anyway; it tells of a device that writes something else while
//! the bytes can still be written elsewhere. It says something about the medium only where the device is
//! opened past the system's cache.

use crate::member::Member;
use crate::pool::Pool;
use aegisfs_device::{AlignedBuffer, DeviceError};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// One write in so many is read back when only samples are.
const SAMPLE_EVERY: u64 = 16;

/// Which writes are read back and compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum ReadBack {
    /// None.
    #[default]
    Off,
    /// One in sixteen.
    Sample,
    /// Every one.
    Full,
}

#[derive(Debug, Default)]
pub(crate) struct ReadsBack {
    mode: AtomicU8,
    writes: AtomicU64,
}

impl ReadsBack {
    fn is_due(&self) -> bool {
        match self.mode.load(Ordering::Relaxed) {
            mode if mode == ReadBack::Off as u8 => false,
            mode if mode == ReadBack::Full as u8 => true,
            _ => self.writes.fetch_add(1, Ordering::Relaxed).is_multiple_of(SAMPLE_EVERY),
        }
    }
}

impl Pool {
    /// Says which writes to slots are read back from now on.
    pub fn set_read_back(&self, mode: ReadBack) {
        self.reads_back.mode.store(mode as u8, Ordering::Relaxed);
    }

    /// Writes, and compares what is there then, if that is asked for.
    pub(crate) fn write_checked(&self, member: &Member, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        member.write(offset, data)?;
        if !self.reads_back.is_due() {
            return Ok(());
        }
        let mut found = AlignedBuffer::zeroed(data.len());
        member.read(offset, &mut found)?;
        match found.iter().zip(data).position(|(found, written)| found != written) {
            None => Ok(()),
            Some(at) => {
                Err(DeviceError::ReadBack { offset: offset + at as u64, device: member.device.describe() })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_one_in_sixteen() {
        let reads = ReadsBack::default();
        let count = |mode: ReadBack| {
            reads.mode.store(mode as u8, Ordering::Relaxed);
            (0..160).filter(|_| reads.is_due()).count()
        };
        assert_eq!([ReadBack::Off, ReadBack::Sample, ReadBack::Full].map(count), [0, 10, 160]);
    }
}
