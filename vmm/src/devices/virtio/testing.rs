//! A driver for tests, which sets a device up by its registers and its rings as a guest does, and
//! may write there whatever it likes.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use netdev::gate::Gate;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::GuestMemory;
use super::transport::{PciTransport, SharedVirtio};
use super::trouble::Complaints;
use crate::devices::host::{Host, MsiMessage, MsiVector};
use crate::devices::pci::{Address, PciFunction};

/// A host that remembers what it was asked for.
#[derive(Default)]
pub struct FakeHost {
    /// Where doorbells are registered.
    pub doorbells: Mutex<Vec<u64>>,
    /// Where each vector leads.
    pub routes: Arc<Mutex<Vec<Option<MsiMessage>>>>,
}

struct FakeVector(EventFd, usize, Arc<Mutex<Vec<Option<MsiMessage>>>>);

impl MsiVector for FakeVector {
    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
    fn event(&self) -> &EventFd {
        &self.0
    }
    fn route(&self, message: Option<MsiMessage>) -> io::Result<()> {
        self.2.lock().unwrap()[self.1] = message;
        Ok(())
    }
}

impl Host for FakeHost {
    fn gate(&self) -> Gate {
        Gate::default()
    }
    fn msi_vector(&self) -> io::Result<Arc<dyn MsiVector>> {
        let mut routes = self.routes.lock().unwrap();
        routes.push(None);
        let event = EventFd::new(EFD_NONBLOCK)?;
        Ok(Arc::new(FakeVector(
            event,
            routes.len() - 1,
            self.routes.clone(),
        )))
    }
    fn add_ioevent(&self, address: u64, _: &EventFd) -> io::Result<()> {
        self.doorbells.lock().unwrap().push(address);
        Ok(())
    }
    fn remove_ioevent(&self, address: u64, _: &EventFd) -> io::Result<()> {
        self.doorbells.lock().unwrap().retain(|a| *a != address);
        Ok(())
    }
}

/// Descriptor flags.
pub const NEXT: u16 = 1;
/// The device writes there.
pub const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const INDIRECT: u16 = 4;

/// Memory from 0 to here, and again as much from [`ABOVE_HOLE`].
pub const HOLE: u64 = 1 << 20;
/// End of the hole.
pub const ABOVE_HOLE: u64 = 2 << 20;
/// Buffers are the test's from here on.
pub const BUFFERS: u64 = 0x4_0000;
/// A wait for a device's thread, so long that it fails only where the thread does.
const PATIENCE: Duration = Duration::from_secs(60);

const STATUS: u64 = 20;
const NOTIFY: u64 = 0x3000;
/// What a queue's rings take of memory.
const RINGS: u64 = 0x4000;

/// A descriptor: address, length, flags, next.
pub type Descriptor = (u64, u32, u16, u16);

/// The driver of one device.
pub struct Driver {
    /// The device's registers.
    pub transport: PciTransport,
    /// The guest's memory.
    pub memory: GuestMemory,
    /// What the device has complained of.
    pub complaints: Arc<Complaints>,
    /// How large each queue is.
    pub sizes: Vec<u16>,
    /// A queue that is left as it is when buffers are to be made available.
    pub spoilt: Option<usize>,
    /// How many chains have been made available, a queue.
    available: Vec<u16>,
}

impl Driver {
    /// A driver that has done nothing yet.
    pub fn new(device: SharedVirtio) -> Self {
        let ranges = [(GuestAddress(0), HOLE), (GuestAddress(ABOVE_HOLE), HOLE)];
        let ranges = ranges.map(|(at, len)| (at, len as usize));
        let memory = GuestMemory::from_ranges(&ranges).unwrap();
        let sizes = device.lock().unwrap().queue_sizes().to_vec();
        let complaints = Complaints::new("test", "");
        let at = Address {
            bus: 0,
            device: 3,
            function: 0,
        };
        let device = (device, complaints.clone());
        let host = Arc::new(FakeHost::default());
        let bar = 0xc000_0000;
        let transport = PciTransport::new(device, host, memory.clone(), at, bar).unwrap();
        let available = vec![0; sizes.len()];
        Self {
            transport,
            memory,
            complaints,
            sizes,
            spoilt: None,
            available,
        }
    }

