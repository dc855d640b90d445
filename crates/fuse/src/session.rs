//! A session: negotiation, then reader threads that each run a request to its end.

use crate::abi::{
    InitIn, InitOut, MINOR_MIN, NOTIFY_INVAL_INODE, NotifyInvalInodeOut, OutHeader, VERSION, init,
};
use crate::counters::{Counters, OpcodeCount, opcode_name};
use crate::reply::Reply;
use crate::request::{Operation, Request};
use aegisfs_fs::Errno;
use rustix::io::Errno as Io;
use std::any::Any;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use zerocopy::IntoBytes;

/// Largest write and read; measured as the knee of throughput.
const TRANSFER_BYTES: u32 = 1 << 20;
/// Room for a request's header besides the largest write.
const REQUEST_ROOM: usize = 64 << 10;
/// Requests that the kernel sends without waiting, and from when on it slows down.
const BACKGROUND: (u16, u16) = (64, 48);
const EPROTO: Errno = Errno(71);
const ENOSYS: Errno = Errno(38);

/// Answers requests. The reply's body is what it pushes; an error discards it.
pub trait Handler: Send + Sync + 'static {
    /// Answers a request.
    ///
    /// # Errors
    /// The number that the kernel is to see.
    fn handle(&self, request: &Request<'_>, reply: &mut Reply) -> Result<(), Errno>;

    /// Whether the answer depends on bytes that the kernel may hold: then it is told to write them back, and
    /// the answer is given by a thread that no write has to wait for.
    fn needs_written_back(&self, request: &Request<'_>) -> bool {
        let _ = request;
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
    /// Reader threads.
    pub threads: usize,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            writeback: true,
            // Two for each core: one may wait for a device while the other works. More make streams slower.
            threads: std::thread::available_parallelism().map_or(4, |cores| 2 * cores.get()).clamp(4, 16),
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
}

/// The running threads.
pub struct Session<H: Handler> {
    shared: Arc<Shared<H>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    aside: Mutex<Option<JoinHandle<()>>>,
}

impl<H: Handler> Session<H> {
    /// Starts to serve a connection.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(device: OwnedFd, handler: H, options: SessionOptions) -> std::io::Result<Self> {
        let (sender, requests) = channel();
        let counters = Counters::default();
        let shared = Arc::new(Shared { device, handler, options, counters, aside: Mutex::new(sender) });
        let worker = Arc::clone(&shared);
        let aside = std::thread::Builder::new().name("fuse-aside".into());
        let aside = aside.spawn(move || answer_aside(&worker, &requests))?;
        let mut threads = Vec::new();
        for number in 0..options.threads.max(1) {
            let shared = Arc::clone(&shared);
            let builder = std::thread::Builder::new().name(format!("fuse-{number}"));
            threads.push(builder.spawn(move || serve(&shared))?);
        }
        Ok(Self { shared, threads: Mutex::new(threads), aside: Mutex::new(Some(aside)) })
    }

    /// What answers the requests.
    pub fn handler(&self) -> &H {
        &self.shared.handler
    }

    /// How often each opcode came.
    pub fn counts(&self) -> Vec<OpcodeCount> {
        self.shared.counters.all()
    }

    /// Waits until the kernel ends the connection, which it does when the mount goes, and the last request
    /// has run to its end.
    pub fn wait(&self) {
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread that serves requests died");
            }
        }
        let aside = self.aside.lock().unwrap_or_else(PoisonError::into_inner).take();
        // An empty request is the last one.
        self.shared.set_aside(Vec::new());
        if aside.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that serves what waits for the kernel died");
        }
    }
}

fn serve<H: Handler>(shared: &Shared<H>) {
    let mut buffer = vec![0u8; TRANSFER_BYTES as usize + REQUEST_ROOM];
    let mut reply = Reply::default();
    loop {
        let count = match rustix::io::read(shared.device.as_fd(), &mut buffer[..]) {
            Ok(count) => count,
            // A request was withdrawn, or a signal came.
            Err(Io::NOENT | Io::INTR | Io::AGAIN) => continue,
            Err(Io::NODEV) => break,
            Err(error) => {
                tracing::error!(%error, "requests can no longer be read");
                break;
            }
        };
        answer(shared, &buffer[..count], &mut reply);
    }
}

