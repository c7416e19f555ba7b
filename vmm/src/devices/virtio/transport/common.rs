//! The common configuration registers (virtio 1.2, section 4.1.4.3): plain data that a driver
//! reads and writes, and what a write asks for.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// A vector index that means none.
pub const NO_VECTOR: u16 = 0xffff;

/// Device status bits (section 2.1).
pub mod status {
    /// Features are agreed on.
    pub const FEATURES_OK: u8 = 8;
    /// The driver is ready.
    pub const DRIVER_OK: u8 = 4;
    /// The device has met an error that only a reset mends.
    pub const NEEDS_RESET: u8 = 64;
}

/// One queue as the driver set it up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueRegisters {
    max_size: u16,
    size: u16,
    enabled: bool,
    descriptors: u64,
    available: u64,
    used: u64,
    /// Its MSI-X vector.
    pub vector: u16,
}

impl QueueRegisters {
    fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            enabled: false,
            descriptors: 0,
            available: 0,
            used: 0,
            vector: NO_VECTOR,
        }
    }

    /// The ring; `None` where the driver left the queue disabled.
    pub fn queue(&self, event_idx: bool) -> Option<Result<Queue, virtio_queue::Error>> {
        self.enabled.then(|| {
            let mut queue = Queue::new(self.max_size)?;
            queue.try_set_size(self.size)?;
            // These refuse what is not aligned; the others would leave a ring at 0 then.
            queue.try_set_desc_table_address(GuestAddress(self.descriptors))?;
            queue.try_set_avail_ring_address(GuestAddress(self.available))?;
            queue.try_set_used_ring_address(GuestAddress(self.used))?;
            queue.set_event_idx(event_idx);
            queue.set_ready(true);
            Ok(queue)
        })
    }
}

/// Sets a ring as far as a device has come with it in another machine, of which `memory` is a copy.
/// What it had taken and not given back is there to be taken again.
pub fn catch_up(queue: &mut Queue, memory: &GuestMemoryMmap) -> Result<(), virtio_queue::Error> {
    let used = queue.used_idx(memory, Ordering::Acquire)?.0;
    queue.set_next_used(used);
    queue.set_next_avail(used);
    Ok(())
}

/// What a write asks the transport to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Nothing but remembering.
    None,
    /// The driver reset the device.
    Reset,
    /// The driver is ready: start the device.
    Activate,
    /// A vector changed.
    Vectors,
}

/// The registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    offered: u64,
    device_select: u32,
    driver_select: u32,
    /// What the driver accepted of what was offered.
    pub features: u64,
    /// Device status.
    pub status: u8,
    /// The vector of configuration changes.
    pub config_vector: u16,
    queue_select: u16,
    /// The queues.
    pub queues: Vec<QueueRegisters>,
    vectors: u16,
}

impl Registers {
    /// The registers of a device that offers `features` and has queues of these sizes, and
    /// `vectors` MSI-X vectors.
    pub fn new(offered: u64, queue_sizes: &[u16], vectors: u16) -> Self {
        Self {
            offered,
            device_select: 0,
            driver_select: 0,
            features: 0,
            status: 0,
            config_vector: NO_VECTOR,
            queue_select: 0,
            queues: queue_sizes
                .iter()
                .map(|size| QueueRegisters::new(*size))
                .collect(),
            vectors,
        }
    }

    /// Takes those of the same device, as a driver has left them; false where they are another's.
    pub fn restore(&mut self, saved: Self) -> bool {
        let fixed = |registers: &Self| {
            let sizes: Vec<_> = registers
                .queues
                .iter()
                .map(|queue| queue.max_size)
                .collect();
            (registers.offered, registers.vectors, sizes)
        };
        let same = fixed(&saved) == fixed(self);
        if same {
            *self = saved;
        }
        same
    }

    /// Back to what a driver finds first.
    pub fn reset(&mut self) {
        let sizes: Vec<_> = self.queues.iter().map(|queue| queue.max_size).collect();
        *self = Self::new(self.offered, &sizes, self.vectors);
    }

