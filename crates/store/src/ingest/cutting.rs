//! Cutting: pieces of files into chunks, wherever their bytes lie in memory.

use super::Piece;
use aegisfs_base::ChunkId;
use aegisfs_base::limits::CHUNK_BYTES_MAX;
use aegisfs_chunk::{ChunkHash, next_cut};
use rayon::prelude::*;
use std::borrow::Cow;

/// Fewer bytes than this are not worth handing to other threads to be hashed.
const PARALLEL_BYTES_MIN: usize = 1 << 20;

/// A chunk of the batch: where it came from and what it became.
pub(super) struct Cut<'a> {
    pub(super) file: usize,
    pub(super) offset: u64,
    pub(super) data: Cow<'a, [u8]>,
    pub(super) hash: [u8; 32],
    pub(super) chunk: Option<ChunkId>,
}

/// Cuts every piece into chunks and hashes them, and hands them on in groups of about so many bytes. Says how many
/// bytes at the end of each file's open piece are left, since where the chunk ends depends on what follows.
pub(super) fn cut<'a, E>(
    files: usize,
    pieces: &[Piece<'a>],
    workers: Option<&rayon::ThreadPool>,
    group_bytes: usize,
    mut take: impl FnMut(Vec<Cut<'a>>) -> Result<(), E>,
) -> Result<Vec<u64>, E> {
    let mut cuts = Vec::new();
    let mut bytes = 0;
    let mut left = vec![0; files];
    for piece in pieces {
        let mut offset = piece.offset;
        let rest = cut_slices(&piece.slices, piece.open, |data| {
            let length = data.len();
            cuts.push(Cut { file: piece.file, offset, data, hash: [0; 32], chunk: None });
            offset += length as u64;
            bytes += length;
            if bytes < group_bytes {
                return Ok(());
            }
            bytes = 0;
            let mut group = std::mem::take(&mut cuts);
            hash(&mut group, workers);
            take(group)
        })?;
        if piece.open {
            left[piece.file] = rest as u64;
        }
    }
    hash(&mut cuts, workers);
    take(cuts)?;
    Ok(left)
}

fn hash(cuts: &mut [Cut<'_>], workers: Option<&rayon::ThreadPool>) {
    let hash = |cut: &mut Cut<'_>| cut.hash = ChunkHash::of(&cut.data).0;
    let total: usize = cuts.iter().map(|cut| cut.data.len()).sum();
    match workers {
        Some(workers) if total >= PARALLEL_BYTES_MIN => {
            workers.install(|| cuts.par_iter_mut().for_each(hash));
        }
        _ => cuts.iter_mut().for_each(hash),
    }
}

/// Cuts bytes that lie in several slices; only a chunk that goes on in the next slice is copied. Returns how
/// many bytes at the end were not cut, which are none unless more may follow.
fn cut_slices<'a, E>(
    slices: &[&'a [u8]],
    open: bool,
    mut each: impl FnMut(Cow<'a, [u8]>) -> Result<(), E>,
) -> Result<usize, E> {
    let (mut index, mut at) = (0, 0);
    while let Some(slice) = slices.get(index) {
        let rest = &slice[at..];
        if rest.is_empty() {
            (index, at) = (index + 1, 0);
            continue;
        }
        let ends_here = index + 1 == slices.len();
        if let Some(length) = next_cut(rest, ends_here && !open) {
            each(Cow::Borrowed(&rest[..length]))?;
            at += length;
            continue;
        }
        let mut joined = Vec::with_capacity(CHUNK_BYTES_MAX);
        joined.extend_from_slice(rest);
        for next in &slices[index + 1..] {
            let room = CHUNK_BYTES_MAX - joined.len();
            joined.extend_from_slice(&next[..next.len().min(room)]);
        }
        let all: usize = rest.len() + slices[index + 1..].iter().map(|next| next.len()).sum::<usize>();
        let Some(length) = next_cut(&joined, all == joined.len() && !open) else { return Ok(all) };
        joined.truncate(length);
        each(Cow::Owned(joined))?;
        at += length;
        while slices.get(index).is_some_and(|slice| at >= slice.len()) {
            at -= slices[index].len();
            index += 1;
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use aegisfs_base::{Rng, SeededRng};

    fn cut_all(slices: &[&[u8]], open: bool) -> (Vec<Vec<u8>>, usize) {
        let mut found = Vec::new();
        let left = cut_slices(slices, open, |chunk| {
            found.push(chunk.into_owned());
            Ok::<(), ()>(())
        });
        (found, left.unwrap())
    }

    #[test]
    fn slices_are_cut_like_the_whole_however_they_fall() {
        let rng = SeededRng::new(11);
        let mut data = vec![0; 1_500_000];
        rng.fill(&mut data);
        let (whole, _) = cut_all(&[&data], false);
        for _ in 0..60 {
            let mut slices = Vec::new();
            let mut rest = &data[..];
            while !rest.is_empty() {
                let (slice, later) = rest.split_at((rng.below(400_000) as usize).min(rest.len()));
                slices.push(slice);
                rest = later;
            }
            assert!(cut_all(&slices, false) == (whole.clone(), 0));
            // With more to come, all but the last chunk are the same, and that one is left.
            let (open, left) = cut_all(&slices, true);
            assert!(open.len() + 1 >= whole.len() && open[..] == whole[..open.len()]);
            assert_eq!(open.iter().map(Vec::len).sum::<usize>() + left, data.len());
        }
    }
}
