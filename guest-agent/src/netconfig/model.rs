//! What a network-config asks for, whichever version it is written in.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

/// Every link that is to be configured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// In the order in which they were written.
    pub links: Vec<Link>,
    /// What was asked for and is not understood, for a person.
    pub warnings: Vec<String>,
}

/// A link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// What it is called in the configuration; what is not matched otherwise has this name.
    pub name: String,
    /// What kind of link it is.
    pub kind: Kind,
    /// Which card it is, where its name does not say.
    pub matching: Matching,
    /// The name that it is to have.
    pub set_name: Option<String>,
    /// Whether an address is asked for by DHCP, and what is taken of the answer.
    pub dhcp4: Option<Dhcp>,
    /// The same by DHCPv6.
    pub dhcp6: Option<Dhcp>,
    /// Whether router advertisements count; unless told, where an address comes by DHCPv6 or SLAAC.
    pub accept_ra: Option<bool>,
    /// Fixed addresses.
    pub addresses: Vec<Cidr>,
    /// Routes, the default ones too.
    pub routes: Vec<Route>,
    /// Name servers.
    pub dns: Vec<IpAddr>,
    /// Search domains.
    pub search: Vec<String>,
    /// In bytes.
    pub mtu: Option<u32>,
    /// Whether a magic packet wakes the guest.
    pub wakeonlan: bool,
    /// Whether the boot goes on without it.
    pub optional: bool,
}

impl Link {
    /// The name that the card has once it is configured, where that is known.
    pub fn device(&self) -> &str {
        self.set_name.as_deref().unwrap_or(&self.name)
    }

    /// Whether anything of this family is asked for.
    pub fn has(&self, v6: bool) -> bool {
        let dhcp = if v6 { &self.dhcp6 } else { &self.dhcp4 };
        let slaac = v6 && self.accept_ra == Some(true);
        dhcp.is_some() || slaac || self.addresses.iter().any(|a| a.ip.is_ipv6() == v6)
    }
}

/// Kinds of links.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Kind {
    /// A network card.
    #[default]
    Card,
    /// IEEE 802.1Q's, above another link.
    Vlan {
        /// 0 to 4094.
        id: u16,
        /// The other link's name.
        link: String,
    },
    /// One of several cards.
    Bond {
        /// Their names.
        members: Vec<String>,
        /// `mode` and such, by the kernel's names (linux/Documentation/networking/bonding.rst).
        options: Vec<(String, String)>,
    },
    /// A bridge.
    Bridge {
        /// The names of its ports.
        members: Vec<String>,
        /// Whether it speaks the spanning tree protocol.
        stp: Option<bool>,
    },
}

/// Which card.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Matching {
    /// By its address.
    pub mac: Option<String>,
    /// By its driver.
    pub driver: Option<String>,
    /// By its name, which may have `*`.
    pub name: Option<String>,
}

/// What is taken of a lease: netplan's `dhcp4-overrides`, by its names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dhcp(pub Vec<(String, String)>);

impl Dhcp {
    /// What is said of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        let found = self.0.iter().find(|(name, _)| name == key);
        found.map(|(_, value)| &**value)
    }
}

/// An address and how much of it is the network's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    /// The address.
    pub ip: IpAddr,
    /// In bits.
    pub prefix: u8,
}

impl Cidr {
    /// `ADDRESS/PREFIX`, `ADDRESS/MASK`, or an address whose prefix is said elsewhere or by custom.
    pub fn parse(text: &str, elsewhere: Option<&str>) -> Result<Self, String> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, elsewhere),
        };
        let ip: IpAddr = address
            .trim()
            .parse()
            .map_err(|_| format!("{text:?} is no address"))?;
        let most = if ip.is_ipv6() { 128 } else { 32 };
        let prefix = match prefix.map(str::trim) {
            None if ip.is_ipv6() => 64,
            None => 24,
            Some(prefix) => prefix
                .parse()
                .ok()
                .or_else(|| prefix_of(prefix))
                .filter(|prefix| *prefix <= most)
                .ok_or_else(|| format!("{prefix:?} is no prefix of {address}"))?,
        };
        Ok(Self { ip, prefix })
    }

    /// Everywhere.
    pub fn default_of(v6: bool) -> Self {
        let ip = match v6 {
            true => std::net::Ipv6Addr::UNSPECIFIED.into(),
            false => Ipv4Addr::UNSPECIFIED.into(),
        };
        Self { ip, prefix: 0 }
    }

    /// Whether it is everywhere.
    pub fn is_default(&self) -> bool {
        self.prefix == 0
    }

    /// Whether an address lies in its network.
    pub fn contains(&self, other: IpAddr) -> bool {
        let bits = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => u128::from(ip.to_bits()) << 96,
            IpAddr::V6(ip) => ip.to_bits(),
        };
        let shift = 128 - u32::from(self.prefix);
        let network = |ip| bits(ip).checked_shr(shift).unwrap_or_default();
        self.ip.is_ipv6() == other.is_ipv6() && network(self.ip) == network(other)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

/// A mask's prefix: its ones, which are all at its beginning.
fn prefix_of(mask: &str) -> Option<u8> {
    let (ones, zeros, bits) = match mask.parse().ok()? {
        IpAddr::V4(mask) => (
            mask.to_bits().leading_ones(),
            mask.to_bits().trailing_zeros(),
            32,
        ),
        IpAddr::V6(mask) => (
            mask.to_bits().leading_ones(),
            mask.to_bits().trailing_zeros(),
            128,
        ),
    };
    (ones + zeros == bits || ones == bits).then(|| u8::try_from(ones).ok())?
}

/// A route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Whereto.
    pub to: Cidr,
    /// By whom, if not on the link itself.
    pub via: Option<IpAddr>,
    /// The lower, the better.
    pub metric: Option<u32>,
    /// Whether who it goes by is on the link, whatever the addresses say.
    pub on_link: bool,
}

impl Route {
    /// The default route by a gateway.
    pub fn default_by(gateway: IpAddr) -> Self {
        Self {
            to: Cidr::default_of(gateway.is_ipv6()),
            via: Some(gateway),
            metric: None,
            on_link: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_the_prefix_that_is_said_in_whichever_way_or_its_customary_one() {
        for (text, elsewhere, expected) in [
            ("10.0.0.1/8", None, Some("10.0.0.1/8")),
            ("10.0.0.1", Some("255.255.0.0"), Some("10.0.0.1/16")),
            ("10.0.0.1/255.255.255.255", None, Some("10.0.0.1/32")),
            ("10.0.0.1", None, Some("10.0.0.1/24")),
            ("fd00::1", None, Some("fd00::1/64")),
            ("fd00::1/ffff:ffff::", None, Some("fd00::1/32")),
            ("fd00::1/128", Some("24"), Some("fd00::1/128")),
            ("10.0.0.1/33", None, None),
            ("10.0.0.1/255.0.255.0", None, None),
            ("10.0.0", None, None),
            ("fd00::1/129", None, None),
        ] {
            let parsed = Cidr::parse(text, elsewhere).ok().map(|c| c.to_string());
            assert_eq!(parsed.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_network_has_its_own_addresses_and_no_others() {
        let network = Cidr::parse("10.1.2.3/16", None).unwrap();
        assert!(network.contains([10, 1, 9, 9].into()));
        assert!(!network.contains([10, 2, 2, 3].into()));
        assert!(!network.contains("::a01:203".parse().unwrap()));
        assert!(Cidr::default_of(false).contains([1, 2, 3, 4].into()));
    }
}
