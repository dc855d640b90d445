//! Verbs on content.

use crate::bytes::Bytes;
use crate::judge;
use crate::player::Player;
use crate::tree::{Content, Touch};
use aegisfs_base::limits::FILE_BYTES_MAX;
use aegisfs_base::{InodeId, Rng};
use aegisfs_fs::{Changes, CopyEnd, Errno, HandleId, Whence};

impl Player {
    /// Bytes of this length: noise, a piece of the stock, or all the same.
    pub(crate) fn bytes(&self, length: usize) -> Vec<u8> {
        match self.rng.below(3) {
            0 => vec![self.rng.below(256) as u8; length],
            1 => {
                let start = self.rng.below(3) as usize * 20_000;
                self.stock[start..start + length].to_vec()
            }
            _ => {
                let mut data = vec![0; length];
                self.rng.fill(&mut data);
                data
            }
        }
    }

    fn length(&self) -> u64 {
        let most = match self.rng.below(10) {
            0 => 120 << 10,
            1 => 40 << 10,
            2 | 3 => 6 << 10,
            4..7 => 700,
            _ => 60,
        };
        self.rng.below(most)
    }

    /// Somewhere in a file, near its end, or far behind it.
    fn offset(&self, size: u64) -> u64 {
        match self.rng.below(20) {
            0..4 => 0,
            4..8 => size,
            8..14 => self.rng.below(size.min(1 << 20) + 1),
            14..17 => size.min(1 << 20) + self.rng.below(9000),
            17 => self.rng.below(3 << 20),
            18 => size.saturating_sub(self.rng.below(300)),
            _ => 1 << (20 + self.rng.below(40)),
        }
    }

    /// A handle for a file: one that is open, or one for the occasion.
    fn borrow(&self, id: InodeId) -> (HandleId, bool) {
        match self.handles.iter().find(|(_, opened)| *opened == id) {
            Some((handle, _)) => (*handle, false),
            None => (self.fs().open(id).expect("a file can be opened"), true),
        }
    }

    fn give_back(&self, (handle, borrowed): (HandleId, bool)) {
        if borrowed {
            self.fs().release(handle).expect("it is open");
        }
    }

    fn content(&self, id: InodeId) -> &Bytes {
        self.tree.inodes[&id].file().expect("it is a file")
    }

    fn content_mut(&mut self, id: InodeId) -> &mut Bytes {
        self.tree.get_mut(id).file_mut().expect("it is a file")
    }

    /// Whoever writes is no longer known to be the owner.
    fn strip_owner_bits(&mut self, id: InodeId) {
        let inode = self.tree.get_mut(id);
        inode.mode &= !0o4_000;
        if inode.mode & 0o010 != 0 {
            inode.mode &= !0o2_000;
        }
    }

    pub(crate) fn write(&mut self) {
        let Some(id) = self.file() else { return self.make() };
        let offset = self.offset(self.content(id).size);
        let length = self.length();
        let offset = if self.rng.below(60) == 0 { FILE_BYTES_MAX - length / 2 } else { offset };
        let data = self.bytes(length as usize);
        self.tell(format_args!("write {id} at {offset}, {length} bytes"));
        let before = self.now();
        let expected = match offset.checked_add(length) {
            _ if length == 0 => Ok(0),
            Some(end) if end <= FILE_BYTES_MAX => self.tree.inodes[&id].may_grow().map(|()| length as usize),
            _ => Err(Errno::EFBIG),
        };
        let handle = self.borrow(id);
        let outcome = self.agree(self.fs().write(handle.0, offset, &data), expected);
        self.give_back(handle);
        let Some((written, expected)) = outcome else { return };
        assert_eq!(written, expected);
        if written == 0 {
            return self.compare(&[Touch::nothing(id)], before);
        }
        self.content_mut(id).write(offset, &data);
        self.strip_owner_bits(id);
        self.compare(&[Touch::content(id)], before);
    }

    pub(crate) fn read(&mut self) {
        let Some(id) = self.file() else { return self.make() };
        let offset = self.offset(self.content(id).size);
        let length = self.length() as usize * 2;
        self.tell(format_args!("read {id} at {offset}, {length} bytes"));
        let before = self.now();
        let handle = self.borrow(id);
        judge::compare_read(self.fs(), handle.0, self.content(id), offset, length);
        self.give_back(handle);
        self.compare(&[Touch::nothing(id)], before);
    }

    pub(crate) fn truncate(&mut self) {
        let id = if self.rng.below(12) == 0 { Some(self.any_inode()) } else { self.file() };
        let Some(id) = id else { return self.make() };
        let old = self.tree.get(id).map_or(0, |inode| inode.size());
        let size = match self.rng.below(40) {
            0 => FILE_BYTES_MAX + 1,
            1..4 => old,
            4..8 => self.rng.below(600),
            _ => self.offset(old),
        };
        self.tell(format_args!("truncate {id} to {size}"));
        let before = self.now();
        let changes = Changes { size: Some(size), ..Changes::default() };
        let real = self.fs().setattr(id, &changes).map(drop);
        let expected = match self.tree.get(id).map(|inode| &inode.content) {
            Err(error) => Err(error),
            _ if size > FILE_BYTES_MAX => Err(Errno::EFBIG),
            Ok(Content::File(_)) => self.tree.inodes[&id].may_change().map(|()| vec![Touch::content(id)]),
            Ok(Content::Directory { .. }) => Err(Errno::EISDIR),
            Ok(_) => Err(Errno::EINVAL),
        };
        if expected.is_ok() {
            self.content_mut(id).resize(size);
        }
        self.settle(real, expected, before);
    }

