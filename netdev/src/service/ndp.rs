//! Neighbour discovery (RFC 4861): the gateway's addresses, and its advertisement as a router.

use std::net::{IpAddr, Ipv6Addr};

use super::{LEASE, nameservers, search_list, v6};
use crate::config::{Config, GATEWAY_LINK_LOCAL, GATEWAY_MAC, Network};
use crate::wire::{Icmp, Packet, Protocol};

// Types and codes.
const ROUTER_SOLICITATION: (u8, u8) = (133, 0);
const ROUTER_ADVERTISEMENT: (u8, u8) = (134, 0);
const NEIGHBOUR_SOLICITATION: (u8, u8) = (135, 0);
const NEIGHBOUR_ADVERTISEMENT: (u8, u8) = (136, 0);

// Options.
const SOURCE_LINK_LAYER: u8 = 1;
const TARGET_LINK_LAYER: u8 = 2;
const PREFIX: u8 = 3;
const MTU: u8 = 5;
// RFC 8106
const DNS_SERVERS: u8 = 25;
const DNS_SEARCH_LIST: u8 = 31;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// Hops of every message, so that none can have come through a router.
const HOPS: u8 = 255;
/// Seconds that the guest keeps the gateway as its router after it last heard of it.
pub const ROUTER_LIFETIME: u16 = 1800;

/// The IPv6 packet that answers a solicitation, if `packet` is one that wants an answer. Without
/// `routed` the gateway is told to be no router: the pod itself has no way out.
pub fn answer(config: &Config, packet: &Packet<'_>, routed: bool) -> Option<Vec<u8>> {
    let network = config.v6.as_ref()?;
    let source = v6(packet.source)?;
    // A fragment is none (RFC 6980, section 5).
    if packet.protocol != Protocol::Icmp || packet.hops != HOPS || packet.fragment.is_some() {
        return None;
    }
    let message = Icmp::parse(packet.payload)?;
    let body = match message.kind {
        NEIGHBOUR_SOLICITATION => 16,
        ROUTER_SOLICITATION => 0,
        _ => return None,
    };
    let (target, options) = message.payload.split_at_checked(body)?;
    // Who has no address yet, has none to be told of either (sections 4.1 and 4.3).
    if has_option(options, SOURCE_LINK_LAYER)? && source.is_unspecified() {
        return None;
    }
    match target.first_chunk() {
        Some(target) => neighbour(config, network, Ipv6Addr::from(*target), source),
        None if source.is_unspecified() => unsolicited(config, routed),
        None => Some(router(config, network, source, routed)),
    }
}

/// A router's advertisement to whoever is on the link; `None` where the guest has no IPv6. It is
/// due well before [`ROUTER_LIFETIME`] is over, and whenever what it says changes.
pub fn unsolicited(config: &Config, routed: bool) -> Option<Vec<u8>> {
    let network = config.v6.as_ref()?;
    Some(router(config, network, ALL_NODES, routed))
}

/// Whether there is an option of type `wanted`; `None` where one has no length or is cut short,
/// for which the whole packet is dropped (section 4.6).
fn has_option(mut options: &[u8], wanted: u8) -> Option<bool> {
    let mut found = false;
    while let [kind, len, ..] = *options {
        if len == 0 {
            return None;
        }
        found |= kind == wanted;
        options = options.get(usize::from(len) * 8..)?;
    }
    options.is_empty().then_some(found)
}

/// The gateway's answer for itself and for every other address of the network but the guest's.
fn neighbour(
    config: &Config,
    network: &Network<Ipv6Addr>,
    target: Ipv6Addr,
    source: Ipv6Addr,
) -> Option<Vec<u8>> {
    const ROUTER: u8 = 0x80;
    const SOLICITED: u8 = 0x40;
    const OVERRIDE: u8 = 0x20;
    let ours = config.is_ours(target.into());
    // Without a source it is a host that wants to know whether an address is still free
    // (RFC 4862, section 5.4): all are but ours.
    let is_probe = source.is_unspecified();
    let known = !is_probe && network.contains(target) && target != network.guest;
    if !ours && !known {
        return None;
    }
    let mut flags = if ours { ROUTER | OVERRIDE } else { 0 };
    if !is_probe {
        flags |= SOLICITED;
    }
    let mut payload = target.octets().to_vec();
    push_option(&mut payload, TARGET_LINK_LAYER, &GATEWAY_MAC);
    let to = if is_probe { ALL_NODES } else { source };
    let rest = [flags, 0, 0, 0];
    Some(packet(NEIGHBOUR_ADVERTISEMENT, rest, &payload, target, to))
}

