//! A DHCPv6 client (RFC 8415) for a machine that keeps its address as long as it runs. Router and
//! networks are the kernel's to learn, from advertisements.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::time::{Duration, Instant};

use dhcproto::v6::{DhcpOption, DhcpOptions, IANA, Message, MessageType, ORO, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable, Encoder};
use netdev::netlink::Link;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::exchange::{self, Patience};
use super::{Names, search_list};

const CLIENT: u16 = 546;
const SERVER: u16 = 547;
/// All servers and relays of the link (section 7.1).
const SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
const PATIENCE: Patience = Patience {
    first: Duration::from_millis(500),
    most: Duration::from_secs(8),
};
/// How long it is tried at all: there may be nobody.
const LIMIT: Duration = Duration::from_secs(60);

/// What a server gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The guest's address.
    pub address: Ipv6Addr,
    /// What it says of names.
    pub names: Names,
}

/// Readies the card called `name` before it is brought up: nobody else is on its network who could
/// have its addresses, so none is waited for (RFC 4862, section 5.4).
pub fn prepare(name: &str) -> io::Result<()> {
    fs::write(format!("/proc/sys/net/ipv6/conf/{name}/accept_dad"), "0")
}

/// Asks for an address for `card`; `None` where nobody answers.
pub fn ask(card: &Link) -> io::Result<Option<Lease>> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM.cloexec(), Some(Protocol::UDP))?;
    socket.bind_device(Some(card.name.as_bytes()))?;
    let own = SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, CLIENT, 0, card.index);
    socket.bind(&SockAddr::from(own))?;
    let socket = UdpSocket::from(socket);
    let end = Instant::now() + LIMIT;
    let question = solicit(card.mac);
    let Some(answer) = exchange(&socket, card.index, &question, end)? else {
        return Ok(None);
    };
    if let Some(lease) = lease(&answer) {
        return Ok(Some(lease));
    }
    let Some(question) = request(&question, &answer) else {
        return Ok(None);
    };
    let answer = exchange(&socket, card.index, &question, end)?;
    Ok(answer.as_ref().and_then(lease))
}

fn message(kind: MessageType, xid: [u8; 3], mac: [u8; 6]) -> Message {
    let mut message = Message::new_with_id(kind, xid);
    let options = message.opts_mut();
    // A name by the link-layer address (section 11.4).
    let name = [&[0, 3, 0, 1], &mac[..]].concat();
    options.insert(DhcpOption::ClientId(name));
    options.insert(DhcpOption::ElapsedTime(0));
    options.insert(DhcpOption::ORO(ORO {
        opts: vec![OptionCode::DomainNameServers, OptionCode::DomainSearchList],
    }));
    message
}

fn solicit(mac: [u8; 6]) -> Message {
    let [_, _, _, a, b, c] = mac;
    let now = crate::uptime_ms() as u8;
    let mut message = message(MessageType::Solicit, [a ^ now, b, c], mac);
    let options = message.opts_mut();
    options.insert(DhcpOption::RapidCommit);
    options.insert(DhcpOption::IANA(IANA {
        id: 1,
        t1: 0,
        t2: 0,
        opts: DhcpOptions::new(),
    }));
    message
}

/// What `advertise` offers to `solicit`, asked for.
fn request(solicit: &Message, advertise: &Message) -> Option<Message> {
    let mut request = Message::new_with_id(MessageType::Request, solicit.xid());
    let options = request.opts_mut();
    for option in solicit.opts().iter() {
        if !matches!(option, DhcpOption::RapidCommit | DhcpOption::IANA(_)) {
            options.insert(option.clone());
        }
    }
    for code in [OptionCode::ServerId, OptionCode::IANA] {
        options.insert(advertise.opts().get(code)?.clone());
    }
    Some(request)
}

/// Sends `question` until it is answered, or nobody seems to be there.
fn exchange(
    socket: &UdpSocket,
    card: u32,
    question: &Message,
    end: Instant,
) -> io::Result<Option<Message>> {
    let mut bytes = Vec::new();
    question
        .encode(&mut Encoder::new(&mut bytes))
        .map_err(io::Error::other)?;
    let to = SocketAddrV6::new(SERVERS, SERVER, 0, card);
    let send = || match socket.send_to(&bytes, to) {
        Ok(_) => Ok(true),
        // The card has no address yet, or no route to its own link.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::AddrNotAvailable | ErrorKind::NetworkUnreachable
            ) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    };
    exchange::exchange(socket, PATIENCE, end, send, |bytes| {
        Ok(read(bytes, question))
    })
}

