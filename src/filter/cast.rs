//! Explicit casts, on values in the form of their own type: contract 2.4.

use std::borrow::Cow;

use super::array::Array;
use super::calendar;
use super::datum::Datum;
use super::decimal::Decimal;
use super::decode::{clip_name, decode_natural, trim_blanks};
use super::interval::Interval;
use super::types::Type;

/// Whether such a cast is offered.
pub(super) fn exists(from: &Type, to: &Type) -> bool {
    if from == to || from.casts_implicitly(to) {
        return true;
    }
    if let (Type::Array(from), Type::Array(to)) = (from, to) {
        return exists(from, to);
    }
    let to_text = matches!(to, Type::Text | Type::Varchar);
    let from_text = from.is_text() && *from != Type::Bpchar;
    match (from, to) {
        (Type::Bool, Type::Int4) | (Type::Int4, Type::Bool) => true,
        // The text of a timestamptz depends on the time zone of the session.
        (Type::Timestamptz | Type::Array(_) | Type::Jsonb | Type::Other { .. }, _)
        | (_, Type::Enum { .. } | Type::Jsonb | Type::Other { .. }) => false,
        (_, Type::Array(element)) => from_text && !matches!(**element, Type::Enum { .. }),
        _ if to_text => true,
        // Only by function call: contract 2.4.
        (_, Type::Numeric) => false,
        _ => from_text && !to.is_text(),
    }
}

/// Casts a value; None where Postgres reports an error, or where its result is not certain.
pub(super) fn cast<'a>(datum: Datum<'a>, from: &Type, to: &Type) -> Option<Datum<'a>> {
    if from == to {
        return Some(datum);
    }
    if let (Type::Array(from), Type::Array(to)) = (from, to) {
        let Datum::Array(array) = datum else { return None };
        let Array { dimensions, elements } = *array;
        let elements = elements
            .into_iter()
            .map(|element| element.map_or(Some(None), |element| cast(element, from, to).map(Some)))
            .collect::<Option<Vec<_>>>()?;
        return Some(Datum::Array(Box::new(Array { dimensions, elements })));
    }
    Some(match (datum, to) {
        (Datum::Moment(micros), Type::Interval) => Datum::Interval(Interval { months: 0, days: 0, micros }),
        (Datum::Bool(value), Type::Int4) => Datum::Integer(i64::from(value)),
        (Datum::Integer(value), Type::Bool) => Datum::Bool(value != 0),
        (Datum::Integer(value), Type::Int4 | Type::Int8) => Datum::Integer(value),
        (Datum::Integer(value), Type::Numeric) => Datum::Numeric(Decimal::of_integer(value)),
        (Datum::Integer(value), Type::Float8) => Datum::Float(value as f64),
        (Datum::Integer(value), Type::Float4) => Datum::Float(f64::from(value as f32)),
        (Datum::Float(value), Type::Float8) => Datum::Float(value),
        (Datum::Numeric(value), Type::Float8) => Datum::Float(value.to_float()?),
        (Datum::Numeric(value), Type::Float4) => Datum::Float(value.to_single()?),
        (Datum::Moment(days), Type::Timestamp) if *from == Type::Date => {
            Datum::Moment(Some(calendar::date_to_timestamp(days)).filter(|at| calendar::is_timestamp(*at))?)
        }
        (Datum::Text(text), Type::Text | Type::Varchar | Type::Bpchar) => {
            Datum::Text(if *from == Type::Bpchar && *to != Type::Bpchar { trimmed(text) } else { text })
        }
        (Datum::Text(text), Type::Name) => Datum::Text(match text {
            Cow::Borrowed(text) => Cow::Borrowed(clip_name(text)),
            Cow::Owned(text) => Cow::Owned(clip_name(&text).to_vec()),
        }),
        (Datum::Text(text), to) => decode_natural(&text, to)?.into_owned(),
        (datum, Type::Text | Type::Varchar) => Datum::Text(Cow::Owned(to_text(&datum, from)?.into_bytes())),
        _ => return None,
    })
}

fn trimmed(text: Cow<'_, [u8]>) -> Cow<'_, [u8]> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(trim_blanks(text)),
        Cow::Owned(text) => Cow::Owned(trim_blanks(&text).to_vec()),
    }
}

