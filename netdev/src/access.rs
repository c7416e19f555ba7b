//! Where the guest may go. Judged on the address that connect() will get.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::config::Config;

/// The cloud's metadata service.
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const DNS_PORT: u16 = 53;

/// The address to connect to for what the guest calls `to`; `None` where it may not go there.
pub fn destination(config: &Config, to: SocketAddrV4) -> Option<SocketAddrV4> {
    let (address, port) = (*to.ip(), to.port());
    let ours = address == config.addresses.gateway || Some(address) == config.addresses.dns;
    if ours && port == DNS_PORT {
        let nameserver = config.resolver.nameservers.first()?;
        return Some(SocketAddrV4::new(*nameserver, DNS_PORT));
    }
    if address == config.addresses.gateway && config.open_loopback.contains(&port) {
        return Some(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port));
    }
    let closed = address.is_loopback()
        // "this network", which connect() takes for loopback
        || address.octets().first() == Some(&0)
        || address == METADATA
        || address.is_multicast()
        || address.is_broadcast()
        // nobody is there but the guest and the gateway
        || config.addresses.contains(address);
    (!closed).then_some(to)
}

/// Whether a nameserver can only be reached from the pod itself.
pub fn is_pod_only(nameserver: Ipv4Addr) -> bool {
    nameserver.is_loopback()
}

/// The address that the guest sees for a client at `client`: the gateway's where the guest's
/// kernel would not answer the client's own.
pub fn client_address(config: &Config, client: Ipv4Addr, local: Ipv4Addr) -> Ipv4Addr {
    // kubelet's probes in ambient mode
    const PROBE: Ipv4Addr = Ipv4Addr::new(169, 254, 7, 127);
    let unusable = client.is_loopback()
        || client == PROBE
        || client == local
        || config.addresses.contains(client);
    if unusable {
        config.addresses.gateway
    } else {
        client
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Addresses;
    use crate::resolver::Resolver;

    fn config(addresses: Addresses) -> Config {
        Config {
            addresses,
            mtu: 1500,
            hostname: String::new(),
            resolver: Resolver::parse("nameserver 127.0.0.53"),
            forwards: Vec::new(),
            open_loopback: vec![8080],
            max_flows: 16,
        }
    }

    #[test]
    fn loopback_metadata_and_the_gateway_are_closed_unless_opened() {
        let config = config(Addresses::MASQUERADE);
        for closed in [
            "127.0.0.1:80",
            "127.8.8.8:80",
            "0.0.0.0:80",
            "169.254.169.254:80",
            "10.0.2.1:80",
            "224.0.0.1:1",
        ] {
            assert_eq!(
                destination(&config, closed.parse().unwrap()),
                None,
                "{closed}"
            );
        }
        let open = |to: &str| {
            destination(&config, to.parse().unwrap())
                .unwrap()
                .to_string()
        };
        assert_eq!(open("10.0.2.1:8080"), "127.0.0.1:8080");
        assert_eq!(open("10.0.2.1:53"), "127.0.0.53:53");
        assert_eq!(open("169.254.20.10:53"), "169.254.20.10:53");
        assert_eq!(open("192.0.2.1:80"), "192.0.2.1:80");
    }

    #[test]
    fn the_guest_sees_the_client_s_own_address_where_it_can_answer_it() {
        let config = config(Addresses::MASQUERADE);
        let pod = Ipv4Addr::new(10, 244, 0, 7);
        for (client, seen) in [
            ("192.0.2.9", "192.0.2.9"),
            ("127.0.0.6", "10.0.2.1"),
            ("169.254.7.127", "10.0.2.1"),
            ("10.244.0.7", "10.0.2.1"),
            ("10.0.2.2", "10.0.2.1"),
        ] {
            let address = client_address(&config, client.parse().unwrap(), pod);
            assert_eq!(address.to_string(), seen, "{client}");
        }
    }
}
