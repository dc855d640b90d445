//! Checking the tree: every name leads somewhere, every count is right, and nothing belongs to nobody.
//!
//! Memory: 12 bytes for each inode, and some 80 for each directory.

use crate::FsError;
use crate::fs::{Fs, HEAD, ROOT};
use crate::node::{S_IFDIR, S_IFMT};
use aegisfs_base::{InodeId, PolicyId, Tally};
use aegisfs_format::extent::decode_window;
use aegisfs_format::key::{self, Table};
use aegisfs_format::value::{Inode, decode_dirents};
use aegisfs_store::{Tables, View, versions};
use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;

/// The upper bits of a directory's mode in its entry.
const DIRECTORY: u8 = 4;

/// Something in the tree that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeProblem {
    /// The inode.
    pub inode: InodeId,
    /// What is wrong with it.
    pub what: String,
}

/// What a check of the tree found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TreeReport {
    /// What is not as it should be.
    pub problems: Vec<TreeProblem>,
    /// Inodes.
    pub inodes: u64,
    /// Names.
    pub names: u64,
    /// Bytes of files that are not stored as their policy says, or not yet. That is no problem of the tree.
    pub misplaced_bytes: u64,
}

/// What the names say of a directory.
#[derive(Clone, Copy, Default)]
struct Counted {
    subdirectories: u32,
    entries: u64,
    parent: InodeId,
}

/// What the other tables say, before the inodes are looked at.
#[derive(Default)]
struct Surroundings {
    names: Tally,
    directories: HashMap<InodeId, Counted>,
    orphans: HashSet<InodeId>,
    /// Inodes with references to chunks.
    extents: Tally,
}

impl Fs {
    /// Verifies that names, inodes and what belongs to them agree.
    ///
    /// # Errors
    /// When the metadata cannot be read.
    pub fn check_tree(&self) -> Result<TreeReport, FsError> {
        let mut check = Check { fs: self, view: self.store.head_view(HEAD)?, report: TreeReport::default() };
        let mut around = Surroundings::default();
        check.count_names(&mut around)?;
        check.scan(Table::Orphans, |_, stem, _| {
            around.orphans.extend(key::stem_inode(stem));
        })?;
        check.add_up_extents(&mut around)?;
        check.find_misplaced()?;
        let known = check.judge_inodes(&around)?;
        for table in [Table::Inline, Table::Xattr, Table::Orphans] {
            check.find_strays(table, &known)?;
        }
        check.find_circles(&around.directories);
        Ok(check.report)
    }
}

struct Check<'a> {
    fs: &'a Fs,
    view: Arc<View>,
    report: TreeReport,
}

