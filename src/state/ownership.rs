//! The fold of ownership events.

use serde::{Deserialize, Serialize};

use crate::domain::Epoch;
use crate::events::{IntentId, OwnershipEvent, PreviousEnd, ProcessInfo};
use crate::state::{Budget, Intents, State, StreamPhase};

/// Who owns the data directory.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Owner {
    pub phase: OwnerPhase,
    pub epoch: Epoch,
    pub process: ProcessInfo,
    /// Device and inode of the directory.
    pub directory: (u64, u64),
    /// Destruction that was announced and not yet reported as done.
    pub open_intents: Intents,
    pub last_intent: IntentId,
    /// What may be given up on suspicion.
    #[serde(default, skip_serializing_if = "Budget::is_default")]
    pub budget: Budget,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OwnerPhase {
    #[default]
    Unowned,
    Active,
    Draining,
    Released,
    Lost,
}

impl State {
    pub(super) fn apply_ownership(&mut self, event: &OwnershipEvent) {
        match event {
            OwnershipEvent::ProcessStarted(process) => self.owner.process = process.clone(),
            OwnershipEvent::Acquired { epoch, previous_end, device, inode, .. } => {
                self.owner.epoch = *epoch;
                self.owner.phase = OwnerPhase::Active;
                self.owner.directory = (*device, *inode);
                // What was announced and not reported as done is decided anew, under this epoch.
                self.owner.open_intents.clear();
                // The process before this one is gone, and its writers and its connection with it:
                // one event says so for all of them.
                self.stream.phase = StreamPhase::Disconnected;
                self.stream.lock_held = false;
                self.stream.queried.and_more |= *previous_end == PreviousEnd::Crashed;
                for shape in self.shapes.values_mut() {
                    shape.writer_gone();
                    shape.retry = None;
                }
            }
            OwnershipEvent::DrainStarted { .. } => self.owner.phase = OwnerPhase::Draining,
            OwnershipEvent::Released { .. } => self.owner.phase = OwnerPhase::Released,
            OwnershipEvent::Lost { .. } => self.owner.phase = OwnerPhase::Lost,
            OwnershipEvent::DestructiveIntent { intent, target, .. } => {
                self.owner.last_intent = *intent;
                self.owner.open_intents.open(*intent, *target);
            }
            OwnershipEvent::DestructiveDone { intent, .. } => {
                self.owner.open_intents.close(*intent);
            }
            OwnershipEvent::StorageFault { .. } => {}
        }
    }
}
