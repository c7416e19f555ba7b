//! The control queue (virtio 1.2, section 5.1.6.5): the driver changes while it runs what it takes.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, VIRTIO_NET_ERR,
    VIRTIO_NET_OK,
};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::Virtqueue;
use crate::virtqueue::{BadChain, Chain, QueueError, Used, descriptors, next};

/// Class, command, and the features of VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET.
const COMMAND: usize = 2 + 8;

/// Answers every command that is there. Returns the offloads that the last one set, if one did.
pub fn serve(control: &mut Virtqueue, memory: &GuestMemoryMmap) -> Result<Option<u64>, QueueError> {
    let mut set = None;
    // As many as the ring has: who seems to have more adds while this looks.
    let mut left = control.queue.size();
    let mut used = false;
    loop {
        control.queue.disable_notification(memory)?;
        while left > 0
            && let Some(chain) = next(&mut control.queue, memory)?
        {
            let command = Command::read(&chain, memory)?;
            set = command.offloads().or(set);
            let ok = command.offloads().is_some();
            let byte = if ok { VIRTIO_NET_OK } else { VIRTIO_NET_ERR } as u8;
            memory
                .write_obj(byte, command.answer)
                .map_err(|_| BadChain)?;
            let head = chain.head_index();
            control.give_back(memory, &[Used { head, written: 1 }])?;
            used = true;
            left -= 1;
        }
        if left == 0 {
            // An eventfd's write fails only when its counter is full: it is signalled then.
            let _ = control.kick.write(1);
            break;
        }
        if !control.queue.enable_notification(memory)? {
            break;
        }
    }
    if used {
        control.notify(memory)?;
    }
    Ok(set)
}

/// What the driver wants, and where it is told whether it was done.
struct Command {
    bytes: [u8; COMMAND],
    len: usize,
    answer: GuestAddress,
}

impl Command {
    fn read(chain: &Chain<'_>, memory: &GuestMemoryMmap) -> Result<Self, BadChain> {
        let (mut bytes, mut len, mut answer) = ([0; COMMAND], 0, None);
        for descriptor in descriptors(chain) {
            let descriptor = descriptor?;
            if descriptor.is_write_only() {
                let place = (descriptor.len() > 0).then(|| descriptor.addr());
                answer = answer.or(place);
                continue;
            }
            let rest = bytes.get_mut(len..).unwrap_or_default();
            let n = rest.len().min(descriptor.len() as usize);
            let (now, _) = rest.split_at_mut_checked(n).ok_or(BadChain)?;
            memory
                .read_slice(now, descriptor.addr())
                .map_err(|_| BadChain)?;
            len += n;
        }
        let answer = answer.ok_or(BadChain)?;
        Ok(Self { bytes, len, answer })
    }

    /// The offloads that it sets; `None` for any other command.
    fn offloads(&self) -> Option<u64> {
        let ([class, kind], features) = self.bytes.split_first_chunk()?;
        let is_set = u32::from(*class) == VIRTIO_NET_CTRL_GUEST_OFFLOADS
            && u32::from(*kind) == VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET
            && self.len == COMMAND;
        is_set.then_some(u64::from_le_bytes(features.try_into().ok()?))
    }
}
