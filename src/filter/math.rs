//! Arithmetic on numbers, with the errors of Postgres as None.

use super::datum::Datum;
use super::numeric::{self, NumericOp};
use super::types::Type;

pub(super) type Arithmetic = NumericOp;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bits {
    And,
    Or,
    Xor,
    Not,
}

impl Bits {
    pub(super) fn compute(self, a: i64, b: i64) -> i64 {
        match self {
            Bits::And => a & b,
            Bits::Or => a | b,
            Bits::Xor => a ^ b,
            Bits::Not => !a,
        }
    }
}

pub(super) fn compute(
    op: Arithmetic,
    left: &Datum<'_>,
    right: &Datum<'_>,
    ty: &Type,
) -> Option<Datum<'static>> {
    Some(match (left, right) {
        (Datum::Integer(a), Datum::Integer(b)) => Datum::Integer(in_range(integers(op, *a, *b)?, ty)?),
        (Datum::Numeric(a), Datum::Numeric(b)) => Datum::Numeric(numeric::compute(op, a, b)?),
        (Datum::Float(a), Datum::Float(b)) => Datum::Float(floats(op, *a, *b, *ty == Type::Float4)?),
        _ => return None,
    })
}

fn integers(op: Arithmetic, a: i64, b: i64) -> Option<i64> {
    match op {
        NumericOp::Add => a.checked_add(b),
        NumericOp::Subtract => a.checked_sub(b),
        NumericOp::Multiply => a.checked_mul(b),
        NumericOp::Divide => a.checked_div(b),
        // The remainder of a division by -1 is 0, even where the quotient is out of range.
        NumericOp::Remainder if b == -1 => Some(0),
        NumericOp::Remainder => a.checked_rem(b),
    }
}

fn in_range(value: i64, ty: &Type) -> Option<i64> {
    let fits = match ty {
        Type::Int2 => i16::try_from(value).is_ok(),
        Type::Int4 => i32::try_from(value).is_ok(),
        _ => true,
    };
    fits.then_some(value)
}

/// A result that is infinite, or zero, without an operand that is, counts as an overflow.
fn floats(op: Arithmetic, a: f64, b: f64, single: bool) -> Option<f64> {
    let round = |value: f64| if single { f64::from(value as f32) } else { value };
    // A sum, a product or a quotient of singles, computed in double and rounded once more, is the
    // correctly rounded one: a double has more than twice the digits.
    let result = round(match op {
        NumericOp::Add => a + b,
        NumericOp::Subtract => a - b,
        NumericOp::Multiply => a * b,
        NumericOp::Divide if b == 0.0 && !a.is_nan() => return None,
        NumericOp::Divide => a / b,
        NumericOp::Remainder => return None,
    });
    let infinite = match op {
        NumericOp::Divide => a.is_infinite(),
        _ => a.is_infinite() || b.is_infinite(),
    };
    let zero = match op {
        NumericOp::Multiply => a == 0.0 || b == 0.0,
        NumericOp::Divide => a == 0.0 || b.is_infinite(),
        _ => true,
    };
    ((!result.is_infinite() || infinite) && (result != 0.0 || zero)).then_some(result)
}

pub(super) fn negate(value: &Datum<'_>, ty: &Type) -> Option<Datum<'static>> {
    Some(match value {
        Datum::Integer(value) => Datum::Integer(in_range(value.checked_neg()?, ty)?),
        Datum::Float(value) => Datum::Float(-value),
        Datum::Numeric(value) => Datum::Numeric(numeric::negate(value)),
        _ => return None,
    })
}

pub(super) fn absolute(value: &Datum<'_>, ty: &Type) -> Option<Datum<'static>> {
    Some(match value {
        Datum::Integer(value) => Datum::Integer(in_range(value.checked_abs()?, ty)?),
        Datum::Float(value) => Datum::Float(value.abs()),
        Datum::Numeric(value) => Datum::Numeric(numeric::absolute(value)),
        _ => return None,
    })
}

pub(super) fn square_root(value: f64) -> Option<f64> {
    // -0 has a root; NaN is its own.
    if value < 0.0 { None } else { Some(value.sqrt()) }
}

pub(super) fn power(base: f64, exponent: f64) -> Option<f64> {
    let fraction = exponent.floor() != exponent && !exponent.is_nan();
    if (base == 0.0 && exponent < 0.0) || (base < 0.0 && fraction) {
        return None;
    }
    let result = base.powf(exponent);
    let finite = base.is_finite() && exponent.is_finite();
    let lost = finite && (result.is_infinite() || (result == 0.0 && base != 0.0));
    (!lost).then_some(result)
}
