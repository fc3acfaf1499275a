//! Exact decimals: as much of `numeric` as comparing needs.

use std::borrow::Cow;
use std::cmp::Ordering;

/// Largest exponent, either way, in a literal. Postgres stops at 131,072 digits before the point and
/// 16,383 after it; a literal beyond this is refused rather than spelled out.
const EXPONENT_MAX: i32 = 16_000;

/// A `numeric` value. Ordered as Postgres orders: -Infinity, numbers, Infinity, NaN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decimal<'a> {
    NegativeInfinity,
    Finite(Digits<'a>),
    Infinity,
    NaN,
}

/// Invariant: no zeros at the front of `whole` or the end of `fraction`; zero is not negative.
#[derive(Clone, Debug)]
pub(super) struct Digits<'a> {
    pub(super) negative: bool,
    pub(super) whole: Cow<'a, [u8]>,
    pub(super) fraction: Cow<'a, [u8]>,
    /// Digits after the point that are shown. Arithmetic and text depend on it, comparing does not.
    pub(super) scale: u32,
}

impl PartialEq for Digits<'_> {
    fn eq(&self, other: &Self) -> bool {
        (self.negative, &self.whole, &self.fraction) == (other.negative, &other.whole, &other.fraction)
    }
}

impl Eq for Digits<'_> {}

impl<'a> Decimal<'a> {
    /// Reads what `numeric_out` writes and what `numeric_in` takes, but for blanks around it.
    /// Borrows where there is no exponent.
    pub(super) fn parse(text: &'a [u8]) -> Option<Decimal<'a>> {
        let (negative, rest) = match text {
            [b'-', rest @ ..] => (true, rest),
            [b'+', rest @ ..] => (false, rest),
            rest => (false, rest),
        };
        match rest.first() {
            Some(b'0'..=b'9' | b'.') => Digits::parse(negative, rest).map(Decimal::Finite),
            // numeric_in takes no sign before NaN.
            _ if text.eq_ignore_ascii_case(b"nan") => Some(Decimal::NaN),
            _ if rest.eq_ignore_ascii_case(b"infinity") || rest.eq_ignore_ascii_case(b"inf") => {
                Some(if negative { Decimal::NegativeInfinity } else { Decimal::Infinity })
            }
            _ => None,
        }
    }

    pub(super) fn of_integer(number: i64) -> Decimal<'static> {
        let whole = if number == 0 { Vec::new() } else { number.unsigned_abs().to_string().into_bytes() };
        Decimal::Finite(Digits {
            negative: number < 0,
            whole: Cow::Owned(whole),
            fraction: Cow::Owned(vec![]),
            scale: 0,
        })
    }

