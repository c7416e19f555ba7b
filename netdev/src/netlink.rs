//! What the guest's network, and the pod's, need of rtnetlink(7); and any other netlink dump.

use std::io;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkDeserializable,
    NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use socket2::SockRef;

/// The kernel answers at once; whoever asks it must not hang where it does not.
const PATIENCE: Duration = Duration::from_secs(1);

/// A network link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number for it.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its address, where it has one of six bytes.
    pub mac: [u8; 6],
    /// It is the machine's own loopback.
    pub is_loopback: bool,
    /// It is a network card.
    pub is_ethernet: bool,
}

/// A socket to the kernel for messages of a protocol.
pub struct Netlink<M = RouteNetlinkMessage> {
    socket: Socket,
    sequence: u32,
    protocol: PhantomData<M>,
}

impl Netlink {
    /// Opens one for rtnetlink.
    pub fn open() -> io::Result<Self> {
        Self::open_for(NETLINK_ROUTE)
    }

    /// All links.
    pub fn links(&mut self) -> io::Result<Vec<Link>> {
        let mut links = Vec::new();
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        self.dump(request, |message| {
            if let RouteNetlinkMessage::NewLink(link) = message {
                links.push(read_link(&link));
            }
        })?;
        Ok(links)
    }

    /// Brings a link up, with an MTU where one is given.
    pub fn bring_up(&mut self, index: u32, mtu: Option<u16>) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        link.attributes
            .extend(mtu.map(|mtu| LinkAttribute::Mtu(mtu.into())));
        self.ask(RouteNetlinkMessage::SetLink(link), NLM_F_ACK, drop)
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
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        self.ask(RouteNetlinkMessage::NewAddress(message), flags, drop)
    }

    /// Routes everything by `gateway`.
    pub fn add_default_route(&mut self, index: u32, gateway: IpAddr) -> io::Result<()> {
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: family(gateway),
            table: RouteHeader::RT_TABLE_MAIN,
            protocol: RouteProtocol::Dhcp,
            scope: RouteScope::Universe,
            kind: RouteType::Unicast,
            // It may lie in no network of ours (RFC 3442).
            flags: RouteFlags::Onlink,
            ..Default::default()
        };
        message.attributes = vec![
            RouteAttribute::Gateway(match gateway {
                IpAddr::V4(gateway) => RouteAddress::Inet(gateway),
                IpAddr::V6(gateway) => RouteAddress::Inet6(gateway),
            }),
            RouteAttribute::Oif(index),
        ];
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        self.ask(RouteNetlinkMessage::NewRoute(message), flags, drop)
    }
}

impl<M> Netlink<M>
where
    M: NetlinkSerializable + NetlinkDeserializable,
    NetlinkPayload<M>: From<M>,
{
    /// Opens one for `protocol`, which is that of the messages.
    pub fn open_for(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        SockRef::from(&socket).set_read_timeout(Some(PATIENCE))?;
        Ok(Self {
            socket,
            sequence: 0,
            protocol: PhantomData,
        })
    }

    /// Gives `each` all of what `request` asks for.
    pub fn dump(&mut self, request: M, each: impl FnMut(M)) -> io::Result<()> {
        self.ask(request, NLM_F_DUMP, each)
    }

    /// Sends a request and reads its answers up to the last.
    fn ask(&mut self, request: M, flags: u16, mut each: impl FnMut(M)) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
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
                let message = NetlinkMessage::<M>::deserialize(rest);
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

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv6() {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    }
}

fn read_link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: [0; 6],
        is_loopback: message.header.flags.contains(LinkFlags::Loopback),
        is_ethernet: message.header.link_layer_type == LinkLayerType::Ether,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes) => {
                link.mac = bytes.as_slice().try_into().unwrap_or_default();
            }
            // A bridge, a dummy, a tunnel: nothing that a machine comes with.
            LinkAttribute::LinkInfo(_) => link.is_ethernet = false,
            _ => {}
        }
    }
    link
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
