//! What a device may ask of the machine that it is plugged into, without knowing about KVM.

use std::io;
use std::sync::Arc;

use netdev::gate::Gate;
use vmm_sys_util::eventfd::EventFd;

/// One message-signalled interrupt: an eventfd that the machine injects when it is written
/// (irqfd), and the message that the guest wrote for it.
pub trait MsiVector: Send + Sync {
    /// Raises the interrupt. Cheap, callable from any thread; a masked vector stays pending
    /// until it is unmasked.
    fn trigger(&self) -> io::Result<()>;

    /// The eventfd behind [`MsiVector::trigger`].
    fn event(&self) -> &EventFd;

    /// Sets the message's address and data and opens the route; `None` masks it.
    fn route(&self, message: Option<MsiMessage>) -> io::Result<()>;
}

/// Address and data of an MSI, as the guest wrote them (PCI Local Bus 3.0, section 6.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsiMessage {
    /// Low half of the message's address.
    pub address_low: u32,
    /// High half of the message's address.
    pub address_high: u32,
    /// The message's data.
    pub data: u32,
    /// Bus, device and function of the sender.
    pub requester: u16,
}

/// The machine's side of a device.
pub trait Host: Send + Sync {
    /// What a device passes before each turn in which it touches the guest's memory.
    fn gate(&self) -> Gate;

    /// A new interrupt vector, masked.
    fn msi_vector(&self) -> io::Result<Arc<dyn MsiVector>>;

    /// From now on a guest's write of any length to the physical `address` signals `event`
    /// instead of leaving the guest (ioeventfd).
    fn add_ioevent(&self, address: u64, event: &EventFd) -> io::Result<()>;

    /// Undoes [`Host::add_ioevent`].
    fn remove_ioevent(&self, address: u64, event: &EventFd) -> io::Result<()>;
}
