//! What the gateway answers itself: addresses, routes and names. Bytes in, packets out; nothing
//! here keeps state or does I/O.
//!
//! The guest's questions are read here; the answers are written with dhcproto, whose decoder is
//! not for a hostile client: it slices by a length that the client gives, and recurses as deep as
//! options are nested.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::{Config, Network};

pub mod arp;
pub mod dhcp4;
pub mod dhcp6;
pub mod ndp;

/// Seconds that an address is the guest's. It keeps it as long as it lives; this is how often it
/// asks again.
const LEASE: u32 = 86_400;
/// Bytes of search domains that fit, with all the rest, into the smallest packet that every IPv6
/// link takes (RFC 8200, section 5).
const MAX_SEARCH: usize = 1000;

/// The nameservers that a guest in `network` is told: the pod's own, so that what redirects the
/// pod's look-ups redirects the guest's. The gateway, which relays, stands for one that only the
/// pod reaches and for one whose family the guest does not have.
fn nameservers<A: Copy + PartialEq>(
    config: &Config,
    network: &Network<A>,
    of_family: fn(IpAddr) -> Option<A>,
) -> Vec<A> {
    if let Some(dns) = network.dns {
        return vec![dns];
    }
    let mut told = Vec::new();
    for server in &config.resolver.nameservers {
        let server = match of_family(server.address) {
            Some(_) if server.is_pod_only() => network.gateway,
            Some(server) => server,
            None if config.guest(server.address).is_none() => network.gateway,
            None => continue,
        };
        if !told.contains(&server) {
            told.push(server);
        }
    }
    told
}

fn v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

fn v6(address: IpAddr) -> Option<Ipv6Addr> {
    match address {
        IpAddr::V6(address) => Some(address),
        IpAddr::V4(_) => None,
    }
}

/// The search domains in DNS's form (RFC 1035, section 3.1), as many as there is room for. Not
/// compressed: neither DHCPv6 nor router advertisements may be (RFC 8415, section 10; RFC 8106,
/// section 5.2), though dhcproto does so.
fn search_list(config: &Config) -> Vec<u8> {
    let mut list = Vec::new();
    for name in config.resolver.search.iter().filter_map(|d| dns_name(d)) {
        if list.len() + name.len() <= MAX_SEARCH {
            list.extend(name);
        }
    }
    list
}

/// `None` where it is no name.
fn dns_name(domain: &str) -> Option<Vec<u8>> {
    let mut name = Vec::new();
    for label in domain.trim_end_matches('.').split('.') {
        if !label.is_ascii() || !(1..=63).contains(&label.len()) {
            return None;
        }
        name.push(label.len() as u8);
        name.extend(label.as_bytes());
    }
    name.push(0);
    (name.len() <= 255).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resolver::Resolver;

    /// KubeVirt's masquerade, both families, in a pod with `resolv_conf`.
    pub fn config(resolv_conf: &str) -> Config {
        Config {
            v4: Some(Network::<Ipv4Addr>::MASQUERADE),
            v6: Some(Network::<Ipv6Addr>::MASQUERADE),
            mtu: 1400,
            hostname: "details".to_owned(),
            resolver: Resolver::parse(resolv_conf),
            forwards: Vec::new(),
            eager: false,
            open_loopback: Vec::new(),
            max_flows: 16,
            memory: 128 << 20,
            policy: Default::default(),
        }
    }

    fn told(config: &Config) -> (Vec<String>, Vec<String>) {
        let text = |servers: Vec<IpAddr>| servers.iter().map(IpAddr::to_string).collect();
        let four = config.v4.map(|n| nameservers(config, &n, v4));
        let six = config.v6.map(|n| nameservers(config, &n, v6));
        let four = four.into_iter().flatten().map(IpAddr::V4).collect();
        let six = six.into_iter().flatten().map(IpAddr::V6).collect();
        (text(four), text(six))
    }

    #[test]
    fn the_guest_is_told_the_pod_s_nameservers_and_the_gateway_for_loopback() {
        let config =
            config("nameserver 127.0.0.53\nnameserver fe80::9%eth0\nnameserver 10.96.0.10");
        let (four, six) = told(&config);
        assert_eq!(four, ["10.0.2.1", "10.96.0.10"]);
        assert_eq!(six, ["fd10:0:2::1"]);
    }

    #[test]
    fn a_nameserver_is_told_once() {
        let config = config("nameserver 127.0.0.1\nnameserver 192.0.2.1\nnameserver 127.0.0.2");
        assert_eq!(told(&config).0, ["10.0.2.1", "192.0.2.1"]);
    }

    #[test]
    fn a_dns_address_of_ours_is_all_that_is_told() {
        let mut config = config("nameserver 10.96.0.10");
        config.v4 = Some(Network::<Ipv4Addr>::SLIRP);
        assert_eq!(told(&config), (vec!["10.0.2.3".to_owned()], vec![]));
    }

    #[test]
    fn the_gateway_relays_for_a_guest_without_the_nameservers_family() {
        let mut config = config("nameserver 10.96.0.10");
        config.v4 = None;
        assert_eq!(told(&config), (vec![], vec!["fd10:0:2::1".to_owned()]));
    }

    #[test]
    fn search_domains_are_whole_names_and_what_is_none_is_left_out() {
        let long = "x".repeat(64);
        let config = config(&format!("search a.example. . a..b {long} bc"));
        assert_eq!(search_list(&config), b"\x01a\x07example\0\x02bc\0");
    }

    #[test]
    fn search_domains_never_outgrow_a_packet() {
        let label = "y".repeat(60);
        let many = format!("{label}.{label}.{label} ").repeat(50);
        let config = config(&format!("search {many}"));
        let list = search_list(&config);
        assert_eq!(list.len(), MAX_SEARCH / 184 * 184);
    }
}
