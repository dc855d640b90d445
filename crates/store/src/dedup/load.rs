//! What happens after opening, and whenever pages of the filter have to be made: in steps, so that it can
//! stop at any time.
//!
//! 1. Pages of the filter are read; one that is missing, stale or damaged is made from its range of the index.
//! 2. Chunks that are not indexed yet are looked at, in the order of their numbers.
//!
//! A page is in place before anything is merged into its range, so that none ever lacks what is indexed.

use super::filter::{Cover, Filter, PAGE_KEYS_MAX, empty_page, put};
use super::{DELTA_ENTRIES_MAX, Dedup, Delta, FILTER, INDEX, Key, Renew, State, domain};
use crate::StoreError;
use crate::tables::Tables;
use aegisfs_base::limits::DEDUP_FILTER_BYTES_MAX;
use aegisfs_base::{ChunkId, PolicyId, SegmentId};
use aegisfs_format::descriptor::Descriptor;
use aegisfs_format::filter::FilterPage;
use aegisfs_format::key::{self, Table};
use aegisfs_format::value::Segment;
use aegisfs_kv::{KvSnapshot, MemoryKv, OrderedKv};
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Pages read in a step.
const STEP_PAGES: usize = 64;
/// A page that has to be made counts as so many that are read.
const MADE_COUNTS: usize = 8;
/// Chunks looked at in a step.
const STEP_CHUNKS: usize = 4096;
/// Full pages made anew in one merge.
const STALE_PAGES_MAX: usize = 64;
/// How often the index is made anew before it is left alone until the next opening.
const RENEWALS_MAX: u32 = 2;

/// What whoever works on the index needs.
pub(super) struct Work {
    pub(super) kv: Box<dyn OrderedKv>,
    renew: Option<Renew>,
    renewals: u32,
    /// Whether the pages that the database has belong to the index.
    pub(super) saved: bool,
    /// The next page of the filter to be loaded.
    pub(super) next_page: usize,
    /// The next chunk to be looked at, while some may not be indexed.
    pub(super) catch_up: Option<ChunkId>,
    /// Chunks below were durable when the store was opened.
    pub(super) durable_below: ChunkId,
}

impl Work {
    pub(super) fn new(kv: Box<dyn OrderedKv>, renew: Option<Renew>, saved: bool, marker: ChunkId) -> Self {
        let catch_up = Some(marker);
        Self { kv, renew, renewals: 0, saved, next_page: 0, catch_up, durable_below: ChunkId(0) }
    }
}

impl Dedup {
    /// Whether lookups may miss what is there because it is not loaded yet.
    pub(crate) fn is_loading(&self) -> bool {
        self.loading.load(Ordering::Acquire)
    }

    /// Loads a little more; says whether there is more to load.
    ///
    /// # Errors
    /// When the metadata cannot be read, or a device fails under a merge. Trouble with the index is none.
    pub(crate) fn load_step(&self, metadata: &dyn Tables) -> Result<bool, StoreError> {
        if !self.is_loading() {
            return Ok(false);
        }
        let mut work = self.work.lock();
        if self.is_lost() && !self.renew(&mut work) {
            return Ok(false);
        }
        let pages = self.state.read().filter.len();
        if work.next_page < pages {
            let loaded = self.load_pages(&mut work);
            // Whatever keeps the index from being read: nobody is to fail because of it.
            loaded.unwrap_or_else(|error| self.note_lost(&error));
            return Ok(true);
        }
        if let Err(error) = self.catch_up(&mut work, metadata) {
            // It would only happen again.
            self.loading.store(false, Ordering::Release);
            return Err(error);
        }
        if self.state.read().delta.len() >= DELTA_ENTRIES_MAX {
            let marker = work.durable_below;
            let merged = self.merge(&mut work, marker);
            self.settle(merged)?;
        }
        if work.catch_up.is_none() && !self.is_lost() {
            self.loading.store(false, Ordering::Release);
        }
        Ok(self.is_loading())
    }

