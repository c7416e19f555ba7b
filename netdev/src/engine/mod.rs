//! One loop over the link, the sockets and the timers.

mod control;
mod guest;
mod host;
mod poll;
mod probe;
mod table;
#[cfg(test)]
mod tests;

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::config::{Config, Transport};
use crate::control::{Control, Desk, Kept};
use crate::counters::Counters;
use crate::flow::ring::{Pool, SIZES, SMALL};
use crate::flow::tcp::MOST_PROMISED;
use crate::flow::{Key, Outlet, Verdict};
use crate::forward::{ForwardError, Forwards, Told};
use crate::gate::Gate;
use crate::link::Link;
use crate::link::capture::{Capture, Captured};
use crate::link::limited::Limited;
use crate::link::metered::Metered;
use crate::pace::Pace;
use crate::pod::Pod;
use crate::service::ndp;
use crate::wire::{Icmp, Mac, Unreachable, header_len, write_header};
use guest::Batch;
use host::Spare;
use poll::Polling;
use probe::Probes;
use table::{Flow, Table};

/// What an epoll event is about: a kind in the top byte, an index below.
const KIND: u64 = 56;
const STOP: u64 = 1;
const LINK: u64 = 2;
const PORT: u64 = 3;
const FLOW: u64 = 4;
const POD: u64 = 5;
const CONTROL: u64 = 6;
const EVENTS: usize = 128;
/// The largest datagram, and what one read of a socket of datagrams takes at most.
const SCRATCH: usize = 64 << 10;
/// Between two advertisements of the router: a third of what each is good for.
const ADVERTISEMENTS: Duration = Duration::from_secs(ndp::ROUTER_LIFETIME as u64 / 3);
/// The guest's MAC address until it has spoken.
const EVERYBODY: Mac = [0xff; 6];
/// What a new connection is promised: the first flight of Ethernet's segments (RFC 6928).
const FIRST_PROMISE: usize = 16 << 10;
/// How long memory has to be of no use before it goes back to the kernel.
const TRIM_AFTER: Duration = Duration::from_secs(1);
/// What a connection is promised at least.
const LEAST_PROMISE: usize = 4 << 10;

/// A user-mode network, with its listening sockets; it runs as often as the guest starts.
pub struct Engine {
    config: Config,
    counters: Arc<Counters>,
    desk: Arc<Desk>,
    /// Here while a guest runs; on the desk otherwise.
    forwards: Forwards,
    /// On its way between the desk and the link.
    capture: Option<Box<Capture>>,
    secret: RandomState,
    started: Instant,
    spare: Spare,
    gate: Gate,
    busy_poll: bool,
}

/// One run: everything that ends with the guest.
pub struct Run<'a> {
    engine: &'a mut Engine,
    link: Captured<'a>,
    clock: &'a dyn Fn() -> Instant,
    epoll: Epoll,
    pod: Pod,
    table: Table,
    pool: Pool,
    /// When the pool was of use last.
    pool_used: Instant,
    batch: Batch,
    guest_mac: Mac,
    scratch: Box<[u8]>,
    /// Flows that found the guest's card full.
    blocked: Vec<u32>,
    /// The guest may have more frames, of which the link will not tell.
    more: bool,
    probes: Probes,
    /// What the guest tells of its UDP ports, if it does.
    told: Option<Told>,
    polling: Polling,
    /// How fast the guest may begin flows.
    new_flows: Option<Pace>,
    /// When the gateway advertises itself as IPv6's router again.
    advertisement: Option<Instant>,
    now: Instant,
}

impl Engine {
    /// Binds every forward's socket; a port that is taken is an error here, before a guest runs.
    pub fn new(config: Config) -> Result<Self, ForwardError> {
        let counters = Arc::default();
        let forwards = Forwards::bind(&config.forwards, &counters)?;
        Ok(Self {
            config,
            counters,
            desk: Arc::new(Desk::new(Kept {
                forwards,
                capture: None,
            })),
            forwards: Forwards::default(),
            capture: None,
            secret: RandomState::new(),
            started: Instant::now(),
            spare: Spare::default(),
            gate: Gate::default(),
            busy_poll: false,
        })
    }

