use super::*;
use crate::tables::{Tables, TablesMut};
use crate::{MapTables, Visit};
use aegisfs_base::{Rng, RowIndex, SeededRng, SegmentId};
use aegisfs_format::descriptor::{Descriptor, FramePlace};
use aegisfs_format::filter::FilterPage;
use aegisfs_format::key::Table;
use aegisfs_format::value::{Segment, SegmentState};
use aegisfs_kv::MemoryKv;

/// Chunks follow as many policies, in turn.
const POLICIES: u64 = 3;

fn policy_of(chunk: u64) -> PolicyId {
    PolicyId((chunk % POLICIES) as u16 * 7)
}

fn segment_of(chunk: u64) -> SegmentId {
    SegmentId(1 + chunk % POLICIES)
}

/// An index in memory, and the chunks that it is about.
struct World {
    kv: MemoryKv,
    chunks: MapTables,
    hashes: Vec<[u8; 32]>,
    rng: SeededRng,
}

impl World {
    fn new() -> Self {
        let (kv, mut chunks, hashes) = (MemoryKv::new(), MapTables::default(), Vec::new());
        for chunk in 0..POLICIES {
            let segment = Segment {
                state: SegmentState::Sealed,
                shards: (1, 0),
                tier: 0,
                policy: policy_of(chunk),
                key_domain: 0,
                live_bytes: 1,
                written_bytes: 1,
                opened: 1,
                rows: 1,
                forsaken_bytes: 0,
                end: 0,
                placements: vec![Default::default()],
            };
            chunks.put(Table::Segments, &key::segment(segment_of(chunk)), segment.encode());
        }
        Self { kv, chunks, hashes, rng: SeededRng::new(9) }
    }

    fn open(&self) -> Dedup {
        let renew: Renew = Box::new(|| panic!("nothing is lost"));
        let dedup = Dedup::open(Box::new(self.kv.clone()), None, Some(renew)).unwrap();
        dedup.begin(ChunkId(self.hashes.len() as u64));
        dedup
    }

    /// Opens, and loads everything.
    fn load(&self) -> Dedup {
        let dedup = self.open();
        while dedup.load_step(&self.chunks).unwrap() {}
        dedup
    }

    /// New chunks; numbers follow each other from 0.
    fn add(&mut self, dedup: &Dedup, count: usize) {
        let first = self.hashes.len() as u64;
        let expected = dedup.expect(first);
        expected.took(first + count as u64);
        for chunk in (first..).map(ChunkId).take(count) {
            let mut hash = [0; 32];
            self.rng.fill(&mut hash);
            self.hashes.push(hash);
            let described = descriptor(segment_of(chunk.0), hash);
            self.chunks.put(Table::Chunks, &key::chunk(chunk), described.encode().to_vec());
            dedup.insert(policy_of(chunk.0), hash, chunk);
        }
    }

    fn found(&self, dedup: &Dedup) -> usize {
        let sought = self.hashes.iter().enumerate();
        let found = |(n, hash): &(usize, &[u8; 32])| {
            let chunk = *n as u64;
            // Whoever follows another policy does not find it.
            assert_eq!(dedup.find(policy_of(chunk + 1), hash).unwrap(), None);
            dedup.find(policy_of(chunk), hash).unwrap() == Some(ChunkId(chunk))
        };
        sought.filter(found).count()
    }

    /// The saved pages of the filter.
    fn pages(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut pages = Vec::new();
        let base = self.kv.snapshot().unwrap();
        base.scan(FILTER, &[], None, &mut |key, page| {
            pages.push((key.to_vec(), page.to_vec()));
            ControlFlow::Continue(())
        })
        .unwrap();
        pages
    }

    fn put(&self, table: TableId, key: &[u8], value: &[u8]) {
        let mut transaction = self.kv.begin().unwrap();
        transaction.put(table, key, value).unwrap();
        transaction.commit().unwrap();
    }
}

fn descriptor(segment: SegmentId, hash: [u8; 32]) -> Descriptor {
    let frame = FramePlace {
        segment,
        row: RowIndex(0),
        cell: 0,
        slot_offset: 4096,
        stored_bytes: 1,
        plain_bytes: 1,
        codec: 0,
        key_domain: 0,
    };
    Descriptor {
        frame,
        offset_in_frame: 0,
        plain_bytes: 1,
        charged_bytes: 1,
        references: 1,
        referred_bytes: 0,
        damaged: false,
        hash,
    }
}

