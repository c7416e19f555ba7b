//! What comes of a driver that misbehaves: it is counted, for whoever watches the VM, and where
//! the device cannot go on, the driver is told that it has to be reset (virtio 1.2, section 2.1.1).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use netdev::counters::Counter;

use super::Interrupt;
use super::queue::{BadChain, QueueError};

/// How often a device's driver has misbehaved since the process started.
#[derive(Debug, Default)]
pub struct Complaints {
    /// What the device is: `block`.
    pub device: &'static str,
    /// Which of its kind: a disk's name in the manifest.
    pub name: String,
    /// Chains that made no sense and were given back unserved.
    pub malformed: Counter,
    /// Times that the device had to be reset.
    pub broken: Counter,
}

impl Complaints {
    /// Of a device of that kind and name; where there is but one of its kind it needs none.
    pub fn new(device: &'static str, name: &str) -> Arc<Self> {
        Arc::new(Self {
            device,
            name: name.to_owned(),
            ..Self::default()
        })
    }
}

/// Where a device complains, from DRIVER_OK until its next reset.
#[derive(Clone)]
pub struct Trouble {
    complaints: Arc<Complaints>,
    broken: Arc<AtomicBool>,
    interrupt: Interrupt,
}

impl Trouble {
    /// None yet. `interrupt` is the one for changes of the configuration.
    pub fn new(complaints: Arc<Complaints>, interrupt: Interrupt) -> Self {
        Self {
            complaints,
            broken: Arc::default(),
            interrupt,
        }
    }

    /// A chain was given back unserved.
    pub fn malformed(&self, error: &BadChain) {
        self.complaints.malformed.add();
        tracing::debug!("{}: {error}", self.complaints.device);
    }

    /// The device cannot go on until it is reset.
    pub fn broke(&self, error: &QueueError) {
        tracing::warn!("{}: {error}", self.complaints.device);
        self.needs_reset();
    }

    /// The same where the reason has been logged.
    pub fn needs_reset(&self) {
        if !self.broken.swap(true, Ordering::AcqRel) {
            self.complaints.broken.add();
            // An eventfd's write fails only when its counter is full: it is raised then.
            let _ = self.interrupt.trigger();
        }
    }

    /// Whether the device waits for its reset.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }
}