    pub(super) fn borrowed(&self) -> Decimal<'_> {
        match self {
            Decimal::NegativeInfinity => Decimal::NegativeInfinity,
            Decimal::Infinity => Decimal::Infinity,
            Decimal::NaN => Decimal::NaN,
            Decimal::Finite(digits) => Decimal::Finite(Digits {
                negative: digits.negative,
                whole: Cow::Borrowed(&digits.whole),
                fraction: Cow::Borrowed(&digits.fraction),
                scale: digits.scale,
            }),
        }
    }

    pub(super) fn into_owned(self) -> Decimal<'static> {
        match self {
            Decimal::NegativeInfinity => Decimal::NegativeInfinity,
            Decimal::Infinity => Decimal::Infinity,
            Decimal::NaN => Decimal::NaN,
            Decimal::Finite(digits) => Decimal::Finite(Digits {
                negative: digits.negative,
                whole: Cow::Owned(digits.whole.into_owned()),
                fraction: Cow::Owned(digits.fraction.into_owned()),
                scale: digits.scale,
            }),
        }
    }

    /// One spelling for equal values: `1`, `1.0` and `1.00` are the same bytes.
    pub(super) fn write_canonical(&self, out: &mut Vec<u8>) {
        match self {
            Decimal::NegativeInfinity => out.extend_from_slice(b"-Infinity"),
            Decimal::Infinity => out.extend_from_slice(b"Infinity"),
            Decimal::NaN => out.extend_from_slice(b"NaN"),
            Decimal::Finite(digits) => {
                if digits.negative {
                    out.push(b'-');
                }
                out.extend_from_slice(&digits.whole);
                out.push(b'.');
                out.extend_from_slice(&digits.fraction);
            }
        }
    }

    /// What `numeric_out` writes.
    pub(super) fn to_text(&self) -> String {
        let mut text = Vec::new();
        match self {
            Decimal::Finite(digits) => {
                if digits.negative {
                    text.push(b'-');
                }
                text.extend_from_slice(if digits.whole.is_empty() { b"0" } else { &digits.whole });
                if digits.scale > 0 {
                    text.push(b'.');
                    text.extend_from_slice(&digits.fraction);
                    let zeros = (digits.scale as usize).saturating_sub(digits.fraction.len());
                    text.extend(std::iter::repeat_n(b'0', zeros));
                }
            }
            special => special.write_canonical(&mut text),
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// The nearest double, as the cast to float8 gives it; None where the cast would fail.
    pub(super) fn to_float(&self) -> Option<f64> {
        match self {
            Decimal::NegativeInfinity => Some(f64::NEG_INFINITY),
            Decimal::Infinity => Some(f64::INFINITY),
            Decimal::NaN => Some(f64::NAN),
            Decimal::Finite(digits) => {
                let text = self.spelled()?;
                let float: f64 = text.parse().ok()?;
                let lost = float == 0.0 && !(digits.whole.is_empty() && digits.fraction.is_empty());
                (float.is_finite() && !lost).then_some(float)
            }
        }
    }

    /// The nearest single, widened, as the cast to float4 gives it.
    pub(super) fn to_single(&self) -> Option<f64> {
        match self {
            Decimal::Finite(digits) => {
                let float: f32 = self.spelled()?.parse().ok()?;
                let lost = float == 0.0 && !(digits.whole.is_empty() && digits.fraction.is_empty());
                (float.is_finite() && !lost).then_some(f64::from(float))
            }
            Decimal::NegativeInfinity | Decimal::Infinity | Decimal::NaN => self.to_float(),
        }
    }

    fn spelled(&self) -> Option<String> {
        let mut text = Vec::new();
        self.write_canonical(&mut text);
        // "." alone is zero here, but no number to the parser.
        text.push(b'0');
        String::from_utf8(text).ok()
    }
}

impl<'a> Digits<'a> {
    fn parse(negative: bool, text: &'a [u8]) -> Option<Digits<'a>> {
        let (mantissa, exponent) = match text.iter().position(|byte| matches!(byte, b'e' | b'E')) {
            None => (text, 0),
            Some(at) => {
                let exponent: i32 = std::str::from_utf8(&text[at + 1..]).ok()?.parse().ok()?;
                (&text[..at], exponent)
            }
        };
        let (whole, fraction) = match mantissa.iter().position(|byte| *byte == b'.') {
            None => (mantissa, &[][..]),
            Some(at) => (&mantissa[..at], &mantissa[at + 1..]),
        };
        let digits_only = whole.iter().chain(fraction).all(u8::is_ascii_digit);
        if !digits_only || (whole.is_empty() && fraction.is_empty()) || exponent.abs() > EXPONENT_MAX {
            return None;
        }
        let (whole, fraction, scale) = if exponent == 0 {
            let scale = fraction.len();
            (Cow::Borrowed(trim_front(whole)), Cow::Borrowed(trim_back(fraction)), scale)
        } else {
            let (whole, fraction) = shift(whole, fraction, exponent);
            let scale = fraction.len();
            (Cow::Owned(trim_front(&whole).to_vec()), Cow::Owned(trim_back(&fraction).to_vec()), scale)
        };
        let zero = whole.is_empty() && fraction.is_empty();
        Some(Digits { negative: negative && !zero, whole, fraction, scale: u32::try_from(scale).ok()? })
    }

    fn cmp_magnitude(&self, other: &Digits<'_>) -> Ordering {
        // Without leading zeros the longer whole part is the larger number; without trailing zeros
        // fractions compare like texts.
        self.whole
            .len()
            .cmp(&other.whole.len())
            .then_with(|| self.whole.as_ref().cmp(other.whole.as_ref()))
            .then_with(|| self.fraction.as_ref().cmp(other.fraction.as_ref()))
    }
}

/// Moves the point by `exponent` places.
fn shift(whole: &[u8], fraction: &[u8], exponent: i32) -> (Vec<u8>, Vec<u8>) {
    let mut digits = [whole, fraction].concat();
    let point = i64::try_from(whole.len()).unwrap_or(i64::MAX).saturating_add(i64::from(exponent));
    match usize::try_from(point) {
        Ok(point) => {
            if digits.len() < point {
                digits.resize(point, b'0');
            }
            let fraction = digits.split_off(point);
            (digits, fraction)
        }
        Err(_) => {
            let zeros = usize::try_from(-point).unwrap_or(usize::MAX);
            let mut fraction = vec![b'0'; zeros];
            fraction.append(&mut digits);
            (Vec::new(), fraction)
        }
    }
}

pub(super) fn trim_front(mut digits: &[u8]) -> &[u8] {
    while let [b'0', rest @ ..] = digits {
        digits = rest;
    }
    digits
}

pub(super) fn trim_back(mut digits: &[u8]) -> &[u8] {
    while let [rest @ .., b'0'] = digits {
        digits = rest;
    }
    digits
}

impl Ord for Decimal<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        let rank = |decimal: &Decimal<'_>| match decimal {
            Decimal::NegativeInfinity => 0,
            Decimal::Finite(_) => 1,
            Decimal::Infinity => 2,
            Decimal::NaN => 3,
        };
        match (self, other) {
            (Decimal::Finite(a), Decimal::Finite(b)) => match (a.negative, b.negative) {
                (false, false) => a.cmp_magnitude(b),
                (true, true) => b.cmp_magnitude(a),
                (true, false) => Ordering::Less,
                (false, true) => Ordering::Greater,
            },
            _ => rank(self).cmp(&rank(other)),
        }
    }
}

