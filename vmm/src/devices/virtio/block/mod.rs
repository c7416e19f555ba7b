//! The block device (virtio 1.2, section 5.2).

pub mod counters;
pub mod cow;
pub mod disk;
pub mod limit;
mod lock;
pub mod qcow2;
mod request;
mod ring;
mod turn;

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::epoll::EventSet;

use super::queue::Chain;
use super::trouble::Trouble;
use super::worker::{Job, Worker};
use super::{Activation, ActiveQueue, GuestMemory, VirtioDevice};
use crate::sandbox::Kind;
use counters::Counters;
use disk::{Disk, SECTOR};
use limit::Limiter;
use request::{MAX_RANGE_SECTORS, MAX_RANGES, SERIAL};
use ring::{Ring, UnderWay};
use turn::Turn;

const ID: u16 = 2;
const QUEUE_SIZE: u16 = 128;
const QUEUE_SIZES: [u16; 1] = [QUEUE_SIZE];
/// Data buffers of a request: what is left of a ring beside header and status.
const MAX_SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;
const CONFIG: usize = 60;
const REQUESTS: u64 = 0;
const TIMER: u64 = 1;

/// A block device round a disk, which it keeps across a guest's resets.
pub struct Block {
    /// `None` while the worker has it.
    storage: Option<Storage>,
    worker: Option<Worker<BlockJob>>,
    features: u64,
    config: [u8; CONFIG],
    serial: [u8; SERIAL],
    counters: Arc<Counters>,
}

/// A disk, and what it is held to.
struct Storage {
    disk: Box<dyn Disk>,
    limiter: Option<RefCell<Limiter>>,
    /// By which its file is asked for much at once, where it is one, and there is no limit to keep.
    ring: Option<Ring>,
}

impl Storage {
    fn new(disk: Box<dyn Disk>, limiter: Option<Limiter>) -> Self {
        let mut ring = None;
        if limiter.is_none() && disk.file().is_some() {
            match Ring::new(QUEUE_SIZE) {
                Ok(made) => ring = Some(made),
                Err(error) => tracing::debug!("block: one request at a time: io_uring: {error}"),
            }
        }
        Self {
            disk,
            limiter: limiter.map(RefCell::new),
            ring,
        }
    }
}

impl Block {
    /// A device for `disk` that tells `serial`, of which the guest sees the first 20 bytes; held to
    /// what `limiter` says.
    pub fn new(disk: Box<dyn Disk>, serial: &str, limiter: Option<Limiter>) -> Self {
        let mut features = 1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_FLUSH;
        features |= if disk.is_read_only() {
            1 << VIRTIO_BLK_F_RO
        } else {
            1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
        };
        let mut id = [0; SERIAL];
        id.iter_mut()
            .zip(serial.bytes())
            .for_each(|(byte, new)| *byte = new);
        let config = config(disk.size() / SECTOR);
        Self {
            storage: Some(Storage::new(disk, limiter)),
            worker: None,
            features,
            config,
            serial: id,
            counters: Arc::default(),
        }
    }

    /// What its guest has had done.
    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }

    /// What is to be done with the queues; nothing where the driver left them disabled.
    pub fn job(&mut self, activation: Activation) -> io::Result<Option<BlockJob>> {
        let Some(Some(queue)) = activation.queues.into_iter().next() else {
            return Ok(None);
        };
        let Some(storage) = self.storage.take() else {
            return Err(io::Error::other("the disk was lost when its worker failed"));
        };
        Ok(Some(BlockJob {
            queue,
            memory: activation.memory,
            storage,
            serial: self.serial,
            counters: self.counters.clone(),
            trouble: activation.trouble,
        }))
    }
}

/// `struct virtio_blk_config` (section 5.2.4).
fn config(sectors: u64) -> [u8; CONFIG] {
    let mut config = [0; CONFIG];
    let mut set = |at: usize, value: &[u8]| {
        config
            .iter_mut()
            .skip(at)
            .zip(value)
            .for_each(|(byte, new)| *byte = *new);
    };
    set(0, &sectors.to_le_bytes());
    set(12, &MAX_SEGMENTS.to_le_bytes());
    set(20, &(SECTOR as u32).to_le_bytes());
    for (max_sectors, max_ranges) in [(36, 40), (48, 52)] {
        set(max_sectors, &MAX_RANGE_SECTORS.to_le_bytes());
        set(max_ranges, &MAX_RANGES.to_le_bytes());
    }
    // A discard may start at any multiple of 8 sectors: a page of most file systems.
    set(44, &8u32.to_le_bytes());
    set(56, &[1]);
    config
}

impl VirtioDevice for Block {
    fn id(&self) -> u16 {
        ID
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::read_from(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let gate = activation.gate.clone();
        if let Some(job) = self.job(activation)? {
            let watched = job.watched();
            self.worker = Some(Worker::spawn(Kind::Block, gate, &watched, job)?);
        }
        Ok(())
    }

    fn reset(&mut self) {
        if let Some(job) = self.worker.take().and_then(Worker::stop) {
            self.storage = Some(job.storage);
        }
    }
}

/// A driver's requests, carried out.
pub struct BlockJob {
    queue: ActiveQueue,
    memory: GuestMemory,
    storage: Storage,
    serial: [u8; SERIAL],
    counters: Arc<Counters>,
    trouble: Trouble,
}

impl BlockJob {
    fn watched(&self) -> Vec<(RawFd, u64)> {
        let mut watched = vec![(self.queue.kick.as_raw_fd(), REQUESTS)];
        let limiter = self.storage.limiter.as_ref();
        watched.extend(limiter.map(|limiter| (limiter.borrow().descriptor(), TIMER)));
        watched
    }
}

impl Job for BlockJob {
    fn ready(&mut self, token: u64, _: EventSet) {
        let Storage {
            disk,
            limiter,
            ring,
        } = &mut self.storage;
        let (disk, limiter) = (&mut **disk, limiter.as_ref());
        let (serial, counters) = (&self.serial, &*self.counters);
        if let Some(ring) = ring {
            return self.queue.kicked(&self.trouble, |queue| {
                let turn = Turn {
                    queue,
                    memory: &self.memory,
                    disk,
                    serial,
                    counters,
                    trouble: &self.trouble,
                    under_way: UnderWay::new(ring, QUEUE_SIZE),
                    over: Vec::new(),
                };
                turn.run()
            });
        }
        if let (TIMER, Some(limiter)) = (token, limiter) {
            limiter.borrow_mut().heard();
        }
        let allowed = || limiter.is_none_or(|it| it.borrow_mut().allows(Instant::now()));
        let execute = |chain: Chain<'_>| {
            let before = counters.moved();
            let written = request::execute(chain, disk, serial, counters);
            if let Some(limiter) = limiter {
                let moved = counters.moved() - before;
                limiter.borrow_mut().spend(moved, Instant::now());
            }
            written
        };
        self.queue
            .serve_while(&self.memory, &self.trouble, allowed, execute);
    }
}

#[cfg(test)]
mod tests;
