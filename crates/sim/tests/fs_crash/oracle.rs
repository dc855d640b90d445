//! What must hold after the power was cut.

use crate::history::{BEGUN, History, KEPT, Namespace, Promise, mount, read_all, walk};
use aegisfs_base::{InodeId, SeededRng};
use aegisfs_fs::{Fs, Kind, MakeOptions, ROOT};
use aegisfs_pool::OpenOptions;
use aegisfs_sim::{CrashPoint, Mark, SimWorld};

/// What had been begun and promised when the power was cut.
pub(crate) struct Known {
    begun: u64,
    promises: Vec<(u64, Promise)>,
}

impl Known {
    pub(crate) fn of(history: &History, point: CrashPoint) -> Self {
        let trace = history.world.trace();
        Self::from_marks(history, trace.marks().iter().filter(|mark| mark.events <= point.event))
    }

    /// What marks tell, in a world in which a history was played as far as they go.
    pub(crate) fn from_marks<'m>(history: &History, marks: impl Iterator<Item = &'m Mark>) -> Self {
        let mut known = Self { begun: 0, promises: vec![(0, history.promises[0])] };
        for mark in marks {
            let (step, kind) = (mark.value >> 1, mark.value & 1);
            match kind {
                BEGUN => known.begun = known.begun.max(step),
                KEPT => known.promises.push((step, history.promises[step as usize])),
                _ => unreachable!("one bit"),
            }
        }
        known
    }

    /// The names must be at least those after this operation.
    fn names_from(&self) -> u64 {
        let floor = |(step, promise): &(u64, Promise)| {
            let everything = promise.everything.then_some(*step);
            everything.max(promise.file.map(|(_, touched)| touched)).unwrap_or(0)
        };
        self.promises.iter().map(floor).max().unwrap_or(0)
    }

    /// A file's content must be at least that after this operation, if names are as after `names_at`.
    fn content_from(&self, history: &History, id: InodeId, names_at: u64) -> u64 {
        let kept = self
            .promises
            .iter()
            .filter(|(_, promise)| promise.everything || promise.file.is_some_and(|(file, _)| file == id));
        let synced = kept.map(|(step, _)| *step).max().unwrap_or(0);
        let ordered = (0..=names_at).filter(|n| history.promises[*n as usize].ordered == Some(id)).max();
        synced.max(ordered.unwrap_or(0))
    }
}

/// Judges a world after a cut.
pub(crate) fn judge(history: &History, world: &SimWorld, point: CrashPoint) -> Result<(), String> {
    judge_known(history, &Known::of(history, point), world, point.event * 31 + point.subset)
}

/// Judges a world of which it is known what was promised in it.
pub(crate) fn judge_known(
    history: &History,
    known: &Known,
    world: &SimWorld,
    seed: u64,
) -> Result<(), String> {
    let rng = SeededRng::new(seed);
    let fs = mount(world.devices(), &rng, OpenOptions::default())?;
    judge_mounted(history, known, &fs)?;
    if history.policies {
        fs.follow_policies(&|| true).map_err(|e| format!("not everything follows its policy: {e}"))?;
        let misplaced = fs.check_tree().map_err(|e| e.to_string())?.misplaced_bytes;
        if misplaced > 0 {
            return Err(format!("{misplaced} bytes are not stored as their policy says"));
        }
        judge_mounted(history, known, &fs)?;
    }
    go_on(&fs)?;
    drop(fs);
    // What was just synced survives another opening, which replays what the first one left.
    let fs = mount(world.devices(), &rng, OpenOptions::default())?;
    let after =
        fs.peek(ROOT, b"after").map_err(|e| format!("what was synced after recovery is gone: {e}"))?;
    let content = read_all(&fs, after.id).map_err(|e| e.to_string())?;
    if content != vec![b'!'; 3000] {
        return Err("what was synced after recovery reads wrong".into());
    }
    sound(&fs)
}

pub(crate) fn judge_mounted(history: &History, known: &Known, fs: &Fs) -> Result<(), String> {
    judge_contents(history, known, fs)?;
    sound(fs)
}

