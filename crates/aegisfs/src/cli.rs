//! The command line.

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// One filesystem from many devices: log-structured, deduplicating, compressing, checksummed.
#[derive(Debug, Parser)]
#[command(name = "aegisfs", version, propagate_version = true)]
pub(crate) struct Cli {
    /// Answer with one JSON object.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a filesystem on block devices, partitions or image files.
    #[command(visible_alias = "mkfs")]
    Format(FormatArgs),
    /// Mount a filesystem; returns once it answers.
    Mount(MountArgs),
    /// Unmount; returns once everything is on the device.
    #[command(visible_alias = "unmount")]
    Umount(UmountArgs),
    /// Make everything written through a mount durable.
    Sync {
        /// The mount point.
        mount: PathBuf,
    },
    /// What is mounted, and how it is doing.
    Status {
        /// A mount point, device, LABEL= or UUID=; all mounts when not given.
        target: Option<PathBuf>,
    },
    /// Where the space is.
    Usage {
        /// The mount point.
        mount: PathBuf,
    },
    /// Give back the room of what was deleted or overwritten among what is still used.
    #[command(visible_alias = "gc", subcommand)]
    Clean(CleanCommand),
    /// Read everything on every device, and write anew what rotted from what did not.
    #[command(visible_alias = "scrub-daemon", subcommand)]
    Scrub(ScrubCommand),
    /// The same as scrub schedule set.
    #[command(hide = true)]
    ScrubSchedule {
        /// nightly, weekly, monthly, or a time such as 7d.
        #[arg(long)]
        frequency: String,
        /// How much it may take from those who read and write meanwhile.
        #[arg(long, value_parser = ["low", "medium", "high"], default_value = "low")]
        intensity: String,
        /// The mount point.
        mount: PathBuf,
    },
    /// Show what cannot be read and nothing here can mend, and mend it with bytes from elsewhere.
    #[command(subcommand)]
    Damage(DamageCommand),
    /// How files and directories are stored, where that is not as the pool is by itself.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// How each device is doing, and how far it is trusted.
    #[command(subcommand)]
    Disk(DiskCommand),
    /// The same as disk list.
    #[command(hide = true)]
    Health {
        /// The mount point.
        mount: PathBuf,
    },
    /// The same as disk probe.
    #[command(hide = true)]
    ProbeDisks {
        /// The mount point.
        mount: PathBuf,
    },
    /// The same as disk set-health.
    #[command(hide = true)]
    SetDiskHealth {
        /// The device's number, path or UUID.
        disk: String,
        /// Its health from now on.
        #[arg(ignore_case = true, value_parser = HEALTH)]
        health: String,
        /// The mount point.
        mount: PathBuf,
    },
    /// Have the device forget what freed slots held, so that an image file is small again and a disk knows its free room.
    #[command(subcommand)]
    Trim(TrimCommand),
    /// Find what takes room although nothing refers to it, and give it back. Normally there is none.
    #[command(subcommand)]
    Orphans(OrphansCommand),
    /// The same as orphans list.
    #[command(hide = true)]
    DetectOrphans {
        /// The mount point.
        mount: PathBuf,
    },
    /// The same as orphans clean.
    #[command(hide = true)]
    CleanupOrphans(OrphansCleanArgs),
    /// The same as orphans stats.
    #[command(hide = true)]
    OrphanStats {
        /// The mount point.
        mount: PathBuf,
    },
    /// Have the kernel write back what it holds of a file; a daemon cannot wait for its own mount.
    #[command(hide = true)]
    WriteBack {
        /// The mount point.
        mount: PathBuf,
        /// The file's inode.
        node: u64,
        /// Its generation.
        generation: u64,
    },
    /// Serve a filesystem that keeps nothing, to measure what the way through the kernel costs.
    #[command(hide = true)]
    NullMount {
        /// Through io_uring.
        #[arg(long)]
        io_uring: bool,
        /// The mount point.
        mount: PathBuf,
    },
    /// Verify everything on a pool that is not mounted.
    #[command(visible_alias = "fsck")]
    Check {
        /// Only look whether everything is where it should be: metadata, and the headers and directories on the devices. What
        /// these tell of is not read.
        #[arg(long)]
        shallow: bool,
        /// Any of its devices or image files, LABEL= or UUID=; the others are looked for.
        #[arg(required = true)]
        devices: Vec<PathBuf>,
    },
    /// Look for pools: on all block devices, in image files that were used here, and in those of some folders.
    Scan {
        /// Folders with image files, which are remembered.
        folders: Vec<PathBuf>,
    },
    /// Show what stands on a device that is not mounted, for whoever debugs or writes another reader.
    Inspect(InspectArgs),
}

