//! Frames: reading and writing headers. Nothing here keeps state.

mod arp;
mod checksum;
mod icmp;
mod ip;
mod tcp;
mod udp;

pub use arp::Arp;
pub use checksum::Sum;
pub use icmp::{Icmp, Unreachable};
pub use ip::{Packet, Protocol, header_len, write_header};
pub use tcp::{Flags, Segment, SegmentHeader};
pub use udp::Udp;

/// A MAC address.
pub type Mac = [u8; 6];
/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
/// The type of an IPv4 frame.
pub const TYPE_IPV4: u16 = 0x0800;
/// The type of an IPv6 frame.
pub const TYPE_IPV6: u16 = 0x86dd;
/// The type of an ARP frame.
pub const TYPE_ARP: u16 = 0x0806;

/// What a frame carries.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// An ARP packet.
    Arp(Arp),
    /// An IPv4 or IPv6 packet, and perhaps padding.
    Ip(&'a [u8]),
    /// Anything else.
    Other,
}

/// Reads a frame: its sender and what it carries; `None` where it is cut short.
pub fn parse(frame: &[u8]) -> Option<(Mac, Frame<'_>)> {
    let (header, rest) = frame.split_at_checked(ETHERNET)?;
    let source = header.get(6..12)?.try_into().ok()?;
    let kind = match be16(header, 12)? {
        TYPE_IPV4 if rest.first()? >> 4 == 4 => Frame::Ip(rest),
        TYPE_IPV6 if rest.first()? >> 4 == 6 => Frame::Ip(rest),
        TYPE_IPV4 | TYPE_IPV6 => return None,
        TYPE_ARP => Frame::Arp(Arp::parse(rest)?),
        _ => Frame::Other,
    };
    Some((source, kind))
}

/// An Ethernet header.
pub fn ethernet(to: Mac, from: Mac, kind: u16) -> [u8; ETHERNET] {
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

/// Puts `value` at `at`, network order; nothing where it does not fit.
pub(crate) fn put16(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(place) = bytes.get_mut(at..at + 2) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

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

    #[test]
    fn a_frame_whose_type_and_packet_differ_is_not_read() {
        let mut frame = ethernet([1; 6], [2; 6], TYPE_IPV6).to_vec();
        frame.extend([0x45; 40]);
        assert_eq!(parse(&frame), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_reader_panic(
            kind in prop::sample::select(vec![TYPE_IPV4, TYPE_IPV6, TYPE_ARP]),
            bytes in prop::collection::vec(any::<u8>(), 0..128),
        ) {
            let frame = [&ethernet([1; 6], [2; 6], kind)[..], &bytes].concat();
            let _ = parse(&frame);
            if let Some(packet) = Packet::parse(&bytes) {
                let _ = Segment::parse(packet.payload);
            }
            let _ = Segment::parse(&bytes);
            let _ = Udp::parse(&bytes);
            let _ = Icmp::parse(&bytes);
        }
    }
}
