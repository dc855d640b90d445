//! What the guard does when, and what becomes of threads.

use super::super::Queue;
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
        self.crew.flow.fetch_add(flow, Ordering::Relaxed);
        self.ticks += 1;
        let needed = self.crew.look(self.begin + TICK * self.ticks).flows;
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

/// The scheduling policy of the calling thread.
fn policy() -> i32 {
    scheduler::policy(gettid())
}

#[expect(clippy::print_stdout, reason = "a test tells that it was skipped")]
fn can_change_class(test: &str) -> bool {
    let can = can_change();
    if !can {
        println!("SKIPPED: {test}: needs CAP_SYS_NICE");
    }
    can
}

#[test]
fn a_thread_has_the_class_of_its_crew_but_for_long_work() {
    if !can_change_class("a_thread_has_the_class_of_its_crew_but_for_long_work") {
        return;
    }
    let queues = [Queue::default()];
    let crew = &queues[0].crew;
    let (member, mut now) = (crew.join(), Instant::now());
    let mut tick = |flow| {
        crew.flow.fetch_add(flow, Ordering::Relaxed);
        now += Duration::from_secs(1);
        if crew.look(now).went_back {
            restore_strays(&queues);
        }
        crew.is_idle.load(Ordering::SeqCst)
    };
    assert_eq!(policy(), libc::SCHED_OTHER);
    assert!(tick(100_000));
    assert_eq!(policy(), libc::SCHED_IDLE);
    assert_eq!(member.at_length(policy), libc::SCHED_OTHER);
    assert_eq!(policy(), libc::SCHED_OTHER, "only the guard gives the idle class");
    assert!(tick(100_000));
    assert_eq!(policy(), libc::SCHED_IDLE);
    // A thread that inherited the class has it no longer than its crew.
    let (told, hears) = std::sync::mpsc::channel::<()>();
    let child = std::thread::spawn(move || {
        let before = policy();
        hears.recv().unwrap();
        (before, policy())
    });
    std::thread::sleep(Duration::from_millis(50));
    assert!(!tick(0));
    told.send(()).unwrap();
    assert_eq!(child.join().unwrap(), (libc::SCHED_IDLE, libc::SCHED_OTHER));
    assert_eq!(policy(), libc::SCHED_OTHER);
    // The class of the others changes meanwhile.
    member.begin_long();
    assert!(tick(100_000));
    assert_eq!(policy(), libc::SCHED_OTHER);
    drop(member);
    assert!(lock(&crew.state).members.is_empty());
    assert!(!tick(0));
}

/// However a thread's long work and the guard's changes fall together, long work is done in the usual class, but for the
/// moment in which the guard sees what it has just done.
#[test]
fn long_work_is_never_done_in_the_idle_class() {
    if !can_change_class("long_work_is_never_done_in_the_idle_class") {
        return;
    }
    const ROUNDS: u32 = 500;
    let crew = Crew::default();
    let (rounds, begin) = (AtomicU32::new(0), Instant::now());
    let patience = || assert!(begin.elapsed() < Duration::from_secs(60), "it takes too long");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 1.. {
                crew.flow.fetch_add(if n % 2 == 0 { 0 } else { 1 << 20 }, Ordering::Relaxed);
                crew.look(begin + Duration::from_secs(n));
                if rounds.load(Ordering::SeqCst) >= ROUNDS || begin.elapsed() > Duration::from_secs(70) {
                    return crew.rest();
                }
            }
        });
        let member = crew.join();
        while rounds.load(Ordering::SeqCst) < ROUNDS {
            patience();
            member.at_length(|| {
                let mut usual = 0;
                while usual < 20 {
                    usual = if policy() == libc::SCHED_OTHER { usual + 1 } else { 0 };
                    patience();
                }
            });
            let is_idle = policy() == libc::SCHED_IDLE;
            rounds.fetch_add(u32::from(is_idle), Ordering::SeqCst);
        }
    });
    assert!(lock(&crew.state).members.is_empty());
}

#[test]
fn a_guard_that_ends_leaves_nobody_idle() {
    if !can_change_class("a_guard_that_ends_leaves_nobody_idle") {
        return;
    }
    let (guard, queues) = (Guard::default(), [Queue::default()]);
    let crew = &queues[0].crew;
    std::thread::scope(|scope| {
        scope.spawn(|| guard.run(|| &queues));
        let member = crew.join();
        guard.wake();
        let start = Instant::now();
        while policy() != libc::SCHED_IDLE {
            (0..1000).for_each(|_| member.note());
            assert!(start.elapsed() < Duration::from_secs(20), "the idle class did not come");
        }
        guard.end();
        while policy() != libc::SCHED_OTHER {
            (0..1000).for_each(|_| member.note());
            assert!(start.elapsed() < Duration::from_secs(40), "the idle class stayed");
        }
    });
}

#[test]
fn a_guard_ends_awake_or_asleep() {
    for wakes in [false, true] {
        let (guard, queues) = (Guard::default(), [Queue::default()]);
        std::thread::scope(|scope| {
            scope.spawn(|| guard.run(|| &queues));
            if wakes {
                guard.wake();
            }
            guard.end();
        });
    }
}
