//! What devices were asked for since they are members: counts that outlive mounts.

use crate::StoreError;
use crate::store::Store;
use crate::tables::Tables;
use aegisfs_base::{BranchId, Uuid};
use aegisfs_format::key::Table;
use aegisfs_format::op::Op;
use aegisfs_format::value::DeviceCounts;
use parking_lot::Mutex;

/// How the keys begin, in the configuration; the device's UUID follows.
const KEY: &[u8] = b"device/";

/// What was counted before this mount, by device, once somebody asked.
#[derive(Debug, Default)]
pub(crate) struct CountsBefore {
    known: Mutex<Option<Vec<DeviceCounts>>>,
    /// The part of them that tells of trouble, as it was stored last.
    stored: Mutex<Vec<u64>>,
}

fn key_of(uuid: Uuid) -> Vec<u8> {
    [KEY, &uuid.0].concat()
}

/// What goes wrong with a device; the rest grows whenever anything is stored.
const fn troubles(counts: &DeviceCounts) -> u64 {
    counts.retried + counts.failed + counts.slow + counts.damaged
}

impl Store {
    /// What each device was asked for since it is a member, in the order of the pool's table.
    ///
    /// # Errors
    /// When the metadata cannot be read.
    pub fn device_counts(&self) -> Result<Vec<DeviceCounts>, StoreError> {
        let before = self.counts_before()?;
        let now = self.pool.device_reports();
        Ok(before.iter().zip(now).map(|(before, now)| before.plus(&now.counts)).collect())
    }

    fn counts_before(&self) -> Result<Vec<DeviceCounts>, StoreError> {
        let mut known = self.device_counts.known.lock();
        if let Some(known) = &*known {
            return Ok(known.clone());
        }
        let view = self.view();
        let one = |uuid| -> Result<DeviceCounts, StoreError> {
            let stored = view.get(Table::Config, &key_of(uuid))?;
            Ok(stored.map(|stored| DeviceCounts::decode(&stored)).transpose()?.unwrap_or_default())
        };
        let devices = self.pool.superblock().devices;
        let counts = devices.iter().map(|entry| one(entry.uuid)).collect::<Result<Vec<_>, _>>()?;
        *self.device_counts.stored.lock() = counts.iter().map(troubles).collect();
        *known = Some(counts.clone());
        Ok(counts)
    }

    /// Stores the counts, and what was mended: at the end of a mount, before that only where something went wrong since.
    ///
    /// # Errors
    /// When nothing may be written, or the metadata cannot be read.
    pub fn note_device_counts(&self, is_end: bool) -> Result<(), StoreError> {
        self.check_writable()?;
        let counts = self.device_counts()?;
        let mut stored = self.device_counts.stored.lock();
        let now: Vec<u64> = counts.iter().map(troubles).collect();
        let mended = self.take_mended_news();
        if !is_end && now == *stored && mended.is_none() {
            return Ok(());
        }
        let devices = self.pool.superblock().devices;
        let put = |(entry, counts): (&aegisfs_format::superblock::DeviceEntry, &DeviceCounts)| Op::Put {
            table: Table::Config,
            key: key_of(entry.uuid),
            value: counts.encode(),
        };
        let ops = devices.iter().zip(&counts).map(put).chain(mended).collect();
        self.commit(BranchId(0), ops, Vec::new())?;
        *stored = now;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::read::tests::store_on;

    #[test]
    fn counts_are_kept_and_an_idle_store_writes_none() {
        let store = store_on(&["one", "two"]);
        let before = store.device_counts().unwrap();
        assert!(before.len() == 2 && before[0].reads > 0);
        store.note_device_counts(false).unwrap();
        let sequence = store.last_sequence();
        store.note_device_counts(false).unwrap();
        assert_eq!(store.last_sequence(), sequence, "nothing went wrong");
        store.pool.note_damage(aegisfs_base::DeviceIndex(1), 3);
        store.note_device_counts(false).unwrap();
        assert!(store.last_sequence() > sequence);
        store.note_device_counts(true).unwrap();
        // As the next mount finds it.
        *store.device_counts.known.lock() = None;
        let after = store.device_counts().unwrap();
        assert_eq!((after[0].damaged, after[1].damaged), (0, 6), "what it counted itself comes on top here");
        assert!(after[0].reads >= 2 * before[0].reads);
    }
}
