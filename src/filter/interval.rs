//! `interval`: its text in the styles `iso_8601` and `postgres`, and arithmetic with it, as in Postgres 17
//! and later, where intervals may be infinite. Older versions have an error where one would come about:
//! there is no row then to agree about.

use std::cmp::Ordering;
use std::fmt::Write as _;

pub(super) const DAY_MICROS: i64 = 86_400_000_000;
const DAYS_PER_MONTH: i32 = 30;

/// Months, days and microseconds count on their own; comparing takes a month for 30 days.
#[derive(Clone, Copy, Debug)]
pub(super) struct Interval {
    pub(super) months: i32,
    pub(super) days: i32,
    pub(super) micros: i64,
}

/// The infinities, by the values that Postgres has for them, which are those that compare right.
const INFINITE: Interval = Interval { months: i32::MAX, days: i32::MAX, micros: i64::MAX };
const NEGATIVE_INFINITE: Interval = Interval { months: i32::MIN, days: i32::MIN, micros: i64::MIN };

impl Interval {
    pub(super) fn infinite(positive: bool) -> Interval {
        if positive { INFINITE } else { NEGATIVE_INFINITE }
    }

    /// Whether it is the positive infinity or the negative one; `None` where it is finite.
    pub(super) fn infinity(self) -> Option<bool> {
        match (self.months, self.days, self.micros) {
            (i32::MAX, i32::MAX, i64::MAX) => Some(true),
            (i32::MIN, i32::MIN, i64::MIN) => Some(false),
            _ => None,
        }
    }

    /// What comes out of finite ones is finite, or an error.
    fn if_finite(self) -> Option<Interval> {
        self.infinity().is_none().then_some(self)
    }

    /// The span that comparing goes by, in microseconds.
    pub(super) fn span(self) -> i128 {
        let days = i128::from(self.days) + i128::from(self.months) * i128::from(DAYS_PER_MONTH);
        i128::from(self.micros) + days * i128::from(DAY_MICROS)
    }

    pub(super) fn add(self, other: Interval) -> Option<Interval> {
        match (self.infinity(), other.infinity()) {
            (Some(one), Some(two)) if one != two => return None,
            (Some(positive), _) | (None, Some(positive)) => return Some(Interval::infinite(positive)),
            (None, None) => {}
        }
        let sum = Interval {
            months: self.months.checked_add(other.months)?,
            days: self.days.checked_add(other.days)?,
            micros: self.micros.checked_add(other.micros)?,
        };
        sum.if_finite()
    }

    pub(super) fn subtract(self, other: Interval) -> Option<Interval> {
        match (self.infinity(), other.infinity()) {
            (Some(one), Some(two)) if one == two => return None,
            (Some(positive), _) => return Some(Interval::infinite(positive)),
            (None, Some(positive)) => return Some(Interval::infinite(!positive)),
            (None, None) => {}
        }
        let difference = Interval {
            months: self.months.checked_sub(other.months)?,
            days: self.days.checked_sub(other.days)?,
            micros: self.micros.checked_sub(other.micros)?,
        };
        difference.if_finite()
    }

    pub(super) fn negate(self) -> Option<Interval> {
        if let Some(positive) = self.infinity() {
            return Some(Interval::infinite(!positive));
        }
        let negated = Interval {
            months: self.months.checked_neg()?,
            days: self.days.checked_neg()?,
            micros: self.micros.checked_neg()?,
        };
        negated.if_finite()
    }

    /// `interval * float8` or its quotient where one of them is infinite: `Some` of the result, or of no
    /// result.
    fn scale_infinite(self, factor: f64, divide: bool) -> Option<Option<Interval>> {
        if let Some(positive) = self.infinity() {
            let undefined = factor.is_nan() || (if divide { factor.is_infinite() } else { factor == 0.0 });
            return Some((!undefined).then(|| Interval::infinite(positive == (factor > 0.0))));
        }
        if factor.is_infinite() && !divide {
            let sign = self.span().signum();
            return Some((sign != 0).then(|| Interval::infinite((sign > 0) == (factor > 0.0))));
        }
        None
    }

