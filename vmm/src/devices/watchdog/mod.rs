//! The watchdog i6300ESB (Intel 6300ESB I/O Controller Hub, chapter 16), for which Linux has a
//! driver: a guest that has started it and does not feed it has hung.

mod registers;
mod timer;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::pci::PciFunction;
use super::pci::config::{ConfigSpace, Identity};
use super::saved::{self, Unfit};
use crate::power::Power;
use registers::{Registers, Wish};
use timer::Timer;

/// The window's size: BARs of memory are no smaller than a page here.
pub const BAR_LEN: u64 = 0x1000;
/// Configuration space: how time is counted, and what its end does.
const CONFIG: usize = 0x60;
/// Configuration space: whether it runs.
const LOCK: usize = 0x68;

/// Whether the watchdog has ended a machine. It outlives the machine, so that the next guest can
/// tell why it was started.
pub type Fired = Arc<AtomicBool>;

/// The device.
pub struct Watchdog {
    space: ConfigSpace,
    registers: Registers,
    timer: Timer,
    bar: u64,
}

impl Watchdog {
    /// One with its registers at `bar`, that calls `act` when the guest of the machine with that
    /// `power` has not fed it in time. A paused guest need not.
    pub fn new(
        power: Power,
        fired: Fired,
        bar: u64,
        act: impl Fn() + Send + 'static,
    ) -> io::Result<Self> {
        let note = fired.clone();
        let act = move || {
            note.store(true, Ordering::Release);
            act();
        };
        Ok(Self {
            space: space(bar),
            registers: Registers::new(fired),
            timer: Timer::start(power, act)?,
            bar,
        })
    }

    fn obey(&self, wish: Wish) {
        match wish {
            Wish::Nothing => {}
            Wish::Run(time) => self.timer.run(time),
            Wish::Stop => self.timer.stop(),
        }
    }
}

/// What the guest has written.
#[derive(Serialize, Deserialize)]
struct Saved {
    space: Value,
    preloads: [u32; 2],
}

fn space(bar: u64) -> ConfigSpace {
    let mut space = ConfigSpace::new(Identity {
        vendor: 0x8086,
        device: 0x25ab,
        revision: 0,
        class: [0, 0x80, 0x08],
        subsystem: (0x1af4, 0x1100),
    });
    space.set_bar(bar, BAR_LEN);
    space.allow(CONFIG, &[registers::CONFIG_WRITABLE]);
    space.allow(LOCK, &[registers::LOCK_WRITABLE]);
    space
}

impl PciFunction for Watchdog {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        self.space.read(offset, data);
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) {
        self.space.write(offset, data);
        let (config, lock) = (self.space.get(CONFIG), self.space.get(LOCK));
        let wish = self.registers.configure(config, lock);
        self.space.set(LOCK, &[self.registers.lock()]);
        self.obey(wish);
    }

    fn windows(&self) -> Vec<(u8, u64, u64)> {
        let window = self.space.bar().map(|(base, len)| (0, base, len));
        window.into_iter().collect()
    }

    fn bar_read(&mut self, _: u8, offset: u64, data: &mut [u8]) {
        let value = self.registers.read(offset);
        data.fill(0);
        data.iter_mut()
            .zip(value.to_le_bytes())
            .for_each(|(to, from)| *to = from);
    }

    fn bar_write(&mut self, _: u8, offset: u64, data: &[u8]) {
        let value = data
            .iter()
            .take(4)
            .rev()
            .fold(0u32, |value, byte| value << 8 | u32::from(*byte));
        let wish = self.registers.write(offset, value);
        self.obey(wish);
    }

    fn reset(&mut self) {
        self.timer.stop();
        self.space = space(self.bar);
        self.registers.reset();
    }

    fn save(&self) -> Value {
        saved::write(&Saved {
            space: self.space.save(),
            preloads: self.registers.preloads(),
        })
    }

    /// A guest that has to feed it has its whole time again.
    fn restore(&mut self, saved: &Value) -> Result<(), Unfit> {
        let saved: Saved = saved::read(saved)?;
        self.space.restore(&saved.space)?;
        let (config, lock) = (self.space.get(CONFIG), self.space.get(LOCK));
        let wish = self.registers.restore(saved.preloads, config, lock);
        self.obey(wish);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
