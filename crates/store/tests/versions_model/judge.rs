//! Comparing the tables with the model, and with what may be left in them at all.

use crate::plain::{History, PendingBytes, Plain, Run, joined};
use aegisfs_base::limits::WINDOW_BYTES;
use aegisfs_base::{BranchId, ChunkId, EpochId, InodeId, SegmentId};
use aegisfs_format::descriptor::Descriptor;
use aegisfs_format::extent::{ExtentRef, decode_window};
use aegisfs_format::key::{self, Table};
use aegisfs_format::value::{self, Segment, SegmentState, branch_of, first_epoch, is_tombstone};
use aegisfs_store::versions::{read_branch, scan_visible, visible};
use aegisfs_store::{MapTables, Tables, View};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::ControlFlow;

pub(crate) type Verdict = Result<(), String>;

macro_rules! expect_equal {
    ($found:expr, $expected:expr, $($what:tt)*) => {
        let (found, expected) = (&$found, &$expected);
        if found != expected {
            return Err(format!("{}:\n  found    {found:?}\n  expected {expected:?}", format!($($what)*)));
        }
    };
}

/// What is known of chunks and segments from what the changes reported.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reported {
    pub(crate) alive: BTreeSet<ChunkId>,
    pub(crate) written: BTreeMap<SegmentId, u64>,
}

pub(crate) fn judge(tables: &MapTables, history: &History, reported: &Reported) -> Verdict {
    let views = views(tables, history)?;
    for (epoch, view) in &views {
        let (expected, open) = match history.kept.get(epoch) {
            Some(kept) => (&kept.then, false),
            None => (&history.open[&branch_of(*epoch)].now, true),
        };
        judge_view(tables, view, expected, open).map_err(|error| format!("view at {epoch}: {error}"))?;
    }
    for (branch, line) in &history.open {
        expect_equal!(pending(tables, *branch), overlaid(&line.pending), "pending of {branch}");
    }
    judge_counts(tables, history, reported)?;
    judge_leftovers(tables, &views)?;
    judge_branches(tables, history)
}

/// Every pinned epoch and every head, with what they see.
fn views(tables: &MapTables, history: &History) -> Result<BTreeMap<EpochId, View>, String> {
    let mut views = BTreeMap::new();
    let heads = history.open.keys().map(|branch| read_branch(tables, *branch).map(|found| found.head));
    let heads = heads.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
    for epoch in history.kept.keys().copied().chain(heads) {
        let view = View::of_branch(tables, branch_of(epoch), epoch).map_err(|error| error.to_string())?;
        if views.insert(epoch, view).is_some() {
            return Err(format!("epoch {epoch} is pinned and still written to"));
        }
    }
    Ok(views)
}

fn judge_view(tables: &MapTables, view: &View, expected: &Plain, open: bool) -> Verdict {
    let mut stems = BTreeMap::new();
    let mut files: BTreeMap<InodeId, Vec<Run>> = BTreeMap::new();
    for table in Table::ALL.into_iter().filter(|table| table.versioned()) {
        scan_visible(tables, table, &[], None, view, &mut |stem, value| {
            if table == Table::Extents {
                let start = key::extents_window(stem).unwrap() * WINDOW_BYTES;
                let run = |r: ExtentRef| {
                    (start + u64::from(r.offset), u64::from(r.length), r.chunk, r.offset_in_chunk)
                };
                let runs = decode_window(value).unwrap().into_iter().map(run);
                files.entry(key::stem_inode(stem).unwrap()).or_default().extend(runs);
            } else {
                stems.insert((table, stem.to_vec()), value.to_vec());
            }
            ControlFlow::Continue(())
        })
        .map_err(|error| error.to_string())?;
    }
    expect_equal!(stems, expected.stems, "stems");
    let files: BTreeMap<_, _> =
        files.into_iter().map(|(inode, runs)| (inode, joined(runs.into_iter()))).collect();
    expect_equal!(files, expected.runs(), "files");
    // Looking one up goes another way than a scan; heads are where it matters most.
    for (table, key, _) in tables.iter().filter(|(table, ..)| open && table.versioned()) {
        let (stem, _) = key::split_version(key).unwrap();
        let found = visible(tables, table, stem, view).map_err(|error| error.to_string())?;
        if table != Table::Extents {
            expect_equal!(found.as_ref(), expected.stems.get(&(table, stem.to_vec())), "{table:?} {stem:?}");
        }
    }
    Ok(())
}

type Overlay = BTreeMap<(InodeId, u64), BTreeMap<u64, u8>>;

