//! The console device (virtio 1.2, section 5.3), for what it has beside consoles: a named port, by
//! which a program of the guest's and this process speak. The guest's console is its serial port.

mod control;

use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::queue::BadChain;
use super::trouble::Trouble;
use super::worker::{Job, Worker};
use super::{Activation, ActiveQueue, GuestMemory, VirtioDevice, buffers};
use crate::devices::saved::{self, Unfit};
use crate::sandbox::Kind;
use control::{MESSAGE, Message, event};

const ID: u16 = 3;
/// More ports than one, and messages about them (section 5.3.3).
const VIRTIO_CONSOLE_F_MULTIPORT: u32 = 1;
/// Receive and transmit of port 0, a console by the standard, which is not there; of messages; and of
/// the port.
const QUEUE_SIZES: [u16; 6] = [64; 6];
const TELL: usize = 2;
const HEAR: usize = 3;
const RECEIVE: usize = 4;
const TRANSMIT: usize = 5;
/// The event of the host's end.
const STREAM: u64 = 100;
/// Columns and rows of a console, of which there is none; the number of ports; an emergency's letter.
const CONFIG: [u8; 12] = [0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0];
/// The port's number.
const PORT: u32 = 1;
/// A guest has no reason to write more at once.
const MAX_CHAIN: usize = 64 << 10;
const PIECE: usize = 4 << 10;
/// Messages that wait for the driver; it causes each.
const MAX_MESSAGES: usize = 16;

/// The console device.
pub struct Console {
    name: &'static str,
    /// Our end; `None` while it runs.
    stream: Option<UnixStream>,
    open: Arc<AtomicBool>,
    worker: Option<Worker<ConsoleJob>>,
}

impl Console {
    /// A device whose port is called `name`; what the guest writes there comes at the other end of
    /// `stream`.
    pub fn new(name: &'static str, stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            name,
            stream: Some(stream),
            open: Arc::default(),
            worker: None,
        })
    }

    /// Whether a program of the guest's has opened the port.
    pub fn open(&self) -> Arc<AtomicBool> {
        self.open.clone()
    }

    /// What is to be done with the queues, and where it waits for the host's end.
    pub fn job(&mut self, activation: Activation) -> io::Result<(ConsoleJob, Arc<Epoll>)> {
        let Some(stream) = self.stream.take() else {
            return Err(io::Error::other("the port was lost when its worker failed"));
        };
        if !activation.restored {
            self.open.store(false, Ordering::Release);
        }
        let epoll = Arc::new(Epoll::new()?);
        // Once for each change: while the guest has no room, nobody is to be woken for it.
        let events = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
        let event = EpollEvent::new(events, STREAM);
        epoll.ctl(ControlOperation::Add, stream.as_raw_fd(), event)?;
        let mut queues = activation.queues;
        queues.resize_with(QUEUE_SIZES.len(), || None);
        let job = ConsoleJob {
            name: self.name,
            queues,
            port: Port {
                stream,
                open: self.open.clone(),
                incoming: Vec::new(),
                outgoing: Vec::new(),
            },
            messages: VecDeque::new(),
            memory: activation.memory,
            trouble: activation.trouble,
        };
        Ok((job, epoll))
    }
}

impl VirtioDevice for Console {
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
            | 1 << VIRTIO_CONSOLE_F_MULTIPORT
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::read_from(&CONFIG, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let gate = activation.gate.clone();
        let (job, epoll) = self.job(activation)?;
        let watched = job.watched();
        self.worker = Some(Worker::spawn_on(epoll, Kind::Console, gate, &watched, job)?);
        Ok(())
    }

    fn reset(&mut self) {
        if let Some(job) = self.worker.take().and_then(Worker::stop) {
            self.stream = Some(job.port.stream);
            self.open.store(false, Ordering::Release);
        }
    }

    fn save(&self) -> Value {
        self.open.load(Ordering::Acquire).into()
    }

    fn restore(&mut self, saved: &Value) -> Result<(), Unfit> {
        self.open.store(saved::read(saved)?, Ordering::Release);
        Ok(())
    }
}

/// The port's queues and messages, served.
pub struct ConsoleJob {
    name: &'static str,
    queues: Vec<Option<ActiveQueue>>,
    port: Port,
    /// For the driver, the next first.
    messages: VecDeque<Vec<u8>>,
    memory: GuestMemory,
    trouble: Trouble,
}

struct Port {
    stream: UnixStream,
    open: Arc<AtomicBool>,
    /// For the guest, at most a piece.
    incoming: Vec<u8>,
    /// Of the guest, at most a chain.
    outgoing: Vec<u8>,
}

