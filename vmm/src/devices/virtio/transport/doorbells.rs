//! The queues' doorbells: where a driver writes that it has something (virtio 1.2, section 4.1.5.2).

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::devices::host::Host;

/// What a doorbell may cost in exits of the guest before it is an ioeventfd. To make it one KVM waits for
/// every processor (`synchronize_srcu`), which costs about as much; and many are never rung so often.
const RUNG: u32 = 32;

/// Bytes between two queues' doorbells.
pub const STEP: u64 = 4;

/// Those of a device.
pub struct Doorbells {
    host: Arc<dyn Host>,
    bells: Vec<Doorbell>,
}

struct Doorbell {
    kick: EventFd,
    /// How often the guest has left for it.
    rung: u32,
    /// Where it is an ioeventfd.
    at: Option<u64>,
}

impl Doorbells {
    /// Of so many queues.
    pub fn new(host: Arc<dyn Host>, queues: usize) -> io::Result<Self> {
        let bell = || -> io::Result<Doorbell> {
            Ok(Doorbell {
                kick: EventFd::new(EFD_NONBLOCK)?,
                rung: 0,
                at: None,
            })
        };
        let bells = (0..queues).map(|_| bell()).collect::<Result<_, _>>()?;
        Ok(Self { host, bells })
    }

    /// What each queue's signals.
    pub fn kicks(&self) -> impl Iterator<Item = &EventFd> {
        self.bells.iter().map(|bell| &bell.kick)
    }

    /// The guest has left to ring that queue's; the first one's is at `first`, while they are decoded.
    pub fn ring(&mut self, queue: usize, first: Option<u64>) {
        let Some(bell) = self.bells.get_mut(queue) else {
            return;
        };
        // Where its counter is full it is signalled already.
        let _ = bell.kick.write(1);
        bell.rung = bell.rung.saturating_add(1);
        if let (RUNG.., None, Some(address)) = (bell.rung, bell.at, at(first, queue)) {
            match self.host.add_ioevent(address, &bell.kick) {
                Ok(()) => bell.at = Some(address),
                Err(error) => {
                    tracing::debug!("a doorbell is no ioeventfd: {error}");
                    bell.rung = 0;
                }
            }
        }
    }

    /// The first one's is at `first` now, or they are not decoded.
    pub fn moved(&mut self, first: Option<u64>) {
        for (queue, bell) in self.bells.iter_mut().enumerate() {
            let Some(old) = bell.at.take_if(|old| Some(*old) != at(first, queue)) else {
                continue;
            };
            if let Err(error) = self.host.remove_ioevent(old, &bell.kick) {
                tracing::debug!("a doorbell stays where it was: {error}");
            }
        }
    }
}

fn at(first: Option<u64>, queue: usize) -> Option<u64> {
    Some(first?.wrapping_add((queue as u64).wrapping_mul(STEP)))
}
