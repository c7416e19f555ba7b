//! Taking chains from a driver's ring (virtio 1.2, section 2.7), for every device of ours.

use std::num::Wrapping;
use std::sync::atomic::Ordering;

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, Queue, QueueT};
use vm_memory::GuestMemoryMmap;

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
