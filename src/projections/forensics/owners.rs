//! Who owned the directory, and when.

use crate::domain::{Epoch, EventId, Timestamp};
use crate::events::{Event, LossEvidence, OwnershipEvent, PreviousEnd, ProcessInfo, Recorded};

/// One ownership.
#[derive(Clone, Debug, PartialEq)]
pub struct Tenure {
    pub epoch: Epoch,
    pub event: EventId,
    pub from: Timestamp,
    pub waited_ms: u64,
    pub directory: (u64, u64),
    pub process: Option<ProcessInfo>,
    pub draining_since: Option<Timestamp>,
    pub end: End,
    /// The last event of this epoch.
    pub last: EventId,
    pub until: Timestamp,
    pub events: u64,
    /// Events of this epoch after another epoch had taken over: two owners at once.
    pub late: Option<Late>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Late {
    pub first: EventId,
    pub count: u64,
    pub beside: Epoch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is the owner as far as the journal tells.
    Open,
    Released,
    Lost(LossEvidence),
    /// The next owner found its lock dropped by the kernel.
    Crashed,
    /// The next owner came while it had not ended.
    Overlapped,
}

/// The time line of owners, folded from every event.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Owners {
    /// In the order in which they came.
    pub tenures: Vec<Tenure>,
    current: Epoch,
}

impl Owners {
    pub fn observe(&mut self, recorded: &Recorded) {
        if let Event::Ownership(OwnershipEvent::Acquired { previous_end, .. }) = &recorded.event {
            self.close_previous(*previous_end);
            self.begin(recorded);
            return;
        }
        let current = self.current;
        let Some(tenure) = self.tenures.iter_mut().rev().find(|tenure| tenure.epoch == recorded.epoch) else {
            return;
        };
        tenure.last = recorded.id;
        tenure.until = recorded.at;
        tenure.events += 1;
        if recorded.epoch != current {
            let late = tenure.late.get_or_insert(Late { first: recorded.id, count: 0, beside: current });
            late.count += 1;
        }
        match &recorded.event {
            Event::Ownership(OwnershipEvent::ProcessStarted(process)) => {
                tenure.process = Some(process.clone())
            }
            Event::Ownership(OwnershipEvent::DrainStarted { .. }) => {
                tenure.draining_since = Some(recorded.at)
            }
            Event::Ownership(OwnershipEvent::Released { .. }) => tenure.end = End::Released,
            Event::Ownership(OwnershipEvent::Lost { evidence, .. }) => tenure.end = End::Lost(*evidence),
            Event::Ownership(_)
            | Event::Stream(_)
            | Event::Shape(_)
            | Event::Consumer(_)
            | Event::Flush(_)
            | Event::Journal(_) => {}
        }
    }

    fn close_previous(&mut self, told: PreviousEnd) {
        if let Some(previous) = self.tenures.last_mut()
            && previous.end == End::Open
        {
            previous.end = match told {
                PreviousEnd::Crashed => End::Crashed,
                PreviousEnd::Released | PreviousEnd::None => End::Overlapped,
            };
        }
    }

    fn begin(&mut self, recorded: &Recorded) {
        let Event::Ownership(OwnershipEvent::Acquired { epoch, device, inode, waited_ms, .. }) =
            &recorded.event
        else {
            return;
        };
        self.current = *epoch;
        self.tenures.push(Tenure {
            epoch: *epoch,
            event: recorded.id,
            from: recorded.at,
            waited_ms: *waited_ms,
            directory: (*device, *inode),
            process: None,
            draining_since: None,
            end: End::Open,
            last: recorded.id,
            until: recorded.at,
            events: 1,
            late: None,
        });
    }

    /// Whether two owners were at work at once.
    #[must_use]
    pub fn overlap(&self) -> bool {
        self.tenures.iter().any(|tenure| tenure.late.is_some() || tenure.end == End::Overlapped)
    }
}
