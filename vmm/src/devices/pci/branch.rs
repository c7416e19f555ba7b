//! A bridge to another bus (PCI-to-PCI Bridge Architecture 1.2), so that the first network card is
//! where KubeVirt's users know it: 01:00.0, which systemd calls enp1s0.
//!
//! What lies behind it is decoded by the root whatever the bridge's windows say: they are there for
//! the guest, which gives a card the memory that its bridge passes on.

use serde_json::Value;

use super::PciFunction;
use super::config::{ConfigSpace, Identity};
use crate::devices::saved::Unfit;

/// The bus behind it.
pub const BUS: u8 = 1;
/// The unit of its windows.
pub const WINDOW: u64 = 1 << 20;

// Offsets of a type 1 header (section 3.2).
const HEADER_TYPE: usize = 0x0e;
const BUSES: usize = 0x18;
const IO: usize = 0x1c;
const MEMORY: usize = 0x20;
const PREFETCHABLE: usize = 0x24;
const CONTROL: usize = 0x3e;
/// Base above limit: nothing is passed on.
const CLOSED: [u8; 4] = [0xf0, 0xff, 0, 0];

/// The bridge to bus [`BUS`].
pub struct Bridge {
    space: ConfigSpace,
    window: u64,
}

impl Bridge {
    /// One that passes on a window of memory at `window`, a multiple of [`WINDOW`] below 4 GiB.
    pub fn new(window: u64) -> Self {
        Self {
            space: space(window),
            window,
        }
    }
}

fn space(window: u64) -> ConfigSpace {
    // As QEMU's bridge: no driver but the bus's own has anything to do with it.
    let mut space = ConfigSpace::new(Identity {
        vendor: 0x1b36,
        device: 0x0001,
        revision: 0,
        class: [0, 4, 6],
        subsystem: (0, 0),
    });
    let megabyte = ((window >> 16) as u16 & 0xfff0).to_le_bytes();
    space.set(HEADER_TYPE, &[1]);
    space.set(BUSES, &[0, BUS, BUS, 0]);
    space.set(IO, &[0xf0, 0]);
    space.set(MEMORY, &[megabyte, megabyte].concat());
    space.set(PREFETCHABLE, &CLOSED);
    space.allow(MEMORY, &[0xf0, 0xff, 0xf0, 0xff]);
    space.allow(CONTROL, &[0x0b, 0]);
    space
}

impl PciFunction for Bridge {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        self.space.read(offset, data);
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) {
        self.space.write(offset, data);
    }

    fn windows(&self) -> Vec<(u8, u64, u64)> {
        Vec::new()
    }

    fn bar_read(&mut self, _: u8, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn bar_write(&mut self, _: u8, _: u64, _: &[u8]) {}

    fn reset(&mut self) {
        self.space = space(self.window);
    }

    fn save(&self) -> Value {
        self.space.save()
    }

    fn restore(&mut self, saved: &Value) -> Result<(), Unfit> {
        self.space.restore(saved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_header_is_a_bridge_s_with_a_bus_and_a_megabyte_of_memory_behind_it() {
        let mut bridge = Bridge::new(0xc010_0000);
        let mut read = |offset, len| {
            let mut data = vec![0; len];
            bridge.config_read(offset, &mut data);
            data
        };
        assert_eq!(read(0x0b, 4), [6, 0, 0, 1]);
        assert_eq!(read(0x18, 3), [0, 1, 1]);
        assert_eq!(read(0x20, 4), [0x10, 0xc0, 0x10, 0xc0]);
        bridge.config_write(0x18, &[9, 9, 9]);
        bridge.config_write(0x20, &[0x2f, 0xc0]);
        let mut data = [0; 10];
        bridge.config_read(0x18, &mut data);
        assert_eq!(
            (&data[..3], &data[8..]),
            (&[0, 1, 1][..], &[0x20, 0xc0][..])
        );
    }
}
