//! Members that were away, in pools of any shape: who is taken for what, and what they hold in the end.

use super::{noise, options, read, write};
use aegisfs_base::{DeviceIndex, InodeId, ManualClock, Rng, SeededRng};
use aegisfs_device::{Device, MemoryDevice};
use aegisfs_format::superblock::Health;
use aegisfs_pool::{CreateOptions, MemberState, OpenOptions, Pool, PoolError, Redundancy};
use aegisfs_store::{Store, create, open};
use std::sync::Arc;

const ALONE: OpenOptions = OpenOptions { read_only: false, degraded: true };

fn format(names: &[&str], parity: u8, rng: &dyn Rng) -> Vec<Arc<MemoryDevice>> {
    let devices: Vec<_> = names.iter().map(|name| Arc::new(MemoryDevice::new(*name, 256 << 20))).collect();
    let all = devices.iter().map(|device| Arc::clone(device) as Arc<dyn Device>).collect();
    let redundancy = Some(Redundancy { shards_data: 1, shards_parity: parity });
    let create_options = CreateOptions { redundancy, ..CreateOptions::default() };
    let pool = Pool::create(all, &create_options, &ManualClock::default(), rng).unwrap();
    create(&pool, &[]).unwrap();
    devices
}

fn mount(devices: &[&Arc<MemoryDevice>], rng: &dyn Rng) -> Result<Store, PoolError> {
    let all = devices.iter().map(|device| Arc::clone(device) as Arc<dyn Device>).collect();
    let (pool, _) = Pool::open(all, ALONE)?;
    Ok(open(pool, &options(), Arc::new(ManualClock::default()), rng).unwrap().0)
}

/// Everything is there, and everybody takes part.
fn assert_whole(store: &Store, contents: &[(InodeId, Vec<u8>)]) {
    assert!(store.pool().member_states().iter().all(|state| *state == MemberState::In));
    assert_holds(store, contents);
}

fn assert_holds(store: &Store, contents: &[(InodeId, Vec<u8>)]) {
    for (id, data) in contents {
        assert!(read(store, *id) == *data, "inode {id} reads wrong");
    }
    assert_eq!(store.check(true).unwrap().problems, []);
}

/// Who was missing when the pool was opened is taken in under it, and brought up to date; nobody else is.
#[test]
fn who_was_missing_is_taken_in_later() {
    let rng = SeededRng::new(77);
    let devices = format(&["a", "b", "c"], 2, &rng);
    let [a, b, c] = [&devices[0], &devices[1], &devices[2]];
    drop(mount(&[a, b, c], &rng).unwrap());
    let other = format(&["x", "y"], 1, &rng);
    // Written to alone, while the others know nothing of it.
    let apart = Arc::new(c.snapshot());
    let alone = mount(&[&apart], &rng).unwrap();
    write(&alone, InodeId(5), b"alone").unwrap();
    alone.close().unwrap();
    drop(alone);
    let store = mount(&[a, b], &rng).unwrap();
    let contents = [(InodeId(10), noise(&rng, 3 << 20))];
    write(&store, contents[0].0, &contents[0].1).unwrap();
    store.sync().unwrap();
    let join = |device: &Arc<MemoryDevice>| store.pool().join(Arc::clone(device) as Arc<dyn Device>);
    assert!(matches!(join(&other[0]), Err(PoolError::ForeignPool { .. })));
    assert!(matches!(join(a), Err(PoolError::SameMember { .. })));
    assert!(matches!(join(&apart), Err(PoolError::Split { .. })));
    assert_eq!(store.pool().member_states()[2], MemberState::Missing);
    assert_eq!(join(c).unwrap().0, 2);
    assert_eq!(store.pool().member_states()[2], MemberState::Out);
    assert!(matches!(join(c), Err(PoolError::SameMember { .. })));
    let done = store.bring_back(&|| true).unwrap();
    assert!(done.len() == 1 && done[0].device.0 == 2, "{done:?}");
    assert_whole(&store, &contents);
    store.close().unwrap();
    drop(store);
    assert_holds(&mount(&[c], &rng).unwrap(), &contents);
}