    /// `interval * float8`, or with `divide` the quotient: parts of a month become days of a month of
    /// 30, parts of a day become time.
    pub(super) fn scale(self, factor: f64, divide: bool) -> Option<Interval> {
        if divide && factor == 0.0 {
            return None;
        }
        if let Some(result) = self.scale_infinite(factor, divide) {
            return result;
        }
        let times = |value: f64| if divide { value / factor } else { value * factor };
        let round = |value: f64| (value * 1e6).round_ties_even() / 1e6;
        let (months_exact, days_exact) = (times(f64::from(self.months)), times(f64::from(self.days)));
        let (months, mut days) = (to_i32(months_exact)?, to_i32(days_exact)?);
        let month_days = round((months_exact - f64::from(months)) * f64::from(DAYS_PER_MONTH));
        let whole_days = to_i32(month_days)?;
        let rest = days_exact - f64::from(days) + month_days - f64::from(whole_days);
        let mut seconds = round(rest * 86_400.0);
        if seconds.abs() >= 86_400.0 {
            let more = to_i32(seconds / 86_400.0)?;
            days = days.checked_add(more)?;
            seconds -= f64::from(more) * 86_400.0;
        }
        let days = days.checked_add(whole_days)?;
        let micros = (times(self.micros as f64) + seconds * 1e6).round_ties_even();
        Interval { months, days, micros: to_i64(micros)? }.if_finite()
    }

    pub(super) fn justify_hours(mut self) -> Option<Interval> {
        if self.infinity().is_some() {
            return Some(self);
        }
        let whole = i32::try_from(self.micros / DAY_MICROS).ok()?;
        self.micros %= DAY_MICROS;
        self.days = self.days.checked_add(whole)?;
        Some(self.same_sign_of_time())
    }

    pub(super) fn justify_days(mut self) -> Option<Interval> {
        if self.infinity().is_some() {
            return Some(self);
        }
        self.months = self.months.checked_add(self.days / DAYS_PER_MONTH)?;
        self.days %= DAYS_PER_MONTH;
        if self.months > 0 && self.days < 0 {
            self.days += DAYS_PER_MONTH;
            self.months -= 1;
        } else if self.months < 0 && self.days > 0 {
            self.days -= DAYS_PER_MONTH;
            self.months += 1;
        }
        Some(self)
    }

    pub(super) fn justify(mut self) -> Option<Interval> {
        if self.infinity().is_some() {
            return Some(self);
        }
        if (self.days > 0 && self.micros > 0) || (self.days < 0 && self.micros < 0) {
            self.months = self.months.checked_add(self.days / DAYS_PER_MONTH)?;
            self.days %= DAYS_PER_MONTH;
        }
        self.days = self.days.checked_add(i32::try_from(self.micros / DAY_MICROS).ok()?)?;
        self.micros %= DAY_MICROS;
        self.months = self.months.checked_add(self.days / DAYS_PER_MONTH)?;
        self.days %= DAYS_PER_MONTH;
        if self.months > 0 && (self.days < 0 || (self.days == 0 && self.micros < 0)) {
            self.days += DAYS_PER_MONTH;
            self.months -= 1;
        } else if self.months < 0 && (self.days > 0 || (self.days == 0 && self.micros > 0)) {
            self.days -= DAYS_PER_MONTH;
            self.months += 1;
        }
        Some(self.same_sign_of_time())
    }

    fn same_sign_of_time(mut self) -> Interval {
        if self.days > 0 && self.micros < 0 {
            self.micros += DAY_MICROS;
            self.days -= 1;
        } else if self.days < 0 && self.micros > 0 {
            self.micros -= DAY_MICROS;
            self.days += 1;
        }
        self
    }

