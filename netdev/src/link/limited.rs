//! Holds a link to so many bytes a second each way.
//!
//! Over its rate the link takes no frames from the guest, which wait in its queue, and has no room
//! for frames to it: TCP waits with them and stops reading its socket, and what cannot wait is
//! lost, as when the guest's queue is full. ARP and ICMP pass, for without them nothing works.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::timerfd::TimerFd;

use super::loans::Loans;
use super::metered::content;
use super::{Capabilities, Link, Offload, Received};
use crate::counters::Content;
use crate::pace::Pace;

/// The least rate, in bytes a second: the largest frame takes no longer than a second of it, and a
/// guest's card that has sent one is not taken for dead.
pub const LEAST_RATE: u64 = 64 << 10;
/// What may go at once, as the time that it takes at the rate. After a stop half of it is waited
/// for, so that the engine wakes a hundred times a second and not for every frame.
const SLACK: Duration = Duration::from_millis(20);
/// The rate below which frames of 64 KiB would come in lumps.
const SMALL_FRAMES: u64 = 4 << 20;
/// Descriptors of a link at most.
const EVENTS: usize = 8;

/// A link that is held to its rates.
pub struct Limited<'a> {
    link: &'a mut dyn Link,
    into: Option<Pace>,
    out: Option<Pace>,
    small: bool,
    /// The link's descriptors and the timer. A link's can stay ready while nothing is taken, so
    /// they tell of changes only.
    epoll: Epoll,
    timer: TimerFd,
    /// When the timer ends, if that is to come.
    wakes: Option<Instant>,
}

impl<'a> Limited<'a> {
    /// Holds `link` to `into` bytes a second to the guest, and `out` from it, where there is one;
    /// less than [`LEAST_RATE`] counts as that.
    pub fn new(link: &'a mut dyn Link, into: Option<u64>, out: Option<u64>) -> io::Result<Self> {
        let (epoll, timer) = (Epoll::new()?, TimerFd::new()?);
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
        for fd in link.descriptors().into_iter().chain([timer.as_raw_fd()]) {
            epoll.ctl(ControlOperation::Add, fd, event)?;
        }
        let now = Instant::now();
        let pace = |rate: u64| Pace::new(rate.max(LEAST_RATE), SLACK, now);
        Ok(Self {
            link,
            small: into.is_some_and(|rate| rate < SMALL_FRAMES),
            into: into.map(pace),
            out: out.map(pace),
            epoll,
            timer,
            wakes: None,
        })
    }

    /// Sees that the engine asks again when that is over, or before.
    fn wake_in(&mut self, wait: Duration, now: Instant) {
        let wait = wait + SLACK / 2;
        let sooner = |at: Instant| now < at && at <= now + wait;
        if self.wakes.is_some_and(sooner) {
            return;
        }
        if let Err(error) = self.timer.reset(wait, None) {
            tracing::warn!("the rate's timer: {error}");
        }
        self.wakes = Some(now + wait);
    }
}

