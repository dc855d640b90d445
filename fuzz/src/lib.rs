//! What is fuzzed: one function for each decoder of bytes that come from a device or from the kernel.
//!
//! A function takes any bytes, must not panic, and says whether they were accepted. Where a checksum stands
//! before the rest of a decoder, the function also mends the checksum and decodes again, or nothing behind
//! it would ever be reached. What was accepted is encoded and decoded once more, and must be the same.
//!
//! The targets under `fuzz_targets/` hand these functions to libFuzzer; `tests/corpus.rs` runs them on
//! stable, over the files in `corpus/` and over seeded mutations of the [`samples`].

#![forbid(unsafe_code)]

pub mod mutate;
pub mod samples;
mod structures;
mod values;

pub use structures::{
    cell, chunk_decompress, filter_page, fuse_request, log_record, map, page_sums, slot, superblock,
    transaction,
};
pub use values::{
    branch, damage, descriptor_group, device_counts, dirents, extents_window, inode, keys, mended, pending,
    pin, policy, schedule, scrub, segment, snapshot, volume,
};

/// A decoder under test.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its folder in the corpus.
    pub name: &'static str,
    /// Feeds it; says whether the bytes were accepted.
    pub run: fn(&[u8]) -> bool,
    /// Bytes that it must accept.
    pub samples: fn() -> Vec<Vec<u8>>,
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target { name: "superblock", run: superblock, samples: samples::superblock },
    Target { name: "map", run: map, samples: samples::map },
    Target { name: "slot", run: slot, samples: samples::slot },
    Target { name: "cell", run: cell, samples: samples::cell },
    Target { name: "page_sums", run: page_sums, samples: samples::page_sums },
    Target { name: "filter_page", run: filter_page, samples: samples::filter_page },
    Target { name: "log_record", run: log_record, samples: samples::log_record },
    Target { name: "transaction", run: transaction, samples: samples::transaction },
    Target { name: "descriptor_group", run: descriptor_group, samples: samples::descriptor_group },
    Target { name: "extents_window", run: extents_window, samples: samples::extents_window },
    Target { name: "dirents", run: dirents, samples: samples::dirents },
    Target { name: "inode", run: inode, samples: samples::inode },
    Target { name: "segment", run: segment, samples: samples::segment },
    Target { name: "branch", run: branch, samples: samples::branch },
    Target { name: "pin", run: pin, samples: samples::pin },
    Target { name: "snapshot", run: snapshot, samples: samples::snapshot },
    Target { name: "volume", run: volume, samples: samples::volume },
    Target { name: "damage", run: damage, samples: samples::damage },
    Target { name: "scrub", run: scrub, samples: samples::scrub },
    Target { name: "schedule", run: schedule, samples: samples::schedule },
    Target { name: "device_counts", run: device_counts, samples: samples::device_counts },
    Target { name: "policy", run: policy, samples: samples::policy },
    Target { name: "mended", run: mended, samples: samples::mended },
    Target { name: "pending", run: pending, samples: samples::pending },
    Target { name: "keys", run: keys, samples: samples::keys },
    Target { name: "chunk_decompress", run: chunk_decompress, samples: samples::chunk_decompress },
    Target { name: "fuse_request", run: fuse_request, samples: samples::fuse_request },
];
