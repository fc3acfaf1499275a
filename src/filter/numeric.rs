//! Arithmetic of `numeric`: exact, with the scales that Postgres gives to results.

use std::borrow::Cow;

use num_bigint::{BigInt, Sign};

use super::decimal::{Decimal, Digits, trim_back, trim_front};

/// Most digits after the point of a product, and of a quotient.
const SCALE_MAX: u32 = 16_383;
const QUOTIENT_SCALE_MAX: i64 = 1_000;
/// A quotient has at least so many significant digits.
const QUOTIENT_DIGITS_MIN: i64 = 16;
/// Most digits before the point.
const WHOLE_MAX: usize = 131_072;

/// `mantissa / 10^scale`.
struct Number {
    mantissa: BigInt,
    scale: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NumericOp {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

/// None where Postgres reports an error: a division by zero, an overflow.
pub(super) fn compute(op: NumericOp, a: &Decimal<'_>, b: &Decimal<'_>) -> Option<Decimal<'static>> {
    let (Decimal::Finite(left), Decimal::Finite(right)) = (a, b) else { return special(op, a, b) };
    let (x, y) = (Number::of(left), Number::of(right));
    match op {
        NumericOp::Add | NumericOp::Subtract => {
            let scale = x.scale.max(y.scale);
            let (x, y) = (x.scaled(scale), y.scaled(scale));
            finite(if op == NumericOp::Add { x + y } else { x - y }, scale)
        }
        NumericOp::Multiply => {
            let scale = x.scale.checked_add(y.scale).filter(|scale| *scale <= SCALE_MAX)?;
            finite(x.mantissa * y.mantissa, scale)
        }
        NumericOp::Remainder => {
            let scale = x.scale.max(y.scale);
            let (x, y) = (x.scaled(scale), y.scaled(scale));
            // The sign is that of the dividend, here as there.
            if y.sign() == Sign::NoSign { None } else { finite(x % y, scale) }
        }
        NumericOp::Divide => {
            if y.mantissa.sign() == Sign::NoSign {
                return None;
            }
            let scale = quotient_scale(left, right);
            finite(divide(&x, &y, scale), scale)
        }
    }
}

pub(super) fn negate(value: &Decimal<'_>) -> Decimal<'static> {
    match value.borrowed().into_owned() {
        Decimal::NegativeInfinity => Decimal::Infinity,
        Decimal::Infinity => Decimal::NegativeInfinity,
        Decimal::NaN => Decimal::NaN,
        Decimal::Finite(mut digits) => {
            let zero = digits.whole.is_empty() && digits.fraction.is_empty();
            digits.negative = !digits.negative && !zero;
            Decimal::Finite(digits)
        }
    }
}

pub(super) fn absolute(value: &Decimal<'_>) -> Decimal<'static> {
    let negative = match value {
        Decimal::NegativeInfinity => true,
        Decimal::Finite(digits) => digits.negative,
        Decimal::Infinity | Decimal::NaN => false,
    };
    if negative { negate(value) } else { value.borrowed().into_owned() }
}

/// -1, 0 or 1; NaN has none.
fn signum(value: &Decimal<'_>) -> i32 {
    match value {
        Decimal::NegativeInfinity => -1,
        Decimal::Infinity => 1,
        Decimal::NaN => 0,
        Decimal::Finite(digits) if digits.whole.is_empty() && digits.fraction.is_empty() => 0,
        Decimal::Finite(digits) => {
            if digits.negative {
                -1
            } else {
                1
            }
        }
    }
}

fn infinity(sign: i32) -> Decimal<'static> {
    match sign {
        0 => Decimal::NaN,
        1.. => Decimal::Infinity,
        _ => Decimal::NegativeInfinity,
    }
}

/// One of the operands is no number.
fn special(op: NumericOp, a: &Decimal<'_>, b: &Decimal<'_>) -> Option<Decimal<'static>> {
    if matches!(a, Decimal::NaN) || matches!(b, Decimal::NaN) {
        return Some(Decimal::NaN);
    }
    let infinite = |value: &Decimal<'_>| matches!(value, Decimal::Infinity | Decimal::NegativeInfinity);
    let b_signed = if op == NumericOp::Subtract { -signum(b) } else { signum(b) };
    match op {
        NumericOp::Add | NumericOp::Subtract => Some(match (infinite(a), infinite(b)) {
            (true, true) if signum(a) != b_signed => Decimal::NaN,
            (true, _) => infinity(signum(a)),
            _ => infinity(b_signed),
        }),
        NumericOp::Multiply => Some(infinity(signum(a) * signum(b))),
        NumericOp::Divide if infinite(a) && infinite(b) => Some(Decimal::NaN),
        NumericOp::Divide if infinite(a) => {
            if signum(b) == 0 {
                None
            } else {
                Some(infinity(signum(a) * signum(b)))
            }
        }
        NumericOp::Divide => Some(Decimal::of_integer(0)),
        NumericOp::Remainder if infinite(a) => (signum(b) != 0).then_some(Decimal::NaN),
        NumericOp::Remainder => Some(a.borrowed().into_owned()),
    }
}

/// `select_div_scale`: it looks at the first digits to the base 10,000.
fn quotient_scale(a: &Digits<'_>, b: &Digits<'_>) -> u32 {
    let (weight_a, first_a) = leading(a);
    let (weight_b, first_b) = leading(b);
    let weight = weight_a - weight_b - i64::from(first_a <= first_b);
    let scale = (QUOTIENT_DIGITS_MIN - weight * 4).max(i64::from(a.scale)).max(i64::from(b.scale));
    u32::try_from(scale.clamp(0, QUOTIENT_SCALE_MAX)).unwrap_or(0)
}

/// The weight of the first group of four digits, and its value; zeros for zero.
fn leading(digits: &Digits<'_>) -> (i64, u32) {
    let number = |text: &[u8]| text.iter().fold(0, |sum, digit| sum * 10 + u32::from(digit - b'0'));
    let whole = digits.whole.len();
    if whole > 0 {
        let groups = whole.div_ceil(4);
        let first = whole - 4 * (groups - 1);
        return (i64::try_from(groups).unwrap_or(i64::MAX) - 1, number(&digits.whole[..first]));
    }
    let Some(zeros) = digits.fraction.iter().position(|digit| *digit != b'0') else { return (0, 0) };
    let group = zeros / 4;
    let mut first = digits.fraction[4 * group..].iter().copied().take(4).collect::<Vec<u8>>();
    first.resize(4, b'0');
    (-1 - i64::try_from(group).unwrap_or(0), number(&first))
}

/// The quotient at a scale, rounded half away from zero.
fn divide(x: &Number, y: &Number, scale: u32) -> BigInt {
    let shift = i64::from(scale) + i64::from(y.scale) - i64::from(x.scale);
    let power = BigInt::from(10u8).pow(u32::try_from(shift.unsigned_abs()).unwrap_or(u32::MAX));
    let (dividend, divisor) = if shift >= 0 {
        (&x.mantissa * power, y.mantissa.clone())
    } else {
        (x.mantissa.clone(), &y.mantissa * power)
    };
    let quotient = &dividend / &divisor;
    let rest = (&dividend - &quotient * &divisor).magnitude() * 2u8;
    if rest < *divisor.magnitude() {
        return quotient;
    }
    if dividend.sign() == divisor.sign() { quotient + 1 } else { quotient - 1 }
}

fn finite(mantissa: BigInt, scale: u32) -> Option<Decimal<'static>> {
    let (sign, magnitude) = mantissa.into_parts();
    let mut digits = magnitude.to_string().into_bytes();
    let places = scale as usize;
    if digits.len() <= places {
        let mut padded = vec![b'0'; places + 1 - digits.len()];
        padded.append(&mut digits);
        digits = padded;
    }
    let fraction = digits.split_off(digits.len() - places);
    let (whole, fraction) = (trim_front(&digits).to_vec(), trim_back(&fraction).to_vec());
    (whole.len() <= WHOLE_MAX).then(|| {
        Decimal::Finite(Digits {
            negative: sign == Sign::Minus,
            whole: Cow::Owned(whole),
            fraction: Cow::Owned(fraction),
            scale,
        })
    })
}

