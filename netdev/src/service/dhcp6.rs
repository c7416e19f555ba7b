//! DHCPv6 (RFC 8415): the guest is given its one address.

use std::net::Ipv6Addr;

use dhcproto::v6::{
    DhcpOption, DhcpOptions, IAAddr, IANA, Message, MessageType, OptionCode, Status, StatusCode,
    UnknownOption,
};
use dhcproto::{Encodable, Encoder};

use super::{LEASE, nameservers, search_list, v6};
use crate::config::{Config, GATEWAY_LINK_LOCAL, GATEWAY_MAC, Network};
use crate::wire::{Udp, be16, be32};

/// The port that the server listens on.
pub const SERVER: u16 = 547;
const CLIENT: u16 = 546;
/// The longest DUID (section 11.1).
const MAX_DUID: usize = 130;
/// Associations, and addresses of one, that are looked at: a client has one of one, and the
/// answer must not grow with the question.
const MAX_ASSOCIATIONS: usize = 4;
const MAX_ADDRESSES: usize = 4;

/// The IPv6 packet that answers `client`'s message to [`SERVER`], if it wants an answer.
pub fn answer(config: &Config, client: Ipv6Addr, message: &[u8]) -> Option<Vec<u8>> {
    let network = config.v6.as_ref()?;
    let request = Request::parse(message)?;
    let own = server_id();
    // Section 16: what each kind has to say, and must not.
    let (named, to_us) = (request.client.is_some(), request.server == Some(&own[..]));
    let valid = match request.kind {
        MessageType::Solicit | MessageType::Confirm | MessageType::Rebind => {
            named && request.server.is_none()
        }
        MessageType::Request | MessageType::Renew | MessageType::Release | MessageType::Decline => {
            named && to_us
        }
        MessageType::InformationRequest => request.server.is_none() || to_us,
        _ => false,
    };
    if !valid {
        return None;
    }
    let is_solicit = request.kind == MessageType::Solicit;
    let kind = if is_solicit && !request.rapid_commit {
        MessageType::Advertise
    } else {
        MessageType::Reply
    };
    let mut reply = Message::new_with_id(kind, request.xid);
    let options = reply.opts_mut();
    options.insert(DhcpOption::ServerId(own));
    if let Some(id) = request.client {
        options.insert(DhcpOption::ClientId(id.to_vec()));
    }
    match request.kind {
        MessageType::Confirm => {
            let mut asked = request.associations.iter().flat_map(|ia| &ia.addresses);
            let first = asked.next()?;
            let all_good = *first == network.guest && asked.all(|a| *a == network.guest);
            options.insert(status(if all_good {
                Status::Success
            } else {
                Status::NotOnLink
            }));
        }
        MessageType::Release | MessageType::Decline => options.insert(status(Status::Success)),
        kind => {
            // There is nobody else whom the client should wait for (section 18.2.1).
            if is_solicit && !request.rapid_commit {
                options.insert(DhcpOption::Preference(255));
            } else if is_solicit {
                options.insert(DhcpOption::RapidCommit);
            }
            for (at, association) in request.associations.iter().enumerate() {
                options.insert(association.answer(network, kind, at == 0));
            }
            names(options, config, network);
        }
    }
    let mut payload = Vec::new();
    reply.encode(&mut Encoder::new(&mut payload)).ok()?;
    let udp = Udp {
        source: SERVER,
        destination: CLIENT,
        payload: &payload,
    };
    Some(udp.packet(GATEWAY_LINK_LOCAL.into(), client.into()))
}

/// The gateway's name for itself: its MAC address (section 11.4).
fn server_id() -> Vec<u8> {
    [&[0, 3, 0, 1], &GATEWAY_MAC[..]].concat()
}

/// RFC 3646.
fn names(options: &mut DhcpOptions, config: &Config, network: &Network<Ipv6Addr>) {
    let servers = nameservers(config, network, v6);
    if !servers.is_empty() {
        options.insert(DhcpOption::DomainNameServers(servers));
    }
    let search = search_list(config);
    if !search.is_empty() {
        let search = UnknownOption::new(OptionCode::DomainSearchList, search);
        options.insert(DhcpOption::Unknown(search));
    }
}

