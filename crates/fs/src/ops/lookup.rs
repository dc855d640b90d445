//! lookup: from a name to an inode.

use crate::fs::{Attributes, Fs};
use crate::{FsError, name};
use aegisfs_base::InodeId;

impl Fs {
    /// Finds a name in a directory and counts the caller's new reference to what it leads to.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`, `NameTooLong`, or a fault.
    pub fn lookup(&self, parent: InodeId, name: &[u8]) -> Result<Attributes, FsError> {
        let attributes = self.peek(parent, name)?;
        self.nodes.looked_up(attributes.id);
        Ok(attributes)
    }

    /// The same without counting.
    ///
    /// # Errors
    /// As [`Fs::lookup`].
    pub fn peek(&self, parent: InodeId, name: &[u8]) -> Result<Attributes, FsError> {
        name::check(name)?;
        // Whoever has a handle of a file from earlier finds it again by this name of itself, be it a directory or not.
        if name == b"." {
            return Ok(self.attributes_of(&*self.node(parent)?));
        }
        let directory = self.directory(parent)?;
        let id = match name {
            b".." => directory.state.read().inode.parent,
            _ => self.find_entry(parent, name)?.ok_or(FsError::NotFound)?,
        };
        Ok(self.attributes_settled(&*self.node(id)?))
    }
}
