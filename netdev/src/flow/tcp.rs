//! One TCP connection: the guest's side is spoken here (RFC 9293), the far side is a host socket.
//!
//! What the guest sends inside the window that it was told goes to the socket, or waits in
//! `inbox`, whose room is what the window was told from: it is never dropped. What the socket
//! gives waits in `outbox` until the guest has acknowledged it.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use super::{Key, Outlet};
use crate::counters::Counters;
use crate::wire::{Flags, Segment, SegmentHeader};

/// Bytes that a flow keeps at most, each way.
pub const BUFFER: usize = 256 << 10;
/// Our window's scale: the buffer in units that 16 bits hold.
const SCALE: u8 = 7;
/// What a peer takes that does not say (RFC 9293, section 3.7.1).
const DEFAULT_MSS: u16 = 536;
const FIRST_TIMEOUT: Duration = Duration::from_millis(250);
const LAST_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeouts one after another before the guest is taken for gone.
const MAX_TIMEOUTS: u32 = 10;
/// Acknowledgements of the same byte before it is taken for lost (RFC 5681, section 3.2).
const DUPLICATES: u32 = 3;

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The guest's SYN waits for the host's connect().
    Connecting,
    /// The host's side is up and the guest has been told.
    SynReceived,
    /// A client came in and the guest has been asked.
    SynSent,
    /// Both sides are up.
    Open,
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
    Failed(io::ErrorKind),
}

/// A connection.
#[derive(Debug)]
pub struct Tcp {
    /// Its name.
    pub key: Key,
    /// The far side.
    pub socket: TcpStream,
    state: State,
    outbox: VecDeque<u8>,
    /// The oldest byte that the guest has not acknowledged, and the next to send.
    unacknowledged: u32,
    next: u32,
    window: u32,
    scale: u8,
    mss: u16,
    duplicates: u32,
    host_ended: bool,
    fin_sent: bool,
    inbox: VecDeque<u8>,
    expected: u32,
    guest_ended: bool,
    shut: bool,
    acknowledge: bool,
    told_zero: bool,
    timeout: Duration,
    timeouts: u32,
    /// When something is to be sent again.
    pub deadline: Option<Instant>,
}

impl Tcp {
    /// A connection that the guest opened with `syn`, while `socket` is connecting.
    pub fn outgoing(key: Key, socket: TcpStream, syn: &Segment<'_>, first: u32) -> Self {
        let mut flow = Self::new(key, socket, State::Connecting, first);
        flow.greet(syn);
        flow
    }

    /// A connection that came in from `key.remote`: the guest is asked by [`Tcp::send`].
    pub fn incoming(key: Key, socket: TcpStream, first: u32) -> Self {
        Self::new(key, socket, State::SynSent, first)
    }

    fn new(key: Key, socket: TcpStream, state: State, first: u32) -> Self {
        Self {
            key,
            socket,
            state,
            outbox: VecDeque::new(),
            unacknowledged: first,
            next: first,
            window: 0,
            scale: 0,
            mss: DEFAULT_MSS,
            duplicates: 0,
            host_ended: false,
            fin_sent: false,
            inbox: VecDeque::new(),
            expected: 0,
            guest_ended: false,
            shut: false,
            acknowledge: false,
            told_zero: false,
            timeout: FIRST_TIMEOUT,
            timeouts: 0,
            deadline: None,
        }
    }

    /// Takes what the guest's SYN says.
    fn greet(&mut self, syn: &Segment<'_>) {
        self.expected = syn.sequence.wrapping_add(1);
        self.mss = syn.mss.unwrap_or(DEFAULT_MSS).max(64);
        self.scale = syn.scale.unwrap_or(0);
        self.window = u32::from(syn.window);
    }

    /// Whether to wait for data from the socket.
    pub fn wants_read(&self) -> bool {
        self.state == State::Open && !self.host_ended && self.outbox.len() < BUFFER
    }

    /// Whether to wait until the socket takes data, or is connected.
    pub fn wants_write(&self) -> bool {
        self.state == State::Connecting || !self.inbox.is_empty()
    }

