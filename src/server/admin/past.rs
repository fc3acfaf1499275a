//! Questions about a history, at any place in it.

use std::sync::Arc;

use axum::extract::{Path, State};
use serde_json::{Value, json};

use crate::domain::{EventId, Oid};
use crate::inspect::answers;
use crate::inspect::{self, Choice, Diff, Filter, History, Position, Source, Stats};

use super::Admin;
use super::answer::{Answer, Json, Refusal};
use super::question::{Asked, Question, place};

/// Stories, owners and violations in one answer.
const STORIES_MAX: usize = 200;
/// Holders that come with a moment; `holding` has all of them.
const MOMENT_HOLDERS_MAX: usize = 10;
/// Lines of one shape's life.
const LIFE_LINES_MAX: usize = 2_000;
/// Events looked at for one page of those that a filter lets through.
const SCANNED_EVENTS_MAX: usize = 200_000;
/// Shapes looked at for one page of those that a filter lets through.
const SCANNED_SHAPES_MAX: usize = 50_000;

impl Admin {
    /// Has a question answered from the journal that it names.
    async fn past(
        &self,
        question: Question,
        answer: impl FnOnce(&History, &Source, &Question) -> Result<Value, Refusal> + Send + 'static,
    ) -> Answer {
        let history = self.history(question.journal.as_deref())?;
        let answered = self.heavy.ask(move |gone| {
            history.ask(Some(gone), |source| answer(&history, source, &question)).map_err(Refusal::from)?
        });
        Ok(Json(answered.await?))
    }
}

/// How far the first reading of a whole journal is. Needs no turn: it is for those who wait for theirs.
pub(super) async fn progress(State(admin): State<Arc<Admin>>, Asked(question): Asked) -> Answer {
    let (at, last) = admin.history(question.journal.as_deref())?.how_far();
    Ok(Json(json!({"event": at, "last": last})))
}

/// Everything that a moment is looked at for: the state, the event, who holds the log, and why.
pub(super) async fn moment(State(admin): State<Arc<Admin>>, Asked(question): Asked) -> Answer {
    let answer = |history: &History, source: &Source, question: &Question| {
        let moment = history.moment(source, question.at()?);
        let event = source.event(moment.state.last);
        let why = inspect::why_ack(source, &moment.state, &moment.exits);
        let event = history.track(source, |track| event.map(|event| answers::event(&event, track.names())));
        Ok(json!({
            "state": answers::state(&moment.state), "event": event,
            "holding": answers::holding(&moment.holding, 0, MOMENT_HOLDERS_MAX),
            "why": answers::why_ack(&why),
        }))
    };
    admin.past(question, answer).await
}

pub(super) async fn state(State(admin): State<Arc<Admin>>, Asked(question): Asked) -> Answer {
    let answer = |history: &History, source: &Source, question: &Question| {
        Ok(answers::state(&history.moment(source, question.at()?).state))
    };
    admin.past(question, answer).await
}

pub(super) async fn holding(State(admin): State<Arc<Admin>>, Asked(question): Asked) -> Answer {
    let answer = |history: &History, source: &Source, question: &Question| {
        let moment = history.moment(source, question.at()?);
        Ok(answers::holding(&moment.holding, question.offset, question.limit()))
    };
    admin.past(question, answer).await
}

pub(super) async fn consumers(State(admin): State<Arc<Admin>>, Asked(question): Asked) -> Answer {
    let answer = |history: &History, source: &Source, question: &Question| {
        let moment = history.moment(source, question.at()?);
        let state = &moment.state;
        let shown = |shape: &inspect::Shape| {
            let absent = shape.writer.incarnation().is_none();
            if absent { !shape.pending.is_empty() } else { !question.dead }
        };
        let all: Vec<_> = state.shapes.iter().filter(|(_, shape)| shown(shape)).collect();
        let page = all.iter().skip(question.offset).take(question.limit());
        let consumers: Vec<Value> =
            page.map(|(sid, shape)| answers::consumer(state, &moment.exits, **sid, shape)).collect();
        Ok(json!({
            "event": state.last, "at": state.at.to_string(), "count": all.len(),
            "census": answers::census(&inspect::Census::of(state)), "consumers": consumers,
        }))
    };
    admin.past(question, answer).await
}

