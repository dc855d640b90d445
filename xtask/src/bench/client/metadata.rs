//! What the verbs cost by themselves: a filesystem on a device of memory in this very process, without the
//! kernel.
//!
//! Each thread has a directory of its own and does one thing to every file in it. A cold lookup is one after a
//! new mount, which has no inode in memory: of files whose changes still wait for a checkpoint, and of files
//! that stand in the database. Times are those of the threads that call; what the store and the flusher do
//! meanwhile takes its part of the processors, as it does in the daemon.

use crate::Arguments;
use aegisfs_base::{SystemClock, SystemRng};
use aegisfs_device::{Device, MemoryDevice};
use aegisfs_fs::{Flusher, Fs, FsOptions, HandleId, Kind, MakeOptions, ROOT};
use aegisfs_pool::{CreateOptions, OpenOptions, Pool};
use aegisfs_store::{Intervals, Service, Store, StoreOptions};
use anyhow::{Context, Result, bail};
use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Map, Value, json};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

const DEVICE_BYTES: u64 = 1 << 30;
const FILE_BYTES: usize = 4096;
/// Times that everything is done to the files, so that each figure is of more than a moment.
const CYCLES: usize = 3;
/// Times that what changes nothing is done in each of them.
const PASSES: usize = 5;

/// What threads took together.
#[derive(Default)]
struct Cost {
    operations: usize,
    seconds: f64,
    cpu_seconds: f64,
    switches: u64,
}

/// Does each thing to every file, with so many threads.
pub(crate) fn run(arguments: &Arguments) -> Result<Value> {
    let (threads, files): (usize, usize) = (arguments.number("threads")?, arguments.number("files")?);
    let store = Arc::new(store()?);
    let _service = Service::start(Arc::clone(&store), Intervals::default())?;
    let mut bench = Bench { mount: Mount::new(&store)?, store, threads, each: files / threads };
    for thread in 0..threads {
        bench.fs().make(ROOT, &directory(thread), Kind::Directory, &MakeOptions::default())?;
    }
    let mut costs = [const { None }; 7];
    for _ in 0..CYCLES {
        for (cost, new) in costs.iter_mut().zip(bench.cycle()?) {
            cost.get_or_insert_with(Cost::default).add(new);
        }
    }
    let names = ["create", "lookup", "getattr", "read", "lookup_new", "lookup_cold", "unlink"];
    let costs = names.into_iter().zip(costs).filter_map(|(name, cost)| Some((name.to_owned(), cost?.told())));
    Ok(Value::Object(costs.collect::<Map<_, _>>()))
}

fn store() -> Result<Store> {
    let rng = SystemRng::new()?;
    let clock = Arc::new(SystemClock::default());
    let devices: Vec<Arc<dyn Device>> = vec![Arc::new(MemoryDevice::new("memory", DEVICE_BYTES))];
    let pool = Pool::create(devices.clone(), &CreateOptions::default(), &*clock, &rng)?;
    Fs::format(&pool, &*clock)?;
    drop(pool);
    let (pool, _) = Pool::open(devices, OpenOptions::default())?;
    Ok(aegisfs_store::open(pool, &StoreOptions::default(), clock, &rng)?.0)
}

fn directory(thread: usize) -> Vec<u8> {
    format!("directory{thread}").into_bytes()
}

fn name(file: usize) -> Vec<u8> {
    format!("file{file:08}").into_bytes()
}

/// A mounted filesystem; the threads that write files out end before it does.
struct Mount {
    _flusher: Flusher,
    fs: Arc<Fs>,
}

impl Mount {
    fn new(store: &Arc<Store>) -> Result<Self> {
        let fs = Arc::new(Fs::mount(Arc::clone(store), FsOptions::default())?);
        Ok(Self { _flusher: Flusher::start(Arc::clone(&fs), 1)?, fs })
    }
}

struct Bench {
    store: Arc<Store>,
    mount: Mount,
    threads: usize,
    each: usize,
}

impl Bench {
    fn fs(&self) -> &Fs {
        &self.mount.fs
    }

    /// Makes the files, looks at them in every way, removes them.
    fn cycle(&mut self) -> Result<[Cost; 7]> {
        let create = self.every(1, |fs, (parent, _), file| {
            // The kernel asks for the name before it asks for the file.
            if fs.lookup(parent, &name(file)).is_ok() {
                bail!("file {file} is there already");
            }
            let (_, handle) = fs.create(parent, &name(file), &MakeOptions::default())?;
            fs.release(handle)?;
            Ok(())
        })?;
        let lookup = self.every(PASSES, |fs, (parent, _), file| {
            fs.lookup(parent, &name(file))?;
            Ok(())
        })?;
        let getattr = self.every(PASSES, |fs, (parent, _), _| {
            fs.getattr(parent)?;
            Ok(())
        })?;
        let read = self.read()?;
        let new = self.cold_lookups(false)?;
        let cold = self.cold_lookups(true)?;
        let unlink = self.every(1, |fs, (parent, _), file| {
            let id = fs.lookup(parent, &name(file))?.id;
            fs.unlink(parent, &name(file))?;
            // The new mount has counted one more for each of its lookups.
            fs.forget(id, 2);
            Ok(())
        })?;
        self.store.reap_all()?;
        self.store.checkpoint()?;
        Ok([create, lookup, getattr, read, new, cold, unlink])
    }

