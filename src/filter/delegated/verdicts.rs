//! What Postgres has said about rows, and what is still to be asked.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Delegated;
use crate::filter::program::{Row, Undecodable};

/// Questions that are collected before they are asked: expressions times rows.
pub const ROWS_WANTED_MAX: usize = 4_096;
/// Bytes of their values.
const BYTES_WANTED_MAX: usize = 8 << 20;

/// What an expression is about a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// True, false, or NULL.
    Value(Option<bool>),
    /// Postgres reported an error: the row is not in the shape.
    Error,
}

/// The values of the columns of an expression in one row. Rows that agree in them are one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RowValues(Box<[u8]>);

/// An expression, and the rows that it is needed for.
#[derive(Clone, Debug)]
pub struct Question {
    pub delegated: Arc<Delegated>,
    pub rows: Vec<RowValues>,
}

/// Verdicts by expression and row. An evaluation that lacks one fails, and the lack is noted.
#[derive(Debug, Default)]
pub struct Verdicts {
    known: BTreeMap<Arc<Delegated>, BTreeMap<RowValues, Verdict>>,
    known_count: usize,
    /// Noted behind a shared reference: evaluation is no change of anything else.
    wanted: RefCell<Wanted>,
}

#[derive(Debug, Default)]
struct Wanted {
    rows: BTreeMap<Arc<Delegated>, BTreeSet<RowValues>>,
    count: usize,
    bytes: usize,
    /// Lacks of this evaluation, whether they were noted before or not.
    misses: u64,
}

const NULL: u32 = u32::MAX;

impl RowValues {
    fn of<'a>(
        cells: impl Iterator<Item = Result<Option<&'a [u8]>, Undecodable>>,
    ) -> Result<Self, Undecodable> {
        let mut bytes = Vec::new();
        for cell in cells {
            match cell? {
                None => bytes.extend_from_slice(&NULL.to_le_bytes()),
                Some(cell) => {
                    let len = u32::try_from(cell.len()).ok().filter(|len| *len != NULL).ok_or(Undecodable)?;
                    bytes.extend_from_slice(&len.to_le_bytes());
                    bytes.extend_from_slice(cell);
                }
            }
        }
        Ok(RowValues(bytes.into()))
    }

    /// The values in the order of [`Delegated::columns`], None for NULL.
    #[must_use]
    pub fn cells(&self) -> Vec<Option<&[u8]>> {
        let (mut cells, mut rest) = (Vec::new(), &self.0[..]);
        while let Some((len, after)) = rest.split_first_chunk::<4>() {
            let len = u32::from_le_bytes(*len);
            if len == NULL {
                cells.push(None);
                rest = after;
            } else {
                let (cell, after) = after.split_at(len as usize);
                cells.push(Some(cell));
                rest = after;
            }
        }
        cells
    }
}

impl Verdicts {
    #[must_use]
    pub fn new() -> Verdicts {
        Verdicts::default()
    }

    /// What is known about a row.
    pub(in crate::filter) fn of(
        &self,
        delegated: &Arc<Delegated>,
        slots: &[usize],
        row: &Row<'_>,
    ) -> Result<Option<bool>, Undecodable> {
        let values = RowValues::of(slots.iter().map(|slot| row.cell(*slot)))?;
        match self.known.get(delegated).and_then(|rows| rows.get(&values)) {
            Some(Verdict::Value(value)) => Ok(*value),
            Some(Verdict::Error) => Err(Undecodable),
            None => {
                self.want(delegated, values);
                Err(Undecodable)
            }
        }
    }

    fn want(&self, delegated: &Arc<Delegated>, values: RowValues) {
        let mut wanted = self.wanted.borrow_mut();
        wanted.misses += 1;
        if wanted.count >= ROWS_WANTED_MAX || wanted.bytes >= BYTES_WANTED_MAX {
            return;
        }
        let bytes = values.0.len();
        if wanted.rows.entry(Arc::clone(delegated)).or_default().insert(values) {
            wanted.count += 1;
            wanted.bytes += bytes;
        }
    }

    /// Verdicts that were missed since the last call.
    pub fn take_misses(&self) -> u64 {
        std::mem::take(&mut self.wanted.borrow_mut().misses)
    }

    /// Whether as much is to be asked as is asked at once.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let wanted = self.wanted.borrow();
        wanted.count >= ROWS_WANTED_MAX || wanted.bytes >= BYTES_WANTED_MAX
    }

    /// What is to be asked; nothing is to be asked then.
    pub fn take_questions(&mut self) -> Vec<Question> {
        let wanted = std::mem::take(self.wanted.get_mut());
        let question = |(delegated, rows): (Arc<Delegated>, BTreeSet<RowValues>)| Question {
            delegated,
            rows: rows.into_iter().collect(),
        };
        wanted.rows.into_iter().map(question).collect()
    }

    pub fn learn(&mut self, delegated: &Arc<Delegated>, values: RowValues, verdict: Verdict) {
        let rows = self.known.entry(Arc::clone(delegated)).or_default();
        self.known_count += usize::from(rows.insert(values, verdict).is_none());
    }

    /// Number of verdicts that are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.known_count
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.known_count == 0
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Verdicts::default();
    }
}
