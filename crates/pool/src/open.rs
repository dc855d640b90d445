//! Opening a pool: which superblock counts, and who of its devices is in.

use crate::PoolError;
use crate::member::Member;
use crate::pool::{Pool, State};
use crate::slots::SlotTable;
use crate::superblocks::{self, Found};
use aegisfs_base::{DeviceIndex, Incarnation, Rng, Uuid};
use aegisfs_device::Device;
use aegisfs_format::layout::DeviceLayout;
use aegisfs_format::superblock::{DeviceEntry, INCARNATIONS_KEPT, Membership, Superblock};
use std::sync::Arc;

/// How to open a pool.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    /// Write nothing at all.
    pub read_only: bool,
    /// Go on without members that should be there, as long as everything can be read; for reading only, also where not
    /// everything can.
    pub degraded: bool,
}

/// What was found out while opening, for the operator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opening {
    /// The pool was not closed the last time.
    pub dirty: bool,
    /// Places of superblocks that did not verify and are to be written anew.
    pub superblocks_damaged: u32,
    /// Devices that should be in but are missing.
    pub missing: Vec<String>,
    /// Devices that were left out, and are not there either.
    pub absent: Vec<String>,
    /// Devices that are there but lack what was written without them.
    pub stale: Vec<String>,
    /// More are missing than the pool can do without: not everything can be read.
    pub too_few: bool,
}

impl Pool {
    /// Opens the pool that these devices belong to. Nothing is written; [`Pool::begin_incarnation`]
    /// is what starts a new life.
    ///
    /// # Errors
    /// When there is no pool, devices do not belong together, or too few are there.
    pub fn open(
        devices: Vec<Arc<dyn Device>>,
        options: OpenOptions,
    ) -> Result<(Arc<Self>, Opening), PoolError> {
        let mut found = Vec::new();
        let mut unreadable = Vec::new();
        for device in devices {
            match superblocks::read_newest(&*device) {
                Ok(block) => found.push((device, block)),
                // One that does not answer is as good as missing, if there are others.
                Err(PoolError::Device(error)) => unreadable.push(error),
                Err(error) => return Err(error),
            }
        }
        if found.is_empty()
            && let Some(error) = unreadable.pop()
        {
            return Err(error.into());
        }
        for error in &unreadable {
            tracing::error!(%error, "a device does not answer and is left out");
        }
        let chosen = choose(&found)?;
        let mut superblock = found[chosen].1.superblock.clone();
        let mut outdated = Vec::new();
        for (device, block) in &found {
            if let Some(index) = find(&superblock, own_uuid(&block.superblock))
                && superblock.devices[index].membership == Membership::In
                && is_outdated(&block.superblock, &superblock)
            {
                outdated.push((index, block.superblock.generation.next()));
                let device = device.describe();
                tracing::error!(
                    device,
                    "it is an old copy of the member that it says it is, and is left out"
                );
            }
        }
        for (index, since) in outdated {
            superblock.devices[index].membership = Membership::Out { since };
        }
        let map = found[chosen].1.map.clone();
        let writable = !options.read_only && superblock.writable();
        let mut opening = Opening {
            dirty: superblock.dirty,
            superblocks_damaged: found.iter().map(|(_, f)| f.damaged).sum(),
            ..Opening::default()
        };
        let mut members: Vec<Option<Member>> = superblock.devices.iter().map(|_| None).collect();
        for (device, block) in found {
            let (index, member) = admit(device, &block.superblock, &superblock)?;
            if !member.counted() {
                opening.stale.push(member.device.describe());
            }
            members[index] = Some(member);
        }
        check_presence(&superblock, &members, options, &mut opening)?;
        let slots =
            SlotTable::new(superblock.devices.iter().zip(&members).map(|(entry, member)| {
                (entry.slots, writable && member.as_ref().is_some_and(Member::counted))
            }));
        let pool = Self::assemble(members, slots, State { superblock, map, provisional: false });
        pool.set_read_only(!writable);
        pool.set_ended_in_order(!opening.dirty);
        for entry in &pool.state.lock().map {
            pool.slots.lock().claim((entry.device, entry.slot), true);
        }
        Ok((Arc::new(pool), opening))
    }

