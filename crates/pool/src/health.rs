//! How far each device is trusted, who says so, and what follows from it.
//!
//! The health of a device stands in the superblock. Operators set it; by itself it gets worse when the device makes errors,
//! or is much slower than the others, and a degraded one is healthy again after a while without either. Each error counts as
//! trouble, more if nothing helped, and trouble counts half after an hour. What is suspect, draining or failed stays that
//! until an operator says otherwise.
//!
//! New segments go to healthy devices as long as those are enough for a copy beside the parity there should be; see
//! [`crate::slots`]. Reads go where they cost least: each grade of health costs three, each other request that waits there
//! and each time that the device is slower than the fastest one costs one. Of a device that hesitated of late nobody waits
//! for an answer who can have the bytes elsewhere.

use crate::PoolError;
use crate::activity::{Activity, DeviceSpeed, Kind, now, steps};
use crate::member::Member;
use crate::open::own_uuid;
use crate::pool::{MemberState, Pool};
use crate::slots::Placement;
use crate::superblocks;
use aegisfs_base::DeviceIndex;
use aegisfs_base::limits::BLOCK_BYTES;
use aegisfs_device::AlignedBuffer;
use aegisfs_format::superblock::{Health, Membership};
use aegisfs_format::value::DeviceCounts;
use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// From so much trouble on a device is degraded: five calls that had to be made again, five cells that do not verify, or one
/// call that failed and several of those.
const DEGRADED_FROM: f64 = 5.0;
/// From so much on it is suspect: it makes errors faster than they are forgotten.
const SUSPECT_FROM: f64 = 50.0;
/// A degraded one is healthy again below this, if it is not slow either.
const FORGIVEN_BELOW: f64 = 1.0;
/// It is slow if its calls take so many times as long as those of half of the others, and at least so long.
const SLOW_TIMES: u64 = 10;
const SLOW_FROM: Duration = Duration::from_millis(50);
/// For so long before it is degraded, and not for so long before it is healthy again.
const SLOW_FOR: Duration = Duration::from_secs(30);
const CALM_FOR: Duration = Duration::from_secs(600);
/// What a grade of health costs when it is chosen where to read.
const GRADE_COST: u64 = 3;
/// No device costs more than this for being slow.
const SLOW_COST_MAX: u64 = 32;
/// Nothing is faster, as far as is compared.
const FASTEST_NS: u64 = 20_000;
/// What costs so much more than the cheapest device, and takes at least so long, is read only where nothing else will do.
const AVOIDED_FROM: u64 = 8;
const AVOIDED_NS: u64 = 20_000_000;
/// How long is waited for a device that hesitated of late: so many times as long as a read takes elsewhere, within bounds.
const PATIENCE_TIMES: u64 = 4;
const PATIENCE_NS: (u64, u64) = (10_000_000, 1_000_000_000);
/// Reads that take less are over before another thread has begun.
const SIDE_BY_SIDE_FROM_NS: u64 = 500_000;
/// Places of a device that a probe reads.
const PROBED: u64 = 16;

/// Since when a device is slow, or neither slow nor in trouble.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Watch {
    slow_since: Option<u64>,
    calm_since: Option<u64>,
}

/// A device's health that changed by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthChange {
    /// The device.
    pub device: DeviceIndex,
    /// What it was.
    pub before: Health,
    /// What it is now.
    pub after: Health,
    /// Why.
    pub reason: &'static str,
}

/// A device as it is doing.
#[derive(Clone, Debug)]
pub struct DeviceReport {
    /// The device.
    pub device: DeviceIndex,
    /// Whether it takes part.
    pub state: MemberState,
    /// How far it is trusted.
    pub health: Health,
    /// Whether new segments are placed on it.
    pub is_placed_on: bool,
    /// Its slots.
    pub slots: u64,
    /// Of those, how many are free.
    pub slots_free: u64,
    /// What it was asked for since the pool was opened.
    pub counts: DeviceCounts,
    /// How fast it reads.
    pub reads: DeviceSpeed,
    /// How fast it writes.
    pub writes: DeviceSpeed,
    /// How fast it flushes.
    pub flushes: DeviceSpeed,
    /// Calls that it has not answered yet.
    pub in_flight: u32,
    /// How many of them there were at most since the pool was opened.
    pub in_flight_most: u32,
    /// How much trouble there was of late, in hundredths.
    pub trouble: u64,
}

