//! Bytes that each target must accept; the corpus holds them as `valid-N`.
//!
//! They are as short as they can be: what follows the last byte in use is zero on a device and left out here.

use aegisfs_base::{
    BranchId, ChunkId, DeviceIndex, EpochId, Generation, Incarnation, InodeId, RowIndex, SegmentId, Sequence,
    SlotIndex, Timestamp, Uuid,
};
use aegisfs_chunk::{Compression, Compressor};
use aegisfs_format::cell::{self, CellChunk, CellPlace, CellShape, RowHead};
use aegisfs_format::descriptor::{Descriptor, DescriptorGroup, FramePlace};
use aegisfs_format::extent::{ExtentRef, encode_window};
use aegisfs_format::filter::{FILTER_PAGE_BYTES, FilterHead, FilterPage};
use aegisfs_format::key::{self, Table};
use aegisfs_format::log::{self, LogRecordPlace, RowDependency};
use aegisfs_format::map::{self as slot_map, MapEntry, MapOwner};
use aegisfs_format::op::{NewRef, Op, Transaction};
use aegisfs_format::page::{PageEntry, SumBlock, SumBlockPlace};
use aegisfs_format::slot::{SlotContent, SlotHeader};
use aegisfs_format::superblock::{DATABASES_MAX, DeviceEntry, Health, Membership, Superblock};
use aegisfs_format::value::{
    Branch, Damage, DeviceCounts, Dirent, Inode, Mended, MendedList, Pin, Policy, Schedule, Scrub, ScrubCounts,
    ScrubState, Segment, SegmentState, Snapshot, Volume, When, encode_dirents, encode_pending,
};

type Samples = Vec<Vec<u8>>;

/// Bytes of a superblock without its device table.
const SUPERBLOCK_FIXED: usize = 512;
/// Bytes of a device in the table.
const DEVICE_ENTRY: usize = 256;
/// Bytes of a FUSE request's header.
const REQUEST_HEADER: usize = 40;

/// One device, and two of which one is out.
pub fn superblock() -> Samples {
    let device = |n: u8, membership| DeviceEntry {
        uuid: Uuid([n; 16]),
        bytes: 1 << 30,
        slots: 255,
        membership,
        health: Health::Healthy,
        tier: 0,
        failure_domain: if n == 1 { String::new() } else { "rack-1".into() },
        path: b"/dev/sdb".to_vec(),
    };
    let block = |devices: Vec<DeviceEntry>| Superblock {
        pool: Uuid([9; 16]),
        device: DeviceIndex(0),
        devices,
        generation: Generation(7),
        created: Timestamp(1_700_000_000_000_000_000),
        slot_bytes: 4 << 20,
        shards_data: 1,
        shards_parity: 0,
        metadata_copies: 2,
        log_copies: 1,
        compression: (2, 1),
        dirty: true,
        label: "tank".into(),
        incarnations: vec![Incarnation(5), Incarnation(3)],
        map_blocks: 1,
        map_sum: [3; 16],
        name_key: [8; 16],
        database_bytes: [1 << 20, 1 << 20, 0, 0][..DATABASES_MAX].try_into().expect("four databases"),
        compat: 0,
        ro_compat: 0,
    };
    let out = Membership::Out { since: Generation(4) };
    [vec![device(1, Membership::In)], vec![device(1, Membership::In), device(2, out)]]
        .map(|devices| {
            let used = SUPERBLOCK_FIXED + devices.len() * DEVICE_ENTRY;
            let mut bytes = block(devices).encode();
            bytes.truncate(used);
            bytes
        })
        .to_vec()
}

/// A map of three slots in one block; the byte before it asks for its true checksum.
pub fn map() -> Samples {
    let entry = |owner, piece, copy, slot| MapEntry {
        owner,
        piece,
        copy,
        device: DeviceIndex(0),
        slot: SlotIndex(slot),
    };
    let entries = [
        entry(MapOwner::Database(0), 0, 0, 3),
        entry(MapOwner::Database(0), 0, 1, 40),
        entry(MapOwner::Log, 0, 0, 1),
    ];
    vec![vec![0], [vec![0], slot_map::encode(&entries)].concat()]
}

