//! The memory balloon (virtio 1.2, section 5.5): the guest gives memory back to the host, where it
//! is asked to (the balloon is inflated) and where it has no use for it (free pages are reported),
//! and tells how it fares.

mod control;
mod pages;
mod stats;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use serde_json::Value;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;
use vmm_sys_util::epoll::EventSet;

use control::Shared;
pub use control::{Control, Figures, SizeError};
pub use stats::Stats;

use super::queue::{BadChain, QueueError, next};
use super::trouble::Trouble;
use super::worker::{Job, Worker};
use super::{Activation, ActiveQueue, GuestMemory, VirtioDevice, buffers};
use crate::devices::saved::{self, Unfit};
use crate::sandbox::Kind;

const ID: u16 = 5;
// Features (section 5.5.3).
const VIRTIO_BALLOON_F_STATS_VQ: u32 = 1;
const VIRTIO_BALLOON_F_DEFLATE_ON_OOM: u32 = 2;
const VIRTIO_BALLOON_F_PAGE_POISON: u32 = 4;
const VIRTIO_BALLOON_F_REPORTING: u32 = 5;
/// Inflate, deflate, statistics, free page reporting. A driver numbers those that its features
/// have one behind the other.
const QUEUE_SIZES: [u16; 4] = [128, 128, 8, 128];
/// Where in the configuration the driver says how large the balloon is, and what is in pages that
/// are free.
const ACTUAL: u64 = 4;
const POISON: u64 = 12;

const INFLATE: u64 = 0;
const DEFLATE: u64 = 1;
const STATS: u64 = 2;
const REPORT: u64 = 3;
const ASKED: u64 = 4;

/// The balloon device.
pub struct Balloon {
    shared: Arc<Shared>,
    worker: Option<Worker<BalloonJob>>,
}

impl Balloon {
    /// An empty balloon in a guest of `memory` bytes.
    pub fn new(memory: u64) -> io::Result<Self> {
        Ok(Self {
            shared: Arc::new(Shared::new(memory)?),
            worker: None,
        })
    }

    /// A handle on it for other threads.
    pub fn control(&self) -> Control {
        Control::new(self.shared.clone())
    }

    /// What is to be done with the queues.
    pub fn job(&self, activation: Activation) -> BalloonJob {
        let has = |bit: u32| activation.features & 1 << bit != 0;
        let mut queues = activation.queues.into_iter();
        let mut queue = |there: bool| there.then(|| queues.next().flatten()).flatten();
        BalloonJob {
            inflate: queue(true),
            deflate: queue(true),
            stats: queue(has(VIRTIO_BALLOON_F_STATS_VQ)),
            report: queue(has(VIRTIO_BALLOON_F_REPORTING)),
            held: None,
            poisoned: has(VIRTIO_BALLOON_F_PAGE_POISON),
            memory: activation.memory,
            shared: self.shared.clone(),
            trouble: activation.trouble,
        }
    }
}