impl<H: Handler> Shared<H> {
    fn set_aside(&self, request: Vec<u8>) {
        let sender = self.aside.lock().unwrap_or_else(PoisonError::into_inner);
        // Its thread only ends when told to.
        let _ = sender.send(request);
    }

    /// Tells the kernel that what it keeps of an inode no longer holds: its attributes, and with an offset the
    /// content from there on, of which it writes back what it has not yet. That waits for those writes.
    fn invalidate(&self, node: u64, from: Option<u64>) {
        let off = from.map_or(-1, |from| i64::try_from(from).unwrap_or(i64::MAX));
        let notice = NotifyInvalInodeOut { ino: node, off, len: 0 };
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

/// Answers requests one after the other, each when the kernel has written back what it holds of the file.
fn answer_aside<H: Handler>(shared: &Shared<H>, requests: &Receiver<Vec<u8>>) {
    let mut reply = Reply::default();
    for bytes in requests {
        let Ok(request) = Request::decode(&bytes) else { return };
        // From the first byte on: only then is the end known too.
        shared.invalidate(request.node, Some(0));
        reply.clear();
        let outcome = handle(&shared.handler, &request, &mut reply);
        send(shared, &request, &mut reply, outcome);
    }
}

fn answer<H: Handler>(shared: &Shared<H>, bytes: &[u8], reply: &mut Reply) {
    reply.clear();
    let request = match Request::decode(bytes) {
        Ok(request) => request,
        Err(error) => {
            tracing::error!(%error, "the kernel sent what cannot be read");
            return;
        }
    };
    shared.counters.note(request.opcode);
    let outcome = match &request.operation {
        Operation::Init(input) => negotiate(input, shared.options, reply),
        // With a writeback cache the kernel has already written, and reported errors, by itself; it does
        // not ask again after this answer.
        Operation::Flush if shared.options.writeback => Err(ENOSYS),
        Operation::Flush | Operation::Destroy => Ok(()),
        // Requests run to their end; there is nothing to interrupt.
        Operation::Interrupt { .. } => return,
        Operation::Forget { .. } | Operation::BatchForget { .. } => {
            // No answer is expected.
            let _ = handle(&shared.handler, &request, reply);
            return;
        }
        Operation::Other => Err(ENOSYS),
        _ if shared.handler.needs_written_back(&request) => return shared.set_aside(bytes.to_vec()),
        _ => handle(&shared.handler, &request, reply),
    };
    send(shared, &request, reply, outcome);
}

fn send<H: Handler>(
    shared: &Shared<H>,
    request: &Request<'_>,
    reply: &mut Reply,
    outcome: Result<(), Errno>,
) {
    if let Some(node) = reply.outdated {
        shared.invalidate(node, None);
    }
    let bytes = reply.finish(request.unique, outcome);
    match rustix::io::write(shared.device.as_fd(), bytes) {
        Ok(_) | Err(Io::NOENT | Io::NODEV) => {}
        Err(error) => tracing::error!(%error, opcode = request.opcode, "a reply was refused"),
    }
}

/// Calls the handler; a panic of it becomes an answer, so that no caller waits for ever.
fn handle<H: Handler>(handler: &H, request: &Request<'_>, reply: &mut Reply) -> Result<(), Errno> {
    catch_unwind(AssertUnwindSafe(|| handler.handle(request, reply))).unwrap_or_else(|panic| {
        let name = opcode_name(request.opcode);
        let reason = format!("a request ({name}) panicked: {}", panic_message(&*panic));
        tracing::error!(reason, opcode = request.opcode, inode = request.node, "answered with EIO");
        // The reply is begun anew: what stands in it is of a request that did not come to its end.
        reply.clear();
        if catch_unwind(AssertUnwindSafe(|| handler.panicked(&reason))).is_err() {
            tracing::error!("what was to follow a panic panicked itself");
        }
        Err(Errno::EIO)
    })
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

fn negotiate(input: &InitIn, options: SessionOptions, reply: &mut Reply) -> Result<(), Errno> {
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
    Ok(())
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
        };
        let mut reply = Reply::default();
        let mut answered = |bytes: &[u8]| {
            answer(&shared, bytes, &mut reply);
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
