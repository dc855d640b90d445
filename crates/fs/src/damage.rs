//! Which parts of which files cannot be read, and who may give them back.

use crate::FsError;
use crate::fs::{Fs, HEAD, ROOT};
use aegisfs_base::{ChunkId, InodeId};
use aegisfs_format::key::{self, Table};
use aegisfs_format::value::{Mended, decode_dirents};
use aegisfs_store::{LostChunk, LostRange, Store, versions};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Directories above a file, at most; beyond that the names go in a circle.
const DEPTH_MAX: usize = 4096;
/// Bytes of lost chunks that are gathered before they are written.
const GATHERED_BYTES_MAX: usize = 32 << 20;

/// Names of files, from the root of the filesystem.
pub type Paths = Vec<Vec<u8>>;

/// A part of a file that cannot be read, with a name of the file where it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostPart {
    /// One of its names, from the root of the filesystem; none for what only a snapshot sees.
    pub path: Option<Vec<u8>>,
    /// What is lost of it.
    pub range: LostRange,
    /// What is known of the chunk that it lies in.
    pub chunk: LostChunk,
}

/// What came of looking for lost bytes in other files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Healed {
    /// Chunks that were lost.
    pub lost: u64,
    /// Of those, how many were found and written anew.
    pub healed: u64,
    /// Files that were looked through.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files and directories that could not be read.
    pub unreadable: u64,
}

impl Fs {
    /// The parts of files that cannot be read, as far as that is known: from reading them, or from a scrub.
    ///
    /// # Errors
    /// When the metadata cannot be read.
    pub fn lost_parts(&self) -> Result<Vec<LostPart>, FsError> {
        self.parts_of(&self.store.lost_chunks()?)
    }

    /// What was damaged and is mended, the oldest first, each with the names of the files that the chunk is in now, where one is
    /// known.
    ///
    /// # Errors
    /// When the metadata cannot be read.
    pub fn mended(&self) -> Result<Vec<(Mended, Paths)>, FsError> {
        let mended = self.store.mended();
        let chunks: BTreeSet<ChunkId> = mended.iter().filter_map(|mended| mended.chunk).collect();
        let mut files: BTreeMap<ChunkId, BTreeSet<Vec<u8>>> = BTreeMap::new();
        if !chunks.is_empty() {
            let ranges = self.store.ranges_in(&chunks)?;
            let paths = self.paths_of(ranges.iter().map(|range| range.inode).collect())?;
            for range in ranges {
                files.entry(range.chunk).or_default().extend(paths.get(&range.inode).cloned());
            }
        }
        let named = |mended: Mended| {
            let files = mended.chunk.and_then(|chunk| files.get(&chunk));
            (mended, files.into_iter().flatten().cloned().collect())
        };
        Ok(mended.into_iter().map(named).collect())
    }

    fn parts_of(&self, lost: &[LostChunk]) -> Result<Vec<LostPart>, FsError> {
        if lost.is_empty() {
            return Ok(Vec::new());
        }
        let chunks: BTreeMap<ChunkId, LostChunk> = lost.iter().map(|lost| (lost.chunk, *lost)).collect();
        let ranges = self.store.ranges_in(&chunks.keys().copied().collect())?;
        let paths = self.paths_of(ranges.iter().map(|range| range.inode).collect())?;
        let part = |range: LostRange| LostPart {
            path: paths.get(&range.inode).cloned(),
            range,
            chunk: chunks[&range.chunk],
        };
        Ok(ranges.into_iter().map(part).collect())
    }

    /// A name of each of some inodes. Reads all directories, once for each level that they lie deep.
    pub(crate) fn paths_of(&self, inodes: BTreeSet<InodeId>) -> Result<HashMap<InodeId, Vec<u8>>, FsError> {
        let view = self.store.head_view(HEAD)?;
        let mut names: HashMap<InodeId, (InodeId, Vec<u8>)> = HashMap::new();
        let mut wanted = inodes.clone();
        for _ in 0..DEPTH_MAX {
            if wanted.is_empty() {
                break;
            }
            let mut next = BTreeSet::new();
            versions::scan_visible(
                &self.store.view(),
                Table::Dirent,
                &[],
                None,
                &view,
                &mut |stem, stored| {
                    if let (Ok(parent), Ok(bucket)) = (key::stem_inode(stem), decode_dirents(stored)) {
                        for entry in bucket.into_iter().filter(|entry| wanted.contains(&entry.inode)) {
                            next.insert(parent);
                            names.entry(entry.inode).or_insert((parent, entry.name));
                        }
                    }
                    ControlFlow::Continue(())
                },
            )?;
            wanted =
                next.into_iter().filter(|parent| *parent != ROOT && !names.contains_key(parent)).collect();
        }
        let path = |inode: &InodeId| {
            let (mut path, mut at) = (Vec::new(), *inode);
            for _ in 0..DEPTH_MAX {
                if at == ROOT {
                    return Some((*inode, path));
                }
                let (parent, name) = names.get(&at)?;
                path = [b"/", &name[..], &path].concat();
                at = *parent;
            }
            None
        };
        Ok(inodes.iter().filter_map(path).collect())
    }