/// What the cleaner is told.
#[derive(Debug, Subcommand)]
pub(crate) enum CleanCommand {
    /// What could be given back, and what the cleaner has done.
    Status {
        /// The mount point.
        mount: PathBuf,
    },
    /// Clean everything that gives anything back, and wait for it; it goes on when this command is interrupted.
    Run {
        /// How much it may take from those who read and write meanwhile, and from then on.
        #[arg(long, value_parser = ["low", "medium", "high"])]
        intensity: Option<String>,
        /// The mount point.
        mount: PathBuf,
    },
    /// Do nothing until told to go on. Whoever finds the device full has it cleaned all the same.
    Pause {
        /// The mount point.
        mount: PathBuf,
    },
    /// Go on.
    Resume {
        /// The mount point.
        mount: PathBuf,
    },
    /// Say how much cleaning may take from those who read and write: low, medium or high.
    Intensity {
        /// The intensity, until the mount ends; the setting clean.intensity says with which it begins.
        #[arg(value_parser = ["low", "medium", "high"])]
        intensity: String,
        /// The mount point.
        mount: PathBuf,
    },
}

/// What a scrub is told.
#[derive(Debug, Subcommand)]
pub(crate) enum ScrubCommand {
    /// Begin one; it goes on in the background, and at the next mount if this one ends before.
    Start {
        /// Only say what is damaged.
        #[arg(long)]
        dry_run: bool,
        /// Wait until it is done, and tell how far it is; it goes on when this command is interrupted.
        #[arg(long)]
        wait: bool,
        /// How much it may take from those who read and write meanwhile.
        #[arg(long, value_parser = ["low", "medium", "high"])]
        intensity: Option<String>,
        /// The mount point.
        mount: PathBuf,
    },
    /// How far it is, or what the last one found.
    Status {
        /// The mount point.
        mount: PathBuf,
    },
    /// Have it wait, also over mounts, until it is told to go on.
    Pause {
        /// The mount point.
        mount: PathBuf,
    },
    /// Go on.
    Resume {
        /// The mount point.
        mount: PathBuf,
    },
    /// End it.
    #[command(visible_alias = "stop")]
    Cancel {
        /// The mount point.
        mount: PathBuf,
    },
    /// Have scrubs begin by themselves.
    #[command(subcommand)]
    Schedule(ScheduleCommand),
    /// Say how much it may take from those who read and write, now and at later mounts.
    #[command(visible_alias = "set-intensity")]
    Intensity {
        /// The intensity: 16 MiB a second while others read or write, 64, or all there is.
        #[arg(value_parser = ["low", "medium", "high"])]
        intensity: String,
        /// The mount point.
        mount: PathBuf,
    },
}

/// What a device can be called.
const HEALTH: [&str; 5] = ["healthy", "degraded", "suspect", "draining", "failed"];

/// What is asked of devices.
#[derive(Debug, Subcommand)]
pub(crate) enum DiskCommand {
    /// Every device: how far it is trusted, whether it takes part, what it has done since it is a member, how fast it is, and
    /// what it thinks of itself (SMART, with smartctl). The command ends with code 3 if one is not as it should be.
    List {
        /// The mount point.
        mount: PathBuf,
    },
    /// Ask every device whether it answers, at places all over it. One that answers nothing is left out if the others are
    /// enough; it comes back by itself once it answers again.
    Probe {
        /// The mount point.
        mount: PathBuf,
    },
    /// Say how far a device is trusted, until something else is said. healthy: read and written. degraded: nothing new is put
    /// there as long as the others are enough for full redundancy. suspect: besides, it is read only where nothing else will
    /// do. draining: nothing new is put there at all. failed: it is left out; called anything else it is brought up to date and
    /// takes part again.
    SetHealth {
        /// The device's number, path or UUID.
        disk: String,
        /// Its health from now on.
        #[arg(ignore_case = true, value_parser = HEALTH)]
        health: String,
        /// The mount point.
        mount: PathBuf,
    },
}

