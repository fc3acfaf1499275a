//! Expressions that only Postgres evaluates: everything that is legal and immutable there and not
//! evaluated here.
//!
//! Such an expression is a leaf of the tree, kept as SQL. Whether Postgres takes it is asked once, when
//! a shape is defined; what it says about rows is looked up in [`Verdicts`], which the runtime fills.

mod constructors;
mod deparse;
mod verdicts;

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use rupg_sql::nodes::Node;

use super::error::WhereError;
use super::syntax::{CANONICAL_DEPTH_MAX, parse_expression};
use crate::domain::{Oid, Relation};
use deparse::{Deparsed, deparse};

pub use verdicts::{Question, ROWS_WANTED_MAX, RowValues, Verdict, Verdicts};

/// An expression over the columns of one table, of type bool, for Postgres.
#[derive(Clone, Debug)]
pub struct Delegated {
    relation: Oid,
    sql: String,
    columns: Vec<(String, Oid)>,
    refusal: WhereError,
    probe: String,
    suspects: Vec<i32>,
    uses: Vec<(String, i32)>,
    trials: Vec<(String, i32)>,
}

impl Delegated {
    /// The expression as SQL; `refusal` is why it is not evaluated here. None where it has no SQL of
    /// ours: then it is refused.
    pub(super) fn new(
        node: &Node,
        params: &BTreeMap<u32, String>,
        relation: &Relation,
        refusal: WhereError,
    ) -> Option<Arc<Delegated>> {
        let deparsed = deparse(node, params, relation).ok()?;
        Delegated::of(deparsed, relation, refusal)
    }

    /// The same of what would be native but for a collation: with a CASE around it, which nobody takes
    /// for native.
    pub(super) fn marked(
        node: &Node,
        params: &BTreeMap<u32, String>,
        relation: &Relation,
        refusal: WhereError,
    ) -> Option<Arc<Delegated>> {
        let mut deparsed = deparse(node, params, relation).ok()?;
        let mark = |sql: &str| format!("(CASE WHEN true THEN {sql} END)");
        (deparsed.sql, deparsed.probe) = (mark(&deparsed.sql), mark(&deparsed.probe));
        Delegated::of(deparsed, relation, refusal)
    }

    fn of(deparsed: Deparsed, relation: &Relation, refusal: WhereError) -> Option<Arc<Delegated>> {
        let Deparsed { sql, columns, probe, suspects, uses, trials, .. } = deparsed;
        // What was printed has to be the tree that was read.
        let again = parse_expression(&sql, usize::MAX, CANONICAL_DEPTH_MAX).ok()?;
        if deparse(&again, &BTreeMap::new(), relation).ok()?.sql != sql {
            return None;
        }
        let columns = columns
            .into_iter()
            .map(|name| relation.column(&name).map(|column| (name.clone(), column.type_oid)))
            .collect::<Option<_>>()?;
        let relation = relation.oid;
        Some(Arc::new(Delegated { relation, sql, columns, refusal, probe, suspects, uses, trials }))
    }

    /// The table that the columns belong to.
    #[must_use]
    pub fn relation(&self) -> Oid {
        self.relation
    }

    /// The expression, with every name in quotes and all parentheses.
    #[must_use]
    pub fn sql(&self) -> &str {
        &self.sql
    }

    /// Names and types of the columns that it uses, in the order of [`RowValues::cells`].
    #[must_use]
    pub fn columns(&self) -> &[(String, Oid)] {
        &self.columns
    }

    /// The answer to a client whose expression Postgres does not take, either.
    #[must_use]
    pub fn refusal(&self) -> &WhereError {
        &self.refusal
    }

    /// The expression with a parameter in place of each text that could mean the present time (`now`,
    /// `today`, …) if it is read as a date. None where there is no such text.
    #[must_use]
    pub fn probe(&self) -> Option<&str> {
        (!self.suspects.is_empty()).then_some(self.probe.as_str())
    }

    /// The refusal of the text that parameter `number` of the probe stands for, from 0: as a date it
    /// would mean another one in the snapshot than in the log.
    #[must_use]
    pub fn present_refused(&self, number: usize) -> WhereError {
        let location = self.suspects.get(number).copied().unwrap_or_default();
        WhereError::settled(location, "a date or time that depends on the present time is not supported")
    }

    /// Expressions without columns that fail where a pattern in this one is none: each matches the empty
    /// text against one of its patterns. Postgres would say so of the first row only.
    pub fn trials(&self) -> impl Iterator<Item = &str> {
        self.trials.iter().map(|(sql, _)| sql.as_str())
    }

    /// The refusal of the pattern in trial `number`, from 0, in the words of Postgres.
    #[must_use]
    pub fn pattern_refused(&self, number: usize, words: &str) -> WhereError {
        let location = self.trials.get(number).map_or(0, |(_, location)| *location);
        WhereError::settled(location, words)
    }

    /// The refusal of constants for which Postgres has an error, in its words.
    #[must_use]
    pub fn constants_refused(&self, words: &str) -> WhereError {
        let location = self.refusal.location().unwrap_or_default();
        WhereError::Settled { location, message: words.to_owned() }
    }

    /// Names of the functions, operators and types that it uses, in the order of the text.
    pub fn uses(&self) -> impl Iterator<Item = &str> {
        self.uses.iter().map(|(name, _)| name.as_str())
    }

    /// The refusal that names the first use of one of these, which are not immutable: it is the first
    /// refusal where that names it already.
    #[must_use]
    pub fn not_immutable(&self, names: &[String]) -> WhereError {
        // A function says more than an operator that has one volatile form among many.
        let named = |(name, _): &&(String, i32)| names.contains(name);
        let is_word = |(name, _): &&(String, i32)| name.starts_with(|c: char| c.is_alphabetic() || c == '_');
        let words = self.uses.iter().filter(is_word);
        let found = words.clone().find(named).or_else(|| self.uses.iter().find(named));
        let Some((name, location)) = found else {
            return self.refusal.clone();
        };
        let refusal = WhereError::settled(*location, format!("{name} is not immutable"));
        if refusal.location() == self.refusal.location() { self.refusal.clone() } else { refusal }
    }
}

/// By table and text: the same expression of two shapes is one.
impl Ord for Delegated {
    fn cmp(&self, other: &Delegated) -> Ordering {
        self.relation.cmp(&other.relation).then_with(|| self.sql.cmp(&other.sql))
    }
}

impl PartialOrd for Delegated {
    fn partial_cmp(&self, other: &Delegated) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Delegated {
    fn eq(&self, other: &Delegated) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Delegated {}
