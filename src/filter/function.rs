//! What operators and functions compute, beside comparisons and LIKE.

use super::array::Array;
use super::datum::Datum;
use super::decode::trim_blanks;
use super::like;
use super::math::{self, Arithmetic, Bits};
use super::moment::{self, Moments};
use super::program::Undecodable;
use super::structure::{self, JsonOp};
use super::types::Type;

/// A value, NULL, or an error of Postgres.
pub(super) type Computed<'a> = Result<Option<Datum<'a>>, Undecodable>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Function {
    Arithmetic(Arithmetic),
    Bits(Bits),
    Power,
    SquareRoot,
    Negate,
    /// Unary plus.
    Identity,
    Absolute,
    /// `text || text`.
    Concatenate,
    /// `concat`: NULLs are left out.
    Concat,
    Lower {
        ascii: bool,
    },
    Upper {
        ascii: bool,
    },
    Coalesce,
    Greatest,
    Least,
    Moments(Moments),
    /// `ARRAY[…]`; `nested` where its elements are arrays.
    BuildArray {
        nested: bool,
    },
    Subscript,
    /// The bounds that are there, by dimension; those are the arguments after the array.
    Slice(Vec<(bool, bool)>),
    ArrayContains,
    ArrayContained,
    ArrayOverlaps,
    ArrayCat,
    ArrayAppend,
    ArrayPrepend,
    ArrayDimensions,
    Json(JsonOp),
}

impl Function {
    /// Whether a NULL among the arguments makes the result NULL.
    fn is_strict(&self) -> bool {
        !matches!(
            self,
            Function::Concat
                | Function::Coalesce
                | Function::Greatest
                | Function::Least
                | Function::BuildArray { .. }
                | Function::ArrayCat
                | Function::ArrayAppend
                | Function::ArrayPrepend
        )
    }

    /// Computes the result, of type `ty`.
    pub(super) fn evaluate<'a>(&self, args: Vec<Computed<'a>>, ty: &Type) -> Computed<'a> {
        if self.is_strict() && args.iter().any(|arg| matches!(arg, Ok(None))) {
            return Ok(None);
        }
        if *self == Function::Coalesce {
            // Postgres stops at the first value, too.
            return args.into_iter().find(|arg| !matches!(arg, Ok(None))).unwrap_or(Ok(None));
        }
        let args = args.into_iter().collect::<Result<Vec<_>, _>>()?;
        match self {
            Function::Concat => {
                let texts = args.into_iter().flatten().filter_map(|arg| match arg {
                    Datum::Text(text) => Some(text),
                    _ => None,
                });
                let sum = texts.fold(Vec::new(), |mut sum, text| {
                    sum.extend_from_slice(&text);
                    sum
                });
                Ok(Some(Datum::Text(sum.into())))
            }
            Function::Greatest => extreme(args, ty, std::cmp::Ordering::Greater),
            Function::Least => extreme(args, ty, std::cmp::Ordering::Less),
            Function::BuildArray { nested: false } => {
                Ok(Some(Datum::Array(Box::new(Array::of_elements(args)))))
            }
            Function::BuildArray { nested: true } => {
                let arrays = args.into_iter().map(|arg| arg.map(array).transpose());
                let built = Array::of_arrays(arrays.collect::<Result<_, _>>()?).ok_or(Undecodable)?;
                Ok(Some(Datum::Array(Box::new(built))))
            }
            Function::ArrayCat | Function::ArrayAppend | Function::ArrayPrepend => join(self, args),
            Function::Subscript => {
                let mut args = args.into_iter().flatten();
                let array = array(args.next().ok_or(Undecodable)?)?;
                let subscripts = args.map(integer).collect::<Result<Vec<_>, _>>()?;
                Ok(array.element(&subscripts))
            }
            Function::Slice(shape) => slice(shape, args.into_iter().flatten()),
            _ => {
                let mut args = args.into_iter().flatten();
                let first = args.next().ok_or(Undecodable)?;
                match args.next() {
                    None => self.unary(first, ty),
                    Some(second) => self.binary(first, second, ty).map(Some),
                }
            }
        }
    }

    fn unary<'a>(&self, arg: Datum<'a>, ty: &Type) -> Computed<'a> {
        let value = match (self, arg) {
            (Function::Identity, arg) => Some(arg),
            (Function::Negate, Datum::Interval(value)) => value.negate().map(Datum::Interval),
            (Function::Negate, arg) => math::negate(&arg, ty),
            (Function::Absolute, arg) => math::absolute(&arg, ty),
            (Function::Bits(Bits::Not), Datum::Integer(value)) => Some(Datum::Integer(!value)),
            (Function::SquareRoot, Datum::Float(value)) => math::square_root(value).map(Datum::Float),
            (Function::Lower { ascii }, Datum::Text(text)) => Some(Datum::Text(match ascii {
                true => text.to_ascii_lowercase().into(),
                false => like::fold(&text).into_owned().into(),
            })),
            (Function::Upper { ascii }, Datum::Text(text)) => Some(Datum::Text(match ascii {
                true => text.to_ascii_uppercase().into(),
                false => like::raise(&text).into(),
            })),
            (Function::Moments(function), arg) => moment::unary(*function, &arg),
            (Function::ArrayDimensions, Datum::Array(array)) => {
                let count = array.dimensions.len();
                // An empty array has no dimensions, which is NULL rather than 0.
                return Ok((count > 0).then(|| Datum::Integer(i64::try_from(count).unwrap_or(0))));
            }
            _ => None,
        };
        value.map(Some).ok_or(Undecodable)
    }

    fn binary<'a>(&self, left: Datum<'a>, right: Datum<'a>, ty: &Type) -> Result<Datum<'a>, Undecodable> {
        let value = match (self, left, right) {
            (Function::Arithmetic(op), left, right) => math::compute(*op, &left, &right, ty),
            (Function::Bits(op), Datum::Integer(a), Datum::Integer(b)) => {
                Some(Datum::Integer(op.compute(a, b)))
            }
            (Function::Power, Datum::Float(a), Datum::Float(b)) => math::power(a, b).map(Datum::Float),
            (Function::Concatenate, Datum::Text(a), Datum::Text(b)) => {
                Some(Datum::Text([&a[..], &b[..]].concat().into()))
            }
            (Function::Moments(function), left, right) => moment::binary(*function, &left, &right),
            (Function::ArrayContains, Datum::Array(a), Datum::Array(b)) => Some(Datum::Bool(a.contains(&b))),
            (Function::ArrayContained, Datum::Array(a), Datum::Array(b)) => Some(Datum::Bool(b.contains(&a))),
            (Function::ArrayOverlaps, Datum::Array(a), Datum::Array(b)) => Some(Datum::Bool(a.overlaps(&b))),
            _ => None,
        };
        value.ok_or(Undecodable)
    }

    /// Functions of jsonb may be NULL without a NULL argument.
    pub(super) fn is_json(&self) -> Option<JsonOp> {
        match self {
            Function::Json(op) => Some(*op),
            _ => None,
        }
    }
}

