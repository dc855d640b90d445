//! What is measured: mounts on loop devices of one disk, set up alike and taken down whatever happens.

use crate::shell;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

/// What mounting sets going in the background is over by then.
const SETTLE: Duration = Duration::from_millis(200);
/// Where the kernel tells them, among a block device's numbers; always in sectors of this size.
const SECTORS_WRITTEN: usize = 6;
const SECTOR_BYTES: u64 = 512;

/// Names of pools of several devices.
pub(super) const POOLS: [&str; 3] = ["single", "mirror", "coded"];

/// What stands behind a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Aegis,
    Ext4,
    /// With compress=zstd:1.
    Btrfs,
    /// A filesystem that keeps nothing, on the same transport.
    Null,
    /// The bare loop device.
    Raw,
}

impl Kind {
    pub(super) const ALL: [Self; 5] = [Self::Aegis, Self::Ext4, Self::Btrfs, Self::Null, Self::Raw];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Aegis => "aegisfs",
            Self::Ext4 => "ext4",
            Self::Btrfs => "btrfs",
            Self::Null => "null",
            Self::Raw => "raw",
        }
    }

    /// Why it cannot be measured on this machine.
    pub(super) fn missing(self) -> Option<&'static str> {
        let kernel_has = |name: &str| {
            fs::read_to_string("/proc/filesystems")
                .is_ok_and(|list| list.lines().any(|line| line.trim() == name))
        };
        match self {
            Self::Btrfs if !shell::is_installed("mkfs.btrfs") => Some("mkfs.btrfs is not installed"),
            Self::Btrfs if !kernel_has("btrfs") => Some("the kernel has no btrfs"),
            _ => None,
        }
    }
}

/// A filesystem that is mounted, or a device.
pub(super) struct Target {
    pub(super) kind: Kind,
    /// Where files go; of a bare device, the device.
    pub(super) place: PathBuf,
    program: String,
    /// One, or those of a pool.
    images: Vec<PathBuf>,
    /// What AegisFS is told at formatting.
    redundancy: Option<&'static str>,
    room: Room,
    loop_devices: Vec<String>,
    null: Option<Child>,
}

/// Where an image's bytes stand on the disk that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    /// Wherever there is room when they are first written, which the disk's own filesystem has to note then.
    Sparse,
    /// They have a place already, as on a disk.
    Written,
}

impl Target {
    /// A new filesystem on a new image.
    fn set_up(kind: Kind, ground: &Ground, bytes: u64, room: Room) -> Result<Self> {
        let image = ground.images.join(format!("{}.img", kind.name()));
        Self::begin(kind, ground, kind.name(), vec![image], None, bytes, room)
    }

    fn begin(
        kind: Kind,
        ground: &Ground,
        name: &str,
        images: Vec<PathBuf>,
        redundancy: Option<&'static str>,
        bytes: u64,
        room: Room,
    ) -> Result<Self> {
        let mut target = Self {
            kind,
            place: ground.mounts.join(name),
            program: ground.program.clone(),
            images,
            redundancy,
            room,
            loop_devices: Vec::new(),
            null: None,
        };
        fs::create_dir_all(&target.place)?;
        target.start(bytes)?;
        Ok(target)
    }

    fn start(&mut self, bytes: u64) -> Result<()> {
        if self.kind == Kind::Null {
            return self.serve_null();
        }
        for image in &self.images {
            let _ = fs::remove_file(image);
            let file = fs::File::create(image)?;
            file.set_len(bytes)?;
            if self.room == Room::Written {
                write_zeros(&file, bytes)?;
            }
            self.loop_devices.push(attach(image)?);
        }
        let device = self.device()?.to_owned();
        match self.kind {
            Kind::Aegis => {
                let devices = self.loop_devices.iter().map(String::as_str);
                let redundancy = self.redundancy.iter().flat_map(|word| ["--redundancy", word]);
                let line = [self.program.as_str(), "format", "--yes"].into_iter();
                run(60, &line.chain(redundancy).chain(devices).collect::<Vec<_>>())?
            }
            Kind::Ext4 => run(60, &["mkfs.ext4", "-q", "-F", "-E", "nodiscard", &device])?,
            Kind::Btrfs => run(60, &["mkfs.btrfs", "--quiet", "--force", &device])?,
            Kind::Raw => {
                self.place = device.into();
                return Ok(());
            }
            Kind::Null => return Ok(()),
        };
        self.mount()
    }

