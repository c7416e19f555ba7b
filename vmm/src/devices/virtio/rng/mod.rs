//! The entropy device (virtio 1.2, section 5.4): the host's randomness.

use std::io;
use std::os::fd::AsRawFd;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::VolatileSlice;
use vmm_sys_util::epoll::EventSet;

use super::queue::{BadChain, Chain};
use super::trouble::Trouble;
use super::worker::{Job, Worker};
use super::{Activation, ActiveQueue, GuestMemory, VirtioDevice, buffers};
use crate::sandbox::Kind;

const ID: u16 = 4;
const QUEUE_SIZES: [u16; 1] = [64];
/// The most that one request is given: a guest must not keep the host's generator busy.
const MAX_REQUEST: usize = 64 << 10;

/// The entropy device.
#[derive(Default)]
pub struct Rng {
    worker: Option<Worker<RngJob>>,
}

impl Rng {
    /// What is to be done with the queue; nothing where the driver left it disabled.
    pub fn job(activation: Activation) -> Option<RngJob> {
        Some(RngJob {
            queue: activation.queues.into_iter().next()??,
            memory: activation.memory,
            trouble: activation.trouble,
        })
    }
}

impl VirtioDevice for Rng {
    fn id(&self) -> u16 {
        ID
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    fn read_config(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let gate = activation.gate.clone();
        if let Some(job) = Self::job(activation) {
            let watched = [(job.queue.kick.as_raw_fd(), 0)];
            self.worker = Some(Worker::spawn(Kind::Rng, gate, &watched, job)?);
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }
}

/// The queue, served.
pub struct RngJob {
    queue: ActiveQueue,
    memory: GuestMemory,
    trouble: Trouble,
}

impl Job for RngJob {
    fn ready(&mut self, _: u64, _: EventSet) {
        self.queue.serve(&self.memory, &self.trouble, fill);
    }
}

/// Fills the chain's writable buffers; how many bytes were written.
fn fill(chain: Chain<'_>) -> Result<u32, BadChain> {
    let (_, mut to) = buffers::gather(&chain)?;
    buffers::truncate(&mut to, MAX_REQUEST).map_err(|_| BadChain)?;
    if buffers::len(&to) == 0 {
        return Err(BadChain);
    }
    let filled = to.iter().take_while(|slice| randomize(slice));
    Ok(filled.map(|slice| slice.len() as u32).sum())
}

fn randomize(slice: &VolatileSlice<'_>) -> bool {
    let mut done = 0;
    while done < slice.len() {
        let guard = slice.ptr_guard_mut();
        // SAFETY: `done` is below the slice's length, so the pointer and what is left of it lie
        // in the guest's memory, which the slice keeps mapped; the guest's own accesses race
        // with nothing that Rust sees.
        let n = unsafe { libc::getrandom(guard.as_ptr().add(done).cast(), slice.len() - done, 0) };
        match usize::try_from(n) {
            Ok(n) => done += n,
            Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
    true
}
