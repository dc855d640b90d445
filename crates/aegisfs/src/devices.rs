//! Devices as the command line names them.

use crate::failure::{Exit, Failure};
use aegisfs_device::{Device, OpenOptions};
use aegisfs_pool::{Opening, Pool};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long a command waits for another one to let go of a device.
pub(crate) const WAIT: Duration = Duration::from_secs(30);

/// Opens a device, waiting for whoever has just been told to let go of it.
pub(crate) fn open(path: &Path, read_only: bool) -> Result<Arc<dyn Device>, Failure> {
    let options = OpenOptions { read_only, wait: WAIT, ..OpenOptions::default() };
    Ok(aegisfs_device::open(path, &options)?)
}

/// Opens the pool that a device belongs to.
pub(crate) fn open_pool(
    path: &Path,
    read_only: bool,
    degraded: bool,
) -> Result<(Arc<Pool>, Opening), Failure> {
    let device = open(path, read_only)?;
    let read_only = read_only || device.read_only();
    let options = aegisfs_pool::OpenOptions { read_only, degraded };
    Pool::open(vec![device], options).map_err(|error| {
        let failure = Failure::from(error);
        if failure.code == "E_POOL" { Failure { exit: Exit::Failed, ..failure } } else { failure }
    })
}
