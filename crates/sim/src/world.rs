//! Devices in memory that write down what is done to them, and that fail on command.

use crate::power::{SECTOR_BYTES, mix};
use crate::trace::{Action, Mark, Record, Trace};
use aegisfs_device::{Device, DeviceError, Fault, MemoryDevice, Operation};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// A set of devices with one history.
#[derive(Default)]
pub struct SimWorld {
    log: Arc<Mutex<Log>>,
    devices: Vec<Arc<SimDevice>>,
}

#[derive(Default)]
struct Log {
    records: Vec<Record>,
    marks: Vec<Mark>,
}

/// A device of a [`SimWorld`].
///
/// Reads see every write at once. A write that fails may have changed part of its range. After a flush
/// that failed all later ones fail, as on a host device, until the world [restarts](SimWorld::restart).
pub struct SimDevice {
    log: Arc<Mutex<Log>>,
    index: usize,
    /// What it held when the log began.
    start: Mutex<MemoryDevice>,
    content: MemoryDevice,
    trouble: Mutex<Trouble>,
}

/// What makes a device fail.
#[derive(Default)]
struct Trouble {
    calls: u64,
    faults: Vec<Fault>,
    dead: bool,
    flush_lost: bool,
    /// How long a read takes, and how many took that long.
    read_takes: Duration,
    slow_reads: u64,
    flips: BTreeMap<u64, u8>,
}

impl SimWorld {
    /// A world without devices.
    pub fn new() -> Self {
        Self::default()
    }

    /// A world whose devices hold this, durably, and whose history begins now.
    pub fn from_images(images: Vec<MemoryDevice>) -> Self {
        let mut world = Self::new();
        for image in images {
            world.adopt(image);
        }
        world
    }

    /// Adds a device of zeros.
    pub fn add(&mut self, name: &str, bytes: u64) -> Arc<SimDevice> {
        self.adopt(MemoryDevice::new(name, bytes))
    }

    fn adopt(&mut self, content: MemoryDevice) -> Arc<SimDevice> {
        let device = Arc::new(SimDevice {
            log: Arc::clone(&self.log),
            index: self.devices.len(),
            start: Mutex::new(content.snapshot()),
            content,
            trouble: Mutex::default(),
        });
        self.devices.push(Arc::clone(&device));
        device
    }

    /// One of the devices, in the order in which they were added.
    pub fn device(&self, index: usize) -> Arc<SimDevice> {
        Arc::clone(&self.devices[index])
    }

    /// All devices, for whoever does not care that they are simulated.
    pub fn devices(&self) -> Vec<Arc<dyn Device>> {
        self.devices.iter().map(|device| Arc::clone(device) as Arc<dyn Device>).collect()
    }

    /// Writes down that something was promised to somebody.
    pub fn mark(&self, value: u64) {
        let mut log = self.log.lock();
        let events = log.records.len() as u64;
        log.marks.push(Mark { events, value });
    }

    /// How many events happened so far.
    pub fn events(&self) -> u64 {
        self.log.lock().records.len() as u64
    }

    /// What happened so far.
    pub fn trace(&self) -> Trace {
        let log = self.log.lock();
        Trace {
            start: self.devices.iter().map(|device| device.start.lock().snapshot()).collect(),
            records: log.records.clone(),
            marks: log.marks.clone(),
        }
    }

    /// The process ended and another one opens the devices: no fault is planned any more, and a lost flush is
    /// forgotten. The power was never off, so reads go on seeing what was not flushed.
    pub fn restart(&self) {
        for device in &self.devices {
            let mut trouble = device.trouble.lock();
            trouble.faults.clear();
            trouble.flush_lost = false;
            trouble.dead = false;
            trouble.read_takes = Duration::ZERO;
        }
    }

    /// Makes everything durable and begins the history anew from here, so that a test need not cut the power
    /// while its stage is set.
    pub fn settle(&self) {
        let mut log = self.log.lock();
        for device in &self.devices {
            *device.start.lock() = device.content.snapshot();
        }
        log.records.clear();
        log.marks.clear();
    }
}

impl SimDevice {
    /// Plans a failure, beside those already planned.
    pub fn plan(&self, fault: Fault) {
        self.trouble.lock().faults.push(fault);
    }

    /// How many planned failures are still to come.
    pub fn planned(&self) -> usize {
        self.trouble.lock().faults.len()
    }

