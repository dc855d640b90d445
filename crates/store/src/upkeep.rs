//! What is done by itself once in a while, because somebody may have forgotten it: orphans are cleaned, and the devices told
//! again what is free.

use crate::stop::Stop;
use crate::store::Store;
use crate::{OrphansCleaned, StoreError};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How finely the thread sleeps between the steps of a sweep.
const SLICE: Duration = Duration::from_millis(20);
/// After a step it rests so many times as long as that took.
const REST: u32 = 2;

/// How often what is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpkeepOptions {
    /// How often orphans are looked for; zero is never.
    pub orphans_every: Duration,
    /// Those are cleaned that were seen first so long ago.
    pub orphans_older_than: Duration,
    /// How often all free slots are discarded, those as well that were free when the store was opened; zero is never.
    /// Only where slots are discarded by themselves at all.
    pub trim_every: Duration,
}

impl Default for UpkeepOptions {
    fn default() -> Self {
        let day = Duration::from_secs(86_400);
        Self { orphans_every: day / 4, orphans_older_than: day, trim_every: day }
    }
}

/// What was due.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpkeepDone {
    /// What became of orphans, if they were looked for.
    pub orphans: Option<OrphansCleaned>,
    /// The trimmer was told to discard everything that is free.
    pub trimmed: bool,
}

/// Something that comes round.
#[derive(Clone, Copy, Debug)]
struct Round {
    every: Duration,
    last: Duration,
}

impl Round {
    /// When it is due, if it ever is.
    fn due(&self) -> Option<Duration> {
        (!self.every.is_zero()).then(|| self.last + self.every)
    }

    /// Whether it is due, which begins the next one.
    fn begins(&mut self, now: Duration) -> bool {
        let is_due = self.due().is_some_and(|due| due <= now);
        if is_due {
            self.last = now;
        }
        is_due
    }
}

/// What comes round in a store.
#[derive(Clone, Copy, Debug)]
pub struct Upkeep {
    options: UpkeepOptions,
    orphans: Round,
    trim: Round,
}

impl Upkeep {
    /// Everything is due for the first time when it has been so long as between two times.
    pub fn new(store: &Store, options: UpkeepOptions) -> Self {
        let last = store.clock.elapsed();
        let is_trimmed = store.trim_options().background;
        let trim_every = if is_trimmed { options.trim_every } else { Duration::ZERO };
        Self {
            options,
            orphans: Round { every: options.orphans_every, last },
            trim: Round { every: trim_every, last },
        }
    }

    /// How long nothing is due, if ever anything is.
    fn rest(&self, now: Duration) -> Option<Duration> {
        let due = [self.orphans.due(), self.trim.due()].into_iter().flatten().min()?;
        Some(due.saturating_sub(now))
    }

    /// Does what is due. `goes_on` is asked between the steps of what takes long, with how long the last one took.
    ///
    /// # Errors
    /// When the metadata or a device fails, or nothing may be written; what failed comes round again.
    pub fn step(
        &mut self,
        store: &Store,
        goes_on: &dyn Fn(Duration) -> ControlFlow<()>,
    ) -> Result<UpkeepDone, StoreError> {
        let mut done = UpkeepDone::default();
        let now = store.clock.elapsed();
        if self.trim.begins(now) {
            store.request_trim()?;
            done.trimmed = true;
        }
        if self.orphans.begins(now) {
            let cleaned = store.clean_orphans_at(self.options.orphans_older_than, false, goes_on)?;
            done.orphans = Some(cleaned);
        }
        Ok(done)
    }
}

/// The running thread; dropping it ends the thread after its current step.
pub struct UpkeepThread {
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

impl UpkeepThread {
    /// Starts the thread.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(store: Arc<Store>, options: UpkeepOptions) -> std::io::Result<Self> {
        let stop = Arc::<Stop>::default();
        let stopping = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("upkeep".into())
            .spawn(move || run(&store, options, &stopping))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for UpkeepThread {
    fn drop(&mut self) {
        self.stop.tell();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the upkeep died; orphans are cleaned when somebody says so");
        }
    }
}

fn run(store: &Store, options: UpkeepOptions, stop: &Stop) {
    let mut upkeep = Upkeep::new(store, options);
    let is_told = || stop.is_told();
    while let Some(rest) = upkeep.rest(store.clock.elapsed()) {
        if !rest.is_zero() {
            stop.sleep(rest);
        }
        if is_told() || store.check_writable().is_err() {
            return;
        }
        let goes_on = |took: Duration| {
            let until = Instant::now() + took * REST;
            while !is_told() && Instant::now() < until {
                std::thread::sleep(SLICE.min(until.saturating_duration_since(Instant::now())));
            }
            if is_told() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        match upkeep.step(store, &goes_on) {
            Ok(UpkeepDone { orphans: Some(done), .. }) => {
                tracing::info!(
                    cleaned = done.cleaned.len(),
                    young = done.young,
                    kept = done.kept,
                    "looked for orphans"
                );
                if done.kept > 0 {
                    tracing::warn!(kept = done.kept, "some are left alone; aegisfs orphans list says why");
                }
            }
            Ok(_) | Err(StoreError::Stopped) => {}
            Err(error) => tracing::error!(%error, "what is done once in a while failed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_round_is_due_once_in_a_while() {
        let hour = Duration::from_secs(3600);
        let mut round = Round { every: 2 * hour, last: hour };
        assert_eq!(round.due(), Some(3 * hour));
        assert!(!round.begins(2 * hour) && round.begins(3 * hour) && !round.begins(3 * hour));
        // It is not made up for what nobody was there for.
        assert!(round.begins(30 * hour) && !round.begins(31 * hour) && round.begins(32 * hour));
        let mut never = Round { every: Duration::ZERO, last: hour };
        assert!(never.due().is_none() && !never.begins(100 * hour));
    }
}
