//! What every [`Device`] must do. Each check panics with the reason where one does not.
//!
//! A factory makes a fresh device of at least [`BYTES_MIN`]; the checks may write anywhere on it.

use std::sync::Arc;

use aegisfs_base::limits::BLOCK_BYTES;
use aegisfs_base::{Rng, SeededRng};

use crate::{AlignedBuffer, Device, DeviceError};

/// The smallest device that the checks can work with.
pub const BYTES_MIN: u64 = 4 << 20;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// Every check on one device each.
pub fn all(make: &dyn Fn() -> Arc<dyn Device>) {
    whole_blocks(&*make());
    read_back(&*make());
    unaligned_is_refused(&*make());
    out_of_bounds_is_refused(&*make());
    empty_ranges_do_nothing(&*make());
    discarded_ranges_can_be_used_again(&*make());
    writers_to_disjoint_ranges(&*make());
}

/// Bytes of every length and memory alignment come back, and their neighbours stay as they were.
pub fn read_back(device: &dyn Device) {
    let rng = SeededRng::new(1);
    let size = 2usize << 20;
    // One byte more, so that slices can start off every alignment.
    let mut expected = random(&rng, size);
    device.write_at(0, &expected).expect("the first write");
    for round in 0..64 {
        let blocks = 1 + rng.below(if round % 8 == 0 { 300 } else { 9 });
        let offset = rng.below(size as u64 / BLOCK - blocks + 1) * BLOCK;
        let (start, length) = (offset as usize, (blocks * BLOCK) as usize);
        let skew = rng.below(4) as usize * 511;
        if round % 2 == 0 {
            let mut data = AlignedBuffer::zeroed(skew);
            data.extend_from_slice(&random(&rng, length));
            device.write_at(offset, &data[skew..]).expect("a write");
            expected[start..start + length].copy_from_slice(&data[skew..]);
        } else {
            let mut buffer = AlignedBuffer::zeroed(skew + length);
            device.read_at(offset, &mut buffer[skew..]).expect("a read");
            assert!(buffer[skew..] == expected[start..start + length], "{blocks} blocks at {offset} differ");
        }
    }
    device.flush().expect("a flush");
    let mut everything = vec![0; size];
    device.read_at(0, &mut everything).expect("a read of everything");
    assert!(everything == expected, "what was written is not what is read");
}

/// The size is in whole blocks, and the last one can be used.
pub fn whole_blocks(device: &dyn Device) {
    let bytes = device.bytes();
    assert!(bytes >= BYTES_MIN && bytes.is_multiple_of(BLOCK), "a size of {bytes}");
    let data = random(&SeededRng::new(2), BLOCK_BYTES);
    device.write_at(bytes - BLOCK, &data).expect("the last block takes a write");
    let mut buffer = vec![0; BLOCK_BYTES];
    device.read_at(bytes - BLOCK, &mut buffer).expect("the last block can be read");
    assert!(buffer == data, "the last block differs");
    assert!(!device.describe().is_empty(), "a device has a name");
    assert!(!device.read_only(), "a fresh device takes writes");
}

/// Parts of blocks are refused, whatever the call.
pub fn unaligned_is_refused(device: &dyn Device) {
    let mut buffer = [0; 3 * BLOCK_BYTES];
    for (offset, length) in [(1, BLOCK_BYTES), (512, BLOCK_BYTES), (0, 1), (0, 4095), (4096, 4097), (7, 9)] {
        let results = [
            device.read_at(offset, &mut buffer[..length]),
            device.write_at(offset, &buffer[..length]),
            device.discard(offset, length as u64),
        ];
        for result in results {
            assert!(
                matches!(result, Err(DeviceError::Misaligned { .. })),
                "{length} at {offset} gave {result:?}"
            );
        }
    }
}

/// What is not wholly inside is refused, and nothing of it happens.
pub fn out_of_bounds_is_refused(device: &dyn Device) {
    let bytes = device.bytes();
    let mut buffer = [0x55; 2 * BLOCK_BYTES];
    let mut before = [0; BLOCK_BYTES];
    device.read_at(bytes - BLOCK, &mut before).expect("the last block can be read");
    let far = u64::MAX - u64::MAX % BLOCK;
    for offset in [bytes - BLOCK, bytes, bytes + BLOCK, far - BLOCK, far] {
        let results = [
            device.write_at(offset, &buffer),
            device.read_at(offset, &mut buffer),
            device.discard(offset, 2 * BLOCK),
        ];
        for result in results {
            assert!(matches!(result, Err(DeviceError::OutOfBounds { .. })), "at {offset} gave {result:?}");
        }
    }
    assert!(device.discard(0, far).is_err(), "a discard of everything and more");
    let mut after = [0; BLOCK_BYTES];
    device.read_at(bytes - BLOCK, &mut after).expect("the last block can be read");
    assert!(before == after, "a refused write changed the last block");
}

