//! Threads that start when a thread asks that may not start any itself, as a vCPU does when the
//! guest's driver sets its device up. Seccomp's filters are inherited and only ever narrow, so a
//! thread that has none of its own starts them all, or the one that entered the sandbox.

use std::cell::Cell;
use std::io;
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::thread::{Builder, JoinHandle};

use super::{Kind, confine};

type Start = Box<dyn FnOnce() + Send>;

/// A thread's stack. One of 2 MiB, Rust's own, may lie so that the kernel makes a huge page of it,
/// and that is ours at once.
pub const STACK: usize = 1 << 20;

static STARTER: OnceLock<Sender<Start>> = OnceLock::new();

thread_local! {
    /// Whether the process's own filter is all that the thread has, so that its threads have that too.
    static MAY_START: Cell<bool> = const { Cell::new(false) };
}

/// Starts the thread that starts those for threads that may not; the calling one, which is in the sandbox,
/// may.
pub fn start() -> io::Result<()> {
    MAY_START.set(true);
    let (give, orders) = channel::<Start>();
    Builder::new()
        .name("threads".to_owned())
        .stack_size(STACK)
        .spawn(move || orders.into_iter().for_each(|start| start()))?;
    // A second one, of a caller that enters twice, has nobody to serve and ends.
    let _ = STARTER.set(give);
    Ok(())
}

/// Starts a thread that does `job`, confined to what its `kind` needs where the process is in a
/// sandbox, and called after that.
pub fn spawn<T: Send + 'static>(
    kind: Kind,
    job: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    spawn_named(kind, kind.name(), job)
}

/// The same for one of several of its kind.
pub fn spawn_named<T: Send + 'static>(
    kind: Kind,
    name: &str,
    job: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let builder = Builder::new().name(name.to_owned()).stack_size(STACK);
    let start = move || {
        builder.spawn(move || {
            confine(kind);
            job()
        })
    };
    let Some(starter) = STARTER.get().filter(|_| !MAY_START.get()) else {
        return start();
    };
    let gone = || io::Error::other("the thread that starts threads is gone");
    let (give, started) = channel();
    let order: Start = Box::new(move || {
        // Whoever asked waits for the answer.
        let _ = give.send(start());
    });
    starter.send(order).map_err(|_| gone())?;
    started.recv().map_err(|_| gone())?
}