    /// Takes a member in that was missing when the pool was opened. It lacks what was written without it, and waits to be brought
    /// up to date.
    ///
    /// # Errors
    /// When the device is none of this pool, is there already, or was written to apart from the others; when nothing may be
    /// written.
    pub fn join(&self, device: Arc<dyn Device>) -> Result<DeviceIndex, PoolError> {
        if self.read_only() {
            return Err(PoolError::ReadOnly);
        }
        let found = superblocks::read_newest(&*device)?.superblock;
        // From here on the others call it out.
        self.ensure_dirty()?;
        let mut state = self.state.lock();
        let ours = &state.superblock;
        let index = find(ours, own_uuid(&found)).filter(|_| found.pool == ours.pool);
        let Some(index) = index else {
            let (found, expected) = (found.pool, ours.pool);
            return Err(PoolError::ForeignPool { device: device.describe(), found, expected });
        };
        if let Some(member) = self.members[index].get() {
            let (first, second) = (member.device.describe(), device.describe());
            return Err(PoolError::SameMember { first, second, uuid: own_uuid(&found) });
        }
        self.refuse_apart(ours, &found, &device.describe())?;
        let path = device.describe().into_bytes();
        let (index, member) = admit(device, &found, ours)?;
        assert!(!member.counted(), "whoever is missing is called out");
        state.superblock.devices[index].path = path;
        let _ = self.members[index].set(member);
        Ok(DeviceIndex(index as u16))
    }

    /// Refuses a device that was written to without those that take part.
    pub(crate) fn refuse_apart(
        &self,
        ours: &Superblock,
        found: &Superblock,
        name: &str,
    ) -> Result<(), PoolError> {
        if !calls_itself_in(found) {
            return Ok(());
        }
        let mut counted = ours.devices.iter().filter(|entry| entry.membership == Membership::In);
        let is_out = |entry: &DeviceEntry| {
            find(found, entry.uuid).is_none_or(|index| found.devices[index].membership != Membership::In)
        };
        let deserted = counted.all(is_out);
        if related(found, ours) && (!deserted || left_behind(ours, found)) {
            return Ok(());
        }
        let first = self.present().find(|member| member.counted());
        let first = first.map_or_else(String::new, |member| member.device.describe());
        Err(PoolError::Split { first, second: name.to_owned() })
    }

    /// Whether a device belongs to a pool that this program can read, whoever else does.
    pub fn is_member(device: &dyn Device) -> bool {
        superblocks::read_newest(device).is_ok()
    }

    /// Starts a new life: a new incarnation, missing members marked out, both superblock slots written.
    ///
    /// # Errors
    /// When a superblock cannot be written.
    pub fn begin_incarnation(&self, rng: &dyn Rng) -> Result<Incarnation, PoolError> {
        let mut state = self.state.lock();
        let incarnation = Incarnation(rng.next_u64() | 1);
        state.superblock.incarnations.insert(0, incarnation);
        state.superblock.incarnations.truncate(INCARNATIONS_KEPT);
        for (entry, member) in state.superblock.devices.iter_mut().zip(&self.members) {
            if let Some(member) = member.get() {
                entry.path = member.device.describe().into_bytes();
            }
        }
        // Twice: afterwards both slots of both areas are whole, whatever was damaged before.
        self.enter(&mut state)?;
        self.publish(&mut state)?;
        Ok(incarnation)
    }

    /// Notes in the superblock that everything was put in order before the end. After a write or flush that
    /// failed it is not: then the next life begins as after a crash.
    ///
    /// # Errors
    /// When a superblock cannot be written.
    pub fn end_incarnation(&self) -> Result<(), PoolError> {
        // Or the superblock could arrive while what it calls in order does not.
        self.flush()?;
        let mut state = self.state.lock();
        self.leave(&mut state)
    }
}

