//! What lies between the engine and the guest: a wire that may lose, repeat, reorder and delay
//! frames, and on the guest's side a card that does what the engine leaves to it.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use netdev::link::loans::Loans;
use netdev::link::{Capabilities, Link, Offload, Received, SegmentKind, Segments};
use netdev::wire::{ETHERNET, Packet, Sum};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::lender::Lender;
use super::watch::Watch;

/// What the wire does to frames, both ways: of a hundred each.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// Lost.
    pub loss: u64,
    /// Repeated, the second one late.
    pub duplicates: u64,
    /// Late, so that others overtake them.
    pub late: u64,
    /// Where the dice start.
    pub seed: u64,
}

/// How late the late ones are, at most.
const LATE: Duration = Duration::from_millis(40);

/// Dice (splitmix64).
#[derive(Debug, Clone, Copy)]
pub struct Dice(pub u64);

impl Dice {
    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

/// One way of the wire.
#[derive(Default)]
struct Way {
    /// By when they arrive, and then by which was first.
    under_way: BTreeMap<(Duration, u64), Vec<u8>>,
    arrived: VecDeque<Vec<u8>>,
}

/// Says what is lost.
type Judge = Box<dyn FnMut(&[u8]) -> bool>;

/// The wire.
pub struct Wire {
    /// Now, since the world began.
    pub now: Duration,
    /// How long a frame takes.
    pub latency: Duration,
    /// What befalls frames.
    pub faults: Faults,
    /// Whether nothing gets through.
    pub cut: bool,
    /// Whether nothing gets through to the guest.
    pub deaf: bool,
    /// Which of the guest's frames are lost besides.
    pub loses: Judge,
    /// Which of the engine's.
    pub misses: Judge,
    /// What the guest's card takes off the engine.
    pub capabilities: Capabilities,
    /// Frames that the guest's card has room for.
    pub room: usize,
    /// Whether the wire removes TCP's window scale from SYNs.
    pub unscaled: bool,
    /// What the guest's device takes in a frame, without Ethernet's header.
    pub mtu: usize,
    /// Looks at every frame when it is sent.
    pub watch: Watch,
    /// How often something moved.
    pub moved: u64,
    to_engine: Way,
    to_guest: Way,
    refused: bool,
    count: u64,
    dice: Dice,
    notify: EventFd,
}

impl Wire {
    pub fn new(faults: Faults) -> Self {
        Self {
            now: Duration::ZERO,
            latency: Duration::ZERO,
            faults,
            cut: false,
            deaf: false,
            loses: Box::new(|_| false),
            misses: Box::new(|_| false),
            capabilities: Capabilities::default(),
            room: usize::MAX,
            unscaled: false,
            mtu: 1500,
            watch: Watch::default(),
            moved: 0,
            to_engine: Way::default(),
            to_guest: Way::default(),
            refused: false,
            count: 0,
            dice: Dice(faults.seed),
            notify: EventFd::new(EFD_NONBLOCK).unwrap(),
        }
    }

    /// When the next frame arrives that is still under way.
    pub fn next(&self) -> Option<Duration> {
        let ways = [&self.to_engine, &self.to_guest];
        let first = |way: &&Way| way.under_way.keys().next().map(|(at, _)| *at);
        ways.iter().filter_map(first).min()
    }

    /// What was under way and has arrived by now.
    pub fn arrive(&mut self) {
        for (way, engine) in [(&mut self.to_engine, true), (&mut self.to_guest, false)] {
            while let Some(entry) = way.under_way.first_entry()
                && entry.key().0 <= self.now
            {
                way.arrived.push_back(entry.remove());
                self.moved += 1;
                if engine {
                    self.notify.write(1).unwrap();
                }
            }
        }
    }

    /// A frame from the guest.
    pub fn guest_sends(&mut self, mut frame: Vec<u8>) {
        if self.unscaled {
            remove_scale(&mut frame);
        }
        self.watch.guest_sends(self.now, &frame);
        if !(self.loses)(&frame) {
            self.travel(frame, true);
        }
    }

