//! Which scheduling class a queue's threads have.
//!
//! Whoever gives an answer wakes the caller while it runs itself. If another processor is idle, the scheduler moves
//! the caller there; its next request then goes to that processor's queue, and so each message wakes up a processor,
//! which costs several times as much as the message. But a processor that runs nothing except threads of the class
//! `SCHED_IDLE` counts as idle: there the caller stays where it is.
//!
//! A thread of that class gets next to nothing of a processor that others want as well. Therefore a queue's threads
//! have it only while short requests follow each other closely. A guard counts them, and as soon as fewer come than
//! [`FLOW_LEAST`] in a [`TICK`], be it that nobody asks or that the threads are kept waiting, they have the usual
//! class again. What takes long is done in the usual class.
//!
//! Only the guard gives the idle class, and it never waits for whom it has given it to. A thread that is started by one
//! of the idle class inherits it; so whenever a queue goes back to the usual class, all threads of the process do.

#[expect(unsafe_code, reason = "the library has no word for the scheduling class of a thread")]
mod scheduler;

use super::lock;
use rustix::thread::{Pid, gettid};
pub(super) use scheduler::can_change;
use scheduler::{restore_all, set_class};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often the guard looks. Nothing waits longer because of the idle class than two of these, and than the guard
/// itself is kept waiting.
const TICK: Duration = Duration::from_millis(2);
/// Short requests in a tick from which on a queue's threads get the idle class.
const FLOW_BEGINS: u32 = 16;
/// Short requests in a tick without which they lose it.
const FLOW_LEAST: u32 = 8;
/// Ticks without such a flow after which the guard rests.
const CALM_TICKS: u32 = 8;
/// How long a queue's threads keep the usual class after they had to go back to it, at first and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(8), Duration::from_millis(500));
/// Looks that found the flow going on, after which the next pause is as short as the first.
const PROVEN_LOOKS: u32 = 3;
/// The guard comes before those who keep the others waiting.
const GUARD_NICE: i32 = -10;

/// The scheduling class of a process or thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// `SCHED_OTHER`.
    Usual,
    /// `SCHED_IDLE`.
    Idle,
}

/// A queue's threads and their class.
pub(super) struct Crew {
    /// Short requests since the guard last looked.
    flow: AtomicU32,
    /// Whether the class is the idle one.
    is_idle: AtomicBool,
    /// Never locked by a thread of the idle class: were it kept waiting, so would be the guard.
    state: Mutex<State>,
}

struct State {
    class: Class,
    members: Vec<(Pid, Arc<Work>)>,
    /// When the class last changed, and when the guard last looked.
    since: Instant,
    looked: Instant,
    /// Looks since the class changed.
    looks: u32,
    pause: Duration,
    changes: u64,
}

/// What a thread is at.
struct Work(AtomicU8);

impl Work {
    /// Short requests, in the class that the guard has given.
    const SHORT: u8 = 0;
    /// Long work, in the usual class.
    const LONG: u8 = 1;
    /// Short requests again, still in the usual class.
    const BACK: u8 = 2;

    fn is(&self, what: u8) -> bool {
        self.0.load(Ordering::SeqCst) == what
    }
}

/// A thread's place in its crew.
pub(super) struct Member<'c> {
    crew: &'c Crew,
    work: Arc<Work>,
}

impl Default for Crew {
    fn default() -> Self {
        let now = Instant::now();
        let (class, members) = (Class::Usual, Vec::new());
        let state = State { class, members, since: now, looked: now, looks: 0, pause: PAUSE.0, changes: 0 };
        Self { flow: AtomicU32::new(0), is_idle: AtomicBool::new(false), state: Mutex::new(state) }
    }
}

impl Crew {
    /// Takes the calling thread in. It begins in the usual class, whatever it inherited.
    pub(super) fn join(&self) -> Member<'_> {
        set_class(gettid(), Class::Usual);
        let work = Arc::new(Work(AtomicU8::new(Work::BACK)));
        lock(&self.state).members.push((gettid(), Arc::clone(&work)));
        Member { crew: self, work }
    }

    /// How often the class changed.
    pub(super) fn changes(&self) -> u64 {
        lock(&self.state).changes
    }

    /// Gives the threads the class that suits what came since the last look.
    fn look(&self, now: Instant) -> Seen {
        let flow = self.flow.swap(0, Ordering::Relaxed);
        let mut state = lock(&self.state);
        // A look that comes late must not take little for much.
        let elapsed = now.saturating_duration_since(std::mem::replace(&mut state.looked, now)).max(TICK);
        let flows = |least: u32| TICK * flow >= elapsed * least;
        let mut went_back = false;
        match state.class {
            Class::Idle if !flows(FLOW_LEAST) => {
                went_back = true;
                let is_proven = state.looks >= PROVEN_LOOKS;
                state.pause = if is_proven { PAUSE.0 } else { (state.pause * 2).min(PAUSE.1) };
                self.change(&mut state, Class::Usual, now);
            }
            Class::Usual
                if flows(FLOW_BEGINS) && now.saturating_duration_since(state.since) >= state.pause =>
            {
                self.change(&mut state, Class::Idle, now);
            }
            class => {
                state.looks += 1;
                if class == Class::Idle {
                    let back = state.members.iter().filter(|(_, work)| work.is(Work::BACK));
                    back.for_each(|(thread, work)| make_idle(*thread, work));
                }
            }
        }
        Seen { flows: state.class == Class::Idle || flows(FLOW_BEGINS), went_back }
    }

    /// The threads that have the idle class by right.
    fn idle_members(&self) -> Vec<Pid> {
        let state = lock(&self.state);
        let members = state.members.iter().filter(|_| state.class == Class::Idle);
        members.map(|(thread, _)| *thread).collect()
    }

    /// Gives all threads the usual class for good.
    fn rest(&self) {
        let mut state = lock(&self.state);
        if state.class == Class::Idle {
            self.change(&mut state, Class::Usual, Instant::now());
        }
    }

    fn change(&self, state: &mut State, class: Class, now: Instant) {
        (state.class, state.since, state.looks) = (class, now, 0);
        state.changes += 1;
        self.is_idle.store(class == Class::Idle, Ordering::SeqCst);
        for (thread, work) in &state.members {
            match class {
                Class::Usual => set_class(*thread, class),
                Class::Idle => make_idle(*thread, work),
            }
        }
    }
}

