//! Checking the tree: every name leads somewhere, every count is right.

use crate::FsError;
use crate::fs::{Fs, HEAD, ROOT};
use crate::node::{S_IFDIR, S_IFMT};
use aegisfs_base::InodeId;
use aegisfs_format::key::{self, Table};
use aegisfs_format::value::{Inode, decode_dirents};
use aegisfs_store::versions;
use std::collections::HashMap;
use std::ops::ControlFlow;

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
}

/// What the names say of an inode.
#[derive(Clone, Copy, Default)]
struct Counted {
    names: u32,
    subdirectories: u32,
    entries: u64,
    parent: InodeId,
}

impl Fs {
    /// Verifies that names and inodes agree.
    ///
    /// # Errors
    /// When the metadata cannot be read.
    pub fn check_tree(&self) -> Result<TreeReport, FsError> {
        let mut report = TreeReport::default();
        let counted = self.count_names(&mut report)?;
        let view = self.store.head_view(HEAD)?;
        let mut orphans = std::collections::HashSet::new();
        versions::scan_visible(&self.store.view(), Table::Orphans, &[], None, &view, &mut |stem, _| {
            orphans.extend(key::stem_inode(stem));
            ControlFlow::Continue(())
        })?;
        let mut seen = 0usize;
        versions::scan_visible(&self.store.view(), Table::Inode, &[], None, &view, &mut |stem, stored| {
            let Ok(id) = key::stem_inode(stem) else { return ControlFlow::Continue(()) };
            report.inodes += 1;
            let names = counted.get(&id).copied();
            seen += usize::from(names.is_some_and(|n| n.names > 0));
            match Inode::decode(stored) {
                Ok(inode) => {
                    let problems = judge(id, &inode, names.unwrap_or_default(), orphans.contains(&id));
                    report.problems.extend(problems.into_iter().map(|what| TreeProblem { inode: id, what }));
                }
                Err(error) => report.problems.push(TreeProblem { inode: id, what: error.to_string() }),
            }
            ControlFlow::Continue(())
        })?;
        let named = counted.values().filter(|n| n.names > 0).count();
        if seen != named {
            let what = format!("{} names lead to inodes that are not there", named - seen);
            report.problems.push(TreeProblem { inode: ROOT, what });
        }
        Ok(report)
    }

    fn count_names(&self, report: &mut TreeReport) -> Result<HashMap<InodeId, Counted>, FsError> {
        const DIRECTORY: u8 = 4;
        let view = self.store.head_view(HEAD)?;
        let mut counted: HashMap<InodeId, Counted> = HashMap::new();
        versions::scan_visible(&self.store.view(), Table::Dirent, &[], None, &view, &mut |stem, stored| {
            let (Ok(parent), Ok(bucket)) = (key::stem_inode(stem), decode_dirents(stored)) else {
                let what = "its entries cannot be read".to_owned();
                report.problems.push(TreeProblem { inode: ROOT, what });
                return ControlFlow::Continue(());
            };
            let hash = key::dirent_hash(stem).unwrap_or_default();
            for entry in bucket {
                report.names += 1;
                if self.hasher.hash(&entry.name) != hash {
                    let what = "an entry stands under another name's hash".to_owned();
                    report.problems.push(TreeProblem { inode: parent, what });
                }
                let above = counted.entry(parent).or_default();
                above.entries += 1;
                above.subdirectories += u32::from(entry.kind == DIRECTORY);
                let below = counted.entry(entry.inode).or_default();
                below.names += 1;
                below.parent = parent;
            }
            ControlFlow::Continue(())
        })?;
        Ok(counted)
    }
}

fn judge(id: InodeId, inode: &Inode, names: Counted, orphan: bool) -> Vec<String> {
    let mut problems = Vec::new();
    if inode.mode & S_IFMT == S_IFDIR {
        let expected = if names.names == 0 && id != ROOT { 0 } else { 2 + names.subdirectories };
        if inode.nlink != expected {
            problems.push(format!("has {} links noted and {expected} counted", inode.nlink));
        }
        if inode.size != names.entries {
            problems.push(format!("has {} entries noted and {} counted", inode.size, names.entries));
        }
        if id != ROOT && names.names == 1 && inode.parent != names.parent {
            problems.push(format!("is in directory {} but says {}", names.parent, inode.parent));
        }
        if names.names > 1 {
            problems.push(format!("is a directory with {} names", names.names));
        }
    } else if inode.nlink != names.names {
        problems.push(format!("has {} links noted and {} counted", inode.nlink, names.names));
    }
    if inode.nlink == 0 && !orphan {
        problems.push("has no name and is on no list to be reaped".into());
    }
    problems
}