    /// Reads the registers at `offset`.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let queue = self.queues.get(usize::from(self.queue_select));
        let value = match offset {
            0 => u64::from(self.device_select),
            4 => half(self.offered, self.device_select),
            8 => u64::from(self.driver_select),
            12 => half(self.features, self.driver_select),
            16 => u64::from(self.config_vector),
            18 => self.queues.len() as u64,
            20 => u64::from(self.status),
            22 => u64::from(self.queue_select),
            24 => queue.map_or(0, |queue| u64::from(queue.size)),
            26 => queue.map_or(u64::from(NO_VECTOR), |queue| u64::from(queue.vector)),
            28 => queue.map_or(0, |queue| u64::from(queue.enabled)),
            30 => u64::from(self.queue_select),
            32 => queue.map_or(0, |queue| queue.descriptors),
            36 => queue.map_or(0, |queue| queue.descriptors >> 32),
            40 => queue.map_or(0, |queue| queue.available),
            44 => queue.map_or(0, |queue| queue.available >> 32),
            48 => queue.map_or(0, |queue| queue.used),
            52 => queue.map_or(0, |queue| queue.used >> 32),
            _ => 0,
        };
        for (byte, value) in data.iter_mut().zip(value.to_le_bytes()) {
            *byte = value;
        }
    }

    /// Writes the registers at `offset`.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Request {
        let value = data
            .iter()
            .take(8)
            .rev()
            .fold(0u64, |value, b| value << 8 | u64::from(*b));
        let vector = if (value as u16) < self.vectors {
            value as u16
        } else {
            NO_VECTOR
        };
        match offset {
            0 => self.device_select = value as u32,
            8 => self.driver_select = value as u32,
            12 if self.status & status::FEATURES_OK == 0 => self.accept(value as u32),
            16 => {
                self.config_vector = vector;
                return Request::Vectors;
            }
            20 => return self.set_status(value as u8),
            22 => self.queue_select = value as u16,
            _ => return self.write_queue(offset, value, vector, data.len() == 8),
        }
        Request::None
    }

    fn accept(&mut self, value: u32) {
        let shift = match self.driver_select {
            0 => 0,
            1 => 32,
            _ => return,
        };
        self.features = self.features & !(0xffff_ffff << shift) | u64::from(value) << shift;
    }

    fn set_status(&mut self, value: u8) -> Request {
        if value == 0 {
            return Request::Reset;
        }
        let new = value & !self.status;
        self.status |= value & !status::NEEDS_RESET;
        if new & status::FEATURES_OK != 0 && self.features & !self.offered != 0 {
            // Section 3.1.1: the driver reads it back and sees that it was refused.
            self.status &= !status::FEATURES_OK;
        }
        if new & status::DRIVER_OK != 0 {
            Request::Activate
        } else {
            Request::None
        }
    }

    fn write_queue(&mut self, offset: u64, value: u64, vector: u16, whole: bool) -> Request {
        let live = self.status & status::DRIVER_OK != 0;
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else {
            return Request::None;
        };
        if offset == 26 {
            queue.vector = vector;
            return Request::Vectors;
        }
        // A queue that is in use stays as it is until the device is reset.
        if live || queue.enabled {
            return Request::None;
        }
        let set = |address: &mut u64, upper: bool| {
            *address = match (whole, upper) {
                (true, _) => value,
                (false, false) => *address & !0xffff_ffff | value & 0xffff_ffff,
                (false, true) => *address & 0xffff_ffff | value << 32,
            };
        };
        match offset {
            24 => {
                let size = value as u16;
                if size.is_power_of_two() && size <= queue.max_size {
                    queue.size = size;
                }
            }
            28 => queue.enabled = value & 1 != 0,
            32 | 36 => set(&mut queue.descriptors, offset == 36),
            40 | 44 => set(&mut queue.available, offset == 44),
            48 | 52 => set(&mut queue.used, offset == 52),
            _ => {}
        }
        Request::None
    }
}

fn half(features: u64, select: u32) -> u64 {
    match select {
        0 => features & 0xffff_ffff,
        1 => features >> 32,
        _ => 0,
    }
}
