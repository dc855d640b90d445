//! What the daemon answers about the devices of its pool, what it is told about them, and how it watches them.

use super::smart;
use crate::devices::{own_uuid, read_superblock, remember};
use crate::output;
use aegisfs_base::DeviceIndex;
use aegisfs_device::{OpenOptions, ReopenableDevice};
use aegisfs_format::superblock::{DeviceEntry, Health, Superblock};
use aegisfs_format::value::DeviceCounts;
use aegisfs_pool::{DeviceReport, DeviceSpeed, MemberState, Probe};
use aegisfs_store::{Store, StoreError};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often it is looked what devices did, and how often if they did nothing.
const LOOK: Duration = Duration::from_secs(1);
const LOOK_IDLE: Duration = Duration::from_secs(10);
/// How often they are asked on purpose, if anybody used the pool since, and what they counted is stored.
const PROBE_EVERY: Duration = Duration::from_secs(600);
/// How often those are looked for that are missing.
const MISSING_EVERY: Duration = Duration::from_secs(5);
/// How often they are asked what they think of themselves.
const SMART_EVERY: Duration = Duration::from_secs(3600);

fn path_of(entry: &DeviceEntry) -> PathBuf {
    Path::new(OsStr::from_bytes(&entry.path)).to_owned()
}

fn speed(speed: &DeviceSpeed) -> Value {
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    json!({
        "average_us": micros(speed.average),
        "median_us": micros(speed.median),
        "p99_us": micros(speed.p99),
    })
}

fn counts(counts: &DeviceCounts) -> Value {
    let named = counts.named().into_iter();
    Value::Object(named.map(|(name, count)| (name.to_owned(), count.into())).collect::<Map<_, _>>())
}

/// Every device, how it is doing, and what it has done since it is a member.
pub(super) fn describe(store: &Store) -> Result<Value, StoreError> {
    let pool = store.pool();
    let entries = pool.superblock().devices;
    let since_member = store.device_counts()?;
    let one = |((entry, report), total): ((&DeviceEntry, &DeviceReport), &DeviceCounts)| {
        let path = path_of(entry);
        let is_there = !matches!(report.state, MemberState::Missing);
        let mut disk = json!({
            "index": report.device.0,
            "uuid": entry.uuid.to_string(),
            "state": report.state.name(),
            "health": report.health.name(),
            "placed_on": report.is_placed_on,
            "failure_domain": entry.failure_domain,
            "tier": entry.tier,
            "bytes": entry.bytes,
            "slots": report.slots,
            "slots_free": report.slots_free,
            "in_flight": report.in_flight,
            "in_flight_most": report.in_flight_most,
            "trouble": report.trouble as f64 / 100.0,
            "latency": {
                "read": speed(&report.reads),
                "write": speed(&report.writes),
                "flush": speed(&report.flushes),
            },
            "counts": counts(total),
            "counts_this_mount": counts(&report.counts),
            "smart": if is_there { smart::ask(&path).describe() } else { Value::Null },
        });
        output::put_path(&mut disk, "path", &path);
        disk
    };
    let disks: Vec<Value> = entries.iter().zip(&pool.device_reports()).zip(&since_member).map(one).collect();
    Ok(json!({ "disks": disks }))
}

/// Says how far a device is trusted from now on: its number, and what it is called then.
pub(super) fn set_health(store: &Store, device: &str, health: &str) -> Result<Value, String> {
    let device = device.parse().map_err(|_| format!("'{device}' is no number of a device"))?;
    let known = Health::ALL.into_iter().find(|known| known.name() == health);
    let known = known.ok_or_else(|| format!("'{health}' is none of the states of a device"))?;
    let before = store.pool().set_health(DeviceIndex(device), known).map_err(|error| error.to_string())?;
    tracing::info!(
        device,
        before = before.name(),
        after = known.name(),
        "an operator says how far a device is trusted"
    );
    Ok(json!({ "index": device, "before": before.name(), "health": known.name() }))
}

/// Asks every device.
pub(super) fn probe(store: &Store) -> Value {
    let pool = store.pool();
    let mut answers = Vec::new();
    for (entry, report) in pool.superblock().devices.iter().zip(pool.device_reports()) {
        let asked = ask(store, report.device);
        let mut answer = match asked {
            Ok(Probe { reads, failed, problem, slowest }) => json!({
                "reads": reads,
                "failed": failed,
                "problem": problem,
                "slowest_us": u64::try_from(slowest.as_micros()).unwrap_or(u64::MAX),
            }),
            Err(error) => json!({ "reads": 0, "failed": 0, "problem": error }),
        };
        answer["index"] = report.device.0.into();
        answer["uuid"] = entry.uuid.to_string().into();
        answer["state"] = pool.member_states()[usize::from(report.device.0)].name().into();
        let path = path_of(entry);
        answer["smart"] = smart::ask(&path).describe();
        output::put_path(&mut answer, "path", &path);
        answers.push(answer);
    }
    if let Err(error) = pool.settle_health() {
        tracing::error!(%error, "what devices are taken for could not be noted");
    }
    for answer in &mut answers {
        let index = answer["index"].as_u64().unwrap_or_default();
        answer["health"] = pool.health(DeviceIndex(index as u16)).name().into();
    }
    json!({ "disks": answers })
}