/// A return that is cut short leaves a device that calls itself out: it is no other half, whoever comes back before it does.
#[test]
fn whose_return_was_cut_short_is_no_other_half() {
    let rng = SeededRng::new(78);
    let devices = format(&["a", "b", "c"], 2, &rng);
    let [a, b, c] = [&devices[0], &devices[1], &devices[2]];
    drop(mount(&[a, b, c], &rng).unwrap());
    let contents = [(InodeId(10), noise(&rng, 1 << 20))];
    let store = mount(&[a], &rng).unwrap();
    write(&store, contents[0].0, &contents[0].1).unwrap();
    store.close().unwrap();
    drop(store);
    let store = mount(&[a, b], &rng).unwrap();
    store.pool().begin_return(store.pool().stale_members()[0]).unwrap();
    drop(store);
    let store = mount(&[a, c], &rng).unwrap();
    store.bring_back(&|| true).unwrap();
    store.close().unwrap();
    drop(store);
    // As a later one under a mount, and with all from the beginning.
    let store = mount(&[a, c], &rng).unwrap();
    assert_eq!(store.pool().join(Arc::clone(b) as Arc<dyn Device>).unwrap().0, 1);
    drop(store);
    let store = mount(&[a, b, c], &rng).unwrap();
    store.bring_back(&|| true).unwrap();
    assert_whole(&store, &contents);
    store.close().unwrap();
    drop(store);
    assert_holds(&mount(&[b], &rng).unwrap(), &contents);
}

/// What was written to a device while it was away from its mount is not written over when it is there again.
#[test]
fn who_was_written_to_apart_meanwhile_is_not_brought_back() {
    let rng = SeededRng::new(79);
    let devices = format(&["a", "b"], 1, &rng);
    let [a, b] = [&devices[0], &devices[1]];
    let store = mount(&[a, b], &rng).unwrap();
    write(&store, InodeId(10), &noise(&rng, 100_000)).unwrap();
    store.sync().unwrap();
    let second = DeviceIndex(1);
    // Pulled out, so that it does not hear that the other goes on without it.
    let pulled = Arc::new(b.snapshot());
    store.pool().set_health(second, Health::Failed).unwrap();
    write(&store, InodeId(11), b"without it").unwrap();
    store.sync().unwrap();
    let apart = mount(&[&pulled], &rng).unwrap();
    write(&apart, InodeId(12), b"apart").unwrap();
    apart.close().unwrap();
    drop(apart);
    let mut bytes = vec![0; 1 << 20];
    for at in (0..b.bytes()).step_by(bytes.len()) {
        pulled.read_at(at, &mut bytes).unwrap();
        b.write_at(at, &bytes).unwrap();
    }
    store.pool().set_health(second, Health::Healthy).unwrap();
    let refused = store.bring_back(&|| true).unwrap_err().to_string();
    assert!(refused.contains("written to without the other"), "{refused}");
    assert_eq!(store.pool().member_states()[1], MemberState::Out);
    drop(store);
    assert_eq!(read(&mount(&[b], &rng).unwrap(), InodeId(12)), b"apart");
}

/// With hardly any room: what was written with one copy takes another one's room only once it is moved.
#[test]
fn a_nearly_full_mirror_is_made_whole() {
    let rng = SeededRng::new(71);
    let devices = format(&["a", "b"], 1, &rng);
    let [a, b] = [&devices[0], &devices[1]];
    drop(mount(&[a, b], &rng).unwrap());
    let store = mount(&[a], &rng).unwrap();
    let mut contents = Vec::new();
    for id in (10..).map(InodeId) {
        let data = noise(&rng, 3 << 20);
        let Ok(_room) = store.reserve(data.len() as u64, 6 << 20, aegisfs_base::PolicyId(0)) else { break };
        write(&store, id, &data).unwrap();
        contents.push((id, data));
    }
    assert!(contents.len() > 40, "{} files", contents.len());
    store.close().unwrap();
    drop(store);
    let store = mount(&[a, b], &rng).unwrap();
    let done = store.bring_back(&|| true).unwrap();
    assert_eq!(done.len(), 1);
    assert_whole(&store, &contents);
    store.close().unwrap();
    drop(store);
    assert_holds(&mount(&[b], &rng).unwrap(), &contents);
}