#[test]
fn what_is_not_loaded_is_missed_and_what_is_loaded_is_found() {
    let mut world = World::new();
    let dedup = world.load();
    world.add(&dedup, 100_000);
    dedup.merge_if_due(dedup.marker()).unwrap();
    // These are known from their descriptors only.
    world.add(&dedup, 500);
    assert_eq!(world.found(&dedup), 100_500);
    drop(dedup);

    let dedup = world.open();
    assert!(dedup.is_loading());
    assert_eq!(world.found(&dedup), 0, "a lookup before the filter is loaded is a miss");
    let before = world.hashes.len();
    world.add(&dedup, 1);
    assert_eq!(world.found(&dedup), 1, "but what came since is there");
    assert!(dedup.load_step(&world.chunks).unwrap());
    while dedup.load_step(&world.chunks).unwrap() {}
    assert!(!dedup.is_loading());
    assert_eq!(world.found(&dedup), before + 1);
}

#[test]
fn a_saved_filter_that_is_stale_or_damaged_is_made_anew() {
    let mut world = World::new();
    let dedup = world.load();
    world.add(&dedup, 40_000);
    dedup.merge_at_end(dedup.marker()).unwrap();
    drop(dedup);
    let pages = world.pages();
    assert_eq!(pages.len(), 13);
    for (number, (key, page)) in pages.iter().enumerate() {
        let mut bad = page.clone();
        match number % 3 {
            0 => bad[100] ^= 1,
            1 => bad.truncate(50),
            // Whole, but another one's.
            _ => bad.clone_from(&pages[number - 1].1),
        }
        world.put(FILTER, key, &bad);
    }
    assert_eq!(world.found(&world.load()), 40_000, "damaged pages");

    // One bit fewer each, and everything verifies: only the mark says that it belongs to an older index.
    for (key, page) in &pages {
        let mut emptied = FilterPage::decode(page).unwrap();
        emptied.words.fill(0);
        world.put(FILTER, key, &emptied.encode());
    }
    assert!(world.found(&world.load()) < 40_000, "this filter lacks keys");
    world.put(STATE, MARKER_KEY, &39_999u64.to_le_bytes());
    assert_eq!(world.found(&world.load()), 40_000, "a stale filter");
    world.put(STATE, FILTER_KEY, b"nonsense");
    let dedup = world.load();
    assert_eq!(world.found(&dedup), 40_000, "a filter without a head");
    dedup.merge_at_end(dedup.marker()).unwrap();
    assert_eq!(world.found(&world.load()), 40_000, "it was saved again");
}

#[test]
fn only_pages_that_changed_are_saved_and_nothing_while_idle() {
    let mut world = World::new();
    let dedup = world.load();
    world.add(&dedup, 100_000);
    dedup.merge_if_due(dedup.marker()).unwrap();
    let before = world.pages();
    assert_eq!(before.len(), Filter::pages_for(100_000, usize::MAX));
    world.add(&dedup, 3);
    dedup.merge_at_end(dedup.marker()).unwrap();
    let after = world.pages();
    let changed = before.iter().zip(&after).filter(|(a, b)| a != b).count();
    assert!((1..=3).contains(&changed), "{changed} pages changed");
    let base = Arc::clone(&dedup.state.read().base);
    dedup.merge_at_end(dedup.marker()).unwrap();
    assert!(Arc::ptr_eq(&base, &dedup.state.read().base), "nothing was committed");
}

#[test]
fn the_filter_grows_with_the_index_and_keeps_most_misses_away() {
    let mut world = World::new();
    let dedup = world.load();
    for _ in 0..6 {
        world.add(&dedup, DELTA_ENTRIES_MAX);
        dedup.merge_if_due(dedup.marker()).unwrap();
        assert_eq!(world.found(&dedup), world.hashes.len());
    }
    assert_eq!(dedup.state.read().filter.len(), Filter::pages_for(world.hashes.len() as u64, usize::MAX));
    let again = world.load();
    for dedup in [&dedup, &again] {
        let mut key = [0; 20];
        let passes = (0..20_000).filter(|_| {
            world.rng.fill(&mut key[4..]);
            dedup.state.read().filter.may_contain(&key)
        });
        let passes = passes.count();
        assert!(passes < 700, "{passes} of 20,000 misses pass");
    }
}

