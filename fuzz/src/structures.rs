//! Structures that stand by themselves on a device, and what comes from the kernel.

use aegisfs_base::limits::FRAME_BYTES_MAX;
use aegisfs_chunk::{Codec, decompress};
use aegisfs_format::cell::{Cell, peek_bytes, put_header};
use aegisfs_format::filter::{FilterHead, FilterPage};
use aegisfs_format::log::{self, LogRecordHead, LogRecordPlace};
use aegisfs_format::op::Transaction;
use aegisfs_format::page::{SumBlock, SumBlockPlace};
use aegisfs_format::slot::SlotHeader;
use aegisfs_format::superblock::{LABEL_BYTES_MAX, Superblock};
use aegisfs_format::{Sum128, described, map as slot_map, sum128, sum128_of_parts};
use aegisfs_fuse::Request;

/// Longest failure domain, in bytes.
const FAILURE_DOMAIN_BYTES: usize = 32;

/// Where a structure's field begins, by the same table that the documentation shows.
fn offset_of(structure: &str, field: &str) -> usize {
    let described = described();
    let (_, _, fields) =
        described.iter().find(|(name, _, _)| *name == structure).expect("the structure exists");
    fields.iter().find(|f| f.name == field).expect("the field exists").offset
}

fn size_of(structure: &str) -> usize {
    described().iter().find(|(name, _, _)| *name == structure).expect("the structure exists").1
}

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?) as usize)
}

/// The bytes with another checksum at a place.
fn with_sum(bytes: &[u8], at: usize, sum: Sum128) -> Vec<u8> {
    let mut mended = bytes.to_vec();
    mended[at..at + sum.len()].copy_from_slice(&sum);
    mended
}

/// A superblock slot, also with its checksum mended.
pub fn superblock(bytes: &[u8]) -> bool {
    let plain = Superblock::decode(bytes);
    let unverified = Superblock::decode_with(bytes, false);
    assert!(plain.is_err() || plain == unverified);
    if let Ok(block) = &unverified {
        // Texts that are not UTF-8 grow when they are read, and may no longer fit where they came from.
        let fits = block.label.len() <= LABEL_BYTES_MAX
            && block.devices.iter().all(|d| d.failure_domain.len() <= FAILURE_DOMAIN_BYTES);
        if fits {
            assert_eq!(Superblock::decode(&block.encode()).as_ref(), Ok(block));
        }
    }
    plain.is_ok()
}

/// The blocks of a slot map. The first byte says whether the checksum is that of the rest.
pub fn map(bytes: &[u8]) -> bool {
    let Some((kind, blocks)) = bytes.split_first() else { return false };
    let sum = if *kind == 0 { sum128(blocks) } else { [*kind; 16] };
    let decoded = slot_map::decode(blocks, &sum, true);
    if let Ok(entries) = &decoded {
        let again = slot_map::encode(entries);
        assert_eq!(slot_map::decode(&again, &sum128(&again), true).as_ref(), Ok(entries));
    }
    decoded.is_ok()
}

/// A slot's first block, also with its checksum mended.
pub fn slot(bytes: &[u8]) -> bool {
    let at = offset_of("SlotHeaderV1", "sum");
    if bytes.len() >= at + 16 {
        let mended = with_sum(bytes, at, sum128(&bytes[..at]));
        if let Ok(header) = SlotHeader::decode(&mended) {
            assert_eq!(SlotHeader::decode(&header.encode()), Ok(header));
        }
    }
    SlotHeader::decode(bytes).is_ok()
}

/// A cell, also with the checksum of its header and directory mended.
pub fn cell(bytes: &[u8]) -> bool {
    let _ = peek_bytes(bytes);
    if let Some(mended) = mended_cell(bytes)
        && let Ok(head) = Cell::decode_head(&mended)
        && Cell::decode(&mended).is_ok()
    {
        let mut again = mended[..head.row.cell_bytes as usize].to_vec();
        put_header(&mut again, &head.place, &head.row);
        assert_eq!(Cell::decode(&again).expect("a cell as sound as it was"), head);
    }
    Cell::decode(bytes).is_ok()
}

