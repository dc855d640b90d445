//! Which slots are free, and where new segments go.

use crate::PoolError;
use crate::pool::Redundancy;
use aegisfs_base::{DeviceIndex, SlotIndex};
use aegisfs_format::superblock::Health;
use std::collections::BTreeMap;

/// A slot of a device.
pub type Placement = (DeviceIndex, SlotIndex);

/// What a slot is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SlotState {
    /// Free, and the device was told to forget it.
    Blank,
    /// Free since the pool was opened; whether the device keeps anything of it is not known.
    Found,
    /// Free, and the device still keeps what was written there.
    Left,
    /// Free, but the device is being told to forget it: nobody gets it meanwhile.
    Trimming,
    /// Used by a segment.
    Used,
    /// Used by a database or the log.
    Mapped,
    /// Nothing refers to it any more, but the checkpoint that says so is not yet durable.
    Freeing,
}

/// How many states there are.
const STATES: usize = 7;

impl SlotState {
    /// Whether it can be given to somebody now.
    const fn is_at_hand(self) -> bool {
        matches!(self, Self::Blank | Self::Found | Self::Left)
    }
}

#[derive(Debug)]
struct DeviceSlots {
    states: Vec<SlotState>,
    /// Slots by state, counted so that nobody has to walk over all.
    counts: [u32; STATES],
    /// Where the last search ended; searching on from there keeps a log sequential.
    cursor: u32,
    /// Whether what is written reaches it.
    present: bool,
    health: Health,
    /// Devices that fail together have the same number.
    domain: usize,
    /// Whether new segments may be placed here: [`SlotTable::choose`] says so.
    usable: bool,
    /// So many free slots are left to the metadata. Where it has taken some of them they are fewer, until others come
    /// back: the pages that it wrote there are free inside the database by then.
    kept: u32,
    /// How many they should be.
    kept_full: u32,
    /// So many more are withheld from users, and metadata takes those that are kept for it first.
    spare: u32,
    /// While somebody looks for slots that nothing refers to: one bit for each that may be one.
    suspects: Vec<u64>,
}

impl DeviceSlots {
    fn set(&mut self, slot: usize, state: SlotState) {
        let before = std::mem::replace(&mut self.states[slot], state);
        self.counts[before as usize] -= 1;
        self.counts[state as usize] += 1;
        // Whoever changes it knows of it.
        self.acquit(slot);
    }

    fn acquit(&mut self, slot: usize) {
        if let Some(bits) = self.suspects.get_mut(slot / 64) {
            *bits &= !(1 << (slot % 64));
        }
    }

    fn is_suspect(&self, slot: usize) -> bool {
        self.suspects.get(slot / 64).is_some_and(|bits| bits >> (slot % 64) & 1 == 1)
    }

    const fn count(&self, state: SlotState) -> u32 {
        self.counts[state as usize]
    }

    const fn at_hand(&self) -> u32 {
        self.count(SlotState::Blank) + self.count(SlotState::Found) + self.count(SlotState::Left)
    }

    /// Whether something may be placed here if there is no room elsewhere.
    const fn takes(&self) -> bool {
        self.present && self.health as u8 <= Health::Suspect as u8
    }

    /// Those at hand, and those that will be in a moment.
    const fn free(&self) -> u32 {
        self.at_hand() + self.count(SlotState::Trimming)
    }

    /// Slots that segments may take, now or in a moment.
    const fn placeable(&self) -> u32 {
        if self.takes() { self.free().saturating_sub(self.kept) } else { 0 }
    }

    /// Of those, the ones that are at hand.
    fn placeable_now(&self) -> u32 {
        self.placeable().min(self.at_hand())
    }
}

/// Neighbouring slots of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) device: DeviceIndex,
    pub(crate) first: u32,
    pub(crate) count: u32,
}

/// Which neighbouring free slots are looked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) device: DeviceIndex,
    /// Where the search begins.
    pub(crate) from: u32,
    /// Those as well of which nothing is known.
    pub(crate) found: bool,
    /// So many at most.
    pub(crate) most: u32,
    /// Blank neighbours that are taken along on either side.
    pub(crate) margin: u32,
}

/// A slot that counts as used, and that nothing refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnownedSlot {
    /// The slot.
    pub place: Placement,
    /// It was taken for a database or the log, rather than for a segment.
    pub mapped: bool,
}

/// Room in the pool, in slots of one size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Slots of all members.
    pub slots: u64,
    /// Slots that nothing uses.
    pub free: u64,
    /// Of those, slots that still take room where the devices lie: they were used, and not discarded since.
    pub left: u64,
    /// How many of those are always left to the metadata.
    pub kept: u64,
    /// How many more should be, had it not taken them.
    pub lent: u64,
    /// Slots that will be free after the next checkpoint.
    pub freeing: u64,
    /// Segments of the default geometry that can still be placed, without the slots kept for metadata.
    pub segments_placeable: u64,
}

/// The state of every slot.
#[derive(Debug)]
pub(crate) struct SlotTable {
    devices: Vec<DeviceSlots>,
    /// Shards of parity that a segment should have: so many others of it may be lost.
    pub(crate) parity: usize,
    /// So many shards of a segment may be on devices that fail together.
    per_domain: usize,
    /// Usable devices, those together that fail together.
    domains: Domains,
    /// The same of all on which something may be placed.
    reachable: Domains,
    /// Counts up when devices come, go, or are taken for something else.
    changes: u64,
}

