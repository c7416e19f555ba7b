//! Port and memory-mapped I/O: which device answers at which address.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use super::saved::Unfit;

/// A device that answers port or memory accesses inside its own window.
pub trait BusDevice: Send {
    /// Reads `data.len()` bytes (1, 2, 4 or 8) at `offset` from the window's start. What the
    /// device does not implement it leaves as it finds it: all ones.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Writes `data` (1, 2, 4 or 8 bytes) at `offset` from the window's start.
    fn write(&mut self, offset: u64, data: &[u8]);

    /// What it holds, for a snapshot; nothing, where that is nothing.
    fn save(&self) -> Value {
        Value::Null
    }

    /// Takes what [`BusDevice::save`] gave.
    fn restore(&mut self, _saved: &Value) -> Result<(), Unfit> {
        Ok(())
    }
}

/// A device shared by the vCPU threads that reach it.
pub type SharedDevice = Arc<Mutex<dyn BusDevice>>;

struct Window {
    base: u64,
    len: u64,
    device: SharedDevice,
}

/// One address space (ports or memory) and the windows in it. Built before the vCPUs start and
/// not changed after: a device whose windows move (a PCI function) owns one window over all the
/// places where it may go, and routes inside it.
#[derive(Default)]
pub struct Bus {
    windows: Vec<Window>,
}

/// Why a window could not be added.
#[derive(Debug, thiserror::Error)]
#[error("the window at {base:#x} of {len:#x} bytes is empty, wraps or overlaps another")]
pub struct WindowError {
    base: u64,
    len: u64,
}

impl Bus {
    /// Adds `device` at `base..base + len`.
    pub fn insert(&mut self, base: u64, len: u64, device: SharedDevice) -> Result<(), WindowError> {
        let error = WindowError { base, len };
        let Some(end) = base.checked_add(len).filter(|_| len > 0) else {
            return Err(error);
        };
        if self
            .windows
            .iter()
            .any(|w| base < w.base + w.len && w.base < end)
        {
            return Err(error);
        }
        self.windows.push(Window { base, len, device });
        self.windows.sort_by_key(|w| w.base);
        Ok(())
    }

    /// Reads at `address`; an address that nobody answers reads as all ones.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((offset, window)) = self.find(address) {
            lock(window).read(offset, data);
        }
    }

    /// Writes at `address`; a write that nobody answers is lost, as on hardware.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, window)) = self.find(address) {
            lock(window).write(offset, data);
        }
    }

    /// What its devices hold, by their windows' starts.
    pub fn save(&self) -> BTreeMap<u64, Value> {
        let held = self.windows.iter().map(|w| (w.base, lock(w).save()));
        held.filter(|(_, held)| !held.is_null()).collect()
    }

    /// Gives its devices what [`Bus::save`] gave, each what it held.
    pub fn restore(&self, saved: &BTreeMap<u64, Value>) -> Result<(), Unfit> {
        for (base, held) in saved {
            let window = self.windows.iter().find(|w| w.base == *base);
            let window = window.ok_or_else(|| Unfit::new(format!("no device is at {base:#x}")))?;
            let restored = lock(window).restore(held);
            restored.map_err(|why| why.of(format!("the device at {base:#x}")))?;
        }
        Ok(())
    }

    fn find(&self, address: u64) -> Option<(u64, &Window)> {
        let next = self.windows.partition_point(|w| w.base <= address);
        let window = self.windows.get(next.checked_sub(1)?)?;
        let offset = address - window.base;
        (offset < window.len).then_some((offset, window))
    }
}

fn lock(window: &Window) -> MutexGuard<'_, dyn BusDevice + 'static> {
    window.device.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::saved;

    struct Echo(u8);

    impl BusDevice for Echo {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data[0] = self.0 + offset as u8;
        }
        fn write(&mut self, _: u64, data: &[u8]) {
            self.0 = data[0];
        }
        fn save(&self) -> Value {
            // As it was made it holds nothing.
            (self.0 > 2).then_some(self.0).into()
        }
        fn restore(&mut self, saved: &Value) -> Result<(), Unfit> {
            self.0 = saved::read(saved)?;
            Ok(())
        }
    }

    fn bus() -> Bus {
        let mut bus = Bus::default();
        bus.insert(0x10, 4, Arc::new(Mutex::new(Echo(1)))).unwrap();
        bus.insert(0x20, 4, Arc::new(Mutex::new(Echo(2)))).unwrap();
        bus
    }

    #[test]
    fn an_access_reaches_the_window_that_holds_it() {
        let mut byte = [0];
        bus().read(0x13, &mut byte);
        assert_eq!(byte, [4]);
        bus().read(0x20, &mut byte);
        assert_eq!(byte, [2]);
    }

    #[test]
    fn an_address_that_nobody_answers_reads_all_ones() {
        for address in [0, 0xf, 0x14, 0x24, u64::MAX] {
            let mut byte = [0];
            bus().read(address, &mut byte);
            assert_eq!(byte, [0xff], "{address:#x}");
        }
    }

    #[test]
    fn what_a_device_held_goes_back_to_it_and_to_no_other() {
        let busy = bus();
        busy.write(0x21, &[9]);
        assert_eq!(busy.save(), [(0x20, 9.into())].into());
        let fresh = bus();
        fresh.restore(&busy.save()).unwrap();
        let mut byte = [0];
        fresh.read(0x20, &mut byte);
        assert_eq!(byte, [9]);
        let why = fresh.restore(&[(0x30, 9.into())].into()).unwrap_err();
        assert_eq!(why.to_string(), "no device is at 0x30");
        let why = fresh.restore(&[(0x20, "x".into())].into()).unwrap_err();
        assert!(why.to_string().starts_with("the device at 0x20: "), "{why}");
    }

    #[test]
    fn windows_may_not_overlap_wrap_or_be_empty() {
        let device: SharedDevice = Arc::new(Mutex::new(Echo(0)));
        for (base, len) in [(0x13, 1), (0xf, 2), (0, 0x100), (0x18, 0), (u64::MAX, 2)] {
            assert!(
                bus().insert(base, len, device.clone()).is_err(),
                "{base:#x}"
            );
        }
        assert!(bus().insert(0x14, 0xc, device).is_ok());
    }
}
