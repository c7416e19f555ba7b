//! The PCI function that a virtio device sits behind.

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;

use super::common::{self, NO_VECTOR, Registers, Request, status};
use super::doorbells::{self, Doorbells};
use crate::devices::host::Host;
use crate::devices::pci::config::{ConfigSpace, Identity};
use crate::devices::pci::msix::Msix;
use crate::devices::pci::{Address, PciFunction};
use crate::devices::saved::{self, Unfit};
use crate::devices::virtio::trouble::{Complaints, Trouble};
use crate::devices::virtio::{Activation, ActiveQueue, GuestMemory, Interrupt, VirtioDevice};

/// A device, which outlives the transport: a guest's reset makes the machine anew round it.
pub type SharedVirtio = Arc<Mutex<dyn VirtioDevice>>;

/// Length of BAR 0, which holds everything.
pub const BAR_LEN: u64 = 0x8000;
const PAGE: u32 = 0x1000;
// Where in BAR 0 each structure lies, a page each.
const COMMON: u32 = 0;
const ISR: u32 = PAGE;
const DEVICE: u32 = 2 * PAGE;
const NOTIFY: u32 = 3 * PAGE;
const TABLE: u32 = 4 * PAGE;
const PENDING: u32 = 5 * PAGE;

const VENDOR_CAPABILITY: u8 = 9;
const RED_HAT: u16 = 0x1af4;
/// A modern device's PCI id is this plus its virtio id (section 4.1.2).
const DEVICE_BASE: u16 = 0x1040;

// Structures' types (section 4.1.4).
const CFG_COMMON: u8 = 1;
const CFG_NOTIFY: u8 = 2;
const CFG_ISR: u8 = 3;
const CFG_DEVICE: u8 = 4;
const CFG_PCI: u8 = 5;

/// A virtio device on the PCI bus.
pub struct PciTransport {
    space: ConfigSpace,
    registers: Registers,
    device: SharedVirtio,
    host: Arc<dyn Host>,
    memory: GuestMemory,
    msix: Msix,
    doorbells: Doorbells,
    queue_vectors: Vec<Arc<AtomicU16>>,
    config_vector: Arc<AtomicU16>,
    complaints: Arc<Complaints>,
    /// Of the device that runs.
    trouble: Option<Trouble>,
    pci_cfg: u16,
}

impl PciTransport {
    /// Puts `device` at `address` of the bus with BAR 0 at `bar`. What its driver does wrong is
    /// counted in `complaints`.
    pub fn new(
        (device, complaints): (SharedVirtio, Arc<Complaints>),
        host: Arc<dyn Host>,
        memory: GuestMemory,
        address: Address,
        bar: u64,
    ) -> io::Result<Self> {
        let (id, sizes, features) = {
            let device = lock(&device);
            (
                device.id(),
                device.queue_sizes().to_vec(),
                device.features(),
            )
        };
        let count = u16::try_from(sizes.len()).map_err(io::Error::other)?;
        let mut space = ConfigSpace::new(Identity {
            vendor: RED_HAT,
            device: DEVICE_BASE + id,
            revision: 1,
            class: class(id),
            subsystem: (RED_HAT, DEVICE_BASE + id),
        });
        space.set_bar(bar, BAR_LEN);
        let table = (TABLE, PENDING);
        let msix = Msix::new(&*host, &mut space, count + 1, address, table)?;
        let pci_cfg = add_structures(&mut space, u32::from(count)).map_err(io::Error::other)?;
        let doorbells = Doorbells::new(host.clone(), sizes.len())?;
        let no_vector = || Arc::new(AtomicU16::new(NO_VECTOR));
        Ok(Self {
            space,
            registers: Registers::new(features, &sizes, count + 1),
            device,
            host,
            memory,
            msix,
            doorbells,
            queue_vectors: sizes.iter().map(|_| no_vector()).collect(),
            config_vector: no_vector(),
            complaints,
            trouble: None,
            pci_cfg: u16::from(pci_cfg),
        })
    }

    fn handle(&mut self, request: Request) {
        match request {
            Request::None => {}
            Request::Reset => self.reset_device(),
            Request::Vectors => self.move_vectors(),
            Request::Activate => self.start(false),
        }
    }

    fn start(&mut self, restored: bool) {
        let interrupt = self.interrupt(&self.config_vector);
        let trouble = Trouble::new(self.complaints.clone(), interrupt);
        if let Err(error) = self.activate(trouble.clone(), restored) {
            tracing::warn!("{}: {error}", self.complaints.device);
            trouble.needs_reset();
        }
        self.trouble = Some(trouble);
    }

