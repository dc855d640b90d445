//! Requests through io_uring: a queue for each processor, and for each queue a few threads bound to it.
//!
//! The kernel puts a request into the queue of the processor that the caller runs on, so whoever answers is
//! woken there too, and the caller goes on as soon as the answer is given. A thread has one place for a request
//! and runs it to its end, however long that takes, with long reads and writes on whatever processor is free;
//! what comes meanwhile goes to the queue's other threads, and if none is left, one is added, up to a bound.
//! Beyond that requests wait in the kernel, as they do when all readers of /dev/fuse are busy.

#[expect(unsafe_code, reason = "the memory of a ring is known to the kernel by its addresses")]
mod place;

mod class;

use super::{Answer, Errno, HELD_MAX, Handler, Shared, TRANSFER_BYTES, answer, answer_written_back, lock};
use crate::abi::fattr;
use crate::reply::Reply;
use crate::request::{Operation, Request};
use class::{Crew, Guard, Member, Pace};
use place::{Place, Taken, is_end};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock};

/// Threads of a queue to begin with: one may wait for a device while the other works.
const THREADS_FIRST: usize = 2;
/// Threads of a queue at most, and of all queues.
const THREADS_MAX: usize = 8;
const THREADS_TOTAL: usize = 128;
/// Threads of a queue that may wait for the kernel besides.
const WAITING_MAX: usize = 64;
/// From so many bytes on, work on them takes longer than to wake somebody on another processor.
const BULK_BYTES: usize = 128 << 10;
/// A request's names and small values; longer than that are only bytes to be stored, which have short replies.
const NAMES_BYTES_MAX: usize = 16 << 10;

/// Whether the kernel lets filesystems use io_uring at all.
const SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";

/// Whether requests can come through io_uring here, and if not, why.
///
/// # Errors
/// A sentence for the operator.
pub fn rings_available() -> Result<(), String> {
    match std::fs::read_to_string(SWITCH) {
        Ok(text) if matches!(text.trim(), "Y" | "1") => {}
        Ok(_) => return Err(format!("the kernel does not allow it ({SWITCH} is N)")),
        Err(_) => return Err("this kernel has no FUSE over io_uring".into()),
    }
    place::try_ring().map_err(|error| format!("io_uring cannot be used by this process: {error}"))
}

/// Tells the kernel to let filesystems use io_uring, which root may. Says whether that changed anything.
///
/// # Errors
/// When the kernel has no such switch, or refuses.
pub fn allow_rings() -> io::Result<bool> {
    let before = std::fs::read_to_string(SWITCH)?;
    if before.trim() == "Y" {
        return Ok(false);
    }
    std::fs::write(SWITCH, "Y")?;
    Ok(true)
}

/// The queues, once there are some.
pub(super) struct Rings {
    queues: OnceLock<Vec<Queue>>,
    /// Where this process may run.
    processors: OnceLock<CpuSet>,
    /// Looks after the threads' scheduling class, where that can be changed.
    guard: OnceLock<Guard>,
}

/// What is known of a queue's threads.
#[derive(Default)]
struct Queue {
    state: Mutex<Threads>,
    crew: Crew,
}

#[derive(Clone, Copy, Default)]
struct Threads {
    /// With a place that the kernel knows.
    all: usize,
    /// On their way there.
    starting: usize,
    /// Of these, without a request.
    idle: usize,
    /// Of these, waiting for the kernel, which may wait for others of this queue.
    waiting: usize,
    /// Of these, those that may have to wait until much else is done.
    held: usize,
}

impl Threads {
    /// Whether the next request would find nobody, although there are fewer threads than should serve.
    fn are_short(&self, most: usize) -> bool {
        self.idle == 0 && self.starting == 0 && self.all < most + self.waiting + self.held
    }
}

impl Rings {
    pub(super) const fn new() -> Self {
        Self { queues: OnceLock::new(), processors: OnceLock::new(), guard: OnceLock::new() }
    }

    /// Whether requests come through rings.
    pub(super) fn are_used(&self) -> bool {
        self.queues.get().is_some()
    }

