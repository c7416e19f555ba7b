//! Whether the guest accepts connections on its forwarded ports, asked of its kernel: a SYN that
//! it answers with a SYN of its own is answered with a reset, so that no program in the guest ever
//! sees a connection.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, EpollEvent};

use super::control::watch_port;
use super::{EVERYBODY, Run};
use crate::config::Transport;
use crate::flow::Key;
use crate::link::{Link, Offload};
use crate::service;
use crate::wire::{Flags, Segment, SegmentHeader};

/// The gateway's port that asks: TCPMUX's, which no client connects from.
pub const ASKING_PORT: u16 = 1;
/// How often a port is asked that was closed a moment ago, that has been closed for long, that is open, and
/// that is open in a guest that tells of it.
const FRESH: Duration = Duration::from_millis(100);
const STALE: Duration = Duration::from_secs(1);
const OPEN: Duration = Duration::from_secs(1);
const OPEN_AND_TOLD: Duration = Duration::from_secs(10);
/// How long a closed port counts as fresh.
const FRESH_FOR: Duration = Duration::from_secs(60);
/// Questions without an answer after which an open port counts as closed.
const PATIENCE: u32 = 5;

/// A TCP port of the guest, in one family.
struct Probe {
    port: u16,
    v6: bool,
    sequence: u32,
    unanswered: u32,
    open: bool,
    changed: Instant,
    next: Instant,
}

impl Probe {
    fn new((port, v6): (u16, bool), now: Instant) -> Self {
        Self {
            port,
            v6,
            sequence: 0,
            unanswered: 0,
            open: false,
            changed: now,
            next: now,
        }
    }

    fn interval(&self, told: bool, now: Instant) -> Duration {
        match self.open {
            true if told => OPEN_AND_TOLD,
            true => OPEN,
            false if now.saturating_duration_since(self.changed) < FRESH_FOR => FRESH,
            false => STALE,
        }
    }
}

/// All of them.
#[derive(Default)]
pub struct Probes {
    all: Vec<Probe>,
    /// Whether the guest tells when its ports change.
    told: bool,
}

impl Probes {
    /// Probes for these ports, each with its family.
    pub fn new(ports: impl Iterator<Item = (u16, bool)>, now: Instant) -> Self {
        let mut ports: Vec<_> = ports.collect();
        ports.sort_unstable();
        ports.dedup();
        let probes = ports.into_iter().map(|port| Probe::new(port, now));
        Self {
            all: probes.collect(),
            told: false,
        }
    }

    /// Asks for one more port; returns whether it is known to be open.
    pub fn add(&mut self, (port, v6): (u16, bool), now: Instant) -> bool {
        let same = |probe: &&Probe| (probe.port, probe.v6) == (port, v6);
        if let Some(probe) = self.all.iter().find(same) {
            return probe.open;
        }
        self.all.push(Probe::new((port, v6), now));
        false
    }

    /// Asks for a port no longer.
    pub fn remove(&mut self, (port, v6): (u16, bool)) {
        self.all
            .retain(|probe| (probe.port, probe.v6) != (port, v6));
    }

    /// The guest has told of its ports and goes on to, or does not any more.
    pub fn told(&mut self, told: bool, now: Instant) {
        self.told = told;
        self.ask_again(now);
    }

    /// Has every port asked now.
    pub fn ask_again(&mut self, now: Instant) {
        for probe in &mut self.all {
            probe.next = now;
        }
    }

    /// When the next question is due.
    pub fn next_timer(&self) -> Option<Instant> {
        self.all.iter().map(|probe| probe.next).min()
    }

    /// What an answer to our question says: open or not; `None` where it answers none.
    fn answer(&mut self, key: &Key, segment: &Segment<'_>) -> Option<bool> {
        let probe = self
            .all
            .iter_mut()
            .find(|probe| probe.port == key.guest_port && probe.v6 == key.remote.is_ipv6())?;
        let ours = segment.acknowledgement == probe.sequence.wrapping_add(1);
        if !ours || !segment.flags.has(Flags::ACK) || probe.unanswered == 0 {
            return None;
        }
        probe.unanswered = 0;
        Some(segment.flags.has(Flags::SYN) && !segment.flags.has(Flags::RST))
    }

    fn set(&mut self, port: u16, v6: bool, open: bool, now: Instant) -> bool {
        let mut changed = false;
        for probe in &mut self.all {
            if (probe.port, probe.v6) == (port, v6) {
                changed |= probe.open != open;
                if probe.open != open {
                    probe.open = open;
                    probe.changed = now;
                }
                probe.next = now + probe.interval(self.told, now);
            }
        }
        changed
    }
}

