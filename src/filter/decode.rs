//! From the text form of a type to a [`Datum`]: for values of the replication stream, and for
//! literals.

use std::borrow::Cow;
use std::sync::Arc;

use super::array;
use super::calendar::{self, Zone};
use super::datum::Datum;
use super::decimal::Decimal;
use super::interval::{self, Interval};
use super::json::Json;
use super::types::{Form, Type};

/// Longest value of type `name`, in bytes.
const NAME_BYTES_MAX: usize = 63;

/// Reads `text`, which is in the text form of `ty`, in the form in which it is compared. None where
/// it is not such a text, or where Postgres' cast to that form would fail.
pub(super) fn decode<'a>(text: &'a [u8], ty: &Type, form: Form) -> Option<Datum<'a>> {
    Some(match (form, ty) {
        (Form::Bool, Type::Bool) => Datum::Bool(parse_bool(text)?),
        (Form::Integer, _) => Datum::Integer(parse_integer(text, ty)?),
        (Form::Numeric, Type::Numeric) => Datum::Numeric(Decimal::parse(text.trim_ascii())?),
        (Form::Numeric, _) => {
            parse_integer(text, ty)?;
            Datum::Numeric(Decimal::parse(text.trim_ascii())?)
        }
        (Form::Float, Type::Float4) => Datum::Float(parse_single(text)?),
        (Form::Float, Type::Float8) => Datum::Float(parse_double(text)?),
        (Form::Float, Type::Numeric) => Datum::Float(Decimal::parse(text.trim_ascii())?.to_float()?),
        // The nearest double is what the cast gives.
        (Form::Float, _) => Datum::Float(parse_integer(text, ty)? as f64),
        (Form::Text, Type::Bpchar) | (Form::Blanks, _) => Datum::Text(Cow::Borrowed(trim_blanks(text))),
        (Form::Text, Type::Name) => Datum::Text(Cow::Borrowed(clip_name(text))),
        (Form::Text, _) => Datum::Text(Cow::Borrowed(text)),
        (Form::Uuid, Type::Uuid) => Datum::Uuid(parse_uuid(text)?),
        (Form::Date, Type::Date) => Datum::Moment(calendar::parse_date(text.trim_ascii())?),
        (Form::Interval, Type::Interval) => Datum::Interval(interval::parse(text)?),
        (Form::Interval, Type::Time) => {
            Datum::Interval(Interval { months: 0, days: 0, micros: calendar::parse_time(text.trim_ascii())? })
        }
        (Form::Array, Type::Array(element)) => Datum::Array(Box::new(array::parse(text, element)?)),
        (Form::Json, Type::Jsonb) => Datum::Json(Arc::new(Json::parse(text)?)),
        (Form::Time, Type::Time) => Datum::Moment(calendar::parse_time(text.trim_ascii())?),
        (Form::Timestamp, Type::Date) => {
            Datum::Moment(calendar::date_to_timestamp(calendar::parse_date(text.trim_ascii())?))
        }
        (Form::Timestamp, Type::Timestamp) => {
            Datum::Moment(calendar::parse_timestamp(text.trim_ascii(), Zone::Ignored)?)
        }
        (Form::Timestamptz, Type::Timestamptz) => {
            Datum::Moment(calendar::parse_timestamp(text.trim_ascii(), Zone::Applied)?)
        }
        _ => return None,
    })
}

/// The value in the type's own form: text of any kind is left as it is, blanks included.
pub(super) fn decode_natural<'a>(text: &'a [u8], ty: &Type) -> Option<Datum<'a>> {
    match ty {
        Type::Bpchar => Some(Datum::Text(Cow::Borrowed(text))),
        _ => decode(text, ty, Form::of_type(ty)?),
    }
}

/// `char(n)` pads with blanks, and only with blanks.
pub(super) fn trim_blanks(mut text: &[u8]) -> &[u8] {
    while let [rest @ .., b' '] = text {
        text = rest;
    }
    text
}

/// A longer text is cut where a character ends, as the cast to `name` does.
pub(super) fn clip_name(text: &[u8]) -> &[u8] {
    if text.len() <= NAME_BYTES_MAX {
        return text;
    }
    let continues = |byte: u8| byte & 0xC0 == 0x80;
    let mut end = NAME_BYTES_MAX;
    while end > 0 && continues(text[end]) {
        end -= 1;
    }
    &text[..end]
}

/// What `boolin` takes: any unambiguous beginning of true, false, yes, no, on and off, or 1 and 0.
fn parse_bool(text: &[u8]) -> Option<bool> {
    match text {
        b"t" => return Some(true),
        b"f" => return Some(false),
        _ => {}
    }
    let word = text.trim_ascii();
    let begins = |full: &[u8], least: usize| {
        word.len() >= least && full.get(..word.len()).is_some_and(|f| f.eq_ignore_ascii_case(word))
    };
    if begins(b"true", 1) || begins(b"yes", 1) || begins(b"on", 2) || word == b"1" {
        Some(true)
    } else if begins(b"false", 1) || begins(b"no", 1) || begins(b"off", 2) || word == b"0" {
        Some(false)
    } else {
        None
    }
}

fn parse_integer(text: &[u8], ty: &Type) -> Option<i64> {
    let number = parse_digits(text).or_else(|| parse_digits(text.trim_ascii()))?;
    let fits = match ty {
        Type::Int2 => i16::try_from(number).is_ok(),
        Type::Int4 => i32::try_from(number).is_ok(),
        Type::Int8 => true,
        _ => false,
    };
    fits.then_some(number)
}

