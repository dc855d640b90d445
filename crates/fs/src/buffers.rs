//! Buffers for a stream's runs, used again: fresh memory of a megabyte costs the kernel more time to clear than
//! it takes to copy the bytes into it.

use parking_lot::Mutex;

/// Bytes that a run may grow to, and that each buffer here has room for.
pub(crate) const RUN_BYTES_MAX: usize = 1 << 20;
/// Buffers kept; more are given back to the system.
const KEPT_MAX: usize = 48;

static SPARE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// An empty buffer with room for a whole run.
pub(crate) fn take() -> Vec<u8> {
    SPARE.lock().pop().unwrap_or_else(|| Vec::with_capacity(RUN_BYTES_MAX))
}

/// Takes a buffer back that is no longer needed, if it is one of this size.
pub(crate) fn give_back(mut buffer: Vec<u8>) {
    if buffer.capacity() != RUN_BYTES_MAX {
        return;
    }
    buffer.clear();
    let mut spare = SPARE.lock();
    if spare.len() < KEPT_MAX {
        spare.push(buffer);
    }
}

/// Gives the memory back, when nothing has been written for a while.
pub(crate) fn trim() {
    let spare = std::mem::take(&mut *SPARE.lock());
    drop(spare);
}
