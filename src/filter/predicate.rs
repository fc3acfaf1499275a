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
    by_collation: bool,
}

/// How the texts of a table are ordered: by the collations of its columns and of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextOrder {
    /// By bytes, as under the collation "C"; or as if it were so.
    Bytes,
    /// In a way that only Postgres knows.
    Other,
}

/// How the case of letters is folded, by the same collations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaseFolding {
    /// Every letter of Unicode by itself, as `lower` and `upper` do here.
    Letters,
    /// ASCII letters only.
    Ascii,
    /// In a way that only Postgres knows: letters of a language, or several at once.
    Other,
}

/// What the collations of a table and of its database, and the encoding, do with texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Texts {
    pub order: TextOrder,
    pub case: CaseFolding,
    /// Texts may be equal that differ in their bytes, or characters are not what they are in UTF-8: only
    /// Postgres can compare two texts.
    pub opaque: bool,
}

impl Default for Texts {
    fn default() -> Texts {
        Texts { order: TextOrder::Bytes, case: CaseFolding::Letters, opaque: false }
    }
}

impl Texts {
    /// Whatever may be found of a table, but for the default.
    pub const OTHERS: [Texts; 7] = [
        Texts { order: TextOrder::Bytes, case: CaseFolding::Ascii, opaque: false },
        Texts { order: TextOrder::Other, case: CaseFolding::Letters, opaque: false },
        Texts { order: TextOrder::Other, case: CaseFolding::Other, opaque: false },
        Texts { order: TextOrder::Other, case: CaseFolding::Ascii, opaque: false },
        Texts { order: TextOrder::Bytes, case: CaseFolding::Other, opaque: false },
        // Of what is opaque nothing else matters.
        Texts { order: TextOrder::Other, case: CaseFolding::Other, opaque: true },
        Texts { order: TextOrder::Bytes, case: CaseFolding::Other, opaque: true },
    ];
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
        texts: Texts,
    ) -> Result<Predicate, WhereError> {
        let clause = parse_expression(text, STATEMENT_BYTES_MAX, DEPTH_MAX)?;
        let checker = Checker::new(relation, params, false).delegating().with_texts(texts);
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
        let Checked { expr, columns, delegated, by_collation } = checked;
        let condition = compile(&expr)?;
        let mut sql = String::new();
        print(&expr, &mut sql);
        Ok(Predicate { sql, columns, condition, expr, delegated, by_collation })
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

    /// Whether it compares texts, so that it matters what [`Texts`] there are.
    #[must_use]
    pub fn by_collation(&self) -> bool {
        self.by_collation
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
