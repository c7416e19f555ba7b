//! Times for people.

use crate::calendar::Time;

/// A time as mail has it (RFC 2822), in UTC.
pub fn rfc2822(seconds: u64) -> String {
    const DAYS: [&str; 7] = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let name = |names: &[&'static str], number: u64| {
        let name = names.get((number - 1) as usize);
        name.copied().unwrap_or_default()
    };
    let time = Time::of(seconds);
    format!(
        "{}, {:02} {} {} {:02}:{:02}:{:02} +0000",
        name(&DAYS, time.weekday),
        time.day,
        name(&MONTHS, time.month),
        time.year,
        time.hour,
        time.minute,
        time.second
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_told_as_mail_does() {
        assert_eq!(rfc2822(0), "Thu, 01 Jan 1970 00:00:00 +0000");
        assert_eq!(rfc2822(1_709_164_801), "Thu, 29 Feb 2024 00:00:01 +0000");
        assert_eq!(rfc2822(1_709_251_199), "Thu, 29 Feb 2024 23:59:59 +0000");
    }
}
