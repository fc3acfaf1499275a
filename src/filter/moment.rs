//! Arithmetic of dates, times, timestamps and intervals.

use super::calendar;
use super::datum::Datum;
use super::interval::{DAY_MICROS, Interval};

/// Each of the operators and functions of `pg_proc` that are supported, commuted forms included by
/// `swapped`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moments {
    DatePlusDays {
        swapped: bool,
    },
    DateMinusDays,
    DateMinusDate,
    DatePlusTime {
        swapped: bool,
    },
    DatePlusInterval {
        swapped: bool,
    },
    DateMinusInterval,
    TimePlusInterval {
        swapped: bool,
    },
    TimeMinusInterval,
    TimeMinusTime,
    /// `timestamp` and `timestamptz` alike: the zone of the sessions is UTC.
    StampPlusInterval {
        swapped: bool,
    },
    StampMinusInterval,
    StampMinusStamp,
    IntervalPlus,
    IntervalMinus,
    IntervalTimes {
        swapped: bool,
    },
    IntervalDivide,
    JustifyDays,
    JustifyHours,
    JustifyInterval,
    /// `timezone(name, timestamp)` and its inverse; the offset in seconds is found out by name.
    ToZoned,
    FromZoned,
}

/// None where Postgres reports an error.
pub(super) fn unary(function: Moments, arg: &Datum<'_>) -> Option<Datum<'static>> {
    let Datum::Interval(interval) = arg else { return None };
    let justified = match function {
        Moments::JustifyDays => interval.justify_days(),
        Moments::JustifyHours => interval.justify_hours(),
        Moments::JustifyInterval => interval.justify(),
        _ => None,
    };
    justified.map(Datum::Interval)
}

pub(super) fn binary(function: Moments, left: &Datum<'_>, right: &Datum<'_>) -> Option<Datum<'static>> {
    let swapped = matches!(
        function,
        Moments::DatePlusDays { swapped: true }
            | Moments::DatePlusTime { swapped: true }
            | Moments::DatePlusInterval { swapped: true }
            | Moments::TimePlusInterval { swapped: true }
            | Moments::StampPlusInterval { swapped: true }
            | Moments::IntervalTimes { swapped: true }
    );
    let (left, right) = if swapped { (right, left) } else { (left, right) };
    match (function, left, right) {
        (Moments::DatePlusDays { .. }, Datum::Moment(date), Datum::Integer(days)) => move_date(*date, *days),
        (Moments::DateMinusDays, Datum::Moment(date), Datum::Integer(days)) => move_date(*date, -days),
        (Moments::DateMinusDate, Datum::Moment(a), Datum::Moment(b)) => {
            let finite = !calendar::is_infinite(*a) && !calendar::is_infinite(*b);
            finite.then(|| Datum::Integer(a - b))
        }
        (Moments::DatePlusTime { .. }, Datum::Moment(date), Datum::Moment(time)) => {
            let midnight = midnight(*date)?;
            let at = if calendar::is_infinite(midnight) { midnight } else { midnight.checked_add(*time)? };
            calendar::is_timestamp(at).then_some(Datum::Moment(at))
        }
        (Moments::DatePlusInterval { .. }, Datum::Moment(date), Datum::Interval(interval)) => {
            calendar::add_interval(midnight(*date)?, *interval).map(Datum::Moment)
        }
        (Moments::DateMinusInterval, Datum::Moment(date), Datum::Interval(interval)) => {
            calendar::add_interval(midnight(*date)?, interval.negate()?).map(Datum::Moment)
        }
        (Moments::StampPlusInterval { .. }, Datum::Moment(at), Datum::Interval(interval)) => {
            calendar::add_interval(*at, *interval).map(Datum::Moment)
        }
        (Moments::StampMinusInterval, Datum::Moment(at), Datum::Interval(interval)) => {
            calendar::add_interval(*at, interval.negate()?).map(Datum::Moment)
        }
        (Moments::TimePlusInterval { .. }, Datum::Moment(time), Datum::Interval(interval)) => {
            interval.infinity().is_none().then_some(())?;
            Some(Datum::Moment((time + interval.micros % DAY_MICROS).rem_euclid(DAY_MICROS)))
        }
        (Moments::TimeMinusInterval, Datum::Moment(time), Datum::Interval(interval)) => {
            interval.infinity().is_none().then_some(())?;
            Some(Datum::Moment((time - interval.micros % DAY_MICROS).rem_euclid(DAY_MICROS)))
        }
        (Moments::TimeMinusTime, Datum::Moment(a), Datum::Moment(b)) => {
            Some(Datum::Interval(Interval { months: 0, days: 0, micros: a - b }))
        }
        (Moments::StampMinusStamp, Datum::Moment(a), Datum::Moment(b)) => {
            if calendar::is_infinite(*a) || calendar::is_infinite(*b) {
                return (a != b).then(|| Datum::Interval(Interval::infinite(a > b)));
            }
            let span = Interval { months: 0, days: 0, micros: a.checked_sub(*b)? };
            span.justify_hours().map(Datum::Interval)
        }
        (Moments::IntervalPlus, Datum::Interval(a), Datum::Interval(b)) => a.add(*b).map(Datum::Interval),
        (Moments::IntervalMinus, Datum::Interval(a), Datum::Interval(b)) => {
            a.subtract(*b).map(Datum::Interval)
        }
        (Moments::IntervalTimes { .. }, Datum::Interval(interval), Datum::Float(factor)) => {
            interval.scale(*factor, false).map(Datum::Interval)
        }
        (Moments::IntervalDivide, Datum::Interval(interval), Datum::Float(divisor)) => {
            interval.scale(*divisor, true).map(Datum::Interval)
        }
        // Only names of UTC are supported, so that the value stays what it is.
        (Moments::ToZoned | Moments::FromZoned, Datum::Text(zone), Datum::Moment(at)) => {
            is_utc(zone).then_some(Datum::Moment(*at))
        }
        _ => None,
    }
}

/// The names of UTC that every Postgres knows.
pub(super) fn is_utc(zone: &[u8]) -> bool {
    [&b"utc"[..], b"gmt", b"z", b"zulu", b"etc/utc", b"etc/gmt", b"uct", b"etc/uct"]
        .iter()
        .any(|name| zone.eq_ignore_ascii_case(name))
}

fn move_date(date: i64, days: i64) -> Option<Datum<'static>> {
    if calendar::is_infinite(date) {
        return Some(Datum::Moment(date));
    }
    let moved = date + days;
    calendar::is_date(moved).then_some(Datum::Moment(moved))
}

fn midnight(date: i64) -> Option<i64> {
    Some(calendar::date_to_timestamp(date)).filter(|at| calendar::is_timestamp(*at))
}