/// What a device said when it was asked on purpose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Places that were read.
    pub reads: u64,
    /// Of those, how many could not be.
    pub failed: u64,
    /// What the first one of those said, or what else is wrong.
    pub problem: Option<String>,
    /// What the slowest one took.
    pub slowest: Duration,
}

/// What a device should be taken for, and why, if for something else than it is.
fn judged(
    health: Health,
    trouble: f64,
    slow_for: Duration,
    calm_for: Duration,
) -> Option<(Health, &'static str)> {
    match health {
        Health::Healthy | Health::Degraded if trouble >= SUSPECT_FROM => {
            Some((Health::Suspect, "it makes errors faster than they are forgotten"))
        }
        Health::Healthy if trouble >= DEGRADED_FROM => Some((Health::Degraded, "it makes errors")),
        Health::Healthy if slow_for >= SLOW_FOR => {
            Some((Health::Degraded, "it is much slower than the others"))
        }
        Health::Degraded if trouble < FORGIVEN_BELOW && calm_for >= CALM_FOR => {
            Some((Health::Healthy, "it has made no errors for a while, and is not slow"))
        }
        _ => None,
    }
}

impl Watch {
    fn note(&mut self, is_slow: bool, trouble: f64, now: u64) {
        let since = |condition: bool, since: Option<u64>| condition.then(|| since.unwrap_or(now));
        self.slow_since = since(is_slow, self.slow_since);
        self.calm_since = since(!is_slow && trouble < FORGIVEN_BELOW, self.calm_since);
    }

    fn times(&self, now: u64) -> (Duration, Duration) {
        let since = |since: Option<u64>| {
            since.map_or(Duration::ZERO, |since| Duration::from_nanos(now.saturating_sub(since)))
        };
        (since(self.slow_since), since(self.calm_since))
    }
}

impl Pool {
    fn devices(&self) -> impl Iterator<Item = (DeviceIndex, Option<&Member>)> {
        (0..).map(DeviceIndex).zip(self.members.iter().map(OnceLock::get))
    }

    /// How far a device is trusted.
    pub fn health(&self, device: DeviceIndex) -> Health {
        let number =
            self.healths.get(usize::from(device.0)).map_or(0, |health| health.load(Ordering::Relaxed));
        Health::ALL[usize::from(number)]
    }

    /// Says how far a device is trusted from now on, durably. A failed one is out; it is brought up to date once it is
    /// called something else. Returns what it was.
    ///
    /// # Errors
    /// When there is no such device, the pool cannot do without it or is read-only, or a superblock cannot be written.
    pub fn set_health(&self, device: DeviceIndex, health: Health) -> Result<Health, PoolError> {
        if self.read_only() {
            return Err(PoolError::ReadOnly);
        }
        let index = usize::from(device.0);
        if index >= self.members.len() {
            let reason = format!("the pool has no device {device}; it has {}", self.members.len());
            return Err(PoolError::Impossible { reason });
        }
        self.ensure_dirty()?;
        let before = {
            let mut state = self.state.lock();
            let before = state.superblock.devices[index].health;
            let gives_up = health == Health::Failed && self.give_up(&mut state, device)?;
            self.change_health(&mut state, device, health)?;
            if gives_up {
                self.silence(device);
            }
            before
        };
        if let (Some(member), true) = (self.members[index].get(), health < before) {
            // It is given another chance.
            member.activity.forgive();
        }
        Ok(before)
    }

