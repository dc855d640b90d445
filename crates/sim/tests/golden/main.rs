//! Images of earlier formats, which always open: `tests/golden/format-N.image.zst` with its manifest.
//!
//! Each is the device of a filesystem as a crash left it, with a checkpoint, a log behind it, and bytes that
//! stand only in the log. It is opened on a copy, read whole, checked, and written to.

#![expect(clippy::print_stdout, reason = "a test tells what it did")]

mod image;
mod listing;
mod make;

use aegisfs_base::{ManualClock, SeededRng};
use aegisfs_device::{Device, MemoryDevice};
use aegisfs_fs::{Fs, FsOptions, Kind, MakeOptions, ROOT};
use aegisfs_pool::{OpenOptions, Pool};
use aegisfs_store::{Recovered, StoreOptions, open};
use std::path::PathBuf;
use std::sync::Arc;

/// Opens what a device holds.
fn mount(device: &Arc<MemoryDevice>, read_only: bool) -> (Fs, Recovered) {
    let devices = vec![Arc::clone(device) as Arc<dyn Device>];
    let (pool, _) = Pool::open(devices, OpenOptions { read_only, degraded: false }).expect("the pool opens");
    let options = StoreOptions { workers: 0, read_only, ..StoreOptions::default() };
    let (store, recovered) =
        open(pool, &options, Arc::new(ManualClock::default()), &SeededRng::new(1)).expect("the store opens");
    assert_eq!(recovered.read_only, None, "the log is whole");
    let options = FsOptions { background: false, ..FsOptions::default() };
    (Fs::mount(Arc::new(store), options).expect("it mounts"), recovered)
}

fn check(fs: &Fs) {
    assert_eq!(fs.check_tree().expect("readable").problems, []);
    assert_eq!(fs.store().check(true).expect("readable").problems, []);
}

/// The images that there are: format and place.
fn images() -> Vec<(u32, PathBuf)> {
    let folder = std::fs::read_dir(image::folder()).expect("there are images");
    let mut found: Vec<_> = folder
        .filter_map(|entry| {
            let path = entry.expect("readable").path();
            let name = path.file_name()?.to_str()?;
            let number = name.strip_prefix("format-")?.strip_suffix(".image.zst")?.parse().ok()?;
            Some((number, path.clone()))
        })
        .collect();
    found.sort();
    found
}

#[test]
fn every_format_opens_and_reads_as_it_was_written() {
    let images = images();
    assert!(images.iter().any(|(format, _)| *format == make::FORMAT), "there is none of the present format");
    for (format, path) in images {
        let packed = std::fs::read(&path).expect("readable");
        let manifest = std::fs::read_to_string(path.with_file_name(format!("format-{format}.manifest")))
            .expect("each image has a manifest");
        let (sum, listed) = manifest.split_once('\n').expect("the image's own sum comes first");
        assert_eq!(sum, format!("image {}", blake3::hash(&packed)), "format {format}: it was edited");
        let pristine = image::unpack(&packed);
        for read_only in [true, false] {
            let device = Arc::new(pristine.snapshot());
            let (fs, recovered) = mount(&device, read_only);
            assert!(recovered.transactions > 0, "format {format}: there was a log to be replayed");
            listing::assert_same(listed, &listing::list(&fs));
            if read_only {
                continue;
            }
            check(&fs);
            write_on(&fs);
            check(&fs);
            drop(fs);
            let (fs, _) = mount(&device, false);
            fs.peek(ROOT, b"new").expect("it was synced");
            check(&fs);
        }
        println!("format {format}: {} lines, {} KiB", listed.lines().count(), packed.len() >> 10);
    }
}

fn write_on(fs: &Fs) {
    let made = fs.make(ROOT, b"new", Kind::File, &MakeOptions::default()).expect("room");
    let handle = fs.open(made.id).expect("it is there");
    fs.write(handle, 0, &[7; 100_000]).expect("room");
    fs.fsync(handle).expect("it syncs");
    fs.store().checkpoint().expect("it syncs");
    fs.release(handle).expect("it was open");
}

/// Makes the image of the present format anew; `tests/golden/README.md` says when.
#[test]
#[ignore = "writes to tests/golden"]
fn make_the_image_of_this_format() {
    make::image();
}
