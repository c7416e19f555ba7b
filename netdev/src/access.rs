//! Where the guest may go. Judged on the address that connect() will get.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use crate::config::Config;
use crate::pod::Pod;
use crate::resolver::{self, Nameserver};

/// The clouds' metadata services.
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const METADATA6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254);
/// kubelet's probes in ambient mode.
const PROBE: Ipv4Addr = Ipv4Addr::new(169, 254, 7, 127);
/// Istio's own source of what comes in through a sidecar.
const SIDECAR6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);
/// Ports of a mesh's proxy in the pod, which are not the guest's to call: Istio's, as KubeVirt
/// reserves them.
pub const MESH_PORTS: [u16; 10] = [
    15000, 15001, 15004, 15006, 15008, 15009, 15020, 15021, 15053, 15090,
];

/// The address to connect to for what the guest calls `to`; `None` where it may not go there.
pub fn destination(config: &Config, pod: &Pod, to: SocketAddr) -> Option<SocketAddr> {
    let (address, port) = (to.ip(), to.port());
    if config.is_ours(address) && port == resolver::PORT {
        return nameserver(config, pod, address);
    }
    if config.gateway(address) == Some(address) && config.open_loopback.contains(&port) {
        let loopback: IpAddr = if address.is_ipv6() {
            Ipv6Addr::LOCALHOST.into()
        } else {
            Ipv4Addr::LOCALHOST.into()
        };
        return Some(SocketAddr::new(loopback, port));
    }
    // A guest that has the pod's own address is in the pod's network.
    let shared = config.guest(address).is_some_and(|guest| pod.is_own(guest));
    let closed = is_closed(address)
        // nobody is there but the guest and the gateway
        || config.contains(address) && !shared && !pod.is_own(address)
        || MESH_PORTS.contains(&port) && pod.is_own(address);
    (!closed).then_some(to)
}

/// Whether nobody may go there from any pod. An IPv4 address in IPv6's clothes is what it is.
fn is_closed(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            v4.is_loopback()
                // "this network", which connect() takes for loopback
                || v4.octets().first() == Some(&0)
                || v4 == METADATA
                || v4.is_multicast()
                || v4.is_broadcast()
                || address.is_ipv6()
        }
        IpAddr::V6(v6) => {
            v6.is_loopback()
                || v6.is_unspecified()
                || v6 == METADATA6
                || v6.is_multicast()
                // The guest's link is not the pod's.
                || v6.is_unicast_link_local()
        }
    }
}

/// The nameserver that answers what the guest asks at an address of ours. The gateway's stands for
/// those that the guest cannot ask itself; one that is for nothing else stands for all.
fn nameserver(config: &Config, pod: &Pod, address: IpAddr) -> Option<SocketAddr> {
    let servers = || config.resolver.nameservers.iter();
    let same = |server: &&Nameserver| server.address.is_ipv6() == address.is_ipv6();
    let relayed = |server: &&Nameserver| {
        !config.is_dns(address) && (server.is_pod_only() || config.guest(server.address).is_none())
    };
    let server = servers()
        .find(|server| relayed(server) && same(server))
        .or_else(|| servers().find(relayed))
        .or_else(|| servers().find(same))
        .or_else(|| servers().next())?;
    Some(match (server.address, &server.zone) {
        (IpAddr::V6(v6), Some(zone)) => {
            SocketAddrV6::new(v6, resolver::PORT, 0, pod.link(zone)?).into()
        }
        (address, _) => SocketAddr::new(address, resolver::PORT),
    })
}

