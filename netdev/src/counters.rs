//! What the network has done, by name.

use std::collections::BTreeMap;
use std::io;
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
            /// Flows that there are now; not a counter.
            pub flows: Counter,
            traffic: [[Traffic; Content::ALL.len()]; Direction::ALL.len()],
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

    /// So many now, where it is no counter but a gauge.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Which way a frame goes, as the guest sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To the guest.
    In,
    /// From the guest.
    Out,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::In, Self::Out];

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Out => "out",
        }
    }
}

/// What a frame carries, by its first header behind Ethernet's or IP's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// ARP.
    Arp,
    /// ICMP or ICMPv6.
    Icmp,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// Anything else.
    Other,
}

impl Content {
    /// All.
    pub const ALL: [Self; 5] = [Self::Arp, Self::Icmp, Self::Tcp, Self::Udp, Self::Other];

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Arp => "arp",
            Self::Icmp => "icmp",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Other => "other",
        }
    }
}

/// Frames of one content one way.
#[derive(Debug, Default)]
pub struct Traffic {
    /// How many.
    pub packets: Counter,
    /// Their bytes.
    pub bytes: Counter,
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

    /// A connection of the guest did not come about.
    pub fn connect_failed(&self, kind: io::ErrorKind) {
        use io::ErrorKind::{
            AddrNotAvailable, HostUnreachable, NetworkUnreachable, PermissionDenied, TimedOut,
        };
        match kind {
            HostUnreachable | NetworkUnreachable | PermissionDenied | AddrNotAvailable => {
                self.failed_unreachable.add();
            }
            TimedOut => self.failed_timed_out.add(),
            _ => self.failed_refused.add(),
        }
    }

    /// Frames of that content that went that way.
    pub fn traffic(&self, direction: Direction, content: Content) -> &Traffic {
        // As long as the enumerations are: in range.
        #[allow(clippy::indexing_slicing)]
        &self.traffic[direction as usize][content as usize]
    }

    pub(crate) fn forwards(&self) -> MutexGuard<'_, BTreeMap<ForwardName, Arc<ForwardCounters>>> {
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
    /// Frames that the guest had no room for, or its rate.
    dropped_no_room,
    /// Datagrams and echoes that a socket of the pod's had no room for.
    dropped_socket_full,
    /// Datagrams and echoes that the pod could not send, of which the guest was told.
    dropped_unreachable,
    /// Flows that were refused because there are too many.
    refused_limit,
    /// Flows that were refused because the guest may not go there.
    refused_access,
    /// Flows that were refused by a network's lists of where the guest may go.
    refused_policy,
    /// Flows that did not begin because the guest began too many in a second.
    refused_rate,
    /// Flows that were refused for want of descriptors or memory.
    refused_shortage,
    /// Connections to a forward in a family that the guest has no address of.
    refused_family,
    /// Connections of the guest that the far end refused.
    failed_refused,
    /// Connections of the guest to where no way leads, or none that is allowed.
    failed_unreachable,
    /// Connections of the guest that nobody answered.
    failed_timed_out,
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
