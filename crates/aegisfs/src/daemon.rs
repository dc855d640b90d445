//! The daemon: a mounted filesystem from the first opening of its devices to the last checkpoint.

mod damage;
mod disks;
mod members;
mod policies;
mod reclaim;
mod scrubbing;
mod smart;
mod threads;

use crate::commands::format::describe_redundancy as redundancy_name;
use crate::control::{Server, Service};
use crate::failure::{Exit, Failure};
use crate::mount_options::Options;
use crate::settings::{Settings, Wanted};
use crate::{devices, output, panics, places};
use aegisfs_base::{SystemClock, SystemRng};
use aegisfs_device::Device;
use aegisfs_fs::{Fs, FsOptions};
use aegisfs_fuse::{FsFace, Mount, MountEntry, MountOptions, Session, SessionOptions};
use aegisfs_pool::Pool;
use aegisfs_store::{Intensity, Store, StoreOptions};
use serde_json::{Value, json};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use threads::Threads;

/// Files that the status names as used most.
const HOTTEST: usize = 10;
/// How far the kernel reads ahead.
const READ_AHEAD_KIB: u32 = 2048;
/// How many written bytes the kernel may hold of a mount: what a crash can take of files that nobody synced.
const KERNEL_DIRTY_BYTES_MAX: u64 = 64 << 20;
/// Less likely than others to be killed when memory runs out.
const OOM_SCORE: &str = "-500";

/// The device that a mount is based on.
type Disk = Arc<dyn Device>;

/// A mounted filesystem.
struct Daemon {
    fs: Arc<Fs>,
    store: Arc<Store>,
    session: Session<FsFace>,
    /// The members that are there, the one that the mount is named after first.
    members: Vec<PathBuf>,
    mount: PathBuf,
    log: PathBuf,
    settings: Settings,
    /// The mount's device number; another mount may come to be on the same directory.
    number: Option<String>,
    read_only: bool,
    disk: Disk,
    /// The kernel keeps others away from the disk while it is mounted.
    block: bool,
}

impl Daemon {
    /// What concerns the mount and the settings.
    fn describe_mount(&self) -> Value {
        let entry = aegisfs_fuse::find_mount(&self.mount);
        let entry = entry.filter(|entry| self.number.as_ref() == Some(&entry.number));
        let read_only =
            self.store.check_writable().is_err() || entry.as_ref().is_some_and(MountEntry::read_only);
        let reason = self.store.read_only_reason();
        let mut answer = json!({
            "attached": entry.is_some(),
            "read_only": read_only,
            "opened_read_only": self.read_only,
            "read_only_reason": reason,
            "poisoned": reason.filter(|_| !self.read_only),
            "mount_options": entry.map(|entry| entry.options),
            "settings": self.settings.describe(),
        });
        output::put_path(&mut answer, "device", &self.members[0]);
        let joined = members::joined(&self.store, &self.members);
        let members = self.members.iter().chain(&joined);
        output::put_paths(&mut answer, "devices", members.map(PathBuf::as_path));
        output::put_path(&mut answer, "mount", &self.mount);
        output::put_path(&mut answer, "log", &self.log);
        if let Some(file) = self.settings.file() {
            output::put_path(&mut answer, "config", file);
        }
        answer
    }
}