impl PartialOrd for Decimal<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decimal(text: &str) -> Decimal<'_> {
        Decimal::parse(text.as_bytes()).unwrap_or_else(|| panic!("{text} is a decimal"))
    }

    #[test]
    fn orders_as_numeric_does() {
        let ascending = [
            "-Infinity",
            "-1e20",
            "-10.5",
            "-10",
            "-9.99",
            "-0.01",
            "-1e-5",
            "0",
            "1e-5",
            "0.01",
            ".5",
            "9.99",
            "10",
            "10.5",
            "99999999999999999999.9",
            "1e20",
            "1e100",
            "inf",
            "NaN",
        ];
        for (i, a) in ascending.iter().enumerate() {
            for (j, b) in ascending.iter().enumerate() {
                assert_eq!(decimal(a).cmp(&decimal(b)), i.cmp(&j), "{a} {b}");
            }
        }
    }

    #[test]
    fn equal_values_have_one_spelling() {
        let groups: [&[&str]; 4] = [
            &["0", "-0", "0.00", ".0", "0.", "0e5", "-0.0e-5"],
            &["1", "1.0", "1.00", "001", "+1", "0.1e1", "100e-2"],
            &["-12.5", "-12.50", "-1.25e1", "-012.5", "-1250e-2"],
            &["nan", "NaN"],
        ];
        for group in groups {
            for text in group {
                let (mut a, mut b) = (Vec::new(), Vec::new());
                decimal(text).write_canonical(&mut a);
                decimal(group[0]).write_canonical(&mut b);
                assert_eq!(a, b, "{text}");
                assert_eq!(decimal(text), decimal(group[0]), "{text}");
            }
        }
    }

    #[test]
    fn refuses_what_is_no_number() {
        for text in [
            "", ".", "-", "1e", "e1", "1.2.3", "1a", "0x1f", "1_000", " 1", "-nan", "infinit", "1e99999",
            "1e+-1",
        ] {
            assert_eq!(Decimal::parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn casts_to_floats_where_postgres_does() {
        assert_eq!(decimal("0.1").to_float(), Some(0.1));
        assert_eq!(decimal("0.1").to_single(), Some(f64::from(0.1f32)));
        assert_eq!(decimal("-0").to_float(), Some(0.0));
        assert_eq!(decimal("1e400").to_float(), None);
        assert_eq!(decimal("1e-400").to_float(), None);
        assert_eq!(decimal("1e39").to_single(), None);
        assert_eq!(decimal("Infinity").to_float(), Some(f64::INFINITY));
    }

    #[test]
    fn an_integer_is_the_decimal_that_it_spells() {
        for number in [0, 1, -1, i64::MAX, i64::MIN] {
            assert_eq!(Decimal::of_integer(number), decimal(&number.to_string()));
        }
    }
}
