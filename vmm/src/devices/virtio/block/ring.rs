//! Requests of a disk whose bytes lie in files, many at once, by io_uring.
//!
//! Nothing is under way when a turn is over: what is asked for in a turn is waited for in it, and what
//! the driver makes available meanwhile goes with it. So a snapshot, a reset and a discard find the disk
//! at rest.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, register::Restriction};

use super::counters::Counters;
use super::disk::Disk;
use super::request::{Ask, Request};
use crate::devices::virtio::buffers;

/// How long a request waits for others that are under way before it is begun.
const LOOK_AGAIN: Duration = Duration::from_micros(250);

/// A ring that can read, write and flush, and nothing else that a ring might: no filter of system calls
/// sees what is asked for there.
pub struct Ring(IoUring);

impl Ring {
    /// One for so many requests at once; an error where the kernel has none to give, as in many a
    /// container.
    pub fn new(depth: u16) -> io::Result<Self> {
        let ring = IoUring::builder().setup_r_disabled().build(depth.into())?;
        if !ring.params().is_feature_ext_arg() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let asks = [
            opcode::Readv::CODE,
            opcode::Writev::CODE,
            opcode::Fsync::CODE,
        ];
        let submitter = ring.submitter();
        submitter.register_restrictions(&mut asks.map(Restriction::sqe_op))?;
        submitter.register_enable_rings()?;
        Ok(Self(ring))
    }
}

/// A chain: the queue that it came by, and its head.
#[derive(Debug, Clone, Copy)]
pub struct Origin {
    /// The queue's number among those that the driver set up.
    pub queue: usize,
    /// The chain's first descriptor.
    pub head: u16,
}

/// A request, the chain that it came in, and where the kernel finds its buffers.
struct Asked<'m> {
    origin: Origin,
    request: Request<'m>,
    _data: Vec<libc::iovec>,
}

/// What is under way in a turn.
pub struct UnderWay<'m> {
    ring: &'m mut Ring,
    depth: usize,
    /// As many as there were at once.
    slots: Vec<Option<Asked<'m>>>,
    free: Vec<usize>,
}

impl<'m> UnderWay<'m> {
    /// Nothing, of `depth` requests at most, for which `ring` was made.
    pub fn new(ring: &'m mut Ring, depth: u16) -> Self {
        Self {
            ring,
            depth: depth.into(),
            slots: Vec::new(),
            free: Vec::new(),
        }
    }

    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Whether there is room for one more.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty() || self.slots.len() < self.depth
    }

    /// Asks `file`, one of the disk's, for what `request` wants of it at `at`. It begins when somebody
    /// waits. The request comes back where there is no room, or nothing to ask a file for.
    pub fn ask(
        &mut self,
        (file, at): (&File, u64),
        origin: Origin,
        request: Request<'m>,
    ) -> Result<(), Request<'m>> {
        let data = buffers::iovecs(&request.data);
        let (fd, is_data) = (Fd(file.as_raw_fd()), buffers::len(&request.data) > 0);
        let (table, count) = (data.as_ptr(), data.len() as u32);
        let entry = match request.ask {
            _ if !self.has_room() => return Err(request),
            Ask::Read(_) if is_data => opcode::Readv::new(fd, table, count).offset(at).build(),
            Ask::Write(_) if is_data => opcode::Writev::new(fd, table, count).offset(at).build(),
            Ask::Flush => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
            _ => return Err(request),
        };
        let asked = Asked {
            origin,
            request,
            _data: data,
        };
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        let entry = entry.user_data(slot as u64);
        // SAFETY: the table of buffers lies on the heap and stays in its slot, and the buffers in the
        // guest's memory, until the kernel has said that it is done: a slot is emptied then only, and
        // all of them are waited for before this is dropped. The file is one of the disk's,
        // which are open longer.
        let pushed = unsafe { self.ring.0.submission().push(&entry) };
        match (pushed, self.slots.get_mut(slot)) {
            (Ok(()), Some(place)) => {
                *place = Some(asked);
                Ok(())
            }
            _ => {
                self.free.push(slot);
                Err(asked.request)
            }
        }
    }

    /// Begins what was asked for, and waits for one of them, or a moment. Each that is done is ended
    /// and handed to `done`: its chain, and how many bytes were written to it.
    pub fn wait(
        &mut self,
        disk: &mut dyn Disk,
        counters: &Counters,
        mut done: impl FnMut(Origin, u32),
    ) {
        self.reap(|asked, result| {
            let Asked {
                origin, request, ..
            } = asked;
            let outcome = match usize::try_from(result) {
                // The rest, where a file gives or takes only a part.
                Ok(moved) if moved < buffers::len(&request.data) => match moved {
                    0 => Err(io::ErrorKind::UnexpectedEof.into()),
                    _ => request.carry_on(disk, moved),
                },
                Ok(_) => Ok(()),
                Err(_) if [-libc::EAGAIN, -libc::EINTR].contains(&result) => {
                    request.carry_on(disk, 0)
                }
                Err(_) => Err(io::Error::from_raw_os_error(-result)),
            };
            done(origin, request.end(outcome, counters));
        });
    }

    fn reap(&mut self, mut done: impl FnMut(Asked<'m>, i32)) {
        let moment = Timespec::from(LOOK_AGAIN);
        let arguments = SubmitArgs::new().timespec(&moment);
        match self.ring.0.submitter().submit_with_args(1, &arguments) {
            Ok(_) => {}
            // Nothing was done in that moment; or a signal came, or the kernel has much to do.
            Err(error)
                if [libc::ETIME, libc::EINTR, libc::EAGAIN, libc::EBUSY]
                    .contains(&error.raw_os_error().unwrap_or(0)) => {}
            Err(error) => {
                tracing::debug!("block: io_uring: {error}");
                std::thread::sleep(LOOK_AGAIN);
            }
        }
        for entry in self.ring.0.completion() {
            let slot = entry.user_data() as usize;
            if let Some(asked) = self.slots.get_mut(slot).and_then(Option::take) {
                self.free.push(slot);
                done(asked, entry.result());
            }
        }
    }
}

impl Drop for UnderWay<'_> {
    /// Waits for what the kernel has yet: it may be writing to the guest's memory.
    fn drop(&mut self) {
        while !self.is_empty() {
            self.reap(|_, _| {});
        }
    }
}

#[cfg(test)]
impl Ring {
    /// One, or a line that says why the test is skipped.
    pub fn or_say_why(depth: u16) -> Option<Self> {
        Self::new(depth)
            .inspect_err(|error| eprintln!("skipped: this host has no io_uring: {error}"))
            .ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_does_nothing_but_read_write_and_flush() {
        let Some(mut ring) = Ring::or_say_why(4) else {
            return;
        };
        let path = c"/etc/passwd";
        let open = opcode::OpenAt::new(Fd(libc::AT_FDCWD), path.as_ptr()).build();
        let poll = opcode::PollAdd::new(Fd(0), libc::POLLIN as u32).build();
        for entry in [open, poll] {
            // SAFETY: the path is a literal.
            unsafe { ring.0.submission().push(&entry) }.unwrap();
            ring.0.submit_and_wait(1).unwrap();
            let answer = ring.0.completion().next().unwrap();
            assert_eq!(answer.result(), -libc::EACCES);
        }
    }
}
