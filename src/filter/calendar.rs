//! Dates and times in Postgres' ISO spelling, to and from numbers.
//!
//! Days and microseconds count from 2000-01-01; the infinities are the ends of `i64`. The calendar
//! is the proleptic Gregorian one, as in Postgres.

use std::fmt::Write as _;

use super::interval::{DAY_MICROS, Interval};

pub(super) const INFINITY: i64 = i64::MAX;
pub(super) const NEGATIVE_INFINITY: i64 = i64::MIN;

const EPOCH_DAYS: i64 = -10_957;
/// Days of 4714-11-24 BC, the first date.
const DAYS_MIN: i64 = -2_451_545;
/// Days of 5874898-01-01, the first beyond the last date.
const DAYS_END: i64 = 2_145_031_949;
const MICROS_MIN: i64 = -211_813_488_000_000_000;
/// 294277-01-01, the first instant beyond the last.
const MICROS_END: i64 = 9_223_371_331_200_000_000;
/// The widest offset from UTC, exclusive, in seconds.
const ZONE_SECONDS_END: i64 = 16 * 3600;

/// What a time zone in the text means.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Zone {
    /// `timestamp`: it is read over.
    Ignored,
    /// `timestamptz`: it counts; without one the session's zone, UTC, does.
    Applied,
}

pub(super) fn parse_date(text: &[u8]) -> Option<i64> {
    if let Some(special) = special(text) {
        return Some(special.map_or(EPOCH_DAYS, |infinity| infinity));
    }
    let (text, bc) = split_bc(text);
    let (days, rest) = take_date(text, bc)?;
    rest.is_empty().then_some(days)
}

pub(super) fn parse_time(text: &[u8]) -> Option<i64> {
    let (micros, rest) = take_time(text)?;
    (rest.is_empty() && micros <= DAY_MICROS).then_some(micros)
}

pub(super) fn parse_timestamp(text: &[u8], zone: Zone) -> Option<i64> {
    if let Some(special) = special(text) {
        return Some(special.unwrap_or(EPOCH_DAYS * DAY_MICROS));
    }
    let (text, bc) = split_bc(text);
    let (days, rest) = take_date(text, bc)?;
    let (time, rest) = match rest {
        [] => (0, rest),
        [b' ' | b'T', rest @ ..] => take_time(rest)?,
        _ => return None,
    };
    let offset = take_zone(rest)?;
    let micros = days.checked_mul(DAY_MICROS)?.checked_add(time)?;
    let micros = match zone {
        Zone::Ignored => micros,
        Zone::Applied => micros.checked_sub(offset * 1_000_000)?,
    };
    (MICROS_MIN..MICROS_END).contains(&micros).then_some(micros)
}

/// The midnight of a date. A date beyond the last timestamp sorts after all of them, before infinity:
/// so do Postgres' operators between date and timestamp.
pub(super) fn date_to_timestamp(days: i64) -> i64 {
    match days {
        INFINITY | NEGATIVE_INFINITY => days,
        _ => days.saturating_mul(DAY_MICROS).clamp(NEGATIVE_INFINITY + 1, INFINITY - 1),
    }
}

/// Whether such a timestamp exists: what a cast checks and a comparison does not.
pub(super) fn is_timestamp(micros: i64) -> bool {
    matches!(micros, INFINITY | NEGATIVE_INFINITY) || (MICROS_MIN..MICROS_END).contains(&micros)
}

/// Whether a date exists.
pub(super) fn is_date(days: i64) -> bool {
    matches!(days, INFINITY | NEGATIVE_INFINITY) || (DAYS_MIN..DAYS_END).contains(&days)
}

pub(super) fn is_infinite(value: i64) -> bool {
    matches!(value, INFINITY | NEGATIVE_INFINITY)
}

/// `timestamp + interval`: months first, the day cut to the length of the month, then days, then the
/// time. The same for a `timestamptz` in a session whose zone is UTC. None beyond the last timestamp.
pub(super) fn add_interval(micros: i64, interval: Interval) -> Option<i64> {
    match (interval.infinity(), micros) {
        (Some(true), NEGATIVE_INFINITY) | (Some(false), INFINITY) => return None,
        (Some(positive), _) => return Some(if positive { INFINITY } else { NEGATIVE_INFINITY }),
        (None, INFINITY | NEGATIVE_INFINITY) => return Some(micros),
        (None, _) => {}
    }
    let (mut days, time) = (micros.div_euclid(DAY_MICROS), micros.rem_euclid(DAY_MICROS));
    let valid = |days: i64| {
        let at = days.checked_mul(DAY_MICROS)?.checked_add(time)?;
        (MICROS_MIN..MICROS_END).contains(&at).then_some(at)
    };
    if interval.months != 0 {
        let (year, month, day) = civil(days);
        let months = year * 12 + month - 1 + i64::from(interval.months);
        let (year, month) = (months.div_euclid(12), months.rem_euclid(12) + 1);
        days = days_from_civil(year, month, day.min(month_days(year, month)));
        valid(days)?;
    }
    days += i64::from(interval.days);
    let at = valid(days)?.checked_add(interval.micros)?;
    (MICROS_MIN..MICROS_END).contains(&at).then_some(at)
}

