//! Everything that is evaluated here, by name: from the tables that decide about it, so that a test over
//! all of it cannot forget one.

use std::collections::BTreeSet;

use super::expr::{Call, Case, Comparison, Expr, Syntax, Test, Truth};
use super::function::Function;
use super::functions::NAMED;
use super::predicate::Predicate;
use super::structure::JsonOp;
use super::types::{Form, Type};
use super::{calls, cast, operators};

/// Operators and constructs that are not resolved by the catalog of operators.
const STRUCTURAL: [&str; 34] = [
    "text || text",
    "array || array",
    "array || element",
    "element || array",
    "array @> array",
    "array <@ array",
    "array && array",
    "jsonb @> jsonb",
    "jsonb <@ jsonb",
    "ARRAY[]",
    "subscript",
    "slice",
    "coalesce()",
    "greatest()",
    "least()",
    "IS DISTINCT FROM",
    "IS NOT DISTINCT FROM",
    "BETWEEN",
    "NOT BETWEEN",
    "BETWEEN SYMMETRIC",
    "NOT BETWEEN SYMMETRIC",
    "IN",
    "LIKE",
    "NOT LIKE",
    "ILIKE",
    "NOT ILIKE",
    "= ANY",
    "= ALL",
    "LIKE ANY",
    "LIKE ALL",
    "IS NULL",
    "IS TRUE",
    "IS FALSE",
    "IS UNKNOWN",
];

const SCALARS: [Type; 17] = [
    Type::Bool,
    Type::Int2,
    Type::Int4,
    Type::Int8,
    Type::Float4,
    Type::Float8,
    Type::Numeric,
    Type::Text,
    Type::Varchar,
    Type::Bpchar,
    Type::Name,
    Type::Uuid,
    Type::Date,
    Type::Time,
    Type::Timestamp,
    Type::Timestamptz,
    Type::Interval,
];

const FORMS: [Form; 14] = [
    Form::Bool,
    Form::Integer,
    Form::Numeric,
    Form::Float,
    Form::Text,
    Form::Blanks,
    Form::Uuid,
    Form::Date,
    Form::Time,
    Form::Timestamp,
    Form::Timestamptz,
    Form::Interval,
    Form::Array,
    Form::Json,
];

const COMPARISONS: [Comparison; 6] = [
    Comparison::Equal,
    Comparison::NotEqual,
    Comparison::Less,
    Comparison::LessOrEqual,
    Comparison::Greater,
    Comparison::GreaterOrEqual,
];

/// The names of all operators, functions, casts and predicates that are evaluated here: `int4 + int8`,
/// `- interval`, `lower()`, `text::date`, `Numeric <=` for a comparison in a form, `IS NULL`.
#[must_use]
pub fn native_operations() -> BTreeSet<String> {
    let mut names: BTreeSet<String> = STRUCTURAL.iter().map(|name| (*name).to_owned()).collect();
    for operator in operators::all().filter(|operator| calls::is_native(operator)) {
        names.insert(match operator.left {
            Some(left) => format!("{left} {} {}", operator.name, operator.right),
            None => format!("{} {}", operator.name, operator.right),
        });
    }
    // The functions `like` and `ilike` are their operators.
    names.extend(NAMED.iter().filter(|name| !name.contains("like")).map(|name| format!("{name}()")));
    for (from, to) in SCALARS.iter().flat_map(|from| SCALARS.iter().map(move |to| (from, to))) {
        // Clients cannot name these types (contract 2.2), but there are functions named like types for
        // texts, and `numericout` for integers.
        let hidden = matches!(to, Type::Numeric | Type::Bpchar | Type::Name);
        let named = from.is_text() && !to.is_text() || from.is_integer() && *to == Type::Numeric;
        if from != to && (!hidden && cast::exists(from, to) || named) {
            names.insert(format!("{from}::{to}"));
        }
    }
    for form in FORMS {
        for op in COMPARISONS.into_iter().filter(|op| !op.is_ordering() || form.is_ordered()) {
            names.insert(format!("{form:?} {}", op.operator()));
        }
    }
    names
}

impl Predicate {
    /// What of [`native_operations`] the clause is made of, each as often as it occurs.
    #[must_use]
    pub fn operations(&self) -> Vec<String> {
        let mut names = Vec::new();
        visit(&self.expr, &mut names);
        names
    }
}

