//! What time it is, and a time as Kubernetes writes it.

use std::time::{SystemTime, UNIX_EPOCH};

use guest_agent::calendar::Time;

/// Seconds since 1970.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// A time as RFC 3339 writes it.
pub fn rfc3339(seconds: u64) -> String {
    let Time {
        year,
        month,
        day,
        hour,
        minute,
        second,
        ..
    } = Time::of(seconds);
    format!("{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_as_kubernetes_writes_it() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(1_709_164_801), "2024-02-29T00:00:01Z");
        assert_eq!(rfc3339(1_767_225_599), "2025-12-31T23:59:59Z");
    }
}
