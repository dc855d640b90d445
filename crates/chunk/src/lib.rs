//! Cut, hash, compress, and back: pure functions over buffers.
//!
//! A run of file data is cut where its content says so ([`next_cut`]), each chunk is named by its
//! hash ([`ChunkHash`]), and what is new is compressed ([`Compressor`]) unless a cheap look says
//! that it will not help ([`worth_compressing`]). Reading goes back through [`Decompressor`].
//!
//! Nothing here does I/O, keeps state between chunks, or trusts what it decodes. Where to cut and
//! how hard to compress are not part of the format: a change costs dedup or space, never data. The
//! numbers in [`Codec`] and the streams behind them are part of the format.

#![forbid(unsafe_code)]

mod codec;
mod compress;
mod cut;
mod decompress;
mod error;
mod hash;
mod probe;

pub use codec::{Codec, Compression, ZSTD_LEVEL_MAX, ZSTD_LEVEL_MIN};
pub use compress::Compressor;
pub use cut::next_cut;
pub use decompress::{Decompressor, decompress};
pub use error::ChunkError;
pub use hash::ChunkHash;
pub use probe::worth_compressing;
