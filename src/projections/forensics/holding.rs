//! Who holds the write-ahead log, since when, and by how much.

use std::collections::BTreeMap;

use crate::domain::{EventId, Handle, Incarnation, Lsn, Oid, Seq, Sid, Timestamp, Xid};
use crate::events::{ConsumerEvent, Event, ExitCause, Recorded};
use crate::state::{Life, OwnerPhase, Shape, State, StreamPhase, Writer};

/// Shapes that owe the same transaction and have nobody to pay are a cohort from this many on.
pub const COHORT_MIN: usize = 2;

/// How the last writer of each shape ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LastExits(BTreeMap<Sid, LastExit>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastExit {
    pub event: EventId,
    pub at: Timestamp,
    pub incarnation: Incarnation,
    pub cause: ExitCause,
    pub pending: u64,
}

impl LastExits {
    pub fn observe(&mut self, recorded: &Recorded) {
        if let Event::Consumer(ConsumerEvent::Exited { sid, incarnation, cause, pending, .. }) =
            &recorded.event
        {
            let exit = LastExit {
                event: recorded.id,
                at: recorded.at,
                incarnation: *incarnation,
                cause: *cause,
                pending: *pending,
            };
            self.0.insert(*sid, exit);
        }
    }

    /// As after [`LastExits::observe`] of that exit.
    pub fn insert(&mut self, sid: Sid, exit: LastExit) {
        self.0.insert(sid, exit);
    }

    /// The shape is gone.
    pub fn forget(&mut self, sid: Sid) {
        self.0.remove(&sid);
    }

    #[must_use]
    pub fn get(&self, sid: Sid) -> Option<&LastExit> {
        self.0.get(&sid)
    }
}

/// Who is to make the next step for a shape that owes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Payer {
    /// No writer, no restart, nothing to wait for: it owes for ever.
    Nobody,
    /// A restart of the writer is due.
    Restart { attempt: u32, due: Timestamp },
    /// A writer is there.
    Writer { incarnation: Incarnation, ready: bool },
    /// The writer is ending.
    Stopping { incarnation: Incarnation },
    /// Its initial rows are not determined yet.
    Snapshot,
    /// This connection has not brought the transaction again yet.
    Redelivery,
    /// Nobody owns the directory, or its owner is draining.
    Owner,
}

/// A shape that owes something.
#[derive(Clone, Debug, PartialEq)]
pub struct Holder {
    pub sid: Sid,
    pub handle: Handle,
    pub oid: Oid,
    pub life: Life,
    pub created_at: Timestamp,
    pub oldest: Seq,
    pub lsn: Lsn,
    pub xid: Xid,
    /// WAL that this shape alone would hold.
    pub bytes: u64,
    pub pending: usize,
    /// No flush progress since.
    pub since: Timestamp,
    pub suspected: bool,
    /// It has never flushed a transaction.
    pub flushed_nothing: bool,
    pub payer: Payer,
    pub last_exit: Option<LastExit>,
}

/// The shapes whose oldest owed transaction is the same.
#[derive(Clone, Debug, PartialEq)]
pub struct Debt {
    pub oldest: Seq,
    pub lsn: Lsn,
    pub xid: Xid,
    pub bytes: u64,
    pub shapes: usize,
    /// How many of them nobody will pay for.
    pub orphans: usize,
}