#[test]
fn the_mark_waits_for_chunks_that_are_on_their_way() {
    let mut world = World::new();
    let dedup = world.load();
    // A batch has numbers 0 to 9 and takes its time; a later one is done.
    let slow = dedup.expect(0);
    slow.took(10);
    world.hashes = vec![[0; 32]; 10];
    world.add(&dedup, 40_000);
    dedup.merge_if_due(dedup.marker()).unwrap();
    for n in 0..10 {
        world.hashes[n] = [n as u8 + 1; 32];
        let chunk = key::chunk(ChunkId(n as u64));
        world.chunks.put(
            Table::Chunks,
            &chunk,
            descriptor(segment_of(n as u64), world.hashes[n]).encode().to_vec(),
        );
        dedup.insert(policy_of(n as u64), world.hashes[n], ChunkId(n as u64));
    }
    drop(slow);
    // The process dies before the next merge.
    drop(dedup);
    assert_eq!(world.found(&world.load()), 40_010);
}

#[test]
fn an_index_that_is_made_anew_goes_on_where_it_was_interrupted() {
    let mut world = World::new();
    let dedup = world.load();
    world.add(&dedup, 100_000);
    drop(dedup);
    // Nothing was ever merged: all of it comes from the descriptors, and some is merged on the way.
    let dedup = world.open();
    for _ in 0..15 {
        assert!(dedup.load_step(&world.chunks).unwrap());
    }
    drop(dedup);

    /// Counts what is read of the chunks.
    struct Counting<'a>(&'a MapTables, std::cell::Cell<u64>);
    impl Tables for Counting<'_> {
        fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
            self.0.get(table, key)
        }
        fn scan(
            &self,
            table: Table,
            start: &[u8],
            end: Option<&[u8]>,
            visit: Visit<'_>,
        ) -> Result<(), StoreError> {
            self.0.scan(table, start, end, &mut |key, value| {
                self.1.set(self.1.get() + 1);
                visit(key, value)
            })
        }
    }
    let counting = Counting(&world.chunks, std::cell::Cell::new(0));
    let dedup = world.open();
    while dedup.load_step(&counting).unwrap() {}
    assert!(counting.1.get() < 70_000, "{} chunks were looked at again", counting.1.get());
    assert_eq!(world.found(&dedup), 100_000);
}

#[test]
fn equal_bytes_that_follow_different_policies_are_kept_apart() {
    let mut world = World::new();
    let dedup = world.load();
    world.add(&dedup, 1000);
    let hash = [9; 32];
    let expected = dedup.expect(1000);
    expected.took(1003);
    for (n, chunk) in (1000..1003).enumerate() {
        let described = descriptor(segment_of(chunk), hash);
        world.chunks.put(Table::Chunks, &key::chunk(ChunkId(chunk)), described.encode().to_vec());
        dedup.insert(policy_of(chunk), hash, ChunkId(chunk));
        world.hashes.push(hash);
        assert_eq!(n, chunk as usize - 1000);
    }
    drop(expected);
    let all =
        |dedup: &Dedup| (1000..1003).all(|n| dedup.find(policy_of(n), &hash).unwrap() == Some(ChunkId(n)));
    assert!(all(&dedup));
    dedup.remove(policy_of(1001), hash, ChunkId(1001));
    assert_eq!(dedup.find(policy_of(1001), &hash).unwrap(), None);
    assert_eq!(dedup.find(policy_of(1002), &hash).unwrap(), Some(ChunkId(1002)));
    dedup.insert(policy_of(1001), hash, ChunkId(1001));
    drop(dedup);
    // From the descriptors alone, and then from the index, whose filter is made anew.
    let dedup = world.load();
    assert!(all(&dedup));
    dedup.merge_at_end(dedup.marker()).unwrap();
    drop(dedup);
    for (key, _) in world.pages() {
        world.put(FILTER, &key, b"damaged");
    }
    assert!(all(&world.load()));
}

#[test]
fn what_was_moved_out_of_a_segment_that_is_gone_is_not_found() {
    let mut world = World::new();
    let dedup = world.load();
    world.add(&dedup, 9);
    drop(dedup);
    world.chunks.delete(Table::Segments, &key::segment(segment_of(1)));
    let dedup = world.load();
    for chunk in 0..9 {
        let hash = &world.hashes[chunk as usize];
        let found = (0..POLICIES).find_map(|n| dedup.find(policy_of(n), hash).unwrap());
        assert_eq!(found, (chunk % POLICIES != 1).then_some(ChunkId(chunk)));
    }
}
