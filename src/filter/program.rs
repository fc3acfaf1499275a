//! The form of a clause that decides about rows: forms of comparison chosen, constants decoded.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::sync::Arc;

use super::calendar;
use super::cast::cast;
use super::composite::cell_is_null;
use super::datum::Datum;
use super::decimal::Decimal;
use super::decode::{decode, decode_natural, trim_blanks};
use super::delegated::{Delegated, Verdicts};
use super::expr::{Case, Comparison, Test, Truth};
use super::function::{self, Function};
use super::interval::Interval;
use super::like;
use super::types::{Form, Type};
use crate::domain::{Tuple, Value};

/// A value could not be read, or an operation on it failed: the row is treated as not in the shape.
///
/// It only counts where the result depends on it. Postgres leaves open in which order the parts of a
/// condition are evaluated, and folds constants first, so a part that decides alone always does here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Undecodable;

/// A row, and where the columns of a clause are in it.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    pub(super) tuple: &'a Tuple,
    /// The row before the change: it has the values that an update did not send.
    pub(super) before: Option<&'a Tuple>,
    /// Position in the tuple, by slot; None for a column that the relation no longer has.
    pub(super) positions: &'a [Option<usize>],
    /// What Postgres has said; None where nothing was asked.
    pub(super) verdicts: Option<&'a Verdicts>,
}

impl<'a> Row<'a> {
    pub(super) fn cell(&self, slot: usize) -> Result<Option<&'a [u8]>, Undecodable> {
        let position = self.positions.get(slot).copied().flatten().ok_or(Undecodable)?;
        let value = match (self.tuple.get(position), self.before) {
            (Value::Unchanged, Some(before)) => before.get(position),
            (value, _) => value,
        };
        match value {
            Value::Null => Ok(None),
            Value::Text(text) => Ok(Some(text)),
            Value::Unchanged => Err(Undecodable),
        }
    }
}

/// A condition: true, false or, as None, unknown.
#[derive(Clone, Debug)]
pub(super) enum Condition {
    Const(Option<bool>),
    And(Vec<Condition>),
    Or(Vec<Condition>),
    Not(Box<Condition>),
    Compare {
        op: Comparison,
        left: Operand,
        right: Operand,
    },
    Distinct {
        negated: bool,
        left: Operand,
        right: Operand,
    },
    Between(Box<Range>),
    /// `arg IN (constants)`, sorted and without duplicates; `null` where one of them was NULL.
    InConstants {
        arg: Operand,
        constants: Vec<Datum<'static>>,
        null: bool,
    },
    /// The general IN: each element in its own form.
    In {
        arg: Operand,
        ty: Type,
        elements: Vec<(Form, Operand)>,
    },
    Like {
        case: Case,
        negated: bool,
        text: Operand,
        pattern: Operand,
    },
    /// Of a column as it comes, whatever its type.
    ColumnIsNull {
        negated: bool,
        slot: usize,
        composite: bool,
    },
    IsNull {
        negated: bool,
        arg: Operand,
    },
    IsTruth {
        truth: Truth,
        negated: bool,
        arg: Box<Condition>,
    },
    Quantified(Box<Quantified>),
    /// What Postgres says about the values in these slots.
    Delegated {
        delegated: Arc<Delegated>,
        slots: Box<[usize]>,
    },
    /// An operand of type bool.
    Value(Operand),
}

/// `left op ANY (array)`, or ALL: the left side is in the form of the test, elements in those of
/// their type.
#[derive(Clone, Debug)]
pub(super) struct Quantified {
    pub(super) all: bool,
    pub(super) test: Test,
    pub(super) left: Operand,
    pub(super) array: Operand,
    pub(super) element: Type,
}

/// BETWEEN: the operand is in the form of its type, the bounds in those of the comparisons.
#[derive(Clone, Debug)]
pub(super) struct Range {
    pub(super) negated: bool,
    pub(super) symmetric: bool,
    pub(super) arg: Operand,
    pub(super) ty: Type,
    pub(super) low: (Form, Operand),
    pub(super) high: (Form, Operand),
}

