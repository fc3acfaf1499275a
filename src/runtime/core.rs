//! The driver without threads: engine, journal order, effect order. The service runs it on the driver
//! thread, the simulator runs the same code on a simulated world.
//!
//! The one rule that everything rests on is here: **persist, then perform**. A step's events are handed
//! to the journal before anything else happens; its effects wait until the journal says that the
//! step's durable events are on stable storage, and effects are performed strictly in the order in
//! which they were decided.

use std::collections::VecDeque;

use crate::domain::{EventId, Sid, Timestamp};
use crate::engine::{Effect, Engine, Input, Refusal, Step};
use crate::events::Recorded;

/// Engine and queues.
#[derive(Debug)]
pub struct Core {
    engine: Engine,
    /// Invariant: the journal has every event up to here on stable storage; moved by the journal.
    durable: EventId,
    effects: VecDeque<Waiting>,
    /// Acknowledgements wait for their own event and hold up nothing else.
    acks: VecDeque<Waiting>,
}

/// The kind of the next effect, for who cannot perform all at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upcoming {
    Nothing,
    /// Waits for nothing.
    Abort,
    /// A shape is to be read from its files.
    Restore,
    Other,
}

/// An effect, and the event that must be durable before it is performed.
#[derive(Debug)]
struct Waiting {
    after: EventId,
    /// The newest event before the step that decided it.
    before: EventId,
    effect: Effect,
}

/// What the journal has to do after a step.
#[derive(Debug, Default, PartialEq)]
pub struct Persist {
    /// To be appended, as one batch.
    pub events: Vec<Recorded>,
    /// Some effect waits for this batch: sync it.
    pub sync: bool,
}

impl Core {
    /// A core over a history that ends in `durable`, all of which is on stable storage.
    #[must_use]
    pub fn new(engine: Engine) -> Core {
        let durable = engine.state().last;
        Core { engine, durable, effects: VecDeque::new(), acks: VecDeque::new() }
    }

    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Takes an input; what is returned must be persisted, whatever happens next.
    ///
    /// # Errors
    /// The engine's refusal; nothing has changed then.
    pub fn input(&mut self, now: Timestamp, input: Input) -> Result<Persist, Refusal> {
        let step = self.engine.step(now, input)?;
        Ok(self.queue(step))
    }

    /// Compares projections with the fold, for a few shapes; see [`Engine::audit_part`].
    pub fn audit_part(&mut self, now: Timestamp, after: Option<Sid>, count: usize) -> (Persist, Option<Sid>) {
        let (step, last) = self.engine.audit_part(now, after, count);
        (self.queue(step), last)
    }

    /// See [`Engine::meddle`].
    #[cfg(feature = "test-hooks")]
    pub fn meddle(&mut self, projection: crate::events::ProjectionName) {
        self.engine.meddle(projection);
    }

    /// Records a fact of the journal about itself.
    pub fn note(&mut self, now: Timestamp, event: crate::events::JournalEvent) -> Persist {
        let step = self.engine.note(now, event);
        self.queue(step)
    }

    fn queue(&mut self, step: Step) -> Persist {
        let last = self.engine.state().last;
        let before = step.events.first().map_or(last, |first| EventId(first.id.0 - 1));
        let after = step.barrier.unwrap_or(EventId(0));
        let mut sync = step.barrier.is_some();
        for effect in step.effects {
            match effect {
                Effect::SendStatus { .. } => {
                    sync = true;
                    self.acks.push_back(Waiting { after: last, before, effect });
                }
                // Nothing that was decided before may still be done, and no journal waited for: it
                // lies in a directory that is no longer ours.
                Effect::Abort => self.acks.push_front(Waiting { after: EventId(0), before, effect }),
                effect => self.effects.push_back(Waiting { after, before, effect }),
            }
        }
        Persist { events: step.events, sync }
    }

    /// The journal has everything up to `upto` on stable storage.
    pub fn durable(&mut self, upto: EventId) {
        self.durable = self.durable.max(upto);
    }

    /// The next effect that may be performed now.
    pub fn next_effect(&mut self) -> Option<Effect> {
        let ready = |queue: &VecDeque<Waiting>, durable| queue.front().is_some_and(|w| w.after <= durable);
        let queue = if ready(&self.acks, self.durable) {
            &mut self.acks
        } else if ready(&self.effects, self.durable) {
            &mut self.effects
        } else {
            return None;
        };
        queue.pop_front().map(|waiting| waiting.effect)
    }

    /// What kind of effect [`Core::next_effect`] would give.
    #[must_use]
    pub fn upcoming(&self) -> Upcoming {
        let next = [&self.acks, &self.effects]
            .into_iter()
            .find_map(|queue| queue.front().filter(|waiting| waiting.after <= self.durable));
        match next.map(|waiting| &waiting.effect) {
            None => Upcoming::Nothing,
            Some(Effect::Abort) => Upcoming::Abort,
            Some(Effect::RestoreShape { .. }) => Upcoming::Restore,
            Some(_) => Upcoming::Other,
        }
    }

