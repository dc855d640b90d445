//! The filter: answers most lookups of what is not there without touching the index.
//!
//! A blocked Bloom filter (Putze, Sanders and Singler, *Cache-, hash- and space-efficient Bloom filters*,
//! 2007: all bits of a key lie in one cache line) in pages that grow by linear hashing (Litwin, *Linear
//! hashing*, 1980: one page is split at a time, in a fixed order). A page covers the keys that begin alike, so
//! that it can be made from a range of the index, and it is loaded, saved and made anew by itself.
//!
//! With 10 bits for a key on average and 6 set by each, 1 to 3 % of the keys that are not there pass: most of
//! them in the pages that are still to be split, of which the last of a round has half the bits for each key
//! and lets 12 % pass. The filter takes 21 MB for 2^24 keys, which are 1 TiB in chunks of the average size. At
//! the limit of memory pages fill up until 16 % pass; from then on new keys have no room and are not found.
//!
//! Keys are never taken out. A page in which many have died is made anew once it is full.

use super::Key;
use aegisfs_format::filter::{FILTER_PAGE_BYTES, FilterPage};

/// Bits for a key on average.
const BITS_PER_KEY: u64 = 10;
/// Bits set by a key. Changing it, like all of [`place`], takes another number of the algorithm.
const PROBES: u32 = 6;
/// Words of a block, which is a cache line.
const BLOCK_WORDS: usize = 8;
const BLOCKS: u64 = (FILTER_PAGE_BYTES / (8 * BLOCK_WORDS)) as u64;
/// Keys of a page on average.
const PAGE_KEYS: u64 = FILTER_PAGE_BYTES as u64 * 8 / BITS_PER_KEY;
/// A page takes no more keys than this: what has no room is not found. The last page to be split in a round
/// has twice the average.
pub(super) const PAGE_KEYS_MAX: u32 = (FILTER_PAGE_BYTES * 8 * 2 / 9) as u32;
/// A full page is made anew when so many keys were put in, or had no room, since it was made.
const PAGE_KEYS_STALE: u32 = PAGE_KEYS_MAX / 4;
/// Memory of a page.
const PAGE_MEMORY_BYTES: usize = 4096;

/// Which keys a page covers: their first four bytes of hash agree with `start` in `depth` bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cover {
    pub(super) start: u32,
    pub(super) depth: u8,
}

impl Cover {
    /// The first prefix behind it, unless it reaches to the end.
    pub(super) fn end(self) -> Option<u32> {
        1u32.checked_shl(32 - u32::from(self.depth)).and_then(|width| self.start.checked_add(width))
    }

    pub(super) fn contains(self, key: &Key) -> bool {
        let prefix = prefix(key);
        prefix >= self.start && self.end().is_none_or(|end| prefix < end)
    }

    /// Its two halves.
    pub(super) fn halves(self) -> [Self; 2] {
        let depth = self.depth + 1;
        [Self { depth, ..self }, Self { start: self.start | 1 << (32 - u32::from(depth)), depth }]
    }
}

/// A page in memory.
struct Page {
    page: FilterPage,
    /// Differs from what is saved.
    dirty: bool,
    /// Keys that came since it was made or loaded, those without room included.
    came: u32,
}

/// Says for sure that a key is not there, or that it may be. What lies in a page that is not loaded counts as
/// not there.
pub(super) struct Filter {
    pages: Vec<Option<Page>>,
}

impl Filter {
    /// A filter of which nothing is loaded.
    pub(super) fn unloaded(pages: usize) -> Self {
        Self { pages: (0..pages.max(1)).map(|_| None).collect() }
    }

    /// Pages for so many keys, if there may be so many.
    pub(super) fn pages_for(keys: u64, memory_bytes: usize) -> usize {
        (keys.div_ceil(PAGE_KEYS) as usize).clamp(1, (memory_bytes / PAGE_MEMORY_BYTES).max(1))
    }

