//! A session: negotiation, then threads that each run a request to its end.
//!
//! - [`device`] reads requests from /dev/fuse, which every kernel has, and which some of them always take
//! - [`rings`] takes them through io_uring, on the processor of whoever asks

mod device;
mod rings;

use crate::abi::{
    InitIn, InitOut, MINOR_MIN, NOTIFY_INVAL_INODE, NotifyInvalInodeOut, OutHeader, VERSION, init,
};
use crate::counters::{Counters, OpcodeCount, opcode_name};
use crate::reply::Reply;
use crate::request::{Operation, Request};
use aegisfs_fs::Errno;
use device::Readers;
use rings::Rings;
pub use rings::{allow_rings, rings_available};
use rustix::io::Errno as Io;
use std::any::Any;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use zerocopy::IntoBytes;

/// Largest write and read; measured as the knee of throughput.
const TRANSFER_BYTES: u32 = 1 << 20;
/// Requests that the kernel sends without waiting, and from when on it slows down.
///
/// As root mounts, the kernel holds at most 64 MiB of writes: there may be 64 large ones, and what does not have to wait,
/// direct reads among it, is not kept back behind them.
const BACKGROUND: (u16, u16) = (128, 96);
/// Threads that may wait long besides those that serve, which costs memory only: as many as there may be requests of that
/// kind.
const HELD_MAX: usize = 128;
const EPROTO: Errno = Errno(71);
const ENOSYS: Errno = Errno(38);

/// Answers requests. The reply's body is what it pushes; an error discards it.
pub trait Handler: Send + Sync + 'static {
    /// Answers a request.
    ///
    /// # Errors
    /// The number that the kernel is to see.
    fn handle(&self, request: &Request<'_>, reply: &mut Reply) -> Result<(), Errno>;

    /// Whether the answer depends on bytes that the kernel may hold: then [`Handler::write_back`] is called first, on
    /// a thread that no write has to wait for.
    fn needs_written_back(&self, request: &Request<'_>) -> bool {
        let _ = request;
        false
    }

    /// Whether the answer may have to wait until much else is done. Then somebody else takes the next request, so
    /// that nobody waits for this one who does not have to.
    fn may_wait_long(&self, request: &Request<'_>) -> bool {
        let _ = request;
        false
    }

    /// Has the kernel write back what it holds of a file, and waits for it. Says whether that was possible.
    ///
    /// No thread of this process may wait within the kernel for that: it could not be killed then, and the connection
    /// would stay open, with everybody waiting on it for ever.
    fn write_back(&self, node: u64) -> bool {
        let _ = node;
        false
    }

    /// A request panicked, and whatever it was changing may be changed by half.
    fn panicked(&self, reason: &str) {
        let _ = reason;
    }
}

/// How a session runs.
#[derive(Clone, Copy, Debug)]
pub struct SessionOptions {
    /// Let the kernel keep written data for a while.
    pub writeback: bool,
    /// Threads that read from /dev/fuse; with rings it is one.
    pub threads: usize,
    /// Take requests through io_uring, if the kernel offers it.
    pub rings: bool,
    /// Let the threads that serve it have the idle scheduling class while that keeps callers where they are.
    pub idle_class: bool,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            writeback: true,
            // Two for each core: one may wait for a device while the other works. More make streams slower.
            threads: std::thread::available_parallelism().map_or(4, |cores| 2 * cores.get()).clamp(4, 16),
            rings: false,
            idle_class: true,
        }
    }
}

struct Shared<H> {
    device: OwnedFd,
    handler: H,
    options: SessionOptions,
    counters: Counters,
    /// Requests that wait until the kernel has written back.
    aside: Mutex<Sender<Vec<u8>>>,
    readers: Readers,
    rings: Rings,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// The running threads.
pub struct Session<H: Handler> {
    shared: Arc<Shared<H>>,
    aside: Mutex<Option<JoinHandle<()>>>,
}

impl<H: Handler> Session<H> {
    /// Starts to serve a connection.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(device: OwnedFd, handler: H, options: SessionOptions) -> std::io::Result<Self> {
        let (sender, requests) = channel();
        let shared = Arc::new(Shared {
            device,
            handler,
            options,
            counters: Counters::default(),
            aside: Mutex::new(sender),
            readers: Readers::default(),
            rings: Rings::new(),
            threads: Mutex::default(),
        });
        let worker = Arc::clone(&shared);
        let aside = std::thread::Builder::new().name("fuse-aside".into());
        let aside = aside.spawn(move || device::answer_aside(&worker, &requests))?;
        device::add_reader(&shared)?;
        Ok(Self { shared, aside: Mutex::new(Some(aside)) })
    }