fn status(status: Status) -> DhcpOption {
    DhcpOption::StatusCode(StatusCode {
        status,
        msg: String::new(),
    })
}

/// An identity association for addresses (section 21.4).
#[derive(Debug)]
struct Association {
    id: u32,
    /// What the client has, or would like.
    addresses: Vec<Ipv6Addr>,
}

impl Association {
    fn parse(value: &[u8]) -> Option<Self> {
        let mut addresses = Vec::new();
        for (code, value) in options(value.get(12..)?) {
            if code == OptionCode::IAAddr && addresses.len() < MAX_ADDRESSES {
                addresses.push(Ipv6Addr::from(*value.first_chunk::<16>()?));
            }
        }
        let id = be32(value, 0)?;
        Some(Self { id, addresses })
    }

    /// What the first of a client's gets is the guest's address; there is none for another.
    fn answer(&self, network: &Network<Ipv6Addr>, kind: MessageType, first: bool) -> DhcpOption {
        let mut opts = DhcpOptions::new();
        let mut strange = self.addresses.iter().filter(|a| **a != network.guest);
        let is_renewal = matches!(kind, MessageType::Renew | MessageType::Rebind);
        if kind == MessageType::Request && strange.next().is_some() {
            opts.insert(status(Status::NotOnLink));
        } else if first {
            opts.insert(address(network.guest, LEASE));
            // Others end here and now (sections 18.3.4 and 18.3.5).
            for other in strange.filter(|_| is_renewal) {
                opts.insert(address(*other, 0));
            }
        } else {
            opts.insert(status(Status::NoAddrsAvail));
        }
        DhcpOption::IANA(IANA {
            id: self.id,
            t1: LEASE / 2,
            t2: LEASE / 5 * 4,
            opts,
        })
    }
}

fn address(addr: Ipv6Addr, lifetime: u32) -> DhcpOption {
    DhcpOption::IAAddr(IAAddr {
        addr,
        preferred_life: lifetime,
        valid_life: lifetime,
        opts: DhcpOptions::new(),
    })
}

/// What a client asks, as far as it matters.
#[derive(Debug)]
struct Request<'a> {
    kind: MessageType,
    xid: [u8; 3],
    /// What the client calls itself.
    client: Option<&'a [u8]>,
    /// The server that it speaks to.
    server: Option<&'a [u8]>,
    rapid_commit: bool,
    associations: Vec<Association>,
}

impl<'a> Request<'a> {
    /// `None` where it is cut short or its options are not what they should be.
    fn parse(message: &'a [u8]) -> Option<Self> {
        let (header, rest) = message.split_first_chunk::<4>()?;
        let [kind, xid @ ..] = *header;
        let mut request = Self {
            kind: kind.into(),
            xid,
            client: None,
            server: None,
            rapid_commit: false,
            associations: Vec::new(),
        };
        for (code, value) in options(rest) {
            match code {
                OptionCode::ClientId if value.len() > MAX_DUID => return None,
                OptionCode::ClientId => request.client = Some(value),
                OptionCode::ServerId => request.server = Some(value),
                OptionCode::RapidCommit => request.rapid_commit = true,
                OptionCode::IANA if request.associations.len() < MAX_ASSOCIATIONS => {
                    request.associations.push(Association::parse(value)?);
                }
                _ => {}
            }
        }
        Some(request)
    }
}

/// Options (section 21.1) up to the first that is cut short.
fn options(mut bytes: &[u8]) -> impl Iterator<Item = (OptionCode, &[u8])> {
    std::iter::from_fn(move || {
        let (code, len) = (be16(bytes, 0)?, be16(bytes, 2)?);
        let (value, rest) = bytes.get(4..)?.split_at_checked(len.into())?;
        bytes = rest;
        Some((code.into(), value))
    })
}

#[cfg(test)]
mod tests {
    use dhcproto::{Decodable, Decoder};
    use proptest::prelude::*;

    use super::super::tests::config;
    use super::*;
    use crate::wire::Packet;