/// What lies on devices that are not there is named.
#[test]
fn a_check_names_what_no_device_holds() {
    let rng = SeededRng::new(72);
    let devices = format(&["a", "b"], 1, &rng);
    let [a, b] = [&devices[0], &devices[1]];
    let store = mount(&[a, b], &rng).unwrap();
    write(&store, InodeId(10), &noise(&rng, 1 << 20)).unwrap();
    store.close().unwrap();
    drop(store);
    let store = mount(&[a], &rng).unwrap();
    write(&store, InodeId(11), &noise(&rng, 1 << 20)).unwrap();
    store.close().unwrap();
    drop(store);
    // The log and the metadata come from both, as if the first one had failed under a mount.
    let store = mount(&[a, b], &rng).unwrap();
    assert_eq!(store.check(true).unwrap().problems, []);
}

/// First one of three is away, then another one: each calls the other one out, and yet one story leads to both.
#[test]
fn who_was_left_behind_by_who_came_back_is_no_other_half() {
    let rng = SeededRng::new(73);
    let devices = format(&["a", "b", "c"], 2, &rng);
    let [a, b, c] = [&devices[0], &devices[1], &devices[2]];
    let mut contents = Vec::new();
    let mut live = |members: &[&Arc<MemoryDevice>], id: u64| {
        let store = mount(members, &rng).unwrap();
        store.bring_back(&|| true).unwrap();
        let data = noise(&rng, 500_000);
        write(&store, InodeId(id), &data).unwrap();
        contents.push((InodeId(id), data));
        store.close().unwrap();
    };
    live(&[a, b, c], 10);
    live(&[a, b], 11);
    live(&[a, c], 12);
    live(&[b, a, c], 13);
    let store = mount(&[c, b, a], &rng).unwrap();
    assert_whole(&store, &contents);
    drop(store);
    assert_holds(&mount(&[b], &rng).unwrap(), &contents);
}

#[test]
fn an_old_copy_of_a_member_is_not_taken_for_it() {
    let rng = SeededRng::new(74);
    let devices = format(&["a", "b"], 1, &rng);
    let [a, b] = [&devices[0], &devices[1]];
    let mut contents = Vec::new();
    let mut old = None;
    for id in 10..14 {
        let store = mount(&[a, b], &rng).unwrap();
        let data = noise(&rng, 2 << 20);
        write(&store, InodeId(id), &data).unwrap();
        contents.push((InodeId(id), data));
        store.close().unwrap();
        drop(store);
        old.get_or_insert_with(|| Arc::new(b.snapshot()));
    }
    let old = old.unwrap();
    let store = mount(&[a, &old], &rng).unwrap();
    assert_eq!(store.pool().member_states(), [MemberState::In, MemberState::Out]);
    assert_holds(&store, &contents);
    store.bring_back(&|| true).unwrap();
    assert_whole(&store, &contents);
    store.close().unwrap();
    drop(store);
    assert_holds(&mount(&[&old], &rng).unwrap(), &contents);
}

/// Once a return has begun the member is neither what it was nor what it should be, and says so.
#[test]
fn who_is_being_brought_back_does_not_take_itself_for_a_member() {
    let rng = SeededRng::new(75);
    let devices = format(&["a", "b"], 1, &rng);
    let [a, b] = [&devices[0], &devices[1]];
    let store = mount(&[a], &rng).unwrap();
    write(&store, InodeId(10), &noise(&rng, 1 << 20)).unwrap();
    store.close().unwrap();
    drop(store);
    let store = mount(&[a, b], &rng).unwrap();
    assert!(store.bring_back(&|| false).is_err(), "told to stop at once");
    drop(store);
    assert!(matches!(mount(&[b], &rng), Err(PoolError::TooFew { .. })));
    let store = mount(&[a, b], &rng).unwrap();
    store.bring_back(&|| true).unwrap();
    store.close().unwrap();
    drop(store);
    mount(&[b], &rng).unwrap();
}
