//! The metadata: a database at its last checkpoint, and the changes since.
//!
//! At most two sets of changes exist: the active one, which the sequencer writes to, and a frozen one, which
//! a checkpoint is moving into the database. Readers look into all three and wait for neither.

use crate::StoreError;
use crate::memtable::{Change, Key, Memtable, scan_layers};
use crate::tables::{Tables, Visit, read_head};
use crate::versions::Head;
use aegisfs_base::{BranchId, ChunkId};
use aegisfs_format::descriptor::{DESCRIPTORS_PER_GROUP, Descriptor, DescriptorGroup};
use aegisfs_format::key::{self, Table};
use aegisfs_kv::{KvSnapshot, OrderedKv, TableId};
use parking_lot::RwLock;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Changes copied out under the lock at a time; longer scans take it again.
const SCAN_BATCH: usize = 512;
/// Entries that a scan visits before it looks at the database as it is by then: pages of what it saw before cannot be
/// written over as long as it looks at that.
const SCAN_ENTRIES_MAX: usize = 8192;
/// Heads kept at hand.
const HEADS_KNOWN_MAX: usize = 256;

/// The database and the changes since its last commit.
pub(crate) struct Metadata {
    pub(crate) kv: Box<dyn OrderedKv>,
    layers: RwLock<Layers>,
    heads: RwLock<KnownHeads>,
}

/// Heads put together before, until a branch changes.
#[derive(Default)]
struct KnownHeads {
    /// How often that happened; what was read meanwhile may be old.
    changes: u64,
    known: BTreeMap<BranchId, Arc<Head>>,
}

struct Layers {
    active: Memtable,
    frozen: Option<Arc<Memtable>>,
    base: Arc<dyn KvSnapshot>,
}

/// What readers see: everything acknowledged so far.
#[derive(Clone, Copy)]
pub struct MetaView<'a> {
    metadata: &'a Metadata,
}

pub(crate) const fn table_id(table: Table) -> TableId {
    TableId(table as u8)
}

impl Metadata {
    pub(crate) fn new(kv: Box<dyn OrderedKv>) -> Result<Self, StoreError> {
        let base = kv.snapshot()?;
        Ok(Self {
            kv,
            layers: RwLock::new(Layers { active: Memtable::default(), frozen: None, base }),
            heads: RwLock::default(),
        })
    }