    pub(crate) fn allocate(&mut self) {
        let Some(id) = self.file() else { return self.make() };
        let size = self.content(id).size;
        let (offset, length) =
            (self.offset(size), if self.rng.below(20) == 0 { 0 } else { 1 + self.length() });
        let length = if self.rng.below(15) == 0 { 1 << 59 } else { length };
        let mode = [0, 1, 3, 3, 3, 16, 17, 2, 8][self.rng.below(9) as usize];
        let length = if mode < 2 { length.min(1 << 20) } else { length };
        self.tell(format_args!("fallocate {id} at {offset}, {length} bytes, mode {mode}"));
        let end = offset + length;
        let before = self.now();
        let handle = self.borrow(id);
        let real = self.fs().fallocate(handle.0, offset, length, mode);
        self.give_back(handle);
        let clears = matches!(mode, 3 | 16 | 17);
        let grows = mode & 1 == 0 && end > size;
        let expected = if length == 0 {
            Err(Errno::EINVAL)
        } else if let Err(error) =
            if mode < 2 { self.tree.inodes[&id].may_grow() } else { self.tree.inodes[&id].may_change() }
        {
            Err(error)
        } else if mode == 2 || mode == 8 {
            Err(Errno::EOPNOTSUPP)
        } else {
            Ok(vec![if clears || grows { Touch::content(id) } else { Touch::nothing(id) }])
        };
        if expected.is_ok() {
            let content = self.content_mut(id);
            if clears {
                content.clear(offset..end);
            }
            if grows {
                content.resize(end);
            }
        }
        self.settle(real, expected, before);
    }

    pub(crate) fn seek(&mut self) {
        let Some(id) = self.file() else { return self.make() };
        let size = self.content(id).size;
        let offset = self.offset(size);
        self.tell(format_args!("lseek {id} from {offset}"));
        let handle = self.borrow(id);
        for whence in [Whence::Data, Whence::Hole] {
            let found = self.fs().lseek(handle.0, offset, whence).map_err(|error| error.errno());
            self.judge_seek(id, offset, whence, found);
        }
        self.give_back(handle);
    }

    fn judge_seek(&self, id: InodeId, offset: u64, whence: Whence, found: Result<u64, Errno>) {
        let content = self.content(id);
        match (whence, found) {
            (_, Err(error)) => {
                assert_eq!(error, Errno::ENXIO);
                let silent = offset >= content.size
                    || whence == Whence::Data && !content.has_data(offset..content.size);
                assert!(silent, "{whence:?} from {offset} finds nothing");
            }
            (_, Ok(at)) if at < offset || at > content.size => {
                panic!("{whence:?} from {offset} goes to {at}")
            }
            (Whence::Data, Ok(at)) => {
                assert!(!content.has_data(offset..at), "data between {offset} and {at} is passed over");
                assert!(!content.has_hole(at..at + 1), "there never was data at {at}");
            }
            (Whence::Hole, Ok(at)) => {
                assert!(!content.has_hole(offset..at), "a hole between {offset} and {at} is passed over");
                assert!(at == content.size || !content.has_data(at..at + 1), "there is data at {at}");
            }
        }
    }

    pub(crate) fn copy(&mut self) {
        let (Some(from), Some(to)) = (self.file(), self.file()) else { return self.make() };
        let size = self.content(from).size;
        let (offset, at) = (self.offset(size), self.offset(self.content(to).size).min(1 << 40));
        let length = self.length() * 2;
        self.tell(format_args!("copy {from}+{offset} to {to}+{at}, {length} bytes"));
        let before = self.now();
        let (source, target) = (self.borrow(from), self.borrow(to));
        let (a, b) = (CopyEnd { handle: source.0, offset }, CopyEnd { handle: target.0, offset: at });
        let real = self.fs().copy_range(a, b, length);
        self.give_back(source);
        self.give_back(target);
        let length = length.min(size.saturating_sub(offset));
        let apart = offset + length <= at || at + length <= offset;
        let overlap = from == to && !apart;
        let expected = if overlap { Err(Errno::EINVAL) } else { self.tree.inodes[&to].may_grow() };
        let expected = expected.map(|()| length);
        let Some((copied, expected)) = self.agree(real, expected) else { return };
        assert_eq!(copied, expected, "bytes copied");
        if copied == 0 {
            return self.compare(&[Touch::nothing(from), Touch::nothing(to)], before);
        }
        let piece = self.content(from).read(offset, copied);
        self.content_mut(to).copy(at, &piece);
        self.strip_owner_bits(to);
        self.compare(&[Touch::content(to), Touch::nothing(from)], before);
    }
}
