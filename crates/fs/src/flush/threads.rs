//! Threads that write files out when these have settled, grown large, or memory runs short.

use super::Portion;
use crate::fs::Fs;
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
        let portion = |node: &Node| {
            let state = node.state.read();
            let settled = now.saturating_sub(state.written) >= self.options.settle
                || now.saturating_sub(state.dirty_since) >= self.options.age_max;
            if settled {
                return Some(Portion::Whole);
            }
            let long = state.overlay.long_stretch(self.options.stream_bytes).map(|_| Portion::Stream);
            long.or(short.then_some(Portion::Whole))
        };
        let mut ready: Vec<(&Node, Portion)> =
            dirty.iter().filter_map(|node| Some((&**node, portion(node)?))).collect();
        // Somebody is at it already.
        ready.retain(|(node, _)| node.flushing.try_lock().is_some());
        self.flush_nodes(ready.into_iter())
    }
}
