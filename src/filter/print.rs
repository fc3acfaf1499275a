//! Canonical SQL: one text per tree, every operator in parentheses of its own, so that neither the
//! settings of a session nor the precedence of another grammar can change its meaning.

use super::expr::{Call, Case, Comparison, Expr, Literal, Quantified, Spelling, Syntax, Test, Truth};
use super::function::Function;
use super::types::Form;
use crate::domain::quote_identifier;

/// Prints `expr` to the end of `sql`.
pub(super) fn print(expr: &Expr, sql: &mut String) {
    match expr {
        Expr::Column { name, ty, domain: true, .. } => {
            sql.push('(');
            sql.push_str(&quote_identifier(name));
            sql.push_str("::");
            sql.push_str(&ty.to_string());
            sql.push(')');
        }
        Expr::Column { name, .. } => sql.push_str(&quote_identifier(name)),
        Expr::Literal(literal) => print_literal(literal, sql),
        Expr::Implicit { arg, .. } => print(arg, sql),
        Expr::Cast { arg, to, .. } => {
            sql.push('(');
            print(arg, sql);
            sql.push_str("::");
            sql.push_str(&to.to_string());
            sql.push(')');
        }
        Expr::Compare { op, form, left, right } => print_compare(*op, *form, left, right, sql),
        Expr::Distinct { negated, left, right, .. } => {
            let operator = if *negated { " IS NOT DISTINCT FROM " } else { " IS DISTINCT FROM " };
            print_list(&[left, right], operator, sql);
        }
        Expr::Between(between) => {
            sql.push('(');
            print_ordered(&between.arg, between.low.0, sql);
            sql.push_str(if between.negated { " NOT BETWEEN " } else { " BETWEEN " });
            sql.push_str(if between.symmetric { "SYMMETRIC " } else { "" });
            print(&between.low.1, sql);
            sql.push_str(" AND ");
            print(&between.high.1, sql);
            sql.push(')');
        }
        Expr::In { arg, elements } => {
            sql.push('(');
            print(arg, sql);
            sql.push_str(" IN ");
            print_list(&elements.iter().map(|(_, element)| element).collect::<Vec<_>>(), ", ", sql);
            sql.push(')');
        }
        Expr::Like { case, negated, text, pattern } => {
            let operator = match (*case != Case::Kept, negated) {
                (false, false) => " LIKE ",
                (false, true) => " NOT LIKE ",
                (true, false) => " ILIKE ",
                (true, true) => " NOT ILIKE ",
            };
            sql.push('(');
            print_folded(*case, text, pattern, sql);
            sql.push_str(operator);
            print(pattern, sql);
            sql.push(')');
        }
        Expr::Quantified(quantified) => print_quantified(quantified, sql),
        Expr::Call(call) => print_call(call, sql),
        Expr::Delegated { delegated, .. } => sql.push_str(delegated.sql()),
        Expr::And(args) => print_list(&args.iter().collect::<Vec<_>>(), " AND ", sql),
        Expr::Or(args) => print_list(&args.iter().collect::<Vec<_>>(), " OR ", sql),
        Expr::Not(arg) => {
            sql.push_str("(NOT ");
            print(arg, sql);
            sql.push(')');
        }
        Expr::IsNull { negated, arg } => {
            let test = if *negated { " IS NOT NULL" } else { " IS NULL" };
            match &**arg {
                Expr::Column { name, .. } => {
                    sql.push('(');
                    sql.push_str(&quote_identifier(name));
                    sql.push_str(test);
                    sql.push(')');
                }
                arg => print_postfix(arg, test, sql),
            }
        }
        Expr::IsTruth { truth, negated, arg } => {
            let test = match (truth, negated) {
                (Truth::True, false) => " IS TRUE",
                (Truth::True, true) => " IS NOT TRUE",
                (Truth::False, false) => " IS FALSE",
                (Truth::False, true) => " IS NOT FALSE",
                (Truth::Unknown, false) => " IS UNKNOWN",
                (Truth::Unknown, true) => " IS NOT UNKNOWN",
            };
            print_postfix(arg, test, sql);
        }
    }
}

fn print_quantified(quantified: &Quantified, sql: &mut String) {
    sql.push('(');
    let operator = match quantified.test {
        Test::Compare { op, form } => {
            if op.is_ordering() {
                print_ordered(&quantified.left, form, sql);
            } else {
                print(&quantified.left, sql);
            }
            op.operator()
        }
        Test::Like { case, negated } => {
            print_folded(case, &quantified.left, &quantified.array, sql);
            match (case != Case::Kept, negated) {
                (false, false) => "LIKE",
                (false, true) => "NOT LIKE",
                (true, false) => "ILIKE",
                (true, true) => "NOT ILIKE",
            }
        }
    };
    sql.push(' ');
    sql.push_str(operator);
    sql.push_str(if quantified.all { " ALL (" } else { " ANY (" });
    print(&quantified.array, sql);
    sql.push_str("))");
}

