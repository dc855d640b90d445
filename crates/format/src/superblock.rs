//! The superblock: what a pool is, who is in it, and where its metadata begins.

use crate::cell::is_geometry;
use crate::layout::SUPERBLOCK_BYTES;
use crate::{FormatError, Sum128, sum128_of_parts};
use aegisfs_base::limits::DEVICES_MAX;
use aegisfs_base::{DeviceIndex, Generation, Incarnation, Timestamp, Uuid};
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

/// First bytes of every superblock.
pub const SUPERBLOCK_MAGIC: [u8; 8] = *b"AegisFS\x01";
/// The version this program writes and the newest it reads.
pub const SUPERBLOCK_VERSION: u32 = 6;
/// The oldest version that is understood; those before it were never released.
pub const SUPERBLOCK_VERSION_MIN: u32 = 5;
/// Incompatible features that this program knows.
pub const INCOMPAT_KNOWN: u64 = 0;
/// Features without which a pool may only be read.
pub const RO_COMPAT_KNOWN: u64 = 0;
/// Incarnations that a superblock remembers.
pub const INCARNATIONS_KEPT: usize = 16;
/// Metadata databases that a pool can have.
pub const DATABASES_MAX: usize = 4;
/// Longest label, in bytes.
pub const LABEL_BYTES_MAX: usize = 64;
/// Longest name of a failure domain, in bytes.
pub const DOMAIN_BYTES_MAX: usize = 32;
/// Longest remembered device path, in bytes.
pub const PATH_BYTES_MAX: usize = 136;

const WHAT: &str = "superblock";

on_disk! {
    /// The fixed part of a superblock; the device table follows, then nothing but zeros.
    pub struct SuperblockV1 [512] {
        /// [`SUPERBLOCK_MAGIC`].
        magic: [u8; 8],
        /// [`SUPERBLOCK_VERSION`].
        version: U32,
        /// Devices in the table that follows.
        device_count: U16,
        /// Which entry of the table describes the device this was read from.
        device_index: U16,
        /// Features a reader may ignore.
        compat: U64,
        /// Features without which the pool may only be read.
        ro_compat: U64,
        /// Features without which the pool must not be touched.
        incompat: U64,
        /// The pool.
        pool_uuid: [u8; 16],
        /// The device this was read from.
        device_uuid: [u8; 16],
        /// Age; the highest that verifies wins.
        generation: U64,
        /// When the pool was formatted, ns since 1970.
        created: I64,
        /// Bytes of one slot.
        slot_bytes: U32,
        /// Bytes of one block, always 4096.
        block_bytes: U32,
        /// Data shards of a wide segment.
        shards_data: u8,
        /// Parity shards of a segment.
        shards_parity: u8,
        /// Copies of each metadata database.
        metadata_copies: u8,
        /// Copies of the intent log.
        log_copies: u8,
        /// Default codec: 0 none, 1 lz4, 2 zstd.
        codec: u8,
        /// Its level.
        codec_level: u8,
        /// Bytes that the label takes.
        label_bytes: u8,
        /// 1 while the pool is mounted for writing, 0 after a clean end.
        dirty: u8,
        /// The label, UTF-8, zero-filled.
        label: [u8; 64],
        /// The newest incarnation first, then its predecessors.
        incarnations: [U64; 16],
        /// Blocks of the slot map, in the map zone that the generation names.
        map_blocks: U32,
        /// Reserved, zero.
        reserved_map: U32,
        /// Checksum of those blocks.
        map_sum: [u8; 16],
        /// A random key for the hash of directory entry names.
        name_key: [u8; 16],
        /// Bytes of each metadata database, by its number.
        database_bytes: [U64; 4],
        /// Reserved, zero.
        reserved: [u8; 128],
        /// XXH3-128 of everything before it and of the device table.
        sum: [u8; 16],
    }
}

