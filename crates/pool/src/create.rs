//! Making a pool: layout, log, and at the very end the superblocks.

use crate::member::Member;
use crate::pool::{Pool, Redundancy, State};
use crate::slots::SlotTable;
use crate::{PoolError, superblocks};
use aegisfs_base::limits::{DEVICE_BYTES_MIN, DEVICES_MAX};
use aegisfs_base::units::MIB;
use aegisfs_base::{Clock, DeviceIndex, Generation, Incarnation, Rng, Uuid};
use aegisfs_device::Device;
use aegisfs_format::cell::{self, DATA_CELLS_MAX, PARITY_CELLS_MAX};
use aegisfs_format::layout::{DeviceLayout, slot_bytes_for};
use aegisfs_format::map::{MapEntry, MapOwner};
use aegisfs_format::superblock::{
    DATABASES_MAX, DOMAIN_BYTES_MAX, DeviceEntry, Health, LABEL_BYTES_MAX, Membership, Superblock,
};
use std::sync::Arc;

/// Largest intent log; a larger one only makes recovery longer.
const LOG_BYTES_MAX: u64 = 512 * MIB;
/// The log takes this part of a small pool.
const LOG_PART: u64 = 16;
/// Fewer pieces than this cannot be written and trimmed at the same time.
const LOG_PIECES_MIN: u64 = 4;

/// All copies of the log together take no more than this part of the pool, beyond the fewest pieces.
const LOG_COPIES_PART: u64 = 8;
/// A pool without room for so many segments is of no use to anybody.
const SEGMENTS_MIN: u64 = 8;
/// What a pool has by itself from four devices on: so many shards of parity, and of data no more than this.
const PARITY_BY_ITSELF: u8 = 2;
const DATA_BY_ITSELF_MAX: u8 = 8;

impl Redundancy {
    /// Shards of both kinds.
    pub fn shards(self) -> usize {
        usize::from(self.shards_data) + usize::from(self.shards_parity)
    }

    /// The same with so many devices only: fewer shards of data, and less parity where there is no other way.
    pub(crate) const fn on(self, devices: usize) -> (u8, u8) {
        let devices = if devices > u8::MAX as usize { u8::MAX } else { devices as u8 };
        let spare = devices.saturating_sub(1);
        let parity = if self.shards_parity < spare { self.shards_parity } else { spare };
        let left = if devices > parity { devices - parity } else { 1 };
        (if self.shards_data < left { self.shards_data } else { left }, parity)
    }

    /// What a pool of so many devices has unless somebody says otherwise: one device none, two or three two copies, and from
    /// four on any two may be lost.
    pub fn for_devices(count: usize) -> Self {
        match u8::try_from(count).unwrap_or(u8::MAX) {
            0 | 1 => Self { shards_data: 1, shards_parity: 0 },
            2 | 3 => Self { shards_data: 1, shards_parity: 1 },
            more => Self {
                shards_data: (more - PARITY_BY_ITSELF).min(DATA_BY_ITSELF_MAX),
                shards_parity: PARITY_BY_ITSELF,
            },
        }
    }
}

/// How a new pool should be.
#[derive(Clone, Debug, Default)]
pub struct CreateOptions {
    /// What people call it.
    pub label: String,
    /// How many shards a segment has; by the number of devices when not given.
    pub redundancy: Option<Redundancy>,
    /// Which devices fail together, by device: those with the same name. One without a name fails alone.
    pub failure_domains: Vec<String>,
    /// Default codec number and level.
    pub compression: (u8, u8),
    /// Slot size, for tests that want small ones; by the size of the pool when not given.
    pub slot_bytes: Option<u64>,
    /// Pieces of the intent log, for tests; by the size of the pool when not given.
    pub log_pieces: Option<u32>,
}