    pub(super) fn threads(&self) -> usize {
        self.all().iter().map(|queue| lock(&queue.state).all).sum()
    }

    /// How often a queue's threads changed their scheduling class.
    pub(super) fn class_changes(&self) -> u64 {
        self.all().iter().map(|queue| queue.crew.changes()).sum()
    }

    /// Asked first by a thread that is not bound yet.
    fn processors(&self) -> CpuSet {
        *self.processors.get_or_init(|| sched_getaffinity(None).unwrap_or_default())
    }

    fn all(&self) -> &[Queue] {
        self.queues.get().map_or(&[], Vec::as_slice)
    }

    /// Threads that a queue has at most, besides those that wait.
    fn most(&self) -> usize {
        (THREADS_TOTAL / self.all().len().max(1)).clamp(THREADS_FIRST, THREADS_MAX)
    }

    /// Whether more threads may be added, for all that may be held.
    fn may_grow(&self) -> bool {
        let started = |queue: &Queue| {
            let threads = lock(&queue.state);
            (threads.all + threads.starting).saturating_sub(threads.waiting)
        };
        self.all().iter().map(started).sum::<usize>() < self.all().len() * self.most() + HELD_MAX
    }

    fn change(&self, queue: usize, change: impl FnOnce(&mut Threads)) -> Threads {
        let mut state = lock(&self.all()[queue].state);
        change(&mut state);
        *state
    }
}

/// Starts the threads of every queue. The kernel sends nothing before each queue has one.
pub(super) fn start<H: Handler>(shared: &Arc<Shared<H>>) {
    let queues = possible_processors();
    shared.rings.processors();
    let _ = shared.rings.queues.set((0..queues).map(|_| Queue::default()).collect());
    start_guard(shared);
    for queue in 0..queues {
        for _ in 0..THREADS_FIRST {
            if let Err(error) = add_thread(shared, queue, None) {
                give_up(&format!("a thread for requests cannot be started: {error}"));
            }
        }
    }
}

/// Starts the guard of the threads' scheduling class, where a processor can be left and that class changed.
fn start_guard<H: Handler>(shared: &Arc<Shared<H>>) {
    if !shared.options.idle_class || shared.rings.processors().count() < 2 || !class::can_change() {
        return;
    }
    let guarded = Arc::clone(shared);
    let started = shared.spawn("fuse-guard".into(), move || {
        guarded.rings.guard.get_or_init(Guard::default).run(|| guarded.rings.all());
    });
    match started {
        Ok(()) => drop(shared.rings.guard.get_or_init(Guard::default)),
        Err(error) => tracing::debug!(%error, "callers may be moved between processors"),
    }
}

/// Starts a thread for a queue. Whoever gives a sender is told by it once the thread serves, or that it cannot.
fn add_thread<H: Handler>(
    shared: &Arc<Shared<H>>,
    queue: usize,
    told: Option<SyncSender<bool>>,
) -> io::Result<()> {
    let threads = shared.rings.change(queue, |threads| threads.starting += 1);
    let worker = Arc::clone(shared);
    let name = format!("fuse-{queue}.{}", threads.all + threads.starting);
    let started = shared.spawn(name, move || serve(&worker, queue, told));
    if started.is_err() {
        shared.rings.change(queue, |threads| threads.starting -= 1);
    }
    started
}

/// Starts a thread for a queue, and returns when it serves.
fn add_serving_thread<H: Handler>(shared: &Arc<Shared<H>>, queue: usize) -> bool {
    let (told, hears) = sync_channel(1);
    add_thread(shared, queue, Some(told)).is_ok() && hears.recv() == Ok(true)
}

/// A thread's queue, and where it may run.
struct Post {
    queue: usize,
    own: CpuSet,
    all: CpuSet,
    roams: bool,
}