    /// Reads of a file of one block, from its handle.
    fn read(&self) -> Result<Cost> {
        for thread in 0..self.threads {
            let (fs, directory) = (self.fs(), self.fs().lookup(ROOT, &directory(thread))?.id);
            let (made, handle) = fs.create(directory, b"small", &MakeOptions::default())?;
            fs.write(handle, 0, &[7; FILE_BYTES])?;
            fs.fsync(handle)?;
            fs.release(handle)?;
            fs.forget(made.id, 1);
        }
        // What was written goes into rows, and a new mount reads it from there.
        self.fs().flush_all()?;
        let cost = self.every(PASSES, |fs, (_, small), _| {
            let mut buffer = [0; FILE_BYTES];
            let length = fs.read(small.context("it was opened")?, 0, &mut buffer)?;
            if length == FILE_BYTES { Ok(()) } else { bail!("{length} bytes were read") }
        })?;
        for thread in 0..self.threads {
            let directory = self.fs().lookup(ROOT, &directory(thread))?.id;
            self.fs().unlink(directory, b"small")?;
        }
        Ok(cost)
    }

    /// Looks every file up, each time on a new mount.
    fn cold_lookups(&mut self, checkpointed: bool) -> Result<Cost> {
        let mut cost = Cost::default();
        for _ in 0..PASSES {
            if checkpointed {
                self.store.checkpoint()?;
            }
            self.mount = Mount::new(&self.store)?;
            cost.add(self.every(1, |fs, (parent, _), file| {
                fs.lookup(parent, &name(file))?;
                Ok(())
            })?);
        }
        Ok(cost)
    }

    /// Does something to every file, with all threads at once.
    fn every(
        &self,
        passes: usize,
        work: impl Fn(&Fs, (aegisfs_base::InodeId, Option<HandleId>), usize) -> Result<()> + Sync,
    ) -> Result<Cost> {
        let barrier = Barrier::new(self.threads);
        let one = |thread: usize| -> Result<(Instant, Instant, Duration, u64)> {
            let mut set = CpuSet::new();
            set.set(thread);
            sched_setaffinity(None, &set)?;
            let fs = self.fs();
            let parent = fs.lookup(ROOT, &directory(thread))?.id;
            let small = fs.lookup(parent, b"small").ok().map(|small| fs.open(small.id)).transpose()?;
            barrier.wait();
            let (begin, cpu, switches) = (Instant::now(), cpu_time(), switches()?);
            for _ in 0..passes {
                (0..self.each).try_for_each(|file| work(fs, (parent, small), file))?;
            }
            let took = (begin, Instant::now(), cpu_time() - cpu, self::switches()? - switches);
            small.map(|handle| fs.release(handle)).transpose()?;
            Ok(took)
        };
        let one = &one;
        let took = std::thread::scope(|scope| {
            let started: Vec<_> = (0..self.threads).map(|n| scope.spawn(move || one(n))).collect();
            started.into_iter().map(|thread| thread.join().expect("it does not panic")).collect::<Vec<_>>()
        });
        let took = took.into_iter().collect::<Result<Vec<_>>>()?;
        let begin = took.iter().map(|(begin, ..)| *begin).min().context("there is a thread")?;
        let end = took.iter().map(|(_, end, ..)| *end).max().context("there is a thread")?;
        Ok(Cost {
            operations: passes * self.each * self.threads,
            seconds: (end - begin).as_secs_f64(),
            cpu_seconds: took.iter().map(|(_, _, cpu, _)| cpu.as_secs_f64()).sum(),
            switches: took.iter().map(|(.., switches)| switches).sum(),
        })
    }
}

impl Cost {
    fn add(&mut self, more: Self) {
        self.operations += more.operations;
        self.seconds += more.seconds;
        self.cpu_seconds += more.cpu_seconds;
        self.switches += more.switches;
    }

    fn told(&self) -> Value {
        let operations = self.operations as f64;
        json!({
            "rate": operations / self.seconds,
            "cpu_us": self.cpu_seconds * 1e6 / operations,
            "switches": self.switches as f64 / operations,
        })
    }
}

/// Processor time of this thread.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// How often this thread has left its processor, by itself or not.
fn switches() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/thread-self/status")?;
    let counts = status.lines().filter(|line| line.contains("ctxt_switches"));
    let counts = counts.filter_map(|line| line.split_whitespace().last()?.parse::<u64>().ok());
    Ok(counts.sum())
}