/// One of each kind.
pub fn slot() -> Samples {
    const HEADER: usize = 128;
    let header = |content| SlotHeader {
        content,
        member: 1,
        device: DeviceIndex(2),
        slot: SlotIndex(9),
        incarnation: Incarnation(11),
        pool: Uuid([1; 16]),
        device_uuid: Uuid([2; 16]),
    };
    [
        SlotContent::Segment { segment: SegmentId(1), shards: (1, 1) },
        SlotContent::Database { number: 1, piece: 7 },
        SlotContent::Log { piece: 3 },
    ]
    .map(|content| header(content).encode()[..HEADER].to_vec())
    .to_vec()
}

/// Two chunks that share a frame.
pub fn cell() -> Samples {
    let place = CellPlace {
        segment: SegmentId(8),
        row: RowIndex(2),
        cell: 0,
        shards: (1, 0),
        slot_offset: 4096,
        incarnation: Incarnation(6),
    };
    let payload = [7u8; 90];
    let chunk = |id, offset_in_frame| CellChunk {
        chunk: ChunkId(id),
        hash: [id as u8; 32],
        frame_offset: 0,
        frame_stored: 90,
        frame_plain: 300,
        offset_in_frame,
        plain_bytes: 150,
        codec: 2,
        key_domain: 0,
    };
    let chunks = [chunk(4, 0), chunk(5, 150)];
    let shape = CellShape { chunks: 2, payload_bytes: 90 };
    let mut alone = vec![0; shape.cell_bytes()];
    cell::put_directory(&mut alone, &chunks);
    alone[shape.payload()].copy_from_slice(&payload);
    // The same as one of two, and a cell of parity.
    let (mut one_of_two, mut parity) = (alone.clone(), alone.clone());
    let sum = cell::row_sum([(shape, &alone[..])].into_iter());
    let row = |shapes: &[CellShape]| RowHead {
        cell_bytes: shape.cell_bytes() as u32,
        sum,
        shapes: shapes.to_vec(),
    };
    cell::put_header(&mut alone, &place, &row(&[shape]));
    let wide = row(&[shape, CellShape { chunks: 1, payload_bytes: 200 }]);
    cell::put_header(&mut one_of_two, &CellPlace { shards: (2, 1), ..place }, &wide);
    cell::put_header(&mut parity, &CellPlace { shards: (2, 1), cell: 2, ..place }, &wide);
    vec![alone, one_of_two, parity]
}

/// A block with one page written.
pub fn page_sums() -> Samples {
    let mut block = SumBlock::empty(SumBlockPlace { database: 1, piece: 2, group: 3 });
    block.generation = 9;
    block.entries[5] = PageEntry { sum: [4; 16], counter: 2 };
    vec![block.encode()]
}

/// A page with two hashes, and a head.
pub fn filter_page() -> Samples {
    let mut words = Box::new([0; FILTER_PAGE_BYTES / 8]);
    (words[0], words[495]) = (0x8001, 1 << 63);
    let page = FilterPage { start: 5 << 29, depth: 3, hashes: 2, words };
    vec![page.encode(), FilterHead { pages: 8, indexed_below: 70_000 }.encode()]
}

fn descriptor(references: u32) -> Descriptor {
    Descriptor {
        frame: FramePlace {
            segment: SegmentId(1),
            row: RowIndex(0),
            cell: 0,
            slot_offset: 4424,
            stored_bytes: 10,
            plain_bytes: 20,
            codec: 2,
            key_domain: 0,
        },
        offset_in_frame: 0,
        plain_bytes: 20,
        charged_bytes: 10,
        references,
        referred_bytes: 77,
        damaged: false,
        hash: [3; 32],
    }
}

/// Every operation once.
fn operations() -> Vec<Op> {
    let run = NewRef { offset: 5, length: 20, chunk: ChunkId(4), offset_in_chunk: 0 };
    let references = vec![run];
    let anew = vec![NewRef { chunk: ChunkId(5), ..run }];
    vec![
        Op::Put { table: Table::Config, key: b"k".to_vec(), value: b"\0v".to_vec() },
        Op::Delete { table: Table::Config, key: b"k".to_vec() },
        Op::PutVersion { table: Table::Inline, stem: vec![0, 0, 0, 0, 0, 0, 0, 2], value: b"\0abc".to_vec() },
        Op::RemoveVersion { table: Table::Xattr, stem: b"\0\0\0\0\0\0\0\x02user.a\0".to_vec() },
        Op::NewChunk { chunk: ChunkId(4), descriptor: descriptor(0) },
        Op::Replace { inode: InodeId(2), from: 5, to: 30, pending_up_to: Sequence(9), references },
        Op::Pending { inode: InodeId(2), offset: 1, bytes: b"pending".to_vec() },
        Op::SealSegment { segment: SegmentId(1), rows: 3, end: 9000 },
        Op::MoveChunk { chunk: ChunkId(4), from: (SegmentId(9), 8192), descriptor: descriptor(0) },
        Op::Repoint { inode: InodeId(2), from: run, references: anew },
    ]
}

