//! The system call that sets a thread's scheduling class.

use super::Class;
use rustix::thread::{Pid, gettid};

/// Gives a thread of this process a class. One that has ended needs none.
pub(super) fn set_class(thread: Pid, class: Class) {
    if let Err(error) = try_set(thread, class) {
        tracing::debug!(%error, ?class, "a thread keeps its scheduling class");
    }
}

/// Whether this process can give its threads the idle class and take it back, for which it needs `CAP_SYS_NICE`.
pub(in super::super) fn can_change() -> bool {
    // A thread that could not get back would be of no use to anybody.
    let tries = || try_set(gettid(), Class::Idle).is_ok() && try_set(gettid(), Class::Usual).is_ok();
    std::thread::spawn(tries).join().unwrap_or(false)
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
