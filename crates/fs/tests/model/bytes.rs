//! A file's content in the model: pages of bytes, and of each byte whether it was ever written.

use std::collections::BTreeMap;
use std::ops::Range;

const PAGE: u64 = 4096;

/// What is known of a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// Nobody ever wrote it: it is a hole.
    Never,
    /// It reads as zero and may or may not be stored.
    Perhaps,
    /// It was written.
    Written,
}

#[derive(Clone)]
struct Page {
    bytes: [u8; PAGE as usize],
    known: [Known; PAGE as usize],
}

/// The content of a file.
#[derive(Clone, Default)]
pub(crate) struct Bytes {
    pub(crate) size: u64,
    pages: BTreeMap<u64, Box<Page>>,
}

impl Bytes {
    fn page(&mut self, number: u64) -> &mut Page {
        let empty = || Box::new(Page { bytes: [0; PAGE as usize], known: [Known::Never; PAGE as usize] });
        self.pages.entry(number).or_insert_with(empty)
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        self.put(offset, data, |_| Known::Written);
    }

    /// Takes over bytes of another file; holes may have become zeros.
    pub(crate) fn copy(&mut self, offset: u64, data: &[(u8, Known)]) {
        let bytes: Vec<u8> = data.iter().map(|(byte, _)| *byte).collect();
        self.put(offset, &bytes, |n| match data[n].1 {
            Known::Written => Known::Written,
            Known::Never | Known::Perhaps => Known::Perhaps,
        });
    }

    fn put(&mut self, offset: u64, data: &[u8], known: impl Fn(usize) -> Known) {
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let within = (at % PAGE) as usize;
            let count = (PAGE as usize - within).min(data.len() - done);
            let page = self.page(at / PAGE);
            page.bytes[within..within + count].copy_from_slice(&data[done..done + count]);
            for n in 0..count {
                page.known[within + n] = known(done + n);
            }
            done += count;
        }
        if !data.is_empty() {
            self.size = self.size.max(offset + data.len() as u64);
        }
    }

    /// Makes a range a hole; what lies beside the inode of a tiny file may become zeros instead.
    pub(crate) fn clear(&mut self, range: Range<u64>) {
        let tiny = aegisfs_base::limits::INLINE_BYTES_MAX as u64;
        let pages: Vec<u64> =
            self.pages.range(range.start / PAGE..=range.end / PAGE).map(|(n, _)| *n).collect();
        for number in pages {
            let start = number * PAGE;
            let page = self.page(number);
            for n in 0..PAGE as usize {
                let at = start + n as u64;
                if range.contains(&at) {
                    page.bytes[n] = 0;
                    page.known[n] = if at < tiny { Known::Perhaps } else { Known::Never };
                }
            }
        }
        // A hole before the end of a tiny file may have become zeros, too.
        let end = range.end.min(tiny).min(self.size);
        for at in range.start..end {
            self.page(at / PAGE).known[(at % PAGE) as usize] = Known::Perhaps;
        }
    }

    pub(crate) fn resize(&mut self, size: u64) {
        if size < self.size {
            self.pages.split_off(&size.div_ceil(PAGE));
            if let Some(page) = self.pages.get_mut(&(size / PAGE)) {
                let from = (size % PAGE) as usize;
                page.bytes[from..].fill(0);
                page.known[from..].fill(Known::Never);
            }
        }
        self.size = size;
    }

    fn at(&self, offset: u64) -> (u8, Known) {
        let page = self.pages.get(&(offset / PAGE));
        let within = (offset % PAGE) as usize;
        page.map_or((0, Known::Never), |page| (page.bytes[within], page.known[within]))
    }

    /// What a read of a range returns; shorter at the end.
    pub(crate) fn read(&self, offset: u64, length: u64) -> Vec<(u8, Known)> {
        let end = offset.saturating_add(length).min(self.size);
        (offset..end.max(offset)).map(|at| self.at(at)).collect()
    }

    /// Stretches in which something is known, page by page, within the size.
    pub(crate) fn stretches(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.pages.keys().map(|n| n * PAGE..((n + 1) * PAGE).min(self.size)).filter(|range| !range.is_empty())
    }

    /// Whether nothing of it was ever written.
    pub(crate) fn is_hole(&self) -> bool {
        self.stretches().all(|range| range.clone().all(|at| self.at(at).1 == Known::Never))
    }

    /// Whether a range holds a byte that was written and is not zero.
    pub(crate) fn has_data(&self, range: Range<u64>) -> bool {
        self.any(range, |(byte, known)| known == Known::Written && byte != 0)
    }

    /// Whether a range holds a byte that nobody ever wrote.
    pub(crate) fn has_hole(&self, range: Range<u64>) -> bool {
        let mut at = range.start;
        while at < range.end {
            let stop = ((at / PAGE + 1) * PAGE).min(range.end);
            match self.pages.get(&(at / PAGE)) {
                None => return true,
                Some(_) if (at..stop).any(|at| self.at(at).1 == Known::Never) => return true,
                Some(_) => at = stop,
            }
        }
        false
    }

    fn any(&self, range: Range<u64>, wanted: impl Fn((u8, Known)) -> bool) -> bool {
        let numbers = self.pages.range(range.start / PAGE..=range.end / PAGE).map(|(number, _)| *number);
        numbers.flat_map(|n| n * PAGE..(n + 1) * PAGE).any(|at| range.contains(&at) && wanted(self.at(at)))
    }
}
