//! The network as a vhost-user backend (QEMU's docs/interop/vhost-user.rst): another VMM's
//! virtio-net device, whose queues lie in memory that it shares.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    BackendReqHandler, Error, GpuBackend, Result, VhostUserBackendReqHandlerMut,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::engine::Engine;
use crate::link::virtqueue::{self, Virtqueue, VirtqueueLink};

/// The receive queue and the transmit queue.
const QUEUES: usize = 2;
/// The largest queue that is taken.
const MAX_SIZE: u16 = 1024;

/// Serves one VMM on `socket` until it goes away or `stop` ends the connection, and returns the
/// engine for the next.
pub fn serve(socket: UnixStream, engine: Engine) -> (Option<Engine>, io::Result<()>) {
    let device = Arc::new(Mutex::new(Device::new(engine)));
    let mut handler = BackendReqHandler::from_stream(socket, device.clone());
    let result = loop {
        match handler.handle_request() {
            Ok(()) => {}
            // QEMU enables rings when the guest's card is reset, before it has set any features, and
            // not again; the library takes that for a mistake.
            Err(Error::InactiveFeature(VhostUserVirtioFeatures::PROTOCOL_FEATURES)) => {
                lock(&device).enable();
            }
            Err(Error::Disconnected | Error::SocketBroken(_)) => break Ok(()),
            Err(error) => break Err(io::Error::other(error)),
        }
    };
    let mut device = lock(&device);
    device.stop();
    (device.engine.take(), result)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where the VMM has a piece of the guest's memory.
#[derive(Clone, Copy)]
struct Mapping {
    theirs: u64,
    guest: u64,
    len: u64,
}

/// What was said of a ring.
#[derive(Default)]
struct Ring {
    size: u16,
    /// Descriptors, available, used: in the VMM's addresses.
    places: Option<[u64; 3]>,
    base: u16,
    kick: Option<File>,
    /// Changed while the ring runs, when the guest masks its interrupt.
    call: Arc<Mutex<Option<File>>>,
    /// Where the VMM hears that the driver broke the card.
    error: Arc<Mutex<Option<File>>>,
    enabled: bool,
}

struct Device {
    /// `None` while it runs.
    engine: Option<Engine>,
    worker: Option<(JoinHandle<(Engine, VirtqueueLink)>, EventFd)>,
    features: u64,
    memory: GuestMemoryMmap,
    mappings: Vec<Mapping>,
    rings: [Ring; QUEUES],
}

impl Device {
    fn new(engine: Engine) -> Self {
        Self {
            engine: Some(engine),
            worker: None,
            features: 0,
            memory: GuestMemoryMmap::new(),
            mappings: Vec::new(),
            rings: Default::default(),
        }
    }

    fn ring(&mut self, index: u32) -> Result<&mut Ring> {
        self.rings
            .get_mut(index as usize)
            .ok_or(Error::InvalidParam)
    }

    /// Both rings may run once they are complete.
    fn enable(&mut self) {
        for ring in &mut self.rings {
            ring.enabled = true;
        }
    }

    /// Starts when both rings are complete.
    fn start(&mut self) -> Result<()> {
        let ready = |ring: &Ring| ring.enabled && ring.kick.is_some() && ring.places.is_some();
        if self.worker.is_some() || !self.rings.iter().all(ready) {
            return Ok(());
        }
        let (receive, transmit) = (self.virtqueue(0)?, self.virtqueue(1)?);
        let Some(mut engine) = self.engine.take() else {
            return Err(Error::BackendInternalError);
        };
        let memory = self.memory.clone();
        // The VMM keeps the control queue to itself.
        let mut link = VirtqueueLink::new(memory, receive, transmit, None, self.features);
        let errors = self.rings.each_ref().map(|ring| ring.error.clone());
        link.report_to(move || errors.iter().for_each(|error| raise(error)));
        let stop = EventFd::new(EFD_NONBLOCK).map_err(Error::ReqHandlerError)?;
        let stopped = stop.try_clone().map_err(Error::ReqHandlerError)?;
        let thread = std::thread::Builder::new()
            .name("net".to_owned())
            .spawn(move || {
                if let Err(error) = engine.run(&mut link, stopped.as_raw_fd()) {
                    tracing::error!("the network has stopped: {error}");
                }
                (engine, link)
            })
            .map_err(Error::ReqHandlerError)?;
        self.worker = Some((thread, stop));
        Ok(())
    }

    /// Stops, and keeps where each ring was.
    fn stop(&mut self) {
        let Some((thread, stop)) = self.worker.take() else {
            return;
        };
        // The counter cannot be full: this is its only write.
        let _ = stop.write(1);
        if let Ok((engine, link)) = thread.join() {
            self.engine = Some(engine);
            let [receive, transmit] = link.positions();
            let [first, second] = &mut self.rings;
            (first.base, second.base) = (receive, transmit);
        }
    }

    fn virtqueue(&self, index: usize) -> Result<Virtqueue> {
        let ring = self.rings.get(index).ok_or(Error::InvalidParam)?;
        let (Some(places), Some(kick)) = (ring.places, &ring.kick) else {
            return Err(Error::InvalidParam);
        };
        let kick = kick.try_clone().map_err(Error::ReqHandlerError)?;
        let queue = self.queue(ring, places)?;
        let call = ring.call.clone();
        // SAFETY: the descriptor is the copy made above, and nobody else's.
        let kick = unsafe { EventFd::from_raw_fd(kick.into_raw_fd()) };
        Ok(Virtqueue::new(queue, kick, move || raise(&call)))
    }

    fn queue(&self, ring: &Ring, places: [u64; 3]) -> Result<Queue> {
        let [descriptors, available, used] = places;
        let mut queue = Queue::new(MAX_SIZE).map_err(|_| Error::BackendInternalError)?;
        queue.set_size(ring.size);
        let bad = |_| Error::InvalidParam;
        queue
            .try_set_desc_table_address(self.translate(descriptors)?)
            .map_err(bad)?;
        queue
            .try_set_avail_ring_address(self.translate(available)?)
            .map_err(bad)?;
        let used = self.translate(used)?;
        queue.try_set_used_ring_address(used).map_err(bad)?;
        queue.set_event_idx(self.features & 1 << VIRTIO_RING_F_EVENT_IDX != 0);
        queue.set_next_avail(ring.base);
        // Nothing is held, so what was taken was given back.
        queue.set_next_used(ring.base);
        queue.set_ready(true);
        if queue.is_valid(&self.memory) {
            Ok(queue)
        } else {
            Err(Error::InvalidParam)
        }
    }

    /// The guest's address of what the VMM has at `theirs`.
    fn translate(&self, theirs: u64) -> Result<GuestAddress> {
        self.mappings
            .iter()
            .find_map(|mapping| {
                let offset = theirs.checked_sub(mapping.theirs)?;
                (offset < mapping.len).then(|| mapping.guest.checked_add(offset))?
            })
            .map(GuestAddress)
            .ok_or(Error::InvalidParam)
    }
}

/// Signals an eventfd of the VMM's, where it has given one.
fn raise(event: &Mutex<Option<File>>) {
    if let Some(event) = lock(event).as_ref() {
        // The write fails only when the counter is full: it is raised then.
        let _ = io::Write::write(&mut &*event, &1_u64.to_ne_bytes());
    }
}

/// A VMM's descriptor, at which nobody is to wait for the VMM.
fn without_blocking(fd: File) -> Result<File> {
    let flags =
        rustix::fs::fcntl_getfl(&fd).map_err(|error| Error::ReqHandlerError(error.into()))?;
    rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)
        .map_err(|error| Error::ReqHandlerError(error.into()))?;
    Ok(fd)
}