    /// How many reads, writes, flushes and discards came so far, failed ones included.
    pub fn calls(&self) -> u64 {
        self.trouble.lock().calls
    }

    /// Every call fails from now on, as if the cable was pulled.
    pub fn kill(&self) {
        self.trouble.lock().dead = true;
    }

    /// The device answers again, with what it held.
    pub fn revive(&self) {
        self.trouble.lock().dead = false;
    }

    /// Every read takes that long from now on.
    pub fn slow_down(&self, read_takes: Duration) {
        self.trouble.lock().read_takes = read_takes;
    }

    /// How many reads were slow.
    pub fn slow_reads(&self) -> u64 {
        self.trouble.lock().slow_reads
    }

    /// Flips the bits of `mask` in the byte at `offset`, as readers see it; doing it twice undoes it, and so does
    /// a write over it. The content below stays pristine.
    pub fn flip(&self, offset: u64, mask: u8) {
        let mut trouble = self.trouble.lock();
        let bits = trouble.flips.entry(offset).or_default();
        *bits ^= mask;
        if *bits == 0 {
            trouble.flips.remove(&offset);
        }
    }

    /// How many bytes have flipped bits.
    pub fn flipped(&self) -> usize {
        self.trouble.lock().flips.len()
    }

    /// Heals all flipped bits.
    pub fn unflip(&self) {
        self.trouble.lock().flips.clear();
    }

    /// The content below faults and flips, as an independent copy.
    pub fn image(&self) -> MemoryDevice {
        self.content.snapshot()
    }

    /// Counts the call and says whether it fails.
    fn pass(&self, op: Operation, offset: u64, length: u64) -> Result<(), DeviceError> {
        let mut trouble = self.trouble.lock();
        trouble.calls += 1;
        let mut errno = None;
        trouble.faults.retain_mut(|fault| {
            if fault.operation.is_some_and(|wanted| wanted != op) {
                return true;
            }
            if fault.after > 0 {
                fault.after -= 1;
                return true;
            }
            errno = errno.or(Some(fault.errno));
            fault.lasting
        });
        if trouble.dead {
            errno = Some(Fault::once(op, 0).errno);
        }
        if op == Operation::Flush && errno.is_none() && trouble.flush_lost {
            return Err(DeviceError::FlushLost { device: self.describe() });
        }
        let Some(errno) = errno else { return Ok(()) };
        trouble.flush_lost |= op == Operation::Flush;
        Err(DeviceError::Io { op, offset, length, device: self.describe(), errno })
    }

    /// Has whoever reads wait, while others go on.
    fn hesitate(&self) {
        let takes = {
            let mut trouble = self.trouble.lock();
            trouble.slow_reads += u64::from(!trouble.read_takes.is_zero());
            trouble.read_takes
        };
        if !takes.is_zero() {
            std::thread::sleep(takes);
        }
    }

    fn record(&self, log: &mut Log, action: Action) {
        log.records.push(Record { device: self.index, action });
    }

    fn is_dead(&self) -> bool {
        self.trouble.lock().dead
    }

    /// Writes and records under one lock, so that the trace has the order that readers saw.
    fn put(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        let mut log = self.log.lock();
        self.content.write_at(offset, data)?;
        let end = offset + data.len() as u64;
        self.trouble.lock().flips.retain(|at, _| !(offset..end).contains(at));
        self.record(&mut log, Action::Write { offset, data: Arc::from(data) });
        Ok(())
    }

    /// What a failed write leaves behind: some of its sectors.
    fn put_part(&self, offset: u64, data: &[u8]) {
        let calls = self.calls();
        let mut mixed = vec![0; data.len()];
        // An access outside the device has no part that could arrive.
        if self.content.read_at(offset, &mut mixed).is_err() {
            return;
        }
        let sectors = mixed.chunks_mut(SECTOR_BYTES).zip(data.chunks(SECTOR_BYTES));
        for (n, (old, new)) in sectors.enumerate() {
            if mix(&[calls, n as u64]) & 1 == 0 {
                old.copy_from_slice(new);
            }
        }
        let _ = self.put(offset, &mixed);
    }
}