/// The address that the guest sees for a client at `client` that called `local`: the gateway's
/// where the guest's kernel would not answer the client's own; `None` where the guest has no
/// address of that family.
pub fn client_address(config: &Config, client: IpAddr, local: IpAddr) -> Option<IpAddr> {
    let gateway = config.gateway(client)?;
    // A guest that has the pod's own address, which was called, is in the pod's network.
    let shared = config.guest(client) == Some(local);
    let unusable = client.is_loopback()
        || client == IpAddr::V4(PROBE)
        || client == IpAddr::V6(SIDECAR6)
        || client == local
        || matches!(client, IpAddr::V6(v6) if v6.is_unicast_link_local())
        || config.contains(client) && !shared;
    Some(if unusable { gateway } else { client })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Network;
    use crate::resolver::Resolver;

    fn config() -> Config {
        Config {
            v4: Some(Network::<Ipv4Addr>::MASQUERADE),
            v6: Some(Network::<Ipv6Addr>::MASQUERADE),
            mtu: 1500,
            hostname: String::new(),
            resolver: Resolver::parse("nameserver 127.0.0.53"),
            forwards: Vec::new(),
            eager: false,
            open_loopback: vec![8080],
            max_flows: 16,
            memory: 128 << 20,
            policy: Default::default(),
        }
    }

    #[test]
    fn loopback_metadata_and_the_gateway_are_closed_unless_opened() {
        let config = config();
        let pod = Pod::of(&["10.244.0.7".parse().unwrap(), "127.0.0.1".parse().unwrap()]);
        for closed in [
            "127.0.0.1:80",
            "127.8.8.8:80",
            "0.0.0.0:80",
            "169.254.169.254:80",
            "10.0.2.1:80",
            "224.0.0.1:1",
            "10.244.0.7:15000",
            "[::1]:80",
            "[::]:80",
            "[::ffff:127.0.0.1]:80",
            "[::ffff:0.0.0.0]:80",
            "[::ffff:192.0.2.1]:80",
            "[fd00:ec2::254]:80",
            "[ff02::1]:80",
            "[fe80::1]:80",
            "[fd10:0:2::1]:80",
            "[fd10:0:2::9]:80",
        ] {
            let to = closed.parse().unwrap();
            assert_eq!(destination(&config, &pod, to), None, "{closed}");
        }
        for (to, there) in [
            ("10.0.2.1:8080", "127.0.0.1:8080"),
            ("[fd10:0:2::1]:8080", "[::1]:8080"),
            ("10.0.2.1:53", "127.0.0.53:53"),
            ("[fd10:0:2::1]:53", "127.0.0.53:53"),
            ("169.254.20.10:53", "169.254.20.10:53"),
            ("192.0.2.1:80", "192.0.2.1:80"),
            ("10.244.0.7:9080", "10.244.0.7:9080"),
            ("10.244.0.8:15000", "10.244.0.8:15000"),
            ("[2001:db8::1]:80", "[2001:db8::1]:80"),
        ] {
            let got = destination(&config, &pod, to.parse().unwrap());
            assert_eq!(got, Some(there.parse().unwrap()), "{to}");
        }
    }

    #[test]
    fn the_gateway_answers_for_the_nameserver_that_the_guest_cannot_ask() {
        let pod = Pod::of(&["10.244.0.7".parse().unwrap()]);
        for (file, asked, there) in [
            (
                "nameserver 203.0.113.53\nnameserver 127.0.0.53",
                "10.0.2.1",
                "127.0.0.53:53",
            ),
            (
                "nameserver 203.0.113.53\nnameserver ::1\nnameserver 127.0.0.53",
                "fd10:0:2::1",
                "[::1]:53",
            ),
            ("nameserver 203.0.113.53", "10.0.2.1", "203.0.113.53:53"),
            ("nameserver fe80::1%1", "10.0.2.1", "[fe80::1%1]:53"),
            ("nameserver fe80::1%lo", "fe80::1", "[fe80::1%1]:53"),
        ] {
            let mut config = config();
            config.resolver = Resolver::parse(file);
            let to = SocketAddr::new(asked.parse().unwrap(), 53);
            let got = destination(&config, &pod, to);
            assert_eq!(got, Some(there.parse().unwrap()), "{file}");
        }
        let mut config = config();
        config.resolver = Resolver::parse("nameserver fe80::1%none");
        let to = "10.0.2.1:53".parse().unwrap();
        assert_eq!(destination(&config, &pod, to), None);
    }

    #[test]
    fn a_guest_that_has_the_pod_s_address_reaches_the_pod_s_network_and_is_reached_from_there() {
        let mut config = config();
        config.v4 = Some(Network {
            guest: Ipv4Addr::new(10, 244, 0, 7),
            gateway: Ipv4Addr::new(10, 244, 0, 1),
            dns: None,
            prefix: 24,
        });
        let pod = Pod::of(&["10.244.0.7".parse().unwrap(), "127.0.0.1".parse().unwrap()]);
        for open in ["10.244.0.9:80", "10.244.0.1:6443", "192.0.2.1:80"] {
            let to = open.parse().unwrap();
            assert_eq!(destination(&config, &pod, to), Some(to), "{open}");
        }
        for closed in ["127.0.0.1:80", "10.244.0.7:15000"] {
            let to = closed.parse().unwrap();
            assert_eq!(destination(&config, &pod, to), None, "{closed}");
        }
        let local = "10.244.0.7".parse().unwrap();
        for (client, seen) in [
            ("10.244.0.9", "10.244.0.9"),
            ("10.244.0.1", "10.244.0.1"),
            ("10.244.0.7", "10.244.0.1"),
            ("127.0.0.6", "10.244.0.1"),
        ] {
            let address = client_address(&config, client.parse().unwrap(), local);
            assert_eq!(address, Some(seen.parse().unwrap()), "{client}");
        }
    }

    #[test]
    fn the_guest_sees_the_client_s_own_address_where_it_can_answer_it() {
        let config = config();
        for (client, local, seen) in [
            ("192.0.2.9", "10.244.0.7", "192.0.2.9"),
            ("127.0.0.6", "10.244.0.7", "10.0.2.1"),
            ("169.254.7.127", "10.244.0.7", "10.0.2.1"),
            ("10.244.0.7", "10.244.0.7", "10.0.2.1"),
            ("10.0.2.2", "10.244.0.7", "10.0.2.1"),
            ("2001:db8::9", "2001:db8::7", "2001:db8::9"),
            ("::6", "2001:db8::7", "fd10:0:2::1"),
            ("::1", "::1", "fd10:0:2::1"),
            ("fe80::9", "fe80::7", "fd10:0:2::1"),
        ] {
            let (client, local) = (client.parse().unwrap(), local.parse().unwrap());
            let address = client_address(&config, client, local);
            assert_eq!(address, Some(seen.parse().unwrap()), "{client}");
        }
    }
}