    /// The style `iso_8601`, in which the stream and the snapshots have it.
    pub(super) fn to_text(self) -> String {
        if let Some(positive) = self.infinity() {
            return if positive { "infinity" } else { "-infinity" }.to_owned();
        }
        if self.months == 0 && self.days == 0 && self.micros == 0 {
            return "PT0S".to_owned();
        }
        let mut text = String::from("P");
        let mut part = |value: i64, unit: char| {
            if value != 0 {
                // Writing to a String cannot fail.
                let _ = write!(text, "{value}{unit}");
            }
        };
        part(i64::from(self.months / 12), 'Y');
        part(i64::from(self.months % 12), 'M');
        part(i64::from(self.days), 'D');
        if self.micros == 0 {
            return text;
        }
        text.push('T');
        let seconds = self.micros / 1_000_000;
        let mut part = |value: i64, unit: char| {
            if value != 0 {
                let _ = write!(text, "{value}{unit}");
            }
        };
        part(seconds / 3600, 'H');
        part(seconds / 60 % 60, 'M');
        let (second, fraction) = (seconds % 60, self.micros % 1_000_000);
        if second != 0 || fraction != 0 {
            let sign = if second < 0 || fraction < 0 { "-" } else { "" };
            let _ = write!(text, "{sign}{}", second.abs());
            if fraction != 0 {
                let digits = format!("{:06}", fraction.abs());
                let _ = write!(text, ".{}", digits.trim_end_matches('0'));
            }
            text.push('S');
        }
        text
    }
}

impl PartialEq for Interval {
    fn eq(&self, other: &Self) -> bool {
        self.span() == other.span()
    }
}

impl Eq for Interval {}

impl PartialOrd for Interval {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Interval {
    fn cmp(&self, other: &Self) -> Ordering {
        self.span().cmp(&other.span())
    }
}

/// Towards zero, where it fits.
fn to_i32(value: f64) -> Option<i32> {
    let fits = !value.is_nan() && value > -2_147_483_649.0 && value < 2_147_483_648.0;
    fits.then_some(value as i32)
}

fn to_i64(value: f64) -> Option<i64> {
    // The end of the range is no i64, but the nearest double to it.
    let fits = value >= i64::MIN as f64 && value < i64::MAX as f64;
    fits.then_some(value as i64)
}

/// Reads `P1Y2M3DT4H5M6.7S`, and words with numbers: `1 year 2 mons -3 days 04:05:06.7`, `@ 1 day ago`.
/// A fraction is read in seconds only; and the infinities as they are written out. None for all other
/// spellings.
pub(super) fn parse(text: &[u8]) -> Option<Interval> {
    let text = std::str::from_utf8(text.trim_ascii()).ok()?;
    match (text, text.strip_prefix('P')) {
        ("infinity", _) => Some(INFINITE),
        ("-infinity", _) => Some(NEGATIVE_INFINITE),
        (_, Some(rest)) => parse_iso(rest)?.if_finite(),
        (_, None) => parse_words(text)?.if_finite(),
    }
}

/// Which parts a text has named: naming one twice is an error.
#[derive(Default)]
struct Parts {
    interval: Option<Interval>,
    named: Vec<&'static str>,
}

impl Parts {
    fn add(&mut self, unit: &'static str, part: Interval) -> Option<()> {
        if self.named.contains(&unit) {
            return None;
        }
        self.named.push(unit);
        let sum = match self.interval {
            None => part,
            Some(sum) => sum.add(part)?,
        };
        self.interval = Some(sum);
        Some(())
    }
}

fn parse_iso(text: &str) -> Option<Interval> {
    let (mut rest, mut in_time, mut parts) = (text, false, Parts::default());
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('T').filter(|_| !in_time) {
            (rest, in_time) = (after, true);
            continue;
        }
        let end = rest.find(|c: char| c.is_ascii_alphabetic())?;
        let (number, unit) = (&rest[..end], rest[end..].chars().next()?);
        rest = &rest[end + 1..];
        let unit = match (unit, in_time) {
            ('Y', false) => "year",
            ('M', false) => "month",
            ('W', false) => "week",
            ('D', false) => "day",
            ('H', true) => "hour",
            ('M', true) => "minute",
            ('S', true) => "second",
            _ => return None,
        };
        parts.add(unit, part(number, unit)?)?;
    }
    parts.interval
}