on_disk! {
    /// A device in the pool's table.
    pub struct DeviceEntryV1 [256] {
        /// The device.
        uuid: [u8; 16],
        /// Its size.
        bytes: U64,
        /// Its slots.
        slots: U32,
        /// 0 in, 1 out.
        membership: u8,
        /// 0 healthy, 1 degraded, 2 suspect, 3 draining, 4 failed.
        health: u8,
        /// Tier number, 0 is the fastest.
        tier: u8,
        /// Bytes that the path takes.
        path_bytes: u8,
        /// The generation since which it is out; 0 while it is in.
        out_since: U64,
        /// Failure domain, UTF-8, zero-filled.
        failure_domain: [u8; 32],
        /// Where it was last seen.
        path: [u8; 136],
        /// Reserved, zero.
        reserved: [u8; 48],
    }
}

/// Whether a device takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Membership {
    /// It holds everything it should.
    In,
    /// It misses what was written since this generation.
    Out {
        /// The generation since which it is out.
        since: Generation,
    },
}

/// How far a device is trusted, the best first. The numbers are those on the devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Health {
    /// Read and written.
    #[default]
    Healthy,
    /// It makes errors, or is much slower than the others: nothing new is put there as long as the others are enough.
    Degraded,
    /// It is about to fail: besides it is read only where nothing else will do.
    Suspect,
    /// It is to be emptied: nothing new is put there.
    Draining,
    /// It was given up, and stays out until somebody says otherwise.
    Failed,
}

impl Health {
    /// All of them, by their numbers.
    pub const ALL: [Self; 5] = [Self::Healthy, Self::Degraded, Self::Suspect, Self::Draining, Self::Failed];

    /// What it is called.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Suspect => "suspect",
            Self::Draining => "draining",
            Self::Failed => "failed",
        }
    }
}

/// A device of the pool, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceEntry {
    /// The device.
    pub uuid: Uuid,
    /// Its size in bytes.
    pub bytes: u64,
    /// Its slots.
    pub slots: u32,
    /// Whether it takes part.
    pub membership: Membership,
    /// How far it is trusted.
    pub health: Health,
    /// Tier number.
    pub tier: u8,
    /// Failure domain; empty when the device is its own.
    pub failure_domain: String,
    /// Where it was last seen.
    pub path: Vec<u8>,
}

/// A superblock, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The pool.
    pub pool: Uuid,
    /// The device that this copy belongs to.
    pub device: DeviceIndex,
    /// Every device.
    pub devices: Vec<DeviceEntry>,
    /// Age.
    pub generation: Generation,
    /// When the pool was formatted.
    pub created: Timestamp,
    /// Bytes of one slot.
    pub slot_bytes: u32,
    /// Data shards of a wide segment.
    pub shards_data: u8,
    /// Parity shards of a segment.
    pub shards_parity: u8,
    /// Copies of each metadata database.
    pub metadata_copies: u8,
    /// Copies of the intent log.
    pub log_copies: u8,
    /// Default codec number and level.
    pub compression: (u8, u8),
    /// Whether the pool was open for writing when this was written.
    pub dirty: bool,
    /// What people call it.
    pub label: String,
    /// The newest incarnation first.
    pub incarnations: Vec<Incarnation>,
    /// Blocks of the slot map.
    pub map_blocks: u32,
    /// Checksum of those blocks.
    pub map_sum: Sum128,
    /// Key for the hash of names.
    pub name_key: [u8; 16],
    /// Bytes of each metadata database.
    pub database_bytes: [u64; DATABASES_MAX],
    /// Features that a reader may ignore.
    pub compat: u64,
    /// Features without which the pool may only be read.
    pub ro_compat: u64,
}

impl Superblock {
    /// Whether this program may write to the pool.
    pub const fn writable(&self) -> bool {
        self.ro_compat & !RO_COMPAT_KNOWN == 0
    }