    /// What the network has done.
    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }

    /// A handle on the network for other threads, of use as long as the engine is there.
    pub fn control(&self) -> Control {
        Control::new(&self.desk, self.counters.clone(), &self.config)
    }

    /// Passes `gate` before each turn in which it may touch the guest.
    pub fn pass(&mut self, gate: Gate) {
        self.gate = gate;
    }

    /// Looks for a request's answer for up to 50 us instead of sleeping until it comes, as long as
    /// they follow each other soon, where this process may use a CPU beyond the `guest`'s, by its
    /// affinity and its cgroup's cpu.max.
    pub fn poll_beside(&mut self, guest: usize) {
        let cpus = std::thread::available_parallelism();
        self.busy_poll = cpus.is_ok_and(|cpus| cpus.get() > guest);
    }

    /// Serves the guest behind `link` until `stop` can be read. Then every flow is reset; the
    /// listening sockets stay for the next run.
    pub fn run(&mut self, link: &mut dyn Link, stop: RawFd) -> io::Result<()> {
        let (into, out) = (self.config.policy.rate_in, self.config.policy.rate_out);
        if into.is_none() && out.is_none() {
            return self.serve(link, stop);
        }
        let mut link = Limited::new(link, into, out)?;
        self.serve(&mut link, stop)
    }

    fn serve(&mut self, link: &mut dyn Link, stop: RawFd) -> io::Result<()> {
        let mut run = self.attach(link, &Instant::now)?;
        let event = EpollEvent::new(EventSet::IN, STOP << KIND);
        run.epoll.ctl(ControlOperation::Add, stop, event)?;
        while run.turn(true)? {}
        // Whoever has the guest's rings next hears of what is in them.
        run.link.quiet(false);
        Ok(())
    }

    /// A run behind `link` whose time is what `clock` says, for whoever turns it by hand. Its rates
    /// are whatever `link` has.
    pub fn attach<'a>(
        &'a mut self,
        link: &'a mut dyn Link,
        clock: &'a dyn Fn() -> Instant,
    ) -> io::Result<Run<'a>> {
        self.spare.keep();
        let (epoll, pod) = match self.start(link) {
            Ok(started) => started,
            Err(error) => {
                self.park();
                return Err(error);
            }
        };
        let counters = self.counters.clone();
        let link = Captured::new(Metered::new(link, counters), self.capture.take());
        let polling = Polling::new(self.busy_poll);
        let pool = Pool::new(self.config.memory / 2);
        let mut run = Run {
            engine: self,
            link,
            clock,
            epoll,
            pod,
            table: Table::default(),
            pool,
            pool_used: Instant::now(),
            batch: Batch::default(),
            guest_mac: EVERYBODY,
            scratch: vec![0; SCRATCH].into_boxed_slice(),
            blocked: Vec::new(),
            more: false,
            probes: Probes::default(),
            told: None,
            polling,
            new_flows: None,
            advertisement: None,
            now: clock(),
        };
        if !run.engine.config.eager {
            let forwards = run.engine.forwards.ports();
            run.probes = Probes::new(forwards.filter_map(|(_, port)| port.tcp()), run.now);
        }
        run.new_flows = run.engine.config.policy.new_flows.map(|rate| {
            // Those of a second at once.
            Pace::new(rate.into(), Duration::from_secs(1), run.now)
        });
        run.advertisement = run.engine.config.v6.map(|_| run.now + ADVERTISEMENTS);
        // Frames may lie there from before.
        run.frames();
        run.link.flush();
        Ok(run)
    }

    /// Takes what was kept for the next guest, and has everything watched that can be now.
    fn start(&mut self, link: &dyn Link) -> io::Result<(Epoll, Pod)> {
        let epoll = Epoll::new()?;
        let watch = |fd, token| {
            epoll.ctl(
                ControlOperation::Add,
                fd,
                EpollEvent::new(EventSet::IN, token),
            )
        };
        for fd in link.descriptors() {
            watch(fd, LINK << KIND)?;
        }
        let pod = Pod::open()?;
        watch(pod.descriptor(), POD << KIND)?;
        let (kept, calls) = self.desk.open()?;
        self.take_back(kept);
        watch(calls, CONTROL << KIND)?;
        for (index, port) in self.forwards.ports_mut() {
            port.set_listening(self.config.eager || port.transport() == Transport::Udp)?;
            if port.listens() {
                control::watch_port(&epoll, index, port.descriptor())?;
            }
        }
        Ok((epoll, pod))
    }

    /// An initial sequence number (RFC 6528): a clock of 4 us and a keyed hash of the flow.
    fn first_sequence(&self, key: &Key) -> u32 {
        let clock = self.started.elapsed().as_micros() / 4;
        (self.secret.hash_one(key) as u32).wrapping_add(clock as u32)
    }
}