    /// What answers the requests.
    pub fn handler(&self) -> &H {
        &self.shared.handler
    }

    /// How often each opcode came.
    pub fn counts(&self) -> Vec<OpcodeCount> {
        self.shared.counters.all()
    }

    /// The threads that take requests through io_uring; none where /dev/fuse brings them all.
    pub fn ring_threads(&self) -> usize {
        self.shared.rings.threads()
    }

    /// How often a queue's threads changed their scheduling class.
    pub fn idle_class_changes(&self) -> u64 {
        self.shared.rings.class_changes()
    }

    /// Waits until the kernel ends the connection, which it does when the mount goes, and the last request
    /// has run to its end.
    pub fn wait(&self) {
        // A thread may start another one before it ends.
        while let Some(thread) = { lock(&self.shared.threads).pop() } {
            if thread.join().is_err() {
                tracing::error!("a thread that serves requests died");
            }
        }
        let aside = lock(&self.aside).take();
        // An empty request is the last one.
        self.shared.set_aside(Vec::new());
        if aside.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that serves what waits for the kernel died");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<H> Shared<H> {
    fn spawn(&self, name: String, work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        let thread = std::thread::Builder::new().name(name).spawn(work)?;
        let mut threads = lock(&self.threads);
        threads.retain(|thread| !thread.is_finished());
        threads.push(thread);
        Ok(())
    }

    fn set_aside(&self, request: Vec<u8>) {
        // Its thread only ends when told to.
        let _ = lock(&self.aside).send(request);
    }

    /// Tells the kernel that an inode's attributes are no longer what it keeps of them.
    fn invalidate(&self, node: u64) {
        // From -1 on: the content stays, which the kernel would have to write back first.
        let notice = NotifyInvalInodeOut { ino: node, off: -1, len: 0 };
        let len = (size_of::<OutHeader>() + size_of_val(&notice)) as u32;
        let header = OutHeader { len, error: NOTIFY_INVAL_INODE, unique: 0 };
        let bytes = [header.as_bytes(), notice.as_bytes()].concat();
        match rustix::io::write(self.device.as_fd(), &bytes) {
            // It knows nothing of the inode, or nothing at all any more.
            Ok(_) | Err(Io::NOENT | Io::NODEV) => {}
            Err(error) => tracing::warn!(%error, inode = node, "the kernel did not take a notice"),
        }
    }
}

/// What becomes of a request.
enum Answer {
    /// The reply, or an error.
    Now(Result<(), Errno>),
    /// Once the kernel has written back what it holds of the file.
    WrittenBack,
    /// The kernel expects none.
    None,
}

/// Answers what does not depend on the way by which a request came.
fn answer<H: Handler>(shared: &Shared<H>, request: &Request<'_>, reply: &mut Reply) -> Answer {
    shared.counters.note(request.opcode);
    match &request.operation {
        // With a writeback cache the kernel has already written, and reported errors, by itself; it does
        // not ask again after this answer.
        Operation::Flush if shared.options.writeback => Answer::Now(Err(ENOSYS)),
        Operation::Flush => Answer::Now(Ok(())),
        // There is nothing to keep for an open directory. After this answer the kernel opens directories by itself,
        // and keeps their entries.
        Operation::Opendir => Answer::Now(Err(ENOSYS)),
        // Requests run to their end; there is nothing to interrupt.
        Operation::Interrupt { .. } => Answer::None,
        Operation::Forget { .. } | Operation::BatchForget { .. } => {
            let _ = handle(shared, request, reply);
            Answer::None
        }
        Operation::Other => Answer::Now(Err(ENOSYS)),
        _ if shared.handler.needs_written_back(request) => Answer::WrittenBack,
        _ => Answer::Now(handle(shared, request, reply)),
    }
}

/// Answers what depends on bytes that the kernel may hold.
fn answer_written_back<H: Handler>(
    shared: &Shared<H>,
    request: &Request<'_>,
    reply: &mut Reply,
) -> Result<(), Errno> {
    if shared.handler.write_back(request.node) {
        return handle(shared, request, reply);
    }
    // The kernel takes this for all files from now on, and finds no holes any more: dearer, but right.
    tracing::warn!(inode = request.node, "the kernel cannot be made to write back; holes are no longer told");
    Err(ENOSYS)
}

/// Calls the handler, and tells the kernel what no longer holds before it gets the answer. A panic becomes an answer
/// too, so that no caller waits for ever.
fn handle<H: Handler>(shared: &Shared<H>, request: &Request<'_>, reply: &mut Reply) -> Result<(), Errno> {
    let handler = &shared.handler;
    let handled = catch_unwind(AssertUnwindSafe(|| handler.handle(request, reply)));
    let outcome = handled.unwrap_or_else(|panic| {
        let name = opcode_name(request.opcode);
        let reason = format!("a request ({name}) panicked: {}", panic_message(&*panic));
        tracing::error!(reason, opcode = request.opcode, inode = request.node, "answered with EIO");
        // The reply is begun anew: what stands in it is of a request that did not come to its end.
        reply.clear();
        if catch_unwind(AssertUnwindSafe(|| handler.panicked(&reason))).is_err() {
            tracing::error!("what was to follow a panic panicked itself");
        }
        Err(Errno::EIO)
    });
    if let Some(node) = reply.outdated {
        shared.invalidate(node);
    }
    outcome
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// Agrees on the protocol. Says whether requests will come through rings.
fn negotiate(input: &InitIn, options: SessionOptions, reply: &mut Reply) -> Result<bool, Errno> {
    if input.major != VERSION.0 || input.minor < MINOR_MIN {
        tracing::error!(major = input.major, minor = input.minor, "the kernel's protocol is too old");
        return Err(EPROTO);
    }
    let offered = u64::from(input.flags) | u64::from(input.flags2) << 32;
    let mut wanted = init::ASYNC_READ
        | init::EXPORT_SUPPORT
        | init::BIG_WRITES
        | init::DONT_MASK
        | init::DO_READDIRPLUS
        | init::READDIRPLUS_AUTO
        | init::ASYNC_DIO
        | init::PARALLEL_DIROPS
        | init::POSIX_ACL
        | init::MAX_PAGES
        | init::CACHE_SYMLINKS
        | init::EXPLICIT_INVAL_DATA
        | init::HANDLE_KILLPRIV_V2
        | init::SETXATTR_EXT
        | init::INIT_EXT
        | init::HAS_EXPIRE_ONLY
        | init::DIRECT_IO_ALLOW_MMAP;
    if options.writeback {
        wanted |= init::WRITEBACK_CACHE;
    }
    if options.rings {
        wanted |= init::OVER_IO_URING;
    }
    let flags = wanted & offered;
    reply.push(&InitOut {
        major: VERSION.0,
        minor: VERSION.1,
        max_readahead: input.max_readahead.max(TRANSFER_BYTES),
        flags: flags as u32,
        max_background: BACKGROUND.0,
        congestion_threshold: BACKGROUND.1,
        max_write: TRANSFER_BYTES,
        time_gran: 1,
        max_pages: (TRANSFER_BYTES / 4096) as u16,
        flags2: (flags >> 32) as u32,
        ..InitOut::default()
    });
    Ok(flags & init::OVER_IO_URING != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::InHeader;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use zerocopy::IntoBytes;

    #[derive(Default)]
    struct Panicking {
        told: AtomicUsize,
    }

    impl Handler for Panicking {
        fn handle(&self, request: &Request<'_>, reply: &mut Reply) -> Result<(), Errno> {
            reply.push_bytes(b"half an answer");
            assert!(request.node != 13, "inode {} is unlucky", request.node);
            Ok(())
        }

        fn panicked(&self, reason: &str) {
            assert!(reason.contains("getattr") && reason.contains("inode 13 is unlucky"), "{reason}");
            self.told.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn request(opcode: u32, node: u64) -> Vec<u8> {
        let len = (size_of::<InHeader>() + 8) as u32;
        let header = InHeader { len, opcode, unique: 7, nodeid: node, ..InHeader::default() };
        [header.as_bytes(), &[0; 8]].concat()
    }

    /// The caller of a request that panics gets EIO, and the thread goes on with the next one.
    #[test]
    fn a_panic_is_answered_and_told() {
        let (kernel, device) = std::os::unix::net::UnixStream::pair().unwrap();
        let shared = Shared {
            device: device.into(),
            handler: Panicking::default(),
            options: SessionOptions::default(),
            counters: Counters::default(),
            aside: Mutex::new(channel().0),
            readers: Readers::default(),
            rings: Rings::new(),
            threads: Mutex::default(),
        };
        let shared = Arc::new(shared);
        let mut reply = Reply::default();
        let mut answered = |bytes: &[u8]| {
            device::take(&shared, bytes, &mut reply);
            let mut buffer = [0u8; 256];
            let count = rustix::io::read(&kernel, &mut buffer[..]).unwrap();
            let error = i32::from_ne_bytes(buffer[4..8].try_into().unwrap());
            (count, error)
        };
        assert_eq!(answered(&request(3, 13)), (16, -5));
        assert_eq!(answered(&request(3, 1)), (30, 0));
        assert_eq!(answered(&request(3, 13)), (16, -5));
        assert_eq!(shared.handler.told.load(Ordering::Acquire), 2);
    }
}
