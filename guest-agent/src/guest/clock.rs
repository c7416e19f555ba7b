//! The guest's clock, which stands while nobody runs the guest.

use std::time::{SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, Timespec, clock_settime};

/// What it takes to tell the time may be as long as this, so less is not worth a step.
const WORTH_NS: u64 = 1_000_000_000;
const SECOND: u64 = 1_000_000_000;

/// Nanoseconds since 1970.
pub fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    // Until the year 2554.
    now.unwrap_or_default().as_nanos() as u64
}

/// Sets the clock to what it is elsewhere, if it has lost or won more than it takes to say so.
pub fn step(unix_ns: u64) -> Result<(), String> {
    match now().abs_diff(unix_ns) < WORTH_NS {
        true => Ok(()),
        false => set(unix_ns),
    }
}

/// Sets the clock.
pub fn set(unix_ns: u64) -> Result<(), String> {
    let time = Timespec {
        // Both are below what they are cast to, whatever is asked for.
        tv_sec: (unix_ns / SECOND) as i64,
        tv_nsec: (unix_ns % SECOND) as i64,
    };
    clock_settime(ClockId::Realtime, time).map_err(|error| format!("the clock: {error}"))
}