pub(super) async fn shapes(State(admin): State<Arc<Admin>>, Asked(question): Asked) -> Answer {
    if question.at.is_none()
        && question.journal.is_none()
        && let Some(observed) = admin.observed()
    {
        return Ok(Json(shapes_of(&observed.live.view().state, &question)));
    }
    let answer = |history: &History, source: &Source, question: &Question| {
        Ok(shapes_of(&history.moment(source, question.at()?).state, question))
    };
    admin.past(question, answer).await
}

/// A page of shapes behind a number. Ends early where many are looked at and few wanted: `next` goes on.
fn shapes_of(state: &inspect::State, question: &Question) -> Value {
    let after = u32::try_from(question.after.unwrap_or(0)).unwrap_or(u32::MAX - 1);
    let wanted = |shape: &inspect::Shape| {
        (!question.owing || !shape.pending.is_empty())
            && question.table.is_none_or(|oid| shape.oid == Oid(oid))
            && question.life.as_ref().is_none_or(|life| format!("{:?}", shape.life) == *life)
            && question.shape.as_ref().is_none_or(|part| shape.handle.to_string().contains(part.as_str()))
    };
    let (mut shapes, mut next) = (Vec::new(), None);
    let behind = (std::ops::Bound::Excluded(crate::domain::Sid(after)), std::ops::Bound::Unbounded);
    for (looked_at, (sid, shape)) in state.shapes.range(behind).enumerate() {
        if shapes.len() == question.limit() || looked_at == SCANNED_SHAPES_MAX {
            next = Some(sid.0 - 1);
            break;
        }
        if wanted(shape) {
            shapes.push(answers::shape(state, *sid, shape));
        }
    }
    json!({
        "event": state.last, "at": state.at.to_string(), "count": state.shapes.len(), "shapes": shapes,
        "next": next,
    })
}

pub(super) async fn owners(State(admin): State<Arc<Admin>>, Asked(question): Asked) -> Answer {
    let answer = |history: &History, source: &Source, question: &Question| {
        Ok(history.track(source, |track| {
            let owners = track.owners();
            let page = owners.tenures.iter().skip(question.offset).take(question.limit());
            json!({
                "count": owners.tenures.len(), "overlap": owners.overlap(),
                "owners": page.map(answers::tenure).collect::<Vec<_>>(),
            })
        }))
    };
    admin.past(question, answer).await
}

pub(super) async fn acks(State(admin): State<Arc<Admin>>, Asked(question): Asked) -> Answer {
    let answer = |history: &History, source: &Source, question: &Question| {
        let from = place(question.from.as_deref(), Position::Event(EventId(1)))?;
        let to = place(question.to.as_deref(), Position::End)?;
        let (from, to) = (source.resolve(from), source.resolve(to));
        let start = history.track(source, |track| track.before(from));
        let (summary, kept) =
            inspect::acks(source, start, (from, to), question.broken, (question.offset, question.limit()));
        Ok(json!({
            "count": summary.count, "unsafe": summary.unsafe_count,
            "first_unsafe": summary.first_unsafe,
            "acks": kept.iter().map(answers::ack).collect::<Vec<_>>(),
        }))
    };
    admin.past(question, answer).await
}

pub(super) async fn shape(
    State(admin): State<Arc<Admin>>,
    Path(called): Path<String>,
    Asked(question): Asked,
) -> Answer {
    let answer = move |_: &History, source: &Source, _: &Question| {
        let sid = source.shape(&called)?;
        let life = answers::life(source, sid, LIFE_LINES_MAX);
        life.ok_or_else(|| inspect::AskError::UnknownShape(called).into())
    };
    admin.past(question, answer).await
}