fn transactions() -> Vec<Transaction> {
    let transaction =
        |n, ops| Transaction { sequence: Sequence(n), branch: BranchId(0), epoch: EpochId(1), ops };
    vec![transaction(1, operations()), transaction(2, Vec::new())]
}

fn body() -> Vec<u8> {
    let mut body = Vec::new();
    transactions().iter().for_each(|transaction| transaction.encode(&mut body));
    body
}

/// The body of a record with every operation, and an empty one.
pub fn transaction() -> Samples {
    vec![body(), Vec::new()]
}

/// A record that depends on a row.
pub fn log_record() -> Samples {
    const USED_BEFORE_BODY: usize = 160 + 40;
    let place = LogRecordPlace {
        incarnation: Incarnation(5),
        position: 8192,
        sequences: (Sequence(1), Sequence(2)),
        flushed: Sequence(0),
        previous: [1; 16],
    };
    let row = RowDependency {
        segment: SegmentId(1),
        row: RowIndex(2),
        slot_offset: 4096,
        cell_bytes: 8192,
        row_sum: [2; 16],
    };
    let body = body();
    let (mut bytes, _) = log::encode(&place, &[row], &body);
    bytes.truncate(USED_BEFORE_BODY + body.len());
    vec![bytes]
}

/// The first and the last place taken; and none.
pub fn descriptor_group() -> Samples {
    let mut group = DescriptorGroup::default();
    let empty = group.encode();
    group.0[0] = Some(descriptor(1));
    group.0[31] = Some(descriptor(2));
    vec![group.encode(), empty]
}

/// Three references, two of which touch; and none.
pub fn extents_window() -> Samples {
    let reference = |offset, length| ExtentRef {
        offset,
        length,
        chunk: ChunkId(1),
        offset_in_chunk: 5,
        birth: EpochId(2),
    };
    vec![
        encode_window(&[reference(0, 10), reference(10, 5), reference(1 << 19, 1 << 19)]),
        encode_window(&[]),
    ]
}

/// Two names that share a hash.
pub fn dirents() -> Samples {
    let entry = |ordinal, kind, name: &[u8]| Dirent { ordinal, kind, inode: InodeId(5), name: name.to_vec() };
    vec![encode_dirents(&[entry(0, 8, b"\xff\xfe"), entry(7, 4, b"folder")])]
}

/// A file of three bytes that lies beside its inode.
pub fn inode() -> Samples {
    let time = Timestamp(1_700_000_000_000_000_000);
    let inode = Inode {
        mode: 0o100_644,
        nlink: 1,
        size: 3,
        inline: true,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
        ..Inode::default()
    };
    vec![inode.encode()]
}

/// A sealed segment on two devices.
pub fn segment() -> Samples {
    let segment = Segment {
        state: SegmentState::Sealed,
        shards: (1, 1),
        tier: 0,
        policy: aegisfs_base::PolicyId(0),
        key_domain: 0,
        live_bytes: 100,
        written_bytes: 200,
        opened: 6,
        rows: 7,
        forsaken_bytes: 3,
        end: 300,
        placements: vec![(DeviceIndex(0), SlotIndex(5)), (DeviceIndex(1), SlotIndex(9))],
    };
    vec![segment.encode()]
}

/// The first branch, and one that was forked.
pub fn branch() -> Samples {
    let forked = EpochId(1 << 32 | 1);
    let origin = Some((BranchId(0), EpochId(4)));
    vec![
        Branch { origin: None, first: EpochId(1), head: EpochId(1), pinned: None }.encode(),
        Branch { origin, first: forked, head: forked, pinned: Some(EpochId(4)) }.encode(),
    ]
}

