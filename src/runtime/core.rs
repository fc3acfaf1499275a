//! The driver without threads: engine, journal order, effect order. The service runs it on the driver
//! thread, the simulator runs the same code on a simulated world.
//!
//! The one rule that everything rests on is here: **persist, then perform**. A step's events are handed
//! to the journal before anything else happens; its effects wait until the journal says that the
//! step's durable events are on stable storage, and effects are performed strictly in the order in
//! which they were decided.

use std::collections::VecDeque;

use crate::domain::{EventId, Timestamp};
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

/// An effect, and the event that must be durable before it is performed.
#[derive(Debug)]
struct Waiting {
    after: EventId,
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

    /// Compares projections with the fold.
    pub fn audit(&mut self, now: Timestamp) -> Persist {
        let step = self.engine.audit(now);
        self.queue(step)
    }

    /// Records a fact of the journal about itself.
    pub fn note(&mut self, now: Timestamp, event: crate::events::JournalEvent) -> Persist {
        let step = self.engine.note(now, event);
        self.queue(step)
    }

    fn queue(&mut self, step: Step) -> Persist {
        let last = self.engine.state().last;
        let after = step.barrier.unwrap_or(EventId(0));
        let mut sync = step.barrier.is_some();
        for effect in step.effects {
            match effect {
                Effect::SendStatus { .. } => {
                    sync = true;
                    self.acks.push_back(Waiting { after: last, effect });
                }
                // Nothing that was decided before may still be done, and no journal waited for: it
                // lies in a directory that is no longer ours.
                Effect::Abort => self.acks.push_front(Waiting { after: EventId(0), effect }),
                effect => self.effects.push_back(Waiting { after, effect }),
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

    /// Whether everything that was decided, acknowledgements aside, has been performed.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.effects.is_empty()
    }

    /// The newest event that the journal has on stable storage.
    #[must_use]
    pub fn durable_upto(&self) -> EventId {
        self.durable
    }
}
