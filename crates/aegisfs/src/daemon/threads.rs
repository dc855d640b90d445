//! What runs beside those who ask: writing out, checkpoints, cleaning, and what is looked after once in a while.

use super::disks::Watcher;
use crate::failure::Failure;
use crate::settings::Settings;
use aegisfs_fs::{Flusher, FollowThread, Fs};
use aegisfs_store::{CleanerThread, ReturnThread, ScrubThread, Service, Store, TrimThread, UpkeepThread};
use std::sync::Arc;

/// Threads that write files out; compression has its own.
const FLUSHERS: usize = 2;

/// The threads of a mount that may write.
pub(super) struct Threads {
    service: Service,
    flusher: Flusher,
    cleaner: CleanerThread,
    trimmer: TrimThread,
    upkeep: UpkeepThread,
    returner: Option<ReturnThread>,
    scrubber: ScrubThread,
    watcher: Watcher,
    follower: FollowThread,
}

impl Threads {
    /// Starts all of them.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub(super) fn start(store: &Arc<Store>, fs: &Arc<Fs>, settings: &Settings) -> Result<Self, Failure> {
        let service = Service::start(Arc::clone(store), settings.intervals())?;
        store.set_cleaning_intensity(settings.cleaning_intensity());
        store.set_cleaning_bandwidth(settings.cleaning_bandwidth());
        // Whoever was away may be back, or something may have been written while it was.
        let is_several = store.pool().member_states().len() > 1;
        Ok(Self {
            service,
            cleaner: CleanerThread::start(Arc::clone(store))?,
            trimmer: TrimThread::start(Arc::clone(store))?,
            upkeep: UpkeepThread::start(Arc::clone(store), settings.upkeep())?,
            returner: is_several.then(|| ReturnThread::start(Arc::clone(store))).transpose()?,
            scrubber: ScrubThread::start(Arc::clone(store))?,
            watcher: Watcher::start(Arc::clone(store))?,
            flusher: Flusher::start(Arc::clone(fs), FLUSHERS)?,
            follower: FollowThread::start(Arc::clone(fs))?,
        })
    }

    /// Ends all but the one that writes the log, which is needed until everything is written out.
    pub(super) fn end(self) -> Service {
        let Self { service, flusher, cleaner, trimmer, upkeep, returner, scrubber, watcher, follower } = self;
        drop(follower);
        drop(watcher);
        drop(scrubber);
        drop(returner);
        drop(upkeep);
        drop(trimmer);
        drop(cleaner);
        drop(flusher);
        service
    }
}
