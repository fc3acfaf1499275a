//! Wall-clock time as data. Nothing here reads a clock: time is an argument everywhere in the core.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Microseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Time since `earlier`; zero where the clock went backwards.
    #[must_use]
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// This moment plus a duration, saturating.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Timestamp {
        let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        Timestamp(self.0.saturating_add(micros))
    }
}

/// As people read it, also inside other values.
impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// RFC 3339 in UTC with microseconds: `2026-03-20T13:41:02.000000Z`.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.0.rem_euclid(1_000_000);
        let seconds = self.0.div_euclid(1_000_000);
        let days = seconds.div_euclid(86_400);
        let in_day = seconds.rem_euclid(86_400);
        let (year, month, day) = civil_from_days(days);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{micros:06}Z",
            in_day / 3600,
            in_day / 60 % 60,
            in_day % 60
        )
    }
}

/// Days since 1970-01-01 to a proleptic Gregorian date: years are counted from 1 March, so that the
/// leap day is the last day of a year.
fn civil_from_days(days: i64) -> (i64, u32, u32) {
    const DAYS_PER_ERA: i64 = 146_097;
    let shifted = days + 719_468;
    let era = shifted.div_euclid(DAYS_PER_ERA);
    let day_of_era = shifted.rem_euclid(DAYS_PER_ERA);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, u32::try_from(month).unwrap_or(0), u32::try_from(day).unwrap_or(0))
}

/// Days from 1970-01-01 to a date of the proleptic Gregorian calendar; the inverse of
/// [`civil_from_days`].
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The text is not a moment in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a moment: expected the form 2026-03-20T13:41:02Z")]
pub struct ParseTimestampError;

/// Reads `2026-03-20T13:41:02.5Z`. The zone is UTC whether written or not, a blank may stand for the
/// `T`, and what is left out from the right (fraction, seconds, time) is zero.
impl FromStr for Timestamp {
    type Err = ParseTimestampError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.strip_suffix('Z').unwrap_or(text);
        let (date, time) = text.split_once(['T', ' ']).unwrap_or((text, "00:00"));
        let mut parts = date.splitn(3, '-');
        let mut part = |digits: usize| {
            let text = parts.next().ok_or(ParseTimestampError)?;
            if text.len() != digits { Err(ParseTimestampError) } else { number(text) }
        };
        let (year, month, day) = (part(4)?, part(2)?, part(2)?);
        let days = days_from_civil(year, month, day);
        let (year, month, day) = (year, u32::try_from(month), u32::try_from(day));
        let exists = civil_from_days(days) == (year, month.unwrap_or(0), day.unwrap_or(0));
        if !exists {
            return Err(ParseTimestampError);
        }
        Ok(Timestamp(days * MICROS_PER_DAY + micros_of_day(time)?))
    }
}

/// Microseconds of one day.
pub const MICROS_PER_DAY: i64 = 86_400_000_000;

/// Reads `13:41:02.5` or `13:41` as microseconds since midnight.
///
/// # Errors
/// The text is not of this form.
pub fn micros_of_day(text: &str) -> Result<i64, ParseTimestampError> {
    let (clock, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut parts = clock.split(':');
    let hour = number(parts.next().ok_or(ParseTimestampError)?)?;
    let minute = number(parts.next().ok_or(ParseTimestampError)?)?;
    let second = parts.next().map_or(Ok(0), number)?;
    if parts.next().is_some() || hour > 23 || minute > 59 || second > 59 || fraction.len() > 6 {
        return Err(ParseTimestampError);
    }
    let micros = if fraction.is_empty() { 0 } else { number(&format!("{fraction:0<6}"))? };
    Ok(((hour * 60 + minute) * 60 + second) * 1_000_000 + micros)
}

fn number(digits: &str) -> Result<i64, ParseTimestampError> {
    let digits_only = !digits.is_empty() && digits.len() <= 6 && digits.bytes().all(|b| b.is_ascii_digit());
    if digits_only { digits.parse().map_err(|_| ParseTimestampError) } else { Err(ParseTimestampError) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_prints_and_shorter_forms() {
        for micros in [0, 951_827_696_000_001, -1, 4_102_444_799_000_000] {
            assert_eq!(Timestamp(micros).to_string().parse(), Ok(Timestamp(micros)));
        }
        for (text, same) in [
            ("2026-03-20T13:41:02Z", "2026-03-20T13:41:02.000000Z"),
            ("2026-03-20 13:41", "2026-03-20T13:41:00.000000Z"),
            ("2026-03-20", "2026-03-20T00:00:00.000000Z"),
            ("2026-03-20T13:41:02.5", "2026-03-20T13:41:02.500000Z"),
        ] {
            assert_eq!(text.parse::<Timestamp>().unwrap().to_string(), same);
        }
        for bad in
            ["", "2026-02-29", "2026-13-01", "2026-03-20T24:00:00Z", "20-03-2026", "2026-03-20T1:2:3:4"]
        {
            assert_eq!(bad.parse::<Timestamp>(), Err(ParseTimestampError), "{bad}");
        }
    }

    #[test]
    fn prints_rfc_3339() {
        for (micros, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_827_696_000_001, "2000-02-29T12:34:56.000001Z"),
            (-1, "1969-12-31T23:59:59.999999Z"),
            (4_102_444_799_000_000, "2099-12-31T23:59:59.000000Z"),
        ] {
            assert_eq!(Timestamp(micros).to_string(), text);
        }
    }

    #[test]
    fn a_clock_that_goes_back_yields_zero() {
        assert_eq!(Timestamp(5).since(Timestamp(9)), Duration::ZERO);
        assert_eq!(Timestamp(9).since(Timestamp(5)), Duration::from_micros(4));
        assert_eq!(Timestamp(i64::MAX).plus(Duration::from_secs(1)), Timestamp(i64::MAX));
    }
}
