//! The flows: by name, by number, and by when they want to be woken.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::control::FlowStatus;
use crate::counters::ForwardCounters;
use crate::flow::echo::Echo;
use crate::flow::tcp::Tcp;
use crate::flow::udp::Udp;
use crate::flow::{Carried, Key};

/// A flow of any kind.
pub enum Flow {
    /// A connection.
    Tcp(Box<Tcp>),
    /// Datagrams.
    Udp(Udp),
    /// Echoes.
    Echo(Echo),
}

impl Flow {
    /// Its name.
    pub fn key(&self) -> Key {
        match self {
            Self::Tcp(tcp) => tcp.key,
            Self::Udp(udp) => udp.key,
            Self::Echo(echo) => echo.key,
        }
    }

    /// What went through it.
    fn carried(&self) -> Carried {
        match self {
            Self::Tcp(tcp) => tcp.carried,
            Self::Udp(udp) => udp.carried,
            Self::Echo(echo) => echo.carried,
        }
    }

    fn state(&self) -> &'static str {
        match self {
            Self::Tcp(tcp) => tcp.state(),
            Self::Udp(_) | Self::Echo(_) => "open",
        }
    }

    fn descriptor(&self) -> RawFd {
        match self {
            Self::Tcp(tcp) => tcp.socket.as_raw_fd(),
            Self::Udp(udp) => udp.socket.as_raw_fd(),
            Self::Echo(echo) => echo.socket.as_raw_fd(),
        }
    }

    /// When it wants to be woken.
    pub fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Tcp(tcp) => tcp.deadline,
            Self::Udp(udp) => Some(udp.deadline()),
            Self::Echo(echo) => Some(echo.deadline()),
        }
    }
}

struct Entry {
    flow: Flow,
    /// When the timers wake it, at the earliest.
    scheduled: Option<Instant>,
    /// Tells it from others that had its number before.
    generation: u32,
    since: Instant,
    /// The forward that it came by, and what that knows of.
    forward: Option<(Arc<ForwardCounters>, Carried)>,
}

impl Entry {
    /// Tells the forward what went through since the last time.
    fn account(&mut self) {
        if let Some((counters, told)) = &mut self.forward {
            let carried = self.flow.carried();
            let news = |now: u64, before: u64| now.saturating_sub(before);
            counters
                .to_guest
                .add_many(news(carried.to_guest, told.to_guest));
            counters
                .from_guest
                .add_many(news(carried.from_guest, told.from_guest));
            *told = carried;
        }
    }
}

/// All flows.
#[derive(Default)]
pub struct Table {
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    keys: HashMap<Key, u32>,
    /// One at most for each flow, so that what is over leaves none behind.
    timers: BTreeSet<(Instant, u32)>,
    generation: u32,
}

/// Bits of a token that are the generation's; above them is what its user puts there.
const GENERATION: u32 = 24;

impl Table {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// The number of the flow of that name.
    pub fn find(&self, key: &Key) -> Option<u32> {
        self.keys.get(key).copied()
    }

    /// The flow of that number.
    pub fn get(&mut self, index: u32) -> Option<&mut Flow> {
        let entry = self.entries.get_mut(index as usize)?.as_mut()?;
        Some(&mut entry.flow)
    }

    /// The connection of that number.
    pub fn tcp(&mut self, index: u32) -> Option<&mut Tcp> {
        match self.get(index)? {
            Flow::Tcp(tcp) => Some(tcp),
            _ => None,
        }
    }

    /// The flow's number, if `token` is of one that is still there.
    pub fn of_token(&self, token: u64) -> Option<u32> {
        let index = token as u32;
        let generation = (token >> 32) as u32 & ((1 << GENERATION) - 1);
        let entry = self.entries.get(index as usize)?.as_ref()?;
        (entry.generation == generation).then_some(index)
    }

    /// Adds a flow and has `epoll` report changes of its socket by a token with `kind` in its
    /// highest byte. It is watched once and for all: only changes are reported.
    pub fn insert(
        &mut self,
        flow: Flow,
        now: Instant,
        epoll: &Epoll,
        kind: u64,
    ) -> io::Result<u32> {
        let index = self.free.last().copied();
        let index = index.unwrap_or(u32::try_from(self.entries.len()).unwrap_or(u32::MAX));
        self.generation = (self.generation + 1) % (1 << GENERATION);
        let mut events = EventSet::IN | EventSet::EDGE_TRIGGERED;
        if matches!(flow, Flow::Tcp(_)) {
            events |= EventSet::OUT | EventSet::READ_HANG_UP | EventSet::PRIORITY;
        }
        let token = kind << 56 | u64::from(self.generation) << 32 | u64::from(index);
        let event = EpollEvent::new(events, token);
        epoll.ctl(ControlOperation::Add, flow.descriptor(), event)?;
        self.keys.insert(flow.key(), index);
        let entry = Entry {
            flow,
            scheduled: None,
            generation: self.generation,
            since: now,
            forward: None,
        };
        if self.free.pop().is_none() {
            self.entries.push(None);
        }
        if let Some(slot) = self.entries.get_mut(index as usize) {
            *slot = Some(entry);
        }
        Ok(index)
    }