/// Something with a value.
#[derive(Clone, Debug)]
pub(super) enum Operand {
    Const(Option<Datum<'static>>),
    /// Decoded into `form`, or into the form of its own type.
    Column {
        slot: usize,
        ty: Type,
        form: Option<Form>,
    },
    /// The text of a column as it came: what casting it to text gives.
    ColumnText {
        slot: usize,
        blanks: bool,
    },
    Cast {
        arg: Box<Operand>,
        from: Type,
        to: Type,
    },
    /// From the form of its type into the form of a comparison.
    Formed {
        arg: Box<Operand>,
        ty: Type,
        form: Form,
    },
    Condition(Box<Condition>),
    Call {
        function: Box<Function>,
        args: Vec<Operand>,
        ty: Type,
    },
}

impl Condition {
    pub(super) fn evaluate(&self, row: &Row<'_>) -> Result<Option<bool>, Undecodable> {
        match self {
            Condition::Const(value) => Ok(*value),
            Condition::And(args) => chain(args, row, false),
            Condition::Or(args) => chain(args, row, true),
            Condition::Not(arg) => Ok(arg.evaluate(row)?.map(|value| !value)),
            Condition::Compare { op, left, right } => {
                let Some((left, right)) = strict(left.evaluate(row), right.evaluate(row))? else {
                    return Ok(None);
                };
                let ordering = left.compare(&right).ok_or(Undecodable)?;
                Ok(Some(op.accepts(ordering)))
            }
            Condition::Distinct { negated, left, right } => {
                let distinct = match (left.evaluate(row)?, right.evaluate(row)?) {
                    (Some(left), Some(right)) => left.compare(&right).ok_or(Undecodable)? != Ordering::Equal,
                    (None, None) => false,
                    _ => true,
                };
                Ok(Some(distinct != *negated))
            }
            Condition::Between(range) => range.evaluate(row),
            // Postgres does not look at the operand of an empty array.
            Condition::InConstants { constants, null, .. } if constants.is_empty() => {
                Ok((!null).then_some(false))
            }
            Condition::InConstants { arg, constants, null } => {
                let Some(value) = arg.evaluate(row)? else { return Ok(None) };
                let found =
                    constants.binary_search_by(|constant| constant.compare(&value).unwrap_or(Ordering::Less));
                Ok(if found.is_ok() { Some(true) } else { (!null).then_some(false) })
            }
            Condition::In { arg, ty, elements } => evaluate_in(arg, ty, elements, row),
            Condition::Like { case, negated, text, pattern } => {
                let Some((text, pattern)) = strict(text.evaluate(row), pattern.evaluate(row))? else {
                    return Ok(None);
                };
                Ok(Some(matches_like(*case, &text, &pattern)? != *negated))
            }
            Condition::ColumnIsNull { negated, slot, composite } => {
                Ok(Some(cell_is_null(row.cell(*slot)?, *composite, *negated)))
            }
            Condition::IsNull { negated, arg } => Ok(Some(arg.evaluate(row)?.is_none() != *negated)),
            Condition::IsTruth { truth, negated, arg } => {
                let holds = match truth {
                    Truth::True => arg.evaluate(row)? == Some(true),
                    Truth::False => arg.evaluate(row)? == Some(false),
                    Truth::Unknown => arg.evaluate(row)?.is_none(),
                };
                Ok(Some(holds != *negated))
            }
            Condition::Quantified(quantified) => quantified.evaluate(row),
            Condition::Delegated { delegated, slots } => {
                row.verdicts.ok_or(Undecodable)?.of(delegated, slots, row)
            }
            Condition::Value(operand) => match operand.evaluate(row)? {
                None => Ok(None),
                Some(Datum::Bool(value)) => Ok(Some(value)),
                Some(_) => Err(Undecodable),
            },
        }
    }
}

/// The operands of a strict operator: none where one of them is NULL, whatever the other is.
fn strict<'a>(
    left: Result<Option<Datum<'a>>, Undecodable>,
    right: Result<Option<Datum<'a>>, Undecodable>,
) -> Result<Option<(Datum<'a>, Datum<'a>)>, Undecodable> {
    match (left, right) {
        (Ok(None), _) | (_, Ok(None)) => Ok(None),
        (Ok(Some(left)), Ok(Some(right))) => Ok(Some((left, right))),
        (Err(error), _) | (_, Err(error)) => Err(error),
    }
}

