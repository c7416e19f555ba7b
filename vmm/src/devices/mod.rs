//! Devices: what the guest finds in its machine. None of them knows about KVM; what they need of
//! the machine is [`host::Host`].

pub mod bus;
pub mod cmos;
pub mod host;
pub mod pci;
pub mod platform;
pub mod pvpanic;
pub mod saved;
pub mod serial;
pub mod terminal;
pub mod virtio;
pub mod watchdog;
