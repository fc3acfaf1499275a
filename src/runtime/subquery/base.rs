//! What a shape begins with: what its inner queries gave in the snapshot of its rows.
//!
//! Everything that a shape is made with later, its log says; so both together tell exactly what it is made with
//! at the end of its log, whatever has become of the logs of its inner queries. The snapshot of the shape has it as
//! a note (see [`Note`]), but for what an inner query without inner queries of its own gives when that is much:
//! its log has each transaction at its own place, hence what it gave in any snapshot.

use std::collections::BTreeSet;

use crate::domain::ShapeDefinition;
use crate::filter::subquery::Values;
use crate::runtime::subquery::RowTagger;
use crate::runtime::subquery::note::Note;

/// Values that a shape notes of one inner query that has none itself: 5 KB. What a nested one gives is noted
/// in any case.
pub const GIVEN_VALUES_MAX: usize = 256;

/// The note for a snapshot in which the inner queries gave this. `max` is [`GIVEN_VALUES_MAX`].
#[must_use]
pub fn base_note(
    definition: &ShapeDefinition,
    tagger: &RowTagger,
    gave: &[BTreeSet<Values>],
    max: usize,
) -> Vec<u8> {
    let mut note = Note::default();
    for (dependency, gave) in gave.iter().enumerate() {
        let nested = !definition.dependencies[dependency].dependencies.is_empty();
        if nested || gave.len() <= max {
            note.dependencies.insert(dependency);
            let digests = gave.iter().filter_map(|values| tagger.digest(dependency, values));
            note.entries.extend(digests.map(|digest| (dependency, digest, true)));
        }
    }
    note.encode()
}
