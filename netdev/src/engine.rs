//! One loop over the link, the sockets and the timers.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

use socket2::{Domain, Protocol as SocketProtocol, SockAddr, Socket, Type};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::access;
use crate::config::{Config, Transport};
use crate::counters::Counters;
use crate::flow::tcp::{Tcp, Verdict};
use crate::flow::udp::Udp;
use crate::flow::{Key, Outlet};
use crate::forward::{ForwardError, Forwards, Port};
use crate::link::Link;
use crate::service::{self, DHCP_SERVER};
use crate::wire::{
    self, Flags, Frame, Icmp, Ipv4, Mac, Protocol, Segment, SegmentHeader, Udp as Datagram,
};

/// What an epoll event is about: a kind in the top byte, an index below.
const KIND: u64 = 56;
const STOP: u64 = 1;
const LINK: u64 = 2;
const PORT: u64 = 3;
const FLOW: u64 = 4;
/// Frames taken from the guest before the sockets get their turn.
const FRAMES: usize = 256;
const EVENTS: usize = 128;
/// The largest datagram, and what one read of a socket takes at most.
const SCRATCH: usize = 64 << 10;

enum Flow {
    Tcp(Box<Tcp>),
    Udp(Udp),
}

struct Entry {
    flow: Flow,
    /// What epoll watches its socket for.
    interest: EventSet,
    /// When the timer heap wakes it, at the earliest.
    scheduled: Option<Instant>,
    generation: u64,
}

/// A user-mode network, with its listening sockets; it runs as often as the guest starts.
pub struct Engine {
    config: Config,
    counters: Arc<Counters>,
    forwards: Forwards,
    secret: RandomState,
    started: Instant,
}

/// One run: everything that ends with the guest.
struct Run<'a> {
    engine: &'a mut Engine,
    link: &'a mut dyn Link,
    epoll: Epoll,
    entries: Vec<Option<Entry>>,
    free: Vec<usize>,
    keys: HashMap<Key, usize>,
    timers: BinaryHeap<Reverse<(Instant, usize, u64)>>,
    generation: u64,
    guest_mac: Mac,
    scratch: Vec<u8>,
    /// Flows that found the guest's card full.
    blocked: Vec<usize>,
    now: Instant,
}

impl Engine {
    /// Binds every forward's socket; a port that is taken is an error here, before a guest runs.
    pub fn new(config: Config) -> Result<Self, ForwardError> {
        let forwards = Forwards::bind(&config.forwards)?;
        Ok(Self {
            config,
            counters: Arc::default(),
            forwards,
            secret: RandomState::new(),
            started: Instant::now(),
        })
    }

    /// What the network has done.
    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }

    /// Serves the guest behind `link` until `stop` can be read. Then every flow is reset; the
    /// listening sockets stay for the next run.
    pub fn run(&mut self, link: &mut dyn Link, stop: RawFd) -> io::Result<()> {
        let epoll = Epoll::new()?;
        let watch = |fd, token| {
            epoll.ctl(
                ControlOperation::Add,
                fd,
                EpollEvent::new(EventSet::IN, token),
            )
        };
        watch(stop, STOP << KIND)?;
        for fd in link.descriptors() {
            watch(fd, LINK << KIND)?;
        }
        for (index, port) in self.forwards.ports().iter().enumerate() {
            watch(port.descriptor(), PORT << KIND | index as u64)?;
        }
        let mut run = Run {
            engine: self,
            link,
            epoll,
            entries: Vec::new(),
            free: Vec::new(),
            keys: HashMap::new(),
            timers: BinaryHeap::new(),
            generation: 0,
            // Everybody, until the guest has spoken.
            guest_mac: [0xff; 6],
            scratch: vec![0; SCRATCH],
            blocked: Vec::new(),
            now: Instant::now(),
        };
        run.serve()
    }

    /// An initial sequence number (RFC 6528): a clock of 4 us and a keyed hash of the flow.
    fn first_sequence(&self, key: &Key) -> u32 {
        let clock = self.started.elapsed().as_micros() / 4;
        (self.secret.hash_one(key) as u32).wrapping_add(clock as u32)
    }
}