fn visit(expr: &Expr, names: &mut Vec<String>) {
    let mut name = |name: &str| names.push(name.to_owned());
    match expr {
        Expr::Column { .. } | Expr::Literal(_) | Expr::Delegated { .. } => {}
        Expr::Cast { arg, to, .. } => {
            let array = |ty: &Type| ty.element().is_some();
            if !array(to) && !array(arg.ty()) && !matches!(arg.ty(), Type::Enum { .. } | Type::Other { .. }) {
                name(&format!("{}::{to}", arg.ty()));
            }
            visit(arg, names);
        }
        Expr::Implicit { arg, .. } | Expr::Not(arg) => visit(arg, names),
        Expr::Compare { op, form, left, right } => {
            name(&format!("{form:?} {}", op.operator()));
            visit(left, names);
            visit(right, names);
        }
        Expr::Distinct { negated, left, right, .. } => {
            name(if *negated { "IS NOT DISTINCT FROM" } else { "IS DISTINCT FROM" });
            visit(left, names);
            visit(right, names);
        }
        Expr::Between(between) => {
            let symmetric = if between.symmetric { " SYMMETRIC" } else { "" };
            name(&format!("{}BETWEEN{symmetric}", if between.negated { "NOT " } else { "" }));
            for part in [&between.arg, &between.low.1, &between.high.1] {
                visit(part, names);
            }
        }
        Expr::In { arg, elements } => {
            name("IN");
            visit(arg, names);
            elements.iter().for_each(|(_, element)| visit(element, names));
        }
        Expr::Like { case, negated, text, pattern } => {
            name(like(*case, *negated));
            visit(text, names);
            visit(pattern, names);
        }
        Expr::Quantified(quantified) => {
            let operator = match quantified.test {
                Test::Compare { .. } => "=",
                Test::Like { .. } => "LIKE",
            };
            name(&format!("{operator} {}", if quantified.all { "ALL" } else { "ANY" }));
            visit(&quantified.left, names);
            visit(&quantified.array, names);
        }
        Expr::Call(call) => {
            name(&call_name(call));
            call.args.iter().for_each(|arg| visit(arg, names));
        }
        Expr::And(args) | Expr::Or(args) => args.iter().for_each(|arg| visit(arg, names)),
        Expr::IsNull { arg, .. } => {
            name("IS NULL");
            visit(arg, names);
        }
        Expr::IsTruth { truth, arg, .. } => {
            name(match truth {
                Truth::True => "IS TRUE",
                Truth::False => "IS FALSE",
                Truth::Unknown => "IS UNKNOWN",
            });
            visit(arg, names);
        }
    }
}

fn like(case: Case, negated: bool) -> &'static str {
    match (case, negated) {
        (Case::Kept, false) => "LIKE",
        (Case::Kept, true) => "NOT LIKE",
        (Case::Folded | Case::FoldedAscii, false) => "ILIKE",
        (Case::Folded | Case::FoldedAscii, true) => "NOT ILIKE",
    }
}

fn call_name(call: &Call) -> String {
    let ty = |index: usize| call.args.get(index).map_or("", |arg| arg.ty().catalog_name());
    match call.syntax {
        Syntax::Infix(operator) => match &call.function {
            Function::Concatenate => "text || text".to_owned(),
            Function::ArrayCat => "array || array".to_owned(),
            Function::ArrayAppend => "array || element".to_owned(),
            Function::ArrayPrepend => "element || array".to_owned(),
            Function::ArrayContains | Function::ArrayContained | Function::ArrayOverlaps => {
                format!("array {operator} array")
            }
            Function::Json(JsonOp::Contains | JsonOp::Contained) => format!("jsonb {operator} jsonb"),
            _ => format!("{} {operator} {}", ty(0), ty(1)),
        },
        Syntax::Prefix(operator) => format!("{operator} {}", ty(0)),
        Syntax::Named(name) => format!("{name}()"),
        Syntax::Array | Syntax::ArrayCast => "ARRAY[]".to_owned(),
        Syntax::Subscripts => match call.function {
            Function::Slice(_) => "slice".to_owned(),
            _ => "subscript".to_owned(),
        },
    }
}
