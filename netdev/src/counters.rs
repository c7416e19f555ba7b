//! What the network has done, by name.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config::Forward;
use crate::control::MAX_FORWARDS;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters, written by the engine and read by anybody.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: Counter,)*
            forwards: Mutex<BTreeMap<ForwardName, Arc<ForwardCounters>>>,
        }

        impl Counters {
            /// Each counter's name and value.
            pub fn all(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.get()),)*]
            }
        }
    };
}

/// One counter.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// So many more.
    pub fn add_many(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What came by a forward.
#[derive(Debug, Default)]
pub struct ForwardCounters {
    /// Connections that the guest was asked to take; of UDP, clients.
    pub connections: Counter,
    /// Connections that were sent away before the guest was asked.
    pub refused: Counter,
    /// Bytes of payload for the guest.
    pub to_guest: Counter,
    /// Bytes of payload from the guest.
    pub from_guest: Counter,
}

/// The transport, where the pod listens and the guest's port.
type ForwardName = (&'static str, SocketAddr, u16);

impl Counters {
    /// The counters of a forward, those that it had before if it was there before: they go on.
    pub fn forward(&self, forward: &Forward) -> Arc<ForwardCounters> {
        let mut forwards = self.forwards();
        if forwards.len() >= 2 * MAX_FORWARDS {
            forwards.retain(|_, counters| Arc::strong_count(counters) > 1);
        }
        let key = (forward.transport.name(), forward.bind, forward.guest_port);
        forwards.entry(key).or_default().clone()
    }

    fn forwards(&self) -> MutexGuard<'_, BTreeMap<ForwardName, Arc<ForwardCounters>>> {
        self.forwards.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

counters! {
    /// Frames from the guest.
    frames,
    /// Frames that were cut short or lied about their lengths.
    dropped_malformed,
    /// Frames from an address that is not the guest's.
    dropped_spoofed,
    /// Frames of a protocol that is not carried.
    dropped_protocol,
    /// Fragments.
    dropped_fragment,
    /// Segments that belong to no flow.
    dropped_stray,
    /// Frames that the guest had no room for.
    dropped_no_room,
    /// Flows that were refused because there are too many.
    refused_limit,
    /// Flows that were refused because the guest may not go there.
    refused_access,
    /// Flows that were refused for want of descriptors or memory.
    refused_shortage,
    /// TCP connections that the guest opened.
    tcp_out,
    /// TCP connections that came in.
    tcp_in,
    /// UDP flows.
    udp_flows,
    /// Flows of ICMP echoes.
    echo_flows,
    /// Segments that were sent to the guest again.
    retransmits,
}