impl Post {
    /// On a queue's processor. One that is possible but not there, or not ours, has its queue served from anywhere.
    fn at(queue: usize, all: CpuSet) -> Self {
        let mut own = CpuSet::new();
        own.set(queue);
        let mut post = Self { queue, own: if all.is_set(queue) { own } else { all }, all, roams: true };
        post.settle(false);
        post
    }

    /// Bound for short work, so that nobody is woken on another processor; free for long work, which others can
    /// then share in.
    fn settle(&mut self, roams: bool) {
        if self.roams != roams {
            self.roams = roams;
            let where_to = if roams { &self.all } else { &self.own };
            if let Err(error) = sched_setaffinity(None, where_to) {
                tracing::debug!(%error, "a thread stays where it is");
            }
        }
    }
}

/// What as a rule is done at once: without writing a file out, and without waiting for the kernel.
fn is_short(request: &Request<'_>) -> bool {
    use Operation as O;
    match &request.operation {
        O::Read(_) | O::Write { .. } => !is_bulk(request),
        O::Setattr(input) => input.valid & fattr::SIZE == 0,
        O::Fsync { .. } | O::Fsyncdir | O::Syncfs | O::Destroy | O::Ioctl { .. } => false,
        O::Fallocate(_) | O::CopyFileRange(_) | O::Lseek(_) | O::Rename { .. } => false,
        _ => true,
    }
}

fn is_bulk(request: &Request<'_>) -> bool {
    match request.operation {
        Operation::Read(input) => input.size as usize >= BULK_BYTES,
        Operation::Write { data, .. } => data.len() >= BULK_BYTES,
        _ => false,
    }
}

fn serve<H: Handler>(shared: &Arc<Shared<H>>, queue: usize, told: Option<SyncSender<bool>>) {
    let mut post = Post::at(queue, shared.rings.processors());
    let member = shared.rings.guard.get().map(|_| shared.rings.all()[queue].crew.join());
    let offered = Place::new(&shared.device, queue, TRANSFER_BYTES as usize).and_then(|mut place| {
        place.offer()?;
        Ok(place)
    });
    let serves = offered.is_ok();
    let left = shared.rings.change(queue, |threads| {
        threads.starting -= 1;
        threads.all += usize::from(serves);
        threads.idle += usize::from(serves);
    });
    if let Some(told) = told {
        // Whoever asked waits for nothing else.
        let _ = told.send(serves);
    }
    let outcome = match offered {
        Ok(mut place) => serve_place(shared, &mut post, member.as_ref(), &mut place),
        Err(error) if left.all + left.starting == 0 && !is_end(&error) => {
            give_up(&format!("queue {queue} of io_uring cannot be served: {error}"))
        }
        Err(error) => {
            tracing::warn!(%error, queue, "a thread could not be added");
            Ok(())
        }
    };
    if let Err(error) = outcome {
        give_up(&format!("queue {queue} of io_uring failed: {error}"));
    }
    if serves && let Some(guard) = shared.rings.guard.get() {
        guard.end();
    }
}

/// Answers the request that came to a place, and those after it.
fn serve_place<H: Handler>(
    shared: &Arc<Shared<H>>,
    post: &mut Post,
    member: Option<&Member<'_>>,
    place: &mut Place,
) -> io::Result<()> {
    let queue = post.queue;
    let mut names = Vec::new();
    let mut short = Reply::default();
    let mut pace = Pace::default();
    while place.wait()? {
        let threads = shared.rings.change(queue, |threads| threads.idle -= 1);
        add_if_short(shared, queue, member, threads);
        if let Some(guard) = shared.rings.guard.get()
            && pace.is_fast()
        {
            guard.wake();
        }
        let Taken { header, head, rest, reply } = place.taken();
        // The reply overwrites names. What is longer than names is answered in few bytes, which are put there.
        let outcome = if rest <= NAMES_BYTES_MAX {
            names.clear();
            names.extend_from_slice(&reply.room()[..rest]);
            take(shared, post, member, Request::decode_parts(header, head, &names), reply)
        } else {
            let outcome = take(
                shared,
                post,
                member,
                Request::decode_parts(header, head, &reply.room()[..rest]),
                &mut short,
            );
            reply.clear();
            reply.push_bytes(short.body());
            outcome
        };
        shared.rings.change(queue, |threads| threads.idle += 1);
        place.commit(outcome)?;
    }
    Ok(())
}

