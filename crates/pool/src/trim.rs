//! Trimming: the devices are told to forget what free slots held.
//!
//! A slot is set aside while that goes on, so that nothing written there by its next user is lost. Only what a durable
//! checkpoint has freed is free, so a crash never finds anything gone that it needs. Nothing of this is kept on the
//! devices: what was free when the pool was opened may have been forgotten or not.

use crate::pool::Pool;
use crate::slots::{Placement, Run, Wanted};
use aegisfs_base::DeviceIndex;
use aegisfs_device::{Device, DiscardLimits};
use aegisfs_format::layout::DeviceLayout;
use parking_lot::Mutex;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a device was told to forget since the pool was opened.
#[derive(Debug, Default)]
pub(crate) struct TrimCounts {
    bytes: AtomicU64,
    calls: AtomicU64,
    failures: AtomicU64,
    last_failure: Mutex<Option<String>>,
}

/// One way along all slots of all devices, for [`Pool::trim_step`].
#[derive(Debug)]
pub struct TrimPass {
    /// Those as well that were free when the pool was opened.
    found: bool,
    device: u16,
    slot: u32,
}

impl TrimPass {
    /// Past the slots that were freed since the pool was opened.
    pub const fn over_freed() -> Self {
        Self { found: false, device: 0, slot: 0 }
    }

    /// Past all free slots that were not discarded since they were last written.
    pub const fn over_everything() -> Self {
        Self { found: true, device: 0, slot: 0 }
    }
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trimmed {
    /// Bytes that were discarded.
    pub bytes: u64,
}

/// How discarding goes on one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceTrim {
    /// The device.
    pub device: DeviceIndex,
    /// Its path.
    pub name: String,
    /// Whether it can discard, as far as is known.
    pub supported: bool,
    /// In units of so many bytes.
    pub granularity: u64,
    /// Bytes that one call may name.
    pub bytes_max: u64,
    /// Bytes of slots that were freed and wait to be discarded.
    pub waiting_bytes: u64,
    /// Bytes of free slots of which it is not known whether the device keeps anything: they were free when the
    /// pool was opened, or could not be discarded.
    pub unknown_bytes: u64,
    /// Bytes discarded since the pool was opened.
    pub discarded_bytes: u64,
    /// Calls in which that happened.
    pub calls: u64,
    /// Calls that failed.
    pub failures: u64,
    /// Why the last one did.
    pub last_failure: Option<String>,
}

/// Slots that were set aside. They are free again when this goes, whatever happens.
struct Aside<'p> {
    pool: &'p Pool,
    run: Run,
    forgotten: Range<u32>,
}

impl Drop for Aside<'_> {
    fn drop(&mut self) {
        self.pool.slots.lock().end_trim(self.run, self.forgotten.clone());
        self.pool.trimmed.notify_all();
    }
}

impl Pool {
    /// Discards the next run of neighbouring free slots, of so many bytes at most, or of one slot. Nothing is returned
    /// when the pass has come to its end.
    ///
    /// What fails is noted, and not tried again by a pass over what was freed.
    pub fn trim_step(&self, pass: &mut TrimPass, bytes_max: u64) -> Option<Trimmed> {
        while usize::from(pass.device) < self.members.len() {
            let device = DeviceIndex(pass.device);
            if let Some((layout, limits)) = self.can_trim(device) {
                let wanted = Wanted {
                    device,
                    from: pass.slot,
                    found: pass.found,
                    most: u32::try_from(bytes_max / self.slot_bytes()).unwrap_or(u32::MAX),
                    margin: margin(&layout, &limits, self.slot_bytes()),
                };
                let run = self.slots.lock().begin_trim(&wanted);
                if let Some(run) = run {
                    // Beyond what may be taken along behind, or a pass over everything would come by it again.
                    pass.slot = run.first + run.count;
                    return Some(self.trim_run(run, &layout, &limits));
                }
            }
            (pass.device, pass.slot) = (pass.device + 1, 0);
        }
        None
    }

    /// Where the slots of a device are and what it can forget, if anything.
    fn can_trim(&self, device: DeviceIndex) -> Option<(DeviceLayout, DiscardLimits)> {
        let member = self.member(device).ok().filter(|member| member.counted() && !self.read_only())?;
        let limits = member.device.discard_limits();
        (limits.supported && !member.device.read_only()).then_some((member.layout, limits))
    }

