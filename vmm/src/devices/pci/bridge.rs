//! The host bridge, 00:00.0.

use serde_json::Value;

use super::PciFunction;
use super::config::{ConfigSpace, Identity};
use crate::devices::saved::Unfit;

/// The host bridge. Its identity is the one that Cloud Hypervisor's UEFI build looks for.
pub struct HostBridge(ConfigSpace);

impl Default for HostBridge {
    fn default() -> Self {
        Self(ConfigSpace::new(Identity {
            vendor: 0x8086,
            device: 0x0d57,
            revision: 0,
            class: [0, 0, 6],
            subsystem: (0, 0),
        }))
    }
}

impl PciFunction for HostBridge {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) {
        self.0.write(offset, data);
    }

    fn windows(&self) -> Vec<(u8, u64, u64)> {
        Vec::new()
    }

    fn bar_read(&mut self, _: u8, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn bar_write(&mut self, _: u8, _: u64, _: &[u8]) {}

    fn reset(&mut self) {}

    fn save(&self) -> Value {
        self.0.save()
    }

    fn restore(&mut self, saved: &Value) -> Result<(), Unfit> {
        self.0.restore(saved)
    }
}