fn parse_words(text: &str) -> Option<Interval> {
    let mut parts = Parts::default();
    let mut words = text.split_ascii_whitespace().peekable();
    words.next_if_eq(&"@");
    while let Some(word) = words.next() {
        if word.eq_ignore_ascii_case("ago") {
            return if words.next().is_none() { parts.interval?.negate() } else { None };
        }
        if word.contains(':') {
            // A time of day names all its units.
            parts.add("hour", clock(word)?)?;
            parts.named.extend(["minute", "second"]);
            continue;
        }
        let split = word.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(word.len());
        let (number, unit) = word.split_at(split);
        let unit = if unit.is_empty() { words.next()? } else { unit };
        let unit = unit_of(unit)?;
        parts.add(unit, part(number, unit)?)?;
    }
    parts.interval
}

fn unit_of(word: &str) -> Option<&'static str> {
    Some(match word.to_ascii_lowercase().as_str() {
        "year" | "years" | "yr" | "yrs" | "y" => "year",
        "month" | "months" | "mon" | "mons" => "month",
        "week" | "weeks" | "w" => "week",
        "day" | "days" | "d" => "day",
        "hour" | "hours" | "hr" | "hrs" | "h" => "hour",
        "minute" | "minutes" | "min" | "mins" => "minute",
        "second" | "seconds" | "sec" | "secs" | "s" => "second",
        _ => return None,
    })
}

fn part(number: &str, unit: &str) -> Option<Interval> {
    let none = Interval { months: 0, days: 0, micros: 0 };
    if unit == "second" {
        return Some(Interval { micros: seconds(number)?, ..none });
    }
    let digits = number.strip_prefix(['+', '-']).unwrap_or(number);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: i32 = number.parse().ok()?;
    let micros = |unit_seconds: i64| i64::from(number).checked_mul(unit_seconds * 1_000_000);
    Some(match unit {
        "year" => Interval { months: number.checked_mul(12)?, ..none },
        "month" => Interval { months: number, ..none },
        "week" => Interval { days: number.checked_mul(7)?, ..none },
        "day" => Interval { days: number, ..none },
        "hour" => Interval { micros: micros(3600)?, ..none },
        "minute" => Interval { micros: micros(60)?, ..none },
        _ => return None,
    })
}

/// `[-]seconds[.fraction]` with six digits of a fraction at most.
fn seconds(text: &str) -> Option<i64> {
    let (negative, unsigned) = match text.strip_prefix(['+', '-']) {
        Some(rest) => (text.starts_with('-'), rest),
        None => (false, text),
    };
    let (whole, fraction) = match unsigned.split_once('.') {
        Some((whole, fraction)) if !fraction.is_empty() => (whole, fraction),
        Some(_) => return None,
        None => (unsigned, ""),
    };
    let digits = whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || fraction.len() > 6 || !digits {
        return None;
    }
    let micros: i64 = format!("{fraction:0<6}").parse().ok()?;
    let sum = i64::from(whole.parse::<i32>().ok()?) * 1_000_000 + micros;
    Some(if negative { -sum } else { sum })
}