/// A length of zero is fine everywhere up to the end, and changes nothing.
pub fn empty_ranges_do_nothing(device: &dyn Device) {
    let data = random(&SeededRng::new(3), BLOCK_BYTES);
    device.write_at(0, &data).expect("a write");
    for offset in [0, device.bytes()] {
        device.write_at(offset, &[]).expect("an empty write");
        device.read_at(offset, &mut []).expect("an empty read");
        device.discard(offset, 0).expect("an empty discard");
    }
    let mut buffer = vec![0; BLOCK_BYTES];
    device.read_at(0, &mut buffer).expect("a read");
    assert!(buffer == data, "an empty call changed something");
}

/// A discarded range can be read (whatever it holds) and written, and its neighbours stay.
pub fn discarded_ranges_can_be_used_again(device: &dyn Device) {
    let data = random(&SeededRng::new(4), 1 << 20);
    device.write_at(0, &data).expect("a write");
    device.discard(BLOCK, 254 * BLOCK).expect("a discard");
    let mut buffer = vec![0; 1 << 20];
    device.read_at(0, &mut buffer).expect("a read of what was discarded");
    let (first, last) = (..BLOCK_BYTES, 255 * BLOCK_BYTES..);
    assert!(buffer[first] == data[first], "the block before differs");
    assert!(buffer[last.clone()] == data[last], "the block after differs");
    device.write_at(BLOCK, &data[..BLOCK_BYTES]).expect("a write to what was discarded");
    device.read_at(BLOCK, &mut buffer[..BLOCK_BYTES]).expect("a read of it");
    assert!(buffer[..BLOCK_BYTES] == data[..BLOCK_BYTES], "a write after a discard is lost");
}

/// Threads that write and flush side by side do not disturb each other.
pub fn writers_to_disjoint_ranges(device: &dyn Device) {
    const WRITERS: u64 = 4;
    const SHARE: u64 = BYTES_MIN / WRITERS;
    let content = |writer: u64| random(&SeededRng::new(100 + writer), SHARE as usize);
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            scope.spawn(move || {
                let data = content(writer);
                for (index, piece) in (0u64..).zip(data.chunks(16 * BLOCK_BYTES)) {
                    let offset = writer * SHARE + index * 16 * BLOCK;
                    device.write_at(offset, piece).expect("a write beside others");
                    let mut buffer = vec![0; piece.len()];
                    device.read_at(offset, &mut buffer).expect("a read beside others");
                    assert!(buffer == piece, "writer {writer} reads something else at {offset}");
                }
                device.flush().expect("a flush beside others");
            });
        }
    });
    for writer in 0..WRITERS {
        let mut buffer = vec![0; SHARE as usize];
        device.read_at(writer * SHARE, &mut buffer).expect("a read");
        assert!(buffer == content(writer), "writer {writer}'s range differs in the end");
    }
}

/// For memory and fresh images: what was never written is zeros.
pub fn never_written_is_zeros(device: &dyn Device) {
    device.write_at(8 * BLOCK, &[1; BLOCK_BYTES]).expect("a write");
    let mut buffer = vec![1; 1 << 20];
    device.read_at(0, &mut buffer).expect("a read");
    let written = 8 * BLOCK_BYTES..9 * BLOCK_BYTES;
    assert!(buffer[written.clone()].iter().all(|byte| *byte == 1), "the written block differs");
    buffer[written].fill(0);
    assert!(buffer.iter().all(|byte| *byte == 0), "not zeros");
}

/// For devices that outlive their handle: flushed data is there after reopening, and while one
/// handle is open for writing there is no second one.
pub fn reopening(open: &dyn Fn() -> Result<Arc<dyn Device>, DeviceError>) {
    let data = random(&SeededRng::new(5), 1 << 20);
    let device = open().expect("the first opening");
    device.write_at(1 << 20, &data).expect("a write");
    device.flush().expect("a flush");
    let second = open().map(|device| device.describe());
    assert!(
        matches!(second, Err(DeviceError::Busy { .. } | DeviceError::InUse { .. })),
        "a second opening gave {second:?}"
    );
    drop(device);
    let device = open().expect("the second opening");
    let mut buffer = vec![0; 1 << 20];
    device.read_at(1 << 20, &mut buffer).expect("a read");
    assert!(buffer == data, "flushed data is not there after reopening");
}

fn random(rng: &SeededRng, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    rng.fill(&mut bytes);
    bytes
}