    /// Leaves a device out on purpose, if it takes part; says whether it did. The caller publishes, and only then silences it:
    /// nothing may be acknowledged without it before that is durable.
    fn give_up(&self, state: &mut crate::pool::State, device: DeviceIndex) -> Result<bool, PoolError> {
        let index = usize::from(device.0);
        let is_counted = |member: &OnceLock<Member>| member.get().is_some_and(Member::counted);
        self.abandon_return(device);
        if !is_counted(&self.members[index]) {
            return Ok(false);
        }
        let lost = self.members.iter().filter(|member| !is_counted(member)).count();
        let spare = usize::from(self.redundancy().shards_parity);
        if lost >= spare {
            let reason = match spare {
                0 => "the pool has one copy of everything, and cannot do without any device".to_owned(),
                _ => format!("the pool can do without {spare} devices, and {lost} are out already"),
            };
            return Err(PoolError::Impossible { reason });
        }
        let since = state.superblock.generation;
        state.superblock.devices[index].membership = Membership::Out { since };
        Ok(true)
    }

    fn silence(&self, device: DeviceIndex) {
        if let Ok(member) = self.member(device) {
            member.counted.store(false, Ordering::Release);
        }
        self.slots.lock().set_usable(device, false);
        tracing::warn!(device = device.0, "a device is given up");
    }

    /// Leaves a device out that does not answer; it may come back by itself.
    ///
    /// # Errors
    /// When the pool cannot do without it or is read-only, or a superblock cannot be written.
    pub fn leave_out(&self, device: DeviceIndex) -> Result<(), PoolError> {
        if self.read_only() {
            return Err(PoolError::ReadOnly);
        }
        self.member(device)?;
        self.ensure_dirty()?;
        let mut state = self.state.lock();
        if self.give_up(&mut state, device)? {
            self.publish(&mut state)?;
            self.silence(device);
        }
        Ok(())
    }

    fn change_health(
        &self,
        state: &mut crate::pool::State,
        device: DeviceIndex,
        health: Health,
    ) -> Result<(), PoolError> {
        let index = usize::from(device.0);
        let before = std::mem::replace(&mut state.superblock.devices[index].health, health);
        {
            let mut slots = self.slots.lock();
            slots.set_health(device, health);
            if health == Health::Draining && slots.width() <= usize::from(self.redundancy().shards_parity) {
                slots.set_health(device, before);
                state.superblock.devices[index].health = before;
                let reason = format!(
                    "device {device} cannot be drained: what is left is not enough for {} copies of anything",
                    self.redundancy().shards_parity + 1
                );
                return Err(PoolError::Impossible { reason });
            }
        }
        self.healths[index].store(health as u8, Ordering::Relaxed);
        self.publish(state)
    }

    /// Takes devices for something else by what they did of late. To be called once a second or so.
    ///
    /// # Errors
    /// When a superblock cannot be written.
    pub fn settle_health(&self) -> Result<Vec<HealthChange>, PoolError> {
        self.settle_health_at(now())
    }

    fn settle_health_at(&self, now: u64) -> Result<Vec<HealthChange>, PoolError> {
        let mut changes = Vec::new();
        if self.read_only() {
            return Ok(changes);
        }
        for (device, member) in self.devices() {
            // One that is out is judged when it is back.
            let Some(member) = member.filter(|member| member.counted()) else { continue };
            let trouble = member.activity.trouble_now(now);
            let (slow_for, calm_for) = {
                let mut watches = self.watches.lock();
                let watch = &mut watches[usize::from(device.0)];
                watch.note(self.is_slow(device, now), trouble, now);
                watch.times(now)
            };
            if judged(self.health(device), trouble, slow_for, calm_for).is_none() {
                continue;
            }
            self.ensure_dirty()?;
            let mut state = self.state.lock();
            // Somebody may have said something else meanwhile, or it may have failed.
            let before = state.superblock.devices[usize::from(device.0)].health;
            let judged = judged(before, trouble, slow_for, calm_for).filter(|_| member.counted());
            let Some((after, reason)) = judged else { continue };
            tracing::warn!(
                device = device.0,
                before = before.name(),
                after = after.name(),
                reason,
                "a device is taken for something else"
            );
            self.change_health(&mut state, device, after)?;
            changes.push(HealthChange { device, before, after, reason });
        }
        Ok(changes)
    }

