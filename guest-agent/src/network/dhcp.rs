//! A DHCP client (RFC 2131) for a machine that keeps its lease as long as it runs.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use dhcproto::v4::{DhcpOption, Flags, HType, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable, Encoder};
use netdev::resolver::NDOTS_OPTION;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::exchange::{self, Patience};
use super::{Names, is_name, prefix, search_list};

const CLIENT: u16 = 68;
const SERVER: u16 = 67;
const PATIENCE: Patience = Patience {
    first: Duration::from_millis(250),
    most: Duration::from_secs(4),
};
/// How long it is tried at all.
const LIMIT: Duration = Duration::from_secs(30);

/// What a server gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The guest's address.
    pub address: Ipv4Addr,
    /// Bits of its network.
    pub prefix: u8,
    /// The way out.
    pub router: Option<Ipv4Addr>,
    /// What it says of names.
    pub names: Names,
    /// The network's MTU.
    pub mtu: Option<u16>,
}

impl Default for Lease {
    fn default() -> Self {
        Self {
            address: Ipv4Addr::UNSPECIFIED,
            prefix: 32,
            router: None,
            names: Names::default(),
            mtu: None,
        }
    }
}

/// Asks for a lease on the card called `name`.
pub fn ask(name: &str, mac: [u8; 6]) -> io::Result<Lease> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM.cloexec(), Some(Protocol::UDP))?;
    socket.bind_device(Some(name.as_bytes()))?;
    socket.set_broadcast(true)?;
    socket.bind(&SockAddr::from(SocketAddrV4::new(
        Ipv4Addr::UNSPECIFIED,
        CLIENT,
    )))?;
    let socket = UdpSocket::from(socket);
    let end = Instant::now() + LIMIT;
    let number = transaction(mac);
    let offer = exchange(&socket, &discover(number, mac), MessageType::Offer, end)?;
    let request = request(number, mac, &offer);
    let ack = exchange(&socket, &request, MessageType::Ack, end)?;
    Ok(lease(&ack))
}

/// A number that tells this exchange from others on the same wire.
fn transaction(mac: [u8; 6]) -> u32 {
    let now = crate::uptime_ms() as u32;
    mac.iter()
        .fold(now, |number, byte| number.rotate_left(5) ^ u32::from(*byte))
}

fn message(number: u32, mac: [u8; 6], kind: MessageType) -> Message {
    let mut message = Message::default();
    message
        .set_opcode(Opcode::BootRequest)
        .set_htype(HType::Eth)
        .set_xid(number)
        // There is no address yet that an answer could be sent to.
        .set_flags(Flags::default().set_broadcast())
        .set_chaddr(&mac);
    let options = message.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::ParameterRequestList(vec![
        OptionCode::SubnetMask,
        OptionCode::Router,
        OptionCode::DomainNameServer,
        OptionCode::Hostname,
        OptionCode::DomainName,
        OptionCode::InterfaceMtu,
        OptionCode::DomainSearch,
        OptionCode::from(NDOTS_OPTION),
    ]));
    message
}

fn discover(number: u32, mac: [u8; 6]) -> Message {
    message(number, mac, MessageType::Discover)
}

fn request(number: u32, mac: [u8; 6], offer: &Message) -> Message {
    let mut message = message(number, mac, MessageType::Request);
    let options = message.opts_mut();
    options.insert(DhcpOption::RequestedIpAddress(offer.yiaddr()));
    if let Some(server @ DhcpOption::ServerIdentifier(_)) =
        offer.opts().get(OptionCode::ServerIdentifier)
    {
        options.insert(server.clone());
    }
    message
}

/// Sends `question` until it is answered by a message of the kind `wanted`.
fn exchange(
    socket: &UdpSocket,
    question: &Message,
    wanted: MessageType,
    end: Instant,
) -> io::Result<Message> {
    let mut bytes = Vec::new();
    question
        .encode(&mut Encoder::new(&mut bytes))
        .map_err(io::Error::other)?;
    let send = || {
        socket.send_to(&bytes, (Ipv4Addr::BROADCAST, SERVER))?;
        Ok(true)
    };
    let read = |bytes: &[u8]| {
        let answer = read(bytes, question);
        match answer.as_ref().and_then(|answer| answer.opts().msg_type()) {
            Some(kind) if kind == wanted => Ok(answer),
            Some(MessageType::Nak) => Err(io::Error::other("the DHCP server refuses")),
            _ => Ok(None),
        }
    };
    let answer = exchange::exchange(socket, PATIENCE, end, send, read)?;
    answer.ok_or_else(|| io::Error::other("no DHCP server answers"))
}