impl Number {
    fn of(digits: &Digits<'_>) -> Number {
        let text = [&digits.whole[..], &digits.fraction[..]].concat();
        let magnitude = BigInt::parse_bytes(&text, 10).unwrap_or_default();
        let mantissa = if digits.negative { -magnitude } else { magnitude };
        let spelled = u32::try_from(digits.fraction.len()).unwrap_or(0);
        let number = Number { mantissa, scale: spelled };
        let scale = digits.scale.max(spelled);
        Number { mantissa: number.scaled(scale), scale }
    }

    /// The mantissa at a scale that is not smaller.
    fn scaled(&self, scale: u32) -> BigInt {
        &self.mantissa * BigInt::from(10u8).pow(scale - self.scale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn computed(a: &str, op: NumericOp, b: &str) -> String {
        let parse = |text: &str| Decimal::parse(text.as_bytes()).map(Decimal::into_owned).expect("a decimal");
        compute(op, &parse(a), &parse(b)).map_or("error".to_owned(), |value| value.to_text())
    }

    #[test]
    fn results_have_the_scales_of_postgres() {
        for (a, op, b, expected) in [
            ("1.50", NumericOp::Add, "2", "3.50"),
            ("1", NumericOp::Subtract, "1.00", "0.00"),
            ("1.5", NumericOp::Multiply, "-1.50", "-2.250"),
            ("1", NumericOp::Divide, "3", "0.33333333333333333333"),
            ("2", NumericOp::Divide, "3", "0.66666666666666666667"),
            ("10000", NumericOp::Divide, "3", "3333.3333333333333333"),
            ("6", NumericOp::Divide, "2", "3.0000000000000000"),
            ("1", NumericOp::Divide, "0.0", "error"),
            ("-7.5", NumericOp::Remainder, "2", "-1.5"),
            ("7", NumericOp::Remainder, "0", "error"),
            ("Infinity", NumericOp::Subtract, "Infinity", "NaN"),
            ("Infinity", NumericOp::Multiply, "0", "NaN"),
            ("-Infinity", NumericOp::Multiply, "-2", "Infinity"),
            ("Infinity", NumericOp::Divide, "0", "error"),
            ("5", NumericOp::Divide, "-Infinity", "0"),
            ("5", NumericOp::Remainder, "-Infinity", "5"),
            ("NaN", NumericOp::Divide, "0", "NaN"),
        ] {
            assert_eq!(computed(a, op, b), expected, "{a} {op:?} {b}");
        }
    }
}
