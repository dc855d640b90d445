//! getattr: what is known of an inode.

use crate::FsError;
use crate::fs::{Attributes, Fs};
use aegisfs_base::InodeId;

impl Fs {
    /// An inode's attributes.
    ///
    /// # Errors
    /// `NotFound`, or a fault.
    pub fn getattr(&self, id: InodeId) -> Result<Attributes, FsError> {
        Ok(self.attributes_settled(&*self.node(id)?))
    }
}
