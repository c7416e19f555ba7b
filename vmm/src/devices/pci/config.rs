//! Configuration space of a type 0 function (PCI Local Bus 3.0, chapter 6): which bits a guest
//! may write, one 64-bit memory BAR, a list of capabilities.

use serde_json::Value;

use crate::devices::saved::{self, Unfit};

const SIZE: usize = 256;
const VENDOR: usize = 0x00;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION: usize = 0x08;
const CLASS: usize = 0x09;
const BAR0: usize = 0x10;
const SUBSYSTEM: usize = 0x2c;
const CAPABILITIES: usize = 0x34;
const FIRST_CAPABILITY: u8 = 0x40;

/// Command register: the function answers at its memory BARs.
const COMMAND_MEMORY: u8 = 1 << 1;
/// Command register, the bits that a guest may write: memory, bus master, interrupt disable.
const COMMAND_WRITABLE: u16 = 1 << 1 | 1 << 2 | 1 << 10;
/// Status register: there is a list of capabilities.
const STATUS_CAPABILITIES: u8 = 1 << 4;
/// BAR: memory, anywhere in 64 bits, not prefetchable.
const BAR_64: u8 = 0b100;

/// Who a function says that it is.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Programming interface, subclass and class, lowest byte first.
    pub class: [u8; 3],
    /// Subsystem vendor and id.
    pub subsystem: (u16, u16),
}

/// The 256 bytes, and which of their bits a guest may write.
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    next: u8,
    last: Option<u8>,
    bar_len: u64,
}

/// The capability list is full. It is built by our own code, before a guest runs.
#[derive(Debug, thiserror::Error)]
#[error("a function's capabilities do not fit in its configuration space")]
pub struct CapabilityError;