impl Link for Limited<'_> {
    fn receive(&mut self, place: &mut [u8]) -> Option<Received> {
        let Some(out) = &mut self.out else {
            return self.link.receive(place);
        };
        let now = Instant::now();
        let wait = out.wait(now);
        if wait.is_zero() {
            let received = self.link.receive(place)?;
            out.spend(received.len as u64, now);
            return Some(received);
        }
        self.wake_in(wait, now);
        None
    }

    fn loans(&self) -> Option<&Loans> {
        self.link.loans()
    }

    fn end_batch(&mut self) {
        self.link.end_batch();
    }

    fn send(&mut self, parts: &[&[u8]], offload: Offload) -> bool {
        let Some(into) = &mut self.into else {
            return self.link.send(parts, offload);
        };
        let now = Instant::now();
        let wait = into.wait(now);
        if wait.is_zero() || matches!(content(parts), Content::Arp | Content::Icmp) {
            let sent = self.link.send(parts, offload);
            if sent {
                let len = parts.iter().map(|part| part.len() as u64).sum();
                into.spend(len, now);
            }
            return sent;
        }
        self.wake_in(wait, now);
        false
    }

    // Not quiet: what is held back for its rate waits, and is not to be looked for.

    fn flush(&mut self) {
        self.link.flush();
    }

    fn descriptors(&self) -> Vec<RawFd> {
        vec![self.epoll.as_raw_fd()]
    }

    fn acknowledge(&mut self) {
        let mut events = [EpollEvent::default(); EVENTS];
        // An error leaves them ready, and comes again.
        let _ = self.epoll.wait(0, &mut events);
        self.link.acknowledge();
    }

    fn capabilities(&self) -> Capabilities {
        let capabilities = self.link.capabilities();
        if self.small {
            return Capabilities {
                tso4: false,
                tso6: false,
                uso: false,
                ..capabilities
            };
        }
        capabilities
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake;
    use super::*;
    use crate::wire::{TYPE_ARP, TYPE_IPV4, ethernet};

    fn wait(limited: &Limited<'_>) {
        let epoll = Epoll::new().unwrap();
        for fd in limited.descriptors() {
            let event = EpollEvent::new(EventSet::IN, 0);
            epoll.ctl(ControlOperation::Add, fd, event).unwrap();
        }
        let mut events = [EpollEvent::default(); 1];
        assert_eq!(epoll.wait(5000, &mut events).unwrap(), 1);
    }

    fn is_ready(limited: &Limited<'_>) -> bool {
        let mut events = [EpollEvent::default(); 1];
        let epoll = Epoll::new().unwrap();
        let event = EpollEvent::new(EventSet::IN, 0);
        let fd = limited.descriptors()[0];
        epoll.ctl(ControlOperation::Add, fd, event).unwrap();
        epoll.wait(0, &mut events).unwrap() == 1
    }

    #[test]
    fn frames_from_the_guest_are_taken_at_their_rate() {
        let (mut fake, guest) = fake::pair();
        let mut link = Limited::new(&mut fake, None, Some(1_000_000)).unwrap();
        for _ in 0..300 {
            guest.send(vec![0; 1000]);
        }
        let start = Instant::now();
        let mut taken = 0;
        let mut place = [0; 2000];
        while taken < 300 {
            wait(&link);
            link.acknowledge();
            while link.receive(&mut place).is_some() {
                taken += 1;
            }
            // Where there is a rest it is waited for, and not asked for again and again.
            assert!(taken == 300 || !is_ready(&link));
        }
        let elapsed = start.elapsed();
        assert!(elapsed > Duration::from_millis(270), "{elapsed:?}");
        assert!(elapsed < Duration::from_secs(3), "{elapsed:?}");
    }

    #[test]
    fn over_the_rate_there_is_no_room_but_for_what_nothing_works_without() {
        let (mut fake, guest) = fake::pair();
        let mut link = Limited::new(&mut fake, Some(LEAST_RATE), None).unwrap();
        let ip = ethernet([2; 6], [4; 6], TYPE_IPV4);
        let data = [6; 10_000];
        assert!(link.send(&[&ip, &data], Offload::default()));
        assert!(!link.send(&[&ip, &data], Offload::default()));
        let arp = ethernet([2; 6], [4; 6], TYPE_ARP);
        assert!(link.send(&[&arp, &[0; 28]], Offload::default()));
        assert_eq!(guest.waiting(), 2);
        // The other way is free.
        guest.send(vec![0; 60]);
        assert!(link.receive(&mut [0; 100]).is_some());
        link.acknowledge();
        let start = Instant::now();
        wait(&link);
        assert!(start.elapsed() > Duration::from_millis(100));
        assert!(link.send(&[&ip, &data], Offload::default()));
    }

    #[test]
    fn a_way_that_waits_for_long_does_not_hold_up_the_other() {
        let (mut fake, guest) = fake::pair();
        let mut link = Limited::new(&mut fake, Some(LEAST_RATE), Some(10_000_000)).unwrap();
        for _ in 0..20 {
            guest.send(vec![0; 60_000]);
        }
        let ip = ethernet([2; 6], [4; 6], TYPE_IPV4);
        assert!(link.send(&[&ip, &[6; 60_000]], Offload::default()));
        let mut place = [0; 60_000];
        for _ in 0..2 {
            wait(&link);
            link.acknowledge();
            let start = Instant::now();
            while link.receive(&mut place).is_some() {}
            // A second, for this one.
            assert!(!link.send(&[&ip, &[6; 60_000]], Offload::default()));
            wait(&link);
            assert!(start.elapsed() < Duration::from_millis(500));
        }
    }

    #[test]
    fn a_slow_link_takes_no_large_frames() {
        let (mut fake, _guest) = fake::pair();
        fake.capabilities.tso4 = true;
        for (rate, tso4) in [(LEAST_RATE, false), (100_000_000, true)] {
            let link = Limited::new(&mut fake, Some(rate), None).unwrap();
            assert_eq!(link.capabilities().tso4, tso4);
        }
    }
}