    /// The bytes of one superblock slot.
    ///
    /// # Panics
    /// When the pool has more devices, or a longer label or path, than the limits allow.
    pub fn encode(&self) -> Vec<u8> {
        let mut fixed = SuperblockV1::new_zeroed_with_magic();
        fixed.device_count = U16::new(u16::try_from(self.devices.len()).expect("bounded"));
        assert!(self.devices.len() <= DEVICES_MAX, "bounded at format");
        fixed.device_index = U16::new(self.device.0);
        fixed.compat = U64::new(self.compat);
        fixed.ro_compat = U64::new(self.ro_compat);
        fixed.pool_uuid = self.pool.0;
        fixed.device_uuid = self.devices[usize::from(self.device.0)].uuid.0;
        fixed.generation = U64::new(self.generation.0);
        fixed.created = I64::new(self.created.0);
        fixed.slot_bytes = U32::new(self.slot_bytes);
        fixed.shards_data = self.shards_data;
        fixed.shards_parity = self.shards_parity;
        fixed.metadata_copies = self.metadata_copies;
        fixed.log_copies = self.log_copies;
        (fixed.codec, fixed.codec_level) = self.compression;
        fixed.label_bytes = copy_text(&mut fixed.label, self.label.as_bytes());
        fixed.dirty = u8::from(self.dirty);
        for (place, incarnation) in fixed.incarnations.iter_mut().zip(&self.incarnations) {
            *place = U64::new(incarnation.0);
        }
        fixed.map_blocks = U32::new(self.map_blocks);
        fixed.map_sum = self.map_sum;
        fixed.name_key = self.name_key;
        fixed.database_bytes = self.database_bytes.map(U64::new);

        let mut table = Vec::with_capacity(self.devices.len() * size_of::<DeviceEntryV1>());
        for device in &self.devices {
            table.extend_from_slice(device.encode().as_bytes());
        }
        fixed.sum = sum128_of_parts(&[unsummed(&fixed), &table]);
        let mut bytes = Vec::with_capacity(SUPERBLOCK_BYTES);
        bytes.extend_from_slice(fixed.as_bytes());
        bytes.extend_from_slice(&table);
        assert!(bytes.len() <= SUPERBLOCK_BYTES, "the device table is bounded");
        bytes.resize(SUPERBLOCK_BYTES, 0);
        bytes
    }

    /// Reads a superblock slot.
    ///
    /// # Errors
    /// When it is not one, is damaged, or is of a version or with features this program does not know.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        Self::decode_with(bytes, true)
    }

    /// The same, but lets a test leave the checksum untested.
    ///
    /// # Errors
    /// As [`Superblock::decode`].
    pub fn decode_with(bytes: &[u8], verify: bool) -> Result<Self, FormatError> {
        let (fixed, rest) =
            SuperblockV1::read_from_prefix(bytes).map_err(|_| FormatError::Short { what: WHAT })?;
        if fixed.magic != SUPERBLOCK_MAGIC {
            return Err(FormatError::Magic { what: WHAT });
        }
        let count = usize::from(fixed.device_count.get());
        let table = rest.get(..count * size_of::<DeviceEntryV1>());
        // The version is told before the checksum, which a newer version may compute differently.
        if fixed.version.get() > SUPERBLOCK_VERSION {
            let (found, known) = (fixed.version.get(), SUPERBLOCK_VERSION);
            return Err(FormatError::Version { what: WHAT, found, known });
        }
        let table = table.filter(|_| count <= DEVICES_MAX).ok_or(FormatError::Checksum { what: WHAT })?;
        if verify && sum128_of_parts(&[unsummed(&fixed), table]) != fixed.sum {
            return Err(FormatError::Checksum { what: WHAT });
        }
        // The versions before it are from before the first release.
        if fixed.version.get() < SUPERBLOCK_VERSION_MIN {
            let (found, known) = (fixed.version.get(), SUPERBLOCK_VERSION_MIN);
            return Err(FormatError::Outdated { what: WHAT, found, known });
        }
        let unknown = fixed.incompat.get() & !INCOMPAT_KNOWN;
        if unknown != 0 {
            return Err(FormatError::Features { what: WHAT, bits: unknown });
        }
        fixed.validate(count)?;
        let devices = table
            .chunks_exact(size_of::<DeviceEntryV1>())
            .map(DeviceEntry::decode)
            .collect::<Result<_, _>>()?;
        Ok(Self {
            pool: Uuid(fixed.pool_uuid),
            device: DeviceIndex(fixed.device_index.get()),
            devices,
            generation: Generation(fixed.generation.get()),
            created: Timestamp(fixed.created.get()),
            slot_bytes: fixed.slot_bytes.get(),
            shards_data: fixed.shards_data,
            shards_parity: fixed.shards_parity,
            metadata_copies: fixed.metadata_copies,
            log_copies: fixed.log_copies,
            compression: (fixed.codec, fixed.codec_level),
            dirty: fixed.dirty != 0,
            label: text("label", &fixed.label, fixed.label_bytes)?,
            incarnations: fixed
                .incarnations
                .iter()
                .map(|i| Incarnation(i.get()))
                .take_while(|i| i.0 != 0)
                .collect(),
            map_blocks: fixed.map_blocks.get(),
            map_sum: fixed.map_sum,
            name_key: fixed.name_key,
            database_bytes: fixed.database_bytes.map(U64::get),
            compat: fixed.compat.get(),
            ro_compat: fixed.ro_compat.get(),
        })
    }
}

