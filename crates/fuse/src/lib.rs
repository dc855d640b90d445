//! The kernel's FUSE protocol, version 7.45: mount, decode, call the filesystem, encode.
//!
//! - [`Mount`] attaches a connection to a directory and takes it away again
//! - [`Session`] negotiates and runs reader threads on /dev/fuse; each runs a request to its end
//! - [`Handler`] answers requests; [`FsFace`] does so with a real filesystem, [`NullFace`] with as little
//!   as the kernel accepts, so that a benchmark can tell the transport from the store

#![forbid(unsafe_code)]

mod abi;
mod counters;
mod face;
mod mount;
mod null;
mod reply;
mod request;
mod session;

pub use counters::{OpcodeCount, opcode_name};
pub use face::FsFace;
pub use mount::{Mount, MountError, MountOptions, is_fuse_mount, unmount};
pub use null::NullFace;
pub use reply::Reply;
pub use request::{Operation, Request, RequestError};
pub use session::{Handler, Session, SessionOptions};