impl Run<'_> {
    /// Whether a segment of no flow answers a question of ours; then it is dealt with.
    pub(super) fn answers_probe(&mut self, key: &Key, segment: &Segment<'_>) -> bool {
        let gateway = self.engine.config.gateway(key.remote.ip());
        if key.remote.port() != ASKING_PORT || gateway != Some(key.remote.ip()) {
            return false;
        }
        let Some(open) = self.probes.answer(key, segment) else {
            return false;
        };
        if open {
            self.ask(
                key.guest_port,
                key.remote.ip(),
                segment.acknowledgement,
                Flags::RST,
            );
        }
        self.guest_listens(key.guest_port, key.remote.is_ipv6(), open);
        true
    }

    /// The guest accepts connections on `port`, or does not.
    pub(super) fn guest_listens(&mut self, port: u16, v6: bool, open: bool) {
        if !self.probes.set(port, v6, open, self.now) {
            return;
        }
        tracing::debug!(
            "the guest's port {port} {}",
            if open { "listens" } else { "is closed" }
        );
        let forwards = &mut self.engine.forwards;
        for (index, forward) in forwards.ports_mut() {
            if forward.tcp() != Some((port, v6)) || forward.listens() == open {
                continue;
            }
            let fd = forward.descriptor();
            let changed = if open {
                // In this order: one that does not listen is always ready, for its end.
                forward
                    .set_listening(true)
                    .and_then(|()| watch_port(&self.epoll, index, fd))
            } else {
                self.epoll
                    .ctl(ControlOperation::Delete, fd, EpollEvent::default())
                    .and_then(|()| forward.set_listening(false))
            };
            if let Err(error) = changed {
                tracing::warn!("a forwarded port of the guest's {port}: {error}");
            }
        }
    }

    /// Asks what is due.
    pub(super) fn ask_guest(&mut self) {
        let now = self.now;
        if self.guest_mac == EVERYBODY && self.probes.next_timer().is_some_and(|at| at <= now) {
            self.look_for_guest();
        }
        let mut closed = Vec::new();
        let mut questions = Vec::new();
        for probe in &mut self.probes.all {
            if probe.next > now {
                continue;
            }
            if probe.open && probe.unanswered >= PATIENCE {
                closed.push((probe.port, probe.v6));
            }
            // The answer may put it off.
            probe.next = now + probe.interval(false, now);
            probe.unanswered = probe.unanswered.saturating_add(1);
            questions.push((probe.port, probe.v6));
        }
        for (port, v6) in closed {
            self.guest_listens(port, v6, false);
        }
        for (port, v6) in questions {
            let gateway = if v6 {
                self.engine.config.v6.map(|v6| IpAddr::V6(v6.gateway))
            } else {
                self.engine.config.v4.map(|v4| IpAddr::V4(v4.gateway))
            };
            let Some(gateway) = gateway else { continue };
            let key = Key {
                transport: Transport::Tcp,
                guest_port: port,
                remote: SocketAddr::new(gateway, ASKING_PORT),
            };
            let sequence = self.engine.first_sequence(&key);
            for probe in &mut self.probes.all {
                if (probe.port, probe.v6) == (port, v6) {
                    probe.sequence = sequence;
                }
            }
            self.ask(port, gateway, sequence, Flags::SYN);
        }
    }

    /// Asks who has the guest's address: a guest that was set up by hand and serves may not speak
    /// first.
    fn look_for_guest(&mut self) {
        if let Some(question) = service::arp::question(&self.engine.config)
            && !self.link.send(&[&question.frame()], Offload::default())
        {
            self.engine.counters.dropped_no_room.add();
        }
    }

    fn ask(&mut self, port: u16, gateway: IpAddr, sequence: u32, flags: Flags) {
        let Some(guest) = self.engine.config.guest(gateway) else {
            return;
        };
        let mut outlet = self.outlet();
        let mss = outlet.mss(gateway);
        let header = SegmentHeader {
            source: ASKING_PORT,
            destination: port,
            sequence,
            acknowledgement: 0,
            flags,
            window: 0,
            options: flags.has(Flags::SYN).then_some((mss, None)),
        };
        outlet.segment((gateway, guest), &header, [&[], &[]], u16::MAX);
    }
}
