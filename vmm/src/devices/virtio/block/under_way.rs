//! Requests of a disk whose bytes lie in files, many at once.
//!
//! Nothing is under way when a turn is over: what is asked for in a turn is waited for in it, and what
//! the driver makes available meanwhile goes with it. So a snapshot, a reset and a discard find the disk
//! at rest.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use super::aio::{Aio, Call, Kind};
use super::counters::Counters;
use super::disk::Disk;
use super::request::{Ask, Request};
use crate::devices::virtio::buffers;

/// How long a request waits for others that are under way before it is begun.
const LOOK_AGAIN: Duration = Duration::from_micros(250);

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
    data: Vec<libc::iovec>,
}

/// What is under way in a turn.
pub struct UnderWay<'m> {
    aio: &'m mut Aio,
    depth: usize,
    /// As many as there were at once.
    slots: Vec<Option<Asked<'m>>>,
    free: Vec<usize>,
}

impl<'m> UnderWay<'m> {
    /// Nothing, of `depth` requests at most, for which `aio` was made.
    pub fn new(aio: &'m mut Aio, depth: u16) -> Self {
        Self {
            aio,
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
        let is_data = buffers::len(&request.data) > 0;
        let kind = match request.ask {
            _ if !self.has_room() => return Err(request),
            Ask::Read(_) if is_data => Kind::Read,
            Ask::Write(_) if is_data => Kind::Write,
            Ask::Flush => Kind::Flush,
            _ => return Err(request),
        };
        let asked = Asked {
            origin,
            request,
            data,
        };
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        let call = Call {
            kind,
            file: file.as_raw_fd(),
            table: asked.data.as_ptr(),
            count: asked.data.len() as u32,
            at,
            slot: slot as u64,
        };
        // SAFETY: the table of buffers lies on the heap and stays in its slot, and the buffers in the
        // guest's memory, until the call is done: a slot is emptied then only, and all of them are
        // waited for before this is dropped. The file is one of the disk's, which are open longer.
        let asks = unsafe { self.aio.ask(&call) };
        match (asks, self.slots.get_mut(slot)) {
            (true, Some(place)) => {
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
        let (slots, free) = (&mut self.slots, &mut self.free);
        self.aio.reap(LOOK_AGAIN, |slot, result| {
            let slot = slot as usize;
            if let Some(asked) = slots.get_mut(slot).and_then(Option::take) {
                free.push(slot);
                done(asked, result);
            }
        });
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