    const CLIENT_ID: &[u8] = &[0, 3, 0, 1, 2, 0, 0, 0, 0, 1];
    const GUEST: Ipv6Addr = Ipv6Addr::new(0xfd10, 0, 2, 0, 0, 0, 0, 2);
    const OTHER: Ipv6Addr = Ipv6Addr::new(0xfd10, 0, 2, 0, 0, 0, 0, 9);
    const RESOLV_CONF: &str = "nameserver 2001:db8::53\nsearch b.svc.example svc.example";

    fn association(id: u32, addresses: &[Ipv6Addr]) -> DhcpOption {
        let opts = addresses.iter().map(|a| address(*a, 1)).collect();
        DhcpOption::IANA(IANA {
            id,
            t1: 0,
            t2: 0,
            opts,
        })
    }

    fn request(kind: MessageType, options: &[DhcpOption]) -> Vec<u8> {
        let mut message = Message::new_with_id(kind, [1, 2, 3]);
        message
            .opts_mut()
            .insert(DhcpOption::ClientId(CLIENT_ID.to_vec()));
        for option in options {
            message.opts_mut().insert(option.clone());
        }
        message.to_vec().unwrap()
    }

    fn ask(kind: MessageType, options: &[DhcpOption]) -> Option<Message> {
        let client: Ipv6Addr = "fe80::2".parse().unwrap();
        let bytes = answer(&config(RESOLV_CONF), client, &request(kind, options))?;
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!(packet.source, GATEWAY_LINK_LOCAL);
        assert_eq!(packet.destination, client);
        let udp = Udp::parse(packet.payload).unwrap();
        assert_eq!((udp.source, udp.destination), (SERVER, CLIENT));
        let reply = Message::decode(&mut Decoder::new(udp.payload)).unwrap();
        assert_eq!(reply.xid(), [1, 2, 3]);
        let id = DhcpOption::ClientId(CLIENT_ID.to_vec());
        assert_eq!(reply.opts().get(OptionCode::ClientId), Some(&id));
        assert_eq!(reply.opts().get(OptionCode::ServerId), Some(&ours()));
        Some(reply)
    }

    fn ours() -> DhcpOption {
        DhcpOption::ServerId(server_id())
    }

    /// An association's number, its addresses with their lifetimes, and its status.
    type Given = (u32, Vec<(Ipv6Addr, u32)>, Option<Status>);

    fn given(reply: &Message) -> Vec<Given> {
        let associations = reply.opts().get_all(OptionCode::IANA).unwrap_or_default();
        let read = |option: &DhcpOption| {
            let DhcpOption::IANA(association) = option else {
                panic!("{option:?}");
            };
            let addresses = association.opts.iter().filter_map(|option| match option {
                DhcpOption::IAAddr(address) => Some((address.addr, address.valid_life)),
                _ => None,
            });
            (association.id, addresses.collect(), told(&association.opts))
        };
        associations.iter().map(read).collect()
    }

    fn told(options: &DhcpOptions) -> Option<Status> {
        match options.get(OptionCode::StatusCode) {
            Some(DhcpOption::StatusCode(code)) => Some(code.status),
            _ => None,
        }
    }

    fn has_names(reply: &Message) -> bool {
        let servers = DhcpOption::DomainNameServers(vec!["2001:db8::53".parse().unwrap()]);
        let domains = ["b.svc.example.", "svc.example."];
        let search = DhcpOption::DomainSearchList(domains.map(|d| d.parse().unwrap()).to_vec());
        reply.opts().get(OptionCode::DomainNameServers) == Some(&servers)
            && reply.opts().get(OptionCode::DomainSearchList) == Some(&search)
    }

    #[test]
    fn a_solicit_is_advertised_the_guest_s_address_whatever_it_would_like() {
        let reply = ask(MessageType::Solicit, &[association(5, &[OTHER])]).unwrap();
        assert_eq!(reply.msg_type(), MessageType::Advertise);
        assert_eq!(given(&reply), [(5, vec![(GUEST, LEASE)], None)]);
        assert!(has_names(&reply));
        let preference = reply.opts().get(OptionCode::Preference);
        assert_eq!(preference, Some(&DhcpOption::Preference(255)));
    }