/// Shapes that stopped at the same transaction and have no live writer.
#[derive(Clone, Debug, PartialEq)]
pub struct Cohort {
    pub oldest: Seq,
    pub lsn: Lsn,
    pub xid: Xid,
    pub bytes: u64,
    pub sids: Vec<Sid>,
    pub flushed_nothing: Vec<Handle>,
    pub created: (Timestamp, Timestamp),
    pub tables: BTreeMap<Oid, usize>,
    pub exits: BTreeMap<String, usize>,
    /// The first of their exits that the journal still has.
    pub first_exit: Option<LastExit>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Holding {
    pub at: EventId,
    pub time: Timestamp,
    pub received: Lsn,
    /// Everything before is flushed by every shape.
    pub boundary: Lsn,
    pub acked: Lsn,
    /// `received - boundary`: what Postgres must keep because of us.
    pub gap_bytes: u64,
    pub shapes: usize,
    /// The longest-owing first.
    pub holders: Vec<Holder>,
    pub debts: Vec<Debt>,
    /// Owing shapes by table, and how many shapes of it there are.
    pub tables: BTreeMap<Oid, (usize, usize)>,
    /// Owing shapes without a writer, by how their last writer ended.
    pub exits: BTreeMap<String, usize>,
    pub cohorts: Vec<Cohort>,
}

/// Where everything before is flushed, and up to where the stream has come.
#[must_use]
pub fn gap(state: &State) -> (Lsn, Lsn, u64) {
    let stream = &state.stream;
    let received = stream.received.max(stream.routed);
    // Before the first transaction is let go of, the stream's own beginning is all that is known.
    let begun = stream.confirmed.max(stream.acked);
    let boundary = match (state.window.oldest(), stream.routed) {
        (Some((_, txn)), _) if state.window.boundary() == Lsn(0) => begun.min(txn.lsn),
        (Some(_), _) => state.window.boundary(),
        (None, Lsn(0)) => begun.max(received),
        (None, routed) => Lsn(routed.0.saturating_add(1)),
    };
    (received, boundary, received.0.saturating_sub(boundary.0))
}

/// Who is to act next for a shape that owes `oldest`.
#[must_use]
pub fn payer(state: &State, shape: &Shape, oldest: Seq) -> Payer {
    match shape.writer {
        Writer::Live { incarnation, ready } => return Payer::Writer { incarnation, ready },
        Writer::Stopping { incarnation } => return Payer::Stopping { incarnation },
        Writer::Absent => {}
    }
    if let Some(retry) = shape.retry
        && let Some(due) = retry.due
    {
        return Payer::Restart { attempt: retry.attempts, due };
    }
    let arrived = state.stream.phase == StreamPhase::Streaming
        && state.window.get(oldest).is_some_and(|txn| txn.lsn <= state.stream.received);
    if shape.visible.is_none() {
        Payer::Snapshot
    } else if state.owner.phase != OwnerPhase::Active {
        Payer::Owner
    } else if arrived {
        Payer::Nobody
    } else {
        Payer::Redelivery
    }
}

impl Holding {
    #[must_use]
    pub fn of(state: &State, exits: &LastExits) -> Holding {
        let (received, boundary, gap_bytes) = gap(state);
        let living = state.shapes.values().filter(|shape| shape.life != Life::Invalidated);
        let mut holding = Holding {
            at: state.last,
            time: state.at,
            received,
            boundary,
            acked: state.stream.acked,
            gap_bytes,
            shapes: living.clone().count(),
            holders: Vec::new(),
            debts: Vec::new(),
            tables: BTreeMap::new(),
            exits: BTreeMap::new(),
            cohorts: Vec::new(),
        };
        for shape in living {
            holding.tables.entry(shape.oid).or_default().1 += 1;
        }
        for (sid, shape) in &state.shapes {
            let Some(oldest) = shape.pending.front().copied() else { continue };
            let holder = holder_of(state, exits, *sid, shape, oldest, received, boundary);
            holding.tables.entry(shape.oid).or_default().0 += 1;
            if shape.writer == Writer::Absent {
                *holding.exits.entry(exit_word(holder.last_exit.as_ref())).or_default() += 1;
            }
            holding.holders.push(holder);
        }
        holding.tables.retain(|_, (owing, _)| *owing > 0);
        holding.holders.sort_by_key(|holder| (holder.oldest, holder.payer, holder.sid));
        holding.debts = debts(&holding.holders);
        holding.cohorts = cohorts(&holding.holders);
        holding
    }
}

fn exit_word(exit: Option<&LastExit>) -> String {
    exit.map_or_else(|| "not in the journal".to_owned(), |exit| format!("{:?}", exit.cause))
}

/// What is to be said of one shape that owes something; `None` where it owes nothing.
#[must_use]
pub fn holder(state: &State, exits: &LastExits, sid: Sid) -> Option<Holder> {
    let shape = state.shape(sid)?;
    let oldest = shape.pending.front().copied()?;
    let (received, boundary, _) = gap(state);
    Some(holder_of(state, exits, sid, shape, oldest, received, boundary))
}

fn holder_of(
    state: &State,
    exits: &LastExits,
    sid: Sid,
    shape: &Shape,
    oldest: Seq,
    received: Lsn,
    boundary: Lsn,
) -> Holder {
    let txn = state.window.get(oldest);
    let before = state.window.get(Seq(oldest.0.saturating_sub(1)));
    // What precedes the window's first transaction is what the boundary says.
    let own_boundary = before.map_or(boundary, |txn| Lsn(txn.lsn.0.saturating_add(1)));
    Holder {
        sid,
        handle: shape.handle,
        oid: shape.oid,
        life: shape.life,
        created_at: shape.created_at,
        oldest,
        lsn: txn.map_or(Lsn(0), |txn| txn.lsn),
        xid: txn.map_or(Xid(0), |txn| txn.xid),
        bytes: received.0.saturating_sub(own_boundary.0),
        pending: shape.pending.len(),
        since: shape.progressed_at,
        suspected: shape.suspected,
        flushed_nothing: shape.routed_after.is_some_and(|(after, _)| shape.flushed <= after),
        payer: payer(state, shape, oldest),
        last_exit: exits.get(sid).copied(),
    }
}

/// `holders` ascend by transaction.
fn debts(holders: &[Holder]) -> Vec<Debt> {
    holders
        .chunk_by(|a, b| a.oldest == b.oldest)
        .map(|group| Debt {
            oldest: group[0].oldest,
            lsn: group[0].lsn,
            xid: group[0].xid,
            bytes: group[0].bytes,
            shapes: group.len(),
            orphans: group.iter().filter(|holder| holder.payer == Payer::Nobody).count(),
        })
        .collect()
}

fn cohorts(holders: &[Holder]) -> Vec<Cohort> {
    holders
        .chunk_by(|a, b| a.oldest == b.oldest)
        .filter_map(|group| {
            let orphans: Vec<&Holder> = group.iter().filter(|holder| holder.payer == Payer::Nobody).collect();
            (orphans.len() >= COHORT_MIN).then(|| cohort(&orphans))
        })
        .collect()
}

fn cohort(orphans: &[&Holder]) -> Cohort {
    let first = orphans[0];
    let mut cohort = Cohort {
        oldest: first.oldest,
        lsn: first.lsn,
        xid: first.xid,
        bytes: first.bytes,
        sids: orphans.iter().map(|holder| holder.sid).collect(),
        flushed_nothing: Vec::new(),
        created: (first.created_at, first.created_at),
        tables: BTreeMap::new(),
        exits: BTreeMap::new(),
        first_exit: None,
    };
    for holder in orphans {
        if holder.flushed_nothing {
            cohort.flushed_nothing.push(holder.handle);
        }
        cohort.created.0 = cohort.created.0.min(holder.created_at);
        cohort.created.1 = cohort.created.1.max(holder.created_at);
        *cohort.tables.entry(holder.oid).or_default() += 1;
        *cohort.exits.entry(exit_word(holder.last_exit.as_ref())).or_default() += 1;
        if let Some(exit) = holder.last_exit
            && cohort.first_exit.is_none_or(|first| exit.event < first.event)
        {
            cohort.first_exit = Some(exit);
        }
    }
    cohort
}
