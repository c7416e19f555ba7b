//! From the guest to the sockets: frames, a batch at a time, so that what they bring for one
//! socket goes there in one call.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use socket2::{Domain, Protocol as SocketProtocol, Socket, Type};

use super::table::Flow;
use super::{EVERYBODY, Run, Verdict};
use crate::config::{GATEWAY_LINK_LOCAL, Transport};
use crate::flow::Key;
use crate::flow::data::Data;
use crate::flow::echo::Echo;
use crate::flow::tcp::{Taken, Tcp};
use crate::flow::udp::Udp;
use crate::link::loans::{Loan, Loans};
use crate::link::{Link, MAX_FRAME, Received};
use crate::wire::{
    self, ETHERNET, Flags, Frame, Icmp, Mac, Packet, Protocol, Segment, SegmentHeader,
    Udp as Datagram, Unreachable,
};
use crate::{access, resolver, service};

/// Frames taken from the guest before the sockets get their turn.
const FRAMES: usize = 256;
/// Batches before the loop looks at everything else.
const BATCHES: usize = 8;
/// Datagrams that one frame may be cut into (UDP_MAX_SEGMENTS, include/linux/udp.h).
const MAX_DATAGRAMS: usize = 128;
/// Bytes of them: some frames of the largest size.
const ARENA: usize = 8 * MAX_FRAME;

/// Frames that were taken, and what of them is for whom.
#[derive(Default)]
pub struct Batch {
    arena: Box<[u8]>,
    pieces: Vec<Piece>,
    touched: Vec<u32>,
    /// Flows from this number on come first, so that room that is short goes round.
    first: u32,
}

/// Bytes for a flow's socket.
struct Piece {
    flow: u32,
    place: Place,
    /// Where in the arena the packet starts that they came in.
    packet: usize,
}

/// Where they lie.
enum Place {
    Arena(Range<usize>),
    Lent(Loan, Range<usize>),
}

impl Piece {
    /// Its bytes; none where what is lent is not to be had.
    fn data<'a>(&self, arena: &'a [u8], loans: Option<&'a Loans>) -> Option<Data<'a>> {
        match &self.place {
            Place::Arena(range) => arena.get(range.clone()).map(Data::Copied),
            Place::Lent(loan, range) => Some(Data::Lent(loans?, *loan, range.clone())),
        }
    }

    /// Its bytes, if they are in the arena.
    fn bytes<'a>(&self, arena: &'a [u8]) -> Option<&'a [u8]> {
        match &self.place {
            Place::Arena(range) => arena.get(range.clone()),
            Place::Lent(..) => None,
        }
    }
}

impl Batch {
    /// The flow is gone, and what was to go there.
    pub fn forget(&mut self, flow: u32) {
        self.pieces.retain(|piece| piece.flow != flow);
        self.touched.retain(|touched| *touched != flow);
    }
}

/// Who sent a packet, by what it says.
enum Sender {
    Guest,
    /// The guest before it has an address, or on its link only.
    Local,
    Stranger,
}

