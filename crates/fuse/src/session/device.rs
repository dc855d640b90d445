//! Requests from /dev/fuse: reader threads, and one aside for what has to wait for the kernel.
//!
//! With rings it still brings the negotiation, what the kernel forgets, and interruptions. One thread is enough for
//! those, and none of them is in a hurry.

use super::{
    Answer, HELD_MAX, Handler, Shared, TRANSFER_BYTES, answer, answer_written_back, negotiate, rings,
};
use crate::reply::Reply;
use crate::request::{Operation, Request};
use aegisfs_fs::Errno;
use rustix::io::Errno as Io;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Duration;

/// Room for a request's header besides the largest write.
const REQUEST_ROOM: usize = 64 << 10;

/// With rings, how long what the kernel forgets is left to gather. Whoever removes files would else wake the reader for
/// each of them.
const GATHER: Duration = Duration::from_millis(2);

/// What is known of the threads that read.
#[derive(Default)]
pub(super) struct Readers {
    all: AtomicUsize,
    /// Of these, those that may have to wait until much else is done.
    held: AtomicUsize,
}

impl Readers {
    /// Whether there are far more of them than should serve; if so, the calling one no longer counts and has to end.
    /// A few more stay, or each sync would begin and end one.
    fn leave(&self, wanted: usize) -> bool {
        let fewer = |all: usize| {
            (all.saturating_sub(self.held.load(Ordering::Acquire)) > 2 * wanted).then(|| all - 1)
        };
        self.all.fetch_update(Ordering::AcqRel, Ordering::Acquire, fewer).is_ok()
    }
}

/// Starts a thread that reads and answers requests.
pub(super) fn add_reader<H: Handler>(shared: &Arc<Shared<H>>) -> io::Result<()> {
    let number = shared.readers.all.fetch_add(1, Ordering::AcqRel);
    let worker = Arc::clone(shared);
    let started = shared.spawn(format!("fuse-{number}"), move || serve(&worker));
    if started.is_err() {
        shared.readers.all.fetch_sub(1, Ordering::AcqRel);
    }
    started
}

/// Answers what may take until much else is done, while somebody else reads.
fn answer_late<H: Handler>(shared: &Arc<Shared<H>>, request: &Request<'_>, reply: &mut Reply) -> Answer {
    let Readers { all, held } = &shared.readers;
    let readers = all.load(Ordering::Acquire);
    let others = readers.saturating_sub(held.fetch_add(1, Ordering::AcqRel) + 1);
    if others < shared.options.threads
        && readers < shared.options.threads + HELD_MAX
        && let Err(error) = add_reader(shared)
    {
        tracing::warn!(%error, "there are fewer threads for requests than there should be");
    }
    let answered = answer(shared, request, reply);
    held.fetch_sub(1, Ordering::AcqRel);
    answered
}

/// Reads and answers requests until the connection ends.
fn serve<H: Handler>(shared: &Arc<Shared<H>>) {
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
        let forgets = take(shared, &buffer[..count], &mut reply);
        if shared.rings.are_used() {
            if forgets {
                std::thread::sleep(GATHER);
            }
        } else if shared.readers.leave(shared.options.threads) {
            return;
        }
    }
}

/// Answers requests one after the other, each when the kernel has written back what it holds of the file.
pub(super) fn answer_aside<H: Handler>(shared: &Shared<H>, requests: &Receiver<Vec<u8>>) {
    let mut reply = Reply::default();
    for bytes in requests {
        let Ok(request) = Request::decode(&bytes) else { return };
        reply.clear();
        let outcome = answer_written_back(shared, &request, &mut reply);
        send(shared, &request, &mut reply, outcome);
    }
}

/// Answers one request. Says whether it was one to forget something.
pub(super) fn take<H: Handler>(shared: &Arc<Shared<H>>, bytes: &[u8], reply: &mut Reply) -> bool {
    reply.clear();
    let request = match Request::decode(bytes) {
        Ok(request) => request,
        Err(error) => {
            tracing::error!(%error, "the kernel sent what cannot be read");
            return false;
        }
    };
    if let Operation::Init(input) = &request.operation {
        shared.counters.note(request.opcode);
        let agreed = negotiate(input, shared.options, reply);
        send(shared, &request, reply, agreed.map(|_| ()));
        // Only now does the kernel know how large a transfer is; requests wait until the rings are there.
        if agreed == Ok(true) {
            rings::start(shared);
        } else if let Err(error) = (1..shared.options.threads).try_for_each(|_| add_reader(shared)) {
            tracing::error!(%error, "there are fewer threads for requests than there should be");
        }
        return false;
    }
    let late = shared.handler.may_wait_long(&request);
    match if late { answer_late(shared, &request, reply) } else { answer(shared, &request, reply) } {
        Answer::Now(outcome) => send(shared, &request, reply, outcome),
        Answer::WrittenBack => shared.set_aside(bytes.to_vec()),
        Answer::None => {}
    }
    matches!(request.operation, Operation::Forget { .. } | Operation::BatchForget { .. })
}

fn send<H: Handler>(
    shared: &Shared<H>,
    request: &Request<'_>,
    reply: &mut Reply,
    outcome: Result<(), Errno>,
) {
    let bytes = reply.finish(request.unique, outcome);
    match rustix::io::write(shared.device.as_fd(), bytes) {
        Ok(_) | Err(Io::NOENT | Io::NODEV) => {}
        Err(error) => tracing::error!(%error, opcode = request.opcode, "a reply was refused"),
    }
}