/// The newest superblock on a member that its own table calls in.
fn choose(found: &[(Arc<dyn Device>, Found)]) -> Result<usize, PoolError> {
    for (index, (device, block)) in found.iter().enumerate() {
        for (earlier, other) in &found[..index] {
            let (this, that) = (&block.superblock, &other.superblock);
            if this.pool != that.pool {
                return Err(PoolError::ForeignPool {
                    device: device.describe(),
                    found: this.pool,
                    expected: that.pool,
                });
            }
            if own_uuid(this) == own_uuid(that) {
                return Err(PoolError::SameMember {
                    first: earlier.describe(),
                    second: device.describe(),
                    uuid: own_uuid(this),
                });
            }
            // Of two that call each other out one may have been left behind, by a third that the other one joined later. Who calls
            // itself out was about to come back, and had no life of its own.
            let apart = calls_out(this, that)
                && calls_out(that, this)
                && !left_behind(this, that)
                && !left_behind(that, this);
            let both_lived = calls_itself_in(this) && calls_itself_in(that);
            if both_lived && (!related(this, that) || apart) {
                return Err(PoolError::Split { first: earlier.describe(), second: device.describe() });
            }
        }
    }
    // Of two of the same age, one was cut off while it was written; the one that went on without the other
    // calls it out.
    let age = |block: &Superblock| {
        let out = block.devices.iter().filter(|entry| entry.membership != Membership::In).count();
        (block.generation, out)
    };
    (0..found.len())
        .filter(|n| calls_itself_in(&found[*n].1.superblock))
        .max_by_key(|n| age(&found[*n].1.superblock))
        .ok_or_else(|| {
            let names: Vec<String> = found.iter().map(|(device, _)| device.describe()).collect();
            let names = format!("whoever went on without {}", names.join(", "));
            PoolError::TooFew { present: 0, total: found.len(), spare: 0, names }
        })
}

/// Whether a superblock says of its own device that it takes part.
fn calls_itself_in(block: &Superblock) -> bool {
    block.devices[usize::from(block.device.0)].membership == Membership::In
}

/// Whether one of two superblocks is the other's past.
fn related(a: &Superblock, b: &Superblock) -> bool {
    let newest = |s: &Superblock| s.incarnations.first().copied();
    let knows = |s: &Superblock, i: Option<Incarnation>| i.is_some_and(|i| s.incarnations.contains(&i));
    knows(a, newest(b)) || knows(b, newest(a)) || left_behind(a, b) || left_behind(b, a)
}

/// Whether one superblock calls the other's device out.
fn calls_out(superblock: &Superblock, other: &Superblock) -> bool {
    membership(superblock, other) != Some(Membership::In)
}

fn membership(superblock: &Superblock, other: &Superblock) -> Option<Membership> {
    find(superblock, own_uuid(other)).map(|index| superblock.devices[index].membership)
}

/// The device that a superblock was read from, by its own account.
pub(crate) fn own_uuid(superblock: &Superblock) -> Uuid {
    superblock.devices[usize::from(superblock.device.0)].uuid
}

/// Where a device stands in a superblock's table. Its index there is not its name: tables may differ.
fn find(superblock: &Superblock, uuid: Uuid) -> Option<usize> {
    superblock.devices.iter().position(|entry| entry.uuid == uuid)
}

/// Whether the other's device was left out and wrote nothing since. It may have been away for more lives
/// than are remembered; a life of its own would have given it a generation at least as high.
///
/// At just that generation it may have been cut off while it and we began a life together: it got the
/// superblock, and we did not. Then it calls us in. Whoever goes on alone calls the others out first, and
/// nothing else is written before a superblock has reached all, so nothing is lost with it.
fn left_behind(superblock: &Superblock, other: &Superblock) -> bool {
    match membership(superblock, other) {
        Some(Membership::Out { since }) if other.generation == since => !calls_out(other, superblock),
        Some(Membership::Out { since }) => other.generation < since,
        Some(Membership::In) | None => false,
    }
}

/// Whether a superblock is older than one on a member that took part can be. Each generation is written to one member after the
/// other; of those that one failure after the other brings about each member lacks at most the ones that were cut off.
fn is_outdated(own: &Superblock, chosen: &Superblock) -> bool {
    chosen.generation.0.saturating_sub(own.generation.0) > 1 + u64::from(chosen.shards_parity)
}

/// Makes a member of a device, which counts unless the chosen superblock says that it is out; and says which.
fn admit(
    device: Arc<dyn Device>,
    own: &Superblock,
    chosen: &Superblock,
) -> Result<(usize, Member), PoolError> {
    let Some(index) = find(chosen, own_uuid(own)) else {
        return Err(PoolError::ForeignPool {
            device: device.describe(),
            found: own.pool,
            expected: chosen.pool,
        });
    };
    let entry = &chosen.devices[index];
    let layout = DeviceLayout::new(entry.bytes, u64::from(chosen.slot_bytes))
        .filter(|layout| layout.slots == entry.slots && device.bytes() >= entry.bytes);
    let Some(layout) = layout else {
        return Err(PoolError::Shrunk {
            device: device.describe(),
            found: device.bytes(),
            expected: entry.bytes,
        });
    };
    // A life without a member always begins by marking it out, so a member that is called in here
    // took part in everything; at most its copy of the newest superblock was cut off.
    let counted = entry.membership == Membership::In;
    Ok((index, Member::new(device, layout, counted)))
}