/// Asks one; one that answers nothing any more is left out if the others are enough.
fn ask(store: &Store, device: DeviceIndex) -> Result<Probe, String> {
    let pool = store.pool();
    let probe = pool.probe(device).map_err(|_| "it is not there".to_owned())?;
    if probe.failed == probe.reads && pool.member_states()[usize::from(device.0)] == MemberState::In {
        match pool.leave_out(device) {
            Ok(()) => tracing::error!(device = device.0, "a device does not answer and is left out"),
            Err(error) => tracing::error!(%error, device = device.0, "a device does not answer"),
        }
    }
    Ok(probe)
}

/// The running thread; dropping it ends the thread.
pub(super) struct Watcher {
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Stop {
    told: AtomicBool,
    turn: Mutex<()>,
    wakeup: Condvar,
}

impl Stop {
    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watcher {
    /// Starts watching the devices.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(super) fn start(store: Arc<Store>) -> std::io::Result<Self> {
        let stop = Arc::<Stop>::default();
        let stopping = Arc::clone(&stop);
        let thread =
            std::thread::Builder::new().name("devices".into()).spawn(move || watch(&store, &stopping))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.told.store(true, Ordering::Release);
        drop(self.stop.turn());
        self.stop.wakeup.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("what watches the devices died");
        }
    }
}

fn watch(store: &Store, stop: &Stop) {
    let is_told = || stop.told.load(Ordering::Acquire);
    let pool = store.pool();
    let (mut probed, mut used) = (Instant::now(), store.used_by_others());
    let mut smart_asked = None::<Instant>;
    let (mut looked, mut refused) = (Instant::now(), BTreeMap::new());
    let mut told = BTreeMap::new();
    let mut calls = 0;
    loop {
        let now = pool.device_calls();
        let rest = if std::mem::replace(&mut calls, now) == now { LOOK_IDLE } else { LOOK };
        {
            let turn = stop.turn();
            if !is_told() {
                drop(stop.wakeup.wait_timeout(turn, rest));
            }
        }
        if is_told() {
            return;
        }
        if let Err(error) = pool.settle_health() {
            tracing::error!(%error, "what devices are taken for could not be noted");
        }
        if looked.elapsed() >= MISSING_EVERY {
            looked = Instant::now();
            take_in(store, &mut refused);
        }
        if probed.elapsed() >= PROBE_EVERY {
            probed = Instant::now();
            let now = store.used_by_others();
            if std::mem::replace(&mut used, now) != now {
                for report in pool.device_reports().iter().filter(|report| report.state == MemberState::In) {
                    if let Ok(Probe { problem: Some(problem), .. }) = ask(store, report.device) {
                        tracing::warn!(device = report.device.0, problem, "a device was asked");
                    }
                }
            }
            if let Err(error) = store.note_device_counts(false) {
                tracing::warn!(%error, "what devices counted could not be stored");
            }
        }
        if smart_asked.is_none_or(|asked| asked.elapsed() >= SMART_EVERY) {
            smart_asked = Some(Instant::now());
            ask_smart(store, &mut told);
        }
    }
}

/// Takes devices in that were missing and are where they were seen last by now.
fn take_in(store: &Store, refused: &mut BTreeMap<u16, Superblock>) {
    let pool = store.pool();
    if store.check_writable().is_err() {
        return;
    }
    let superblock = pool.superblock();
    for ((number, entry), state) in (0..).zip(&superblock.devices).zip(pool.member_states()) {
        let path = path_of(entry);
        let is_it = |block: &Superblock| block.pool == superblock.pool && own_uuid(block) == entry.uuid;
        let block = (state == MemberState::Missing).then(|| read_superblock(&path)).flatten();
        // One that was refused is left alone until something else stands on it.
        let Some(block) = block.filter(is_it).filter(|block| refused.get(&number) != Some(block)) else {
            continue;
        };
        let joined = ReopenableDevice::open(&path, &OpenOptions::default())
            .map_err(|error| error.to_string())
            .and_then(|device| pool.join(Arc::new(device)).map_err(|error| error.to_string()));
        match joined {
            Ok(_) => {
                tracing::info!(device = number, path = %path.display(), "a device is there again");
                remember(&path);
            }
            Err(reason) => {
                tracing::error!(device = number, reason, "a device is there again and cannot take part");
                refused.insert(number, block);
            }
        }
    }
}

/// Takes for suspect who says itself that it is about to fail.
fn ask_smart(store: &Store, told: &mut BTreeMap<u16, String>) {
    let pool = store.pool();
    for (entry, report) in pool.superblock().devices.iter().zip(pool.device_reports()) {
        if report.state == MemberState::Missing {
            continue;
        }
        let Some(reason) = smart::ask(&path_of(entry)).failing() else { continue };
        let device = report.device;
        if told.insert(device.0, reason.clone()).as_ref() == Some(&reason) {
            continue;
        }
        tracing::error!(device = device.0, reason, "a device says that it is about to fail");
        if let Err(error) = pool.suspect(device) {
            tracing::error!(%error, "that could not be noted");
        }
    }
}