impl ConfigSpace {
    /// A function without BARs or capabilities.
    pub fn new(identity: Identity) -> Self {
        let mut space = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            next: FIRST_CAPABILITY,
            last: None,
            bar_len: 0,
        };
        space.set(VENDOR, &identity.vendor.to_le_bytes());
        space.set(VENDOR + 2, &identity.device.to_le_bytes());
        space.set(REVISION, &[identity.revision]);
        space.set(CLASS, &identity.class);
        space.set(SUBSYSTEM, &identity.subsystem.0.to_le_bytes());
        space.set(SUBSYSTEM + 2, &identity.subsystem.1.to_le_bytes());
        space.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        space
    }

    /// Makes BAR 0 (and 1, its upper half) a memory window of `len` bytes, a power of two, at
    /// `base`.
    pub fn set_bar(&mut self, base: u64, len: u64) {
        self.bar_len = len;
        self.set(BAR0, &(base | u64::from(BAR_64)).to_le_bytes());
        self.allow(BAR0, &(!(len - 1) & !0xf).to_le_bytes());
    }

    /// Where BAR 0 is decoded now: base and length; `None` while memory decoding is off.
    pub fn bar(&self) -> Option<(u64, u64)> {
        let decoding = self.get(COMMAND) & COMMAND_MEMORY != 0 && self.bar_len > 0;
        decoding.then(|| (self.read_u64(BAR0) & !0xf, self.bar_len))
    }

    /// Appends a capability: its id and what follows its two-byte header, of which `writable`
    /// has the bits that a guest may write. Returns its offset.
    pub fn add_capability(
        &mut self,
        id: u8,
        body: &[u8],
        writable: &[u8],
    ) -> Result<u8, CapabilityError> {
        let at = self.next;
        let end = usize::from(at) + 2 + body.len();
        if end > SIZE {
            return Err(CapabilityError);
        }
        self.set(usize::from(at), &[id, 0]);
        self.set(usize::from(at) + 2, body);
        self.allow(usize::from(at) + 2, writable);
        match self.last {
            Some(last) => self.set(usize::from(last) + 1, &[at]),
            None => {
                self.set(CAPABILITIES, &[at]);
                self.set(STATUS, &[STATUS_CAPABILITIES]);
            }
        }
        self.last = Some(at);
        self.next = u8::try_from(end.next_multiple_of(4)).unwrap_or(u8::MAX);
        Ok(at)
    }

    /// Reads; past the 256 bytes there is nothing (no extended capabilities).
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = self.get(usize::from(offset) + i);
        }
    }

    /// Writes the bits that a guest may write.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        for (i, new) in data.iter().enumerate() {
            let at = usize::from(offset) + i;
            if let (Some(byte), Some(mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *byte = *byte & !mask | new & mask;
            }
        }
    }

    /// One byte; 0 past the end.
    pub fn get(&self, at: usize) -> u8 {
        self.bytes.get(at).copied().unwrap_or(0)
    }

    /// Four bytes, little-endian.
    pub fn read_u32(&self, at: usize) -> u32 {
        (self.read_u64(at) & 0xffff_ffff) as u32
    }

    fn read_u64(&self, at: usize) -> u64 {
        (0..8).fold(0, |value, i| value | u64::from(self.get(at + i)) << (8 * i))
    }

    /// The bytes, for a snapshot.
    pub fn save(&self) -> Value {
        saved::write(&&self.bytes[..])
    }

    /// Takes what a guest has written to the same function.
    pub fn restore(&mut self, saved: &Value) -> Result<(), Unfit> {
        let bytes: Vec<u8> = saved::read(saved)?;
        let fixed = |bytes: &[u8]| -> Vec<u8> {
            let bits = bytes.iter().zip(&self.writable);
            bits.map(|(byte, writable)| byte & !writable).collect()
        };
        if bytes.len() != SIZE || fixed(&bytes) != fixed(&self.bytes) {
            return Err(Unfit::new("its configuration space is another function's"));
        }
        self.set(0, &bytes);
        Ok(())
    }

    /// Sets bytes, whether or not a guest may write them.
    pub fn set(&mut self, at: usize, data: &[u8]) {
        for (byte, new) in self.bytes.iter_mut().skip(at).zip(data) {
            *byte = *new;
        }
    }

    /// Lets a guest write the bits of `mask` from `at` on.
    pub fn allow(&mut self, at: usize, mask: &[u8]) {
        for (byte, new) in self.writable.iter_mut().skip(at).zip(mask) {
            *byte = *new;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn space() -> ConfigSpace {
        let mut space = ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1041,
            revision: 1,
            class: [0, 0, 2],
            subsystem: (0x1af4, 1),
        });
        space.set_bar(0xc000_0000, 0x4000);
        space
    }

    #[test]
    fn a_bar_tells_its_size_and_moves_once_memory_is_on() {
        let mut space = space();
        assert_eq!(space.bar(), None);
        space.write(0x10, &[0xff; 8]);
        assert_eq!(space.read_u32(0x10), !0x3fff | 4);
        space.write(0x10, &0x9_c001_0000u64.to_le_bytes());
        space.write(0x04, &[2]);
        assert_eq!(space.bar(), Some((0x9_c001_0000, 0x4000)));
    }

    #[test]
    fn capabilities_are_chained_and_only_their_writable_bits_change() {
        let mut space = space();
        let first = space.add_capability(9, &[1, 2, 3], &[]).unwrap();
        let second = space.add_capability(0x11, &[0, 0], &[0, 0xc0]).unwrap();
        assert_eq!(space.get(0x34), first);
        assert_eq!(space.get(usize::from(first) + 1), second);
        assert_eq!(space.get(usize::from(second) + 1), 0);
        space.write(u16::from(second), &[0xff; 4]);
        assert_eq!(space.read_u32(usize::from(second)), 0xc000_0011);
        assert!(space.add_capability(9, &[0; 256], &[]).is_err());
    }

    #[test]
    fn what_a_guest_wrote_is_restored_and_another_function_s_space_is_not() {
        let mut first = space();
        first.write(0x10, &0x9_c001_0000u64.to_le_bytes());
        first.write(0x04, &[2]);
        let mut second = space();
        second.restore(&first.save()).unwrap();
        assert_eq!(second.bar(), Some((0x9_c001_0000, 0x4000)));
        let mut other = space();
        other.set(VENDOR, &[0x86, 0x80]);
        assert!(other.restore(&first.save()).is_err());
        assert!(other.restore(&saved::write(&[1, 2])).is_err());
    }

    proptest! {
        #[test]
        fn no_access_panics_or_changes_the_identity(
            writes in prop::collection::vec((any::<u16>(), prop::collection::vec(any::<u8>(), 0..9)), 0..64)
        ) {
            let mut space = space();
            for (offset, data) in writes {
                space.write(offset, &data);
                space.read(offset, &mut [0; 8]);
            }
            prop_assert_eq!(space.read_u32(0), 0x1041_1af4);
        }
    }
}