impl Service for Daemon {
    fn status(&self) -> Value {
        let superblock = self.store.pool().superblock();
        let count = |list: Vec<(&'static str, u64)>| {
            list.into_iter().map(|(name, n)| (name.to_owned(), n.into())).collect::<serde_json::Map<_, _>>()
        };
        let opcodes = self.session.counts().into_iter().map(|c| (c.name, c.count)).collect();
        let ring_threads = self.session.ring_threads();
        let log = self.store.log_counts();
        let (hits, misses) = self.store.cache_counts();
        let (handles, nodes) = self.fs.open_counts();
        let hottest = self.fs.hottest(HOTTEST).into_iter();
        let hottest: Vec<Value> =
            hottest.map(|(id, count)| json!({ "inode": id.0, "operations": count })).collect();
        let (metadata_slots, index_slots) = self.store.metadata_slots();
        let mut answer = json!({
            "pid": std::process::id(),
            "pool": superblock.pool.to_string(),
            "label": superblock.label,
            "dirty_bytes": self.fs.dirty_bytes(),
            "transport": if ring_threads > 0 { "io_uring" } else { "/dev/fuse" },
            "ring_threads": ring_threads,
            "idle_class_changes": self.session.idle_class_changes(),
            "fuseblk": self.block,
            "open_handles": handles,
            "inodes_in_memory": nodes,
            "opcodes": Value::Object(count(opcodes)),
            "store": Value::Object(count(self.store.counters().all())),
            "log_flushes": log.flushes,
            "log_transactions_flushed": log.transactions,
            "log_bytes_written": log.written_bytes,
            "log_bytes_content": log.content_bytes,
            "chunk_cache": { "hits": hits, "misses": misses },
            "lock_waits": aegisfs_fs::lock_waits().into_iter().collect::<std::collections::BTreeMap<_, _>>(),
            "hottest_files": hottest,
            "redundancy": redundancy_name(self.store.pool().redundancy()),
            "metadata_pages_healed": self.store.pages_healed(),
            "metadata_pages_written": self.store.pages_written(),
            "metadata_slots": { "tree": metadata_slots, "dedup_index": index_slots },
            "checkpoints": self.store.counters().checkpoints.load(std::sync::atomic::Ordering::Relaxed),
        });
        members::describe(&self.store, &mut answer);
        if let (Value::Object(all), Value::Object(mount)) = (&mut answer, self.describe_mount()) {
            all.extend(mount);
        }
        answer
    }

    fn usage(&self) -> Result<Value, String> {
        let report = self.store.space_report().map_err(|error| error.to_string())?;
        Ok(json!({
            "total_bytes": report.total_bytes,
            // As statfs(2) has it: what nobody can have is not free.
            "free_bytes": report.free_bytes.saturating_sub(self.fs.kept_for_kernel()),
            "logical_bytes": report.logical_bytes,
            "unique_bytes": report.unique_bytes,
            "compressed_bytes": report.compressed_bytes,
            "data_bytes": report.data_bytes,
            "metadata_bytes": report.metadata_bytes,
            "untrimmed_bytes": report.untrimmed_bytes,
            "physical_bytes": report.physical_bytes,
            "chunks": report.chunks,
            "references": report.references,
        }))
    }

    fn cleaning(&self) -> Result<Value, String> {
        reclaim::cleaning(&self.store).map_err(|error| error.to_string())
    }

    fn clean(&self, order: &str) -> Result<(), String> {
        self.store.check_writable().map_err(|error| error.to_string())?;
        match order {
            "run" => self.store.request_cleaning(),
            "pause" => self.store.pause_cleaning(true),
            "resume" => self.store.pause_cleaning(false),
            _ => {
                let wanted = order.strip_prefix("intensity/");
                let known = Intensity::ALL.into_iter().find(|known| Some(known.name()) == wanted);
                let known = known.ok_or_else(|| format!("the cleaner knows no order '{order}'"))?;
                self.store.set_cleaning_intensity(known);
            }
        }
        Ok(())
    }

    fn scrubbing(&self) -> Result<Value, String> {
        scrubbing::describe(&self.store).map_err(|error| error.to_string())
    }

    fn scrub(&self, order: &str) -> Result<(), String> {
        scrubbing::order(&self.store, order)
    }

    fn damage(&self) -> Result<Value, String> {
        damage::describe(&self.fs).map_err(|error| error.to_string())
    }

    fn mended(&self) -> Result<Value, String> {
        damage::mended(&self.fs).map_err(|error| error.to_string())
    }

