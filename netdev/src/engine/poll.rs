//! When it pays to look for what comes next for a moment instead of sleeping until it comes: a
//! wake-up on another CPU takes as long as all else that a request and its answer cost here.

use std::time::{Duration, Instant};

use crate::flow::ring::SMALL;

/// How long is looked after something came.
const MOST: Duration = Duration::from_micros(50);
/// Who waited no longer than this the last time will hardly wait longer the next.
const SOON: Duration = Duration::from_micros(200);
/// A turn that moves more than this is part of a stream, whose ends want all CPUs for themselves.
const LIGHT: u64 = 16 << 10;

/// Whether the loop looks or sleeps.
#[derive(Debug)]
pub struct Polling {
    allowed: bool,
    soon: bool,
    light: bool,
    /// A flow of this turn has more under way to the guest than an answer.
    streams: bool,
}

impl Polling {
    /// Sleeps at all times unless `allowed`.
    pub fn new(allowed: bool) -> Self {
        Self {
            allowed,
            soon: false,
            light: false,
            streams: false,
        }
    }

    /// Until when to look from `now` on, if at all.
    pub fn until(&self, now: Instant) -> Option<Instant> {
        (self.allowed && self.soon && self.light).then(|| now + MOST)
    }

    /// Something came after so long.
    pub fn waited(&mut self, wait: Duration) {
        self.soon = wait < SOON;
    }

    /// A flow of this turn has so many bytes under way to the guest.
    pub fn under_way(&mut self, bytes: usize) {
        self.streams |= bytes > SMALL;
    }

    /// The turn is over, and has moved so many bytes.
    pub fn moved(&mut self, bytes: u64) {
        let streams = std::mem::take(&mut self.streams);
        self.light = bytes < LIGHT && !streams;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_comes_soon_and_is_little_is_waited_for_awake() {
        let now = Instant::now();
        for (allowed, wait, bytes, under_way, polls) in [
            (true, Duration::ZERO, 100, SMALL, true),
            (false, Duration::ZERO, 100, SMALL, false),
            (true, SOON, 100, SMALL, false),
            (true, Duration::ZERO, LIGHT, SMALL, false),
            (true, Duration::ZERO, 100, SMALL + 1, false),
        ] {
            let mut polling = Polling::new(allowed);
            assert_eq!(polling.until(now), None, "nothing has come yet");
            polling.waited(wait);
            polling.under_way(under_way);
            polling.moved(bytes);
            assert_eq!(polling.until(now).is_some(), polls);
        }
    }
}
