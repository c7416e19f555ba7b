//! How much a second: a token bucket, told by the time at which it would be full again.

use std::time::{Duration, Instant};

/// A bucket.
#[derive(Debug, Clone)]
pub struct Pace {
    rate: u64,
    /// What may come at once, in the time that it takes at the rate.
    slack: Duration,
    /// When everything that came has had its time.
    paid: Instant,
}

impl Pace {
    /// So many a second, and at once as many as come in `slack`; or the next one, if it is more.
    pub fn new(rate: u64, slack: Duration, now: Instant) -> Self {
        Self {
            rate: rate.max(1),
            slack,
            paid: now,
        }
    }

    /// How long until the next may come; zero where it may now.
    pub fn wait(&self, now: Instant) -> Duration {
        let ahead = self.paid.saturating_duration_since(now);
        // At the slack's very end the bucket is empty.
        (ahead + Duration::from_nanos(1)).saturating_sub(self.slack)
    }

    /// So many came.
    pub fn spend(&mut self, count: u64, now: Instant) {
        let nanoseconds = (u128::from(count) * 1_000_000_000).div_ceil(self.rate.into());
        let time = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        self.paid = self.paid.max(now) + time;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_come_at_once_as_the_slack_holds_and_then_at_the_rate() {
        let mut now = Instant::now();
        let mut pace = Pace::new(10, Duration::from_secs(1), now);
        let mut count = 0;
        while pace.wait(now).is_zero() {
            pace.spend(1, now);
            count += 1;
        }
        assert_eq!(count, 10);
        for _ in 0..5 {
            let wait = pace.wait(now);
            assert!(wait <= Duration::from_millis(101), "{wait:?}");
            now += wait;
            assert!(pace.wait(now).is_zero());
            pace.spend(1, now);
        }
        // What is not used is kept for no longer than the slack.
        now += Duration::from_secs(60);
        let mut count = 0;
        while pace.wait(now).is_zero() {
            pace.spend(1, now);
            count += 1;
        }
        assert_eq!(count, 10);
    }

    #[test]
    fn one_that_is_larger_than_the_slack_comes_and_is_waited_for() {
        let now = Instant::now();
        let mut pace = Pace::new(1000, Duration::from_millis(10), now);
        assert!(pace.wait(now).is_zero());
        pace.spend(5000, now);
        let wait = pace.wait(now);
        assert!(wait > Duration::from_millis(4980) && wait <= Duration::from_secs(5));
    }
}
