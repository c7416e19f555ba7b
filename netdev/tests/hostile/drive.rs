//! A guest and a host that do what some bytes say: a frame, valid or not, a call, an end, or the
//! passing of time. Shared with the fuzzer of sequences in tests/fuzz.

#[path = "lender.rs"]
mod lender;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lender::Lender;
use netdev::config::{
    Config, Forward, GATEWAY_LINK_LOCAL, GATEWAY_MAC, Network, Policy, Transport,
};
use netdev::engine::{Engine, Run};
use netdev::link::loans::Loans;
use netdev::link::{Capabilities, Link, MAX_FRAME, Offload, Received};
use netdev::resolver::Resolver;
use netdev::wire::{
    Arp, ETHERNET, Flags, Packet, Protocol, Segment, SegmentHeader, Sum, TYPE_IPV4, TYPE_IPV6, Udp,
    ethernet, write_header,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const V4: Network<Ipv4Addr> = Network::<Ipv4Addr>::MASQUERADE;
const V6: Network<Ipv6Addr> = Network::<Ipv6Addr>::MASQUERADE;
const MTU: u16 = 1500;
/// Few, so that the limit is met.
const MAX_FLOWS: usize = 6;
/// The guest's port that the forwards lead to.
const SERVICE: u16 = 80;
/// Time in which every flow of a guest that fell silent must be over.
const PATIENCE: Duration = Duration::from_secs(3 * 3600);

const LEAP: Duration = Duration::from_secs(10);
/// Real time in which the kernel must be done with what it does itself.
const REAL_PATIENCE: Duration = Duration::from_secs(5);

/// What is left of the bytes; zeroes behind their end.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (now, later) = self.0.split_at(N.min(self.0.len()));
        self.0 = later;
        let mut bytes = [0; N];
        bytes[..now.len()].copy_from_slice(now);
        bytes
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let len = usize::from(self.u16()) % (most + 1);
        let (now, later) = self.0.split_at(len.min(self.0.len()));
        self.0 = later;
        let mut bytes = now.to_vec();
        bytes.resize(len, 0xa5);
        bytes
    }

    /// Data that need not be any in particular.
    fn data(&mut self, most: usize) -> Vec<u8> {
        vec![0x5a; usize::from(self.u16()) % (most + 1)]
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::from(self.byte()) % all.len()]
    }

    /// A number that is mostly `near`, or not far from it.
    fn about(&mut self, near: u32) -> u32 {
        match self.byte() % 8 {
            0 => near.wrapping_add(1),
            1 => near.wrapping_sub(1),
            2 => near.wrapping_add(u32::from(self.u16())),
            3 => near.wrapping_sub(u32::from(self.u16())),
            4 => self.u32(),
            _ => near,
        }
    }
}

/// What the guest knows of a connection by the gateway's segments: their end and what they
/// acknowledge.
#[derive(Default, Clone, Copy)]
struct Known {
    end: u32,
    wanted: u32,
}

/// What lies between the engine and the guest.
#[derive(Default)]
struct Frames {
    to_engine: VecDeque<(Vec<u8>, Option<u16>)>,
    known: HashMap<(bool, u16, u16), Known>,
    capabilities: Capabilities,
    full: bool,
    arp_answers: usize,
}

impl Frames {
    fn take(&mut self, frame: &[u8], offload: Offload) {
        if offload.segments.is_none() {
            // A datagram of the host's may be longer.
            assert!(frame.len() <= ETHERNET + usize::from(MTU).max(2000));
        }
        let (_, content) = netdev::wire::parse(frame).unwrap();
        let packet = match content {
            netdev::wire::Frame::Arp(arp) => {
                self.arp_answers += usize::from(arp.operation == 2);
                return;
            }
            netdev::wire::Frame::Ip(packet) => Packet::parse(packet).unwrap(),
            netdev::wire::Frame::Other => panic!("a frame of no known type"),
        };
        if packet.protocol == Protocol::Tcp {
            let segment = Segment::parse(packet.payload).unwrap();
            if offload.checksum.is_none() {
                let len = packet.payload.len();
                let sum = Sum::pseudo(packet.source, packet.destination, packet.protocol, len);
                assert_eq!(sum.with(packet.payload).finish(), 0);
            }
            let v6 = packet.source.is_ipv6();
            let name = (v6, segment.destination, segment.source);
            if segment.flags.has(Flags::RST) {
                self.known.remove(&name);
                return;
            }
            let known = self.known.entry(name).or_default();
            let counts = segment.flags.has(Flags::SYN) || segment.flags.has(Flags::FIN);
            let len = segment.payload.len() as u32 + u32::from(counts);
            *known = Known {
                end: segment.sequence.wrapping_add(len),
                wanted: segment.acknowledgement,
            };
        }
    }
}

