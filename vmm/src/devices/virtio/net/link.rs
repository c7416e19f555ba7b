//! netdev's link on two virtqueues.

use std::os::fd::{AsRawFd, RawFd};

use netdev::link::{Capabilities, Link, Offload};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV4,
};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};

use crate::devices::virtio::queue::{QueueError, next};
use crate::devices::virtio::{ActiveQueue, GuestMemory};

/// `struct virtio_net_hdr_v1` (section 5.1.6).
const HEADER: usize = 12;
const NUM_BUFFERS: usize = 10;
/// The longest frame: a header, Ethernet, and the largest IPv4 packet.
const MAX_FRAME: usize = HEADER + 14 + 65_535;

/// The two queues.
pub struct QueueLink {
    memory: GuestMemory,
    receive: ActiveQueue,
    transmit: ActiveQueue,
    mergeable: bool,
    capabilities: Capabilities,
    /// Whether there is something to tell the driver of, in each direction.
    given: bool,
    taken: bool,
    /// The driver broke a queue: nothing goes through until it resets the device.
    broken: bool,
}

/// A chain's number and its buffers.
type Buffers = (u16, Vec<(GuestAddress, usize)>);

impl QueueLink {
    /// The link of a driver that agreed on `features`.
    pub fn new(
        memory: GuestMemory,
        receive: ActiveQueue,
        transmit: ActiveQueue,
        features: u64,
    ) -> Self {
        let has = |bit: u32| features & 1 << bit != 0;
        let mergeable = has(VIRTIO_NET_F_MRG_RXBUF);
        let checksum = has(VIRTIO_NET_F_GUEST_CSUM);
        let capabilities = Capabilities {
            checksum,
            // Without mergeable buffers the driver posts large ones only where it has to.
            tso4: checksum && mergeable && has(VIRTIO_NET_F_GUEST_TSO4),
        };
        Self {
            memory,
            receive,
            transmit,
            mergeable,
            capabilities,
            given: false,
            taken: false,
            broken: false,
        }
    }

    /// Runs `with` unless the driver has broken a queue, and notes when it does now.
    fn guarded<T: Default>(&mut self, with: impl FnOnce(&mut Self) -> Result<T, QueueError>) -> T {
        if self.broken {
            return T::default();
        }
        with(self).unwrap_or_else(|error| {
            tracing::warn!("net: {error}");
            self.broken = true;
            T::default()
        })
    }

    fn take(&mut self, frame: &mut Vec<u8>) -> Result<bool, QueueError> {
        loop {
            self.transmit.queue.disable_notification(&self.memory)?;
            while let Some(chain) = next(&mut self.transmit.queue, &self.memory)? {
                let head = chain.head_index();
                frame.clear();
                for descriptor in chain.readable() {
                    let (at, len) = (frame.len(), descriptor.len() as usize);
                    if at + len > MAX_FRAME {
                        frame.clear();
                        break;
                    }
                    frame.resize(at + len, 0);
                    let place = frame.get_mut(at..).unwrap_or_default();
                    if self.memory.read_slice(place, descriptor.addr()).is_err() {
                        frame.clear();
                        break;
                    }
                }
                self.transmit.queue.add_used(&self.memory, head, 0)?;
                self.taken = true;
                if frame.len() > HEADER {
                    frame.drain(..HEADER);
                    return Ok(true);
                }
            }
            if !self.transmit.queue.enable_notification(&self.memory)? {
                return Ok(false);
            }
        }
    }

    /// Chains with room for `len` bytes; none where the driver has not made enough available.
    fn room(&mut self, len: usize) -> Result<Option<Vec<Buffers>>, QueueError> {
        let before = self.receive.queue.next_avail();
        loop {
            self.receive.queue.disable_notification(&self.memory)?;
            let (mut chains, mut room) = (Vec::new(), 0);
            while room < len {
                let Some(chain) = next(&mut self.receive.queue, &self.memory)? else {
                    break;
                };
                let head = chain.head_index();
                let buffers: Vec<_> = chain
                    .writable()
                    .map(|d| (d.addr(), d.len() as usize))
                    .collect();
                room += buffers.iter().map(|(_, len)| len).sum::<usize>();
                chains.push((head, buffers));
                if !self.mergeable {
                    break;
                }
            }
            if room >= len {
                return Ok(Some(chains));
            }
            // Asked for behind the last one seen, so that what was seen does not count as new.
            let more = self.receive.queue.enable_notification(&self.memory)?;
            self.receive.queue.set_next_avail(before);
            if !more {
                return Ok(None);
            }
        }
    }

    fn give(&mut self, parts: &[&[u8]], offload: Offload) -> Result<bool, QueueError> {
        let len = HEADER + parts.iter().map(|part| part.len()).sum::<usize>();
        let Some(chains) = self.room(len)? else {
            return Ok(false);
        };
        let header = header(offload, chains.len() as u16);
        let mut rest = std::iter::once(&header[..]).chain(parts.iter().copied());
        let mut part: &[u8] = &[];
        for (head, buffers) in chains {
            let mut written = 0;
            for (mut at, mut room) in buffers {
                while room > 0 {
                    if part.is_empty() {
                        match rest.next() {
                            Some(next) => part = next,
                            None => break,
                        }
                    }
                    let n = room.min(part.len());
                    let (now, later) = part.split_at_checked(n).unwrap_or((part, &[]));
                    if self.memory.write_slice(now, at).is_err() {
                        // A buffer outside the guest's memory swallows what goes there.
                        tracing::debug!("net: a buffer outside the guest's memory");
                    }
                    part = later;
                    at = GuestAddress(at.0.wrapping_add(n as u64));
                    room -= n;
                    written += n as u32;
                }
            }
            self.receive.queue.add_used(&self.memory, head, written)?;
        }
        self.given = true;
        Ok(true)
    }
}

fn header(offload: Offload, buffers: u16) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    let mut set = |at: usize, value: u16| {
        header
            .iter_mut()
            .skip(at)
            .zip(value.to_le_bytes())
            .for_each(|(byte, new)| *byte = new);
    };
    set(NUM_BUFFERS, buffers);
    if let Some((start, offset)) = offload.checksum {
        set(0, VIRTIO_NET_HDR_F_NEEDS_CSUM as u16);
        set(6, start);
        set(8, offset);
    }
    if let Some(segment) = offload.segment {
        let flags = u16::from(offload.checksum.is_some());
        set(0, flags | (VIRTIO_NET_HDR_GSO_TCPV4 as u16) << 8);
        set(2, offload.headers);
        set(4, segment);
    }
    header
}

impl Link for QueueLink {
    fn receive(&mut self, frame: &mut Vec<u8>) -> bool {
        self.guarded(|link| link.take(frame))
    }

    fn send(&mut self, parts: &[&[u8]], offload: Offload) -> bool {
        self.guarded(|link| link.give(parts, offload))
    }

    fn flush(&mut self) {
        let (given, taken) = (
            std::mem::take(&mut self.given),
            std::mem::take(&mut self.taken),
        );
        self.guarded(|link| {
            if given {
                link.receive.notify(&link.memory)?;
            }
            if taken {
                link.transmit.notify(&link.memory)?;
            }
            Ok(())
        });
    }

    fn descriptors(&self) -> Vec<RawFd> {
        vec![
            self.receive.kick.as_raw_fd(),
            self.transmit.kick.as_raw_fd(),
        ]
    }

    fn acknowledge(&mut self) {
        // An error means that it was not this one.
        let _ = self.receive.kick.read();
        let _ = self.transmit.kick.read();
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }
}
