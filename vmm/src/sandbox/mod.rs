//! What is left to a process whose guest has got hold of it: the system calls that each kind of
//! thread needs for its one job (seccomp), and the files that it has to open again (Landlock).
//!
//! All of this is the process's and cannot be undone, so what has been done is a static.

mod files;
mod filter;
mod threads;
mod violation;

use std::fmt;
use std::io;
use std::sync::OnceLock;

pub use files::Files;
pub use threads::{STACK, spawn, spawn_named};

/// The jobs that a thread can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A vCPU: KVM, and the devices' registers.
    Vcpu,
    /// A disk's queue.
    Block,
    /// The entropy device's queue.
    Rng,
    /// The balloon's queues.
    Balloon,
    /// The watchdog's timer.
    Watchdog,
    /// The socket device's queues.
    Vsock,
    /// The console device's queues.
    Console,
    /// The network: queues and sockets.
    Net,
    /// What listens to the guest's agent.
    Agent,
    /// What waits for signals.
    Signals,
    /// HTTP.
    Api,
}

impl Kind {
    /// Each of them.
    pub const ALL: [Self; 11] = [
        Self::Vcpu,
        Self::Block,
        Self::Rng,
        Self::Balloon,
        Self::Watchdog,
        Self::Vsock,
        Self::Console,
        Self::Net,
        Self::Agent,
        Self::Signals,
        Self::Api,
    ];

    /// What its threads are called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vcpu => "vcpu",
            Self::Block => "block",
            Self::Rng => "rng",
            Self::Balloon => "balloon",
            Self::Watchdog => "watchdog",
            Self::Vsock => "vsock",
            Self::Console => "console",
            Self::Net => "net",
            Self::Agent => "agent",
            Self::Signals => "signals",
            Self::Api => "api",
        }
    }
}

/// How much of a sandbox there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strength {
    /// Files and system calls.
    Full,
    /// The kernel has no Landlock: system calls only.
    NoLandlock,
}

impl fmt::Display for Strength {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "seccomp and Landlock",
            Self::NoLandlock => "seccomp; this kernel has no Landlock",
        })
    }
}

/// Why there is no sandbox.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system calls.
    #[error("cannot limit the system calls: {0}; --no-sandbox does without")]
    Calls(io::Error),
    /// The files.
    #[error("cannot limit the files: {0}; --no-sandbox does without")]
    Files(io::Error),
    /// No thread.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

static ENTERED: OnceLock<Strength> = OnceLock::new();

/// Confines the process for good. It must have one thread yet; what that opens later is in
/// `files`, and the threads to come are started by [`spawn`].
pub fn enter(files: &Files) -> Result<Strength, Error> {
    violation::report().map_err(Error::Calls)?;
    let once = std::thread::Builder::new().spawn(give_memory_back);
    // It cannot panic.
    let _ = once.map_err(Error::Thread)?.join();
    let strength = match files.restrict().map_err(Error::Files)? {
        true => Strength::Full,
        false => Strength::NoLandlock,
    };
    filter::process().install().map_err(Error::Calls)?;
    threads::start().map_err(Error::Thread)?;
    Ok(*ENTERED.get_or_init(|| strength))
}

/// Takes a good part of a thread's own heap, and gives it back. The C library opens
/// /proc/sys/vm/overcommit_memory when it does that for the first time (glibc's
/// check_may_shrink_heap), which no thread may that is confined.
fn give_memory_back() {
    let blocks: Vec<Vec<u8>> = (0..128).map(|_| Vec::with_capacity(16 << 10)).collect();
    drop(std::hint::black_box(blocks));
}

/// The sandbox that the process is in, if it is in one.
pub fn entered() -> Option<Strength> {
    ENTERED.get().copied()
}

/// Confines the calling thread to its job, where the process is in a sandbox. A thread that
/// cannot be confined must not run: that ends the process.
pub fn confine(kind: Kind) {
    if entered().is_none() {
        return;
    }
    violation::name_thread(kind.name());
    if let Err(error) = filter::thread(kind).install() {
        tracing::error!(
            "cannot limit the system calls of a thread ({}): {error}",
            kind.name()
        );
        std::process::abort();
    }
}

#[cfg(test)]
mod tests;
