//! A file's bytes that are not in rows yet, lying over what is stored.

mod ranges;

use crate::buffers::{self, RUN_BYTES_MAX};
pub(crate) use ranges::Ranges;
use std::collections::BTreeMap;

/// A run of this size is given the room for a whole one at once: at least half of it is used then.
const RUN_BYTES_GROWING: usize = RUN_BYTES_MAX / 2;
/// How far back contiguous bytes are followed to tell how many there are.
const RUNS_FOLLOWED: usize = 4;

/// Where a run's bytes stand besides memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Nowhere.
    New,
    /// In the intent log; they still have to go into a row.
    Logged,
    /// Beside the inode; they are here because the rest of the file is.
    Inline,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Run {
    data: Vec<u8>,
    origin: Origin,
}

impl Run {
    fn new(bytes: &[u8], origin: Origin) -> Self {
        let mut run = Self { data: Vec::new(), origin };
        run.append(bytes);
        run
    }

    fn append(&mut self, bytes: &[u8]) {
        let length = self.data.len() + bytes.len();
        if (RUN_BYTES_GROWING..=RUN_BYTES_MAX).contains(&length) && self.data.capacity() < RUN_BYTES_MAX {
            let mut room = buffers::take();
            room.extend_from_slice(&self.data);
            self.data = room;
        }
        self.data.extend_from_slice(bytes);
    }

    /// What was cut short keeps no room for a whole run: memory is bounded by the bytes that are counted.
    fn give_back_room(&mut self) {
        if self.data.len() < RUN_BYTES_GROWING {
            self.data.shrink_to_fit();
        }
    }

    fn end(&self, offset: u64) -> u64 {
        offset + self.data.len() as u64
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        buffers::give_back(std::mem::take(&mut self.data));
    }
}

/// Runs of bytes by their offset; they never overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Overlay {
    runs: BTreeMap<u64, Run>,
    /// Bytes by where else they stand, so that no write has to add up all runs.
    counts: Counts,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    new: u64,
    logged: u64,
    inline: u64,
}

impl Counts {
    fn of(&mut self, origin: Origin) -> &mut u64 {
        match origin {
            Origin::New => &mut self.new,
            Origin::Logged => &mut self.logged,
            Origin::Inline => &mut self.inline,
        }
    }
}

impl Overlay {
    fn from_runs(runs: BTreeMap<u64, Run>) -> Self {
        let mut counts = Counts::default();
        runs.values().for_each(|run| *counts.of(run.origin) += run.data.len() as u64);
        Self { runs, counts }
    }

    fn insert(&mut self, offset: u64, run: Run) {
        *self.counts.of(run.origin) += run.data.len() as u64;
        self.runs.insert(offset, run);
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        self.counts.new + self.counts.logged + self.counts.inline
    }

    /// Bytes held that have to go into a row or beside the inode.
    pub(crate) fn waiting_bytes(&self) -> u64 {
        self.counts.new + self.counts.logged
    }

    /// Bytes held that stand nowhere else.
    pub(crate) fn new_bytes(&self) -> u64 {
        self.counts.new
    }

    /// Contiguous runs held.
    pub(crate) fn run_count(&self) -> u64 {
        self.runs.len() as u64
    }

    /// Whether something has to go into a row.
    pub(crate) fn needs_flush(&self) -> bool {
        self.waiting_bytes() > 0
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The first contiguous stretch of at least so many bytes: where it begins and ends.
    pub(crate) fn long_stretch(&self, bytes: u64) -> Option<(u64, u64)> {
        self.bounds().find(|(from, to)| to - from >= bytes)
    }

    /// Where each contiguous stretch begins and ends, in order.
    pub(crate) fn bounds(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let mut runs = self.runs.iter().map(|(start, run)| (*start, run.end(*start))).peekable();
        std::iter::from_fn(move || {
            let (from, mut to) = runs.next()?;
            while let Some((_, end)) = runs.next_if(|(start, _)| *start == to) {
                to = end;
            }
            Some((from, to))
        })
    }

    /// Puts bytes over whatever was there; says how long the stretch is that they end, or that it is long.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8], origin: Origin) -> usize {
        if data.is_empty() {
            return 0;
        }
        self.cut(offset, offset + data.len() as u64);
        if let Some((start, run)) = self.runs.range_mut(..offset).next_back()
            && run.end(*start) == offset
            && run.origin == origin
            && run.data.len() + data.len() <= RUN_BYTES_MAX
        {
            run.append(data);
            *self.counts.of(origin) += data.len() as u64;
        } else {
            self.insert(offset, Run::new(data, origin));
        }
        self.length_before(offset + data.len() as u64)
    }

