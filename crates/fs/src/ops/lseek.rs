//! lseek: where data and holes are.

use crate::FsError;
use crate::fs::Fs;
use crate::handle::HandleId;
use crate::overlay::Ranges;
use std::ops::ControlFlow;

/// What to look for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whence {
    /// The next byte that is stored or written.
    Data,
    /// The next byte that is not; the end of the file counts as one.
    Hole,
}

impl Fs {
    /// The first offset at or behind `offset` where there is what was asked for.
    ///
    /// # Errors
    /// `NoData` at or behind the end, or when only a hole follows; `BadHandle`, or a fault.
    pub fn lseek(&self, handle: HandleId, offset: u64, whence: Whence) -> Result<u64, FsError> {
        let node = self.handle_node(handle)?;
        let state = node.state.read();
        let size = state.inode.size;
        if offset >= size {
            return Err(FsError::NoData);
        }
        let mut covered = Ranges::default();
        for overlay in [&state.overlay, state.leaving()] {
            for (from, to) in overlay.ranges().iter() {
                covered.add(from, to);
            }
        }
        // Looking stops at the first answer that no later reference can change.
        let mut answer = None;
        self.visit_extents(node.id, offset, size, &mut |start, reference| {
            answer = settle(&covered, offset, start, whence);
            if answer.is_some() {
                return ControlFlow::Break(());
            }
            covered.add(start, start + u64::from(reference.length));
            ControlFlow::Continue(())
        })?;
        let answer = answer.or_else(|| settle(&covered, offset, size, whence));
        match (answer, whence) {
            (Some(found), _) => Ok(found.min(size)),
            (None, Whence::Hole) => Ok(size),
            (None, Whence::Data) => Err(FsError::NoData),
        }
    }
}

/// The answer, if it lies before `known`, up to where everything covered is known.
fn settle(covered: &Ranges, offset: u64, known: u64, whence: Whence) -> Option<u64> {
    if offset >= known {
        return None;
    }
    let gaps = covered.gaps(offset, known);
    match whence {
        Whence::Hole => gaps.first().map(|(from, _)| *from),
        Whence::Data => match gaps.first() {
            Some((from, to)) if *from == offset => (*to < known).then_some(*to),
            _ => Some(offset),
        },
    }
}
