//! What shapes were last asked for as: after each commit thousands of clients ask for the same shape in the
//! same words, and the words need to be understood once.

use std::hash::{BuildHasher, RandomState};

use arc_swap::ArcSwapOption;

use crate::domain::Handle;

use super::params::AskedShape;

/// Shapes that are remembered, about: two that meet in one place take turns.
const PLACES: usize = 1_024;

/// By handle, the words that were found to mean the shape that has it. A handle is never given twice, and
/// what it names never changes, so what was found once holds.
#[derive(Debug)]
pub(super) struct Known {
    places: Box<[ArcSwapOption<(Handle, AskedShape)>]>,
    hasher: RandomState,
}

impl Default for Known {
    fn default() -> Known {
        Known { places: (0..PLACES).map(|_| ArcSwapOption::empty()).collect(), hasher: RandomState::new() }
    }
}

impl Known {
    /// Whether these words are known to mean this shape.
    pub(super) fn is(&self, handle: Handle, asked: &AskedShape) -> bool {
        self.place(handle).load().as_ref().is_some_and(|known| known.0 == handle && known.1 == *asked)
    }

    /// These words mean this shape.
    pub(super) fn remember(&self, handle: Handle, asked: &AskedShape) {
        self.place(handle).store(Some(std::sync::Arc::new((handle, asked.clone()))));
    }

    fn place(&self, handle: Handle) -> &ArcSwapOption<(Handle, AskedShape)> {
        &self.places[(self.hasher.hash_one(handle) % PLACES as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_for_a_shape_are_known() {
        let known = Known::default();
        let handle = |micros| Handle { hash: 1, micros };
        let asked = |table: &str| AskedShape { table: Some(table.to_owned()), ..AskedShape::default() };
        assert!(!known.is(handle(1), &asked("items")));
        known.remember(handle(1), &asked("items"));
        assert!(known.is(handle(1), &asked("items")));
        assert!(!known.is(handle(2), &asked("items")) && !known.is(handle(1), &asked("other")));
        known.remember(handle(1), &asked("public.items"));
        assert!(known.is(handle(1), &asked("public.items")) && !known.is(handle(1), &asked("items")));
        for micros in 0..5 * PLACES as u64 {
            known.remember(handle(micros), &asked("items"));
            assert!(known.is(handle(micros), &asked("items")));
        }
    }
}
