//! A virtio-net device's queues (virtio 1.2, section 5.1), in guest memory.

mod control;

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO,
    VIRTIO_NET_F_MRG_RXBUF,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::header::{self, Header};
use super::loans::{self, Buffer, Loans};
use super::metered::content;
use super::{Capabilities, Link, Offload, Received};
use crate::counters::Content;
use crate::virtqueue::{
    BadChain, Chain, QueueError, Used, available, descriptors, give_back, next, wants_to_know,
};

/// The features that a card of ours offers, whatever else its transport does.
pub const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_HOST_ECN
    | 1 << VIRTIO_NET_F_HOST_USO
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_ECN
    | 1 << VIRTIO_NET_F_GUEST_USO4
    | 1 << VIRTIO_NET_F_GUEST_USO6
    | 1 << VIRTIO_NET_F_MRG_RXBUF;

/// Those of them that the driver may switch by its control queue.
const OFFLOADS: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_ECN
    | 1 << VIRTIO_NET_F_GUEST_USO4
    | 1 << VIRTIO_NET_F_GUEST_USO6;

/// Two frames of the largest size: with as many as a ring holds a guest and its network wait for each other.
const PIECE: usize = 128 << 10;

/// A queue that the driver set up.
pub struct Virtqueue {
    queue: Queue,
    kick: EventFd,
    interrupt: Box<dyn Fn() + Send>,
    /// Where the used ring's index was when the driver was last told, or did not want to be.
    told: u16,
}

impl Virtqueue {
    /// A ring; `kick` is signalled when the driver kicks, and `interrupt` tells it of used buffers.
    pub fn new(queue: Queue, kick: EventFd, interrupt: impl Fn() + Send + 'static) -> Self {
        Self {
            told: queue.next_used(),
            queue,
            kick,
            interrupt: Box::new(interrupt),
        }
    }

    fn give_back(&mut self, memory: &GuestMemoryMmap, chains: &[Used]) -> Result<(), QueueError> {
        give_back(&mut self.queue, memory, chains)
    }

    fn notify(&mut self, memory: &GuestMemoryMmap) -> Result<(), QueueError> {
        if wants_to_know(&self.queue, memory, self.told)? {
            (self.interrupt)();
        }
        self.told = self.queue.next_used();
        Ok(())
    }
}

/// The queues.
pub struct VirtqueueLink {
    memory: GuestMemoryMmap,
    receive: Virtqueue,
    transmit: Virtqueue,
    control: Option<Virtqueue>,
    /// Where the frame goes that is being given.
    places: Vec<Place>,
    /// Where the frame lies that is being taken.
    buffers: Vec<Buffer>,
    loans: Loans,
    /// Chains to be given back when the batch ends.
    batch: Vec<Used>,
    /// Those of the frame that is being given.
    filled: Vec<Used>,
    features: u64,
    /// Of the features those that the driver has switched on, as far as it may switch them.
    offloads: Arc<AtomicU64>,
    capabilities: Capabilities,
    /// Whether there is something to tell the driver of, in each direction.
    given: bool,
    taken: bool,
    /// The driver need not kick for frames.
    quiet: bool,
    /// The driver broke a queue: nothing goes through until it resets the device.
    broken: bool,
    /// Hears of that.
    report: Box<dyn Fn() + Send>,
}

/// A buffer of the receive queue, and the number of its chain.
struct Place {
    head: u16,
    at: GuestAddress,
    len: usize,
}

/// What a driver takes that agreed on `features`.
fn capabilities(features: u64) -> Capabilities {
    let has = |bit: u32| features & 1 << bit != 0;
    let checksum = has(VIRTIO_NET_F_GUEST_CSUM);
    // Without mergeable buffers the driver posts large ones only where it has to.
    let cut = |bit| checksum && has(VIRTIO_NET_F_MRG_RXBUF) && has(bit);
    Capabilities {
        checksum,
        tso4: cut(VIRTIO_NET_F_GUEST_TSO4),
        tso6: cut(VIRTIO_NET_F_GUEST_TSO6),
        uso: cut(VIRTIO_NET_F_GUEST_USO4) && cut(VIRTIO_NET_F_GUEST_USO6),
    }
}

