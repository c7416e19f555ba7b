//! Taking chains from a driver's ring (virtio 1.2, section 2.7), for every device of ours.

use std::num::Wrapping;
use std::sync::atomic::Ordering;

use virtio_queue::{DescriptorChain, Queue, QueueT};
use vm_memory::GuestMemoryMmap;

/// A chain of descriptors in the guest's memory.
pub type Chain<'a> = DescriptorChain<&'a GuestMemoryMmap>;

/// The driver broke the queue: its ring lies outside memory, or its index ran wild. The device
/// stops serving it until it is reset.
#[derive(Debug, thiserror::Error)]
#[error("the driver broke its queue: {0}")]
pub struct QueueError(#[from] virtio_queue::Error);

/// The next chain; an error where the driver's index is farther ahead than the ring is long.
pub fn next<'a>(
    queue: &mut Queue,
    memory: &'a GuestMemoryMmap,
) -> Result<Option<Chain<'a>>, QueueError> {
    let available = queue.avail_idx(memory, Ordering::Acquire)? - Wrapping(queue.next_avail());
    if available.0 > queue.size() {
        return Err(QueueError(virtio_queue::Error::InvalidAvailRingIndex));
    }
    if available.0 == 0 {
        return Ok(None);
    }
    // A head that is no descriptor would be found there for ever.
    let chain = queue.pop_descriptor_chain(memory);
    Ok(Some(
        chain.ok_or(virtio_queue::Error::InvalidDescriptorIndex)?,
    ))
}