    /// The socket may be connected.
    pub fn connected(&mut self) -> Verdict {
        if self.state != State::Connecting {
            return Verdict::Keep;
        }
        match self.socket.take_error() {
            Ok(Some(error)) | Err(error) => Verdict::Failed(error.kind()),
            Ok(None) if self.socket.peer_addr().is_err() => Verdict::Keep,
            Ok(None) => {
                self.state = State::SynReceived;
                Verdict::Keep
            }
        }
    }

    /// A segment from the guest.
    pub fn receive(&mut self, segment: &Segment<'_>, now: Instant) -> Verdict {
        let flags = segment.flags;
        match self.state {
            State::Connecting if flags.has(Flags::RST) => return Verdict::Reset,
            // A SYN sent again: the answer is under way.
            State::Connecting => return Verdict::Keep,
            State::SynSent => return self.answered(segment),
            _ => {}
        }
        if flags.has(Flags::RST) {
            // RFC 5961, section 3: only an exact one counts.
            let exact = segment.sequence == self.expected;
            self.acknowledge |= !exact;
            return if exact { Verdict::Reset } else { Verdict::Keep };
        }
        if flags.has(Flags::SYN) {
            // Our answer to it was lost.
            if self.state == State::SynReceived {
                self.next = self.unacknowledged;
            }
            self.acknowledge = true;
            return Verdict::Keep;
        }
        if flags.has(Flags::ACK) {
            self.acknowledged(segment, now);
        }
        if self.state == State::Open {
            self.take(segment)
        } else {
            Verdict::Keep
        }
    }

    /// The guest's answer to our SYN.
    fn answered(&mut self, segment: &Segment<'_>) -> Verdict {
        let ours = segment.acknowledgement == self.next && self.next != self.unacknowledged;
        if !ours || !segment.flags.has(Flags::ACK) {
            return Verdict::Keep;
        }
        if segment.flags.has(Flags::RST) {
            return Verdict::Reset;
        }
        if segment.flags.has(Flags::SYN) {
            self.greet(segment);
            self.unacknowledged = self.next;
            self.state = State::Open;
            self.acknowledge = true;
            self.settle();
        }
        Verdict::Keep
    }

    fn acknowledged(&mut self, segment: &Segment<'_>, now: Instant) {
        let flight = self.next.wrapping_sub(self.unacknowledged);
        let newly = segment.acknowledgement.wrapping_sub(self.unacknowledged);
        if newly > flight {
            return;
        }
        let window = u32::from(segment.window) << self.scale;
        if newly == 0 {
            let same = window == self.window && segment.payload.is_empty() && flight > 0;
            self.duplicates = if same { self.duplicates + 1 } else { 0 };
            if self.duplicates == DUPLICATES {
                // Send again from there, at once.
                self.deadline = Some(now);
            }
            self.window = window;
            return;
        }
        self.window = window;
        let mut data = newly;
        if self.state == State::SynReceived {
            self.state = State::Open;
            data -= 1;
        }
        // The FIN is the last number, behind all data.
        let data = (data as usize).min(self.outbox.len());
        self.outbox.drain(..data);
        if self.outbox.is_empty() && self.outbox.capacity() > BUFFER / 4 {
            self.outbox.shrink_to(0);
        }
        self.unacknowledged = segment.acknowledgement;
        self.settle();
        self.deadline = (self.next != self.unacknowledged).then(|| now + self.timeout);
    }

    fn settle(&mut self) {
        self.timeout = FIRST_TIMEOUT;
        self.timeouts = 0;
        self.duplicates = 0;
        self.deadline = None;
    }

    /// Takes a segment's data and its FIN.
    fn take(&mut self, segment: &Segment<'_>) -> Verdict {
        let fin = segment.flags.has(Flags::FIN);
        if segment.payload.is_empty() && !fin {
            return Verdict::Keep;
        }
        self.acknowledge = true;
        let known = self.expected.wrapping_sub(segment.sequence) as usize;
        // Behind a gap (then `known` is huge), or all of it known.
        let Some(data) = segment.payload.get(known..) else {
            return Verdict::Keep;
        };
        if self.guest_ended {
            return Verdict::Keep;
        }
        let room = BUFFER - self.inbox.len();
        let taken = data.get(..room).unwrap_or(data);
        if let Err(error) = self.forward(taken) {
            tracing::debug!("{:?}: {error}", self.key);
            return Verdict::Reset;
        }
        self.expected = self.expected.wrapping_add(taken.len() as u32);
        if fin && taken.len() == data.len() {
            self.expected = self.expected.wrapping_add(1);
            self.guest_ended = true;
            self.shut_when_empty();
        }
        Verdict::Keep
    }

