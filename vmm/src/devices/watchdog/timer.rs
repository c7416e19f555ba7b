//! Counts the time that a guest has left to feed its watchdog, while it runs.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::registers::Time;
use crate::power::Power;
use crate::sandbox::{self, Kind};

/// How often is looked whether the guest is paused, while the watchdog runs.
const TICK: Duration = Duration::from_secs(1);

/// The timer, a thread of its own; it waits for nothing while the watchdog does not run. Dropped, it
/// is stopped and waited for.
pub struct Timer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    running: Option<Count>,
    over: bool,
}

#[derive(Clone, Copy)]
struct Count {
    time: Time,
    left: Duration,
    /// Up to when it was taken off what is left.
    since: Instant,
}

impl Count {
    fn new(time: Time) -> Self {
        // One that begins anew by itself shall not keep its thread busy.
        let least = if time.again { TICK } else { Duration::ZERO };
        Self {
            time,
            left: time.limit.max(least),
            since: Instant::now(),
        }
    }
}

impl Timer {
    /// A timer that stands still, and calls `act` when it has run out.
    pub fn start(power: Power, act: impl Fn() + Send + 'static) -> io::Result<Self> {
        let shared: Arc<Shared> = Arc::default();
        let own = shared.clone();
        let thread = sandbox::spawn(Kind::Watchdog, move || own.count(&power, &act))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Starts from the beginning.
    pub fn run(&self, time: Time) {
        // The thread sees it when what it waits for is over; it is told only where it waits for
        // nothing, or for longer.
        let before = self.shared.state().running.replace(Count::new(time));
        if before.is_none_or(|before| before.left > time.limit) {
            self.shared.changed.notify_all();
        }
    }

    /// Stands still.
    pub fn stop(&self) {
        self.shared.state().running = None;
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.shared.state().over = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic has been reported by the panic handler.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, power: &Power, act: &dyn Fn()) {
        let mut state = self.state();
        while !state.over {
            let Some(count) = state.running else {
                let waited = self.changed.wait(state);
                state = waited.unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let waited = self.changed.wait_timeout(state, count.left.min(TICK));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            // It may have been fed, or stopped, meanwhile.
            let Some(count) = &mut state.running else {
                continue;
            };
            let since = std::mem::replace(&mut count.since, Instant::now());
            if !power.is_paused() {
                count.left = count.left.saturating_sub(since.elapsed());
            }
            if !count.left.is_zero() {
                continue;
            }
            let time = count.time;
            state.running = time.again.then(|| Count::new(time));
            if time.acts {
                drop(state);
                act();
                state = self.state();
            }
        }
    }
}
