//! ICMP (RFC 792) and ICMPv6 (RFC 4443): one layout, two numberings.

use std::io;
use std::net::IpAddr;

use super::{Protocol, Sum, header_len, put16, write_header};

/// An ICMP message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Icmp<'a> {
    /// Type and code.
    pub kind: (u8, u8),
    /// The four bytes behind the checksum.
    pub rest: [u8; 4],
    /// What follows.
    pub payload: &'a [u8],
}

/// Why a packet did not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreachable {
    /// Nobody listens on the port.
    Port,
    /// There is no way to its network.
    Network,
    /// The host does not answer, or cannot be reached for another reason.
    Host,
    /// It is forbidden.
    Prohibited,
    /// Its source is an address of the link only, and its destination is beyond (IPv6).
    Scope,
    /// It is longer than the path's MTU, which is this.
    TooBig(u16),
}

impl Unreachable {
    /// What the error of a socket that cannot reach its far end says; `None` where that is
    /// something else.
    pub fn of(error: io::ErrorKind) -> Option<Self> {
        match error {
            io::ErrorKind::NetworkUnreachable => Some(Self::Network),
            io::ErrorKind::HostUnreachable => Some(Self::Host),
            io::ErrorKind::PermissionDenied => Some(Self::Prohibited),
            _ => None,
        }
    }
}

impl<'a> Icmp<'a> {
    /// Bytes of a header.
    pub const HEADER: usize = 8;

    /// Reads a message; `None` where it is cut short.
    pub fn parse(packet: &'a [u8]) -> Option<Self> {
        Some(Self {
            kind: (*packet.first()?, *packet.get(1)?),
            rest: packet.get(4..8)?.try_into().ok()?,
            payload: packet.get(Self::HEADER..)?,
        })
    }

    /// Type and code of an echo's question and answer, in IPv6 or IPv4.
    pub fn echo(v6: bool) -> ((u8, u8), (u8, u8)) {
        if v6 {
            ((128, 0), (129, 0))
        } else {
            ((8, 0), (0, 0))
        }
    }

    /// The packet from `from` that tells `packet`'s sender, `to`, why it did not arrive.
    pub fn unreachable(why: Unreachable, from: IpAddr, to: IpAddr, packet: &[u8]) -> Vec<u8> {
        let v6 = from.is_ipv6();
        let (kind, rest) = match (why, v6) {
            (Unreachable::Port, false) => ((3, 3), 0),
            (Unreachable::Network, false) => ((3, 0), 0),
            (Unreachable::Host, false) => ((3, 1), 0),
            (Unreachable::Prohibited | Unreachable::Scope, false) => ((3, 13), 0),
            // RFC 1191, section 4
            (Unreachable::TooBig(mtu), false) => ((3, 4), u32::from(mtu)),
            (Unreachable::Port, true) => ((1, 4), 0),
            (Unreachable::Network, true) => ((1, 0), 0),
            (Unreachable::Host, true) => ((1, 3), 0),
            (Unreachable::Prohibited, true) => ((1, 1), 0),
            (Unreachable::Scope, true) => ((1, 2), 0),
            (Unreachable::TooBig(mtu), true) => ((2, 0), u32::from(mtu)),
        };
        // As much of the packet as there is room for in what every path takes (RFC 1812, section
        // 4.3.2.3; RFC 4443, section 3.1).
        let most = if v6 { 1280 } else { 576 } - header_len(from) - Self::HEADER;
        let message = Icmp {
            kind,
            rest: rest.to_be_bytes(),
            payload: packet.get(..most).unwrap_or(packet),
        };
        message.packet(from, to)
    }

    /// The whole packet that carries this message.
    pub fn packet(&self, from: IpAddr, to: IpAddr) -> Vec<u8> {
        let len = Self::HEADER + self.payload.len();
        let mut packet = vec![0; header_len(from)];
        let start = write_header(&mut packet, from, to, Protocol::Icmp, len);
        packet.extend([self.kind.0, self.kind.1, 0, 0]);
        packet.extend(self.rest);
        packet.extend(self.payload);
        let sum = if from.is_ipv6() {
            Sum::pseudo(from, to, Protocol::Icmp, len)
        } else {
            Sum::default()
        };
        let sum = sum.with(packet.get(start..).unwrap_or_default()).finish();
        put16(&mut packet, start + 2, sum);
        packet
    }
}

#[cfg(test)]
mod tests {
    use super::super::Packet;
    use super::*;

    #[test]
    fn a_message_is_read_as_it_was_written_and_sums_to_zero() {
        for (from, to) in [("10.0.2.1", "10.0.2.2"), ("fe80::1", "fd10:0:2::2")] {
            let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
            let bytes = Icmp::unreachable(Unreachable::TooBig(1400), from, to, &[7; 2000]);
            let packet = Packet::parse(&bytes).unwrap();
            assert_eq!(packet.protocol, Protocol::Icmp);
            let message = Icmp::parse(packet.payload).unwrap();
            assert_eq!(message.rest, 1400_u32.to_be_bytes());
            assert_eq!(bytes.len(), if from.is_ipv6() { 1280 } else { 576 });
            let sum = if from.is_ipv6() {
                Sum::pseudo(from, to, Protocol::Icmp, packet.payload.len())
            } else {
                Sum::default()
            };
            assert_eq!(sum.with(packet.payload).finish(), 0);
        }
    }
}