    /// Gives data to the socket; what it does not take waits.
    fn forward(&mut self, mut data: &[u8]) -> io::Result<()> {
        while self.inbox.is_empty() && !data.is_empty() {
            match self.socket.write(data) {
                Ok(n) => data = data.get(n..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.inbox.extend(data);
        Ok(())
    }

    /// The socket takes data again.
    pub fn writable(&mut self) -> Verdict {
        while !self.inbox.is_empty() {
            let (data, _) = self.inbox.as_slices();
            match self.socket.write(data) {
                Ok(n) => drop(self.inbox.drain(..n)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Verdict::Reset,
            }
        }
        // The guest waits for room where it was told that there is little.
        self.acknowledge |= self.told_zero && self.inbox.len() < BUFFER / 2;
        self.shut_when_empty();
        Verdict::Keep
    }

    fn shut_when_empty(&mut self) {
        if self.guest_ended && self.inbox.is_empty() && !self.shut {
            self.shut = true;
            // It may be closed already: then there is nobody to tell.
            let _ = self.socket.shutdown(Shutdown::Write);
        }
    }

    /// The socket has data, or has ended.
    pub fn readable(&mut self, scratch: &mut [u8]) -> Verdict {
        while self.wants_read() {
            let room = (BUFFER - self.outbox.len()).min(scratch.len());
            let Some(place) = scratch.get_mut(..room) else {
                break;
            };
            match self.socket.read(place) {
                Ok(0) => self.host_ended = true,
                Ok(n) => self.outbox.extend(place.get(..n).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Verdict::Reset,
            }
        }
        Verdict::Keep
    }

    /// Sends what may be sent now; false where the guest's card has no room.
    pub fn send(&mut self, outlet: &mut Outlet<'_>, now: Instant) -> bool {
        let sent = match self.state {
            State::Connecting => true,
            State::SynReceived => self.send_syn(outlet, Flags::SYN.and(Flags::ACK), now),
            State::SynSent => self.send_syn(outlet, Flags::SYN, now),
            State::Open => self.send_data(outlet, now),
        };
        if sent && self.acknowledge && matches!(self.state, State::SynReceived | State::Open) {
            return self.emit(outlet, Flags::ACK, self.next, 0..0);
        }
        sent
    }

    fn send_syn(&mut self, outlet: &mut Outlet<'_>, flags: Flags, now: Instant) -> bool {
        if self.next != self.unacknowledged {
            return true;
        }
        let sent = self.emit(outlet, flags, self.next, 0..0);
        if sent {
            self.next = self.next.wrapping_add(1);
            self.wait(now);
        }
        sent
    }

    fn send_data(&mut self, outlet: &mut Outlet<'_>, now: Instant) -> bool {
        let limit = outlet.segment_limit(self.mss);
        loop {
            let flight = self.next.wrapping_sub(self.unacknowledged) as usize;
            let ready = self
                .outbox
                .len()
                .min(self.window as usize)
                .saturating_sub(flight);
            let len = ready.min(limit);
            if len == 0 || self.fin_sent {
                break;
            }
            let flags = Flags::ACK.and(Flags::PSH);
            if !self.emit(outlet, flags, self.next, flight..flight + len) {
                return false;
            }
            self.next = self.next.wrapping_add(len as u32);
            self.wait(now);
        }
        let flight = self.next.wrapping_sub(self.unacknowledged) as usize;
        if self.host_ended && !self.fin_sent && flight == self.outbox.len() {
            if !self.emit(outlet, Flags::ACK.and(Flags::FIN), self.next, 0..0) {
                return false;
            }
            self.fin_sent = true;
            self.next = self.next.wrapping_add(1);
            self.wait(now);
        } else if flight == 0 && !self.outbox.is_empty() {
            // The window is shut: it is probed when the timer ends.
            self.wait(now);
        }
        true
    }

    fn wait(&mut self, now: Instant) {
        self.deadline.get_or_insert(now + self.timeout);
    }

    /// The timer has ended: everything that was not acknowledged is sent again, or the shut
    /// window is probed.
    pub fn expired(
        &mut self,
        outlet: &mut Outlet<'_>,
        now: Instant,
        counters: &Counters,
    ) -> Verdict {
        self.deadline = None;
        let probe = self.window == 0 && self.state == State::Open && !self.outbox.is_empty();
        if self.next == self.unacknowledged && !probe {
            return Verdict::Keep;
        }
        if self.duplicates < DUPLICATES {
            self.timeout = (self.timeout * 2).min(LAST_TIMEOUT);
            // A guest that answers probes may keep its window shut as long as it likes.
            self.timeouts += u32::from(!probe);
        }
        self.duplicates = 0;
        if self.timeouts > MAX_TIMEOUTS {
            return Verdict::Reset;
        }
        counters.retransmits.add();
        self.next = self.unacknowledged;
        self.fin_sent = false;
        if probe {
            if self.emit(outlet, Flags::ACK, self.next, 0..1) {
                self.next = self.next.wrapping_add(1);
            }
            self.wait(now);
        } else if !self.send(outlet, now) {
            // The guest's card is full: it is tried again like what was lost on the way.
            self.wait(now);
        }
        Verdict::Keep
    }

    fn emit(
        &mut self,
        outlet: &mut Outlet<'_>,
        flags: Flags,
        sequence: u32,
        range: std::ops::Range<usize>,
    ) -> bool {
        let room = BUFFER - self.inbox.len();
        let syn = flags.has(Flags::SYN);
        // A SYN's own window is never scaled (RFC 7323, section 2.2).
        let window = if syn {
            room.min(0xffff)
        } else {
            (room >> SCALE).min(0xffff)
        };
        let header = SegmentHeader {
            source: self.key.remote.port(),
            destination: self.key.guest_port,
            sequence,
            acknowledgement: if flags.has(Flags::ACK) {
                self.expected
            } else {
                0
            },
            flags,
            window: window as u16,
            options: syn.then(|| (outlet.mss(), SCALE)),
        };
        let data = slices(&self.outbox, range);
        if !outlet.segment(&self.key, &header, data, self.mss.min(outlet.mss())) {
            return false;
        }
        if flags.has(Flags::ACK) {
            self.acknowledge = false;
            self.told_zero = room < BUFFER / 2;
        }
        true
    }

    /// Whether both sides have ended and everything was acknowledged.
    pub fn is_done(&self) -> bool {
        self.fin_sent && self.next == self.unacknowledged && self.shut && !self.acknowledge
    }

    /// Tells the guest that the connection is over.
    pub fn reset_guest(&mut self, outlet: &mut Outlet<'_>) {
        if self.state != State::SynSent {
            self.emit(outlet, Flags::RST.and(Flags::ACK), self.next, 0..0);
        }
    }

    /// Makes the socket's close a reset.
    pub fn reset_host(&self) {
        // Where it fails the close is an ordinary one.
        let _ = socket2::SockRef::from(&self.socket).set_linger(Some(Duration::ZERO));
    }
}

/// A range of a ring, as its two pieces.
fn slices(ring: &VecDeque<u8>, range: std::ops::Range<usize>) -> (&[u8], &[u8]) {
    let (first, second) = ring.as_slices();
    let cut = |slice: &'_ [u8], from: usize| {
        let start = range.start.saturating_sub(from).min(slice.len());
        let end = range.end.saturating_sub(from).min(slice.len());
        (start, end)
    };
    let (a, b) = cut(first, 0);
    let (c, d) = cut(second, first.len());
    (
        first.get(a..b).unwrap_or_default(),
        second.get(c..d).unwrap_or_default(),
    )
}