/// The guest's card.
struct Card {
    lender: Lender,
    frames: Rc<RefCell<Frames>>,
    notify: Rc<EventFd>,
}

impl Link for Card {
    fn receive(&mut self, place: &mut [u8]) -> Option<Received> {
        let (frame, datagrams) = self.frames.borrow_mut().to_engine.pop_front()?;
        Some(self.lender.receive(&frame, datagrams, place))
    }

    fn loans(&self) -> Option<&Loans> {
        Some(&self.lender.loans)
    }

    fn end_batch(&mut self) {
        self.lender.end_batch();
    }

    fn send(&mut self, parts: &[&[u8]], offload: Offload) -> bool {
        let mut frames = self.frames.borrow_mut();
        if !frames.full {
            frames.take(&parts.concat(), offload);
        }
        !frames.full
    }

    fn flush(&mut self) {}

    fn descriptors(&self) -> Vec<RawFd> {
        vec![self.notify.as_raw_fd()]
    }

    fn acknowledge(&mut self) {
        let _ = self.notify.read();
    }

    fn capabilities(&self) -> Capabilities {
        self.frames.borrow().capabilities
    }
}

/// What the host has.
struct Host {
    listeners: Vec<TcpListener>,
    datagrams: Vec<UdpSocket>,
    streams: Vec<TcpStream>,
    forward: SocketAddr,
}

/// An address of the loopback network for this thread alone.
fn own_loopback() -> IpAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    thread_local! {
        static OWN: IpAddr = loop {
            let next = NEXT.fetch_add(1, Ordering::Relaxed) as u8;
            let [_, _, high, low] = std::process::id().to_be_bytes();
            let address = IpAddr::V4(Ipv4Addr::new(127, high ^ 0x40, low, next));
            if TcpListener::bind((address, 8080)).is_ok() {
                break address;
            }
        };
    }
    OWN.with(|own| *own)
}

impl Host {
    fn new() -> Self {
        let loopbacks: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let host = Self {
            listeners: loopbacks
                .iter()
                .map(|address| TcpListener::bind((*address, 0)).unwrap())
                .collect(),
            datagrams: loopbacks
                .iter()
                .map(|address| UdpSocket::bind((*address, 0)).unwrap())
                .collect(),
            streams: Vec::new(),
            forward: SocketAddr::new(own_loopback(), 8080),
        };
        for listener in &host.listeners {
            listener.set_nonblocking(true).unwrap();
        }
        for socket in &host.datagrams {
            socket.set_nonblocking(true).unwrap();
        }
        host
    }

    fn ports(&self) -> Vec<u16> {
        let tcp = self.listeners.iter().map(|l| l.local_addr().unwrap());
        let udp = self.datagrams.iter().map(|s| s.local_addr().unwrap());
        tcp.chain(udp).map(|address| address.port()).collect()
    }

    fn keep(&mut self, stream: TcpStream) {
        stream.set_nonblocking(true).unwrap();
        // However it ends, nothing of it stays behind in the kernel.
        let linger = Some(Duration::ZERO);
        socket2::SockRef::from(&stream).set_linger(linger).unwrap();
        self.streams.push(stream);
    }

    fn accept(&mut self) {
        for index in 0..self.listeners.len() {
            while let Ok((stream, _)) = self.listeners[index].accept() {
                self.keep(stream);
            }
        }
    }

