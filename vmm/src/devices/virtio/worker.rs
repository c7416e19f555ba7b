//! The thread that each device works on: it waits for its descriptors and for the word to stop.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use netdev::gate::Gate;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::sandbox::{self, Kind};

/// What a worker does.
pub trait Job: Send + 'static {
    /// The descriptor that was watched under `token` is ready.
    fn ready(&mut self, token: u64, events: EventSet);
}

const STOP: u64 = u64::MAX;
const BATCH: usize = 32;

/// A running worker. Dropped, it is stopped and waited for.
pub struct Worker<J: Job> {
    thread: Option<JoinHandle<J>>,
    stop: EventFd,
}

impl<J: Job> Worker<J> {
    /// Starts a thread of its `kind` that calls `job` when one of `watched`, each with its token,
    /// can be read; before that it passes `gate`.
    pub fn spawn(kind: Kind, gate: Gate, watched: &[(RawFd, u64)], job: J) -> io::Result<Self> {
        Self::spawn_on(Arc::new(Epoll::new()?), kind, gate, watched, job)
    }

    /// The same for a job that adds to `epoll` what else it waits for. [`u64::MAX`] is no token.
    pub fn spawn_on(
        epoll: Arc<Epoll>,
        kind: Kind,
        gate: Gate,
        watched: &[(RawFd, u64)],
        mut job: J,
    ) -> io::Result<Self> {
        for (fd, token) in watched {
            epoll.ctl(
                ControlOperation::Add,
                *fd,
                EpollEvent::new(EventSet::IN, *token),
            )?;
        }
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let event = EpollEvent::new(EventSet::IN, STOP);
        epoll.ctl(ControlOperation::Add, stop.as_raw_fd(), event)?;
        let thread = sandbox::spawn(kind, move || {
            work(&epoll, &gate, &mut job);
            job
        })?;
        Ok(Self {
            thread: Some(thread),
            stop,
        })
    }

    /// Stops the worker after what it is doing and returns the job; `None` where it panicked.
    pub fn stop(mut self) -> Option<J> {
        self.halt()
    }

    fn halt(&mut self) -> Option<J> {
        let thread = self.thread.take()?;
        // The counter cannot be full: this is its only write.
        let _ = self.stop.write(1);
        thread.join().ok()
    }
}

impl<J: Job> Drop for Worker<J> {
    fn drop(&mut self) {
        self.halt();
    }
}

fn work(epoll: &Epoll, gate: &Gate, job: &mut impl Job) {
    let mut events = [EpollEvent::default(); BATCH];
    loop {
        let count = match epoll.wait(-1, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                tracing::error!("a device's worker cannot wait: {error}");
                return;
            }
        };
        let _pass = gate.pass();
        for event in events.iter().take(count) {
            if event.data() == STOP {
                return;
            }
            job.ready(event.data(), event.event_set());
        }
    }
}
