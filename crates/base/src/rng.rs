//! Randomness comes from the caller, so that the simulator owns it.

use std::fs::File;
use std::io::Read;
use std::sync::Mutex;

/// A source of random bytes.
pub trait Rng: Send + Sync {
    /// Fills the buffer.
    fn fill(&self, buffer: &mut [u8]);

    /// One random number.
    fn next_u64(&self) -> u64 {
        let mut bytes = [0u8; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// A number below `bound`, which must not be zero.
    fn below(&self, bound: u64) -> u64 {
        // The bias for the small bounds that callers use is below one in 2^40.
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }
}

/// The kernel's randomness.
#[derive(Debug)]
pub struct SystemRng {
    source: Mutex<File>,
}

impl SystemRng {
    /// Opens the kernel's generator.
    ///
    /// # Errors
    /// When `/dev/urandom` cannot be opened.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { source: Mutex::new(File::open("/dev/urandom")?) })
    }
}

impl Rng for SystemRng {
    fn fill(&self, buffer: &mut [u8]) {
        let mut source = self.source.lock().expect("no holder panics");
        source.read_exact(buffer).expect("the kernel's generator never runs dry");
    }
}

/// A repeatable generator (splitmix64, Steele, Lea and Flood 2014) for the simulator and the tests.
#[derive(Debug)]
pub struct SeededRng {
    state: Mutex<u64>,
}

impl SeededRng {
    /// Starts from a seed; equal seeds give equal numbers.
    pub const fn new(seed: u64) -> Self {
        Self { state: Mutex::new(seed) }
    }
}

impl Rng for SeededRng {
    fn fill(&self, buffer: &mut [u8]) {
        for piece in buffer.chunks_mut(8) {
            let bytes = self.next_u64().to_le_bytes();
            piece.copy_from_slice(&bytes[..piece.len()]);
        }
    }

    fn next_u64(&self) -> u64 {
        let mut state = self.state.lock().expect("no holder panics");
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_repeat_and_bounds_hold() {
        let (a, b) = (SeededRng::new(3), SeededRng::new(3));
        for _ in 0..1000 {
            let n = a.below(10);
            assert_eq!(n, b.below(10));
            assert!(n < 10);
        }
        assert_ne!(SeededRng::new(1).next_u64(), SeededRng::new(2).next_u64());
    }
}