impl SuperblockV1 {
    fn new_zeroed_with_magic() -> Self {
        let mut fixed = Self::read_from_bytes(&[0u8; size_of::<Self>()]).expect("the size is right");
        fixed.magic = SUPERBLOCK_MAGIC;
        fixed.version = U32::new(SUPERBLOCK_VERSION);
        fixed.block_bytes = U32::new(4096);
        fixed
    }

    fn validate(&self, count: usize) -> Result<(), FormatError> {
        let value = |field, value| Err(FormatError::Value { what: WHAT, field, value });
        if count == 0 || usize::from(self.device_index.get()) >= count {
            return value("device_index", u64::from(self.device_index.get()));
        }
        let slot_bytes = self.slot_bytes.get();
        if self.block_bytes.get() != 4096 {
            return value("block_bytes", u64::from(self.block_bytes.get()));
        }
        if !slot_bytes.is_power_of_two() || !(64 << 10..=256 << 20).contains(&slot_bytes) {
            return value("slot_bytes", u64::from(slot_bytes));
        }
        let is_geometry = is_geometry((self.shards_data, self.shards_parity));
        if !is_geometry || self.metadata_copies == 0 || self.log_copies == 0 {
            return value("shards", 0);
        }
        if self.reserved.iter().any(|b| *b != 0) || self.reserved_map.get() != 0 {
            return value("reserved", 1);
        }
        Ok(())
    }
}

impl DeviceEntry {
    fn encode(&self) -> DeviceEntryV1 {
        let mut entry =
            DeviceEntryV1::read_from_bytes(&[0u8; size_of::<DeviceEntryV1>()]).expect("the size is right");
        entry.uuid = self.uuid.0;
        entry.bytes = U64::new(self.bytes);
        entry.slots = U32::new(self.slots);
        if let Membership::Out { since } = self.membership {
            entry.membership = 1;
            entry.out_since = U64::new(since.0);
        }
        entry.health = self.health as u8;
        entry.tier = self.tier;
        copy_text(&mut entry.failure_domain, self.failure_domain.as_bytes());
        let kept = self.path.len().min(PATH_BYTES_MAX);
        entry.path_bytes = copy_text(&mut entry.path, &self.path[..kept]);
        entry
    }

    fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        const WHAT: &str = "device entry";
        let entry = DeviceEntryV1::read_from_bytes(bytes).map_err(|_| FormatError::Short { what: WHAT })?;
        let membership = match entry.membership {
            0 => Membership::In,
            1 => Membership::Out { since: Generation(entry.out_since.get()) },
            other => {
                return Err(FormatError::Value { what: WHAT, field: "membership", value: u64::from(other) });
            }
        };
        let health = Health::ALL.get(usize::from(entry.health)).copied();
        let health = health.ok_or(FormatError::Value {
            what: WHAT,
            field: "health",
            value: u64::from(entry.health),
        })?;
        let path_bytes = usize::from(entry.path_bytes).min(PATH_BYTES_MAX);
        Ok(Self {
            uuid: Uuid(entry.uuid),
            bytes: entry.bytes.get(),
            slots: entry.slots.get(),
            membership,
            health,
            tier: entry.tier,
            failure_domain: text("failure_domain", &entry.failure_domain, 32)?
                .trim_end_matches('\0')
                .to_owned(),
            path: entry.path[..path_bytes].to_vec(),
        })
    }
}

fn unsummed(fixed: &SuperblockV1) -> &[u8] {
    &fixed.as_bytes()[..size_of::<SuperblockV1>() - size_of::<Sum128>()]
}