impl Device for SimDevice {
    fn bytes(&self) -> u64 {
        self.content.bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        self.hesitate();
        self.pass(Operation::Read, offset, buffer.len() as u64)?;
        self.content.read_at(offset, buffer)?;
        for (at, bits) in self.trouble.lock().flips.range(offset..offset + buffer.len() as u64) {
            buffer[usize::try_from(at - offset).expect("inside the buffer")] ^= bits;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        if let Err(error) = self.pass(Operation::Write, offset, data.len() as u64) {
            if !self.is_dead() {
                self.put_part(offset, data);
            }
            return Err(error);
        }
        if data.is_empty() {
            return self.content.write_at(offset, data);
        }
        self.put(offset, data)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.pass(Operation::Flush, 0, 0)?;
        self.record(&mut self.log.lock(), Action::Flush);
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        self.pass(Operation::Discard, offset, length)?;
        let mut log = self.log.lock();
        self.content.discard(offset, length)?;
        self.record(&mut log, Action::Discard { offset, length });
        Ok(())
    }

    fn allocated_bytes(&self) -> Option<u64> {
        self.content.allocated_bytes()
    }

    fn describe(&self) -> String {
        self.content.describe()
    }

    fn read_only(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aegisfs_base::limits::BLOCK_BYTES;

    fn first_byte(device: &SimDevice, offset: u64) -> u8 {
        let mut block = [0; BLOCK_BYTES];
        device.read_at(offset, &mut block).unwrap();
        block[0]
    }

    #[test]
    fn conforms() {
        aegisfs_device::conformance::all(&|| SimWorld::new().add("d", 8 << 20));
    }

    #[test]
    fn one_numbering_for_all_devices_and_marks() {
        let mut world = SimWorld::new();
        let (a, b) = (world.add("a", 1 << 20), world.add("b", 1 << 20));
        a.write_at(0, &[1; BLOCK_BYTES]).unwrap();
        world.mark(10);
        b.write_at(0, &[2; BLOCK_BYTES]).unwrap();
        b.flush().unwrap();
        world.mark(11);
        a.discard(0, 4096).unwrap();
        let trace = world.trace();
        let devices: Vec<_> = trace.records().iter().map(|r| r.device).collect();
        assert_eq!(devices, [0, 1, 1, 0]);
        let promised: Vec<_> = (0..=4).map(|event| trace.promised(event)).collect();
        assert_eq!(promised, [None, Some(10), Some(10), Some(11), Some(11)]);
        assert_eq!(trace.promised_at(11), Some(3));
    }

    #[test]
    fn a_failed_flush_is_never_made_good_by_a_later_one() {
        let mut world = SimWorld::new();
        let device = world.add("d", 1 << 20);
        device.write_at(0, &[1; BLOCK_BYTES]).unwrap();
        device.plan(Fault::once(Operation::Flush, 0));
        assert!(matches!(device.flush(), Err(DeviceError::Io { .. })));
        assert!(matches!(device.flush(), Err(DeviceError::FlushLost { .. })));
        assert_eq!(first_byte(&device, 0), 1);
        world.restart();
        device.flush().unwrap();
    }

    #[test]
    fn faults_count_any_call_and_a_failed_write_leaves_parts() {
        let mut world = SimWorld::new();
        let device = world.add("d", 1 << 20);
        device.plan(Fault { operation: None, after: 2, lasting: true, ..Fault::once(Operation::Read, 0) });
        device.flush().unwrap();
        first_byte(&device, 0);
        assert!(device.write_at(0, &[7; 64 * BLOCK_BYTES]).is_err());
        assert!(device.read_at(0, &mut [0; BLOCK_BYTES]).is_err());
        world.restart();
        let arrived = (0..64).filter(|n| first_byte(&device, n * 4096) == 7).count();
        assert!((1..64).contains(&arrived), "{arrived}");
        assert_eq!(world.events(), 2);
    }

    #[test]
    fn the_dead_return_and_flips_lie_over_the_content() {
        let mut world = SimWorld::new();
        let device = world.add("d", 1 << 20);
        device.write_at(0, &[3; BLOCK_BYTES]).unwrap();
        device.kill();
        assert!(device.read_at(0, &mut [0; BLOCK_BYTES]).is_err());
        assert!(device.write_at(0, &[4; BLOCK_BYTES]).is_err());
        device.revive();
        device.flip(0, 0x80);
        assert_eq!((first_byte(&device, 0), device.flipped()), (0x83, 1));
        device.write_at(0, &[5; BLOCK_BYTES]).unwrap();
        assert_eq!((first_byte(&device, 0), device.flipped()), (5, 0));
    }
}