    /// Something happens on the host.
    fn act(&mut self, script: &mut Script<'_>) {
        let mut bytes = [0; 4000];
        match script.byte() % 8 {
            0 => self.accept(),
            1 if self.streams.len() < 2 * MAX_FLOWS => {
                if let Ok(stream) = TcpStream::connect(self.forward) {
                    self.keep(stream);
                }
            }
            2 => {
                let _ = self.datagrams[0].send_to(&script.data(1400), self.forward);
            }
            3 => {
                for socket in &self.datagrams {
                    while let Ok((n, from)) = socket.recv_from(&mut bytes) {
                        let _ = socket.send_to(&bytes[..n.min(1400)], from);
                    }
                }
            }
            kind if !self.streams.is_empty() => {
                let index = usize::from(script.byte()) % self.streams.len();
                match kind {
                    4 => drop(self.streams.swap_remove(index)),
                    5 => {
                        let _ = self.streams[index].shutdown(std::net::Shutdown::Write);
                    }
                    6 => {
                        let _ = self.streams[index].write(&script.data(4000));
                    }
                    _ => {
                        let _ = self.streams[index].read(&mut bytes);
                    }
                }
            }
            _ => {}
        }
    }
}

/// The guest.
struct Guest {
    ports: Vec<u16>,
    frames: Rc<RefCell<Frames>>,
}

impl Guest {
    /// One frame, and how its card cuts it.
    fn frame(&self, script: &mut Script<'_>) -> (Vec<u8>, Option<u16>) {
        let kind = script.byte();
        let v6 = kind & 0x80 != 0;
        let mut cut = None;
        let mut frame = match kind % 32 {
            0 => return (script.bytes(60), None),
            1 => {
                let kind = script.one_of(&[TYPE_IPV4, TYPE_IPV6, 0x0806]);
                [&ethernet(GATEWAY_MAC, MAC, kind)[..], &script.bytes(60)].concat()
            }
            2 => {
                let arp = Arp {
                    operation: script.u16() % 4,
                    sender: (MAC, V4.guest),
                    target: ([0; 6], Ipv4Addr::from([10, 0, 2, script.byte()])),
                };
                arp.frame()
            }
            3 => self.packet(script, v6, Protocol::Icmp, |script, _, _| {
                let kind = script.one_of(&[0, 3, 8, 128, 129, 133, 134, 135, 136]);
                let mut message = vec![kind, script.byte() % 4, 0, 0, 0, 0, 0, 0];
                if kind == 135 {
                    message.extend(GATEWAY_LINK_LOCAL.octets());
                }
                message.extend(script.bytes(100));
                message
            }),
            4 => self.packet(script, v6, Protocol::Other(kind), |script, _, _| {
                script.bytes(100)
            }),
            5 => self.packet(script, v6, Protocol::Udp, |script, _, _| dhcp(script, v6)),
            6 | 7 => {
                cut = script.one_of(&[None, Some(1), Some(100), Some(1400)]);
                self.packet(script, v6, Protocol::Udp, |script, _, _| {
                    let source = script.one_of(&[1000, 1001, SERVICE]);
                    let to = self.port(script);
                    let data = script.data(3000);
                    [&Udp::header(source, to, data.len(), 0)[..], &data].concat()
                })
            }
            _ => self.packet(script, v6, Protocol::Tcp, |script, _, v6| {
                self.segment(script, v6)
            }),
        };
        // Some are damaged, some cut short.
        match script.byte() {
            value @ 0..16 => {
                for _ in 0..value % 4 + 1 {
                    let at = usize::from(script.u16()) % frame.len();
                    frame[at] ^= script.byte();
                }
            }
            16..20 => frame.truncate(usize::from(script.u16()) % (frame.len() + 1)),
            _ => {}
        }
        (frame, cut)
    }

    fn port(&self, script: &mut Script<'_>) -> u16 {
        match script.byte() {
            // What is nobody's, and names.
            0..8 => 1,
            8..16 => 53,
            index => self.ports[usize::from(index) % self.ports.len()],
        }
    }

