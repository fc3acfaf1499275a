//! What opening has to know about the entries: where they begin and end, and what is wrong in between.

use sled::Tree;

use crate::domain::EventId;

use super::error::JournalError;
use super::walk::{Step, Walk};

/// One pass over all entries.
#[derive(Default)]
pub(super) struct Survey {
    pub first: Option<u64>,
    /// Id after the last intact entry.
    pub end: Option<u64>,
    /// Faults with intact entries behind them, and the id with which those begin.
    pub faults: Vec<(u64, JournalError)>,
    /// Faults with nothing intact behind them: where, and which keys.
    pub torn: Option<(u64, Vec<sled::IVec>)>,
}

impl Survey {
    pub fn take(entries: &Tree, floor: EventId) -> Result<Survey, JournalError> {
        let mut survey = Survey::default();
        let mut pending: Vec<(u64, JournalError, Vec<sled::IVec>)> = Vec::new();
        for step in Walk::from(entries, floor)? {
            match step {
                Step::Fault { error: error @ JournalError::NewerFormat { .. }, .. } => return Err(error),
                // Without keys it is the store that failed, not a value.
                Step::Fault { error, keys, .. } if keys.is_empty() => return Err(error),
                Step::Fault { first, error, keys } => pending.push((first, error, keys)),
                Step::Intact { first, entries } => {
                    let damaged = !pending.is_empty();
                    survey.faults.extend(pending.drain(..).map(|(_, error, _)| (first, error)));
                    if let Some(end) = survey.end.filter(|end| *end != first && !damaged) {
                        let error = JournalError::Hole { expected: EventId(end), found: EventId(first) };
                        survey.faults.push((first, error));
                    }
                    survey.first.get_or_insert(first);
                    survey.end = Some(first + entries.len() as u64);
                }
            }
        }
        if let Some((at, ..)) = pending.first() {
            let at = survey.end.unwrap_or(*at);
            survey.torn = Some((at, pending.into_iter().flat_map(|(_, _, keys)| keys).collect()));
        }
        Ok(survey)
    }
}
