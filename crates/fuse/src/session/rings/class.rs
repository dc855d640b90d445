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
//! class again. What takes long never runs in the idle class.

#[expect(unsafe_code, reason = "the library has no word for the scheduling class of a thread")]
mod scheduler;

use super::lock;
use rustix::thread::{Pid, gettid};
pub(super) use scheduler::can_change;
use scheduler::set_class;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often the guard looks. Nothing waits longer because of the idle class than two of these.
const TICK: Duration = Duration::from_millis(2);
/// Short requests in a tick from which on a queue's threads get the idle class.
const FLOW_BEGINS: u32 = 16;
/// Short requests in a tick without which they lose it.
const FLOW_LEAST: u32 = 8;
/// Ticks without such a flow after which the guard rests.
const CALM_TICKS: u32 = 8;
/// How long a queue's threads keep the usual class after they had to go back to it, at first and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(8), Duration::from_millis(500));
/// Time in the idle class after which the next pause is as short as the first.
const PROVEN: Duration = Duration::from_millis(7);

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
    threads: Vec<Member>,
    /// When the class last changed.
    since: Instant,
    pause: Duration,
    changes: u64,
}

struct Member {
    thread: Pid,
    /// At long work, in the usual class whatever the others have.
    is_at_length: bool,
}

impl Default for Crew {
    fn default() -> Self {
        let (class, since) = (Class::Usual, Instant::now());
        let state = State { class, threads: Vec::new(), since, pause: PAUSE.0, changes: 0 };
        Self { flow: AtomicU32::new(0), is_idle: AtomicBool::new(false), state: Mutex::new(state) }
    }
}

impl Crew {
    /// Takes the calling thread in. It begins with the class of the others, whatever it inherited.
    pub(super) fn join(&self) {
        set_class(gettid(), Class::Usual);
        lock(&self.state).threads.push(Member { thread: gettid(), is_at_length: false });
        self.follow();
    }

    /// Runs long work of one of the threads in the usual class.
    pub(super) fn at_length<T>(&self, work: impl FnOnce() -> T) -> T {
        self.mark(true);
        let done = work();
        self.mark(false);
        done
    }

    fn mark(&self, is_at_length: bool) {
        if is_at_length && self.is_idle.load(Ordering::Acquire) {
            set_class(gettid(), Class::Usual);
        }
        let own = gettid();
        if let Some(member) = lock(&self.state).threads.iter_mut().find(|member| member.thread == own) {
            member.is_at_length = is_at_length;
        }
        if !is_at_length {
            self.follow();
        }
    }

    /// Gives the calling thread, which the guard knows, the class of the others.
    fn follow(&self) {
        if self.is_idle.load(Ordering::Acquire) {
            set_class(gettid(), Class::Idle);
            // If that changed meanwhile, the guard may have come by before this thread was idle.
            if !self.is_idle.load(Ordering::Acquire) {
                set_class(gettid(), Class::Usual);
            }
        }
    }

    /// How often the class changed.
    pub(super) fn changes(&self) -> u64 {
        lock(&self.state).changes
    }

    /// Counts a short request.
    pub(super) fn note(&self) {
        self.flow.fetch_add(1, Ordering::Relaxed);
    }

    /// Gives the threads the class that suits what came in the last tick. Says whether there is anything to guard.
    fn look(&self, now: Instant) -> bool {
        let flow = self.flow.swap(0, Ordering::Relaxed);
        let mut state = lock(&self.state);
        let lasted = now.saturating_duration_since(state.since);
        match state.class {
            Class::Idle if flow < FLOW_LEAST => {
                state.pause = if lasted < PROVEN { (state.pause * 2).min(PAUSE.1) } else { PAUSE.0 };
                self.change(&mut state, Class::Usual, now);
            }
            Class::Usual if flow >= FLOW_BEGINS && lasted >= state.pause => {
                self.change(&mut state, Class::Idle, now);
            }
            _ => {}
        }
        state.class == Class::Idle || flow >= FLOW_BEGINS
    }

    fn change(&self, state: &mut State, class: Class, now: Instant) {
        (state.class, state.since) = (class, now);
        state.changes += 1;
        self.is_idle.store(class == Class::Idle, Ordering::Release);
        let free = state.threads.iter().filter(|member| !member.is_at_length);
        free.for_each(|member| set_class(member.thread, class));
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
    has_ended: Mutex<bool>,
    told: Condvar,
}

impl Guard {
    /// Has it look at the queues.
    pub(super) fn wake(&self) {
        if !self.is_awake.load(Ordering::Relaxed) && !self.is_awake.swap(true, Ordering::AcqRel) {
            drop(lock(&self.has_ended));
            self.told.notify_one();
        }
    }

    /// Ends it.
    pub(super) fn end(&self) {
        *lock(&self.has_ended) = true;
        self.told.notify_one();
    }