    fn packet(
        &self,
        script: &mut Script<'_>,
        v6: bool,
        protocol: Protocol,
        payload: impl FnOnce(&mut Script<'_>, IpAddr, bool) -> Vec<u8>,
    ) -> Vec<u8> {
        let sources: [IpAddr; 4] = if v6 {
            [
                V6.guest.into(),
                Ipv6Addr::UNSPECIFIED.into(),
                Ipv6Addr::from([0xfe80, 0, 0, 0, 0, 0, 0, 2]).into(),
                Ipv6Addr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 2]).into(),
            ]
        } else {
            [
                V4.guest.into(),
                Ipv4Addr::UNSPECIFIED.into(),
                Ipv4Addr::new(10, 0, 2, 9).into(),
                Ipv4Addr::new(192, 0, 2, 1).into(),
            ]
        };
        let destinations: [IpAddr; 4] = if v6 {
            [
                V6.gateway.into(),
                GATEWAY_LINK_LOCAL.into(),
                Ipv6Addr::from([0xff02, 0, 0, 0, 0, 0, 0, 2]).into(),
                Ipv6Addr::LOCALHOST.into(),
            ]
        } else {
            [
                V4.gateway.into(),
                Ipv4Addr::BROADCAST.into(),
                Ipv4Addr::new(169, 254, 169, 254).into(),
                Ipv4Addr::LOCALHOST.into(),
            ]
        };
        // The first of each for the most part.
        let (from, to) = (script.byte(), script.byte());
        let from = sources[usize::from(from.saturating_sub(220)) % 4];
        let to = destinations[usize::from(to.saturating_sub(220)) % 4];
        let payload = payload(script, to, v6);
        let kind = if v6 { TYPE_IPV6 } else { TYPE_IPV4 };
        let mut frame = ethernet(GATEWAY_MAC, MAC, kind).to_vec();
        let mut header = [0; 40];
        let end = write_header(&mut header, from, to, protocol, payload.len());
        if protocol == Protocol::Icmp && v6 {
            header[7] = 255;
        }
        frame.extend(&header[..end]);
        frame.extend(payload);
        frame
    }

    fn segment(&self, script: &mut Script<'_>, v6: bool) -> Vec<u8> {
        // Mostly in a connection that the guest has heard of.
        let frames = self.frames.borrow();
        let mut all: Vec<_> = frames
            .known
            .iter()
            .filter(|(name, _)| name.0 == v6)
            .collect();
        all.sort_unstable_by_key(|(name, _)| **name);
        let choice = usize::from(script.byte());
        let new = choice < 50 || all.is_empty();
        let (source, to, known) = if new {
            let source = script.one_of(&[1000, 1001, 1002, SERVICE]);
            (source, self.port(script), Known::default())
        } else {
            let ((_, source, to), known) = all[choice % all.len()];
            (*source, *to, *known)
        };
        let flags = match script.byte() {
            0..200 if new => 2,
            0..100 => 16,
            100..150 => 24,
            150..180 => 17,
            180..200 => 18,
            200..206 => 4,
            206..210 => 20,
            _ => script.byte(),
        };
        let sequence = if flags == 2 {
            script.u32()
        } else {
            script.about(known.wanted)
        };
        let header = SegmentHeader {
            source,
            destination: to,
            sequence,
            acknowledgement: script.about(known.end),
            flags: Flags(flags),
            window: script.one_of(&[0, 1, 100, 2000, 65_535]),
            options: (flags & 2 != 0).then(|| {
                let mss = script.one_of(&[0, 1, 88, 536, 1460, 65_535]);
                (mss, script.one_of(&[None, Some(0), Some(7), Some(200)]))
            }),
        };
        let mut segment = vec![0; SegmentHeader::MAX];
        let len = header.write(&mut segment);
        segment.truncate(len);
        if flags & 2 == 0 {
            segment.extend(script.data(3000));
        }
        segment
    }
}

/// A message of DHCP, or of DHCPv6.
fn dhcp(script: &mut Script<'_>, v6: bool) -> Vec<u8> {
    let mut message;
    if v6 {
        message = vec![script.byte() % 14, 1, 2, 3];
    } else {
        message = vec![0; 240];
        message[..3].copy_from_slice(&[1, 1, 6]);
        message[236..].copy_from_slice(&[99, 130, 83, 99]);
        message.extend([53, 1, script.byte() % 10]);
    }
    message.extend(script.bytes(200));
    let (from, to) = if v6 { (546, 547) } else { (68, 67) };
    [&Udp::header(from, to, message.len(), 0)[..], &message].concat()
}

/// Sees that no frame, however damaged, leads away from this machine.
fn keep_home(frame: &mut [u8]) {
    match frame {
        [_, _, _, _, _, _, _, _, _, _, _, _, 0x08, 0x00, packet @ ..] if packet.len() >= 20 => {
            let to: [u8; 4] = packet[16..20].try_into().unwrap();
            let stays = matches!(
                to,
                [10, 0, 2, _] | [127, ..] | [169, 254, 169, 254] | [224..=239, ..]
            );
            if !stays {
                packet[16..20].copy_from_slice(&V4.gateway.octets());
            }
        }
        [_, _, _, _, _, _, _, _, _, _, _, _, 0x86, 0xdd, packet @ ..] if packet.len() >= 40 => {
            let to: [u8; 16] = packet[24..40].try_into().unwrap();
            let to = Ipv6Addr::from(to);
            if !V6.contains(to)
                && !to.is_loopback()
                && !to.is_multicast()
                && to != GATEWAY_LINK_LOCAL
            {
                packet[24..40].copy_from_slice(&V6.gateway.octets());
            }
        }
        _ => {}
    }
}

