//! The same work on several devices at once.

use crate::PoolError;

/// Does the work for the first item on this thread, and for each other one on a thread of its own; returns when all is done.
///
/// # Errors
/// The first in the order of the items.
pub fn together<T: Sync>(
    items: &[T],
    work: impl Fn(&T) -> Result<(), PoolError> + Sync,
) -> Result<(), PoolError> {
    let Some((first, others)) = items.split_first() else { return Ok(()) };
    let work = &work;
    std::thread::scope(|scope| {
        let others: Vec<_> = others.iter().map(|item| scope.spawn(move || work(item))).collect();
        let first = work(first);
        others
            .into_iter()
            .fold(first, |so_far, thread| so_far.and(thread.join().expect("device work does not panic")))
    })
}
