//! ARP for IPv4 over Ethernet (RFC 826).

use std::net::Ipv4Addr;

use super::{Mac, TYPE_ARP, be16, be32, ethernet};

/// An ARP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arp {
    /// 1 asks, 2 answers.
    pub operation: u16,
    /// Who sent it.
    pub sender: (Mac, Ipv4Addr),
    /// Whom it is about.
    pub target: (Mac, Ipv4Addr),
}

impl Arp {
    /// Reads a packet; `None` where it is cut short or about something else than IPv4.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        // Ethernet, IPv4, and their addresses' lengths
        if packet.get(..6)? != [0, 1, 8, 0, 6, 4] {
            return None;
        }
        let mac = |at: usize| packet.get(at..at + 6)?.try_into().ok();
        let address = |at: usize| be32(packet, at).map(Ipv4Addr::from);
        Some(Self {
            operation: be16(packet, 6)?,
            sender: (mac(8)?, address(14)?),
            target: (mac(18)?, address(24)?),
        })
    }

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
