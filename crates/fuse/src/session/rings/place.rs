//! A place for one request, in a ring of its own: the memory that the kernel fills and reads, and the commands.

use crate::abi::{RingCommand, RingHeaders, ring};
use crate::reply::Reply;
use aegisfs_fs::Errno;
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use zerocopy::{FromBytes, IntoBytes};

/// Commands that can wait to be handed over; there is never more than one.
const COMMANDS: u32 = 2;
/// Pieces of memory that a place offers: headers, and the body.
const PIECES: usize = 2;
/// Where a command's count of pieces stands, in units of four bytes.
const COUNT_AT: usize = 6;

/// What the kernel says of a connection that has ended; the last where it ended while a reply was on its way.
const ENDS: [i32; 4] = [libc::ENOTCONN, libc::ENODEV, libc::ECANCELED, libc::ENOENT];

type Ring = IoUring<squeue::Entry128, cqueue::Entry>;

/// A place for one request.
pub(super) struct Place {
    ring: Ring,
    device: i32,
    queue: u16,
    memory: Option<Memory>,
    /// The kernel has the memory.
    lent: bool,
}

/// What the kernel knows by its addresses: nothing of it may move.
struct Memory {
    headers: Box<RingHeaders>,
    body: Reply,
    pieces: Box<[[u64; 2]; PIECES]>,
}

/// A request that came.
pub(super) struct Taken<'a> {
    /// Its header.
    pub(super) header: &'a [u8],
    /// The structure of its opcode.
    pub(super) head: &'a [u8],
    /// How many bytes of names and data there are, at the beginning of the room for the reply.
    pub(super) rest: usize,
    /// Where the reply goes.
    pub(super) reply: &'a mut Reply,
}

/// Whether an error only says that the connection has ended.
pub(super) fn is_end(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|number| ENDS.contains(&number))
}

/// Whether this process can have a ring as it is needed here.
pub(super) fn try_ring() -> io::Result<()> {
    new_ring().map(|_| ())
}

fn new_ring() -> io::Result<Ring> {
    // Completions are brought about by whoever waits for them, on the processor that it is bound to.
    IoUring::builder().dontfork().setup_single_issuer().setup_defer_taskrun().build(COMMANDS)
}

impl Place {
    /// A place of a queue, used by this thread only.
    ///
    /// # Errors
    /// When the kernel gives no ring.
    pub(super) fn new(device: &OwnedFd, queue: usize, body_bytes: usize) -> io::Result<Self> {
        let mut headers = Box::<RingHeaders>::default();
        let mut body = Reply::with_room(body_bytes);
        let room = body.room();
        let pieces = Box::new([
            [(&raw mut *headers).expose_provenance() as u64, size_of::<RingHeaders>() as u64],
            [room.as_mut_ptr().expose_provenance() as u64, room.len() as u64],
        ]);
        Ok(Self {
            ring: new_ring()?,
            device: device.as_raw_fd(),
            queue: queue as u16,
            memory: Some(Memory { headers, body, pieces }),
            lent: false,
        })
    }

    fn memory(&mut self) -> &mut Memory {
        self.memory.as_mut().expect("it goes with the place")
    }

    /// Offers the place to the kernel. A refusal comes at once, a request later.
    ///
    /// # Errors
    /// When the kernel does not take it.
    pub(super) fn offer(&mut self) -> io::Result<()> {
        let pieces = self.memory().pieces.as_ptr().expose_provenance() as u64;
        self.command(ring::REGISTER, 0, Some(pieces))?;
        self.ring.submit()?;
        match self.ring.completion().next() {
            None => Ok(()),
            Some(completed) if completed.result() == 0 => {
                self.lent = false;
                Ok(())
            }
            Some(completed) => {
                self.lent = false;
                Err(io::Error::from_raw_os_error(-completed.result()))
            }
        }
    }

    /// Gives the reply that stands in the place, and offers the place again.
    pub(super) fn commit(&mut self, outcome: Result<(), Errno>) -> io::Result<()> {
        let Memory { headers, body, .. } = self.memory();
        let (header, _) = crate::abi::InHeader::read_from_prefix(headers.in_out.as_bytes())
            .expect("there is room for a header");
        let answer = body.header(header.unique, outcome);
        headers.in_out.as_mut_bytes()[..size_of_val(&answer)].copy_from_slice(answer.as_bytes());
        headers.place.payload_bytes = body.body().len() as u32;
        let commit = headers.place.commit_id;
        self.command(ring::COMMIT_AND_FETCH, commit, None)
    }

    /// Waits for a request. False means that the connection ended.
    pub(super) fn wait(&mut self) -> io::Result<bool> {
        // One came with the offer.
        if !self.lent {
            return Ok(true);
        }
        loop {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The machine is short of memory for a moment.
                Err(error) if matches!(error.raw_os_error(), Some(11 | 16)) => std::thread::yield_now(),
                Err(error) => return Err(error),
            }
            let Some(completed) = self.ring.completion().next() else { continue };
            self.lent = false;
            let error = io::Error::from_raw_os_error(-completed.result());
            return match completed.result() {
                0 => Ok(true),
                _ if is_end(&error) => Ok(false),
                _ => Err(error),
            };
        }
    }

    /// The request that came.
    pub(super) fn taken(&mut self) -> Taken<'_> {
        let Memory { headers, body, .. } = self.memory();
        let rest = (headers.place.payload_bytes as usize).min(body.room().len());
        Taken { header: headers.in_out.as_bytes(), head: headers.op_in.as_bytes(), rest, reply: body }
    }

    fn command(&mut self, operation: u32, commit_id: u64, pieces: Option<u64>) -> io::Result<()> {
        let content = RingCommand { flags: 0, commit_id, queue: self.queue, padding: [0; 6] };
        let mut bytes = [0; 80];
        bytes[..size_of_val(&content)].copy_from_slice(content.as_bytes());
        let command = opcode::UringCmd80::new(types::Fd(self.device), operation);
        let mut entry = command.cmd(bytes).addr(pieces).build();
        if pieces.is_some() {
            entry = with_count(entry, PIECES as u32);
        }
        self.lent = true;
        let mut commands = self.ring.submission();
        // SAFETY: what the command points to stays where it is until the kernel gives it back: dropping a place
        // that is lent leaves its memory behind. The device outlives the threads that serve it.
        let pushed = unsafe { commands.push(&entry) };
        pushed.map_err(|_| io::Error::other("the ring is full"))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.lent {
            std::mem::forget(self.memory.take());
        }
    }
}

/// Sets how many pieces a command points to, for which the library has no word.
fn with_count(entry: squeue::Entry128, count: u32) -> squeue::Entry128 {
    // SAFETY: an entry is the kernel's structure of 128 bytes, in which every pattern of bits is allowed.
    let mut words = unsafe { std::mem::transmute::<squeue::Entry128, [u32; 32]>(entry) };
    words[COUNT_AT] = count;
    // SAFETY: as above; only the count has changed.
    unsafe { std::mem::transmute::<[u32; 32], squeue::Entry128>(words) }
}
