//! The same work on several devices at once.

use crate::PoolError;

/// Does the work for the first item on this thread, and for each other one on a thread of its own, or on this one too where no
/// thread is to be had. Returns when all is done, with what came of each.
pub fn side_by_side<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let Some((first, others)) = items.split_first() else { return Vec::new() };
    let work = &work;
    std::thread::scope(|scope| {
        let start = |item| {
            let thread = std::thread::Builder::new().name("side-by-side".into());
            thread.spawn_scoped(scope, move || work(item)).map_err(|_| item)
        };
        let others: Vec<_> = others.iter().map(start).collect();
        let mut outcomes = vec![work(first)];
        outcomes.extend(others.into_iter().map(|other| match other {
            Ok(thread) => thread.join().expect("device work does not panic"),
            Err(item) => work(item),
        }));
        outcomes
    })
}

/// The same with work that may fail.
///
/// # Errors
/// The first in the order of the items.
pub fn together<T: Sync>(
    items: &[T],
    work: impl Fn(&T) -> Result<(), PoolError> + Sync,
) -> Result<(), PoolError> {
    side_by_side(items, work).into_iter().collect()
}
