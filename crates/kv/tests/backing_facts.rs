//! What redb asks of its storage. The pool's backing is built on these facts; an update of redb
//! that breaks one of them must turn this red. Run with `--nocapture` to see the sequences.
#![expect(clippy::print_stderr, reason = "shows the recorded calls to whoever runs it by hand")]

use aegisfs_kv::{Backing, MemoryBacking, OrderedKv, RedbKv, TableId};
use std::fmt::Write as _;
use std::io;
use std::sync::{Arc, Mutex};

const TABLE: TableId = TableId(1);
const PAGE: u64 = 4096;
const HEADER_BYTES: usize = 320;
/// The byte of the header with the flags, and the flag for a two-phase commit in it.
const FLAGS_AT: usize = 9;
const TWO_PHASE: u8 = 4;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Call {
    Len,
    Read(u64, usize),
    Write(u64, usize, u8),
    Sync,
    SetLen(u64),
    Close,
}

/// Records every call and passes it on.
#[derive(Clone, Debug, Default)]
struct Recorder {
    inner: MemoryBacking,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl Recorder {
    fn record(&self, call: Call) {
        self.calls.lock().expect("no holder panics").push(call);
    }

    /// The calls since the last take, checked against what holds for every call.
    fn take(&self, title: &str) -> Vec<Call> {
        let calls = std::mem::take(&mut *self.calls.lock().expect("no holder panics"));
        eprintln!("{title}: {}", summary(&calls));
        let mut header_in_flight = false;
        for call in &calls {
            check_shape(call);
            match call {
                Call::Write(0, ..) => {
                    assert!(!header_in_flight, "a flush stands between two writes of the header");
                    header_in_flight = true;
                }
                Call::Sync => header_in_flight = false,
                _ => {}
            }
        }
        calls
    }
}

fn check_shape(call: &Call) {
    match *call {
        Call::Write(0, bytes, flags) => {
            assert_eq!(bytes, HEADER_BYTES, "the header is written whole");
            assert_ne!(flags & TWO_PHASE, 0, "no root is ever flipped by a one-phase commit");
        }
        Call::Read(0, bytes) => assert!(bytes as u64 <= PAGE, "magic, header, or the whole first page"),
        Call::Write(at, bytes, _) | Call::Read(at, bytes) => {
            assert_eq!(at % PAGE, 0, "pages are aligned to 4 KiB");
            let bytes = bytes as u64;
            assert!(bytes.is_multiple_of(PAGE) && (bytes / PAGE).is_power_of_two(), "{bytes}");
        }
        Call::SetLen(len) => assert_eq!(len % PAGE, 0),
        Call::Len | Call::Sync | Call::Close => {}
    }
}

fn summary(calls: &[Call]) -> String {
    let mut text = String::new();
    let (mut pages, mut bytes_written, mut reads) = (0, 0, 0);
    for call in calls.iter().chain([&Call::Close]) {
        match call {
            Call::Write(at, bytes, _) if *at > 0 => {
                pages += 1;
                bytes_written += bytes;
                continue;
            }
            Call::Read(at, _) if *at > 0 => {
                reads += 1;
                continue;
            }
            Call::Len => continue,
            _ => {}
        }
        if pages > 0 {
            let _ = write!(text, "[{pages} pages, {bytes_written} bytes] ");
        }
        if reads > 0 {
            let _ = write!(text, "[{reads} reads] ");
        }
        (pages, bytes_written, reads) = (0, 0, 0);
        let _ = write!(text, "{call:?} ");
    }
    text
}

impl Backing for Recorder {
    fn len(&self) -> io::Result<u64> {
        self.record(Call::Len);
        self.inner.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.record(Call::Read(offset, out.len()));
        self.inner.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.record(Call::SetLen(len));
        self.inner.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.record(Call::Sync);
        self.inner.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.record(Call::Write(offset, data.len(), data.get(FLAGS_AT).copied().unwrap_or(0)));
        self.inner.write(offset, data)
    }
    fn close(&self) -> io::Result<()> {
        self.record(Call::Close);
        self.inner.close()
    }
}

fn put(kv: &RedbKv, numbers: std::ops::Range<u64>, bytes: usize) {
    let mut transaction = kv.begin().expect("begin");
    for number in numbers {
        transaction.put(TABLE, &number.to_be_bytes(), &vec![number as u8; bytes]).expect("put");
    }
    transaction.commit().expect("commit");
}

/// Only what the order of writes and flushes is about: pages as one, headers, flushes, lengths.
fn outline(calls: &[Call]) -> String {
    let mut outline = String::new();
    for call in calls {
        let letter = match call {
            Call::Write(0, ..) => 'H',
            Call::Write(..) => 'P',
            Call::Sync => 'S',
            Call::SetLen(_) => 'L',
            Call::Close => 'C',
            Call::Len | Call::Read(..) => continue,
        };
        if letter != 'P' || !outline.ends_with('P') {
            outline.push(letter);
        }
    }
    outline
}

/// A two-phase commit: header and pages in any order, flush, header, flush; then it may shrink.
fn is_two_phase(outline: &str) -> bool {
    outline
        .strip_suffix('L')
        .unwrap_or(outline)
        .strip_suffix("SHS")
        .is_some_and(|first| matches!(first, "PHP" | "HP" | "PH" | "H"))
}

#[test]
fn commits_flush_pages_before_the_root_and_dropping_does_nothing() {
    let recorder = Recorder::default();
    let kv = RedbKv::create(recorder.clone(), 64 << 20).expect("create");
    assert_eq!(outline(&recorder.take("create")), "LHSHSHS");
    assert!(recorder.inner.len().expect("len") < 2 << 20, "starts small");

    put(&kv, 0..1, 10);
    assert!(is_two_phase(&outline(&recorder.take("first commit"))));
    for round in 0..5 {
        put(&kv, round..round + 1, 10);
        assert!(is_two_phase(&outline(&recorder.take("small commit"))));
    }
    drop(kv.begin().expect("begin"));
    assert_eq!(outline(&recorder.take("abort")), "");
    kv.snapshot().expect("snapshot").get(TABLE, &[0; 8]).expect("get");
    assert_eq!(outline(&recorder.take("read")), "");

    drop(kv);
    assert_eq!(outline(&recorder.take("drop")), "C");
    let kv = RedbKv::open(recorder.clone(), 64 << 20).expect("open");
    assert_eq!(outline(&recorder.take("open after a crash")), "HSHS");
    kv.close();
    let closing = outline(&recorder.take("close"));
    assert!(closing.ends_with("SHSSHSC") || closing.ends_with("SHSLSHSC"), "{closing}");

    let kv = RedbKv::open(recorder.clone(), 64 << 20).expect("open");
    assert_eq!(outline(&recorder.take("open after closing")), "HS");
    drop(kv);
    recorder.take("drop");
    let mut kv = RedbKv::open_read_only(recorder.clone(), 64 << 20).expect("open");
    assert!(kv.begin().is_err());
    assert!(kv.check().expect("check"));
    kv.close();
    assert_eq!(outline(&recorder.take("read only, from open to close")), "C");
}

#[test]
fn growth_is_flushed_at_once_and_doubles() {
    let recorder = Recorder::default();
    let kv = RedbKv::create(recorder.clone(), 64 << 20).expect("create");
    recorder.take("create");
    put(&kv, 0..4000, 1000);
    let calls = recorder.take("grow");
    let lens: Vec<u64> =
        calls.iter().filter_map(|c| if let Call::SetLen(l) = c { Some(*l) } else { None }).collect();
    eprintln!("lengths: {lens:?}");
    for (place, call) in calls.iter().enumerate() {
        if matches!(call, Call::SetLen(_)) {
            assert_eq!(calls.get(place + 1), Some(&Call::Sync));
        }
    }
    for round in 0..4 {
        let mut transaction = kv.begin().expect("begin");
        for number in round * 1000..(round + 1) * 1000_u64 {
            transaction.delete(TABLE, &number.to_be_bytes()).expect("delete");
        }
        transaction.commit().expect("commit");
        recorder.take("delete a quarter");
    }
    for _ in 0..6 {
        kv.begin().expect("begin").commit().expect("commit");
        let calls = recorder.take("empty commit");
        let shrinks = calls.iter().position(|c| matches!(c, Call::SetLen(_)));
        let last_sync = calls.iter().rposition(|c| matches!(c, Call::Sync));
        assert!(shrinks.is_none() || shrinks > last_sync, "shrinks only after the commit is durable");
    }
}

#[test]
fn a_small_cache_writes_pages_before_the_commit_and_reads_them_back() {
    let recorder = Recorder::default();
    let kv = RedbKv::create(recorder.clone(), 64 << 10).expect("create");
    put(&kv, 0..2000, 300);
    recorder.take("fill");
    let mut transaction = kv.begin().expect("begin");
    for number in (0..2000_u64).rev() {
        transaction.put(TABLE, &number.wrapping_mul(7919).to_be_bytes(), &[1; 300]).expect("put");
    }
    transaction.get(TABLE, &[0; 8]).expect("get");
    let early = recorder.take("before the commit");
    assert!(early.iter().any(|c| matches!(c, Call::Write(at, ..) if *at > 0)), "evicted pages are written");
    assert!(!early.iter().any(|c| matches!(c, Call::Write(0, ..))), "but never the header");
    drop(transaction);
    recorder.take("abort");
    put(&kv, 0..1, 1);
    recorder.take("commit");
}

#[test]
fn checking_never_commits_in_one_phase() {
    let recorder = Recorder::default();
    let mut kv = RedbKv::create(recorder.clone(), 64 << 20).expect("create");
    for round in 0..3 {
        put(&kv, round..round + 500, 100);
    }
    recorder.take("fill");
    assert!(kv.check().expect("check"));
    recorder.take("check");
    put(&kv, 0..10, 20);
    recorder.take("commit after the check");
    let held = kv.snapshot().expect("snapshot");
    assert!(kv.check().is_err(), "refused while a snapshot is held");
    drop(held);
}
