//! Holds those who write while too many bytes wait in memory: whoever came first goes on first.
//!
//! Those who brought little may overtake, but not for ever: when those who did brought much together, it is the turn of
//! whoever is first.

use crate::FsError;
use parking_lot::{Mutex, MutexGuard};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, Thread, ThreadId};
use std::time::Duration;

/// How long somebody sleeps whom nobody calls, before looking again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Bytes that may overtake whoever is first.
const OVERTAKING_MAX: u64 = 16 << 20;

type Line = VecDeque<Waiting>;

/// Where writers wait in line. Its lock is the last that anybody takes.
pub(crate) struct Gate {
    line: Mutex<Line>,
    /// Bytes that were let in and are not counted among those in memory yet.
    entering: AtomicU64,
    look_again: Duration,
    overtaking_max: u64,
}

struct Waiting {
    thread: Thread,
    is_small: bool,
    /// Bytes that overtook it while it was first.
    overtaken: u64,
}

/// Bytes on their way from the gate to where they are counted.
pub(crate) struct Entering<'g> {
    gate: &'g Gate,
    bytes: u64,
}

/// A place in line.
struct Place<'g> {
    gate: &'g Gate,
    id: ThreadId,
}

impl Default for Gate {
    fn default() -> Self {
        let (look_again, overtaking_max) = (LOOK_AGAIN, OVERTAKING_MAX);
        Self { line: Mutex::default(), entering: AtomicU64::new(0), look_again, overtaking_max }
    }
}

impl Gate {
    /// Lets a writer in when it is its turn and `has_room` says so, told how many bytes are on their way in and whether
    /// the writer has little, of which `is_small` tells. While it waits, `look` is called from time to time; an error of
    /// it ends the waiting.
    pub(crate) fn enter(
        &self,
        bytes: u64,
        is_small: impl Fn() -> bool,
        has_room: impl Fn(u64, bool) -> bool,
        look: impl Fn() -> Result<(), FsError>,
    ) -> Result<Entering<'_>, FsError> {
        let has_room = |small| has_room(self.entering.load(Ordering::Acquire), small);
        let mut small = is_small();
        let mut line = self.line.lock();
        if self.is_turn(&line, None, small) && has_room(small) {
            return Ok(self.let_in(&mut line, None, bytes));
        }
        let thread = thread::current();
        let place = Place { gate: self, id: thread.id() };
        line.push_back(Waiting { thread, is_small: small, overtaken: 0 });
        drop(line);
        loop {
            look()?;
            thread::park_timeout(self.look_again);
            small = is_small();
            let mut line = self.line.lock();
            if self.is_turn(&line, Some(place.id), small) && has_room(small) {
                // Counted before the next one looks.
                let entering = self.let_in(&mut line, Some(place.id), bytes);
                drop(line);
                return Ok(entering);
            }
        }
    }

    fn is_turn(&self, line: &Line, id: Option<ThreadId>, small: bool) -> bool {
        let Some(first) = line.front() else { return true };
        Some(first.thread.id()) == id || (small && first.overtaken < self.overtaking_max)
    }

    fn let_in(&self, line: &mut Line, id: Option<ThreadId>, bytes: u64) -> Entering<'_> {
        if let Some(first) = line.front_mut().filter(|first| Some(first.thread.id()) != id) {
            first.overtaken += bytes;
        }
        self.entering.fetch_add(bytes, Ordering::AcqRel);
        Entering { gate: self, bytes }
    }

    /// Whether somebody waits.
    pub(crate) fn is_shut(&self) -> bool {
        !self.line.lock().is_empty()
    }

    /// There may be room now.
    pub(crate) fn call(&self) {
        call(&self.line.lock());
    }
}

/// Wakes those who may go on if there is room. Whoever does so calls the next.
fn call(line: &MutexGuard<'_, Line>) {
    let called = line.iter().enumerate().filter(|(at, waiting)| *at == 0 || waiting.is_small);
    called.for_each(|(_, waiting)| waiting.thread.unpark());
}

