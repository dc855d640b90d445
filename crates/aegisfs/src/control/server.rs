//! The daemon's end of the socket.

use super::http;
use crate::places;
use serde_json::{Value, json};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How orders to the cleaner begin.
const CLEAN: &str = "/v1/clean/";
/// How orders to the scrubber begin.
const SCRUB: &str = "/v1/scrub/";
/// How an order to look for lost bytes begins; the path follows in hexadecimal digits, two for each byte.
const HEAL: &str = "/v1/damage/heal/";
/// How an order begins that says how far a device is trusted; its number and what it is called then follow.
const DISKS: &str = "/v1/disks/";
/// How questions and orders about how an inode is stored begin; its number follows, and then what is said.
const POLICY: &str = "/v1/policy/";
/// How orders to clean orphans begin, or to say what that would do; the age in seconds follows.
const CLEAN_ORPHANS: &str = "/v1/orphans/clean/";
const TRY_ORPHANS: &str = "/v1/orphans/try/";
/// So many are answered at once; others wait.
const AT_ONCE_MAX: usize = 16;
/// A client that says nothing for so long is dropped.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the socket can be asked.
pub(crate) trait Service: Send + Sync + 'static {
    /// What is mounted, and how it is doing.
    fn status(&self) -> Value;
    /// Where the space is.
    fn usage(&self) -> Result<Value, String>;
    /// Makes everything durable.
    fn sync(&self) -> Result<(), String>;
    /// The same, and moves it where it stays: the log is empty afterwards.
    fn checkpoint(&self) -> Result<(), String>;
    /// What the cleaner is at.
    fn cleaning(&self) -> Result<Value, String>;
    /// Tells the cleaner something; an error where nothing may be written, or there is no such order.
    fn clean(&self, order: &str) -> Result<(), String>;
    /// How far a scrub is, or what the last one found.
    fn scrubbing(&self) -> Result<Value, String>;
    /// Tells the scrubber something; an error where that cannot be.
    fn scrub(&self, order: &str) -> Result<(), String>;
    /// Which parts of files cannot be read.
    fn damage(&self) -> Result<Value, String>;
    /// What was damaged and is mended.
    fn mended(&self) -> Result<Value, String>;
    /// Looks for the lost bytes in a file or tree.
    fn heal_from(&self, path: &Path) -> Result<Value, String>;
    /// How far that is, if somebody does so.
    fn healing(&self) -> Value;
    /// How each device is doing, and what it has done.
    fn disks(&self) -> Result<Value, String>;
    /// Asks every device whether it answers.
    fn probe_disks(&self) -> Value;
    /// Says how far a device is trusted from now on.
    fn set_disk_health(&self, device: &str, health: &str) -> Result<Value, String>;
    /// How far what is there already has come to follow its policy.
    fn policies(&self) -> Result<Value, String>;
    /// How an inode is stored.
    fn policy(&self, inode: &str) -> Result<Value, String>;
    /// Says how it is stored from now on.
    fn set_policy(&self, inode: &str, order: &str) -> Result<Value, String>;
    /// What the devices were told to forget.
    fn trimming(&self) -> Value;
    /// Has them forget everything that is free; does not wait for it.
    fn trim(&self) -> Result<(), String>;
    /// What takes room although nothing refers to it.
    fn orphans(&self) -> Result<Value, String>;
    /// Cleans those that were seen first so long ago, or says which that would be.
    fn clean_orphans(&self, older_than: Duration, dry_run: bool) -> Result<Value, String>;
}