/// What a look found.
#[derive(Clone, Copy)]
struct Seen {
    /// There is something to guard.
    flows: bool,
    /// The threads have the usual class again.
    went_back: bool,
}

/// Gives the usual class to those who inherited the idle one from threads that have lost it.
fn restore_strays(queues: &[super::Queue]) {
    let by_right: Vec<Pid> = queues.iter().flat_map(|queue| queue.crew.idle_members()).collect();
    restore_all(|thread| !by_right.contains(&thread));
}

/// Gives a thread the idle class unless it is at long work.
fn make_idle(thread: Pid, work: &Work) {
    if work.is(Work::LONG) {
        return;
    }
    let back = (Work::BACK, Work::SHORT);
    let _ = work.0.compare_exchange(back.0, back.1, Ordering::SeqCst, Ordering::SeqCst);
    set_class(thread, Class::Idle);
    // It may have begun with long work meanwhile, and taken the usual class before it was given this one.
    if work.is(Work::LONG) {
        set_class(thread, Class::Usual);
    }
}

impl Member<'_> {
    /// Counts a short request.
    pub(super) fn note(&self) {
        self.crew.flow.fetch_add(1, Ordering::Relaxed);
    }

    /// Does long work in the usual class.
    pub(super) fn at_length<T>(&self, work: impl FnOnce() -> T) -> T {
        self.begin_long();
        let done = work();
        self.work.0.store(Work::BACK, Ordering::SeqCst);
        done
    }

    fn begin_long(&self) {
        self.work.0.store(Work::LONG, Ordering::SeqCst);
        if self.crew.is_idle.load(Ordering::SeqCst) {
            set_class(gettid(), Class::Usual);
        }
    }
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        self.begin_long();
        lock(&self.crew.state).members.retain(|(_, work)| !Arc::ptr_eq(work, &self.work));
    }
}

/// Tells a thread how fast its requests come, without looking at the clock each time.
pub(super) struct Pace {
    count: u32,
    since: Instant,
}

impl Default for Pace {
    fn default() -> Self {
        Self { count: 0, since: Instant::now() }
    }
}

impl Pace {
    /// Counts a request; says whether the last ones came fast enough for the guard to look at.
    pub(super) fn is_fast(&mut self) -> bool {
        self.count += 1;
        if self.count < FLOW_BEGINS {
            return false;
        }
        let now = Instant::now();
        let took = now - std::mem::replace(&mut self.since, now);
        self.count = 0;
        took < TICK * 2
    }
}

/// Wakes and ends the guard.
#[derive(Default)]
pub(super) struct Guard {
    is_awake: AtomicBool,
    has_ended: AtomicBool,
    /// Locked by whoever wakes it, which only happens while it sleeps, and no thread has the idle class then.
    sleep: (Mutex<()>, Condvar),
}

impl Guard {
    /// Has it look at the queues.
    pub(super) fn wake(&self) {
        if !self.is_awake.load(Ordering::Relaxed) && !self.is_awake.swap(true, Ordering::AcqRel) {
            self.tell();
        }
    }

    /// Ends it.
    pub(super) fn end(&self) {
        self.has_ended.store(true, Ordering::Release);
        self.tell();
    }

    fn tell(&self) {
        drop(lock(&self.sleep.0));
        self.sleep.1.notify_one();
    }

    /// Looks after the queues until it is ended.
    pub(super) fn run<'a>(&self, queues: impl Fn() -> &'a [super::Queue]) {
        if let Err(error) = rustix::process::setpriority_process(Some(gettid()), GUARD_NICE) {
            tracing::debug!(%error, "the guard is no more important than others");
        }
        while self.sleep() {
            self.watch(&queues);
            restore_strays(queues());
            self.is_awake.store(false, Ordering::Release);
        }
    }

    /// Sleeps until it is woken or ended; says whether it was woken.
    fn sleep(&self) -> bool {
        let mut slept = lock(&self.sleep.0);
        while !self.is_awake.load(Ordering::Acquire) && !self.has_ended.load(Ordering::Acquire) {
            slept = self.sleep.1.wait(slept).unwrap_or_else(PoisonError::into_inner);
        }
        !self.has_ended.load(Ordering::Acquire)
    }

    /// Looks until nobody asks fast any more. Everybody has the usual class then.
    fn watch<'a>(&self, queues: &impl Fn() -> &'a [super::Queue]) {
        let mut calm = 0;
        while calm < CALM_TICKS && !self.has_ended.load(Ordering::Acquire) {
            std::thread::sleep(TICK);
            let now = Instant::now();
            calm += 1;
            let seen = queues().iter().map(|queue| queue.crew.look(now));
            let (flows, went_back) = seen
                .fold((false, false), |(flows, back), seen| (flows || seen.flows, back || seen.went_back));
            if flows {
                calm = 0;
            }
            if went_back {
                restore_strays(queues());
            }
        }
        queues().iter().for_each(|queue| queue.crew.rest());
    }
}

#[cfg(test)]
mod tests;