/// Numbers of devices, those together that fail together.
type Domains = Vec<Vec<usize>>;

impl SlotTable {
    pub(crate) fn new(slots: impl Iterator<Item = (u32, bool)>) -> Self {
        let devices = slots
            .map(|(count, usable)| {
                let mut counts = [0; STATES];
                counts[SlotState::Found as usize] = count;
                let states = vec![SlotState::Found; count as usize];
                DeviceSlots {
                    states,
                    counts,
                    cursor: 0,
                    present: usable,
                    health: Health::Healthy,
                    domain: 0,
                    usable,
                    kept: 0,
                    kept_full: 0,
                    spare: 0,
                    suspects: Vec::new(),
                }
            })
            .collect();
        let mut table = Self {
            devices,
            parity: 0,
            per_domain: usize::MAX,
            domains: Vec::new(),
            reachable: Vec::new(),
            changes: 0,
        };
        table.devices.iter_mut().enumerate().for_each(|(n, slots)| slots.domain = n);
        table.choose();
        table
    }

    /// Says how much parity a segment should have, how far each device is trusted, and which fail together: those with the
    /// same name, unless that is empty.
    pub(crate) fn set_rules<'a>(&mut self, parity: u8, devices: impl Iterator<Item = (Health, &'a str)>) {
        self.parity = usize::from(parity);
        let mut domains = BTreeMap::new();
        for (number, (slots, (health, domain))) in self.devices.iter_mut().zip(devices).enumerate() {
            slots.health = health;
            slots.domain = if domain.is_empty() { number } else { *domains.entry(domain).or_insert(number) };
        }
        self.choose();
    }

    /// Chooses which devices get new segments. Healthy ones, as long as a copy of everything beside as much parity as there
    /// should be has room on them; else degraded ones too, and then suspect ones. Where not even all of those are enough,
    /// it is put up with that a failure domain has more shards than may be lost.
    fn choose(&mut self) {
        let usable = |table: &Self| table.devices.iter().map(|slots| slots.usable).collect::<Vec<_>>();
        let before = (usable(self), self.per_domain);
        self.choose_anew();
        self.changes += u64::from(before != (usable(self), self.per_domain));
    }

    fn choose_anew(&mut self) {
        let needed = self.parity + 1;
        self.reachable = self.by_domain(DeviceSlots::takes);
        self.per_domain = if self.parity == 0 { usize::MAX } else { self.parity };
        for most in [Health::Healthy, Health::Degraded, Health::Suspect] {
            for slots in &mut self.devices {
                slots.usable = slots.present && slots.health <= most;
            }
            self.domains = self.by_domain(|slots| slots.usable);
            if self.width() >= needed {
                return;
            }
        }
        self.per_domain = usize::MAX;
    }

    /// Devices for which something holds, by failure domain.
    fn by_domain(&self, is_one: impl Fn(&DeviceSlots) -> bool) -> Domains {
        let mut domains = BTreeMap::<usize, Vec<usize>>::new();
        for (number, slots) in self.devices.iter().enumerate().filter(|(_, slots)| is_one(slots)) {
            domains.entry(slots.domain).or_default().push(number);
        }
        domains.into_values().collect()
    }

    /// How many shards a segment can have at most.
    pub(crate) fn width(&self) -> usize {
        width(&self.domains, self.per_domain)
    }

    /// Which devices get shards of segments with so much parity, and how many of those that fail together.
    ///
    /// Those are the trusted ones, if parity that is not the usual has room on them too.
    fn rule(&self, parity: usize) -> (&Domains, usize) {
        if parity == self.parity {
            return (&self.domains, self.per_domain);
        }
        let per_domain = if parity == 0 { usize::MAX } else { parity };
        [&self.domains, &self.reachable]
            .into_iter()
            .find(|domains| width(domains, per_domain) > parity)
            .map_or((&self.reachable, usize::MAX), |domains| (domains, per_domain))
    }

    /// How many shards a segment with so much parity can have at most.
    pub(crate) fn width_with(&self, parity: usize) -> usize {
        let (domains, per_domain) = self.rule(parity);
        width(domains, per_domain)
    }

    /// The same if nothing may be put up with.
    pub(crate) fn width_apart(&self) -> usize {
        width(&self.domains, if self.parity == 0 { usize::MAX } else { self.parity })
    }

    /// The same with all devices there and trusted.
    pub(crate) fn width_if_all(&self, parity: usize) -> usize {
        width(&self.by_domain(|_| true), if parity == 0 { usize::MAX } else { parity })
    }

    /// Of some devices in the order in which they are wanted, so many that no failure domain has too many of them.
    fn spread(&self, wanted: impl Iterator<Item = usize>, count: usize, per_domain: usize) -> Vec<usize> {
        let mut taken = BTreeMap::<usize, usize>::new();
        let fits = |number: &usize| {
            let of_domain = taken.entry(self.devices[*number].domain).or_default();
            *of_domain += 1;
            *of_domain <= per_domain
        };
        wanted.filter(fits).take(count).collect()
    }

    /// Whether a device may have a shard beside others without too many of them failing together.
    pub(crate) fn fits_beside(&self, device: DeviceIndex, others: &[Placement]) -> bool {
        self.beside(device, others) < self.per_domain
    }

    /// How many of some slots fail together with a device.
    fn beside(&self, device: DeviceIndex, others: &[Placement]) -> usize {
        let domain = |device: DeviceIndex| self.devices.get(usize::from(device.0)).map(|slots| slots.domain);
        others.iter().filter(|other| domain(other.0) == domain(device)).count()
    }

    /// Whether more shards of a segment with so much parity fail together than may be lost, although it need not be so any
    /// more.
    pub(crate) fn is_crowded(&self, places: &[Placement], parity: usize) -> bool {
        let (domains, per_domain) = self.rule(parity);
        width(domains, per_domain) >= places.len()
            && (0..places.len()).any(|n| self.beside(places[n].0, &places[..n]) >= per_domain)
    }

    /// Counts up when devices come, go, or are taken for something else.
    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }

    /// How far a device is trusted from now on.
    pub(crate) fn set_health(&mut self, device: DeviceIndex, health: Health) {
        self.devices[usize::from(device.0)].health = health;
        self.choose();
    }

    /// Whether new segments may be placed on a device.
    pub(crate) fn is_usable(&self, device: DeviceIndex) -> bool {
        self.devices.get(usize::from(device.0)).is_some_and(|slots| slots.usable)
    }

    /// Shards of data and of parity that a segment has now; one that is not wide has one of data.
    pub(crate) fn shards_of(&self, redundancy: Redundancy, wide: bool) -> (u8, u8) {
        let (data, parity) = redundancy.on(self.width_with(usize::from(redundancy.shards_parity)));
        (if wide { data } else { 1 }, parity)
    }

    /// On how many devices new segments are placed.
    pub(crate) fn count_usable(&self) -> usize {
        self.devices.iter().filter(|slots| slots.usable).count()
    }

    /// Slots of a device, and how many of them are free.
    pub(crate) fn room_of(&self, device: DeviceIndex) -> (u64, u64) {
        let slots = &self.devices[usize::from(device.0)];
        (slots.states.len() as u64, u64::from(slots.free()))
    }

    /// Notes that a slot is used by a segment, or by what is mapped. Says whether it was free before.
    pub(crate) fn claim(&mut self, (device, slot): Placement, mapped: bool) -> bool {
        let Some(slots) = self.devices.get_mut(usize::from(device.0)) else { return false };
        let Some(state) = slots.states.get(slot.0 as usize) else { return false };
        if !state.is_at_hand() {
            return false;
        }
        slots.set(slot.0 as usize, if mapped { SlotState::Mapped } else { SlotState::Used });
        true
    }

    /// Whether a segment has a slot, or had it until the next checkpoint.
    pub(crate) fn is_used(&self, (device, slot): Placement) -> bool {
        let state =
            self.devices.get(usize::from(device.0)).and_then(|slots| slots.states.get(slot.0 as usize));
        state.is_some_and(|state| matches!(state, SlotState::Used | SlotState::Freeing))
    }

    /// Leaves so many free slots of each device to the metadata, without which no checkpoint ever frees another, and
    /// takes as many more for withheld.
    pub(crate) fn keep(&mut self, kept: impl Fn(u32) -> u32) {
        for slots in &mut self.devices {
            slots.kept_full = kept(slots.states.len() as u32);
            slots.spare = slots.kept_full;
            let free = slots.free().saturating_sub(slots.spare);
            slots.kept = slots.kept_full.min(free);
        }
    }

    pub(crate) fn set_usable(&mut self, device: DeviceIndex, usable: bool) {
        self.devices[usize::from(device.0)].present = usable;
        self.choose();
    }

    /// Devices for so many copies of metadata: those that new segments are placed on first, then those with the most room.
    /// Copies that share a device are as many as there are too few of them; none where a device that counts has no room.
    pub(crate) fn devices_for_copies(&self, copies: usize, is_metadata: bool) -> Vec<DeviceIndex> {
        let (wanted, per_domain) = if width(&self.reachable, self.per_domain) >= copies {
            (copies, self.per_domain)
        } else {
            (width(&self.reachable, usize::MAX).min(copies).max(1), usize::MAX)
        };
        let at_hand = |number: &usize| self.at_hand_on(DeviceIndex(*number as u16), is_metadata);
        let mut order: Vec<usize> = (0..self.devices.len()).filter(|number| at_hand(number) > 0).collect();
        order.sort_by_key(|number| (!self.devices[*number].usable, std::cmp::Reverse(at_hand(number))));
        let chosen = self.spread(order.into_iter(), wanted, per_domain);
        match chosen.len() == wanted {
            true => chosen.into_iter().map(|number| DeviceIndex(number as u16)).collect(),
            false => Vec::new(),
        }
    }

    /// Takes a free slot of a device for a database or the log, searching from `start`.
    pub(crate) fn take_mapped(&mut self, device: DeviceIndex, start: u32) -> Option<Placement> {
        let found = self.search(device, start)?;
        let slots = &mut self.devices[usize::from(device.0)];
        if slots.placeable() <= slots.spare {
            slots.kept = slots.kept.saturating_sub(1);
        }
        slots.set(found as usize, SlotState::Mapped);
        Some((device, SlotIndex(found)))
    }

    /// Takes a free slot of a device for a segment, searching from where the last search ended.
    fn take(&mut self, device: DeviceIndex) -> Option<Placement> {
        let found = self.search(device, self.devices[usize::from(device.0)].cursor)?;
        let slots = &mut self.devices[usize::from(device.0)];
        slots.set(found as usize, SlotState::Used);
        slots.cursor = found + 1;
        Some((device, SlotIndex(found)))
    }

    fn search(&self, device: DeviceIndex, start: u32) -> Option<u32> {
        let slots = &self.devices[usize::from(device.0)];
        if slots.at_hand() == 0 {
            return None;
        }
        let count = slots.states.len() as u32;
        let from = start % count;
        (from..count).chain(0..from).find(|n| slots.states[*n as usize].is_at_hand())
    }

    /// Gives a slot back at once: nothing durable refers to it.
    ///
    /// # Panics
    /// When it was not in use.
    pub(crate) fn release(&mut self, (device, slot): Placement) {
        let slots = &mut self.devices[usize::from(device.0)];
        let state = slots.states[slot.0 as usize];
        let is_in_use = matches!(state, SlotState::Used | SlotState::Mapped | SlotState::Freeing);
        assert!(is_in_use, "slot {slot} of device {device} freed twice");
        slots.set(slot.0 as usize, SlotState::Left);
        if slots.kept < slots.kept_full && slots.placeable() > slots.spare {
            slots.kept += 1;
        }
    }

    /// Notes that a slot will be free once the next checkpoint is durable.
    ///
    /// # Panics
    /// When it was not in use by a segment.
    pub(crate) fn begin_release(&mut self, (device, slot): Placement) {
        let slots = &mut self.devices[usize::from(device.0)];
        let state = slots.states[slot.0 as usize];
        assert_eq!(state, SlotState::Used, "slot {slot} of device {device} freed twice");
        slots.set(slot.0 as usize, SlotState::Freeing);
    }

    /// Sets neighbouring free slots aside, to be discarded. Nobody gets them until [`SlotTable::end_trim`].
    pub(crate) fn begin_trim(&mut self, wanted: &Wanted) -> Option<Run> {
        let slots = &mut self.devices[usize::from(wanted.device.0)];
        let is_wanted =
            |state: SlotState| state == SlotState::Left || (wanted.found && state == SlotState::Found);
        let states = &slots.states;
        let first = (wanted.from as usize..states.len()).find(|n| is_wanted(states[*n]))?;
        let most = wanted.most.max(1) as usize;
        let count = states[first..].iter().take(most).take_while(|state| is_wanted(**state)).count();
        let end = first + count;
        let blank = |state: &&SlotState| **state == SlotState::Blank;
        let margin = wanted.margin as usize;
        let before = states[..first].iter().rev().take(margin).take_while(blank).count();
        let behind = states[end..].iter().take(margin).take_while(blank).count();
        for slot in first - before..end + behind {
            slots.set(slot, SlotState::Trimming);
        }
        let (first, count) = ((first - before) as u32, (before + count + behind) as u32);
        Some(Run { device: wanted.device, first, count })
    }

    /// Makes slots that were set aside free again; those in `forgotten` are blank now.
    pub(crate) fn end_trim(&mut self, run: Run, forgotten: std::ops::Range<u32>) {
        let slots = &mut self.devices[usize::from(run.device.0)];
        for slot in run.first..run.first + run.count {
            // What the device keeps all the same is not tried again by itself.
            let state = if forgotten.contains(&slot) { SlotState::Blank } else { SlotState::Found };
            slots.set(slot as usize, state);
        }
    }

    /// Whether some slots are set aside at this moment.
    pub(crate) fn is_trimming(&self) -> bool {
        self.devices.iter().any(|slots| slots.count(SlotState::Trimming) > 0)
    }

    /// Slots of a device that wait to be discarded, and those of which nothing is known.
    pub(crate) fn trimmable(&self, device: DeviceIndex) -> (u32, u32) {
        let slots = &self.devices[usize::from(device.0)];
        (slots.count(SlotState::Left), slots.count(SlotState::Found))
    }

    /// Suspects all slots in use of being referred to by nothing. Whatever changes acquits itself.
    pub(crate) fn suspect_all(&mut self) {
        for slots in &mut self.devices {
            let words = slots.states.len().div_ceil(64);
            slots.suspects = vec![0; words];
            for (slot, state) in slots.states.iter().enumerate() {
                if matches!(state, SlotState::Used | SlotState::Mapped) {
                    slots.suspects[slot / 64] |= 1 << (slot % 64);
                }
            }
        }
    }

    /// Notes that something refers to a slot.
    pub(crate) fn acquit(&mut self, (device, slot): Placement) {
        if let Some(slots) = self.devices.get_mut(usize::from(device.0)) {
            slots.acquit(slot.0 as usize);
        }
    }

    /// The first so many slots that are still suspected.
    pub(crate) fn suspects(&self, most: usize) -> Vec<UnownedSlot> {
        let one = |(device, slots): (usize, &DeviceSlots)| -> Vec<UnownedSlot> {
            let suspect = |slot: &usize| slots.is_suspect(*slot);
            let named = |slot: usize| UnownedSlot {
                place: (DeviceIndex(device as u16), SlotIndex(slot as u32)),
                mapped: slots.states[slot] == SlotState::Mapped,
            };
            let words = slots.suspects.iter().enumerate().filter(|(_, bits)| **bits != 0);
            words
                .flat_map(|(word, _)| word * 64..word * 64 + 64)
                .filter(suspect)
                .take(most)
                .map(named)
                .collect()
        };
        self.devices.iter().enumerate().flat_map(one).take(most).collect()
    }

    /// Whether a slot is suspected, of a segment.
    pub(crate) fn is_suspect(&self, (device, slot): Placement) -> bool {
        self.devices.get(usize::from(device.0)).is_some_and(|slots| {
            slots.is_suspect(slot.0 as usize) && slots.states[slot.0 as usize] == SlotState::Used
        })
    }

    /// Suspects nothing any more.
    pub(crate) fn forget_suspects(&mut self) {
        self.devices.iter_mut().for_each(|slots| slots.suspects = Vec::new());
    }

    /// Slots for a segment with so much parity: on different devices, those with the most room first; on none of some others
    /// where that is as good.
    pub(crate) fn place(
        &mut self,
        members: usize,
        parity: usize,
        others: &[DeviceIndex],
    ) -> Result<Vec<Placement>, PoolError> {
        let apart = if others.is_empty() { None } else { self.choose_apart(members, parity, others) };
        let chosen = match apart {
            Some(chosen) => chosen,
            None => self.choose_roomiest(members, parity)?,
        };
        let placed = chosen
            .into_iter()
            .map(|d| self.take(DeviceIndex(d as u16)).expect("it has a free slot"))
            .collect();
        Ok(placed)
    }

    /// The devices with the most room.
    fn choose_roomiest(&self, members: usize, parity: usize) -> Result<Vec<usize>, PoolError> {
        let (_, per_domain) = self.rule(parity);
        let mut order = self.by_room();
        // Where those that are trusted most have no room, others have to do.
        let trusted = order.iter().copied().filter(|d| self.devices[*d].usable);
        let mut chosen = self.spread(trusted, members, per_domain);
        if chosen.len() < members {
            order.sort_by_key(|d| !self.devices[*d].usable);
            chosen = self.spread(order.into_iter(), members, per_domain);
        }
        if chosen.len() < members {
            return Err(PoolError::NoSpace { purpose: "a segment" });
        }
        Ok(chosen)
    }

    /// Trusted devices that are none of some others, if that leaves as much room as the roomiest would.
    pub(crate) fn choose_apart(
        &self,
        members: usize,
        parity: usize,
        others: &[DeviceIndex],
    ) -> Option<Vec<usize>> {
        let (_, per_domain) = self.rule(parity);
        let is_apart = |d: &usize| self.devices[*d].usable && !others.contains(&DeviceIndex(*d as u16));
        let chosen = self.spread(self.by_room().into_iter().filter(is_apart), members, per_domain);
        let room =
            |number: usize| u64::from(self.devices[number].placeable()) - u64::from(chosen.contains(&number));
        let left = segments_placeable(&self.reachable, members, per_domain, room);
        let is_chosen = chosen.len() == members && left + 1 >= self.placeable(members, parity);
        is_chosen.then_some(chosen)
    }

    /// Devices that have room now, the one with the most first.
    fn by_room(&self) -> Vec<usize> {
        let mut order: Vec<usize> =
            (0..self.devices.len()).filter(|d| self.devices[*d].placeable_now() > 0).collect();
        order.sort_by_key(|d| std::cmp::Reverse(self.devices[*d].placeable()));
        order
    }

    /// Slots of a device that can be given away now, of which metadata may have all.
    pub(crate) fn at_hand_on(&self, device: DeviceIndex, is_metadata: bool) -> u32 {
        let slots = &self.devices[usize::from(device.0)];
        match is_metadata {
            true if slots.takes() => slots.at_hand(),
            true => 0,
            false => slots.placeable_now(),
        }
    }

    /// Slots that are free, or as many as should be kept, whichever is more.
    pub(crate) fn room_for_metadata(&self) -> u64 {
        let usable = || self.devices.iter().filter(|slots| slots.takes());
        let free: u64 = usable().map(|slots| u64::from(slots.free())).sum();
        free.max(usable().map(|slots| u64::from(slots.kept_full)).sum())
    }

    /// How many segments of so many members could be placed if there were none yet, with all devices there.
    pub(crate) fn segments_total(&self, members: usize) -> u64 {
        let for_segments = |d: &DeviceSlots| {
            (d.states.len() as u64)
                .saturating_sub(u64::from(d.count(SlotState::Mapped)))
                .saturating_sub(u64::from(d.kept_full))
        };
        let per_domain = if self.parity == 0 { usize::MAX } else { self.parity };
        let room = |number: usize| for_segments(&self.devices[number]);
        segments_placeable(&self.by_domain(|_| true), members, per_domain, room)
    }

    /// How many segments of so many members, of them so many of parity, can still be placed, now or in a moment.
    pub(crate) fn placeable(&self, members: usize, parity: usize) -> u64 {
        let (domains, per_domain) = self.rule(parity);
        // With members missing, segments have fewer shards rather than no place.
        let members = members.min(width(domains, per_domain)).max(1);
        let room = |number: usize| u64::from(self.devices[number].placeable());
        segments_placeable(&self.reachable, members, per_domain, room)
    }

    /// What room there is for segments of so many members.
    pub(crate) fn space(&self, members: usize) -> Space {
        let usable = || self.devices.iter().filter(|d| d.takes());
        Space {
            slots: self.devices.iter().map(|d| d.states.len() as u64).sum(),
            free: self.devices.iter().map(|d| u64::from(d.free())).sum(),
            kept: usable().map(|d| u64::from(d.kept)).sum(),
            lent: usable().map(|d| u64::from(d.kept_full - d.kept)).sum(),
            left: usable().map(|d| u64::from(d.count(SlotState::Left))).sum(),
            freeing: self.devices.iter().map(|d| u64::from(d.count(SlotState::Freeing))).sum(),
            segments_placeable: self.placeable(members, self.parity),
        }
    }
}

