//! What every device does with a queue: take what the driver made available, give it back, and
//! tell the driver where it wants to be told (virtio 1.2, section 2.7).

use std::num::Wrapping;
use std::sync::atomic::Ordering;

use virtio_queue::{DescriptorChain, Queue, QueueT};

use super::{ActiveQueue, GuestMemory};

/// A chain of descriptors in the guest's memory.
pub type Chain<'a> = DescriptorChain<&'a GuestMemory>;

/// The driver broke the queue: its ring lies outside memory, or its index ran wild. The device
/// stops serving it until it is reset.
#[derive(Debug, thiserror::Error)]
#[error("the driver broke its queue: {0}")]
pub struct QueueError(#[from] virtio_queue::Error);

impl ActiveQueue {
    /// Serves every chain that is available: `serve` returns how many bytes it wrote.
    pub fn serve(
        &mut self,
        memory: &GuestMemory,
        mut serve: impl FnMut(Chain<'_>) -> u32,
    ) -> Result<(), QueueError> {
        // The kick is taken before the ring is read, so that none is missed.
        let _ = self.kick.read();
        let mut used = false;
        loop {
            self.queue.disable_notification(memory)?;
            while let Some(chain) = next(&mut self.queue, memory)? {
                let head = chain.head_index();
                let written = serve(chain);
                self.queue.add_used(memory, head, written)?;
                used = true;
            }
            if !self.queue.enable_notification(memory)? {
                break;
            }
        }
        if used {
            self.notify(memory)?;
        }
        Ok(())
    }

    /// Tells the driver of used buffers, where it wants to know.
    pub fn notify(&mut self, memory: &GuestMemory) -> Result<(), QueueError> {
        if self.queue.needs_notification(memory)? {
            // An eventfd's write fails only when its counter is full: it is raised then.
            let _ = self.interrupt.trigger();
        }
        Ok(())
    }
}

/// The next chain; an error where the driver's index is farther ahead than the ring is long.
pub fn next<'a>(
    queue: &mut Queue,
    memory: &'a GuestMemory,
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