fn print_call(call: &Call, sql: &mut String) {
    let args: Vec<&Expr> = call.args.iter().collect();
    match call.syntax {
        Syntax::Infix(operator) => print_list(&args, &format!(" {operator} "), sql),
        Syntax::Prefix(operator) => {
            sql.push('(');
            sql.push_str(operator);
            sql.push(' ');
            args.iter().for_each(|arg| print(arg, sql));
            sql.push(')');
        }
        Syntax::Named(name) => {
            sql.push_str(name);
            sql.push('(');
            let ordered = matches!(call.function, Function::Greatest | Function::Least) && call.ty.is_text();
            for (index, arg) in args.iter().enumerate() {
                sql.push_str(if index == 0 { "" } else { ", " });
                let ascii = matches!(
                    call.function,
                    Function::Lower { ascii: true } | Function::Upper { ascii: true }
                );
                if index == 0 && (ordered || ascii && !arg.has_c_collation()) {
                    print_postfix(arg, " COLLATE \"C\"", sql);
                } else {
                    print(arg, sql);
                }
            }
            sql.push(')');
        }
        Syntax::Array | Syntax::ArrayCast => {
            let cast = call.syntax == Syntax::ArrayCast;
            sql.push_str(if cast { "(ARRAY[" } else { "ARRAY[" });
            for (index, arg) in args.iter().enumerate() {
                sql.push_str(if index == 0 { "" } else { ", " });
                print(arg, sql);
            }
            sql.push(']');
            if cast {
                sql.push_str("::");
                sql.push_str(&call.ty.to_string());
                sql.push(')');
            }
        }
        Syntax::Subscripts => print_subscripts(call, sql),
    }
}

fn print_subscripts(call: &Call, sql: &mut String) {
    let mut args = call.args.iter();
    let mut next = |given: bool, sql: &mut String| {
        if let Some(arg) = if given { args.next() } else { None } {
            print(arg, sql);
        }
    };
    sql.push('(');
    next(true, sql);
    sql.push(')');
    match &call.function {
        Function::Slice(bounds) => {
            for (low, high) in bounds {
                sql.push('[');
                next(*low, sql);
                // A colon and what follows must not be read as a cast or a parameter.
                sql.push_str(" : ");
                next(*high, sql);
                sql.push(']');
            }
        }
        _ => {
            for _ in 1..call.args.len() {
                sql.push('[');
                next(true, sql);
                sql.push(']');
            }
        }
    }
}

fn print_compare(op: Comparison, form: Form, left: &Expr, right: &Expr, sql: &mut String) {
    sql.push('(');
    if op.is_ordering() {
        print_ordered(left, form, sql);
    } else {
        print(left, sql);
    }
    sql.push(' ');
    sql.push_str(op.operator());
    sql.push(' ');
    print(right, sql);
    sql.push(')');
}

/// The left side of an ordering: a collation named on one side is that of the operator.
fn print_ordered(expr: &Expr, form: Form, sql: &mut String) {
    if form.is_collated() {
        print_postfix(expr, " COLLATE \"C\"", sql);
    } else {
        print(expr, sql);
    }
}

/// The left side of LIKE and its kin, with a mark where it is by the collation that only ASCII letters are
/// folded. What has the collation "C" by its type needs none.
fn print_folded(case: Case, left: &Expr, right: &Expr, sql: &mut String) {
    if case == Case::FoldedAscii && !left.has_c_collation() && !right.has_c_collation() {
        print_postfix(left, " COLLATE \"C\"", sql);
    } else {
        print(left, sql);
    }
}

fn print_list(args: &[&Expr], separator: &str, sql: &mut String) {
    for (index, arg) in args.iter().enumerate() {
        sql.push_str(if index == 0 { "(" } else { separator });
        print(arg, sql);
    }
    sql.push(')');
}

fn print_postfix(arg: &Expr, postfix: &str, sql: &mut String) {
    sql.push('(');
    print(arg, sql);
    sql.push_str(postfix);
    sql.push(')');
}

fn print_literal(literal: &Literal, sql: &mut String) {
    match &literal.spelling {
        // A minus sign would bind weaker than what follows.
        Spelling::Number(number) if number.starts_with('-') => {
            sql.push('(');
            sql.push_str(number);
            sql.push(')');
        }
        Spelling::Number(number) => sql.push_str(number),
        Spelling::Truth(truth) => sql.push_str(if *truth { "true" } else { "false" }),
        Spelling::Quoted(text) => print_string(text, sql),
        Spelling::Null => sql.push_str("NULL"),
        Spelling::Typed(text) => {
            print_string(text, sql);
            sql.push_str("::");
            sql.push_str(&literal.ty.to_string());
        }
        Spelling::TypedNull => {
            sql.push_str("NULL::");
            sql.push_str(&literal.ty.to_string());
        }
    }
}

/// A string with a backslash is printed as `E'…'`, which means the same whatever the session's
/// `standard_conforming_strings` is.
pub(super) fn print_string(text: &str, sql: &mut String) {
    if text.contains('\\') {
        sql.push('E');
    }
    sql.push('\'');
    for c in text.chars() {
        if matches!(c, '\'' | '\\') {
            sql.push(c);
        }
        sql.push(c);
    }
    sql.push('\'');
}
