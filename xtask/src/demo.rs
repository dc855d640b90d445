//! `demo`: a filesystem in an image file, shown at work, and left mounted.

use crate::{setup, shell};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::PathBuf;

const IMAGE_SIZE: &str = "2G";
/// What is copied: a tree that every machine with a compiler has.
const TREE: &str = "/usr/include";

struct Demo {
    program: String,
    image: PathBuf,
    mount: PathBuf,
}

/// Shows what AegisFS does.
pub(crate) fn run() -> Result<()> {
    setup::install_packages();
    if !setup::is_root() {
        bail!("mounting needs root on this machine; run it with sudo");
    }
    shell::stage("build", || shell::run(&["cargo", "build", "--release", "--package", "aegisfs"]))?;
    let folder = shell::root().join("target/demo");
    fs::create_dir_all(folder.join("mnt"))?;
    let demo = Demo {
        program: shell::target().join("release/aegisfs").to_string_lossy().into_owned(),
        image: folder.join("disk.img"),
        mount: folder.join("mnt"),
    };
    demo.clear()?;
    demo.show()?;
    demo.say_what_next();
    Ok(())
}

impl Demo {
    fn image(&self) -> String {
        self.image.to_string_lossy().into_owned()
    }

    fn mnt(&self) -> String {
        self.mount.to_string_lossy().into_owned()
    }

    /// Runs a command, shown as a person would type it.
    fn tell(&self, line: &[&str]) -> Result<()> {
        println!("\n$ {}", line.join(" "));
        shell::run(line)
    }

    fn aegisfs(&self, words: &[&str]) -> Result<()> {
        self.tell(&[&[self.program.as_str()], words].concat())
    }

    /// Takes away what an earlier demo left.
    fn clear(&self) -> Result<()> {
        let _ = shell::output(&["timeout", "60", &self.program, "umount", &self.mnt()]);
        match fs::remove_file(&self.image) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context("the old image cannot be removed")
            }
            _ => Ok(()),
        }
    }

    fn show(&self) -> Result<()> {
        let (image, mnt) = (self.image(), self.mnt());
        let copy = |name: &str| format!("{mnt}/{name}/");
        println!("\n== A filesystem in an image file ==");
        self.aegisfs(&["format", "--size", IMAGE_SIZE, "--label", "demo", &image])?;
        self.aegisfs(&["mount", &image, &mnt])?;
        println!("\n== A tree, and the same tree again: the second copy costs next to nothing ==");
        self.tell(&["rsync", "-aHAX", &format!("{TREE}/"), &copy("first")])?;
        self.aegisfs(&["sync", &mnt])?;
        self.aegisfs(&["usage", &mnt])?;
        self.tell(&["rsync", "-aHAX", &format!("{TREE}/"), &copy("second")])?;
        self.aegisfs(&["sync", &mnt])?;
        self.aegisfs(&["usage", &mnt])?;
        println!("\n== Unmounted, every byte verified, mounted again, compared ==");
        self.aegisfs(&["umount", &mnt])?;
        self.aegisfs(&["check", &image])?;
        self.aegisfs(&["mount", &image, &mnt])?;
        let source = format!("{TREE}/");
        self.tell(&["rsync", "-aHAXn", "--checksum", "--itemize-changes", &source, &copy("second")])?;
        println!("(nothing differs)");
        self.aegisfs(&["status", &mnt])
    }

    fn say_what_next(&self) {
        println!("\n== It stays mounted. Next you could ==");
        println!("  ls -la {}", self.mnt());
        println!("  {} usage {}", self.program, self.mnt());
        println!("  {} sync {}", self.program, self.mnt());
        println!("  {} umount {}", self.program, self.mnt());
        println!("  {} check {}", self.program, self.image());
    }
}