fn router(config: &Config, network: &Network<Ipv6Addr>, to: Ipv6Addr, routed: bool) -> Vec<u8> {
    const HOP_LIMIT: u8 = 64;
    // Addresses and the rest are DHCPv6's.
    const MANAGED: u8 = 0x80;
    const OTHER: u8 = 0x40;
    let [high, low] = if routed { ROUTER_LIFETIME } else { 0 }.to_be_bytes();
    // Reachable and retransmission times: as the guest thinks best.
    let mut payload = vec![0; 8];
    push_option(&mut payload, SOURCE_LINK_LAYER, &GATEWAY_MAC);
    let mtu = u32::from(config.mtu).to_be_bytes();
    push_option(&mut payload, MTU, &[&[0, 0], &mtu[..]].concat());
    push_option(&mut payload, PREFIX, &prefix(network));
    // Names live as long as an address, for the gateway may relay without a way out.
    let lifetime = [&[0, 0], &LEASE.to_be_bytes()[..]].concat();
    let servers = nameservers(config, network, v6);
    if !servers.is_empty() {
        let servers: Vec<u8> = servers.iter().flat_map(Ipv6Addr::octets).collect();
        let servers = [&lifetime[..], &servers].concat();
        push_option(&mut payload, DNS_SERVERS, &servers);
    }
    let search = search_list(config);
    if !search.is_empty() {
        let search = [lifetime, search].concat();
        push_option(&mut payload, DNS_SEARCH_LIST, &search);
    }
    let rest = [HOP_LIMIT, MANAGED | OTHER, high, low];
    packet(ROUTER_ADVERTISEMENT, rest, &payload, GATEWAY_LINK_LOCAL, to)
}

/// What the guest reaches without a router. Not for autoconfiguration, whatever its length: an
/// address of the guest's own making is one that no forward leads to.
fn prefix(network: &Network<Ipv6Addr>) -> [u8; 30] {
    const ON_LINK: u8 = 0x80;
    let host = 128_u32.saturating_sub(network.prefix.into());
    let mask = u128::MAX.checked_shl(host).unwrap_or(0);
    let mut option = [0; 30];
    let (head, address) = option.split_at_mut(14);
    let [a, b, c, d] = LEASE.to_be_bytes();
    // valid and preferred lifetimes, and four bytes that are reserved
    let fields = [network.prefix, ON_LINK, a, b, c, d, a, b, c, d, 0, 0, 0, 0];
    head.copy_from_slice(&fields);
    address.copy_from_slice(&(u128::from(network.guest) & mask).to_be_bytes());
    option
}

/// Adds an option, filled up with zeros to a multiple of eight bytes.
fn push_option(payload: &mut Vec<u8>, kind: u8, value: &[u8]) {
    let len = (value.len() + 2).next_multiple_of(8);
    let end = payload.len() + len;
    // The longest, the search list, is far from this type's limit of 2,040 bytes.
    payload.extend([kind, (len / 8) as u8]);
    payload.extend(value);
    payload.resize(end, 0);
}

