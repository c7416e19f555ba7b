//! What a network is told: addresses, names, forwards, limits.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use crate::resolver::Resolver;
use crate::wire::Mac;

/// The gateway's MAC address: locally administered, the same in every VM, for each has a network
/// of its own.
pub const GATEWAY_MAC: Mac = [0x52, 0x55, 0x0a, 0x00, 0x02, 0x01];
/// The gateway's link-local address, from which it advertises itself (RFC 4861, section 4.2).
pub const GATEWAY_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// The transport of a forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP's echo; never forwarded.
    Icmp,
}

impl Transport {
    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A port of the pod that is the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// TCP or UDP.
    pub transport: Transport,
    /// Where the pod listens; an unspecified IPv6 address means IPv6 only.
    pub bind: SocketAddr,
    /// The guest's port.
    pub guest_port: u16,
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.bind, self.transport)
    }
}

/// One family's addresses on the guest's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network<A> {
    /// The guest's own.
    pub guest: A,
    /// The gateway's.
    pub gateway: A,
    /// An address of ours that answers DNS by relaying to the pod's nameserver; where there is
    /// none, the guest is told the pod's nameservers themselves.
    pub dns: Option<A>,
    /// Bits of the network.
    pub prefix: u8,
}

impl Network<Ipv4Addr> {
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
        let host = 32_u32.saturating_sub(self.prefix.into());
        Ipv4Addr::from(u32::MAX.checked_shl(host).unwrap_or(0))
    }

    /// Whether `address` is in the guest's network.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        (u32::from(address) ^ u32::from(self.guest)) & u32::from(self.mask()) == 0
    }
}

impl Network<Ipv6Addr> {
    /// KubeVirt's masquerade: the guest is fd10:0:2::2 behind fd10:0:2::1.
    pub const MASQUERADE: Self = Self {
        guest: Ipv6Addr::new(0xfd10, 0, 2, 0, 0, 0, 0, 2),
        gateway: Ipv6Addr::new(0xfd10, 0, 2, 0, 0, 0, 0, 1),
        dns: None,
        prefix: 120,
    };

    /// Whether `address` is in the guest's network.
    pub fn contains(&self, address: Ipv6Addr) -> bool {
        let host = 128_u32.saturating_sub(self.prefix.into());
        let mask = u128::MAX.checked_shl(host).unwrap_or(0);
        (u128::from(address) ^ u128::from(self.guest)) & mask == 0
    }
}

/// What a guest may do, beyond what is closed to every guest. By default there is nothing more.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// Where the guest may go; if there is any, nowhere else.
    pub allow: Vec<IpNet>,
    /// Where it may not go, whatever is allowed.
    pub deny: Vec<IpNet>,
    /// The most flows that the guest may begin in a second.
    pub new_flows: Option<u32>,
    /// The most bytes a second to the guest, headers included.
    pub rate_in: Option<u64>,
    /// The most bytes a second from the guest, headers included.
    pub rate_out: Option<u64>,
}

impl Policy {
    /// Whether the guest may go to `address`, by the lists. Loopback and IPv6's link-local addresses are
    /// not in question: they are closed but for what a user opens and the pod's own nameserver.
    pub fn allows(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let within = |networks: &[IpNet]| networks.iter().any(|n| n.contains(&address));
        let open = self.allow.is_empty() || within(&self.allow);
        let own = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        own || address.is_loopback() || (open && !within(&self.deny))
    }
}

/// A network's configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// IPv4, where the guest has it.
    pub v4: Option<Network<Ipv4Addr>>,
    /// IPv6, where the guest has it.
    pub v6: Option<Network<Ipv6Addr>>,
    /// The MTU that the guest is told.
    pub mtu: u16,
    /// The guest's host name.
    pub hostname: String,
    /// The pod's nameservers and search domains.
    pub resolver: Resolver,
    /// Which ports of the pod are the guest's.
    pub forwards: Vec<Forward>,
    /// Whether forwarded TCP ports listen at all times, and not only while the guest's do.
    pub eager: bool,
    /// Loopback ports that the guest may reach, at the gateway's address; none unless a user
    /// opens them.
    pub open_loopback: Vec<u16>,
    /// The most flows at once, of all kinds together.
    pub max_flows: usize,
    /// What connections' data may take, in bytes, half of it each way: not a bound for what was promised
    /// before there were as many, nor for a few KiB of each.
    pub memory: usize,
    /// Where the guest may go, and how fast.
    pub policy: Policy,
}

