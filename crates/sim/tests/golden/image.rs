//! A device's content as a compressed file.

use aegisfs_device::{Device, MemoryDevice};
use std::path::PathBuf;

/// Compared and written in pieces of this size; what is zero stays a hole.
const PIECE_BYTES: usize = 64 << 10;
const LEVEL: i32 = 19;

pub(crate) fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden"))
}

pub(crate) fn pack(device: &MemoryDevice) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(device.bytes()).expect("it is in memory")];
    device.read_at(0, &mut bytes).expect("it is in memory");
    zstd::bulk::compress(&bytes, LEVEL).expect("it compresses")
}

pub(crate) fn unpack(packed: &[u8]) -> MemoryDevice {
    let bytes = zstd::stream::decode_all(packed).expect("it was compressed with zstd");
    let device = MemoryDevice::new("golden", bytes.len() as u64);
    for (n, piece) in bytes.chunks(PIECE_BYTES).enumerate() {
        if piece.iter().any(|byte| *byte != 0) {
            device.write_at((n * PIECE_BYTES) as u64, piece).expect("it is in memory");
        }
    }
    device
}
