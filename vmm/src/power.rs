//! How a machine ends, and who says so.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Why a machine stopped running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The guest powered itself off (ACPI S5).
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest can't go on: a triple fault, or something that KVM can't run.
    Crash(Crash),
    /// The guest's agent says that the guest can't go on, and why.
    GaveUp(String),
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

/// The machine's power switch, shared by all who may end it. The first outcome counts.
#[derive(Debug, Clone, Default)]
pub struct Power(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    off: AtomicBool,
    outcome: Mutex<Option<Outcome>>,
    changed: Condvar,
}

impl Power {
    /// Ends the machine.
    pub fn end(&self, outcome: Outcome) {
        let mut slot = self
            .0
            .outcome
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        slot.get_or_insert(outcome);
        self.0.off.store(true, Ordering::Release);
        self.0.changed.notify_all();
    }

    /// Whether the machine has ended. Cheap: a vCPU asks after each exit.
    pub fn is_off(&self) -> bool {
        self.0.off.load(Ordering::Acquire)
    }

    /// Waits for the end.
    pub fn wait(&self) -> Outcome {
        let mut slot = self
            .0
            .outcome
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(outcome) = &*slot {
                return outcome.clone();
            }
            slot = self
                .0
                .changed
                .wait(slot)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_outcome_counts() {
        let power = Power::default();
        assert!(!power.is_off());
        power.end(Outcome::Reset);
        power.end(Outcome::PowerOff);
        assert!(power.is_off());
        assert_eq!(power.wait(), Outcome::Reset);
    }
}