    #[test]
    fn rapid_commit_is_given_the_address_at_once() {
        let options = [association(5, &[]), DhcpOption::RapidCommit];
        let reply = ask(MessageType::Solicit, &options).unwrap();
        assert_eq!(reply.msg_type(), MessageType::Reply);
        assert!(reply.opts().get(OptionCode::RapidCommit).is_some());
        assert_eq!(given(&reply), [(5, vec![(GUEST, LEASE)], None)]);
    }

    #[test]
    fn one_association_has_the_address_and_others_none() {
        // dhcproto puts the latter of two before the former.
        let options = [association(6, &[]), association(5, &[])];
        let reply = ask(MessageType::Solicit, &options).unwrap();
        let wanted = [
            (6, vec![], Some(Status::NoAddrsAvail)),
            (5, vec![(GUEST, LEASE)], None),
        ];
        assert_eq!(given(&reply), wanted);
    }

    #[test]
    fn a_request_to_us_is_granted_and_to_another_server_left_to_it() {
        let reply = ask(MessageType::Request, &[association(5, &[GUEST]), ours()]).unwrap();
        assert_eq!(reply.msg_type(), MessageType::Reply);
        assert_eq!(given(&reply), [(5, vec![(GUEST, LEASE)], None)]);
        let strange = ask(MessageType::Request, &[association(5, &[OTHER]), ours()]).unwrap();
        assert_eq!(given(&strange), [(5, vec![], Some(Status::NotOnLink))]);
        let theirs = DhcpOption::ServerId(CLIENT_ID.to_vec());
        assert_eq!(ask(MessageType::Request, &[theirs]), None);
        assert_eq!(ask(MessageType::Request, &[]), None);
    }

    #[test]
    fn a_renewal_keeps_the_address_and_ends_others() {
        let association = association(5, &[OTHER, GUEST]);
        let renew = ask(MessageType::Renew, &[association.clone(), ours()]).unwrap();
        let rebind = ask(MessageType::Rebind, &[association]).unwrap();
        for reply in [renew, rebind] {
            let mut given = given(&reply);
            given[0].1.sort();
            assert_eq!(given, [(5, vec![(GUEST, LEASE), (OTHER, 0)], None)]);
        }
    }

    #[test]
    fn only_the_guest_s_address_is_confirmed() {
        for (addresses, status) in [
            (&[GUEST][..], Status::Success),
            (&[OTHER], Status::NotOnLink),
            (&[GUEST, OTHER], Status::NotOnLink),
        ] {
            let reply = ask(MessageType::Confirm, &[association(5, addresses)]).unwrap();
            assert_eq!(told(reply.opts()), Some(status), "{addresses:?}");
        }
        assert_eq!(ask(MessageType::Confirm, &[association(5, &[])]), None);
    }

    #[test]
    fn release_and_decline_are_well() {
        for kind in [MessageType::Release, MessageType::Decline] {
            let reply = ask(kind, &[association(5, &[GUEST]), ours()]).unwrap();
            assert_eq!(told(reply.opts()), Some(Status::Success));
        }
    }

    #[test]
    fn an_information_request_is_told_names_and_nothing_else() {
        let reply = ask(MessageType::InformationRequest, &[]).unwrap();
        assert!(has_names(&reply) && given(&reply).is_empty());
    }

    #[test]
    fn what_a_server_says_is_no_question() {
        for kind in [MessageType::Advertise, MessageType::Reply] {
            assert_eq!(ask(kind, &[]), None);
        }
        assert_eq!(ask(MessageType::Solicit, &[ours()]), None);
    }

    #[test]
    fn the_answer_does_not_grow_with_the_question() {
        let many: Vec<_> = (0..2000).map(|id| association(id, &[OTHER; 9])).collect();
        let client = "fe80::2".parse().unwrap();
        let bytes = answer(&config(""), client, &request(MessageType::Rebind, &many)).unwrap();
        assert!(bytes.len() < 1280, "{}", bytes.len());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            kind in 1..14u8, at in 0..64usize, byte in any::<u8>(), cut in 0..128usize,
            options in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut message = request(MessageType::Solicit, &[association(5, &[GUEST])]);
            message[0] = kind;
            message.extend(options);
            message[at % 50] = byte;
            message.truncate(cut);
            let _ = answer(&config(RESOLV_CONF), "fe80::2".parse().unwrap(), &message);
        }
    }
}
