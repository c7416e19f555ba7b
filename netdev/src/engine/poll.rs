//! When it pays to look for what comes next for a moment instead of sleeping until it comes: a
//! wake-up on another CPU takes as long as all else that a request and its answer cost here.

use std::time::{Duration, Instant};

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
}

impl Polling {
    /// Sleeps at all times unless `allowed`.
    pub fn new(allowed: bool) -> Self {
        Self {
            allowed,
            soon: false,
            light: false,
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

    /// A turn has moved so many bytes, and none are left over from it if it was `whole`.
    pub fn moved(&mut self, bytes: u64, whole: bool) {
        self.light = bytes < LIGHT && whole;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_comes_soon_and_is_little_is_waited_for_awake() {
        let now = Instant::now();
        for (allowed, wait, bytes, whole, polls) in [
            (true, Duration::ZERO, 100, true, true),
            (false, Duration::ZERO, 100, true, false),
            (true, SOON, 100, true, false),
            (true, Duration::ZERO, LIGHT, true, false),
            (true, Duration::ZERO, 100, false, false),
        ] {
            let mut polling = Polling::new(allowed);
            assert_eq!(polling.until(now), None, "nothing has come yet");
            polling.waited(wait);
            polling.moved(bytes, whole);
            assert_eq!(polling.until(now).is_some(), polls);
        }
    }
}