    pub(crate) fn view(&self) -> MetaView<'_> {
        MetaView { metadata: self }
    }

    /// Takes over a transaction's changes. Only the sequencer calls this.
    pub(crate) fn absorb(&self, changes: Memtable) {
        let branch_changed = !changes.table(Table::Branches).is_empty();
        // Held throughout: else somebody who has seen the change could be shown an older head once more.
        let mut heads = branch_changed.then(|| self.heads.write());
        self.layers.write().active.absorb(changes);
        if let Some(heads) = &mut heads {
            heads.changes += 1;
            heads.known.clear();
        }
    }

    /// How many keys the active changes are of, and their memory.
    pub(crate) fn active_size(&self) -> (usize, usize) {
        let layers = self.layers.read();
        (layers.active.len(), layers.active.bytes())
    }

    /// Memory of the active changes.
    pub(crate) fn active_bytes(&self) -> usize {
        self.layers.read().active.bytes()
    }

    /// Sets the active changes aside for a checkpoint. The caller keeps writers out.
    ///
    /// # Panics
    /// When some are still set aside.
    pub(crate) fn freeze(&self) -> Arc<Memtable> {
        let mut layers = self.layers.write();
        assert!(layers.frozen.is_none(), "one checkpoint at a time");
        let frozen = Arc::new(std::mem::take(&mut layers.active));
        layers.frozen = Some(Arc::clone(&frozen));
        frozen
    }

    /// Moves set-aside changes into the database, together with what `finish` adds.
    pub(crate) fn commit_frozen(
        &self,
        frozen: &Memtable,
        config: &BTreeMap<&'static [u8], Vec<u8>>,
    ) -> Result<(), StoreError> {
        let mut transaction = self.kv.begin()?;
        for table in Table::ALL {
            if matches!(table, Table::Chunks | Table::Dedup) {
                continue;
            }
            for (key, change) in frozen.table(table) {
                match change {
                    Some(value) => transaction.put(table_id(table), key, value)?,
                    None => transaction.delete(table_id(table), key)?,
                }
            }
        }
        let mut groups: BTreeMap<[u8; 8], Vec<(u64, &Change)>> = BTreeMap::new();
        for (key, change) in frozen.table(Table::Chunks) {
            let chunk = chunk_of(key)?;
            groups
                .entry(key::chunk_group(chunk))
                .or_default()
                .push((chunk.0 % DESCRIPTORS_PER_GROUP, change));
        }
        for (group_key, changes) in groups {
            let mut group = match transaction.get(table_id(Table::Chunks), &group_key)? {
                Some(stored) => DescriptorGroup::decode(&stored)?,
                None => DescriptorGroup::default(),
            };
            for (place, change) in changes {
                group.0[place as usize] = match change {
                    Some(value) => Descriptor::decode(value)?,
                    None => None,
                };
            }
            if group.is_empty() {
                transaction.delete(table_id(Table::Chunks), &group_key)?;
            } else {
                transaction.put(table_id(Table::Chunks), &group_key, &group.encode())?;
            }
        }
        for (key, value) in config {
            transaction.put(table_id(Table::Config), key, value)?;
        }
        Ok(transaction.commit()?)
    }

    /// Lets readers see the database as it now is and drops the set-aside changes.
    pub(crate) fn thaw(&self) -> Result<(), StoreError> {
        let base = self.kv.snapshot()?;
        let mut layers = self.layers.write();
        layers.base = base;
        layers.frozen = None;
        Ok(())
    }

    /// A head that is known, or else what `read` finds; that is kept unless a branch has changed meanwhile.
    fn head(
        &self,
        branch: BranchId,
        read: impl FnOnce() -> Result<Arc<Head>, StoreError>,
    ) -> Result<Arc<Head>, StoreError> {
        let changes = {
            let heads = self.heads.read();
            if let Some(known) = heads.known.get(&branch) {
                return Ok(Arc::clone(known));
            }
            heads.changes
        };
        let found = read()?;
        let mut heads = self.heads.write();
        if heads.changes == changes && heads.known.len() < HEADS_KNOWN_MAX {
            heads.known.insert(branch, Arc::clone(&found));
        }
        Ok(found)
    }

    /// The changes of a range, newest layer first, up to [`SCAN_BATCH`] of the active ones; then the key
    /// from which a further batch has to be taken.
    fn layers(&self, table: Table, start: &[u8], end: Option<&[u8]>) -> Batch {
        let layers = self.layers.read();
        let mut active = Vec::new();
        let mut rest = None;
        for (key, change) in layers.active.range(table, start, end) {
            if active.len() == SCAN_BATCH {
                rest = Some(key.to_vec());
                break;
            }
            active.push((Key::new(key), change.clone()));
        }
        Batch { active, frozen: layers.frozen.clone(), base: Arc::clone(&layers.base), rest }
    }

    /// The last change of a key, or else where it has to be looked for.
    fn change(&self, table: Table, key: &[u8]) -> Found {
        let (frozen, base) = {
            let layers = self.layers.read();
            if let Some(change) = layers.active.get(table, key) {
                return Found::Change(change.clone());
            }
            (layers.frozen.clone(), Arc::clone(&layers.base))
        };
        match frozen.as_ref().and_then(|frozen| frozen.get(table, key)) {
            Some(change) => Found::Change(change.clone()),
            None => Found::Unchanged(base),
        }
    }
}

struct Batch {
    active: Vec<(Key, Change)>,
    frozen: Option<Arc<Memtable>>,
    base: Arc<dyn KvSnapshot>,
    rest: Option<Vec<u8>>,
}

enum Found {
    Change(Change),
    Unchanged(Arc<dyn KvSnapshot>),
}

