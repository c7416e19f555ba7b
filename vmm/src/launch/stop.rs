//! How a machine is stopped from outside: SIGTERM and SIGINT ask the guest's agent to power off, or
//! press its button where there is none,
//! the end of the grace period or a second signal ends the machine by force.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::agent::Agent;
use crate::agent::qga::Qga;
use crate::power::{Outcome, Power};
use crate::sandbox::{self, Kind};

/// Listens to signals on a thread of its own.
#[derive(Clone)]
pub struct Stopper(Arc<Shared>);

struct Shared {
    agent: Agent,
    qga: Option<Qga>,
    stopping: AtomicBool,
    target: Mutex<Option<(Power, Duration)>>,
}

const SIGNALS: [libc::c_int; 2] = [libc::SIGTERM, libc::SIGINT];

impl Stopper {
    /// Waits for the signals, which [`block_signals`] has blocked, on a thread of its own.
    pub fn start(agent: Agent, qga: Option<Qga>) -> io::Result<Self> {
        let stopper = Self(Arc::new(Shared {
            agent,
            qga,
            stopping: AtomicBool::new(false),
            target: Mutex::default(),
        }));
        let shared = stopper.clone();
        sandbox::spawn(Kind::Signals, move || shared.listen())?;
        Ok(stopper)
    }

    /// `power` is the machine to stop now.
    pub fn watch(&self, power: Power, grace: Duration) {
        *self.target() = Some((power, grace));
    }

    /// As SIGTERM does, with another grace period where one is given. Once is enough.
    pub fn stop(&self, grace: Option<Duration>) {
        if let (Some(grace), Some((_, own))) = (grace, &mut *self.target()) {
            *own = grace;
        }
        if !self.is_stopping() {
            // SAFETY: kill() touches no memory. The signal is blocked and waited for.
            unsafe { libc::kill(libc::getpid(), libc::SIGTERM) };
        }
    }

    /// Ends the machine now.
    pub fn kill(&self) {
        self.0.stopping.store(true, Ordering::Release);
        if let Some((power, _)) = &*self.target() {
            tracing::warn!("stopping the guest by force: asked to");
            power.end(Outcome::Stopped);
        }
        self.0.agent.changes().tell();
    }

    fn target(&self) -> MutexGuard<'_, Option<(Power, Duration)>> {
        self.0.target.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether somebody has asked for the end.
    pub fn is_stopping(&self) -> bool {
        self.0.stopping.load(Ordering::Acquire)
    }

    fn listen(&self) {
        loop {
            wait(None);
            let target = self.target().clone();
            let Some((power, grace)) = target else {
                continue;
            };
            self.0.stopping.store(true, Ordering::Release);
            tracing::info!("stopping the guest, by force in {} s", grace.as_secs());
            // A guest that does not run cannot power off.
            power.resume();
            self.0.agent.changes().tell();
            if !self.0.qga.as_ref().is_some_and(Qga::power_off) {
                self.0.agent.power_off();
                if !self.0.agent.is_connected() {
                    power.press();
                }
            }
            if wait(Some(grace)) {
                tracing::warn!("stopping the guest by force: asked again");
            } else {
                tracing::warn!("stopping the guest by force: its grace period is over");
            }
            power.end(Outcome::Stopped);
        }
    }
}

/// Blocks the signals for the whole process, which must have one thread yet.
pub fn block_signals() -> io::Result<()> {
    let set = signal_set();
    // SAFETY: the set is initialised and outlives the call.
    let failed =
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    match failed {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// A descriptor that can be read from while one of them, blocked, waits to be taken.
pub fn signals() -> io::Result<OwnedFd> {
    let set = signal_set();
    // SAFETY: the set is initialised and outlives the call.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn signal_set() -> libc::sigset_t {
    // SAFETY: sigemptyset initialises the set, which is plain data.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in SIGNALS {
            libc::sigaddset(&raw mut set, signal);
        }
        set
    }
}

/// Waits for one of the signals; false where none came in `limit`.
fn wait(limit: Option<Duration>) -> bool {
    let set = signal_set();
    let limit = limit.unwrap_or(Duration::from_secs(i32::MAX as u64));
    let time = libc::timespec {
        tv_sec: libc::time_t::try_from(limit.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: i64::from(limit.subsec_nanos()),
    };
    // SAFETY: both pointers are to data that outlives the call; no siginfo is asked for.
    unsafe { libc::sigtimedwait(&raw const set, std::ptr::null_mut(), &raw const time) > 0 }
}
