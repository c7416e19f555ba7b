//! What the network has done, by name.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters, written by the engine and read by anybody.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: Counter,)*
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
