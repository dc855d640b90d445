//! Every implementation that needs no privilege passes the conformance suite.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aegisfs_device::{
    Device, FaultyDevice, FileDevice, ImageOptions, MemoryDevice, OpenOptions, StatsDevice, Throttle,
    ThrottledDevice, conformance, create_image, open,
};

const SIZE: u64 = 8 << 20;

fn memory() -> MemoryDevice {
    MemoryDevice::new("memory", SIZE + 123)
}

#[test]
fn memory_devices() {
    conformance::all(&|| Arc::new(memory()));
    conformance::never_written_is_zeros(&memory());
    conformance::all(&|| {
        let device = memory();
        device.write_at(0, &vec![0xee; SIZE as usize]).unwrap();
        Arc::new(device.snapshot())
    });
}

#[test]
fn wrapped_devices() {
    conformance::all(&|| Arc::new(FaultyDevice::new(memory())));
    conformance::all(&|| Arc::new(StatsDevice::new(Arc::new(memory()))));
    let throttle = Throttle { latency: Duration::from_micros(10), bytes_per_second: Some(1 << 30) };
    conformance::all(&|| Arc::new(ThrottledDevice::new(memory(), throttle)));
}

fn image_file(folder: &Path, direct: bool) {
    let options = OpenOptions { direct, ..OpenOptions::default() };
    // A size that is no multiple of the block: the rest is not used.
    let image = ImageOptions { bytes: SIZE + 4095, reuse: true };
    let fresh = || {
        create_image(folder, &image).unwrap();
        let device = open(folder, &options).unwrap();
        assert_eq!(device.bytes(), SIZE);
        device
    };
    conformance::all(&fresh);
    conformance::never_written_is_zeros(&*fresh());
    conformance::reopening(&|| open(folder, &options));
}

#[test]
fn image_files_through_the_cache() {
    let folder = tempfile::tempdir().unwrap();
    image_file(folder.path(), false);
    let options = OpenOptions { direct: false, ..OpenOptions::default() };
    assert!(!FileDevice::open(folder.path(), &options).unwrap().direct());
}

#[test]
fn image_files_past_the_cache() {
    // Beside the build's results, because the system's temporary folder may be memory.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    image_file(folder.path(), true);
    if !FileDevice::open(folder.path(), &OpenOptions::default()).unwrap().direct() {
        eprintln!("skipped in part: {} has no direct I/O", folder.path().display());
    }
}

#[test]
fn an_opening_waits_for_the_one_before() {
    let folder = tempfile::tempdir().unwrap();
    create_image(folder.path(), &ImageOptions { bytes: SIZE, reuse: false }).unwrap();
    let first = open(folder.path(), &OpenOptions::default()).unwrap();
    let waiting = OpenOptions { wait: Duration::from_secs(60), ..OpenOptions::default() };
    std::thread::scope(|scope| {
        let second = scope.spawn(|| open(folder.path(), &waiting).map(|device| device.bytes()));
        std::thread::sleep(Duration::from_millis(50));
        drop(first);
        assert_eq!(second.join().unwrap(), Ok(SIZE));
    });
    let _held = open(folder.path(), &OpenOptions::default()).unwrap();
    let brief = OpenOptions { wait: Duration::from_millis(60), ..OpenOptions::default() };
    let start = Instant::now();
    assert!(open(folder.path(), &brief).is_err());
    assert!(start.elapsed() >= Duration::from_millis(60));
}