fn pending(tables: &MapTables, branch: BranchId) -> Overlay {
    let mut found = Overlay::new();
    tables
        .scan_prefix(Table::Pending, &key::branch(branch), &mut |key, stored| {
            let (inode, sequence, _) = key::split_pending(key).unwrap();
            let (offset, bytes) = value::decode_pending(stored).unwrap();
            let of_write = found.entry((inode, sequence.0)).or_default();
            of_write.extend((offset..).zip(bytes.iter().copied()));
            ControlFlow::Continue(())
        })
        .unwrap();
    found
}

fn overlaid(pending: &PendingBytes) -> Overlay {
    let overlay = |parts: &Vec<BTreeMap<u64, u8>>| parts.iter().flatten().map(|(at, b)| (*at, *b)).collect();
    pending.iter().map(|((inode, sequence), parts)| ((*inode, sequence.0), overlay(parts))).collect()
}

/// Counts references anew; adds up what lives in segments.
fn judge_counts(tables: &MapTables, history: &History, reported: &Reported) -> Verdict {
    let mut counted: BTreeMap<ChunkId, (u32, u64)> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for (table, key, value) in tables.iter() {
        if table == Table::Extents && !is_tombstone(value) {
            let (stem, _) = key::split_version(key).unwrap();
            for reference in decode_window(value).map_err(|error| error.to_string())? {
                if seen.insert((stem.to_vec(), reference)) {
                    let (references, bytes) = counted.entry(reference.chunk).or_default();
                    (*references, *bytes) = (*references + 1, *bytes + u64::from(reference.length));
                }
            }
        }
    }
    let mut stored = BTreeMap::new();
    let mut live: BTreeMap<SegmentId, (u64, u64)> = BTreeMap::new();
    for (_, key, value) in tables.iter().filter(|(table, ..)| *table == Table::Chunks) {
        let chunk = ChunkId(u64::from_be_bytes(key.try_into().unwrap()));
        let descriptor = Descriptor::decode(value).unwrap().unwrap();
        stored.insert(chunk, (descriptor.references, descriptor.referred_bytes));
        let (all, forsaken) = live.entry(descriptor.frame.segment).or_default();
        *all += u64::from(descriptor.charged_bytes);
        *forsaken += descriptor.forsaken_bytes();
    }
    expect_equal!(stored, counted, "references");
    expect_equal!(stored.keys().copied().collect::<BTreeSet<_>>(), history.chunks(), "chunks alive");
    expect_equal!(reported.alive, history.chunks(), "chunks reported alive");
    let mut accounts = BTreeMap::new();
    for (_, key, value) in tables.iter().filter(|(table, ..)| *table == Table::Segments) {
        let segment = SegmentId(u64::from_be_bytes(key.try_into().unwrap()));
        let value = Segment::decode(value).unwrap();
        let expected = reported.written.get(&segment).copied().unwrap_or(0);
        expect_equal!(value.written_bytes, expected, "written to segment {segment}");
        if value.state == SegmentState::Sealed && value.live_bytes == 0 {
            return Err(format!("sealed segment {segment} is empty"));
        }
        accounts.insert(segment, (value.live_bytes, value.forsaken_bytes));
    }
    accounts.retain(|_, live| *live != (0, 0));
    expect_equal!(accounts, live, "live bytes");
    Ok(())
}

/// A version by stem and epoch, or a reference in a window by stem and what it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Thing {
    Version(Table, Vec<u8>, EpochId),
    Reference(Vec<u8>, ExtentRef),
}

/// By table and stem: every version's value.
type Versions<'a> = BTreeMap<(Table, &'a [u8]), BTreeMap<EpochId, &'a [u8]>>;

/// Nothing may be stored but what some view sees, what hides it, and one note for each death.
fn judge_leftovers(tables: &MapTables, views: &BTreeMap<EpochId, View>) -> Verdict {
    let mut versions: Versions<'_> = BTreeMap::new();
    for (table, key, value) in tables.iter().filter(|(table, ..)| table.versioned()) {
        let (stem, epoch) = key::split_version(key).unwrap();
        versions.entry((table, stem)).or_default().insert(epoch, value);
    }
    let mut changed = BTreeSet::new();
    let mut seen_by: HashMap<Thing, Vec<EpochId>> = HashMap::new();
    for ((table, stem), found) in &versions {
        for (at, view) in views {
            let newest = found.iter().rev().find(|(epoch, _)| view.contains(**epoch));
            if let Some((epoch, value)) = newest.filter(|(_, value)| !is_tombstone(value)) {
                see(&mut seen_by, *at, *table, stem, *epoch, value);
            }
        }
        for (epoch, value) in found {
            if *epoch != first_epoch(BranchId(0)) {
                changed.insert(key::changed(*epoch, *table, stem));
            }
            let what = || format!("{table:?} {stem:?} of epoch {epoch}");
            if !is_tombstone(value) {
                if !seen_by.contains_key(&Thing::Version(*table, stem.to_vec(), *epoch)) {
                    return Err(format!("nobody sees {}", what()));
                }
                continue;
            }
            let view = View::of_branch(tables, branch_of(*epoch), *epoch).map_err(|e| e.to_string())?;
            let under = found.range(..epoch).rev().find(|(under, _)| view.contains(**under));
            if under.is_none_or(|(_, under)| is_tombstone(under)) {
                return Err(format!("the tombstone {} hides nothing", what()));
            }
        }
    }
    let stored: BTreeSet<_> = tables
        .iter()
        .filter(|(table, ..)| *table == Table::Changed)
        .map(|(_, key, _)| key.to_vec())
        .collect();
    expect_equal!(stored, changed, "notes of changes");
    judge_deaths(tables, views, &seen_by)
}

