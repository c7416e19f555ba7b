//! A guest whose memory is what the fuzzer makes of it, with a device's queues at its start.

use std::sync::Arc;
use std::sync::atomic::AtomicU16;

use netdev::gate::Gate;
use peapod::devices::virtio::trouble::{Complaints, Trouble};
use peapod::devices::virtio::{Activation, ActiveQueue, GuestMemory, Interrupt};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const MEMORY: usize = 64 << 10;
/// Descriptors of a queue; its table, its available and its used ring take this much of memory.
const SIZE: u16 = 16;
const RINGS: u64 = 0x200;

/// Nobody hears it.
fn silent() -> Interrupt {
    Interrupt {
        vectors: Arc::default(),
        vector: Arc::new(AtomicU16::new(u16::MAX)),
    }
}

fn queue(index: u64) -> ActiveQueue {
    let base = index * RINGS;
    let mut queue = Queue::new(SIZE).unwrap();
    queue
        .try_set_desc_table_address(GuestAddress(base))
        .unwrap();
    queue
        .try_set_avail_ring_address(GuestAddress(base + 0x100))
        .unwrap();
    queue
        .try_set_used_ring_address(GuestAddress(base + 0x140))
        .unwrap();
    queue.set_ready(true);
    let kick = EventFd::new(EFD_NONBLOCK).unwrap();
    kick.write(1).unwrap();
    ActiveQueue {
        queue,
        kick,
        interrupt: silent(),
    }
}

/// What a device gets of a driver that made `bytes` the start of memory and kicked each of its
/// queues.
pub fn activation(bytes: &[u8], queues: u64) -> Activation {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
    let bytes = bytes.get(..MEMORY).unwrap_or(bytes);
    memory.write_slice(bytes, GuestAddress(0)).unwrap();
    Activation {
        memory,
        features: 0,
        queues: (0..queues).map(|index| Some(queue(index))).collect(),
        config_interrupt: silent(),
        trouble: Trouble::new(Complaints::new("fuzzed", ""), silent()),
        gate: Gate::default(),
        restored: bytes.len() % 2 == 1,
    }
}