/// Adds a thread where the next request would find none.
fn add_if_short<H: Handler>(
    shared: &Arc<Shared<H>>,
    queue: usize,
    member: Option<&Member<'_>>,
    threads: Threads,
) {
    if threads.are_short(shared.rings.most())
        && shared.rings.may_grow()
        && let Err(error) = at_length(member, || add_thread(shared, queue, None))
    {
        tracing::warn!(%error, queue, "no thread can be added");
    }
}

/// Answers one request into a reply.
fn take<H: Handler>(
    shared: &Arc<Shared<H>>,
    post: &mut Post,
    member: Option<&Member<'_>>,
    request: Result<Request<'_>, crate::RequestError>,
    reply: &mut Reply,
) -> Result<(), Errno> {
    reply.clear();
    let request = request.map_err(|error| {
        tracing::error!(%error, "the kernel sent what cannot be read");
        Errno::EIO
    })?;
    post.settle(is_bulk(&request));
    let is_late = shared.handler.may_wait_long(&request);
    let mut work = || match answer(shared, &request, reply) {
        Answer::Now(outcome) => outcome,
        Answer::None => Err(super::ENOSYS),
        Answer::WrittenBack => answer_waiting(shared, post.queue, &request, reply),
    };
    if is_late {
        // Whoever takes the next one need not have come yet when this one is held.
        let threads = shared.rings.change(post.queue, |threads| threads.held += 1);
        add_if_short(shared, post.queue, member, threads);
        let outcome = at_length(member, work);
        shared.rings.change(post.queue, |threads| threads.held -= 1);
        return outcome;
    }
    if !is_short(&request) {
        return at_length(member, work);
    }
    if let Some(member) = member {
        member.note();
    }
    work()
}

/// Does long work in the usual scheduling class.
fn at_length<T>(member: Option<&Member<'_>>, work: impl FnOnce() -> T) -> T {
    match member {
        Some(member) => member.at_length(work),
        None => work(),
    }
}

/// Answers a request for which the kernel writes back first. The writes may come to this very queue, so somebody else
/// has to be there for them.
fn answer_waiting<H: Handler>(
    shared: &Arc<Shared<H>>,
    queue: usize,
    request: &Request<'_>,
    reply: &mut Reply,
) -> Result<(), Errno> {
    let threads = shared.rings.change(queue, |threads| threads.waiting += 1);
    let is_served = threads.all > threads.waiting
        || (threads.waiting <= WAITING_MAX && add_serving_thread(shared, queue));
    let outcome = if is_served {
        answer_written_back(shared, request, reply)
    } else {
        tracing::warn!(
            queue,
            "too many ask for holes of files that are being written; holes are no longer told"
        );
        Err(super::ENOSYS)
    };
    shared.rings.change(queue, |threads| threads.waiting -= 1);
    outcome
}

/// A queue that nobody serves would leave its callers waiting for ever; without this process the kernel tells
/// them at once that the filesystem is gone. What was synced is on the device.
fn give_up(reason: &str) -> ! {
    tracing::error!(reason, "requests can no longer be taken; ending");
    std::process::exit(1);
}

/// Processors that the kernel has queues for, whether they are running or not.
fn possible_processors() -> usize {
    let list = std::fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
    let known = count_processors(list.trim());
    known.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// How many a list such as `0-3,8` names.
fn count_processors(list: &str) -> Option<usize> {
    list.split(',').try_fold(0, |count, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        Some(count + last.checked_sub(first)? + 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_counted_from_the_kernels_list() {
        for (list, count) in [
            ("0", Some(1)),
            ("0-1", Some(2)),
            ("0-3,8,10-11", Some(7)),
            ("", None),
            ("3-1", None),
            ("x", None),
        ] {
            assert_eq!(count_processors(list), count, "{list}");
        }
    }
}
