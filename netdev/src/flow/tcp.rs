//! One TCP connection: the guest's side is spoken here (RFC 9293), the far side is a host socket.
//!
//! | state | the guest knows | the host's socket |
//! | --- | --- | --- |
//! | `Connecting` | it has sent its SYN | connects |
//! | `SynReceived` | it was answered | connected |
//! | `SynSent` | it was asked | accepted |
//! | `Open` | connected; each side may have ended | connected |
//!
//! What the guest sends inside the window that it was told goes to the socket, or waits in
//! `inbox`, whose room is what the window was told from: it is never dropped, and a window once
//! told is never taken back. What the socket gives waits in `outbox` until the guest has
//! acknowledged it.

use std::io::{self, Read};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::ops::Range;
use std::time::{Duration, Instant};

use super::data::Data;
use super::ring::{MOST, Pool, Ring};
use super::{Carried, Key, Outlet, Verdict};
use crate::counters::Counters;
use crate::gather::Gather;
use crate::wire::{Flags, Segment, SegmentHeader};

/// What a guest is told that it may send at most: no more than a ring has room for.
pub const MOST_PROMISED: usize = MOST / 2;
/// Our window's scale: a ring in units that 16 bits hold.
const SCALE: u8 = 7;
/// What a peer takes that does not say (RFC 9293, section 3.7.1).
const DEFAULT_MSS: u16 = 536;
/// No guest's card takes less sensibly; a smaller one would only cost work.
const MIN_MSS: u16 = 88;
const FIRST_TIMEOUT: Duration = Duration::from_millis(250);
const LAST_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeouts one after another before the guest is taken for gone.
const MAX_TIMEOUTS: u8 = 10;
/// Acknowledgements of the same byte before it is taken for lost (RFC 5681, section 3.2).
const DUPLICATES: u8 = 3;
/// A connection on which nothing has happened for so long is probed (RFC 9293, section 3.8.4).
const IDLE: Duration = Duration::from_secs(7200);
/// Segments kept that came before others that are missing.
const MAX_AHEAD: usize = 64;

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Connecting,
    SynReceived,
    SynSent,
    Open,
}

/// A segment that came before others that are missing.
#[derive(Debug)]
struct Ahead {
    sequence: u32,
    bytes: Box<[u8]>,
    fin: bool,
}

/// A connection.
#[derive(Debug)]
pub struct Tcp {
    /// Its name.
    pub key: Key,
    /// The far side.
    pub socket: TcpStream,
    /// What went through.
    pub carried: Carried,
    state: State,
    // To the guest.
    outbox: Ring,
    /// The oldest byte that the guest has not acknowledged, and the next to send.
    unacknowledged: u32,
    next: u32,
    /// One past the last byte that was ever sent: `next` goes back to send again.
    sent: u32,
    window: u32,
    scale: u8,
    /// Whether both sides scale their windows (RFC 7323, section 2.2).
    scaled: bool,
    mss: u16,
    duplicates: u8,
    /// What had been sent when something was first missing. Until the guest has all of it, it has
    /// what it acknowledges and misses what comes next (RFC 6582, section 3.2).
    recover: Option<u32>,
    /// The socket may have more to read; it is watched for changes only.
    readable: bool,
    /// Its end, its error, or urgent data is among what is to be read.
    ending: bool,
    host_ended: bool,
    fin_sent: bool,
    // From the guest.
    inbox: Ring,
    ahead: Vec<Ahead>,
    expected: u32,
    /// One past the last byte that the guest was told it may send.
    edge: u32,
    /// What a window is told from.
    limit: u32,
    writable: bool,
    guest_ended: bool,
    shut: bool,
    acknowledge: bool,
    timeout: Duration,
    timeouts: u8,
    /// When something is to be sent again, or the guest to be probed.
    pub deadline: Option<Instant>,
    /// The deadline is that of an idle connection.
    idle: bool,
}

/// What a segment brought.
#[derive(Debug, PartialEq, Eq)]
pub struct Taken {
    /// What became of the flow.
    pub verdict: Verdict,
    /// Which bytes of its payload are to go to the socket, by [`Tcp::deliver`].
    pub data: Range<usize>,
    /// It came before others that are missing, and is to be kept, by [`Tcp::keep_ahead`].
    pub early: bool,
}