    /// A frame of the guest's comes a second time.
    pub fn repeat(&mut self, frame: Vec<u8>) {
        self.travel(frame, true);
    }

    /// A frame from the engine, with its checksums.
    fn engine_sends(&mut self, mut frame: Vec<u8>) {
        if self.unscaled {
            remove_scale(&mut frame);
        }
        // No guest gets smaller segments than of 88 bytes.
        let most = ETHERNET + self.mtu.max(88 + 40);
        assert!(frame.len() <= most, "a frame of {} bytes", frame.len());
        self.watch.engine_sends(self.now, &frame);
        if !(self.misses)(&frame) {
            self.travel(frame, false);
        }
    }

    fn travel(&mut self, frame: Vec<u8>, to_engine: bool) {
        self.moved += 1;
        let Faults {
            loss,
            duplicates,
            late,
            ..
        } = self.faults;
        let mut befalls = |of_a_hundred| of_a_hundred > 0 && self.dice.below(100) < of_a_hundred;
        let (lost, twice, late) = (befalls(loss), befalls(duplicates), befalls(late));
        if lost || self.cut || (self.deaf && !to_engine) {
            return;
        }
        if twice {
            self.put(frame.clone(), true, to_engine);
        }
        self.put(frame, late, to_engine);
    }

    fn put(&mut self, frame: Vec<u8>, late: bool, to_engine: bool) {
        let mut at = self.now + self.latency;
        if late {
            at += Duration::from_micros(self.dice.below(LATE.as_micros() as u64));
        }
        self.count += 1;
        let way = if to_engine {
            &mut self.to_engine
        } else {
            &mut self.to_guest
        };
        way.under_way.insert((at, self.count), frame);
    }

    /// The guest's card has room again, and says so.
    pub fn make_room(&mut self) {
        self.room = usize::MAX;
        self.notify.write(1).unwrap();
    }

