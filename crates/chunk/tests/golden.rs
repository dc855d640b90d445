//! Frozen: where known data is cut, and streams that must always decode.
//!
//! If the cuts change, data that is already stored is no longer found by new writes. That is no
//! damage, but it must be a decision and not an accident.

use aegisfs_base::limits::FRAME_BYTES_MAX;
use aegisfs_chunk::{ChunkHash, Codec, Compression, Compressor, decompress, next_cut};

mod data;

fn lengths(mut data: &[u8]) -> Vec<usize> {
    let mut lengths = Vec::new();
    while let Some(length) = next_cut(data, true) {
        lengths.push(length);
        data = &data[length..];
    }
    lengths
}

const RANDOM_CUTS: &[usize] = &[
    73250, 47389, 86083, 86901, 89446, 43192, 68000, 89388, 21763, 66779, 74110, 65719, 109976, 70757, 81550,
    46446, 21192, 53231, 102948, 74032, 66703, 95313, 82486, 67814, 79022, 38049, 100974, 82491, 89462,
    39679, 98669, 106061, 72417, 64870, 67201, 79413, 47724, 73918, 65544, 73946, 95565, 87490, 56038,
    106140, 72172, 66730, 67351, 45047, 79722, 107806, 86045, 67621, 84595, 85756, 27354, 76748, 70897,
    47319,
];

const COMPRESSIBLE_CUTS: &[usize] = &[
    70440, 68524, 118585, 83873, 74076, 83013, 90508, 69342, 90047, 99339, 63364, 33776, 83080, 20314, 66928,
    83448, 73930, 69284, 70869, 82263, 19248, 69903, 93972, 73697, 85450, 72715, 90734, 69584, 76458, 70835,
    85250, 79954, 70456, 79337, 76851, 83339, 88512, 42325, 72526, 77106, 75096, 68244, 23279, 89376, 73020,
    80771, 84559, 76238, 58729, 32864, 61185, 69562, 82739, 68220, 59045, 81951, 77980, 58191,
];

#[test]
fn the_data_itself_is_frozen() {
    let hash = |data: &[u8]| ChunkHash::of(data).to_string();
    assert_eq!(
        hash(&data::random(7, 4 << 20)),
        "47a489069269f1fa2f461608b06fa1e8bd0e8879405a5b7c311ec1949b728a9f"
    );
    assert_eq!(
        hash(&data::compressible(7, 4 << 20)),
        "28ab636af10c6f34966e08278f7470a5ee7f0a5b2eaecf290954c30096549d9b"
    );
}

#[test]
fn cuts_are_frozen() {
    assert_eq!(lengths(&data::random(7, 4 << 20)), RANDOM_CUTS);
    assert_eq!(lengths(&data::compressible(7, 4 << 20)), COMPRESSIBLE_CUTS);
}

/// Written by the first version; the encoder may change, these must decode for ever.
const LZ4_STREAM: &[u8] = &[
    255, 45, 106, 98, 116, 32, 121, 111, 105, 97, 108, 108, 32, 105, 113, 113, 116, 10, 118, 106, 106, 101,
    99, 32, 118, 112, 110, 99, 109, 32, 103, 104, 113, 117, 32, 101, 122, 108, 98, 119, 32, 120, 102, 108,
    99, 32, 101, 115, 108, 99, 118, 97, 108, 107, 98, 108, 10, 100, 122, 32, 113, 103, 60, 0, 95, 96, 10,
    100, 122, 32, 113, 103,
];
const ZSTD_STREAM: &[u8] = &[
    40, 181, 47, 253, 32, 180, 37, 2, 0, 196, 3, 106, 98, 116, 32, 121, 111, 105, 97, 108, 108, 32, 105, 113,
    113, 116, 10, 118, 106, 106, 101, 99, 32, 118, 112, 110, 99, 109, 32, 103, 104, 113, 117, 32, 101, 122,
    108, 98, 119, 32, 120, 102, 108, 99, 32, 101, 115, 108, 99, 118, 97, 108, 107, 98, 108, 10, 100, 122, 32,
    113, 103, 1, 0, 92, 127, 170, 160,
];

#[test]
fn old_streams_decode() {
    let plain = data::compressible(8, 60).repeat(3);
    for (codec, stream) in [(Codec::Plain, &plain[..]), (Codec::Lz4, LZ4_STREAM), (Codec::Zstd, ZSTD_STREAM)]
    {
        let mut back = Vec::new();
        decompress(codec, stream, plain.len(), &mut back).unwrap();
        assert_eq!(back, plain, "{codec}");
    }
}

#[test]
fn the_largest_frame_makes_the_trip() {
    let plain = data::compressible(9, FRAME_BYTES_MAX);
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd(1), Compression::Zstd(19)] {
        let (mut stored, mut back) = (Vec::new(), Vec::new());
        let codec = Compressor::new(compression).compress(&plain, &mut stored);
        decompress(codec, &stored, plain.len(), &mut back).unwrap();
        assert!(back == plain, "{compression}");
    }
}