impl VirtqueueLink {
    /// The link of a driver that agreed on `features`; `control` is there where it agreed on
    /// VIRTIO_NET_F_CTRL_VQ.
    pub fn new(
        memory: GuestMemoryMmap,
        receive: Virtqueue,
        transmit: Virtqueue,
        control: Option<Virtqueue>,
        features: u64,
    ) -> Self {
        let loans = Loans::new(memory.clone());
        Self {
            memory,
            receive,
            transmit,
            control,
            places: Vec::new(),
            buffers: Vec::new(),
            loans,
            batch: Vec::new(),
            filled: Vec::new(),
            features,
            offloads: Arc::new(AtomicU64::new(features & OFFLOADS)),
            capabilities: capabilities(features),
            given: false,
            taken: false,
            quiet: false,
            broken: false,
            report: Box::new(|| {}),
        }
    }

    /// Has `report` called when the driver has broken a queue.
    pub fn report_to(&mut self, report: impl Fn() + Send + 'static) {
        self.report = Box::new(report);
    }

    /// What the driver has switched on, to be read while it runs.
    pub fn offloads(&self) -> Arc<AtomicU64> {
        self.offloads.clone()
    }

    /// As if the driver had switched its offloads so. What it did not agree on stays off, and
    /// nothing else changes.
    pub fn switch(&mut self, offloads: u64) {
        let on = self.features & offloads & OFFLOADS;
        self.offloads.store(on, Ordering::Relaxed);
        self.capabilities = capabilities(self.features & !OFFLOADS | on);
    }

    /// How far the receive and the transmit queue have come: the next available entry of each.
    pub fn positions(&self) -> [u16; 2] {
        [
            self.receive.queue.next_avail(),
            self.transmit.queue.next_avail(),
        ]
    }

    /// Runs `with` unless the driver has broken a queue, and notes when it does now.
    fn guarded<T: Default>(&mut self, with: impl FnOnce(&mut Self) -> Result<T, QueueError>) -> T {
        if self.broken {
            return T::default();
        }
        with(self).unwrap_or_else(|error| {
            tracing::warn!("net: {error}");
            self.broken = true;
            (self.report)();
            T::default()
        })
    }

    fn take(&mut self, place: &mut [u8]) -> Result<Option<Received>, QueueError> {
        loop {
            self.transmit.queue.disable_notification(&self.memory)?;
            if let Some(chain) = next(&mut self.transmit.queue, &self.memory)? {
                let head = chain.head_index();
                let received = find(&self.memory, &chain, &mut self.buffers)
                    .and_then(|(header, len)| self.read(&header, place.get_mut(..len)?));
                self.batch.push(Used { head, written: 0 });
                // In the order in which they came: behind one that is lent they wait with it.
                if !self.loans.any() {
                    self.give_back()?;
                }
                return Ok(Some(received.unwrap_or_default()));
            }
            if self.quiet || !self.transmit.queue.enable_notification(&self.memory)? {
                return Ok(None);
            }
        }
    }

    /// Reads the frame that was found, to all of `place`, or lends it.
    fn read(&mut self, header: &Header, place: &mut [u8]) -> Option<Received> {
        let received = Received {
            len: place.len(),
            datagrams: header::datagrams(header),
            loan: None,
        };
        if place.len() >= loans::LEAST {
            let start = place.get_mut(..loans::HEAD)?;
            self.copy(start)?;
            if content(&[start]) == Content::Tcp {
                let loan = self.loans.lend(&self.buffers);
                if loan.is_some() {
                    return Some(Received { loan, ..received });
                }
            }
        }
        self.copy(place)?;
        Some(received)
    }

    /// Fills `place` with the start of the frame that was found.
    fn copy(&self, place: &mut [u8]) -> Option<()> {
        loans::copy(&self.memory, self.buffers.iter().copied(), place).ok()
    }

    /// Gives the driver back what it sent, as far as it does not have it yet.
    fn give_back(&mut self) -> Result<(), QueueError> {
        self.loans.end();
        if !self.batch.is_empty() {
            self.transmit.give_back(&self.memory, &self.batch)?;
            self.batch.clear();
            self.taken = true;
        }
        Ok(())
    }

