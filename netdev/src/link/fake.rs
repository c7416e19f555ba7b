//! A guest's card for tests: frames lie in two queues, and a test is the guest.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Capabilities, Link, Offload, Received};
use crate::config::{Config, GATEWAY_MAC, Network};
use crate::resolver::Resolver;
use crate::wire::{
    Flags, Frame, Packet, Protocol, Segment, SegmentHeader, TYPE_IPV4, Udp, ethernet, parse,
    write_header,
};

const MAC: [u8; 6] = [2; 6];

/// A network with both families that forwards nothing.
pub fn config() -> Config {
    Config {
        v4: Some(Network::<Ipv4Addr>::MASQUERADE),
        v6: Some(Network::<Ipv6Addr>::MASQUERADE),
        mtu: 1500,
        hostname: String::new(),
        resolver: Resolver::default(),
        forwards: Vec::new(),
        eager: true,
        open_loopback: Vec::new(),
        max_flows: 16,
        memory: 128 << 20,
        policy: Default::default(),
    }
}

/// A port of loopback that nobody has.
pub fn free() -> SocketAddr {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap()
}

#[derive(Default)]
struct Queues {
    from_guest: VecDeque<Vec<u8>>,
    to_guest: VecDeque<Vec<u8>>,
}

/// The card, as the engine sees it.
pub struct Fake {
    queues: Arc<Mutex<Queues>>,
    kick: Arc<EventFd>,
    /// Frames that it has room for.
    pub room: Room,
    /// What its driver is said to take.
    pub capabilities: Capabilities,
}

/// How many frames a card has room for.
#[derive(Clone)]
pub struct Room(Arc<AtomicUsize>);

impl Room {
    /// So many from now on.
    pub fn set(&self, frames: usize) {
        self.0.store(frames, Ordering::Relaxed);
    }
}

/// The guest, as the test is it.
#[derive(Clone)]
pub struct Guest {
    queues: Arc<Mutex<Queues>>,
    kick: Arc<EventFd>,
}

/// A card and its guest.
pub fn pair() -> (Fake, Guest) {
    let queues: Arc<Mutex<Queues>> = Arc::default();
    let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let guest = Guest {
        queues: queues.clone(),
        kick: kick.clone(),
    };
    let capabilities = Capabilities::default();
    let fake = Fake {
        queues,
        kick,
        room: Room(Arc::new(usize::MAX.into())),
        capabilities,
    };
    (fake, guest)
}

impl Link for Fake {
    fn receive(&mut self, place: &mut [u8]) -> Option<Received> {
        let frame = self.queues.lock().unwrap().from_guest.pop_front()?;
        place[..frame.len()].copy_from_slice(&frame);
        Some(Received {
            len: frame.len(),
            datagrams: None,
            loan: None,
        })
    }

    fn send(&mut self, parts: &[&[u8]], _: Offload) -> bool {
        let (all, one) = (Ordering::Relaxed, |room: usize| room.checked_sub(1));
        if self.room.0.fetch_update(all, all, one).is_err() {
            return false;
        }
        let frame = parts.concat();
        self.queues.lock().unwrap().to_guest.push_back(frame);
        true
    }

    fn flush(&mut self) {}

    fn descriptors(&self) -> Vec<RawFd> {
        vec![self.kick.as_raw_fd()]
    }

    fn acknowledge(&mut self) {
        let _ = self.kick.read();
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }
}

impl Guest {
    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap()
    }

    /// Sends a frame.
    pub fn send(&self, frame: Vec<u8>) {
        self.lock().from_guest.push_back(frame);
        self.kick();
    }

    /// Has the card look.
    pub fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// The next frame, which comes within five seconds.
    pub fn receive(&self) -> Vec<u8> {
        let start = Instant::now();
        loop {
            if let Some(frame) = self.lock().to_guest.pop_front() {
                return frame;
            }
            assert!(start.elapsed() < Duration::from_secs(5), "no frame");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// How many frames have come and were not received.
    pub fn waiting(&self) -> usize {
        self.lock().to_guest.len()
    }

    fn address() -> IpAddr {
        Network::<Ipv4Addr>::MASQUERADE.guest.into()
    }

    /// Sends a datagram to `to`.
    pub fn datagram(&self, port: u16, to: SocketAddr, payload: &[u8]) {
        let udp = Udp {
            source: port,
            destination: to.port(),
            payload,
        };
        let packet = udp.packet(Self::address(), to.ip());
        let ethernet = ethernet(GATEWAY_MAC, MAC, TYPE_IPV4);
        self.send([&ethernet[..], &packet].concat());
    }

    /// Sends a segment, with an MSS if it is a SYN.
    pub fn segment(&self, to: SocketAddr, header: &SegmentHeader, payload: &[u8]) {
        let mut headers = [0; 100];
        let (ip, tcp) = headers.split_at_mut(20);
        let len = header.write(tcp);
        write_header(
            ip,
            Self::address(),
            to.ip(),
            Protocol::Tcp,
            len + payload.len(),
        );
        let ethernet = ethernet(GATEWAY_MAC, MAC, TYPE_IPV4);
        self.send([&ethernet[..], &headers[..20 + len], payload].concat());
    }

    /// Takes the next connection, and returns its far end, what acknowledges what has come so
    /// far, and the port that was called.
    pub fn accept(&self) -> (SocketAddr, SegmentHeader) {
        loop {
            let frame = self.receive();
            let Some((far, segment)) = segment(&frame) else {
                continue;
            };
            if segment.flags != Flags::SYN {
                continue;
            }
            let mut header = SegmentHeader {
                source: segment.destination,
                destination: segment.source,
                sequence: 1000,
                acknowledgement: segment.sequence.wrapping_add(1),
                flags: Flags::SYN.and(Flags::ACK),
                window: 60_000,
                options: Some((1460, None)),
            };
            self.segment(far, &header, &[]);
            header.sequence += 1;
            header.flags = Flags::ACK;
            header.options = None;
            return (far, header);
        }
    }

    /// The next data of a connection.
    pub fn data(&self) -> Vec<u8> {
        loop {
            let frame = self.receive();
            if let Some((_, segment)) = segment(&frame)
                && !segment.payload.is_empty()
            {
                return segment.payload.to_vec();
            }
        }
    }
}

/// The far end and the segment of a frame to the guest, if it has one.
pub fn segment(frame: &[u8]) -> Option<(SocketAddr, Segment<'_>)> {
    let (_, Frame::Ip(packet)) = parse(frame)? else {
        return None;
    };
    let packet = Packet::parse(packet)?;
    if packet.protocol != Protocol::Tcp {
        return None;
    }
    let segment = Segment::parse(packet.payload)?;
    Some((SocketAddr::new(packet.source, segment.source), segment))
}
