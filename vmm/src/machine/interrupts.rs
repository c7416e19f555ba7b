//! KVM's side of [`crate::devices::host`]: message-signalled interrupts by irqfd, doorbells by
//! ioeventfd.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KvmIrqRouting,
    kvm_irq_routing_entry,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use netdev::gate::Gate;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::devices::host::{Host, MsiMessage, MsiVector};

/// Pins of the I/O APIC; messages have the GSIs behind them.
const PINS: u32 = 24;
/// KVM's own limit is 4096; nothing here comes near.
const MAX_GSIS: u32 = 1024;

/// The routes from GSI to interrupt controller, as KVM wants them: all at once.
struct Routes {
    vm: Arc<VmFd>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By GSI, from [`PINS`] up; `None` is a vector that has no message yet.
    messages: Vec<Option<MsiMessage>>,
    /// The vectors that are to be open when KVM is told, where that is later.
    later: Option<Vec<(u32, EventFd)>>,
}

impl Routes {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, messages: &[Option<MsiMessage>]) -> io::Result<()> {
        let mut entries = Vec::new();
        for pin in 0..PINS {
            let mut entry = kvm_irq_routing_entry {
                gsi: pin,
                type_: KVM_IRQ_ROUTING_IRQCHIP,
                ..Default::default()
            };
            entry.u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
            entry.u.irqchip.pin = pin;
            entries.push(entry);
        }
        for (gsi, message) in (PINS..).zip(messages) {
            let Some(message) = message else { continue };
            let mut entry = kvm_irq_routing_entry {
                gsi,
                type_: KVM_IRQ_ROUTING_MSI,
                ..Default::default()
            };
            entry.u.msi.address_lo = message.address_low;
            entry.u.msi.address_hi = message.address_high;
            entry.u.msi.data = message.data;
            entries.push(entry);
        }
        let routing = KvmIrqRouting::from_entries(&entries).map_err(io::Error::other)?;
        Ok(self.vm.set_gsi_routing(&routing)?)
    }
}

/// The machine as devices see it.
pub struct KvmHost {
    vm: Arc<VmFd>,
    routes: Arc<Routes>,
    gate: Gate,
}

impl KvmHost {
    /// A host for `vm`, whose interrupt controllers exist already.
    pub fn new(vm: Arc<VmFd>) -> io::Result<Self> {
        let routes = Routes {
            vm: vm.clone(),
            state: Mutex::default(),
        };
        routes.apply(&[])?;
        Ok(Self {
            vm,
            routes: Arc::new(routes),
            gate: Gate::default(),
        })
    }

    /// Tells KVM what `restore` says of vectors once that has ended: KVM waits for every processor
    /// whenever it is told. What is raised meanwhile is injected then.
    pub fn all_routes_at_once<T>(&self, restore: impl FnOnce() -> T) -> io::Result<T> {
        self.routes.state().later = Some(Vec::new());
        let restored = restore();
        let mut state = self.routes.state();
        let open = state.later.take().unwrap_or_default();
        self.routes.apply(&state.messages)?;
        for (gsi, event) in open {
            self.vm.register_irqfd(&event, gsi)?;
        }
        Ok(restored)
    }
}

impl Host for KvmHost {
    fn gate(&self) -> Gate {
        self.gate.clone()
    }

    fn msi_vector(&self) -> io::Result<Arc<dyn MsiVector>> {
        let messages = &mut self.routes.state().messages;
        let gsi = PINS + u32::try_from(messages.len()).map_err(io::Error::other)?;
        if gsi >= MAX_GSIS {
            return Err(io::Error::other("no interrupt vector is left"));
        }
        let event = EventFd::new(EFD_NONBLOCK)?;
        messages.push(None);
        Ok(Arc::new(Vector {
            gsi,
            event,
            routes: self.routes.clone(),
            open: Mutex::new(false),
        }))
    }

    fn add_ioevent(&self, address: u64, event: &EventFd) -> io::Result<()> {
        Ok(self
            .vm
            .register_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch)?)
    }

    fn remove_ioevent(&self, address: u64, event: &EventFd) -> io::Result<()> {
        Ok(self
            .vm
            .unregister_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch)?)
    }
}

/// A vector. While it is masked its eventfd is not attached to the VM: what is raised meanwhile
/// stays in the eventfd's counter, and KVM injects it when the eventfd is attached again.
struct Vector {
    gsi: u32,
    event: EventFd,
    routes: Arc<Routes>,
    open: Mutex<bool>,
}

impl MsiVector for Vector {
    fn trigger(&self) -> io::Result<()> {
        self.event.write(1)
    }

    fn event(&self) -> &EventFd {
        &self.event
    }

    fn route(&self, message: Option<MsiMessage>) -> io::Result<()> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.routes.state();
        if let Some(message) = message {
            let slot = state.messages.get_mut((self.gsi - PINS) as usize);
            let slot = slot.ok_or_else(|| io::Error::other("a vector of another machine"))?;
            let before = slot.replace(message);
            if before != Some(message) && state.later.is_none() {
                self.routes.apply(&state.messages)?;
            }
        }
        match (message.is_some(), *open, &mut state.later) {
            (true, false, Some(later)) => later.push((self.gsi, self.event.try_clone()?)),
            (false, true, Some(later)) => later.retain(|(gsi, _)| *gsi != self.gsi),
            (true, false, None) => self.routes.vm.register_irqfd(&self.event, self.gsi)?,
            (false, true, None) => self.routes.vm.unregister_irqfd(&self.event, self.gsi)?,
            _ => {}
        }
        *open = message.is_some();
        Ok(())
    }
}
