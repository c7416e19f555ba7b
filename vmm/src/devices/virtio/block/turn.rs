//! A turn of a disk that is asked for much at once.

use std::time::{Duration, Instant};

use virtio_queue::QueueT;

use super::counters::Counters;
use super::disk::Disk;
use super::request::{self, Request, SERIAL};
use super::ring::UnderWay;
use crate::devices::virtio::queue::{Chain, QueueError, next};
use crate::devices::virtio::trouble::Trouble;
use crate::devices::virtio::{ActiveQueue, GuestMemory};

/// A driver may make requests available without end: after so long what is under way is waited for,
/// and whoever wants the disk at rest has it.
const LONGEST: Duration = Duration::from_millis(20);

/// What is there for a turn.
pub struct Turn<'t> {
    /// The driver's queue.
    pub queue: &'t mut ActiveQueue,
    /// The guest's memory.
    pub memory: &'t GuestMemory,
    /// The disk, which has a file.
    pub disk: &'t mut dyn Disk,
    /// What the guest knows it by.
    pub serial: &'t [u8; SERIAL],
    /// What was done with it.
    pub counters: &'t Counters,
    /// Where the driver's mistakes go.
    pub trouble: &'t Trouble,
    /// What the disk's file is asked for.
    pub under_way: UnderWay<'t>,
    /// Chains to give back, and how many bytes were written to each.
    pub over: Vec<(u16, u32)>,
}

impl Turn<'_> {
    /// Serves what is available, and what becomes available meanwhile.
    pub fn run(mut self) -> Result<(), QueueError> {
        let end = Instant::now() + LONGEST;
        loop {
            self.queue.queue.disable_notification(self.memory)?;
            while self.step(Instant::now() < end)? {}
            if Instant::now() >= end {
                self.queue.come_back();
                return Ok(());
            }
            if !self.queue.queue.enable_notification(self.memory)? {
                return Ok(());
            }
        }
    }

    /// Begins what is available where there is to be `more`, waits for a moment, and gives back what is
    /// over. Whether there is anything left to wait for, or was.
    fn step(&mut self, more: bool) -> Result<bool, QueueError> {
        let room = usize::from(self.queue.queue.size());
        while more && self.under_way.has_room() && self.over.len() < room {
            let Some(chain) = next(&mut self.queue.queue, self.memory)? else {
                break;
            };
            self.begin(chain);
        }
        self.wait();
        let used = !self.over.is_empty();
        for (head, written) in self.over.drain(..) {
            self.queue.queue.add_used(self.memory, head, written)?;
        }
        if used {
            self.queue.notify(self.memory)?;
        }
        Ok(used || !self.under_way.is_empty())
    }

    fn begin(&mut self, chain: Chain<'_>) {
        let head = chain.head_index();
        let written = match request::begin(self.memory, &chain, self.disk, self.counters) {
            Err(error) => {
                self.trouble.malformed(&error);
                0
            }
            Ok(Err(written)) => written,
            Ok(Ok(request)) => match self.ask(head, request) {
                Ok(()) => return,
                Err(request) => {
                    while !self.under_way.is_empty() {
                        self.wait();
                    }
                    request.execute(self.disk, self.serial, self.counters)
                }
            },
        };
        self.over.push((head, written));
    }
}

impl<'t> Turn<'t> {
    /// Asks the disk's file; what it cannot be asked for comes back.
    fn ask(&mut self, head: u16, request: Request<'t>) -> Result<(), Request<'t>> {
        match self.disk.file() {
            Some(file) => self.under_way.ask(file, head, request),
            None => Err(request),
        }
    }

    fn wait(&mut self) {
        if !self.under_way.is_empty() {
            let over = &mut self.over;
            self.under_way
                .wait(self.disk, self.counters, |head, written| {
                    over.push((head, written));
                });
        }
    }
}
