//! An eye on the wire: what no sender of TCP may do whatever befalls its frames, and how often
//! the guest had to send again. It reads the frames by smoltcp, which reads them unlike the engine.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket,
};

/// Frames that are kept for whom a test fails.
const KEPT: usize = 24;

/// What one side of a connection said.
#[derive(Debug, Default, Clone, Copy)]
struct Said {
    /// Its window's scale, once it sent a SYN; `None` for one without.
    scale: Option<u8>,
    syn: bool,
    fin: bool,
    /// One past the last byte that it allows, and the next that it wants.
    edge: Option<i32>,
    wants: i32,
    /// One past the last byte that it sent.
    sent: i32,
}

/// One connection, by the guest's port and the other's.
#[derive(Debug, Default, Clone, Copy)]
struct Pair {
    guest: Said,
    engine: Said,
}

/// Everything that was seen.
#[derive(Default)]
pub struct Watch {
    pairs: HashMap<(bool, u16, u16), Pair>,
    last: VecDeque<String>,
    /// The guest's last frame.
    pub last_of_guest: Vec<u8>,
    /// Frames with data that the guest had sent before.
    pub guest_again: u64,
    /// Frames with data that the engine had sent before.
    pub engine_again: u64,
    /// Frames with data from the engine.
    pub engine_data: u64,
    /// The most data that the engine sent in a frame.
    pub largest: usize,
}

impl Watch {
    /// The guest sends a frame.
    pub fn guest_sends(&mut self, now: Duration, frame: &[u8]) {
        self.frame(now, frame, true);
        self.last_of_guest = frame.to_vec();
    }

    /// The engine sends a frame.
    pub fn engine_sends(&mut self, now: Duration, frame: &[u8]) {
        self.frame(now, frame, false);
    }

    /// The last frames, a line each.
    pub fn log(&self) -> String {
        lines(&self.last)
    }

    fn note(&mut self, now: Duration, guest: bool, text: &str) {
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        let who = if guest { "guest  " } else { "gateway" };
        self.last.push_back(format!("  {now:>12?} {who} {text}"));
    }

    fn frame(&mut self, now: Duration, frame: &[u8], guest: bool) {
        let frame = EthernetFrame::new_checked(frame).unwrap();
        let (v6, protocol, packet) = match frame.ethertype() {
            EthernetProtocol::Ipv4 => {
                let packet = Ipv4Packet::new_checked(frame.payload()).unwrap();
                assert!(packet.verify_checksum(), "IPv4's checksum is wrong");
                (false, packet.next_header(), packet.payload())
            }
            EthernetProtocol::Ipv6 => {
                let packet = Ipv6Packet::new_checked(frame.payload()).unwrap();
                (true, packet.next_header(), packet.payload())
            }
            other => return self.note(now, guest, &other.to_string()),
        };
        if protocol != IpProtocol::Tcp {
            return self.note(now, guest, &protocol.to_string());
        }
        let segment = TcpPacket::new_checked(packet).unwrap();
        self.note(now, guest, &segment.to_string());
        self.segment(v6, guest, &segment);
    }

    fn segment(&mut self, v6: bool, guest: bool, segment: &TcpPacket<&[u8]>) {
        let ports = if guest {
            (segment.src_port(), segment.dst_port())
        } else {
            (segment.dst_port(), segment.src_port())
        };
        let pair = self.pairs.entry((v6, ports.0, ports.1)).or_default();
        if segment.syn() && !segment.ack() {
            *pair = Pair::default();
        }
        if segment.rst() {
            return;
        }
        let (own, other) = if guest {
            (&mut pair.guest, &mut pair.engine)
        } else {
            (&mut pair.engine, &mut pair.guest)
        };
        let start = segment.seq_number().0;
        if segment.syn() {
            own.syn = true;
            own.scale = scale(segment);
            own.sent = start.wrapping_add(1);
        }
        if !own.syn {
            return;
        }
        if segment.ack() {
            let scales = !segment.syn() && other.scale.is_some();
            let scale = own.scale.filter(|_| scales).unwrap_or(0);
            let wants = segment.ack_number().0;
            let window = i32::from(segment.window_len()) << scale;
            let edge = wants.wrapping_add(window);
            if let Some(before) = own.edge {
                let back = before.wrapping_sub(edge);
                // It is told in units, and may seem to shrink by less than one.
                assert!(
                    back < 1 << scale || other.fin,
                    "the window's end went back by {back}:\n{}",
                    lines(&self.last)
                );
                assert!(own.wants.wrapping_sub(wants) <= 0, "acknowledges less");
            }
            own.wants = wants;
            if own.edge.is_none_or(|before| edge.wrapping_sub(before) > 0) {
                own.edge = Some(edge);
            }
        }
        let len = segment.payload().len();
        let end = start.wrapping_add(len as i32);
        let fin = segment.fin();
        if len > 0 {
            let allowed = other.edge.unwrap_or(start);
            let beyond = end.wrapping_sub(allowed);
            // A byte beyond the window probes it.
            let probe = len == 1 && beyond > 0 || beyond == len as i32;
            assert!(
                beyond <= 0 || len == 1,
                "{beyond} bytes beyond the window:\n{}",
                lines(&self.last)
            );
            let again = start.wrapping_sub(own.sent) < 0;
            if guest {
                self.guest_again += u64::from(again && !probe);
            } else {
                self.engine_data += 1;
                self.engine_again += u64::from(again && !probe);
                self.largest = self.largest.max(len);
            }
            if !probe && end.wrapping_sub(own.sent) > 0 {
                own.sent = end;
            }
        }
        own.fin |= fin;
    }
}

fn lines(last: &VecDeque<String>) -> String {
    last.iter().map(|line| format!("{line}\n")).collect()
}

/// The window's scale in a SYN, if it has one.
fn scale(segment: &TcpPacket<&[u8]>) -> Option<u8> {
    let mut options = segment.options();
    while !options.is_empty() {
        let (rest, option) = smoltcp::wire::TcpOption::parse(options).unwrap();
        if let smoltcp::wire::TcpOption::WindowScale(scale) = option {
            return Some(scale);
        }
        options = rest;
    }
    None
}