fn copy_text(place: &mut [u8], text: &[u8]) -> u8 {
    assert!(text.len() <= place.len(), "texts are bounded where they enter");
    place[..text.len()].copy_from_slice(text);
    u8::try_from(text.len()).expect("places are short")
}

fn text(field: &'static str, place: &[u8], bytes: u8) -> Result<String, FormatError> {
    let text = std::str::from_utf8(&place[..usize::from(bytes).min(place.len())]);
    text.map(str::to_owned).map_err(|_| FormatError::Value { what: WHAT, field, value: u64::from(bytes) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Superblock {
        let device = |n: u8| DeviceEntry {
            uuid: Uuid([n; 16]),
            bytes: 1 << 30,
            slots: 63,
            membership: if n == 2 { Membership::Out { since: Generation(4) } } else { Membership::In },
            health: Health::ALL[usize::from(n)],
            tier: 0,
            failure_domain: "rack-1".into(),
            path: b"/dev/sdb".to_vec(),
        };
        Superblock {
            pool: Uuid([9; 16]),
            device: DeviceIndex(1),
            devices: vec![device(1), device(2)],
            generation: Generation(7),
            created: Timestamp(-5),
            slot_bytes: 4 << 20,
            shards_data: 1,
            shards_parity: 1,
            metadata_copies: 2,
            log_copies: 2,
            compression: (2, 1),
            dirty: true,
            label: "töst".into(),
            incarnations: vec![Incarnation(5), Incarnation(4)],
            map_blocks: 3,
            map_sum: [3; 16],
            name_key: [8; 16],
            database_bytes: [4096, 0, 0, 8192],
            compat: 1,
            ro_compat: 0,
        }
    }

    #[test]
    fn round_trip_and_every_flipped_bit_is_noticed() {
        let block = sample();
        let bytes = block.encode();
        assert_eq!(Superblock::decode(&bytes).unwrap(), block);
        for bit in 0..(512 + 2 * 256) * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Superblock::decode(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn newer_versions_and_unknown_features_say_so() {
        let mut bytes = sample().encode();
        let next = SUPERBLOCK_VERSION + 1;
        bytes[8] = next as u8;
        let decoded = Superblock::decode(&bytes);
        assert!(
            matches!(decoded, Err(FormatError::Version { found, known: SUPERBLOCK_VERSION, .. }) if found == next)
        );

        let changed = |change: fn(&mut SuperblockV1)| {
            let mut fixed = SuperblockV1::read_from_prefix(&sample().encode()).unwrap().0;
            change(&mut fixed);
            let table = sample().encode()[512..1024].to_vec();
            fixed.sum = sum128_of_parts(&[unsummed(&fixed), &table]);
            [fixed.as_bytes(), &table].concat()
        };
        let bytes = changed(|fixed| fixed.version = U32::new(4));
        assert!(matches!(Superblock::decode(&bytes), Err(FormatError::Outdated { found: 4, known: 5, .. })));
        let bytes = changed(|fixed| fixed.incompat = U64::new(1 << 40));
        assert!(
            matches!(Superblock::decode(&bytes), Err(FormatError::Features { bits, .. }) if bits == 1 << 40)
        );

        let mut readable = sample();
        readable.ro_compat = 2;
        assert!(!Superblock::decode(&readable.encode()).unwrap().writable());
    }

    #[test]
    fn an_unknown_health_is_refused() {
        let mut entry = sample().devices[0].encode();
        assert_eq!(DeviceEntry::decode(entry.as_bytes()).unwrap().health, Health::Degraded);
        entry.health = Health::ALL.len() as u8;
        assert!(matches!(
            DeviceEntry::decode(entry.as_bytes()),
            Err(FormatError::Value { field: "health", value: 5, .. })
        ));
        for (number, health) in Health::ALL.into_iter().enumerate() {
            assert_eq!(health as usize, number, "{}", health.name());
        }
    }

    #[test]
    fn short_and_empty_input() {
        assert!(matches!(Superblock::decode(&[]), Err(FormatError::Short { .. })));
        assert!(matches!(Superblock::decode(&[0; 4096]), Err(FormatError::Magic { .. })));
        assert!(matches!(Superblock::decode(&sample().encode()[..600]), Err(FormatError::Checksum { .. })));
    }
}
