//! The erasure code: Reed-Solomon over GF(2^8), systematic.
//!
//! The field has the polynomial x^8 + x^4 + x^3 + x^2 + 1 (0x11d) and the generator 2. With k data shards and m of parity
//! let V be the matrix of k + m rows and k columns with V\[i\]\[j\] = i^j in the field (0^0 = 1). The generator matrix is V
//! times the inverse of its first k rows: those become the identity, the others are the coefficients of the parity
//! (J. S. Plank, "A Tutorial on Reed-Solomon Coding", 1997, with the note of 2003 on how to make it systematic; the matrix of
//! Backblaze's library and many others). Any k rows of it can be inverted, so any k shards give the rest.
//!
//! Shards are worked on in columns that fit into the processor's cache.

use reed_solomon_erasure::galois_8;
use std::sync::LazyLock;

/// Bytes of each shard that are worked on at a time.
const COLUMN_BYTES: usize = 16 << 10;
/// Shards of both kinds, at most; the field has no more rows.
const SHARDS_MAX: usize = 256;

/// A code with so many shards of data and of parity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Erasure {
    data: usize,
    /// A row of coefficients for each shard of parity.
    parity: Vec<Vec<u8>>,
}

impl Erasure {
    /// # Panics
    /// When there is no data, or the field has too few elements.
    pub fn new(data: usize, parity: usize) -> Self {
        assert!(data > 0 && data + parity <= SHARDS_MAX, "no such code");
        let row = |i: usize| (0..data).map(|j| galois_8::exp(i as u8, j)).collect::<Vec<u8>>();
        let top = inverse((0..data).map(row).collect()).expect("rows of different numbers are independent");
        let parity = (data..data + parity).map(|i| times(&row(i), &top)).collect();
        Self { data, parity }
    }

    /// Shards of data.
    pub fn data(&self) -> usize {
        self.data
    }

    /// Shards of parity.
    pub fn parity(&self) -> usize {
        self.parity.len()
    }

    /// The coefficients of each shard of parity, for whoever writes them down.
    pub fn coefficients(&self) -> &[Vec<u8>] {
        &self.parity
    }

    /// Makes the parity of data.
    ///
    /// # Panics
    /// When the number of shards is another, or their lengths differ.
    pub fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) {
        assert_eq!((data.len(), parity.len()), (self.data, self.parity.len()), "shards of another code");
        combine(&self.parity, data, parity);
    }

    /// Makes wanted shards from any that are there: data come first in the count, parity follows.
    ///
    /// # Panics
    /// When fewer than `data` different shards are there, or lengths differ.
    pub fn decode(&self, there: &[(usize, &[u8])], wanted: &mut [(usize, &mut [u8])]) {
        let used = &there[..self.data];
        let rows = used.iter().map(|(shard, _)| self.row(*shard)).collect();
        let back = inverse(rows).expect("any k rows are independent");
        let coefficients: Vec<Vec<u8>> =
            wanted.iter().map(|(shard, _)| times(&self.row(*shard), &back)).collect();
        let sources: Vec<&[u8]> = used.iter().map(|(_, bytes)| *bytes).collect();
        let mut out: Vec<&mut [u8]> = wanted.iter_mut().map(|(_, bytes)| &mut **bytes).collect();
        combine(&coefficients, &sources, &mut out);
    }

    /// What a shard is made of.
    fn row(&self, shard: usize) -> Vec<u8> {
        match shard.checked_sub(self.data) {
            Some(parity) => self.parity[parity].clone(),
            None => (0..self.data).map(|n| u8::from(n == shard)).collect(),
        }
    }
}

/// Each of `out` becomes the sum of the sources, each times its coefficient.
fn combine(coefficients: &[Vec<u8>], sources: &[&[u8]], out: &mut [&mut [u8]]) {
    let length = sources[0].len();
    assert!(
        sources.iter().all(|s| s.len() == length) && out.iter().all(|o| o.len() == length),
        "shards are of one length"
    );
    for start in (0..length).step_by(COLUMN_BYTES) {
        let column = start..(start + COLUMN_BYTES).min(length);
        for (row, out) in coefficients.iter().zip(&mut *out) {
            let out = &mut out[column.clone()];
            for (n, (factor, source)) in row.iter().zip(sources).enumerate() {
                let source = &source[column.clone()];
                if n == 0 { set_product(*factor, source, out) } else { add_product(*factor, source, out) }
            }
        }
    }
}

/// Whether the library's code runs on this processor: on x86 it is compiled for AVX2 and does not ask.
fn is_fast() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx2");
    #[cfg(not(target_arch = "x86_64"))]
    return true;
}

static IS_FAST: LazyLock<bool> = LazyLock::new(is_fast);

fn set_product(factor: u8, source: &[u8], out: &mut [u8]) {
    match factor {
        0 => out.fill(0),
        1 => out.copy_from_slice(source),
        _ if *IS_FAST => galois_8::mul_slice(factor, source, out),
        _ => {
            let table = products(factor);
            out.iter_mut().zip(source).for_each(|(out, byte)| *out = table[usize::from(*byte)]);
        }
    }
}

