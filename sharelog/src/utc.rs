//! Times as people and JSON read them, in UTC.
use crate::shares::parse_since;

/// `2026-11-21T08:00:00Z` of seconds since the epoch.
pub(crate) fn utc_text(seconds: u64) -> String {
    let (year, month, day) = civil(seconds / 86_400);
    let second = seconds % 86_400;
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

/// `2026-11-21T08:00:00.000042Z` of microseconds since the epoch.
pub fn utc_text_us(us: u64) -> String {
    let text = utc_text(us / 1_000_000);
    format!("{}.{:06}Z", text.trim_end_matches('Z'), us % 1_000_000)
}

/// `2026-11-21` of days since the epoch.
pub(crate) fn day_text(days: u64) -> String {
    let (year, month, day) = civil(days);
    format!("{year:04}-{month:02}-{day:02}")
}

/// Year, month and day of days since 1970-01-01. Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// Days since 1970-01-01 of a date; None where the calendar has no such day. Source: as above, days_from_civil.
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    let shifted_year = year - u64::from(month <= 2);
    let era = shifted_year / 400;
    let year_of_era = shifted_year % 400;
    let shifted_month = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let days = (era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year).checked_sub(719_468)?;
    (civil(days) == (year, month, day)).then_some(days)
}

/// Reads a moment: `90s`, `15m`, `1h`, `7d` before `now_us`, `2026-11-20`, or `2026-11-20T08:00:00Z` (a blank for the T, and no Z, are taken, too), all UTC; in
/// microseconds since the epoch. The error is a sentence for the user.
pub fn parse_moment(text: &str, now_us: u64) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no moment: write a span as in 1h, a day as in 2026-11-20, or 2026-11-20T08:00:00Z");
    if !text.contains('-') {
        return parse_since(text, now_us).map_err(|_| wrong());
    }
    let number = |digits: usize, text: &str| {
        (text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse::<u64>().ok()).flatten()
    };
    let (date, time) = text.split_once(['T', ' ']).unwrap_or((text, "00:00:00"));
    let parts = |text: &str, between: char| {
        let mut parts = text.split(between).map(str::to_owned);
        Some([parts.next()?, parts.next()?, parts.next()?]).filter(|_| parts.next().is_none())
    };
    let moment = || {
        let [year, month, day] = parts(date, '-')?;
        let [hour, minute, second] = parts(time.strip_suffix('Z').unwrap_or(time), ':')?;
        let (year, month, day) = (number(4, &year)?, number(2, &month)?, number(2, &day)?);
        let (hour, minute, second) = (number(2, &hour)?, number(2, &minute)?, number(2, &second)?);
        let in_range = year >= 1970 && (1..=12).contains(&month) && day >= 1 && hour < 24 && minute < 60 && second < 60;
        in_range.then_some(())?;
        Some((days(year, month, day)? * 86_400 + hour * 3600 + minute * 60 + second) * 1_000_000)
    };
    moment().ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_as_they_are_written() {
        for seconds in [0, 951_782_399, 951_782_400, 1_795_248_000, 4_294_967_295] {
            assert_eq!(parse_moment(&utc_text(seconds), 0), Ok(seconds * 1_000_000));
            assert_eq!(parse_moment(&day_text(seconds / 86_400), 0), Ok(seconds / 86_400 * 86_400_000_000));
        }
        assert_eq!(parse_moment("1h", 4_000_000_000), Ok(400_000_000));
        assert_eq!(parse_moment("2026-11-20 08:00:01", 0), parse_moment("2026-11-20T08:00:01Z", 0));
        for wrong in [
            "",
            "2026",
            "2026-02-29",
            "2026-13-01",
            "2026-00-01",
            "2026-11-31",
            "1969-12-31",
            "2026-11-20T24:00:00Z",
            "2026-11-20T08:00",
            "x-y-z",
            "-1h",
        ] {
            assert!(parse_moment(wrong, 0).is_err(), "{wrong}");
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        // Computed with `date -u -d @N`.
        assert_eq!(utc_text(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc_text(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(utc_text(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(utc_text(1_795_248_000), "2026-11-21T08:00:00Z");
        assert_eq!(utc_text(4_294_967_295), "2106-02-07T06:28:15Z");
        assert_eq!(day_text(20_454), "2026-01-01");
    }
}