pub(super) fn format_date(days: i64) -> String {
    if let Some(infinity) = format_infinity(days) {
        return infinity;
    }
    let (year, month, day) = civil(days);
    let (shown, era) = if year > 0 { (year, "") } else { (1 - year, " BC") };
    format!("{shown:04}-{month:02}-{day:02}{era}")
}

pub(super) fn format_time(micros: i64) -> String {
    let seconds = micros / 1_000_000;
    let mut text = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    let fraction = micros % 1_000_000;
    if fraction != 0 {
        let digits = format!("{fraction:06}");
        // Writing to a String cannot fail.
        let _ = write!(text, ".{}", digits.trim_end_matches('0'));
    }
    text
}

pub(super) fn format_timestamp(micros: i64) -> String {
    if let Some(infinity) = format_infinity(micros) {
        return infinity;
    }
    let date = format_date(micros.div_euclid(DAY_MICROS));
    let time = format_time(micros.rem_euclid(DAY_MICROS));
    match date.strip_suffix(" BC") {
        Some(date) => format!("{date} {time} BC"),
        None => format!("{date} {time}"),
    }
}

fn format_infinity(value: i64) -> Option<String> {
    match value {
        INFINITY => Some("infinity".to_owned()),
        NEGATIVE_INFINITY => Some("-infinity".to_owned()),
        _ => None,
    }
}

/// `epoch` (None inside) and the infinities.
fn special(text: &[u8]) -> Option<Option<i64>> {
    if text.eq_ignore_ascii_case(b"infinity") {
        Some(Some(INFINITY))
    } else if text.eq_ignore_ascii_case(b"-infinity") {
        Some(Some(NEGATIVE_INFINITY))
    } else if text.eq_ignore_ascii_case(b"epoch") {
        Some(None)
    } else {
        None
    }
}

fn split_bc(text: &[u8]) -> (&[u8], bool) {
    match text.split_last_chunk::<3>() {
        Some((rest, b" BC")) => (rest, true),
        _ => (text, false),
    }
}

/// `YYYY-MM-DD` with four digits of the year or more.
fn take_date(text: &[u8], bc: bool) -> Option<(i64, &[u8])> {
    let year_len = text.iter().position(|byte| *byte == b'-')?;
    let (year, rest) = take_number(text, year_len)?;
    let (month, rest) = take_number(rest.strip_prefix(b"-")?, 2)?;
    let (day, rest) = take_number(rest.strip_prefix(b"-")?, 2)?;
    if !(4..=7).contains(&year_len) || year == 0 || !(1..=12).contains(&month) {
        return None;
    }
    let year = if bc { 1 - year } else { year };
    if !(1..=month_days(year, month)).contains(&day) {
        return None;
    }
    let days = days_from_civil(year, month, day);
    (DAYS_MIN..DAYS_END).contains(&days).then_some((days, rest))
}

/// `HH:MM[:SS[.fraction]]`; `24:00:00` is the end of the day. A fraction is rounded to microseconds
/// in the way of Postgres, by a double.
fn take_time(text: &[u8]) -> Option<(i64, &[u8])> {
    let (hour, rest) = take_number(text, 2)?;
    let (minute, rest) = take_number(rest.strip_prefix(b":")?, 2)?;
    let (second, rest) = match rest.strip_prefix(b":") {
        None => (0, rest),
        Some(rest) => take_number(rest, 2)?,
    };
    let (fraction, rest) = match rest.strip_prefix(b".") {
        None => (0, rest),
        Some(digits) => {
            let len = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
            let spelled = format!("0.{}", std::str::from_utf8(&digits[..len]).ok()?);
            let seconds: f64 = spelled.parse().ok().filter(|_| len > 0)?;
            // At most a million, so the cast is exact.
            ((seconds * 1e6).round_ties_even() as i64, &digits[len..])
        }
    };
    let micros = ((hour * 60 + minute) * 60 + second) * 1_000_000 + fraction;
    let valid = minute < 60 && second < 60 && (hour < 24 || micros == DAY_MICROS);
    valid.then_some((micros, rest))
}

/// `Z`, `±HH`, `±HHMM`, `±HH:MM[:SS]` or nothing, in seconds east of UTC.
fn take_zone(text: &[u8]) -> Option<i64> {
    let (sign, rest) = match text {
        [] | [b'Z' | b'z'] => return Some(0),
        [b'+', rest @ ..] => (1, rest),
        [b'-', rest @ ..] => (-1, rest),
        _ => return None,
    };
    let (hours, rest) = take_number(rest, 2)?;
    let (minutes, rest) = match rest {
        [] => (0, rest),
        [b':', rest @ ..] => take_number(rest, 2)?,
        _ => take_number(rest, 2).filter(|(_, rest)| rest.is_empty())?,
    };
    let (seconds, rest) = match rest.strip_prefix(b":") {
        None => (0, rest),
        Some(rest) => take_number(rest, 2)?,
    };
    let offset = hours * 3600 + minutes * 60 + seconds;
    let valid = rest.is_empty() && minutes < 60 && seconds < 60 && offset < ZONE_SECONDS_END;
    valid.then_some(sign * offset)
}

