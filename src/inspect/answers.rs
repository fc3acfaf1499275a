//! Answers as JSON, for the admin API and the page. LSNs, times and handles are text as people write them;
//! bytes and counts are numbers; times also come as microseconds since the Unix epoch (`…_us`).

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::domain::{Sid, Timestamp};
use crate::events::{self, Recorded};
use crate::projections::forensics::{
    Ack, Cohort, Debt, Diff, End, GroupChange, Holder, Holding, Kind, LastExits, LifeStory, Line, Names,
    Payer, Series, Stats, Story, Tenure, fields, gap, payer, sentence, span, subject,
};
use crate::state::{Shape, State, Writer};

use super::{Chain, ChainEnd, Findings, Link, Owing, Reason, Told, Track, View, WhyAck};

/// Shapes named in a list of a cohort or a comparison.
pub const NAMED_MAX: usize = 100;
/// Transactions in a list of debts.
pub const DEBTS_MAX: usize = 100;
/// Stretches of a time line in one answer.
pub const SAMPLES_MAX: usize = 240;

/// Who makes the next step, in a few words.
#[must_use]
pub fn pays(payer: Payer) -> String {
    match payer {
        Payer::Nobody => "nobody".to_owned(),
        Payer::Restart { attempt, due } => format!("restart {attempt} due {due}"),
        Payer::Writer { incarnation, ready: true } => format!("writer {incarnation}"),
        Payer::Writer { incarnation, ready: false } => format!("writer {incarnation}, starting"),
        Payer::Stopping { incarnation } => format!("writer {incarnation}, ending"),
        Payer::Snapshot => "its snapshot".to_owned(),
        Payer::Redelivery => "Postgres, which will send it again".to_owned(),
        Payer::Owner => "the next owner".to_owned(),
    }
}

/// What an anomaly is called.
#[must_use]
pub fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::OwnershipOverlap => "writes beside another owner",
        Kind::OwnershipLost => "ownership lost",
        Kind::OwnerCrashed => "owner died",
        Kind::JournalTorn => "journal torn",
        Kind::HistoryBroken => "history broken",
        Kind::StorageFault => "storage faults",
        Kind::StreamLost => "stream lost",
        Kind::WriterDied => "writers died",
        Kind::SnapshotFailed => "snapshots failed",
        Kind::Orphaned => "shapes orphaned",
        Kind::Violation => "invariants broken",
        Kind::Stall => "stalls suspected",
        Kind::Standstill => "standstill of the flushed position",
        Kind::ViewsDiffer => "views that differ from the fold",
        Kind::ShapeLost => "shapes lost",
    }
}