pub(super) async fn why(
    State(admin): State<Arc<Admin>>,
    Path(what): Path<String>,
    Asked(question): Asked,
) -> Answer {
    let answer = move |history: &History, source: &Source, question: &Question| {
        let moment = history.moment(source, question.at()?);
        let (state, exits) = (&moment.state, &moment.exits);
        if what == "ack" {
            return Ok(answers::why_ack(&inspect::why_ack(source, state, exits)));
        }
        Ok(answers::reason(&inspect::why(source, state, exits, &what)?))
    };
    admin.past(question, answer).await
}

pub(super) async fn chain(
    State(admin): State<Arc<Admin>>,
    Path(event): Path<u64>,
    Asked(question): Asked,
) -> Answer {
    let answer = move |history: &History, source: &Source, _: &Question| {
        Ok(history
            .track(source, |track| answers::chain(&inspect::chain(source, track.names(), EventId(event)))))
    };
    admin.past(question, answer).await
}

pub(super) async fn diff(State(admin): State<Arc<Admin>>, Asked(question): Asked) -> Answer {
    let answer = |history: &History, source: &Source, question: &Question| {
        let before = place(question.before.as_deref(), Position::Event(EventId(1)))?;
        let (before, after) = (history.moment(source, before), history.moment(source, question.at()?));
        Ok(answers::diff(&Diff::between(&before.state, &after.state), question.bytes))
    };
    admin.past(question, answer).await
}

/// Events behind a number, those that the filters let through. `next` goes on.
pub(super) async fn events(State(admin): State<Arc<Admin>>, Asked(question): Asked) -> Answer {
    let answer = |history: &History, source: &Source, question: &Question| {
        let mut filter = Filter::default();
        filter.kinds = question.kind.iter().flat_map(|kinds| kinds.split(',')).map(str::to_owned).collect();
        if let Some(kind) = filter.kinds.iter().find(|kind| !answers::kinds().contains(&kind.as_str())) {
            return Err(Refusal::Wrong(format!("no event is called {kind:?}")));
        }
        filter.table = question.table.map(Oid);
        filter.shape = question.shape.as_deref().map(|shape| source.shape(shape)).transpose()?;
        let (mut found, mut next, mut last) = (Vec::new(), None, question.after.unwrap_or(0));
        let first = EventId(last.saturating_add(1));
        history.track(source, |track| {
            for (looked_at, recorded) in source.events(first).enumerate() {
                if found.len() == question.limit() || looked_at == SCANNED_EVENTS_MAX {
                    next = Some(last);
                    break;
                }
                last = recorded.id.0;
                if filter.choose(&recorded, track.names()) == Choice::Show {
                    found.push(answers::event(&recorded, track.names()));
                }
            }
        });
        Ok(json!({"events": found, "next": next}))
    };
    admin.past(question, answer).await
}

pub(super) async fn timeline(State(admin): State<Arc<Admin>>, Asked(question): Asked) -> Answer {
    let answer = |history: &History, source: &Source, question: &Question| {
        Ok(history.track(source, |track| answers::track(track, question.window(), STORIES_MAX)))
    };
    admin.past(question, answer).await
}

pub(super) async fn incident(State(admin): State<Arc<Admin>>, Asked(question): Asked) -> Answer {
    let answer = |history: &History, source: &Source, question: &Question| {
        let (stories, dropped) = history.track(source, |track| track.stories(question.window()));
        let page = stories.iter().skip(question.offset).take(question.limit());
        Ok(json!({
            "count": stories.len(), "anomalies_not_kept": dropped,
            "stories": page.map(answers::story).collect::<Vec<_>>(),
        }))
    };
    admin.past(question, answer).await
}

pub(super) async fn verify(State(admin): State<Arc<Admin>>, Asked(question): Asked) -> Answer {
    let answer = |_: &History, source: &Source, _: &Question| {
        Ok(answers::findings(&inspect::check(source), STORIES_MAX))
    };
    admin.past(question, answer).await
}

pub(super) async fn stats(State(admin): State<Arc<Admin>>, Asked(question): Asked) -> Answer {
    let answer = |_: &History, source: &Source, _: &Question| {
        let mut totals = Stats::default();
        source.sized_events(EventId(1)).for_each(|(recorded, bytes)| totals.add(&recorded, bytes));
        Ok(answers::stats(&totals))
    };
    admin.past(question, answer).await
}
