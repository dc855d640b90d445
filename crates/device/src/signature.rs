//! Whose data is this? Recognises the filesystems, volumes and partition tables of others by their
//! magic numbers, so that formatting can refuse instead of destroying.
//!
//! The table errs towards recognising: a false alarm costs an option on the command line, a miss
//! costs somebody's data. Magics of two bytes are backed by a look at the fields beside them.
//! Our own magic is not known here; `format` knows it.

use std::fmt;

use aegisfs_base::limits::BLOCK_BYTES;

use crate::Device;
use crate::buffer::AlignedBuffer;
use crate::error::DeviceError;

/// What was recognised, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// Its usual name, such as `ext2/3/4`.
    pub name: &'static str,
    /// Where its magic stands, in bytes.
    pub offset: u64,
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (recognised at offset {})", self.name, self.offset)
    }
}

/// Looks for the data of others.
///
/// # Errors
/// When the device cannot be read: what cannot be looked at must not count as empty.
pub fn probe(device: &dyn Device) -> Result<Option<Foreign>, DeviceError> {
    let mut reader = Reader { device, block: AlignedBuffer::zeroed(BLOCK_BYTES), at: None };
    // Partition tables and their like come last: what fills the whole device says more.
    for signature in SIGNATURES {
        for place in signature.places {
            let Some(offset) = place.resolve(device.bytes()) else { continue };
            let matches = reader.matches(offset, signature.magic)?;
            if matches && signature.confirm.is_none_or(|confirm| confirm(reader.block_bytes())) {
                return Ok(Some(Foreign { name: signature.name, offset }));
            }
        }
        if signature.name == ZFS_COMES_AFTER
            && let Some(found) = probe_zfs(&mut reader)?
        {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

struct Signature {
    name: &'static str,
    places: &'static [Place],
    magic: &'static [u8],
    /// A second look, at the block that holds the magic.
    confirm: Option<fn(&[u8]) -> bool>,
}

#[derive(Clone, Copy)]
enum Place {
    Start(u64),
    /// Before the end, after the size was rounded down to the alignment.
    End {
        before: u64,
        aligned: u64,
    },
}
use Place::{End, Start};

impl Place {
    fn resolve(self, bytes: u64) -> Option<u64> {
        match self {
            Start(offset) => Some(offset),
            End { before, aligned } => (bytes - bytes % aligned).checked_sub(before),
        }
    }
}

const fn plain(name: &'static str, places: &'static [Place], magic: &'static [u8]) -> Signature {
    Signature { name, places, magic, confirm: None }
}

const BCACHE_PLACE: &[Place] = &[Start(4096 + 24)];
const MD_MAGIC: &[u8] = &0xa92b_4efc_u32.to_le_bytes();
const MD_MAGIC_SWAPPED: &[u8] = &0xa92b_4efc_u32.to_be_bytes();
const MD_PLACES: &[Place] = &[
    Start(0),
    Start(4096),
    // Versions 1.0 and 0.90 stand at the end.
    End { before: 8192, aligned: 4096 },
    End { before: 65536, aligned: 65536 },
];
/// The signature page ends with the magic, and pages have different sizes.
const SWAP_PLACES: &[Place] = &[Start(4086), Start(8182), Start(16374), Start(32758), Start(65526)];
const FAT16_PLACES: &[Place] = &[Start(0x36)];
const REISER_PLACES: &[Place] = &[Start(0x10034), Start(0x2034)];
const GPT_PLACES: &[Place] =
    &[Start(512), Start(4096), End { before: 512, aligned: 512 }, End { before: 4096, aligned: 4096 }];

const ZFS_COMES_AFTER: &str = "bcachefs";

const SIGNATURES: &[Signature] = &[
    plain("LUKS", &[Start(0), Start(0x4000)], b"LUKS\xba\xbe"),
    plain("LUKS", &[Start(0), Start(0x4000)], b"SKUL\xba\xbe"),
    plain("LVM2 physical volume", &[Start(24), Start(536), Start(1048), Start(1560)], b"LVM2 001"),
    plain("LVM2 physical volume", &[Start(0), Start(512), Start(1024), Start(1536)], b"LABELONE"),
    plain("Linux md array member", MD_PLACES, MD_MAGIC),
    plain("Linux md array member", MD_PLACES, MD_MAGIC_SWAPPED),
    plain("bcache", BCACHE_PLACE, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"),
    plain("bcachefs", BCACHE_PLACE, b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef"),
    plain("Ceph BlueStore", &[Start(0)], b"bluestore block device"),
    plain("xfs", &[Start(0)], b"XFSB"),
    plain("btrfs", &[Start(0x10040), Start((64 << 20) + 0x40)], b"_BHRfS_M"),
    Signature { name: "ext2/3/4", places: &[Start(1080)], magic: b"\x53\xef", confirm: Some(is_ext) },
    plain("f2fs", &[Start(1024), Start(5120)], &0xf2f5_2010_u32.to_le_bytes()),
    plain("erofs", &[Start(1024)], &0xe0f5_e1e2_u32.to_le_bytes()),
    plain("squashfs", &[Start(0)], b"hsqs"),
    plain("squashfs", &[Start(0)], b"sqsh"),
    plain("reiserfs", REISER_PLACES, b"ReIsErFs"),
    plain("reiserfs", REISER_PLACES, b"ReIsEr2Fs"),
    plain("reiserfs", REISER_PLACES, b"ReIsEr3Fs"),
    plain("reiser4", &[Start(0x10000)], b"ReIsEr4"),
    plain("jfs", &[Start(0x8000)], b"JFS1"),
    plain("gfs2", &[Start(0x10000)], &0x0116_1970_u32.to_be_bytes()),
    plain("ocfs2", &[Start(1024), Start(2048), Start(4096), Start(8192)], b"OCFSV2"),
    plain("apfs", &[Start(32)], b"NXSB"),
    Signature { name: "hfsplus", places: &[Start(1024)], magic: b"H+", confirm: Some(is_hfsplus) },
    Signature { name: "hfsplus", places: &[Start(1024)], magic: b"HX", confirm: Some(is_hfsplus) },
    plain("iso9660", &[Start(0x8001)], b"CD001"),
    plain("udf", &[Start(0x8001)], b"BEA01"),
    plain("swap", SWAP_PLACES, b"SWAPSPACE2"),
    plain("swap", SWAP_PLACES, b"SWAP-SPACE"),
    plain("suspended system", SWAP_PLACES, b"S1SUSPEND"),
    plain("suspended system", SWAP_PLACES, b"LINHIB0001"),
    plain("BitLocker", &[Start(3)], b"-FVE-FS-"),
    plain("ntfs", &[Start(3)], b"NTFS    "),
    plain("exfat", &[Start(3)], b"EXFAT   "),
    plain("vfat", &[Start(0x52)], b"FAT32   "),
    plain("vfat", FAT16_PLACES, b"FAT16   "),
    plain("vfat", FAT16_PLACES, b"FAT12   "),
    plain("vfat", FAT16_PLACES, b"FAT     "),
    plain("Intel RAID member", &[End { before: 1024, aligned: 512 }], b"Intel Raid ISM Cfg Sig. "),
    plain("GPT partition table", GPT_PLACES, b"EFI PART"),
    Signature {
        name: "MBR partition table",
        places: &[Start(510)],
        magic: b"\x55\xaa",
        confirm: Some(is_mbr),
    },
];

/// A revision that exists, and a block size of at most 64 KiB.
fn is_ext(block: &[u8]) -> bool {
    let field = |at: usize| u32::from_le_bytes(block[1024 + at..1028 + at].try_into().expect("four bytes"));
    field(0x4c) <= 1 && field(0x18) <= 6
}

/// A version that exists.
fn is_hfsplus(block: &[u8]) -> bool {
    matches!(u16::from_be_bytes([block[1026], block[1027]]), 4 | 5)
}

/// Four entries that are each empty or plausible, and at least one partition. The two bytes alone
/// also end boot sectors that hold no table.
fn is_mbr(block: &[u8]) -> bool {
    let entries = || block[446..510].chunks_exact(16);
    entries().all(|entry| matches!(entry[0], 0x00 | 0x80))
        && entries().any(|entry| entry[4] != 0 && entry[12..16].iter().any(|byte| *byte != 0))
}

/// A ZFS label has no magic at a fixed place, but a ring of uberblocks that have one each. There
/// are four labels, two at each end; any uberblock in any of them will do.
fn probe_zfs(reader: &mut Reader<'_>) -> Result<Option<Foreign>, DeviceError> {
    const LABEL_BYTES: u64 = 256 << 10;
    const RING: std::ops::Range<u64> = (128 << 10)..LABEL_BYTES;
    const UBERBLOCK_BYTES_MIN: usize = 1024;
    const MAGIC: u64 = 0x00ba_b10c;
    const LABELS: [Place; 4] = [
        Start(0),
        Start(LABEL_BYTES),
        End { before: 2 * LABEL_BYTES, aligned: LABEL_BYTES },
        End { before: LABEL_BYTES, aligned: LABEL_BYTES },
    ];
    for label in LABELS.iter().filter_map(|place| place.resolve(reader.device.bytes())) {
        for block in RING.step_by(BLOCK_BYTES) {
            for within in (0..BLOCK_BYTES).step_by(UBERBLOCK_BYTES_MIN) {
                let offset = label + block + within as u64;
                let big = reader.matches(offset, &MAGIC.to_be_bytes())?;
                if big || reader.matches(offset, &MAGIC.to_le_bytes())? {
                    return Ok(Some(Foreign { name: "zfs", offset }));
                }
            }
        }
    }
    Ok(None)
}

/// Reads blocks, and remembers the last one because many signatures share a block.
struct Reader<'d> {
    device: &'d dyn Device,
    block: AlignedBuffer,
    at: Option<u64>,
}

impl Reader<'_> {
    /// No magic crosses a block boundary, which a test holds the table to.
    fn matches(&mut self, offset: u64, magic: &[u8]) -> Result<bool, DeviceError> {
        let within = (offset % BLOCK_BYTES as u64) as usize;
        let start = offset - within as u64;
        if start.checked_add(BLOCK_BYTES as u64).is_none_or(|end| end > self.device.bytes()) {
            return Ok(false);
        }
        if self.at != Some(start) {
            self.at = None;
            self.device.read_at(start, &mut self.block)?;
            self.at = Some(start);
        }
        Ok(self.block.get(within..within + magic.len()) == Some(magic))
    }

    fn block_bytes(&self) -> &[u8] {
        &self.block
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Fault, FaultyDevice, MemoryDevice, Operation};

    const SIZE: u64 = (65 << 20) + 3 * 4096;

    fn with(pieces: &[(u64, &[u8])]) -> MemoryDevice {
        let device = MemoryDevice::new("m", SIZE);
        for (offset, bytes) in pieces {
            let mut block = [0; BLOCK_BYTES];
            let within = (offset % 4096) as usize;
            device.read_at(offset - within as u64, &mut block).unwrap();
            block[within..within + bytes.len()].copy_from_slice(bytes);
            device.write_at(offset - within as u64, &block).unwrap();
        }
        device
    }

    fn name(pieces: &[(u64, &[u8])]) -> Option<&'static str> {
        probe(&with(pieces)).unwrap().map(|found| found.name)
    }

    #[test]
    fn every_row_of_the_table_is_found_at_each_of_its_places() {
        for signature in SIGNATURES.iter().filter(|signature| signature.confirm.is_none()) {
            for place in signature.places {
                let offset = place.resolve(SIZE).unwrap();
                let last = offset + signature.magic.len() as u64 - 1;
                assert_eq!(offset / 4096, last / 4096, "{} crosses a block", signature.name);
                let found = probe(&with(&[(offset, signature.magic)])).unwrap().expect(signature.name);
                assert_eq!((found.name, found.offset), (signature.name, offset));
            }
        }
        assert!(SIGNATURES.iter().any(|signature| signature.name == ZFS_COMES_AFTER));
    }

    #[test]
    fn weak_magics_need_their_fields() {
        assert_eq!(name(&[(1080, b"\x53\xef")]), Some("ext2/3/4"));
        assert_eq!(name(&[(1080, b"\x53\xef"), (1024 + 0x18, &[200])]), None);
        assert_eq!(name(&[(1024, b"H+\x00\x04")]), Some("hfsplus"));
        assert_eq!(name(&[(1024, b"H+\x00\x09")]), None);
        let entry = [0x80, 0, 2, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 0, 1, 0];
        assert_eq!(name(&[(446, &entry), (510, b"\x55\xaa")]), Some("MBR partition table"));
        assert_eq!(name(&[(510, b"\x55\xaa")]), None);
        assert_eq!(name(&[(446, &[7; 64]), (510, b"\x55\xaa")]), None);
    }

    #[test]
    fn a_protective_mbr_is_a_gpt_and_a_boot_sector_is_its_filesystem() {
        let entry = [0, 0, 2, 0, 0xee, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0, 0];
        let mbr: [(u64, &[u8]); 2] = [(446, &entry), (510, b"\x55\xaa")];
        assert_eq!(name(&[mbr[0], mbr[1], (512, b"EFI PART")]), Some("GPT partition table"));
        assert_eq!(name(&[mbr[0], mbr[1], (3, b"NTFS    ")]), Some("ntfs"));
    }

    #[test]
    fn zfs_is_found_by_any_uberblock_in_either_byte_order() {
        let labels = [0, 256 << 10, SIZE - SIZE % (256 << 10) - (512 << 10)];
        for (label, magic) in
            labels.iter().zip([0x00ba_b10c_u64.to_le_bytes(), 0x00ba_b10c_u64.to_be_bytes()])
        {
            assert_eq!(name(&[(label + (128 << 10) + 5 * 1024, &magic)]), Some("zfs"));
        }
    }

    #[test]
    fn nothing_and_noise_are_nobodys() {
        assert_eq!(name(&[]), None);
        assert_eq!(probe(&MemoryDevice::new("tiny", 4096)).unwrap(), None);
        assert_eq!(probe(&MemoryDevice::new("none", 0)).unwrap(), None);
        let noise: Vec<u8> = (0..4096u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        assert_eq!(name(&[(0, &noise), (4096, &noise), (65536, &noise)]), None);
    }

    #[test]
    fn a_device_that_cannot_be_read_is_not_empty() {
        let device = FaultyDevice::new(with(&[]));
        device.plan(Fault::once(Operation::Read, 3));
        assert!(probe(&device).is_err());
    }
}
