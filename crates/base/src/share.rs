//! Bytes that count in a total as long as somebody holds them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A part of a total that several threads count; dropping it takes it off.
#[derive(Debug)]
pub struct Share {
    bytes: u64,
    total: Arc<AtomicU64>,
}

impl Share {
    /// Adds so many bytes to a total.
    #[must_use = "dropping it takes the bytes off again"]
    pub fn new(bytes: u64, total: &Arc<AtomicU64>) -> Self {
        total.fetch_add(bytes, Ordering::AcqRel);
        Self { bytes, total: Arc::clone(total) }
    }

    /// Adds so many bytes to a total, unless that makes it larger than `most`.
    pub fn within(bytes: u64, total: &Arc<AtomicU64>, most: u64) -> Option<Self> {
        let fits = |sum: u64| sum.checked_add(bytes).filter(|sum| *sum <= most);
        total.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).ok()?;
        Some(Self { bytes, total: Arc::clone(total) })
    }

    /// Its bytes.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds another part of the same total to one that may not be there yet.
    pub fn join(into: &mut Option<Self>, more: Option<Self>) {
        match (into, more) {
            (Some(own), Some(mut more)) => own.bytes += std::mem::take(&mut more.bytes),
            (none @ None, more) => *none = more,
            (Some(_), None) => {}
        }
    }

    /// Takes up to so many bytes out, as a part of their own.
    #[must_use = "dropping it takes the bytes off"]
    pub fn split_off(&mut self, bytes: u64) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self { bytes, total: Arc::clone(&self.total) }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_leaves_the_total_alone() {
        let total = Arc::new(AtomicU64::new(0));
        let first = Share::within(60, &total, 100).unwrap();
        assert!(
            Share::within(41, &total, 100).is_none() && Share::within(u64::MAX, &total, u64::MAX).is_none()
        );
        assert_eq!((first.bytes(), total.load(Ordering::Acquire)), (60, 60));
        let second = Share::within(40, &total, 100).unwrap();
        drop((first, second));
        assert_eq!(total.load(Ordering::Acquire), 0);
    }
}