    fn heal_from(&self, path: &Path) -> Result<Value, String> {
        damage::heal(&self.fs, path).map_err(|error| error.to_string())
    }

    fn healing(&self) -> Value {
        self.fs.heal_progress().map_or(Value::Null, |done| damage::healed(&done))
    }

    fn disks(&self) -> Result<Value, String> {
        disks::describe(&self.store).map_err(|error| error.to_string())
    }

    fn probe_disks(&self) -> Value {
        disks::probe(&self.store)
    }

    fn set_disk_health(&self, device: &str, health: &str) -> Result<Value, String> {
        disks::set_health(&self.store, device, health)
    }

    fn policies(&self) -> Result<Value, String> {
        policies::describe(&self.fs).map_err(|error| error.to_string())
    }

    fn policy(&self, inode: &str) -> Result<Value, String> {
        policies::of(&self.fs, inode)
    }

    fn set_policy(&self, inode: &str, order: &str) -> Result<Value, String> {
        policies::set(&self.fs, inode, order)
    }

    fn trimming(&self) -> Value {
        reclaim::trimming(&self.store)
    }

    fn trim(&self) -> Result<(), String> {
        self.store.request_trim().map_err(|error| error.to_string())
    }

    fn orphans(&self) -> Result<Value, String> {
        reclaim::orphans(&self.store).map_err(|error| error.to_string())
    }

    fn clean_orphans(&self, older_than: Duration, dry_run: bool) -> Result<Value, String> {
        reclaim::clean_orphans(&self.store, older_than, dry_run).map_err(|error| error.to_string())
    }

    fn sync(&self) -> Result<(), String> {
        self.fs.sync().map_err(|error| error.to_string())
    }

    fn checkpoint(&self) -> Result<(), String> {
        self.sync()?;
        self.store.checkpoint().map_err(|error| error.to_string())
    }
}

/// What is running for a mount, in the order in which it ends.
struct Running {
    server: Server,
    /// Of a mount that may write.
    threads: Option<Threads>,
    daemon: Arc<Daemon>,
}

/// The end of a mount, which comes once: when the kernel says so, or with the connection.
#[derive(Default)]
struct Ending {
    running: Mutex<Option<Running>>,
    outcome: Mutex<Option<Failure>>,
}

impl Ending {
    /// Ends what runs, if it does. `held` says that the kernel still keeps others away from the device.
    fn end(&self, held: bool) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(running) = running
            && let Err(failure) = finish(running, held)
        {
            *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
        }
    }
}

/// Mounts and serves until the mount goes. `ready` is called once the root answers.
///
/// # Errors
/// When the filesystem cannot be opened or mounted.
pub(crate) fn run(
    named: &[PathBuf],
    mount: &Path,
    options: &Options,
    settings: Settings,
    log: &Path,
    ready: impl FnOnce(),
) -> Result<(), Failure> {
    let (daemon, ending) = start(named, mount, options, settings, log)?;
    let signals = watch_signals(&daemon)?;
    ready();
    tracing::info!(mount = %mount.display(), "mounted");
    daemon.session.wait();
    signals.close();
    ending.end(false);
    let Some(failure) = ending.outcome.lock().unwrap_or_else(PoisonError::into_inner).take() else {
        return Ok(());
    };
    // Whoever unmounted has only this to learn it from.
    let words = places::last_words(&daemon.store.pool().uuid().to_string());
    if let Err(error) = std::fs::write(&words, format!("{}\n", failure.message)) {
        tracing::error!(%error, "nobody can be told");
    }
    Err(failure)
}

