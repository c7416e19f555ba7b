//! IPv4 (RFC 791), UDP (RFC 768), ICMP (RFC 792) and their checksum (RFC 1071).

use std::net::Ipv4Addr;

use super::{address, be16};

/// What an IPv4 packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// ICMP.
    Icmp,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// Anything else.
    Other(u8),
}

impl Protocol {
    /// Its number.
    pub fn number(self) -> u8 {
        match self {
            Self::Icmp => 1,
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Other(number) => number,
        }
    }
}

/// An IPv4 packet's header, read, and its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv4<'a> {
    /// Who sent it.
    pub source: Ipv4Addr,
    /// Whom it is for.
    pub destination: Ipv4Addr,
    /// What it carries.
    pub protocol: Protocol,
    /// Whether it is a fragment of a larger packet.
    pub fragment: bool,
    /// What lies behind the header.
    pub payload: &'a [u8],
}

/// Bytes of an IPv4 header without options.
pub const IPV4: usize = 20;

impl<'a> Ipv4<'a> {
    /// Reads a packet; `None` where it is cut short or lies about its lengths. The checksum is
    /// not looked at: the frame came through memory, and an offloading guest leaves it out.
    pub fn parse(packet: &'a [u8]) -> Option<Self> {
        let header = usize::from(packet.first()? & 0xf) * 4;
        let total = usize::from(be16(packet, 2)?);
        if packet.first()? >> 4 != 4 || header < IPV4 {
            return None;
        }
        // Ethernet pads short frames, so there may be more than the packet.
        let payload = packet.get(header..total)?;
        let fragment = be16(packet, 6)? & 0x3fff != 0;
        let protocol = match packet.get(9)? {
            1 => Protocol::Icmp,
            6 => Protocol::Tcp,
            17 => Protocol::Udp,
            other => Protocol::Other(*other),
        };
        let (source, destination) = (address(packet, 12)?, address(packet, 16)?);
        Some(Self {
            source,
            destination,
            protocol,
            fragment,
            payload,
        })
    }
}

/// An IPv4 header for `len` bytes of payload.
pub fn ipv4_header(from: Ipv4Addr, to: Ipv4Addr, protocol: Protocol, len: usize) -> [u8; IPV4] {
    let total = (len + IPV4) as u16;
    let [t0, t1] = total.to_be_bytes();
    let [a, b, c, d] = from.octets();
    let [e, f, g, h] = to.octets();
    // don't fragment; 64 hops
    let mut header = [
        0x45,
        0,
        t0,
        t1,
        0,
        0,
        0x40,
        0,
        64,
        protocol.number(),
        0,
        0,
        a,
        b,
        c,
        d,
        e,
        f,
        g,
        h,
    ];
    let [s0, s1] = checksum(&[&header]).to_be_bytes();
    header[10] = s0;
    header[11] = s1;
    header
}

/// A UDP datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Udp<'a> {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// What it carries.
    pub payload: &'a [u8],
}

/// Bytes of a UDP header.
pub const UDP: usize = 8;

impl<'a> Udp<'a> {
    /// Reads a datagram; `None` where it is cut short.
    pub fn parse(packet: &'a [u8]) -> Option<Self> {
        let len = usize::from(be16(packet, 4)?);
        Some(Self {
            source: be16(packet, 0)?,
            destination: be16(packet, 2)?,
            payload: packet.get(UDP..len)?,
        })
    }

    /// The whole IPv4 packet that carries this datagram.
    pub fn packet(&self, from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
        let len = UDP + self.payload.len();
        let mut header = [0; UDP];
        let fields = [self.source, self.destination, len as u16, 0];
        for (place, field) in header.chunks_exact_mut(2).zip(fields) {
            place.copy_from_slice(&field.to_be_bytes());
        }
        let pseudo = pseudo_sum(from, to, Protocol::Udp, len);
        let sum = match checksum(&[&pseudo, &header, self.payload]) {
            // Zero would mean that there is none.
            0 => 0xffff,
            sum => sum,
        };
        let [.., s0, s1] = &mut header;
        [*s0, *s1] = sum.to_be_bytes();
        let mut packet = ipv4_header(from, to, Protocol::Udp, len).to_vec();
        packet.extend(header);
        packet.extend(self.payload);
        packet
    }
}

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

