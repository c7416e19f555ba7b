//! The network device (virtio 1.2, section 5.1): netdev's engine behind two queues.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use netdev::engine::Engine;
use netdev::link::virtqueue::{self, Virtqueue, VirtqueueLink};
use netdev::wire::Mac;
use serde_json::Value;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_STATUS,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Activation, ActiveQueue, VirtioDevice};
use crate::devices::saved::{self, Unfit};
use crate::sandbox::{self, Kind};

const ID: u16 = 1;
/// Receive, transmit, control.
const QUEUE_SIZES: [u16; 3] = [256, 256, 64];
/// `struct virtio_net_config` up to its MTU (section 5.1.4).
const CONFIG: usize = 12;
/// Status: the link is up.
const LINK_UP: u8 = 1;

/// A network device, which keeps its engine, and so the listening sockets, across a guest's
/// resets.
pub struct Net {
    /// `None` while it runs.
    engine: Option<Engine>,
    worker: Option<(JoinHandle<Engine>, EventFd)>,
    /// What the driver has switched on, while it runs.
    offloads: Arc<AtomicU64>,
    config: [u8; CONFIG],
}

impl Net {
    /// A device for `engine`, whose guest has the address `mac` and is told `mtu`.
    pub fn new(engine: Engine, mac: Mac, mtu: u16) -> Self {
        let mut config = [0; CONFIG];
        let bytes = [&mac[..], &[LINK_UP, 0, 1, 0], &mtu.to_le_bytes()].concat();
        config
            .iter_mut()
            .zip(bytes)
            .for_each(|(byte, new)| *byte = new);
        Self {
            engine: Some(engine),
            worker: None,
            offloads: Arc::default(),
            config,
        }
    }
}

impl VirtioDevice for Net {
    fn id(&self) -> u16 {
        ID
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        virtqueue::FEATURES
            | 1 << VIRTIO_NET_F_CTRL_VQ
            | 1 << VIRTIO_NET_F_CTRL_GUEST_OFFLOADS
            | 1 << VIRTIO_NET_F_MAC
            | 1 << VIRTIO_NET_F_MTU
            | 1 << VIRTIO_NET_F_STATUS
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::read_from(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let mut queues = activation.queues.into_iter();
        let (Some(Some(receive)), Some(Some(transmit))) = (queues.next(), queues.next()) else {
            return Err(io::Error::other(
                "the driver enabled only one of its queues",
            ));
        };
        let Some(mut engine) = self.engine.take() else {
            return Err(io::Error::other(
                "the network was lost when its worker failed",
            ));
        };
        let control = queues.next().flatten().map(virtqueue);
        let mut link = VirtqueueLink::new(
            activation.memory,
            virtqueue(receive),
            virtqueue(transmit),
            control,
            activation.features,
        );
        if activation.restored {
            link.switch(self.offloads.load(Ordering::Relaxed));
        }
        self.offloads = link.offloads();
        engine.pass(activation.gate);
        let trouble = activation.trouble;
        link.report_to(move || trouble.needs_reset());
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let stopped = stop.try_clone()?;
        let thread = sandbox::spawn(Kind::Net, move || {
            if let Err(error) = engine.run(&mut link, stopped.as_raw_fd()) {
                tracing::error!("the network has stopped: {error}");
            }
            engine
        })?;
        self.worker = Some((thread, stop));
        Ok(())
    }

    fn reset(&mut self) {
        if let Some((thread, stop)) = self.worker.take() {
            // The counter cannot be full: this is its only write.
            let _ = stop.write(1);
            self.engine = thread.join().ok();
        }
    }

    fn save(&self) -> Value {
        self.offloads.load(Ordering::Relaxed).into()
    }

    fn restore(&mut self, saved: &Value) -> Result<(), Unfit> {
        self.offloads = Arc::new(AtomicU64::new(saved::read(saved)?));
        Ok(())
    }
}

fn virtqueue(active: ActiveQueue) -> Virtqueue {
    let interrupt = active.interrupt;
    Virtqueue::new(active.queue, active.kick, move || {
        // An eventfd's write fails only when its counter is full: it is raised then.
        let _ = interrupt.trigger();
    })
}
