//! The control queue (virtio 1.2, section 5.1.6.5): the driver changes while it runs what it takes.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, VIRTIO_NET_ERR,
    VIRTIO_NET_OK,
};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestMemoryMmap};

use super::Virtqueue;
use crate::virtqueue::{Chain, QueueError, next};

/// Class, command, and the features of VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET.
const COMMAND: usize = 2 + 8;

/// Answers every command that is there. Returns the offloads that the last one set, if one did.
pub fn serve(control: &mut Virtqueue, memory: &GuestMemoryMmap) -> Result<Option<u64>, QueueError> {
    let mut set = None;
    let mut used = false;
    loop {
        control.queue.disable_notification(memory)?;
        while let Some(chain) = next(&mut control.queue, memory)? {
            let head = chain.head_index();
            let offloads = read(chain.clone(), memory);
            set = offloads.or(set);
            let written = answer(chain, memory, offloads.is_some());
            control.queue.add_used(memory, head, written)?;
            used = true;
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

/// The offloads that a command sets; `None` for any other.
fn read(chain: Chain<'_>, memory: &GuestMemoryMmap) -> Option<u64> {
    let mut command = [0; COMMAND];
    let mut at = 0;
    for descriptor in chain.readable() {
        let rest = command.get_mut(at..)?;
        let n = rest.len().min(descriptor.len() as usize);
        memory
            .read_slice(rest.get_mut(..n)?, descriptor.addr())
            .ok()?;
        at += n;
    }
    let ([class, kind], features) = command.split_first_chunk()?;
    let is_set = u32::from(*class) == VIRTIO_NET_CTRL_GUEST_OFFLOADS
        && u32::from(*kind) == VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET
        && at == COMMAND;
    is_set.then_some(u64::from_le_bytes(features.try_into().ok()?))
}

/// Writes the answer's one byte, and returns how many were written.
fn answer(chain: Chain<'_>, memory: &GuestMemoryMmap, ok: bool) -> u32 {
    let byte = if ok { VIRTIO_NET_OK } else { VIRTIO_NET_ERR } as u8;
    let written = chain
        .writable()
        .find(|descriptor| descriptor.len() > 0)
        .is_some_and(|place| memory.write_obj(byte, place.addr()).is_ok());
    u32::from(written)
}
