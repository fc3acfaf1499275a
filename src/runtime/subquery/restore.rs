//! Carrying on after a start: from the logs to what each shape was made with.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::domain::{Lsn, PgSnapshot, ShapeDefinition, Sid};
use crate::filter::subquery::{Clause, Digest, Values};
use crate::runtime::subquery::fold::{self, FoldError};
use crate::runtime::subquery::members::Members;
use crate::runtime::subquery::outer::Phase;
use crate::runtime::subquery::{RowTagger, Subqueries};
use crate::shape_log::ShapeView;
use crate::state::State;

/// What the journal says about the shapes that are restored.
#[derive(Debug, Default)]
pub struct Resumed {
    /// Every shape has all that was committed before.
    pub from: Lsn,
    shapes: BTreeMap<Sid, Restored>,
}

/// See [`Resumed`].
#[derive(Clone, Debug, Default)]
pub struct Restored {
    pub dependencies: Vec<Sid>,
    pub visible: Option<(PgSnapshot, Lsn)>,
}

impl Resumed {
    /// `from` is the position before which no shape owes anything.
    #[must_use]
    pub fn of(state: &State, from: Lsn) -> Resumed {
        let shapes = state.shapes.iter().map(|(sid, shape)| {
            let dependencies = shape.dependencies.clone();
            (*sid, Restored { dependencies, visible: shape.visible.clone() })
        });
        Resumed { from, shapes: shapes.collect() }
    }

    #[must_use]
    pub fn shape(&self, sid: Sid) -> Restored {
        self.shapes.get(&sid).cloned().unwrap_or_default()
    }
}

impl Subqueries {
    /// Folds the members of an inner query from its log.
    ///
    /// # Errors
    /// See [`FoldError`].
    pub fn restore_inner(
        &mut self,
        sid: Sid,
        definition: Arc<ShapeDefinition>,
        clause: Option<Arc<Clause>>,
        view: &ShapeView,
        (from, restored): (Lsn, &Restored),
    ) -> Result<(), FoldError> {
        let mut members = Members::new(definition, clause);
        let turned = fold::load(view, &mut members, from)?;
        members.visible.clone_from(&restored.visible);
        self.members.insert(sid, members);
        self.turned.insert(sid, turned);
        Ok(())
    }

    /// Finds out what a shape was made with. Its inner queries are here already.
    ///
    /// # Errors
    /// See [`FoldError`].
    pub fn restore_outer(
        &mut self,
        sid: Sid,
        definition: Arc<ShapeDefinition>,
        tagger: Arc<RowTagger>,
        view: &ShapeView,
        (from, restored): (Lsn, &Restored),
    ) -> Result<(), FoldError> {
        let (moved, last) = fold::moves(view, from)?;
        self.insert_outer(sid, definition, tagger, restored.dependencies.clone());
        let mut until = last;
        for (dependency, inner) in restored.dependencies.iter().enumerate() {
            until = until.max(self.folded(*inner));
            self.compare(sid, dependency, &moved);
        }
        if let Some(outer) = self.outers.get_mut(&sid) {
            outer.visible.clone_from(&restored.visible);
            outer.phase = Phase::Catching { until };
            let differs = outer.resync || outer.differing.iter().any(|differing| !differing.is_empty());
            if differs {
                self.hold_back(sid, true);
            }
        }
        self.advance();
        Ok(())
    }

    /// How far the logs of an inner query and of those inside it reach.
    fn folded(&self, sid: Sid) -> Lsn {
        let own = self.members.get(&sid).map_or(Lsn(0), |members| members.folded);
        let nested = self.outers.get(&sid).map_or(&[][..], |outer| &outer.dependencies);
        nested.iter().map(|inner| self.folded(*inner)).fold(own, Lsn::max)
    }

    /// Compares what an inner query gives with what the shape was made with: what the query gave before
    /// the stream begins again, and what the log of the shape says has moved since.
    fn compare(&mut self, sid: Sid, dependency: usize, moved: &fold::Turned) {
        let Some(outer) = self.outers.get(&sid) else { return };
        let inner = outer.dependencies[dependency];
        let Some(members) = self.members.get(&inner) else { return };
        let none = BTreeSet::new();
        let turned = self.turned.get(&inner).unwrap_or(&none);
        let negated = outer.is_negated(dependency);
        let Some(position) = outer.clause().member_positions().find(|at| at.dependency == dependency) else {
            return;
        };
        let mut moved: BTreeMap<Digest, bool> = moved
            .iter()
            .filter(|((at, _), _)| *at == position.position)
            .map(|((_, digest), to)| (*digest, *to != negated))
            .collect();
        let null: Values = Box::new([None]);
        let with_null = || {
            members.partial().next().is_some()
                || turned.iter().any(|values| values.iter().any(Option::is_none))
                || moved.contains_key(&outer.digest(dependency, &null))
        };
        if negated && !moved.is_empty() && (outer.width(dependency) > 1 || with_null()) {
            // The messages tell of values of the shape's rows, not of those of the inner query.
            if let Some(outer) = self.outers.get_mut(&sid) {
                outer.resync = true;
            }
            return;
        }
        let mut differing: Vec<(Digest, Option<Values>)> = Vec::new();
        for values in turned {
            let digest = outer.digest(dependency, values);
            let selected = members.is_selected(values);
            let made_with = moved.remove(&digest).unwrap_or(!selected);
            if made_with != selected {
                differing.push((digest, Some(values.clone())));
            }
        }
        if !moved.is_empty() {
            for values in members.values() {
                let digest = outer.digest(dependency, values);
                if moved.remove(&digest) == Some(false) {
                    differing.push((digest, Some(values.clone())));
                }
            }
            differing.extend(
                moved.into_iter().filter(|(_, made_with)| *made_with).map(|(digest, _)| (digest, None)),
            );
        }
        if let Some(outer) = self.outers.get_mut(&sid) {
            for (digest, values) in differing {
                outer.differing[dependency].insert(digest, values, Lsn(0));
            }
        }
    }
}
