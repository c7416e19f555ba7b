//! Virtio devices (virtio 1.2). [`VirtioDevice`] is what every device is; the transport
//! ([`transport`], virtio over PCI, section 4.1) drives it.

pub mod balloon;
pub mod block;
pub mod buffers;
pub mod console;
pub mod net;
pub mod queue;
pub mod rng;
#[cfg(test)]
pub mod testing;
pub mod transport;
pub mod trouble;
pub mod vsock;
pub mod worker;

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU16;

use netdev::gate::Gate;
use serde_json::Value;
use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use crate::devices::host::MsiVector;
use crate::devices::saved::Unfit;
use trouble::Trouble;

/// Guest memory as devices hold it: a clone is another handle of the same memory.
pub type GuestMemory = GuestMemoryMmap;

/// A device behind a virtio transport. A device owns its worker thread: [`VirtioDevice::activate`]
/// starts it with the queues that the driver set up, [`VirtioDevice::reset`] stops it.
pub trait VirtioDevice: Send {
    /// Virtio device id (section 5): 1 net, 2 block, 3 console, 4 entropy, 5
    /// balloon, 19 socket.
    fn id(&self) -> u16;

    /// The largest size of each queue; a power of two each. Their number is the device's.
    fn queue_sizes(&self) -> &[u16];

    /// The features that the device offers, `VIRTIO_F_VERSION_1` among them.
    fn features(&self) -> u64;

    /// Reads the device's configuration space at `offset`; bytes past its end read as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes the device's configuration space. Most have nothing to write.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// The driver set DRIVER_OK: start working. An error sets DEVICE_NEEDS_RESET.
    fn activate(&mut self, activation: Activation) -> io::Result<()>;

    /// Stops the worker and waits for it; what the driver had been promised is finished first
    /// (a flush that was asked for is done). Idempotent.
    fn reset(&mut self);

    /// What it holds beside its queues, for a snapshot; nothing, where that is nothing.
    fn save(&self) -> Value {
        Value::Null
    }

    /// Takes what [`VirtioDevice::save`] gave, before it is activated.
    fn restore(&mut self, _saved: &Value) -> Result<(), Unfit> {
        Ok(())
    }
}

/// What a device gets at DRIVER_OK.
pub struct Activation {
    /// The guest's memory.
    pub memory: GuestMemory,
    /// The features that both sides agreed on.
    pub features: u64,
    /// The queues, by index; `None` where the driver left one disabled.
    pub queues: Vec<Option<ActiveQueue>>,
    /// To tell the driver that the configuration space changed.
    pub config_interrupt: Interrupt,
    /// Where the device complains of its driver.
    pub trouble: Trouble,
    /// What the device passes before it touches the guest's memory.
    pub gate: Gate,
    /// The driver set all this up in another machine, of which this one is a copy.
    pub restored: bool,
}

/// A queue that the driver set up.
pub struct ActiveQueue {
    /// The ring.
    pub queue: Queue,
    /// Signalled when the driver kicks (an ioeventfd).
    pub kick: EventFd,
    /// To tell the driver of used buffers.
    pub interrupt: Interrupt,
}

/// An interrupt of a device: its MSI-X vector, looked up each time because the driver may move
/// it, and nothing where the driver chose `VIRTIO_MSI_NO_VECTOR`.
#[derive(Clone)]
pub struct Interrupt {
    /// The MSI-X table's vectors.
    pub vectors: Arc<Vec<Arc<dyn MsiVector>>>,
    /// Which of them; 0xffff is none.
    pub vector: Arc<AtomicU16>,
}

impl Interrupt {
    /// Raises the interrupt, where the driver wants one.
    pub fn trigger(&self) -> io::Result<()> {
        let index = self.vector.load(std::sync::atomic::Ordering::Acquire);
        match self.vectors.get(usize::from(index)) {
            Some(vector) => vector.trigger(),
            None => Ok(()),
        }
    }
}

/// Reads a device's configuration space, `config`, at `offset`; past its end there are zeros.
fn read_from(config: &[u8], offset: u64, data: &mut [u8]) {
    let from = usize::try_from(offset).unwrap_or(usize::MAX);
    for (i, byte) in data.iter_mut().enumerate() {
        *byte = config.get(from.saturating_add(i)).copied().unwrap_or(0);
    }
}

#[cfg(test)]
mod hostile;
