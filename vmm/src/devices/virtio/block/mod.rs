//! The block device (virtio 1.2, section 5.2).

mod aio;
pub mod counters;
pub mod cow;
pub mod disk;
pub mod limit;
mod lock;
mod pool;
pub mod qcow2;
mod request;
mod ring;
mod turn;
mod under_way;

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::epoll::EventSet;

use super::queue::{Chain, unless_broken};
use super::trouble::Trouble;
use super::worker::{Job, Worker};
use super::{Activation, ActiveQueue, GuestMemory, VirtioDevice};
use crate::sandbox::Kind;
use aio::Aio;
use counters::Counters;
use disk::{Disk, SECTOR};
use limit::Limiter;
use pool::Pool;
use request::{MAX_RANGE_SECTORS, MAX_RANGES, SERIAL};
use turn::Turn;
use under_way::UnderWay;

const ID: u16 = 2;
const QUEUE_SIZE: u16 = 128;
/// The most queues that a disk has.
pub const MAX_QUEUES: u16 = 16;
const QUEUE_SIZES: [u16; MAX_QUEUES as usize] = [QUEUE_SIZE; MAX_QUEUES as usize];
/// Data buffers of a request: what is left of a ring beside header and status.
const MAX_SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;
const CONFIG: usize = 60;
/// Behind the queues' tokens, which are their numbers.
const TIMER: u64 = MAX_QUEUES as u64;

/// A block device round a disk, which it keeps across a guest's resets.
pub struct Block {
    /// `None` while the worker has it.
    storage: Option<Storage>,
    worker: Option<Worker<BlockJob>>,
    features: u64,
    queue_sizes: &'static [u16],
    config: [u8; CONFIG],
    serial: [u8; SERIAL],
    counters: Arc<Counters>,
}

/// A disk, and what it is held to.
struct Storage {
    disk: Box<dyn Disk>,
    limiter: Option<RefCell<Limiter>>,
    /// By which its files are asked for much at once, where there is no limit to keep.
    aio: Option<Aio>,
}

impl Storage {
    fn new(disk: Box<dyn Disk>, limiter: Option<Limiter>) -> Self {
        Self {
            disk,
            aio: limiter.is_none().then(|| Aio::new(QUEUE_SIZE)),
            limiter: limiter.map(RefCell::new),
        }
    }
}

