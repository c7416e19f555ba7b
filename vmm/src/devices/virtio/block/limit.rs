//! Holds a disk to so many bytes and so many requests a second. Over its rate its requests wait in
//! the guest's queue.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use netdev::pace::Pace;
use vmm_sys_util::timerfd::TimerFd;

/// What may come at once, as the time that it takes at the rate.
const SLACK: Duration = Duration::from_millis(100);

/// How much a second; nothing is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes, read and written.
    pub bytes: Option<u64>,
    /// Requests, whatever they are.
    pub requests: Option<u64>,
}

/// A disk's rates, and the timer by which it goes on.
pub struct Limiter {
    bytes: Option<Pace>,
    requests: Option<Pace>,
    timer: TimerFd,
}

impl Limiter {
    /// One for those limits; none where there is no limit. It makes a descriptor, which a thread
    /// that may not make any can be given.
    pub fn new(limits: Limits) -> io::Result<Option<Self>> {
        if limits == Limits::default() {
            return Ok(None);
        }
        let now = Instant::now();
        let pace = |rate| Pace::new(rate, SLACK, now);
        Ok(Some(Self {
            bytes: limits.bytes.map(pace),
            requests: limits.requests.map(pace),
            timer: TimerFd::new()?,
        }))
    }

    /// What can be read when it goes on.
    pub fn descriptor(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    /// Whether a request may be served now; if not, the timer says when.
    pub fn allows(&mut self, now: Instant) -> bool {
        let paces = [&self.bytes, &self.requests];
        let wait = paces.into_iter().flatten().map(|pace| pace.wait(now)).max();
        let wait = wait.unwrap_or_default();
        if wait.is_zero() {
            return true;
        }
        if let Err(error) = self.timer.reset(wait, None) {
            // Better too fast than never again.
            tracing::warn!("a disk's timer: {error}");
            return true;
        }
        false
    }

    /// A request of so many bytes was served.
    pub fn spend(&mut self, bytes: u64, now: Instant) {
        if let Some(pace) = &mut self.bytes {
            pace.spend(bytes, now);
        }
        if let Some(pace) = &mut self.requests {
            pace.spend(1, now);
        }
    }

    /// The timer was heard.
    pub fn heard(&mut self) {
        // It can be read, so this does not wait.
        let _ = self.timer.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_holds_a_disk_back_and_the_timer_lets_it_go_on() {
        assert!(Limiter::new(Limits::default()).unwrap().is_none());
        for (bytes, requests) in [(Some(1 << 20), None), (None, Some(100))] {
            let limits = Limits { bytes, requests };
            let mut limiter = Limiter::new(limits).unwrap().unwrap();
            let mut now = Instant::now();
            let mut served = 0;
            for _ in 0..10 {
                while limiter.allows(now) {
                    limiter.spend(16 << 10, now);
                    served += 1;
                }
                now += Duration::from_millis(100);
            }
            // A second's worth, give or take what goes at once.
            let rate = if bytes.is_some() { 64 } else { 100 };
            assert!((rate - 10..=rate + 12).contains(&served), "{served}");
            limiter.heard();
        }
    }
}
