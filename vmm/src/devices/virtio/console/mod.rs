//! The console device (virtio 1.2, section 5.3): the guest's second console, `hvc0`, beside its serial
//! port, where somebody wants it; and a named port, by which a program of the guest's and this process
//! speak.

mod control;
mod port;

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::queue::{BadChain, Chain};
use super::trouble::Trouble;
use super::worker::{Job, Worker};
use super::{Activation, ActiveQueue, GuestMemory, VirtioDevice, buffers};
use crate::devices::saved::{self, Unfit};
use crate::sandbox::Kind;
use control::{MESSAGE, Message, event};
pub use port::Terminal;
use port::{End, Named, Port};

const ID: u16 = 3;
/// More ports than one, and messages about them (section 5.3.3).
const VIRTIO_CONSOLE_F_MULTIPORT: u32 = 1;
/// Receive and transmit of port 0, which by the standard may be nothing but a console; of messages; and
/// of the port with a name.
const QUEUE_SIZES: [u16; 6] = [64; 6];
const TELL: usize = 2;
const HEAR: usize = 3;
/// By port.
const RECEIVE: [usize; PORTS] = [0, 4];
const TRANSMIT: [usize; PORTS] = [1, 5];
const PORTS: usize = 2;
/// The events of the host's ends, by port.
const ENDS: u64 = 100;
/// Columns and rows of a console, which nobody knows; the number of ports; an emergency's letter.
const CONFIG: [u8; 12] = [0, 0, 0, 0, PORTS as u8, 0, 0, 0, 0, 0, 0, 0];
/// Messages that wait for the driver; it causes each.
const MAX_MESSAGES: usize = 16;

/// The console device.
pub struct Console {
    /// Our ends; none while it runs.
    ends: [Option<End>; PORTS],
    open: Arc<AtomicBool>,
    worker: Option<Worker<ConsoleJob>>,
}

