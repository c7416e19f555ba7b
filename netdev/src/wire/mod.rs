//! Frames: reading and writing headers. Nothing here keeps state.

mod ip;
mod tcp;

use std::net::Ipv4Addr;

pub use ip::{Icmp, Ipv4, Protocol, Udp, checksum, ipv4_header, pseudo_sum};
pub use tcp::{Flags, Segment, SegmentHeader};

/// A MAC address.
pub type Mac = [u8; 6];
/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
const TYPE_IPV4: u16 = 0x0800;
const TYPE_ARP: u16 = 0x0806;

/// What a frame carries.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// An ARP packet.
    Arp(Arp),
    /// What lies behind the Ethernet header of an IPv4 packet.
    Ipv4(&'a [u8]),
    /// Anything else.
    Other,
}

/// An ARP packet for IPv4 over Ethernet (RFC 826).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arp {
    /// 1 asks, 2 answers.
    pub operation: u16,
    /// Who sent it.
    pub sender: (Mac, Ipv4Addr),
    /// Whom it is about.
    pub target: (Mac, Ipv4Addr),
}

/// Reads a frame: its sender and what it carries; `None` where it is cut short.
pub fn parse(frame: &[u8]) -> Option<(Mac, Frame<'_>)> {
    let (header, rest) = frame.split_at_checked(ETHERNET)?;
    let source = header.get(6..12)?.try_into().ok()?;
    let kind = match be16(header, 12)? {
        TYPE_IPV4 => Frame::Ipv4(rest),
        TYPE_ARP => Frame::Arp(arp(rest)?),
        _ => Frame::Other,
    };
    Some((source, kind))
}

fn arp(packet: &[u8]) -> Option<Arp> {
    // Ethernet, IPv4, and their addresses' lengths
    if packet.get(..6)? != [0, 1, 8, 0, 6, 4] {
        return None;
    }
    let mac = |at: usize| packet.get(at..at + 6)?.try_into().ok();
    Some(Arp {
        operation: be16(packet, 6)?,
        sender: (mac(8)?, address(packet, 14)?),
        target: (mac(18)?, address(packet, 24)?),
    })
}

impl Arp {
    /// The frame that carries this packet.
    pub fn frame(&self) -> Vec<u8> {
        let mut frame = ethernet(self.target.0, self.sender.0, TYPE_ARP).to_vec();
        frame.extend([0, 1, 8, 0, 6, 4]);
        frame.extend(self.operation.to_be_bytes());
        for (mac, address) in [self.sender, self.target] {
            frame.extend(mac);
            frame.extend(address.octets());
        }
        frame
    }
}

/// The Ethernet header of an IPv4 frame.
pub fn ethernet_ipv4(to: Mac, from: Mac) -> [u8; ETHERNET] {
    ethernet(to, from, TYPE_IPV4)
}

fn ethernet(to: Mac, from: Mac, kind: u16) -> [u8; ETHERNET] {
    let mut header = [0; ETHERNET];
    let (t, rest) = header.split_at_mut(6);
    let (f, k) = rest.split_at_mut(6);
    t.copy_from_slice(&to);
    f.copy_from_slice(&from);
    k.copy_from_slice(&kind.to_be_bytes());
    header
}

/// Two bytes, network order.
pub(crate) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Four bytes, network order.
pub(crate) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// An address.
pub(crate) fn address(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    be32(bytes, at).map(Ipv4Addr::from)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_arp_packet_is_read_as_it_was_written() {
        let arp = Arp {
            operation: 1,
            sender: ([1; 6], Ipv4Addr::new(10, 0, 2, 2)),
            target: ([0; 6], Ipv4Addr::new(10, 0, 2, 1)),
        };
        assert_eq!(parse(&arp.frame()), Some(([1; 6], Frame::Arp(arp))));
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..128)) {
            if let Some((_, Frame::Ipv4(packet))) = parse(&bytes) {
                let _ = Ipv4::parse(packet);
            }
            let _ = Ipv4::parse(&bytes);
            let _ = Segment::parse(&bytes);
            let _ = Udp::parse(&bytes);
            let _ = Icmp::parse(&bytes);
        }
    }
}
