//! Every structure on disk: bytes in, values out.
//!
//! Only this crate knows byte layouts. Decoders take any bytes without panicking and check a length before
//! they allocate by it; encoders are their exact inverse. `docs/format.md` draws the same fields, and a
//! test in this crate compares the two.
//!
//! - [`layout`]: where header areas and slots lie on a device
//! - [`superblock`], [`map`]: who is in the pool, and which slots hold databases and the intent log
//! - [`slot`], [`cell`]: how slots and rows describe themselves
//! - [`page`]: checksum blocks of database pages
//! - [`log`], [`op`]: records of the intent log and the operations in them
//! - [`key`], [`value`]: the metadata tables
//! - [`descriptor`], [`extent`]: chunks and the references to them
//! - [`filter`]: the saved filter of the dedup index

#![forbid(unsafe_code)]

#[macro_use]
mod declare;
pub mod cell;
pub mod descriptor;
mod error;
pub mod extent;
pub mod filter;
pub mod key;
pub mod layout;
pub mod log;
pub mod map;
pub mod op;
pub mod page;
pub mod slot;
mod sum;
pub mod superblock;
pub mod value;
mod wire;

pub use declare::{Described, Field};
pub use error::FormatError;
pub use sum::{Sum128, sum128, sum128_of_parts};

/// Every structure that the crate declares with fixed fields, for the documentation test.
pub fn described() -> Vec<(&'static str, usize, &'static [Field])> {
    vec![
        superblock::SuperblockV1::describe(),
        superblock::DeviceEntryV1::describe(),
        map::MapBlockHeaderV1::describe(),
        map::MapEntryV1::describe(),
        slot::SlotHeaderV1::describe(),
        cell::CellHeaderV1::describe(),
        cell::CellChunkV1::describe(),
        page::SumBlockHeaderV1::describe(),
        page::PageEntryV1::describe(),
        log::LogRecordHeaderV1::describe(),
        log::RowDependencyV1::describe(),
        descriptor::DescriptorV1::describe(),
        extent::ExtentRefV1::describe(),
        filter::FilterHeadV1::describe(),
        filter::FilterPageV1::describe(),
        value::SegmentV1::describe(),
        value::PlacementV1::describe(),
    ]
}