impl Console {
    /// A device with that console, and a port of that name; what the guest writes there comes at the
    /// other end of its stream.
    pub fn new(
        terminal: Option<Terminal>,
        port: Option<(&'static str, UnixStream)>,
    ) -> io::Result<Self> {
        let open = Arc::<AtomicBool>::default();
        let named = |(name, stream): (_, UnixStream)| {
            stream.set_nonblocking(true)?;
            let open = open.clone();
            io::Result::Ok(End::Named(Named { name, stream, open }))
        };
        Ok(Self {
            ends: [terminal.map(End::Terminal), port.map(named).transpose()?],
            open,
            worker: None,
        })
    }

    /// Whether a program of the guest's has opened the port with a name.
    pub fn open(&self) -> Arc<AtomicBool> {
        self.open.clone()
    }

    /// What is to be done with the queues, and where it waits for the host's ends.
    pub fn job(&mut self, activation: Activation) -> io::Result<(ConsoleJob, Arc<Epoll>)> {
        let ports = std::mem::take(&mut self.ends).map(|end| end.map(Port::new));
        if ports.iter().all(Option::is_none) {
            return Err(io::Error::other(
                "the ports were lost when their worker failed",
            ));
        }
        if !activation.restored {
            self.open.store(false, Ordering::Release);
        }
        let epoll = Arc::new(Epoll::new()?);
        for (token, port) in (ENDS..).zip(&ports) {
            if let Some(port) = port {
                // Once for each change: while the guest has no room, nobody is to be woken for it.
                let events = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
                let event = EpollEvent::new(events, token);
                epoll.ctl(ControlOperation::Add, port.end.fd(), event)?;
            }
        }
        let mut queues = activation.queues;
        queues.resize_with(QUEUE_SIZES.len(), || None);
        let job = ConsoleJob {
            queues: Queues {
                all: queues,
                memory: activation.memory,
                trouble: activation.trouble,
            },
            ports,
            messages: VecDeque::new(),
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
            self.ends = job.ports.map(|port| port.map(|port| port.end));
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

/// The queues and messages of a device's ports, served.
pub struct ConsoleJob {
    queues: Queues,
    ports: [Option<Port>; PORTS],
    /// For the driver, the next first.
    messages: VecDeque<Vec<u8>>,
}

struct Queues {
    all: Vec<Option<ActiveQueue>>,
    memory: GuestMemory,
    trouble: Trouble,
}

impl Queues {
    /// Has `with` serve the next chain of a queue; whether there was one.
    fn one(
        &mut self,
        queue: usize,
        with: impl FnOnce(&Chain<'_>) -> Result<u32, BadChain>,
    ) -> bool {
        let Some(Some(queue)) = self.all.get_mut(queue) else {
            return false;
        };
        let taken = Cell::new(false);
        let mut with = Some(with);
        let more = || !taken.get();
        queue.serve_while(&self.memory, &self.trouble, more, |chain| {
            taken.set(true);
            with.take().map_or(Ok(0), |with| with(&chain))
        });
        taken.get()
    }

    /// So often a queue is served in one turn; a driver is not to keep the thread from the others.
    fn turns(&self, queue: usize) -> u16 {
        let queue = self.all.get(queue).and_then(Option::as_ref);
        queue.map_or(0, |queue| queue.queue.size())
    }

    /// There may be more: the queue is looked at again after the others.
    fn come_back(&self, queue: usize) {
        if let Some(Some(queue)) = self.all.get(queue) {
            queue.come_back();
        }
    }

    fn carry_out(&mut self, queue: usize, port: &mut Port) {
        for _ in 0..self.turns(queue) {
            let carried = port.flush() && self.one(queue, |chain| port.take(chain));
            if !carried {
                return;
            }
        }
        // All but the last of what was taken is gone.
        if port.flush() {
            self.come_back(queue);
        }
    }

    fn carry_in(&mut self, queue: usize, port: &mut Port) {
        for _ in 0..self.turns(queue) {
            let carried = port.fill() && self.one(queue, |chain| port.give(chain));
            if !carried {
                return;
            }
        }
        self.come_back(queue);
    }
}

impl ConsoleJob {
    /// The kicks that it has to hear of from the start, each with its token.
    pub fn watched(&self) -> Vec<(RawFd, u64)> {
        let queues = (0..).zip(&self.queues.all);
        let kick = |(token, queue): (u64, &Option<ActiveQueue>)| {
            Some((queue.as_ref()?.kick.as_raw_fd(), token))
        };
        queues.filter_map(kick).collect()
    }

    fn hear(&mut self) {
        for _ in 0..self.queues.turns(HEAR) {
            let mut message = None;
            let heard = self.queues.one(HEAR, |chain| {
                let (mut from, _) = buffers::gather(chain)?;
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
        self.queues.come_back(HEAR);
    }

    /// What the driver says of the device and its ports.
    fn told(&mut self, message: Message) {
        if (message.event, message.value) == (event::DEVICE_READY, 1) {
            for (number, port) in (0..).zip(&self.ports) {
                if port.is_some() {
                    say(&mut self.messages, number, event::DEVICE_ADD, "");
                }
            }
            return;
        }
        let port = usize::try_from(message.port).ok();
        let port = port.and_then(|number| self.ports.get_mut(number));
        let Some(port) = port.and_then(Option::as_mut) else {
            return;
        };
        match (message.event, message.value) {
            (event::PORT_READY, 1) => {
                for (event, text) in port.end.introduction() {
                    say(&mut self.messages, message.port, event, text);
                }
            }
            (event::PORT_OPEN, value) => port.opened(value != 0),
            _ => {}
        }
    }

    fn tell(&mut self) {
        while let Some(message) = self.messages.pop_front() {
            let told = self.queues.one(TELL, |chain| {
                let (_, mut to) = buffers::gather(chain)?;
                buffers::put(&mut to, &message).ok_or(BadChain)?;
                Ok(message.len() as u32)
            });
            if !told {
                return self.messages.push_front(message);
            }
        }
    }
}

fn say(messages: &mut VecDeque<Vec<u8>>, port: u32, event: u16, text: &str) {
    if messages.len() < MAX_MESSAGES {
        let value = 1;
        let message = Message { port, event, value };
        messages.push_back([&message.bytes()[..], text.as_bytes()].concat());
    }
}

impl Job for ConsoleJob {
    fn ready(&mut self, token: u64, _: EventSet) {
        // A kick that nobody takes would come again.
        if let Some(Some(queue)) = self.queues.all.get(token as usize) {
            let _ = queue.kick.read();
        }
        self.hear();
        self.tell();
        let queues = RECEIVE.into_iter().zip(TRANSMIT);
        for (port, (receive, transmit)) in self.ports.iter_mut().zip(queues) {
            if let Some(port) = port {
                self.queues.carry_out(transmit, port);
                self.queues.carry_in(receive, port);
            }
        }
    }
}

#[cfg(test)]
mod tests;
