//! DHCP (RFC 2131; options of RFC 2132): the guest is given its one address.

use std::net::Ipv4Addr;

use dhcproto::v4::{
    DhcpOption, DhcpOptions, Flags, Message, MessageType, Opcode, OptionCode, UnknownOption,
};
use dhcproto::{Encodable, Encoder};

use super::{LEASE, dns_name, nameservers, search_list, v4};
use crate::config::{Config, Network};
use crate::resolver::NDOTS_OPTION;
use crate::wire::{Udp, be16, be32};

/// The port that the server listens on.
pub const SERVER: u16 = 67;
const CLIENT: u16 = 68;
/// BOOTP's messages have this length at least (RFC 1542, section 2.1), and some clients insist.
const SHORTEST: usize = 300;

/// The IPv4 packet that answers a message to [`SERVER`], if it wants an answer.
pub fn answer(config: &Config, message: &[u8]) -> Option<Vec<u8>> {
    let network = config.v4.as_ref()?;
    let request = Request::parse(message)?;
    if request
        .server
        .is_some_and(|server| server != network.gateway)
    {
        return None;
    }
    let rapid = request.kind == MessageType::Discover && request.rapid_commit;
    let kind = match request.kind {
        // RFC 4039
        MessageType::Discover if rapid => MessageType::Ack,
        MessageType::Discover => MessageType::Offer,
        MessageType::Request if request.wanted != network.guest => MessageType::Nak,
        MessageType::Request | MessageType::Inform => MessageType::Ack,
        // Release and Decline want none (RFC 2131, sections 4.3.3 and 4.3.4).
        _ => return None,
    };
    let mut reply = Message::default();
    reply
        .set_opcode(Opcode::BootReply)
        .set_xid(request.xid)
        .set_flags(Flags::new(request.flags))
        .set_chaddr(request.mac);
    let options = reply.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::ServerIdentifier(network.gateway));
    if let Some(id) = request.client {
        // RFC 6842
        options.insert(DhcpOption::ClientIdentifier(id.to_vec()));
    }
    if rapid {
        options.insert(DhcpOption::RapidCommit);
    }
    let mut to = Ipv4Addr::BROADCAST;
    if kind != MessageType::Nak {
        configure(options, config, network);
        if request.kind != MessageType::Inform {
            options.insert(DhcpOption::AddressLeaseTime(LEASE));
            reply.set_yiaddr(network.guest);
        }
        // A client that has its address may listen on nothing else (RFC 2131, section 4.1).
        if !request.ciaddr.is_unspecified() {
            reply.set_ciaddr(request.ciaddr);
            to = request.ciaddr;
        }
    }
    let mut payload = Vec::new();
    reply.encode(&mut Encoder::new(&mut payload)).ok()?;
    payload.resize(payload.len().max(SHORTEST), 0);
    let udp = Udp {
        source: SERVER,
        destination: CLIENT,
        payload: &payload,
    };
    Some(udp.packet(network.gateway.into(), to.into()))
}

/// What the guest is told beside its address, whether it asks for it or not.
fn configure(options: &mut DhcpOptions, config: &Config, network: &Network<Ipv4Addr>) {
    options.insert(DhcpOption::SubnetMask(network.mask()));
    options.insert(DhcpOption::Router(vec![network.gateway]));
    options.insert(DhcpOption::InterfaceMtu(config.mtu));
    options.insert(DhcpOption::DomainNameServer(nameservers(
        config, network, v4,
    )));
    if !config.hostname.is_empty() {
        options.insert(DhcpOption::Hostname(config.hostname.clone()));
    }
    let mut search = config.resolver.search.iter();
    if let Some(domain) = search.find(|domain| dns_name(domain).is_some()) {
        // for clients that do not know of search lists (RFC 3397)
        options.insert(DhcpOption::DomainName(domain.clone()));
        let search = UnknownOption::new(OptionCode::DomainSearch, search_list(config));
        options.insert(DhcpOption::Unknown(search));
    }
    if let Some(ndots) = config.resolver.ndots {
        // No option says that; Peapod's agent asks for this one.
        let ndots = UnknownOption::new(OptionCode::from(NDOTS_OPTION), vec![ndots]);
        options.insert(DhcpOption::Unknown(ndots));
    }
    if !network.contains(network.gateway) {
        // A gateway that is not in the guest's network wants a route to itself, and who reads
        // this option reads no other for the default route (RFC 3442).
        let gateway = network.gateway.octets();
        let on_link = [&[32], &gateway[..], &[0; 4]].concat();
        let default = [&[0], &gateway[..]].concat();
        let routes = [on_link, default].concat();
        let routes = UnknownOption::new(OptionCode::ClasslessStaticRoute, routes);
        options.insert(DhcpOption::Unknown(routes));
    }
}

