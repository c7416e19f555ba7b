//! A time of UTC by the calendar.

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
        // Years that begin in March, as in accounts: 719,468 days before 1970 is their first.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_of_the_week_is_counted_from_sunday() {
        // Thursday, Sunday.
        assert_eq!(Time::of(0).weekday, 5);
        assert_eq!(Time::of(1_795_910_400).weekday, 1);
    }
}