    /// How many contiguous bytes end at an offset, as far as that is followed.
    fn length_before(&self, end: u64) -> usize {
        let mut from = end;
        for (start, run) in self.runs.range(..end).rev().take(RUNS_FOLLOWED) {
            if run.end(*start) != from {
                break;
            }
            from = *start;
        }
        (end - from) as usize
    }

    /// Takes a range out.
    pub(crate) fn cut(&mut self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        if let Some((start, run)) = self.runs.range_mut(..from).next_back() {
            let (start, end, origin) = (*start, run.end(*start), run.origin);
            if end > from {
                let tail = run.data.split_off((from - start) as usize);
                run.give_back_room();
                *self.counts.of(origin) -= tail.len() as u64;
                if end > to {
                    self.insert(to, Run { data: tail[(to - from) as usize..].to_vec(), origin });
                    return;
                }
            }
        }
        while let Some((start, end)) = self.runs.range(from..to).next().map(|(s, run)| (*s, run.end(*s))) {
            let run = self.runs.remove(&start).expect("it was just found");
            *self.counts.of(run.origin) -= run.data.len() as u64;
            if end > to {
                self.insert(to, Run { data: run.data[(to - start) as usize..].to_vec(), origin: run.origin });
            }
        }
    }

    /// Takes everything from an offset on out and returns it.
    pub(crate) fn split_off(&mut self, at: u64) -> Self {
        let mut tail = self.runs.split_off(&at);
        if let Some((start, run)) = self.runs.range_mut(..at).next_back()
            && run.end(*start) > at
        {
            let data = run.data.split_off((at - start) as usize);
            run.give_back_room();
            tail.insert(at, Run { data, origin: run.origin });
        }
        let tail = Self::from_runs(tail);
        self.counts.new -= tail.counts.new;
        self.counts.logged -= tail.counts.logged;
        self.counts.inline -= tail.counts.inline;
        tail
    }

    /// Takes the first runs out, at least one, up to so many of them and so many bytes.
    pub(crate) fn take_first(&mut self, runs: usize, bytes: u64) -> Self {
        let mut so_far = 0;
        let beyond = self.runs.iter().enumerate().find(|(n, (_, run))| {
            so_far += run.data.len() as u64;
            *n >= runs || *n > 0 && so_far > bytes
        });
        let Some((_, (start, _))) = beyond else { return std::mem::take(self) };
        let start = *start;
        let rest = self.split_off(start);
        std::mem::replace(self, rest)
    }

    /// Takes everything before an offset out.
    pub(crate) fn take_before(&mut self, to: u64) -> Self {
        let behind = self.split_off(to);
        std::mem::replace(self, behind)
    }

    /// Whether fewer runs, and fewer bytes, than this lie before an offset.
    pub(crate) fn few_before(&self, to: u64, runs: usize, bytes: u64) -> bool {
        let before = self.runs.range(..to).take(runs);
        let (count, sum) = before.fold((0, 0), |(n, sum), (_, run)| (n + 1, sum + run.data.len() as u64));
        count < runs && sum < bytes
    }

    /// A copy of everything from an offset on.
    pub(crate) fn tail(&self, at: u64) -> Self {
        let mut tail = Self::default();
        let before = self.runs.range(..at).next_back().into_iter();
        for (start, run) in before.chain(self.runs.range(at..)) {
            let from = at.max(*start);
            if from < run.end(*start) {
                let data = run.data[(from - start) as usize..].to_vec();
                tail.insert(from, Run { data, origin: run.origin });
            }
        }
        tail
    }