impl Config {
    /// The guest's address of `other`'s family.
    pub fn guest(&self, other: IpAddr) -> Option<IpAddr> {
        self.pair(other).map(|(guest, _)| guest)
    }

    /// The gateway's address of `other`'s family.
    pub fn gateway(&self, other: IpAddr) -> Option<IpAddr> {
        self.pair(other).map(|(_, gateway)| gateway)
    }

    fn pair(&self, other: IpAddr) -> Option<(IpAddr, IpAddr)> {
        match other {
            IpAddr::V4(_) => self.v4.map(|v4| (v4.guest.into(), v4.gateway.into())),
            IpAddr::V6(_) => self.v6.map(|v6| (v6.guest.into(), v6.gateway.into())),
        }
    }

    /// Whether `address` is in the guest's network.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.v4.is_some_and(|v4| v4.contains(address)),
            IpAddr::V6(address) => self.v6.is_some_and(|v6| v6.contains(address)),
        }
    }

    /// Whether `address` is one of ours that is there to answer DNS alone.
    pub fn is_dns(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.v4.is_some_and(|v4| v4.dns == Some(address)),
            IpAddr::V6(address) => self.v6.is_some_and(|v6| v6.dns == Some(address)),
        }
    }

    /// Whether `address` is the gateway's, or that of its DNS.
    pub fn is_ours(&self, address: IpAddr) -> bool {
        self.is_dns(address)
            || match address {
                IpAddr::V4(v4) => self.v4.is_some_and(|network| v4 == network.gateway),
                IpAddr::V6(v6) => {
                    v6 == GATEWAY_LINK_LOCAL || self.v6.is_some_and(|network| v6 == network.gateway)
                }
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_denied_wins_over_what_is_allowed_and_the_rest_follows_from_what_there_is() {
        let networks = |list: &[&str]| list.iter().map(|n| n.parse().unwrap()).collect();
        for (allow, deny, address, allowed) in [
            (&[][..], &[][..], "192.0.2.1", true),
            (&[], &["192.0.2.0/24"], "192.0.2.1", false),
            (&[], &["192.0.2.0/24"], "2001:db8::1", true),
            (&["192.0.2.0/24"], &[], "192.0.2.1", true),
            (&["192.0.2.0/24"], &[], "198.51.100.1", false),
            (&["192.0.2.0/24"], &[], "2001:db8::1", false),
            (&["192.0.2.0/24"], &["192.0.2.1/32"], "192.0.2.1", false),
            (&["192.0.2.1/32"], &["192.0.0.0/16"], "192.0.2.1", false),
            (
                &["2001:db8::/32"],
                &["2001:db8:1::/48"],
                "2001:db8::1",
                true,
            ),
            (
                &["2001:db8::/32"],
                &["2001:db8:1::/48"],
                "2001:db8:1::1",
                false,
            ),
            (&[], &["192.0.2.0/24"], "::ffff:192.0.2.1", false),
            (&["192.0.2.0/24"], &["0.0.0.0/0"], "127.0.0.53", true),
        ] {
            let policy = Policy {
                allow: networks(allow),
                deny: networks(deny),
                ..Policy::default()
            };
            let got = policy.allows(address.parse().unwrap());
            assert_eq!(got, allowed, "{address}: {allow:?}, but {deny:?}");
        }
    }

    #[test]
    fn a_network_contains_what_its_prefix_says() {
        let v4 = Network::<Ipv4Addr>::MASQUERADE;
        assert!(v4.contains(Ipv4Addr::new(10, 0, 2, 255)));
        assert!(!v4.contains(Ipv4Addr::new(10, 0, 3, 2)));
        let all = Network { prefix: 0, ..v4 };
        assert!(all.contains(Ipv4Addr::new(192, 0, 2, 1)));
        let v6 = Network::<Ipv6Addr>::MASQUERADE;
        assert!(v6.contains("fd10:0:2::ff".parse().unwrap()));
        assert!(!v6.contains("fd10:0:2::100".parse().unwrap()));
    }
}