    /// Whether a device takes much longer than half of the others.
    fn is_slow(&self, device: DeviceIndex, now: u64) -> bool {
        let is_slow = |kind: Kind| {
            let mut others = Vec::new();
            let mut own = None;
            for (index, member) in self.devices() {
                let took = member.filter(|member| member.counted());
                let took = took.and_then(|member| member.activity.recent_ns(kind, now));
                if index == device {
                    own = took;
                } else {
                    others.extend(took);
                }
            }
            others.sort_unstable();
            // Who has nothing to be compared with is not slow.
            let (Some(own), Some(usual)) = (own, others.get(others.len().saturating_sub(1) / 2)) else {
                return false;
            };
            own >= SLOW_FROM.as_nanos() as u64 && own / SLOW_TIMES >= *usual
        };
        is_slow(Kind::Read) || is_slow(Kind::Write)
    }

    /// Notes that what was read from a device did not verify.
    pub fn note_damage(&self, device: DeviceIndex, count: u64) {
        if let Ok(member) = self.member(device)
            && member.counted()
        {
            member.activity.damaged(count);
        }
    }

    /// Notes that a device is said to be about to fail.
    ///
    /// # Errors
    /// As [`Pool::set_health`].
    pub fn suspect(&self, device: DeviceIndex) -> Result<bool, PoolError> {
        if self.read_only() {
            return Err(PoolError::ReadOnly);
        }
        self.ensure_dirty()?;
        let mut state = self.state.lock();
        let entry = state.superblock.devices.get(usize::from(device.0));
        let is_news = entry.is_some_and(|entry| entry.health < Health::Suspect);
        if is_news {
            self.change_health(&mut state, device, Health::Suspect)?;
        }
        Ok(is_news)
    }

    /// Counts up when devices come, go, or are taken for something else: open segments may be better elsewhere then.
    pub fn placement_changes(&self) -> u64 {
        self.slots.lock().changes()
    }

    /// Whether new segments are placed on a device now.
    pub fn is_placed_on(&self, device: DeviceIndex) -> bool {
        self.slots.lock().is_usable(device)
    }

    /// Calls to all devices since the pool was opened: none of late means that there is nothing to judge.
    pub fn device_calls(&self) -> u64 {
        self.present().map(|member| member.activity.calls()).sum()
    }

    /// What every device is doing, and has done since the pool was opened.
    pub fn device_reports(&self) -> Vec<DeviceReport> {
        let states = self.member_states();
        let blank = Activity::default();
        let now = now();
        let one = |((device, member), state): ((DeviceIndex, Option<&Member>), MemberState)| {
            let activity = member.map_or(&blank, |member| &*member.activity);
            let (slots, slots_free) = self.slots.lock().room_of(device);
            DeviceReport {
                device,
                state,
                health: self.health(device),
                is_placed_on: self.is_placed_on(device),
                slots,
                slots_free,
                counts: activity.counts(),
                reads: activity.speed(Kind::Read),
                writes: activity.speed(Kind::Write),
                flushes: activity.speed(Kind::Flush),
                in_flight: activity.in_flight(),
                in_flight_most: activity.in_flight_most(),
                trouble: (activity.trouble_now(now) * 100.0) as u64,
            }
        };
        self.devices().zip(states).map(one).collect()
    }

    /// Asks a device that is there: its superblock, and places all over it.
    ///
    /// # Errors
    /// When it is not there.
    pub fn probe(&self, device: DeviceIndex) -> Result<Probe, PoolError> {
        let member = self.member(device)?;
        let uuid = self.state.lock().superblock.devices[usize::from(device.0)].uuid;
        let mut probe = Probe { reads: 0, failed: 0, problem: None, slowest: Duration::ZERO };
        let mut block = AlignedBuffer::zeroed(BLOCK_BYTES);
        for n in 0..PROBED {
            let slot = u64::from(member.layout.slots) * n / PROBED;
            let offset = member.layout.slot_offset(aegisfs_base::SlotIndex(slot as u32));
            let begun = now();
            let outcome = member.read(offset, &mut block);
            probe.slowest = probe.slowest.max(Duration::from_nanos(now() - begun));
            probe.reads += 1;
            if let Err(error) = outcome {
                probe.failed += 1;
                probe.problem.get_or_insert(error.to_string());
                // That is answer enough, and no reason to hold more against it.
                if member.activity.is_gone() {
                    break;
                }
            }
        }
        match superblocks::read_newest(&*member.device) {
            Ok(found) if own_uuid(&found.superblock) == uuid => {}
            Ok(_) => {
                probe.problem.get_or_insert("it is another device by now".into());
            }
            Err(error) => {
                probe.problem.get_or_insert(error.to_string());
            }
        }
        Ok(probe)
    }

