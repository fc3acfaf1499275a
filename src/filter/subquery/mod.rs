//! Where clauses with inner queries: `x IN (SELECT …)`, contract 1.16 and 2.9.
//!
//! Such a clause is a tree of AND, OR and NOT over plain conditions and memberships (`parse`). It is
//! brought into disjunctive normal form (`dnf`), whose literals are the *positions* that clients know:
//! a row is in the shape if some disjunct has all of its positions true. What the inner queries give is
//! not known here: whoever evaluates a clause says what is a member and what is not.
//!
//! Values of inner queries and of the columns that are looked up among them are compared by their
//! canonical text (`tags`), which is equal exactly where Postgres' `=` says so. The hash of the same text
//! is what clients get as tags.

mod dnf;
mod evaluate;
mod parse;
mod tags;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;

use super::error::WhereError;
use super::program::Condition;
use super::syntax::{CANONICAL_DEPTH_MAX, DEPTH_MAX, STATEMENT_BYTES_MAX, parse_expression};
use super::types::Type;
use crate::domain::{Relation, RelationName, ShapeDefinition};

pub use evaluate::{Membership, Positions, RowPositions};
pub use tags::{Digest, Selection, TagScope, Values};

/// Most disjuncts of a clause: contract 2.9.
pub const DISJUNCTS_MAX: usize = 100;

/// The tables of inner queries, by name.
pub type Relations = BTreeMap<RelationName, Relation>;

/// Why a clause was refused, and of which parameter that is told: an inner query is a shape of its own,
/// with errors of its own.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ClauseError {
    /// `where`, `table` or `columns`.
    pub field: &'static str,
    pub message: String,
}

impl From<WhereError> for ClauseError {
    fn from(error: WhereError) -> ClauseError {
        ClauseError { field: "where", message: error.to_string() }
    }
}

/// A where clause with inner queries over one relation.
#[derive(Clone, Debug)]
pub struct Clause {
    sql: String,
    columns: Vec<String>,
    /// All literals of all disjuncts, from left to right: their index is their position.
    literals: Vec<Literal>,
    disjuncts: Vec<Range<usize>>,
    dependencies: Vec<ShapeDefinition>,
    ordered: Vec<RelationName>,
}

/// One position.
#[derive(Clone, Debug)]
struct Literal {
    /// As SQL, negation included.
    sql: String,
    negated: bool,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    Plain(Condition),
    Member { dependency: usize, left: Vec<LeftColumn> },
}

/// A column that is looked up in an inner query.
#[derive(Clone, Debug)]
struct LeftColumn {
    slot: usize,
    name: String,
    ty: Type,
}

/// A position that asks for membership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberPosition {
    pub position: usize,
    pub dependency: usize,
    pub negated: bool,
    /// Names of the columns that are looked up.
    pub columns: Vec<String>,
    /// The canonical texts of its values are literals of their types.
    pub literal: bool,
}

/// Whether a clause has an inner query; false where it cannot be read.
#[must_use]
pub fn has_subquery(text: &str) -> bool {
    super::subset::has_subquery(text)
}

/// The tables of all inner queries of a clause, nested ones included: what has to be known before
/// [`Clause::parse`].
///
/// # Errors
/// The clause is not one expression, or an inner query is not of one table.
pub fn inner_tables(text: &str) -> Result<Vec<RelationName>, ClauseError> {
    let node = parse_expression(text, STATEMENT_BYTES_MAX, DEPTH_MAX)?;
    parse::tables(&node)
}

impl Clause {
    /// Checks the clause that a client sent, with its parameters by number.
    ///
    /// # Errors
    /// As [`super::Predicate::parse`], and those of contract 2.9.
    pub fn parse(
        text: &str,
        params: &BTreeMap<u32, String>,
        relation: &Relation,
        inner: &Relations,
    ) -> Result<Clause, ClauseError> {
        Clause::parse_ordered(text, params, relation, inner, &[])
    }

