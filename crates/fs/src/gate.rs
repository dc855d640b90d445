//! Holds those who write while too many bytes wait in memory: whoever came first goes on first.

use crate::FsError;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

/// How long somebody sleeps whom nobody calls, before looking again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Where writers wait in line.
#[derive(Default)]
pub(crate) struct Gate {
    line: Mutex<VecDeque<Waiting>>,
    /// Bytes that were let in and are not counted among those in memory yet.
    entering: AtomicU64,
}

struct Waiting {
    thread: Thread,
    may_overtake: bool,
}

/// Bytes on their way from the gate to where they are counted.
pub(crate) struct Entering<'g> {
    gate: &'g Gate,
    bytes: u64,
}

impl Gate {
    /// Lets a writer in when nobody is before it, unless it may overtake, and when `has_room` says so, told how many
    /// bytes are on their way in. While it waits, `look` is called from time to time; an error of it ends the waiting.
    pub(crate) fn enter(
        &self,
        bytes: u64,
        may_overtake: bool,
        has_room: impl Fn(u64) -> bool,
        look: impl Fn() -> Result<(), FsError>,
    ) -> Result<Entering<'_>, FsError> {
        let mut line = self.line.lock();
        let has_room = || has_room(self.entering.load(Ordering::Acquire));
        if !((may_overtake || line.is_empty()) && has_room()) {
            let thread = thread::current();
            let me = thread.id();
            line.push_back(Waiting { thread, may_overtake });
            let mut looked = Ok(());
            loop {
                let is_next = may_overtake || line.front().is_some_and(|first| first.thread.id() == me);
                if looked.is_err() || (is_next && has_room()) {
                    break;
                }
                drop(line);
                looked = look();
                if looked.is_ok() {
                    thread::park_timeout(LOOK_AGAIN);
                }
                line = self.line.lock();
            }
            line.retain(|waiting| waiting.thread.id() != me);
            if let Some(first) = line.front() {
                first.thread.unpark();
            }
            looked?;
        }
        self.entering.fetch_add(bytes, Ordering::AcqRel);
        Ok(Entering { gate: self, bytes })
    }

    /// Whether somebody waits.
    pub(crate) fn is_shut(&self) -> bool {
        !self.line.lock().is_empty()
    }

    /// There may be room now.
    pub(crate) fn call(&self) {
        let line = self.line.lock();
        let called = line.iter().enumerate().filter(|(at, waiting)| *at == 0 || waiting.may_overtake);
        called.for_each(|(_, waiting)| waiting.thread.unpark());
    }
}

impl Drop for Entering<'_> {
    fn drop(&mut self) {
        self.gate.entering.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Instant;

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
            Self { gate: Arc::default(), room: Arc::default(), broken: Arc::default(), told, hears }
        }

        /// Somebody comes to the gate, and when this returns stands in line or was let in; tells when let in or sent
        /// away. Whoever was let in stays on the way in for good. For who may overtake there is room for one more.
        fn comes(&self, number: u32, may_overtake: bool) {
            let (gate, room) = (Arc::clone(&self.gate), Arc::clone(&self.room));
            let (broken, told) = (Arc::clone(&self.broken), self.told.clone());
            let came = || self.gate.line.lock().len() as u64 + self.gate.entering.load(Ordering::Acquire);
            let before = came();
            thread::spawn(move || {
                let entered = gate.enter(
                    1,
                    may_overtake,
                    |entering| entering < room.load(Ordering::Acquire) + u64::from(may_overtake),
                    || if broken.load(Ordering::Acquire) { Err(FsError::Invalid) } else { Ok(()) },
                );
                let is_in = entered.is_ok();
                std::mem::forget(entered);
                told.send((number, is_in)).unwrap();
            });
            let start = Instant::now();
            while came() == before && start.elapsed() < Duration::from_secs(5) {
                thread::sleep(Duration::from_millis(1));
            }
        }

        fn next(&self) -> (u32, bool) {
            self.hears.recv_timeout(Duration::from_secs(5)).expect("somebody goes on")
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
            assert!(scene.hears.recv_timeout(Duration::from_millis(20)).is_err(), "there was room for one");
        }
        assert!(!scene.gate.is_shut());
    }

    #[test]
    fn all_for_whom_there_is_room_go_on_when_called_once() {
        let scene = Scene::new();
        (0..4).for_each(|number| scene.comes(number, false));
        scene.room.store(4, Ordering::Release);
        scene.gate.call();
        let start = Instant::now();
        (0..4).for_each(|number| assert_eq!(scene.next(), (number, true)));
        assert!(start.elapsed() < LOOK_AGAIN * 3, "each was called by the one before it");
    }

    #[test]
    fn who_may_overtake_does() {
        let scene = Scene::new();
        scene.comes(0, false);
        scene.comes(1, true);
        assert_eq!(scene.next(), (1, true));
        // This one has to wait too, but not for the first.
        scene.comes(2, true);
        scene.room.store(1, Ordering::Release);
        scene.gate.call();
        assert_eq!(scene.next(), (2, true));
        scene.room.store(3, Ordering::Release);
        scene.gate.call();
        assert_eq!(scene.next(), (0, true));
        assert!(!scene.gate.is_shut());
    }

    #[test]
    fn an_error_ends_the_waiting_of_all() {
        let scene = Scene::new();
        scene.comes(9, true);
        assert_eq!(scene.next(), (9, true));
        (0..3).for_each(|number| scene.comes(number, number == 1));
        scene.broken.store(true, Ordering::Release);
        scene.gate.call();
        let mut sent_away: Vec<_> = (0..3).map(|_| scene.next()).collect();
        sent_away.sort_unstable();
        assert_eq!(sent_away, [(0, false), (1, false), (2, false)]);
        assert!(!scene.gate.is_shut());
    }
}
