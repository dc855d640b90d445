//! A reader and a writer for sequences of little-endian fields of varying length.

use crate::FormatError;

/// Reads fields one after the other; every read is checked against what is left.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, rest: bytes }
    }

    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], FormatError> {
        let (head, tail) = self.rest.split_at_checked(count).ok_or(FormatError::Short { what: self.what })?;
        self.rest = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let mut out = [0u8; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, FormatError> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, FormatError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A number of seven bits a byte, the lowest first; the top bit says that more follow.
    pub(crate) fn varint(&mut self) -> Result<u64, FormatError> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                break;
            }
            number |= bits << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(FormatError::Value { what: self.what, field: "a number of over 64 bits", value: number })
    }

    /// Bytes preceded by their 16-bit count.
    pub(crate) fn short_bytes(&mut self) -> Result<&'a [u8], FormatError> {
        let count = self.u16()?;
        self.take(usize::from(count))
    }

    /// Bytes preceded by their 32-bit count.
    pub(crate) fn long_bytes(&mut self) -> Result<&'a [u8], FormatError> {
        let count = self.u32()?;
        self.take(count as usize)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Fails unless everything was read.
    pub(crate) fn finish(self) -> Result<(), FormatError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(FormatError::Value {
                what: self.what,
                field: "trailing bytes",
                value: self.rest.len() as u64,
            })
        }
    }
}

/// Appends fields to a buffer.
pub(crate) trait Append {
    fn put_u16(&mut self, value: u16);
    fn put_u32(&mut self, value: u32);
    fn put_u64(&mut self, value: u64);
    /// A number of seven bits a byte, the lowest first.
    fn put_varint(&mut self, value: u64);
    /// # Panics
    /// When there are more bytes than a 16-bit count can tell; callers bound them long before.
    fn put_short_bytes(&mut self, bytes: &[u8]);
    /// # Panics
    /// When there are more bytes than a 32-bit count can tell; callers bound them long before.
    fn put_long_bytes(&mut self, bytes: &[u8]);
}

impl Append for Vec<u8> {
    fn put_u16(&mut self, value: u16) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put_u32(&mut self, value: u32) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put_u64(&mut self, value: u64) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.push(value as u8);
    }

    fn put_short_bytes(&mut self, bytes: &[u8]) {
        self.put_u16(u16::try_from(bytes.len()).expect("keys and names are short"));
        self.extend_from_slice(bytes);
    }

    fn put_long_bytes(&mut self, bytes: &[u8]) {
        self.put_u32(u32::try_from(bytes.len()).expect("values are bounded"));
        self.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_round_trip() {
        for shift in 0..64 {
            for number in [1u64 << shift, (1 << shift) - 1, u64::MAX >> shift] {
                let mut bytes = Vec::new();
                bytes.put_varint(number);
                let mut reader = Reader::new("test", &bytes);
                assert_eq!(reader.varint().unwrap(), number);
                reader.finish().unwrap();
                assert!(Reader::new("test", &bytes[..bytes.len() - 1]).varint().is_err());
            }
        }
        for bad in [[0xff; 10], [0x80; 10], [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]] {
            assert!(Reader::new("test", &bad).varint().is_err());
        }
    }
}