fn packet(kind: (u8, u8), rest: [u8; 4], payload: &[u8], from: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
    let message = Icmp {
        kind,
        rest,
        payload,
    };
    let mut packet = message.packet(IpAddr::V6(from), IpAddr::V6(to));
    if let Some(hops) = packet.get_mut(7) {
        *hops = HOPS;
    }
    packet
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::config;
    use super::*;
    use crate::wire::Sum;

    const GUEST: &str = "fd10:0:2::2";

    fn solicitation(kind: (u8, u8), from: &str, body: &[u8]) -> Vec<u8> {
        packet(
            kind,
            [0; 4],
            body,
            from.parse().unwrap(),
            "ff02::2".parse().unwrap(),
        )
    }

    fn asks(from: &str, target: &str, options: &[u8]) -> Vec<u8> {
        let target: Ipv6Addr = target.parse().unwrap();
        let body = [&target.octets()[..], options].concat();
        solicitation(NEIGHBOUR_SOLICITATION, from, &body)
    }

    /// Whom the answer goes to, its kind, the four bytes behind its checksum, and its payload.
    fn read(bytes: &[u8]) -> (String, (u8, u8), [u8; 4], Vec<u8>) {
        let packet = Packet::parse(bytes).unwrap();
        assert_eq!(packet.hops, 255);
        let len = packet.payload.len();
        let sum = Sum::pseudo(packet.source, packet.destination, Protocol::Icmp, len);
        assert_eq!(sum.with(packet.payload).finish(), 0);
        let message = Icmp::parse(packet.payload).unwrap();
        let to = packet.destination.to_string();
        (to, message.kind, message.rest, message.payload.to_vec())
    }

    fn ask(config: &Config, question: &[u8]) -> Option<Vec<u8>> {
        answer(config, &Packet::parse(question).unwrap(), true)
    }

    #[test]
    fn the_gateway_answers_for_all_of_the_network_but_the_guest() {
        let config = config("");
        for (target, flags) in [
            ("fe80::1", 0xe0),
            ("fd10:0:2::1", 0xe0),
            ("fd10:0:2::77", 0x40),
        ] {
            let bytes = ask(&config, &asks(GUEST, target, &[])).unwrap();
            let (to, kind, rest, payload) = read(&bytes);
            assert_eq!((&*to, kind), (GUEST, NEIGHBOUR_ADVERTISEMENT));
            assert_eq!(rest, [flags, 0, 0, 0], "{target}");
            let target: Ipv6Addr = target.parse().unwrap();
            assert_eq!(payload[..16], target.octets());
            assert_eq!(payload[16..18], [TARGET_LINK_LAYER, 1]);
            assert_eq!(payload[18..], GATEWAY_MAC);
        }
        for target in [GUEST, "fd10:0:3::1", "fe80::2"] {
            assert_eq!(ask(&config, &asks("fe80::2", target, &[])), None);
        }
    }

    #[test]
    fn only_the_gateway_s_addresses_are_taken_when_a_host_asks_for_a_free_one() {
        let config = config("");
        for target in ["fe80::1", "fd10:0:2::1"] {
            let bytes = ask(&config, &asks("::", target, &[])).unwrap();
            let (to, _, rest, _) = read(&bytes);
            assert_eq!((&*to, rest[0]), ("ff02::1", 0xa0));
        }
        for target in [GUEST, "fd10:0:2::77", "fe80::5055"] {
            assert_eq!(ask(&config, &asks("::", target, &[])), None);
        }
    }

    #[test]
    fn what_came_through_a_router_or_is_malformed_is_not_answered() {
        let config = config("");
        let good = asks(GUEST, "fe80::1", &[1, 1, 2, 0, 0, 0, 0, 1]);
        assert!(ask(&config, &good).is_some());
        let mut far = good.clone();
        far[7] = 254;
        let mut coded = good.clone();
        coded[41] = 1;
        let empty = asks(GUEST, "fe80::1", &[1, 0, 2, 0, 0, 0, 0, 1]);
        let short = asks(GUEST, "fe80::1", &[1, 2, 2, 0, 0, 0, 0, 1]);
        let half = asks(GUEST, "fe80::1", &[1]);
        let nobody = asks("::", "fe80::1", &[1, 1, 2, 0, 0, 0, 0, 1]);
        let targetless = solicitation(NEIGHBOUR_SOLICITATION, GUEST, &[0; 15]);
        for bad in [far, coded, empty, short, half, nobody, targetless] {
            assert_eq!(ask(&config, &bad), None);
        }
    }

    #[test]
    fn a_guest_without_ipv6_hears_nothing() {
        let mut config = config("");
        config.v6 = None;
        assert_eq!(ask(&config, &asks("::", "fe80::1", &[])), None);
        assert_eq!(unsolicited(&config, true), None);
    }

    #[test]
    fn a_router_solicitation_is_told_what_the_link_is_like() {
        let config = config("nameserver ::1\nnameserver 2001:db8::53\nsearch b.example");
        let question = solicitation(ROUTER_SOLICITATION, "fe80::2", &[]);
        let bytes = ask(&config, &question).unwrap();
        assert_eq!(Packet::parse(&bytes).unwrap().source, GATEWAY_LINK_LOCAL);
        let (to, kind, rest, payload) = read(&bytes);
        assert_eq!((&*to, kind), ("fe80::2", ROUTER_ADVERTISEMENT));
        assert_eq!(rest, [64, 0xc0, 7, 8]);
        let hex: String = payload.iter().map(|byte| format!("{byte:02x}")).collect();
        let wanted = [
            "0000000000000000",
            "010152550a000201",
            "0501000000000578",
            "03047880000151800001518000000000",
            "fd100000000200000000000000000000",
            "1905000000015180",
            "fd100000000200000000000000000001",
            "20010db8000000000000000000000053",
            "1f03000000015180",
            "016207657861",
            "6d706c650000",
            "00000000",
        ];
        assert_eq!(hex, wanted.concat());
    }

    #[test]
    fn a_host_without_an_address_and_the_whole_link_hear_it_at_ff02_1() {
        let config = config("");
        let question = solicitation(ROUTER_SOLICITATION, "::", &[]);
        let solicited = ask(&config, &question);
        assert_eq!(solicited, unsolicited(&config, true));
        assert_eq!(read(&solicited.unwrap()).0, "ff02::1");
    }

    #[test]
    fn without_a_way_out_the_gateway_is_no_router() {
        let bytes = unsolicited(&config(""), false).unwrap();
        assert_eq!(read(&bytes).2, [64, 0xc0, 0, 0]);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            kind in 133..137u8, body in prop::collection::vec(any::<u8>(), 0..64),
            at in 0..80usize, byte in any::<u8>(),
        ) {
            let mut question = solicitation((kind, 0), "fe80::2", &body);
            if let Some(place) = question.get_mut(at) {
                *place = byte;
            }
            if let Some(packet) = Packet::parse(&question) {
                let _ = answer(&config(""), &packet, true);
            }
        }
    }
}
