//! What the guest's network, and the pod's, need of rtnetlink(7); and any other netlink dump.

mod message;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use netlink_packet_core::{
    Emitable, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
    Parseable,
};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use socket2::SockRef;

pub use message::{Change, Link, Message};

/// The kernel answers at once; whoever asks it must not hang where it does not.
const PATIENCE: Duration = Duration::from_secs(1);

/// A socket to the kernel for messages of a protocol.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

/// A route to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The network whereto.
    pub to: IpAddr,
    /// How many of its bits count.
    pub prefix: u8,
    /// By whom, if not on the link itself.
    pub via: Option<IpAddr>,
    /// The lower, the better.
    pub metric: Option<u32>,
    /// Whether who it goes by is on the link, whatever the addresses say.
    pub on_link: bool,
    /// Whether a lease has it.
    pub leased: bool,
}

impl Route {
    /// The default route by a gateway, as leases have it: it may lie in no network of ours (RFC
    /// 3442).
    pub fn leased_default(gateway: IpAddr) -> Self {
        let to = match gateway {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        Self {
            to,
            prefix: 0,
            via: Some(gateway),
            metric: None,
            on_link: true,
            leased: true,
        }
    }
}

impl Netlink {
    /// Opens one for rtnetlink.
    pub fn open() -> io::Result<Self> {
        Self::open_for(NETLINK_ROUTE)
    }

    /// All links.
    pub fn links(&mut self) -> io::Result<Vec<Link>> {
        let mut links = Vec::new();
        self.each(libc::RTM_GETLINK, Change::default(), |link| {
            links.push(link);
        })?;
        Ok(links)
    }

    /// Every address of every link.
    pub fn addresses(&mut self, each: impl FnMut(AddressMessage)) -> io::Result<()> {
        self.each(libc::RTM_GETADDR, AddressMessage::default(), each)
    }

    /// Every route of a family.
    pub fn routes(
        &mut self,
        family: AddressFamily,
        each: impl FnMut(RouteMessage),
    ) -> io::Result<()> {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        self.each(libc::RTM_GETROUTE, request, each)
    }

    /// Brings a link up, with an MTU where one is given.
    pub fn bring_up(&mut self, index: u32, mtu: Option<u16>) -> io::Result<()> {
        self.change_link(Change {
            index,
            up: Some(true),
            mtu: mtu.map(u32::from),
            name: None,
        })
    }

    /// Changes a link.
    pub fn change_link(&mut self, change: Change) -> io::Result<()> {
        self.change(libc::RTM_SETLINK, 0, change)
    }

    /// Gives a link an address.
    pub fn add_address(&mut self, index: u32, ip: IpAddr, prefix: u8) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = family(ip);
        message.header.prefix_len = prefix;
        message.header.index = index;
        if ip.is_ipv6() {
            // Nobody else is there who could have it.
            message.header.flags = AddressHeaderFlags::Nodad;
        }
        message.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
        self.change(libc::RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, message)
    }

    /// Takes from a link all addresses that are more than its own link's.
    pub fn remove_addresses(&mut self, index: u32) -> io::Result<()> {
        let mut found = Vec::new();
        self.addresses(|address| {
            if address.header.index == index && address.header.scope == AddressScope::Universe {
                found.push(address);
            }
        })?;
        for address in found {
            self.change(libc::RTM_DELADDR, 0, address)?;
        }
        Ok(())
    }

    /// Adds a route by a link, or puts it in the place of one that is its like.
    pub fn add_route(&mut self, index: u32, route: &Route) -> io::Result<()> {
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: family(route.to),
            destination_prefix_length: route.prefix,
            table: RouteHeader::RT_TABLE_MAIN,
            protocol: match route.leased {
                true => RouteProtocol::Dhcp,
                false => RouteProtocol::Static,
            },
            scope: match route.via {
                None if route.to.is_ipv4() => RouteScope::Link,
                _ => RouteScope::Universe,
            },
            kind: RouteType::Unicast,
            flags: match route.on_link {
                true => RouteFlags::Onlink,
                false => RouteFlags::empty(),
            },
            ..Default::default()
        };
        message.attributes = vec![RouteAttribute::Oif(index)];
        if route.prefix != 0 {
            let to = RouteAttribute::Destination(address(route.to));
            message.attributes.push(to);
        }
        if let Some(gateway) = route.via {
            let gateway = RouteAttribute::Gateway(address(gateway));
            message.attributes.push(gateway);
        }
        if let Some(metric) = route.metric {
            message.attributes.push(RouteAttribute::Priority(metric));
        }
        self.change(libc::RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, message)
    }

    fn each<B: Emitable, A: Parseable<[u8]>>(
        &mut self,
        kind: u16,
        request: B,
        mut each: impl FnMut(A),
    ) -> io::Result<()> {
        let request = Message::new(kind, request);
        self.dump(request, |answer: Message<A>| each(answer.body))
    }

    fn change(&mut self, kind: u16, flags: u16, request: impl Emitable) -> io::Result<()> {
        let request = Message::new(kind, request);
        // What it answers is an acknowledgement, whatever it was asked.
        self.ask(request, NLM_F_ACK | flags, |_: Message<Link>| {})
    }

    /// Opens one for `protocol`, which is that of the messages.
    pub fn open_for(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        SockRef::from(&socket).set_read_timeout(Some(PATIENCE))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Gives `each` all of what `request` asks for.
    pub fn dump<Q: NetlinkSerializable, A: NetlinkDeserializable>(
        &mut self,
        request: Q,
        each: impl FnMut(A),
    ) -> io::Result<()> {
        self.ask(request, NLM_F_DUMP, each)
    }

    /// Sends a request and reads its answers up to the last.
    fn ask<Q: NetlinkSerializable, A: NetlinkDeserializable>(
        &mut self,
        request: Q,
        flags: u16,
        mut each: impl FnMut(A),
    ) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        loop {
            let answer = match self.socket.recv_from_full() {
                Ok((answer, _)) => answer,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let mut rest = &answer[..];
            while let Some(len) = rest.first_chunk() {
                let message = NetlinkMessage::<A>::deserialize(rest);
                let len = (u32::from_ne_bytes(*len) as usize).next_multiple_of(4);
                rest = rest.get(len.max(4)..).unwrap_or_default();
                // One that the library does not understand is about nothing that matters here.
                let Ok(message) = message else { continue };
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(message) => each(message),
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        return Err(io::Error::from_raw_os_error(-done.code));
                    }
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(error) => {
                        return error.code.map_or(Ok(()), |_| Err(error.to_io()));
                    }
                    _ => {}
                }
            }
        }
    }
}

/// The link's own address, which of a point-to-point link is not the one that names it.
pub fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    local.or(address)
}

fn address(ip: IpAddr) -> RouteAddress {
    match ip {
        IpAddr::V4(ip) => RouteAddress::Inet(ip),
        IpAddr::V6(ip) => RouteAddress::Inet6(ip),
    }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv6() {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_loopback_that_can_be_found() {
        let links = Netlink::open().unwrap().links().unwrap();
        let loopbacks: Vec<_> = links.iter().filter(|link| link.is_loopback).collect();
        assert_eq!(loopbacks.len(), 1);
        assert_eq!(loopbacks[0].name, "lo");
    }

    #[test]
    fn what_the_kernel_refuses_is_an_error() {
        let mut netlink = Netlink::open().unwrap();
        assert!(netlink.bring_up(u32::MAX / 2, None).is_err());
    }
}
