//! From the typed tree to the program: constants are decoded and constant parts evaluated, once.

use std::sync::Arc;

use super::datum::Datum;
use super::decode::{decode, decode_natural};
use super::error::WhereError;
use super::expr::{self, Comparison, Expr, Literal, Test};
use super::like;
use super::program::{self, Condition, Operand, Range, Row, formed};
use super::types::{Form, Type};
use crate::domain::Tuple;

/// Compiles an expression of type bool.
///
/// # Errors
/// A constant part that fails: it would fail on every row.
pub(super) fn compile(expr: &Expr) -> Result<Condition, WhereError> {
    let condition = build(expr)?;
    if matches!(condition, Condition::Const(_)) || !expr.is_constant() {
        return Ok(condition);
    }
    without_row(|row| condition.evaluate(row)).map(Condition::Const).map_err(|_| failed(expr))
}

fn build(expr: &Expr) -> Result<Condition, WhereError> {
    // What nests is here; the rest has its own function, so that little is on the stack meanwhile.
    match expr {
        Expr::And(args) => chain(args).map(Condition::And),
        Expr::Or(args) => chain(args).map(Condition::Or),
        Expr::Not(arg) => compile(arg).map(|arg| Condition::Not(Box::new(arg))),
        Expr::IsTruth { truth, negated, arg } => {
            let (truth, negated) = (*truth, *negated);
            compile(arg).map(|arg| Condition::IsTruth { truth, negated, arg: Box::new(arg) })
        }
        leaf => build_leaf(leaf),
    }
}

fn build_leaf(expr: &Expr) -> Result<Condition, WhereError> {
    Ok(match expr {
        Expr::And(_) | Expr::Or(_) | Expr::Not(_) | Expr::IsTruth { .. } => build(expr)?,
        Expr::Column { .. }
        | Expr::Literal(_)
        | Expr::Cast { .. }
        | Expr::Implicit { .. }
        | Expr::Call(_) => Condition::Value(operand(expr, None)?),
        Expr::Quantified(quantified) => quantify(quantified)?,
        Expr::Compare { op, form, left, right } => Condition::Compare {
            op: *op,
            left: operand(left, Some(*form))?,
            right: operand(right, Some(*form))?,
        },
        Expr::Distinct { negated, form, left, right } => Condition::Distinct {
            negated: *negated,
            left: operand(left, Some(*form))?,
            right: operand(right, Some(*form))?,
        },
        Expr::Between(between) => Condition::Between(Box::new(Range {
            negated: between.negated,
            symmetric: between.symmetric,
            arg: operand(&between.arg, None)?,
            ty: between.arg.ty().clone(),
            low: (between.low.0, operand(&between.low.1, Some(between.low.0))?),
            high: (between.high.0, operand(&between.high.1, Some(between.high.0))?),
        })),
        Expr::In { arg, elements } => membership(arg, elements)?,
        Expr::Like { case, negated, text, pattern } => {
            let pattern_operand = operand(pattern, Some(Form::Text))?;
            if let Operand::Const(Some(Datum::Text(text))) = &pattern_operand
                && like::is_malformed(text)
            {
                return Err(failed(pattern));
            }
            // The text keeps its blanks: LIKE has an operator of its own for char(n).
            Condition::Like {
                case: *case,
                negated: *negated,
                text: operand(text, None)?,
                pattern: pattern_operand,
            }
        }
        Expr::Delegated { delegated, slots } => {
            Condition::Delegated { delegated: Arc::clone(delegated), slots: slots.as_slice().into() }
        }
        Expr::IsNull { negated, arg } => match &**arg {
            Expr::Column { slot, ty, .. } => Condition::ColumnIsNull {
                negated: *negated,
                slot: *slot,
                composite: matches!(ty, Type::Other { composite: true, .. }),
            },
            arg => Condition::IsNull { negated: *negated, arg: operand(arg, None)? },
        },
    })
}

/// The parts of an AND or OR. What Postgres is asked comes last: mostly it is settled by then.
fn chain(args: &[Expr]) -> Result<Vec<Condition>, WhereError> {
    let (delegated, own): (Vec<&Expr>, Vec<&Expr>) = args.iter().partition(|arg| arg.is_delegated());
    own.into_iter().chain(delegated).map(compile).collect()
}

/// `= ANY` and `<> ALL` of a constant are IN and NOT IN.
fn quantify(quantified: &expr::Quantified) -> Result<Condition, WhereError> {
    let form = match quantified.test {
        Test::Compare { form, .. } => Some(form),
        Test::Like { .. } => None,
    };
    let element = quantified.array.ty().element().cloned().unwrap_or(Type::Text);
    let (left, array) = (operand(&quantified.left, form)?, operand(&quantified.array, None)?);
    let membership = match (quantified.test, quantified.all) {
        (Test::Compare { op: Comparison::Equal, form }, false) => Some((form, false)),
        (Test::Compare { op: Comparison::NotEqual, form }, true) => Some((form, true)),
        _ => None,
    };
    if let (Some((form, negated)), Operand::Const(Some(Datum::Array(array)))) = (membership, &array) {
        let form_all = |element: &Option<Datum<'static>>| match element {
            None => Some(None),
            Some(value) => formed(value.clone(), &expr_element(quantified), form).map(Some),
        };
        let elements = array.elements.iter().map(form_all).collect::<Option<Vec<_>>>();
        let elements = elements.ok_or_else(|| failed(&quantified.array))?;
        let membership = in_constants(left, elements);
        return Ok(if negated { Condition::Not(Box::new(membership)) } else { membership });
    }
    let (all, test) = (quantified.all, quantified.test);
    Ok(Condition::Quantified(Box::new(program::Quantified { all, test, left, array, element })))
}