impl Taken {
    fn nothing(verdict: Verdict) -> Self {
        Self {
            verdict,
            data: 0..0,
            early: false,
        }
    }
}

impl Tcp {
    /// A connection that the guest opened with `syn`, while `socket` is connecting. Windows are
    /// told from `limit` bytes.
    pub fn outgoing(
        key: Key,
        socket: TcpStream,
        syn: &Segment<'_>,
        first: u32,
        limit: usize,
    ) -> Self {
        let mut flow = Self::new(key, socket, State::Connecting, first, limit);
        flow.greet(syn);
        flow
    }

    /// A connection that came in from `key.remote`: the guest is asked by [`Tcp::send`].
    pub fn incoming(key: Key, socket: TcpStream, first: u32, limit: usize) -> Self {
        Self::new(key, socket, State::SynSent, first, limit)
    }

    fn new(key: Key, socket: TcpStream, state: State, first: u32, limit: usize) -> Self {
        Self {
            key,
            socket,
            carried: Carried::default(),
            state,
            outbox: Ring::default(),
            unacknowledged: first,
            next: first,
            sent: first,
            window: 0,
            scale: 0,
            scaled: false,
            mss: DEFAULT_MSS,
            duplicates: 0,
            recover: None,
            // epoll tells of what there is as soon as it watches.
            readable: false,
            ending: false,
            host_ended: false,
            fin_sent: false,
            inbox: Ring::default(),
            ahead: Vec::new(),
            expected: 0,
            edge: 0,
            limit: limit.min(MOST_PROMISED) as u32,
            writable: true,
            guest_ended: false,
            shut: false,
            acknowledge: false,
            timeout: FIRST_TIMEOUT,
            timeouts: 0,
            deadline: None,
            idle: false,
        }
    }

    /// Takes what the guest's SYN says.
    fn greet(&mut self, syn: &Segment<'_>) {
        self.expected = syn.sequence.wrapping_add(1);
        self.edge = self.expected;
        self.mss = syn.mss.unwrap_or(DEFAULT_MSS).max(MIN_MSS);
        self.scaled = syn.scale.is_some();
        self.scale = syn.scale.unwrap_or(0);
        self.window = u32::from(syn.window);
    }

