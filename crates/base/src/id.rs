//! Numbers that identify something, each with its own type so that two of them cannot be mixed up.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($raw:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $raw);

        impl $name {
            /// The number as stored on disk.
            pub const fn get(self) -> $raw {
                self.0
            }

            /// The next number in order.
            ///
            /// # Panics
            /// When the numbers are used up, which at one per nanosecond takes centuries.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0.checked_add(1).expect("ids are never used up"))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// An inode number: pool-wide, never reused.
    InodeId(u64)
);
id!(
    /// A stretch of history between two snapshots of a branch; part of every versioned key.
    EpochId(u64)
);
id!(
    /// A line of history: a volume's head, or a clone forked from a snapshot.
    BranchId(u32)
);
id!(
    /// A segment of the log: k+m slots of different devices.
    SegmentId(u64)
);
id!(
    /// A stored chunk: sequential, never reused.
    ChunkId(u64)
);
id!(
    /// A row's place in the order of appends to its segment.
    RowIndex(u32)
);
id!(
    /// A device's place in the pool's device table.
    DeviceIndex(u16)
);
id!(
    /// A slot's place on its device.
    SlotIndex(u32)
);
id!(
    /// A storage policy: what is stored alike. 0 is the pool's own.
    PolicyId(u16)
);
id!(
    /// The order in which changes passed the sequencer.
    Sequence(u64)
);
id!(
    /// A superblock's or a checksum block's age: the highest that verifies wins.
    Generation(u64)
);
id!(
    /// A random number drawn at every opening that writes, so that two histories never look alike.
    Incarnation(u64)
);

/// Sixteen random bytes that name a pool or a device.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// Draws a random (version 4) UUID.
    pub fn random(rng: &dyn crate::Rng) -> Self {
        let mut bytes = [0u8; 16];
        rng.fill(&mut bytes);
        bytes[6] = (bytes[6] & 0x0f) | 0x40;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        Self(bytes)
    }

    /// Reads the usual form with dashes; dashes may be left out.
    pub fn parse(text: &str) -> Option<Self> {
        let digits: Vec<u8> = text.bytes().filter(|b| *b != b'-').collect();
        if digits.len() != 32 {
            return None;
        }
        let mut bytes = [0u8; 16];
        for (i, pair) in digits.chunks_exact(2).enumerate() {
            let high = (pair[0] as char).to_digit(16)?;
            let low = (pair[1] as char).to_digit(16)?;
            bytes[i] = u8::try_from(high * 16 + low).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuid_text_round_trips() {
        let uuid = Uuid::random(&crate::SeededRng::new(7));
        let text = uuid.to_string();
        assert_eq!(Uuid::parse(&text), Some(uuid));
        assert_eq!(Uuid::parse(&text.replace('-', "")), Some(uuid));
        assert_eq!(text.as_bytes()[14], b'4');
        for bad in ["", "0", "zz000000-0000-0000-0000-000000000000", "00000000-0000-0000-0000-0000000000000"]
        {
            assert_eq!(Uuid::parse(bad), None, "{bad}");
        }
    }
}