fn expr_element(quantified: &expr::Quantified) -> Type {
    quantified.array.ty().element().cloned().unwrap_or(Type::Text)
}

/// Constants of one form, so that any two of them compare.
fn in_constants(arg: Operand, elements: Vec<Option<Datum<'static>>>) -> Condition {
    let null = elements.iter().any(Option::is_none);
    let mut constants: Vec<Datum<'static>> = elements.into_iter().flatten().collect();
    let order = |a: &Datum<'_>, b: &Datum<'_>| a.compare(b).unwrap_or(std::cmp::Ordering::Equal);
    constants.sort_by(order);
    constants.dedup_by(|a, b| order(a, b).is_eq());
    Condition::InConstants { arg, constants, null }
}

fn membership(arg: &Expr, elements: &[(Form, Expr)]) -> Result<Condition, WhereError> {
    let one_form =
        elements.first().map(|(form, _)| *form).filter(|form| elements.iter().all(|(f, _)| f == form));
    let operands = elements
        .iter()
        .map(|(form, element)| Ok((*form, operand(element, Some(*form))?)))
        .collect::<Result<Vec<_>, WhereError>>()?;
    let all_constant = operands.iter().all(|(_, operand)| matches!(operand, Operand::Const(_)));
    let Some(form) = one_form.filter(|_| all_constant) else {
        return Ok(Condition::In { arg: operand(arg, None)?, ty: arg.ty().clone(), elements: operands });
    };
    let elements = operands.into_iter().map(|(_, operand)| match operand {
        Operand::Const(constant) => constant,
        _ => None,
    });
    Ok(in_constants(operand(arg, Some(form))?, elements.collect()))
}

/// The value of a constant expression, NULL inside. None where it is not constant.
pub(super) fn constant(expr: &Expr, form: Option<Form>) -> Option<Option<Datum<'static>>> {
    match operand(expr, form).ok()? {
        Operand::Const(value) => Some(value),
        _ => None,
    }
}

/// An operand in `form`, or in the form of its own type.
pub(super) fn operand(expr: &Expr, form: Option<Form>) -> Result<Operand, WhereError> {
    let natural = match expr {
        Expr::Literal(literal) => return literal_operand(literal, form).ok_or_else(|| failed(expr)),
        Expr::Column { slot, ty, .. } => return Ok(Operand::Column { slot: *slot, ty: ty.clone(), form }),
        Expr::Cast { arg, to, .. } | Expr::Implicit { arg, to, .. } => cast_operand(arg, to)?,
        Expr::Call(call) => Operand::Call {
            function: Box::new(call.function.clone()),
            args: call.args.iter().map(|arg| operand(arg, None)).collect::<Result<_, _>>()?,
            ty: call.ty.clone(),
        },
        condition => Operand::Condition(Box::new(compile(condition)?)),
    };
    let Some(form) = form.filter(|form| needs_forming(expr.ty(), *form)) else { return fold(natural, expr) };
    fold(Operand::Formed { arg: Box::new(natural), ty: expr.ty().clone(), form }, expr)
}

fn needs_forming(ty: &Type, form: Form) -> bool {
    Form::of_type(ty) != Some(form) || form == Form::Blanks
}

fn literal_operand(literal: &Literal, form: Option<Form>) -> Option<Operand> {
    let Some(text) = literal.text() else { return Some(Operand::Const(None)) };
    // Checked in its own type first: '1.5'::int4 is no number of any form.
    let natural = decode_natural(text.as_bytes(), &literal.ty)?;
    let datum = match form {
        None => natural,
        Some(form) => decode(text.as_bytes(), &literal.ty, form)?,
    };
    Some(Operand::Const(Some(datum.into_owned())))
}

fn cast_operand(arg: &Expr, to: &Type) -> Result<Operand, WhereError> {
    let to_text = matches!(to, Type::Text | Type::Varchar);
    match arg {
        Expr::Column { slot, ty, .. } if to_text && *ty != Type::Bool => {
            Ok(Operand::ColumnText { slot: *slot, blanks: *ty == Type::Bpchar })
        }
        arg => {
            let (from, to) = (arg.ty().clone(), to.clone());
            Ok(Operand::Cast { arg: Box::new(operand(arg, None)?), from, to })
        }
    }
}

fn fold(operand: Operand, expr: &Expr) -> Result<Operand, WhereError> {
    if matches!(operand, Operand::Const(_)) || !expr.is_constant() {
        return Ok(operand);
    }
    without_row(|row| operand.evaluate(row).map(|value| value.map(Datum::into_owned)))
        .map(Operand::Const)
        .map_err(|_| cast_failed(expr))
}

fn without_row<T>(evaluate: impl FnOnce(&Row<'_>) -> T) -> T {
    let tuple = Tuple::from_values(&[]);
    evaluate(&Row { tuple: &tuple, before: None, positions: &[], verdicts: None })
}

fn failed(expr: &Expr) -> WhereError {
    WhereError::at(location(expr), "Failed to apply function to constant arguments")
}

fn cast_failed(expr: &Expr) -> WhereError {
    match expr {
        Expr::Cast { arg, to, .. } => match &**arg {
            Expr::Literal(literal) => {
                let value = match literal.ty.is_text() {
                    true => format!("{:?}", literal.text().unwrap_or_default()),
                    false => literal.text().unwrap_or_default().to_owned(),
                };
                let message = format!("could not cast value {value} from {} to {to}", literal.ty);
                WhereError::at(literal.location, message)
            }
            _ => failed(expr),
        },
        _ => failed(expr),
    }
}

fn location(expr: &Expr) -> i32 {
    match expr {
        Expr::Literal(literal) => literal.location,
        Expr::Cast { location, .. } | Expr::Implicit { location, .. } => *location,
        Expr::Call(call) => call.location,
        _ => 0,
    }
}
