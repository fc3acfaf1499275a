//! The where clause of a shape, checked and ready to decide.

use std::collections::BTreeMap;

use super::check::Checker;
use super::compile::compile;
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
        let (expr, columns) = Checker::new(relation, params, false).check(&clause)?;
        let condition = compile(&expr)?;
        let mut sql = String::new();
        print(&expr, &mut sql);
        Ok(Predicate { sql, columns, condition, expr })
    }

    /// Reads what [`Predicate::sql`] gave: `from_canonical(p.sql(), r)` has the same SQL again.
    ///
    /// # Errors
    /// The text is not canonical SQL over this relation: a column is gone, or has another type.
    pub fn from_canonical(sql: &str, relation: &Relation) -> Result<Predicate, WhereError> {
        let clause = parse_expression(sql, usize::MAX, CANONICAL_DEPTH_MAX)?;
        let params = BTreeMap::new();
        let (expr, columns) = Checker::new(relation, &params, true).check(&clause)?;
        let condition = compile(&expr)?;
        let mut sql = String::new();
        print(&expr, &mut sql);
        Ok(Predicate { sql, columns, condition, expr })
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
        let positions = self.positions(relation);
        self.condition.evaluate(&Row { tuple, before: None, positions: &positions }).ok()
    }

    /// Where the columns are in the tuples of a relation.
    fn positions(&self, relation: &WireRelation) -> Vec<Option<usize>> {
        self.columns.iter().map(|name| relation.position(name)).collect()
    }
}