/// Bytes of the hardware address' field (RFC 2131, section 2).
const MAX_ADDRESS: u8 = 16;

/// An answer to this very question.
fn read(bytes: &[u8], question: &Message) -> Option<Message> {
    // The library takes the address' length as it comes, and ends the process where the field is
    // shorter.
    bytes.get(2).filter(|len| **len <= MAX_ADDRESS)?;
    let answer = Message::decode(&mut Decoder::new(bytes)).ok()?;
    let ours = answer.opcode() == Opcode::BootReply
        && answer.xid() == question.xid()
        && answer.chaddr() == question.chaddr();
    ours.then_some(answer)
}

fn lease(ack: &Message) -> Lease {
    let mut lease = Lease {
        address: ack.yiaddr(),
        ..Lease::default()
    };
    let mut domain = None;
    let names = &mut lease.names;
    for (code, option) in ack.opts().iter() {
        match option {
            DhcpOption::SubnetMask(mask) => lease.prefix = prefix(*mask),
            DhcpOption::Router(routers) => lease.router = routers.first().copied(),
            DhcpOption::DomainNameServer(servers) => {
                names.nameservers = servers.iter().copied().map(Into::into).collect();
            }
            DhcpOption::DomainSearch(list) => {
                names.search = search_list(list);
            }
            DhcpOption::DomainName(name) => domain = Some(name.clone()),
            DhcpOption::Hostname(name) => names.hostname = Some(name.clone()),
            DhcpOption::InterfaceMtu(mtu) => lease.mtu = Some(*mtu),
            DhcpOption::Unknown(option) if u8::from(*code) == NDOTS_OPTION => {
                names.ndots = option.data().first().copied();
            }
            _ => {}
        }
    }
    names.hostname = names.hostname.take().filter(|name| is_name(name));
    if names.search.is_empty() {
        names.search.extend(domain.filter(|name| is_name(name)));
    }
    lease
}

#[cfg(test)]
mod tests {
    use dhcproto::v4::UnknownOption;

    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn ack(options: Vec<DhcpOption>) -> Message {
        let mut ack = message(7, MAC, MessageType::Ack);
        ack.set_opcode(Opcode::BootReply).set_yiaddr([10, 0, 2, 2]);
        options
            .into_iter()
            .for_each(|option| drop(ack.opts_mut().insert(option)));
        ack
    }

    #[test]
    fn every_option_that_was_asked_for_is_read() {
        let ack = ack(vec![
            DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)),
            DhcpOption::Router(vec![Ipv4Addr::new(10, 0, 2, 1)]),
            DhcpOption::DomainNameServer(vec![Ipv4Addr::new(10, 96, 0, 10)]),
            DhcpOption::DomainSearch(vec!["a.example".parse().unwrap()]),
            DhcpOption::Hostname("details".to_owned()),
            DhcpOption::InterfaceMtu(1400),
            DhcpOption::Unknown(UnknownOption::new(OptionCode::from(NDOTS_OPTION), vec![5])),
        ]);
        assert_eq!(
            lease(&ack),
            Lease {
                address: Ipv4Addr::new(10, 0, 2, 2),
                prefix: 24,
                router: Some(Ipv4Addr::new(10, 0, 2, 1)),
                names: Names {
                    nameservers: vec![Ipv4Addr::new(10, 96, 0, 10).into()],
                    search: vec!["a.example".to_owned()],
                    ndots: Some(5),
                    hostname: Some("details".to_owned()),
                },
                mtu: Some(1400),
            }
        );
    }

    #[test]
    fn a_name_that_would_break_a_file_is_left_out() {
        let ack = ack(vec![
            DhcpOption::Hostname("a\nb".to_owned()),
            DhcpOption::DomainName("x y".to_owned()),
        ]);
        assert_eq!(lease(&ack).names, Names::default());
    }

    #[test]
    fn only_an_answer_to_this_question_counts() {
        let question = discover(7, MAC);
        let mut bytes = Vec::new();
        let encode = |message: &Message, bytes: &mut Vec<u8>| {
            bytes.clear();
            message.encode(&mut Encoder::new(bytes)).unwrap();
        };
        encode(&ack(Vec::new()), &mut bytes);
        assert!(read(&bytes, &question).is_some());
        assert!(read(&bytes, &discover(8, MAC)).is_none());
        assert!(read(&bytes, &discover(7, [2; 6])).is_none());
        encode(&question, &mut bytes);
        assert!(read(&bytes, &question).is_none());
        assert!(read(&bytes[..40], &question).is_none());
        encode(&ack(Vec::new()), &mut bytes);
        bytes[2] = 200;
        assert!(
            read(&bytes, &question).is_none(),
            "an address that is too long"
        );
    }
}
