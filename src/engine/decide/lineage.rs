//! Whether a server that was promoted carries on the history that the shapes are of.

use crate::domain::{EventId, Lsn, Sid};
use crate::engine::{Decision, PostgresReady, Refusal};
use crate::events::{InvalidationCause, StreamEvent};
use crate::state::Life;

impl Decision<'_> {
    /// Where the timeline that is known was left, if nothing is here from beyond that and the slot goes
    /// on. `None` where that is not certain.
    ///
    /// The slot has to have come with the server (a slot that was made on a standby or restored with its
    /// files may point into a log, or a catalog, that it cannot read any more), and must not be ahead of
    /// the fork. What was processed of the stream, and what was read beside it, has to be from before the
    /// fork: behind it the old server may have had transactions that never were. Positions that were
    /// acknowledged without a transaction are no such thing.
    pub(super) fn followed(&self, ready: &PostgresReady) -> Option<Lsn> {
        let stream = &self.state().stream;
        let fork = ready.lineage.fork(stream.timeline)?;
        let unrecorded = self.engine.scratch.nothing.map_or(Lsn(0), |(upto, _)| upto);
        let continues = ready.lineage.slot_synced && !ready.slot_created && ready.confirmed <= fork;
        let processed = stream.routed.max(unrecorded);
        let queried = stream.queried.upto.max(ready.lineage.queried);
        let before = processed < fork && queried <= fork && !stream.queried.and_more;
        (continues && before).then_some(fork)
    }

    /// Records it, and ends the shapes whose initial rows may be of what the old server had beyond the
    /// fork, or are not there yet: what was prepared for them was prepared on the old server.
    pub(super) fn follow_timeline(&mut self, from: u32, to: u32, fork: Lsn, because: EventId) {
        let followed = self.record(Some(because), StreamEvent::TimelineFollowed { from, to, fork });
        let beyond: Vec<Sid> = self
            .living_shapes()
            .into_iter()
            .filter(|sid| self.state().shapes[sid].visible.as_ref().is_none_or(|(_, bound)| *bound > fork))
            .collect();
        for sid in beyond {
            if self.living(sid).is_ok() {
                let running = self.state().shapes[&sid].life < Life::Live;
                self.invalidate(sid, InvalidationCause::HistoryBroken, Some(followed), running);
            }
        }
    }

    pub(super) fn queried(&mut self, upto: Lsn) -> Result<(), Refusal> {
        self.require_active()?;
        if upto > self.state().stream.queried.upto {
            self.record(None, StreamEvent::Queried { upto });
        }
        Ok(())
    }

    /// What a process that was killed had read and not recorded was of this server's log, if that is still
    /// the one it knew.
    pub(super) fn bound_queries(&mut self, end: Lsn, because: EventId) {
        if self.state().stream.queried.and_more {
            self.record(Some(because), StreamEvent::Queried { upto: end });
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::domain::{
        DefinitionHash, Epoch, Generation, Handle, Lineage, Lsn, Oid, PgSnapshot, Sid, Timestamp, Xid,
    };
    use crate::engine::{Boot, Commit, Engine, Input, Policy, PostgresReady};
    use crate::events::{
        Event, HistoryCause, InvalidationCause, PreviousEnd, ProcessInfo, ShapeEvent, StopCause, StreamEvent,
    };

    const TABLE: Oid = Oid(16_384);
    const FORK: u64 = 5_000;

    struct Service(Engine);

    impl Service {
        fn booted(previous_end: PreviousEnd) -> Service {
            let mut service = Service(Engine::new(Policy::default()));
            service.boot(1, previous_end);
            service
        }

        fn boot(&mut self, epoch: u64, previous_end: PreviousEnd) {
            self.take(Input::Boot(Boot {
                process: ProcessInfo::default(),
                epoch: Epoch(epoch),
                previous_end,
                device: 1,
                inode: 1,
                waited_ms: 0,
                torn_values: 0,
                missing_upto: None,
            }));
        }

        fn take(&mut self, input: Input) -> Vec<Event> {
            let step = self.0.step(Timestamp(1_000_000), input).expect("the input is acted upon");
            step.events.into_iter().map(|recorded| recorded.event).collect()
        }

        /// A shape whose snapshot is from before `bound`.
        fn shape(&mut self, number: u32, bound: u64) {
            let handle = Handle { hash: 1, micros: number.into() };
            let definition = DefinitionHash(number.into());
            self.take(Input::CreateShape { handle, definition, oid: TABLE });
            let (sid, attempt) = (Sid(number), 1);
            self.take(Input::PublicationReady { sid, oid: TABLE, waited_ms: 0 });
            let snapshot = PgSnapshot { xmin: 10, xmax: 10, xip: Vec::new() };
            self.take(Input::SnapshotOpened { sid, attempt, snapshot, lsn: Lsn(bound) });
            self.take(Input::SnapshotCompleted { sid, attempt, rows: 0, bytes: 0 });
        }

        fn commit(&mut self, lsn: u64) {
            self.take(Input::Commit(Commit {
                generation: Generation(1),
                lsn: Lsn(lsn),
                xid: Xid(20),
                committed_at: Timestamp(1_000_000),
                changes: 1,
                bytes: 1,
                set: [Sid(1)].into_iter().collect(),
                tables: vec![TABLE],
                truncated: Vec::new(),
                old_row_missing: Vec::new(),
            }));
        }

        fn disconnect(&mut self) {
            let (generation, cause) = (Generation(1), StopCause::Connection);
            self.take(Input::StreamStopped { generation, cause });
        }
    }

    fn ready() -> PostgresReady {
        PostgresReady {
            system_id: 1,
            timeline: 1,
            server_version: 170_000,
            database: Oid(5),
            backend_pid: 9,
            slot: "slot".to_owned(),
            confirmed: Lsn(1_000),
            restart: Lsn(1_000),
            slot_created: false,
            slot_lost: false,
            published: vec![TABLE],
            publication_created: false,
            lineage: Lineage::default(),
        }
    }

    /// A server that was promoted, with the slot.
    fn promoted() -> PostgresReady {
        let lineage = Lineage {
            ancestors: vec![(1, Lsn(FORK))],
            slot_synced: true,
            end: Lsn(FORK + 100),
            queried: Lsn(0),
        };
        PostgresReady { timeline: 2, lineage, ..ready() }
    }

    /// Two shapes at work, of which the second is from before `bound`.
    fn running(bound: u64) -> Service {
        let mut service = Service::booted(PreviousEnd::None);
        service.take(Input::PostgresReady(PostgresReady { slot_created: true, ..ready() }));
        service.shape(1, 1_500);
        service.shape(2, bound);
        service.commit(2_000);
        service
    }

    fn followed(events: &[Event]) -> bool {
        events.iter().any(|event| {
            matches!(event, Event::Stream(StreamEvent::TimelineFollowed { from: 1, to: 2, fork: Lsn(FORK) }))
        })
    }

    fn broken(events: &[Event]) -> Option<HistoryCause> {
        events.iter().find_map(|event| match event {
            Event::Stream(StreamEvent::HistoryBroken { cause }) => Some(*cause),
            _ => None,
        })
    }

    fn ended(events: &[Event]) -> Vec<(Sid, InvalidationCause)> {
        let ended = |event: &Event| match event {
            Event::Shape(ShapeEvent::Invalidated { sid, cause }) => Some((*sid, *cause)),
            _ => None,
        };
        events.iter().filter_map(ended).collect()
    }

    #[test]
    fn a_promoted_server_that_lacks_nothing_is_followed() {
        let mut service = running(1_600);
        service.disconnect();
        let events = service.take(Input::PostgresReady(promoted()));
        assert!(followed(&events), "{events:?}");
        assert_eq!((broken(&events), ended(&events)), (None, Vec::new()));
        assert_eq!(service.0.state().stream.timeline, 2);
    }

    #[test]
    fn a_shape_from_behind_the_fork_ends_alone() {
        let mut service = running(FORK + 1);
        service.disconnect();
        let events = service.take(Input::PostgresReady(promoted()));
        assert!(followed(&events));
        assert_eq!(ended(&events), [(Sid(2), InvalidationCause::HistoryBroken)]);
    }

    #[test]
    fn what_is_not_certain_starts_over() {
        let lineage = || promoted().lineage;
        for (what, commit, ready) in [
            (
                "another ancestor",
                3_000,
                PostgresReady {
                    lineage: Lineage { ancestors: vec![(7, Lsn(FORK))], ..lineage() },
                    ..promoted()
                },
            ),
            (
                "a slot of its own",
                3_000,
                PostgresReady { lineage: Lineage { slot_synced: false, ..lineage() }, ..promoted() },
            ),
            ("a new slot", 3_000, PostgresReady { slot_created: true, ..promoted() }),
            ("a slot that was moved", 3_000, PostgresReady { confirmed: Lsn(FORK + 1), ..promoted() }),
            ("a transaction from behind the fork", FORK, promoted()),
            (
                "rows that were read behind the fork",
                3_000,
                PostgresReady { lineage: Lineage { queried: Lsn(FORK + 1), ..lineage() }, ..promoted() },
            ),
        ] {
            let mut service = running(1_600);
            service.commit(commit);
            service.disconnect();
            let events = service.take(Input::PostgresReady(ready));
            assert!(!followed(&events), "{what}");
            assert_eq!(broken(&events), Some(HistoryCause::Timeline), "{what}");
            assert_eq!(ended(&events).len(), 2, "{what}");
        }
    }

    /// What a process has read it tells the journal; what it had no time to tell is unknown to the next.
    #[test]
    fn queries_are_remembered_over_restarts() {
        for (queried, end, expected) in [
            (FORK - 1, PreviousEnd::Released, true),
            (FORK + 1, PreviousEnd::Released, false),
            (FORK - 1, PreviousEnd::Crashed, false),
        ] {
            let mut service = running(1_600);
            service.take(Input::Queried { upto: Lsn(queried) });
            service.boot(2, end);
            let events = service.take(Input::PostgresReady(promoted()));
            assert_eq!(followed(&events), expected, "{queried} {end:?}");
        }
        // Killed, and then back at the same server: nothing was read above the end of its log.
        let mut service = running(1_600);
        service.boot(2, PreviousEnd::Crashed);
        let same = Lineage { end: Lsn(4_000), ..Lineage::default() };
        service.take(Input::PostgresReady(PostgresReady { lineage: same, ..ready() }));
        let (generation, cause) = (Generation(2), StopCause::Connection);
        service.take(Input::StreamStopped { generation, cause });
        assert!(followed(&service.take(Input::PostgresReady(promoted()))));
    }
}
