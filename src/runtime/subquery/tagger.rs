//! Tags of rows that come from a query.

use crate::domain::{Handle, ShapeDefinition, Tuple, Value};
use crate::filter::subquery::{Clause, ClauseError, Digest, TagScope, Values};
use crate::shape_log::RowTags;

/// Gives rows their tags. A row that it is handed has, after the columns of the shape, what
/// [`RowTagger::extra_sql`] selects.
#[derive(Debug)]
pub struct RowTagger {
    clause: Clause,
    scope: TagScope,
    /// The columns of the shape, and those of the clause that it does not select.
    names: Vec<String>,
    positions: crate::filter::subquery::Positions,
    selected: usize,
}

impl RowTagger {
    /// `None` for a shape without inner queries.
    ///
    /// # Errors
    /// The clause is not one that this version reads.
    pub fn of(
        definition: &ShapeDefinition,
        stack: &str,
        handle: Handle,
    ) -> Result<Option<RowTagger>, ClauseError> {
        let Some(sql) = definition.where_sql.as_ref().filter(|_| !definition.dependencies.is_empty()) else {
            return Ok(None);
        };
        let clause = Clause::from_canonical(sql, &definition.relation, &definition.dependencies)?;
        let mut names = definition.columns.clone();
        for name in clause.columns() {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        let positions = clause.bind_names(&names);
        let (scope, selected) = (TagScope::new(stack, handle), definition.columns.len());
        Ok(Some(RowTagger { clause, scope, names, positions, selected }))
    }

    #[must_use]
    pub fn clause(&self) -> &Clause {
        &self.clause
    }

    #[must_use]
    pub fn scope(&self) -> &TagScope {
        &self.scope
    }

    /// The columns that are selected besides those of the shape.
    #[must_use]
    pub fn extra_columns(&self) -> &[String] {
        &self.names[self.selected..]
    }

    /// What is selected besides the columns of the shape: the columns that tags are made from, and
    /// whether each position is true. Postgres says so in the snapshot of the rows themselves.
    #[must_use]
    pub fn extra_sql(&self) -> Vec<String> {
        let columns = self.extra_columns().iter().map(|name| crate::domain::quote_identifier(name));
        columns.chain(self.clause.positions_sql().map(|sql| format!("({sql} IS TRUE)"))).collect()
    }

    /// The values of the shape's own columns, and the tags.
    #[must_use]
    pub fn tags<'r, 'v>(&self, row: &'r [Value<'v>]) -> (&'r [Value<'v>], RowTags) {
        let (cells, active) = row.split_at(self.names.len().min(row.len()));
        let seen = self.clause.look(&self.positions, &Tuple::from_values(cells), None);
        let active = active.iter().map(|value| *value == Value::Text(b"t")).collect();
        (&row[..self.selected.min(row.len())], RowTags { tags: self.clause.tags(&seen, &self.scope), active })
    }

    /// The hash by which the shape knows a value of an inner query.
    #[must_use]
    pub fn digest(&self, dependency: usize, values: &Values) -> Option<Digest> {
        let at = self.clause.member_positions().find(|at| at.dependency == dependency)?;
        Some(self.clause.digest(at.position, values, &self.scope))
    }

    #[must_use]
    pub fn positions(&self) -> &crate::filter::subquery::Positions {
        &self.positions
    }
}