/// `[-]HH:MM[:SS[.fraction]]`.
fn clock(text: &str) -> Option<Interval> {
    let (negative, unsigned) = match text.strip_prefix(['+', '-']) {
        Some(rest) => (text.starts_with('-'), rest),
        None => (false, text),
    };
    let mut fields = unsigned.split(':');
    let whole = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if digits { text.parse::<i32>().ok() } else { None }
    };
    let hours = whole(fields.next()?)?;
    let minutes = whole(fields.next()?).filter(|minutes| *minutes < 60)?;
    let micros = match fields.next() {
        None => 0,
        // Without a fraction MM:SS would be meant for a longer one; this is HH:MM:SS.
        Some(text) => seconds(text)
            .filter(|micros| (0..60_000_000).contains(micros) && !text.starts_with(['+', '-']))?,
    };
    if fields.next().is_some() {
        return None;
    }
    let sum = i64::from(hours)
        .checked_mul(3_600_000_000)?
        .checked_add(i64::from(minutes) * 60_000_000)?
        .checked_add(micros)?;
    Some(Interval { months: 0, days: 0, micros: if negative { -sum } else { sum } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_styles_are_read_and_iso_is_written() {
        for (text, expected) in [
            ("P1Y2M3DT4H5M6.7S", Some("P1Y2M3DT4H5M6.7S")),
            ("PT0S", Some("PT0S")),
            ("P1W", Some("P7D")),
            ("P-1Y-2M3DT-4H-5M-6S", Some("P-1Y-2M3DT-4H-5M-6S")),
            ("PT-0.000001S", Some("PT-0.000001S")),
            ("1 year 2 mons -3 days 04:05:06.7", Some("P1Y2M-3DT4H5M6.7S")),
            ("1 day -00:01", Some("P1DT-1M")),
            ("@ 90 minutes ago", Some("PT-1H-30M")),
            ("14 mons", Some("P1Y2M")),
            ("2h", Some("PT2H")),
            ("1 day 1 day", None),
            ("1 hour 01:00", None),
            ("1.5 days", None),
            ("", None),
            ("P", None),
            ("day", None),
            ("1 fortnight", None),
        ] {
            assert_eq!(parse(text.as_bytes()).map(Interval::to_text).as_deref(), expected, "{text}");
        }
    }

    /// The values are those of Postgres 17.
    #[test]
    fn infinite_intervals_are_as_in_postgres_17() {
        let read = |text: &str| parse(text.as_bytes()).expect("an interval");
        let (up, down, day, zero) = (read("infinity"), read("-infinity"), read("1 day"), read("0 s"));
        assert!(up > day && down < read("-100000 years") && up == Interval::infinite(true));
        let text = |interval: Option<Interval>| interval.map(Interval::to_text);
        for (result, expected) in [
            (up.add(day), Some("infinity")),
            (day.add(down), Some("-infinity")),
            (up.add(down), None),
            (up.subtract(up), None),
            (up.subtract(down), Some("infinity")),
            (day.subtract(up), Some("-infinity")),
            (up.negate(), Some("-infinity")),
            (up.scale(-2.0, false), Some("-infinity")),
            (up.scale(0.0, false), None),
            (up.scale(f64::INFINITY, true), None),
            (down.scale(-0.5, true), Some("infinity")),
            (day.scale(f64::INFINITY, false), Some("infinity")),
            (day.scale(f64::NEG_INFINITY, false), Some("-infinity")),
            (zero.scale(f64::INFINITY, false), None),
            (day.scale(f64::INFINITY, true), Some("PT0S")),
            (day.scale(f64::NAN, false), None),
            (up.scale(f64::NAN, true), None),
            (up.justify(), Some("infinity")),
        ] {
            assert_eq!(text(result).as_deref(), expected);
        }
    }

    #[test]
    fn a_month_compares_as_30_days() {
        let read = |text: &str| parse(text.as_bytes()).expect("an interval");
        assert_eq!(read("1 mon"), read("30 days"));
        assert_eq!(read("1 day"), read("24:00"));
        assert!(read("1 mon") < read("31 days") && read("-1 day") < read("0 s"));
    }

    #[test]
    fn parts_carry_as_in_postgres() {
        let read = |text: &str| parse(text.as_bytes()).expect("an interval");
        let text = |interval: Option<Interval>| interval.map(Interval::to_text);
        assert_eq!(text(read("1 mon").scale(1.5, false)).as_deref(), Some("P1M15D"));
        assert_eq!(text(read("1 day").scale(3.0, true)).as_deref(), Some("PT8H"));
        assert_eq!(text(read("1 mon").scale(f64::NAN, false)), None);
        assert_eq!(text(read("36:00").justify_hours()).as_deref(), Some("P1DT12H"));
        assert_eq!(text(read("35 days").justify_days()).as_deref(), Some("P1M5D"));
        assert_eq!(text(read("1 mon -1:00").justify()).as_deref(), Some("P29DT23H"));
    }
}
