//! The erasure code alone, on one core: how fast parity is made, and data is made from it.

use crate::Arguments;
use aegisfs_pool::Erasure;
use anyhow::Result;
use serde_json::{Value, json};
use std::hint::black_box;
use std::time::{Duration, Instant};

const COLUMN_BYTES: usize = 256 << 10;
/// So long each of both is measured.
const TIME: Duration = Duration::from_millis(700);

/// Bytes of data a second, for so many shards of data and of parity; as many are lost as may be.
pub(crate) fn run(arguments: &Arguments) -> Result<Value> {
    let (data, parity): (usize, usize) = (arguments.number("data")?, arguments.number("parity")?);
    let code = Erasure::new(data, parity);
    let column =
        |n: usize| (0..COLUMN_BYTES).map(|at| (at * 31 + n * 7 + at / 251) as u8).collect::<Vec<u8>>();
    let plain: Vec<Vec<u8>> = (0..data).map(column).collect();
    let sources: Vec<&[u8]> = plain.iter().map(Vec::as_slice).collect();
    let mut made = vec![vec![0; COLUMN_BYTES]; parity];
    let encode = rate(data, || {
        let mut out: Vec<&mut [u8]> = made.iter_mut().map(Vec::as_mut_slice).collect();
        code.encode(black_box(&sources), &mut out);
    });
    // The first shards of data are lost, and made from the others.
    let lost = parity.min(data);
    let there: Vec<(usize, &[u8])> = (lost..data)
        .map(|n| (n, sources[n]))
        .chain(made.iter().enumerate().map(|(n, bytes)| (data + n, bytes.as_slice())))
        .collect();
    let mut found = vec![vec![0; COLUMN_BYTES]; lost];
    let decode = rate(data, || {
        let mut out: Vec<(usize, &mut [u8])> = found.iter_mut().map(Vec::as_mut_slice).enumerate().collect();
        code.decode(black_box(&there), &mut out);
    });
    anyhow::ensure!(found == plain[..lost], "what was made is not what was lost");
    Ok(json!({ "encode": encode, "decode": decode }))
}

fn rate(shards: usize, mut work: impl FnMut()) -> f64 {
    work();
    let (begun, mut times) = (Instant::now(), 0u64);
    while begun.elapsed() < TIME {
        work();
        times += 1;
    }
    (times * (shards * COLUMN_BYTES) as u64) as f64 / begun.elapsed().as_secs_f64()
}
