//! What a start and a directory that is gone are no reason for (O5, O6).

use super::Finding;
use crate::domain::EventId;
use crate::events::{Event, FaultClass, FileKind, InvalidationCause, OwnershipEvent, Recorded, ShapeEvent};
use crate::projections::forensics::Invariant;
use crate::state::{Life, OwnerPhase, State};

#[derive(Clone, Debug, Default)]
pub(super) struct Starts {
    /// The events with which this process began: its ownership, and who it is.
    began: Vec<EventId>,
    /// The directory was seen to be gone.
    directory_gone: Option<EventId>,
    /// Files that were not there while the process was ending: somebody may be taking the directory away.
    missed_in_drain: Vec<EventId>,
}

/// Faults of one drain that are remembered: what follows from a fault follows at once.
const MISSED_MAX: usize = 64;

impl Starts {
    pub(super) fn before(&mut self, state: &State, recorded: &Recorded, findings: &mut Vec<Finding>) {
        match &recorded.event {
            Event::Ownership(event) => self.owner(state, recorded, event, findings),
            Event::Shape(ShapeEvent::Invalidated { sid, cause }) => {
                let detail = format!("shape {sid} is ended");
                let living = state.shape(*sid).is_some_and(|shape| shape.life == Life::Live);
                // A journal that lost its end is a reason of its own, whatever it is said to follow from.
                if living && *cause != InvalidationCause::JournalLost && self.follows_start(recorded) {
                    findings.push((Invariant::O5, Some(*sid), None, format!("{detail} by a start alone")));
                }
                if self.follows_loss(recorded) {
                    let detail = format!("{detail} for files that went with the directory");
                    findings.push((Invariant::O6, Some(*sid), None, detail));
                }
            }
            Event::Shape(_) | Event::Stream(_) | Event::Consumer(_) | Event::Flush(_) | Event::Journal(_) => {
            }
        }
    }

    fn owner(
        &mut self,
        state: &State,
        recorded: &Recorded,
        event: &OwnershipEvent,
        findings: &mut Vec<Finding>,
    ) {
        match event {
            OwnershipEvent::Acquired { .. } => {
                *self = Starts { began: vec![recorded.id], ..Starts::default() }
            }
            OwnershipEvent::ProcessStarted(process) => {
                self.began.push(recorded.id);
                let before = state.owner.process.format;
                if process.format < before {
                    let detail = format!("layout {} after layout {before}", process.format);
                    findings.push((Invariant::O5, None, None, detail));
                }
            }
            OwnershipEvent::DestructiveIntent { .. } => {
                if self.follows_start(recorded) {
                    findings.push((Invariant::O5, None, None, "files go by a start alone".to_owned()));
                }
                if self.follows_loss(recorded) {
                    let detail = "files go after the directory was seen to be gone".to_owned();
                    findings.push((Invariant::O6, None, None, detail));
                }
            }
            OwnershipEvent::Released { .. } => {
                if let Some(fault) = self.directory_gone {
                    let detail = format!("given back, although event {fault} saw that it is gone");
                    findings.push((Invariant::O6, None, None, detail));
                }
            }
            OwnershipEvent::StorageFault { class: FaultClass::Vanished, file, sid, .. } => {
                if *file == FileKind::Directory && sid.is_none() {
                    self.directory_gone = Some(recorded.id);
                } else if state.owner.phase == OwnerPhase::Draining && self.missed_in_drain.len() < MISSED_MAX
                {
                    self.missed_in_drain.push(recorded.id);
                }
            }
            OwnershipEvent::StorageFault { .. }
            | OwnershipEvent::DrainStarted { .. }
            | OwnershipEvent::Lost { .. }
            | OwnershipEvent::DestructiveDone { .. } => {}
        }
    }

    fn follows_start(&self, recorded: &Recorded) -> bool {
        recorded.because.is_some_and(|because| self.began.contains(&because))
    }

    fn follows_loss(&self, recorded: &Recorded) -> bool {
        self.directory_gone.is_some()
            || recorded.because.is_some_and(|because| self.missed_in_drain.contains(&because))
    }
}
