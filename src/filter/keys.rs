//! Values as keys of the index, and the shapes below a key.

use std::collections::BTreeSet;

use super::array::Array;
use super::datum::Datum;
use super::decimal::Decimal;
use super::json::Json;
use crate::domain::Sid;

/// A value as a key. Keys of one form are equal exactly where Postgres' `=` says so, and in the order
/// of its `<` where the form has one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Number(i64),
    Bytes(Box<[u8]>),
}

/// None for what has no key: jsonb that is no scalar. The keys of arrays have no order that means
/// anything.
pub(super) fn key(value: &Datum<'_>) -> Option<Key> {
    Some(match value {
        Datum::Bool(value) => Key::Number(i64::from(*value)),
        Datum::Integer(value) | Datum::Moment(value) => Key::Number(*value),
        Datum::Float(value) => Key::Number(float_key(*value)),
        Datum::Text(text) => Key::Bytes(text.as_ref().into()),
        Datum::Uuid(uuid) => Key::Bytes(uuid.as_slice().into()),
        Datum::Numeric(decimal) => Key::Bytes(decimal_key(decimal).into()),
        Datum::Interval(interval) => {
            let ordered = interval.span().cast_unsigned() ^ (1 << 127);
            Key::Bytes(ordered.to_be_bytes().as_slice().into())
        }
        Datum::Json(json) => Key::Bytes(json_key(json)?.into()),
        Datum::Array(array) => Key::Bytes(array_key(array)?.into()),
    })
}

/// Dimensions, then each element with its length.
fn array_key(array: &Array<'_>) -> Option<Vec<u8>> {
    let mut bytes = vec![u8::try_from(array.dimensions.len()).ok()?];
    for dimension in &array.dimensions {
        bytes.extend_from_slice(&(dimension.length as u64).to_be_bytes());
        bytes.extend_from_slice(&dimension.lower.to_be_bytes());
    }
    for element in &array.elements {
        let Some(element) = element else {
            bytes.push(0);
            continue;
        };
        bytes.push(1);
        match key(element)? {
            Key::Number(number) => bytes.extend_from_slice(&number.to_be_bytes()),
            Key::Bytes(element) => {
                bytes.extend_from_slice(&(element.len() as u64).to_be_bytes());
                bytes.extend_from_slice(&element);
            }
        }
    }
    Some(bytes)
}

/// The bits in the order of the numbers: one pattern for both zeros, one for NaN, which is above all.
fn float_key(value: f64) -> i64 {
    let canonical = if value == 0.0 {
        0.0
    } else if value.is_nan() {
        f64::NAN.abs()
    } else {
        value
    };
    let bits = canonical.to_bits().cast_signed();
    // Of negative numbers all bits but the sign are flipped.
    if bits < 0 { bits ^ i64::MAX } else { bits }
}

/// Class, exponent and digits; of negative numbers all of it is flipped.
fn decimal_key(decimal: &Decimal<'_>) -> Vec<u8> {
    let digits = match decimal {
        Decimal::NegativeInfinity => return vec![0],
        Decimal::Infinity => return vec![4],
        Decimal::NaN => return vec![5],
        Decimal::Finite(digits) => digits,
    };
    let all = [&digits.whole[..], &digits.fraction[..]].concat();
    let Some(first) = all.iter().position(|digit| *digit != b'0') else { return vec![2] };
    let last = all.iter().rposition(|digit| *digit != b'0').unwrap_or(first);
    let exponent = digits.whole.len() as i64 - first as i64;
    let mut magnitude = (exponent.cast_unsigned() ^ (1 << 63)).to_be_bytes().to_vec();
    magnitude.extend_from_slice(&all[first..=last]);
    if !digits.negative {
        magnitude.insert(0, 3);
        return magnitude;
    }
    magnitude.iter_mut().for_each(|byte| *byte = !*byte);
    magnitude.insert(0, 1);
    // Fewer digits are the smaller magnitude, hence the larger number.
    magnitude.push(u8::MAX);
    magnitude
}

fn json_key(json: &Json) -> Option<Vec<u8>> {
    Some(match json {
        Json::Null => vec![0],
        Json::Bool(value) => vec![1, u8::from(*value)],
        Json::Number(number) => [&[2], &decimal_key(number)[..]].concat(),
        Json::Text(text) => [&[3], text.as_bytes()].concat(),
        Json::Array(_) | Json::Object(_) => return None,
    })
}

/// A shape, and the number of the condition that it asks for besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Posting {
    pub(super) sid: Sid,
    pub(super) residual: Option<std::num::NonZeroU32>,
}

/// The shapes below one key: mostly one.
#[derive(Debug, Default)]
pub(super) enum Postings {
    #[default]
    None,
    One(Posting),
    Many(BTreeSet<Posting>),
}

impl Postings {
    pub(super) fn insert(&mut self, posting: Posting) {
        match self {
            Postings::None => *self = Postings::One(posting),
            Postings::One(one) if *one == posting => {}
            Postings::One(one) => *self = Postings::Many(BTreeSet::from([*one, posting])),
            Postings::Many(many) => {
                many.insert(posting);
            }
        }
    }

    /// Whether nothing is left.
    pub(super) fn remove(&mut self, posting: Posting) -> bool {
        match self {
            Postings::One(one) if *one == posting => *self = Postings::None,
            Postings::None | Postings::One(_) => {}
            Postings::Many(many) => {
                many.remove(&posting);
                if many.is_empty() {
                    *self = Postings::None;
                }
            }
        }
        matches!(self, Postings::None)
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Postings::None => 0,
            Postings::One(_) => 1,
            Postings::Many(many) => many.len(),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Posting> + '_ {
        let (one, many) = match self {
            Postings::None => (None, None),
            Postings::One(one) => (Some(*one), None),
            Postings::Many(many) => (None, Some(many.iter().copied())),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_in_the_order_of_the_values() {
        let floats =
            [f64::NEG_INFINITY, -1e300, -1.5, -1e-300, 0.0, 5e-324, 0.1, 2.0, f64::INFINITY, f64::NAN];
        let keys: Vec<Option<Key>> = floats.iter().map(|value| key(&Datum::Float(*value))).collect();
        assert!(keys.is_sorted_by(|a, b| a < b), "{keys:?}");
        assert_eq!(key(&Datum::Float(-0.0)), key(&Datum::Float(0.0)));
        let decimals = [
            "-Infinity",
            "-1e20",
            "-123",
            "-12.5",
            "-12",
            "-1.25",
            "-1.2",
            "-0.01",
            "-1e-9",
            "0",
            "1e-9",
            "0.01",
            "0.011",
            "1",
            "1.2",
            "1.25",
            "12",
            "100",
            "123",
            "1e20",
            "Infinity",
            "NaN",
        ];
        let keys: Vec<Option<Key>> = decimals
            .iter()
            .map(|text| key(&Datum::Numeric(Decimal::parse(text.as_bytes()).expect("a decimal"))))
            .collect();
        assert!(keys.is_sorted_by(|a, b| a < b), "{keys:?}");
    }
}