    fn load_pages(&self, work: &mut Work) -> Result<(), StoreError> {
        let mut room = STEP_PAGES;
        let (base, pages) = {
            let state = self.state.read();
            (Arc::clone(&state.base), state.filter.len())
        };
        while room > 0 && work.next_page < pages {
            let number = work.next_page;
            let cover = self.state.read().filter.cover(number);
            let saved = if work.saved { read_page(&*base, cover)? } else { None };
            room = room.saturating_sub(if saved.is_some() { 1 } else { MADE_COUNTS });
            let dirty = saved.is_none();
            let page = saved.map_or_else(|| make_page(&*base, cover), Ok)?;
            let mut state = self.state.write();
            let page = with_newer(&state, cover, page);
            let dirty = dirty || page.1;
            state.filter.load(number, page.0, dirty);
            work.next_page += 1;
        }
        Ok(())
    }

    pub(super) fn load_all_pages(&self, work: &mut Work) -> Result<(), StoreError> {
        while !self.is_lost() && work.next_page < self.state.read().filter.len() {
            self.load_pages(work)?;
        }
        Ok(())
    }

    fn catch_up(&self, work: &mut Work, metadata: &dyn Tables) -> Result<(), StoreError> {
        let Some(from) = work.catch_up else { return Ok(()) };
        let mut found = Vec::new();
        let mut looked_at = 0;
        let mut next = None;
        metadata.scan(Table::Chunks, &key::chunk(from), None, &mut |chunk, stored| {
            let Some(chunk) = chunk.first_chunk().map(|bytes| ChunkId(u64::from_be_bytes(*bytes))) else {
                return ControlFlow::Continue(());
            };
            if looked_at == STEP_CHUNKS {
                next = Some(chunk);
                return ControlFlow::Break(());
            }
            looked_at += 1;
            if let Ok(Some(descriptor)) = Descriptor::decode(stored) {
                found.push((chunk, descriptor.hash, descriptor.frame.segment));
            }
            ControlFlow::Continue(())
        })?;
        let mut policies = HashMap::new();
        let found: Vec<(Key, ChunkId)> = found
            .into_iter()
            .filter_map(|(chunk, hash, segment)| {
                let policy = *policies.entry(segment).or_insert_with(|| policy_of(metadata, segment));
                Some((key::dedup(domain(policy?), &hash), chunk))
            })
            .collect();
        let mut state = self.state.write();
        for (key, chunk) in found {
            // What was noted since is newer. One that has died meanwhile is never taken for a hit.
            if !state.delta.contains_key(&key) {
                state.filter.insert(&key);
                state.delta.insert(key, Some(chunk));
            }
        }
        drop(state);
        work.catch_up = next;
        Ok(())
    }

    /// Gives the filter the pages that so many more keys need, and makes full ones anew. Everything that is
    /// being merged is in `leaving`.
    pub(super) fn grow(&self, coming: u64) -> Result<(), StoreError> {
        let base = Arc::clone(&self.state.read().base);
        let keys = base.count(INDEX)? + coming;
        let wanted = Filter::pages_for(keys, DEDUP_FILTER_BYTES_MAX);
        while self.state.read().filter.len() < wanted {
            let halves = {
                let filter = &self.state.read().filter;
                filter.cover(filter.next_split()).halves()
            };
            let [low, high] = [make_page(&*base, halves[0])?, make_page(&*base, halves[1])?];
            let mut state = self.state.write();
            let (low, high) = (with_newer(&state, halves[0], low).0, with_newer(&state, halves[1], high).0);
            state.filter.split([low, high]);
        }
        for _ in 0..STALE_PAGES_MAX {
            let Some(number) = self.state.read().filter.stale() else { break };
            let cover = self.state.read().filter.cover(number);
            let page = make_page(&*base, cover)?;
            let mut state = self.state.write();
            let page = with_newer(&state, cover, page).0;
            state.filter.load(number, page, true);
        }
        Ok(())
    }