/// AND and OR: `decisive` settles the chain, unknown stays unknown unless it is settled.
fn chain(args: &[Condition], row: &Row<'_>, decisive: bool) -> Result<Option<bool>, Undecodable> {
    decide(args.iter().map(|arg| arg.evaluate(row)), decisive)
}

fn decide(
    parts: impl IntoIterator<Item = Result<Option<bool>, Undecodable>>,
    decisive: bool,
) -> Result<Option<bool>, Undecodable> {
    let (mut unknown, mut failed) = (false, None);
    for part in parts {
        match part {
            Ok(Some(value)) if value == decisive => return Ok(Some(decisive)),
            Ok(Some(_)) => {}
            Ok(None) => unknown = true,
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        Some(error) => Err(error),
        None => Ok((!unknown).then_some(!decisive)),
    }
}

fn evaluate_in(
    arg: &Operand,
    ty: &Type,
    elements: &[(Form, Operand)],
    row: &Row<'_>,
) -> Result<Option<bool>, Undecodable> {
    let arg = arg.evaluate(row);
    if matches!(arg, Ok(None)) {
        return Ok(None);
    }
    // A list of one is a comparison: where that one is NULL, Postgres does not look at the operand.
    let equals = |(form, element): &(Form, Operand)| {
        let value = arg.as_ref().map(|value| value.as_ref().map(Datum::borrowed)).map_err(|error| *error);
        let Some((value, element)) = strict(value, element.evaluate(row))? else { return Ok(None) };
        let value = formed(value, ty, *form).ok_or(Undecodable)?;
        Ok(Some(value.compare(&element).ok_or(Undecodable)?.is_eq()))
    };
    decide(elements.iter().map(equals), true)
}

fn matches_like(case: Case, text: &Datum<'_>, pattern: &Datum<'_>) -> Result<bool, Undecodable> {
    let (Datum::Text(text), Datum::Text(pattern)) = (text, pattern) else { return Err(Undecodable) };
    let matched = match case {
        Case::Kept => like::matches(text, pattern),
        Case::Folded => like::matches(&like::fold(text), &like::fold(pattern)),
        Case::FoldedAscii => like::matches(&text.to_ascii_lowercase(), &pattern.to_ascii_lowercase()),
    };
    matched.map_err(|_| Undecodable)
}

impl Quantified {
    fn evaluate(&self, row: &Row<'_>) -> Result<Option<bool>, Undecodable> {
        let Some(array) = self.array.evaluate(row)? else { return Ok(None) };
        let array = function::array(array)?;
        if array.elements.is_empty() {
            return Ok(Some(self.all));
        }
        let Some(left) = self.left.evaluate(row)? else { return Ok(None) };
        let holds = |element: Option<Datum<'_>>| {
            let Some(element) = element else { return Ok(None) };
            match self.test {
                Test::Compare { op, form } => {
                    let element = formed(element, &self.element, form).ok_or(Undecodable)?;
                    Ok(Some(op.accepts(left.compare(&element).ok_or(Undecodable)?)))
                }
                Test::Like { case, negated } => Ok(Some(matches_like(case, &left, &element)? != negated)),
            }
        };
        decide(array.elements.into_iter().map(holds), !self.all)
    }
}