impl Run<'_> {
    fn serve(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::default(); EVENTS];
        // Frames may lie there from before.
        self.frames();
        loop {
            self.link.flush();
            let count = match self.epoll.wait(self.patience(), &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(error) => return Err(error),
            };
            self.now = Instant::now();
            for event in events.iter().take(count) {
                let token = event.data();
                let index = (token & 0xffff_ffff) as usize;
                match token >> KIND {
                    STOP => {
                        self.end();
                        return Ok(());
                    }
                    LINK => {
                        self.link.acknowledge();
                        self.frames();
                    }
                    PORT => self.port(index),
                    _ => self.socket(index, token, event.event_set()),
                }
            }
            self.timers();
        }
    }

    /// Milliseconds until the next timer.
    fn patience(&self) -> i32 {
        match self.timers.peek() {
            None => -1,
            Some(Reverse((at, ..))) => {
                let left = at.saturating_duration_since(self.now).as_millis() + 1;
                i32::try_from(left).unwrap_or(i32::MAX)
            }
        }
    }

    /// Takes the guest's frames, and lets flows go on that found its card full.
    fn frames(&mut self) {
        let mut frame = Vec::new();
        let mut touched = std::mem::take(&mut self.blocked);
        loop {
            let mut count = 0;
            while count < FRAMES && self.link.receive(&mut frame) {
                count += 1;
                self.engine.counters.frames.add();
                if let Some(index) = self.frame(&frame) {
                    touched.push(index);
                }
            }
            touched.sort_unstable();
            touched.dedup();
            for index in touched.drain(..) {
                self.push(index);
            }
            if count < FRAMES {
                return;
            }
        }
    }

    /// One frame; the flow that it touched.
    fn frame(&mut self, frame: &[u8]) -> Option<usize> {
        let counters = self.engine.counters.clone();
        let Some((mac, content)) = wire::parse(frame) else {
            counters.dropped_malformed.add();
            return None;
        };
        let packet = match content {
            Frame::Arp(question) => {
                self.guest_mac = mac;
                if let Some(answer) = service::arp(&self.engine.config, &question) {
                    self.give(&[&answer.frame()]);
                }
                return None;
            }
            Frame::Ipv4(packet) => packet,
            Frame::Other => {
                counters.dropped_protocol.add();
                return None;
            }
        };
        let Some(ip) = Ipv4::parse(packet) else {
            counters.dropped_malformed.add();
            return None;
        };
        if ip.fragment {
            counters.dropped_fragment.add();
            return None;
        }
        self.guest_mac = mac;
        if ip.protocol == Protocol::Udp && ip.source != self.engine.config.addresses.guest {
            self.dhcp(&ip);
            return None;
        }
        if ip.source != self.engine.config.addresses.guest {
            counters.dropped_spoofed.add();
            return None;
        }
        match ip.protocol {
            Protocol::Tcp => self.segment(&ip, packet),
            Protocol::Udp => self.datagram(&ip, packet),
            _ => {
                counters.dropped_protocol.add();
                None
            }
        }
    }

    fn give(&mut self, parts: &[&[u8]]) {
        if !self.link.send(parts, crate::link::Offload::default()) {
            self.engine.counters.dropped_no_room.add();
        }
    }

    fn outlet<'l>(config: &Config, link: &'l mut dyn Link, guest_mac: Mac) -> Outlet<'l> {
        Outlet {
            link,
            addresses: config.addresses,
            guest_mac,
            mtu: config.mtu,
        }
    }

    fn packet(&mut self, packet: &[u8]) {
        let mut outlet = Self::outlet(&self.engine.config, self.link, self.guest_mac);
        if !outlet.packet(packet) {
            self.engine.counters.dropped_no_room.add();
        }
    }

    /// A datagram from an address that is not the guest's: only DHCP has business there.
    fn dhcp(&mut self, ip: &Ipv4<'_>) {
        match Datagram::parse(ip.payload) {
            Some(udp) if udp.destination == DHCP_SERVER => {
                if let Some(reply) = service::dhcp(&self.engine.config, udp.payload) {
                    self.packet(&reply);
                }
            }
            Some(_) => self.engine.counters.dropped_spoofed.add(),
            None => self.engine.counters.dropped_malformed.add(),
        }
    }

    /// Tells the guest that a packet of its did not arrive.
    fn unreachable(&mut self, kind: (u8, u8), packet: &[u8]) {
        let addresses = self.engine.config.addresses;
        // The packet's header and the first eight bytes behind it (RFC 792).
        let payload = packet.get(..28).unwrap_or(packet);
        let message = Icmp {
            kind,
            rest: [0; 4],
            payload,
        };
        self.packet(&message.packet(addresses.gateway, addresses.guest));
    }

    fn segment(&mut self, ip: &Ipv4<'_>, packet: &[u8]) -> Option<usize> {
        let Some(segment) = Segment::parse(ip.payload) else {
            self.engine.counters.dropped_malformed.add();
            return None;
        };
        let key = Key {
            transport: Transport::Tcp,
            guest_port: segment.source,
            remote: SocketAddrV4::new(ip.destination, segment.destination),
        };
        if let Some(index) = self.keys.get(&key).copied() {
            if let Some(Entry {
                flow: Flow::Tcp(tcp),
                ..
            }) = self.entries.get_mut(index)?.as_mut()
            {
                let verdict = tcp.receive(&segment, self.now);
                self.judge(index, verdict, false);
            }
            return Some(index);
        }
        if segment.flags.has(Flags::SYN) && !segment.flags.has(Flags::ACK) {
            return self.connect(key, &segment, packet);
        }
        self.engine.counters.dropped_stray.add();
        if !segment.flags.has(Flags::RST) {
            self.refuse(&key, &segment);
        }
        None
    }

    /// Answers a segment with a reset (RFC 9293, section 3.10.7.1).
    fn refuse(&mut self, key: &Key, segment: &Segment<'_>) {
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
        let mut outlet = Self::outlet(&self.engine.config, self.link, self.guest_mac);
        outlet.segment(key, &header, (&[], &[]), u16::MAX);
    }

    /// The guest opens a connection.
    fn connect(&mut self, key: Key, syn: &Segment<'_>, packet: &[u8]) -> Option<usize> {
        let counters = self.engine.counters.clone();
        let Some(to) = access::destination(&self.engine.config, key.remote) else {
            counters.refused_access.add();
            self.refuse(&key, syn);
            return None;
        };
        if self.keys.len() >= self.engine.config.max_flows {
            counters.refused_limit.add();
            self.refuse(&key, syn);
            return None;
        }
        let socket = match start_connect(to) {
            Ok(socket) => socket,
            Err(error) => {
                self.failed(&key, error.kind(), Some((syn, packet)));
                return None;
            }
        };
        counters.tcp_out.add();
        let first = self.engine.first_sequence(&key);
        let tcp = Tcp::outgoing(key, socket, syn, first);
        let index = self.insert(key, Flow::Tcp(Box::new(tcp)))?;
        // To somebody on this machine it is done by now.
        if let Some(Entry {
            flow: Flow::Tcp(tcp),
            ..
        }) = self.entries.get_mut(index)?.as_mut()
        {
            let verdict = tcp.connected();
            self.judge(index, verdict, false);
        }
        Some(index)
    }

    /// The host could not connect: the guest gets what the host got.
    fn failed(&mut self, key: &Key, kind: io::ErrorKind, syn: Option<(&Segment<'_>, &[u8])>) {
        match (kind, syn) {
            (
                io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkUnreachable
                | io::ErrorKind::TimedOut,
                Some((_, packet)),
            ) => self.unreachable(Icmp::HOST_UNREACHABLE, packet),
            (_, Some((syn, _))) => self.refuse(key, syn),
            (_, None) => {}
        }
    }

    fn datagram(&mut self, ip: &Ipv4<'_>, packet: &[u8]) -> Option<usize> {
        let Some(udp) = Datagram::parse(ip.payload) else {
            self.engine.counters.dropped_malformed.add();
            return None;
        };
        if udp.destination == DHCP_SERVER {
            // A renewal, from the address that it is about.
            self.dhcp(ip);
            return None;
        }
        let remote = SocketAddrV4::new(ip.destination, udp.destination);
        // An answer to a client of a forward goes out by the forward's own socket.
        if self.engine.forwards.answer(udp.source, remote, udp.payload) {
            return None;
        }
        let key = Key {
            transport: Transport::Udp,
            guest_port: udp.source,
            remote,
        };
        let index = match self.keys.get(&key) {
            Some(index) => *index,
            None => self.open_udp(key, packet)?,
        };
        let now = self.now;
        let Some(Entry {
            flow: Flow::Udp(flow),
            ..
        }) = self.entries.get_mut(index)?.as_mut()
        else {
            return None;
        };
        flow.touch(now);
        if let Err(error) = flow.socket.send(udp.payload)
            && error.kind() == io::ErrorKind::ConnectionRefused
        {
            self.unreachable(Icmp::PORT_UNREACHABLE, packet);
        }
        None
    }

    fn open_udp(&mut self, key: Key, packet: &[u8]) -> Option<usize> {
        let counters = self.engine.counters.clone();
        let Some(to) = access::destination(&self.engine.config, key.remote) else {
            counters.refused_access.add();
            self.unreachable(Icmp::PROHIBITED, packet);
            return None;
        };
        if self.keys.len() >= self.engine.config.max_flows {
            counters.refused_limit.add();
            return None;
        }
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
            socket.set_nonblocking(true)?;
            socket.connect(to)?;
            Ok(socket)
        });
        match socket {
            Ok(socket) => {
                counters.udp_flows.add();
                self.insert(key, Flow::Udp(Udp::new(key, socket, self.now)))
            }
            Err(error) => {
                tracing::debug!("{key:?}: {error}");
                self.unreachable(Icmp::HOST_UNREACHABLE, packet);
                None
            }
        }
    }

    fn insert(&mut self, key: Key, flow: Flow) -> Option<usize> {
        let index = self.free.pop().unwrap_or(self.entries.len());
        self.generation += 1;
        let interest = EventSet::IN;
        let token = FLOW << KIND | (self.generation & 0xff_ffff) << 32 | index as u64;
        let event = EpollEvent::new(interest, token);
        if let Err(error) = self
            .epoll
            .ctl(ControlOperation::Add, descriptor(&flow), event)
        {
            tracing::warn!("a flow could not be watched: {error}");
            self.free.push(index);
            return None;
        }
        let entry = Entry {
            flow,
            interest,
            scheduled: None,
            generation: self.generation,
        };
        match self.entries.get_mut(index) {
            Some(slot) => *slot = Some(entry),
            None => self.entries.push(Some(entry)),
        }
        self.keys.insert(key, index);
        self.settle(index);
        Some(index)
    }

    fn remove(&mut self, index: usize) {
        let Some(entry) = self.entries.get_mut(index).and_then(Option::take) else {
            return;
        };
        let key = match &entry.flow {
            Flow::Tcp(tcp) => tcp.key,
            Flow::Udp(udp) => udp.key,
        };
        self.keys.remove(&key);
        self.free.push(index);
    }

    /// Watches a flow's socket for what it wants now, and sees to its timer.
    fn settle(&mut self, index: usize) {
        let Some(entry) = self.entries.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        let (interest, deadline) = match &entry.flow {
            Flow::Tcp(tcp) => {
                let mut interest = EventSet::empty();
                interest.set(EventSet::IN, tcp.wants_read());
                interest.set(EventSet::OUT, tcp.wants_write());
                (interest, tcp.deadline)
            }
            Flow::Udp(udp) => (EventSet::IN, Some(udp.deadline())),
        };
        if interest != entry.interest {
            let token = FLOW << KIND | (entry.generation & 0xff_ffff) << 32 | index as u64;
            let event = EpollEvent::new(interest, token);
            let fd = descriptor(&entry.flow);
            if let Err(error) = self.epoll.ctl(ControlOperation::Modify, fd, event) {
                tracing::warn!("a flow could not be watched: {error}");
            }
            entry.interest = interest;
        }
        if let Some(at) = deadline
            && entry.scheduled.is_none_or(|scheduled| at < scheduled)
        {
            entry.scheduled = Some(at);
            self.timers.push(Reverse((at, index, entry.generation)));
        }
    }

    /// Sends what a flow has for the guest.
    fn push(&mut self, index: usize) {
        let (now, mac) = (self.now, self.guest_mac);
        let mut verdict = Verdict::Keep;
        if let Some(Entry {
            flow: Flow::Tcp(tcp),
            ..
        }) = self.entries.get_mut(index).and_then(Option::as_mut)
        {
            let mut outlet = Self::outlet(&self.engine.config, self.link, mac);
            if !tcp.send(&mut outlet, now) {
                self.blocked.push(index);
            }
            if tcp.is_done() {
                verdict = Verdict::Done;
            }
        }
        self.judge(index, verdict, true);
    }

    /// Carries out a verdict.
    fn judge(&mut self, index: usize, verdict: Verdict, settle: bool) {
        match verdict {
            Verdict::Keep if settle => self.settle(index),
            Verdict::Keep => {}
            Verdict::Done => self.remove(index),
            Verdict::Reset | Verdict::Failed(_) => {
                if let Some(Entry {
                    flow: Flow::Tcp(tcp),
                    ..
                }) = self.entries.get_mut(index).and_then(Option::as_mut)
                {
                    let mut outlet = Self::outlet(&self.engine.config, self.link, self.guest_mac);
                    tcp.reset_guest(&mut outlet);
                    tcp.reset_host();
                }
                self.remove(index);
            }
        }
    }

    /// A flow's socket is ready.
    fn socket(&mut self, index: usize, token: u64, events: EventSet) {
        let Some(entry) = self.entries.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        if token >> 32 & 0xff_ffff != entry.generation & 0xff_ffff {
            return;
        }
        let tcp = match &mut entry.flow {
            Flow::Udp(_) => return self.datagrams(index),
            Flow::Tcp(tcp) => tcp,
        };
        let failed = events.intersects(EventSet::ERROR | EventSet::HANG_UP);
        let mut verdict = Verdict::Keep;
        if failed || events.contains(EventSet::OUT) {
            verdict = tcp.connected();
            if verdict == Verdict::Keep {
                verdict = tcp.writable();
            }
        }
        if verdict == Verdict::Keep && (failed || events.contains(EventSet::IN)) {
            verdict = tcp.readable(&mut self.scratch);
        }
        if verdict == Verdict::Keep && failed && !tcp.wants_read() && !tcp.wants_write() {
            // Reported again and again otherwise: both directions of the socket are over.
            if let Ok(Some(_)) = tcp.socket.take_error() {
                verdict = Verdict::Reset;
            }
        }
        if verdict == Verdict::Keep {
            self.push(index);
        } else {
            self.judge(index, verdict, true);
        }
    }

    /// Answers of a UDP flow's far end.
    fn datagrams(&mut self, index: usize) {
        let guest = self.engine.config.addresses.guest;
        loop {
            let Some(Entry {
                flow: Flow::Udp(flow),
                ..
            }) = self.entries.get_mut(index).and_then(Option::as_mut)
            else {
                return;
            };
            flow.touch(self.now);
            let key = flow.key;
            match flow.socket.recv(&mut self.scratch) {
                Ok(n) => {
                    let payload = self.scratch.get(..n).unwrap_or_default();
                    let udp = Datagram {
                        source: key.remote.port(),
                        destination: key.guest_port,
                        payload,
                    };
                    let packet = udp.packet(*key.remote.ip(), guest);
                    self.packet(&packet);
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    let udp = Datagram {
                        source: key.guest_port,
                        destination: key.remote.port(),
                        payload: &[],
                    };
                    let packet = udp.packet(guest, *key.remote.ip());
                    self.unreachable(Icmp::PORT_UNREACHABLE, &packet);
                    return;
                }
                Err(_) => return,
            }
        }
    }

    /// Somebody outside speaks to a forwarded port.
    fn port(&mut self, index: usize) {
        let guest = self.engine.config.addresses.guest;
        for _ in 0..FRAMES {
            let Some(port) = self.engine.forwards.ports_mut().get_mut(index) else {
                return;
            };
            match port.take(&mut self.scratch) {
                Port::Nothing => return,
                Port::Datagram {
                    len,
                    client,
                    local,
                    guest_port,
                } => {
                    let seen = access::client_address(&self.engine.config, *client.ip(), local);
                    let remote = SocketAddrV4::new(seen, client.port());
                    self.engine
                        .forwards
                        .remember(guest_port, remote, client, index);
                    let payload = self.scratch.get(..len).unwrap_or_default();
                    let udp = Datagram {
                        source: remote.port(),
                        destination: guest_port,
                        payload,
                    };
                    self.packet(&udp.packet(*remote.ip(), guest));
                }
                Port::Connection {
                    socket,
                    client,
                    local,
                    guest_port,
                } => {
                    self.accept(socket, client, local, guest_port);
                }
            }
        }
    }

    fn accept(
        &mut self,
        socket: TcpStream,
        client: SocketAddrV4,
        local: Ipv4Addr,
        guest_port: u16,
    ) {
        let counters = self.engine.counters.clone();
        let seen = access::client_address(&self.engine.config, *client.ip(), local);
        let remote = SocketAddrV4::new(seen, client.port());
        let key = Key {
            transport: Transport::Tcp,
            guest_port,
            remote,
        };
        let first = self.engine.first_sequence(&key);
        let tcp = Tcp::incoming(key, socket, first);
        // A key that is taken: two clients of one port, from addresses that look the same.
        if self.keys.len() >= self.engine.config.max_flows || self.keys.contains_key(&key) {
            counters.refused_limit.add();
            tcp.reset_host();
            return;
        }
        counters.tcp_in.add();
        if let Some(index) = self.insert(key, Flow::Tcp(Box::new(tcp))) {
            self.push(index);
        }
    }

    fn timers(&mut self) {
        while let Some(Reverse((at, index, generation))) = self.timers.peek().copied()
            && at <= self.now
        {
            self.timers.pop();
            let Some(entry) = self.entries.get_mut(index).and_then(Option::as_mut) else {
                continue;
            };
            if entry.generation != generation || entry.scheduled != Some(at) {
                continue;
            }
            entry.scheduled = None;
            let mut verdict = Verdict::Keep;
            match &mut entry.flow {
                Flow::Tcp(tcp) if tcp.deadline.is_some_and(|deadline| deadline <= self.now) => {
                    let mut outlet = Self::outlet(&self.engine.config, self.link, self.guest_mac);
                    verdict = tcp.expired(&mut outlet, self.now, &self.engine.counters);
                }
                Flow::Udp(udp) if udp.deadline() <= self.now => verdict = Verdict::Done,
                _ => {}
            }
            self.judge(index, verdict, true);
        }
    }

    /// The guest is gone: its peers are told.
    fn end(&mut self) {
        for entry in self.entries.iter().flatten() {
            if let Flow::Tcp(tcp) = &entry.flow {
                tcp.reset_host();
            }
        }
        self.engine.forwards.forget();
    }
}

fn descriptor(flow: &Flow) -> RawFd {
    match flow {
        Flow::Tcp(tcp) => tcp.socket.as_raw_fd(),
        Flow::Udp(udp) => udp.socket.as_raw_fd(),
    }
}

fn start_connect(to: SocketAddrV4) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(SocketProtocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&SockAddr::from(SocketAddr::V4(to))) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(socket.into()),
    }
}