fn parse_digits(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] => (false, digits),
        digits => (false, digits),
    };
    if digits.is_empty() {
        return None;
    }
    // Summed up below zero, where there is one number more.
    let sum = digits.iter().try_fold(0i64, |sum, byte| {
        let digit = byte.is_ascii_digit().then(|| i64::from(byte - b'0'))?;
        sum.checked_mul(10)?.checked_sub(digit)
    })?;
    if negative { Some(sum) } else { sum.checked_neg() }
}

fn parse_double(text: &[u8]) -> Option<f64> {
    let word = float_word(text)?;
    let float: f64 = word.parse().ok()?;
    is_faithful(word, float.is_infinite(), float == 0.0).then_some(float)
}

fn parse_single(text: &[u8]) -> Option<f64> {
    let word = float_word(text)?;
    let float: f32 = word.parse().ok()?;
    is_faithful(word, float.is_infinite(), float == 0.0).then_some(f64::from(float))
}

/// The spellings that Postgres and Rust read alike; `nan` takes no sign.
fn float_word(text: &[u8]) -> Option<&str> {
    let word = std::str::from_utf8(text.trim_ascii()).ok()?;
    let unsigned = word.strip_prefix(['+', '-']).unwrap_or(word);
    let named = ["infinity", "inf"].iter().any(|name| unsigned.eq_ignore_ascii_case(name));
    let nan = word.eq_ignore_ascii_case("nan");
    let number = unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    (named || nan || number).then_some(word)
}

/// Postgres refuses a number that overflows to infinity or underflows to zero.
fn is_faithful(word: &str, infinite: bool, zero: bool) -> bool {
    let mantissa = word.split(['e', 'E']).next().unwrap_or_default();
    let number = mantissa.bytes().any(|byte| byte.is_ascii_digit());
    let nonzero = mantissa.bytes().any(|byte| matches!(byte, b'1'..=b'9'));
    !(number && infinite || zero && nonzero)
}

/// 32 hexadecimal digits, a hyphen allowed after every fourth, braces allowed around them.
fn parse_uuid(text: &[u8]) -> Option<[u8; 16]> {
    let inner = match text {
        [b'{', inner @ .., b'}'] => inner,
        inner => inner,
    };
    let mut uuid = [0; 16];
    let mut rest = inner;
    for (index, byte) in uuid.iter_mut().enumerate() {
        let [high, low, after @ ..] = rest else { return None };
        let (high, low) = (char::from(*high).to_digit(16)?, char::from(*low).to_digit(16)?);
        *byte = u8::try_from(high << 4 | low).ok()?;
        rest = match after {
            [b'-', after @ ..] if index % 2 == 1 && index < 15 => after,
            after => after,
        };
    }
    rest.is_empty().then_some(uuid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, ty: &Type) -> String {
        match decode_natural(text.as_bytes(), ty) {
            None => "-".to_owned(),
            Some(Datum::Text(text)) => String::from_utf8_lossy(&text).into_owned(),
            Some(Datum::Uuid(uuid)) => format!("{:032x}", u128::from_be_bytes(uuid)),
            Some(Datum::Integer(number) | Datum::Moment(number)) => number.to_string(),
            Some(Datum::Float(number)) => number.to_string(),
            Some(Datum::Bool(value)) => value.to_string(),
            Some(other) => format!("{other:?}"),
        }
    }

    #[test]
    fn reads_each_type_as_its_input_function_does() {
        for (ty, text, expected) in [
            (Type::Bool, "t", "true"),
            (Type::Bool, " Fal ", "false"),
            (Type::Bool, "of", "false"),
            (Type::Bool, "o", "-"),
            (Type::Bool, "", "-"),
            (Type::Bool, "trueish", "-"),
            (Type::Int2, "-32768", "-32768"),
            (Type::Int2, "32768", "-"),
            (Type::Int4, " +2147483647 ", "2147483647"),
            (Type::Int4, "2147483648", "-"),
            (Type::Int8, "-9223372036854775808", "-9223372036854775808"),
            (Type::Int8, "9223372036854775808", "-"),
            (Type::Int8, "1_0", "-"),
            (Type::Int8, "-", "-"),
            (Type::Float8, "1e400", "-"),
            (Type::Float8, "1e-400", "-"),
            (Type::Float8, "0e-999", "0"),
            (Type::Float8, "-Infinity", "-inf"),
            (Type::Float8, "NaN", "NaN"),
            (Type::Float8, "-nan", "-"),
            (Type::Float8, "5.", "5"),
            (Type::Float8, "0x10", "-"),
            (Type::Float4, "0.1", "0.10000000149011612"),
            (Type::Float4, "1e39", "-"),
            (Type::Bpchar, "a  ", "a  "),
            (Type::Uuid, "{A0EEBC99-9c0b-4ef8-bb6d-6bb9bd380a11}", "a0eebc999c0b4ef8bb6d6bb9bd380a11"),
            (Type::Uuid, "a0ee-bc99-9c0b-4ef8-bb6d-6bb9-bd38-0a11", "a0eebc999c0b4ef8bb6d6bb9bd380a11"),
            (Type::Uuid, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1", "-"),
            (Type::Uuid, "{a0eebc999c0b4ef8bb6d6bb9bd380a11", "-"),
        ] {
            assert_eq!(shown(text, &ty), expected, "{ty} {text}");
        }
    }

    #[test]
    fn a_name_is_cut_between_characters() {
        let long = "é".repeat(40);
        assert_eq!(clip_name(long.as_bytes()), "é".repeat(31).as_bytes());
        assert_eq!(clip_name(&[b'a'; 80]).len(), 63);
        assert_eq!(clip_name("é".as_bytes()), "é".as_bytes());
    }
}
