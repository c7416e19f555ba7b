//! IPv4 (RFC 791) and IPv6 (RFC 8200).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Sum, be16, be32, put16};

/// What a packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// ICMP, or ICMPv6 in an IPv6 packet.
    Icmp,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// Anything else.
    Other(u8),
}

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP6: u8 = 58;
// Headers that may stand between IPv6's and the payload (RFC 8200, section 4).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;
/// A chain of more is nobody's honest packet.
const MAX_EXTENSIONS: usize = 8;

impl Protocol {
    /// Its number in an IPv6 packet, or in an IPv4 one.
    pub fn number(self, v6: bool) -> u8 {
        match self {
            Self::Icmp if v6 => ICMP6,
            Self::Icmp => ICMP,
            Self::Tcp => TCP,
            Self::Udp => UDP,
            Self::Other(number) => number,
        }
    }

    fn of(number: u8, v6: bool) -> Self {
        match (number, v6) {
            (TCP, _) => Self::Tcp,
            (UDP, _) => Self::Udp,
            (ICMP, false) | (ICMP6, true) => Self::Icmp,
            _ => Self::Other(number),
        }
    }
}

/// A packet's header, read, and its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Who sent it.
    pub source: IpAddr,
    /// Whom it is for; of the same family.
    pub destination: IpAddr,
    /// What it carries.
    pub protocol: Protocol,
    /// Hops that are left.
    pub hops: u8,
    /// Where its payload lies in that of a larger packet, in bytes, if it is a fragment.
    pub fragment: Option<u16>,
    /// The packet from its first byte, without what pads the frame.
    pub whole: &'a [u8],
    /// What lies behind its headers.
    pub payload: &'a [u8],
}

const V4: usize = 20;
const V6: usize = 40;

impl<'a> Packet<'a> {
    /// Reads a packet; `None` where it is cut short or lies about its lengths. IPv4's checksum
    /// is not looked at: the frame came through memory.
    pub fn parse(packet: &'a [u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => Self::parse_v4(packet),
            6 => Self::parse_v6(packet),
            _ => None,
        }
    }

    fn parse_v4(packet: &'a [u8]) -> Option<Self> {
        let header = usize::from(packet.first()? & 0xf) * 4;
        if header < V4 {
            return None;
        }
        let whole = packet.get(..usize::from(be16(packet, 2)?))?;
        let address = |at| be32(whole, at).map(|a| IpAddr::V4(Ipv4Addr::from(a)));
        // Three flags, the last of which is "more fragments", and eighths of the place in bytes.
        let place = be16(whole, 6)?;
        Some(Self {
            source: address(12)?,
            destination: address(16)?,
            protocol: Protocol::of(*whole.get(9)?, false),
            hops: *whole.get(8)?,
            fragment: (place & 0x3fff != 0).then_some(place << 3),
            whole,
            payload: whole.get(header..)?,
        })
    }

    fn parse_v6(packet: &'a [u8]) -> Option<Self> {
        let whole = packet.get(..V6 + usize::from(be16(packet, 4)?))?;
        let address = |at: usize| {
            let bytes: [u8; 16] = whole.get(at..at + 16)?.try_into().ok()?;
            Some(IpAddr::V6(Ipv6Addr::from(bytes)))
        };
        let (mut next, mut at, mut fragment) = (*whole.get(6)?, V6, None);
        for _ in 0..MAX_EXTENSIONS {
            match next {
                HOP_BY_HOP | ROUTING | DESTINATION => {
                    next = *whole.get(at)?;
                    at += (usize::from(*whole.get(at + 1)?) + 1) * 8;
                }
                FRAGMENT => {
                    let place = be16(whole, at + 2)?;
                    // One that is all of its packet is none (RFC 6946).
                    if place & !0x6 != 0 {
                        fragment = Some(place & !0x7);
                    }
                    next = *whole.get(at)?;
                    at += 8;
                }
                _ => break,
            }
        }
        Some(Self {
            source: address(8)?,
            destination: address(24)?,
            protocol: Protocol::of(next, true),
            hops: *whole.get(7)?,
            fragment,
            whole,
            payload: whole.get(at..)?,
        })
    }
}

/// Bytes of a header that [`write_header`] writes for `address`' family.
pub fn header_len(address: IpAddr) -> usize {
    if address.is_ipv6() { V6 } else { V4 }
}

