//! A network's configuration, for those targets that have one of their own.

use std::net::{Ipv4Addr, Ipv6Addr};

use netdev::config::{Config, Network, Policy};
use netdev::resolver::Resolver;

/// Both families, and nothing that is forwarded.
pub fn config() -> Config {
    Config {
        v4: Some(Network::<Ipv4Addr>::MASQUERADE),
        v6: Some(Network::<Ipv6Addr>::MASQUERADE),
        mtu: 1500,
        hostname: String::new(),
        resolver: Resolver::default(),
        forwards: Vec::new(),
        eager: false,
        open_loopback: Vec::new(),
        max_flows: 16,
        memory: 1 << 20,
        policy: Policy::default(),
    }
}