fn chunk_of(key: &[u8]) -> Result<ChunkId, StoreError> {
    key.first_chunk::<8>()
        .map(|bytes| ChunkId(u64::from_be_bytes(*bytes)))
        .ok_or_else(|| StoreError::Inconsistent { what: "a chunk key is too short".into() })
}

fn base_get_with(
    base: &dyn KvSnapshot,
    table: Table,
    key: &[u8],
    visit: &mut dyn FnMut(&[u8]),
) -> Result<bool, StoreError> {
    if table != Table::Chunks {
        return Ok(base.get_with(table_id(table), key, visit)?);
    }
    let chunk = chunk_of(key)?;
    let mut found = Ok(None);
    base.get_with(table_id(table), &key::chunk_group(chunk), &mut |group| {
        found = DescriptorGroup::decode_one(group, chunk.0);
    })?;
    let found = found?;
    if let Some(descriptor) = &found {
        visit(&descriptor.encode());
    }
    Ok(found.is_some())
}

fn base_scan(
    base: &dyn KvSnapshot,
    table: Table,
    start: &[u8],
    end: Option<&[u8]>,
    visit: Visit<'_>,
) -> Result<(), StoreError> {
    if table != Table::Chunks {
        return Ok(base.scan(table_id(table), start, end, visit)?);
    }
    let first = if start.len() < 8 { ChunkId(0) } else { chunk_of(start)? };
    let mut outcome = Ok(());
    base.scan(table_id(table), &key::chunk_group(first), None, &mut |group_key, group| {
        let Ok(number) = chunk_of(group_key) else { return ControlFlow::Continue(()) };
        let group = match DescriptorGroup::decode(group) {
            Ok(group) => group,
            Err(error) => {
                outcome = Err(error.into());
                return ControlFlow::Break(());
            }
        };
        for (place, descriptor) in group.0.iter().enumerate() {
            let Some(descriptor) = descriptor else { continue };
            let key = key::chunk(ChunkId(number.0 * DESCRIPTORS_PER_GROUP + place as u64));
            if end.is_some_and(|end| &key[..] >= end) {
                return ControlFlow::Break(());
            }
            if &key[..] >= start && visit(&key, &descriptor.encode()).is_break() {
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    })?;
    outcome
}

impl Tables for MetaView<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let mut copy = None;
        self.get_with(table, key, &mut |value| copy = Some(value.to_vec()))?;
        Ok(copy)
    }

    fn get_with(&self, table: Table, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Result<bool, StoreError> {
        match self.metadata.change(table, key) {
            Found::Change(Some(value)) => visit(&value),
            Found::Change(None) => return Ok(false),
            Found::Unchanged(base) => return base_get_with(&*base, table, key, visit),
        }
        Ok(true)
    }

    fn head(&self, branch: BranchId) -> Result<Arc<Head>, StoreError> {
        self.metadata.head(branch, || read_head(self, branch))
    }

    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: Option<&[u8]>,
        visit: Visit<'_>,
    ) -> Result<(), StoreError> {
        let mut at = Cow::Borrowed(start);
        loop {
            let batch = self.metadata.layers(table, &at, end);
            let stop = batch.rest.as_deref().or(end);
            let active = batch.active.iter().map(|(key, change)| (&**key, change));
            let frozen = batch.frozen.as_deref().map(|frozen| frozen.range(table, &at, stop));
            let mut base = |visit: Visit<'_>| base_scan(&*batch.base, table, &at, stop, visit);
            let (mut stopped, mut seen, mut next) = (false, 0, None);
            let mut watch = |key: &[u8], value: &[u8]| {
                if seen == SCAN_ENTRIES_MAX {
                    next = Some(key.to_vec());
                    return ControlFlow::Break(());
                }
                seen += 1;
                let flow = visit(key, value);
                stopped = flow.is_break();
                flow
            };
            scan_layers(active, frozen.into_iter().flatten(), &mut base, &mut watch)?;
            match next.or(batch.rest) {
                Some(next) if !stopped => at = Cow::Owned(next),
                _ => return Ok(()),
            }
        }
    }
}

#[cfg(test)]
mod tests;