    /// Reads a register of the common structure.
    pub fn read(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.bar_read(0, offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Writes a register of `len` bytes.
    pub fn write(&mut self, offset: u64, value: u64, len: usize) {
        self.transport
            .bar_write(0, offset, &value.to_le_bytes()[..len]);
    }

    /// The device's status.
    pub fn status(&mut self) -> u8 {
        self.read(STATUS) as u8
    }

    /// Sets status bits besides those that are set.
    pub fn add_status(&mut self, bits: u8) {
        let now = self.status();
        self.write(STATUS, u64::from(now | bits), 1);
    }

    /// The features that the device offers.
    pub fn offered(&mut self) -> u64 {
        let mut half = |half: u64| {
            self.write(0, half, 4);
            u64::from(self.read(4))
        };
        half(0) | half(1) << 32
    }

    /// Asks for `features`; the status then.
    pub fn accept(&mut self, features: u64) -> u8 {
        for half in [0, 1] {
            self.write(8, half, 4);
            self.write(12, features >> (32 * half) & 0xffff_ffff, 4);
        }
        self.add_status(8);
        self.status()
    }

    /// Resets the device and agrees on all that it offers but EVENT_IDX, so that rings of any
    /// making are followed.
    pub fn begin(&mut self) {
        self.reset();
        self.add_status(3);
        let features = self.offered() & !(1 << VIRTIO_RING_F_EVENT_IDX);
        assert_eq!(self.accept(features), 11);
    }

    /// Where the descriptors, the available ring and the used ring of a queue are.
    pub fn places(queue: usize) -> [u64; 3] {
        let base = 0x1000 + queue as u64 * RINGS;
        [base, base + 0x1000, base + 0x2000]
    }

    /// Tells the device where a queue lies, and enables it.
    pub fn place(&mut self, queue: usize, [descriptors, available, used]: [u64; 3]) {
        self.write(22, queue as u64, 2);
        for (offset, at) in [(32, descriptors), (40, available), (48, used)] {
            self.write(offset, at, 8);
        }
        self.write(28, 1, 2);
    }

    /// All the steps to a device that works, with empty rings.
    pub fn start(&mut self) {
        self.spoilt = None;
        self.begin();
        for queue in 0..self.sizes.len() {
            self.clear(queue);
            self.place(queue, Self::places(queue));
        }
        self.add_status(4);
    }

    /// Makes a queue's rings all zeros.
    pub fn clear(&mut self, queue: usize) {
        let [base, ..] = Self::places(queue);
        let zeros = vec![0; RINGS as usize];
        self.memory.write_slice(&zeros, GuestAddress(base)).unwrap();
        self.available[queue] = 0;
    }

    /// Resets the device, and waits until it has stopped.
    pub fn reset(&mut self) {
        self.write(STATUS, 0, 1);
        assert_eq!(self.status(), 0);
    }

    /// Writes descriptors from number `first` of the table at `table` on.
    pub fn describe(&self, table: u64, first: u16, chain: &[Descriptor]) {
        for (i, (at, len, flags, next)) in (u64::from(first)..).zip(chain) {
            let mut bytes = at.to_le_bytes().to_vec();
            bytes.extend(len.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend(next.to_le_bytes());
            let to = GuestAddress(table + i * 16);
            self.memory.write_slice(&bytes, to).unwrap();
        }
    }

    /// Makes the chain available that begins with descriptor `head`.
    pub fn offer(&mut self, queue: usize, head: u16) {
        let [_, available, _] = Self::places(queue);
        let at = u64::from(self.available[queue] % self.sizes[queue]);
        let entry = GuestAddress(available + 4 + 2 * at);
        self.memory.write_obj(head, entry).unwrap();
        self.set_index(queue, self.available[queue].wrapping_add(1));
    }

    /// Says that so many chains have been made available.
    pub fn set_index(&mut self, queue: usize, index: u16) {
        let [_, available, _] = Self::places(queue);
        self.available[queue] = index;
        self.memory
            .write_obj(index, GuestAddress(available + 2))
            .unwrap();
    }

    /// Describes honest buffers, one behind the other, from descriptor `first` on, and makes them
    /// available.
    pub fn request(&mut self, queue: usize, first: u16, buffers: &[(u64, u32, u16)]) {
        if self.spoilt == Some(queue) {
            return;
        }
        let links = first + 1..;
        let last = buffers.len() - 1;
        let chain: Vec<_> = (links.zip(buffers).enumerate())
            .map(|(i, (next, (at, len, flags)))| {
                let link = if i < last { NEXT } else { 0 };
                (*at, *len, flags | link, next)
            })
            .collect();
        self.describe(Self::places(queue)[0], first, &chain);
        self.offer(queue, first);
    }

    /// Kicks a queue.
    pub fn kick(&mut self, queue: usize) {
        self.write(NOTIFY + 4 * queue as u64, 0, 2);
    }

    /// How many chains came back.
    pub fn used(&self, queue: usize) -> u16 {
        let [.., used] = Self::places(queue);
        self.memory.read_obj(GuestAddress(used + 2)).unwrap()
    }

    /// How many bytes were written to the chain that came back as number `index`.
    pub fn written(&self, queue: usize, index: u16) -> u32 {
        let [.., used] = Self::places(queue);
        let at = GuestAddress(used + 4 + 8 * u64::from(index) + 4);
        self.memory.read_obj(at).unwrap()
    }

    /// Waits until `done`.
    pub fn wait(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(start.elapsed() < PATIENCE, "{what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