/// An answer to this very question. It is short enough for the library's reading of options, which
/// goes as deep as they do.
fn read(bytes: &[u8], question: &Message) -> Option<Message> {
    let answer = Message::decode(&mut Decoder::new(bytes)).ok()?;
    let kind = match question.msg_type() {
        MessageType::Solicit => [MessageType::Advertise, MessageType::Reply],
        _ => [MessageType::Reply; 2],
    };
    let client = |message: &Message| message.opts().get(OptionCode::ClientId).cloned();
    let ours = kind.contains(&answer.msg_type())
        && answer.xid() == question.xid()
        && client(&answer) == client(question);
    ours.then_some(answer)
}

/// What a reply gives; `None` where it gives no address, or only offers one.
fn lease(reply: &Message) -> Option<Lease> {
    if reply.msg_type() != MessageType::Reply {
        return None;
    }
    let mut address = None;
    let mut names = Names::default();
    for option in reply.opts().iter() {
        match option {
            DhcpOption::IANA(association) => {
                if let Some(DhcpOption::IAAddr(given)) = association.opts.get(OptionCode::IAAddr)
                    && given.valid_life > 0
                {
                    address.get_or_insert(given.addr);
                }
            }
            DhcpOption::DomainNameServers(servers) => {
                names.nameservers = servers.iter().copied().map(Into::into).collect();
            }
            DhcpOption::DomainSearchList(list) => {
                names.search = search_list(list);
            }
            _ => {}
        }
    }
    Some(Lease {
        address: address?,
        names,
    })
}

#[cfg(test)]
mod tests {
    use dhcproto::v6::IAAddr;

    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn answer(question: &Message, kind: MessageType) -> Message {
        let mut answer = Message::new_with_id(kind, question.xid());
        let client = question.opts().get(OptionCode::ClientId).unwrap().clone();
        let mut opts = DhcpOptions::new();
        opts.insert(DhcpOption::IAAddr(IAAddr {
            addr: "fd10:0:2::2".parse().unwrap(),
            preferred_life: 60,
            valid_life: 60,
            opts: DhcpOptions::new(),
        }));
        let options = answer.opts_mut();
        options.insert(client);
        options.insert(DhcpOption::ServerId(vec![1, 2]));
        options.insert(DhcpOption::DomainNameServers(vec![
            "fd00::10".parse().unwrap(),
        ]));
        options.insert(DhcpOption::IANA(IANA {
            id: 1,
            t1: 0,
            t2: 0,
            opts,
        }));
        answer
    }

    fn pass(message: &Message, question: &Message) -> Option<Message> {
        let mut bytes = Vec::new();
        message.encode(&mut Encoder::new(&mut bytes)).unwrap();
        read(&bytes, question)
    }

    #[test]
    fn a_reply_gives_the_address_and_an_advertisement_is_asked_for_it() {
        let solicit = solicit(MAC);
        let reply = pass(&answer(&solicit, MessageType::Reply), &solicit).unwrap();
        let given = lease(&reply).unwrap();
        assert_eq!(given.address, "fd10:0:2::2".parse::<Ipv6Addr>().unwrap());
        assert_eq!(given.names.nameservers.len(), 1);
        let offer = pass(&answer(&solicit, MessageType::Advertise), &solicit).unwrap();
        assert_eq!(lease(&offer), None);
        let request = request(&solicit, &offer).unwrap();
        assert_eq!(request.msg_type(), MessageType::Request);
        assert!(request.opts().get(OptionCode::ServerId).is_some());
        assert!(request.opts().get(OptionCode::RapidCommit).is_none());
        assert!(pass(&offer, &request).is_none());
    }

    #[test]
    fn only_an_answer_to_this_question_counts() {
        let question = solicit(MAC);
        let other = solicit([2, 0, 0, 0, 0, 9]);
        assert!(pass(&answer(&other, MessageType::Reply), &question).is_none());
        assert!(pass(&question, &question).is_none());
        assert!(read(&[7, 0], &question).is_none());
    }

    /// Each option holds the next: as deep as a datagram that is read can be.
    #[test]
    fn options_within_options_do_not_end_the_process() {
        let mut bytes = Vec::new();
        while bytes.len() + 40 < exchange::LONGEST {
            let len = (bytes.len() + 12) as u16;
            let mut outer = vec![0, 3];
            outer.extend(len.to_be_bytes());
            outer.extend([0; 12]);
            outer.extend(&bytes);
            bytes = outer;
        }
        let mut message = vec![7, 0, 0, 0];
        message.extend(bytes);
        assert!(read(&message, &solicit(MAC)).is_none());
    }
}