fn start(
    named: &[PathBuf],
    mount: &Path,
    options: &Options,
    mut settings: Settings,
    log: &Path,
) -> Result<(Arc<Daemon>, Arc<Ending>), Failure> {
    let read_only = options.kernel.read_only;
    let (members, disk, pool) = open_pool(named, options)?;
    let clock = Arc::new(SystemClock::default());
    take_options(&mut settings, options)?;
    let store_options = StoreOptions { read_only, ..settings.store_options() };
    let uuid = pool.uuid().to_string();
    let (store, recovered) = aegisfs_store::open(pool, &store_options, clock, &SystemRng::new()?)?;
    tracing::info!(?recovered, "opened");
    if let Some(reason) = &recovered.read_only {
        tracing::error!(reason, "it can only be read");
    }
    let store = Arc::new(store);
    panics::guard(&store);
    let writable = store.check_writable().is_ok();
    let writeback = settings.writeback(options.writeback);
    let rings = choose_rings(settings.io_uring(options.rings.as_deref())?)?;
    // What the kernel may hold and has not told us of yet.
    let soft_reserve_bytes = if writeback { KERNEL_DIRTY_BYTES_MAX } else { 0 };
    let fs_options = FsOptions {
        background: writable,
        soft_reserve_bytes,
        kernel_caches: writeback,
        ..settings.fs_options()
    };
    let fs = Arc::new(Fs::mount(Arc::clone(&store), fs_options)?);
    let threads = writable.then(|| Threads::start(&store, &fs, &settings)).transpose()?;
    let mut kernel = options.kernel.clone();
    kernel.read_only = !writable;
    let fuseblk = settings.fuseblk(options.fuseblk.as_deref())?;
    let (mounted, connection, block) = attach(&*disk, &members[0], mount, kernel, fuseblk)?;
    let idle_class = settings.idle_class();
    let session_options = SessionOptions { writeback, rings, idle_class, ..SessionOptions::default() };
    let ending = Arc::<Ending>::default();
    let at_end = Arc::clone(&ending);
    let place = mount.to_owned();
    let face = FsFace::new(Arc::clone(&fs))
        .ending_with(move || at_end.end(true))
        .writing_back_with(move |node, generation| write_back(&place, node, generation));
    let session = Session::start(connection, face, session_options)?;
    // The first request waits for the negotiation; an answer means that the mount is alive.
    std::fs::metadata(mount)?;
    settle_kernel(&mounted, writeback && writable);
    let daemon = Arc::new(Daemon {
        fs,
        store,
        session,
        members,
        mount: mount.to_owned(),
        log: log.to_owned(),
        settings,
        number: aegisfs_fuse::find_mount(mount).map(|entry| entry.number),
        read_only: !writable,
        disk,
        block,
    });
    let _ = std::fs::remove_file(places::last_words(&uuid));
    let server = Server::start(&places::socket(&uuid), Arc::clone(&daemon) as Arc<dyn Service>)?;
    let running = Running { server, threads, daemon: Arc::clone(&daemon) };
    *ending.running.lock().unwrap_or_else(PoisonError::into_inner) = Some(running);
    Ok((daemon, ending))
}

/// Opens the pool, and says where its members are, and on which device the mount is based.
fn open_pool(named: &[PathBuf], options: &Options) -> Result<(Vec<PathBuf>, Disk, Arc<Pool>), Failure> {
    let read_only = options.kernel.read_only;
    let members = devices::open_members(named, read_only)?;
    let (pool, opening) = devices::open_pool_on(&members, read_only, options.degraded)?;
    let disk = Arc::clone(&members[0].device);
    let members: Vec<PathBuf> = members.into_iter().map(|member| member.path).collect();
    members.iter().for_each(|path| devices::remember(path));
    for missing in opening.missing.iter().chain(&opening.absent) {
        tracing::warn!(device = missing, "a device of the pool is missing");
    }
    if opening.too_few {
        tracing::error!("too few devices of the pool are there: not everything can be read");
    }
    for stale in &opening.stale {
        tracing::warn!(device = stale, "a device was left out, and lacks what was written without it");
    }
    if opening.dirty {
        tracing::info!("it was not unmounted the last time; the log is replayed");
    }
    Ok((members, disk, pool))
}

