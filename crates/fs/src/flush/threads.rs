//! Threads that write files out when these have settled, grown large, or memory runs short.

use super::Portion;
use crate::fs::{Fs, SMALL_BYTES};
use crate::node::Node;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// The running threads; dropping it ends them after their current step.
pub struct Flusher {
    fs: Arc<Fs>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Flusher {
    /// Starts so many threads.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(fs: Arc<Fs>, threads: usize) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut running = Vec::new();
        for number in 0..threads.max(1) {
            let (fs, stop) = (Arc::clone(&fs), Arc::clone(&stop));
            let builder = std::thread::Builder::new().name(format!("flush-{number}"));
            running.push(builder.spawn(move || run(&fs, &stop))?);
        }
        Ok(Self { fs, stop, threads: running })
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            self.fs.wake_flusher();
            self.fs.work.1.notify_all();
            if thread.join().is_err() {
                tracing::error!("a flushing thread died");
            }
        }
    }
}

fn run(fs: &Fs, stop: &AtomicBool) {
    while !stop.load(Ordering::Acquire) {
        {
            let mut wanted = fs.work.0.lock();
            if !*wanted {
                // With nothing dirty there is nothing to wait for but a signal.
                if fs.dirty_bytes() == 0 && !fs.nodes.may_be_dirty() {
                    crate::buffers::trim();
                    fs.work.1.wait(&mut wanted);
                } else {
                    fs.work.1.wait_for(&mut wanted, fs.options.settle / 2);
                }
            }
            *wanted = false;
        }
        if stop.load(Ordering::Acquire) {
            return;
        }
        if let Err(error) = fs.flush_ready() {
            tracing::error!(%error, "files could not be written out; they stay in memory");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Which files leave memory first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    /// Nobody writes them any more, or they are streams, or have waited long.
    Ready,
    /// They make room.
    Large,
    /// There are many of them, or they do not matter.
    Small,
}

impl Fs {
    /// Tells the flushing threads that there may be work.
    pub(crate) fn wake_flusher(&self) {
        *self.work.0.lock() = true;
        self.work.1.notify_one();
    }

    /// Writes out files that are ready for it.
    ///
    /// # Errors
    /// When something could not be stored.
    pub fn flush_ready(&self) -> Result<(), crate::FsError> {
        let now = self.clock.elapsed();
        let short = self.dirty_bytes() * 2 > self.options.dirty_bytes_max;
        let dirty = self.nodes.dirty();
        let urgency = |node: &Node| {
            let state = node.state.read();
            let settled = now.saturating_sub(state.written) >= self.options.settle
                || now.saturating_sub(state.dirty_since) >= self.options.age_max;
            if settled {
                return (Urgency::Ready, Portion::Whole);
            }
            if state.overlay.long_stretch(self.options.stream_bytes).is_some() {
                return (Urgency::Ready, Portion::Stream);
            }
            let is_large = state.bytes_in_memory() >= SMALL_BYTES;
            (if is_large { Urgency::Large } else { Urgency::Small }, Portion::Whole)
        };
        let mut ready: Vec<_> = dirty.iter().map(|node| (&**node, urgency(node))).collect();
        // When memory runs short, large files make room first. Small ones are likely to be written and synced again
        // soon, and would then have to wait until they are stored.
        let most = match () {
            () if !short => Urgency::Ready,
            () if ready.iter().any(|(_, (urgency, _))| *urgency < Urgency::Small) => Urgency::Large,
            () => Urgency::Small,
        };
        ready.retain(|(_, (urgency, _))| *urgency <= most);
        let mut ready: Vec<_> = ready.into_iter().map(|(node, (_, portion))| (node, portion)).collect();
        // Somebody is at it already.
        ready.retain(|(node, _)| node.flushing.try_lock().is_some());
        self.flush_nodes(ready.into_iter())
    }
}
