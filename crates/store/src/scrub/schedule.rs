//! Scrubs that begin by themselves, and what stays of how they are done.

use super::{Scrubber, is_under_way};
use crate::StoreError;
use crate::clean::Intensity;
use crate::store::Store;
use crate::tables::Tables;
use aegisfs_base::{BranchId, Timestamp};
use aegisfs_format::key::Table;
use aegisfs_format::op::Op;
use aegisfs_format::value::{ENVELOPE_PLAIN, Schedule, When, unwrap};
use std::sync::atomic::Ordering;

/// Where they stand in the configuration.
const SCHEDULE_KEY: &[u8] = b"scrub-schedule";
const INTENSITY_KEY: &[u8] = b"scrub-intensity";

impl Store {
    /// How much a scrub may take from those who read and write.
    ///
    /// # Errors
    /// When the metadata cannot be read.
    pub fn scrub_intensity(&self) -> Result<Intensity, StoreError> {
        if !self.scrubber.intensity_known.load(Ordering::Acquire) {
            let stored = self.view().get(Table::Config, INTENSITY_KEY)?;
            let stored =
                stored.map(|stored| Ok::<_, StoreError>(unwrap(&stored)?.first().copied())).transpose()?;
            if let Some(Some(intensity)) = stored {
                self.scrubber.intensity.store(intensity, Ordering::Relaxed);
            }
            self.scrubber.intensity_known.store(true, Ordering::Release);
        }
        Ok(self.scrubber.intensity_now())
    }

    /// Says how much it may take, from now on and at later mounts.
    ///
    /// # Errors
    /// When nothing may be written.
    pub fn set_scrub_intensity(&self, intensity: Intensity) -> Result<(), StoreError> {
        let value = vec![ENVELOPE_PLAIN, intensity as u8];
        let put = Op::Put { table: Table::Config, key: INTENSITY_KEY.to_vec(), value };
        self.commit(BranchId(0), vec![put], Vec::new())?;
        self.scrubber.intensity.store(intensity as u8, Ordering::Relaxed);
        self.scrubber.intensity_known.store(true, Ordering::Release);
        Ok(())
    }

    /// When scrubs begin by themselves, if they do.
    ///
    /// # Errors
    /// When the metadata cannot be read.
    pub fn scrub_schedule(&self) -> Result<Option<Schedule>, StoreError> {
        let stored = self.view().get(Table::Config, SCHEDULE_KEY)?;
        Ok(stored.map(|stored| Schedule::decode(&stored)).transpose()?)
    }

    /// Has scrubs begin by themselves from now on, or no more.
    ///
    /// # Errors
    /// When nothing may be written.
    pub fn set_scrub_schedule(&self, schedule: Option<(When, Intensity, bool)>) -> Result<(), StoreError> {
        let key = SCHEDULE_KEY.to_vec();
        let op = match schedule {
            Some((when, intensity, repairs)) => {
                let schedule = Schedule { when, intensity: intensity as u8, repairs, set: self.clock.now() };
                Op::Put { table: Table::Config, key, value: schedule.encode() }
            }
            None => Op::Delete { table: Table::Config, key },
        };
        self.commit(BranchId(0), vec![op], Vec::new())?;
        self.sync()?;
        self.scrubber.wake();
        Ok(())
    }

    /// When the next scrub begins by itself; that may have been while nobody had the pool.
    ///
    /// # Errors
    /// When the metadata cannot be read.
    pub fn next_scrub(&self) -> Result<Option<Timestamp>, StoreError> {
        let Some(schedule) = self.scrub_schedule()? else { return Ok(None) };
        let last = self.scrub_status()?.map(|scrub| scrub.started);
        Ok(schedule.when.after(last.map_or(schedule.set, |last| last.max(schedule.set))))
    }

    /// Whether one is due, and none is under way.
    pub(super) fn is_scrub_due(&self) -> bool {
        let is_due = || -> Result<bool, StoreError> {
            let is_due = self.next_scrub()?.is_some_and(|due| due <= self.clock.now());
            Ok(is_due && !self.scrub_status()?.is_some_and(|scrub| is_under_way(&scrub)))
        };
        is_due().unwrap_or_else(|error| {
            tracing::error!(%error, "when the next scrub is due cannot be read");
            false
        })
    }

    /// Begins a scrub if one is due and none is under way. Says whether it did.
    ///
    /// # Errors
    /// When nothing may be written, or the metadata or a device fails.
    pub fn start_due_scrub(&self) -> Result<bool, StoreError> {
        let Some(schedule) = self.scrub_schedule()?.filter(|_| self.is_scrub_due()) else { return Ok(false) };
        tracing::info!("a scrub is due and begins");
        self.set_scrub_intensity(Intensity::from_raw(schedule.intensity))?;
        self.start_scrub(schedule.repairs)
    }
}

impl Scrubber {
    pub(super) fn intensity_now(&self) -> Intensity {
        Intensity::from_raw(self.intensity.load(Ordering::Relaxed))
    }
}