fn see(
    seen_by: &mut HashMap<Thing, Vec<EpochId>>,
    at: EpochId,
    table: Table,
    stem: &[u8],
    epoch: EpochId,
    value: &[u8],
) {
    seen_by.entry(Thing::Version(table, stem.to_vec(), epoch)).or_default().push(at);
    if table == Table::Extents {
        for reference in decode_window(value).unwrap() {
            seen_by.entry(Thing::Reference(stem.to_vec(), reference)).or_default().push(at);
        }
    }
}

/// Whatever the last view of its own branch does not see any more has one note, of a death between the last
/// view that sees it and the next; nothing else has.
fn judge_deaths(
    tables: &MapTables,
    views: &BTreeMap<EpochId, View>,
    seen_by: &HashMap<Thing, Vec<EpochId>>,
) -> Verdict {
    let mut notes: HashMap<Thing, Vec<EpochId>> = HashMap::new();
    for (_, note, _) in tables.iter().filter(|(table, ..)| *table == Table::Superseded) {
        let (death, birth, what) = key::split_superseded(note).unwrap();
        let thing = match what[0] {
            0 => Thing::Version(Table::from_raw(what[1]).unwrap(), what[2..].to_vec(), birth),
            _ => Thing::Reference(what[1..17].to_vec(), ExtentRef::decode(&what[17..]).unwrap()),
        };
        notes.entry(thing).or_default().push(death);
    }
    for (thing, seen_by) in seen_by {
        let birth = match thing {
            Thing::Version(_, _, epoch) => *epoch,
            Thing::Reference(_, reference) => reference.birth,
        };
        let branch = branch_of(birth);
        let last = seen_by.iter().copied().filter(|epoch| branch_of(*epoch) == branch).max();
        let last = last.ok_or_else(|| format!("its own branch does not see {thing:?}"))?;
        let next = views.range(last.next()..).next().map(|(epoch, _)| *epoch);
        let next = next.filter(|next| branch_of(*next) == branch);
        match (next, notes.remove(thing).as_deref()) {
            (None, None) => {}
            (Some(next), Some([death])) if *death > last && *death <= next => {}
            (_, found) => {
                return Err(format!("{thing:?}, last seen by {last}, next view {next:?}: deaths {found:?}"));
            }
        }
    }
    if notes.is_empty() { Ok(()) } else { Err(format!("deaths of what is not there: {notes:?}")) }
}

/// The tables of branches, snapshots and volumes hold what the model knows, and nothing else.
fn judge_branches(tables: &MapTables, history: &History) -> Verdict {
    let mut expected = BTreeSet::new();
    for (branch, origin) in &history.origins {
        expected.insert((Table::Branches, key::branch(*branch).to_vec()));
        let found = read_branch(tables, *branch).map_err(|error| error.to_string())?;
        expect_equal!(found.is_closed(), !history.open.contains_key(branch), "whether {branch} is closed");
        expect_equal!(found.origin, origin.map(|at| (branch_of(at), at)), "origin of {branch}");
        let own = first_epoch(*branch)..first_epoch(branch.next());
        let last = history.kept.range(own).next_back().map(|(epoch, _)| *epoch);
        expect_equal!(found.pinned, last.or(*origin), "last pin of {branch}");
    }
    for (epoch, kept) in &history.kept {
        expected.insert((Table::Branches, key::pin(branch_of(*epoch), *epoch).to_vec()));
        if let Some(name) = &kept.name {
            expected.insert((Table::Snapshots, key::snapshot(branch_of(*epoch), name)));
        }
    }
    expected.extend(history.volumes.keys().map(|name| (Table::Volumes, name.clone())));
    let tables_of_history = [Table::Branches, Table::Snapshots, Table::Volumes];
    let stored = tables.iter().filter(|(table, ..)| tables_of_history.contains(table));
    expect_equal!(stored.map(|(t, k, _)| (t, k.to_vec())).collect::<BTreeSet<_>>(), expected, "history");
    Ok(())
}