impl<'a> Icmp<'a> {
    /// Destination unreachable, port.
    pub const PORT_UNREACHABLE: (u8, u8) = (3, 3);
    /// Destination unreachable, host.
    pub const HOST_UNREACHABLE: (u8, u8) = (3, 1);
    /// Destination unreachable, by an administrator's will.
    pub const PROHIBITED: (u8, u8) = (3, 13);

    /// Reads a message; `None` where it is cut short.
    pub fn parse(packet: &'a [u8]) -> Option<Self> {
        Some(Self {
            kind: (*packet.first()?, *packet.get(1)?),
            rest: packet.get(4..8)?.try_into().ok()?,
            payload: packet.get(8..)?,
        })
    }

    /// The whole IPv4 packet that carries this message.
    pub fn packet(&self, from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
        let mut message = vec![self.kind.0, self.kind.1, 0, 0];
        message.extend(self.rest);
        message.extend(self.payload);
        let sum = checksum(&[&message]).to_be_bytes();
        message
            .iter_mut()
            .skip(2)
            .zip(sum)
            .for_each(|(byte, new)| *byte = new);
        let mut packet = ipv4_header(from, to, Protocol::Icmp, message.len()).to_vec();
        packet.extend(message);
        packet
    }
}

/// The pseudo header that TCP's and UDP's checksums begin with.
pub fn pseudo_sum(from: Ipv4Addr, to: Ipv4Addr, protocol: Protocol, len: usize) -> [u8; 12] {
    let [a, b, c, d] = from.octets();
    let [e, f, g, h] = to.octets();
    let [l0, l1] = (len as u16).to_be_bytes();
    [a, b, c, d, e, f, g, h, 0, protocol.number(), l0, l1]
}

/// The checksum of the parts, one behind the other. Each but the last has an even length.
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u64;
    for part in parts {
        let mut pairs = part.chunks_exact(2);
        for pair in &mut pairs {
            if let [high, low] = pair {
                sum += u64::from(u16::from_be_bytes([*high, *low]));
            }
        }
        if let [last] = pairs.remainder() {
            sum += u64::from(*last) << 8;
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
    const B: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

    #[test]
    fn the_rfc_s_example_sums_as_it_says() {
        // RFC 1071, section 3
        assert_eq!(
            checksum(&[&[0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7]]),
            !0xddf2
        );
    }

    #[test]
    fn a_datagram_is_read_as_it_was_written_and_sums_to_zero() {
        let udp = Udp {
            source: 1,
            destination: 53,
            payload: b"odd",
        };
        let packet = udp.packet(A, B);
        assert_eq!(checksum(&[&packet[..20]]), 0);
        let ip = Ipv4::parse(&packet).unwrap();
        assert_eq!(
            (ip.source, ip.destination, ip.protocol),
            (A, B, Protocol::Udp)
        );
        assert_eq!(Udp::parse(ip.payload), Some(udp));
        let pseudo = pseudo_sum(A, B, Protocol::Udp, ip.payload.len());
        assert_eq!(checksum(&[&pseudo, ip.payload]), 0);
    }

    #[test]
    fn a_packet_that_lies_about_its_length_is_not_read() {
        let mut packet = Udp {
            source: 1,
            destination: 2,
            payload: b"four",
        }
        .packet(A, B);
        packet[3] += 1;
        assert_eq!(Ipv4::parse(&packet), None);
        packet[0] = 0x44;
        assert_eq!(Ipv4::parse(&packet), None);
    }
}
