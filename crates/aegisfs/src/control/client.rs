//! The command line's end of the socket.

use super::http;
use crate::failure::{Exit, Failure};
use crate::{output, places};
use serde_json::Value;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Work that a command waits for may take long; a daemon that hangs must not hang the command for ever.
const PATIENCE: Duration = Duration::from_secs(600);

const LONG_PATIENCE: Duration = Duration::from_secs(30 * 86_400);

/// How it is doing a daemon says at once, if it can.
const STATUS_PATIENCE: Duration = Duration::from_secs(5);

/// A live daemon.
#[derive(Debug)]
pub(crate) struct Client {
    socket: PathBuf,
    /// What it said of itself.
    pub(crate) status: Value,
}

impl Client {
    fn open(socket: &Path) -> Option<Self> {
        let mut client = Self { socket: socket.into(), status: Value::Null };
        client.status = client.ask("GET", "/v1/status", STATUS_PATIENCE).ok()?;
        Some(client)
    }

    /// Asks the daemon.
    ///
    /// # Errors
    /// When it does not answer, or says why not.
    pub(crate) fn call(&self, method: &str, path: &str) -> Result<Value, Failure> {
        self.ask(method, path, PATIENCE)
    }

    /// The same for what may take days; whoever calls asks meanwhile how far it is.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub(crate) fn call_long(&self, method: &str, path: &str) -> Result<Value, Failure> {
        self.ask(method, path, LONG_PATIENCE)
    }

    fn ask(&self, method: &str, path: &str, patience: Duration) -> Result<Value, Failure> {
        let gone = |error: std::io::Error| {
            Failure::new("E_DAEMON", Exit::Failed, format!("the daemon does not answer: {error}"))
        };
        let stream = UnixStream::connect(&self.socket).map_err(gone)?;
        stream.set_read_timeout(Some(patience)).map_err(gone)?;
        http::write(&stream, &format!("{method} {path} HTTP/1.1"), "").map_err(gone)?;
        let answer = http::read(&stream).map_err(gone)?;
        let body: Value = serde_json::from_str(&answer.body).unwrap_or_default();
        if answer.first_line.contains(" 200 ") {
            return Ok(body);
        }
        let title = body["title"].as_str().unwrap_or("it gave no reason").to_owned();
        Err(Failure::new("E_DAEMON", Exit::Failed, title))
    }
}

/// Live daemons that serve a mount point or a device; all when neither is given.
pub(crate) fn find(target: Option<&Path>) -> Vec<Client> {
    let wanted = target.map(places::canonical);
    let serves = |client: &Client| {
        wanted.as_ref().is_none_or(|wanted| {
            let devices = client.status["devices"].as_array().into_iter().flatten();
            output::names_path(&client.status, "mount", wanted)
                || devices.into_iter().any(|device| output::names_path(device, "path", wanted))
        })
    };
    places::sockets().iter().filter_map(|socket| Client::open(socket)).filter(serves).collect()
}
