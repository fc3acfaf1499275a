//! What must hold after every step, after every crash, and at the end.

use crate::domain::{Lsn, Sid};
use crate::engine::Engine;
use crate::events::{Event, InvalidationCause, Recorded, ShapeEvent, decode, encode};
use crate::projections::forensics::Checker;
use crate::state::{Life, OwnerPhase, State};

use crate::testing::model::disk::ShapeFiles;
use crate::testing::model::postgres::definition;
use crate::testing::model::world::World;

impl World {
    /// After every step: the views, a replay and a checkpoint all say what the state says, and no
    /// rule of the journal is broken.
    pub fn check_step(&mut self, events: &[Recorded]) {
        let Some(process) = &self.process else { return };
        let (engine, mirror) = (&process.engine, &process.mirror);
        let drifted = engine.projections().drifted(engine.state());
        let replayed = mirror.state() == engine.state() && mirror.projections() == engine.projections();
        let sampled = self.stats.inputs.is_multiple_of(8);
        let bytes_differ =
            sampled && State::from_bytes(&engine.state().to_bytes()).as_ref() != Some(engine.state());
        let coded_otherwise = events.iter().any(|event| decode(&encode(event)).as_ref() != Ok(event));
        if !drifted.is_empty() {
            self.fail(format!("J2: {drifted:?} drifted"));
        }
        if !replayed {
            self.fail("a replay gives another state");
        }
        if bytes_differ {
            self.fail("a checkpoint reads back as another state");
        }
        if coded_otherwise {
            self.fail("an event reads back as another");
        }
        self.check_violations();
        for recorded in events {
            self.check_cause(recorded);
        }
    }

    pub fn check_violations(&mut self) {
        if let Some(violation) = self.checker.violations().first() {
            let why = violation.to_string();
            self.fail(why);
        }
    }

    /// Postgres sends everything again that was not acknowledged: as long as nobody meddles with the
    /// slot, no shape may be given up for want of data.
    fn check_cause(&mut self, recorded: &Recorded) {
        let missed = matches!(
            recorded.event,
            Event::Shape(ShapeEvent::Invalidated { cause: InvalidationCause::DataMissed, .. })
        );
        if missed && !self.slot_meddled {
            self.fail(format!("event {}: data is missed although the slot kept it", recorded.id));
        }
    }

    /// After a start: folding the journal, and a checkpoint and its tail, give the same.
    pub fn check_replay(&mut self) {
        let Some(process) = &self.process else { return };
        let same = process.engine.state() == process.mirror.state()
            && process.engine.projections() == process.mirror.projections()
            && *process.engine.state() == self.disk.state;
        if !same {
            self.fail("a checkpoint and its tail give another state than the journal");
        }
    }

    /// After a crash: what clients were told still holds (L2, L3, L6).
    pub fn check_promises(&mut self) {
        let state = &self.disk.state;
        let living = |micros: u64| {
            state.shapes.values().any(|shape| shape.handle.micros == micros && shape.life < Life::Invalidated)
        };
        let known = |micros: u64| {
            living(micros)
                || state.shapes.values().any(|shape| shape.handle.micros == micros)
                || state.tombstones.iter().any(|tombstone| tombstone.handle.micros == micros)
        };
        let forgotten = self.told.iter().find(|handle| !known(handle.micros)).copied();
        let revived = self.rotated.iter().find(|handle| living(handle.micros)).copied();
        if let Some(handle) = forgotten {
            self.fail(format!("L3: a client was told {handle}, and the journal does not know it"));
        }
        if let Some(handle) = revived {
            self.fail(format!("L6: a client was told that {handle} is gone, and it lives"));
        }
    }

    /// The commits that the log of a shape must hold, in this order: those that concern it and that
    /// its initial rows do not contain (N1). `None` while that is not determined, and where the server
    /// was replaced in between: until the stream notices, such a shape joins two histories.
    pub fn expected(&self, files: &ShapeFiles) -> Option<Vec<Lsn>> {
        let initial = files.initial.as_ref()?;
        let histories = [initial.history, files.history];
        (histories == [self.postgres.history; 2]).then(|| {
            let wanted = |lsn: &Lsn| !initial.contains.contains(lsn);
            let concerning = self.postgres.wal.iter().filter(|txn| txn.concerns(files.definition));
            concerning.map(|txn| txn.lsn).filter(wanted).collect()
        })
    }

    /// A log holds the first of what it must hold: nothing twice, nothing left out (S2).
    pub fn check_log(&mut self, sid: Sid) {
        let Some(files) = self.disk.shapes.get(&sid) else { return };
        let Some(expected) = self.expected(files) else { return };
        if !expected.starts_with(&files.log) {
            let why = format!("S2: the log of shape {sid} holds {:?} of {expected:?}", files.log);
            self.fail(why);
        }
    }

