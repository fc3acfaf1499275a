//! Finding shapes: by handle, by definition, by table.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use crate::domain::{DefinitionHash, Handle, Oid, Sid};
use crate::events::{Event, ProjectionName, Recorded, ShapeEvent};
use crate::projections::Projection;
use crate::state::{Life, State};

/// The shapes that have not been invalidated.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ShapeIndex {
    by_handle: BTreeMap<Handle, Sid>,
    by_definition: BTreeMap<DefinitionHash, BTreeSet<Sid>>,
    by_table: BTreeMap<Oid, BTreeSet<Sid>>,
    /// Invalidated, and not yet gone.
    removals: BTreeSet<Sid>,
    /// By the shape of an inner query.
    dependents: BTreeMap<Sid, BTreeSet<Sid>>,
}

impl ShapeIndex {
    #[must_use]
    pub fn by_handle(&self, handle: Handle) -> Option<Sid> {
        self.by_handle.get(&handle).copied()
    }

    /// Candidates only: equality of definitions decides.
    pub fn by_definition(&self, hash: DefinitionHash) -> impl Iterator<Item = Sid> + '_ {
        self.by_definition.get(&hash).into_iter().flatten().copied()
    }

    pub fn by_table(&self, oid: Oid) -> impl Iterator<Item = Sid> + '_ {
        self.by_table.get(&oid).into_iter().flatten().copied()
    }

    /// The tables that have shapes: what must be published.
    pub fn tables(&self) -> impl Iterator<Item = Oid> + '_ {
        self.by_table.keys().copied()
    }

    /// Shapes that are being taken apart.
    pub fn removals(&self) -> impl Iterator<Item = Sid> + '_ {
        self.removals.iter().copied()
    }

    /// The shapes that depend on this one and have not been invalidated.
    pub fn dependents(&self, sid: Sid) -> impl Iterator<Item = Sid> + '_ {
        self.dependents.get(&sid).into_iter().flatten().copied()
    }

    /// Number of shapes that have not been invalidated.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_handle.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_handle.is_empty()
    }

    /// Whether a part of it is what the state says.
    pub(super) fn agrees(&self, state: &State, part: RangeInclusive<Sid>) -> bool {
        let whole = *part.end() >= Sid(u32::MAX - 1);
        let shapes = super::part_of(state, part.clone());
        let ended = shapes.clone().filter(|(_, shape)| shape.life == Life::Invalidated).map(|(sid, _)| sid);
        let mut living = shapes.filter(|(_, shape)| shape.life != Life::Invalidated);
        let filed = |sid: Sid, sids: Option<&BTreeSet<Sid>>| sids.is_some_and(|sids| sids.contains(&sid));
        living.all(|(sid, shape)| {
            self.by_handle.get(&shape.handle) == Some(&sid)
                && filed(sid, self.by_definition.get(&shape.definition))
                && filed(sid, self.by_table.get(&shape.oid))
        }) && ended.eq(self.removals.range(part).copied())
            && self.by_handle.len() + self.removals.len() == state.shapes.len()
            // Nothing is filed that does not live: there are as many of all.
            && (!whole || self.filed(&self.by_definition) && self.filed(&self.by_table))
    }

    fn filed<K>(&self, map: &BTreeMap<K, BTreeSet<Sid>>) -> bool {
        map.values().map(BTreeSet::len).sum::<usize>() == self.by_handle.len()
    }

    #[cfg(any(test, feature = "test-hooks"))]
    pub(super) fn meddle(&mut self) {
        self.by_table.entry(Oid(0)).or_default().insert(Sid(u32::MAX - 1));
    }

    fn add(&mut self, sid: Sid, handle: Handle, definition: DefinitionHash, oid: Oid) {
        self.by_handle.insert(handle, sid);
        self.by_definition.entry(definition).or_default().insert(sid);
        self.by_table.entry(oid).or_default().insert(sid);
    }

    fn remove(&mut self, sid: Sid, handle: Handle, definition: DefinitionHash, oid: Oid) {
        self.by_handle.remove(&handle);
        remove_from(&mut self.by_definition, &definition, sid);
        remove_from(&mut self.by_table, &oid, sid);
    }

    fn depend(&mut self, sid: Sid, on: &[Sid]) {
        for dependency in on {
            self.dependents.entry(*dependency).or_default().insert(sid);
        }
    }
}

fn remove_from<K: Ord>(map: &mut BTreeMap<K, BTreeSet<Sid>>, key: &K, sid: Sid) {
    let emptied = map.get_mut(key).is_some_and(|sids| {
        sids.remove(&sid);
        sids.is_empty()
    });
    if emptied {
        map.remove(key);
    }
}

impl Projection for ShapeIndex {
    const NAME: ProjectionName = ProjectionName::ShapeIndex;

    fn apply(&mut self, state: &State, recorded: &Recorded) {
        let Event::Shape(event) = &recorded.event else { return };
        match event {
            ShapeEvent::Created { sid, handle, definition, oid } => {
                self.add(*sid, *handle, *definition, *oid)
            }
            ShapeEvent::Depends { sid, on } => self.depend(*sid, on),
            ShapeEvent::Invalidated { sid, .. } => {
                if let Some(shape) = state.shape(*sid) {
                    self.remove(*sid, shape.handle, shape.definition, shape.oid);
                    for dependency in &shape.dependencies {
                        remove_from(&mut self.dependents, dependency, *sid);
                    }
                    self.removals.insert(*sid);
                }
            }
            ShapeEvent::Gone { sid } => {
                self.removals.remove(sid);
            }
            ShapeEvent::Routed { .. }
            | ShapeEvent::Unrouted { .. }
            | ShapeEvent::PublicationReady { .. }
            | ShapeEvent::SnapshotStarted { .. }
            | ShapeEvent::SnapshotVisible { .. }
            | ShapeEvent::SnapshotCompleted { .. }
            | ShapeEvent::SnapshotFailed { .. }
            | ShapeEvent::Compacted { .. }
            | ShapeEvent::StepDone { .. } => {}
        }
    }

    fn recompute(state: &State) -> ShapeIndex {
        let mut index = ShapeIndex::default();
        for (sid, shape) in &state.shapes {
            if shape.life == Life::Invalidated {
                index.removals.insert(*sid);
            } else {
                index.add(*sid, shape.handle, shape.definition, shape.oid);
                index.depend(*sid, &shape.dependencies);
            }
        }
        index
    }
}
