//! How the index finds the shapes of a clause: by the value of an expression, or by the clause itself.

use super::compile::{compile, constant, operand};
use super::datum::Datum;
use super::expr::{Call, Case, Comparison, Expr, Quantified, Syntax, Test, Truth};
use super::function::Function;
use super::json::Json;
use super::keys::{Key, key};
use super::like;
use super::print::print;
use super::program::{Condition, Operand};
use super::ranges::{Edge, Span};
use super::structure::JsonOp;
use super::types::{Form, Type};

/// An expression by whose value shapes are found.
#[derive(Debug)]
pub(super) struct Probed {
    /// Tells it from others: its SQL, and the form of its value.
    pub(super) name: String,
    pub(super) operand: Operand,
}

#[derive(Debug)]
pub(super) enum Want {
    Equal(Key),
    /// An array that has this element, or one that has all of several: the index takes the rarest.
    Element(Vec<Key>),
    /// An array without other elements than some: one way for each of them, and one, None, for the empty
    /// array. Any one element of a row leads to all shapes that allow it.
    Within(Option<Key>),
    Range(Span),
}

/// One way into a shape: a row has to have the value and to satisfy the residual.
#[derive(Debug)]
pub(super) struct Way<'e> {
    pub(super) probed: Probed,
    pub(super) want: Want,
    pub(super) residual: Vec<&'e Expr>,
    /// Many rows take it: any other way is better.
    pub(super) weak: bool,
}

/// The condition that all of some expressions hold, and its SQL.
pub(super) fn conjunction(args: &[&Expr]) -> Option<(String, Condition)> {
    let mut sql = String::new();
    let mut conditions = Vec::with_capacity(args.len());
    let (delegated, own): (Vec<&Expr>, Vec<&Expr>) = args.iter().partition(|arg| arg.is_delegated());
    for arg in own.into_iter().chain(delegated) {
        print(arg, &mut sql);
        sql.push('\n');
        // What compiled as a part of the clause compiles alone.
        conditions.push(compile(arg).ok()?);
    }
    Some((sql, if conditions.len() == 1 { conditions.remove(0) } else { Condition::And(conditions) }))
}

/// All ways into a shape; none at all where no row could satisfy it. None: it has to be asked itself.
pub(super) fn ways(expr: &Expr) -> Option<Vec<Way<'_>>> {
    match expr {
        Expr::Compare { op, form, left, right } => compare(*op, *form, left, right),
        Expr::In { arg, elements } => {
            let (form, _) = elements.first()?;
            if elements.iter().any(|(other, _)| other != form) {
                return None;
            }
            let constants = elements.iter().map(|(form, element)| constant(element, Some(*form)));
            equal_to_any(arg, *form, constants.collect::<Option<Vec<_>>>()?)
        }
        Expr::Between(between) if !between.negated && !between.symmetric => {
            let (form, low) = (between.low.0, constant(&between.low.1, Some(between.low.0))?);
            let high = constant(&between.high.1, Some(form)).filter(|_| between.high.0 == form)?;
            let (Some(low), Some(high)) = (low, high) else { return Some(Vec::new()) };
            let low = Some(Edge { key: key(&low)?, after: false });
            let high = Some(Edge { key: key(&high)?, after: true });
            Some(vec![way(&between.arg, Some(form), Want::Range(Span { low, high }), Vec::new())?])
        }
        Expr::Like { case, negated: false, text, pattern } => pattern_way(expr, *case, text, pattern),
        Expr::Quantified(quantified) if !quantified.all => any(quantified),
        Expr::Call(call) => contained(expr, call),
        Expr::And(args) => conjuncts(args),
        Expr::Or(args) => {
            let branches: Vec<Option<Vec<Way<'_>>>> = args.iter().map(ways).collect();
            // One branch that is found by a value makes it worth to ask the others apart: they are the
            // same for many shapes more often than the whole.
            if branches.iter().all(Option::is_none) {
                return None;
            }
            let alone = args.iter().zip(branches).map(|(arg, ways)| ways.or_else(|| truth(arg)));
            Some(alone.collect::<Option<Vec<_>>>()?.into_iter().flatten().collect())
        }
        Expr::IsNull { .. } => truth(expr),
        Expr::IsTruth { truth: Truth::True, negated: false, arg } => ways(arg),
        _ => None,
    }
}

fn way<'e>(expr: &Expr, form: Option<Form>, want: Want, residual: Vec<&'e Expr>) -> Option<Way<'e>> {
    if expr.is_constant() {
        return None;
    }
    let mut name = String::new();
    print(expr, &mut name);
    name.push_str(&format!("\n{}\n{form:?}", expr.ty()));
    Some(Way { probed: Probed { name, operand: operand(expr, form).ok()? }, want, residual, weak: false })
}

