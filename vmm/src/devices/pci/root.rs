//! The root complex: configuration space by ports 0xcf8/0xcfc and by ECAM, and the memory where
//! the functions' BARs lie.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use serde_json::Value;

use super::{Address, PciFunction};
use crate::devices::bus::BusDevice;
use crate::devices::saved::{self, Unfit};

/// A function, shared by the vCPU threads that reach it.
pub type SharedFunction = Arc<Mutex<dyn PciFunction>>;

/// The functions of all buses. A clone is another handle of the same bus.
#[derive(Clone, Default)]
pub struct Root(Arc<RwLock<Vec<(Address, SharedFunction)>>>);

impl Root {
    /// Puts `function` at `address`.
    pub fn insert(&self, address: Address, function: SharedFunction) {
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push((address, function));
    }

    /// Resets every function: their workers have stopped when this returns.
    pub fn reset(&self) {
        for (_, function) in self.functions() {
            function
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .reset();
        }
    }

    /// The front at ports 0xcf8 to 0xcff.
    pub fn ports(&self) -> ConfigPorts {
        ConfigPorts {
            root: self.clone(),
            address: 0,
        }
    }

    /// The front at the ECAM window.
    pub fn ecam(&self) -> Ecam {
        Ecam(self.clone())
    }

    /// The front of the memory at `base` where BARs lie.
    pub fn memory(&self, base: u64) -> BarMemory {
        BarMemory {
            root: self.clone(),
            base,
        }
    }

    /// What every function holds, by its address.
    fn save(&self) -> Value {
        let functions = self.functions();
        let held = functions.iter().map(|(address, function)| {
            let function = function.lock().unwrap_or_else(PoisonError::into_inner);
            (address.to_string(), function.save())
        });
        saved::write(&held.collect::<BTreeMap<_, _>>())
    }

    /// Gives every function what [`Root::save`] found; there must be the same ones.
    fn restore(&self, saved: &Value) -> Result<(), Unfit> {
        let mut held: BTreeMap<String, Value> = saved::read(saved)?;
        for (address, function) in self.functions() {
            let name = address.to_string();
            let held = held.remove(&name);
            let mut function = function.lock().unwrap_or_else(PoisonError::into_inner);
            let restored = match held {
                Some(held) => function.restore(&held),
                None => Err(Unfit::new("it was not there then")),
            };
            restored.map_err(|why| why.of(format!("the PCI device {name}")))?;
        }
        match held.keys().next() {
            Some(name) => Err(Unfit::new(format!("there is no PCI device {name} now"))),
            None => Ok(()),
        }
    }

    fn functions(&self) -> Vec<(Address, SharedFunction)> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Calls `with` on the function at `address`, if there is one.
    fn at(&self, address: Address, with: impl FnOnce(&mut dyn PciFunction)) {
        let functions = self.functions();
        if let Some((_, function)) = functions.iter().find(|(a, _)| *a == address) {
            with(&mut *function.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }
}

/// CONFIG_ADDRESS at 0xcf8 and CONFIG_DATA at 0xcfc (PCI Local Bus 3.0, section 3.2.2.3.2).
pub struct ConfigPorts {
    root: Root,
    address: u32,
}

impl ConfigPorts {
    /// What CONFIG_ADDRESS selects: function and offset; `None` while it is not enabled.
    fn selected(&self, offset: u64) -> Option<(Address, u16)> {
        let [register, function, bus, enable] = self.address.to_le_bytes();
        let address = Address {
            bus,
            device: function >> 3,
            function: function & 7,
        };
        let offset = u16::from(register & 0xfc) + u16::try_from(offset.checked_sub(4)?).ok()?;
        (enable & 0x80 != 0).then_some((address, offset))
    }
}

impl BusDevice for ConfigPorts {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if offset == 0 && data.len() == 4 {
            data.copy_from_slice(&self.address.to_le_bytes());
        } else if let Some((address, offset)) = self.selected(offset) {
            self.root
                .at(address, |function| function.config_read(offset, data));
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset == 0 {
            if let Ok(address) = data.try_into() {
                self.address = u32::from_le_bytes(address);
            }
        } else if let Some((address, offset)) = self.selected(offset) {
            self.root
                .at(address, |function| function.config_write(offset, data));
        }
    }

    fn save(&self) -> Value {
        self.address.into()
    }

    fn restore(&mut self, saved: &Value) -> Result<(), Unfit> {
        self.address = saved::read(saved)?;
        Ok(())
    }
}

/// Memory-mapped configuration space (PCI Express 5.0, section 7.2.2). Of the fronts it is this one
/// that knows what the functions hold.
pub struct Ecam(Root);

fn ecam_address(offset: u64) -> (Address, u16) {
    let address = Address {
        bus: (offset >> 20 & 0xff) as u8,
        device: (offset >> 15 & 0x1f) as u8,
        function: (offset >> 12 & 7) as u8,
    };
    (address, (offset & 0xfff) as u16)
}

impl BusDevice for Ecam {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let (address, offset) = ecam_address(offset);
        self.0
            .at(address, |function| function.config_read(offset, data));
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let (address, offset) = ecam_address(offset);
        self.0
            .at(address, |function| function.config_write(offset, data));
    }

    fn save(&self) -> Value {
        self.0.save()
    }

    fn restore(&mut self, saved: &Value) -> Result<(), Unfit> {
        self.0.restore(saved)
    }
}

/// Where the functions' BARs lie: an access goes to the function that decodes its address now.
pub struct BarMemory {
    root: Root,
    base: u64,
}

impl BarMemory {
    fn at(&self, offset: u64, with: impl FnOnce(&mut dyn PciFunction, u8, u64)) {
        let address = self.base.wrapping_add(offset);
        for (_, function) in self.root.functions() {
            let mut function = function.lock().unwrap_or_else(PoisonError::into_inner);
            let hit = function
                .windows()
                .into_iter()
                .find(|(_, base, len)| address.checked_sub(*base).is_some_and(|at| at < *len));
            if let Some((bar, base, _)) = hit {
                return with(&mut *function, bar, address - base);
            }
        }
    }
}

impl BusDevice for BarMemory {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.at(offset, |function, bar, offset| {
            function.bar_read(bar, offset, data)
        });
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.at(offset, |function, bar, offset| {
            function.bar_write(bar, offset, data)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::pci::bridge::HostBridge;

    #[test]
    fn both_fronts_show_the_same_function_and_nothing_where_there_is_none() {
        let root = Root::default();
        let at = Address {
            bus: 0,
            device: 0,
            function: 0,
        };
        root.insert(at, Arc::new(Mutex::new(HostBridge::default())));
        let (mut ports, mut ecam) = (root.ports(), root.ecam());
        let mut word = [0xff; 4];
        ports.write(0, &0x8000_0000u32.to_le_bytes());
        ports.read(4, &mut word);
        assert_eq!(word, 0x0d57_8086u32.to_le_bytes());
        let mut half = [0xff; 2];
        ports.read(6, &mut half);
        assert_eq!(half, 0x0d57u16.to_le_bytes());
        word = [0xff; 4];
        ecam.read(0, &mut word);
        assert_eq!(word, 0x0d57_8086u32.to_le_bytes());
        word = [0xff; 4];
        ecam.read(1 << 15, &mut word);
        assert_eq!(word, [0xff; 4]);
        ports.write(0, &0u32.to_le_bytes());
        ports.read(4, &mut word);
        assert_eq!(word, [0xff; 4]);
    }
}
