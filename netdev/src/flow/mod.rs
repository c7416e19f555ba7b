//! Flows: one guest connection and its host socket each.

pub mod tcp;
pub mod udp;

use std::net::SocketAddrV4;

use crate::config::{Addresses, GATEWAY_MAC, Transport};
use crate::link::{Link, Offload};
use crate::wire::{
    ETHERNET, Mac, Protocol, SegmentHeader, checksum, ethernet_ipv4, ipv4_header, pseudo_sum,
};

/// What tells a flow from others: the transport, the guest's port and the far end as the guest
/// sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    /// TCP or UDP.
    pub transport: Transport,
    /// The guest's port.
    pub guest_port: u16,
    /// The far end.
    pub remote: SocketAddrV4,
}

/// The way to the guest: puts headers before what a flow sends.
pub struct Outlet<'a> {
    /// The guest's card.
    pub link: &'a mut dyn Link,
    /// The guest's addresses.
    pub addresses: Addresses,
    /// The guest's MAC.
    pub guest_mac: Mac,
    /// The MTU.
    pub mtu: u16,
}

/// The largest IPv4 packet, less what its headers may take.
const MAX_SEGMENT: usize = 65_535 - 20 - 60;

impl Outlet<'_> {
    /// Sends an IPv4 packet that is whole.
    pub fn packet(&mut self, packet: &[u8]) -> bool {
        let ethernet = ethernet_ipv4(self.guest_mac, GATEWAY_MAC);
        self.link.send(&[&ethernet, packet], Offload::default())
    }

    /// The largest segment that one call may send to a guest whose own limit is `mss`.
    pub fn segment_limit(&self, mss: u16) -> usize {
        if self.link.capabilities().tso4 {
            MAX_SEGMENT
        } else {
            usize::from(mss)
        }
    }

    /// The MSS that goes with the MTU.
    pub fn mss(&self) -> u16 {
        self.mtu.saturating_sub(40)
    }

    /// Sends a TCP segment of `key`'s far end, with the two parts of its data one behind the
    /// other, cut by the guest's card into segments of `mss`.
    pub fn segment(
        &mut self,
        key: &Key,
        header: &SegmentHeader,
        data: (&[u8], &[u8]),
        mss: u16,
    ) -> bool {
        let len = data.0.len() + data.1.len();
        let mut tcp = header.bytes();
        let ip = ipv4_header(
            *key.remote.ip(),
            self.addresses.guest,
            Protocol::Tcp,
            tcp.len() + len,
        );
        let pseudo = pseudo_sum(
            *key.remote.ip(),
            self.addresses.guest,
            Protocol::Tcp,
            tcp.len() + len,
        );
        let start = ETHERNET + ip.len();
        let mut offload = Offload::default();
        let sum = if self.link.capabilities().checksum {
            offload.checksum = Some((start as u16, SegmentHeader::CHECKSUM as u16));
            // The card adds the rest to the pseudo header's sum (virtio 1.2, section 5.1.6.4).
            !checksum(&[&pseudo])
        } else if data.0.len().is_multiple_of(2) {
            checksum(&[&pseudo, &tcp, data.0, data.1])
        } else {
            checksum(&[&pseudo, &tcp, &[data.0, data.1].concat()])
        };
        if len > usize::from(mss) {
            offload.segment = Some(mss);
            offload.headers = (start + tcp.len()) as u16;
        }
        let place = SegmentHeader::CHECKSUM;
        tcp.iter_mut()
            .skip(place)
            .zip(sum.to_be_bytes())
            .for_each(|(byte, new)| *byte = new);
        let ethernet = ethernet_ipv4(self.guest_mac, GATEWAY_MAC);
        self.link
            .send(&[&ethernet, &ip, &tcp, data.0, data.1], offload)
    }
}