impl Run<'_> {
    /// Takes the guest's frames, and lets flows go on that found its card full.
    pub(super) fn frames(&mut self) {
        let mut arena = std::mem::take(&mut self.batch.arena);
        if arena.is_empty() {
            arena = vec![0; ARENA].into_boxed_slice();
        }
        if let Some(cut_off) = self.blocked.first() {
            // It had its share.
            self.batch.first = cut_off.saturating_add(1);
        }
        self.batch.touched.append(&mut self.blocked);
        self.more = true;
        for _ in 0..BATCHES {
            let (mut count, mut used) = (0, 0);
            while count < FRAMES
                && let Some(place) = arena.get_mut(used..used + MAX_FRAME)
                && let Some(received) = self.link.receive(place)
            {
                count += 1;
                let end = used + received.len;
                if let Some(frame) = arena.get(used..end) {
                    self.frame(frame, used, received);
                }
                used = end;
            }
            self.engine.counters.frames.add_many(count as u64);
            self.deliver(&arena);
            self.link.end_batch();
            // What the guest was just told may have made it send more, so it is asked again.
            if count == 0 {
                self.more = false;
                break;
            }
        }
        self.batch.arena = arena;
    }

    /// Gives the sockets what the batch has for them, then the guest what that gave.
    fn deliver(&mut self, arena: &[u8]) {
        let mut pieces = std::mem::take(&mut self.batch.pieces);
        // Stable: what is for one flow stays in its order.
        pieces.sort_by_key(|piece| piece.flow);
        for group in pieces.chunk_by(|a, b| a.flow == b.flow) {
            let Some(index) = group.first().map(|piece| piece.flow) else {
                continue;
            };
            match self.table.get(index) {
                Some(Flow::Tcp(tcp)) => {
                    let loans = self.link.loans();
                    let pieces = group.iter().map(|piece| piece.data(arena, loans));
                    let data: Option<Vec<Data<'_>>> = pieces.collect();
                    let verdict =
                        data.map_or(Verdict::Reset, |data| tcp.deliver(&data, &mut self.pool));
                    if verdict != Verdict::Keep {
                        self.judge(index, verdict);
                    }
                }
                Some(Flow::Udp(udp)) => {
                    udp.touch(self.now);
                    let pieces = group.iter().map(|piece| piece.bytes(arena));
                    let datagrams: Vec<&[u8]> = pieces.map(Option::unwrap_or_default).collect();
                    let unsent = udp.send(&datagrams);
                    let full = std::mem::take(&mut udp.unsent);
                    self.engine.counters.dropped_socket_full.add_many(full);
                    if let Some(unsent) = unsent
                        && let Some(piece) = group.get(unsent.index)
                        && let Some(packet) = arena.get(piece.packet..)
                    {
                        self.unsent(index, &unsent.error, packet);
                    }
                }
                _ => {}
            }
        }
        pieces.clear();
        self.batch.pieces = pieces;
        let mut touched = std::mem::take(&mut self.batch.touched);
        touched.sort_unstable();
        touched.dedup();
        let first = touched.partition_point(|flow| *flow < self.batch.first);
        touched.rotate_left(first);
        for index in touched.drain(..) {
            self.push(index);
        }
        self.batch.touched = touched;
    }

    /// A datagram that the host's socket refused: the guest learns why.
    pub(super) fn unsent(&mut self, index: u32, error: &io::Error, packet: &[u8]) {
        let Some(Flow::Udp(udp)) = self.table.get(index) else {
            return;
        };
        let remote = udp.key.remote.ip();
        self.engine.counters.dropped_unreachable.add();
        let why = match error.raw_os_error() {
            Some(libc::ECONNREFUSED) => Unreachable::Port,
            Some(libc::EMSGSIZE) => match udp.path_mtu() {
                Ok(mtu) => Unreachable::TooBig(mtu),
                Err(_) => return,
            },
            _ => match Unreachable::of(error.kind()) {
                Some(why) => why,
                None => return,
            },
        };
        // Of a frame with several datagrams in it the first is shown.
        if let Some(packet) = Packet::parse(packet) {
            self.unreachable(why, remote, packet.whole);
        }
    }

    /// One frame, which lies at `start` of the arena.
    fn frame(&mut self, frame: &[u8], start: usize, received: Received) {
        let counters = self.engine.counters.clone();
        let Some((mac, content)) = wire::parse(frame) else {
            return counters.dropped_malformed.add();
        };
        let packet = match content {
            Frame::Arp(question) => {
                self.speaks_from(mac);
                if let Some(answer) = service::arp::answer(&self.engine.config, &question)
                    && !self.link.send(&[&answer.frame()], Default::default())
                {
                    counters.dropped_no_room.add();
                }
                return;
            }
            Frame::Ip(packet) => packet,
            Frame::Other => return counters.dropped_protocol.add(),
        };
        let Some(ip) = Packet::parse(packet) else {
            return counters.dropped_malformed.add();
        };
        if let Some(place) = ip.fragment {
            counters.dropped_fragment.add();
            // Told once, the socket that sent the packet has an error for a longer datagram than
            // can be sent. Errors are nobody's to answer (RFC 1122, section 3.2.2).
            let first = place == 0 && matches!(ip.protocol, Protocol::Tcp | Protocol::Udp);
            if first && matches!(self.sender(&ip), Sender::Guest) {
                let why = Unreachable::TooBig(self.engine.config.mtu);
                self.unreachable(why, ip.destination, ip.whole);
            }
            return;
        }
        match self.sender(&ip) {
            Sender::Guest => self.speaks_from(mac),
            Sender::Local => {
                self.speaks_from(mac);
                return self.service(&ip);
            }
            Sender::Stranger => return counters.dropped_spoofed.add(),
        }
        let start = start + ETHERNET;
        match ip.protocol {
            Protocol::Tcp => self.segment(&ip, start, received.loan),
            Protocol::Udp => self.datagram(&ip, start, received.datagrams),
            Protocol::Icmp => self.icmp(&ip),
            Protocol::Other(_) => counters.dropped_protocol.add(),
        }
    }

    /// The guest's card has that address. What was asked before that was known went to everybody, which
    /// no kernel takes for a connection.
    fn speaks_from(&mut self, mac: Mac) {
        if self.guest_mac == EVERYBODY {
            self.probes.ask_again(self.now);
        }
        self.guest_mac = mac;
    }

    /// Whether the guest may send from that address.
    fn sender(&self, ip: &Packet<'_>) -> Sender {
        if self.engine.config.guest(ip.source) == Some(ip.source) {
            return Sender::Guest;
        }
        match ip.source {
            IpAddr::V4(_) if ip.protocol == Protocol::Udp => Sender::Local,
            IpAddr::V6(v6) if v6.is_unspecified() || v6.is_unicast_link_local() => Sender::Local,
            _ => Sender::Stranger,
        }
    }

    /// What only the gateway's services answer: DHCP, and IPv6's neighbour discovery.
    fn service(&mut self, ip: &Packet<'_>) {
        let counters = self.engine.counters.clone();
        let has_route = self.pod.has_route(true);
        self.engine.config.resolver.refresh(self.now);
        let config = &self.engine.config;
        let answer = match ip.protocol {
            Protocol::Udp => match Datagram::parse(ip.payload) {
                Some(udp) if is_dhcp(ip.source, udp.destination) => match ip.source {
                    IpAddr::V4(_) => service::dhcp4::answer(config, udp.payload),
                    IpAddr::V6(client) => service::dhcp6::answer(config, client, udp.payload),
                },
                Some(_) => return self.beyond_scope(ip),
                None => return counters.dropped_malformed.add(),
            },
            Protocol::Icmp => service::ndp::answer(config, ip, has_route),
            _ => return self.beyond_scope(ip),
        };
        if let Some(answer) = answer {
            self.packet(&answer);
        }
    }

    /// A packet that wants to leave the guest's link from an address that is known there only: a
    /// guest with a router but no address of its own yet. It learns that at once.
    fn beyond_scope(&mut self, ip: &Packet<'_>) {
        self.engine.counters.dropped_spoofed.add();
        let local = matches!(ip.source, IpAddr::V6(source) if source.is_unicast_link_local());
        let beyond = matches!(ip.destination, IpAddr::V6(to)
            if !to.is_unicast_link_local() && !to.is_multicast());
        if local && beyond && self.engine.config.v6.is_some() {
            let gateway = IpAddr::V6(GATEWAY_LINK_LOCAL);
            let message = Icmp::unreachable(Unreachable::Scope, gateway, ip.source, ip.whole);
            self.packet(&message);
        }
    }

    fn segment(&mut self, ip: &Packet<'_>, start: usize, loan: Option<Loan>) {
        let Some(segment) = Segment::parse(ip.payload) else {
            return self.engine.counters.dropped_malformed.add();
        };
        let key = Key {
            transport: Transport::Tcp,
            guest_port: segment.source,
            remote: SocketAddr::new(ip.destination, segment.destination),
        };
        let Some(index) = self.table.find(&key) else {
            return self.unknown(&key, &segment, ip);
        };
        let now = self.now;
        let Some(tcp) = self.table.tcp(index) else {
            return;
        };
        if tcp.is_taken_for_another(&segment, now) {
            self.table.schedule(index);
            return self.refuse(&key, &segment);
        }
        let asked = tcp.is_asking();
        let taken = tcp.receive(&segment, now, &mut self.pool);
        let Taken { verdict, data, .. } = taken;
        // The payload ends where the packet does.
        let header = ip.whole.len() - segment.payload.len();
        let place = |range: Range<usize>| {
            let behind = |at: usize| at + range.start..at + range.end;
            match loan {
                Some(loan) => Place::Lent(loan, behind(ETHERNET + header)),
                None => Place::Arena(behind(start + header)),
            }
        };
        if taken.early {
            let bytes = match (place(0..segment.payload.len()), self.link.loans()) {
                (Place::Lent(loan, range), Some(loans)) => Data::Lent(loans, loan, range),
                _ => Data::Copied(segment.payload),
            };
            match bytes.to_box() {
                Ok(bytes) => tcp.keep_ahead(&segment, bytes),
                Err(error) => tracing::debug!("a frame that was lent cannot be read: {error}"),
            }
        }
        if verdict != Verdict::Keep {
            self.judge(index, verdict);
            if asked {
                self.guest_listens(key.guest_port, key.remote.is_ipv6(), false);
            }
            return;
        }
        if !data.is_empty() || segment.flags.has(Flags::FIN) {
            self.batch.pieces.push(Piece {
                flow: index,
                place: place(data),
                packet: start,
            });
        }
        if self.batch.touched.last() != Some(&index) {
            self.batch.touched.push(index);
        }
    }

    /// A segment of no flow.
    fn unknown(&mut self, key: &Key, segment: &Segment<'_>, ip: &Packet<'_>) {
        if segment.flags.has(Flags::SYN) && !segment.flags.has(Flags::ACK) {
            return self.connect(*key, segment, ip);
        }
        if self.answers_probe(key, segment) {
            return;
        }
        self.engine.counters.dropped_stray.add();
        if !segment.flags.has(Flags::RST) {
            self.refuse(key, segment);
        }
    }

    /// Answers a segment with a reset (RFC 9293, section 3.10.7.1).
    fn refuse(&mut self, key: &Key, segment: &Segment<'_>) {
        let Some(guest) = self.engine.config.guest(key.remote.ip()) else {
            return;
        };
        let len = segment.payload.len() as u32
            + u32::from(segment.flags.has(Flags::SYN))
            + u32::from(segment.flags.has(Flags::FIN));
        let header = SegmentHeader {
            source: key.remote.port(),
            destination: key.guest_port,
            sequence: segment.acknowledgement,
            acknowledgement: segment.sequence.wrapping_add(len),
            flags: Flags::RST.and(Flags::ACK),
            window: 0,
            options: None,
        };
        let ends = (key.remote.ip(), guest);
        self.outlet().segment(ends, &header, [&[], &[]], u16::MAX);
    }

    /// Where a new flow of that name goes, or what the guest is told; nothing where it may try
    /// again. A refusal is counted.
    fn admit(&mut self, key: &Key) -> Result<SocketAddr, Option<Unreachable>> {
        let counters = &self.engine.counters;
        if self.table.len() >= self.engine.config.max_flows {
            counters.refused_limit.add();
            return Err(Some(Unreachable::Host));
        }
        if key.remote.port() == resolver::PORT {
            self.engine.config.resolver.refresh(self.now);
        }
        let config = &self.engine.config;
        let to = access::destination(config, &self.pod, key.remote).ok_or_else(|| {
            counters.refused_access.add();
            Unreachable::Prohibited
        })?;
        if !config.policy.allows(to.ip()) {
            counters.refused_policy.add();
            return Err(Some(Unreachable::Prohibited));
        }
        if let Some(pace) = &mut self.new_flows {
            if !pace.wait(self.now).is_zero() {
                counters.refused_rate.add();
                return Err(None);
            }
            pace.spend(1, self.now);
        }
        Ok(to)
    }

    /// The guest opens a connection.
    fn connect(&mut self, key: Key, syn: &Segment<'_>, ip: &Packet<'_>) {
        let to = match self.admit(&key) {
            Ok(to) => to,
            Err(None) => return,
            Err(Some(_)) => return self.refuse(&key, syn),
        };
        let socket = match start_connect(to) {
            Ok(socket) => socket,
            Err(error) => {
                if !self.note_shortage(&error) {
                    self.engine.counters.connect_failed(error.kind());
                }
                return match Unreachable::of(error.kind()) {
                    Some(why) => self.unreachable(why, key.remote.ip(), ip.whole),
                    None => self.refuse(&key, syn),
                };
            }
        };
        self.engine.counters.tcp_out.add();
        let first = self.engine.first_sequence(&key);
        let tcp = Tcp::outgoing(key, socket.into(), syn, first, self.first_promise());
        let Some(index) = self.insert(Flow::Tcp(Box::new(tcp))) else {
            return self.refuse(&key, syn);
        };
        // To somebody on this machine it is done by now.
        if let Some(tcp) = self.table.tcp(index) {
            let verdict = tcp.connected();
            if verdict != Verdict::Keep {
                return self.judge(index, verdict);
            }
        }
        self.batch.touched.push(index);
    }

    fn datagram(&mut self, ip: &Packet<'_>, start: usize, size: Option<u16>) {
        let Some(udp) = Datagram::parse(ip.payload) else {
            return self.engine.counters.dropped_malformed.add();
        };
        if is_dhcp(ip.source, udp.destination) {
            // A renewal, from the address that it is about.
            return self.service(ip);
        }
        let remote = SocketAddr::new(ip.destination, udp.destination);
        let size = size.map_or(udp.payload.len(), usize::from).max(1);
        if udp.payload.len().div_ceil(size) > MAX_DATAGRAMS {
            // No kernel makes such a frame, and each piece would be a call.
            return self.engine.counters.dropped_malformed.add();
        }
        // An answer to a client of a forward goes out by the forward's own socket.
        if self.engine.forwards.knows(udp.source, remote) {
            let answer = |payload| self.engine.forwards.answer(udp.source, remote, payload);
            let lost = if udp.payload.is_empty() {
                usize::from(!answer(&[]))
            } else {
                let datagrams = udp.payload.chunks(size);
                datagrams.filter(|payload| !answer(payload)).count()
            };
            let full = &self.engine.counters.dropped_socket_full;
            return full.add_many(lost as u64);
        }
        let key = Key {
            transport: Transport::Udp,
            guest_port: udp.source,
            remote,
        };
        let index = match self.table.find(&key) {
            Some(index) => index,
            None => match self.open_udp(key, ip) {
                Some(index) => index,
                None => return,
            },
        };
        let header = ip.whole.len() - udp.payload.len();
        let (mut at, end) = (start + header, start + ip.whole.len());
        loop {
            let next = end.min(at + size);
            self.batch.pieces.push(Piece {
                flow: index,
                place: Place::Arena(at..next),
                packet: start,
            });
            at = next;
            if at >= end {
                break;
            }
        }
    }

    fn open_udp(&mut self, key: Key, ip: &Packet<'_>) -> Option<u32> {
        let opened = self.admit(&key).and_then(|to| {
            Udp::open(key, to, self.now).map_err(|error| Some(self.failure(&error)))
        });
        match opened {
            Ok(udp) => {
                self.engine.counters.udp_flows.add();
                self.insert(Flow::Udp(udp))
            }
            Err(why) => {
                if let Some(why) = why {
                    self.unreachable(why, key.remote.ip(), ip.whole);
                }
                None
            }
        }
    }

    fn failure(&mut self, error: &io::Error) -> Unreachable {
        self.note_shortage(error);
        Unreachable::of(error.kind()).unwrap_or(Unreachable::Host)
    }

    fn icmp(&mut self, ip: &Packet<'_>) {
        let Some(message) = Icmp::parse(ip.payload) else {
            return self.engine.counters.dropped_malformed.add();
        };
        let v6 = ip.source.is_ipv6();
        let (question, answer) = Icmp::echo(v6);
        if message.kind != question {
            // The guest's errors are about what we sent, and we know the sockets better.
            return if v6 {
                self.service(ip);
            } else {
                self.engine.counters.dropped_protocol.add();
            };
        }
        if self.engine.config.is_ours(ip.destination) {
            let echo = Icmp {
                kind: answer,
                ..message
            };
            return self.packet(&echo.packet(ip.destination, ip.source));
        }
        let [high, low, ..] = message.rest;
        let key = Key {
            transport: Transport::Icmp,
            guest_port: u16::from_be_bytes([high, low]),
            remote: SocketAddr::new(ip.destination, 0),
        };
        let Some(index) = self.table.find(&key).or_else(|| self.open_echo(key, ip)) else {
            return;
        };
        let now = self.now;
        if let Some(Flow::Echo(echo)) = self.table.get(index)
            && let Err(error) = echo.send(&message, now)
        {
            if error.kind() == io::ErrorKind::WouldBlock {
                return self.engine.counters.dropped_socket_full.add();
            }
            self.engine.counters.dropped_unreachable.add();
            let why = self.failure(&error);
            self.unreachable(why, ip.destination, ip.whole);
        }
    }

    fn open_echo(&mut self, key: Key, ip: &Packet<'_>) -> Option<u32> {
        let opened = self.admit(&key).and_then(|to| {
            Echo::open(key, to, self.now).map_err(|error| Some(self.failure(&error)))
        });
        match opened {
            Ok(echo) => {
                self.engine.counters.echo_flows.add();
                self.insert(Flow::Echo(echo))
            }
            Err(why) => {
                if let Some(why) = why {
                    self.unreachable(why, key.remote.ip(), ip.whole);
                }
                None
            }
        }
    }
}

/// Whether that is DHCP's server port, in the family of `source`.
fn is_dhcp(source: IpAddr, port: u16) -> bool {
    port == if source.is_ipv6() {
        service::dhcp6::SERVER
    } else {
        service::dhcp4::SERVER
    }
}

fn start_connect(to: SocketAddr) -> io::Result<Socket> {
    let domain = if to.is_ipv6() {
        Domain::IPV6
    } else {
        Domain::IPV4
    };
    let socket = Socket::new(
        domain,
        Type::STREAM.nonblocking(),
        Some(SocketProtocol::TCP),
    )?;
    socket.set_tcp_nodelay(true)?;
    // Urgent data is data in its place (RFC 6093, section 5).
    socket.set_out_of_band_inline(true)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(socket),
    }
}