/// A condition as an expression that has to be true.
fn truth<'e>(condition: &Expr) -> Option<Vec<Way<'e>>> {
    // Postgres would be asked about every row.
    if condition.is_delegated() {
        return None;
    }
    let way = way(condition, None, Want::Equal(Key::Number(1)), Vec::new())?;
    Some(vec![Way { weak: true, ..way }])
}

fn compare<'e>(op: Comparison, form: Form, left: &Expr, right: &Expr) -> Option<Vec<Way<'e>>> {
    let (expr, value, op) = match (left.is_constant(), right.is_constant()) {
        (false, true) => (left, right, op),
        (true, false) => (right, left, op.mirrored()),
        _ => return None,
    };
    let Some(value) = constant(value, Some(form))? else { return Some(Vec::new()) };
    let value = key(&value)?;
    let edge = |after| Some(Edge { key: value.clone(), after });
    let want = match op {
        Comparison::NotEqual => return None,
        Comparison::Equal => Want::Equal(value),
        Comparison::Less => Want::Range(Span { low: None, high: edge(false) }),
        Comparison::LessOrEqual => Want::Range(Span { low: None, high: edge(true) }),
        Comparison::Greater => Want::Range(Span { low: edge(true), high: None }),
        Comparison::GreaterOrEqual => Want::Range(Span { low: edge(false), high: None }),
    };
    Some(vec![way(expr, Some(form), want, Vec::new())?])
}

fn equal_to_any<'e>(expr: &Expr, form: Form, values: Vec<Option<Datum<'static>>>) -> Option<Vec<Way<'e>>> {
    let mut keys = values.iter().flatten().map(key).collect::<Option<Vec<_>>>()?;
    keys.sort();
    keys.dedup();
    keys.into_iter().map(|key| way(expr, Some(form), Want::Equal(key), Vec::new())).collect()
}

/// `x = ANY (constant)` and `constant = ANY (array)`.
fn any<'e>(quantified: &Quantified) -> Option<Vec<Way<'e>>> {
    let Test::Compare { op: Comparison::Equal, form } = quantified.test else { return None };
    let element = quantified.array.ty().element()?;
    if Form::of_type(element) != Some(form) {
        return None;
    }
    match (quantified.left.is_constant(), quantified.array.is_constant()) {
        (false, true) => {
            let Some(Datum::Array(array)) = constant(&quantified.array, None)? else {
                return Some(Vec::new());
            };
            equal_to_any(&quantified.left, form, array.elements)
        }
        (true, false) => {
            let Some(value) = constant(&quantified.left, Some(form))? else { return Some(Vec::new()) };
            Some(vec![way(&quantified.array, None, Want::Element(vec![key(&value)?]), Vec::new())?])
        }
        _ => None,
    }
}

/// LIKE with a literal beginning; ILIKE by the lower case of both sides.
fn pattern_way<'e>(whole: &'e Expr, case: Case, text: &Expr, pattern: &Expr) -> Option<Vec<Way<'e>>> {
    let Some(Datum::Text(pattern)) = constant(pattern, Some(Form::Text))? else { return Some(Vec::new()) };
    let pattern = match case {
        Case::Kept => pattern.into_owned(),
        Case::Folded => like::fold(&pattern).into_owned(),
        Case::FoldedAscii => pattern.to_ascii_lowercase(),
    };
    let (prefix, rest) = like::literal_prefix(&pattern)?;
    let want = if rest.is_empty() {
        Want::Equal(Key::Bytes(prefix.into()))
    } else if prefix.is_empty() {
        return None;
    } else {
        let low = Some(Edge { key: Key::Bytes(prefix.as_slice().into()), after: false });
        let high = like::successor(prefix).map(|key| Edge { key: Key::Bytes(key.into()), after: false });
        Want::Range(Span { low, high })
    };
    let residual = if rest.is_empty() || rest == b"%" { Vec::new() } else { vec![whole] };
    let ascii = case == Case::FoldedAscii;
    let folded;
    let probed = match case {
        Case::Kept => text,
        Case::Folded | Case::FoldedAscii => {
            folded = Expr::Call(Box::new(Call {
                function: Function::Lower { ascii },
                // Not what it is in SQL: the two foldings, and a char(n) with its blanks, are apart.
                syntax: Syntax::Named(if ascii { "ascii_folded" } else { "folded" }),
                args: vec![text.clone()],
                ty: Type::Text,
                location: 0,
            }));
            &folded
        }
    };
    Some(vec![way(probed, None, want, residual)?])
}

