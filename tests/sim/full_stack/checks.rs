//! What must hold after every step, after every crash, and at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use shapefold::domain::{Handle, Lsn, Offset, Sid};
use shapefold::events::{ConsumerEvent, Event, ExitCause, InvalidationCause, Recorded, ShapeEvent};
use shapefold::projections::forensics::Checker;
use shapefold::shape_log::{
    PackedDisk, Read, ShapeFiles, ShapeReader, SimDisk, SnapshotState, Verify, messages, open_read_only,
};
use shapefold::state::{Life, OwnerPhase, State};

use super::clients::Values;
use super::postgres::{KINDS, Op};
use super::world::{Connection, Mode, World};

impl World {
    pub fn check_events(&mut self, events: &[Recorded]) {
        if let Some(violation) = self.checker.violations().first() {
            let why = violation.to_string();
            self.fail(why);
        }
        for recorded in events {
            let Event::Shape(ShapeEvent::Invalidated { sid, cause }) = &recorded.event else { continue };
            match cause {
                // Postgres sends everything again that was not acknowledged, and nobody meddles here.
                InvalidationCause::DataMissed | InvalidationCause::JournalLost => {
                    self.fail(format!("event {}: {cause:?}, although nothing was lost", recorded.id));
                }
                InvalidationCause::WriterFailed { .. } => self.check_patience(*sid),
                InvalidationCause::StorageDamaged if self.mode != Mode::Everything => {
                    self.fail(format!("event {}: damage, although no disk failed", recorded.id));
                }
                _ => {}
            }
        }
    }

    /// A writer that fails is replaced as often as the policy says, and no less.
    fn check_patience(&mut self, sid: Sid) {
        let failed = |recorded: &&Recorded| {
            let Event::Consumer(ConsumerEvent::Exited { sid: own, cause, .. }) = &recorded.event else {
                return false;
            };
            *own == sid
                && match cause {
                    ExitCause::Panicked
                    | ExitCause::StorageFault
                    | ExitCause::Ended
                    | ExitCause::Vanished => true,
                    ExitCause::Suspended | ExitCause::Drained | ExitCause::Removed => false,
                }
        };
        let failures = self.history.iter().filter(failed).count();
        if failures <= self.policy.writer_attempts_max as usize {
            self.fail(format!("shape {sid} is given up after {failures} failures of its writer"));
        }
    }

    /// Nothing may be acknowledged that a living shape does not have for certain (F1, N1): neither a
    /// shape of the running process, nor one that would live again after a crash.
    pub fn check_acknowledged(&mut self) {
        let Some(confirmed) = self.postgres.slot else { return };
        let mut living: BTreeSet<(Sid, Handle, bool)> = BTreeSet::new();
        let of = |state: &State, at_least: Life| {
            let shapes = state.shapes.iter();
            let living = shapes.filter(|(_, shape)| (at_least..Life::Invalidated).contains(&shape.life));
            living.map(|(sid, shape)| (*sid, shape.handle, shape.life == Life::Live)).collect::<Vec<_>>()
        };
        living.extend(of(&self.durable, Life::Live));
        if let Some(process) = &self.process {
            living.extend(of(process.core.engine().state(), Life::Snapshotting));
        }
        let mut certain = None;
        for (sid, handle, complete) in living {
            let Some(expected) = self.expected(handle, confirmed) else { continue };
            let verified = self.verified.get(&handle).copied().unwrap_or_default();
            // Of a commit that was compacted there may be nothing left; its rows are compared with SQL.
            let verified = verified.max(self.compacted.get(&handle).copied().unwrap_or_default());
            let expected: Vec<Lsn> = expected.into_iter().filter(|lsn| *lsn > verified).collect();
            if expected.is_empty() {
                continue;
            }
            let disk = certain.get_or_insert_with(|| self.disk.certain());
            let held = match held(disk, handle, complete) {
                Ok(held) => held,
                Err(why) => return self.fail(format!("F1: {confirmed} is acknowledged; shape {sid}: {why}")),
            };
            if let Some(lost) = expected.iter().find(|lsn| !held.contains(lsn)) {
                return self.fail(format!(
                    "F1: {confirmed} is acknowledged and shape {sid} does not have {lost} for certain"
                ));
            }
            if let Some(last) = expected.last() {
                self.verified.insert(handle, *last);
            }
        }
    }

    /// The commits below a position that the log of a shape must hold. `None` where its initial rows
    /// are not determined.
    fn expected(&self, handle: Handle, below: Lsn) -> Option<Vec<Lsn>> {
        let known = self.shapes.get(&handle)?;
        let contains = known.contains.as_ref()?;
        let kind = &KINDS[known.kind];
        let wanted = self.postgres.wal.iter().filter(|txn| {
            txn.lsn < below
                && !contains.contains(&txn.lsn)
                && txn.ops.iter().any(|change| kind.concerned_by(change))
        });
        Some(wanted.map(|txn| txn.lsn).collect())
    }

    pub fn rows_of(&self, kind: usize, counts: impl Fn(Lsn) -> bool) -> BTreeMap<usize, Values> {
        let rows = self.postgres.rows_after(KINDS[kind].table, counts);
        let rows = rows.into_iter().filter(|(_, row)| (KINDS[kind].wants)(row));
        rows.map(|(id, row)| (id, KINDS[kind].project(&row))).collect()
    }