    /// Where the first run begins.
    pub(crate) fn start(&self) -> Option<u64> {
        self.runs.first_key_value().map(|(start, _)| *start)
    }

    /// Where the last run ends.
    pub(crate) fn end(&self) -> u64 {
        self.runs.last_key_value().map_or(0, |(start, run)| run.end(*start))
    }

    /// Copies what it has of a range into a buffer that begins at `offset`, and marks those bytes as found.
    pub(crate) fn read(&self, offset: u64, out: &mut [u8], found: &mut Ranges) {
        let end = offset + out.len() as u64;
        let before = self.runs.range(..offset).next_back().into_iter();
        for (start, run) in before.chain(self.runs.range(offset..end)) {
            let (from, to) = ((*start).max(offset), run.end(*start).min(end));
            if from >= to {
                continue;
            }
            for (gap_from, gap_to) in found.gaps(from, to) {
                let source = &run.data[(gap_from - start) as usize..(gap_to - start) as usize];
                out[(gap_from - offset) as usize..(gap_to - offset) as usize].copy_from_slice(source);
            }
            found.add(from, to);
        }
    }

    /// Ranges held, joined where they touch.
    pub(crate) fn ranges(&self) -> Ranges {
        Ranges::from_apart(self.bounds())
    }

    /// The runs that stand nowhere else.
    pub(crate) fn new_runs(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let new = self.runs.iter().filter(|(_, run)| run.origin == Origin::New);
        new.map(|(offset, run)| (*offset, &run.data[..]))
    }

    /// Takes what stands beside the inode for bytes that have to go into rows.
    pub(crate) fn mark_new(&mut self) {
        for run in self.runs.values_mut() {
            if run.origin == Origin::Inline {
                run.origin = Origin::New;
            }
        }
        self.counts.new += std::mem::take(&mut self.counts.inline);
    }

    /// Notes that everything now stands in the log.
    pub(crate) fn mark_logged(&mut self) {
        for run in self.runs.values_mut() {
            if run.origin == Origin::New {
                run.origin = Origin::Logged;
            }
        }
        self.counts.logged += std::mem::take(&mut self.counts.new);
    }

    /// Contiguous stretches: where each begins, and the slices that it lies in.
    pub(crate) fn stretches(&self) -> Vec<(u64, Vec<&[u8]>)> {
        let mut stretches: Vec<(u64, Vec<&[u8]>)> = Vec::new();
        let mut end = None;
        for (offset, run) in &self.runs {
            match stretches.last_mut() {
                Some((_, slices)) if end == Some(*offset) => slices.push(&run.data),
                _ => stretches.push((*offset, vec![&run.data])),
            }
            end = Some(run.end(*offset));
        }
        stretches
    }