    /// Mounts without the first of several devices.
    pub(super) fn lose_first(&mut self) -> Result<()> {
        self.sync()?;
        self.unmount()?;
        let lost = self.loop_devices.remove(0);
        run(60, &["losetup", "--detach", &lost])?;
        self.mount()
    }

    /// Has a scrub look at everything as fast as it can; returns the bytes that it read.
    pub(super) fn scrub(&self) -> Result<f64> {
        run(600, &[&self.program, "scrub", "start", "--wait", "--intensity", "high", &self.mnt()])?;
        let text = run(60, &[&self.program, "scrub", "status", "--json", &self.mnt()])?;
        let status: Value = serde_json::from_str(&text)?;
        status["bytes"].as_f64().context("a scrub tells what it read")
    }

    /// Starts a scrub of such an intensity.
    pub(super) fn start_scrub(&self, intensity: &str) -> Result<()> {
        run(60, &[&self.program, "scrub", "start", "--intensity", intensity, &self.mnt()]).map(|_| ())
    }

    /// Ends one that goes on.
    pub(super) fn end_scrub(&self) -> Result<()> {
        run(60, &[&self.program, "scrub", "cancel", &self.mnt()]).map(|_| ())
    }

    fn serve_null(&mut self) -> Result<()> {
        let way = if has_rings() { ["--io-uring"].as_slice() } else { &[] };
        let mnt = self.mnt();
        let line = [&[self.program.as_str(), "null-mount"], way, &[&mnt]].concat();
        let child = shell::command(&line).spawn();
        self.null = Some(child.context("the null filesystem cannot be started")?);
        for _ in 0..100 {
            if self.is_mounted() && fs::metadata(&self.place).is_ok() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        bail!("the null filesystem does not appear");
    }

    fn mount(&self) -> Result<()> {
        let device = self.device()?;
        match self.kind {
            Kind::Aegis => {
                let options = if has_rings() { "io_uring=on" } else { "defaults" };
                run(60, &[&self.program, "mount", "-o", options, device, &self.mnt()]).map(|_| ())
            }
            Kind::Ext4 => run(60, &["mount", "-t", "ext4", device, &self.mnt()]).map(|_| ()),
            Kind::Btrfs => {
                run(60, &["mount", "-t", "btrfs", "-o", "compress=zstd:1", device, &self.mnt()]).map(|_| ())
            }
            Kind::Null | Kind::Raw => Ok(()),
        }
    }

    fn unmount(&self) -> Result<()> {
        match self.kind {
            Kind::Aegis => run(300, &[&self.program, "umount", &self.mnt()]).map(|_| ()),
            Kind::Raw => Ok(()),
            _ => run(300, &["umount", &self.mnt()]).map(|_| ()),
        }
    }

    /// Makes everything written durable, as an operator would.
    pub(super) fn sync(&self) -> Result<()> {
        match self.kind {
            Kind::Aegis => run(300, &[&self.program, "sync", &self.mnt()]).map(|_| ()),
            Kind::Ext4 | Kind::Btrfs => run(300, &["sync", "--file-system", &self.mnt()]).map(|_| ()),
            Kind::Null | Kind::Raw => Ok(()),
        }
    }

    /// Syncs and drops what the kernel has cached, on every target alike.
    pub(super) fn settle(&self) -> Result<()> {
        self.sync()?;
        fs::write("/proc/sys/vm/drop_caches", "3")?;
        Ok(())
    }

    /// Mounts again too, so that nothing is cached anywhere. The null filesystem would lose its names.
    pub(super) fn chill(&self) -> Result<()> {
        self.sync()?;
        if !matches!(self.kind, Kind::Null | Kind::Raw) {
            self.unmount()?;
            self.mount()?;
        }
        fs::write("/proc/sys/vm/drop_caches", "3")?;
        std::thread::sleep(SETTLE);
        Ok(())
    }

    /// Unmounts AegisFS and has it verify everything on its device.
    pub(super) fn check(&self) -> Result<()> {
        self.unmount()?;
        let outcome = run(600, &[&self.program, "check", self.device()?]).map(|_| ());
        self.mount()?;
        outcome
    }

    /// What the daemon of AegisFS tells about itself.
    pub(super) fn status(&self) -> Result<Value> {
        let text = run(60, &[&self.program, "status", "--json", &self.mnt()])?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Where the space of AegisFS is.
    pub(super) fn usage(&self) -> Result<Value> {
        let text = run(60, &[&self.program, "usage", "--json", &self.mnt()])?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Tells the cleaner of AegisFS something, and returns what it is at.
    pub(super) fn clean(&self, order: &str) -> Result<Value> {
        Ok(serde_json::from_str(&run(60, &[&self.program, "clean", "--json", order, &self.mnt()])?)?)
    }

    /// Has AegisFS clean everything; the process ends when that is done.
    pub(super) fn start_cleaning(&self, intensity: &str) -> Result<Child> {
        let mnt = self.mnt();
        let line =
            ["timeout", "120", &self.program, "clean", "run", "--json", "--intensity", intensity, &mnt];
        Ok(shell::command(&line).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
    }

    /// The daemon's process; 0 where there is none.
    pub(super) fn daemon(&self) -> Result<u64> {
        match (self.kind, &self.null) {
            (Kind::Aegis, _) => self.status()?["pid"].as_u64().context("the daemon tells its process"),
            (_, Some(child)) => Ok(child.id().into()),
            _ => Ok(0),
        }
    }

    /// Bytes in use, as df sees them.
    pub(super) fn used_bytes(&self) -> Result<u64> {
        let text = run(60, &["df", "--block-size=1", "--output=used", &self.mnt()])?;
        text.lines().last().and_then(|line| line.trim().parse().ok()).context("df prints a number")
    }

    /// Bytes that others than root can have.
    pub(super) fn free_bytes(&self) -> Result<u64> {
        let text = run(60, &["df", "--block-size=1", "--output=avail", &self.mnt()])?;
        text.lines().last().and_then(|line| line.trim().parse().ok()).context("df prints a number")
    }

    /// What the loop device was given to write since it was made.
    pub(super) fn device_written_bytes(&self) -> Result<u64> {
        let device = Path::new(self.device()?).file_name().context("a device has a name")?;
        let told = fs::read_to_string(Path::new("/sys/block").join(device).join("stat"))?;
        let sectors: u64 =
            told.split_whitespace().nth(SECTORS_WRITTEN).context("it counts sectors")?.parse()?;
        Ok(sectors * SECTOR_BYTES)
    }

    fn device(&self) -> Result<&str> {
        self.loop_devices.first().map(String::as_str).context("it has a device")
    }

    fn mnt(&self) -> String {
        self.place.to_string_lossy().into_owned()
    }

    fn is_mounted(&self) -> bool {
        is_mounted(&self.mnt())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if self.kind != Kind::Raw && self.is_mounted() {
            let _ = self.unmount();
            if self.is_mounted() {
                let _ = run(60, &["umount", "--lazy", &self.mnt()]);
            }
        }
        if let Some(mut child) = self.null.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        for device in &self.loop_devices {
            let _ = run(60, &["losetup", "--detach", device]);
        }
        self.images.iter().for_each(|image| drop(fs::remove_file(image)));
    }
}

/// Where images and mount points are; dropping it removes them.
pub(super) struct Ground {
    /// On the disk that is measured.
    pub(super) images: PathBuf,
    /// Where other users may look, too.
    pub(super) mounts: PathBuf,
    program: String,
}

impl Ground {
    /// Makes the folders, after what a run that was killed has left.
    pub(super) fn prepare() -> Result<Self> {
        let ground = Self {
            images: shell::target().join("bench"),
            mounts: std::env::temp_dir().join("aegisfs-bench"),
            program: shell::target().join("release/aegisfs").to_string_lossy().into_owned(),
        };
        ground.clear();
        fs::create_dir_all(&ground.images)?;
        fs::create_dir_all(&ground.mounts)?;
        Ok(ground)
    }

    /// A new target of each kind that this machine can have, on sparse images.
    pub(super) fn targets(&self, kinds: &[Kind], bytes: u64) -> Result<Vec<Target>> {
        self.targets_in(kinds, bytes, Room::Sparse)
    }

    /// The same on images that were written once, for rows of syncs: with sparse ones these wait until the disk's own
    /// filesystem has noted what it allotted meanwhile, above all to a filesystem that writes nothing in place.
    pub(super) fn targets_with_room(&self, kinds: &[Kind], bytes: u64) -> Result<Vec<Target>> {
        self.targets_in(kinds, bytes, Room::Written)
    }

    fn targets_in(&self, kinds: &[Kind], bytes: u64, room: Room) -> Result<Vec<Target>> {
        let there = kinds.iter().filter(|kind| kind.missing().is_none());
        let targets = there.map(|kind| Target::set_up(*kind, self, bytes, room)).collect();
        std::thread::sleep(SETTLE);
        targets
    }

    /// AegisFS on several devices of so many bytes each.
    pub(super) fn pool(
        &self,
        name: &str,
        redundancy: &'static str,
        count: usize,
        bytes: u64,
    ) -> Result<Target> {
        let images = (0..count).map(|n| self.images.join(format!("{name}-{n}.img"))).collect();
        Target::begin(Kind::Aegis, self, name, images, Some(redundancy), bytes, Room::Sparse)
    }

    /// The same target with a new filesystem.
    pub(super) fn renew(&self, target: &mut Target, bytes: u64) -> Result<()> {
        if target.is_mounted() {
            target.unmount()?;
        }
        for device in target.loop_devices.drain(..) {
            run(60, &["losetup", "--detach", &device])?;
        }
        if let Some(mut child) = target.null.take() {
            child.wait()?;
        }
        target.start(bytes)?;
        std::thread::sleep(SETTLE);
        Ok(())
    }

    fn clear(&self) {
        let names = || Kind::ALL.iter().map(|kind| kind.name()).chain(POOLS);
        for name in names() {
            let mnt = self.mounts.join(name).to_string_lossy().into_owned();
            if is_mounted(&mnt) {
                stop_server(&Path::new(&mnt).join("postgres/postmaster.pid"));
                let _ = run(60, &["umount", "--lazy", &mnt]);
            }
        }
        let loops = run(60, &["losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE"]);
        for line in loops.unwrap_or_default().lines() {
            let ours =
                line.split_once(' ').filter(|(_, file)| Path::new(file.trim()).starts_with(&self.images));
            if let Some((device, _)) = ours {
                let _ = run(60, &["losetup", "--detach", device]);
            }
        }
        let _ = fs::remove_dir_all(&self.images);
        // One empty folder per target, unless something is still mounted there: never a tree.
        for name in names() {
            let _ = fs::remove_dir(self.mounts.join(name));
        }
        let _ = fs::remove_dir_all(self.mounts.join("postgres"));
        let _ = fs::remove_dir(&self.mounts);
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A database server that a killed run left would hold its filesystem for ever.
fn stop_server(pid_file: &Path) {
    let Ok(text) = fs::read_to_string(pid_file) else { return };
    let Some(id) = text.lines().next().and_then(|line| line.trim().parse::<u32>().ok()) else { return };
    let name = fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
    if name.trim() == "postgres" {
        let _ = run(10, &["kill", "-QUIT", &id.to_string()]);
        std::thread::sleep(Duration::from_secs(2));
    }
}

/// Whether requests can come through io_uring here; root lets the kernel do it. `AEGISFS_BENCH_IO_URING=off`
/// measures the other way.
pub(super) fn has_rings() -> bool {
    let unwanted = std::env::var("AEGISFS_BENCH_IO_URING").is_ok_and(|word| word == "off");
    !unwanted && fs::write(crate::programs::RINGS_SWITCH, "Y").is_ok()
}

/// A loop device of an image.
fn attach(image: &Path) -> Result<String> {
    let image = image.to_string_lossy();
    let device = shell::output(&["losetup", "--find", "--show", "--direct-io=on", &image])?;
    Ok(device.trim().to_owned())
}

/// Zeros over a whole file, on stable storage.
fn write_zeros(mut file: &fs::File, bytes: u64) -> Result<()> {
    let zeros = vec![0; 1 << 20];
    for from in (0..bytes).step_by(zeros.len()) {
        file.write_all(&zeros[..zeros.len().min((bytes - from) as usize)])?;
    }
    Ok(file.sync_all()?)
}

fn is_mounted(mnt: &str) -> bool {
    let place = format!(" {mnt} ");
    fs::read_to_string("/proc/self/mountinfo").is_ok_and(|list| list.contains(&place))
}

/// Runs a program for so many seconds at most, and returns what it printed.
pub(super) fn run(seconds: u32, line: &[&str]) -> Result<String> {
    let limit = seconds.to_string();
    shell::output(&[["timeout", "--kill-after=10", &limit].as_slice(), line].concat())
}