/// What the mount's own options say comes before the settings.
fn take_options(settings: &mut Settings, options: &Options) -> Result<(), Failure> {
    if let Some(mode) = &options.verify {
        settings.verify(mode)?;
    }
    options.discard.map_or(Ok(()), |discard| settings.discard(discard))
}

/// Mounts: a block device as one where that brings syncs of the whole, anything else in the plain way. Says which.
fn attach(
    disk: &dyn Device,
    path: &Path,
    mount: &Path,
    mut kernel: MountOptions,
    fuseblk: Wanted,
) -> Result<(Mount, OwnedFd, bool), Failure> {
    let number = |path: &Path| std::fs::metadata(path).ok().filter(|it| it.file_type().is_block_device());
    let number = |path: &Path| number(path).map(|it| it.rdev());
    // The kernel finds the device by the name that it shows as the source.
    let is_block = number(path).is_some() && number(Path::new(&kernel.source)) == number(path);
    let reason = match fuseblk {
        Wanted::Off => None,
        _ if !is_block => Some("the source is no block device"),
        _ if !rustix::process::geteuid().is_root() => Some("only root can do that"),
        Wanted::Auto if !aegisfs_fuse::kernel_syncs_block_mounts() => Some("the kernel is older than 6.18"),
        _ => {
            kernel.block = true;
            disk.hand_over();
            match Mount::new(mount, &kernel) {
                Ok((mounted, connection)) => return Ok((mounted, connection, true)),
                Err(error) => tracing::warn!(%error, "it cannot be mounted as a block device"),
            }
            kernel.block = false;
            disk.take_back()?;
            Some("the kernel refused, as the log says")
        }
    };
    if let (Wanted::On, Some(reason)) = (fuseblk, reason) {
        let message = format!("{} cannot be mounted as a block device: {reason}", path.display());
        return Err(Failure::new("E_FUSEBLK", Exit::Failed, message).hint("fuseblk=auto goes on without"));
    }
    let (mounted, connection) = Mount::new(mount, &kernel)?;
    Ok((mounted, connection, false))
}

/// Whether requests are to come through io_uring.
fn choose_rings(wanted: Wanted) -> Result<bool, Failure> {
    match (wanted, aegisfs_fuse::rings_available()) {
        (Wanted::Off, _) => Ok(false),
        (_, Ok(())) => Ok(true),
        (Wanted::Auto, Err(reason)) => {
            tracing::info!(reason, "requests come through /dev/fuse");
            Ok(false)
        }
        (Wanted::On, Err(reason)) => {
            let message = format!("requests cannot come through io_uring: {reason}");
            let hint = "root can turn it on in the kernel by mounting so; io_uring=auto goes on without it";
            Err(Failure::new("E_IO_URING", Exit::Failed, message).hint(hint))
        }
    }
}

/// Has another process make the kernel write back a file, since nobody can wait for a mount that he serves himself:
/// killed while it does, this process would not end, and the mount neither.
fn write_back(mount: &Path, node: u64, generation: u64) -> bool {
    let mut command = Command::new("/proc/self/exe");
    command.arg("write-back").arg(mount).arg(node.to_string()).arg(generation.to_string());
    let output = command.stdin(Stdio::null()).output();
    let told = match output {
        Ok(output) if output.status.success() => return true,
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => error.to_string(),
    };
    tracing::warn!(node, told, "the kernel could not be made to write back a file");
    false
}

/// What only root can set of a mount, after it is made.
fn settle_kernel(mounted: &Mount, bound: bool) {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    if let Err(error) = mounted.set_read_ahead(READ_AHEAD_KIB) {
        tracing::warn!(%error, "the kernel's read-ahead stays as it is");
    }
    if bound && let Err(error) = mounted.set_dirty_bytes_max(KERNEL_DIRTY_BYTES_MAX) {
        tracing::warn!(%error, "the kernel may hold as many written bytes as it likes");
    }
}