impl Port {
    /// Gives on what the guest wrote; whether all of it is gone.
    fn flush(&mut self) -> bool {
        while !self.outgoing.is_empty() {
            match self.stream.write(&self.outgoing) {
                Ok(written) => drop(self.outgoing.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                // Nobody is there who would read it.
                Err(_) => self.outgoing.clear(),
            }
        }
        true
    }

    /// Takes what there is for the guest; whether it has some. A port that is not open has none.
    fn fill(&mut self) -> bool {
        let mut bytes = [0; PIECE];
        while self.incoming.is_empty() {
            match self.stream.read(&mut bytes) {
                Ok(read) if read > 0 => {
                    if self.open.load(Ordering::Acquire) {
                        self.incoming.extend(bytes.iter().take(read));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => return false,
            }
        }
        true
    }
}

impl ConsoleJob {
    /// The kicks that it has to hear of from the start, each with its token.
    pub fn watched(&self) -> Vec<(RawFd, u64)> {
        let queues = (0..).zip(&self.queues);
        let kick = |(token, queue): (u64, &Option<ActiveQueue>)| {
            Some((queue.as_ref()?.kick.as_raw_fd(), token))
        };
        queues.filter_map(kick).collect()
    }

    /// Has `with` serve the next chain of a queue; whether there was one.
    fn one(
        &mut self,
        queue: usize,
        with: impl FnOnce(&mut Port, super::queue::Chain<'_>) -> Result<u32, BadChain>,
    ) -> bool {
        let Some(Some(queue)) = self.queues.get_mut(queue) else {
            return false;
        };
        let (taken, port) = (Cell::new(false), &mut self.port);
        let mut with = Some(with);
        let more = || !taken.get();
        queue.serve_while(&self.memory, &self.trouble, more, |chain| {
            taken.set(true);
            with.take().map_or(Ok(0), |with| with(port, chain))
        });
        taken.get()
    }

    /// So often a queue is served in one turn; a driver is not to keep the thread from the others.
    fn turns(&self, queue: usize) -> u16 {
        let queue = self.queues.get(queue).and_then(Option::as_ref);
        queue.map_or(0, |queue| queue.queue.size())
    }

    /// There may be more: the queue is looked at again after the others.
    fn come_back(&self, queue: usize) {
        if let Some(Some(queue)) = self.queues.get(queue) {
            queue.come_back();
        }
    }

    fn hear(&mut self) {
        for _ in 0..self.turns(HEAR) {
            let mut message = None;
            let heard = self.one(HEAR, |_, chain| {
                let (mut from, _) = buffers::gather(&chain)?;
                let bytes: [u8; MESSAGE] = buffers::take(&mut from).ok_or(BadChain)?;
                message = Some(Message::from_bytes(bytes));
                Ok(0)
            });
            if !heard {
                return;
            }
            if let Some(message) = message {
                self.told(message);
            }
        }
        self.come_back(HEAR);
    }

    /// What the driver says of the device and its ports.
    fn told(&mut self, message: Message) {
        let of_port = message.port == PORT;
        match (message.event, message.value) {
            (event::DEVICE_READY, 1) => self.say(event::DEVICE_ADD, 1, ""),
            (event::PORT_READY, 1) if of_port => {
                self.say(event::PORT_NAME, 1, self.name);
                // The host's end is there.
                self.say(event::PORT_OPEN, 1, "");
            }
            (event::PORT_OPEN, value) if of_port => {
                self.port.open.store(value != 0, Ordering::Release);
                self.port.incoming.clear();
            }
            _ => {}
        }
    }

    fn say(&mut self, event: u16, value: u16, text: &str) {
        if self.messages.len() < MAX_MESSAGES {
            let message = Message {
                port: PORT,
                event,
                value,
            };
            let bytes = [&message.bytes()[..], text.as_bytes()].concat();
            self.messages.push_back(bytes);
        }
    }

    fn tell(&mut self) {
        while let Some(message) = self.messages.pop_front() {
            let told = self.one(TELL, |_, chain| {
                let (_, mut to) = buffers::gather(&chain)?;
                buffers::put(&mut to, &message).ok_or(BadChain)?;
                Ok(message.len() as u32)
            });
            if !told {
                return self.messages.push_front(message);
            }
        }
    }

    fn carry_out(&mut self) {
        for _ in 0..self.turns(TRANSMIT) {
            let carried = self.port.flush()
                && self.one(TRANSMIT, |port, chain| {
                    let (from, _) = buffers::gather(&chain)?;
                    if buffers::len(&from) > MAX_CHAIN {
                        return Err(BadChain);
                    }
                    for slice in from {
                        let at = port.outgoing.len();
                        port.outgoing.resize(at + slice.len(), 0);
                        slice.copy_to(port.outgoing.get_mut(at..).unwrap_or_default());
                    }
                    Ok(0)
                });
            if !carried {
                return;
            }
        }
        // All but the last of what was taken is gone.
        if self.port.flush() {
            self.come_back(TRANSMIT);
        }
    }

    fn carry_in(&mut self) {
        for _ in 0..self.turns(RECEIVE) {
            let carried = self.port.fill()
                && self.one(RECEIVE, |port, chain| {
                    let (_, mut to) = buffers::gather(&chain)?;
                    let room = buffers::len(&to).min(port.incoming.len());
                    let bytes: Vec<u8> = port.incoming.drain(..room).collect();
                    buffers::put(&mut to, &bytes).ok_or(BadChain)?;
                    if room == 0 {
                        return Err(BadChain);
                    }
                    Ok(room as u32)
                });
            if !carried {
                return;
            }
        }
        self.come_back(RECEIVE);
    }
}

impl Job for ConsoleJob {
    fn ready(&mut self, token: u64, _: EventSet) {
        // A kick that nobody takes would come again.
        if let Some(Some(queue)) = self.queues.get(token as usize) {
            let _ = queue.kick.read();
        }
        self.hear();
        self.tell();
        self.carry_out();
        self.carry_in();
    }
}

#[cfg(test)]
mod tests;