    /// What came to pass between the driver and the device that was, and neither knows any more: the
    /// device looks at its queues, and the driver does.
    fn nudge(&self) {
        for (kick, vector) in self.doorbells.kicks().zip(&self.queue_vectors) {
            // An eventfd's write fails only when its counter is full: it is signalled then.
            let _ = kick.write(1);
            let _ = self.interrupt(vector).trigger();
        }
    }

    fn reset_device(&mut self) {
        lock(&self.device).reset();
        self.registers.reset();
        self.trouble = None;
        self.move_vectors();
        for kick in self.doorbells.kicks() {
            // An error means that nothing was pending.
            let _ = kick.read();
        }
    }

    fn move_vectors(&mut self) {
        self.config_vector
            .store(self.registers.config_vector, Ordering::Release);
        for (vector, queue) in self.queue_vectors.iter().zip(&self.registers.queues) {
            vector.store(queue.vector, Ordering::Release);
        }
    }

    fn interrupt(&self, vector: &Arc<AtomicU16>) -> Interrupt {
        Interrupt {
            vectors: self.msix.vectors(),
            vector: vector.clone(),
        }
    }

    fn activate(&mut self, trouble: Trouble, restored: bool) -> io::Result<()> {
        if self.registers.status & status::FEATURES_OK == 0 {
            return Err(io::Error::other(
                "the driver started it before agreeing on features",
            ));
        }
        let features = self.registers.features;
        let event_idx = features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let mut queues = Vec::new();
        let parts = self.doorbells.kicks().zip(&self.queue_vectors);
        for (registers, (kick, vector)) in self.registers.queues.iter().zip(parts) {
            let active = match registers.queue(event_idx) {
                None => None,
                Some(queue) => {
                    let mut queue = queue.map_err(io::Error::other)?;
                    if !queue.is_valid(&self.memory) {
                        return Err(io::Error::other("a queue lies outside the guest's memory"));
                    }
                    if restored {
                        common::catch_up(&mut queue, &self.memory).map_err(io::Error::other)?;
                    }
                    let (kick, interrupt) = (kick.try_clone()?, self.interrupt(vector));
                    Some(ActiveQueue {
                        queue,
                        kick,
                        interrupt,
                    })
                }
            };
            queues.push(active);
        }
        lock(&self.device).activate(Activation {
            memory: self.memory.clone(),
            features,
            queues,
            config_interrupt: self.interrupt(&self.config_vector),
            trouble,
            gate: self.host.gate(),
            restored,
        })
    }

    /// Where the first queue's doorbell is, while BAR 0 is decoded.
    fn first_doorbell(&self) -> Option<u64> {
        let (base, _) = self.space.bar()?;
        Some(base.wrapping_add(u64::from(NOTIFY)))
    }

    /// An access through the PCI_CFG structure (section 4.1.4.9): where it goes, if it is to a
    /// place that the driver may reach that way.
    fn window(&self, offset: u16) -> Option<(u64, usize)> {
        let data = self.pci_cfg + 16;
        if offset != data || self.space.get(usize::from(self.pci_cfg) + 4) != 0 {
            return None;
        }
        let at = u64::from(self.space.read_u32(usize::from(self.pci_cfg) + 8));
        let len = self.space.read_u32(usize::from(self.pci_cfg) + 12) as usize;
        (matches!(len, 1 | 2 | 4) && at < BAR_LEN).then_some((at, len))
    }
}

/// What the guest has written, and what the device behind holds.
#[derive(Serialize, Deserialize)]
struct Saved {
    space: Value,
    vectors: Vec<u8>,
    registers: Registers,
    broken: bool,
    device: Value,
}

fn lock(device: &SharedVirtio) -> MutexGuard<'_, dyn VirtioDevice + 'static> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The class that a driver of another kind would look for; Linux goes by the ids.
fn class(id: u16) -> [u8; 3] {
    match id {
        1 => [0, 0, 2],
        2 => [0, 0, 1],
        _ => [0, 0, 0xff],
    }
}

