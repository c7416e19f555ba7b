//! Taking chains from a driver's ring (virtio 1.2, section 2.7), for every device of ours, and giving
//! several back at once.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

/// A chain of descriptors in the guest's memory.
pub type Chain<'a> = DescriptorChain<&'a GuestMemoryMmap>;

/// The driver broke the queue: its ring lies outside memory, or its index ran wild. The device
/// stops serving it until it is reset.
#[derive(Debug, thiserror::Error)]
#[error("the driver broke its queue: {0}")]
pub struct QueueError(#[from] virtio_queue::Error);

impl From<BadChain> for QueueError {
    fn from(_: BadChain) -> Self {
        Self(virtio_queue::Error::InvalidChain)
    }
}

/// The most buffers that a chain may have; a longer one is refused.
const MAX_BUFFERS: usize = 1024;

/// The chain lies: it is too long or goes round in a circle, or it or its buffers lie outside the
/// guest's memory.
#[derive(Debug, thiserror::Error)]
#[error("a chain that is too long or lies outside the guest's memory")]
pub struct BadChain;

/// A chain's descriptors. The last is an error where the chain does not end as it says.
pub struct Descriptors<'a> {
    chain: Chain<'a>,
    room: usize,
    more: bool,
}

/// The descriptors of `chain`, from its head on.
pub fn descriptors<'a>(chain: &Chain<'a>) -> Descriptors<'a> {
    Descriptors {
        chain: chain.clone(),
        room: MAX_BUFFERS,
        more: true,
    }
}

impl Iterator for Descriptors<'_> {
    type Item = Result<Descriptor, BadChain>;

    fn next(&mut self) -> Option<Self::Item> {
        if !std::mem::take(&mut self.more) {
            return None;
        }
        let Some(room) = self.room.checked_sub(1) else {
            return Some(Err(BadChain));
        };
        self.room = room;
        let descriptor = self.chain.next();
        self.more = descriptor.is_some_and(|descriptor| descriptor.has_next());
        Some(descriptor.ok_or(BadChain))
    }
}

/// How many chains the driver has made available and nobody has taken; an error where its index is
/// farther ahead than the ring is long.
pub fn available(queue: &Queue, memory: &GuestMemoryMmap) -> Result<u16, QueueError> {
    let available = queue.avail_idx(memory, Ordering::Acquire)? - Wrapping(queue.next_avail());
    if available.0 > queue.size() {
        return Err(QueueError(virtio_queue::Error::InvalidAvailRingIndex));
    }
    Ok(available.0)
}

/// The next chain, of those that are [`available`].
pub fn next<'a>(
    queue: &mut Queue,
    memory: &'a GuestMemoryMmap,
) -> Result<Option<Chain<'a>>, QueueError> {
    if available(queue, memory)? == 0 {
        return Ok(None);
    }
    // A head that is no descriptor would be found there for ever.
    let chain = queue.pop_descriptor_chain(memory);
    Ok(Some(
        chain.ok_or(virtio_queue::Error::InvalidDescriptorIndex)?,
    ))
}

/// Bytes before the entries of a ring: its flags and its index (virtio 1.2, sections 2.7.6 and 2.7.8).
const RING_HEADER: u64 = 4;
/// An entry of the available ring, and one of the used ring.
const AVAILABLE: u64 = 2;
const USED: u64 = 8;

/// A chain that the driver gets back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// Its first descriptor.
    pub head: u16,
    /// How many bytes were written to it.
    pub written: u32,
}

/// Gives the driver chains back, all of them by one step of the used ring's index: of a frame in
/// several of them it never finds a part (virtio 1.2, section 5.1.6.4).
pub fn give_back(
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
    chains: &[Used],
) -> Result<(), QueueError> {
    let (size, ring) = (queue.size(), queue.used_ring());
    for (used, step) in chains.iter().zip(0..) {
        let slot = queue.next_used().wrapping_add(step);
        if used.head >= size {
            return Err(QueueError(virtio_queue::Error::InvalidDescriptorIndex));
        }
        let at = place(ring, RING_HEADER + u64::from(slot % size) * USED)?;
        let entry = [u32::from(used.head), used.written].map(u32::to_le);
        memory.write_obj(entry, at).map_err(outside)?;
    }
    let next = queue.next_used().wrapping_add(chains.len() as u16);
    queue.set_next_used(next);
    let index = place(ring, 2)?;
    memory
        .store(next.to_le(), index, Ordering::Release)
        .map_err(outside)
}

