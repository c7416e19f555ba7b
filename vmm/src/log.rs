//! The log: where it goes, and how much of it one place in the program may say. A guest can make
//! a device complain as often as it likes, so every place has its own measure.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use tracing::callsite::Identifier;
use tracing::level_filters::LevelFilter;
use tracing::{Event, Metadata};
use tracing_subscriber::layer::{Context, Filter, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// Lines that one place may say at once.
const BURST: f64 = 20.0;
/// Lines a second that it may go on with.
const RATE: f64 = 1.0;

/// Sends the log, from `level` up unless RUST_LOG says otherwise, to standard error, which keeps
/// standard output for what was asked for.
pub fn start(level: LevelFilter) {
    let filter = EnvFilter::builder()
        .with_default_directive(level.into())
        .from_env_lossy();
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let lines = tracing_subscriber::fmt::layer()
        .with_target(false)
        .with_ansi(ansi)
        .with_writer(std::io::stderr)
        .with_filter(Measure::default());
    // A second start is a caller's test; the first one's log serves.
    let _ = tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init();
}

/// Lets each place in the program say [`BURST`] lines, then [`RATE`] a second.
#[derive(Default)]
struct Measure(Mutex<HashMap<Identifier, Bucket>>);

struct Bucket {
    left: f64,
    filled: Instant,
}

impl Measure {
    fn allows(&self, place: Identifier, now: Instant) -> bool {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // As many as there are places in the program, so this does not grow.
        let bucket = buckets.entry(place).or_insert(Bucket {
            left: BURST,
            filled: now,
        });
        let passed = now.saturating_duration_since(bucket.filled).as_secs_f64();
        bucket.left = (bucket.left + passed * RATE).min(BURST);
        bucket.filled = now;
        let allowed = bucket.left >= 1.0;
        if allowed {
            bucket.left -= 1.0;
        }
        allowed
    }
}

impl<S> Filter<S> for Measure {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        self.allows(event.metadata().callsite(), Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tracing::Callsite;
    use tracing::callsite::DefaultCallsite;

    use super::*;

    #[test]
    fn a_place_that_repeats_itself_is_cut_short_and_others_are_not() {
        static META: Metadata<'static> = tracing::metadata! {
            name: "test", target: "test", level: tracing::Level::INFO,
            fields: &[], callsite: &ONE, kind: tracing::metadata::Kind::EVENT
        };
        static ONE: DefaultCallsite = DefaultCallsite::new(&META);
        static TWO: DefaultCallsite = DefaultCallsite::new(&META);
        let (one, two) = (Identifier(&ONE as &dyn Callsite), Identifier(&TWO));
        let measure = Measure::default();
        let now = Instant::now();
        let said = (0..1000)
            .filter(|_| measure.allows(one.clone(), now))
            .count();
        assert_eq!(said, 20);
        assert!(measure.allows(two, now));
        assert!(measure.allows(one.clone(), now + Duration::from_secs(1)));
        assert!(!measure.allows(one, now + Duration::from_secs(1)));
    }
}