impl Run<'_> {
    /// Deals with what there is to deal with, waiting for it if `wait`; false after `stop`.
    pub fn turn(&mut self, wait: bool) -> io::Result<bool> {
        let mut events = [EpollEvent::default(); EVENTS];
        let count = if wait && !self.more {
            self.wait(&mut events)?
        } else {
            self.ready(0, &mut events)?
        };
        let gate = self.engine.gate.clone();
        let _pass = gate.pass();
        self.now = (self.clock)();
        let mut going = true;
        for event in events.iter().take(count) {
            let token = event.data();
            match token >> KIND {
                STOP => going = false,
                LINK => {
                    self.link.acknowledge();
                    self.more = true;
                }
                PORT => self.port(token as u32 as usize),
                POD => self.pod_changed(),
                CONTROL => self.calls(),
                _ => self.socket(token, event.event_set()),
            }
        }
        if self.more {
            self.frames();
        }
        self.timers();
        self.polling.moved(self.link.moved());
        self.link.flush();
        self.engine.counters.flows.set(self.table.len() as u64);
        Ok(going)
    }

    /// Waits for events, or for frames of which the guest did not tell: looks for them for a moment
    /// where that pays, and sleeps then.
    fn wait(&mut self, events: &mut [EpollEvent]) -> io::Result<usize> {
        let start = Instant::now();
        let mut count = 0;
        if let Some(until) = self.polling.until(start) {
            self.link.quiet(true);
            while count == 0 && !self.more && Instant::now() < until {
                // Whoever else has something to do on this CPU does it first.
                std::thread::yield_now();
                count = self.ready(0, events)?;
                self.more = self.link.waits();
            }
        }
        if count == 0 && !self.more {
            {
                let gate = self.engine.gate.clone();
                let _pass = gate.pass();
                self.more = self.link.quiet(false);
            }
            let patience = self.trim(start);
            count = self.ready(if self.more { 0 } else { patience }, events)?;
        }
        self.polling.waited(start.elapsed());
        Ok(count)
    }

    /// Gives memory back that has been of no use for long. Returns the milliseconds until that may be so of
    /// what there is, or until the next timer.
    fn trim(&mut self, now: Instant) -> i32 {
        let patience = self.patience();
        if self.pool.was_used() {
            self.pool_used = now;
        }
        if !self.pool.has_slack() {
            return patience;
        }
        let left = TRIM_AFTER.saturating_sub(now.saturating_duration_since(self.pool_used));
        if left.is_zero() {
            self.pool.trim();
            return patience;
        }
        let left = left.as_millis() as i32 + 1;
        if patience < 0 {
            left
        } else {
            left.min(patience)
        }
    }

    /// The events that there are, or come within so many milliseconds; any number if negative.
    fn ready(&self, patience: i32, events: &mut [EpollEvent]) -> io::Result<usize> {
        match self.epoll.wait(patience, events) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            result => result,
        }
    }

    /// When the next timer ends, if any runs.
    pub fn next_timer(&self) -> Option<Instant> {
        let flows = self.table.next_timer().into_iter();
        let others = self
            .advertisement
            .into_iter()
            .chain(self.probes.next_timer());
        flows.chain(others).min()
    }

    /// How many flows there are.
    pub fn flows(&self) -> usize {
        self.table.len()
    }

    /// Milliseconds until the next timer.
    fn patience(&self) -> i32 {
        match self.next_timer() {
            None => -1,
            Some(at) => {
                let left = at.saturating_duration_since(self.now).as_millis() + 1;
                i32::try_from(left).unwrap_or(i32::MAX)
            }
        }
    }

    fn pod_changed(&mut self) {
        let routed = self.pod.has_route(true);
        if let Err(error) = self.pod.refresh() {
            tracing::warn!("the pod's addresses and routes cannot be read: {error}");
        }
        if self.pod.has_route(true) != routed {
            self.advertise();
        }
    }

    /// Tells the guest whether there is a way out by IPv6: it does not ask again.
    fn advertise(&mut self) {
        self.engine.config.resolver.refresh(self.now);
        let routed = self.pod.has_route(true);
        if let Some(packet) = ndp::unsolicited(&self.engine.config, routed) {
            self.packet(&packet);
            self.advertisement = Some(self.now + ADVERTISEMENTS);
        }
    }

    fn outlet(&mut self) -> Outlet<'_> {
        Outlet {
            link: &mut self.link,
            mac: self.guest_mac,
            mtu: self.engine.config.mtu,
        }
    }

    /// Gives the guest a packet; one that it has no room for is lost.
    fn packet(&mut self, packet: &[u8]) {
        if !self.outlet().packet(packet) {
            self.engine.counters.dropped_no_room.add();
        }
    }

    /// Tells the guest that a packet of its did not arrive.
    fn unreachable(&mut self, why: Unreachable, to: IpAddr, packet: &[u8]) {
        let (Some(gateway), Some(guest)) =
            (self.engine.config.gateway(to), self.engine.config.guest(to))
        else {
            return;
        };
        let message = Icmp::unreachable(why, gateway, guest, packet);
        self.packet(&message);
    }

    /// The guest's packet to `to` with `payload`, anew, to be told about.
    fn guest_packet(&self, to: IpAddr, protocol: crate::wire::Protocol, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; header_len(to)];
        if let Some(guest) = self.engine.config.guest(to) {
            write_header(&mut packet, guest, to, protocol, payload.len());
        }
        packet.extend(payload);
        packet
    }

    /// What a connection is promised room for, as many as there are: as much as a ring holds that takes
    /// no more than its share of what is meant for this way.
    fn promise(&self) -> usize {
        let share = self.engine.config.memory / 2 / self.table.len().max(1);
        let whole = SIZES.into_iter().rfind(|size| *size <= share);
        let promise = whole.filter(|size| *size > SMALL).unwrap_or(share);
        promise.clamp(LEAST_PROMISE, MOST_PROMISED)
    }

    /// What it is promised before it has moved anything: what is told stays told, and most connections
    /// never have more under way.
    fn first_promise(&self) -> usize {
        self.promise().min(FIRST_PROMISE)
    }

    fn insert(&mut self, flow: Flow) -> Option<u32> {
        match self.table.insert(flow, self.now, &self.epoll, FLOW) {
            Ok(index) => {
                self.table.schedule(index);
                Some(index)
            }
            Err(error) => {
                tracing::warn!("a flow could not be watched: {error}");
                self.engine.counters.refused_shortage.add();
                None
            }
        }
    }

    fn remove(&mut self, index: u32) {
        self.batch.forget(index);
        if let Some(Flow::Tcp(mut tcp)) = self.table.remove(index) {
            tcp.clear(&mut self.pool);
        }
    }

    /// Reads what a connection's socket has and sends what it has for the guest, piece by piece.
    fn push(&mut self, index: u32) {
        let (promise, piece, now) = (self.promise(), self.link.piece(), self.now);
        let Some(tcp) = self.table.tcp(index) else {
            self.datagrams(index);
            return self.table.schedule(index);
        };
        let Some(guest) = self.engine.config.guest(tcp.key.remote.ip()) else {
            return;
        };
        tcp.set_limit(promise);
        let mut verdict;
        loop {
            let before = tcp.carried.to_guest;
            verdict = tcp.fill(piece, &mut self.pool);
            let mut outlet = Outlet {
                link: &mut self.link,
                mac: self.guest_mac,
                mtu: self.engine.config.mtu,
            };
            if !tcp.send(&mut outlet, guest, now) {
                self.blocked.push(index);
                break;
            }
            // That was all, or there is no more room.
            let all = tcp.carried.to_guest - before < piece as u64;
            if all || verdict != Verdict::Keep {
                break;
            }
            self.link.flush();
        }
        if verdict == Verdict::Keep && tcp.is_done() {
            verdict = Verdict::Done;
        }
        self.polling.under_way(tcp.under_way());
        self.table.account(index);
        self.judge(index, verdict);
    }

    /// Carries out a verdict.
    fn judge(&mut self, index: u32, verdict: Verdict) {
        match verdict {
            Verdict::Keep => self.table.schedule(index),
            Verdict::Done => self.remove(index),
            Verdict::Reset | Verdict::Failed(_) => {
                self.reset(index, verdict);
                self.remove(index);
            }
        }
    }

    /// Resets both sides of a connection; the guest whose connection did not come about learns
    /// why.
    fn reset(&mut self, index: u32, verdict: Verdict) {
        let Some(tcp) = self.table.tcp(index) else {
            return;
        };
        tcp.reset_host();
        let remote = tcp.key.remote.ip();
        if let Verdict::Failed(kind) = verdict
            && tcp.is_connecting()
        {
            let syn = tcp.syn();
            self.engine.counters.connect_failed(kind);
            let why = match Unreachable::of(kind) {
                Some(why) => why,
                // The guest's own patience ends likewise.
                None if kind == io::ErrorKind::TimedOut => return,
                None => return self.reset_guest(index, remote),
            };
            let packet = self.guest_packet(remote, crate::wire::Protocol::Tcp, &syn);
            return self.unreachable(why, remote, &packet);
        }
        self.reset_guest(index, remote);
    }

    fn reset_guest(&mut self, index: u32, remote: IpAddr) {
        let Some(guest) = self.engine.config.guest(remote) else {
            return;
        };
        let mut outlet = Outlet {
            link: &mut self.link,
            mac: self.guest_mac,
            mtu: self.engine.config.mtu,
        };
        if let Some(tcp) = self.table.tcp(index) {
            tcp.reset_guest(&mut outlet, guest);
        }
    }

    fn timers(&mut self) {
        if self.advertisement.is_some_and(|at| at <= self.now) {
            self.advertise();
        }
        self.ask_guest();
        while let Some(index) = self.table.due(self.now) {
            let now = self.now;
            let mut verdict = Verdict::Done;
            if let Some(tcp) = self.table.tcp(index)
                && let Some(guest) = self.engine.config.guest(tcp.key.remote.ip())
            {
                let mut outlet = Outlet {
                    link: &mut self.link,
                    mac: self.guest_mac,
                    mtu: self.engine.config.mtu,
                };
                verdict = tcp.expired(&mut outlet, guest, now, &self.engine.counters);
            }
            self.judge(index, verdict);
        }
    }
}

impl Drop for Run<'_> {
    /// The guest is gone: its peers are told.
    fn drop(&mut self) {
        for tcp in self.table.connections() {
            tcp.reset_host();
        }
        self.link.flush();
        self.engine.counters.flows.set(0);
        self.end();
    }
}