fn take_number(text: &[u8], digits: usize) -> Option<(i64, &[u8])> {
    let (number, rest) = text.split_at_checked(digits)?;
    let number = number.iter().try_fold(0i64, |sum, byte| {
        byte.is_ascii_digit().then(|| sum.checked_mul(10)?.checked_add(i64::from(byte - b'0'))).flatten()
    })?;
    Some((number, rest))
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn month_days(year: i64, month: i64) -> i64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if is_leap(year) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Days since 2000-01-01. Years begin in March here, so that the leap day is the last one.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 730_425
}

/// The inverse of [`days_from_civil`].
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 730_425;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let year = era * 400 + year_of_era;
    if month < 10 { (year, month + 3, day) } else { (year + 1, month - 9, day) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_count_from_2000_and_come_back() {
        for (text, days) in [
            ("2000-01-01", 0),
            ("1970-01-01", EPOCH_DAYS),
            ("2024-02-29", 8_825),
            ("4714-11-24 BC", DAYS_MIN),
            ("5874897-12-31", DAYS_END - 1),
            ("0001-01-01", -730_119),
            ("0001-12-31 BC", -730_120),
            ("infinity", INFINITY),
            ("-infinity", NEGATIVE_INFINITY),
        ] {
            assert_eq!(parse_date(text.as_bytes()), Some(days), "{text}");
            assert_eq!(format_date(days), text);
        }
        assert_eq!(parse_date(b"epoch"), Some(EPOCH_DAYS));
        for days in (DAYS_MIN..100_000).step_by(37) {
            assert_eq!(parse_date(format_date(days).as_bytes()), Some(days), "{days}");
        }
    }

    #[test]
    fn timestamps_apply_or_ignore_their_zone() {
        let parse = |text: &str, zone| parse_timestamp(text.as_bytes(), zone).map(format_timestamp);
        for (text, plain, zoned) in [
            ("2024-01-31 12:34:56", "2024-01-31 12:34:56", "2024-01-31 12:34:56"),
            ("2024-01-31T12:34:56.5Z", "2024-01-31 12:34:56.5", "2024-01-31 12:34:56.5"),
            ("2024-01-01 00:30:00+02", "2024-01-01 00:30:00", "2023-12-31 22:30:00"),
            ("2024-01-01 00:30-0530", "2024-01-01 00:30:00", "2024-01-01 06:00:00"),
            ("2024-01-01 00:00:00+05:30:10", "2024-01-01 00:00:00", "2023-12-31 18:29:50"),
            ("2024-01-01", "2024-01-01 00:00:00", "2024-01-01 00:00:00"),
            ("0044-03-15 12:00:00+00 BC", "0044-03-15 12:00:00 BC", "0044-03-15 12:00:00 BC"),
            ("2024-12-31 23:59:59.9999999", "2025-01-01 00:00:00", "2025-01-01 00:00:00"),
            ("infinity", "infinity", "infinity"),
            ("epoch", "1970-01-01 00:00:00", "1970-01-01 00:00:00"),
        ] {
            assert_eq!(parse(text, Zone::Ignored).as_deref(), Some(plain), "{text}");
            assert_eq!(parse(text, Zone::Applied).as_deref(), Some(zoned), "{text}");
        }
    }

    #[test]
    fn refuses_what_it_is_not_sure_of() {
        for text in [
            "",
            "2024",
            "2024-1-1",
            "24-01-01",
            "2024-13-01",
            "2023-02-29",
            "2024-00-10",
            "0000-01-01",
            "today",
            "2024-01-01 ",
            "01/02/2024",
            "4714-11-23 BC",
            "5874898-01-01",
            "2024-01-01 AD",
        ] {
            assert_eq!(parse_date(text.as_bytes()), None, "{text}");
        }
        for text in [
            "2024-01-01 25:00:00",
            "2024-01-01 24:00:00.1",
            "2024-01-01 12:60:00",
            "2024-01-01 12:00:00 UTC",
            "2024-01-01 12:00:00+16",
            "294277-01-01 00:00:00",
            "2024-01-01 12:00:00.",
            "2024-01-01 12",
        ] {
            assert_eq!(parse_timestamp(text.as_bytes(), Zone::Applied), None, "{text}");
        }
        assert_eq!(parse_time(b"24:00:00"), Some(DAY_MICROS));
        assert_eq!(parse_time(b"10:00+02"), None);
    }
}
