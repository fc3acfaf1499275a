//! What a clause says about a row, given what is a member of its inner queries.

use super::super::program::Row;
use super::tags::{TagScope, Values, canonical};
use super::{Clause, Test};
use crate::domain::{Tuple, WireRelation};

/// What the inner queries of a clause give.
pub trait Membership {
    /// `values IN (inner query)`, as SQL has it: true, false or unknown.
    fn contains(&self, dependency: usize, values: &Values) -> Option<bool>;
}

impl<F: Fn(usize, &Values) -> Option<bool>> Membership for F {
    fn contains(&self, dependency: usize, values: &Values) -> Option<bool> {
        self(dependency, values)
    }
}

/// Where the columns of a clause are in a row.
#[derive(Clone, Debug)]
pub struct Positions(Vec<Option<usize>>);

/// A row as a clause sees it: what is looked up in inner queries, and what the other positions say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowPositions {
    /// By position: the values that are looked up; `None` for a plain condition, and where a value could
    /// not be decoded.
    pub values: Vec<Option<Values>>,
    /// By position: whether a plain condition is true; `false` for a membership.
    pub plain: Vec<bool>,
}

impl Clause {
    /// The places of the columns in the tuples of a relation.
    #[must_use]
    pub fn bind(&self, relation: &WireRelation) -> Positions {
        Positions(self.columns.iter().map(|name| relation.position(name)).collect())
    }

    /// The places of the columns in rows that consist of these columns.
    #[must_use]
    pub fn bind_names(&self, names: &[String]) -> Positions {
        let place = |name: &String| names.iter().position(|known| known == name);
        Positions(self.columns.iter().map(place).collect())
    }

    /// Looks at a row. `before` has the values that an update did not send.
    #[must_use]
    pub fn look(&self, positions: &Positions, tuple: &Tuple, before: Option<&Tuple>) -> RowPositions {
        let row = Row { tuple, before, positions: &positions.0, verdicts: None };
        let mut seen = RowPositions { values: Vec::new(), plain: Vec::new() };
        for literal in &self.literals {
            let (values, plain) = match &literal.test {
                Test::Plain(condition) => {
                    let value = condition.evaluate(&row).ok().flatten();
                    (None, value.is_some_and(|value| value != literal.negated))
                }
                Test::Member { left, .. } => {
                    let cell = |column: &super::LeftColumn| {
                        let cell = row.cell(column.slot).ok()?;
                        cell.map_or(Some(None), |text| canonical(text, &column.ty).map(Some))
                    };
                    (left.iter().map(cell).collect::<Option<Values>>(), false)
                }
            };
            seen.values.push(values);
            seen.plain.push(plain);
        }
        seen
    }

    /// Which positions are true: `active_conditions` of contract 1.16.
    #[must_use]
    pub fn active(&self, row: &RowPositions, members: &impl Membership) -> Vec<bool> {
        self.literals
            .iter()
            .zip(row.values.iter().zip(&row.plain))
            .map(|(literal, (values, plain))| match &literal.test {
                Test::Plain(_) => *plain,
                Test::Member { dependency, .. } => values
                    .as_ref()
                    .and_then(|values| members.contains(*dependency, values))
                    .is_some_and(|contained| contained != literal.negated),
            })
            .collect()
    }

    /// Whether a row with these positions true is in the shape.
    #[must_use]
    pub fn holds(&self, active: &[bool]) -> bool {
        self.disjuncts.iter().any(|range| active[range.clone()].iter().all(|active| *active))
    }

    /// The tags of a row: one for each disjunct.
    #[must_use]
    pub fn tags(&self, row: &RowPositions, scope: &TagScope) -> Vec<String> {
        let width = self.literals.len();
        self.disjuncts
            .iter()
            .map(|range| {
                let mut tag = String::new();
                for position in 0..width {
                    if position > 0 {
                        tag.push('/');
                    }
                    if range.contains(&position) {
                        self.slot(position, row, scope, &mut tag);
                    }
                }
                tag
            })
            .collect()
    }

    fn slot(&self, position: usize, row: &RowPositions, scope: &TagScope, tag: &mut String) {
        match (&self.literals[position].test, &row.values[position]) {
            (Test::Plain(_), _) => tag.push('1'),
            (Test::Member { .. }, Some(values)) => {
                tag.push_str(&self.digest(position, values, scope).to_string());
            }
            // A row that cannot be decoded is in no shape; should a disjunct without this position
            // hold, the slot matches no pattern.
            (Test::Member { .. }, None) => tag.push('0'),
        }
    }

    /// The hash of a value at a position, as tags and patterns have it.
    #[must_use]
    pub fn digest(&self, position: usize, values: &Values, scope: &TagScope) -> super::Digest {
        let names = match &self.literals[position].test {
            Test::Member { left, .. } => left.iter().map(|column| column.name.as_str()).collect(),
            Test::Plain(_) => Vec::new(),
        };
        scope.digest(&names, values)
    }

    /// Number of positions.
    #[must_use]
    pub fn width(&self) -> usize {
        self.literals.len()
    }
}