impl VirtioDevice for Balloon {
    fn id(&self) -> u16 {
        ID
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_BALLOON_F_STATS_VQ
            | 1 << VIRTIO_BALLOON_F_DEFLATE_ON_OOM
            | 1 << VIRTIO_BALLOON_F_PAGE_POISON
            | 1 << VIRTIO_BALLOON_F_REPORTING
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::read_from(&self.shared.config(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let Ok(value) = data.try_into().map(u32::from_le_bytes) else {
            return;
        };
        match offset {
            ACTUAL => self.shared.set_actual(value),
            POISON => self.shared.set_poison(value),
            _ => {}
        }
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let interrupt = activation.config_interrupt.clone();
        let gate = activation.gate.clone();
        let job = self.job(activation);
        let watched = job.watched();
        self.worker = Some(Worker::spawn(Kind::Balloon, gate, &watched, job)?);
        self.shared.attach(interrupt);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
        self.shared.detach();
    }

    fn save(&self) -> Value {
        saved::write(&self.shared.config())
    }

    fn restore(&mut self, saved: &Value) -> Result<(), Unfit> {
        self.shared.set_config(saved::read(saved)?);
        Ok(())
    }
}

/// The balloon's queues, served.
pub struct BalloonJob {
    inflate: Option<ActiveQueue>,
    deflate: Option<ActiveQueue>,
    stats: Option<ActiveQueue>,
    report: Option<ActiveQueue>,
    /// The chain that the driver gave its statistics in; given back, it gets new ones.
    held: Option<u16>,
    /// Whether what free pages hold has a meaning for the guest.
    poisoned: bool,
    memory: GuestMemory,
    shared: Arc<Shared>,
    trouble: Trouble,
}

impl BalloonJob {
    /// What it has to hear of, each with its token.
    pub fn watched(&self) -> Vec<(RawFd, u64)> {
        let queues = [
            (&self.inflate, INFLATE),
            (&self.deflate, DEFLATE),
            (&self.stats, STATS),
            (&self.report, REPORT),
        ];
        let kick = |(queue, token): (&Option<ActiveQueue>, u64)| {
            Some((queue.as_ref()?.kick.as_raw_fd(), token))
        };
        let mut watched: Vec<_> = queues.into_iter().filter_map(kick).collect();
        watched.push((self.shared.asked.as_raw_fd(), ASKED));
        watched
    }

    /// Takes the driver's statistics, and keeps the chain that they came in.
    fn take_stats(&mut self) -> Result<(), QueueError> {
        let Some(active) = &mut self.stats else {
            return Ok(());
        };
        let _ = active.kick.read();
        let mut left = active.queue.size();
        let mut used = false;
        active.queue.disable_notification(&self.memory)?;
        loop {
            if left == 0 {
                active.come_back();
                break;
            }
            left -= 1;
            let Some(chain) = next(&mut active.queue, &self.memory)? else {
                if active.queue.enable_notification(&self.memory)? {
                    continue;
                }
                break;
            };
            let head = chain.head_index();
            // A driver has one such chain. Of several the last is kept.
            let back = match buffers::gather(&chain) {
                Ok((from, _)) => {
                    self.shared.told(Stats::read(from));
                    self.held.replace(head)
                }
                Err(error) => {
                    self.trouble.malformed(&error);
                    Some(head)
                }
            };
            if let Some(head) = back {
                active.queue.add_used(&self.memory, head, 0)?;
                used = true;
            }
        }
        if used {
            active.notify(&self.memory)?;
        }
        Ok(())
    }

    /// Asks the driver for new statistics, by giving it back the chain of the old ones.
    fn ask(&mut self) -> Result<(), QueueError> {
        let _ = self.shared.asked.read();
        if let Some(active) = &mut self.stats
            && let Some(head) = self.held.take()
        {
            active.queue.add_used(&self.memory, head, 0)?;
            active.notify(&self.memory)?;
        }
        Ok(())
    }
}

impl Job for BalloonJob {
    fn ready(&mut self, token: u64, _: EventSet) {
        let (memory, trouble) = (&self.memory, &self.trouble);
        match token {
            INFLATE => {
                if let Some(queue) = &mut self.inflate {
                    queue.serve(memory, trouble, |chain| pages::inflate(&chain));
                }
            }
            DEFLATE => {
                if let Some(queue) = &mut self.deflate {
                    // A page comes back when the guest touches it; there is nothing to do.
                    queue.serve(memory, trouble, |chain| buffers::gather(&chain).map(|_| 0));
                }
            }
            REPORT => {
                // Of memory that has a file what was let go of is not zeros, but the file's again.
                let zeros = self.shared.poison() == 0 && !pages::have_a_file(memory);
                let keeps = self.poisoned && !zeros;
                if let Some(queue) = &mut self.report {
                    queue.serve(memory, trouble, |chain| pages::report(&chain, keeps));
                }
            }
            STATS | ASKED if trouble.is_broken() => {
                let _ = self.shared.asked.read();
                let _ = self.stats.as_ref().map(|queue| queue.kick.read());
            }
            _ => {
                let result = match token {
                    STATS => self.take_stats(),
                    _ => self.ask(),
                };
                if let Err(error) = result {
                    self.trouble.broke(&error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
