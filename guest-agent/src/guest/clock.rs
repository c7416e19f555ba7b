//! The guest's clock, which stands while nobody runs the guest.

use std::time::{SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, Timespec, clock_settime};

/// What it takes to tell the time may be as long as this, so less is not worth a step.
const WORTH_NS: u64 = 1_000_000_000;
const SECOND: u64 = 1_000_000_000;
/// The seconds since 1970 of the machine's own clock, as the kernel reads it.
const HARDWARE: &str = "/sys/class/rtc/rtc0/since_epoch";

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

/// Sets the clock to what the machine's own says, which goes on where nobody runs the guest.
pub fn set_by_hardware() -> Result<(), String> {
    let seconds =
        std::fs::read_to_string(HARDWARE).map_err(|error| format!("{HARDWARE}: {error}"))?;
    let seconds: u64 = seconds
        .trim()
        .parse()
        .map_err(|_| format!("{HARDWARE}: not a time"))?;
    set(seconds.saturating_mul(SECOND))
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
