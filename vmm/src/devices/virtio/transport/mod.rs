//! Virtio over PCI, modern only (virtio 1.2, section 4.1).

mod common;
mod doorbells;
mod function;

pub use common::Registers;
pub use function::{BAR_LEN, PciTransport, SharedVirtio};

#[cfg(test)]
mod tests;