/// Adds the five structures' capabilities; where the PCI_CFG one lies.
fn add_structures(
    space: &mut ConfigSpace,
    queues: u32,
) -> Result<u8, crate::devices::pci::config::CapabilityError> {
    let body = |kind: u8, at: u32, len: u32, extra: &[u8]| {
        let mut body = vec![16 + extra.len() as u8, kind, 0, 0, 0, 0];
        body.extend(at.to_le_bytes());
        body.extend(len.to_le_bytes());
        body.extend(extra);
        body
    };
    let step = (doorbells::STEP as u32).to_le_bytes();
    for (kind, at, len, extra) in [
        (CFG_COMMON, COMMON, 64, &[][..]),
        (CFG_NOTIFY, NOTIFY, queues * doorbells::STEP as u32, &step),
        (CFG_ISR, ISR, 4, &[]),
        (CFG_DEVICE, DEVICE, PAGE, &[]),
    ] {
        space.add_capability(VENDOR_CAPABILITY, &body(kind, at, len, extra), &[])?;
    }
    // Bar, offset, length and data are the driver's to write.
    let mut writable = [0xff; 18];
    writable.iter_mut().take(2).for_each(|byte| *byte = 0);
    space.add_capability(VENDOR_CAPABILITY, &body(CFG_PCI, 0, 0, &[0; 4]), &writable)
}

impl PciFunction for PciTransport {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        match self.window(offset) {
            Some((at, len)) if data.len() >= len => {
                if let Some(data) = data.get_mut(..len) {
                    self.bar_read(0, at, data);
                }
            }
            _ => self.space.read(offset, data),
        }
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) {
        if let Some((at, len)) = self.window(offset) {
            if let Some(data) = data.get(..len) {
                self.bar_write(0, at, data);
            }
            return;
        }
        self.space.write(offset, data);
        self.doorbells.moved(self.first_doorbell());
        if let Err(error) = self.msix.update(&self.space) {
            tracing::warn!("an interrupt could not be routed: {error}");
        }
    }

    fn windows(&self) -> Vec<(u8, u64, u64)> {
        self.space
            .bar()
            .map(|(base, len)| (0, base, len))
            .into_iter()
            .collect()
    }

    fn bar_read(&mut self, _: u8, offset: u64, data: &mut [u8]) {
        let (page, offset) = (offset & !u64::from(PAGE - 1), offset & u64::from(PAGE - 1));
        match u32::try_from(page) {
            Ok(COMMON) => {
                if self.trouble.as_ref().is_some_and(Trouble::is_broken) {
                    self.registers.status |= status::NEEDS_RESET;
                }
                self.registers.read(offset, data);
            }
            Ok(DEVICE) => lock(&self.device).read_config(offset, data),
            Ok(TABLE) => self.msix.read(offset, data),
            // ISR: there is no INTx to acknowledge.
            _ => data.fill(0),
        }
    }

    fn bar_write(&mut self, _: u8, offset: u64, data: &[u8]) {
        let (page, offset) = (offset & !u64::from(PAGE - 1), offset & u64::from(PAGE - 1));
        match u32::try_from(page) {
            Ok(COMMON) => {
                let request = self.registers.write(offset, data);
                self.handle(request);
            }
            Ok(DEVICE) => lock(&self.device).write_config(offset, data),
            Ok(NOTIFY) => {
                let queue = usize::try_from(offset / doorbells::STEP).unwrap_or(usize::MAX);
                self.doorbells.ring(queue, self.first_doorbell());
            }
            Ok(TABLE) => {
                if let Err(error) = self.msix.write(offset, data, &self.space) {
                    tracing::warn!("an interrupt could not be routed: {error}");
                }
            }
            _ => {}
        }
    }

    fn reset(&mut self) {
        self.reset_device();
        if let Err(error) = self.msix.reset(&self.space) {
            tracing::warn!("an interrupt could not be masked: {error}");
        }
    }

    fn save(&self) -> Value {
        saved::write(&Saved {
            space: self.space.save(),
            vectors: self.msix.table().to_vec(),
            registers: self.registers.clone(),
            broken: self.trouble.as_ref().is_some_and(Trouble::is_broken),
            device: lock(&self.device).save(),
        })
    }

    fn restore(&mut self, saved: &Value) -> Result<(), Unfit> {
        let saved: Saved = saved::read(saved)?;
        self.space.restore(&saved.space)?;
        if !self.registers.restore(saved.registers) {
            return Err(Unfit::new("it has other features or queues now"));
        }
        self.move_vectors();
        let routed = self.msix.restore(saved.vectors, &self.space);
        routed.map_err(Unfit::new)?;
        lock(&self.device).restore(&saved.device)?;
        if self.registers.status & status::DRIVER_OK != 0 {
            self.start(true);
            self.nudge();
        }
        if let (true, Some(trouble)) = (saved.broken, &self.trouble) {
            trouble.needs_reset();
        }
        Ok(())
    }
}

impl Drop for PciTransport {
    fn drop(&mut self) {
        lock(&self.device).reset();
    }
}