impl Range {
    fn evaluate(&self, row: &Row<'_>) -> Result<Option<bool>, Undecodable> {
        let arg = self.arg.evaluate(row);
        let against = |(form, bound): &(Form, Operand)| -> Result<Option<Ordering>, Undecodable> {
            let arg = arg.as_ref().map(|arg| arg.as_ref().map(Datum::borrowed)).map_err(|error| *error);
            let Some((arg, bound)) = strict(arg, bound.evaluate(row))? else { return Ok(None) };
            let arg = formed(arg, &self.ty, *form).ok_or(Undecodable)?;
            arg.compare(&bound).map(Some).ok_or(Undecodable)
        };
        let (low, high) = (against(&self.low), against(&self.high));
        type Side = Result<Option<Ordering>, Undecodable>;
        let within = |low: Side, high: Side| {
            let above = low.map(|ordering| ordering.map(Ordering::is_ge));
            let below = high.map(|ordering| ordering.map(Ordering::is_le));
            decide([above, below], false)
        };
        let inside = if self.symmetric {
            decide([within(low, high), within(high, low)], true)
        } else {
            within(low, high)
        }?;
        Ok(inside.map(|inside| inside != self.negated))
    }
}

impl Comparison {
    fn accepts(self, ordering: Ordering) -> bool {
        match self {
            Comparison::Equal => ordering.is_eq(),
            Comparison::NotEqual => ordering.is_ne(),
            Comparison::Less => ordering.is_lt(),
            Comparison::LessOrEqual => ordering.is_le(),
            Comparison::Greater => ordering.is_gt(),
            Comparison::GreaterOrEqual => ordering.is_ge(),
        }
    }
}

impl Operand {
    pub(super) fn evaluate<'a>(&'a self, row: &Row<'a>) -> Result<Option<Datum<'a>>, Undecodable> {
        match self {
            Operand::Const(value) => Ok(value.as_ref().map(Datum::borrowed)),
            Operand::Column { slot, ty, form } => {
                let Some(text) = row.cell(*slot)? else { return Ok(None) };
                let datum = match form {
                    Some(form) => decode(text, ty, *form),
                    None => decode_natural(text, ty),
                };
                datum.map(Some).ok_or(Undecodable)
            }
            Operand::ColumnText { slot, blanks } => {
                let text = row.cell(*slot)?;
                Ok(text
                    .map(|text| Datum::Text(Cow::Borrowed(if *blanks { trim_blanks(text) } else { text }))))
            }
            Operand::Cast { arg, from, to } => match arg.evaluate(row)? {
                None => Ok(None),
                Some(value) => cast(value, from, to).map(Some).ok_or(Undecodable),
            },
            Operand::Formed { arg, ty, form } => match arg.evaluate(row)? {
                None => Ok(None),
                Some(value) => formed(value, ty, *form).map(Some).ok_or(Undecodable),
            },
            Operand::Condition(condition) => Ok(condition.evaluate(row)?.map(Datum::Bool)),
            Operand::Call { function, args, ty } => {
                function::call(function, args.iter().map(|arg| arg.evaluate(row)).collect(), ty)
            }
        }
    }
}

/// From the form of a type into the form of a comparison; None where Postgres' cast would fail.
pub(super) fn formed<'a>(datum: Datum<'a>, ty: &Type, form: Form) -> Option<Datum<'a>> {
    Some(match (form, datum) {
        (Form::Numeric, Datum::Integer(value)) => Datum::Numeric(Decimal::of_integer(value)),
        (Form::Float, Datum::Integer(value)) => Datum::Float(value as f64),
        (Form::Float, Datum::Numeric(value)) => Datum::Float(value.to_float()?),
        (Form::Text, Datum::Text(text)) if *ty != Type::Bpchar => Datum::Text(text),
        (Form::Text | Form::Blanks, Datum::Text(text)) => Datum::Text(match text {
            Cow::Borrowed(text) => Cow::Borrowed(trim_blanks(text)),
            Cow::Owned(text) => Cow::Owned(trim_blanks(&text).to_vec()),
        }),
        (Form::Interval, Datum::Moment(micros)) if *ty == Type::Time => {
            Datum::Interval(Interval { months: 0, days: 0, micros })
        }
        (Form::Timestamp, Datum::Moment(days)) if *ty == Type::Date => {
            Datum::Moment(calendar::date_to_timestamp(days))
        }
        (_, datum) => datum,
    })
}
