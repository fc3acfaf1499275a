//! The where clause of a shape, checked and ready to decide.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::check::{Checked, Checker};
use super::compile::compile;
use super::delegated::{Delegated, Verdicts};
use super::error::WhereError;
use super::expr::Expr;
use super::print::print;
use super::program::{Condition, Row};
use super::syntax::{CANONICAL_DEPTH_MAX, DEPTH_MAX, STATEMENT_BYTES_MAX, parse_expression};
use crate::domain::{Relation, Tuple, WireRelation};

/// A where clause over one relation.
#[derive(Clone, Debug)]
pub struct Predicate {
    sql: String,
    columns: Vec<String>,
    condition: Condition,
    pub(super) expr: Expr,
    delegated: Vec<Arc<Delegated>>,
    orders_text: bool,
}

/// How the texts of a table are ordered: by the collations of its columns and of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextOrder {
    /// By bytes, as under the collation "C"; or as if it were so.
    Bytes,
    /// In a way that only Postgres knows.
    Other,
}

impl Predicate {
    /// Checks the clause that a client sent, with its parameters by number.
    ///
    /// # Errors
    /// Whatever Postgres would refuse, and whatever this module does not evaluate: contract 2.
    pub fn parse(
        text: &str,
        params: &BTreeMap<u32, String>,
        relation: &Relation,
    ) -> Result<Predicate, WhereError> {
        let clause = parse_expression(text, STATEMENT_BYTES_MAX, DEPTH_MAX)?;
        Predicate::build(Checker::new(relation, params, false).check(&clause)?)
    }

    /// The same, but what this module does not evaluate is left to Postgres: [`Predicate::delegated`].
    /// It has to be asked whether it takes those parts before the predicate is used.
    ///
    /// # Errors
    /// What Postgres would refuse as far as it is known here: contract 2.
    pub fn parse_delegating(
        text: &str,
        params: &BTreeMap<u32, String>,
        relation: &Relation,
        order: TextOrder,
    ) -> Result<Predicate, WhereError> {
        let clause = parse_expression(text, STATEMENT_BYTES_MAX, DEPTH_MAX)?;
        let checker = Checker::new(relation, params, false).delegating();
        let checker = match order {
            TextOrder::Bytes => checker,
            TextOrder::Other => checker.with_other_order(),
        };
        let predicate = Predicate::build(checker.check(&clause)?)?;
        // Printed with all its parentheses it may be too deep to be read again.
        if let Some(part) = predicate.delegated.first()
            && Predicate::from_canonical(&predicate.sql, relation).is_err()
        {
            return Err(part.refusal().clone());
        }
        Ok(predicate)
    }

    fn build(checked: Checked) -> Result<Predicate, WhereError> {
        let Checked { expr, columns, delegated, orders_text } = checked;
        let condition = compile(&expr)?;
        let mut sql = String::new();
        print(&expr, &mut sql);
        Ok(Predicate { sql, columns, condition, expr, delegated, orders_text })
    }

    /// Reads what [`Predicate::sql`] gave: `from_canonical(p.sql(), r)` has the same SQL again.
    ///
    /// # Errors
    /// The text is not canonical SQL over this relation: a column is gone, or has another type.
    pub fn from_canonical(sql: &str, relation: &Relation) -> Result<Predicate, WhereError> {
        let clause = parse_expression(sql, usize::MAX, CANONICAL_DEPTH_MAX)?;
        let params = BTreeMap::new();
        Predicate::build(Checker::new(relation, &params, true).delegating().check(&clause)?)
    }

    /// Whether it asks for the order of texts, so that it matters what that is.
    #[must_use]
    pub fn orders_text(&self) -> bool {
        self.orders_text
    }

    /// The parts that Postgres evaluates.
    #[must_use]
    pub fn delegated(&self) -> &[Arc<Delegated>] {
        &self.delegated
    }

    /// The canonical SQL: part of the identity of a shape, and the condition of its snapshot query.
    #[must_use]
    pub fn sql(&self) -> &str {
        &self.sql
    }

    /// Names of the columns that the clause uses, in the order of their first use.
    #[must_use]
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Whether a row satisfies the clause; None where a value could not be decoded. For single rows:
    /// [`super::ShapeIndex`] binds the columns once instead.
    #[must_use]
    pub fn accepts(&self, relation: &WireRelation, tuple: &Tuple) -> Option<bool> {
        self.decide(relation, tuple).map(|value| value == Some(true))
    }

    /// What the clause says about a row, unknown being the inner None; the outer one where a value
    /// could not be decoded or an operation failed.
    #[must_use]
    pub fn decide(&self, relation: &WireRelation, tuple: &Tuple) -> Option<Option<bool>> {
        self.decide_with(relation, tuple, None)
    }

    /// The same with what Postgres has said about rows.
    #[must_use]
    pub fn decide_with(
        &self,
        relation: &WireRelation,
        tuple: &Tuple,
        verdicts: Option<&Verdicts>,
    ) -> Option<Option<bool>> {
        let positions = self.positions(relation);
        self.condition.evaluate(&Row { tuple, before: None, positions: &positions, verdicts }).ok()
    }

    /// Where the columns are in the tuples of a relation.
    fn positions(&self, relation: &WireRelation) -> Vec<Option<usize>> {
        self.columns.iter().map(|name| relation.position(name)).collect()
    }
}
