//! A turn of a disk that is asked for much at once.

use std::time::{Duration, Instant};

use virtio_queue::QueueT;

use super::QUEUE_SIZE;
use super::counters::Counters;
use super::disk::Disk;
use super::request::{self, Ask, Request, SERIAL};
use super::under_way::{Origin, UnderWay};
use crate::devices::virtio::buffers;
use crate::devices::virtio::queue::{Chain, QueueError, next};
use crate::devices::virtio::trouble::Trouble;
use crate::devices::virtio::{ActiveQueue, GuestMemory};

/// A driver may make requests available without end: after so long what is under way is waited for,
/// and whoever wants the disk at rest has it.
const LONGEST: Duration = Duration::from_millis(20);

/// What is there for a turn.
pub struct Turn<'t> {
    /// The driver's queues.
    pub queues: &'t mut [ActiveQueue],
    /// Which of them goes first.
    pub first: usize,
    /// The guest's memory.
    pub memory: &'t GuestMemory,
    /// The disk.
    pub disk: &'t mut dyn Disk,
    /// What the guest knows it by.
    pub serial: &'t [u8; SERIAL],
    /// What was done with it.
    pub counters: &'t Counters,
    /// Where the driver's mistakes go.
    pub trouble: &'t Trouble,
    /// What the disk's files are asked for.
    pub under_way: UnderWay<'t>,
    /// Chains to give back, and how many bytes were written to each.
    pub over: Vec<(Origin, u32)>,
}

impl Turn<'_> {
    /// Serves what is available, and what becomes available meanwhile.
    pub fn run(mut self) -> Result<(), QueueError> {
        let end = Instant::now() + LONGEST;
        loop {
            for queue in &mut *self.queues {
                queue.queue.disable_notification(self.memory)?;
            }
            while self.step(Instant::now() < end)? {}
            let in_time = Instant::now() < end;
            let mut more = false;
            for queue in &mut *self.queues {
                match in_time {
                    true => more |= queue.queue.enable_notification(self.memory)?,
                    false => queue.come_back(),
                }
            }
            if !more {
                return Ok(());
            }
        }
    }

    /// Begins what is available where there is to be `more`, waits for a moment, and gives back what is
    /// over. Whether there is anything left to wait for, or was.
    fn step(&mut self, more: bool) -> Result<bool, QueueError> {
        let mut found = more;
        while found {
            found = self.begin_one_of_each()?;
        }
        self.wait();
        let used = !self.over.is_empty();
        for (index, queue) in self.queues.iter_mut().enumerate() {
            let mut is_told = false;
            for (origin, written) in self.over.iter().filter(|(o, _)| o.queue == index) {
                queue.queue.add_used(self.memory, origin.head, *written)?;
                is_told = true;
            }
            if is_told {
                queue.notify(self.memory)?;
            }
        }
        self.over.clear();
        Ok(used || !self.under_way.is_empty())
    }

    /// Begins a request of each queue that has one and for which there is room: none of them takes all
    /// of it. Whether there was one.
    fn begin_one_of_each(&mut self) -> Result<bool, QueueError> {
        let count = self.queues.len();
        let mut found = false;
        for index in (self.first..count).chain(0..self.first) {
            // No more are given back at once than a ring has.
            if !self.under_way.has_room() || self.over.len() >= usize::from(QUEUE_SIZE) {
                // The next has the place that becomes free.
                self.first = index;
                return Ok(false);
            }
            let Some(queue) = self.queues.get_mut(index) else {
                continue;
            };
            if let Some(chain) = next(&mut queue.queue, self.memory)? {
                self.begin(index, chain);
                found = true;
            }
        }
        Ok(found)
    }

    fn begin(&mut self, queue: usize, chain: Chain<'_>) {
        let head = chain.head_index();
        let origin = Origin { queue, head };
        let written = match request::begin(self.memory, &chain, self.disk, self.counters) {
            Err(error) => {
                self.trouble.malformed(&error);
                0
            }
            Ok(Err(written)) => written,
            Ok(Ok(request)) => match self.ask(origin, request) {
                Ok(()) => return,
                Err(request) => {
                    while !self.under_way.is_empty() {
                        self.wait();
                    }
                    request.execute(self.disk, self.serial, self.counters)
                }
            },
        };
        self.over.push((origin, written));
    }
}

impl<'t> Turn<'t> {
    /// Asks the file where the request's bytes lie; what no file can be asked for comes back.
    fn ask(&mut self, origin: Origin, request: Request<'t>) -> Result<(), Request<'t>> {
        let len = buffers::len(&request.data) as u64;
        let place = match request.ask {
            Ask::Read(at) => self.disk.place(at, len, false),
            Ask::Write(at) => self.disk.place(at, len, true),
            Ask::Flush => self.disk.file().map(|file| (file, 0)),
            _ => None,
        };
        match place {
            Some(place) => self.under_way.ask(place, origin, request),
            None => Err(request),
        }
    }

    fn wait(&mut self) {
        if !self.under_way.is_empty() {
            let over = &mut self.over;
            self.under_way
                .wait(self.disk, self.counters, |origin, written| {
                    over.push((origin, written));
                });
        }
    }
}