/// What a request that was not agreed upon gets.
fn unsupported<T>() -> Result<T> {
    Err(Error::InvalidOperation("not supported"))
}

impl VhostUserBackendReqHandlerMut for Device {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.stop();
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.stop();
        self.features = 0;
        self.rings = Default::default();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(virtqueue::FEATURES | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        self.features = features;
        // Without the bit there is no message to enable a ring.
        if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            self.enable();
        }
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        self.stop();
        let mut mapped = Vec::new();
        self.mappings.clear();
        for (region, file) in regions.iter().zip(files) {
            let len = usize::try_from(region.memory_size).map_err(|_| Error::InvalidParam)?;
            let file = FileOffset::new(file, region.mmap_offset);
            let map = MmapRegion::from_file(file, len).map_err(|_| Error::InvalidParam)?;
            let guest = GuestAddress(region.guest_phys_addr);
            mapped.push(GuestRegionMmap::new(map, guest).ok_or(Error::InvalidParam)?);
            self.mappings.push(Mapping {
                theirs: region.user_addr,
                guest: region.guest_phys_addr,
                len: region.memory_size,
            });
        }
        mapped.sort_by_key(vm_memory::GuestMemoryRegion::start_addr);
        self.memory = GuestMemoryMmap::from_regions(mapped).map_err(|_| Error::InvalidParam)?;
        self.start()?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size = u16::try_from(num).map_err(|_| Error::InvalidParam)?;
        if size == 0 || size > MAX_SIZE || !size.is_power_of_two() {
            return Err(Error::InvalidParam);
        }
        self.ring(index)?.size = size;
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        self.ring(index)?.places = Some([descriptor, available, used]);
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        self.ring(index)?.base = base as u16;
        Ok(())
    }

    /// Stops the ring, and with it the other one: half a card is none.
    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.stop();
        let ring = self.ring(index)?;
        ring.kick = None;
        *lock(&ring.call) = None;
        Ok(VhostUserVringState::new(index, ring.base.into()))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.stop();
        self.ring(index.into())?.kick = fd.map(without_blocking).transpose()?;
        self.start()
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let ring = self.ring(index.into())?;
        *lock(&ring.call) = fd.map(without_blocking).transpose()?;
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let ring = self.ring(index.into())?;
        *lock(&ring.error) = fd.map(without_blocking).transpose()?;
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        // Not MTU, though the guest is told one by DHCP: the library does not know its message.
        Ok(VhostUserProtocolFeatures::REPLY_ACK)
    }

    fn set_protocol_features(&mut self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(QUEUES as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.ring(index)?.enabled = enable;
        if !enable {
            self.stop();
        }
        self.start()
    }

    fn get_config(&mut self, _: u32, _: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        unsupported()
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        unsupported()
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        unsupported()
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        unsupported()
    }

    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        unsupported()
    }

    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> Result<()> {
        unsupported()
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        unsupported()
    }

    fn add_mem_region(
        &mut self,
        _: &VhostUserSingleMemoryRegion,
        _: File,
        _: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        unsupported()
    }

    fn remove_mem_region(&mut self, _: &VhostUserSingleMemoryRegion) -> Result<()> {
        unsupported()
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        unsupported()
    }

    fn check_device_state(&mut self) -> Result<()> {
        unsupported()
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        unsupported()
    }

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        unsupported()
    }
}

#[cfg(test)]
mod tests;
