//! Keeps the engine's panics inside this room.
//!
//! redb checks page checksums only when it repairs; on a damaged page that reached it anyway it
//! asserts. Damaged bytes must be an error to us, so every call into it goes through here.

use crate::KvError;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs a call into the engine; a panic becomes [`KvError::Damaged`].
///
/// Safe to go on after: a transaction that panicked refuses to commit, and a lock that was held
/// reports itself poisoned from then on.
pub(crate) fn contain<T>(
    during: &'static str,
    call: impl FnOnce() -> Result<T, KvError>,
) -> Result<T, KvError> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|payload| Err(KvError::Damaged { during, detail: describe(payload.as_ref()) }))
}

fn describe(payload: &(dyn Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned());
    format!("the engine gave up: {}", text.unwrap_or_else(|| "no reason given".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use aegisfs_base::FaultKind;

    #[test]
    fn a_panic_becomes_damage() {
        let error = contain::<()>("testing", || panic!("page {}", 7)).expect_err("it panicked");
        assert_eq!(error.kind(), FaultKind::Corrupt);
        assert!(error.to_string().contains("page 7"), "{error}");
    }
}
