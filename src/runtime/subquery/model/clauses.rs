//! Random where clauses with inner queries, and what SQL says about them.

use std::collections::BTreeMap;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

/// Tables `t0`, `t1`, `t2`, each with the columns `id`, `a` and `b`.
pub const TABLES: usize = 3;
pub const COLUMNS: [&str; 3] = ["id", "a", "b"];

/// By column.
pub type Row = [Option<i64>; 3];
/// The rows of each table, by id.
pub type Tables = [BTreeMap<i64, Row>; TABLES];

/// A condition on a row.
#[derive(Clone, Debug)]
pub enum Clause {
    Above(usize, i64),
    Is(usize, i64),
    IsNull(usize),
    In { left: Vec<usize>, not: bool, query: Box<Query> },
    And(Box<Clause>, Box<Clause>),
    Or(Box<Clause>, Box<Clause>),
    Not(Box<Clause>),
}

/// An inner query.
#[derive(Clone, Debug)]
pub struct Query {
    selects: Vec<usize>,
    table: usize,
    filter: Option<Clause>,
}

impl Clause {
    pub fn random(random: &mut StdRng, depth: usize) -> Clause {
        let part = |random: &mut StdRng| Box::new(Clause::literal(random, depth));
        match random.random_range(0..10) {
            0..=1 => Clause::And(part(random), part(random)),
            2..=4 => Clause::Or(part(random), part(random)),
            5 => Clause::Not(Box::new(Clause::random(random, depth))),
            _ => Clause::literal(random, depth),
        }
    }

    fn literal(random: &mut StdRng, depth: usize) -> Clause {
        let column = random.random_range(0..COLUMNS.len());
        if depth > 0 && random.random_bool(0.8) {
            let filter = random.random_bool(0.8).then(|| Clause::random(random, depth - 1));
            let wide = random.random_bool(0.2);
            let side = |random: &mut StdRng| match wide {
                true => vec![1, 2],
                false => vec![*[0, 1, 1, 2, 2].choose(random).expect("five")],
            };
            let (left, selects) = (side(random), side(random));
            let query = Query { selects, table: random.random_range(0..TABLES), filter };
            return Clause::In { left, not: random.random_bool(0.4), query: Box::new(query) };
        }
        match random.random_range(0..4) {
            0 => Clause::IsNull(column),
            1 => Clause::Is(column, random.random_range(0..5)),
            _ => Clause::Above(column, random.random_range(0..5)),
        }
    }

    pub fn sql(&self) -> String {
        let names = |columns: &[usize]| columns.iter().map(|at| COLUMNS[*at]).collect::<Vec<_>>().join(", ");
        match self {
            Clause::Above(column, value) => format!("{} > {value}", COLUMNS[*column]),
            Clause::Is(column, value) => format!("{} = {value}", COLUMNS[*column]),
            Clause::IsNull(column) => format!("{} IS NULL", COLUMNS[*column]),
            Clause::In { left, not, query } => {
                let filter = query.filter.as_ref().map(|filter| format!(" WHERE {}", filter.sql()));
                format!(
                    "({}) {}IN (SELECT {} FROM t{}{})",
                    names(left),
                    if *not { "NOT " } else { "" },
                    names(&query.selects),
                    query.table,
                    filter.unwrap_or_default()
                )
            }
            Clause::And(a, b) => format!("({} AND {})", a.sql(), b.sql()),
            Clause::Or(a, b) => format!("({} OR {})", a.sql(), b.sql()),
            Clause::Not(a) => format!("(NOT {})", a.sql()),
        }
    }

    /// As SQL has it: true, false or unknown.
    pub fn holds(&self, row: &Row, tables: &Tables) -> Option<bool> {
        match self {
            Clause::Above(column, value) => row[*column].map(|is| is > *value),
            Clause::Is(column, value) => row[*column].map(|is| is == *value),
            Clause::IsNull(column) => Some(row[*column].is_none()),
            Clause::In { left, not, query } => {
                let left: Vec<Option<i64>> = left.iter().map(|at| row[*at]).collect();
                let found = query.rows(tables).map(|other| same(&left, &other));
                let found = found.fold(Some(false), or);
                found.map(|found| found != *not)
            }
            Clause::And(a, b) => {
                or(a.holds(row, tables).map(|a| !a), b.holds(row, tables).map(|b| !b)).map(|any| !any)
            }
            Clause::Or(a, b) => or(a.holds(row, tables), b.holds(row, tables)),
            Clause::Not(a) => a.holds(row, tables).map(|holds| !holds),
        }
    }
}

impl Query {
    fn rows<'a>(&'a self, tables: &'a Tables) -> impl Iterator<Item = Vec<Option<i64>>> + 'a {
        let wanted =
            |row: &&Row| self.filter.as_ref().is_none_or(|filter| filter.holds(row, tables) == Some(true));
        tables[self.table].values().filter(wanted).map(|row| self.selects.iter().map(|at| row[*at]).collect())
    }
}

fn or(a: Option<bool>, b: Option<bool>) -> Option<bool> {
    match (a, b) {
        (Some(true), _) | (_, Some(true)) => Some(true),
        (Some(false), Some(false)) => Some(false),
        _ => None,
    }
}

fn same(left: &[Option<i64>], right: &[Option<i64>]) -> Option<bool> {
    let each = left.iter().zip(right).map(|(a, b)| Some((*a)? != (*b)?));
    each.fold(Some(false), or).map(|differs| !differs)
}
