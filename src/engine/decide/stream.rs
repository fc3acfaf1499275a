//! Deciding about Postgres and what comes from it.

use std::collections::BTreeSet;

use crate::domain::{EventId, Generation, Lsn, Oid, Seq, Sid, SidSet};
use crate::engine::{Commit, Decision, Effect, PostgresReady, Refusal};
use crate::events::{HistoryCause, InvalidationCause, StopCause, StreamEvent};
use crate::state::{Life, StreamPhase, Writer};

/// A run of unwanted transactions is recorded at the latest when it is this long.
const NOTHING_RUN_MAX: u64 = 65_536;

impl Decision<'_> {
    pub(super) fn postgres_ready(&mut self, ready: PostgresReady) -> Result<(), Refusal> {
        self.require_active()?;
        let broken = self.broken_history(&ready);
        let (known, followed) = (self.state().stream.timeline, self.followed(&ready));
        let generation = self.state().stream.generation.next();
        let identified = self.record(
            None,
            StreamEvent::Identified {
                system_id: ready.system_id,
                timeline: ready.timeline,
                server_version: ready.server_version,
                database: ready.database,
            },
        );
        self.record(None, StreamEvent::LockAcquired { backend_pid: ready.backend_pid, generation });
        let observed = self.record(
            None,
            StreamEvent::SlotObserved {
                name: ready.slot,
                confirmed: ready.confirmed,
                restart: ready.restart,
                created: ready.slot_created,
            },
        );
        if let Some(cause) = broken {
            let event = self.record(Some(identified), StreamEvent::HistoryBroken { cause });
            self.invalidate_all(event);
        } else {
            match followed {
                Some(fork) => self.follow_timeline(known, ready.timeline, fork, identified),
                None => self.bound_queries(ready.lineage.end, identified),
            }
            self.invalidate_missed(ready.confirmed, observed);
            self.invalidate_unpublished(&ready.published, observed);
        }
        self.engine.scratch.idle_at = Lsn(0);
        self.engine.scratch.nothing = None;
        self.engine.scratch.told = ready.confirmed;
        self.record(Some(observed), StreamEvent::Started { generation, from: ready.confirmed });
        self.ask(Effect::StartStream { generation });
        Ok(())
    }

    /// Whether what the shapes hold can be continued from this server and this slot.
    fn broken_history(&self, ready: &PostgresReady) -> Option<HistoryCause> {
        let stream = &self.state().stream;
        let Some(known) = stream.system_id else {
            // A first start has nothing to continue from. A shape that was created before it may
            // have a snapshot from before the slot: what was committed in between never comes.
            return (!self.living_shapes().is_empty()).then_some(HistoryCause::NewSlot);
        };
        if known != ready.system_id {
            Some(HistoryCause::SystemId)
        } else if stream.timeline != ready.timeline && self.followed(ready).is_none() {
            Some(HistoryCause::Timeline)
        } else if ready.slot_lost {
            Some(HistoryCause::SlotLost)
        } else if ready.publication_created {
            // Before the slot, which was made anew because of it.
            Some(HistoryCause::NewPublication)
        } else if ready.slot_created {
            Some(HistoryCause::NewSlot)
        } else if ready.confirmed > stream.confirmed.max(stream.acked) {
            // Further than it was ever seen or told to be: somebody else moved it, and discarded
            // what had not even been received.
            Some(HistoryCause::SlotLost)
        } else {
            None
        }
    }

    fn invalidate_all(&mut self, because: EventId) {
        let living: Vec<Sid> = self.living_shapes();
        for sid in living {
            let running = self.state().shapes[&sid].life < Life::Live;
            self.invalidate(sid, InvalidationCause::HistoryBroken, Some(because), running);
        }
    }

    /// Postgres starts after these transactions although some shape still owes them: they will not
    /// come again (S4).
    fn invalidate_missed(&mut self, confirmed: Lsn, because: EventId) {
        let missed: BTreeSet<Sid> = self
            .engine
            .projections
            .flush_tracker
            .blockers()
            .filter(|(seq, _)| self.state().window.get(*seq).is_none_or(|txn| txn.lsn < confirmed))
            .map(|(_, sid)| sid)
            .collect();
        for sid in missed {
            let running = self.state().shapes[&sid].life < Life::Live;
            self.invalidate(sid, InvalidationCause::DataMissed, Some(because), running);
        }
    }

    /// Changes of these tables are not in the stream, although there are rows of theirs here: somebody
    /// took them out of the publication, or dropped them, or a process died between making a new
    /// publication and saying so. Their shapes would stand still without a word.
    fn invalidate_unpublished(&mut self, published: &[Oid], because: EventId) {
        let silent: Vec<Sid> = self
            .living_shapes()
            .into_iter()
            .filter(|sid| {
                let shape = &self.state().shapes[sid];
                shape.visible.is_some() && published.binary_search(&shape.oid).is_err()
            })
            .collect();
        for sid in silent {
            let running = self.state().shapes[&sid].life < Life::Live;
            self.invalidate(sid, InvalidationCause::DataMissed, Some(because), running);
        }
    }

    pub(super) fn stream_stopped(&mut self, generation: Generation, cause: StopCause) -> Result<(), Refusal> {
        self.require_owned()?;
        self.require_generation(generation)?;
        let received = self.state().stream.received;
        let stopped = self.record(None, StreamEvent::Stopped { generation, cause, received });
        self.record(Some(stopped), StreamEvent::LockLost { generation });
        if self.require_active().is_ok() {
            self.ask(Effect::ConnectPostgres);
        }
        Ok(())
    }

    fn require_generation(&self, generation: Generation) -> Result<(), Refusal> {
        let stream = &self.state().stream;
        if stream.generation == generation && stream.phase == StreamPhase::Streaming {
            Ok(())
        } else {
            Err(Refusal::StaleGeneration)
        }
    }

    pub(super) fn keepalive(&mut self, generation: Generation, wal_end: Lsn) -> Result<(), Refusal> {
        self.require_active()?;
        self.require_generation(generation)?;
        self.engine.scratch.idle_at = wal_end;
        Ok(())
    }

    pub(super) fn commit(&mut self, commit: Commit) -> Result<(), Refusal> {
        self.require_active()?;
        self.require_generation(commit.generation)?;
        let now = self.now;
        self.engine.scratch.recent.push(now, commit.lsn, commit.xid, &commit.tables);
        let doomed = self.doomed(&commit);
        if self.was_routed(commit.lsn) {
            self.redelivered(&commit);
        } else {
            self.route(&commit, &doomed);
        }
        let because = self.last_event();
        for (sid, cause) in doomed {
            if self.living(sid).is_ok() {
                let running = self.state().shapes[&sid].life < Life::Live;
                self.invalidate(sid, cause, Some(because), running);
            }
        }
        Ok(())
    }

    fn was_routed(&self, lsn: Lsn) -> bool {
        let unrecorded = self.engine.scratch.nothing.map_or(Lsn(0), |(upto, _)| upto);
        lsn <= self.state().stream.routed.max(unrecorded)
    }

    /// The shapes that this transaction ends, and why. Their snapshot may already contain it.
    fn doomed(&self, commit: &Commit) -> Vec<(Sid, InvalidationCause)> {
        let tables = |oids: &[Oid], cause: InvalidationCause| {
            oids.iter()
                .flat_map(|oid| self.engine.projections.shape_index.by_table(*oid))
                .filter(|sid| {
                    self.state().shape(*sid).is_some_and(|shape| {
                        let before = shape.routed_after.is_some_and(|(_, lsn)| commit.lsn <= lsn);
                        !before && !shape.snapshot_contains(commit.lsn, commit.xid)
                    })
                })
                .map(|sid| (sid, cause))
                .collect::<Vec<_>>()
        };
        let mut doomed = tables(&commit.truncated, InvalidationCause::Truncated);
        doomed.extend(tables(&commit.old_row_missing, InvalidationCause::OldRowMissing));
        doomed
    }

    fn route(&mut self, commit: &Commit, doomed: &[(Sid, InvalidationCause)]) {
        let doomed: BTreeSet<Sid> = doomed.iter().map(|(sid, _)| *sid).collect();
        let set: SidSet = commit
            .set
            .iter()
            .filter(|sid| {
                let wanted = self.state().shape(*sid).is_some_and(|shape| {
                    shape.is_routed() && !shape.snapshot_contains(commit.lsn, commit.xid)
                });
                wanted && !doomed.contains(sid)
            })
            .collect();
        if set.is_empty() {
            self.route_nothing(commit.lsn);
            return;
        }
        self.record_nothing();
        let seq = self.state().stream.last_seq.next();
        let sids: Vec<Sid> = set.iter().collect();
        let routed = self.record(
            None,
            StreamEvent::TxnRouted {
                seq,
                generation: commit.generation,
                lsn: commit.lsn,
                xid: commit.xid,
                committed_at: commit.committed_at,
                changes: commit.changes,
                bytes: commit.bytes,
                set,
            },
        );
        self.deliver(seq, sids, routed);
    }

    fn route_nothing(&mut self, lsn: Lsn) {
        let (_, txns) = self.engine.scratch.nothing.unwrap_or_default();
        self.engine.scratch.nothing = Some((lsn, txns + 1));
        if txns + 1 >= NOTHING_RUN_MAX {
            self.record_nothing();
        }
    }

    /// Records the run of unwanted transactions before anything that comes after it.
    pub(in crate::engine) fn record_nothing(&mut self) {
        if let Some((upto, txns)) = self.engine.scratch.nothing.take() {
            let generation = self.state().stream.generation;
            self.record(None, StreamEvent::RoutedNothing { generation, upto, txns });
        }
    }

    /// Postgres sends again what was not acknowledged. Who owes it gets it again; everyone else has
    /// it, or never wanted it.
    fn redelivered(&mut self, commit: &Commit) {
        if let Some((seq, txn)) = self.state().window.find(commit.lsn) {
            let owing: Vec<Sid> = txn
                .set
                .iter()
                .filter(|sid| {
                    self.state().shape(*sid).is_some_and(|shape| shape.pending.binary_search(&seq).is_ok())
                })
                .collect();
            let set = owing.iter().copied().collect();
            let generation = commit.generation;
            let event = self.record(None, StreamEvent::TxnRedelivered { seq, generation, set });
            self.deliver(seq, owing, event);
            return;
        }
        // A shape that was created after this commit was first processed must have it in its
        // snapshot. With a snapshot that has not, it can be had from nowhere.
        let lacking: Vec<Sid> = commit
            .set
            .iter()
            .filter(|sid| {
                self.state().shape(*sid).is_some_and(|shape| {
                    let created_later = shape.routed_after.is_some_and(|(_, lsn)| commit.lsn <= lsn);
                    created_later
                        && shape.visible.is_some()
                        && !shape.snapshot_contains(commit.lsn, commit.xid)
                })
            })
            .collect();
        let because = self.last_event();
        for sid in lacking {
            let running = self.state().shapes[&sid].life < Life::Live;
            self.invalidate(sid, InvalidationCause::DataMissed, Some(because), running);
        }
    }

    /// Hands a transaction to those of its shapes that can take it now. The others find it among
    /// what they owe when they start.
    fn deliver(&mut self, seq: Seq, sids: Vec<Sid>, because: EventId) {
        let mut to = Vec::new();
        for sid in sids {
            let Some(shape) = self.state().shape(sid) else { continue };
            let waits_for_snapshot = shape.visible.is_none();
            let waits_for_restart = shape.retry.is_some_and(|retry| retry.due.is_some());
            if waits_for_snapshot {
                if shape.pending.len() > self.engine.policy.snapshot_backlog_max {
                    self.invalidate(sid, InvalidationCause::Backlog, Some(because), true);
                }
                continue;
            }
            match shape.writer {
                Writer::Live { incarnation, .. } => to.push((sid, incarnation)),
                Writer::Stopping { .. } => {}
                Writer::Absent if waits_for_restart => {}
                Writer::Absent => self.start_writer(sid, because),
            }
        }
        if !to.is_empty() {
            self.ask(Effect::Deliver { seq, to });
        }
    }

    pub(super) fn relation_announced(
        &mut self,
        oid: Oid,
        schema: u64,
        affected: &SidSet,
    ) -> Result<(), Refusal> {
        self.require_active()?;
        let old = self.state().relations.get(&oid).copied();
        if old == Some(schema) && affected.is_empty() {
            return Ok(());
        }
        let changed =
            self.record(None, StreamEvent::RelationChanged { oid, old: old.unwrap_or(0), new: schema });
        for sid in affected.iter() {
            if self.living(sid).is_ok() {
                let running = self.state().shapes[&sid].life < Life::Live;
                self.invalidate(sid, InvalidationCause::SchemaChanged, Some(changed), running);
            }
        }
        Ok(())
    }

    /// Rows of a partition that comes or goes enter or leave the tables above it without a change in
    /// the stream. Of those tables the shapes end that have read their rows already; the others read
    /// them after this.
    pub(super) fn partitions_seen(
        &mut self,
        oid: Oid,
        members: &[Oid],
        tree: u64,
        grown: bool,
    ) -> Result<(), Refusal> {
        self.require_active()?;
        self.engine.scratch.recent.adopt(oid, members);
        let old = self.state().relations.get(&oid).copied();
        if old == Some(tree) {
            return Ok(());
        }
        let changed =
            self.record(None, StreamEvent::RelationChanged { oid, old: old.unwrap_or(0), new: tree });
        if grown {
            return Ok(());
        }
        let sids: Vec<Sid> = self.engine.projections.shape_index.by_table(oid).collect();
        for sid in sids {
            let shape = &self.state().shapes[&sid];
            if shape.visible.is_some() {
                let running = shape.life < Life::Live;
                self.invalidate(sid, InvalidationCause::PartitionsChanged, Some(changed), running);
            }
        }
        Ok(())
    }

    pub(super) fn living_shapes(&self) -> Vec<Sid> {
        self.state()
            .shapes
            .iter()
            .filter(|(_, shape)| shape.life < Life::Invalidated)
            .map(|(sid, _)| *sid)
            .collect()
    }
}