    /// Windows are told from `limit` bytes from now on; what was told stays.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit.min(MOST_PROMISED) as u32;
    }

    /// What epoll saw at the socket; `ending` is its end or an error, or urgent data, at which a read ends
    /// short.
    pub fn ready(&mut self, readable: bool, writable: bool, ending: bool) {
        self.readable |= readable | ending;
        self.writable |= writable;
        self.ending |= ending;
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

    /// Whether the guest has been asked and has not answered.
    pub fn is_asking(&self) -> bool {
        self.state == State::SynSent
    }

    /// Whether the guest answers our SYN with what is about an older connection of that name, which
    /// it remembers for a minute after its end. A reset has it forget that (RFC 9293, section
    /// 3.10.7.3), and it is asked again: the first time at once.
    pub fn is_taken_for_another(&mut self, segment: &Segment<'_>, now: Instant) -> bool {
        let answer = segment.flags.has(Flags::ACK) && !segment.flags.has(Flags::RST);
        let other = self.is_asking() && answer && segment.acknowledgement != self.next;
        if other && self.timeouts == 0 {
            self.deadline = Some(now);
        }
        other
    }

    /// Whether the host's connection is not up yet.
    pub fn is_connecting(&self) -> bool {
        self.state == State::Connecting
    }

    /// A segment from the guest.
    pub fn receive(&mut self, segment: &Segment<'_>, now: Instant, pool: &mut Pool) -> Taken {
        let flags = segment.flags;
        match self.state {
            State::Connecting if flags.has(Flags::RST) => return Taken::nothing(Verdict::Reset),
            // A SYN sent again: the answer is under way.
            State::Connecting => return Taken::nothing(Verdict::Keep),
            State::SynSent => return Taken::nothing(self.answered(segment)),
            _ => {}
        }
        if self.idle {
            self.settle();
        }
        if flags.has(Flags::RST) {
            // RFC 5961, section 3: only an exact one counts.
            let exact = segment.sequence == self.expected;
            self.acknowledge |= !exact;
            return Taken::nothing(if exact { Verdict::Reset } else { Verdict::Keep });
        }
        if flags.has(Flags::SYN) {
            // Our answer to it was lost.
            if self.state == State::SynReceived {
                self.next = self.unacknowledged;
            }
            self.acknowledge = true;
            return Taken::nothing(Verdict::Keep);
        }
        if flags.has(Flags::ACK) {
            self.acknowledged(segment, now, pool);
        }
        if self.state == State::Open {
            self.take(segment)
        } else {
            Taken::nothing(Verdict::Keep)
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

    fn acknowledged(&mut self, segment: &Segment<'_>, now: Instant, pool: &mut Pool) {
        let newly = segment.acknowledgement.wrapping_sub(self.unacknowledged);
        if newly > self.sent.wrapping_sub(self.unacknowledged) {
            // Of something that was never sent (RFC 9293, section 3.10.7.4), or older.
            self.acknowledge |= newly < 1 << 31;
            return;
        }
        let window = u32::from(segment.window) << self.scale;
        let edge = segment.acknowledgement.wrapping_add(window);
        let before = |a: u32, b: u32| b.wrapping_sub(a).wrapping_sub(1) < 1 << 31;
        if before(edge, self.next) && before(edge, self.unacknowledged.wrapping_add(self.window)) {
            // It may not have looked at what was acknowledged beyond.
            self.acknowledge = true;
        }
        if newly == 0 {
            let waits = self.flight() > 0;
            let same = window == self.window && segment.payload.is_empty() && waits;
            self.duplicates = if same {
                self.duplicates.saturating_add(1)
            } else {
                0
            };
            if window == 0 {
                // It lives, which is all that a probe of its window asks.
                self.timeouts = 0;
            }
            if self.duplicates == DUPLICATES && self.recover.is_none() {
                self.deadline = Some(now);
            }
            if window > 0 && self.window == 0 {
                // It opens again: what a probe sent goes again, with the rest.
                self.recover = None;
                self.next = self.unacknowledged;
                self.fin_sent = false;
                self.settle();
            }
            self.window = window;
            return;
        }
        self.window = window;
        let mut data = newly as usize;
        if self.state == State::SynReceived {
            self.state = State::Open;
            data -= 1;
        }
        if newly as usize > self.flight() {
            // It had what was to be sent again, and perhaps the FIN, the number behind all data.
            self.next = segment.acknowledgement;
            self.fin_sent |= data > self.outbox.len();
        }
        self.outbox.consume(data, pool);
        self.unacknowledged = segment.acknowledgement;
        self.settle();
        let missed = |recover: &u32| recover.wrapping_sub(segment.acknowledgement) as i32 > 0;
        self.recover = self.recover.filter(missed);
        if self.recover.is_some() {
            // That says as much as duplicates do.
            self.duplicates = DUPLICATES;
            self.deadline = Some(now);
        } else if self.flight() > 0 {
            self.deadline = Some(now + self.timeout);
        }
    }

    /// The number of a segment without data: the next, but no more than the edge of a window that
    /// the guest has taken back, as Linux does that drops what it has no memory for. It looks at
    /// nothing that lies beyond.
    fn acceptable(&self) -> u32 {
        if self.state == State::Open && self.flight() > self.window as usize {
            return self.unacknowledged.wrapping_add(self.window);
        }
        self.next
    }

    fn flight(&self) -> usize {
        self.next.wrapping_sub(self.unacknowledged) as usize
    }

    /// So many numbers were sent.
    fn advance(&mut self, count: usize) {
        self.next = self.next.wrapping_add(count as u32);
        if self.next.wrapping_sub(self.sent) < 1 << 31 {
            self.sent = self.next;
        }
    }

    fn settle(&mut self) {
        self.timeout = FIRST_TIMEOUT;
        self.timeouts = 0;
        self.duplicates = 0;
        self.deadline = None;
        self.idle = false;
    }

    /// Takes a segment's data and its FIN.
    fn take(&mut self, segment: &Segment<'_>) -> Taken {
        let fin = segment.flags.has(Flags::FIN);
        let known = self.expected.wrapping_sub(segment.sequence);
        let len = segment.payload.len();
        if len == 0 && !fin {
            // One that is not the next is a probe, of a window or of our life.
            self.acknowledge |= known != 0;
            return Taken::nothing(Verdict::Keep);
        }
        self.acknowledge = true;
        if known >= 1 << 31 {
            return Taken {
                early: self.is_worth_keeping(segment),
                ..Taken::nothing(Verdict::Keep)
            };
        }
        let room = self.edge.wrapping_sub(self.expected) as usize;
        let start = known as usize;
        if self.guest_ended || start > len {
            return Taken::nothing(Verdict::Keep);
        }
        let end = len.min(start + room);
        self.expected = self.expected.wrapping_add((end - start) as u32);
        if fin && end == len {
            self.end_of_guest();
        }
        Taken {
            verdict: Verdict::Keep,
            data: start..end,
            early: false,
        }
    }

    fn end_of_guest(&mut self) {
        self.expected = self.expected.wrapping_add(1);
        // There is nothing more to come, so nothing more to promise.
        self.edge = self.expected;
        self.guest_ended = true;
        self.ahead = Vec::new();
    }

    /// Whether a segment lies whole within the window, and is not kept yet.
    fn is_worth_keeping(&self, segment: &Segment<'_>) -> bool {
        let from = segment.sequence.wrapping_sub(self.expected) as usize;
        let room = self.edge.wrapping_sub(self.expected) as usize;
        // Segments that overlap may be more together than the window.
        let kept: usize = self.ahead.iter().map(|ahead| ahead.bytes.len()).sum();
        let len = segment.payload.len();
        let within = from + len <= room && kept + len <= room;
        let known = |ahead: &Ahead| ahead.sequence == segment.sequence;
        within && self.ahead.len() < MAX_AHEAD && !self.ahead.iter().any(known)
    }

    /// Keeps a segment, whose payload is `bytes`, until what is missing before it comes.
    pub fn keep_ahead(&mut self, segment: &Segment<'_>, bytes: Box<[u8]>) {
        self.ahead.push(Ahead {
            sequence: segment.sequence,
            bytes,
            fin: segment.flags.has(Flags::FIN),
        });
    }

    /// Gives `data` to the socket, and then what had come before its turn; what the socket does
    /// not take waits. They are what [`Tcp::receive`] said to deliver, in its order.
    pub fn deliver(&mut self, data: &[Data<'_>], pool: &mut Pool) -> Verdict {
        if let Err(error) = self.forward(data, pool) {
            return Verdict::Failed(error.kind());
        }
        while let Some(next) = self.next_ahead() {
            let known = self.expected.wrapping_sub(next.sequence) as usize;
            let data = next.bytes.get(known..).unwrap_or_default();
            self.expected = self.expected.wrapping_add(data.len() as u32);
            if next.fin {
                self.end_of_guest();
            }
            if let Err(error) = self.forward(&[Data::Copied(data)], pool) {
                return Verdict::Failed(error.kind());
            }
        }
        self.shut_when_empty();
        Verdict::Keep
    }

    /// Takes a kept segment whose turn has come; those that are known by now are dropped.
    fn next_ahead(&mut self) -> Option<Ahead> {
        let expected = self.expected;
        self.ahead.retain(|ahead| {
            let known = expected.wrapping_sub(ahead.sequence);
            known >= 1 << 31
                || (known as usize) < ahead.bytes.len()
                || (ahead.fin && known as usize == ahead.bytes.len())
        });
        let ready = |ahead: &Ahead| expected.wrapping_sub(ahead.sequence) < 1 << 31;
        let index = self.ahead.iter().position(ready)?;
        Some(self.ahead.swap_remove(index))
    }

    fn forward(&mut self, data: &[Data<'_>], pool: &mut Pool) -> io::Result<()> {
        let total: usize = data.iter().map(Data::len).sum();
        self.carried.from_guest += total as u64;
        let mut taken = 0;
        if self.inbox.is_empty() && self.writable && total > 0 {
            let mut gather = Gather::default();
            for piece in data {
                piece.gather(&mut gather)?;
            }
            taken = gather.write(&self.socket)?;
            self.writable = taken == gather.len();
        }
        for piece in data {
            let now = taken.min(piece.len());
            taken -= now;
            piece.push_to(&mut self.inbox, now, pool)?;
        }
        // What one call had no room for.
        self.write_inbox(pool)
    }

    fn write_inbox(&mut self, pool: &mut Pool) -> io::Result<()> {
        while !self.inbox.is_empty() && self.writable {
            let mut gather = Gather::default();
            for part in self.inbox.parts(0..self.inbox.len()) {
                gather.push(part);
            }
            let n = gather.write(&self.socket)?;
            self.writable = n == gather.len();
            self.inbox.consume(n, pool);
        }
        Ok(())
    }

    /// Gives the socket what waits, where it takes it.
    pub fn drain(&mut self, pool: &mut Pool) -> Verdict {
        if let Err(error) = self.write_inbox(pool) {
            return Verdict::Failed(error.kind());
        }
        self.shut_when_empty();
        // The guest waits for room where it was told that there is little.
        let told = self.edge.wrapping_sub(self.expected) as usize;
        let (more, limit) = (self.room().saturating_sub(told), self.limit as usize);
        self.acknowledge |=
            !self.guest_ended && self.state == State::Open && told < limit / 2 && more >= limit / 4;
        Verdict::Keep
    }

    fn shut_when_empty(&mut self) {
        if self.guest_ended && self.inbox.is_empty() && !self.shut {
            self.shut = true;
            // It may be closed already: then there is nobody to tell.
            let _ = self.socket.shutdown(Shutdown::Write);
        }
    }

    /// Reads up to `most` bytes of what the socket has, as far as there is room.
    pub fn fill(&mut self, most: usize, pool: &mut Pool) -> Verdict {
        let mut left = most;
        while self.readable && !self.host_ended && self.state == State::Open && left > 0 {
            let room = self.outbox.make_room(pool).min(left);
            if room == 0 {
                break;
            }
            match self.socket.read_vectored(&mut self.outbox.spare(room)) {
                Ok(0) => {
                    self.host_ended = true;
                    self.readable = false;
                }
                Ok(n) => {
                    self.outbox.filled(n);
                    left -= n;
                    self.carried.to_guest += n as u64;
                    // Less than asked for: that was all, and what comes now is a change.
                    self.readable = n == room || self.ending;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Verdict::Reset,
            }
        }
        if self.outbox.is_empty() {
            self.outbox.clear(pool);
        }
        Verdict::Keep
    }

    /// Sends what may be sent now; false where the guest's card has no room.
    pub fn send(&mut self, outlet: &mut Outlet<'_>, guest: IpAddr, now: Instant) -> bool {
        let sent = match self.state {
            State::Connecting => true,
            State::SynReceived => self.send_syn(outlet, guest, Flags::SYN.and(Flags::ACK), now),
            State::SynSent => self.send_syn(outlet, guest, Flags::SYN, now),
            State::Open => self.send_data(outlet, guest, now),
        };
        let owed = self.acknowledge && matches!(self.state, State::SynReceived | State::Open);
        let sent = sent && (!owed || self.emit(outlet, guest, Flags::ACK, self.acceptable(), 0..0));
        if !sent {
            // If there is no room before the timer ends, that is as if it had been lost.
            self.wait(now);
        } else if self.state == State::Open && self.flight() == 0 && self.outbox.is_empty() {
            self.rest(now);
        }
        sent
    }

    /// Nothing is owed to the guest.
    fn rest(&mut self, now: Instant) {
        if !self.idle {
            self.settle();
            self.deadline = Some(now + IDLE);
            self.idle = true;
        }
    }

    fn send_syn(
        &mut self,
        outlet: &mut Outlet<'_>,
        guest: IpAddr,
        flags: Flags,
        now: Instant,
    ) -> bool {
        if self.next != self.unacknowledged {
            return true;
        }
        let sent = self.emit(outlet, guest, flags, self.next, 0..0);
        if sent {
            self.advance(1);
            self.wait(now);
        }
        sent
    }

    fn send_data(&mut self, outlet: &mut Outlet<'_>, guest: IpAddr, now: Instant) -> bool {
        let limit = outlet.segment_limit(self.key.remote.ip(), self.mss_with(outlet));
        while !self.fin_sent {
            let flight = self.flight();
            let ready = self.outbox.len().min(self.window as usize);
            let len = ready.saturating_sub(flight).min(limit);
            if len == 0 {
                break;
            }
            let mut flags = Flags::ACK.and(Flags::PSH);
            // The FIN, too, is a number that the guest has to have room for.
            let last = flight + len == self.outbox.len();
            let ends = self.host_ended && last && flight + len < self.window as usize;
            if ends {
                flags = flags.and(Flags::FIN);
            }
            if !self.emit(outlet, guest, flags, self.next, flight..flight + len) {
                return false;
            }
            self.fin_sent = ends;
            self.advance(len + usize::from(ends));
            self.wait(now);
        }
        if self.host_ended && !self.fin_sent && self.flight() == self.outbox.len() {
            if !self.emit(outlet, guest, Flags::ACK.and(Flags::FIN), self.next, 0..0) {
                return false;
            }
            self.fin_sent = true;
            self.advance(1);
            self.wait(now);
        } else if self.flight() == 0 && !self.outbox.is_empty() {
            // The window is shut: it is probed when the timer ends.
            self.wait(now);
        }
        true
    }

    fn wait(&mut self, now: Instant) {
        if self.idle {
            self.deadline = None;
            self.idle = false;
        }
        self.deadline.get_or_insert(now + self.timeout);
    }

    /// The timer has ended, or something is missing: that is sent again, or the guest is probed: a
    /// shut window by a byte, an idle connection by an old number.
    pub fn expired(
        &mut self,
        outlet: &mut Outlet<'_>,
        guest: IpAddr,
        now: Instant,
        counters: &Counters,
    ) -> Verdict {
        self.deadline = None;
        let probe = self.window == 0 && self.state == State::Open && !self.outbox.is_empty();
        let idle = self.idle;
        if self.duplicates < DUPLICATES {
            self.timeout = (self.timeout * 2).min(LAST_TIMEOUT);
            self.timeouts += 1;
        }
        self.duplicates = 0;
        if self.timeouts > MAX_TIMEOUTS {
            return Verdict::Reset;
        }
        if idle {
            let old = self.next.wrapping_sub(1);
            self.emit(outlet, guest, Flags::ACK, old, 0..0);
            self.deadline = Some(now + self.timeout);
            return Verdict::Keep;
        }
        counters.retransmits.add();
        if self.state == State::Open && !probe && self.flight() > 0 {
            self.repeat(outlet, guest);
            self.wait(now);
            return Verdict::Keep;
        }
        self.next = self.unacknowledged;
        self.fin_sent = false;
        if probe {
            if self.emit(outlet, guest, Flags::ACK, self.next, 0..1) {
                self.advance(1);
            }
            self.wait(now);
        } else {
            self.send(outlet, guest, now);
        }
        Verdict::Keep
    }

    /// Sends the first segment again that the guest has not acknowledged, and no other: it may have
    /// them.
    fn repeat(&mut self, outlet: &mut Outlet<'_>, guest: IpAddr) {
        self.recover.get_or_insert(self.sent);
        let limit = outlet.segment_limit(self.key.remote.ip(), self.mss_with(outlet));
        let sent = self.outbox.len().min(self.flight());
        let len = sent.min(limit).min(self.window as usize);
        let flags = Flags::ACK.and(if sent > 0 { Flags::PSH } else { Flags::FIN });
        self.emit(outlet, guest, flags, self.unacknowledged, 0..len);
    }

    /// The segments' size: what both sides take.
    fn mss_with(&self, outlet: &Outlet<'_>) -> u16 {
        self.mss.min(outlet.mss(self.key.remote.ip()))
    }

    /// Bytes beyond `expected` that there is room for now.
    fn room(&self) -> usize {
        (self.limit as usize).saturating_sub(self.inbox.len())
    }

    fn emit(
        &mut self,
        outlet: &mut Outlet<'_>,
        guest: IpAddr,
        flags: Flags,
        sequence: u32,
        range: Range<usize>,
    ) -> bool {
        let syn = flags.has(Flags::SYN);
        let scale = if self.scaled && !syn { SCALE } else { 0 };
        let told = self.edge.wrapping_sub(self.expected);
        let window = if self.guest_ended || self.state == State::SynSent {
            self.room() as u32
        } else {
            told.max(self.room() as u32)
        };
        let window = (window >> scale).min(0xffff);
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
            options: syn.then(|| {
                let scale = (self.scaled || self.state == State::SynSent).then_some(SCALE);
                (outlet.mss(self.key.remote.ip()), scale)
            }),
        };
        let data = self.outbox.parts(range);
        let ends = (self.key.remote.ip(), guest);
        if !outlet.segment(ends, &header, data, self.mss_with(outlet)) {
            return false;
        }
        if flags.has(Flags::ACK) {
            self.acknowledge = false;
            if !self.guest_ended {
                let told = window << scale;
                let edge = self.expected.wrapping_add(told);
                if edge.wrapping_sub(self.edge) < 1 << 31 {
                    self.edge = edge;
                }
            }
        }
        true
    }

    /// Where it stands, in a word.
    pub fn state(&self) -> &'static str {
        match self.state {
            State::Connecting => "connecting",
            State::SynReceived | State::SynSent => "opening",
            State::Open if self.guest_ended && self.host_ended => "closing",
            State::Open if self.guest_ended => "guest-ended",
            State::Open if self.host_ended => "host-ended",
            State::Open => "open",
        }
    }

    /// Bytes that the guest has not acknowledged, or not got.
    pub fn under_way(&self) -> usize {
        self.outbox.len()
    }

    /// Whether both sides have ended and everything was acknowledged.
    pub fn is_done(&self) -> bool {
        self.fin_sent && self.next == self.unacknowledged && self.shut && !self.acknowledge
    }

    /// Tells the guest that the connection is over.
    pub fn reset_guest(&mut self, outlet: &mut Outlet<'_>, guest: IpAddr) {
        if self.state != State::SynSent {
            let flags = Flags::RST.and(Flags::ACK);
            self.emit(outlet, guest, flags, self.acceptable(), 0..0);
        }
    }

    /// The start of the guest's SYN, as an ICMP message about it has to show it.
    pub fn syn(&self) -> [u8; SegmentHeader::MAX] {
        let mut bytes = [0; SegmentHeader::MAX];
        let header = SegmentHeader {
            source: self.key.guest_port,
            destination: self.key.remote.port(),
            sequence: self.expected.wrapping_sub(1),
            acknowledgement: 0,
            flags: Flags::SYN,
            window: 0,
            options: None,
        };
        header.write(&mut bytes);
        bytes
    }

    /// Makes the socket's close a reset.
    pub fn reset_host(&self) {
        // Where it fails the close is an ordinary one.
        let _ = socket2::SockRef::from(&self.socket).set_linger(Some(Duration::ZERO));
    }

    /// Gives back the memory of a flow that is over.
    pub fn clear(&mut self, pool: &mut Pool) {
        self.inbox.clear(pool);
        self.outbox.clear(pool);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;

    use super::*;
    use crate::config::Transport;
    use crate::link::{Link, fake};

    /// An open connection, of which the guest was told a window of `window` bytes, and its peer.
    fn open(window: u32) -> (Tcp, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        socket.set_nonblocking(true).unwrap();
        let (peer, remote) = listener.accept().unwrap();
        let key = Key {
            transport: Transport::Tcp,
            guest_port: 1,
            remote,
        };
        let mut tcp = Tcp::new(key, socket, State::Open, 0, MOST_PROMISED);
        tcp.edge = window;
        (tcp, peer)
    }

    fn outlet(link: &mut dyn Link) -> Outlet<'_> {
        Outlet {
            link,
            mac: [2; 6],
            mtu: 1500,
        }
    }

    fn segment(sequence: u32, payload: &[u8]) -> Segment<'_> {
        Segment {
            source: 1,
            destination: 2,
            sequence,
            acknowledgement: 0,
            flags: Flags::ACK,
            window: 0,
            mss: None,
            scale: None,
            payload,
        }
    }

    #[test]
    fn what_came_too_early_goes_out_in_its_turn() {
        let (mut tcp, mut peer) = open(100);
        let (mut pool, now) = (Pool::new(64 << 20), Instant::now());
        for (sequence, payload) in [(6, b"ghi"), (3, b"def"), (4, b"efg")] {
            let segment = segment(sequence, payload);
            let taken = tcp.receive(&segment, now, &mut pool);
            assert_eq!((taken.data, taken.early), (0..0, true));
            tcp.keep_ahead(&segment, segment.payload.into());
        }
        let taken = tcp.receive(&segment(0, b"abc"), now, &mut pool);
        assert_eq!(taken.data, 0..3);
        tcp.deliver(&[Data::Copied(b"abc")], &mut pool);
        assert_eq!(tcp.expected, 9);
        let mut bytes = [0; 9];
        peer.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"abcdefghi");
    }

    #[test]
    fn what_is_acknowledged_is_so_within_a_window_that_the_guest_took_back() {
        let (mut tcp, mut peer) = open(100);
        let (mut pool, now) = (Pool::new(64 << 20), Instant::now());
        let (mut link, card) = fake::pair();
        let guest = "10.0.2.2".parse().unwrap();
        let mut outlet = outlet(&mut link);
        tcp.window = 500;
        peer.write_all(&[7; 500]).unwrap();
        while tcp.outbox.len() < 500 {
            tcp.ready(true, false, false);
            tcp.fill(500, &mut pool);
        }
        tcp.send(&mut outlet, guest, now);
        assert_eq!(fake::segment(&card.receive()).unwrap().1.payload.len(), 500);
        for (window, payload) in [(200, &b"abc"[..]), (100, b""), (0, b"abc")] {
            let mut data = segment(tcp.expected, payload);
            data.window = window;
            let taken = tcp.receive(&data, now, &mut pool);
            assert_eq!(taken.data, 0..payload.len());
            tcp.send(&mut outlet, guest, now);
            let frame = card.receive();
            let (_, answer) = fake::segment(&frame).unwrap();
            assert_eq!(answer.acknowledgement, tcp.expected);
            assert_eq!(answer.sequence, u32::from(window));
        }
    }

    #[test]
    fn the_end_goes_with_the_last_data_where_the_guest_has_room_for_it() {
        for (window, ends) in [(7, true), (6, false)] {
            let (mut tcp, mut peer) = open(100);
            let (mut pool, now) = (Pool::new(64 << 20), Instant::now());
            let (mut link, card) = fake::pair();
            let guest = "10.0.2.2".parse().unwrap();
            let mut outlet = outlet(&mut link);
            tcp.window = window;
            peer.write_all(b"answer").unwrap();
            peer.shutdown(Shutdown::Write).unwrap();
            while !tcp.host_ended {
                tcp.ready(true, false, true);
                tcp.fill(500, &mut pool);
            }
            tcp.send(&mut outlet, guest, now);
            let frame = card.receive();
            let (_, answer) = fake::segment(&frame).unwrap();
            assert_eq!(answer.payload, b"answer");
            assert_eq!(answer.flags.has(Flags::FIN), ends);
        }
    }

    #[test]
    fn what_lies_in_more_places_than_one_call_takes_goes_out_all_the_same() {
        const LEN: usize = 3000;
        let (mut tcp, mut peer) = open(LEN as u32);
        let bytes: Vec<u8> = (0..LEN).map(|at| (at % 251) as u8).collect();
        let data: Vec<Data<'_>> = bytes.chunks(1).map(Data::Copied).collect();
        let mut pool = Pool::new(64 << 20);
        assert_eq!(tcp.deliver(&data, &mut pool), Verdict::Keep);
        assert!(tcp.inbox.is_empty() && tcp.writable);
        let mut got = vec![0; LEN];
        peer.read_exact(&mut got).unwrap();
        assert!(got == bytes);
    }

    #[test]
    fn overlapping_segments_are_kept_only_as_far_as_the_window_goes() {
        let (mut tcp, _peer) = open(1000);
        let mut pool = Pool::new(64 << 20);
        for sequence in 1..200 {
            let segment = segment(sequence, &[0; 600]);
            if tcp.receive(&segment, Instant::now(), &mut pool).early {
                tcp.keep_ahead(&segment, segment.payload.into());
            }
        }
        let kept: usize = tcp.ahead.iter().map(|ahead| ahead.bytes.len()).sum();
        assert_eq!(kept, 600);
        let taken = tcp.receive(&segment(900, &[0; 101]), Instant::now(), &mut pool);
        assert!(!taken.early, "beyond the window");
    }
}