/// When scrubs begin by themselves.
#[derive(Debug, Subcommand)]
pub(crate) enum ScheduleCommand {
    /// Have them begin again and again. One that was due while nothing was mounted begins with the next mount.
    Set {
        /// So long after the last one was begun (12h, 7d, 30d).
        #[arg(long, value_name = "TIME", value_parser = duration, conflicts_with = "at", required_unless_present = "at")]
        every: Option<std::time::Duration>,
        /// On certain days, in UTC: nightly, weekly (Sundays) and monthly (the first), all at 02:00;
        /// or weekdays and a time ("Sun 03:30", "Mon,Thu 22:00"), a day of the month and a time ("15 04:00"), or a time alone.
        #[arg(long, value_name = "WHEN")]
        at: Option<String>,
        /// How much it may take from those who read and write meanwhile.
        #[arg(long, value_parser = ["low", "medium", "high"], default_value = "low")]
        intensity: String,
        /// Only say what is damaged.
        #[arg(long)]
        dry_run: bool,
        /// The mount point.
        mount: PathBuf,
    },
    /// When the next one begins.
    Show {
        /// The mount point.
        mount: PathBuf,
    },
    /// Have none begin by themselves.
    Clear {
        /// The mount point.
        mount: PathBuf,
    },
}

/// What is asked of damage.
#[derive(Debug, Subcommand)]
pub(crate) enum DamageCommand {
    /// Which parts of which files cannot be read, as far as reading them or a scrub has shown. Each is tried once more; the
    /// command ends with code 4 if any is left.
    List {
        /// Show what was damaged and is mended instead: the last 256 cells and chunks, on which device each was.
        #[arg(long)]
        healed: bool,
        /// The mount point.
        mount: PathBuf,
    },
    /// Look through other files for the bytes that are lost, and write them anew: a backup, an earlier copy, whatever its
    /// files are called. What is written is what was lost, to the last bit, or nothing.
    Heal {
        /// A file, or a directory with everything under it; links are not followed.
        #[arg(long, value_name = "PATH")]
        from: PathBuf,
        /// The mount point.
        mount: PathBuf,
    },
}

/// What is asked of policies.
#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Say how a file, or a directory and everything in it, is stored from now on. What is there already is stored anew in the
    /// background, which goes on over mounts; files and directories with a policy of their own keep it.
    Set {
        /// What is said, as in redundancy=mirror:2: single, mirror:COPIES or ec:DATA+PARITY.
        #[arg(value_name = "NAME=VALUE")]
        setting: String,
        /// Wait until all of it is stored so; it goes on when this command is interrupted.
        #[arg(long)]
        wait: bool,
        /// A file or directory of a mount.
        path: PathBuf,
    },
    /// How a file or directory is stored.
    #[command(visible_alias = "show")]
    Get {
        /// A file or directory of a mount.
        path: PathBuf,
    },
    /// Have a file or directory follow the one that it is in again.
    Clear {
        /// Wait until all of it is stored so; it goes on when this command is interrupted.
        #[arg(long)]
        wait: bool,
        /// A file or directory of a mount.
        path: PathBuf,
    },
    /// How far what is there already has come to follow its policy. The command ends with code 3 if something does not get on.
    Status {
        /// The mount point.
        mount: PathBuf,
    },
}

/// What is asked of discards.
#[derive(Debug, Subcommand)]
pub(crate) enum TrimCommand {
    /// What was discarded since the mount, what waits for it, and whether the device can do it.
    Status {
        /// The mount point.
        mount: PathBuf,
    },
    /// Discard all free slots that were not since they were last written, those as well that were free before the mount,
    /// and wait for it; it goes on when this command is interrupted. What still lives among them stays: that takes
    /// `clean run` first.
    Now {
        /// The mount point.
        mount: PathBuf,
    },
}

/// What is asked of orphans.
///
/// Open segments, data on its way, files that somebody has open and slots that wait for a checkpoint are no orphans.
/// Nothing on the devices tells how old an orphan is: it is as old as the list, stats or clean of this mount that saw it
/// first, as long as all of them since have seen it too.
#[derive(Debug, Subcommand)]
pub(crate) enum OrphansCommand {
    /// Every orphan: what it is, where, how much room it takes, and when it was seen first.
    List {
        /// The mount point.
        mount: PathBuf,
    },
    /// How many orphans of each kind there are, and how much room they take.
    Stats {
        /// The mount point.
        mount: PathBuf,
    },
    /// Give back what orphans take. Each is looked at once more right before, and left alone if it is none by then.
    Clean(OrphansCleanArgs),
}