/// Writes the header of a packet with `len` bytes of payload to the start of `place` and returns
/// its length. The two addresses are of one family; a place that is too short gets none.
pub fn write_header(
    place: &mut [u8],
    from: IpAddr,
    to: IpAddr,
    protocol: Protocol,
    len: usize,
) -> usize {
    const HOPS: u8 = 64;
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let Some(header) = place.first_chunk_mut::<V4>() else {
                return 0;
            };
            *header = [0; V4];
            header[0] = 0x45;
            put16(header, 2, (V4 + len) as u16);
            // don't fragment
            header[6] = 0x40;
            header[8] = HOPS;
            header[9] = protocol.number(false);
            header[12..16].copy_from_slice(&from.octets());
            header[16..20].copy_from_slice(&to.octets());
            let sum = Sum::default().with(header).finish();
            put16(header, 10, sum);
            V4
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let Some(header) = place.first_chunk_mut::<V6>() else {
                return 0;
            };
            *header = [0; V6];
            header[0] = 0x60;
            put16(header, 4, len as u16);
            header[6] = protocol.number(true);
            header[7] = HOPS;
            header[8..24].copy_from_slice(&from.octets());
            header[24..40].copy_from_slice(&to.octets());
            V6
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Udp;
    use super::*;

    fn ends(v6: bool) -> (IpAddr, IpAddr) {
        if v6 {
            (
                "fd10:0:2::2".parse().unwrap(),
                "2001:db8::1".parse().unwrap(),
            )
        } else {
            ("10.0.2.2".parse().unwrap(), "192.0.2.1".parse().unwrap())
        }
    }

    fn datagram(v6: bool) -> Vec<u8> {
        let (from, to) = ends(v6);
        let udp = Udp {
            source: 1,
            destination: 53,
            payload: b"odd",
        };
        udp.packet(from, to)
    }

    #[test]
    fn a_packet_is_read_as_it_was_written() {
        for v6 in [false, true] {
            let bytes = datagram(v6);
            let packet = Packet::parse(&bytes).unwrap();
            assert_eq!((packet.source, packet.destination), ends(v6));
            assert_eq!(packet.protocol, Protocol::Udp);
            assert_eq!(packet.whole, bytes);
            assert_eq!(packet.fragment, None);
        }
        assert_eq!(
            Sum::default().with(&datagram(false)[..20]).finish(),
            0,
            "the header's checksum"
        );
    }

    #[test]
    fn a_packet_that_lies_about_its_length_is_not_read() {
        for (v6, at) in [(false, 3), (true, 5)] {
            let mut packet = datagram(v6);
            packet[at] += 1;
            assert_eq!(Packet::parse(&packet), None);
        }
        let mut packet = datagram(false);
        packet[0] = 0x44;
        assert_eq!(Packet::parse(&packet), None);
    }

    #[test]
    fn extension_headers_are_passed_over_and_a_fragment_is_one() {
        let plain = datagram(true);
        for (headers, fragment) in [
            (
                &[0x3c, 0, 1, 4, 0, 0, 0, 0, 0x11, 0, 1, 4, 0, 0, 0, 0][..],
                None,
            ),
            (&[0x11, 0, 0, 0, 0, 0, 0, 1], None),
            (&[0x11, 0, 0, 1, 0, 0, 0, 1], Some(0)),
            (&[0x11, 0, 5, 0xa8, 0, 0, 0, 1], Some(1448)),
        ] {
            let mut packet = plain.clone();
            packet[6] = if headers.len() == 16 { 0 } else { 44 };
            packet[5] += headers.len() as u8;
            packet.splice(40..40, headers.iter().copied());
            let read = Packet::parse(&packet).unwrap();
            assert_eq!((read.protocol, read.fragment), (Protocol::Udp, fragment));
            assert_eq!(read.payload, &plain[40..]);
        }
        // Of IPv4: not to be cut, the first of more, and the last.
        for (place, fragment) in [
            ([0x40, 0], None),
            ([0x20, 0], Some(0)),
            ([0, 185], Some(1480)),
        ] {
            let mut packet = datagram(false);
            packet[6..8].copy_from_slice(&place);
            assert_eq!(Packet::parse(&packet).unwrap().fragment, fragment);
        }
    }
}
