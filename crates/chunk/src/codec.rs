//! How bytes are stored, and how hard to try.

use std::fmt;
use std::str::FromStr;

use crate::ChunkError;

/// Fastest zstd level that can be asked for.
pub const ZSTD_LEVEL_MIN: i32 = 1;
/// Strongest zstd level that can be asked for; beyond it memory grows and gains stop.
pub const ZSTD_LEVEL_MAX: i32 = 19;

/// How stored bytes are to be read. The numbers are part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Codec {
    /// As they are.
    Plain = 0,
    /// One LZ4 block without a header.
    Lz4 = 1,
    /// Zstandard frames.
    Zstd = 2,
}

impl Codec {
    /// The number as stored on disk.
    pub const fn raw(self) -> u8 {
        self as u8
    }

    /// Reads the stored number.
    ///
    /// # Errors
    /// When no codec has it.
    pub const fn from_raw(raw: u8) -> Result<Self, ChunkError> {
        match raw {
            0 => Ok(Self::Plain),
            1 => Ok(Self::Lz4),
            2 => Ok(Self::Zstd),
            _ => Err(ChunkError::UnknownCodec { raw }),
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        })
    }
}

/// What to compress new data with; what is stored already stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Store everything as it is.
    None,
    /// Fast, at two thirds of the gain.
    Lz4,
    /// At a level from [`ZSTD_LEVEL_MIN`] to [`ZSTD_LEVEL_MAX`]; others are taken for the nearest.
    Zstd(i32),
}

impl Default for Compression {
    fn default() -> Self {
        Self::Zstd(ZSTD_LEVEL_MIN)
    }
}

impl FromStr for Compression {
    type Err = ChunkError;

    fn from_str(text: &str) -> Result<Self, ChunkError> {
        let unknown = || ChunkError::UnknownCompression { text: text.to_owned() };
        match text.split_once(':') {
            None if text == "none" => Ok(Self::None),
            None if text == "lz4" => Ok(Self::Lz4),
            None if text == "zstd" => Ok(Self::Zstd(ZSTD_LEVEL_MIN)),
            Some(("zstd", level)) if level.bytes().all(|byte| byte.is_ascii_digit()) => {
                let level: i32 = level.parse().map_err(|_| unknown())?;
                let known = (ZSTD_LEVEL_MIN..=ZSTD_LEVEL_MAX).contains(&level);
                known.then_some(Self::Zstd(level)).ok_or_else(unknown)
            }
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Lz4 => f.write_str("lz4"),
            Self::Zstd(level) => write!(f, "zstd:{level}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_as_people_write_them() {
        let all = [Compression::None, Compression::Lz4, Compression::Zstd(1), Compression::Zstd(19)];
        for compression in all {
            assert_eq!(compression.to_string().parse(), Ok(compression));
        }
        assert_eq!("zstd".parse(), Ok(Compression::default()));
        for bad in
            ["", "NONE", "lz4:1", "zstd:", "zstd:0", "zstd:20", "zstd:-1", "zstd:+1", "zstd:99999999999"]
        {
            assert!(bad.parse::<Compression>().is_err(), "{bad}");
        }
    }

    #[test]
    fn codec_numbers_are_frozen() {
        for (raw, codec) in [(0, Codec::Plain), (1, Codec::Lz4), (2, Codec::Zstd)] {
            assert_eq!((Codec::from_raw(raw), codec.raw()), (Ok(codec), raw));
        }
        for raw in 3..=255 {
            assert_eq!(Codec::from_raw(raw), Err(ChunkError::UnknownCodec { raw }));
        }
    }
}