impl Block {
    /// A device for `disk` that tells `serial`, of which the guest sees the first 20 bytes; held to
    /// what `limiter` says. It has one queue.
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
            queue_sizes: &QUEUE_SIZES[..1],
            config,
            serial: id,
            counters: Arc::default(),
        }
    }

    /// The same with so many queues, from 1 to [`MAX_QUEUES`], which one thread serves: a guest's CPUs
    /// need not wait for each other to ask for something, and each hears of its own.
    pub fn with_queues(mut self, queues: u16) -> Self {
        let queues = queues.clamp(1, MAX_QUEUES);
        self.queue_sizes = QUEUE_SIZES.get(..queues.into()).unwrap_or(&QUEUE_SIZES);
        if queues > 1 {
            self.features |= 1 << VIRTIO_BLK_F_MQ;
        }
        set(&mut self.config, 34, &queues.to_le_bytes());
        self
    }

    /// The same by threads, though the kernel might have io_uring.
    pub fn with_threads(mut self) -> Self {
        if let Some(Storage { aio: Some(aio), .. }) = &mut self.storage {
            *aio = Aio::Threads(Pool::default());
        }
        self
    }

    /// What its guest has had done.
    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }

    /// What is to be done with the queues; nothing where the driver left them disabled.
    pub fn job(&mut self, activation: Activation) -> io::Result<Option<BlockJob>> {
        // A guest with fewer CPUs leaves some of them alone.
        let queues: Vec<_> = activation.queues.into_iter().flatten().collect();
        if queues.is_empty() {
            return Ok(None);
        }
        let Some(mut storage) = self.storage.take() else {
            return Err(io::Error::other("the disk was lost when its worker failed"));
        };
        if let Some(Err(error)) = storage.aio.as_mut().map(Aio::start) {
            tracing::warn!("block: one request at a time: no threads: {error}");
        }
        Ok(Some(BlockJob {
            queues,
            first: 0,
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
    set(&mut config, 0, &sectors.to_le_bytes());
    set(&mut config, 12, &MAX_SEGMENTS.to_le_bytes());
    set(&mut config, 20, &(SECTOR as u32).to_le_bytes());
    for (max_sectors, max_ranges) in [(36, 40), (48, 52)] {
        set(&mut config, max_sectors, &MAX_RANGE_SECTORS.to_le_bytes());
        set(&mut config, max_ranges, &MAX_RANGES.to_le_bytes());
    }
    // A discard may start at any multiple of 8 sectors: a page of most file systems.
    set(&mut config, 44, &8u32.to_le_bytes());
    set(&mut config, 56, &[1]);
    config
}

fn set(config: &mut [u8; CONFIG], at: usize, value: &[u8]) {
    let places = config.iter_mut().skip(at);
    places.zip(value).for_each(|(byte, new)| *byte = *new);
}

impl VirtioDevice for Block {
    fn id(&self) -> u16 {
        ID
    }

    fn queue_sizes(&self) -> &[u16] {
        self.queue_sizes
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
    queues: Vec<ActiveQueue>,
    /// Which of them goes first where all of them are looked at; another each time.
    first: usize,
    memory: GuestMemory,
    storage: Storage,
    serial: [u8; SERIAL],
    counters: Arc<Counters>,
    trouble: Trouble,
}

impl BlockJob {
    fn watched(&self) -> Vec<(RawFd, u64)> {
        let kicks = self.queues.iter().map(|queue| queue.kick.as_raw_fd());
        let mut watched: Vec<_> = kicks.zip(0..).collect();
        let limiter = self.storage.limiter.as_ref();
        watched.extend(limiter.map(|limiter| (limiter.borrow().descriptor(), TIMER)));
        watched
    }
}

impl Job for BlockJob {
    fn ready(&mut self, token: u64, _: EventSet) {
        let Storage { disk, limiter, aio } = &mut self.storage;
        let (disk, limiter) = (&mut **disk, limiter.as_ref());
        let (serial, counters) = (&self.serial, &*self.counters);
        let count = self.queues.len();
        self.first = (self.first + 1) % count;
        if let Some(aio) = aio {
            // The kicks are taken before the rings are read, so that none is missed.
            for queue in &self.queues {
                let _ = queue.kick.read();
            }
            let turn = Turn {
                queues: &mut self.queues,
                first: self.first,
                memory: &self.memory,
                disk,
                serial,
                counters,
                trouble: &self.trouble,
                under_way: UnderWay::new(aio, QUEUE_SIZE),
                over: Vec::new(),
            };
            return unless_broken(&self.trouble, || turn.run());
        }
        if let (TIMER, Some(limiter)) = (token, limiter) {
            limiter.borrow_mut().heard();
        }
        let allowed = || limiter.is_none_or(|it| it.borrow_mut().allows(Instant::now()));
        let mut execute = |chain: Chain<'_>| {
            let before = counters.moved();
            let written = request::execute(chain, disk, serial, counters);
            if let Some(limiter) = limiter {
                let moved = counters.moved() - before;
                limiter.borrow_mut().spend(moved, Instant::now());
            }
            written
        };
        for index in (self.first..count).chain(0..self.first) {
            // What was not allowed before is now, of whatever queue.
            let is_meant = token == TIMER || token == index as u64;
            if let Some(queue) = self.queues.get_mut(index).filter(|_| is_meant) {
                queue.serve_while(&self.memory, &self.trouble, allowed, &mut execute);
            }
        }
    }
}

#[cfg(test)]
mod tests;
