//! A time of UTC by the calendar.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// A second, as a calendar and a clock show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time {
    /// All four digits.
    pub year: u64,
    /// From 1.
    pub month: u64,
    /// From 1.
    pub day: u64,
    /// From 1, which is Sunday.
    pub weekday: u64,
    /// Below 24.
    pub hour: u64,
    /// Below 60.
    pub minute: u64,
    /// Below 60.
    pub second: u64,
}

impl Time {
    /// So many seconds after 1970 began.
    pub fn of(seconds: u64) -> Self {
        let (days, of_day) = (seconds / 86_400, seconds % 86_400);
        // Years that begin in March: 719,468 days before 1970 is their first.
        let shifted = days + 719_468;
        let (era, of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month = (5 * of_year + 2) / 153;
        let day = of_year - (153 * month + 2) / 5 + 1;
        let month = (month + 2) % 12 + 1;
        Self {
            year: era * 400 + year_of_era + u64::from(month < 3),
            month,
            day,
            // 1970 began on a Thursday.
            weekday: (days + 4) % 7 + 1,
            hour: of_day / 3600,
            minute: of_day / 60 % 60,
            second: of_day % 60,
        }
    }
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

    #[test]
    fn a_day_of_the_week_is_counted_from_sunday() {
        // Thursday, Sunday.
        assert_eq!(Time::of(0).weekday, 5);
        assert_eq!(Time::of(1_795_910_400).weekday, 1);
    }
}
