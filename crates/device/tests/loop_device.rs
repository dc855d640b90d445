//! A loop device stands in for a disk. Needs root; says so and passes where it cannot run.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard};

use aegisfs_device::{
    BlockDevice, Device, DeviceError, ImageOptions, InUse, OpenOptions, conformance, create_image, in_use,
    open, signature,
};

const SIZE: u64 = 32 << 20;

/// The machine has few loop devices, and a look at all of them should see ours in a known state.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs a command that cannot hang for ever.
fn run(command: &[&str]) -> std::io::Result<Output> {
    Command::new("timeout").arg("60").args(command).output()
}

fn succeeds(command: &[&str]) -> bool {
    run(command).is_ok_and(|output| output.status.success())
}

/// An attached image, and a mount point on demand; both are undone on drop, panics included.
struct Loop {
    folder: tempfile::TempDir,
    device: PathBuf,
    mounted: bool,
    _turn: MutexGuard<'static, ()>,
}

impl Loop {
    fn attach(bytes: u64) -> Option<Self> {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !succeeds(&["sh", "-c", "test $(id -u) = 0"]) {
            eprintln!("skipped: loop devices need root");
            return None;
        }
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        create_image(folder.path(), &ImageOptions { bytes, reuse: false }).unwrap();
        let file = folder.path().join(aegisfs_device::IMAGE_FILE_NAME);
        let output = match run(&["losetup", "--find", "--show", file.to_str().unwrap()]) {
            Ok(output) if output.status.success() => output,
            failed => {
                eprintln!("skipped: no loop device can be attached: {failed:?}");
                return None;
            }
        };
        let device = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
        Some(Self { folder, device, mounted: false, _turn: turn })
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join(aegisfs_device::IMAGE_FILE_NAME)
    }

    fn mount(&mut self) -> Option<PathBuf> {
        let at = self.folder.path().join("mount point");
        std::fs::create_dir(&at).unwrap();
        let device = self.device.to_str().unwrap();
        if !succeeds(&["mkfs.ext4", "-q", "-F", device]) {
            eprintln!("skipped: no mkfs.ext4");
            return None;
        }
        self.mounted = succeeds(&["mount", device, at.to_str().unwrap()]);
        if !self.mounted {
            eprintln!("skipped: cannot mount");
        }
        self.mounted.then_some(at)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let device = self.device.to_str().unwrap();
        if self.mounted {
            let _ = run(&["umount", device]);
        }
        let _ = run(&["losetup", "--detach", device]);
    }
}

fn open_block(path: &Path, direct: bool) -> Result<std::sync::Arc<dyn Device>, DeviceError> {
    open(path, &OpenOptions { direct, ..OpenOptions::default() })
}

#[test]
fn block_devices() {
    let Some(disk) = Loop::attach(SIZE + 512) else { return };
    for direct in [true, false] {
        conformance::all(&|| open_block(&disk.device, direct).unwrap());
        conformance::reopening(&|| open_block(&disk.device, direct));
    }
    let device = BlockDevice::open(&disk.device, &OpenOptions::default()).unwrap();
    assert_eq!((device.bytes(), device.allocated_bytes()), (SIZE, None));
    assert!(device.direct());
    assert_eq!(in_use(&disk.device), Ok(Some(InUse::Held)));
    drop(device);
    assert_eq!(in_use(&disk.device), Ok(None));

    let reading = OpenOptions { read_only: true, ..OpenOptions::default() };
    let device = BlockDevice::open(&disk.device, &reading).unwrap();
    assert!(matches!(device.write_at(0, &[0; 4096]), Err(DeviceError::ReadOnly { .. })));
    assert!(matches!(device.discard(0, 4096), Err(DeviceError::ReadOnly { .. })));
}

#[test]
fn a_discard_reaches_the_backing_file() {
    let Some(disk) = Loop::attach(SIZE) else { return };
    let device = open_block(&disk.device, true).unwrap();
    device.write_at(0, &vec![9; SIZE as usize]).unwrap();
    device.flush().unwrap();
    device.discard(0, SIZE).unwrap();
    device.flush().unwrap();
    let mut block = [1; 4096];
    device.read_at(4096, &mut block).unwrap();
    // Not promised by the trait, but this backing can do it, so a discard that did nothing shows.
    assert_eq!(block, [0; 4096]);
}

#[test]
fn what_is_attached_or_mounted_is_refused_and_named() {
    let Some(mut disk) = Loop::attach(SIZE) else { return };
    let name = disk.device.to_str().unwrap().to_owned();
    let attached = InUse::LoopBacking { device: name.clone(), by: None };
    assert_eq!(in_use(disk.folder.path()), Ok(Some(attached.clone())));
    let refused = open_block(&disk.file(), true).map(|_| ());
    assert!(matches!(refused, Err(DeviceError::InUse { by, .. }) if by == attached));
    let refused = create_image(&disk.file(), &ImageOptions { bytes: SIZE, reuse: true });
    assert!(matches!(refused, Err(DeviceError::InUse { .. })));

    let Some(at) = disk.mount() else { return };
    let mounted = InUse::Mounted { at: at.to_str().unwrap().into(), filesystem: "ext4".into() };
    assert_eq!(in_use(&disk.device), Ok(Some(mounted.clone())));
    let refused = open_block(&disk.device, true).map(|_| ());
    assert!(matches!(refused, Err(DeviceError::InUse { by, .. }) if by == mounted));
    let through = InUse::LoopBacking { device: name, by: Some(Box::new(mounted)) };
    assert_eq!(in_use(&disk.file()), Ok(Some(through)));
}

#[test]
fn real_filesystems_are_recognised() {
    let Some(disk) = Loop::attach(512 << 20) else { return };
    let device = disk.device.to_str().unwrap();
    let makers: [(&str, &[&str]); 8] = [
        ("ext2/3/4", &["mkfs.ext4", "-q", "-F", device]),
        ("xfs", &["mkfs.xfs", "-q", "-f", device]),
        ("btrfs", &["mkfs.btrfs", "-q", "-f", device]),
        ("vfat", &["mkfs.vfat", device]),
        ("f2fs", &["mkfs.f2fs", "-q", "-f", device]),
        ("ntfs", &["mkfs.ntfs", "-q", "-Q", "-F", device]),
        ("swap", &["mkswap", "-f", device]),
        (
            "GPT partition table",
            &["sh", "-c", "echo label: gpt | sfdisk -q -w never --no-reread \"$0\"", device],
        ),
    ];
    for (name, command) in makers {
        let empty = open_block(&disk.device, true).unwrap();
        empty.discard(0, empty.bytes()).unwrap();
        assert_eq!(signature::probe(&*empty), Ok(None), "before {name}");
        drop(empty);
        if !succeeds(command) {
            eprintln!("skipped in part: {} does not work here", command[0]);
            continue;
        }
        let found = signature::probe(&*open_block(&disk.device, true).unwrap()).unwrap();
        assert_eq!(found.map(|found| found.name), Some(name));
    }
}