impl Pool {
    /// Formats devices into a new pool that is not yet on stable storage: superblocks are written by
    /// [`Pool::publish_new`], after the caller has put its databases into it. A crash before leaves
    /// devices that are not formatted.
    ///
    /// # Errors
    /// When the devices are too small, too many or fail.
    pub fn create(
        devices: Vec<Arc<dyn Device>>,
        options: &CreateOptions,
        clock: &dyn Clock,
        rng: &dyn Rng,
    ) -> Result<Arc<Self>, PoolError> {
        let redundancy = check(&devices, options)?;
        let total = devices.iter().map(|d| d.bytes()).sum();
        let smallest = devices.iter().map(|d| d.bytes()).min().unwrap_or_default();
        let slot_bytes = options.slot_bytes.unwrap_or_else(|| slot_bytes_for(total, smallest));
        let mut members = Vec::new();
        let mut entries = Vec::new();
        for (number, device) in devices.into_iter().enumerate() {
            let too_small = || PoolError::TooSmall {
                device: device.describe(),
                bytes: device.bytes(),
                minimum: DEVICE_BYTES_MIN,
            };
            let layout = DeviceLayout::new(device.bytes(), slot_bytes).ok_or_else(too_small)?;
            entries.push(DeviceEntry {
                uuid: Uuid::random(rng),
                bytes: layout.device_bytes,
                slots: layout.slots,
                membership: Membership::In,
                health: Health::Healthy,
                tier: 0,
                failure_domain: options.failure_domains.get(number).cloned().unwrap_or_default(),
                path: device.describe().into_bytes(),
            });
            members.push(Some(Member::new(device, layout, true)));
        }
        for member in members.iter().flatten() {
            superblocks::erase(member)?;
        }
        let slots = SlotTable::new(members.iter().flatten().map(|m| (m.layout.slots, true)));
        let superblock = Superblock {
            pool: Uuid::random(rng),
            device: DeviceIndex(0),
            devices: entries,
            generation: Generation(0),
            created: clock.now(),
            slot_bytes: u32::try_from(slot_bytes).expect("slots are at most 64 MiB"),
            shards_data: redundancy.shards_data,
            shards_parity: redundancy.shards_parity,
            metadata_copies: redundancy.shards_parity.max(1) + 1,
            log_copies: redundancy.shards_parity + 1,
            compression: options.compression,
            dirty: false,
            label: options.label.clone(),
            incarnations: vec![Incarnation(rng.next_u64() | 1)],
            map_blocks: 0,
            map_sum: aegisfs_format::sum128(&[]),
            name_key: Uuid::random(rng).0,
            database_bytes: [0; DATABASES_MAX],
            compat: 0,
            ro_compat: 0,
        };
        let pool = Arc::new(Self::assemble(
            members,
            slots,
            State { superblock, map: Vec::new(), provisional: true },
        ));
        pool.create_log(options, total)?;
        let left = pool.space().segments_placeable;
        if left < SEGMENTS_MIN {
            let reason = format!(
                "beside the log's {} copies there is room for {left} segments, and {SEGMENTS_MIN} are needed: take \
                 larger devices, or fewer shards",
                redundancy.shards_parity + 1
            );
            return Err(PoolError::Impossible { reason });
        }
        Ok(pool)
    }

    /// Reserves and zeroes the log's slots: a log append must never change where anything lies.
    fn create_log(&self, options: &CreateOptions, total: u64) -> Result<(), PoolError> {
        let slot_bytes = self.slot_bytes();
        let copies = self.state.lock().superblock.log_copies;
        let part = LOG_PART.max(LOG_COPIES_PART * u64::from(copies));
        let by_size = (total / part).min(LOG_BYTES_MAX) / slot_bytes;
        let pieces = options.log_pieces.map_or(by_size.max(LOG_PIECES_MIN), u64::from);
        let mut entries = Vec::new();
        for piece in 0..u32::try_from(pieces).expect("bounded by LOG_BYTES_MAX") {
            let places = self.take_mirror_slots(copies, "the intent log", true)?;
            for (copy, (device, slot)) in (0..copies).zip(places) {
                entries.push(MapEntry { owner: MapOwner::Log, piece, copy, device, slot });
            }
        }
        let zeros = aegisfs_device::AlignedBuffer::zeroed(MIB as usize);
        for entry in &entries {
            for offset in (0..slot_bytes).step_by(zeros.len()) {
                let length = zeros.len().min(usize::try_from(slot_bytes - offset).expect("small"));
                self.write_slot((entry.device, entry.slot), offset, &zeros[..length])?;
            }
        }
        for entry in &entries {
            self.write_mapped_header(entry)?;
        }
        self.state.lock().map.extend(entries);
        Ok(())
    }

    /// Makes a new pool real: from here on it can be opened.
    ///
    /// # Errors
    /// When a device fails; the pool then does not exist.
    pub fn publish_new(&self) -> Result<(), PoolError> {
        self.flush()?;
        let mut state = self.state.lock();
        state.provisional = false;
        // Twice, so that both superblock slots of every area are written.
        self.publish(&mut state)?;
        self.publish(&mut state)
    }
}

