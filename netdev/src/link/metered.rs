//! Counts what goes through a link, by protocol. A frame that a card cuts counts once, as it goes
//! through here.

use std::os::fd::RawFd;
use std::sync::Arc;

use super::loans::Loans;
use super::{Capabilities, Link, Offload, Received};
use crate::counters::{Content, Counters, Direction};
use crate::wire::{ETHERNET, TYPE_ARP, TYPE_IPV4, TYPE_IPV6};

// Where IPv4's and IPv6's headers name what comes next.
const V4_PROTOCOL: usize = ETHERNET + 9;
const V6_PROTOCOL: usize = ETHERNET + 6;

/// Frames and their bytes, by content.
type Tally = [(u64, u64); Content::ALL.len()];

/// A link that counts. The numbers are its own until [`Link::flush`], so that they are shared once
/// a turn, not once a frame.
pub struct Metered<'a> {
    link: &'a mut dyn Link,
    counters: Arc<Counters>,
    out: Tally,
    into: Tally,
}

impl<'a> Metered<'a> {
    /// Counts what goes through `link`.
    pub fn new(link: &'a mut dyn Link, counters: Arc<Counters>) -> Self {
        Self {
            link,
            counters,
            out: Tally::default(),
            into: Tally::default(),
        }
    }
}

impl Metered<'_> {
    /// Bytes of frames since the last [`Link::flush`], both ways.
    pub fn moved(&self) -> u64 {
        let tallies = self.out.iter().chain(&self.into);
        tallies.map(|(_, bytes)| bytes).sum()
    }
}

impl Link for Metered<'_> {
    fn receive(&mut self, place: &mut [u8]) -> Option<Received> {
        let received = self.link.receive(place)?;
        let frame = place.get(..received.len).unwrap_or_default();
        count(&mut self.out, &[frame]);
        Some(received)
    }

    fn loans(&self) -> Option<&Loans> {
        self.link.loans()
    }

    fn end_batch(&mut self) {
        self.link.end_batch();
    }

    fn send(&mut self, parts: &[&[u8]], offload: Offload) -> bool {
        let sent = self.link.send(parts, offload);
        if sent {
            count(&mut self.into, parts);
        }
        sent
    }

    fn flush(&mut self) {
        self.link.flush();
        for (direction, tally) in [
            (Direction::Out, &mut self.out),
            (Direction::In, &mut self.into),
        ] {
            for (content, (frames, bytes)) in Content::ALL.iter().zip(tally) {
                if *frames > 0 {
                    let traffic = self.counters.traffic(direction, *content);
                    traffic.packets.add_many(std::mem::take(frames));
                    traffic.bytes.add_many(std::mem::take(bytes));
                }
            }
        }
    }

    fn descriptors(&self) -> Vec<RawFd> {
        self.link.descriptors()
    }

    fn acknowledge(&mut self) {
        self.link.acknowledge();
    }

    fn capabilities(&self) -> Capabilities {
        self.link.capabilities()
    }

    fn piece(&self) -> usize {
        self.link.piece()
    }

    fn quiet(&mut self, quiet: bool) -> bool {
        self.link.quiet(quiet)
    }

    fn waits(&mut self) -> bool {
        self.link.waits()
    }
}

fn count(tally: &mut Tally, parts: &[&[u8]]) {
    if let Some((frames, bytes)) = tally.get_mut(content(parts) as usize) {
        *frames += 1;
        *bytes += parts.iter().map(|part| part.len() as u64).sum::<u64>();
    }
}

/// What a frame in pieces carries.
pub fn content(parts: &[&[u8]]) -> Content {
    let kind = u16::from_be_bytes([byte(parts, ETHERNET - 2), byte(parts, ETHERNET - 1)]);
    match kind {
        TYPE_ARP => Content::Arp,
        TYPE_IPV4 => match byte(parts, V4_PROTOCOL) {
            1 => Content::Icmp,
            6 => Content::Tcp,
            17 => Content::Udp,
            _ => Content::Other,
        },
        TYPE_IPV6 => match byte(parts, V6_PROTOCOL) {
            58 => Content::Icmp,
            6 => Content::Tcp,
            17 => Content::Udp,
            _ => Content::Other,
        },
        _ => Content::Other,
    }
}

/// The byte at `at` of parts that lie one behind the other; zero behind their end.
fn byte(parts: &[&[u8]], mut at: usize) -> u8 {
    for part in parts {
        match part.get(at) {
            Some(byte) => return *byte,
            None => at -= part.len(),
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::super::fake;
    use super::*;
    use crate::wire::{Udp, ethernet};

    fn packet(from: &str, to: &str) -> Vec<u8> {
        let udp = Udp {
            source: 1,
            destination: 2,
            payload: b"12345",
        };
        udp.packet(from.parse().unwrap(), to.parse().unwrap())
    }

    #[test]
    fn frames_are_counted_by_what_they_carry_and_which_way_they_go() {
        let (mut fake, guest) = fake::pair();
        let counters: Arc<Counters> = Arc::default();
        let mut link = Metered::new(&mut fake, counters.clone());
        guest.datagram(1, "192.0.2.1:9".parse().unwrap(), b"123");
        guest.send(vec![0; 60]);
        while link.receive(&mut [0; 100]).is_some() {}
        for (kind, packet) in [
            (TYPE_IPV4, packet("192.0.2.1", "10.0.2.2")),
            (TYPE_IPV6, packet("2001:db8::1", "fd10:0:2::2")),
            (TYPE_ARP, vec![0; 28]),
            (TYPE_IPV4, Vec::new()),
        ] {
            let ethernet = ethernet([2; 6], [4; 6], kind);
            assert!(link.send(&[&ethernet, &packet], Offload::default()));
        }
        let got = |direction, content| {
            let traffic = counters.traffic(direction, content);
            (traffic.packets.get(), traffic.bytes.get())
        };
        assert_eq!(
            got(Direction::Out, Content::Udp),
            (0, 0),
            "before the turn's end"
        );
        for _ in 0..2 {
            link.flush();
            assert_eq!(got(Direction::Out, Content::Udp), (1, 14 + 20 + 8 + 3));
            assert_eq!(got(Direction::Out, Content::Other), (1, 60));
            assert_eq!(got(Direction::In, Content::Udp), (2, 2 * (14 + 8 + 5) + 60));
            assert_eq!(got(Direction::In, Content::Arp), (1, 42));
            assert_eq!(got(Direction::In, Content::Other), (1, 14));
        }
    }
}
