//! Flows: one guest connection and its host socket each.

pub mod data;
pub mod echo;
pub mod ring;
pub mod tcp;
pub mod udp;

use std::net::{IpAddr, SocketAddr};

use crate::config::{GATEWAY_MAC, Transport};
use crate::link::{Link, Offload, SegmentKind, Segments};
use crate::wire::{
    ETHERNET, Mac, Protocol, SegmentHeader, Sum, TYPE_IPV4, TYPE_IPV6, Udp, ethernet, header_len,
    put16, write_header,
};

/// What tells a flow from others: the transport, the guest's port and the far end as the guest
/// sees it. The guest has one address of each family, so its own is known by the far end's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    /// TCP, UDP or an echo.
    pub transport: Transport,
    /// The guest's port, or its echo's identifier.
    pub guest_port: u16,
    /// The far end; an echo's has port 0.
    pub remote: SocketAddr,
}

/// Bytes of payload that went through, each once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Carried {
    /// For the guest.
    pub to_guest: u64,
    /// From the guest.
    pub from_guest: u64,
}

/// What became of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Keep,
    /// It is over, both ways.
    Done,
    /// One side reset it; the other is to be reset as well.
    Reset,
    /// The host could not connect, and for that reason.
    Failed(std::io::ErrorKind),
}

/// The way to the guest: puts headers before what a flow sends.
pub struct Outlet<'a> {
    /// The guest's card.
    pub link: &'a mut dyn Link,
    /// The guest's MAC.
    pub mac: Mac,
    /// The MTU.
    pub mtu: u16,
}

/// All headers of a frame.
const HEADERS: usize = ETHERNET + 40 + SegmentHeader::MAX;

impl Outlet<'_> {
    /// Sends a packet that is whole.
    pub fn packet(&mut self, packet: &[u8]) -> bool {
        let v6 = packet.first().is_some_and(|byte| byte >> 4 == 6);
        let ethernet = ethernet(self.mac, GATEWAY_MAC, kind(v6));
        self.link.send(&[&ethernet, packet], Offload::default())
    }

    /// The MSS that goes with the MTU, for a connection with `remote`.
    pub fn mss(&self, remote: IpAddr) -> u16 {
        self.mtu.saturating_sub(header_len(remote) as u16 + 20)
    }

    /// The most data that one call of [`Outlet::segment`] may have, for a guest that takes
    /// segments of `mss`.
    pub fn segment_limit(&self, remote: IpAddr, mss: u16) -> usize {
        let capabilities = self.link.capabilities();
        let cut = if remote.is_ipv6() {
            capabilities.tso6
        } else {
            capabilities.tso4
        };
        let mss = usize::from(mss).max(1);
        if cut {
            // Whole segments, so that no small one is among them.
            let most = usize::from(u16::MAX) - header_len(remote) - 20;
            (most / mss).max(1) * mss
        } else {
            mss
        }
    }

    /// Sends a TCP segment from `from` to the guest's `to`, with the two parts of its data one
    /// behind the other, cut by the guest's card into segments of `mss`.
    pub fn segment(
        &mut self,
        (from, to): (IpAddr, IpAddr),
        header: &SegmentHeader,
        data: [&[u8]; 2],
        mss: u16,
    ) -> bool {
        let len = data.iter().map(|part| part.len()).sum::<usize>();
        let mut headers = [0; HEADERS];
        let place = headers.split_at_mut(ETHERNET + header_len(from)).1;
        let tcp = header.write(place);
        let pseudo = Sum::pseudo(from, to, Protocol::Tcp, tcp + len);
        let mut offload = Offload::default();
        let sum = if self.link.capabilities().checksum {
            let start = (ETHERNET + header_len(from)) as u16;
            offload.checksum = Some((start, SegmentHeader::CHECKSUM as u16));
            // The card adds the rest (virtio 1.2, section 5.1.6.2).
            pseudo.folded()
        } else {
            let sum = pseudo.with(place.get(..tcp).unwrap_or_default());
            let [first, second] = data;
            sum.with(first).with(second).finish()
        };
        put16(place, SegmentHeader::CHECKSUM, sum);
        let end = self.frame_headers(&mut headers, (from, to), Protocol::Tcp, tcp, len);
        if len > usize::from(mss) {
            let kind = if from.is_ipv6() {
                SegmentKind::Tcp6
            } else {
                SegmentKind::Tcp4
            };
            offload.segments = Some(Segments {
                kind,
                size: mss,
                headers: end as u16,
            });
        }
        let [first, second] = data;
        let headers = headers.get(..end).unwrap_or_default();
        self.link.send(&[headers, first, second], offload)
    }

    /// Sends the guest's `to.1` datagrams from `from`: `data` in pieces of `size` bytes, the last
    /// one perhaps shorter. Returns how many the guest had no room for.
    pub fn datagrams(
        &mut self,
        from: SocketAddr,
        to: (IpAddr, u16),
        data: &[u8],
        size: usize,
    ) -> u64 {
        let size = size.max(1);
        if self.link.capabilities().uso && data.len() > size {
            let sent = self.udp(from, to, data, Some(size as u16));
            return if sent {
                0
            } else {
                data.len().div_ceil(size) as u64
            };
        }
        if data.is_empty() {
            return u64::from(!self.udp(from, to, data, None));
        }
        data.chunks(size)
            .filter(|datagram| !self.udp(from, to, datagram, None))
            .count() as u64
    }

    fn udp(&mut self, from: SocketAddr, to: (IpAddr, u16), data: &[u8], size: Option<u16>) -> bool {
        let ends = (from.ip(), to.0);
        let len = Udp::HEADER + data.len();
        let pseudo = Sum::pseudo(ends.0, ends.1, Protocol::Udp, len);
        let mut offload = Offload::default();
        let sum = if self.link.capabilities().checksum {
            let start = (ETHERNET + header_len(ends.0)) as u16;
            offload.checksum = Some((start, Udp::CHECKSUM as u16));
            pseudo.folded()
        } else {
            let header = Udp::header(from.port(), to.1, data.len(), 0);
            match pseudo.with(&header).with(data).finish() {
                // Zero would mean that there is none.
                0 => 0xffff,
                sum => sum,
            }
        };
        let mut headers = [0; HEADERS];
        let place = headers.split_at_mut(ETHERNET + header_len(ends.0)).1;
        if let Some(place) = place.first_chunk_mut() {
            *place = Udp::header(from.port(), to.1, data.len(), sum);
        }
        let end = self.frame_headers(&mut headers, ends, Protocol::Udp, Udp::HEADER, data.len());
        offload.segments = size.map(|size| Segments {
            kind: SegmentKind::Udp,
            size,
            headers: end as u16,
        });
        let headers = headers.get(..end).unwrap_or_default();
        self.link.send(&[headers, data], offload)
    }

    /// Writes what stands before a transport's header of `transport` bytes and returns where all
    /// headers end.
    fn frame_headers(
        &self,
        headers: &mut [u8; HEADERS],
        (from, to): (IpAddr, IpAddr),
        protocol: Protocol,
        transport: usize,
        len: usize,
    ) -> usize {
        let (start, rest) = headers.split_at_mut(ETHERNET);
        start.copy_from_slice(&ethernet(self.mac, GATEWAY_MAC, kind(from.is_ipv6())));
        ETHERNET + write_header(rest, from, to, protocol, transport + len) + transport
    }
}

fn kind(v6: bool) -> u16 {
    if v6 { TYPE_IPV6 } else { TYPE_IPV4 }
}
