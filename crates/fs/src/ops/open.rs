//! open, create, release: handles.

use super::make::{Kind, MakeOptions};
use crate::FsError;
use crate::fs::{Attributes, Fs};
use crate::handle::HandleId;
use aegisfs_base::InodeId;

impl Fs {
    /// Opens a file or directory.
    ///
    /// # Errors
    /// `NotFound`, or a fault.
    pub fn open(&self, id: InodeId) -> Result<HandleId, FsError> {
        let node = self.node(id)?;
        if node.state.read().dead {
            return Err(FsError::NotFound);
        }
        Ok(self.handles.open(node))
    }

    /// Makes a file and opens it.
    ///
    /// # Errors
    /// As [`Fs::make`].
    pub fn create(
        &self,
        parent: InodeId,
        name: &[u8],
        options: &MakeOptions,
    ) -> Result<(Attributes, HandleId), FsError> {
        let made = self.make(parent, name, Kind::File, options)?;
        Ok((made, self.open(made.id)?))
    }

    /// Closes a handle.
    ///
    /// # Errors
    /// `BadHandle`.
    pub fn release(&self, handle: HandleId) -> Result<(), FsError> {
        let node = self.handles.close(handle).ok_or(FsError::BadHandle)?;
        self.drop_if_unused(&node);
        Ok(())
    }
}