    /// Finds chains with room for `len` bytes and returns how many; none where the driver has not
    /// made enough available.
    fn room(&mut self, len: usize) -> Result<Option<u16>, QueueError> {
        let mergeable = self.features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0;
        let before = self.receive.queue.next_avail();
        loop {
            self.receive.queue.disable_notification(&self.memory)?;
            self.places.clear();
            let (mut chains, mut room) = (0, 0);
            // A ring has no more than its size; who seems to have adds while this looks.
            let most = if mergeable {
                self.receive.queue.size()
            } else {
                1
            };
            while room < len && chains < most {
                let Some(chain) = next(&mut self.receive.queue, &self.memory)? else {
                    break;
                };
                let head = chain.head_index();
                let known = self.places.len();
                for descriptor in descriptors(&chain) {
                    let descriptor = descriptor?;
                    let len = descriptor.len() as usize;
                    if len > 0 && descriptor.is_write_only() {
                        room += len;
                        self.places.push(Place {
                            head,
                            at: descriptor.addr(),
                            len,
                        });
                    }
                }
                if self.places.len() == known {
                    // It holds nothing, but is to be given back.
                    self.places.push(Place {
                        head,
                        at: GuestAddress(0),
                        len: 0,
                    });
                }
                chains += 1;
            }
            if room >= len {
                return Ok(Some(chains));
            }
            if chains == most {
                // All that a driver may have outstanding does not hold a frame: it never will.
                return Err(BadChain.into());
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
        let len = header::LEN + parts.iter().map(|part| part.len()).sum::<usize>();
        let Some(chains) = self.room(len)? else {
            return Ok(false);
        };
        let header = header::encode(offload, chains);
        let mut rest = std::iter::once(&header[..]).chain(parts.iter().copied());
        let mut part: &[u8] = &[];
        self.filled.clear();
        for chain in self.places.chunk_by(|a, b| a.head == b.head) {
            let mut written = 0;
            for place in chain {
                let (mut at, mut room) = (place.at, place.len);
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
            if let Some(place) = chain.first() {
                let head = place.head;
                self.filled.push(Used { head, written });
            }
        }
        self.receive.give_back(&self.memory, &self.filled)?;
        self.given = true;
        Ok(true)
    }

    fn obey(&mut self) -> Result<(), QueueError> {
        if let Some(control) = &mut self.control
            && let Some(offloads) = control::serve(control, &self.memory)?
        {
            self.switch(offloads);
        }
        Ok(())
    }
}

/// Finds a frame, its header and its length, and notes in `buffers` where its bytes lie; `None` where
/// the header is not whole, there is nothing behind it, or the chain lies.
fn find(
    memory: &GuestMemoryMmap,
    chain: &Chain<'_>,
    buffers: &mut Vec<Buffer>,
) -> Option<(Header, usize)> {
    buffers.clear();
    let mut header: Header = [0; header::LEN];
    let (mut at, mut len) = (0, 0_usize);
    for descriptor in descriptors(chain) {
        let descriptor = descriptor.ok()?;
        if descriptor.is_write_only() {
            continue;
        }
        let (mut from, mut left) = (descriptor.addr(), descriptor.len() as usize);
        if let Some(rest) = header.get_mut(at..)
            && !rest.is_empty()
        {
            let n = rest.len().min(left);
            memory.read_slice(rest.get_mut(..n)?, from).ok()?;
            (from, left, at) = (from.checked_add(n as u64)?, left - n, at + n);
        }
        if left > 0 {
            len = len.checked_add(left)?;
            buffers.push((from, left));
        }
    }
    (at == header::LEN && len > 0).then_some((header, len))
}

impl Link for VirtqueueLink {
    fn receive(&mut self, place: &mut [u8]) -> Option<Received> {
        self.guarded(|link| link.take(place))
    }

    fn send(&mut self, parts: &[&[u8]], offload: Offload) -> bool {
        self.guarded(|link| link.give(parts, offload))
    }

    fn loans(&self) -> Option<&Loans> {
        Some(&self.loans)
    }

    fn end_batch(&mut self) {
        self.guarded(Self::give_back);
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

    fn piece(&self) -> usize {
        PIECE
    }

    fn descriptors(&self) -> Vec<RawFd> {
        let queues = [
            Some(&self.receive),
            Some(&self.transmit),
            self.control.as_ref(),
        ];
        let kicks = queues.into_iter().flatten();
        kicks.map(|queue| queue.kick.as_raw_fd()).collect()
    }

    fn acknowledge(&mut self) {
        // An error means that it was not this one.
        let _ = self.receive.kick.read();
        let _ = self.transmit.kick.read();
        if let Some(control) = &self.control
            && control.kick.read().is_ok()
        {
            self.guarded(Self::obey);
        }
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn quiet(&mut self, quiet: bool) -> bool {
        let was = std::mem::replace(&mut self.quiet, quiet);
        was && !quiet
            && self.guarded(|link| Ok(link.transmit.queue.enable_notification(&link.memory)?))
    }

    fn waits(&mut self) -> bool {
        self.quiet && self.guarded(|link| Ok(available(&link.transmit.queue, &link.memory)? > 0))
    }
}

#[cfg(test)]
mod tests;
