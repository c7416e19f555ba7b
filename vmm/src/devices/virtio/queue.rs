//! What every device does with a queue: take what the driver made available, give it back, and
//! tell the driver where it wants to be told (virtio 1.2, section 2.7).

pub use netdev::virtqueue::{Chain, QueueError, next};
use virtio_queue::QueueT;

use super::{ActiveQueue, GuestMemory};

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
