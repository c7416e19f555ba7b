//! What every device does with a queue: take what the driver made available, give it back, and
//! tell the driver where it wants to be told (virtio 1.2, section 2.7).

pub use netdev::virtqueue::{BadChain, Chain, QueueError, descriptors, next};
use virtio_queue::QueueT;

use super::trouble::Trouble;
use super::{ActiveQueue, GuestMemory};

/// Does a `turn` of a device's queues, unless they are broken, and tells where that breaks them.
pub fn unless_broken(trouble: &Trouble, turn: impl FnOnce() -> Result<(), QueueError>) {
    if trouble.is_broken() {
        return;
    }
    if let Err(error) = turn() {
        trouble.broke(&error);
    }
}

impl ActiveQueue {
    /// Serves the chains that are available: `serve` returns how many bytes it wrote. A chain that
    /// makes no sense to it goes back empty; a broken queue is served no more.
    pub fn serve(
        &mut self,
        memory: &GuestMemory,
        trouble: &Trouble,
        serve: impl FnMut(Chain<'_>) -> Result<u32, BadChain>,
    ) {
        self.serve_while(memory, trouble, || true, serve);
    }

    /// The same as long as `more` says, which is asked before each chain. Where it says no, the rest
    /// waits for the next call.
    pub fn serve_while(
        &mut self,
        memory: &GuestMemory,
        trouble: &Trouble,
        mut more: impl FnMut() -> bool,
        mut serve: impl FnMut(Chain<'_>) -> Result<u32, BadChain>,
    ) {
        let mut each = |chain: Chain<'_>| {
            serve(chain).unwrap_or_else(|error| {
                trouble.malformed(&error);
                0
            })
        };
        // The kick is taken before the ring is read, so that none is missed.
        let _ = self.kick.read();
        unless_broken(trouble, || self.turn(memory, &mut more, &mut each));
    }

    /// Serves as many chains as the ring has, and comes back for more: a driver that makes them
    /// available without end is not to keep the thread from hearing that it shall stop.
    fn turn(
        &mut self,
        memory: &GuestMemory,
        more: &mut dyn FnMut() -> bool,
        serve: &mut dyn FnMut(Chain<'_>) -> u32,
    ) -> Result<(), QueueError> {
        let mut left = self.queue.size();
        let (mut used, mut going) = (false, true);
        loop {
            self.queue.disable_notification(memory)?;
            while left > 0 {
                going = more();
                if !going {
                    break;
                }
                let Some(chain) = next(&mut self.queue, memory)? else {
                    break;
                };
                let head = chain.head_index();
                let written = serve(chain);
                self.queue.add_used(memory, head, written)?;
                used = true;
                left -= 1;
            }
            if left == 0 {
                self.come_back();
                break;
            }
            if !going || !self.queue.enable_notification(memory)? {
                break;
            }
        }
        if used {
            self.notify(memory)?;
        }
        Ok(())
    }

    /// Kicks the queue in the driver's place.
    pub fn come_back(&self) {
        // An eventfd's write fails only when its counter is full: it is signalled then.
        let _ = self.kick.write(1);
    }

    /// Tells the driver of used buffers, where it wants to know.
    pub fn notify(&mut self, memory: &GuestMemory) -> Result<(), QueueError> {
        if self.queue.needs_notification(memory)? {
            // As above.
            let _ = self.interrupt.trigger();
        }
        Ok(())
    }
}
