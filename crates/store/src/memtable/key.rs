//! Keys as the changes in memory hold them: nearly all are short, stand where they are compared, and are
//! compared a word at a time.

use std::cmp::Ordering;
use std::ops::Deref;

/// What is held in place. Only the keys of extended attributes and of notes about them are longer.
const SHORT_BYTES_MAX: usize = 30;

/// A key; the order is that of its bytes.
#[derive(Clone, Debug)]
pub(crate) enum Key {
    /// Its bytes, zeros behind them, and how many it has.
    Short([u8; SHORT_BYTES_MAX], u8),
    Long(Box<[u8]>),
}

impl Key {
    pub(crate) fn new(key: &[u8]) -> Self {
        if key.len() > SHORT_BYTES_MAX {
            return Self::Long(key.into());
        }
        let mut bytes = [0; SHORT_BYTES_MAX];
        bytes[..key.len()].copy_from_slice(key);
        Self::Short(bytes, key.len() as u8)
    }
}

/// Numbers in the order of short keys: where one key begins another, zeros make them alike but for the length.
fn words(bytes: &[u8; SHORT_BYTES_MAX], length: u8) -> [u64; 4] {
    let word = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("it has eight bytes"));
    [word(0), word(8), word(16), word(SHORT_BYTES_MAX - 8) << 16 | u64::from(length)]
}

impl Deref for Key {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Short(bytes, length) => &bytes[..usize::from(*length)],
            Self::Long(bytes) => bytes,
        }
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Short(a, a_length), Self::Short(b, b_length)) => {
                words(a, *a_length).cmp(&words(b, *b_length))
            }
            _ => self[..].cmp(&other[..]),
        }
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Key {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn it_takes_no_more_than_four_words() {
        assert_eq!(size_of::<Key>(), 32);
    }

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        // Few values, so that keys often begin alike, and zeros, which stand behind short ones too.
        prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(255)], 0..40)
    }

    proptest! {
        #[test]
        fn its_order_is_that_of_its_bytes(a in bytes(), b in bytes(), shared in 0usize..40) {
            let mut b = b;
            b.splice(..shared.min(b.len()), a[..shared.min(a.len())].iter().copied());
            prop_assert_eq!(&Key::new(&a)[..], &a[..]);
            prop_assert_eq!(Key::new(&a).cmp(&Key::new(&b)), a.cmp(&b));
            prop_assert_eq!(Key::new(&a) == Key::new(&b), a == b);
        }
    }
}
