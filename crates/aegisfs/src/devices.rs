//! Devices as the command line names them.

mod tags;

use crate::failure::{Exit, Failure};
use crate::{control, places};
use aegisfs_base::Uuid;
use aegisfs_device::{Device, InUse, OpenOptions, ReopenableDevice};
use aegisfs_format::superblock::{DeviceEntry, Superblock};
use aegisfs_pool::{Opening, Pool};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
pub(crate) use tags::{is_tag, read_superblock, remember, resolve};

/// How long a command waits for another one to let go of a device.
const WAIT: Duration = Duration::from_secs(30);
/// How often it looks.
const WAIT_STEP: Duration = Duration::from_millis(50);

/// Opens a device, waiting for whoever has just been told to let go of it.
pub(crate) fn open(path: &Path, read_only: bool) -> Result<Arc<dyn Device>, Failure> {
    refuse_mounted(path, read_only)?;
    let options = OpenOptions { read_only, wait: WAIT, ..OpenOptions::default() };
    Ok(Arc::new(ReopenableDevice::open(path, &options)?))
}

/// What is mounted will not be let go of: no use to wait.
fn refuse_mounted(path: &Path, read_only: bool) -> Result<(), Failure> {
    let behind = aegisfs_device::behind(path);
    for client in
        [Some(path), behind.as_deref()].into_iter().flatten().flat_map(|path| control::find(Some(path)))
    {
        // Any number may read what nobody writes.
        let shared = read_only && client.status["opened_read_only"] == true;
        if client.status["attached"] == true && !shared {
            let mount = client.status["mount"].as_str().unwrap_or_default();
            let device = client.status["device"].as_str().unwrap_or_default();
            let message = format!("{device} is mounted on {mount}");
            return Err(Failure::new("E_BUSY", Exit::Busy, message).hint("unmount it first"));
        }
    }
    // The kernel holds the device of a mount, also of one whose daemon died.
    let by = aegisfs_device::in_use(path).ok().flatten();
    match &by {
        Some(InUse::Mounted { at, filesystem }) if filesystem.starts_with("fuseblk") => {
            let message = format!("{} is still mounted at {at}, without a living daemon", path.display());
            Err(Failure::new("E_BUSY", Exit::Busy, message).hint(format!("say aegisfs umount {at}")))
        }
        Some(InUse::LoopBacking { by: Some(by), .. }) if matches!(**by, InUse::Mounted { .. }) => {
            let message = format!("{} {}", path.display(), InUse::clone(by));
            Err(Failure::new("E_BUSY", Exit::Busy, message).hint("unmount it first"))
        }
        _ => Ok(()),
    }
}

/// Who uses a device for something else, once a daemon that is ending has had time to do so.
pub(crate) fn in_use(path: &Path) -> Result<Option<InUse>, Failure> {
    let started = Instant::now();
    loop {
        match aegisfs_device::in_use(path)? {
            Some(InUse::Held) if started.elapsed() < WAIT => std::thread::sleep(WAIT_STEP),
            answer => return Ok(answer),
        }
    }
}

/// A device of a pool, open.
pub(crate) struct Member {
    pub(crate) path: PathBuf,
    pub(crate) device: Arc<dyn Device>,
}

/// Opens devices, and all others of the same pool that can be found: where the pool saw them last, among the block devices
/// of this machine, or among the image files that were used here or scanned for.
///
/// # Errors
/// When one that was named, or one that was found, cannot be opened.
pub(crate) fn open_members(named: &[PathBuf], read_only: bool) -> Result<Vec<Member>, Failure> {
    let open_one = |path: &Path| -> Result<Member, Failure> {
        let path = places::canonical(path);
        let device = open(&path, read_only)?;
        Ok(Member { path, device })
    };
    let mut members: Vec<Member> = Vec::new();
    for path in named {
        if members.iter().any(|member| member.path == places::canonical(path)) {
            return Err(Failure::usage(format!("{} is named twice", path.display())));
        }
        members.push(open_one(path)?);
    }
    for path in others_of(named) {
        members.push(open_one(&path)?);
    }
    Ok(members)
}

/// Where the other members of the pool are, as far as they can be found.
fn others_of(named: &[PathBuf]) -> Vec<PathBuf> {
    let blocks: Vec<Superblock> = named.iter().filter_map(|path| tags::read_superblock(path)).collect();
    let Some(newest) = blocks.iter().max_by_key(|block| block.generation) else { return Vec::new() };
    let is_named = |uuid: Uuid| blocks.iter().any(|block| own_uuid(block) == uuid);
    let wanted: Vec<&DeviceEntry> = newest.devices.iter().filter(|entry| !is_named(entry.uuid)).collect();
    if wanted.is_empty() {
        return Vec::new();
    }
    let is_one = |path: &Path, uuid: Uuid| {
        tags::read_superblock(path).is_some_and(|block| block.pool == newest.pool && own_uuid(&block) == uuid)
    };
    // An image that a loop device is attached to would be found twice: block devices come first.
    let known = known();
    let find = |entry: &DeviceEntry| {
        let last = PathBuf::from(OsStr::from_bytes(&entry.path));
        let is_file = last.is_file();
        let last = std::iter::once(&last);
        let fits = |path: &&PathBuf| is_one(path, entry.uuid);
        if is_file { known.iter().chain(last).find(fits) } else { last.chain(&known).find(fits) }.cloned()
    };
    wanted.into_iter().filter_map(find).collect()
}

/// Where devices are looked for: block devices, and image files that were used here or scanned for.
pub(crate) fn known() -> Vec<PathBuf> {
    tags::block_devices().into_iter().chain(tags::images()).collect()
}

/// The device that a superblock was read from.
pub(crate) fn own_uuid(block: &Superblock) -> Uuid {
    block.devices.get(usize::from(block.device.0)).map_or(Uuid([0; 16]), |entry| entry.uuid)
}

/// Opens the pool on its members.
pub(crate) fn open_pool_on(
    members: &[Member],
    read_only: bool,
    degraded: bool,
) -> Result<(Arc<Pool>, Opening), Failure> {
    let read_only = read_only || members.iter().any(|member| member.device.read_only());
    let options = aegisfs_pool::OpenOptions { read_only, degraded };
    let devices = members.iter().map(|member| Arc::clone(&member.device)).collect();
    Pool::open(devices, options).map_err(|error| {
        let failure = Failure::from(error);
        if failure.code == "E_POOL" { Failure { exit: Exit::Failed, ..failure } } else { failure }
    })
}

/// What the command line names, as paths; several names may lead to one pool.
///
/// # Errors
/// As [`resolve`].
pub(crate) fn resolve_all(words: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    words.iter().map(|word| resolve(word)).collect()
}
