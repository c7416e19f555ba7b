//! PVPanic (linux/drivers/misc/pvpanic): the place where a kernel that panics says so.

use serde_json::Value;

use super::pci::PciFunction;
use super::pci::config::{ConfigSpace, Identity};
use super::saved::Unfit;
use crate::power::{Outcome, Power};

/// The window's size: one register, and BARs of memory are no smaller than a page here.
pub const BAR_LEN: u64 = 0x1000;
/// The kernel has panicked.
const PANICKED: u8 = 1;

/// The device.
pub struct PvPanic {
    space: ConfigSpace,
    power: Power,
    bar: u64,
}

impl PvPanic {
    /// One with its register at `bar`, by which `power` hears of a panic.
    pub fn new(power: Power, bar: u64) -> Self {
        Self {
            space: space(bar),
            power,
            bar,
        }
    }
}

/// As QEMU's device, for which Linux has the driver.
fn space(bar: u64) -> ConfigSpace {
    let mut space = ConfigSpace::new(Identity {
        vendor: 0x1b36,
        device: 0x0011,
        revision: 1,
        class: [0, 0x80, 0x08],
        subsystem: (0x1af4, 0x1100),
    });
    space.set_bar(bar, BAR_LEN);
    space
}

impl PciFunction for PvPanic {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        self.space.read(offset, data);
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) {
        self.space.write(offset, data);
    }

    fn windows(&self) -> Vec<(u8, u64, u64)> {
        let window = self.space.bar().map(|(base, len)| (0, base, len));
        window.into_iter().collect()
    }

    /// What can be said.
    fn bar_read(&mut self, _: u8, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (0, Some(events)) = (offset, data.first_mut()) {
            *events = PANICKED;
        }
    }

    fn bar_write(&mut self, _: u8, offset: u64, data: &[u8]) {
        if offset == 0 && data.first().is_some_and(|event| event & PANICKED != 0) {
            self.power.end(Outcome::Panic);
        }
    }

    fn reset(&mut self) {
        self.space = space(self.bar);
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
    use crate::power::Duty;

    #[test]
    fn a_kernel_that_says_that_it_panicked_ends_the_machine_and_nothing_else_does() {
        let power = Power::default();
        let mut device = PvPanic::new(power.clone(), 0xc000_0000);
        assert!(device.windows().is_empty());
        device.config_write(4, &[2]);
        assert_eq!(device.windows(), [(0, 0xc000_0000, BAR_LEN)]);
        let mut events = [0xff; 2];
        device.bar_read(0, 0, &mut events);
        assert_eq!(events, [PANICKED, 0]);
        device.bar_write(0, 0, &[2]);
        device.bar_write(0, 1, &[1]);
        device.bar_write(0, 0, &[]);
        assert!(!power.is_off());
        device.bar_write(0, 0, &[1, 0]);
        assert_eq!(power.duty(), Duty::End(Outcome::Panic));
    }
}
