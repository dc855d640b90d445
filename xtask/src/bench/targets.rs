//! What is measured: three mounts, set up alike and taken down whatever happens.

use crate::shell;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

const DEVICE_BYTES: &str = "8G";

/// A mounted filesystem.
pub(super) struct Target {
    pub(super) name: &'static str,
    pub(super) mount: PathBuf,
    /// Whether it gives back what was written.
    pub(super) keeps_data: bool,
    program: String,
    image: PathBuf,
    loop_device: Option<String>,
}

impl Target {
    /// Makes everything written durable, as an operator would.
    pub(super) fn sync(&self) -> Result<()> {
        match self.name {
            "aegisfs" => shell::output(&["timeout", "300", &self.program, "sync", &self.mnt()]).map(|_| ()),
            "ext4" => shell::output(&["timeout", "300", "sync", "--file-system", &self.mnt()]).map(|_| ()),
            _ => Ok(()),
        }
    }

    /// Unmounts and mounts again, and drops what the kernel has cached.
    pub(super) fn chill(&self) -> Result<()> {
        match self.name {
            "aegisfs" => {
                shell::output(&["timeout", "300", &self.program, "umount", &self.mnt()])?;
                let device = self.loop_device.as_deref().context("it has a device")?;
                shell::output(&["timeout", "60", &self.program, "mount", device, &self.mnt()])?;
            }
            "ext4" => {
                shell::output(&["timeout", "300", "umount", &self.mnt()])?;
                let device = self.loop_device.as_deref().context("it has a device")?;
                shell::output(&["timeout", "60", "mount", device, &self.mnt()])?;
            }
            _ => {}
        }
        fs::write("/proc/sys/vm/drop_caches", "3")?;
        Ok(())
    }

    fn mnt(&self) -> String {
        self.mount.to_string_lossy().into_owned()
    }
}

/// All targets; dropping them takes everything down.
pub(super) struct Targets {
    list: Vec<Target>,
}

impl Targets {
    /// Makes images, attaches them, formats and mounts.
    pub(super) fn set_up() -> Result<Self> {
        let folder = shell::root().join("target/bench");
        let program = shell::target().join("release/aegisfs").to_string_lossy().into_owned();
        let mut targets = Self { list: Vec::new() };
        for name in ["aegisfs", "ext4", "null"] {
            let mount = folder.join(format!("{name}.mnt"));
            fs::create_dir_all(&mount)?;
            let image = folder.join(format!("{name}.img"));
            let mut target = Target {
                name,
                mount,
                keeps_data: name != "null",
                program: program.clone(),
                image,
                loop_device: None,
            };
            let outcome = start(&mut target);
            targets.list.push(target);
            outcome?;
        }
        Ok(targets)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Target> {
        self.list.iter()
    }

    /// After the last row: everything on the device verifies.
    pub(super) fn verify(self) -> Result<()> {
        let target = &self.list[0];
        shell::output(&["timeout", "300", &target.program, "umount", &target.mnt()])?;
        let device = target.loop_device.clone().context("it has a device")?;
        println!("{}", shell::output(&["timeout", "600", &target.program, "check", &device])?.trim());
        Ok(())
    }
}

fn start(target: &mut Target) -> Result<()> {
    let mnt = target.mnt();
    if target.name == "null" {
        return serve_null(&target.program, &mnt, &target.mount);
    }
    let image = target.image.to_string_lossy().into_owned();
    let _ = fs::remove_file(&target.image);
    shell::run(&["truncate", "-s", DEVICE_BYTES, &image])?;
    let device = shell::output(&["losetup", "--find", "--show", "--direct-io=on", &image])?.trim().to_owned();
    target.loop_device = Some(device.clone());
    if target.name == "ext4" {
        shell::output(&["mkfs.ext4", "-q", "-F", &device])?;
        shell::output(&["mount", &device, &mnt])?;
    } else {
        shell::output(&[&target.program, "format", "--yes", &device])?;
        shell::output(&["timeout", "60", &target.program, "mount", &device, &mnt])?;
    }
    Ok(())
}

fn serve_null(program: &str, mnt: &str, mount: &Path) -> Result<()> {
    shell::command(&[program, "null-mount", mnt]).spawn().context("the null filesystem cannot be started")?;
    for _ in 0..100 {
        if fs::read_to_string("/proc/self/mountinfo")?.contains(mnt) && fs::metadata(mount).is_ok() {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    bail!("the null filesystem does not appear");
}

impl Drop for Targets {
    fn drop(&mut self) {
        for target in &self.list {
            let mounted =
                fs::read_to_string("/proc/self/mountinfo").is_ok_and(|list| list.contains(&target.mnt()));
            if mounted {
                let _ = match target.name {
                    "aegisfs" => shell::output(&["timeout", "300", &target.program, "umount", &target.mnt()]),
                    _ => shell::output(&["timeout", "300", "umount", &target.mnt()]),
                };
            }
            if let Some(device) = &target.loop_device {
                let _ = shell::output(&["losetup", "-d", device]);
            }
            let _ = fs::remove_file(&target.image);
        }
    }
}
