//! POSIX without FUSE: inodes, names, extents, attributes, one file per verb in [`ops`].
//!
//! An [`Fs`] is one mounted head on a store. Its callers are the FUSE face, the simulator and the model
//! test alike. Permission checks are the caller's (the kernel's, with `default_permissions`).

#![forbid(unsafe_code)]

mod acl;
mod buffers;
mod check;
mod damage;
mod errno;
mod error;
mod flush;
mod fs;
mod gate;
mod handle;
mod heat;
mod locks;
mod name;
mod node;
pub mod ops;
mod overlay;
mod policy;
mod table;

pub use aegisfs_format::value::{INODE_FLAGS, Inode};
pub use check::{TreeProblem, TreeReport};
pub use damage::{Healed, LostPart, Paths};
pub use errno::Errno;
pub use error::FsError;
pub use flush::Flusher;
pub use fs::{Attributes, Caller, Fs, FsOptions, ROOT};
pub use handle::HandleId;
pub use locks::lock_waits;
pub use ops::copy::CopyEnd;
pub use ops::lseek::Whence;
pub use ops::make::{Kind, MakeOptions};
pub use ops::readdir::DirectoryEntry;
pub use ops::rename::RenameFlags;
pub use ops::setattr::{Changes, TimeChange};
pub use ops::statfs::Statistics;
pub use ops::write::WriteKind;
pub use ops::xattr::XattrMode;
pub use policy::{FollowThread, Followed, PolicyOf, Waiting};
