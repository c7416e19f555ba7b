//! UDP (RFC 768).

use std::net::IpAddr;

use super::{Protocol, Sum, be16, header_len, put16, write_header};

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

impl<'a> Udp<'a> {
    /// Bytes of a header.
    pub const HEADER: usize = 8;
    /// Where in the header the checksum lies.
    pub const CHECKSUM: usize = 6;

    /// Reads a datagram; `None` where it is cut short.
    pub fn parse(packet: &'a [u8]) -> Option<Self> {
        let len = usize::from(be16(packet, 4)?);
        Some(Self {
            source: be16(packet, 0)?,
            destination: be16(packet, 2)?,
            payload: packet.get(Self::HEADER..len)?,
        })
    }

    /// The header of a datagram with `len` bytes of payload, its checksum left as it is said.
    pub fn header(source: u16, destination: u16, len: usize, sum: u16) -> [u8; Udp::HEADER] {
        let mut header = [0; Udp::HEADER];
        let fields = [source, destination, (Self::HEADER + len) as u16, sum];
        for (at, field) in fields.into_iter().enumerate() {
            put16(&mut header, at * 2, field);
        }
        header
    }

    /// The whole packet that carries this datagram.
    pub fn packet(&self, from: IpAddr, to: IpAddr) -> Vec<u8> {
        let len = self.payload.len();
        let pseudo = Sum::pseudo(from, to, Protocol::Udp, Self::HEADER + len);
        let header = Self::header(self.source, self.destination, len, 0);
        let sum = match pseudo.with(&header).with(self.payload).finish() {
            // Zero would mean that there is none.
            0 => 0xffff,
            sum => sum,
        };
        let mut packet = vec![0; header_len(from)];
        write_header(&mut packet, from, to, Protocol::Udp, Self::HEADER + len);
        packet.extend(Self::header(self.source, self.destination, len, sum));
        packet.extend(self.payload);
        packet
    }
}

#[cfg(test)]
mod tests {
    use super::super::Packet;
    use super::*;

    #[test]
    fn a_datagram_is_read_as_it_was_written_and_sums_to_zero() {
        let (from, to) = ("10.0.2.2".parse().unwrap(), "192.0.2.1".parse().unwrap());
        let udp = Udp {
            source: 1,
            destination: 53,
            payload: b"odd",
        };
        let bytes = udp.packet(from, to);
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!(Udp::parse(packet.payload), Some(udp));
        let pseudo = Sum::pseudo(from, to, Protocol::Udp, packet.payload.len());
        assert_eq!(pseudo.with(packet.payload).finish(), 0);
    }
}
