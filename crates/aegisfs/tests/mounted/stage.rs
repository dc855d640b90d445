//! Images, mounts and commands that clean up after themselves.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

/// Seconds that a command may take.
const PATIENCE: &str = "120";

/// Whether this machine can mount; says so if not.
pub(crate) fn can_mount(test: &str) -> bool {
    let root = Command::new("id").arg("-u").output().is_ok_and(|out| out.stdout == b"0\n");
    let fuse = Path::new("/dev/fuse").exists();
    if !(root && fuse) {
        println!("SKIPPED: {test}: needs root and /dev/fuse");
    }
    root && fuse
}

/// Runs a command under a time limit.
pub(crate) fn run(program: &str, args: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command.arg(PATIENCE).arg(program).args(args);
    let out = command.output().expect("timeout can be run");
    assert_ne!(out.status.code(), Some(124), "{program} {args:?} took longer than {PATIENCE} s");
    out
}

/// Runs a command that must succeed, and returns what it printed.
pub(crate) fn must(program: &str, args: &[&str]) -> String {
    let out = run(program, args);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(out.status.success(), "{program} {args:?}: {}{}", text(&out.stdout), text(&out.stderr));
    text(&out.stdout)
}

/// Runs a shell line that must succeed.
pub(crate) fn shell(line: &str) -> String {
    must("bash", &["-c", line])
}

/// The program under test.
pub(crate) const AEGISFS: &str = env!("CARGO_BIN_EXE_aegisfs");

/// Runs the program; returns its exit code and what it printed on both streams.
pub(crate) fn aegisfs(args: &[&str]) -> (i32, String) {
    let out = run(AEGISFS, args);
    let text = [out.stdout, out.stderr].concat();
    (out.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned())
}

/// A device and a mount point in a folder of their own.
pub(crate) struct Stage {
    folder: TempDir,
    device: String,
    loop_device: Option<String>,
}

impl Stage {
    /// A formatted image file.
    pub(crate) fn image(size: &str) -> Self {
        let stage = Self::empty();
        must(AEGISFS, &["format", "--size", size, &stage.device]);
        stage
    }

    /// A folder for an image file that is not there yet.
    pub(crate) fn empty() -> Self {
        let folder = tempfile::tempdir().expect("a folder for the test");
        std::fs::create_dir(folder.path().join("mnt")).expect("a mount point");
        let device = folder.path().join("disk.img").to_string_lossy().into_owned();
        Self { folder, device, loop_device: None }
    }

    /// A formatted loop device.
    pub(crate) fn block(size: &str) -> Self {
        let mut stage = Self::empty();
        must("truncate", &["-s", size, &stage.device]);
        let device = must("losetup", &["--find", "--show", &stage.device]).trim().to_owned();
        stage.loop_device = Some(device.clone());
        stage.device = device;
        must(AEGISFS, &["format", "--yes", &stage.device]);
        stage
    }

    pub(crate) fn device(&self) -> &str {
        &self.device
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_string_lossy().into_owned()
    }

    pub(crate) fn mnt(&self) -> String {
        self.path("mnt")
    }

    /// A path below the mount point.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join("mnt").join(name)
    }

    pub(crate) fn mount(&self) {
        self.mount_with("defaults");
    }

    pub(crate) fn mount_with(&self, options: &str) {
        must(AEGISFS, &["mount", "-o", options, &self.device, &self.mnt()]);
    }

    /// The daemon's process.
    pub(crate) fn pid(&self) -> u32 {
        self.json("status")["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("a process number")
    }

    pub(crate) fn umount(&self) {
        must(AEGISFS, &["umount", &self.mnt()]);
    }

    pub(crate) fn sync(&self) {
        must(AEGISFS, &["sync", &self.mnt()]);
    }

    pub(crate) fn check(&self) {
        let (code, text) = aegisfs(&["check", &self.device]);
        assert_eq!(code, 0, "{text}");
    }

    pub(crate) fn json(&self, verb: &str) -> Value {
        let text = must(AEGISFS, &["--json", verb, &self.mnt()]);
        serde_json::from_str(&text).expect("one JSON object")
    }

    /// Ends the daemon without a warning, as a crash of it would.
    pub(crate) fn kill(&self) {
        let pid = self.json("status")["pid"].to_string();
        must("kill", &["-9", &pid]);
        shell(&format!(
            "for n in $(seq 100); do kill -0 {pid} 2>/dev/null || exit 0; sleep 0.05; done; exit 1"
        ));
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Whatever state the test left: the mount goes first, which ends the daemon.
        let _ = run("umount", &["-l", &self.mnt()]);
        let waiting = format!(
            "for n in $(seq 200); do fuser -s {} 2>/dev/null || exit 0; sleep 0.05; done",
            self.device
        );
        let _ = run("bash", &["-c", &waiting]);
        if let Some(device) = &self.loop_device {
            let _ = run("losetup", &["-d", device]);
        }
    }
}

/// An ext4 in an image file beside a stage's own, for comparing.
pub(crate) struct Ext4 {
    path: String,
}

impl Ext4 {
    pub(crate) fn new(stage: &Stage) -> Self {
        let (image, path) = (stage.path("ext4.img"), stage.path("ext4"));
        std::fs::create_dir(&path).expect("a mount point");
        must("truncate", &["-s", "128M", &image]);
        must("mkfs.ext4", &["-q", "-F", &image]);
        let ext4 = Self { path };
        must("mount", &["-o", "loop", &image, &ext4.path]);
        ext4
    }

    pub(crate) fn path(&self) -> String {
        self.path.clone()
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        let _ = run("umount", &["-l", &self.path]);
    }
}

/// Runs a script of Python in an empty folder of the mount, and in one of ext4: it prints the same on both.
pub(crate) fn agree_with_ext4(stage: &Stage, ext4: &Ext4, script: &str, words: &[&str]) {
    let [expected, found] = [ext4.path(), stage.mnt()].map(|root| {
        let folder = format!("{root}/agree");
        std::fs::create_dir(&folder).expect("a new folder");
        let printed = must("python3", &[&["-c", script, &folder], words].concat());
        must("rm", &["-rf", &folder]);
        printed
    });
    let difference = expected.lines().zip(found.lines()).find(|(theirs, ours)| theirs != ours);
    assert!(difference.is_none() && expected.len() == found.len(), "ext4 and ours: {difference:?}");
    assert!(expected.lines().count() > 10, "it prints too little: {expected}");
}

/// Lets mount(8) find the program when it remounts; one test at a time has it.
pub(crate) struct RemountHelper {
    installed: bool,
    _turn: std::fs::File,
}

impl RemountHelper {
    /// Where mount(8) looks.
    const PATH: &str = "/sbin/mount.fuse.aegisfs";

    pub(crate) fn install() -> Self {
        let turn = std::fs::File::create("/run/aegisfs-test-remount.lock").expect("a lock of the tests");
        turn.lock().expect("a turn");
        // A test that was killed leaves one that leads nowhere, or to its own program.
        let left = std::fs::symlink_metadata(Self::PATH).is_ok_and(|found| found.is_symlink());
        let packaged = std::fs::read_link(Self::PATH).is_ok_and(|to| to.starts_with("/usr"));
        if left && !packaged {
            std::fs::remove_file(Self::PATH).expect("the link of an earlier test goes");
        }
        let installed = std::os::unix::fs::symlink(AEGISFS, Self::PATH).is_ok();
        Self { installed, _turn: turn }
    }
}

impl Drop for RemountHelper {
    fn drop(&mut self) {
        if self.installed {
            let _ = std::fs::remove_file(Self::PATH);
        }
    }
}
