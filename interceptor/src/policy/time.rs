//! Conditions on time: days and hours in a time zone, and the age of a token.

use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::Weekday;
use jiff::tz::TimeZone;

/// Days and hours. Hours may wrap midnight; what is after midnight then belongs to the day on
/// which the hours began.
#[derive(Debug, Clone)]
pub(super) struct Window {
    /// Bit 0 is Monday.
    pub days: u8,
    /// Minutes of the day, from inclusive, to exclusive.
    pub hours: Vec<(u16, u16)>,
    pub zone: TimeZone,
}

/// All days of the week.
pub(super) const EVERY_DAY: u8 = 0x7f;

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// Reads `mon`, `Monday`, `mon-fri`, `fri-mon`.
pub(super) fn days(text: &str) -> Result<u8, String> {
    let one = |part: &str| {
        let lower = part.trim().to_lowercase();
        let known = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];
        (0..7)
            .find(|i| lower == DAYS[*i] || lower == known[*i])
            .ok_or_else(|| format!("{part:?} is no day; write mon, tue, wed, thu, fri, sat or sun"))
    };
    match text.split_once('-') {
        None => one(text).map(|day| 1 << day),
        Some((from, to)) => {
            let (mut day, to) = (one(from)?, one(to)?);
            let mut bits = 1 << day;
            while day != to {
                day = (day + 1) % 7;
                bits |= 1 << day;
            }
            Ok(bits)
        }
    }
}

/// Reads `09:00-17:30`.
pub(super) fn hours(text: &str) -> Result<(u16, u16), String> {
    let bad = || format!("{text:?} are no hours; write them like \"09:00-17:30\"");
    let minutes = |part: &str| -> Option<u16> {
        let (h, m) = part.trim().split_once(':')?;
        let digits = |s: &str| s.len() == 2 && s.bytes().all(|b| b.is_ascii_digit());
        if !digits(h) || !digits(m) {
            return None;
        }
        let (h, m): (u16, u16) = (h.parse().ok()?, m.parse().ok()?);
        ((h < 24 && m < 60) || (h == 24 && m == 0)).then_some(h * 60 + m)
    };
    let (from, to) = text.split_once('-').ok_or_else(bad)?;
    let (from, to) = (minutes(from).ok_or_else(bad)?, minutes(to).ok_or_else(bad)?);
    if from == to {
        return Err(format!("{text:?} begins when it ends; leave `hours` out for the whole day"));
    }
    if from == 24 * 60 {
        return Err(format!("{text:?} begins at 24:00; write 00:00"));
    }
    Ok((from, to))
}

impl Window {
    /// Whether the moment lies inside.
    pub fn contains(&self, now: Timestamp) -> bool {
        let local = self.zone.to_datetime(now);
        let today = match local.weekday() {
            Weekday::Monday => 0,
            Weekday::Tuesday => 1,
            Weekday::Wednesday => 2,
            Weekday::Thursday => 3,
            Weekday::Friday => 4,
            Weekday::Saturday => 5,
            Weekday::Sunday => 6,
        };
        let on = |day: u8| self.days & (1 << (day % 7)) != 0;
        if self.hours.is_empty() {
            return on(today);
        }
        let minute = i32::from(local.hour()) * 60 + i32::from(local.minute());
        self.hours.iter().any(|(from, to)| {
            let (from, to) = (i32::from(*from), i32::from(*to));
            if from < to {
                on(today) && from <= minute && minute < to
            } else {
                (on(today) && minute >= from) || (on(today + 6) && minute < to)
            }
        })
    }
}

/// How old a token may or must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Age {
    below: bool,
    inclusive: bool,
    limit: Duration,
}

impl Age {
    /// Reads `<15m`, `>= 1h`.
    pub fn read(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no age; write it like \"<15m\" or \">1h\"");
        let rest = text.trim();
        let (below, rest) = match rest.strip_prefix('<') {
            Some(rest) => (true, rest),
            None => (false, rest.strip_prefix('>').ok_or_else(bad)?),
        };
        let (inclusive, rest) = match rest.strip_prefix('=') {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        let limit = humantime::parse_duration(rest.trim()).map_err(|_| bad())?;
        Ok(Self { below, inclusive, limit })
    }