/// The network.
pub fn config(forwards: Vec<Forward>, open_loopback: Vec<u16>) -> Config {
    Config {
        v4: Some(V4),
        v6: Some(V6),
        mtu: MTU,
        hostname: "h".to_owned(),
        resolver: Resolver::default(),
        forwards,
        eager: true,
        open_loopback,
        max_flows: MAX_FLOWS,
        memory: 128 << 20,
        policy: Policy::default(),
    }
}

/// Does what `bytes` say.
pub fn drive(bytes: &[u8]) {
    let mut script = Script(bytes);
    let mut host = Host::new();
    let ports = host.ports();
    let forward = |transport| Forward {
        transport,
        bind: host.forward,
        guest_port: SERVICE,
    };
    let forwards = vec![forward(Transport::Tcp), forward(Transport::Udp)];
    let kind = script.byte();
    let mut config = config(forwards, ports.clone());
    config.eager = kind < 240;
    let mut engine = Engine::new(config).unwrap();
    let frames = Rc::new(RefCell::new(Frames::default()));
    let offloads = kind & 1 != 0;
    frames.borrow_mut().capabilities = Capabilities {
        checksum: offloads,
        tso4: offloads,
        tso6: offloads,
        uso: offloads,
    };
    let notify = Rc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let mut card = Card {
        lender: Lender::new(offloads),
        frames: frames.clone(),
        notify: notify.clone(),
    };
    let (start, now) = (Instant::now(), Rc::new(Cell::new(Duration::ZERO)));
    let clock = {
        let now = now.clone();
        move || start + now.get()
    };
    let mut run = engine.attach(&mut card, &clock).unwrap();
    let guest = Guest {
        ports,
        frames: frames.clone(),
    };
    let turn = |run: &mut Run<'_>| {
        notify.write(1).unwrap();
        run.turn(false).unwrap();
        assert!(frames.borrow().to_engine.is_empty(), "frames are left");
        assert!(run.flows() <= MAX_FLOWS, "{} flows", run.flows());
    };
    while !script.0.is_empty() {
        match script.byte() {
            0..24 => host.act(&mut script),
            24..32 => now.set(now.get() + Duration::from_millis(script.u16().into())),
            32..36 => {
                if let Some(at) = run.next_timer() {
                    now.set(now.get().max(at - start));
                }
            }
            36 => {
                let full = &mut frames.borrow_mut().full;
                *full = !*full;
            }
            _ => {
                for _ in 0..script.byte() % 4 + 1 {
                    let (mut frame, cut) = guest.frame(&mut script);
                    keep_home(&mut frame);
                    assert!(frame.len() <= MAX_FRAME);
                    frames.borrow_mut().to_engine.push_back((frame, cut));
                }
            }
        }
        turn(&mut run);
    }
    // It still answers.
    frames.borrow_mut().full = false;
    let before = frames.borrow().arp_answers;
    let arp = Arp {
        operation: 1,
        sender: (MAC, V4.guest),
        target: ([0; 6], V4.gateway),
    };
    frames.borrow_mut().to_engine.push_back((arp.frame(), None));
    turn(&mut run);
    assert_eq!(frames.borrow().arp_answers, before + 1, "no answer");
    // And the guest once silent, every flow ends.
    let (silent, begun) = (now.get(), Instant::now());
    while run.flows() > 0 {
        if let Some(at) = run.next_timer()
            && now.get() < silent + PATIENCE
        {
            // In leaps: what is late is as good.
            now.set((now.get() + LEAP).max(at - start));
        } else {
            // The kernel may be still connecting.
            host.accept();
            thread::sleep(Duration::from_millis(1));
            assert!(
                begun.elapsed() < REAL_PATIENCE,
                "{} flows are left",
                run.flows()
            );
        }
        turn(&mut run);
    }
}