    /// Whether everything that was decided, acknowledgements aside, has been performed.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.effects.is_empty()
    }

    /// Whatever was decided by events up to this one, acknowledgements aside, has been performed.
    #[must_use]
    pub fn performed_upto(&self) -> EventId {
        self.effects.front().map_or(self.engine.state().last, |waiting| waiting.before)
    }

    /// The newest event that the journal has on stable storage.
    #[must_use]
    pub fn durable_upto(&self) -> EventId {
        self.durable
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{DefinitionHash, Epoch, Generation, Handle, Lsn, Oid, Sid, SidSet, Xid};
    use crate::engine::{Boot, Commit, Policy, PostgresReady};
    use crate::events::{Durability, Event, PreviousEnd, ProcessInfo, StreamEvent};

    const TABLE: Oid = Oid(100);

    /// A core and the journal beside it, which is durable only as far as a test says.
    struct Rig {
        core: Core,
        now: Timestamp,
        journal: Vec<Recorded>,
    }

    impl Rig {
        fn new() -> Rig {
            let core = Core::new(Engine::new(Policy::default()));
            Rig { core, now: Timestamp(1_000_000_000), journal: Vec::new() }
        }

        /// A service that streams, with everything so far durable and performed.
        fn streaming() -> Rig {
            let mut rig = Rig::new();
            rig.take(Input::Boot(boot()));
            rig.take(Input::PostgresReady(ready()));
            rig.catch_up();
            rig
        }

        fn take(&mut self, input: Input) -> bool {
            self.now = self.now.plus(std::time::Duration::from_secs(1));
            let persist = self.core.input(self.now, input).expect("the input is acted upon");
            self.journal.extend(persist.events);
            persist.sync
        }

        fn last(&self) -> EventId {
            self.journal.last().expect("something happened").id
        }

        fn catch_up(&mut self) {
            self.core.durable(self.last());
            while self.core.next_effect().is_some() {}
        }

        fn performable(&mut self) -> Vec<Effect> {
            std::iter::from_fn(|| self.core.next_effect()).collect()
        }
    }

    fn boot() -> Boot {
        Boot {
            process: ProcessInfo::default(),
            epoch: Epoch(1),
            previous_end: PreviousEnd::None,
            device: 1,
            inode: 1,
            waited_ms: 0,
            torn_values: 0,
            missing_upto: None,
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
            slot_created: true,
            slot_lost: false,
            published: vec![TABLE],
            publication_created: false,
            lineage: crate::domain::Lineage::default(),
        }
    }

    fn create() -> Input {
        let handle = Handle { hash: 1, micros: 1 };
        Input::CreateShape { handle, definition: DefinitionHash(1), oid: TABLE }
    }

    fn commit_for_nobody(lsn: u64) -> Input {
        Input::Commit(Commit {
            generation: Generation(1),
            lsn: Lsn(lsn),
            xid: Xid(20),
            committed_at: Timestamp(0),
            changes: 1,
            bytes: 1,
            set: SidSet::new(),
            tables: vec![TABLE],
            truncated: Vec::new(),
            old_row_missing: Vec::new(),
        })
    }

    #[test]
    fn nothing_is_performed_before_its_event_is_durable() {
        let mut rig = Rig::streaming();
        assert!(rig.take(create()), "somebody waits for it: sync");
        let created = rig.journal.iter().rev().find(|recorded| recorded.event.name() == "ShapeCreated");
        let created = created.expect("it is recorded").id;
        assert_eq!(rig.performable(), [], "not durable yet");
        rig.core.durable(EventId(created.0 - 1));
        assert_eq!(rig.performable(), [], "only what was before it is durable");
        rig.core.durable(created);
        let (sid, handle) = (Sid(1), Handle { hash: 1, micros: 1 });
        let opened = [Effect::OpenShape { sid, handle }, Effect::StartSnapshot { sid, attempt: 1 }];
        assert_eq!(rig.performable(), opened);
    }

    /// Later effects wait for the earlier ones, even where their own events need no durability.
    #[test]
    fn effects_are_performed_in_the_order_of_their_decisions() {
        let mut rig = Rig::streaming();
        rig.take(create());
        let drained = rig.take(Input::StreamStopped {
            generation: Generation(1),
            cause: crate::events::StopCause::Connection,
        });
        assert!(!drained, "nothing of this step has to be durable by itself");
        assert_eq!(rig.performable(), []);
        rig.core.durable(rig.last());
        let names: Vec<Effect> = rig.performable();
        assert!(matches!(names.first(), Some(Effect::OpenShape { .. })), "{names:?}");
        assert_eq!(names.last(), Some(&Effect::ConnectPostgres));
    }

    /// An acknowledgement waits for its own event, and so for all before it; it holds up nothing else.
    #[test]
    fn an_acknowledgement_waits_for_everything_under_it() {
        let mut rig = Rig::streaming();
        assert!(rig.take(commit_for_nobody(1_200)), "an acknowledgement asks for a sync");
        let acked = rig.last();
        let recorded = &rig.journal.last().expect("recorded").event;
        assert!(matches!(recorded, Event::Stream(StreamEvent::AckSent { lsn: Lsn(1_201), .. })));
        assert_eq!(recorded.durability(), Durability::Lazy);
        rig.core.durable(EventId(acked.0 - 1));
        let sent = |effects: &[Effect]| effects.iter().any(|e| matches!(e, Effect::SendStatus { .. }));
        let performed = rig.performable();
        assert!(!sent(&performed), "{performed:?}");
        assert!(rig.core.is_settled(), "everything else went ahead");
        rig.core.durable(acked);
        assert!(sent(&rig.performable()));
    }
}
