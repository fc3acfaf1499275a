//! Carrying on after a start: from the logs to what each shape was made with.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::domain::{Lsn, PgSnapshot, ShapeDefinition, Sid};
use crate::filter::subquery::{Clause, Digest, Values};
use crate::runtime::subquery::fold::{self, Asking, FoldError};
use crate::runtime::subquery::members::Members;
use crate::runtime::subquery::note::Note;
use crate::runtime::subquery::outer::{Outer, Phase};
use crate::runtime::subquery::{RowTagger, Subqueries};
use crate::shape_log::ShapeView;
use crate::state::State;

/// What the journal says about the shapes that are restored.
#[derive(Debug, Default)]
pub struct Resumed {
    /// Everything up to here has been received before: it comes again to those only who owe it.
    pub received: Lsn,
    shapes: BTreeMap<Sid, Restored>,
}

/// The hash of a value, the value where it is known, and the transactions that turned it.
type Differs = (Digest, Option<Values>, BTreeSet<u32>);

/// See [`Resumed`].
#[derive(Clone, Debug, Default)]
pub struct Restored {
    pub dependencies: Vec<Sid>,
    /// It owes nothing from before.
    pub from: Lsn,
    pub visible: Option<(PgSnapshot, Lsn)>,
}

impl Resumed {
    #[must_use]
    pub fn of(state: &State) -> Resumed {
        let shapes = state.shapes.iter().map(|(sid, shape)| {
            let oldest = shape.pending.front().and_then(|seq| state.window.get(*seq));
            let from = oldest.map_or(Lsn(state.stream.received.0.saturating_add(1)), |txn| txn.lsn);
            let (dependencies, visible) = (shape.dependencies.clone(), shape.visible.clone());
            (*sid, Restored { dependencies, from, visible })
        });
        Resumed { received: state.stream.received, shapes: shapes.collect() }
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
        restored: &Restored,
    ) -> Result<(), FoldError> {
        let mut members = Members::new(definition, clause);
        let turned = fold::load(view, &mut members)?;
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
        (received, restored): (Lsn, &Restored),
    ) -> Result<(), FoldError> {
        self.insert_outer(sid, definition, tagger, restored.dependencies.clone());
        let Some(outer) = self.outers.get_mut(&sid) else { return Ok(()) };
        outer.visible.clone_from(&restored.visible);
        outer.restored = true;
        let read = fold::moves(view, &outer.asking()).and_then(|told| Ok((told, base(view)?)));
        let (told, base) = match read {
            Ok(read) => read,
            Err(error) => {
                self.remove(sid);
                return Err(error);
            }
        };
        outer.based.clone_from(&base.dependencies);
        outer.told = told.made_with.iter().map(|told| told.keys().copied().collect()).collect();
        // Its rows may be from beyond what the stream had brought.
        let opened = restored.visible.as_ref().map_or(Lsn(0), |(_, lsn)| *lsn);
        // An inner query may come again to what the shape has left behind, and owes no more.
        let mut until = told.last.max(received).max(opened);
        // Its snapshot may lack what it owes and have what came after. And what has turned back may have done so
        // in the middle of what the log has.
        let mut moves = opened >= restored.from;
        for (dependency, told) in told.made_with.into_iter().enumerate() {
            let inner = restored.dependencies[dependency];
            until = until.max(self.folded(inner));
            moves |= self.outers.get(&inner).is_some_and(|inner| inner.held_back);
            let turned = self.turned.get(&inner).into_iter().flatten();
            moves |= turned.clone().any(|turning| turning.tx >= restored.from);
            let differing = match base.dependencies.contains(&dependency) {
                true => self.differs(sid, dependency, made_with(&base, dependency, told)),
                false => self.infer(sid, dependency, told),
            };
            if let Some(outer) = self.outers.get_mut(&sid) {
                for (digest, values, xids) in differing {
                    outer.differing[dependency].insert(digest, values, Lsn(0), xids);
                }
            }
        }
        if let Some(outer) = self.outers.get_mut(&sid) {
            outer.phase = Phase::Catching { until };
            if moves || outer.to_follow(&self.members).next().is_some() {
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

    /// Where an inner query does not give what a shape was made with.
    fn differs(&self, sid: Sid, dependency: usize, mut made_with: BTreeSet<Digest>) -> Vec<Differs> {
        let Some(outer) = self.outers.get(&sid) else { return Vec::new() };
        let inner = outer.dependencies[dependency];
        let Some(members) = self.members.get(&inner) else { return Vec::new() };
        let mut differing = Vec::new();
        for values in members.values() {
            let digest = outer.digest(dependency, values);
            if !made_with.remove(&digest) {
                differing.push((digest, Some(values.clone()), BTreeSet::new()));
            }
        }
        // What is given no more, its log may still know by more than the hash.
        let turned = self.turned.get(&inner).filter(|_| !made_with.is_empty()).into_iter().flatten();
        for turning in turned {
            let digest = outer.digest(dependency, &turning.values);
            if made_with.remove(&digest) {
                differing.push((digest, Some(turning.values.clone()), turning.xids.clone()));
            }
        }
        differing.extend(made_with.into_iter().map(|digest| (digest, None, BTreeSet::new())));
        differing
    }

    /// The same where it is not noted what the query gave in the snapshot of the shape: what the log of the shape
    /// does not tell of is as it was there, and the log of the query tells what has turned since.
    fn infer(&self, sid: Sid, dependency: usize, mut told: BTreeMap<Digest, bool>) -> Vec<Differs> {
        let Some(outer) = self.outers.get(&sid) else { return Vec::new() };
        let inner = outer.dependencies[dependency];
        let Some(members) = self.members.get(&inner) else { return Vec::new() };
        let mut turned: BTreeMap<Digest, (&Values, bool, &BTreeSet<u32>)> = BTreeMap::new();
        for turning in self.turned.get(&inner).into_iter().flatten() {
            if outer.began_with(dependency, turning.tx, &turning.xids) {
                continue;
            }
            let digest = outer.digest(dependency, &turning.values);
            let (_, odd, xids) = turned.entry(digest).or_insert((&turning.values, false, &turning.xids));
            (*odd, *xids) = (!*odd, &turning.xids);
        }
        let mut differing = Vec::new();
        for (digest, (values, odd, xids)) in turned {
            let selected = members.is_selected(values);
            let made_with = told.remove(&digest).unwrap_or(selected != odd);
            if made_with != selected {
                differing.push((digest, Some(values.clone()), xids.clone()));
            }
        }
        if !told.is_empty() {
            for values in members.values() {
                let digest = outer.digest(dependency, values);
                if told.remove(&digest) == Some(false) {
                    differing.push((digest, Some(values.clone()), BTreeSet::new()));
                }
            }
            let given = told.into_iter().filter(|(_, made_with)| *made_with);
            differing.extend(given.map(|(digest, _)| (digest, None, BTreeSet::new())));
        }
        differing
    }
}

/// What the inner queries of a shape gave in its snapshot, as far as it was noted.
fn base(view: &ShapeView) -> Result<Note, FoldError> {
    Note::decode(&view.snapshot_note()?).ok_or(FoldError::Message)
}

/// What a shape is made with at the end of its log.
fn made_with(base: &Note, dependency: usize, told: BTreeMap<Digest, bool>) -> BTreeSet<Digest> {
    let of = |(of, digest, _): &(usize, Digest, bool)| (*of == dependency).then_some(*digest);
    let mut made_with: BTreeSet<Digest> = base.entries.iter().filter_map(of).collect();
    for (digest, given) in told {
        if given {
            made_with.insert(digest);
        } else {
            made_with.remove(&digest);
        }
    }
    made_with
}

impl Outer {
    /// Where each inner query is asked for first.
    fn asking(&self) -> Vec<Asking> {
        let asking = |dependency: usize| {
            let width = self.width(dependency);
            Asking {
                position: self.position(dependency),
                dependency,
                negated: self.is_negated(dependency),
                null: self.digest(dependency, &vec![None; width].into()),
                width,
            }
        };
        (0..self.dependencies.len()).map(asking).collect()
    }
}