    /// The fastest read that there is, in ns.
    fn fastest_ns(&self, now: u64) -> u64 {
        let counted = self.present().filter(|member| member.counted());
        let times = counted.map(|member| member.activity.expected_ns(Kind::Read, now));
        times.min().unwrap_or_default().max(FASTEST_NS)
    }

    /// What a step takes on the device that is usually the fastest, in ns: one that rests is no faster for that.
    fn fastest_usual_ns(&self) -> u64 {
        let counted = self.present().filter(|member| member.counted());
        let times = counted.map(|member| member.activity.step_ns(Kind::Read)).filter(|time| *time > 0);
        times.min().unwrap_or_default().max(FASTEST_NS)
    }

    fn reading_cost(&self, device: DeviceIndex, fastest: u64, now: u64) -> u64 {
        let Ok(member) = self.member(device) else { return u64::MAX };
        let grade = self.health(device) as u64 * GRADE_COST;
        let times = member.activity.expected_ns(Kind::Read, now) / fastest;
        grade + u64::from(member.activity.in_flight()) + times.saturating_sub(1).min(SLOW_COST_MAX)
    }

    /// Places in the order in which they are best read, of equal ones the first first.
    pub fn by_preference(&self, places: &[Placement]) -> Vec<Placement> {
        let mut order = places.to_vec();
        if order.len() > 1 {
            let now = now();
            let fastest = self.fastest_ns(now);
            order.sort_by_cached_key(|place| self.reading_cost(place.0, fastest, now));
        }
        order
    }

    /// Plans reads that do not depend on each other.
    pub fn plan_reads(&self) -> ReadPlan<'_> {
        let now = now();
        ReadPlan { pool: self, now, fastest: self.fastest_ns(now), planned: BTreeMap::new() }
    }

    /// Whether a place is better not read if its bytes can be had otherwise.
    pub fn is_avoided(&self, (device, _): Placement) -> bool {
        if self.redundancy().shards_parity == 0 {
            return false;
        }
        if self.health(device) == Health::Suspect {
            return true;
        }
        let Ok(member) = self.member(device) else { return false };
        let now = now();
        let takes = member.activity.expected_ns(Kind::Read, now);
        takes >= AVOIDED_NS && takes / AVOIDED_FROM >= self.fastest_usual_ns()
    }

    /// Whether reads from different devices take so long that they are better made at the same time.
    pub fn pays_side_by_side(&self, places: &[Placement]) -> bool {
        let now = now();
        places.len() > 1 && places.iter().any(|place| self.takes_long(place.0, now))
    }

    fn takes_long(&self, device: DeviceIndex, now: u64) -> bool {
        let Ok(member) = self.member(device) else { return false };
        // One that rested is no faster for it.
        let takes = member.activity.usual_ns(Kind::Read).max(member.activity.expected_ns(Kind::Read, now));
        takes >= SIDE_BY_SIDE_FROM_NS
    }

    /// How long to wait for a device that hesitated of late; nothing for one that did not, or whose bytes are nowhere else.
    pub(crate) fn patience_with(&self, device: DeviceIndex, bytes: usize) -> Option<Duration> {
        if self.redundancy().shards_parity == 0 {
            return None;
        }
        let member = self.member(device).ok()?;
        let now = now();
        let takes = || self.fastest_usual_ns() * steps(bytes);
        let patience = || (PATIENCE_TIMES * takes()).clamp(PATIENCE_NS.0, PATIENCE_NS.1);
        member.activity.is_erratic(now).then(|| Duration::from_nanos(patience()))
    }
}

/// Where some reads are made that do not depend on each other, so that no device has many of them while another that has the
/// same bytes has none.
pub struct ReadPlan<'p> {
    pool: &'p Pool,
    now: u64,
    fastest: u64,
    /// Reads of each device so far.
    planned: BTreeMap<DeviceIndex, u64>,
}