/// The text form of a computed value.
fn to_text(datum: &Datum<'_>, ty: &Type) -> Option<String> {
    match (datum, ty) {
        (Datum::Bool(value), _) => Some(value.to_string()),
        (Datum::Integer(value), _) => Some(value.to_string()),
        (Datum::Float(value), Type::Float4) => {
            // Widened from a single, so narrowing gives that single back.
            Some(float_text(*value, format!("{:e}", *value as f32), 6))
        }
        (Datum::Float(value), _) => Some(float_text(*value, format!("{value:e}"), 15)),
        (Datum::Uuid(uuid), _) => {
            let hex = format!("{:032x}", u128::from_be_bytes(*uuid));
            Some([&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-"))
        }
        (Datum::Moment(value), Type::Date) => Some(calendar::format_date(*value)),
        (Datum::Moment(value), Type::Time) => Some(calendar::format_time(*value)),
        (Datum::Moment(value), Type::Timestamp) => Some(calendar::format_timestamp(*value)),
        (Datum::Numeric(value), _) => Some(value.to_text()),
        (Datum::Interval(value), _) => Some(value.to_text()),
        (Datum::Moment(_) | Datum::Text(_) | Datum::Array(_) | Datum::Json(_), _) => None,
    }
}

/// Postgres' shortest output: plain digits for exponents from -4 up to `plain_end`, else `d.de+XX`.
/// `scientific` is the same number as Rust's shortest `{:e}`.
fn float_text(value: f64, scientific: String, plain_end: i32) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let Some((mantissa, Ok(exponent))) =
        scientific.split_once('e').map(|(mantissa, exponent)| (mantissa, exponent.parse::<i32>()))
    else {
        return scientific;
    };
    if !(-4..plain_end).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs());
    }
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |rest| ("-", rest));
    let digits = mantissa.replace('.', "");
    match usize::try_from(exponent) {
        Err(_) => {
            let zeros = "0".repeat(exponent.unsigned_abs() as usize - 1);
            format!("{sign}0.{zeros}{digits}")
        }
        Ok(exponent) if digits.len() <= exponent + 1 => {
            format!("{sign}{digits}{}", "0".repeat(exponent + 1 - digits.len()))
        }
        Ok(exponent) => format!("{sign}{}.{}", &digits[..=exponent], &digits[exponent + 1..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_print_as_postgres_prints_them() {
        for (value, expected) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (0.1, "0.1"),
            (100.0, "100"),
            (-1234.5, "-1234.5"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1e14, "100000000000000"),
            (1e15, "1e+15"),
            (1.5e300, "1.5e+300"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
        ] {
            let text = cast(Datum::Float(value), &Type::Float8, &Type::Text);
            assert!(
                matches!(&text, Some(Datum::Text(text)) if text.as_ref() == expected.as_bytes()),
                "{text:?}"
            );
        }
        let single = cast(Datum::Float(f64::from(1_234_567.0f32)), &Type::Float4, &Type::Text);
        assert!(matches!(&single, Some(Datum::Text(text)) if text.as_ref() == b"1.234567e+06"), "{single:?}");
    }

    #[test]
    fn a_numeric_keeps_its_scale() {
        for (literal, expected) in [
            ("1.50", "1.50"),
            (".5", "0.5"),
            ("5.", "5"),
            ("-0.0", "0.0"),
            ("1e3", "1000"),
            ("1.5e-2", "0.015"),
        ] {
            let decimal = Decimal::parse(literal.as_bytes()).expect("a decimal");
            assert_eq!(decimal.to_text(), expected, "{literal}");
        }
    }

    #[test]
    fn offers_the_casts_of_the_contract() {
        for (from, to, expected) in [
            (Type::Text, Type::Int4, true),
            (Type::Int4, Type::Text, true),
            (Type::Numeric, Type::Text, true),
            (Type::Int4, Type::Int8, true),
            (Type::Int8, Type::Int4, false),
            (Type::Float8, Type::Int4, false),
            (Type::Float8, Type::Float4, false),
            (Type::Timestamptz, Type::Text, false),
            (Type::Timestamp, Type::Date, false),
            (Type::Timestamp, Type::Timestamptz, false),
            (Type::Bool, Type::Int4, true),
            (Type::Bool, Type::Int8, false),
            (Type::Text, Type::Numeric, false),
            (Type::Text, Type::Timestamptz, true),
            (Type::Date, Type::Timestamp, true),
            (Type::other("jsonb"), Type::Text, false),
        ] {
            assert_eq!(exists(&from, &to), expected, "{from} {to}");
        }
    }
}