    /// Looks through a file or tree of the host for the bytes of lost chunks, and writes anew what it finds.
    ///
    /// Files are cut by their content as ours are. One that is called like a damaged file is also looked at where that
    /// lacks something, since what was written in pieces is cut otherwise.
    ///
    /// # Errors
    /// When the path cannot be read, or nothing can be written.
    pub fn heal_from(&self, path: &Path) -> io::Result<Healed> {
        self.store.check_writable().map_err(io::Error::other)?;
        let lost = self.store.lost_chunks().map_err(io::Error::other)?;
        let parts = self.parts_of(&lost).map_err(io::Error::other)?;
        let mut search = Search {
            fs: self,
            by_hash: HashMap::new(),
            places: HashMap::new(),
            gathered: BTreeMap::new(),
            bytes: 0,
            done: Healed::default(),
        };
        search.done.lost = lost.len() as u64;
        for lost in lost {
            search.by_hash.entry(lost.hash).or_default().push(lost.chunk);
        }
        for part in parts {
            let name = part.path.as_ref().and_then(|path| path.rsplit(|byte| *byte == b'/').next());
            let start = part.range.offset.checked_sub(u64::from(part.range.offset_in_chunk));
            if let (Some(name), Some(start)) = (name, start) {
                search.places.entry(name.to_vec()).or_default().push((start, part.chunk));
            }
        }
        let outcome = if search.by_hash.is_empty() {
            Ok(())
        } else {
            search.tell();
            search.look_into(path).and_then(|()| search.write())
        };
        *self.healing.lock() = None;
        outcome.map(|()| search.done)
    }

    /// How far whoever looks for lost bytes has come, if somebody does.
    pub fn heal_progress(&self) -> Option<Healed> {
        *self.healing.lock()
    }
}

struct Search<'a> {
    fs: &'a Fs,
    by_hash: HashMap<[u8; 32], Vec<ChunkId>>,
    /// Where a file of such a name should hold which chunk.
    places: HashMap<Vec<u8>, Vec<(u64, LostChunk)>>,
    gathered: BTreeMap<ChunkId, Vec<u8>>,
    /// How many bytes those are.
    bytes: usize,
    done: Healed,
}

impl Search<'_> {
    fn tell(&self) {
        *self.fs.healing.lock() = Some(self.done);
    }

    /// A file, or everything under a directory; links are not followed, and only what was named has to be readable.
    fn look_into(&mut self, path: &Path) -> io::Result<()> {
        let mut waiting = Vec::new();
        if std::fs::metadata(path)?.is_dir() {
            std::fs::read_dir(path)?;
            waiting.push(path.to_owned());
        } else {
            self.look_at(path)?;
        }
        while let Some(folder) = waiting.pop() {
            let Ok(entries) = std::fs::read_dir(&folder) else {
                self.done.unreadable += 1;
                continue;
            };
            for entry in entries {
                let kind = entry.as_ref().ok().and_then(|entry| entry.file_type().ok());
                let (Ok(entry), Some(kind)) = (entry, kind) else {
                    self.done.unreadable += 1;
                    continue;
                };
                if kind.is_dir() {
                    waiting.push(entry.path());
                } else if kind.is_file() && self.look_at(&entry.path()).is_err() {
                    self.done.unreadable += 1;
                }
            }
        }
        Ok(())
    }

    fn look_at(&mut self, path: &Path) -> io::Result<()> {
        let mut file = File::open(path)?;
        self.done.files += 1;
        let name = path.file_name().map(OsStrExt::as_bytes).unwrap_or_default();
        let places: Vec<_> = self.places.get(name).into_iter().flatten().copied().collect();
        for (start, chunk) in places {
            let mut found = vec![0; chunk.bytes as usize];
            file.seek(SeekFrom::Start(start))?;
            // The file may be shorter, or hold something else there: then these are not the bytes.
            if file.read_exact(&mut found).is_ok() && chunk.is(&found) {
                self.gather(chunk.chunk, &found)?;
            }
        }
        file.seek(SeekFrom::Start(0))?;
        let by_hash = std::mem::take(&mut self.by_hash);
        let looked =
            Store::look_for_chunks(&by_hash, &mut file, &mut |chunk, bytes| self.gather(chunk, bytes));
        self.by_hash = by_hash;
        self.done.bytes += looked?;
        self.tell();
        Ok(())
    }

    fn gather(&mut self, chunk: ChunkId, bytes: &[u8]) -> io::Result<()> {
        if self.gathered.insert(chunk, bytes.to_vec()).is_none() {
            self.bytes += bytes.len();
        }
        if self.bytes < GATHERED_BYTES_MAX { Ok(()) } else { self.write() }
    }

    fn write(&mut self) -> io::Result<()> {
        let gathered = std::mem::take(&mut self.gathered);
        self.bytes = 0;
        let given = self.fs.store.give_back(&gathered).map_err(io::Error::other)?;
        self.done.healed += given.len() as u64;
        self.tell();
        Ok(())
    }
}