impl ReadPlan<'_> {
    /// Where the next one is best made: as [`Pool::by_preference`], and each that is planned for a device counts like one that
    /// waits there. Where all answer before another could be asked they are not spread.
    pub fn choose(&mut self, places: &[Placement]) -> Option<Placement> {
        let cost = |place: &Placement| {
            let waiting = self.planned.get(&place.0).copied().unwrap_or_default();
            self.pool.reading_cost(place.0, self.fastest, self.now).saturating_add(waiting)
        };
        let chosen = places.iter().copied().min_by_key(cost)?;
        if places.iter().any(|place| self.pool.takes_long(place.0, self.now)) {
            *self.planned.entry(chosen.0).or_default() += 1;
        }
        Some(chosen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CreateOptions, OpenOptions, Redundancy};
    use aegisfs_base::{ManualClock, SeededRng, SlotIndex};
    use aegisfs_device::{Device, Fault, FaultyDevice, MemoryDevice, Operation};
    use std::sync::Arc;

    const SECOND: u64 = 1_000_000_000;
    type Faulty = Arc<FaultyDevice<MemoryDevice>>;

    fn pool_of(count: usize, shards: (u8, u8)) -> (Vec<Faulty>, Arc<Pool>) {
        let device = |n| Arc::new(FaultyDevice::new(MemoryDevice::new(format!("device {n}"), 64 << 20)));
        let devices: Vec<Faulty> = (0..count).map(device).collect();
        let dynamic = || devices.iter().map(|device| Arc::clone(device) as Arc<dyn Device>).collect();
        let redundancy = Some(Redundancy { shards_data: shards.0, shards_parity: shards.1 });
        let options = CreateOptions { redundancy, slot_bytes: Some(1 << 20), ..CreateOptions::default() };
        let rng = SeededRng::new(5);
        let pool = Pool::create(dynamic(), &options, &ManualClock::default(), &rng).unwrap();
        pool.publish_new().unwrap();
        drop(pool);
        let (pool, _) = Pool::open(dynamic(), OpenOptions::default()).unwrap();
        pool.begin_incarnation(&rng).unwrap();
        (devices, pool)
    }

    fn reopened(devices: &[Faulty]) -> Arc<Pool> {
        let devices = devices.iter().map(|device| Arc::clone(device) as Arc<dyn Device>).collect();
        Pool::open(devices, OpenOptions::default()).unwrap().0
    }

    fn read(pool: &Pool, device: u16) -> Result<(), PoolError> {
        pool.read_slot((DeviceIndex(device), SlotIndex(3)), 0, &mut AlignedBuffer::zeroed(4096))
    }

    #[test]
    fn what_is_said_of_a_device_is_kept() {
        let (devices, pool) = pool_of(6, (4, 2));
        for health in [Health::Degraded, Health::Suspect, Health::Draining] {
            pool.set_health(DeviceIndex(1), health).unwrap();
            let again = reopened(&devices);
            assert_eq!(again.health(DeviceIndex(1)), health);
            assert_eq!(again.member_states()[1], MemberState::In);
            let ((data, parity), places) =
                again.open_segment(aegisfs_base::SegmentId(9), again.redundancy(), true).unwrap();
            assert_eq!((data, parity), (3, 2), "five are left for it");
            assert!(places.iter().all(|place| place.0 != DeviceIndex(1)), "{health:?}");
        }
        assert_eq!(pool.set_health(DeviceIndex(1), Health::Healthy).unwrap(), Health::Draining);
        assert!(matches!(pool.set_health(DeviceIndex(7), Health::Failed), Err(PoolError::Impossible { .. })));
    }

    #[test]
    fn a_failed_device_is_out_until_it_is_called_something_else() {
        let (devices, pool) = pool_of(4, (2, 2));
        pool.set_health(DeviceIndex(2), Health::Failed).unwrap();
        assert!(read(&pool, 2).is_err() && pool.stale_members().is_empty());
        pool.set_health(DeviceIndex(0), Health::Failed).unwrap();
        let refused = pool.set_health(DeviceIndex(1), Health::Failed).unwrap_err().to_string();
        assert!(refused.contains("can do without 2"), "{refused}");
        assert!(pool.health(DeviceIndex(1)) == Health::Healthy && read(&pool, 1).is_ok());
        drop(pool);
        let pool = reopened(&devices);
        assert_eq!(
            (pool.health(DeviceIndex(2)), pool.member_states()[2]),
            (Health::Failed, MemberState::Out)
        );
        assert_eq!(pool.stale_members(), []);
        pool.begin_incarnation(&SeededRng::new(6)).unwrap();
        pool.set_health(DeviceIndex(2), Health::Healthy).unwrap();
        assert_eq!(pool.stale_members(), [DeviceIndex(2)], "it is to be brought up to date");
        assert!(read(&pool, 2).is_err());
        let (_, alone) = pool_of(1, (1, 0));
        assert!(alone.set_health(DeviceIndex(0), Health::Failed).is_err());
        let refused = alone.set_health(DeviceIndex(0), Health::Draining).unwrap_err().to_string();
        assert!(refused.contains("cannot be drained") && alone.health(DeviceIndex(0)) == Health::Healthy);
        assert!(alone.is_placed_on(DeviceIndex(0)));
    }

    /// A synthetic trend: errors that come faster than they are forgotten.
    #[test]
    fn errors_make_a_device_degraded_and_then_suspect_and_time_forgives_the_first() {
        let (devices, pool) = pool_of(3, (1, 1));
        let fail_once = || {
            devices[1].plan(Fault::once(Operation::Read, 0));
            read(&pool, 1).unwrap();
        };
        (0..4).for_each(|_| fail_once());
        assert_eq!(pool.settle_health().unwrap(), []);
        (0..2).for_each(|_| fail_once());
        let changes = pool.settle_health().unwrap();
        assert_eq!(
            (changes.len(), changes[0].device, changes[0].after),
            (1, DeviceIndex(1), Health::Degraded)
        );
        assert!(!pool.is_placed_on(DeviceIndex(1)) && pool.is_placed_on(DeviceIndex(2)));
        // It is calm from now on.
        let later = now() + 4 * 3600 * SECOND;
        assert_eq!(pool.settle_health_at(later).unwrap(), []);
        let changes = pool.settle_health_at(later + CALM_FOR.as_nanos() as u64).unwrap();
        assert_eq!((changes.len(), changes[0].after), (1, Health::Healthy));
        assert!(pool.is_placed_on(DeviceIndex(1)));
        pool.note_damage(DeviceIndex(1), 60);
        assert_eq!(pool.settle_health().unwrap()[0].after, Health::Suspect);
        assert_eq!(pool.settle_health_at(later * 9).unwrap(), [], "that takes an operator");
        assert_eq!(reopened(&devices).health(DeviceIndex(1)), Health::Suspect);
        pool.set_health(DeviceIndex(1), Health::Healthy).unwrap();
        assert_eq!(pool.settle_health().unwrap(), [], "it begins anew");
        let report = &pool.device_reports()[1];
        assert_eq!((report.counts.retried, report.counts.failed, report.counts.damaged), (6, 0, 60));
    }

    #[test]
    fn a_device_much_slower_than_the_others_is_degraded_and_avoided() {
        let (_, pool) = pool_of(3, (1, 1));
        let took = |device: u16, ns: u64, at: u64| {
            pool.member(DeviceIndex(device)).unwrap().activity.took(Kind::Read, 4096, ns, at);
        };
        let begun = now();
        let places: Vec<Placement> = (0..3).map(|n| (DeviceIndex(n), SlotIndex(1))).collect();
        for second in 0..40 {
            let at = begun + second * SECOND;
            for _ in 0..100 {
                took(0, 200_000_000, at);
                took(1, 1_000_000, at);
                took(2, 1_100_000, at);
            }
            let changes = pool.settle_health_at(at).unwrap();
            assert_eq!(!changes.is_empty(), second == 30, "after {second} s: {changes:?}");
        }
        assert_eq!(pool.health(DeviceIndex(0)), Health::Degraded);
        assert!(pool.is_avoided(places[0]) && !pool.is_avoided(places[1]) && !pool.is_avoided(places[2]));
        assert_eq!(pool.by_preference(&places), [places[1], places[2], places[0]]);
        let reports = pool.device_reports();
        assert!(reports[0].reads.p99 > Duration::from_millis(200), "{:?}", reports[0]);
    }

    #[test]
    fn reads_go_to_whoever_is_healthier_and_less_loaded() {
        let (_, pool) = pool_of(3, (1, 2));
        let places: Vec<Placement> = (0..3).map(|n| (DeviceIndex(n), SlotIndex(1))).collect();
        assert_eq!(pool.by_preference(&places), places, "with nothing between them the first is the first");
        pool.set_health(DeviceIndex(0), Health::Degraded).unwrap();
        assert_eq!(pool.by_preference(&places)[2], places[0]);
        // Three requests that wait weigh as much as one grade.
        let busy = &pool.member(DeviceIndex(1)).unwrap().activity;
        let running: Vec<_> = (0..4).map(|_| busy.begin()).collect();
        assert_eq!(pool.by_preference(&places), [places[2], places[0], places[1]]);
        drop(running);
        assert_eq!(pool.by_preference(&places), [places[1], places[2], places[0]]);
        pool.set_health(DeviceIndex(1), Health::Suspect).unwrap();
        assert!(pool.is_avoided(places[1]) && !pool.is_avoided(places[0]));
        assert!(pool.patience_with(DeviceIndex(0), 4096).is_none(), "it never hesitated");
    }

    #[test]
    fn planned_reads_are_spread_by_what_devices_can_do() {
        let (_, pool) = pool_of(3, (1, 2));
        let places: Vec<Placement> = (0..3).map(|n| (DeviceIndex(n), SlotIndex(1))).collect();
        let planned = |count: usize| {
            let mut plan = pool.plan_reads();
            let mut of = [0_u32; 3];
            (0..count).for_each(|_| of[usize::from(plan.choose(&places).unwrap().0.0)] += 1);
            of
        };
        let takes = |device: u16, us: u64| {
            let activity = &pool.member(DeviceIndex(device)).unwrap().activity;
            (0..200).for_each(|_| activity.took(Kind::Read, 4096, us * 1000, now()));
        };
        (0..3).for_each(|device| takes(device, 10));
        assert_eq!(planned(9), [9, 0, 0], "they answer before another could be asked");
        (0..3).for_each(|device| takes(device, 10_000));
        assert_eq!(planned(9), [3, 3, 3]);
        // One that is two grades worse is asked when six wait at each of the others.
        pool.set_health(DeviceIndex(1), Health::Suspect).unwrap();
        assert_eq!((planned(12), planned(15)), ([6, 0, 6], [7, 1, 7]));
        pool.set_health(DeviceIndex(1), Health::Healthy).unwrap();
        // So is one that takes seven times as long.
        takes(2, 70_000);
        let [first, second, slow] = planned(15);
        assert!(slow <= 3 && first.abs_diff(second) <= 1, "{first}, {second}, {slow}");
        let mut plan = pool.plan_reads();
        assert_eq!(plan.choose(&[]), None);
        assert_eq!(plan.choose(&places[2..]), Some(places[2]), "there is no other");
    }

    #[test]
    fn a_probe_tells_what_a_device_says() {
        let (devices, pool) = pool_of(2, (1, 1));
        let probe = pool.probe(DeviceIndex(1)).unwrap();
        assert_eq!((probe.reads, probe.failed, probe.problem), (PROBED, 0, None));
        devices[1].kill();
        let probe = pool.probe(DeviceIndex(1)).unwrap();
        assert!(probe.failed == probe.reads && probe.failed == 3 && probe.problem.is_some(), "{probe:?}");
        devices[1].revive();
        devices[1].write_at(0, &AlignedBuffer::zeroed(8 << 20)).unwrap();
        devices[1].write_at((64 - 8) << 20, &AlignedBuffer::zeroed(8 << 20)).unwrap();
        let probe = pool.probe(DeviceIndex(1)).unwrap();
        assert!(probe.problem.unwrap().contains("not formatted"));
    }
}
