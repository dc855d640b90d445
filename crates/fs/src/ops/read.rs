//! read: bytes from memory, else from chunks; holes are zeros.

use crate::FsError;
use crate::fs::{Fs, HEAD};
use crate::handle::HandleId;
use crate::node::{Node, NodeState};
use crate::overlay::Ranges;
use aegisfs_base::InodeId;
use aegisfs_base::limits::WINDOW_BYTES;
use aegisfs_format::extent::{ExtentRef, decode_window};
use aegisfs_format::key::{self, Table};
use aegisfs_store::{StoreError, versions};
use std::ops::ControlFlow;

/// A reference with the file offset at which it begins.
pub(crate) type Placed = (u64, ExtentRef);

impl Fs {
    /// Reads up to `out.len()` bytes; fewer at the end of the file.
    ///
    /// # Errors
    /// `BadHandle`, `IsDirectory`, or a fault; damaged bytes are never returned.
    pub fn read(&self, handle: HandleId, offset: u64, out: &mut [u8]) -> Result<usize, FsError> {
        let node = self.handle_node(handle)?;
        self.read_node(&node, offset, out)
    }

    pub(crate) fn read_node(&self, node: &Node, offset: u64, out: &mut [u8]) -> Result<usize, FsError> {
        // Held throughout: while it is, nobody overwrites anything.
        let state = node.state.read();
        if state.is_directory() {
            return Err(FsError::IsDirectory);
        }
        let length = state.inode.size.saturating_sub(offset).min(out.len() as u64) as usize;
        let out = &mut out[..length];
        self.fill(node.id, &state, offset, out)?;
        Ok(length)
    }

    fn fill(&self, id: InodeId, state: &NodeState, offset: u64, out: &mut [u8]) -> Result<(), FsError> {
        let end = offset + out.len() as u64;
        let mut found = Ranges::default();
        state.overlay.read(offset, out, &mut found);
        state.leaving().read(offset, out, &mut found);
        let gaps = found.gaps(offset, end);
        if gaps.is_empty() {
            return Ok(());
        }
        let references = self.extents_in(id, offset, end)?;
        if references.len() > 1 {
            let chunks: Vec<_> = references.iter().map(|(_, reference)| reference.chunk).collect();
            self.store.prefetch(&chunks)?;
        }
        for (from, to) in gaps {
            self.fill_gap(id, &references, (offset, out), (from, to))?;
        }
        Ok(())
    }

    /// Fills a gap from what these references hold. The cleaner may have stored what one of them refers to in another chunk
    /// meanwhile; then they are looked up again.
    fn fill_gap(
        &self,
        id: InodeId,
        references: &[Placed],
        (offset, out): (u64, &mut [u8]),
        (from, to): (u64, u64),
    ) -> Result<(), FsError> {
        let mut anew;
        let mut references = references;
        let mut from = from;
        loop {
            let (read_to, stale) = match self.fill_from(references, (offset, &mut *out), (from, to)) {
                Err((read_to, FsError::Store(StoreError::StaleChunk { chunk }))) => (read_to, chunk),
                outcome => return outcome.map_err(|(_, error)| error),
            };
            anew = self.extents_in(id, read_to, to)?;
            if anew.first().is_some_and(|(_, reference)| reference.chunk == stale) {
                return Err(FsError::Store(StoreError::StaleChunk { chunk: stale }));
            }
            (references, from) = (&anew, read_to);
        }
    }

    /// On an error it is told up to where the range was filled.
    fn fill_from(
        &self,
        references: &[Placed],
        (offset, out): (u64, &mut [u8]),
        (from, to): (u64, u64),
    ) -> Result<(), (u64, FsError)> {
        let mut at = from;
        let ends = |(start, reference): &Placed| start + u64::from(reference.length);
        let first = references.partition_point(|placed| ends(placed) <= from);
        for placed in references[first..].iter().take_while(|(start, _)| *start < to) {
            let (start, reference) = placed;
            let (piece_from, piece_to) = (at.max(*start), to.min(ends(placed)));
            out[(at - offset) as usize..(piece_from - offset) as usize].fill(0);
            let within = reference.offset_in_chunk + (piece_from - start) as u32;
            let place = &mut out[(piece_from - offset) as usize..(piece_to - offset) as usize];
            let read = self.store.read_chunk(reference.chunk, within, place);
            read.map_err(|error| (piece_from, error.into()))?;
            at = piece_to;
        }
        out[(at - offset) as usize..(to - offset) as usize].fill(0);
        Ok(())
    }

    /// The references that touch a range, in order.
    pub(crate) fn extents_in(&self, id: InodeId, from: u64, to: u64) -> Result<Vec<Placed>, FsError> {
        let mut found = Vec::new();
        self.visit_extents(id, from, to, &mut |start, reference| {
            found.push((start, reference));
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    /// Visits the references that touch a range, in order.
    pub(crate) fn visit_extents(
        &self,
        id: InodeId,
        from: u64,
        to: u64,
        visit: &mut dyn FnMut(u64, ExtentRef) -> ControlFlow<()>,
    ) -> Result<(), FsError> {
        if from >= to {
            return Ok(());
        }
        let view = self.store.head_view(HEAD)?;
        let start = key::extents(id, from / WINDOW_BYTES);
        let end = key::prefix_end(&key::extents(id, (to - 1) / WINDOW_BYTES));
        let mut problem = None;
        versions::scan_visible(
            &self.store.view(),
            Table::Extents,
            &start,
            end.as_deref(),
            &view,
            &mut |stem, stored| {
                let (window, references) = match (key::extents_window(stem), decode_window(stored)) {
                    (Ok(window), Ok(references)) => (window, references),
                    (Err(error), _) | (_, Err(error)) => {
                        problem = Some(error);
                        return ControlFlow::Break(());
                    }
                };
                for reference in references {
                    let at = window * WINDOW_BYTES + u64::from(reference.offset);
                    let touches = at < to && at + u64::from(reference.length) > from;
                    if touches && visit(at, reference).is_break() {
                        return ControlFlow::Break(());
                    }
                }
                ControlFlow::Continue(())
            },
        )?;
        problem.map_or(Ok(()), |error| Err(error.into()))
    }
}
