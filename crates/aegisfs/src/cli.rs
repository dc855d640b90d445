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
    /// Make a filesystem on a block device, a partition or an image file.
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
    /// Verify everything on a device that is not mounted.
    #[command(visible_alias = "fsck")]
    Check {
        /// The device or image file, LABEL= or UUID=.
        device: PathBuf,
    },
    /// Show what stands on a device that is not mounted, for whoever debugs or writes another reader.
    Inspect(InspectArgs),
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
    /// The device or image file, LABEL= or UUID=.
    pub(crate) device: PathBuf,
}

/// Arguments of `format`.
#[derive(Debug, Args)]
pub(crate) struct FormatArgs {
    /// Create an image file of this size (1G is 1 GiB, 1GB is 10^9 bytes).
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
    /// The device, partition or image file.
    pub(crate) device: PathBuf,
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
    /// The device, partition or image file, LABEL= or UUID=; for -o remount it may be left out.
    pub(crate) device: PathBuf,
    /// The directory to mount on.
    pub(crate) mount: Option<PathBuf>,
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