/// `array @> constant`, `array && constant`, `array <@ constant`, and `jsonb @> object`.
fn contained<'e>(whole: &'e Expr, call: &'e Call) -> Option<Vec<Way<'e>>> {
    let mut within = false;
    let (outer, inner) = match (&call.function, &call.args[..]) {
        (Function::ArrayContained, [array, bound]) if bound.is_constant() => {
            within = true;
            (array, bound)
        }
        (Function::ArrayContains, [bound, array]) if bound.is_constant() => {
            within = true;
            (array, bound)
        }
        (Function::ArrayContains | Function::Json(JsonOp::Contains), [outer, inner])
        | (Function::ArrayContained | Function::Json(JsonOp::Contained), [inner, outer]) => (outer, inner),
        (Function::ArrayOverlaps, [a, b]) => {
            if a.is_constant() {
                (b, a)
            } else {
                (a, b)
            }
        }
        _ => return None,
    };
    if outer.is_constant() || !inner.is_constant() {
        return None;
    }
    match constant(inner, None)? {
        None => Some(Vec::new()),
        Some(Datum::Array(array)) if within => {
            let mut keys = array.elements.iter().flatten().map(key).collect::<Option<Vec<_>>>()?;
            keys.sort();
            keys.dedup();
            let each = |key| way(outer, None, Want::Within(Some(key)), vec![whole]);
            let empty = way(outer, None, Want::Within(None), Vec::new());
            keys.into_iter().map(each).chain([empty]).collect()
        }
        Some(Datum::Array(array)) if call.function == Function::ArrayOverlaps => {
            let mut keys = array.elements.iter().flatten().map(key).collect::<Option<Vec<_>>>()?;
            keys.sort();
            keys.dedup();
            keys.into_iter().map(|key| way(outer, None, Want::Element(vec![key]), Vec::new())).collect()
        }
        Some(Datum::Array(array)) => {
            // A NULL is in no array; all of them hold the empty one.
            let Some(keys) = array.elements.iter().map(|e| e.as_ref().map(key)).collect::<Option<Vec<_>>>()
            else {
                return Some(Vec::new());
            };
            let keys = keys.into_iter().collect::<Option<Vec<Key>>>().filter(|keys| !keys.is_empty())?;
            let residual = if keys.len() > 1 { vec![whole] } else { Vec::new() };
            Some(vec![way(outer, None, Want::Element(keys), residual)?])
        }
        Some(Datum::Json(json)) => {
            let mut path = Vec::new();
            let scalar = leaf(&json, &mut path)?;
            let steps = path.into_iter().map(|step| Some(Datum::Text(step.into_bytes().into()))).collect();
            let steps = super::array::Array::of_elements(steps);
            let mut name = String::new();
            print(outer, &mut name);
            name.push_str(&format!("\npath\n{steps:?}"));
            let args = vec![operand(outer, None).ok()?, Operand::Const(Some(Datum::Array(Box::new(steps))))];
            let function = Box::new(Function::Json(JsonOp::Path { text: false }));
            let probed = Probed { name, operand: Operand::Call { function, args, ty: Type::Jsonb } };
            Some(vec![Way { probed, want: Want::Equal(scalar), residual: vec![whole], weak: false }])
        }
        Some(_) => None,
    }
}

/// The first scalar inside objects, and the keys that lead to it: what contains the object has it
/// there, too.
fn leaf(json: &Json, path: &mut Vec<String>) -> Option<Key> {
    let Json::Object(fields) = json else { return None };
    for (name, value) in fields {
        path.push(name.clone());
        let found = match value {
            scalar if scalar.is_scalar() => key(&Datum::Json(std::sync::Arc::new(scalar.clone()))),
            value => leaf(value, path),
        };
        if found.is_some() {
            return found;
        }
        path.pop();
    }
    None
}

/// The best of the conjuncts decides the way, the others are its residual. Ranges of one expression
/// count as one.
fn conjuncts(args: &[Expr]) -> Option<Vec<Way<'_>>> {
    let mut best: Option<(usize, Vec<Way<'_>>)> = None;
    for (index, arg) in args.iter().enumerate() {
        let Some(found) = ways(arg) else { continue };
        if found.is_empty() {
            return Some(found);
        }
        let rank = |ways: &[Way<'_>]| {
            let range = ways.iter().any(|way| matches!(way.want, Want::Range(_)));
            let weak = ways.iter().any(|way| way.weak);
            (weak, range, ways.len())
        };
        if best.as_ref().is_none_or(|(_, before)| rank(&found) < rank(before)) {
            best = Some((index, found));
        }
    }
    let (chosen, mut found) = best?;
    let mut joined = vec![chosen];
    if let [Way { probed, want: Want::Range(span), residual, .. }] = &mut found[..]
        && residual.is_empty()
    {
        for (index, arg) in args.iter().enumerate().filter(|(index, _)| *index != chosen) {
            let Some(other) = ways(arg) else { continue };
            if let [Way { probed: same, want: Want::Range(other), residual, .. }] = &other[..]
                && same.name == probed.name
                && residual.is_empty()
            {
                let both = Span { low: other.low.clone(), high: other.high.clone() };
                *span = std::mem::take(span).intersect(both);
                joined.push(index);
            }
        }
    }
    let rest: Vec<&Expr> =
        args.iter().enumerate().filter(|(index, _)| !joined.contains(index)).map(|(_, arg)| arg).collect();
    for way in &mut found {
        way.residual.extend(&rest);
    }
    Some(found)
}