/// The listening thread.
pub(crate) struct Server {
    path: PathBuf,
    /// Tells our socket from one that somebody made in its place.
    inode: Option<u64>,
    listener: UnixListener,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on a socket that only its owner may use.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub(crate) fn start(path: &Path, service: Arc<dyn Service>) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            places::make_private(folder)?;
        }
        // Whoever holds the pool's devices is the only one to listen here: a socket left over is dead.
        if UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another daemon serves this pool"));
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        let waiting = listener.try_clone()?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("control".into())
            .spawn(move || listen(&waiting, &service, &stopping))?;
        Ok(Self { path: path.into(), inode: inode_at(path), listener, stop, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // The thread waits for a connection. The path may lead nowhere by now.
        if let Err(error) = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both) {
            tracing::warn!(%error, "the control thread is left behind");
            return;
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if self.inode.is_some() && inode_at(&self.path) == self.inode {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Answers until it is told to stop, and then ends with the last answer.
fn listen(listener: &UnixListener, service: &Arc<dyn Service>, stop: &AtomicBool) {
    let mut answering: Vec<JoinHandle<()>> = Vec::new();
    for stream in listener.incoming() {
        if stop.load(Ordering::Acquire) {
            break;
        }
        let Ok(stream) = stream else { continue };
        answering.retain(|thread| !thread.is_finished());
        let service = Arc::clone(service);
        let serve = move || {
            if let Err(error) = answer(&stream, &*service) {
                tracing::warn!(%error, "a control request failed");
            }
        };
        // What takes long must not keep others from asking how it is going.
        if answering.len() >= AT_ONCE_MAX {
            serve();
            continue;
        }
        match std::thread::Builder::new().name("control-answer".into()).spawn(serve) {
            Ok(thread) => answering.push(thread),
            Err(error) => tracing::warn!(%error, "a control request could not be answered"),
        }
    }
    for thread in answering {
        let _ = thread.join();
    }
}

fn inode_at(path: &Path) -> Option<u64> {
    std::fs::symlink_metadata(path).ok().map(|found| found.ino())
}

fn bytes_of(digits: &str) -> Result<PathBuf, String> {
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Option<Vec<u8>> = digits.as_bytes().chunks(2).map(byte).collect();
    let bytes = bytes.filter(|bytes| !bytes.is_empty()).ok_or("that is no path in hexadecimal digits")?;
    Ok(PathBuf::from(std::ffi::OsString::from_vec(bytes)))
}

fn age(text: &str) -> Result<Duration, String> {
    text.parse().map(Duration::from_secs).map_err(|_| format!("'{text}' is not a number of seconds"))
}

fn answer(stream: &UnixStream, service: &dyn Service) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let request = http::read(stream)?;
    let mut words = request.first_line.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let outcome = match (method, path) {
        ("GET", "/v1/status") => Ok(service.status()),
        ("GET", "/v1/usage") => service.usage(),
        ("GET", "/v1/clean") => service.cleaning(),
        ("POST", path) if path.starts_with(CLEAN) => service.clean(&path[CLEAN.len()..]).map(|()| json!({})),
        ("GET", "/v1/scrub") => service.scrubbing(),
        ("POST", path) if path.starts_with(SCRUB) => service.scrub(&path[SCRUB.len()..]).map(|()| json!({})),
        ("GET", "/v1/damage") => service.damage(),
        ("GET", "/v1/damage/mended") => service.mended(),
        ("GET", "/v1/damage/heal") => Ok(service.healing()),
        ("POST", path) if path.starts_with(HEAL) => {
            bytes_of(&path[HEAL.len()..]).and_then(|path| service.heal_from(&path))
        }
        ("GET", "/v1/disks") => service.disks(),
        ("POST", "/v1/disks/probe") => Ok(service.probe_disks()),
        ("POST", path) if path.starts_with(DISKS) && path.contains("/health/") => {
            let (device, health) = path[DISKS.len()..].split_once("/health/").unwrap_or_default();
            service.set_disk_health(device, health)
        }
        ("GET", "/v1/trim") => Ok(service.trimming()),
        ("POST", "/v1/trim") => service.trim().map(|()| json!({})),
        ("GET", "/v1/orphans") => service.orphans(),
        ("GET", "/v1/policy") => service.policies(),
        ("GET", path) if path.starts_with(POLICY) => service.policy(&path[POLICY.len()..]),
        ("POST", path) if path.starts_with(POLICY) => {
            let (inode, order) = path[POLICY.len()..].split_once('/').unwrap_or_default();
            service.set_policy(inode, order)
        }
        ("POST", path) if path.starts_with(CLEAN_ORPHANS) => {
            age(&path[CLEAN_ORPHANS.len()..]).and_then(|age| service.clean_orphans(age, false))
        }
        ("POST", path) if path.starts_with(TRY_ORPHANS) => {
            age(&path[TRY_ORPHANS.len()..]).and_then(|age| service.clean_orphans(age, true))
        }
        ("POST", "/v1/sync") => service.sync().map(|()| json!({})),
        ("POST", "/v1/checkpoint") => service.checkpoint().map(|()| json!({})),
        _ => {
            let body = json!({ "status": 404, "title": format!("there is no {method} {path}") });
            return http::write(stream, "HTTP/1.1 404 Not Found", &body.to_string());
        }
    };
    match outcome {
        Ok(body) => http::write(stream, "HTTP/1.1 200 OK", &body.to_string()),
        Err(message) => {
            let body = json!({ "status": 500, "title": message });
            http::write(stream, "HTTP/1.1 500 Internal Server Error", &body.to_string())
        }
    }
}
