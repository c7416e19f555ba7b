//! A machine that stands still, and what is done with it meanwhile.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::GuestMemoryMmap;

use super::state::State;
use super::vcpu::{Buses, Handle};
use super::{Machine, MachineError};
use crate::power::Power;

/// Something to do while a machine stands still.
pub type Errand = Box<dyn FnOnce(&Still<'_>) + Send>;

/// A machine of which no vCPU runs, and in whose memory no device works.
pub struct Still<'a> {
    pub(super) machine: &'a Machine,
    pub(super) vcpus: &'a [Handle],
    pub(super) buses: &'a Buses,
}

impl Still<'_> {
    /// What it is beside its memory.
    pub fn save(&self) -> Result<State, MachineError> {
        let Machine { kvm, vm, .. } = self.machine;
        let vcpus = self.vcpus.iter().map(|vcpu| vcpu.open(vm));
        let vcpus: Vec<_> = vcpus
            .collect::<Result<_, _>>()
            .map_err(|error| MachineError::Io("reach a vCPU", error))?;
        let mut state = State::save(kvm, vm, &vcpus)?;
        state.ports = self.buses.pio.save();
        state.windows = self.buses.mmio.save();
        Ok(state)
    }

    /// Its memory.
    pub fn memory(&self) -> GuestMemoryMmap {
        self.machine.memory.clone()
    }

    /// Whether it has been ended meanwhile.
    pub fn is_off(&self) -> bool {
        self.machine.power.is_off()
    }
}

/// Errands that wait for the machine to stand still. A clone is another handle.
#[derive(Clone, Default)]
pub struct Errands(Arc<Mutex<VecDeque<Errand>>>);

impl Errands {
    /// Has the machine with that `power` stand still for the errand, which is dropped undone where
    /// the machine ends before.
    pub fn ask(&self, power: &Power, errand: Errand) {
        let mut waiting = self.waiting();
        waiting.push_back(errand);
        power.hold();
    }

    /// Does them all; the machine goes on after the last.
    pub(super) fn carry_out(&self, still: &Still<'_>) {
        loop {
            let mut waiting = self.waiting();
            let Some(errand) = waiting.pop_front() else {
                // Under the lock, so that one that is asked for now holds it again.
                return still.machine.power.release();
            };
            drop(waiting);
            errand(still);
        }
    }

    /// The machine has ended.
    pub(super) fn give_up(&self) {
        self.waiting().clear();
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Errand>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
