//! Every acknowledgement, who held it, and whether it was safe.

use std::time::Duration;

use crate::domain::{EventId, Handle, Lsn, Seq, Sid, Timestamp};
use crate::events::{AckCause, Event, Recorded, StreamEvent};
use crate::projections::forensics::holding::gap;
use crate::state::State;

/// One acknowledgement, judged against the state before it.
#[derive(Clone, Debug, PartialEq)]
pub struct Ack {
    pub event: EventId,
    pub at: Timestamp,
    pub lsn: Lsn,
    pub cause: AckCause,
    /// The oldest transaction that is owed: it may not be passed.
    pub owed: Option<(Seq, Lsn)>,
    /// A shape that owes it, and how many do.
    pub holder: Option<(Sid, Handle, u32)>,
    pub safe: bool,
    pub gap_bytes: u64,
}

/// Judges an acknowledgement; `None` for any other event.
#[must_use]
pub fn judge(before: &State, recorded: &Recorded) -> Option<Ack> {
    let Event::Stream(StreamEvent::AckSent { lsn, cause }) = &recorded.event else { return None };
    let oldest = before.window.oldest();
    let holder = oldest.and_then(|(seq, txn)| {
        let owes = |sid: &Sid| before.shape(*sid).is_some_and(|shape| shape.pending.front() == Some(&seq));
        let sid = txn.set.iter().find(owes)?;
        Some((sid, before.shape(sid)?.handle, txn.owed))
    });
    Some(Ack {
        event: recorded.id,
        at: recorded.at,
        lsn: *lsn,
        cause: *cause,
        owed: oldest.map(|(seq, txn)| (seq, txn.lsn)),
        holder,
        safe: oldest.is_none_or(|(_, txn)| *lsn <= txn.lsn),
        gap_bytes: gap(before).2,
    })
}

/// All of them in short.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AckSummary {
    pub count: u64,
    pub unsafe_count: u64,
    pub first_unsafe: Option<EventId>,
    /// The longest time between two, and the event that ended it.
    pub longest_pause: Option<(Duration, EventId)>,
    last: Option<Timestamp>,
}

impl AckSummary {
    pub fn add(&mut self, ack: &Ack) {
        self.count += 1;
        if !ack.safe {
            self.unsafe_count += 1;
            self.first_unsafe = self.first_unsafe.or(Some(ack.event));
        }
        if let Some(last) = self.last {
            let pause = ack.at.since(last);
            if self.longest_pause.is_none_or(|(longest, _)| pause > longest) {
                self.longest_pause = Some((pause, ack.event));
            }
        }
        self.last = Some(ack.at);
    }

    /// Time of the newest.
    #[must_use]
    pub fn last(&self) -> Option<Timestamp> {
        self.last
    }
}