    /// Postgres may discard nothing that a living shape has not synced (F1): neither a shape of the
    /// running process, nor one that would live again after a crash.
    pub fn check_acknowledged(&mut self) {
        let Some(confirmed) = self.postgres.slot.map(|slot| slot.confirmed) else { return };
        let running = self.process.as_ref().map(|process| process.engine.state());
        let mut living: Vec<Sid> = Vec::new();
        for (state, at_least) in running
            .map(|state| (state, Life::Snapshotting))
            .into_iter()
            .chain([(&self.disk.state, Life::Live)])
        {
            if state.stream.system_id == Some(self.postgres.system_id)
                && state.stream.timeline == self.postgres.timeline
            {
                living.extend(
                    state
                        .shapes
                        .iter()
                        .filter(|(_, shape)| (at_least..Life::Invalidated).contains(&shape.life))
                        .map(|(sid, _)| *sid),
                );
            }
        }
        let live = self.disk.state.shapes.iter().filter(|(_, shape)| shape.life == Life::Live);
        let unwritten = live
            .map(|(sid, _)| *sid)
            .find(|sid| self.disk.shapes.get(sid).is_some_and(|files| !files.initial_complete));
        if let Some(sid) = unwritten {
            self.fail(format!("N6: shape {sid} lives, and its initial rows are not all there"));
        }
        for sid in living {
            let Some(files) = self.disk.shapes.get(&sid) else { continue };
            let Some(expected) = self.expected(files) else { continue };
            let lost = expected.iter().any(|lsn| *lsn < confirmed && !files.log.contains(lsn));
            let (oid, _) = definition(files.definition);
            let contains = |lsn: Lsn| files.initial.as_ref().is_some_and(|own| own.contains.contains(&lsn));
            let outlived = self
                .postgres
                .wal
                .iter()
                .any(|txn| txn.lsn < confirmed && txn.ends(oid) && !contains(txn.lsn));
            if lost && !self.slot_meddled {
                self.fail(format!(
                    "F1: {confirmed} is acknowledged and shape {sid} has not synced all before"
                ));
            }
            if outlived && !self.slot_meddled {
                self.fail(format!("F1: {confirmed} is acknowledged and shape {sid} lives in spite of it"));
            }
        }
    }

    /// R5: a writer that is not there any more is not held to be there for longer than an audit takes. One
    /// that nobody told of is found by the next, unless another was started after it was asked for.
    pub fn check_registry(&mut self) {
        let Some(process) = &mut self.process else { return };
        let registry = &process.engine.projections().registry;
        let missing: Vec<_> =
            registry.iter().filter(|writer| !process.writers.contains_key(writer)).collect();
        let still = missing.iter().find(|writer| process.missing.contains(writer)).copied();
        process.missing = missing;
        if let Some((sid, incarnation)) = still {
            self.fail(format!("R5: writer {incarnation} of shape {sid} is not there, and no audit finds it"));
        }
    }

    /// At the end, when nothing is left to do.
    pub fn check_end(&mut self) {
        let Some(process) = &self.process else { return self.fail("no process at the end") };
        let state = process.engine.state().clone();
        let mut checker = Checker::new();
        self.disk.history.iter().for_each(|recorded| checker.observe(recorded));
        let (folded, violations) = checker.finish();
        let replayed = Engine::replay(self.disk.history.iter().cloned(), self.policy.clone());
        if let Some(violation) = violations.first() {
            self.fail(violation.to_string());
        }
        if folded != state || replayed.state() != &state {
            self.fail("the journal as a whole folds to another state");
        }
        let sids: Vec<Sid> = state.shapes.keys().copied().collect();
        for sid in sids {
            self.check_shape_at_end(sid, state.shapes[&sid].life);
        }
    }

    fn check_shape_at_end(&mut self, sid: Sid, life: Life) {
        if life != Life::Live {
            return self.fail(format!("shape {sid} is {life:?} at the end"));
        }
        let Some(files) = self.disk.shapes.get(&sid) else {
            return self.fail(format!("shape {sid} lives and has no files"));
        };
        let Some(expected) = self.expected(files) else {
            return self.fail(format!("shape {sid} lives in a history that is over"));
        };
        let (oid, _) = definition(files.definition);
        let contains = |lsn: Lsn| files.initial.as_ref().is_some_and(|own| own.contains.contains(&lsn));
        let outlived = self.postgres.wal.iter().find(|txn| txn.ends(oid) && !contains(txn.lsn));
        let why = if files.log != expected {
            Some(format!("S2: the log of shape {sid} holds {:?}, not {expected:?}", files.log))
        } else {
            outlived.map(|txn| format!("shape {sid} lives in spite of {}", txn.lsn))
        };
        self.stats.compared_shapes += 1;
        self.stats.compared_txns += expected.len() as u64;
        if let Some(why) = why {
            self.fail(why);
        }
    }

    /// What is still to be done; `None` when nothing is.
    pub fn unfinished(&self, target: Lsn) -> Option<String> {
        let Some(process) = &self.process else { return Some("no process runs".to_owned()) };
        let state = process.engine.state();
        let confirmed = self.postgres.slot.map(|slot| slot.confirmed);
        let reasons = [
            (state.owner.phase != OwnerPhase::Active, "the process is not active"),
            (!process.effects.is_empty() || !process.statuses.is_empty(), "effects are not performed"),
            (!process.inbox.is_empty(), "inputs are not taken"),
            (!state.window.is_empty(), "transactions are owed"),
            (process.engine.projections().shape_index.removals().next().is_some(), "removals are unfinished"),
            (process.engine.projections().flush_tracker.pending_shapes() > 0, "shapes owe"),
            (state.shapes.values().any(|shape| shape.life != Life::Live), "snapshots are unfinished"),
            (!process.snapshots.is_empty() || !process.trashing.is_empty(), "tasks run"),
            (confirmed.is_none_or(|confirmed| confirmed < target), "the slot is behind"),
            (
                state.shapes.values().any(|shape| shape.retry.is_some_and(|retry| retry.due.is_some())),
                "restart",
            ),
        ];
        reasons.into_iter().find(|(is, _)| *is).map(|(_, why)| why.to_owned())
    }
}
