//! `struct virtio_net_hdr_v1` (virtio 1.2, section 5.1.6): what goes before each frame, in a
//! virtqueue and on a tap that was asked for it.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP_L4,
};

use super::{Offload, SegmentKind};

/// Its bytes.
pub const LEN: usize = 12;
/// A frame's header.
pub type Header = [u8; LEN];

// Where its fields lie.
const FLAGS: usize = 0;
const GSO_TYPE: usize = 1;
const HEADERS: usize = 2;
const GSO_SIZE: usize = 4;
const CHECKSUM_START: usize = 6;
const CHECKSUM_OFFSET: usize = 8;
const NUM_BUFFERS: usize = 10;

/// The header of a frame that takes so many buffers of the receive queue.
pub fn encode(offload: Offload, buffers: u16) -> Header {
    let mut header = [0; LEN];
    let mut put = |at: usize, value: u16| {
        header
            .iter_mut()
            .skip(at)
            .zip(value.to_le_bytes())
            .for_each(|(byte, new)| *byte = new);
    };
    put(NUM_BUFFERS, buffers);
    if let Some((start, offset)) = offload.checksum {
        put(CHECKSUM_START, start);
        put(CHECKSUM_OFFSET, offset);
    }
    if let Some(segments) = offload.segments {
        put(HEADERS, segments.headers);
        put(GSO_SIZE, segments.size);
        header[GSO_TYPE] = match segments.kind {
            SegmentKind::Tcp4 => VIRTIO_NET_HDR_GSO_TCPV4,
            SegmentKind::Tcp6 => VIRTIO_NET_HDR_GSO_TCPV6,
            SegmentKind::Udp => VIRTIO_NET_HDR_GSO_UDP_L4,
        } as u8;
    }
    if offload.checksum.is_some() {
        header[FLAGS] = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
    }
    header
}

/// The size of the datagrams that a frame from the guest is to be cut into, if it is. (TCP
/// segments end here, whatever their size.)
pub fn datagrams(header: &Header) -> Option<u16> {
    let kind = u32::from(header[GSO_TYPE]) & !VIRTIO_NET_HDR_GSO_ECN;
    let size = u16::from_le_bytes([header[GSO_SIZE], header[GSO_SIZE + 1]]);
    (kind == VIRTIO_NET_HDR_GSO_UDP_L4 && size > 0).then_some(size)
}

#[cfg(test)]
mod tests {
    use super::super::Segments;
    use super::*;

    #[test]
    fn a_header_says_what_the_card_has_to_do() {
        let offload = Offload {
            checksum: Some((34, 16)),
            segments: Some(Segments {
                kind: SegmentKind::Tcp4,
                size: 1460,
                headers: 54,
            }),
        };
        assert_eq!(
            &encode(offload, 2),
            b"\x01\x01\x36\0\xb4\x05\x22\0\x10\0\x02\x00"
        );
        assert_eq!(encode(Offload::default(), 0), [0; LEN]);
    }

    #[test]
    fn only_datagrams_are_cut_again() {
        let udp = Offload {
            checksum: None,
            segments: Some(Segments {
                kind: SegmentKind::Udp,
                size: 1400,
                headers: 42,
            }),
        };
        assert_eq!(datagrams(&encode(udp, 1)), Some(1400));
        assert_eq!(datagrams(&encode(Offload::default(), 1)), None);
    }
}