fn check(devices: &[Arc<dyn Device>], options: &CreateOptions) -> Result<Redundancy, PoolError> {
    let impossible = |reason: String| Err(PoolError::Impossible { reason });
    if devices.is_empty() || devices.len() > DEVICES_MAX {
        return impossible(format!("a pool has 1 to {DEVICES_MAX} devices, not {}", devices.len()));
    }
    if options.label.len() > LABEL_BYTES_MAX {
        return impossible(format!("a label has at most {LABEL_BYTES_MAX} bytes"));
    }
    if let Some(device) = devices.iter().find(|d| d.read_only()) {
        return impossible(format!("{} is read-only and cannot be formatted", device.describe()));
    }
    let minimum = if options.slot_bytes.is_some() { 0 } else { DEVICE_BYTES_MIN };
    if let Some(device) = devices.iter().find(|d| d.bytes() < minimum) {
        return Err(PoolError::TooSmall { device: device.describe(), bytes: device.bytes(), minimum });
    }
    let redundancy = options.redundancy.unwrap_or_else(|| Redundancy::for_devices(devices.len()));
    let Redundancy { shards_data, shards_parity } = redundancy;
    if !cell::is_geometry((shards_data, shards_parity)) {
        return impossible(format!(
            "a row has 1 to {DATA_CELLS_MAX} shards of data and at most {PARITY_CELLS_MAX} of parity, not \
             {shards_data}+{shards_parity}"
        ));
    }
    let members = redundancy.shards();
    if members > devices.len() {
        let what = if shards_data == 1 { "copies" } else { "shards" };
        return impossible(format!(
            "{members} {what} need {members} devices, and there are {}",
            devices.len()
        ));
    }
    check_domains(devices.len(), options, redundancy)?;
    Ok(redundancy)
}

/// A failure domain may have no more shards of a segment than may be lost.
fn check_domains(devices: usize, options: &CreateOptions, redundancy: Redundancy) -> Result<(), PoolError> {
    let impossible = |reason: String| Err(PoolError::Impossible { reason });
    let domains = &options.failure_domains;
    if let Some(long) = domains.iter().find(|domain| domain.len() > DOMAIN_BYTES_MAX) {
        return impossible(format!(
            "the name of a failure domain has at most {DOMAIN_BYTES_MAX} bytes: {long}"
        ));
    }
    if redundancy.shards_parity == 0 || domains.iter().all(String::is_empty) {
        return Ok(());
    }
    let name = |device: usize| domains.get(device).map_or("", String::as_str);
    let mut slots = SlotTable::new((0..devices).map(|_| (1, true)));
    slots.set_rules(redundancy.shards_parity, (0..devices).map(|device| (Health::Healthy, name(device))));
    let most = slots.width_apart();
    if most < redundancy.shards() {
        return impossible(format!(
            "{} shards of which any {} may be lost need that no failure domain has more than {} of them, and so there is \
             room for {most}: use more failure domains, or fewer shards",
            redundancy.shards(),
            redundancy.shards_parity,
            redundancy.shards_parity
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domains(names: &[&str], redundancy: (u8, u8)) -> Result<(), String> {
        let failure_domains = names.iter().map(|name| (*name).to_owned()).collect();
        let options = CreateOptions { failure_domains, ..CreateOptions::default() };
        let (shards_data, shards_parity) = redundancy;
        check_domains(names.len(), &options, Redundancy { shards_data, shards_parity })
            .map_err(|error| error.to_string())
    }

    #[test]
    fn failure_domains_that_are_too_few_are_refused() {
        domains(&["a", "a", "b", "b", "c", "c"], (4, 2)).unwrap();
        domains(&["", "", "", "", "", ""], (4, 2)).unwrap();
        domains(&["a", "a"], (1, 0)).unwrap();
        let refused = domains(&["a", "a", "a", "b", "b", "b"], (4, 2)).unwrap_err();
        assert!(refused.contains("room for 4"), "{refused}");
        assert!(domains(&["a", "a"], (1, 1)).unwrap_err().contains("room for 1"));
        assert!(domains(&[&"x".repeat(33)], (1, 0)).unwrap_err().contains("at most 32 bytes"));
    }
}