impl Check<'_> {
    fn scan(&mut self, table: Table, mut visit: impl FnMut(&mut Self, &[u8], &[u8])) -> Result<(), FsError> {
        let (fs, view) = (self.fs, self.view.clone());
        versions::scan_visible(&fs.store.view(), table, &[], None, &view, &mut |stem, stored| {
            visit(self, stem, stored);
            ControlFlow::Continue(())
        })?;
        Ok(())
    }

    fn complain(&mut self, inode: InodeId, what: impl Into<String>) {
        self.report.problems.push(TreeProblem { inode, what: what.into() });
    }

    fn count_names(&mut self, around: &mut Surroundings) -> Result<(), FsError> {
        self.scan(Table::Dirent, |check, stem, stored| {
            let (Ok(parent), Ok(bucket)) = (key::stem_inode(stem), decode_dirents(stored)) else {
                check.complain(ROOT, "its entries cannot be read");
                return;
            };
            let hash = key::dirent_hash(stem).unwrap_or_default();
            for entry in bucket {
                check.report.names += 1;
                if check.fs.hasher.hash(&entry.name) != hash {
                    check.complain(parent, "an entry stands under another name's hash");
                }
                around.names.add_one(entry.inode.0);
                let above = around.directories.entry(parent).or_default();
                above.entries += 1;
                if entry.kind == DIRECTORY {
                    above.subdirectories += 1;
                    around.directories.entry(entry.inode).or_default().parent = parent;
                }
            }
        })
    }

    /// Adds up what each inode's references cover, and compares.
    fn add_up_extents(&mut self, around: &mut Surroundings) -> Result<(), FsError> {
        let mut current: Option<(InodeId, u64)> = None;
        self.scan(Table::Extents, |check, stem, stored| {
            let Ok(id) = key::stem_inode(stem) else { return };
            if let Some(before) = current.take_if(|(before, _)| *before != id) {
                check.compare_covered(before);
            }
            let (_, sum) = current.get_or_insert((id, 0));
            // A window that cannot be read is found with the references.
            let window = decode_window(stored).unwrap_or_default();
            let covered: u64 = window.iter().map(|reference| u64::from(reference.length)).sum();
            if covered > 0 && *sum == 0 {
                around.extents.add_one(id.0);
            }
            *sum += covered;
        })?;
        if let Some(last) = current {
            self.compare_covered(last);
        }
        Ok(())
    }

    /// Counts what is stored as another policy says than that of the file.
    fn find_misplaced(&mut self) -> Result<(), FsError> {
        let store = Arc::clone(&self.fs.store);
        if !store.has_policies() {
            return Ok(());
        }
        let head = store.view().head(HEAD)?;
        let mut current: Option<(InodeId, PolicyId)> = None;
        let mut outcome = Ok(());
        self.scan(Table::Extents, |check, stem, stored| {
            let Ok(id) = key::stem_inode(stem) else { return };
            if current.is_none_or(|(before, _)| before != id) {
                let inode = versions::visible(&store.view(), Table::Inode, &key::inode(id), &check.view);
                let inode = inode.ok().flatten().and_then(|stored| Inode::decode(&stored).ok());
                current = Some((id, inode.map(|inode| inode.policy).unwrap_or_default()));
            }
            let references = decode_window(stored).unwrap_or_default();
            for reference in references.iter().filter(|reference| !head.is_pinned(reference.birth)) {
                match store.policy_of_chunk(reference.chunk) {
                    Ok(Some(found)) if current.is_none_or(|(_, policy)| policy != found) => {
                        check.report.misplaced_bytes += u64::from(reference.length);
                    }
                    // What is missing is found with the references.
                    Ok(_) => {}
                    Err(error) => outcome = Err(error),
                }
            }
        })?;
        Ok(outcome?)
    }

    fn compare_covered(&mut self, (id, covered): (InodeId, u64)) {
        let stored = versions::visible(&self.fs.store.view(), Table::Inode, &key::inode(id), &self.view);
        // Inodes that cannot be read are found elsewhere.
        match stored.map(|stored| stored.map(|stored| Inode::decode(&stored))) {
            Ok(None) => self.complain_of_stray(id, Table::Extents),
            Ok(Some(Ok(inode))) if inode.allocated != covered => {
                self.complain(id, format!("has {} bytes noted and {covered} are covered", inode.allocated));
            }
            _ => {}
        }
    }

    fn complain_of_stray(&mut self, id: InodeId, table: Table) {
        self.complain(id, format!("is not there, but has entries among {}", table.name()));
    }

    /// Returns the inodes there are.
    fn judge_inodes(&mut self, around: &Surroundings) -> Result<Tally, FsError> {
        let mut known = Tally::default();
        let mut named = 0;
        self.scan(Table::Inode, |check, stem, stored| {
            let Ok(id) = key::stem_inode(stem) else { return };
            check.report.inodes += 1;
            known.add_one(id.0);
            named += u64::from(around.names.get(id.0) > 0);
            match Inode::decode(stored) {
                Ok(inode) => {
                    judge(id, &inode, around).into_iter().for_each(|what| check.complain(id, what));
                    if !check.fs.store.knows_policy(inode.policy) {
                        check.complain(id, format!("follows policy {}, which is none", inode.policy));
                    }
                }
                Err(error) => check.complain(id, error.to_string()),
            }
        })?;
        let missing = around.names.noted() - named;
        if missing > 0 {
            self.complain(ROOT, format!("{missing} names lead to inodes that are not there"));
        }
        Ok(known)
    }

    /// Entries whose inode is not there: nobody would ever remove them.
    fn find_strays(&mut self, table: Table, known: &Tally) -> Result<(), FsError> {
        let mut last = None;
        self.scan(table, |check, stem, _| {
            if let Ok(id) = key::stem_inode(stem)
                && known.get(id.0) == 0
                && last.replace(id) != Some(id)
            {
                check.complain_of_stray(id, table);
            }
        })
    }

    /// Directories from which no way leads up to the root.
    fn find_circles(&mut self, directories: &HashMap<InodeId, Counted>) {
        let mut fine = HashSet::from([ROOT]);
        for start in directories.keys() {
            let mut way = Vec::new();
            let mut here = *start;
            let mut on_way = HashSet::new();
            while !fine.contains(&here) && on_way.insert(here) {
                way.push(here);
                // A parent without a name is an orphan or was complained of.
                let Some(above) = directories.get(&here).filter(|d| d.parent != InodeId(0)) else { break };
                here = above.parent;
            }
            if on_way.contains(&here) && directories.get(&here).is_some_and(|d| d.parent != InodeId(0)) {
                self.complain(here, "is a directory inside of itself");
            }
            fine.extend(way);
        }
    }
}

