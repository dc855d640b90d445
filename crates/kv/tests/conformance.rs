//! Both engines pass the suite and agree with a plain map on random histories.

use aegisfs_kv::conformance::{self, Step, Subject};
use aegisfs_kv::{MemoryBacking, MemoryKv, OrderedKv, RedbKv, TableId};
use proptest::prelude::*;

/// Small, so that dirty pages are written before commits too.
const CACHE_BYTES: usize = 256 << 10;

struct InMemory(MemoryKv);

impl Subject for InMemory {
    fn kv(&self) -> &dyn OrderedKv {
        &self.0
    }
    fn reopen(&mut self) {
        self.0 = self.0.clone();
    }
}

struct OnRedb {
    backing: MemoryBacking,
    kv: Option<RedbKv>,
    closes: bool,
}

impl OnRedb {
    fn new(closes: bool) -> Self {
        let backing = MemoryBacking::new();
        let kv = RedbKv::create(backing.clone(), CACHE_BYTES).expect("create");
        Self { backing, kv: Some(kv), closes }
    }
}

impl Subject for OnRedb {
    fn kv(&self) -> &dyn OrderedKv {
        self.kv.as_ref().expect("open")
    }
    fn reopen(&mut self) {
        let kv = self.kv.take().expect("open");
        if self.closes {
            kv.close();
        } else {
            drop(kv);
        }
        self.kv = Some(RedbKv::open(self.backing.clone(), CACHE_BYTES).expect("open"));
    }
}

#[test]
fn the_memory_engine_conforms() {
    conformance::all(&|| Box::new(InMemory(MemoryKv::new())));
}

#[test]
fn the_redb_engine_conforms_when_it_is_closed() {
    conformance::all(&|| Box::new(OnRedb::new(true)));
}

#[test]
fn the_redb_engine_conforms_when_it_is_dropped() {
    conformance::all(&|| Box::new(OnRedb::new(false)));
}

fn table() -> impl Strategy<Value = TableId> {
    (0..3_u8).prop_map(TableId)
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => (0..40_u8).prop_map(|n| vec![n]),
        1 => proptest::collection::vec(any::<u8>(), 0..40),
        1 => (0..6_u8).prop_map(|n| vec![n; 900]),
    ]
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => proptest::collection::vec(any::<u8>(), 0..60),
        1 => (any::<u8>(), 1000..20_000_usize).prop_map(|(byte, len)| vec![byte; len]),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (table(), key(), value()).prop_map(|(t, k, v)| Step::Put(t, k, v)),
        5 => (table(), key()).prop_map(|(t, k)| Step::Delete(t, k)),
        3 => (table(), key()).prop_map(|(t, k)| Step::Get(t, k)),
        3 => (table(), key(), proptest::option::of(key())).prop_map(|(t, s, e)| Step::Commit(t, s, e)),
        1 => Just(Step::Abort),
        1 => Just(Step::Remember),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_memory_engine_agrees_with_a_model(steps in proptest::collection::vec(step(), 1..150)) {
        conformance::agrees_with_a_model(&mut InMemory(MemoryKv::new()), &steps);
    }

    #[test]
    fn the_redb_engine_agrees_with_a_model(
        closes in any::<bool>(),
        steps in proptest::collection::vec(step(), 1..150),
    ) {
        conformance::agrees_with_a_model(&mut OnRedb::new(closes), &steps);
    }
}
