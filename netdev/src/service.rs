//! What the gateway answers itself: ARP, and DHCP (RFC 2131; options by dhcproto).

use std::net::Ipv4Addr;

use dhcproto::v4::{DhcpOption, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable, Encoder, Name};

use crate::access;
use crate::config::{Config, GATEWAY_MAC};
use crate::wire::{Arp, Udp};

/// DHCP's server port.
pub const DHCP_SERVER: u16 = 67;
const DHCP_CLIENT: u16 = 68;
/// Seconds: the address is the guest's as long as it lives.
const LEASE: u32 = 86_400;

/// The answer to an ARP question: the gateway speaks for every address but the guest's own.
pub fn arp(config: &Config, question: &Arp) -> Option<Arp> {
    let asked = question.target.1;
    let mine = question.operation == 1
        && config.addresses.contains(asked)
        && asked != config.addresses.guest;
    mine.then_some(Arp {
        operation: 2,
        sender: (GATEWAY_MAC, asked),
        target: question.sender,
    })
}

/// The IPv4 packet that answers a DHCP request, if it wants an answer.
pub fn dhcp(config: &Config, request: &[u8]) -> Option<Vec<u8>> {
    let request = Message::decode(&mut Decoder::new(request)).ok()?;
    if request.opcode() != Opcode::BootRequest {
        return None;
    }
    let addresses = &config.addresses;
    let wanted = match request.opts().get(OptionCode::RequestedIpAddress) {
        Some(DhcpOption::RequestedIpAddress(address)) => *address,
        _ => request.ciaddr(),
    };
    let kind = match request.opts().msg_type()? {
        MessageType::Discover => MessageType::Offer,
        MessageType::Request if wanted == addresses.guest => MessageType::Ack,
        MessageType::Request => MessageType::Nak,
        MessageType::Inform => MessageType::Ack,
        _ => return None,
    };
    let mut reply = Message::default();
    reply
        .set_opcode(Opcode::BootReply)
        .set_xid(request.xid())
        .set_flags(request.flags())
        .set_chaddr(request.chaddr());
    if kind != MessageType::Nak {
        reply
            .set_yiaddr(addresses.guest)
            .set_siaddr(addresses.gateway);
    }
    let options = reply.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::ServerIdentifier(addresses.gateway));
    if kind != MessageType::Nak {
        for option in lease(config) {
            options.insert(option);
        }
    }
    let mut payload = Vec::new();
    reply.encode(&mut Encoder::new(&mut payload)).ok()?;
    let udp = Udp {
        source: DHCP_SERVER,
        destination: DHCP_CLIENT,
        payload: &payload,
    };
    Some(udp.packet(addresses.gateway, Ipv4Addr::BROADCAST))
}

fn lease(config: &Config) -> Vec<DhcpOption> {
    let addresses = &config.addresses;
    let mut options = vec![
        DhcpOption::AddressLeaseTime(LEASE),
        DhcpOption::SubnetMask(addresses.mask()),
        DhcpOption::Router(vec![addresses.gateway]),
        DhcpOption::InterfaceMtu(config.mtu),
        DhcpOption::DomainNameServer(nameservers(config)),
    ];
    if !config.hostname.is_empty() {
        options.push(DhcpOption::Hostname(config.hostname.clone()));
    }
    let search: Vec<Name> = config
        .resolver
        .search
        .iter()
        .filter_map(|domain| domain.parse().ok())
        .collect();
    if !search.is_empty() {
        options.push(DhcpOption::DomainSearch(search));
    }
    options
}

/// The nameservers that the guest is told: the pod's own, so that what redirects the pod's
/// look-ups redirects the guest's; the gateway's address in place of one that only the pod
/// reaches.
fn nameservers(config: &Config) -> Vec<Ipv4Addr> {
    if let Some(dns) = config.addresses.dns {
        return vec![dns];
    }
    let told = |server: &Ipv4Addr| {
        if access::is_pod_only(*server) {
            config.addresses.gateway
        } else {
            *server
        }
    };
    let mut servers: Vec<_> = config.resolver.nameservers.iter().map(told).collect();
    servers.dedup();
    servers
}