fn mended_cell(bytes: &[u8]) -> Option<Vec<u8>> {
    let (header, at) = (size_of("CellHeaderV1"), offset_of("CellHeaderV1", "sum"));
    let chunks = u32_at(bytes, offset_of("CellHeaderV1", "chunks"))?;
    let payload_bytes = u32_at(bytes, offset_of("CellHeaderV1", "payload_bytes"))?;
    let directory_end = header.checked_add(chunks.checked_mul(size_of("CellChunkV1"))?)?;
    let directory = bytes.get(header..directory_end)?;
    let mut mended = bytes.to_vec();
    if let Some(payload) = bytes.get(directory_end..directory_end.checked_add(payload_bytes)?) {
        let place = offset_of("CellHeaderV1", "payload_sum");
        mended = with_sum(bytes, place, sum128(payload));
    }
    let sum = sum128_of_parts(&[&mended[..at], directory]);
    Some(with_sum(&mended, at, sum))
}

/// A checksum block of database pages, also with its own checksum mended.
pub fn page_sums(bytes: &[u8]) -> bool {
    const BLOCK: usize = aegisfs_base::limits::BLOCK_BYTES;
    let place = SumBlockPlace { database: 1, piece: 2, group: 3 };
    let at = offset_of("SumBlockHeaderV1", "sum");
    if bytes.len() >= BLOCK {
        let sum = sum128_of_parts(&[&bytes[..at], &bytes[at + 16..BLOCK]]);
        if let Ok(block) = SumBlock::decode(&with_sum(bytes, at, sum), place) {
            assert_eq!(SumBlock::decode(&block.encode(), place), Ok(block));
        }
    }
    SumBlock::decode(bytes, place).is_ok()
}

/// The head of the dedup filter, or a page of it, also with its own checksum mended.
pub fn filter_page(bytes: &[u8]) -> bool {
    let head = FilterHead::decode(bytes);
    if let Ok(head) = head {
        assert_eq!(FilterHead::decode(&head.encode()), Ok(head));
    }
    let (at, header) = (offset_of("FilterPageV1", "sum"), size_of("FilterPageV1"));
    if bytes.len() >= header {
        let sum = sum128_of_parts(&[&bytes[..at], &bytes[header..]]);
        if let Ok(page) = FilterPage::decode(&with_sum(bytes, at, sum)) {
            assert_eq!(FilterPage::decode(&page.encode()), Ok(page));
        }
    }
    head.is_ok() || FilterPage::decode(bytes).is_ok()
}

/// A record of the intent log with its transactions, also without its checksum.
pub fn log_record(bytes: &[u8]) -> bool {
    let _ = log::peek_bytes(bytes);
    if let Ok(head) = LogRecordHead::decode(bytes, false)
        && let Ok(record) = head.open(bytes)
    {
        let mut body = Vec::new();
        record.transactions.iter().for_each(|transaction| transaction.encode(&mut body));
        let place = LogRecordPlace {
            incarnation: record.incarnation,
            position: record.position,
            sequences: head.sequences,
            flushed: record.flushed,
            previous: record.previous,
        };
        let (again, _) = log::encode(&place, &record.dependencies, &body);
        let opened = LogRecordHead::decode(&again, true).and_then(|head| head.open(&again));
        assert_eq!(opened, Ok(record));
    }
    LogRecordHead::decode(bytes, true).is_ok_and(|head| head.open(bytes).is_ok())
}

/// The transactions of a record's body, with every operation in them.
pub fn transaction(bytes: &[u8]) -> bool {
    let decoded = Transaction::decode_all(bytes);
    if let Ok(transactions) = &decoded {
        let mut again = Vec::new();
        transactions.iter().for_each(|transaction| transaction.encode(&mut again));
        assert_eq!(Transaction::decode_all(&again).as_ref(), Ok(transactions));
    }
    decoded.is_ok()
}

/// A stored frame: the codec's number, the plain length as 32 bits, then the stored bytes.
pub fn chunk_decompress(bytes: &[u8]) -> bool {
    let Some((head, stored)) = bytes.split_first_chunk::<5>() else { return false };
    let Ok(codec) = Codec::from_raw(head[0]) else { return false };
    let plain_bytes = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
    let mut out = Vec::new();
    let outcome = decompress(codec, stored, plain_bytes, &mut out);
    assert_eq!(out.len(), if outcome.is_ok() { plain_bytes } else { 0 });
    assert!(out.len() <= FRAME_BYTES_MAX);
    outcome.is_ok()
}

/// A request from the kernel, also with its length mended.
pub fn fuse_request(bytes: &[u8]) -> bool {
    if bytes.len() >= 4 {
        let mut mended = bytes.to_vec();
        mended[..4].copy_from_slice(&(bytes.len() as u32).to_ne_bytes());
        let _ = Request::decode(&mended).map(|request| format!("{request:?}"));
    }
    Request::decode(bytes).is_ok()
}