/// How many devices of some can each have a shard of the same segment.
fn width(domains: &[Vec<usize>], per_domain: usize) -> usize {
    domains.iter().map(|devices| devices.len().min(per_domain)).sum()
}

/// How many segments fit where each takes at most one slot of a device, and `per_domain` of those that fail together: the
/// largest S for which the sum of min(S * `per_domain`, the sum of min(free, S) over a domain) over all is at least S * members.
fn segments_placeable(
    domains: &[Vec<usize>],
    members: usize,
    per_domain: usize,
    free: impl Fn(usize) -> u64,
) -> u64 {
    let (members, per_domain) = (members as u64, per_domain as u64);
    let of_domain = |domain: &Vec<usize>, s: u64| {
        domain.iter().map(|n| free(*n).min(s)).sum::<u64>().min(s.saturating_mul(per_domain))
    };
    let fits = |s: u64| domains.iter().map(|domain| of_domain(domain, s)).sum::<u64>() >= s * members;
    let (mut low, mut high) = (0, domains.iter().flatten().map(|n| free(*n)).sum::<u64>() / members.max(1));
    while low < high {
        let middle = (low + high).div_ceil(2);
        if fits(middle) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    impl SlotTable {
        /// A segment with the usual parity.
        fn put(&mut self, members: usize) -> Result<Vec<Placement>, PoolError> {
            self.place(members, self.parity, &[])
        }
    }

    #[test]
    fn mixed_sizes_hold_what_the_geometry_allows() {
        let apart = |free: &[u64], members| {
            let domains: Vec<_> = (0..free.len()).map(|n| vec![n]).collect();
            segments_placeable(&domains, members, 1, |n| free[n])
        };
        assert_eq!(apart(&[10], 1), 10);
        assert_eq!(apart(&[10, 4], 2), 4);
        assert_eq!(apart(&[4, 2, 2, 1, 1, 1], 2), 5);
        assert_eq!(apart(&[8, 2, 2, 1, 1, 1], 2), 7);
        assert_eq!(apart(&[3, 3, 3], 2), 4);
        assert_eq!(apart(&[], 1), 0);
        assert_eq!(apart(&[5], 2), 0);
        // Two shards of each segment in one domain at most, four in all.
        let together = |domains: &[Vec<usize>], last| {
            segments_placeable(domains, 4, 2, |n| if n == 9 { last } else { 5 })
        };
        assert_eq!(together(&[vec![0, 1, 2], vec![3, 4, 5]], 0), 7);
        assert_eq!(together(&[vec![0, 1, 2], vec![3]], 0), 0);
        assert_eq!(together(&[vec![0, 1, 2], vec![3], vec![9]], 2), 2);
        assert_eq!(segments_placeable(&[vec![0], vec![1]], 1, usize::MAX, |_| 3), 6);
    }

    fn devices(count: u32, parity: u8, domains: &[&str]) -> SlotTable {
        let mut table = SlotTable::new((0..count).map(|_| (8, true)));
        let named = |n: u32| domains.get(n as usize).copied().unwrap_or_default();
        table.set_rules(parity, (0..count).map(|n| (Health::Healthy, named(n))));
        table
    }

    fn on(places: &[Placement]) -> Vec<u16> {
        let mut on: Vec<u16> = places.iter().map(|place| place.0.0).collect();
        on.sort_unstable();
        on
    }

    #[test]
    fn new_segments_go_to_healthy_devices_as_long_as_those_are_enough() {
        let mut table = devices(6, 2, &[]);
        for health in [Health::Degraded, Health::Suspect, Health::Draining, Health::Failed] {
            table.set_health(DeviceIndex(3), health);
            assert_eq!(table.width(), 5);
            assert!(!on(&table.put(5).unwrap()).contains(&3), "{health:?}");
        }
        assert!(table.put(6).is_err(), "it failed");
        // Where the healthy ones have no room, a degraded one has to do.
        table.set_health(DeviceIndex(3), Health::Degraded);
        for _ in 0..4 {
            assert!(!on(&table.put(5).unwrap()).contains(&3));
        }
        assert_eq!((table.space(1).segments_placeable, on(&table.put(1).unwrap())), (8, vec![3]));
        let mut table = devices(6, 2, &[]);
        assert_eq!(on(&table.put(6).unwrap()).len(), 6);
        // Of three and one copy more than may be lost, two are left: a degraded one comes before a suspect one.
        let mut table = devices(3, 1, &[]);
        table.set_health(DeviceIndex(0), Health::Suspect);
        table.set_health(DeviceIndex(1), Health::Degraded);
        assert_eq!(on(&table.put(2).unwrap()), [1, 2]);
        table.set_usable(DeviceIndex(2), false);
        assert_eq!(on(&table.put(2).unwrap()), [0, 1]);
        table.set_health(DeviceIndex(0), Health::Draining);
        assert_eq!((table.width(), on(&table.put(1).unwrap())), (1, vec![1]));
        // A pool's only device is used as long as it can be.
        let mut table = devices(1, 0, &[]);
        table.set_health(DeviceIndex(0), Health::Suspect);
        assert_eq!(on(&table.put(1).unwrap()), [0]);
    }

    #[test]
    fn no_failure_domain_has_more_shards_than_may_be_lost() {
        let mut table = devices(6, 2, &["a", "a", "a", "b", "b", ""]);
        assert_eq!(table.width(), 5);
        for _ in 0..5 {
            let on = on(&table.put(5).unwrap());
            assert!(on.iter().filter(|n| **n < 3).count() == 2 && on.contains(&5), "{on:?}");
        }
        assert!(table.put(6).is_err());
        // As many as are kept are told.
        let mut table = devices(4, 1, &["a", "a", "b", "b"]);
        assert_eq!((table.width(), table.space(2).segments_placeable, table.segments_total(2)), (2, 16, 16));
        for _ in 0..16 {
            let on = on(&table.put(2).unwrap());
            assert!(on[0] < 2 && on[1] >= 2, "{on:?}");
        }
        assert_eq!(table.space(2).segments_placeable, 0);
        assert!(!table.is_crowded(&[(DeviceIndex(0), SlotIndex(0)), (DeviceIndex(2), SlotIndex(0))], 1));
        assert!(table.is_crowded(&[(DeviceIndex(0), SlotIndex(0)), (DeviceIndex(1), SlotIndex(0))], 1));
        // With one domain gone a second copy in the other is better than none.
        let mut table = devices(4, 1, &["a", "a", "b", "b"]);
        table.set_usable(DeviceIndex(2), false);
        table.set_usable(DeviceIndex(3), false);
        assert_eq!(on(&table.put(2).unwrap()), [0, 1]);
    }

    #[test]
    fn copies_of_metadata_are_spread_as_well() {
        let mut table = devices(6, 2, &["a", "a", "a", "b", "b", "b"]);
        let copies = table.devices_for_copies(3, true);
        assert_eq!(copies.iter().filter(|device| device.0 < 3).count().abs_diff(1), 1, "{copies:?}");
        // A suspect device is the last to be taken, and taken before there are too few.
        table.set_health(copies[0], Health::Suspect);
        assert!(!table.devices_for_copies(3, true).contains(&copies[0]));
        for n in (0..6).map(DeviceIndex).filter(|n| !copies.contains(n)) {
            table.set_usable(n, false);
        }
        assert_eq!(table.devices_for_copies(3, true).len(), 3);
        assert!(devices(1, 0, &[]).devices_for_copies(2, true) == [DeviceIndex(0)]);
    }

    #[test]
    fn slots_are_taken_once_and_come_back() {
        let mut table = SlotTable::new([(3, true), (2, true)].into_iter());
        let first = table.put(2).unwrap();
        assert_eq!(first.len(), 2);
        assert_ne!(first[0].0, first[1].0);
        table.put(2).unwrap();
        assert!(matches!(table.put(2), Err(PoolError::NoSpace { .. })));
        assert_eq!(table.space(1).free, 1);
        table.begin_release(first[0]);
        assert_eq!((table.space(1).free, table.space(1).freeing), (1, 1));
        table.release(first[0]);
        assert_eq!((table.space(1).free, table.space(1).freeing), (2, 0));
        assert!(table.claim(first[0], false));
        assert!(!table.claim(first[0], true));
        assert!(!table.claim((DeviceIndex(9), SlotIndex(0)), false));
    }

    const FIRST: DeviceIndex = DeviceIndex(0);

    fn wanted(from: u32) -> Wanted {
        Wanted { device: FIRST, from, found: false, most: 100, margin: 0 }
    }

    #[test]
    fn what_is_being_discarded_is_given_to_nobody() {
        let mut table = SlotTable::new(std::iter::once((4, true)));
        let taken: Vec<_> = (0..4).map(|_| table.put(1).unwrap()[0]).collect();
        assert_eq!(table.begin_trim(&wanted(0)), None, "nothing of it is free");
        table.release(taken[1]);
        table.begin_release(taken[2]);
        let run = table.begin_trim(&wanted(0)).unwrap();
        assert_eq!((run.first, run.count), (1, 1), "the other one waits for the checkpoint");
        assert!(table.put(1).is_err() && table.is_trimming());
        assert!(!table.claim(taken[1], false));
        assert_eq!((table.space(1).free, table.space(1).segments_placeable), (1, 1));
        table.end_trim(run, 1..2);
        assert_eq!((table.is_trimming(), table.begin_trim(&wanted(0))), (false, None));
        assert_eq!(table.put(1).unwrap(), [taken[1]]);
        table.release(taken[1]);
        assert_eq!(table.space(1).left, 1, "it was written to again");
    }

    #[test]
    fn neighbours_are_discarded_together() {
        let mut table = SlotTable::new(std::iter::once((10, true)));
        let taken: Vec<_> = (0..10).map(|_| table.put(1).unwrap()[0]).collect();
        [1, 2, 3, 5, 6].iter().for_each(|n| table.release(taken[*n]));
        let most = |from, most| Wanted { most, ..wanted(from) };
        let run = table.begin_trim(&most(0, 2)).unwrap();
        assert_eq!((run.first, run.count), (1, 2));
        table.end_trim(run, 1..3);
        // Those before are blank, and help to make up whole units.
        let run = table.begin_trim(&Wanted { margin: 1, ..wanted(3) }).unwrap();
        assert_eq!((run.first, run.count), (2, 2));
        table.end_trim(run, 0..0);
        assert_eq!(table.trimmable(FIRST), (2, 2), "what the device kept is not tried again");
        let run = table.begin_trim(&wanted(0)).unwrap();
        assert_eq!((run.first, run.count), (5, 2));
        table.end_trim(run, 5..7);
        let run = table.begin_trim(&Wanted { found: true, ..wanted(0) }).unwrap();
        assert_eq!((run.first, run.count), (2, 2));
        table.end_trim(run, 2..4);
        assert_eq!(table.trimmable(FIRST), (0, 0));
    }

    #[test]
    fn slots_that_change_are_not_suspected() {
        let mut table = SlotTable::new([(70, true), (3, true)].into_iter());
        let taken: Vec<_> = (0..73).map(|_| table.put(1).unwrap()[0]).collect();
        table.release(taken[0]);
        table.take_mapped(taken[0].0, taken[0].1.0).unwrap();
        table.suspect_all();
        assert_eq!(table.suspects(100).len(), 73);
        assert_eq!(table.suspects(5).len(), 5);
        for place in &taken[3..] {
            table.acquit(*place);
        }
        table.begin_release(taken[1]);
        let left = table.suspects(100);
        let expected =
            [UnownedSlot { place: taken[0], mapped: true }, UnownedSlot { place: taken[2], mapped: false }];
        assert!(left.len() == 2 && expected.iter().all(|slot| left.contains(slot)), "{left:?}");
        assert!(table.is_suspect(taken[2]) && !table.is_suspect(taken[0]) && !table.is_suspect(taken[1]));
        table.release(taken[2]);
        assert!(table.claim(taken[2], false) && !table.is_suspect(taken[2]));
        table.forget_suspects();
        assert_eq!(table.suspects(100), []);
    }

    #[test]
    fn metadata_takes_what_is_kept_for_it_before_what_is_withheld() {
        let mut table = SlotTable::new(std::iter::once((12, true)));
        table.keep(|_| 3);
        let placed: Vec<_> = (0..6).map(|_| table.put(1).unwrap()[0]).collect();
        let seen = |table: &SlotTable| {
            let space = table.space(1);
            (space.free, space.kept, space.lent, space.segments_placeable)
        };
        assert_eq!(seen(&table), (6, 3, 0, 3));
        table.take_mapped(FIRST, 0).unwrap();
        table.take_mapped(FIRST, 0).unwrap();
        assert_eq!(seen(&table), (4, 1, 2, 3));
        assert_eq!(table.room_for_metadata(), 4);
        // What comes back makes up for it first.
        table.release(placed[0]);
        assert_eq!(seen(&table), (5, 2, 1, 3));
        placed[1..].iter().for_each(|place| table.release(*place));
        assert_eq!(seen(&table), (10, 3, 0, 7));
    }

    #[test]
    fn only_metadata_gets_what_is_kept() {
        let mut table = SlotTable::new([(4, true), (3, true)].into_iter());
        table.keep(|_| 1);
        assert_eq!((table.space(1).segments_placeable, table.space(1).kept), (5, 2));
        assert_eq!(table.space(2).segments_placeable, 2);
        table.put(2).unwrap();
        table.put(2).unwrap();
        assert!(matches!(table.put(2), Err(PoolError::NoSpace { .. })));
        table.put(1).unwrap();
        assert!(matches!(table.put(1), Err(PoolError::NoSpace { .. })));
        assert_eq!((table.space(1).segments_placeable, table.space(1).free), (0, 2));
        let free_on = |device| {
            (table.at_hand_on(DeviceIndex(device), false), table.at_hand_on(DeviceIndex(device), true))
        };
        assert_eq!((free_on(0), free_on(1)), ((0, 1), (0, 1)));
        assert!(table.take_mapped(DeviceIndex(0), 0).is_some());
    }
}