/// With and without a pin before it.
pub fn pin() -> Samples {
    vec![
        Pin { previous: None, forks: 0, named: true }.encode(),
        Pin { previous: Some(EpochId(3)), forks: 2, named: false }.encode(),
    ]
}

/// A snapshot made before 1970, to have the sign.
pub fn snapshot() -> Samples {
    vec![Snapshot { epoch: EpochId(9), created: Timestamp(-5) }.encode()]
}

/// A volume.
pub fn volume() -> Samples {
    vec![Volume { head: BranchId(7) }.encode()]
}

/// A few bytes at an offset.
pub fn pending() -> Samples {
    vec![encode_pending(4096, b"bytes in the log")]
}

/// A note that all readers of keys find long enough.
pub fn keys() -> Samples {
    vec![key::changed(EpochId(2), Table::Xattr, &key::xattr(InodeId(2), b"user.name"))]
}

/// One frame per codec.
pub fn chunk_decompress() -> Samples {
    let plain = b"all work and no play makes a dull disk. ".repeat(4);
    [Compression::None, Compression::Lz4, Compression::Zstd(1)]
        .map(|compression| {
            let mut stored = Vec::new();
            let codec = Compressor::new(compression).compress(&plain, &mut stored);
            let mut bytes = vec![codec.raw()];
            bytes.extend_from_slice(&(plain.len() as u32).to_le_bytes());
            bytes.extend_from_slice(&stored);
            bytes
        })
        .to_vec()
}

/// A lookup, a write and a rename.
pub fn fuse_request() -> Samples {
    let request = |opcode: u32, body: &[u8]| {
        let mut bytes = ((REQUEST_HEADER + body.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend_from_slice(&opcode.to_ne_bytes());
        bytes.extend_from_slice(&7u64.to_ne_bytes());
        bytes.extend_from_slice(&1u64.to_ne_bytes());
        bytes.resize(REQUEST_HEADER, 0);
        bytes.extend_from_slice(body);
        bytes
    };
    let mut write = vec![0u8; 40];
    write[16..20].copy_from_slice(&3u32.to_ne_bytes());
    write.extend_from_slice(b"abc");
    let mut rename = vec![0u8; 16];
    rename[..8].copy_from_slice(&1u64.to_ne_bytes());
    rename.extend_from_slice(b"old\0new\0");
    vec![request(1, b"name\0"), request(16, &write), request(45, &rename)]
}

const LOST: Damage = Damage {
    found: Timestamp(1_700_000_000_000_000_000),
    segment: SegmentId(9),
    slot_offset: 8192,
    cell: 3,
    device: DeviceIndex(5),
};

/// A chunk that is lost.
pub fn damage() -> Samples {
    vec![LOST.encode()]
}

/// Nothing, and a chunk and a cell.
pub fn mended() -> Samples {
    let one = |chunk| Mended { damage: LOST, chunk };
    vec![MendedList::default().encode(), MendedList(vec![one(Some(ChunkId(7))), one(None)]).encode()]
}

/// One under way, and one that is done.
pub fn scrub() -> Samples {
    let counts =
        ScrubCounts { segments: 4, cells: 900, bytes: 1 << 30, pages: 77, damaged: 3, repaired: 2, lost: 1 };
    let begun =
        Scrub { repairs: true, started: Timestamp(5), cursor: SegmentId(3), counts, ..Scrub::default() };
    let done = Scrub { state: ScrubState::Done, segments_done: true, ended: Timestamp(9), ..begun };
    vec![begun.encode(), done.encode()]
}

/// Of both kinds.
pub fn schedule() -> Samples {
    let of = |when| Schedule { when, intensity: 1, repairs: true, set: Timestamp(7) }.encode();
    vec![
        of(When::Every { seconds: 30 * 86_400 }),
        of(When::Calendar { weekdays: 0x41, month_day: 0, minute: 120 }),
    ]
}

/// Policies.
pub fn policy() -> Samples {
    [(1, 2), (4, 2)].map(|(shards_data, shards_parity)| Policy { shards_data, shards_parity }.encode()).to_vec()
}

/// A device that was used.
pub fn device_counts() -> Samples {
    let counts =
        DeviceCounts { reads: 70, read_bytes: 1 << 20, writes: 9, retried: 1, ..DeviceCounts::default() };
    vec![counts.encode()]
}