    fn trim_run(&self, run: Run, layout: &DeviceLayout, limits: &DiscardLimits) -> Trimmed {
        let mut aside = Aside { pool: self, run, forgotten: 0..0 };
        let slot_bytes = self.slot_bytes();
        let offset = layout.slot_offset(aegisfs_base::SlotIndex(run.first));
        let length = u64::from(run.count) * slot_bytes;
        let (Some((start, bytes)), Ok(member)) = (limits.inward(offset, length), self.member(run.device))
        else {
            return Trimmed { bytes: 0 };
        };
        for (from, part) in limits.calls(start, bytes) {
            // One that is out keeps what it had: it may be all that is left one day.
            if !member.counted() {
                return Trimmed { bytes: from - start };
            }
            if !member.trims.discard(&*member.device, from, part) {
                return Trimmed { bytes: from - start };
            }
        }
        // What of the first and last slot lies outside of whole units stays; slots wholly outside are none that went.
        let first = (start - offset) / slot_bytes;
        let end = (start + bytes - offset).div_ceil(slot_bytes);
        aside.forgotten = run.first + first as u32..run.first + end as u32;
        Trimmed { bytes }
    }

    /// Bytes of slots that were freed and wait to be discarded, on devices that can do it.
    pub fn trim_waiting_bytes(&self) -> u64 {
        let devices = (0..self.members.len()).map(|n| DeviceIndex(n as u16));
        let able: Vec<DeviceIndex> = devices.filter(|device| self.can_trim(*device).is_some()).collect();
        let slots = self.slots.lock();
        able.into_iter().map(|device| u64::from(slots.trimmable(device).0) * self.slot_bytes()).sum()
    }

    /// How discarding goes on each device that is there.
    pub fn trim_status(&self) -> Vec<DeviceTrim> {
        let present = self.members.iter().enumerate().filter_map(|(n, member)| Some((n, member.get()?)));
        let describe = |(n, member): (usize, &crate::member::Member)| {
            let device = DeviceIndex(n as u16);
            let limits = member.device.discard_limits();
            let (left, found) = self.slots.lock().trimmable(device);
            let [discarded_bytes, calls, failures] =
                [&member.trims.bytes, &member.trims.calls, &member.trims.failures]
                    .map(|counter| counter.load(Ordering::Relaxed));
            DeviceTrim {
                device,
                name: member.device.describe(),
                supported: limits.supported,
                granularity: limits.granularity,
                bytes_max: limits.bytes_max,
                waiting_bytes: u64::from(left) * self.slot_bytes(),
                unknown_bytes: u64::from(found) * self.slot_bytes(),
                discarded_bytes,
                calls,
                failures,
                last_failure: member.trims.last_failure.lock().clone(),
            }
        };
        present.map(describe).collect()
    }

    /// What a missing safeguard lets happen.
    pub(crate) fn forget_too_early(&self, places: &[Placement]) {
        for (device, slot) in places {
            if let Ok(member) = self.member(*device) {
                let offset = member.layout.slot_offset(*slot);
                member.trims.discard(&*member.device, offset, self.slot_bytes());
            }
        }
    }
}

/// Blank neighbours that help to make up whole units, where slots are none.
fn margin(layout: &DeviceLayout, limits: &DiscardLimits, slot_bytes: u64) -> u32 {
    let unit = limits.granularity;
    let start = layout.slot_offset(aegisfs_base::SlotIndex(0));
    let fits = slot_bytes.is_multiple_of(unit) && start % unit == limits.alignment;
    if fits { 0 } else { u32::try_from(unit.div_ceil(slot_bytes)).unwrap_or(u32::MAX) }
}

impl TrimCounts {
    /// Tells a device to forget a range, and notes how that went.
    fn discard(&self, device: &dyn Device, offset: u64, length: u64) -> bool {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let problem = match device.discard(offset, length) {
            Ok(()) if device.discard_limits().supported => None,
            Ok(()) => Some(format!("{} cannot discard", device.describe())),
            Err(error) => Some(error.to_string()),
        };
        let Some(problem) = problem else {
            self.bytes.fetch_add(length, Ordering::Relaxed);
            return true;
        };
        // Said once; the status shows how often.
        if self.failures.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(problem, "freed slots could not be discarded; their space stays allocated");
        }
        *self.last_failure.lock() = Some(problem);
        false
    }
}