/// Arguments of `orphans clean`.
#[derive(Debug, Args)]
pub(crate) struct OrphansCleanArgs {
    /// Only those that a list, stats or clean of this mount saw first at least so long ago (90s, 15m, 24h, 7d; 0 is all):
    /// a mount that is younger than that has none.
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration)]
    pub(crate) older_than: std::time::Duration,
    /// Only say what would be cleaned.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// The mount point.
    pub(crate) mount: PathBuf,
}

fn duration(text: &str) -> Result<std::time::Duration, String> {
    aegisfs_base::units::parse_duration(text)
        .ok_or_else(|| format!("'{text}' is not a time such as 15m, 24h or 7d"))
}

/// Arguments of `inspect`.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// One line for each segment as well.
    #[arg(long, conflicts_with = "segment")]
    pub(crate) segments: bool,
    /// Only this segment: every row with the chunks in its cells, read and verified.
    #[arg(long, value_name = "NUMBER")]
    pub(crate) segment: Option<u64>,
    /// Any of the pool's devices or image files, LABEL= or UUID=; the others are looked for.
    #[arg(required = true)]
    pub(crate) devices: Vec<PathBuf>,
}

/// Arguments of `format`.
#[derive(Debug, Args)]
pub(crate) struct FormatArgs {
    /// Create image files of this size (1G is 1 GiB, 1GB is 10^9 bytes).
    #[arg(long)]
    pub(crate) size: Option<String>,
    /// A name for people.
    #[arg(long, short = 'L', default_value = "")]
    pub(crate) label: String,
    /// How new data is compressed: zstd:1 to zstd:19, lz4 or none.
    #[arg(long, default_value = "zstd:1")]
    pub(crate) compression: String,
    /// Do not ask before an AegisFS filesystem is destroyed.
    #[arg(long, short = 'y')]
    pub(crate) yes: bool,
    /// Destroy whatever is on the device.
    #[arg(long, short = 'f')]
    pub(crate) force: bool,
    /// How many devices may be lost: single, none; mirror:N, all but one of N; ec:K+M, any M. By itself mirror:2 for two or three
    /// devices, ec:K+2 from four on.
    #[arg(long, value_name = "REDUNDANCY")]
    pub(crate) redundancy: Option<String>,
    /// A device that fails together with others of the same name: a disk's enclosure or host, say. As many shards of a segment
    /// as may be lost are placed in one failure domain. May be given for each device.
    #[arg(long = "failure-domain", value_name = "DEVICE=NAME")]
    pub(crate) failure_domains: Vec<String>,
    /// The devices, partitions or image files.
    #[arg(required = true, value_name = "DEVICE")]
    pub(crate) devices: Vec<PathBuf>,
}

/// Arguments of `mount`.
#[derive(Debug, Args)]
pub(crate) struct MountArgs {
    /// Mount options, separated by commas.
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub(crate) options: Vec<String>,
    /// Stay in the foreground and serve from there.
    #[arg(long, short = 'f')]
    pub(crate) foreground: bool,
    /// Read the settings from this file instead of /etc/aegisfs/aegisfs.toml.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// A setting for this mount, such as log.sync_interval_ms=200.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub(crate) settings: Vec<String>,
    /// Any or all devices of a pool, LABEL= or UUID=, and the directory to mount on; for -o remount only the directory. Those
    /// that are not named are looked for.
    #[arg(required = true, value_name = "DEVICE... MNT")]
    pub(crate) places: Vec<PathBuf>,
}

/// Arguments of `umount`.
#[derive(Debug, Args)]
pub(crate) struct UmountArgs {
    /// Take the mount point away at once, also when it is busy. Whoever uses it goes on; the filesystem ends,
    /// and everything is on the device, when the last of them is done. This command does not wait for that.
    #[arg(long, short = 'l')]
    pub(crate) lazy: bool,
    /// The mount point.
    pub(crate) mount: PathBuf,
}
