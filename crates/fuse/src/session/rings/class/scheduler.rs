//! The system calls that set and tell a thread's scheduling class.

use super::Class;
use rustix::thread::{Pid, gettid};

/// Gives a thread of this process a class. One that has ended needs none.
pub(super) fn set_class(thread: Pid, class: Class) {
    if let Err(error) = try_set(thread, class) {
        tracing::debug!(%error, ?class, "a thread keeps its scheduling class");
    }
}

/// Gives the usual class to those of this process's threads that have the idle one.
pub(super) fn restore_all(concerns: impl Fn(Pid) -> bool) {
    for entry in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let number = entry.file_name().to_string_lossy().parse().ok();
        let thread = number.and_then(Pid::from_raw).filter(|thread| concerns(*thread));
        if let Some(thread) = thread.filter(|thread| policy(*thread) == libc::SCHED_IDLE) {
            set_class(thread, Class::Usual);
        }
    }
}

/// Whether this process can give its threads the idle class and take it back, for which it needs `CAP_SYS_NICE`. If it
/// was started with another class than the usual one, that is somebody's wish.
pub(in super::super) fn can_change() -> bool {
    if policy(gettid()) != libc::SCHED_OTHER {
        return false;
    }
    // A thread that could not get back would be of no use to anybody.
    let tries = || try_set(gettid(), Class::Idle).is_ok() && try_set(gettid(), Class::Usual).is_ok();
    let scout = std::thread::Builder::new().spawn(tries);
    scout.is_ok_and(|scout| scout.join().unwrap_or(false))
}

/// A thread's scheduling policy, as the kernel numbers them.
pub(super) fn policy(thread: Pid) -> i32 {
    // SAFETY: the call takes a number and touches no memory of this process.
    unsafe { libc::sched_getscheduler(thread.as_raw_nonzero().get()) }
}

fn try_set(thread: Pid, class: Class) -> std::io::Result<()> {
    let policy = match class {
        Class::Usual => libc::SCHED_OTHER,
        Class::Idle => libc::SCHED_IDLE,
    };
    let none = libc::sched_param { sched_priority: 0 };
    // SAFETY: the call reads the structure, which lives until it returns, and changes nothing in this process's
    // memory.
    let outcome = unsafe { libc::sched_setscheduler(thread.as_raw_nonzero().get(), policy, &raw const none) };
    if outcome == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