    /// Takes a flow out. Its socket's end ends the watch.
    pub fn remove(&mut self, index: u32) -> Option<Flow> {
        let mut entry = self.entries.get_mut(index as usize)?.take()?;
        entry.account();
        if let Some(at) = entry.scheduled {
            self.timers.remove(&(at, index));
        }
        self.keys.remove(&entry.flow.key());
        self.free.push(index);
        Some(entry.flow)
    }

    /// The flow came by that forward.
    pub fn came_by(&mut self, index: u32, forward: Arc<ForwardCounters>) {
        if let Some(Some(entry)) = self.entries.get_mut(index as usize) {
            entry.forward = Some((forward, Carried::default()));
        }
    }

    /// Tells the flow's forward what went through.
    pub fn account(&mut self, index: u32) {
        if let Some(Some(entry)) = self.entries.get_mut(index as usize) {
            entry.account();
        }
    }

    /// The first `most` flows.
    pub fn status(&self, now: Instant, most: usize) -> Vec<FlowStatus> {
        let entries = self.entries.iter().flatten().take(most);
        let status = entries.map(|entry| {
            let key = entry.flow.key();
            FlowStatus {
                transport: key.transport,
                guest_port: key.guest_port,
                remote: key.remote,
                forwarded: entry.forward.is_some(),
                state: entry.flow.state(),
                age: now.saturating_duration_since(entry.since),
                carried: entry.flow.carried(),
            }
        });
        status.collect()
    }

    /// Sees that the flow is woken when it wants to be, or before.
    pub fn schedule(&mut self, index: u32) {
        let Some(Some(entry)) = self.entries.get_mut(index as usize) else {
            return;
        };
        if let Some(at) = entry.flow.deadline()
            && entry.scheduled.is_none_or(|scheduled| at < scheduled)
        {
            let before = entry.scheduled.replace(at);
            if let Some(before) = before {
                self.timers.remove(&(before, index));
            }
            self.timers.insert((at, index));
        }
    }

    /// When the next timer ends.
    pub fn next_timer(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// The next flow whose deadline has passed. One that has moved its deadline meanwhile is
    /// scheduled anew.
    pub fn due(&mut self, now: Instant) -> Option<u32> {
        while self.next_timer().is_some_and(|at| at <= now) {
            let (_, index) = self.timers.pop_first()?;
            let Some(Some(entry)) = self.entries.get_mut(index as usize) else {
                continue;
            };
            entry.scheduled = None;
            if entry.flow.deadline().is_some_and(|at| at <= now) {
                return Some(index);
            }
            self.schedule(index);
        }
        None
    }

    /// Every connection.
    pub fn connections(&self) -> impl Iterator<Item = &Tcp> {
        self.entries
            .iter()
            .flatten()
            .filter_map(|entry| match &entry.flow {
                Flow::Tcp(tcp) => Some(&**tcp),
                _ => None,
            })
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use super::*;
    use crate::config::Transport;

    #[test]
    fn timers_are_no_more_than_flows_however_often_deadlines_move() {
        let epoll = Epoll::new().unwrap();
        let (mut table, mut now) = (Table::default(), Instant::now());
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let remote = server.local_addr().unwrap();
        for _ in 0..100 {
            let key = Key {
                transport: Transport::Udp,
                guest_port: 0,
                remote,
            };
            let flow = Flow::Udp(Udp::open(key, remote, now).unwrap());
            let index = table.insert(flow, now, &epoll, 1).unwrap();
            for _ in 0..10 {
                if let Some(Flow::Udp(udp)) = table.get(index) {
                    udp.touch(now);
                }
                table.schedule(index);
                now += Duration::from_secs(200);
                assert_eq!(table.due(now), None);
                assert_eq!(table.timers.len(), 1);
            }
            assert!(table.due(now + Duration::from_secs(300)).is_some());
            table.schedule(index);
            table.remove(index);
        }
        assert_eq!((table.len(), table.timers.len()), (0, 0));
    }
}