    /// Puts another overlay's bytes under this one's: what is here stays.
    pub(crate) fn put_under(&mut self, older: Overlay) {
        let newer = self.ranges();
        for (offset, run) in older.runs {
            let gaps = newer.gaps(offset, run.end(offset));
            if gaps[..] == [(offset, run.end(offset))] {
                self.insert(offset, run);
                continue;
            }
            for (from, to) in gaps {
                let data = run.data[(from - offset) as usize..(to - offset) as usize].to_vec();
                self.insert(from, Run { data, origin: run.origin });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aegisfs_base::{Rng, SeededRng};

    #[test]
    fn it_agrees_with_a_plain_array() {
        let rng = SeededRng::new(5);
        for _ in 0..200 {
            let mut overlay = Overlay::default();
            let mut model: Vec<Option<u8>> = vec![None; 300];
            for step in 0..60u8 {
                let from = rng.below(250);
                let to = from + rng.below(50);
                if rng.below(4) == 0 {
                    overlay.cut(from, to);
                    model[from as usize..to as usize].fill(None);
                } else {
                    let origin = if rng.below(2) == 0 { Origin::New } else { Origin::Logged };
                    overlay.write(from, &vec![step; (to - from) as usize], origin);
                    model[from as usize..to as usize].fill(Some(step));
                }
                let mut out = vec![255; 300];
                let mut found = Ranges::default();
                overlay.read(0, &mut out, &mut found);
                for (at, expected) in model.iter().enumerate() {
                    let there = found.gaps(at as u64, at as u64 + 1).is_empty();
                    assert_eq!(expected.is_some(), there);
                    assert!(expected.is_none_or(|byte| byte == out[at]));
                }
                assert_eq!(overlay.bytes(), model.iter().flatten().count() as u64);
                assert_eq!(overlay, Overlay::from_runs(overlay.runs.clone()), "the counts are right");
                let length = |slices: &[&[u8]]| slices.iter().map(|slice| slice.len() as u64).sum::<u64>();
                let stretches = overlay.stretches();
                let ends = stretches.iter().map(|(start, slices)| (*start, start + length(slices)));
                assert!(ends.eq(overlay.ranges().iter()));
                let longest = overlay.ranges().iter().map(|(from, to)| to - from).max().unwrap_or(0);
                assert_eq!(overlay.long_stretch(longest + 1), None);
                let found = overlay.long_stretch(longest.max(1)).map_or(0, |(from, to)| to - from);
                assert_eq!(found, longest);
            }
        }
    }

    #[test]
    fn parts_are_taken_out_and_put_back() {
        let mut whole = Overlay::default();
        for n in 0..10u64 {
            whole.write(n * 100, &[n as u8; 60], if n % 3 == 0 { Origin::Inline } else { Origin::New });
        }
        assert_eq!((whole.bytes(), whole.waiting_bytes(), whole.end()), (600, 360, 960));
        for at in [0, 30, 60, 100, 455, 959, 960, 2000] {
            let mut head = whole.clone();
            let tail = head.split_off(at);
            assert!(
                head.end() <= at && tail.ranges().gaps(0, at) == if at > 0 { vec![(0, at)] } else { vec![] }
            );
            assert_eq!(tail.ranges(), whole.tail(at).ranges());
            head.put_under(tail);
            assert_eq!((head.ranges(), head.counts), (whole.ranges(), whole.counts));
            let front = head.take_before(at);
            assert_eq!((head.bytes() + front.bytes(), head.counts), (600, whole.tail(at).counts));
            assert!(front.end() <= at && head.start().is_none_or(|start| start >= at));
            let few = whole.runs.keys().filter(|start| **start < at).count();
            assert!(whole.few_before(at, few + 1, 601) && (few == 0 || !whole.few_before(at, few, 601)));
        }
        let mut rest = whole.clone();
        assert_eq!((rest.take_first(3, 1000).end(), rest.bytes()), (260, 420));
        assert_eq!((rest.take_first(9, 130).end(), rest.bytes()), (460, 300));
        assert_eq!((rest.take_first(9, 1).end(), rest.bytes()), (560, 240));
        assert_eq!((rest.take_first(9, 1000).end(), rest.is_empty()), (960, true));
    }

    #[test]
    fn what_is_left_of_a_run_takes_no_more_memory_than_it_has_bytes() {
        let mut overlay = Overlay::default();
        for n in 0..4u64 {
            overlay.write(n << 21, &[1; 1 << 20], Origin::New);
            overlay.cut((n << 21) + 4096, (n + 1) << 21);
        }
        let behind = overlay.split_off((3 << 21) + 100);
        let room: usize =
            [&overlay, &behind].iter().flat_map(|o| o.runs.values()).map(|r| r.data.capacity()).sum();
        assert_eq!((overlay.bytes() + behind.bytes(), room < 100_000), (4 * 4096, true), "{room}");
    }

    #[test]
    fn older_bytes_go_under() {
        let (mut newer, mut older) = (Overlay::default(), Overlay::default());
        older.write(0, b"oooooo", Origin::Logged);
        newer.write(2, b"nn", Origin::New);
        newer.put_under(older);
        let mut out = [0; 6];
        newer.read(0, &mut out, &mut Ranges::default());
        assert_eq!(&out, b"oonnoo");
        assert_eq!(newer.new_bytes(), 2);
        newer.mark_logged();
        assert_eq!(newer.new_bytes(), 0);
    }
}