/// Whether the driver wants to hear that the used ring's index is no more `told` (virtio 1.2, section
/// 2.7.7.2).
pub fn wants_to_know(
    queue: &Queue,
    memory: &GuestMemoryMmap,
    told: u16,
) -> Result<bool, QueueError> {
    let (size, ring) = (u64::from(queue.size()), queue.avail_ring());
    // What it says is read only after it can see what there is.
    fence(Ordering::SeqCst);
    let said = |offset| -> Result<u16, QueueError> {
        let said = memory.load(place(ring, offset)?, Ordering::Relaxed);
        said.map(u16::from_le).map_err(outside)
    };
    if !queue.event_idx_enabled() {
        return Ok(u32::from(said(0)?) & VRING_AVAIL_F_NO_INTERRUPT == 0);
    }
    let (event, next) = (said(RING_HEADER + size * AVAILABLE)?, queue.next_used());
    Ok(next.wrapping_sub(event).wrapping_sub(1) < next.wrapping_sub(told))
}

fn place(ring: u64, offset: u64) -> Result<GuestAddress, QueueError> {
    let at = ring.checked_add(offset).map(GuestAddress);
    at.ok_or(QueueError(virtio_queue::Error::AddressOverflow))
}

fn outside(error: GuestMemoryError) -> QueueError {
    QueueError(virtio_queue::Error::GuestMemory(error))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use proptest::prelude::*;
    use virtio_queue::mock::MockSplitQueue;

    use super::*;

    const SIZE: u16 = 16;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 16)]).unwrap()
    }

    proptest! {
        #[test]
        fn a_driver_hears_of_what_it_asked_for_once_it_is_there(
            told: u16,
            given in 0_u16..100,
            event: u16,
        ) {
            let memory = memory();
            let ring = MockSplitQueue::create(&memory, GuestAddress(0), SIZE);
            let mut queue: Queue = ring.create_queue().unwrap();
            let event_at = GuestAddress(queue.avail_ring() + 4 + 2 * u64::from(SIZE));
            memory.write_obj(event.to_le(), event_at).unwrap();
            queue.set_next_used(told.wrapping_add(given));
            queue.set_event_idx(true);
            let is_among_them = (0..given).any(|step| told.wrapping_add(step) == event);
            prop_assert_eq!(wants_to_know(&queue, &memory, told).unwrap(), is_among_them);
            queue.set_event_idx(false);
            prop_assert!(wants_to_know(&queue, &memory, told).unwrap());
            memory.write_obj(1_u16.to_le(), GuestAddress(queue.avail_ring())).unwrap();
            prop_assert!(!wants_to_know(&queue, &memory, told).unwrap());
        }
    }

    #[test]
    fn chains_given_back_together_are_there_all_or_none_wherever_the_ring_ends() {
        const CHAINS: u16 = 3;
        let memory = memory();
        let ring = MockSplitQueue::create(&memory, GuestAddress(0), SIZE);
        let mut queue: Queue = ring.create_queue().unwrap();
        let index = GuestAddress(queue.used_ring() + 2);
        // A multiple, so that it's one too where the index wraps.
        let all = u16::MAX - u16::MAX % CHAINS;
        thread::scope(|scope| {
            let driver = scope.spawn(|| {
                loop {
                    let seen: u16 = memory.load(index, Ordering::Acquire).unwrap();
                    let seen = u16::from_le(seen);
                    if seen == all || !seen.is_multiple_of(CHAINS) {
                        break seen;
                    }
                }
            });
            for _ in 0..all / CHAINS {
                let chains = [0, 1, 2].map(|head| Used { head, written: 7 });
                give_back(&mut queue, &memory, &chains).unwrap();
            }
            assert_eq!(driver.join().unwrap(), all);
        });
        let last = ring
            .used()
            .ring()
            .ref_at(((all - 1) % SIZE).into())
            .unwrap();
        let last = last.load();
        assert_eq!((u32::from_le(last.id()), u32::from_le(last.len())), (2, 7));
    }

    #[test]
    fn a_head_beyond_the_ring_is_refused() {
        let memory = memory();
        let ring = MockSplitQueue::create(&memory, GuestAddress(0), SIZE);
        let mut queue: Queue = ring.create_queue().unwrap();
        let beyond = Used {
            head: SIZE,
            written: 0,
        };
        assert!(give_back(&mut queue, &memory, &[beyond]).is_err());
    }
}