/// Names and bytes alone.
pub(crate) fn judge_contents(history: &History, known: &Known, fs: &Fs) -> Result<(), String> {
    let names = walk(fs).map_err(|e| format!("the tree cannot be walked: {e}"))?;
    let from = known.names_from();
    let matching = (from..=known.begun.min(history.names.len() as u64 - 1))
        .find(|n| history.names[*n as usize] == names);
    let Some(at) = matching else {
        return Err(mismatch(history, &names, from, known.begun));
    };
    for entry in names.values().filter(|entry| entry.mode & 0o170_000 == 0o100_000) {
        judge_content(history, known, fs, entry.inode, at)?;
    }
    Ok(())
}

/// Every byte is what was last promised, or anything that was there later.
fn judge_content(history: &History, known: &Known, fs: &Fs, id: InodeId, at: u64) -> Result<(), String> {
    let found = read_all(fs, id).map_err(|e| format!("inode {id} cannot be read: {e}"))?;
    let from = known.content_from(history, id, at);
    let versions = history.contents.get(&id).map_or(&[][..], Vec::as_slice);
    let first = versions.iter().rposition(|(step, _)| *step <= from).unwrap_or(0);
    let allowed: Vec<&Vec<u8>> = versions[first..]
        .iter()
        .filter(|(step, _)| *step <= known.begun)
        .map(|(_, content)| content)
        .collect();
    let whole = allowed.iter().any(|content| content.len() == found.len());
    // A stream grows by parts of a write.
    let between = |pair: &[&Vec<u8>]| (pair[0].len()..pair[1].len()).contains(&found.len());
    let in_part = history.streams && allowed.windows(2).any(between);
    if !whole && !in_part {
        let sizes: Vec<usize> = allowed.iter().map(|content| content.len()).collect();
        return Err(format!("inode {id} has {} bytes; since operation {from} it had {sizes:?}", found.len()));
    }
    for (place, byte) in found.iter().enumerate() {
        let fits = allowed.iter().any(|content| content.get(place) == Some(byte));
        if !fits {
            return Err(format!(
                "byte {place} of inode {id} is {byte}, which it was not since operation {from}"
            ));
        }
    }
    Ok(())
}

pub(crate) fn sound(fs: &Fs) -> Result<(), String> {
    let tree = fs.check_tree().map_err(|e| format!("the tree cannot be checked: {e}"))?;
    if let Some(problem) = tree.problems.first() {
        return Err(format!("inode {}: {}", problem.inode, problem.what));
    }
    let report = fs.store().check(true).map_err(|e| format!("the store cannot be checked: {e}"))?;
    match report.problems.first() {
        Some(problem) => Err(problem.to_string()),
        None => Ok(()),
    }
}

/// The filesystem takes up work again.
pub(crate) fn go_on(fs: &Fs) -> Result<(), String> {
    let work = || -> Result<(), aegisfs_fs::FsError> {
        let made = fs.make(ROOT, b"after", Kind::File, &MakeOptions::default())?;
        let handle = fs.open(made.id)?;
        fs.write(handle, 0, &[b'!'; 3000])?;
        fs.fsync(handle)?;
        fs.release(handle)?;
        fs.forget(made.id, 1);
        fs.store().reap_all()?;
        fs.sync()
    };
    work().map_err(|e| format!("no work after recovery: {e}"))
}

fn mismatch(history: &History, found: &Namespace, from: u64, begun: u64) -> String {
    let list = |names: &Namespace| {
        let line = |(path, e): (&Vec<u8>, &crate::history::Entry)| {
            let path = String::from_utf8_lossy(path).into_owned();
            format!("{path}={}:{:o}:{}:{}:{:x}", e.inode, e.mode, e.nlink, e.xattrs.len(), e.flags)
        };
        names.iter().map(line).collect::<Vec<_>>().join(" ")
    };
    format!(
        "names are as after no operation from {from} to {begun}:\n  found    {}\n  at first {}\n  at last  {}",
        list(found),
        list(&history.names[from as usize]),
        list(&history.names[begun.min(history.names.len() as u64 - 1) as usize])
    )
}