    /// Whether a token issued at `iat` (seconds since the epoch) fits now.
    pub fn holds(self, iat: i64, now: Timestamp) -> bool {
        let age = i128::from(now.as_millisecond()) - i128::from(iat) * 1000;
        let age = age.max(0);
        let limit = i128::try_from(self.limit.as_millis()).unwrap_or(i128::MAX);
        match (self.below, self.inclusive) {
            (true, false) => age < limit,
            (true, true) => age <= limit,
            (false, false) => age > limit,
            (false, true) => age >= limit,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(d: &str, h: &[&str], zone: &str) -> Window {
        Window {
            days: days(d).unwrap(),
            hours: h.iter().map(|h| hours(h).unwrap()).collect(),
            zone: TimeZone::get(zone).unwrap(),
        }
    }

    #[test]
    fn windows_know_midnight_zones_and_daylight_saving() {
        for (w, at, inside) in [
            (window("mon-fri", &["09:00-17:30"], "UTC"), "2026-03-02T09:00:00Z", true),
            (window("mon-fri", &["09:00-17:30"], "UTC"), "2026-03-02T08:59:59Z", false),
            (window("mon-fri", &["09:00-17:30"], "UTC"), "2026-03-02T17:29:59Z", true),
            (window("mon-fri", &["09:00-17:30"], "UTC"), "2026-03-02T17:30:00Z", false),
            (window("mon-fri", &["09:00-17:30"], "UTC"), "2026-03-01T10:00:00Z", false),
            // Friday's night ends on Saturday morning, and Saturday's is none.
            (window("fri", &["22:00-06:00"], "UTC"), "2026-03-06T23:00:00Z", true),
            (window("fri", &["22:00-06:00"], "UTC"), "2026-03-07T05:59:00Z", true),
            (window("fri", &["22:00-06:00"], "UTC"), "2026-03-06T05:00:00Z", false),
            (window("fri", &["22:00-06:00"], "UTC"), "2026-03-07T22:30:00Z", false),
            (window("sun", &["22:00-06:00"], "UTC"), "2026-03-02T01:00:00Z", true),
            // Berlin is UTC+1 in winter and UTC+2 in summer.
            (window("mon-sun", &["09:00-10:00"], "Europe/Berlin"), "2026-03-02T08:30:00Z", true),
            (window("mon-sun", &["09:00-10:00"], "Europe/Berlin"), "2026-07-06T08:30:00Z", false),
            (window("mon-sun", &["09:00-10:00"], "Europe/Berlin"), "2026-07-06T07:30:00Z", true),
            (window("sat-sun", &[], "UTC"), "2026-03-07T00:00:00Z", true),
            (window("sat-sun", &[], "UTC"), "2026-03-09T00:00:00Z", false),
            (window("mon", &["00:00-24:00"], "UTC"), "2026-03-02T23:59:59Z", true),
        ] {
            assert_eq!(w.contains(at.parse().unwrap()), inside, "{w:?} at {at}");
        }
    }

    #[test]
    fn ages() {
        let now = Timestamp::from_second(10_000).unwrap();
        for (text, iat, holds) in [
            ("<15m", 10_000 - 899, true),
            ("<15m", 10_000 - 900, false),
            ("<= 15m", 10_000 - 900, true),
            (">15m", 10_000 - 901, true),
            (">=15m", 10_000 - 900, true),
            ("<15m", 10_050, true),
            (">1s", 10_050, false),
        ] {
            assert_eq!(Age::read(text).unwrap().holds(iat, now), holds, "{text} {iat}");
        }
        for bad in ["15m", "<", "<15", "=<1m", ""] {
            assert!(Age::read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn bad_times_say_how_to_write_them() {
        for bad in ["9-17", "09:00", "25:00-26:00", "09:00-09:00", "24:00-08:00", "09:60-10:00"] {
            assert!(hours(bad).is_err(), "{bad}");
        }
        assert!(days("someday").unwrap_err().contains("mon"));
        assert_eq!(days("sat-mon").unwrap(), 0b110_0001);
    }
}