fn add_product(factor: u8, source: &[u8], out: &mut [u8]) {
    match factor {
        0 => {}
        _ if *IS_FAST => galois_8::mul_slice_xor(factor, source, out),
        _ => {
            let table = products(factor);
            out.iter_mut().zip(source).for_each(|(out, byte)| *out ^= table[usize::from(*byte)]);
        }
    }
}

fn products(factor: u8) -> [u8; 256] {
    std::array::from_fn(|byte| galois_8::mul(factor, byte as u8))
}

/// A row times a matrix.
fn times(row: &[u8], matrix: &[Vec<u8>]) -> Vec<u8> {
    let column = |j: usize| row.iter().zip(matrix).fold(0, |sum, (a, row)| sum ^ galois_8::mul(*a, row[j]));
    (0..matrix[0].len()).map(column).collect()
}

/// The inverse of a square matrix, by elimination; none if there is none.
fn inverse(mut matrix: Vec<Vec<u8>>) -> Option<Vec<Vec<u8>>> {
    let size = matrix.len();
    let mut inverse: Vec<Vec<u8>> =
        (0..size).map(|i| (0..size).map(|j| u8::from(i == j)).collect()).collect();
    for at in 0..size {
        let pivot = (at..size).find(|row| matrix[*row][at] != 0)?;
        matrix.swap(at, pivot);
        inverse.swap(at, pivot);
        let scale = galois_8::div(1, matrix[at][at]);
        for both in [&mut matrix, &mut inverse] {
            both[at].iter_mut().for_each(|value| *value = galois_8::mul(*value, scale));
        }
        let (pivot, pivot_inverse) = (matrix[at].clone(), inverse[at].clone());
        for row in (0..size).filter(|row| *row != at) {
            let factor = matrix[row][at];
            for (both, pivot) in [(&mut matrix, &pivot), (&mut inverse, &pivot_inverse)] {
                both[row].iter_mut().zip(pivot).for_each(|(value, p)| *value ^= galois_8::mul(factor, *p));
            }
        }
    }
    Some(inverse)
}

#[cfg(test)]
mod tests {
    use super::*;
    use reed_solomon_erasure::galois_8::ReedSolomon;

    fn shards(count: usize, bytes: usize, seed: u64) -> Vec<Vec<u8>> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        };
        (0..count).map(|_| (0..bytes).map(|_| next()).collect()).collect()
    }

    fn encoded(code: &Erasure, data: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut parity = vec![vec![0xee; data[0].len()]; code.parity()];
        let sources: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
        let mut out: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
        code.encode(&sources, &mut out);
        parity
    }

    /// What somebody else's implementation makes of the same bytes.
    #[test]
    fn parity_is_what_another_implementation_makes() {
        for (k, m) in [(1, 1), (2, 1), (2, 2), (3, 2), (4, 2), (6, 3), (8, 2), (16, 4)] {
            let data = shards(k, 40_000 + k, k as u64);
            let mut all = data.clone();
            all.extend(vec![vec![0; data[0].len()]; m]);
            ReedSolomon::new(k, m).unwrap().encode(&mut all).unwrap();
            assert_eq!(encoded(&Erasure::new(k, m), &data), all[k..], "{k}+{m}");
        }
    }

    /// What the page on the format says, worked out by another program.
    #[test]
    fn the_coefficients_are_those_written_down() {
        let of = |k, m| Erasure::new(k, m).coefficients().to_vec();
        assert_eq!(of(4, 2), [[27, 28, 18, 20], [28, 27, 20, 18]]);
        assert_eq!(of(2, 1), [[3, 2]]);
        assert_eq!(of(1, 2), [[1], [1]]);
    }

    /// Every choice of what is lost, with every choice of what it is made of.
    #[test]
    fn any_k_shards_give_the_others() {
        for (k, m) in [(2, 1), (3, 2), (4, 2), (2, 3)] {
            let code = Erasure::new(k, m);
            let mut all = shards(k, 700, 7);
            all.extend(encoded(&code, &all));
            for mask in 0u32..1 << (k + m) {
                let there: Vec<usize> = (0..k + m).filter(|n| mask & (1 << n) != 0).collect();
                if there.len() != k {
                    continue;
                }
                let sources: Vec<(usize, &[u8])> = there.iter().map(|n| (*n, all[*n].as_slice())).collect();
                let lost: Vec<usize> = (0..k + m).filter(|n| !there.contains(n)).collect();
                let mut out = vec![vec![0xee; 700]; lost.len()];
                let mut wanted: Vec<(usize, &mut [u8])> =
                    lost.iter().copied().zip(out.iter_mut().map(Vec::as_mut_slice)).collect();
                code.decode(&sources, &mut wanted);
                for (n, out) in lost.iter().zip(&out) {
                    assert_eq!(out, &all[*n], "{k}+{m}: {n} from {there:?}");
                }
            }
        }
    }

    /// The way without the processor's help says the same.
    #[test]
    fn both_ways_agree() {
        let source = &shards(1, 333, 5)[0];
        for factor in 0..=255u8 {
            let (mut fast, mut plain) = (vec![9; 333], vec![9; 333]);
            add_product(factor, source, &mut fast);
            let table = products(factor);
            plain.iter_mut().zip(source).for_each(|(out, byte)| *out ^= table[usize::from(*byte)]);
            assert_eq!(fast, plain);
        }
    }
}
