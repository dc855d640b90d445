//! Devices as the command line names them.

mod tags;

use crate::control;
use crate::failure::{Exit, Failure};
use aegisfs_device::{Device, InUse, OpenOptions};
use aegisfs_pool::{Opening, Pool};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
pub(crate) use tags::{is_tag, remember, resolve};

/// How long a command waits for another one to let go of a device.
const WAIT: Duration = Duration::from_secs(30);
/// How often it looks.
const WAIT_STEP: Duration = Duration::from_millis(50);

/// Opens a device, waiting for whoever has just been told to let go of it.
pub(crate) fn open(path: &Path, read_only: bool) -> Result<Arc<dyn Device>, Failure> {
    refuse_mounted(path, read_only)?;
    let options = OpenOptions { read_only, wait: WAIT, ..OpenOptions::default() };
    Ok(aegisfs_device::open(path, &options)?)
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

/// Opens the pool that a device belongs to.
pub(crate) fn open_pool(
    path: &Path,
    read_only: bool,
    degraded: bool,
) -> Result<(Arc<Pool>, Opening), Failure> {
    open_pool_on(&open(path, read_only)?, read_only, degraded)
}

/// Opens the pool on a device.
pub(crate) fn open_pool_on(
    device: &Arc<dyn Device>,
    read_only: bool,
    degraded: bool,
) -> Result<(Arc<Pool>, Opening), Failure> {
    let read_only = read_only || device.read_only();
    let options = aegisfs_pool::OpenOptions { read_only, degraded };
    Pool::open(vec![Arc::clone(device)], options).map_err(|error| {
        let failure = Failure::from(error);
        if failure.code == "E_POOL" { Failure { exit: Exit::Failed, ..failure } } else { failure }
    })
}