fn check_presence(
    superblock: &Superblock,
    members: &[Option<Member>],
    options: OpenOptions,
    opening: &mut Opening,
) -> Result<(), PoolError> {
    let total = members.len();
    let present = members.iter().flatten().filter(|m| m.counted()).count();
    let spare = usize::from(superblock.shards_parity);
    let out = superblock.devices.iter().filter(|d| d.membership != Membership::In).count();
    for (entry, member) in superblock.devices.iter().zip(members) {
        if member.is_none() {
            let path = String::from_utf8_lossy(&entry.path).into_owned();
            let is_in = entry.membership == Membership::In;
            if is_in { &mut opening.missing } else { &mut opening.absent }.push(path);
        }
    }
    opening.too_few = total - present > spare;
    if opening.too_few && !(options.degraded && options.read_only && present > 0) {
        return Err(PoolError::TooFew { present, total, spare, names: opening.missing.join(", ") });
    }
    // So few may have been left behind by the others, without ever having been told.
    let may_be_left_behind = present + out < total && present + out <= spare;
    if may_be_left_behind && !options.degraded {
        return Err(PoolError::Missing {
            missing: total - present - out,
            total,
            names: opening.missing.join(", "),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CreateOptions;
    use aegisfs_base::limits::DEVICE_BYTES_MIN;
    use aegisfs_base::{Generation, ManualClock, SeededRng};
    use aegisfs_device::{DeviceError, MemoryDevice};
    use aegisfs_format::layout::HEADER_AREA_BYTES;

    /// The superblocks of a new mirror, as its two devices hold them, both of generation 10.
    fn mirror() -> [Superblock; 2] {
        let device = |name: &str| Arc::new(MemoryDevice::new(name, 8 << 20)) as Arc<dyn Device>;
        let options =
            CreateOptions { slot_bytes: Some(256 << 10), log_pieces: Some(4), ..CreateOptions::default() };
        let devices = vec![device("a"), device("b")];
        let pool =
            Pool::create(devices, &options, &ManualClock::default(), &SeededRng::new(1)).expect("a pool");
        let mut first = pool.superblock();
        first.generation = Generation(10);
        first.device = aegisfs_base::DeviceIndex(0);
        let second = Superblock { device: aegisfs_base::DeviceIndex(1), ..first.clone() };
        [first, second]
    }

    fn found(superblocks: &[Superblock]) -> Vec<(Arc<dyn Device>, Found)> {
        let one = |superblock: &Superblock| {
            let device = Arc::new(MemoryDevice::new("device", 8 << 20)) as Arc<dyn Device>;
            (device, Found { superblock: superblock.clone(), map: Vec::new(), damaged: 0 })
        };
        superblocks.iter().map(one).collect()
    }

    /// Begins a life, as far as the superblock tells.
    fn live(superblock: &mut Superblock, name: u64, generation: u64, without: Option<usize>) {
        superblock.incarnations.insert(0, Incarnation(name));
        superblock.generation = Generation(generation);
        if let Some(index) = without {
            superblock.devices[index].membership = Membership::Out { since: Generation(generation) };
        }
    }

    #[test]
    fn a_device_is_known_by_its_name_and_not_by_its_place() {
        let [first, mut second] = mirror();
        second.devices.reverse();
        second.device = aegisfs_base::DeviceIndex(0);
        let devices = found(&[first.clone(), second.clone()]);
        let chosen = choose(&devices).expect("two members of one pool");
        assert!(chosen < 2);
        let (index, _) = admit(Arc::clone(&devices[1].0), &second, &first).expect("it is in the table");
        assert_eq!(index, 1);
        second.devices[0].uuid = Uuid([9; 16]);
        let foreign = admit(Arc::clone(&devices[1].0), &second, &first);
        assert!(matches!(foreign, Err(PoolError::ForeignPool { .. })), "it is in no table of ours");
    }

    #[test]
    fn the_same_device_twice_is_refused() {
        let [first, _] = mirror();
        let twice = choose(&found(&[first.clone(), first]));
        assert!(matches!(twice, Err(PoolError::SameMember { .. })));
    }

    #[test]
    fn a_life_that_reached_only_one_is_no_split() {
        let [mut first, mut second] = mirror();
        live(&mut first, 101, 11, None);
        live(&mut second, 103, 11, Some(0));
        for order in [[first.clone(), second.clone()], [second.clone(), first.clone()]] {
            let devices = found(&order);
            let chosen = choose(&devices).expect("the second one went on alone");
            assert_eq!(own_uuid(&devices[chosen].1.superblock), own_uuid(&second));
        }
    }

    #[test]
    fn two_lives_of_one_each_are_a_split() {
        let [mut first, mut second] = mirror();
        live(&mut first, 101, 11, Some(1));
        live(&mut second, 103, 11, Some(0));
        assert!(matches!(choose(&found(&[first.clone(), second])), Err(PoolError::Split { .. })));
        // One that went further than a beginning had a life without the other.
        let [_, mut second] = mirror();
        let mut further = first;
        further.devices[1].membership = Membership::In;
        further.generation = Generation(12);
        live(&mut second, 103, 11, Some(0));
        assert!(matches!(choose(&found(&[further, second])), Err(PoolError::Split { .. })));
    }

    /// A device of any size that keeps its header areas and forgets the rest.
    struct HeadersOnly {
        kept: MemoryDevice,
        name: String,
    }

    impl HeadersOnly {
        fn keeps(&self, offset: u64) -> bool {
            offset < HEADER_AREA_BYTES || offset >= self.kept.bytes() - HEADER_AREA_BYTES
        }
    }

    impl Device for HeadersOnly {
        fn bytes(&self) -> u64 {
            self.kept.bytes()
        }

        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
            self.kept.read_at(offset, buffer)
        }

        fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
            if self.keeps(offset) { self.kept.write_at(offset, data) } else { Ok(()) }
        }

        fn flush(&self) -> Result<(), DeviceError> {
            Ok(())
        }

        fn discard(&self, _: u64, _: u64) -> Result<(), DeviceError> {
            Ok(())
        }

        fn allocated_bytes(&self) -> Option<u64> {
            None
        }

        fn describe(&self) -> String {
            self.name.clone()
        }

        fn read_only(&self) -> bool {
            false
        }
    }

    /// Where everything lies: each device's layout, and the slots of the log.
    fn layout_of(pool: &Pool) -> (u64, Vec<DeviceLayout>, Vec<aegisfs_format::map::MapEntry>) {
        let layouts = pool.present().map(|member| member.layout).collect();
        (pool.slot_bytes(), layouts, pool.mapped_slots())
    }

    #[test]
    fn what_is_opened_is_laid_out_as_it_was_formatted_whatever_the_size() {
        let rng = SeededRng::new(5);
        for round in 0..1000 {
            let count = 1 + rng.below(3) as usize;
            let sizes: Vec<u64> = (0..count)
                .map(|_| {
                    let least = DEVICE_BYTES_MIN << rng.below(18);
                    least + rng.below(least)
                })
                .collect();
            let devices = sizes.iter().enumerate().map(|(n, bytes)| {
                let name = format!("device {n}");
                let kept = MemoryDevice::new(name.clone(), *bytes);
                Arc::new(HeadersOnly { kept, name }) as Arc<dyn Device>
            });
            let devices: Vec<_> = devices.collect();
            let options = CreateOptions { log_pieces: Some(1), ..CreateOptions::default() };
            let made =
                Pool::create(devices.clone(), &options, &ManualClock::default(), &rng).expect("a pool");
            made.publish_new().expect("superblocks are written");
            let formatted = layout_of(&made);
            drop(made);
            let (opened, opening) = Pool::open(devices, OpenOptions::default()).expect("it opens");
            assert_eq!(opening, Opening::default(), "round {round}: {sizes:?}");
            assert_eq!(layout_of(&opened), formatted, "round {round}: {sizes:?}");
            for (layout, bytes) in formatted.1.iter().zip(&sizes) {
                let again = DeviceLayout::new(*bytes, formatted.0);
                assert_eq!(Some(*layout), again, "round {round}: {sizes:?}");
            }
        }
    }
}