    /// Begins an empty index in place of the lost one; says whether there is one now.
    fn renew(&self, work: &mut Work) -> bool {
        work.renewals += 1;
        let nothing = MemoryKv::new();
        if let Ok(base) = nothing.snapshot() {
            let mut state = self.state.write();
            state.base = base;
            state.leaving = Arc::default();
            state.filter = Filter::unloaded(1);
        }
        work.kv = Box::new(nothing);
        work.saved = false;
        work.next_page = 0;
        work.catch_up = Some(ChunkId(0));
        // Whoever looks after the old one must not write to slots that are forgotten now.
        if let Some(lost) = self.database() {
            lost.let_go();
        }
        let renew = work.renew.as_ref().filter(|_| work.renewals <= RENEWALS_MAX);
        let renewed = renew.map(|renew| renew().and_then(|stored| Ok((stored.0.snapshot()?, stored))));
        match renewed {
            Some(Ok((base, (kv, database)))) => {
                work.kv = kv;
                self.state.write().base = base;
                *self.database.write() = Some(database);
                self.lost.store(false, Ordering::Release);
                tracing::info!("the dedup index is made anew");
                return true;
            }
            Some(Err(error)) => tracing::warn!(%error, "the dedup index cannot be made anew"),
            None => tracing::warn!("there is no dedup index until the next opening"),
        }
        self.loading.store(false, Ordering::Release);
        false
    }
}

/// A saved page, if it is there and what it should be.
fn read_page(base: &dyn KvSnapshot, cover: Cover) -> Result<Option<FilterPage>, StoreError> {
    let stored = base.get(FILTER, &cover.start.to_be_bytes())?;
    let page = stored.and_then(|stored| FilterPage::decode(&stored).ok());
    Ok(page.filter(|page| (page.start, page.depth) == (cover.start, cover.depth)))
}

/// A page made from the index.
fn make_page(base: &dyn KvSnapshot, cover: Cover) -> Result<FilterPage, StoreError> {
    let mut page = empty_page(cover);
    let mut domain = Some(0);
    while let Some(number) = domain.filter(|_| page.hashes < PAGE_KEYS_MAX) {
        let start = first_key(number, cover.start);
        let end = cover.end().map(|end| first_key(number, end)).or_else(|| next_domain(number));
        base.scan(INDEX, &start, end.as_ref().map(|end| &end[..]), &mut |key, _| {
            if let Ok(key) = key.try_into() {
                put(&mut page, key);
            }
            if page.hashes < PAGE_KEYS_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        domain = None;
        if let Some(behind) = next_domain(number) {
            base.scan(INDEX, &behind, None, &mut |key, _| {
                domain = key.try_into().ok().map(|key: &Key| domain_of(key));
                ControlFlow::Break(())
            })?;
        }
    }
    Ok(page)
}

/// The page with what is in memory put in; whether that changed it.
fn with_newer(state: &State, cover: Cover, mut page: FilterPage) -> (FilterPage, bool) {
    let mut changed = false;
    for delta in [&state.delta, &*state.leaving] {
        for domain in domains_in(delta) {
            let newer = delta.range(first_key(domain, cover.start)..).map(|(key, _)| key);
            for key in newer.take_while(|key| domain_of(key) == domain && cover.contains(key)) {
                changed |= put(&mut page, key);
            }
        }
    }
    (page, changed)
}

fn domains_in(delta: &Delta) -> Vec<u32> {
    let mut found = Vec::new();
    let mut next = Some([0; 20]);
    while let Some((key, _)) = next.and_then(|from| delta.range(from..).next()) {
        found.push(domain_of(key));
        next = next_domain(domain_of(key));
    }
    found
}

fn domain_of(key: &Key) -> u32 {
    u32::from_be_bytes([key[0], key[1], key[2], key[3]])
}

/// The first key behind a domain, if there can be any.
fn next_domain(domain: u32) -> Option<Key> {
    domain.checked_add(1).map(|domain| first_key(domain, 0))
}

fn first_key(domain: u32, prefix: u32) -> Key {
    let mut key = [0; 20];
    key[..4].copy_from_slice(&domain.to_be_bytes());
    key[4..8].copy_from_slice(&prefix.to_be_bytes());
    key
}

/// The policy that a segment follows. What was moved out of one that is gone by now is never found, which costs room and
/// nothing else.
fn policy_of(metadata: &dyn Tables, segment: SegmentId) -> Option<PolicyId> {
    let stored = metadata.get(Table::Segments, &key::segment(segment)).ok()??;
    Segment::decode(&stored).ok().map(|segment| segment.policy)
}