    pub(super) fn len(&self) -> usize {
        self.pages.len()
    }

    /// Which keys a page covers.
    pub(super) fn cover(&self, page: usize) -> Cover {
        let (depth, split) = self.shape();
        let (number, depth) = if page < 2 * split { (page, depth + 1) } else { (page - split, depth) };
        let start = (number as u64) << (32 - depth);
        Cover { start: u32::try_from(start).expect("pages are fewer than prefixes"), depth: depth as u8 }
    }

    /// How many bits tell the pages that are not split in this round, and how many are.
    fn shape(&self) -> (u32, usize) {
        let depth = self.pages.len().ilog2();
        (depth, self.pages.len() - (1 << depth))
    }

    fn page_of(&self, key: &Key) -> usize {
        let (depth, split) = self.shape();
        let wide = (u64::from(prefix(key)) >> (31 - depth)) as usize;
        if wide / 2 < split { wide } else { split + wide / 2 }
    }

    pub(super) fn may_contain(&self, key: &Key) -> bool {
        let Some(page) = &self.pages[self.page_of(key)] else { return false };
        let (block, bits) = place(key);
        bits.into_iter().all(|(word, bit)| page.page.words[block + word] & 1 << bit != 0)
    }

    /// Puts a key in, unless its page is full or not loaded.
    pub(super) fn insert(&mut self, key: &Key) {
        let page = self.page_of(key);
        if let Some(page) = &mut self.pages[page] {
            page.dirty |= put(&mut page.page, key);
            page.came += 1;
        }
    }

    /// Puts a page in its place.
    pub(super) fn load(&mut self, number: usize, page: FilterPage, dirty: bool) {
        self.pages[number] = Some(Page { page, dirty, came: 0 });
    }

    /// The page that is to be split next.
    pub(super) fn next_split(&self) -> usize {
        2 * self.shape().1
    }

    /// Puts two pages in the place of the one that was to be split.
    pub(super) fn split(&mut self, halves: [FilterPage; 2]) {
        let at = self.next_split();
        let halves = halves.map(|page| Some(Page { page, dirty: true, came: 0 }));
        self.pages.splice(at..=at, halves);
    }

    /// A full page that is worth to be made anew.
    pub(super) fn stale(&self) -> Option<usize> {
        let stale = |page: &Page| page.page.hashes >= PAGE_KEYS_MAX && page.came >= PAGE_KEYS_STALE;
        self.pages.iter().position(|page| page.as_ref().is_some_and(stale))
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.pages.iter().flatten().any(|page| page.dirty)
    }

    /// The pages that differ from what is saved, which they do no more.
    pub(super) fn take_dirty(&mut self) -> Vec<FilterPage> {
        let dirty = self.pages.iter_mut().flatten().filter(|page| page.dirty);
        dirty
            .map(|page| {
                page.dirty = false;
                page.page.clone()
            })
            .collect()
    }
}

/// A page without keys.
pub(super) fn empty_page(cover: Cover) -> FilterPage {
    let words = Box::new([0; FILTER_PAGE_BYTES / 8]);
    FilterPage { start: cover.start, depth: cover.depth, hashes: 0, words }
}

/// Puts a key into a page, if there is room; says whether that changed anything.
pub(super) fn put(page: &mut FilterPage, key: &Key) -> bool {
    if page.hashes >= PAGE_KEYS_MAX {
        return false;
    }
    let (block, bits) = place(key);
    let mut changed = false;
    for (word, bit) in bits {
        let word = &mut page.words[block + word];
        changed |= *word & 1 << bit == 0;
        *word |= 1 << bit;
    }
    page.hashes += u32::from(changed);
    changed
}

/// The first four bytes of a key's hash, which choose the page.
fn prefix(key: &Key) -> u32 {
    u32::from_be_bytes(key[4..8].try_into().expect("four bytes"))
}

