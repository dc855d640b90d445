//! The kernel's FUSE protocol, version 7.45: mount, decode, call the filesystem, encode.
//!
//! - [`Mount`] attaches a connection to a directory and takes it away again
//! - [`Session`] negotiates and runs reader threads on /dev/fuse; each runs a request to its end
//! - [`Handler`] answers requests; [`FsFace`] does so with a real filesystem, [`NullFace`] with as little
//!   as the kernel accepts, so that a benchmark can tell the transport from the store

#![deny(unsafe_code)]

mod abi;
#[expect(unsafe_code, reason = "calls that no library wraps")]
mod by_handle;
mod counters;
mod face;
mod fusermount;
mod ioctl;
mod labels;
mod mount;
mod mount_table;
mod null;
mod reply;
mod request;
mod session;

pub use by_handle::write_back;
pub use counters::{OpcodeCount, opcode_name};
pub use face::FsFace;
pub use mount::{Mount, MountError, MountOptions, kernel_knows, kernel_syncs_block_mounts, remount, unmount};
pub use mount_table::{MountEntry, find_mount, is_fuse_mount};
pub use null::NullFace;
pub use reply::Reply;
pub use request::{Operation, Request, RequestError};
pub use session::{Handler, Session, SessionOptions, allow_rings, rings_available};