    /// What a client has that is up to date with `seen` is what the table was then (P3), transactions
    /// whole or not at all.
    pub fn check_committed_state(&mut self, number: usize, seen: Lsn) {
        let client = &self.clients[number];
        let Some(handle) = client.handle else { return };
        let Some(contains) = self.shapes.get(&handle).and_then(|known| known.contains.as_ref()) else {
            return self.fail(format!("{handle} is read to its end, and its beginning is not known"));
        };
        // A truncate that the stream brings ends the shape; until then its rows are those before it.
        let truncated = self.postgres.wal.iter().any(|txn| {
            txn.lsn <= seen
                && !contains.contains(&txn.lsn)
                && txn
                    .ops
                    .iter()
                    .any(|(oid, op, _)| *oid == KINDS[client.kind].table && matches!(op, Op::Truncate))
        });
        if truncated {
            return;
        }
        let expected = self.rows_of(client.kind, |lsn| lsn <= seen || contains.contains(&lsn));
        if by_id(&client.rows) != expected {
            let why = format!(
                "P3: client {number} of {handle} is told that it is up to date with {seen} and has {:?}, not {expected:?}",
                by_id(&client.rows)
            );
            self.fail(why);
        }
        self.stats.count("committed states compared");
        self.remember(number);
    }

    /// What is still to be done; `None` when nothing is.
    pub fn unfinished(&self) -> Option<String> {
        let Some(process) = &self.process else { return Some("no process runs".to_owned()) };
        let state = process.core.engine().state();
        let newest = self.postgres.wal.iter().rfind(|txn| txn.ops.iter().any(|(.., published)| *published));
        let behind = newest.is_some_and(|txn| self.postgres.slot.is_none_or(|slot| slot <= txn.lsn));
        let reasons = [
            (state.owner.phase != OwnerPhase::Active, "the process is not active"),
            (!process.core.is_settled(), "effects are not performed"),
            (!process.messages.is_empty() || !process.batches.is_empty(), "inputs are not taken"),
            (!process.reports.is_empty() || !process.notices.is_empty(), "reports are not taken"),
            (!matches!(process.connection, Connection::Streaming { .. }), "nothing is streamed"),
            (!state.window.is_empty(), "transactions are owed"),
            (state.shapes.values().any(|shape| shape.life != Life::Live), "shapes are not live"),
            (!process.snapshots.is_empty() || !process.trashing.is_empty(), "tasks run"),
            (behind, "the slot is behind"),
        ];
        reasons.into_iter().find(|(is, _)| *is).map(|(_, why)| why.to_owned())
    }

    /// At the end, when nothing is left to do.
    pub fn check_end(&mut self) {
        let mut checker = Checker::new();
        self.history.iter().for_each(|recorded| checker.observe(recorded));
        let (folded, violations) = checker.finish();
        if let Some(violation) = violations.first() {
            self.fail(violation.to_string());
        }
        let Some(process) = &self.process else { return self.fail("no process at the end") };
        if &folded != process.core.engine().state() {
            self.fail("the journal as a whole folds to another state");
        }
        for number in 0..self.clients.len() {
            let client = &self.clients[number];
            let (rows, expected) = (by_id(&client.rows), self.rows_of(client.kind, |_| true));
            if rows != expected || !client.up_to_date {
                let why = format!(
                    "P1: client {number} of {:?} ends at {} with {rows:?}, not {expected:?}",
                    client.handle, client.from
                );
                self.fail(why);
            }
            self.stats.count("clients compared at the end");
        }
        self.check_from_everywhere();
        self.check_acknowledged();
    }
}

pub fn by_id(rows: &BTreeMap<String, Values>) -> BTreeMap<usize, Values> {
    rows.values().map(|row| (row["id"].parse().unwrap_or(usize::MAX), row.clone())).collect()
}

/// The commits of which the log of a shape has something.
fn held(disk: &SimDisk, handle: Handle, complete: bool) -> Result<BTreeSet<Lsn>, String> {
    let found = PackedDisk::open(Arc::new(disk.clone()), World::data());
    let found = found.map_err(|fault| fault.to_string())?;
    let files = ShapeFiles::open(Arc::new(found), World::data(), handle);
    let told = |error: shapefold::shape_log::ShapeLogError| error.to_string();
    let reader = ShapeReader::open(&files).map_err(told)?;
    open_read_only(&files, &reader, Verify::Everything).map_err(told)?;
    let view = reader.view();
    if complete && view.snapshot_state() != SnapshotState::Complete {
        return Err("its initial rows are not there for certain".to_owned());
    }
    let mut held = BTreeSet::new();
    let mut from = Offset::SNAPSHOT_END;
    loop {
        let Read::Range(range) = view.read(from).map_err(told)? else { return Ok(held) };
        let (end, up_to_date) = (range.end, range.up_to_date);
        for piece in range.body {
            for message in messages(&piece.map_err(told)?) {
                let message: serde_json::Value = serde_json::from_slice(message).expect("a message is JSON");
                held.extend(message["headers"]["lsn"].as_str().and_then(|lsn| lsn.parse().ok()).map(Lsn));
            }
        }
        if up_to_date {
            return Ok(held);
        }
        from = end;
    }
}