    fn is_full(&self) -> bool {
        self.to_guest.under_way.len() + self.to_guest.arrived.len() >= self.room
    }
}

/// Puts no-operations where a SYN has a window scale.
fn remove_scale(frame: &mut [u8]) {
    let Some(packet) = frame.get(ETHERNET..).and_then(Packet::parse) else {
        return;
    };
    let (from, to, protocol) = (packet.source, packet.destination, packet.protocol);
    let start = frame.len() - packet.payload.len();
    let segment = &mut frame[start..];
    if protocol != netdev::wire::Protocol::Tcp || segment[13] & 2 == 0 {
        return;
    }
    let end = usize::from(segment[12] >> 4) * 4;
    let mut at = 20;
    while at < end {
        match segment[at] {
            0 => break,
            1 => at += 1,
            3 => segment[at..at + 3].fill(1),
            _ => at += usize::from(segment[at + 1]),
        }
    }
    segment[16..18].fill(0);
    let sum = Sum::pseudo(from, to, protocol, segment.len()).with(segment);
    segment[16..18].copy_from_slice(&sum.finish().to_be_bytes());
}

/// What a card does with a frame that has something left to do (virtio 1.2, section 5.1.6.2).
fn finish(mut frame: Vec<u8>, offload: Offload) -> Vec<Vec<u8>> {
    let Some((start, offset)) = offload.checksum.map(|(a, b)| (a as usize, b as usize)) else {
        assert_eq!(offload.segments, None, "to be cut, without a checksum");
        return vec![frame];
    };
    if let Some(segments) = offload.segments {
        return cut(&frame, start, offset, segments);
    }
    let sum = Sum::default().with(&frame[start..]).finish();
    frame[start + offset..][..2].copy_from_slice(&sum.to_be_bytes());
    vec![frame]
}

fn cut(frame: &[u8], start: usize, offset: usize, segments: Segments) -> Vec<Vec<u8>> {
    let (headers, data) = frame.split_at(segments.headers.into());
    let size = usize::from(segments.size);
    assert!(data.len() > size, "cut without need");
    let pieces = data.len().div_ceil(size);
    let piece = |(index, data): (usize, &[u8])| {
        let mut frame = [headers, data].concat();
        let put = |frame: &mut [u8], at: usize, value: usize| {
            frame[at..at + 2].copy_from_slice(&(value as u16).to_be_bytes());
        };
        let len = frame.len() - ETHERNET;
        if start == ETHERNET + 20 {
            put(&mut frame, ETHERNET + 2, len);
            put(&mut frame, ETHERNET + 10, 0);
            let sum = Sum::default().with(&frame[ETHERNET..start]).finish();
            put(&mut frame, ETHERNET + 10, sum.into());
        } else {
            put(&mut frame, ETHERNET + 4, len - 40);
        }
        match segments.kind {
            SegmentKind::Udp => {
                let len = frame.len() - start;
                put(&mut frame, start + 4, len);
            }
            SegmentKind::Tcp4 | SegmentKind::Tcp6 => {
                let sequence = u32::from_be_bytes(frame[start + 4..][..4].try_into().unwrap());
                let sequence = sequence.wrapping_add((index * size) as u32);
                frame[start + 4..][..4].copy_from_slice(&sequence.to_be_bytes());
                if index + 1 < pieces {
                    // FIN and PSH are the last one's.
                    frame[start + 13] &= !9;
                }
            }
        }
        put(&mut frame, start + offset, 0);
        let packet = Packet::parse(&frame[ETHERNET..]).unwrap();
        let len = packet.payload.len();
        let sum = Sum::pseudo(packet.source, packet.destination, packet.protocol, len);
        let sum = sum.with(packet.payload).finish();
        put(&mut frame, start + offset, sum.into());
        frame
    };
    data.chunks(size).enumerate().map(piece).collect()
}

/// The engine's end.
pub struct Card {
    pub wire: Rc<RefCell<Wire>>,
    pub lender: Lender,
}

impl Link for Card {
    fn receive(&mut self, place: &mut [u8]) -> Option<Received> {
        let mut wire = self.wire.borrow_mut();
        let frame = wire.to_engine.arrived.pop_front()?;
        wire.moved += 1;
        Some(self.lender.receive(&frame, None, place))
    }

    fn loans(&self) -> Option<&Loans> {
        Some(&self.lender.loans)
    }

    fn end_batch(&mut self) {
        self.lender.end_batch();
    }

    fn send(&mut self, parts: &[&[u8]], offload: Offload) -> bool {
        let mut wire = self.wire.borrow_mut();
        if wire.is_full() {
            wire.refused = true;
            return false;
        }
        for frame in finish(parts.concat(), offload) {
            wire.engine_sends(frame);
        }
        true
    }

    fn flush(&mut self) {}

    fn descriptors(&self) -> Vec<RawFd> {
        vec![self.wire.borrow().notify.as_raw_fd()]
    }

    fn acknowledge(&mut self) {
        let _ = self.wire.borrow().notify.read();
    }

    fn capabilities(&self) -> Capabilities {
        self.wire.borrow().capabilities
    }
}

/// The guest's end.
pub struct Port(pub Rc<RefCell<Wire>>);

impl Device for Port {
    type RxToken<'a> = Frame;
    type TxToken<'a> = Space;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Frame, Space)> {
        let mut wire = self.0.borrow_mut();
        let frame = wire.to_guest.arrived.pop_front()?;
        wire.moved += 1;
        if wire.refused {
            wire.refused = false;
            wire.notify.write(1).unwrap();
        }
        Some((Frame(frame), Space(self.0.clone())))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Space> {
        Some(Space(self.0.clone()))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = ETHERNET + self.0.borrow().mtu;
        capabilities
    }
}

/// A frame for smoltcp.
pub struct Frame(Vec<u8>);

impl RxToken for Frame {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

/// Room for a frame of smoltcp's.
pub struct Space(Rc<RefCell<Wire>>);

impl TxToken for Space {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut frame = vec![0; len];
        let result = fill(&mut frame);
        self.0.borrow_mut().guest_sends(frame);
        result
    }
}