/// What a client asks, as far as it matters.
#[derive(Debug)]
struct Request<'a> {
    kind: MessageType,
    xid: u32,
    flags: u16,
    /// The address that the client has already.
    ciaddr: Ipv4Addr,
    /// The address that it wants.
    wanted: Ipv4Addr,
    mac: &'a [u8],
    /// The server that it speaks to, if it says.
    server: Option<Ipv4Addr>,
    /// What it calls itself, if it says.
    client: Option<&'a [u8]>,
    rapid_commit: bool,
}

impl<'a> Request<'a> {
    /// `None` where it is cut short, or no request by DHCP on Ethernet.
    fn parse(message: &'a [u8]) -> Option<Self> {
        const COOKIE: [u8; 4] = [99, 130, 83, 99];
        // BOOTREQUEST, Ethernet, and its addresses' length
        if message.get(..3)? != [1, 1, 6] || message.get(236..240)? != COOKIE {
            return None;
        }
        let ciaddr = be32(message, 12)?.into();
        let mut request = Self {
            kind: MessageType::Unknown(0),
            xid: be32(message, 4)?,
            flags: be16(message, 10)?,
            ciaddr,
            wanted: ciaddr,
            mac: message.get(28..34)?,
            server: None,
            client: None,
            rapid_commit: false,
        };
        let mut options = message.get(240..)?;
        loop {
            options = match options {
                [] | [255, ..] => break,
                [0, rest @ ..] => rest,
                [code, len, rest @ ..] => {
                    let (value, rest) = rest.split_at_checked(usize::from(*len))?;
                    let address = be32(value, 0).map(Ipv4Addr::from);
                    match (OptionCode::from(*code), address) {
                        (OptionCode::MessageType, _) => request.kind = (*value.first()?).into(),
                        (OptionCode::RequestedIpAddress, Some(address)) => request.wanted = address,
                        (OptionCode::ServerIdentifier, address) => request.server = address,
                        (OptionCode::ClientIdentifier, _) => request.client = Some(value),
                        (OptionCode::RapidCommit, _) => request.rapid_commit = true,
                        _ => {}
                    }
                    rest
                }
                [_] => return None,
            };
        }
        Some(request)
    }
}

#[cfg(test)]
mod tests {
    use dhcproto::{Decodable, Decoder};
    use proptest::prelude::*;

