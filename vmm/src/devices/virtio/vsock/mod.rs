//! The socket device (virtio 1.2, section 5.10): streams between the guest's ports and sockets of
//! this process. No kernel module takes part in it.
//!
//! A connection of the guest's goes to what [`Ports`] has on its port. The host's own come by a
//! unix socket, on which a client first writes `CONNECT <port>\n` and reads `OK <port>\n`, the
//! convention that Firecracker began.

mod connection;
mod mux;
mod packet;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;
use vmm_sys_util::epoll::{Epoll, EventSet};

use super::queue::{BadChain, Chain, QueueError, next};
use super::trouble::Trouble;
use super::worker::{Job, Worker};
use super::{Activation, ActiveQueue, GuestMemory, VirtioDevice, buffers};
use crate::sandbox::Kind;
pub use mux::Ports;
use mux::{LISTENER, Mux};
use packet::{HEADER, Header};

/// What the host's socket is called in a VM's state directory.
pub const SOCKET: &str = "vsock";

const ID: u16 = 19;
/// Receive, transmit, and events, of which there is one.
const QUEUE_SIZES: [u16; 3] = [128, 128, 8];
/// The guest's address: the first that is nobody's (linux/include/uapi/linux/vm_sockets.h).
const GUEST_CID: u64 = 3;
/// The event: the connections are another machine's (section 5.10.6.7,
/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`).
const TRANSPORT_RESET: [u8; 4] = [0; 4];
const RECEIVE: u64 = 0;
const TRANSMIT: u64 = u64::MAX - 2;
/// Packets for the guest before the worker looks at everything else.
const TURN: usize = 128;

/// The socket device. Its services and its listening socket outlive a guest's resets.
pub struct Vsock {
    /// `None` while it runs.
    host: Option<(Box<dyn Ports>, Option<UnixListener>)>,
    worker: Option<Worker<VsockJob>>,
}

impl Vsock {
    /// A device whose guest finds `ports` on the host, and is found by clients of `listener`.
    pub fn new(ports: Box<dyn Ports>, listener: Option<UnixListener>) -> io::Result<Self> {
        if let Some(listener) = &listener {
            listener.set_nonblocking(true)?;
        }
        Ok(Self {
            host: Some((ports, listener)),
            worker: None,
        })
    }

    /// What is to be done with the queues, and where it waits for what happens on the host.
    pub fn job(&mut self, activation: Activation) -> io::Result<(VsockJob, Arc<Epoll>)> {
        let mut queues = activation.queues.into_iter();
        let (Some(Some(receive)), Some(Some(transmit))) = (queues.next(), queues.next()) else {
            return Err(io::Error::other(
                "the driver enabled only one of its queues",
            ));
        };
        let Some((ports, listener)) = self.host.take() else {
            return Err(io::Error::other(
                "the sockets were lost when their worker failed",
            ));
        };
        let epoll = Arc::new(Epoll::new()?);
        let mut job = VsockJob {
            receive,
            transmit,
            memory: activation.memory,
            mux: Mux::new(GUEST_CID, ports, listener, epoll.clone()),
            trouble: activation.trouble,
        };
        if activation.restored
            && let Some(Some(events)) = queues.next()
        {
            job.tell_of_reset(events);
        }
        Ok((job, epoll))
    }
}

impl VirtioDevice for Vsock {
    fn id(&self) -> u16 {
        ID
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::read_from(&GUEST_CID.to_le_bytes(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let gate = activation.gate.clone();
        let (job, epoll) = self.job(activation)?;
        let watched = job.watched();
        self.worker = Some(Worker::spawn_on(epoll, Kind::Vsock, gate, &watched, job)?);
        Ok(())
    }

    fn reset(&mut self) {
        if let Some(job) = self.worker.take().and_then(Worker::stop) {
            self.host = Some(job.mux.into_parts());
        }
    }
}

/// A guest's packets, carried to sockets and back.
pub struct VsockJob {
    receive: ActiveQueue,
    transmit: ActiveQueue,
    memory: GuestMemory,
    mux: Mux,
    trouble: Trouble,
}

impl Job for VsockJob {
    fn ready(&mut self, token: u64, events: EventSet) {
        match token {
            RECEIVE => {
                let _ = self.receive.kick.read();
            }
            TRANSMIT => {
                let mux = &mut self.mux;
                let packet = |chain: Chain<'_>| take(mux, &chain);
                self.transmit.serve(&self.memory, &self.trouble, packet);
            }
            token => self.mux.event(token, events),
        }
        if !self.trouble.is_broken()
            && let Err(error) = self.send()
        {
            self.trouble.broke(&error);
        }
    }
}

/// Takes one of the guest's packets.
fn take(mux: &mut Mux, chain: &Chain<'_>) -> Result<u32, BadChain> {
    let (mut from, _) = buffers::gather(chain)?;
    let header = buffers::take(&mut from).ok_or(BadChain)?;
    let header = Header::from_bytes(&header);
    let len = header.len as usize;
    if len > buffers::len(&from) || buffers::truncate(&mut from, len).is_err() {
        return Err(BadChain);
    }
    mux.packet(&header, from);
    Ok(0)
}

impl VsockJob {
    /// What it has to hear of from the start, each with its token.
    pub fn watched(&self) -> Vec<(RawFd, u64)> {
        let mut watched = vec![
            (self.receive.kick.as_raw_fd(), RECEIVE),
            (self.transmit.kick.as_raw_fd(), TRANSMIT),
        ];
        let listener = self.mux.listener();
        watched.extend(listener.map(|listener| (listener.as_raw_fd(), LISTENER)));
        watched
    }

    /// Tells the driver that the connections that it knows of are no more.
    fn tell_of_reset(&mut self, mut events: ActiveQueue) {
        let mut told = false;
        let more = || !std::mem::replace(&mut told, true);
        events.serve_while(&self.memory, &self.trouble, more, |chain| {
            let (_, mut to) = buffers::gather(&chain)?;
            buffers::put(&mut to, &TRANSPORT_RESET).ok_or(BadChain)?;
            Ok(TRANSPORT_RESET.len() as u32)
        });
    }

    /// Gives the guest what there is for it, while it has room.
    fn send(&mut self) -> Result<(), QueueError> {
        let mut used = false;
        let mut left = TURN;
        while self.mux.has_output() {
            if left == 0 {
                self.receive.come_back();
                break;
            }
            left -= 1;
            self.receive.queue.disable_notification(&self.memory)?;
            let Some(chain) = next(&mut self.receive.queue, &self.memory)? else {
                if self.receive.queue.enable_notification(&self.memory)? {
                    continue;
                }
                break;
            };
            let head = chain.head_index();
            let written = match buffers::gather(&chain) {
                Ok((_, to)) if buffers::len(&to) > HEADER => self.mux.next(&to),
                // Of no use to anybody; it goes back empty.
                _ => {
                    self.trouble.malformed(&BadChain);
                    Some(0)
                }
            };
            match written {
                Some(written) => {
                    let queue = &mut self.receive.queue;
                    queue.add_used(&self.memory, head, written as u32)?;
                    used = true;
                }
                // Nothing was there after all: the chain stays the driver's next.
                None => {
                    let before = self.receive.queue.next_avail().wrapping_sub(1);
                    self.receive.queue.set_next_avail(before);
                }
            }
        }
        if used {
            self.receive.notify(&self.memory)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
