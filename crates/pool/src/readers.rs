//! Reads that somebody may stop waiting for.
//!
//! A device that hesitates keeps whoever asked it, and nobody can call a read back. So such a device is asked by threads of
//! its own: who asked them gives up after a while and gets the bytes elsewhere, and what they hold is bounded.

use crate::activity::Activity;
use crate::member::read;
use aegisfs_device::{AlignedBuffer, Device, DeviceError};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

/// Threads that ask one device at the same time.
const THREADS_MAX: usize = 4;
/// Reads that wait for them; who comes later is told at once that it takes too long.
const WAITING_MAX: usize = 32;
/// A thread that has nothing to do for so long ends.
const IDLE: Duration = Duration::from_secs(5);

struct Job {
    offset: u64,
    bytes: usize,
    answer: SyncSender<Result<AlignedBuffer, DeviceError>>,
    /// Nobody waits for it any more.
    given_up: Arc<AtomicBool>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Job>,
    threads: usize,
    idle: usize,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    wakeup: Condvar,
}

/// The threads that ask one device; there are none until somebody needs them.
#[derive(Default)]
pub(crate) struct Readers {
    shared: Arc<Shared>,
}

impl Drop for Readers {
    fn drop(&mut self) {
        // A thread that hangs in its device ends when that answers.
        self.shared.queue.lock().closed = true;
        self.shared.wakeup.notify_all();
    }
}

impl Readers {
    /// Reads within a time, or returns nothing.
    pub(crate) fn read(
        &self,
        device: &Arc<dyn Device>,
        activity: &Arc<Activity>,
        offset: u64,
        out: &mut [u8],
        patience: Duration,
    ) -> Option<Result<(), DeviceError>> {
        let (answer, answered) = sync_channel(1);
        let mut queue = self.shared.queue.lock();
        if queue.waiting.len() >= WAITING_MAX {
            return None;
        }
        if queue.idle <= queue.waiting.len() && queue.threads < THREADS_MAX {
            let (shared, device, activity) =
                (Arc::clone(&self.shared), Arc::clone(device), Arc::clone(activity));
            let started = std::thread::Builder::new()
                .name("device-read".into())
                .spawn(move || serve(&shared, &*device, &activity));
            match started {
                Ok(_) => queue.threads += 1,
                // Those that there are do it, if there are any.
                Err(_) if queue.threads > 0 => {}
                Err(_) => return None,
            }
        }
        let given_up = Arc::<AtomicBool>::default();
        queue.waiting.push_back(Job { offset, bytes: out.len(), answer, given_up: Arc::clone(&given_up) });
        drop(queue);
        self.shared.wakeup.notify_one();
        let outcome = answered.recv_timeout(patience).ok();
        given_up.store(outcome.is_none(), Ordering::Release);
        let outcome = outcome?;
        Some(outcome.map(|bytes| out.copy_from_slice(&bytes)))
    }
}

fn serve(shared: &Shared, device: &dyn Device, activity: &Activity) {
    loop {
        let mut queue = shared.queue.lock();
        let job = loop {
            if queue.closed {
                queue.threads -= 1;
                return;
            }
            if let Some(job) = queue.waiting.pop_front() {
                break job;
            }
            queue.idle += 1;
            let waited = shared.wakeup.wait_for(&mut queue, IDLE);
            queue.idle -= 1;
            if waited.timed_out() && queue.waiting.is_empty() {
                queue.threads -= 1;
                return;
            }
        };
        drop(queue);
        if job.given_up.load(Ordering::Acquire) {
            continue;
        }
        let mut bytes = AlignedBuffer::zeroed(job.bytes);
        let outcome = read(device, activity, job.offset, &mut bytes);
        // Whoever asked may have gone.
        let _ = job.answer.send(outcome.map(|()| bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aegisfs_device::MemoryDevice;
    use std::sync::atomic::AtomicUsize;
    use std::time::Instant;

    /// Answers nobody until it is told to.
    struct Hanging {
        inner: MemoryDevice,
        hangs: AtomicBool,
        asked: AtomicUsize,
    }

    impl Device for Hanging {
        fn bytes(&self) -> u64 {
            self.inner.bytes()
        }
        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            while self.hangs.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
            self.inner.read_at(offset, buffer)
        }
        fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
            self.inner.write_at(offset, data)
        }
        fn flush(&self) -> Result<(), DeviceError> {
            self.inner.flush()
        }
        fn discard(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
            self.inner.discard(offset, length)
        }
        fn allocated_bytes(&self) -> Option<u64> {
            None
        }
        fn describe(&self) -> String {
            self.inner.describe()
        }
        fn read_only(&self) -> bool {
            false
        }
    }

    #[test]
    fn nobody_waits_for_a_device_that_hangs_and_what_waits_is_bounded() {
        let device = Arc::new(Hanging {
            inner: MemoryDevice::new("d", 1 << 20),
            hangs: AtomicBool::new(true),
            asked: AtomicUsize::new(0),
        });
        device.inner.write_at(4096, &[7; 4096]).unwrap();
        let (activity, readers) = (Arc::<Activity>::default(), Readers::default());
        let dynamic: Arc<dyn Device> = Arc::clone(&device) as Arc<dyn Device>;
        let mut block = AlignedBuffer::zeroed(4096);
        let soon = Duration::from_millis(2);
        let started = Instant::now();
        // A thread that begins late has nothing to do any more.
        while device.asked.load(Ordering::SeqCst) < THREADS_MAX {
            assert!(readers.read(&dynamic, &activity, 4096, &mut block, soon).is_none());
            assert!(started.elapsed() < Duration::from_secs(60));
        }
        for _ in 0..WAITING_MAX {
            assert!(readers.read(&dynamic, &activity, 4096, &mut block, soon).is_none());
        }
        // Beyond that nobody waits at all.
        let begun = Instant::now();
        assert!(readers.read(&dynamic, &activity, 4096, &mut block, Duration::from_secs(60)).is_none());
        assert!(begun.elapsed() < Duration::from_secs(5));
        assert_eq!(activity.in_flight() as usize, THREADS_MAX);
        assert_eq!(device.asked.load(Ordering::SeqCst), THREADS_MAX);
        device.hangs.store(false, Ordering::SeqCst);
        let begun = Instant::now();
        let got = loop {
            match readers.read(&dynamic, &activity, 4096, &mut block, Duration::from_secs(5)) {
                Some(outcome) => break outcome,
                None => assert!(begun.elapsed() < Duration::from_secs(30)),
            }
        };
        got.unwrap();
        assert_eq!(block[..], [7; 4096]);
        let shared = Arc::clone(&readers.shared);
        drop(readers);
        while shared.queue.lock().threads > 0 {
            assert!(begun.elapsed() < Duration::from_secs(30));
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
