//! What the filesystem has to do with bytes: mappings, direct access, copies, dedup, flat memory.

use crate::requirements::{Memory, figure, has, noise, soak_minutes};
use crate::stage::{Stage, can_mount, must, shell};
use rustix::fs::copy_file_range;
use std::fs::{self, File};
use std::io::Write;

/// Private and shared mappings beside reads and writes of the same file.
const MAPPINGS: &str = r#"
import mmap, os, sys
path = sys.argv[1]
with open(path, "wb") as f:
    f.write(b"a" * 300000)
fd = os.open(path, os.O_RDWR)
private = mmap.mmap(fd, 300000, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
shared_ro = mmap.mmap(fd, 300000, mmap.MAP_SHARED, mmap.PROT_READ)
shared = mmap.mmap(fd, 300000, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
private[10:20] = b"p" * 10
assert os.pread(fd, 10, 10) == b"a" * 10, "a private change is seen outside"
assert shared_ro[10:20] == b"a" * 10
os.pwrite(fd, b"w" * 5000, 100000)
assert shared_ro[100000:105000] == b"w" * 5000, "a write is not seen in a mapping"
assert shared[104999:105001] == b"wa"
shared[200000:200100] = b"m" * 100
assert os.pread(fd, 100, 200000) == b"m" * 100, "a mapping's change is not read"
assert shared_ro[199999:200001] == b"am"
shared.flush()
os.ftruncate(fd, 400000)
assert os.pread(fd, 100000, 300000) == bytes(100000)
os.close(fd)
shared[0:3] = b"end"
shared.flush()
"#;

fn check_mappings(path: &std::path::Path) {
    let content = fs::read(path).unwrap();
    let mut expected = vec![b'a'; 300_000];
    expected.resize(400_000, 0);
    expected[100_000..105_000].fill(b'w');
    expected[200_000..200_100].fill(b'm');
    expected[..3].copy_from_slice(b"end");
    assert!(content == expected);
}

#[test]
fn mappings_agree_with_reads_and_writes() {
    let name = "mappings_agree_with_reads_and_writes";
    if !can_mount(name) || !has(name, "python3") {
        return;
    }
    let stage = Stage::image("256M");
    stage.mount();
    let file = stage.path("mnt/mapped");
    must("python3", &["-c", MAPPINGS, &file]);
    check_mappings(&stage.at("mapped"));
    // What msync wrote is there after a crash of the daemon.
    stage.kill();
    stage.mount();
    check_mappings(&stage.at("mapped"));
}

#[test]
fn a_database_that_maps_its_file() {
    let name = "a_database_that_maps_its_file";
    if !can_mount(name) || !has(name, "sqlite3") {
        return;
    }
    let stage = Stage::image("256M");
    stage.mount();
    let database = stage.path("mnt/db");
    let ask = |sql: &str| must("sqlite3", &[&database, sql]);
    for journal in ["delete", "wal"] {
        ask(&format!(
            "pragma journal_mode={journal}; pragma mmap_size=67108864; create table t_{journal}(a, b); \
             with recursive n(i) as (select 1 union all select i + 1 from n where i < 20000) \
             insert into t_{journal} select i, hex(randomblob(20)) from n; \
             update t_{journal} set b = b || a where a % 3 = 0; delete from t_{journal} where a % 5 = 0;"
        ));
    }
    stage.kill();
    stage.mount();
    let found = ask("pragma mmap_size=67108864; pragma integrity_check; select count(*) from t_wal;");
    assert!(found.contains("ok") && found.trim().ends_with("16000"), "{found}");
}

#[test]
fn direct_access_agrees_with_buffered_access() {
    let name = "direct_access_agrees_with_buffered_access";
    if !can_mount(name) || !has(name, "fio") {
        return;
    }
    let stage = Stage::image("256M");
    stage.mount();
    let (source, copy) = (stage.path("source"), stage.path("copy"));
    let file = stage.path("mnt/direct");
    fs::write(&source, noise(1, (8 << 20) + 777)).unwrap();
    // The last piece is not aligned.
    shell(&format!("dd if={source} of={file} bs=64k oflag=direct status=none && cmp {source} {file}"));
    shell(&format!("dd if={file} of={copy} bs=64k iflag=direct status=none && cmp {source} {copy}"));
    for (offset, flag) in [(3, "direct"), (40, "sync"), (81, "direct")] {
        let write = "bs=8k count=5 conv=notrunc status=none if=/dev/urandom";
        shell(&format!(
            "dd {write} of={file} seek={offset} oflag={flag} && cat {file} > {copy} && \
             dd if={file} bs=4k iflag=direct status=none | cmp - {copy}"
        ));
    }
    shell(&format!(
        "fio --name=direct --filename={file}.fio --direct=1 --ioengine=psync --rw=randwrite --bs=4k --size=8M \
         --verify=crc32c --verify_fatal=1 --verify_state_save=0 --output-format=terse > /dev/null"
    ));
    stage.umount();
    stage.mount();
    shell(&format!("cmp {file} {copy}"));
}

/// Looks for holes in files whose bytes the kernel still holds, prints what it finds.
const HOLES: &str = r#"
import os, sys, mmap, subprocess, time
os.chdir(sys.argv[1])
def seek(fd, offset, whence):
    try: return os.lseek(fd, offset, whence)
    except OSError as error: return error.strerror
def map_of(fd):
    return [(seek(fd, o, os.SEEK_DATA), seek(fd, o, os.SEEK_HOLE)) for o in (0, 1 << 20, 20 << 20, 25 << 20, 70 << 20)]
fds = {}
def opened(name, flags=os.O_RDWR | os.O_CREAT):
    fds[name] = os.open(name, flags); return fds[name]
os.write(opened("log"), b"important line\n" * 200000)
sparse = opened("sparse"); os.ftruncate(sparse, 64 << 20); os.pwrite(sparse, b"x" * (1 << 20), 20 << 20)
grown = opened("grown"); os.pwrite(grown, b"y" * 4096, 30 << 20)
mapped = opened("mapped"); os.ftruncate(mapped, 8 << 20)
memory = mmap.mmap(mapped, 8 << 20); memory[3 << 20:(3 << 20) + 5] = b"bytes"
os.close(mapped); fds["mapped"] = os.open("mapped", os.O_RDONLY)
open("was empty", "w").close(); os.write(opened("was empty", os.O_WRONLY), b"z" * 10000)
nameless = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o666); os.write(nameless, b"t" * 20000)
os.link(f"/proc/self/fd/{nameless}", "given a name", src_dir_fd=nameless); fds["given a name"] = nameless
for name, fd in fds.items():
    reader = os.open(name, os.O_RDONLY)
    print(name, map_of(reader), os.stat(name).st_blocks > 0)
    for tool in ("cp %s copy", "cp --sparse=always %s copy", "tar -S -cf - %s | tar -xOf - > copy"):
        subprocess.run(tool % f"'{name}'" , shell=True, check=True)
        print(tool, open("copy", "rb").read() == open(name, "rb").read())
    os.close(reader)
for fd in fds.values(): os.close(fd)
memory.close()
open("empty", "w").close()
# The kernel closes files in the background; as long as one is open it may hold bytes of it.
for _ in range(500):
    if os.stat("empty").st_blocks == 0: break
    time.sleep(0.01)
print(os.stat("empty").st_blocks, map_of(os.open("empty", os.O_RDONLY)))
"#;

// The kernel asks where holes are without writing back what it holds, so whatever was written but not yet sent
// looked like one: cp(1) and tar(1) copied files that others had open for writing as zeros, and said nothing.
#[test]
fn files_that_are_being_written_are_copied_with_what_they_hold() {
    if !can_mount("files_that_are_being_written_are_copied_with_what_they_hold") {
        return;
    }
    for options in ["writeback=on", "writeback=off"] {
        let stage = Stage::image("512M");
        stage.mount_with(options);
        let host = stage.path("host");
        fs::create_dir(&host).unwrap();
        let lines = |folder: &str| -> Vec<String> {
            must("timeout", &["60", "python3", "-c", HOLES, folder]).lines().map(str::to_owned).collect()
        };
        assert_eq!(lines(&stage.mnt()), lines(&host), "{options}");
        stage.umount();
        stage.check();
    }
}

#[test]
fn a_copied_range_may_be_longer_than_the_file() {
    if !can_mount("a_copied_range_may_be_longer_than_the_file") {
        return;
    }
    let stage = Stage::image("256M");
    stage.mount();
    for bytes in [0, 100, 5_000, 300_000] {
        let content = noise(bytes as u64, bytes);
        fs::write(stage.at("from"), &content).unwrap();
        for longer in [bytes + 1, bytes + 100_000, 1 << 30] {
            let (from, to) = (File::open(stage.at("from")).unwrap(), File::create(stage.at("to")).unwrap());
            let mut copied = 0;
            loop {
                match copy_file_range(&from, None, &to, None, longer).unwrap() {
                    0 => break,
                    count => copied += count,
                }
            }
            assert_eq!(copied, bytes, "asked for {longer}");
            assert!(fs::read(stage.at("to")).unwrap() == content, "{bytes} bytes, asked for {longer}");
        }
    }
}

#[test]
fn small_appends_become_large_extents() {
    if !can_mount("small_appends_become_large_extents") {
        return;
    }
    let stage = Stage::image("256M");
    stage.mount();
    let data = noise(22, 8 << 20);
    let mut file = File::options().append(true).create(true).open(stage.at("log")).unwrap();
    data.chunks(4096).for_each(|piece| file.write_all(piece).unwrap());
    drop(file);
    stage.sync();
    let chunks = figure(&stage, "usage", "chunks");
    let rows = stage.json("status")["store"]["rows"].as_u64().expect("it is told");
    println!("{chunks} chunks of {} KiB in {rows} rows of {} KiB", (8 << 10) / chunks, (8 << 10) / rows);
    assert!(chunks * (48 << 10) <= 8 << 20, "{chunks} chunks");
    // What lies on the device in one piece.
    assert!(rows * (128 << 10) <= 8 << 20, "{rows} rows");
    assert!(fs::read(stage.at("log")).unwrap() == data);
}

#[test]
fn a_second_copy_costs_next_to_nothing_and_usage_adds_up() {
    if !can_mount("a_second_copy_costs_next_to_nothing_and_usage_adds_up") {
        return;
    }
    const BYTES: u64 = 64 << 20;
    let stage = Stage::image("512M");
    stage.mount();
    let usage = || {
        ["logical_bytes", "unique_bytes", "compressed_bytes", "data_bytes"]
            .map(|k| figure(&stage, "usage", k))
    };
    let (first, second) = (stage.path("mnt/first"), stage.path("mnt/second"));
    fs::write(&first, noise(7, BYTES as usize)).unwrap();
    stage.sync();
    let before = usage();
    assert_eq!(before[..2], [BYTES, BYTES]);
    shell(&format!("cat {first} > {second}"));
    stage.sync();
    let after = usage();
    println!("logical, unique, compressed, data: {before:?}, then {after:?}");
    assert_eq!(after[..2], [2 * BYTES, BYTES]);
    assert!((after[3] - before[3]) * 100 < before[3], "the copy took {} bytes", after[3] - before[3]);
    // Noise does not compress, zeros and text do.
    assert!(after[2] >= BYTES && after[2] < BYTES + BYTES / 50, "{after:?}");
    shell(&format!("seq 2000000 > {}", stage.path("mnt/text")));
    stage.sync();
    let text = usage();
    let (plain, stored) = (text[1] - after[1], text[2] - after[2]);
    assert_eq!(text[0] - after[0], fs::metadata(stage.at("text")).unwrap().len());
    assert!(stored * 2 < plain && plain <= text[0] - after[0], "{after:?}, then {text:?}");
    assert!(text[3] >= text[2], "what is stored lies in slots: {text:?}");
    shell(&format!("rm {first} {second} {}", stage.path("mnt/text")));
    stage.sync();
    let emptied = (0..100).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(100));
        usage()[..3] == [0, 0, 0]
    });
    assert!(emptied, "{:?}", usage());
}

#[test]
fn memory_stays_flat_while_a_large_file_is_written() {
    if !can_mount("memory_stays_flat_while_a_large_file_is_written") {
        return;
    }
    let mib: u64 = if soak_minutes().is_some() { 20 << 10 } else { 1 << 10 };
    let stage = Stage::image(&format!("{}M", mib + 1024));
    stage.mount();
    let memory = Memory::watch(&stage);
    let mut file = File::create(stage.at("large")).unwrap();
    let mut piece = vec![0; 1 << 20];
    for n in 0..mib {
        // Different in each block, and yet easy to compress.
        for (block, bytes) in piece.chunks_mut(4096).enumerate() {
            bytes.fill(block as u8);
            bytes[..8].copy_from_slice(&(n << 20 | (block as u64) << 12).to_le_bytes());
        }
        file.write_all(&piece).unwrap();
    }
    file.sync_all().unwrap();
    drop(file);
    println!("{mib} MiB written, the daemon took {} MiB at most", memory.peak_mib());
    assert!(memory.peak_mib() < 512, "{} MiB", memory.peak_mib());
    assert_eq!(figure(&stage, "usage", "unique_bytes"), mib << 20);
}
