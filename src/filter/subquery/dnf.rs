//! Disjunctive normal form: contract 1.16. Not simplified, so that positions follow from the text.

use std::ops::Range;

use super::super::compile::compile;
use super::super::error::WhereError;
use super::super::expr::{Comparison, Expr};
use super::super::print::print;
use super::parse::{Member, Tree};
use super::{ClauseError, DISJUNCTS_MAX, Literal, Test};
use crate::domain::ShapeDefinition;

#[derive(Clone)]
enum Atom {
    Plain(Expr),
    Member(Member),
}

type Conjunction = Vec<(Atom, bool)>;

/// The literals of all disjuncts, and which of them belong together.
///
/// # Errors
/// Too many disjuncts, or an inner query that is asked for both ways.
pub(super) fn literals(
    tree: &Tree,
    dependencies: &[ShapeDefinition],
) -> Result<(Vec<Literal>, Vec<Range<usize>>), ClauseError> {
    let tree = opened(tree);
    let count = tree.count(false);
    if count > DISJUNCTS_MAX {
        return Err(WhereError::TooManyDisjuncts { found: count, max: DISJUNCTS_MAX }.into());
    }
    let (mut literals, mut disjuncts) = (Vec::new(), Vec::new());
    let mut polarity: Vec<Option<bool>> = vec![None; dependencies.len()];
    for conjunction in tree.expand(false) {
        let start = literals.len();
        for (atom, negated) in conjunction {
            if let Atom::Member(member) = &atom
                && *polarity[member.dependency].get_or_insert(negated) != negated
            {
                return Err(WhereError::BothPolarities.into());
            }
            literals.push(literal(atom, negated, dependencies)?);
        }
        disjuncts.push(start..literals.len());
    }
    Ok((literals, disjuncts))
}

fn literal(atom: Atom, negated: bool, dependencies: &[ShapeDefinition]) -> Result<Literal, WhereError> {
    let mut sql = String::new();
    let test = match atom {
        Atom::Plain(expr) => {
            print(&expr, &mut sql);
            Test::Plain(compile(&expr)?)
        }
        Atom::Member(member) => {
            member.print(dependencies, &mut sql);
            Test::Member { dependency: member.dependency, left: member.left }
        }
    };
    let sql = if negated { format!("(NOT {sql})") } else { sql };
    Ok(Literal { sql, negated, test })
}

/// What counts as AND and OR is opened, down to what is one literal.
enum Form {
    And(Vec<Form>),
    Or(Vec<Form>),
    Not(Box<Form>),
    Atom(Atom),
}

fn opened(tree: &Tree) -> Form {
    match tree {
        Tree::And(args) => Form::And(args.iter().map(opened).collect()),
        Tree::Or(args) => Form::Or(args.iter().map(opened).collect()),
        Tree::Not(arg) => Form::Not(Box::new(opened(arg))),
        Tree::Leaf(expr) => opened_leaf(expr),
        Tree::Member(member) => Form::Atom(Atom::Member(member.clone())),
    }
}

fn opened_leaf(expr: &Expr) -> Form {
    let compare = |op, form, left: &Expr, right: &Expr| {
        let (left, right) = (Box::new(left.clone()), Box::new(right.clone()));
        Form::Atom(Atom::Plain(Expr::Compare { op, form, left, right }))
    };
    match expr {
        Expr::And(args) => Form::And(args.iter().map(opened_leaf).collect()),
        Expr::Or(args) => Form::Or(args.iter().map(opened_leaf).collect()),
        Expr::Not(arg) => Form::Not(Box::new(opened_leaf(arg))),
        // Elements that were brought to another type with the operand are left as one.
        Expr::In { arg, elements } if !elements.is_empty() => Form::Or(
            elements.iter().map(|(form, element)| compare(Comparison::Equal, *form, arg, element)).collect(),
        ),
        Expr::Between(between) if !between.symmetric => {
            let ((low_form, low), (high_form, high)) = (&between.low, &between.high);
            let both = Form::And(vec![
                compare(Comparison::GreaterOrEqual, *low_form, &between.arg, low),
                compare(Comparison::LessOrEqual, *high_form, &between.arg, high),
            ]);
            if between.negated { Form::Not(Box::new(both)) } else { both }
        }
        expr => Form::Atom(Atom::Plain(expr.clone())),
    }
}

impl Form {
    /// Number of disjuncts; saturates.
    fn count(&self, negated: bool) -> usize {
        match (self, negated) {
            (Form::And(args), false) | (Form::Or(args), true) => {
                args.iter().fold(1, |product: usize, arg| product.saturating_mul(arg.count(negated)))
            }
            (Form::Or(args), false) | (Form::And(args), true) => {
                args.iter().fold(0, |sum: usize, arg| sum.saturating_add(arg.count(negated)))
            }
            (Form::Not(arg), negated) => arg.count(!negated),
            (Form::Atom(_), _) => 1,
        }
    }

    /// The disjuncts; [`Form::count`] of them.
    fn expand(&self, negated: bool) -> Vec<Conjunction> {
        match (self, negated) {
            (Form::And(args), false) | (Form::Or(args), true) => {
                args.iter().fold(vec![Vec::new()], |before, arg| {
                    let after = arg.expand(negated);
                    before
                        .iter()
                        .flat_map(|left| after.iter().map(|right| [left.clone(), right.clone()].concat()))
                        .collect()
                })
            }
            (Form::Or(args), false) | (Form::And(args), true) => {
                args.iter().flat_map(|arg| arg.expand(negated)).collect()
            }
            (Form::Not(arg), negated) => arg.expand(!negated),
            (Form::Atom(atom), negated) => vec![vec![(atom.clone(), negated)]],
        }
    }
}