/// How an ownership ended.
#[must_use]
pub fn end_name(end: End) -> String {
    match end {
        End::Open => "it has not ended".to_owned(),
        End::Released => "released in order".to_owned(),
        End::Lost(evidence) => format!("lost: {evidence:?}"),
        End::Crashed => "crashed: the next owner found its lock dropped".to_owned(),
        End::Overlapped => "OVERLAP: the next owner came while it had not ended".to_owned(),
    }
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

fn writer(writer: Writer) -> String {
    match writer {
        Writer::Absent => "none".to_owned(),
        Writer::Live { incarnation, ready: true } => format!("writer {incarnation}"),
        Writer::Live { incarnation, ready: false } => format!("writer {incarnation}, starting"),
        Writer::Stopping { incarnation } => format!("writer {incarnation}, ending"),
    }
}

/// One shape that owes; `now` is what its age is counted to.
#[must_use]
pub fn holder(holder: &Holder, now: Timestamp) -> Value {
    json!({
        "sid": holder.sid, "shape": holder.handle.to_string(), "table": holder.oid,
        "life": format!("{:?}", holder.life),
        "created_at": holder.created_at.to_string(), "oldest": holder.oldest, "lsn": holder.lsn.to_string(),
        "xid": holder.xid, "bytes": holder.bytes, "owed": holder.pending,
        "since": holder.since.to_string(), "idle_us": micros(now.since(holder.since)),
        "idle": span(now.since(holder.since)), "suspected": holder.suspected,
        "flushed_nothing": holder.flushed_nothing, "payer": pays(holder.payer),
        "nobody": holder.payer == Payer::Nobody,
        "last_exit": holder.last_exit.map(|exit| json!({
            "event": exit.event, "at": exit.at.to_string(), "incarnation": exit.incarnation,
            "cause": format!("{:?}", exit.cause), "pending": exit.pending,
        })),
    })
}

fn cohort(cohort: &Cohort) -> Value {
    let named: Vec<String> = cohort.flushed_nothing.iter().take(NAMED_MAX).map(ToString::to_string).collect();
    json!({
        "oldest": cohort.oldest, "lsn": cohort.lsn.to_string(), "xid": cohort.xid, "bytes": cohort.bytes,
        "shapes": cohort.sids.len(), "flushed_nothing": cohort.flushed_nothing.len(),
        "flushed_nothing_named": named, "tables": tables(&cohort.tables), "exits": cohort.exits,
        "created_from": cohort.created.0.to_string(), "created_to": cohort.created.1.to_string(),
        "first_exit": cohort.first_exit.map(|exit| json!({"event": exit.event, "at": exit.at.to_string()})),
    })
}

fn tables(counts: &BTreeMap<crate::domain::Oid, usize>) -> BTreeMap<String, usize> {
    counts.iter().map(|(oid, count)| (oid.to_string(), *count)).collect()
}

/// One transaction that is owed.
#[must_use]
pub fn debt(debt: &Debt) -> Value {
    json!({
        "oldest": debt.oldest, "lsn": debt.lsn.to_string(), "xid": debt.xid, "bytes": debt.bytes,
        "shapes": debt.shapes, "nobody": debt.orphans,
    })
}

/// Who holds the log: a page of the holders, and everything that sums them up.
#[must_use]
pub fn holding(holding: &Holding, offset: usize, limit: usize) -> Value {
    let page = holding.holders.iter().skip(offset).take(limit).map(|one| holder(one, holding.time));
    let by_table: BTreeMap<String, Value> = holding
        .tables
        .iter()
        .map(|(oid, (owing, all))| (oid.to_string(), json!({"owing": owing, "shapes": all})))
        .collect();
    json!({
        "event": holding.at, "at": holding.time.to_string(), "received": holding.received.to_string(),
        "boundary": holding.boundary.to_string(), "acked": holding.acked.to_string(),
        "gap_bytes": holding.gap_bytes, "shapes": holding.shapes, "owing": holding.holders.len(),
        "nobody": nobody(holding), "offset": offset, "holders": page.collect::<Vec<_>>(),
        "transactions": holding.debts.len(),
        "debts": holding.debts.iter().take(DEBTS_MAX).map(debt).collect::<Vec<_>>(),
        "tables": by_table, "exits": holding.exits,
        "cohorts": holding.cohorts.iter().take(DEBTS_MAX).map(cohort).collect::<Vec<_>>(),
    })
}

fn nobody(holding: &Holding) -> usize {
    holding.holders.iter().filter(|holder| holder.payer == Payer::Nobody).count()
}

/// An event, in words and by its fields.
#[must_use]
pub fn event(recorded: &Recorded, names: &Names) -> Value {
    let shape = subject(&recorded.event).and_then(|sid| names.handle(sid)).map(|handle| handle.to_string());
    json!({
        "id": recorded.id, "at": recorded.at.to_string(), "at_us": recorded.at.0, "epoch": recorded.epoch,
        "because": recorded.because, "kind": recorded.event.name(), "shape": shape,
        "text": sentence(&recorded.event, names), "event": brief(fields(&recorded.event)),
    })
}

/// Sets of shapes may be long: their length, and their first members.
fn brief(mut fields: Value) -> Value {
    if let Value::Object(fields) = &mut fields {
        let mut lengths = Vec::new();
        for (name, value) in fields.iter_mut() {
            if let Value::Array(members) = value
                && members.len() > NAMED_MAX
            {
                lengths.push((format!("{name}_count"), members.len()));
                members.truncate(NAMED_MAX);
            }
        }
        fields.extend(lengths.into_iter().map(|(name, count)| (name, json!(count))));
    }
    fields
}

/// An event of the running service.
#[must_use]
pub fn told(told: &Told) -> Value {
    json!({
        "id": told.id, "at": told.at.to_string(), "at_us": told.at.0, "epoch": told.epoch,
        "because": told.because, "kind": told.kind, "shape": told.shape, "text": told.text,
    })
}

/// The state without its shapes: as `state --brief`, with what can be counted.
#[must_use]
pub fn state(state: &State) -> Value {
    let (owner, stream) = (&state.owner, &state.stream);
    let (received, boundary, bytes) = gap(state);
    let owing = state.shapes.values().filter(|shape| !shape.pending.is_empty()).count();
    json!({
        "event": state.last, "at": state.at.to_string(), "at_us": state.at.0,
        "owner": {
            "phase": format!("{:?}", owner.phase), "epoch": owner.epoch, "pid": owner.process.pid,
            "host": owner.process.host, "boot_id": owner.process.boot_id, "version": owner.process.version,
        },
        "stream": {
            "phase": format!("{:?}", stream.phase), "connection": stream.generation,
            "received": received.to_string(), "routed": stream.routed.to_string(),
            "boundary": boundary.to_string(), "acked": stream.acked.to_string(),
            "confirmed": stream.confirmed.to_string(), "timeline": stream.timeline,
        },
        "gap_bytes": bytes, "window": state.window.len(), "owing": owing, "shapes": state.shapes.len(),
        "census": census(&super::Census::of(state)),
    })
}

/// Shapes and writers by state.
#[must_use]
pub fn census(census: &super::Census) -> Value {
    let [registered, snapshotting, live, invalidated] = census.lives;
    let [ready, starting, ending, absent] = census.writers;
    json!({
        "lives": {
            "Registered": registered, "Snapshotting": snapshotting, "Live": live, "Invalidated": invalidated,
        },
        "writers": {"ready": ready, "starting": starting, "ending": ending, "none": absent},
        "tables": census.tables.len(),
    })
}

/// What is happening now, without looking at more shapes than are shown.
#[must_use]
pub fn now(view: &View, holders_max: usize) -> Value {
    let state = &view.state;
    let (received, boundary, bytes) = gap(state);
    let (owner, stream) = (&state.owner, &state.stream);
    let holders: Vec<Value> = view
        .tracker
        .blockers()
        .take(holders_max)
        .filter_map(|(_, sid)| crate::projections::forensics::holder(state, &view.exits, sid))
        .map(|one| holder(&one, state.at))
        .collect();
    let slot = view.slot.as_ref().map(|(name, confirmed, restart, at)| {
        json!({
            "name": name, "confirmed": confirmed.to_string(), "restart": restart.to_string(),
            "seen": at.to_string(),
        })
    });
    json!({
        "event": state.last, "at": state.at.to_string(), "at_us": state.at.0,
        "received": received.to_string(), "boundary": boundary.to_string(),
        "acked": stream.acked.to_string(), "routed": stream.routed.to_string(), "gap_bytes": bytes,
        "still_since": view.still_since.map(|at| at.to_string()),
        "still_since_us": view.still_since.map(|at| at.0),
        "owner": {
            "phase": format!("{:?}", owner.phase), "epoch": owner.epoch, "pid": owner.process.pid,
            "host": owner.process.host, "boot_id": owner.process.boot_id, "version": owner.process.version,
        },
        "stream": {
            "phase": format!("{:?}", stream.phase), "connection": stream.generation,
            "lock_held": stream.lock_held, "timeline": stream.timeline,
            "routing_lag_us": view.routing_lag.map(micros),
        },
        "slot": slot, "shapes": state.shapes.len(), "owing": view.tracker.pending_shapes(),
        "window": state.window.len(), "census": census(&view.census), "holders": holders,
        "series": series(&view.series),
    })
}

/// Lines over time, one array for each, so that a chart can be drawn at once.
#[must_use]
pub fn series(series: &Series) -> Value {
    let samples: Vec<_> = series.samples().collect();
    json!({
        "at_us": samples.iter().map(|sample| sample.at.0).collect::<Vec<_>>(),
        "until_us": series.until().0,
        "gap_bytes": samples.iter().map(|sample| sample.gap_bytes).collect::<Vec<_>>(),
        "owing": samples.iter().map(|sample| sample.pending).collect::<Vec<_>>(),
        "invalidated": samples.iter().map(|sample| sample.invalidated).collect::<Vec<_>>(),
        "epoch": samples.iter().map(|sample| sample.epoch).collect::<Vec<_>>(),
    })
}

/// One shape in a list.
#[must_use]
pub fn shape(state: &State, sid: Sid, shape: &Shape) -> Value {
    let oldest = shape.pending.front().copied();
    json!({
        "sid": sid, "shape": shape.handle.to_string(), "table": shape.oid,
        "life": format!("{:?}", shape.life), "writer": writer(shape.writer),
        "owed": shape.pending.len(), "oldest": oldest, "flushed": shape.flushed,
        "created_at": shape.created_at.to_string(), "progressed_at": shape.progressed_at.to_string(),
        "suspected": shape.suspected,
        "payer": oldest.map(|oldest| pays(payer(state, shape, oldest))),
        "invalidated": shape.invalidated.map(|ended| json!({
            "cause": format!("{:?}", ended.cause), "event": ended.event, "at": ended.at.to_string(),
        })),
    })
}

/// One writer in a list, with how the one before it ended.
#[must_use]
pub fn consumer(state: &State, exits: &LastExits, sid: Sid, one: &Shape) -> Value {
    let mut answer = shape(state, sid, one);
    answer["last_exit"] = exits.get(sid).map_or(Value::Null, |exit| {
        json!({
            "event": exit.event, "at": exit.at.to_string(), "incarnation": exit.incarnation,
            "cause": format!("{:?}", exit.cause),
        })
    });
    answer
}

fn line(line: &Line) -> Value {
    json!({
        "event": line.event, "at": line.at.to_string(), "because": line.because, "text": line.text,
    })
}

/// The life of one shape; `None` where there never was one.
#[must_use]
pub fn life(source: &super::Source, sid: Sid, lines_max: usize) -> Option<Value> {
    let mut state = source.beginning();
    let mut names = Names::of(&state);
    let (mut story, mut lines, mut count) = (LifeStory::of(sid), Vec::new(), 0_usize);
    let mut keep = |told: Line| {
        count += 1;
        if lines.len() < lines_max {
            lines.push(line(&told));
        }
    };
    for recorded in source.events(state.last.next()) {
        names.learn(&recorded);
        state.apply(&recorded);
        story.hear(&state, &recorded, &names).into_iter().for_each(&mut keep);
    }
    story.finish().into_iter().for_each(&mut keep);
    (count > 0).then(|| {
        json!({
            "shape": names.call(sid), "sid": sid, "lines": lines, "lines_count": count,
            "today": state.shape(sid).map(|own| shape(&state, sid, own)),
        })
    })
}

fn link(link: &Link) -> Value {
    json!({"event": link.event, "at": link.at.to_string(), "text": link.text})
}

/// An event and what it was decided upon.
#[must_use]
pub fn chain(chain: &Chain) -> Value {
    let end = match chain.end {
        ChainEnd::World => "that is what the world told us: nothing in the journal caused it".to_owned(),
        ChainEnd::Missing(id) => format!("event {id} is not in the journal any more"),
        ChainEnd::Cut => "it goes on".to_owned(),
    };
    json!({"links": chain.links.iter().map(link).collect::<Vec<_>>(), "end": end})
}

fn owing(owing: &Owing) -> Value {
    json!({
        "sid": owing.sid, "shape": owing.handle.to_string(), "owed": owing.pending, "oldest": owing.oldest,
        "idle": span(owing.idle), "payer": pays(owing.payer), "nobody": owing.payer == Payer::Nobody,
        "routed": owing.routed.as_ref().map(link), "exit": owing.exit.as_ref().map(chain),
    })
}

/// Why a shape stands as it stands.
#[must_use]
pub fn reason(reason: &Reason) -> Value {
    match reason {
        Reason::Settled(handle) => json!({"is": "settled", "shape": handle.to_string()}),
        Reason::Owing(found) => json!({"is": "owing", "owing": owing(found)}),
        Reason::Ended(found) => json!({"is": "ended", "chain": chain(found)}),
        Reason::Unknown => json!({"is": "unknown"}),
    }
}

/// Why the acknowledgement stands where it stands.
#[must_use]
pub fn why_ack(why: &WhyAck) -> Value {
    let held = &why.holding;
    json!({
        "event": held.at, "at": held.time.to_string(), "received": held.received.to_string(),
        "boundary": held.boundary.to_string(), "acked": held.acked.to_string(), "gap_bytes": held.gap_bytes,
        "oldest": held.debts.first().map(debt), "first": why.first.as_ref().map(owing),
    })
}

fn group(change: &GroupChange) -> Value {
    json!({
        "before": change.before, "after": change.after, "stayed": change.stayed,
        "removed": change.removed, "moved": change.moved, "joined": change.joined,
        "created": change.created,
    })
}

/// What changed between two moments.
#[must_use]
pub fn diff(diff: &Diff, limit: Option<u64>) -> Value {
    let moment = |moment: &crate::projections::forensics::Moment| {
        json!({
            "event": moment.at, "at": moment.time.to_string(), "received": moment.received.to_string(),
            "boundary": moment.boundary.to_string(), "acked": moment.acked.to_string(),
            "gap_bytes": moment.gap_bytes, "shapes": moment.shapes, "owing": moment.owing,
            "epoch": moment.epoch,
        })
    };
    let stuck: Vec<Value> = diff
        .stuck
        .iter()
        .map(|(seq, (lsn, change))| json!({"oldest": seq, "lsn": lsn.to_string(), "change": group(change)}))
        .collect();
    let named = |handles: &[crate::domain::Handle]| {
        handles.iter().take(NAMED_MAX).map(ToString::to_string).collect::<Vec<_>>()
    };
    json!({
        "before": moment(&diff.before), "after": moment(&diff.after), "elapsed": span(diff.elapsed),
        "elapsed_us": micros(diff.elapsed), "gap_rate": diff.gap_rate(),
        "time_to_limit": limit.and_then(|limit| diff.time_to(limit)).map(span),
        "stuck": stuck, "owing": group(&diff.owing), "settled": group(&diff.settled),
        "removed": diff.removed.len(), "removed_named": named(&diff.removed),
        "created": diff.created.len(), "created_named": named(&diff.created),
    })
}

/// One story of an incident.
#[must_use]
pub fn story(story: &Story) -> Value {
    let kinds: Vec<Value> =
        story.kinds.iter().map(|(kind, count)| json!({"kind": kind_name(*kind), "count": count})).collect();
    let anomaly = |anomaly: &crate::projections::forensics::Anomaly| {
        json!({
            "kind": kind_name(anomaly.kind), "event": anomaly.event, "at": anomaly.at.to_string(),
            "at_us": anomaly.at.0, "text": anomaly.text,
        })
    };
    json!({
        "from": story.from.to_string(), "from_us": story.from.0, "until": story.until.to_string(),
        "until_us": story.until.0, "lasted": span(story.until.since(story.from)), "open": story.open,
        "first": anomaly(&story.first), "kinds": kinds, "shapes": story.shapes.len(),
        "invalidated": story.invalidated, "gap_bytes": story.gap_bytes,
        "examples": story.examples.iter().map(anomaly).collect::<Vec<_>>(),
    })
}

/// One ownership.
#[must_use]
pub fn tenure(tenure: &Tenure) -> Value {
    let (device, inode) = tenure.directory;
    json!({
        "epoch": tenure.epoch, "from": tenure.from.to_string(), "from_us": tenure.from.0,
        "until": tenure.until.to_string(), "until_us": tenure.until.0, "event": tenure.event,
        "last": tenure.last, "events": tenure.events, "waited_ms": tenure.waited_ms,
        "device": device, "inode": inode,
        "process": tenure.process.as_ref().map(|process| json!({
            "pid": process.pid, "host": process.host, "boot_id": process.boot_id,
            "version": process.version, "config_hash": format!("{:016x}", process.config_hash),
        })),
        "draining_since": tenure.draining_since.map(|at| at.to_string()),
        "end": end_name(tenure.end),
        "late": tenure.late.map(|late| json!({
            "first": late.first, "count": late.count, "beside": late.beside,
        })),
    })
}

/// One acknowledgement, judged.
#[must_use]
pub fn ack(ack: &Ack) -> Value {
    json!({
        "event": ack.event, "at": ack.at.to_string(), "lsn": ack.lsn.to_string(),
        "cause": format!("{:?}", ack.cause), "safe": ack.safe, "gap_bytes": ack.gap_bytes,
        "owed": ack.owed.map(|(seq, lsn)| json!({"oldest": seq, "lsn": lsn.to_string()})),
        "holder": ack.holder.map(|(sid, handle, count)| json!({
            "sid": sid, "shape": handle.to_string(), "shapes": count,
        })),
    })
}

/// How much of what.
#[must_use]
pub fn stats(stats: &Stats) -> Value {
    let kinds: BTreeMap<&str, Value> = stats
        .kinds
        .iter()
        .map(|(kind, (count, bytes))| (*kind, json!({"events": count, "bytes": bytes})))
        .collect();
    json!({
        "events": stats.events, "bytes": stats.bytes, "transactions": stats.transactions,
        "changes": stats.changes, "deliveries": stats.deliveries, "kinds": kinds,
        "first": stats.first.map(|(id, _)| id), "last": stats.last.map(|(id, _)| id),
        "elapsed_us": micros(stats.elapsed()), "peak": stats.peak.0, "peak_at": stats.peak.1.to_string(),
    })
}

/// What a check of every invariant found.
#[must_use]
pub fn findings(found: &Findings, listed_max: usize) -> Value {
    let violations: Vec<Value> = found
        .violations
        .iter()
        .take(listed_max)
        .map(|violation| {
            json!({
                "invariant": format!("{:?}", violation.invariant), "event": violation.event,
                "sid": violation.sid, "detail": violation.detail,
            })
        })
        .collect();
    json!({
        "events": found.events, "first": found.first, "damaged": found.damages, "damage": found.damage,
        "broken": found.violations.len(), "violations": violations, "unchecked": found.unchecked,
    })
}

/// A whole history at a glance: where it begins and ends, the lines over it, what was unusual, its owners.
#[must_use]
pub fn track(track: &Track, apart: Duration, stories_max: usize) -> Value {
    let (stories, dropped) = track.stories(apart);
    let state = track.state();
    let tenures = &track.owners().tenures;
    json!({
        "first": track.first().map(|(id, _)| id),
        "first_us": track.first().map(|(_, at)| at.0),
        "last": state.last, "last_us": state.at.0, "last_at": state.at.to_string(),
        "series": series(track.series()),
        "stories_count": stories.len(), "anomalies_not_kept": dropped,
        "stories": stories.iter().take(stories_max).map(story).collect::<Vec<_>>(),
        "owners_count": tenures.len(),
        "owners": tenures.iter().take(stories_max).map(tenure).collect::<Vec<_>>(),
        "overlap": track.owners().overlap(),
    })
}

/// The names of every kind of event.
#[must_use]
pub fn kinds() -> &'static [&'static str] {
    events::names()
}