impl Drop for Entering<'_> {
    fn drop(&mut self) {
        self.gate.entering.fetch_sub(self.bytes, Ordering::AcqRel);
        self.gate.call();
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut line = self.gate.line.lock();
        line.retain(|waiting| waiting.thread.id() != self.id);
        call(&line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Instant;

    /// Nobody looks by themselves within this.
    const NEVER: Duration = Duration::from_secs(60);
    const SOON: Duration = Duration::from_secs(5);
    const SILENCE: Duration = Duration::from_millis(60);
    /// How many may overtake.
    const OVERTAKING: u64 = 2;

    struct Scene {
        gate: Arc<Gate>,
        room: Arc<AtomicU64>,
        broken: Arc<AtomicBool>,
        told: Sender<(u32, bool)>,
        hears: Receiver<(u32, bool)>,
    }

    impl Scene {
        fn new() -> Self {
            let (told, hears) = channel();
            let gate = Gate { look_again: NEVER, overtaking_max: OVERTAKING, ..Gate::default() };
            let gate = Arc::new(gate);
            Self { gate, room: Arc::default(), broken: Arc::default(), told, hears }
        }

        /// Somebody comes to the gate, and when this returns stands in line or was let in; tells when let in or sent
        /// away. Whoever was let in stays on the way in for good. For who is small there is room for one more.
        fn comes(&self, number: u32, small: bool) {
            let came = || self.gate.line.lock().len() as u64 + self.gate.entering.load(Ordering::Acquire);
            let before = came();
            let (gate, room) = (Arc::clone(&self.gate), Arc::clone(&self.room));
            let (broken, told) = (Arc::clone(&self.broken), self.told.clone());
            thread::spawn(move || {
                let entered = gate.enter(
                    1,
                    || small,
                    |entering, small| entering < room.load(Ordering::Acquire) + u64::from(small),
                    || if broken.load(Ordering::Acquire) { Err(FsError::Invalid) } else { Ok(()) },
                );
                let is_in = entered.is_ok();
                std::mem::forget(entered);
                told.send((number, is_in)).unwrap();
            });
            let start = Instant::now();
            while came() == before && start.elapsed() < SOON {
                thread::sleep(Duration::from_millis(1));
            }
            // It may be about to sleep; whoever is called before does not.
            thread::sleep(Duration::from_millis(5));
        }

        fn next(&self) -> (u32, bool) {
            self.hears.recv_timeout(SOON).expect("somebody goes on")
        }

        fn nobody_goes_on(&self) {
            assert!(self.hears.recv_timeout(SILENCE).is_err(), "there is no room");
        }
    }

    #[test]
    fn whoever_came_first_goes_first_and_room_is_not_given_twice() {
        let scene = Scene::new();
        (0..5).for_each(|number| scene.comes(number, false));
        assert!(scene.gate.is_shut());
        for number in 0..5 {
            scene.room.fetch_add(1, Ordering::AcqRel);
            scene.gate.call();
            assert_eq!(scene.next(), (number, true));
            // However often they look.
            scene.gate.line.lock().iter().for_each(|waiting| waiting.thread.unpark());
            scene.nobody_goes_on();
        }
        assert!(!scene.gate.is_shut());
    }

    #[test]
    fn all_for_whom_there_is_room_go_on_when_called_once() {
        let scene = Scene::new();
        (0..4).for_each(|number| scene.comes(number, false));
        scene.room.store(3, Ordering::Release);
        scene.gate.call();
        (0..3).for_each(|number| assert_eq!(scene.next(), (number, true)));
        scene.nobody_goes_on();
    }

    #[test]
    fn who_brings_little_overtakes_until_that_is_much_together() {
        let scene = Scene::new();
        scene.comes(0, false);
        scene.comes(1, true);
        assert_eq!(scene.next(), (1, true));
        // This one has to wait too, but not for the first.
        scene.comes(2, true);
        scene.room.store(1, Ordering::Release);
        scene.gate.call();
        assert_eq!(scene.next(), (2, true));
        // There is room for a third, but two were enough; for the first there is none yet.
        scene.room.store(2, Ordering::Release);
        scene.comes(3, true);
        scene.nobody_goes_on();
        scene.room.store(3, Ordering::Release);
        scene.gate.call();
        assert_eq!((scene.next(), scene.next()), ((0, true), (3, true)));
        assert!(!scene.gate.is_shut());
    }

    #[test]
    fn an_error_ends_the_waiting_of_all() {
        let scene = Scene::new();
        (0..3).for_each(|number| scene.comes(number, false));
        scene.broken.store(true, Ordering::Release);
        scene.gate.call();
        let mut sent_away: Vec<_> = (0..3).map(|_| scene.next()).collect();
        sent_away.sort_unstable();
        assert_eq!(sent_away, [(0, false), (1, false), (2, false)]);
        assert!(!scene.gate.is_shut());
    }

    #[test]
    fn who_ends_on_the_way_in_leaves_its_room_to_the_next() {
        let gate = Arc::new(Gate { look_again: NEVER, ..Gate::default() });
        let enter = |gate: &Gate| {
            let entered = gate.enter(1, || false, |entering, _| entering == 0, || Ok(()));
            entered.map(std::mem::forget).is_ok()
        };
        let first = gate.enter(1, || false, |_, _| true, || Ok(())).ok();
        let other = Arc::clone(&gate);
        let waiting = thread::spawn(move || enter(&other));
        while !gate.is_shut() {
            thread::yield_now();
        }
        thread::sleep(Duration::from_millis(5));
        drop(first);
        assert!(waiting.join().unwrap());
    }
}