fn judge(id: InodeId, inode: &Inode, around: &Surroundings) -> Vec<String> {
    let mut problems = Vec::new();
    let names = around.names.get(id.0);
    if inode.mode & S_IFMT == S_IFDIR {
        let counted = around.directories.get(&id).copied().unwrap_or_default();
        let expected = if names == 0 && id != ROOT { 0 } else { 2 + counted.subdirectories };
        if inode.nlink != expected {
            problems.push(format!("has {} links noted and {expected} counted", inode.nlink));
        }
        if inode.size != counted.entries {
            problems.push(format!("has {} entries noted and {} counted", inode.size, counted.entries));
        }
        if id != ROOT && names == 1 && inode.parent != counted.parent {
            problems.push(format!("is in directory {} but says {}", counted.parent, inode.parent));
        }
        if names > 1 {
            problems.push(format!("is a directory with {names} names"));
        }
    } else if inode.nlink != names {
        problems.push(format!("has {} links noted and {names} counted", inode.nlink));
    }
    if inode.nlink == 0 && !around.orphans.contains(&id) {
        problems.push("has no name and is on no list to be reaped".into());
    }
    if inode.allocated > 0 && around.extents.get(id.0) == 0 {
        problems.push(format!("has {} bytes noted and none are covered", inode.allocated));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::tests::mounted;
    use crate::{Kind, MakeOptions};
    use aegisfs_format::op::Op;
    use aegisfs_format::value::{Dirent, encode_dirents, wrap};

    fn directory(fs: &Fs, parent: InodeId, name: &[u8]) -> InodeId {
        fs.make(parent, name, Kind::Directory, &MakeOptions::default()).unwrap().id
    }

    fn stored(fs: &Fs, id: InodeId) -> Inode {
        let view = fs.store.head_view(HEAD).unwrap();
        let found = versions::visible(&fs.store.view(), Table::Inode, &key::inode(id), &view).unwrap();
        Inode::decode(&found.unwrap()).unwrap()
    }

    fn put(table: Table, stem: &[u8], value: Vec<u8>) -> Op {
        Op::PutVersion { table, stem: stem.to_vec(), value }
    }

    fn put_inode(id: InodeId, inode: &Inode) -> Op {
        put(Table::Inode, &key::inode(id), inode.encode())
    }

    /// The stem under which a name stands, and the entry itself.
    fn entry(fs: &Fs, parent: InodeId, name: &[u8], inode: InodeId) -> ([u8; 16], Vec<u8>) {
        let entry = Dirent { ordinal: 0, kind: DIRECTORY, inode, name: name.to_vec() };
        (key::dirent(parent, fs.hasher.hash(name)), encode_dirents(&[entry]))
    }

    /// What a check says after changes that the filesystem itself would never make.
    fn after(fs: &Fs, ops: Vec<Op>) -> Vec<(u64, String)> {
        assert_eq!(fs.check_tree().unwrap().problems, []);
        fs.commit(ops).unwrap();
        fs.check_tree().unwrap().problems.into_iter().map(|p| (p.inode.0, p.what)).collect()
    }

    #[test]
    fn entries_of_no_inode_are_named() {
        let id = InodeId(77);
        for (table, stem, value) in [
            (Table::Inline, key::inode(id).to_vec(), wrap(b"x")),
            (Table::Xattr, key::xattr(id, b"user.x"), wrap(b"x")),
            (Table::Orphans, key::inode(id).to_vec(), wrap(b"x")),
            (Table::Extents, key::extents(id, 0).to_vec(), wrap(b"")),
        ] {
            let found = after(&mounted(), vec![put(table, &stem, value)]);
            assert_eq!(found, [(77, format!("is not there, but has entries among {}", table.name()))]);
        }
    }

    #[test]
    fn bytes_noted_and_covered_are_compared() {
        let fs = mounted();
        let (file, handle) = fs.create(ROOT, b"file", &MakeOptions::default()).unwrap();
        fs.write(handle, 0, &[7; 5000]).unwrap();
        fs.sync().unwrap();
        let inode = stored(&fs, file.id);
        let found = after(&fs, vec![put_inode(file.id, &Inode { allocated: 4999, ..inode })]);
        assert_eq!(found, [(file.id.0, "has 4999 bytes noted and 5000 are covered".into())]);
        let fs = mounted();
        let id = directory(&fs, ROOT, b"a");
        let found = after(&fs, vec![put_inode(id, &Inode { allocated: 1, ..stored(&fs, id) })]);
        assert_eq!(found, [(id.0, "has 1 bytes noted and none are covered".into())]);
    }

    /// Every name and every count is right, and yet nobody gets there.
    #[test]
    fn directories_inside_of_themselves_are_named() {
        let fs = mounted();
        let a = directory(&fs, ROOT, b"a");
        let b = directory(&fs, a, b"b");
        let root = stored(&fs, ROOT);
        let (old, _) = entry(&fs, ROOT, b"a", a);
        let (new, value) = entry(&fs, b, b"a", a);
        let found = after(
            &fs,
            vec![
                Op::RemoveVersion { table: Table::Dirent, stem: old.to_vec() },
                put(Table::Dirent, &new, value),
                put_inode(ROOT, &Inode { size: 0, nlink: 2, ..root }),
                put_inode(b, &Inode { size: 1, nlink: 3, ..stored(&fs, b) }),
                put_inode(a, &Inode { parent: b, ..stored(&fs, a) }),
            ],
        );
        assert!(
            matches!(&found[..], [(id, what)] if [a.0, b.0].contains(id) && what == "is a directory inside of itself"),
            "{found:?}"
        );
    }

    #[test]
    fn names_and_links_are_counted() {
        let fs = mounted();
        let id = directory(&fs, ROOT, b"a");
        let (stem, value) = entry(&fs, id, b"gone", InodeId(99));
        let found = after(&fs, vec![put(Table::Dirent, &stem, value)]);
        let mut said: Vec<String> = found.into_iter().map(|(_, what)| what).collect();
        said.sort();
        let expected = [
            "1 names lead to inodes that are not there",
            "has 0 entries noted and 1 counted",
            "has 2 links noted and 3 counted",
        ];
        assert_eq!(said, expected);
    }
}