/// Ends in order: everything written out, one last checkpoint, nobody to talk to any more.
fn finish(running: Running, held: bool) -> Result<(), Failure> {
    let Running { server, threads, daemon } = running;
    // The kernel ended the connection without a word, and may have let go of the device already.
    if daemon.block && !held {
        guard(&daemon)?;
    }
    let service = threads.map(Threads::end);
    let synced = if daemon.read_only { Ok(()) } else { daemon.fs.sync() };
    drop(server);
    drop(service);
    if let Err(error) = synced {
        tracing::error!(%error, "not everything could be written out");
        return Err(error.into());
    }
    if !daemon.read_only {
        if let Err(error) = daemon.store.reap_all() {
            tracing::warn!(%error, "not everything that was removed is reaped; it will be by the next mount");
        }
        if let Err(error) = daemon.store.note_device_counts(true) {
            tracing::warn!(%error, "what devices counted could not be stored");
        }
        daemon.store.close()?;
        // What the kernel still lets go of is no reason to write: the device is nobody's from here on.
        daemon.store.retire();
    }
    tracing::info!("unmounted");
    Ok(())
}

/// Sees to it that nobody else has the device: the kernel for a mount that is still there, or this process.
fn guard(daemon: &Daemon) -> Result<(), Failure> {
    // As long as the kernel knows the mount, attached or not, it keeps the device.
    if daemon.number.as_deref().is_some_and(aegisfs_fuse::kernel_knows) {
        return Ok(());
    }
    daemon.disk.take_back().map_err(|error| {
        daemon.store.stop_writing("the device cannot be had back after the kernel ended the mount");
        Failure::from(error).hint("what was not synced is lost, as in a crash")
    })
}

/// On SIGINT or SIGTERM the mount is taken away, which ends the session in order.
fn watch_signals(daemon: &Arc<Daemon>) -> Result<signal_hook::iterator::Handle, Failure> {
    let mut signals = signal_hook::iterator::Signals::new([
        signal_hook::consts::SIGINT,
        signal_hook::consts::SIGTERM,
        signal_hook::consts::SIGHUP,
    ])?;
    let handle = signals.handle();
    let mount = daemon.mount.clone();
    let number = daemon.number.clone();
    // Once detached, what is mounted at this path is somebody else's.
    let ours = move |mount: &Path| aegisfs_fuse::find_mount(mount).map(|entry| entry.number) == number;
    let daemon = Arc::downgrade(daemon);
    let told = AtomicBool::new(false);
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in &mut signals {
            if signal == signal_hook::consts::SIGHUP {
                continue;
            }
            tracing::info!(signal, "told to end");
            // A plain unmount lets the kernel write back first; if somebody still uses the mount it is
            // detached instead, after everything that has reached us is durable.
            if ours(&mount) && aegisfs_fuse::unmount(&mount, false).is_ok() {
                continue;
            }
            if let Some(daemon) = daemon.upgrade() {
                if let Err(error) = daemon.fs.sync() {
                    tracing::error!(%error, "not everything could be written out");
                }
                if ours(&mount) {
                    let _ = aegisfs_fuse::unmount(&mount, true);
                }
                if told.swap(true, Ordering::AcqRel) {
                    tracing::warn!("told twice: ending although the mount is in use");
                    let _ = daemon.store.close();
                    std::process::exit(0);
                }
            }
        }
    })?;
    Ok(handle)
}

/// What a process that serves a mount owes the machine: many files, few kills, a log.
pub(crate) fn settle_process(log: &Path) -> Result<(), Failure> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    if rustix::process::geteuid().is_root() {
        let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    }
    let file = places::open_log(log).map_err(|e| {
        Failure::new("E_LOG", Exit::Failed, format!("{} cannot be written: {e}", log.display()))
    })?;
    let filter = tracing_subscriber::EnvFilter::try_from_env("AEGISFS_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(file).init();
    panics::log();
    Ok(())
}
