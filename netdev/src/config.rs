//! What a network is told: addresses, names, forwards, limits.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::wire::Mac;

/// The gateway's MAC address: locally administered, the same in every VM, for each has a network
/// of its own.
pub const GATEWAY_MAC: Mac = [0x52, 0x55, 0x0a, 0x00, 0x02, 0x01];

/// The transport of a forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port of the pod that is the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// TCP or UDP.
    pub transport: Transport,
    /// Where the pod listens.
    pub bind: SocketAddrV4,
    /// The guest's port.
    pub guest_port: u16,
}

/// The guest's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// The guest's own.
    pub guest: Ipv4Addr,
    /// The gateway's.
    pub gateway: Ipv4Addr,
    /// An address of ours that answers DNS by relaying to the pod's nameserver; where there is
    /// none, the guest is told the pod's nameservers themselves.
    pub dns: Option<Ipv4Addr>,
    /// Bits of the network.
    pub prefix: u8,
}

impl Addresses {
    /// KubeVirt's masquerade: the guest is 10.0.2.2 behind 10.0.2.1.
    pub const MASQUERADE: Self = Self {
        guest: Ipv4Addr::new(10, 0, 2, 2),
        gateway: Ipv4Addr::new(10, 0, 2, 1),
        dns: None,
        prefix: 24,
    };
    /// QEMU's slirp: the guest is 10.0.2.15, the gateway .2, DNS .3.
    pub const SLIRP: Self = Self {
        guest: Ipv4Addr::new(10, 0, 2, 15),
        gateway: Ipv4Addr::new(10, 0, 2, 2),
        dns: Some(Ipv4Addr::new(10, 0, 2, 3)),
        prefix: 24,
    };

    /// The network's mask.
    pub fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from(
            u32::MAX
                .checked_shl(32 - u32::from(self.prefix))
                .unwrap_or(0),
        )
    }

    /// Whether `address` is in the guest's network.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let mask = u32::from(self.mask());
        u32::from(address) & mask == u32::from(self.guest) & mask
    }
}

/// A network's configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The guest's addresses.
    pub addresses: Addresses,
    /// The MTU that the guest is told.
    pub mtu: u16,
    /// The guest's host name.
    pub hostname: String,
    /// The pod's nameservers and search domains.
    pub resolver: crate::resolver::Resolver,
    /// Which ports of the pod are the guest's.
    pub forwards: Vec<Forward>,
    /// Loopback ports that the guest may reach, at the gateway's address; none unless a user
    /// opens them.
    pub open_loopback: Vec<u16>,
    /// The most flows at once, TCP and UDP together.
    pub max_flows: usize,
}
