//! How a machine ends or pauses, and who says so.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

/// Why a machine stopped running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The guest powered itself off (ACPI S5).
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest can't go on: a triple fault, or something that KVM can't run.
    Crash(Crash),
    /// The guest's agent, or its watchdog, says that the guest can't go on, and why.
    GaveUp(String),
    /// The guest's kernel says that it panicked.
    Panic,
    /// Somebody outside ended it.
    Stopped,
}

/// What is known of a crash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crash {
    /// The vCPU that it happened on.
    pub vcpu: u8,
    /// What happened.
    pub reason: String,
    /// The vCPU's registers, a line for a person.
    pub registers: String,
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vCPU {}: {}; {}", self.vcpu, self.reason, self.registers)
    }
}

/// What whoever keeps the vCPUs' threads has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Duty {
    /// The vCPUs stand still, as somebody wanted: do what that is for, and let them go on.
    Attend,
    /// Take the vCPUs out of the guest: some do not know yet that they are not to run.
    Kick,
    /// The machine has ended.
    End(Outcome),
}

/// The machine's power switch, shared by all who may end or pause it. The first outcome counts.
#[derive(Debug, Clone, Default)]
pub struct Power(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// The vCPUs are not to run: the machine is off, or paused.
    halted: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    outcome: Option<Outcome>,
    paused: bool,
    /// Whoever keeps the vCPUs has something to do while they stand still.
    held: bool,
    /// How many there are; none before the machine runs.
    vcpus: usize,
    parked: usize,
    button: Option<EventFd>,
}

impl State {
    fn is_halted(&self) -> bool {
        self.outcome.is_some() || self.paused || self.held
    }
}

impl Power {
    /// Ends the machine.
    pub fn end(&self, outcome: Outcome) {
        self.state().outcome.get_or_insert(outcome);
        self.0.halted.store(true, Ordering::Release);
        self.0.changed.notify_all();
    }

    /// Whether the vCPUs are not to run. Cheap: a vCPU asks after each exit.
    pub fn is_halted(&self) -> bool {
        self.0.halted.load(Ordering::Acquire)
    }

    /// Whether the machine has ended.
    pub fn is_off(&self) -> bool {
        self.state().outcome.is_some()
    }

    /// Whether the machine is paused.
    pub fn is_paused(&self) -> bool {
        self.state().paused
    }

    /// The machine's power button: a write presses it.
    pub fn attach_button(&self, button: EventFd) {
        self.state().button = Some(button);
    }

    /// Presses it. What comes of that is the guest's to decide.
    pub fn press(&self) {
        if let Some(button) = &self.state().button {
            // The counter is full only while it is pressed already.
            let _ = button.write(1);
        }
    }

    /// Stops the vCPUs where they are; returns when all have stopped, or the machine has ended.
    pub fn pause(&self) {
        let mut state = self.state();
        state.paused = true;
        self.0.halted.store(true, Ordering::Release);
        self.0.changed.notify_all();
        while state.outcome.is_none()
            && state.paused
            && (state.vcpus == 0 || state.parked < state.vcpus)
        {
            state = self.wait(state);
        }
    }

    /// Has the vCPUs stand still, paused or not, until [`Power::release`].
    pub fn hold(&self) {
        self.state().held = true;
        self.0.halted.store(true, Ordering::Release);
        self.0.changed.notify_all();
    }

    /// What they were held for is done.
    pub fn release(&self) {
        self.go_on(|state| state.held = false);
    }

    /// Lets them go on.
    pub fn resume(&self) {
        self.go_on(|state| state.paused = false);
    }

    fn go_on(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        change(&mut state);
        self.0.halted.store(state.is_halted(), Ordering::Release);
        self.0.changed.notify_all();
    }

    /// A vCPU waits here while the machine is paused or held; false when the machine has ended.
    pub fn park(&self) -> bool {
        let mut state = self.state();
        state.parked += 1;
        self.0.changed.notify_all();
        while state.outcome.is_none() && state.is_halted() {
            state = self.wait(state);
        }
        state.parked -= 1;
        state.outcome.is_none()
    }

    /// The machine has so many vCPUs from now on.
    pub fn start(&self, vcpus: usize) {
        self.state().vcpus = vcpus;
    }

    /// Waits until there is something to do for whoever keeps the vCPUs.
    pub fn duty(&self) -> Duty {
        let mut state = self.state();
        loop {
            if let Some(outcome) = &state.outcome {
                return Duty::End(outcome.clone());
            }
            if state.is_halted() && state.parked < state.vcpus {
                return Duty::Kick;
            }
            if state.held {
                return Duty::Attend;
            }
            state = self.wait(state);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.0
            .changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn the_first_outcome_counts() {
        let power = Power::default();
        assert!(!power.is_off());
        power.end(Outcome::Reset);
        power.end(Outcome::PowerOff);
        assert!(power.is_off() && power.is_halted());
        assert_eq!(power.duty(), Duty::End(Outcome::Reset));
    }

    #[test]
    fn a_pause_waits_for_every_vcpu_and_they_for_its_end() {
        let power = Power::default();
        power.start(2);
        let vcpu = || {
            let power = power.clone();
            thread::spawn(move || {
                while !power.is_halted() {
                    thread::yield_now();
                }
                power.park()
            })
        };
        let vcpus = [vcpu(), vcpu()];
        power.pause();
        assert!(power.is_paused());
        assert!(!vcpus.iter().any(thread::JoinHandle::is_finished));
        power.resume();
        assert!(!power.is_halted());
        assert!(vcpus.into_iter().all(|vcpu| vcpu.join().unwrap()));
        let last = thread::spawn({
            let power = power.clone();
            move || power.pause()
        });
        assert_eq!(power.duty(), Duty::Kick);
        power.end(Outcome::Stopped);
        last.join().unwrap();
        assert!(!power.park());
    }

    #[test]
    fn held_vcpus_go_on_when_they_are_neither_held_nor_paused() {
        let power = Power::default();
        power.start(1);
        power.hold();
        let vcpu = thread::spawn({
            let power = power.clone();
            move || power.park()
        });
        while power.duty() == Duty::Kick {
            thread::yield_now();
        }
        assert_eq!(power.duty(), Duty::Attend);
        power.pause();
        power.release();
        assert!(power.is_halted() && !vcpu.is_finished());
        power.resume();
        assert!(vcpu.join().unwrap());
        assert!(!power.is_halted());
    }
}