/// A key's block, by its first word, and the bits in it. Keys end in a cryptographic hash, so their own bytes
/// are as random as any.
fn place(key: &Key) -> (usize, [(usize, u32); PROBES as usize]) {
    let low = u32::from_be_bytes(key[8..12].try_into().expect("four bytes"));
    let mut high = u64::from_be_bytes(key[12..].try_into().expect("eight bytes"));
    let block = ((u64::from(low) * BLOCKS) >> 32) as usize * BLOCK_WORDS;
    let bits = std::array::from_fn(|_| {
        let bit = high & 511;
        high >>= 9;
        ((bit / 64) as usize, (bit % 64) as u32)
    });
    (block, bits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use aegisfs_base::{Rng, SeededRng};

    fn random_key(rng: &SeededRng) -> Key {
        let mut key = [0; 20];
        rng.fill(&mut key[4..]);
        key
    }

    fn filled(pages: usize, keys: &[Key]) -> Filter {
        let mut filter = Filter::unloaded(pages);
        for number in 0..pages {
            filter.load(number, empty_page(filter.cover(number)), false);
        }
        keys.iter().for_each(|key| filter.insert(key));
        filter
    }

    #[test]
    fn pages_cover_every_key_once_whatever_their_number() {
        let rng = SeededRng::new(3);
        for pages in 1..70 {
            let filter = Filter::unloaded(pages);
            let covers: Vec<_> = (0..pages).map(|page| filter.cover(page)).collect();
            assert_eq!((covers[0].start, covers[pages - 1].end()), (0, None));
            assert!(covers.is_sorted_by(|a, b| a.end() == Some(b.start)));
            for _ in 0..50 {
                let key = random_key(&rng);
                assert!(filter.cover(filter.page_of(&key)).contains(&key), "{pages} pages");
            }
            let mut split = Filter::unloaded(pages);
            let at = split.next_split();
            let halves = split.cover(at).halves();
            split.split(halves.map(empty_page));
            assert_eq!([split.cover(at), split.cover(at + 1)], halves, "{pages} pages");
        }
    }

    #[test]
    fn nothing_is_missed_and_little_gets_through() {
        let rng = SeededRng::new(11);
        for (pages, keys, most) in [(64, 64 * PAGE_KEYS, 2_000), (48, 48 * PAGE_KEYS, 3_000), (1, 100, 5)] {
            let keys: Vec<Key> = (0..keys).map(|_| random_key(&rng)).collect();
            let filter = filled(pages, &keys);
            assert!(keys.iter().all(|key| filter.may_contain(key)));
            let through = (0..100_000).filter(|_| filter.may_contain(&random_key(&rng))).count();
            assert!(through < most, "{through} of 100,000 misses get through {pages} pages");
        }
    }

    #[test]
    fn a_full_page_takes_no_more_and_is_stale_after_a_while() {
        let rng = SeededRng::new(12);
        let keys: Vec<Key> = (0..12_000).map(|_| random_key(&rng)).collect();
        let filter = filled(1, &keys);
        let found = keys.iter().filter(|key| filter.may_contain(key)).count();
        assert!((PAGE_KEYS_MAX as usize..keys.len()).contains(&found), "{found}");
        assert_eq!(filter.stale(), Some(0));
        assert_eq!(filled(1, &keys[..3_000]).stale(), None);
    }

    #[test]
    fn the_limit_holds_and_a_tebibyte_takes_what_is_said() {
        let mib = 1 << 20;
        assert_eq!(Filter::pages_for(0, 64 * mib), 1);
        assert_eq!(Filter::pages_for(u64::MAX, 64 * mib) * PAGE_MEMORY_BYTES, 64 * mib);
        let tebibyte = Filter::pages_for(1 << 24, usize::MAX) * FILTER_PAGE_BYTES;
        assert!((20_000_000..22_000_000).contains(&tebibyte), "{tebibyte}");
    }
}
