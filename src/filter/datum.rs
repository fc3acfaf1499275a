//! Values, decoded for comparing.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::sync::Arc;

use super::array::Array;
use super::decimal::Decimal;
use super::interval::Interval;
use super::json::Json;

/// A value that is not NULL. Which type it is of, the program knows; values of one comparison are
/// always in the same form.
#[derive(Clone, Debug)]
pub(super) enum Datum<'a> {
    Bool(bool),
    Integer(i64),
    Float(f64),
    Numeric(Decimal<'a>),
    Text(Cow<'a, [u8]>),
    Uuid([u8; 16]),
    /// A date in days, a time or a timestamp in microseconds: see `calendar`.
    Moment(i64),
    Interval(Interval),
    Array(Box<Array<'a>>),
    Json(Arc<Json>),
}

impl Datum<'_> {
    pub(super) fn borrowed(&self) -> Datum<'_> {
        match self {
            Datum::Bool(value) => Datum::Bool(*value),
            Datum::Integer(value) => Datum::Integer(*value),
            Datum::Float(value) => Datum::Float(*value),
            Datum::Numeric(value) => Datum::Numeric(value.borrowed()),
            Datum::Text(value) => Datum::Text(Cow::Borrowed(value)),
            Datum::Uuid(value) => Datum::Uuid(*value),
            Datum::Moment(value) => Datum::Moment(*value),
            Datum::Interval(value) => Datum::Interval(*value),
            Datum::Array(value) => Datum::Array(Box::new(value.borrowed())),
            Datum::Json(value) => Datum::Json(Arc::clone(value)),
        }
    }

    pub(super) fn into_owned(self) -> Datum<'static> {
        match self {
            Datum::Bool(value) => Datum::Bool(value),
            Datum::Integer(value) => Datum::Integer(value),
            Datum::Float(value) => Datum::Float(value),
            Datum::Numeric(value) => Datum::Numeric(value.into_owned()),
            Datum::Text(value) => Datum::Text(Cow::Owned(value.into_owned())),
            Datum::Uuid(value) => Datum::Uuid(value),
            Datum::Moment(value) => Datum::Moment(value),
            Datum::Interval(value) => Datum::Interval(value),
            Datum::Array(value) => Datum::Array(Box::new(value.into_owned())),
            Datum::Json(value) => Datum::Json(value),
        }
    }

    /// How Postgres orders two values of one form. None where the forms differ, which the type
    /// check rules out.
    pub(super) fn compare(&self, other: &Datum<'_>) -> Option<Ordering> {
        Some(match (self, other) {
            (Datum::Bool(a), Datum::Bool(b)) => a.cmp(b),
            (Datum::Integer(a), Datum::Integer(b)) | (Datum::Moment(a), Datum::Moment(b)) => a.cmp(b),
            (Datum::Float(a), Datum::Float(b)) => compare_floats(*a, *b),
            (Datum::Numeric(a), Datum::Numeric(b)) => a.cmp(b),
            (Datum::Text(a), Datum::Text(b)) => a.cmp(b),
            (Datum::Uuid(a), Datum::Uuid(b)) => a.cmp(b),
            (Datum::Interval(a), Datum::Interval(b)) => a.cmp(b),
            (Datum::Array(a), Datum::Array(b)) => a.compare(b),
            (Datum::Json(a), Datum::Json(b)) => a.compare(b),
            _ => return None,
        })
    }
}

/// NaN equals NaN and is above all numbers; the zeros are equal.
fn compare_floats(a: f64, b: f64) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}