    /// The same, where texts of some tables are not ordered by their bytes. What compares their order is
    /// refused: there is nobody to leave it to.
    ///
    /// # Errors
    /// As [`Clause::parse`].
    pub fn parse_ordered(
        text: &str,
        params: &BTreeMap<u32, String>,
        relation: &Relation,
        inner: &Relations,
        other_order: &[RelationName],
    ) -> Result<Clause, ClauseError> {
        let node = parse_expression(text, STATEMENT_BYTES_MAX, DEPTH_MAX)?;
        let parser = parse::Parser { params, inner, other_order, canonical: false };
        Clause::of_tree(parser.clause(&node, relation)?)
    }

    /// Reads what [`Clause::sql`] gave. `dependencies` are those of the definition: they know the inner
    /// tables.
    ///
    /// # Errors
    /// The text is not canonical SQL over these relations.
    pub fn from_canonical(
        sql: &str,
        relation: &Relation,
        dependencies: &[ShapeDefinition],
    ) -> Result<Clause, ClauseError> {
        let mut inner = Relations::new();
        dependencies.iter().for_each(|dependency| collect(dependency, &mut inner));
        let node = parse_expression(sql, usize::MAX, CANONICAL_DEPTH_MAX)?;
        let params = BTreeMap::new();
        Clause::of_tree(
            parse::Parser { params: &params, inner: &inner, other_order: &[], canonical: true }
                .clause(&node, relation)?,
        )
    }

    fn of_tree(parsed: parse::Parsed) -> Result<Clause, ClauseError> {
        let parse::Parsed { tree, columns, dependencies, ordered } = parsed;
        let mut sql = String::new();
        tree.print(&dependencies, &mut sql);
        let (literals, disjuncts) = dnf::literals(&tree, &dependencies)?;
        Ok(Clause { sql, columns, literals, disjuncts, dependencies, ordered })
    }

    /// The canonical SQL: part of the identity of a shape, and the condition of its snapshot query.
    #[must_use]
    pub fn sql(&self) -> &str {
        &self.sql
    }

    /// Names of the columns that the clause uses, in the order of their slots.
    #[must_use]
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// The inner queries, in the order of their first appearance.
    #[must_use]
    pub fn dependencies(&self) -> &[ShapeDefinition] {
        &self.dependencies
    }

    /// The tables whose texts it orders, by bytes: those of inner queries included.
    #[must_use]
    pub fn orders_texts_of(&self) -> &[RelationName] {
        &self.ordered
    }

    /// Each position as SQL, in order: an expression that is true, false or NULL.
    pub fn positions_sql(&self) -> impl ExactSizeIterator<Item = &str> {
        self.literals.iter().map(|literal| literal.sql.as_str())
    }

    /// The positions that ask for membership, ascending.
    pub fn member_positions(&self) -> impl Iterator<Item = MemberPosition> + '_ {
        self.literals.iter().enumerate().filter_map(|(position, literal)| match &literal.test {
            Test::Plain(_) => None,
            Test::Member { dependency, left } => Some(MemberPosition {
                position,
                dependency: *dependency,
                negated: literal.negated,
                columns: left.iter().map(|column| column.name.clone()).collect(),
                literal: left.iter().all(|column| column.ty != Type::Interval),
            }),
        })
    }

    /// The plain conditions of the disjunct that a position belongs to, as SQL.
    pub fn plain_siblings(&self, position: usize) -> impl Iterator<Item = &str> {
        let disjunct = self.disjuncts.iter().find(|range| range.contains(&position)).cloned();
        self.literals[disjunct.unwrap_or(0..0)]
            .iter()
            .filter(|literal| matches!(literal.test, Test::Plain(_)))
            .map(|literal| literal.sql.as_str())
    }
}

/// The relations of an inner query and of those inside it.
fn collect(definition: &ShapeDefinition, inner: &mut Relations) {
    inner.insert(definition.relation.name.clone(), definition.relation.clone());
    definition.dependencies.iter().for_each(|dependency| collect(dependency, inner));
}
