//! The PCI bus: configuration space, BARs, MSI-X, the host bridge and the one to the card's bus.
//!
//! One segment; functions sit in fixed slots so that a guest's names for them never change.

pub mod branch;
pub mod bridge;
pub mod config;
pub mod msix;
pub mod root;

use std::fmt;

use serde_json::Value;

use super::saved::Unfit;

/// A function's place: bus, device, function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// Bus number.
    pub bus: u8,
    /// Device number, below 32.
    pub device: u8,
    /// Function number, below 8.
    pub function: u8,
}

impl fmt::Display for Address {
    /// As lspci(8) has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus, self.device, self.function)
    }
}

/// One PCI function, as the root complex sees it.
pub trait PciFunction: Send {
    /// Reads `data.len()` bytes (1, 2 or 4, aligned) of configuration space at `offset`.
    fn config_read(&mut self, offset: u16, data: &mut [u8]);

    /// Writes configuration space. The function notes a BAR's move by itself.
    fn config_write(&mut self, offset: u16, data: &[u8]);

    /// The memory windows that are decoded now: base and length, by BAR number; empty while
    /// the command register's memory bit is off.
    fn windows(&self) -> Vec<(u8, u64, u64)>;

    /// Reads inside BAR `bar` at `offset`.
    fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8]);

    /// Writes inside BAR `bar` at `offset`.
    fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8]);

    /// Back to the state after power-on; workers stopped.
    fn reset(&mut self);

    /// What it holds, for a snapshot.
    fn save(&self) -> Value;

    /// Takes what [`PciFunction::save`] gave, as if the guest had brought it there.
    fn restore(&mut self, saved: &Value) -> Result<(), Unfit>;
}