    use super::super::tests::config;
    use super::*;
    use crate::wire::Packet;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
    const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 1);
    const RESOLV_CONF: &str = "search default.svc.cluster.local svc.cluster.local\n\
                               nameserver 10.96.0.10\noptions ndots:5";

    fn request(kind: MessageType, ciaddr: Ipv4Addr, options: &[DhcpOption]) -> Vec<u8> {
        let mut message = Message::default();
        message.set_xid(7).set_chaddr(&MAC).set_ciaddr(ciaddr);
        message.opts_mut().insert(DhcpOption::MessageType(kind));
        for option in options {
            message.opts_mut().insert(option.clone());
        }
        message.to_vec().unwrap()
    }

    /// The answer and whom it goes to.
    fn ask_in(config: &Config, request: &[u8]) -> Option<(Message, String)> {
        let bytes = answer(config, request)?;
        let packet = Packet::parse(&bytes).unwrap();
        let udp = Udp::parse(packet.payload).unwrap();
        assert_eq!((udp.source, udp.destination), (SERVER, CLIENT));
        assert_eq!(packet.source, GATEWAY);
        let reply = Message::decode(&mut Decoder::new(udp.payload)).unwrap();
        assert_eq!((reply.xid(), reply.chaddr()), (7, &MAC[..]));
        assert_eq!(reply.opcode(), Opcode::BootReply);
        Some((reply, packet.destination.to_string()))
    }

    fn ask(
        kind: MessageType,
        ciaddr: Ipv4Addr,
        options: &[DhcpOption],
    ) -> Option<(Message, String)> {
        ask_in(&config(RESOLV_CONF), &request(kind, ciaddr, options))
    }

    const NONE: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

    #[test]
    fn a_discover_is_offered_the_guest_s_address_and_all_that_goes_with_it() {
        let id = DhcpOption::ClientIdentifier(vec![1, 2, 3]);
        let (offer, to) = ask(MessageType::Discover, NONE, std::slice::from_ref(&id)).unwrap();
        assert_eq!((offer.yiaddr(), &*to), (GUEST, "255.255.255.255"));
        let search = ["default.svc.cluster.local", "svc.cluster.local"];
        for option in [
            DhcpOption::MessageType(MessageType::Offer),
            DhcpOption::ServerIdentifier(GATEWAY),
            DhcpOption::AddressLeaseTime(LEASE),
            DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)),
            DhcpOption::Router(vec![GATEWAY]),
            DhcpOption::DomainNameServer(vec![Ipv4Addr::new(10, 96, 0, 10)]),
            DhcpOption::DomainSearch(search.map(|d| format!("{d}.").parse().unwrap()).to_vec()),
            DhcpOption::DomainName(search[0].to_owned()),
            DhcpOption::Hostname("details".to_owned()),
            DhcpOption::InterfaceMtu(1400),
            DhcpOption::Unknown(UnknownOption::new(OptionCode::from(NDOTS_OPTION), vec![5])),
            id,
        ] {
            assert_eq!(offer.opts().get((&option).into()), Some(&option));
        }
        let routes = offer.opts().get(OptionCode::ClasslessStaticRoute);
        assert_eq!(routes, None);
    }

    #[test]
    fn a_request_for_the_guest_s_address_is_acknowledged_and_for_another_refused() {
        for (wanted, kind, yours) in [
            (GUEST, MessageType::Ack, GUEST),
            (Ipv4Addr::new(10, 0, 2, 9), MessageType::Nak, NONE),
            (NONE, MessageType::Nak, NONE),
        ] {
            let wanted = DhcpOption::RequestedIpAddress(wanted);
            let (reply, to) = ask(MessageType::Request, NONE, &[wanted]).unwrap();
            assert_eq!(reply.opts().msg_type(), Some(kind));
            assert_eq!((reply.yiaddr(), &*to), (yours, "255.255.255.255"));
        }
    }

    #[test]
    fn a_renewal_is_answered_to_the_address_itself() {
        let (ack, to) = ask(MessageType::Request, GUEST, &[]).unwrap();
        assert_eq!(ack.opts().msg_type(), Some(MessageType::Ack));
        assert_eq!((ack.ciaddr(), &*to), (GUEST, "10.0.2.2"));
    }

    #[test]
    fn rapid_commit_is_acknowledged_at_once() {
        let (ack, _) = ask(MessageType::Discover, NONE, &[DhcpOption::RapidCommit]).unwrap();
        assert_eq!(ack.opts().msg_type(), Some(MessageType::Ack));
        assert!(ack.opts().get(OptionCode::RapidCommit).is_some());
        assert_eq!(ack.yiaddr(), GUEST);
    }

    #[test]
    fn an_inform_is_told_all_but_an_address() {
        let (ack, to) = ask(MessageType::Inform, GUEST, &[]).unwrap();
        assert_eq!((ack.yiaddr(), &*to), (NONE, "10.0.2.2"));
        assert_eq!(ack.opts().get(OptionCode::AddressLeaseTime), None);
        assert!(ack.opts().get(OptionCode::Router).is_some());
    }

    #[test]
    fn what_wants_no_answer_gets_none() {
        assert!(ask(MessageType::Release, GUEST, &[]).is_none());
        assert!(ask(MessageType::Decline, NONE, &[]).is_none());
        assert!(ask(MessageType::Offer, NONE, &[]).is_none());
        let other = DhcpOption::ServerIdentifier(Ipv4Addr::new(10, 0, 2, 9));
        assert!(ask(MessageType::Request, GUEST, &[other]).is_none());
        let mut reply = request(MessageType::Discover, NONE, &[]);
        reply[0] = 2;
        assert!(answer(&config(""), &reply).is_none());
    }

    #[test]
    fn a_gateway_outside_the_network_comes_with_a_route_to_it_and_by_it() {
        let mut config = config("");
        config.v4.as_mut().unwrap().prefix = 32;
        let discover = request(MessageType::Discover, NONE, &[]);
        let (offer, _) = ask_in(&config, &discover).unwrap();
        let mask = DhcpOption::SubnetMask(Ipv4Addr::BROADCAST);
        assert_eq!(offer.opts().get(OptionCode::SubnetMask), Some(&mask));
        let Some(DhcpOption::ClasslessStaticRoute(routes)) =
            offer.opts().get(OptionCode::ClasslessStaticRoute)
        else {
            panic!("no routes");
        };
        let routes: Vec<_> = routes.iter().map(|(to, by)| format!("{to} {by}")).collect();
        assert_eq!(routes, ["10.0.2.1/32 0.0.0.0", "0.0.0.0/0 10.0.2.1"]);
        assert_eq!(offer.opts().get(OptionCode::DomainNameServer), None);
    }

    #[test]
    fn a_client_that_lies_about_its_address_s_length_gets_no_answer() {
        let mut discover = request(MessageType::Discover, NONE, &[]);
        discover[2] = 17;
        assert!(answer(&config(""), &discover).is_none());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            options in prop::collection::vec(any::<u8>(), 0..64), cut in 0..400usize,
            at in 0..300usize, byte in any::<u8>(),
        ) {
            let mut message = request(MessageType::Discover, NONE, &[]);
            message.splice(240..240, options);
            if let Some(place) = message.get_mut(at) {
                *place = byte;
            }
            message.truncate(cut);
            let _ = answer(&config(RESOLV_CONF), &message);
        }
    }
}