/// Evaluates any function: the door for the program.
pub(super) fn call<'a>(function: &Function, args: Vec<Computed<'a>>, ty: &Type) -> Computed<'a> {
    let Some(op) = function.is_json() else { return function.evaluate(args, ty) };
    if args.iter().any(|arg| matches!(arg, Ok(None))) {
        return Ok(None);
    }
    match <[Computed<'a>; 2]>::try_from(args) {
        Ok([Ok(Some(left)), Ok(Some(right))]) => structure::json(op, &left, &right),
        _ => Err(Undecodable),
    }
}

pub(super) fn array(datum: Datum<'_>) -> Result<Array<'_>, Undecodable> {
    match datum {
        Datum::Array(array) => Ok(*array),
        _ => Err(Undecodable),
    }
}

fn integer(datum: Datum<'_>) -> Result<i64, Undecodable> {
    match datum {
        Datum::Integer(value) => Ok(value),
        _ => Err(Undecodable),
    }
}

fn extreme<'a>(args: Vec<Option<Datum<'a>>>, ty: &Type, wanted: std::cmp::Ordering) -> Computed<'a> {
    let compare = |a: &Datum<'_>, b: &Datum<'_>| match (a, b) {
        // Blanks at the end stay, but do not count.
        (Datum::Text(a), Datum::Text(b)) if *ty == Type::Bpchar => Some(trim_blanks(a).cmp(trim_blanks(b))),
        (a, b) => a.compare(b),
    };
    let mut best: Option<Datum<'a>> = None;
    for arg in args.into_iter().flatten() {
        let better = match &best {
            None => true,
            Some(best) => compare(&arg, best).ok_or(Undecodable)? == wanted,
        };
        if better {
            best = Some(arg);
        }
    }
    Ok(best)
}

fn slice<'a>(shape: &[(bool, bool)], mut args: impl Iterator<Item = Datum<'a>>) -> Computed<'a> {
    let array = array(args.next().ok_or(Undecodable)?)?;
    let mut bound = |given: bool| if given { args.next().map(integer).transpose() } else { Ok(None) };
    let mut bounds = Vec::with_capacity(shape.len());
    for (low, high) in shape {
        bounds.push((bound(*low)?, bound(*high)?));
    }
    Ok(Some(Datum::Array(Box::new(array.slice(&bounds)))))
}

fn join<'a>(function: &Function, args: Vec<Option<Datum<'a>>>) -> Computed<'a> {
    let mut args = args.into_iter();
    let (Some(left), Some(right)) = (args.next(), args.next()) else { return Err(Undecodable) };
    let joined = match (function, left, right) {
        (Function::ArrayCat, None, other) | (Function::ArrayCat, other, None) => return Ok(other),
        (Function::ArrayCat, Some(left), Some(right)) => array(left)?.concatenate(array(right)?),
        (Function::ArrayPrepend, element, to) => to.map_or(Ok(Array::default()), array)?.prepend(element),
        (_, to, element) => to.map_or(Ok(Array::default()), array)?.append(element),
    };
    joined.map(|array| Some(Datum::Array(Box::new(array)))).ok_or(Undecodable)
}
