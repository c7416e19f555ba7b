//! How a disk's files are asked for many things at once: by io_uring, or by threads where the kernel lets
//! nobody have that, as in many a container.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use super::pool::Pool;
use super::ring::Ring;

/// What a file may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// preadv(2)
    Read,
    /// pwritev(2)
    Write,
    /// fdatasync(2)
    Flush,
}

/// What a file is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// What for.
    pub kind: Kind,
    /// The file.
    pub file: RawFd,
    /// Where its buffers are told.
    pub table: *const libc::iovec,
    /// How many they are.
    pub count: u32,
    /// From where in the file on.
    pub at: u64,
    /// What it is known by when it is done.
    pub slot: u64,
}

/// One of the ways.
pub enum Aio {
    /// io_uring
    Ring(Box<Ring>),
    /// Threads, each of which does one thing at a time.
    Threads(Pool),
}

impl Aio {
    /// The best that there is, for so many requests at once.
    pub fn new(depth: u16) -> Self {
        match Ring::new(depth) {
            Ok(ring) => Self::Ring(Box::new(ring)),
            Err(error) => {
                tracing::debug!("block: threads ask the files: io_uring: {error}");
                Self::Threads(Pool::default())
            }
        }
    }

    /// Sees that it can begin.
    pub fn start(&mut self) -> io::Result<()> {
        match self {
            Self::Ring(_) => Ok(()),
            Self::Threads(pool) => pool.start(),
        }
    }

    /// Asks for `call` with the next [`Aio::reap`]; whether there is room for it.
    ///
    /// # Safety
    ///
    /// The table and the buffers that it tells of, and the file, have to be there and be left alone until
    /// `reap` has told of the call's slot.
    pub unsafe fn ask(&mut self, call: &Call) -> bool {
        match self {
            // SAFETY: the caller's promise is the same.
            Self::Ring(ring) => unsafe { ring.ask(call) },
            // SAFETY: the same.
            Self::Threads(pool) => unsafe { pool.ask(call) },
        }
    }

    /// Begins what was asked for, waits until one of all is done, or so long, and calls `done` with the
    /// slot of each that is and its result: how many bytes went, or an error's number below zero.
    pub fn reap(&mut self, patience: Duration, done: impl FnMut(u64, i32)) {
        match self {
            Self::Ring(ring) => ring.reap(patience, done),
            Self::Threads(pool) => pool.reap(patience, done),
        }
    }
}