    /// Looks after the queues until it is ended.
    pub(super) fn run<'a>(&self, crews: impl Fn() -> &'a [super::Queue]) {
        let mut has_ended = lock(&self.has_ended);
        while !*has_ended {
            if !self.is_awake.load(Ordering::Acquire) {
                has_ended = self.told.wait(has_ended).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            drop(has_ended);
            let mut calm = 0;
            while calm < CALM_TICKS && !*lock(&self.has_ended) {
                std::thread::sleep(TICK);
                let now = Instant::now();
                calm += 1;
                for queue in crews() {
                    if queue.crew.look(now) {
                        calm = 0;
                    }
                }
            }
            self.is_awake.store(false, Ordering::Release);
            has_ended = lock(&self.has_ended);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A crew at a time after its beginning, to which so many short requests came since the last look.
    struct Scene {
        crew: Crew,
        begin: Instant,
        ticks: u32,
    }

    impl Scene {
        fn new() -> Self {
            let crew = Crew::default();
            let begin = lock(&crew.state).since;
            Self { crew, begin, ticks: 0 }
        }

        fn tick(&mut self, flow: u32) -> Class {
            (0..flow).for_each(|_| self.crew.note());
            self.ticks += 1;
            let needed = self.crew.look(self.begin + TICK * self.ticks);
            let class = lock(&self.crew.state).class;
            assert!(needed || class == Class::Usual, "an idle class is always guarded");
            class
        }

        /// Ticks of fast requests until the class is idle.
        fn until_idle(&mut self) -> u32 {
            (1..2000).find(|_| self.tick(200) == Class::Idle).expect("fast requests bring the idle class")
        }
    }

    #[test]
    fn the_idle_class_needs_a_flow_and_ends_with_it() {
        let mut scene = Scene::new();
        scene.until_idle();
        for _ in 0..100 {
            assert_eq!(scene.tick(FLOW_LEAST), Class::Idle);
        }
        assert_eq!(scene.tick(FLOW_LEAST - 1), Class::Usual);
        for _ in 0..100 {
            assert_eq!(scene.tick(FLOW_BEGINS - 1), Class::Usual, "too few to begin");
        }
        assert_eq!(scene.tick(FLOW_BEGINS), Class::Idle);
        assert_eq!(scene.tick(0), Class::Usual);
    }

    #[test]
    fn those_who_are_kept_waiting_try_ever_more_seldom() {
        let mut scene = Scene::new();
        let mut last = 0;
        for _ in 0..6 {
            let pause = scene.until_idle();
            assert!(pause > last, "{pause} ticks after {last}");
            last = pause;
            assert_eq!(scene.tick(0), Class::Usual);
        }
        for _ in 0..6 {
            scene.until_idle();
            scene.tick(0);
        }
        assert!(scene.until_idle() <= PAUSE.1.as_millis() as u32 / TICK.as_millis() as u32);
        // Time well spent makes good for it.
        (0..40).for_each(|_| assert_eq!(scene.tick(50), Class::Idle));
        scene.tick(0);
        assert!(scene.until_idle() <= PAUSE.0.as_millis() as u32 / TICK.as_millis() as u32);
    }

    #[test]
    #[expect(clippy::print_stdout, reason = "a test tells that it was skipped")]
    fn a_thread_has_the_class_of_its_crew_but_for_long_work() {
        let class = || {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            let fields = stat.rsplit(')').next().unwrap().split_whitespace();
            // The scheduling policy is the 41st field, the state behind the name the third.
            fields.into_iter().nth(38).unwrap().parse::<i32>().unwrap()
        };
        if !can_change() {
            println!("SKIPPED: a_thread_has_the_class_of_its_crew_but_for_long_work: needs CAP_SYS_NICE");
            return;
        }
        let mut scene = Scene::new();
        scene.crew.join();
        assert_eq!(class(), libc::SCHED_OTHER);
        scene.until_idle();
        assert_eq!(class(), libc::SCHED_IDLE);
        let inside = scene.crew.at_length(class);
        assert_eq!((inside, class()), (libc::SCHED_OTHER, libc::SCHED_IDLE));
        scene.tick(0);
        assert_eq!(class(), libc::SCHED_OTHER);
        // The class of the others changes meanwhile.
        scene.crew.mark(true);
        scene.until_idle();
        assert_eq!(class(), libc::SCHED_OTHER);
        scene.crew.mark(false);
        assert_eq!(class(), libc::SCHED_IDLE);
    }

    #[test]
    fn a_guard_ends_awake_or_asleep() {
        for wakes in [false, true] {
            let (guard, queues) = (Guard::default(), [super::super::Queue::default()]);
            std::thread::scope(|scope| {
                scope.spawn(|| guard.run(|| &queues));
                if wakes {
                    guard.wake();
                }
                guard.end();
            });
        }
    }
}
