//! Moves: how a shape follows what its inner queries give.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::domain::{Lsn, PgSnapshot, Tuple, quote_identifier};
use crate::filter::subquery::{Digest, MemberPosition, RowPositions, Values};
use crate::runtime::subquery::members::{InnerRow, RowChange, RowKey};
use crate::runtime::subquery::note::Note;
use crate::runtime::subquery::outer::{AllMembers, Outer};
use crate::shape_log::{Move, move_event, snapshot_end};

/// Values of one inner query that one query asks for; the others are asked for by the next.
pub const MOVE_VALUES_MAX: usize = 2_000;

/// What is asked of Postgres for a move.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Tells its answer from that of another.
    pub id: u64,
    /// By dependency: the values that may move in with it.
    chosen: Vec<BTreeSet<Digest>>,
    /// By dependency: rows of any value may move, so all of them are asked for.
    general: Vec<bool>,
    /// By dependency: rows with a NULL in place of a value are asked for, too.
    nulls: Vec<bool>,
    /// The condition of the query; none for all rows.
    pub condition: Option<String>,
}

/// The answer: rows of one snapshot that may move in.
#[derive(Debug)]
pub struct Moved {
    pub visible: PgSnapshot,
    pub lsn: Lsn,
    pub rows: Vec<MovedRow>,
}

/// One of them.
#[derive(Debug)]
pub struct MovedRow {
    /// In the columns of [`super::tagger::RowTagger::positions`].
    pub cells: Tuple,
    /// The row as a message, without tags.
    pub json: Vec<u8>,
    /// Where the shape is an inner query itself.
    pub member: Option<(RowKey, Values)>,
}

/// What a move comes to.
#[derive(Debug, Default)]
pub struct Outcome {
    pub messages: Vec<Bytes>,
    /// See [`Note`].
    pub note: Vec<u8>,
    /// What it does to the shape's own rows, where it is an inner query.
    pub rows: Vec<RowChange>,
}

/// What it takes to follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    Nothing,
    /// Rows only leave, or none is concerned.
    Event,
    /// Rows may come in.
    Query,
}

type Patterns = BTreeSet<(usize, Digest)>;

impl Outer {
    /// What it takes to follow its inner queries now.
    #[must_use]
    pub fn need(&self, members: &AllMembers) -> Need {
        let of = |dependency: usize| {
            let differing = &self.differing[dependency];
            let Some(inner) = self.members(dependency, members).filter(|_| !differing.is_empty()) else {
                return Need::Nothing;
            };
            if self.is_indifferent(dependency, members) {
                return Need::Nothing;
            }
            let negated = self.is_negated(dependency);
            if self.is_general(dependency) || (negated && self.becomes_empty(dependency, members)) {
                return Need::Query;
            }
            let need = |entry: &super::differing::Entry| match entry.is_selected(inner) != negated {
                // A value with a NULL in it is equal to nothing.
                _ if entry.is_partial() => Need::Nothing,
                true => Need::Query,
                false => Need::Event,
            };
            differing.iter().map(|(_, entry)| need(entry)).max().unwrap_or(Need::Nothing)
        };
        (0..self.dependencies.len()).map(of).max().unwrap_or(Need::Nothing)
    }

    /// Whether rows of any value may be concerned: under NOT, or where only the hash of a value is known, which is
    /// another one where it is looked up in other columns.
    fn is_general(&self, dependency: usize) -> bool {
        let differing = &self.differing[dependency];
        let null = self.digest(dependency, &(Box::new([None]) as Values));
        let single = self.width(dependency) == 1;
        let positions = self.clause().member_positions().filter(|at| at.dependency == dependency).count();
        let unknown = || positions > 1 && differing.iter().any(|(_, entry)| entry.values.is_none());
        (self.is_negated(dependency) && !differing.is_empty() && (!single || differing.contains(&null)))
            || unknown()
    }

    /// Under NOT: the shape was made with something in the inner query, which gives nothing now. Rows with
    /// NULL come in.
    fn becomes_empty(&self, dependency: usize, members: &AllMembers) -> bool {
        let gives_nothing = self.members(dependency, members).is_some_and(|inner| inner.distinct() == 0);
        gives_nothing && !self.made_with(members).is_empty(dependency)
    }

    /// The query for the rows that may move in.
    #[must_use]
    pub fn query(&self, id: u64, members: &AllMembers) -> Query {
        let count = self.dependencies.len();
        let mut query = Query {
            id,
            chosen: vec![BTreeSet::new(); count],
            general: vec![false; count],
            nulls: vec![false; count],
            condition: None,
        };
        let mut asked: Vec<Vec<&Values>> = vec![Vec::new(); count];
        for (dependency, asked) in asked.iter_mut().enumerate() {
            let Some(inner) = self.members(dependency, members) else { continue };
            if self.is_indifferent(dependency, members) {
                continue;
            }
            let negated = self.is_negated(dependency);
            query.general[dependency] |= self.is_general(dependency);
            query.nulls[dependency] = negated && self.becomes_empty(dependency, members);
            let entering = self.differing[dependency]
                .iter()
                .filter(|(_, entry)| !entry.is_partial() && entry.is_selected(inner) != negated);
            for (digest, entry) in entering.take(MOVE_VALUES_MAX) {
                match &entry.values {
                    Some(values) => {
                        query.chosen[dependency].insert(*digest);
                        asked.push(values);
                    }
                    // Nobody knows the value: ask for all.
                    None => query.general[dependency] = true,
                }
            }
        }
        let parts: Option<Vec<String>> = self
            .clause()
            .member_positions()
            .filter(|at| {
                let dependency = at.dependency;
                query.general[dependency] || query.nulls[dependency] || !asked[dependency].is_empty()
            })
            .map(|at| self.part(&at, &query, &asked[at.dependency]))
            .collect();
        query.condition = parts.map(|parts| {
            // What was to come in may have left again: then the snapshot is wanted, and no row of it.
            if parts.is_empty() { "FALSE".to_owned() } else { parts.join(" OR ") }
        });
        query
    }

    /// The rows that may come in at one position; `None` for all.
    fn part(&self, at: &MemberPosition, query: &Query, values: &[&Values]) -> Option<String> {
        let mut all: Vec<String> =
            self.clause().plain_siblings(at.position).map(|sql| format!("({sql})")).collect();
        if !query.general[at.dependency]
            && let Some(list) = value_list(values)
            && at.literal
        {
            let columns: Vec<String> = at.columns.iter().map(|name| quote_identifier(name)).collect();
            let (left, first) = (columns.join(", "), columns.first().cloned().unwrap_or_default());
            let nulls = query.nulls[at.dependency].then(|| format!("{first} IS NULL"));
            let list = (!values.is_empty()).then(|| match columns.len() {
                1 => format!("{left} IN ({list})"),
                _ => format!("({left}) IN ({list})"),
            });
            all.push(format!("({})", nulls.into_iter().chain(list).collect::<Vec<_>>().join(" OR ")));
        }
        (!all.is_empty()).then(|| format!("({})", all.join(" AND ")))
    }

    /// Follows its inner queries with these rows; without them where rows only leave.
    pub fn follow(&mut self, members: &AllMembers, moved: Option<(&Query, Moved)>) -> Outcome {
        let (query, moved) = match moved {
            Some((query, moved)) => (Some(query), Some(moved)),
            None => (None, None),
        };
        let general = |dependency: usize| query.is_some_and(|query| query.general[dependency]);
        let general: Vec<bool> = (0..self.dependencies.len()).map(general).collect();
        let (visible, rows) = match moved {
            Some(moved) => (Some(moved.visible), moved.rows),
            None => (None, Vec::new()),
        };
        let positions = self.tagger.positions().clone();
        let seen: Vec<RowPositions> =
            rows.iter().map(|row| self.clause().look(&positions, &row.cells, None)).collect();
        let before: Vec<Vec<bool>> = seen.iter().map(|seen| self.active(seen, members)).collect();
        let mut step = Step::default();
        for (dependency, general) in general.iter().enumerate() {
            self.step(dependency, *general, query, members, &mut step);
        }
        let after: Vec<Vec<bool>> = seen.iter().map(|seen| self.active(seen, members)).collect();
        for at in self.clause().member_positions().filter(|at| general[at.dependency]) {
            for ((seen, before), after) in seen.iter().zip(&before).zip(&after) {
                let Some(values) = &seen.values[at.position] else { continue };
                let pattern = (at.position, self.clause().digest(at.position, values, self.tagger.scope()));
                match (before[at.position], after[at.position]) {
                    (false, true) => drop(step.ins.insert(pattern)),
                    (true, false) => drop(step.outs.insert(pattern)),
                    (true, true) | (false, false) => {}
                }
            }
        }
        self.mark(&mut step, members);
        let mut outcome = step.outcome();
        let mut sent = 0;
        for (((row, seen), before), after) in rows.into_iter().zip(&seen).zip(before).zip(after) {
            // Clients let values go before they let others in: a row that had only the former is gone.
            let kept: Vec<bool> = before.iter().zip(&after).map(|(a, b)| *a && *b).collect();
            if !self.clause().holds(&after) || self.clause().holds(&kept) {
                continue;
            }
            sent += 1;
            if let Some((key, values)) = row.member {
                let row = InnerRow { values, slots: self.slots(seen), active: after.clone() };
                outcome.rows.push(RowChange::Put(key, row));
            }
            let mut json = row.json;
            self.row_tags(seen, after).append_to_row(true, &mut json);
            outcome.messages.push(json.into());
        }
        if let Some(visible) = visible.filter(|_| sent > 0) {
            outcome.messages.push(snapshot_end(&visible).into());
        }
        outcome
    }

    fn active(&self, seen: &RowPositions, members: &AllMembers) -> Vec<bool> {
        self.clause().active(seen, &self.made_with(members))
    }

    /// Lets the shape be made with what one inner query gives, as far as rows for it are at hand.
    fn step(
        &mut self,
        dependency: usize,
        general: bool,
        query: Option<&Query>,
        members: &AllMembers,
        step: &mut Step,
    ) {
        let Some(inner) = members.get(&self.dependencies[dependency]) else { return };
        if self.is_indifferent(dependency, members) {
            return;
        }
        let negated = self.is_negated(dependency);
        let was_empty = self.made_with(members).is_empty(dependency);
        let nulls = query.is_some_and(|query| query.nulls[dependency]);
        let wide = negated && self.width(dependency) > 1;
        let due: Vec<Digest> = self.differing[dependency]
            .iter()
            .filter(|(digest, entry)| {
                let asked = || query.is_some_and(|query| query.chosen[dependency].contains(digest));
                let enters = entry.is_selected(inner) != negated;
                let partial = entry.is_partial();
                // Under NOT a NULL concerns rows of any value, and several columns those with a NULL in them.
                general || (partial && !negated) || (!partial && !wide && (!enters || asked()))
            })
            .map(|(digest, _)| *digest)
            .collect();
        let mut last: Option<(Digest, super::differing::Entry, bool)> = None;
        for digest in due {
            let Some(entry) = self.differing[dependency].remove(&digest) else { continue };
            let enters = entry.is_selected(inner) != negated;
            let partial = entry.is_partial();
            if enters && !partial && !general {
                last = Some((digest, entry.clone(), enters));
            }
            step.xids.extend(&entry.xids);
            if negated || !partial {
                step.note.dependencies.insert(dependency);
                step.note.entries.push((dependency, digest, entry.is_selected(inner)));
            }
            if !partial && !general {
                self.patterns(
                    dependency,
                    &digest,
                    entry.values.as_ref(),
                    if enters { &mut step.ins } else { &mut step.outs },
                );
            }
        }
        if !negated || general || self.width(dependency) != 1 {
            return;
        }
        let null: Values = Box::new([None]);
        if self.made_with(members).contains_null(dependency) {
            // Nothing comes in before that is gone.
            let of_others = |position: usize| {
                let own = |at: &MemberPosition| at.position == position && at.dependency == dependency;
                !self.clause().member_positions().any(|at| own(&at))
            };
            step.ins.retain(|(position, _)| of_others(*position));
        }
        let is_empty = self.made_with(members).is_empty(dependency);
        match (was_empty, is_empty) {
            (true, false) => self.null_pattern(dependency, &null, &mut step.outs),
            (false, true) if nulls => self.null_pattern(dependency, &null, &mut step.ins),
            (false, true) => {
                // It has become empty since it was asked: rows with NULL were not asked for. The last value
                // waits for the next query.
                if let Some((digest, entry, _)) = last {
                    let mut taken = Patterns::new();
                    self.patterns(dependency, &digest, entry.values.as_ref(), &mut taken);
                    step.ins.retain(|pattern| !taken.contains(pattern));
                    step.note.entries.retain(|(of, noted, _)| *of != dependency || *noted != digest);
                    self.differing[dependency].insert(digest, entry.values, entry.cause, entry.xids);
                }
            }
            (true, true) | (false, false) => {}
        }
    }

    /// What is noted needs a message to stand with: one about rows that have NULL where values are looked up,
    /// which are in only where nothing is given.
    fn mark(&self, step: &mut Step, members: &AllMembers) {
        if !step.outs.is_empty() || !step.ins.is_empty() {
            return;
        }
        for dependency in step.note.dependencies.clone() {
            let nulls: Values = vec![None; self.width(dependency)].into();
            let comes_in = self.is_negated(dependency) && self.made_with(members).is_empty(dependency);
            self.null_pattern(dependency, &nulls, if comes_in { &mut step.ins } else { &mut step.outs });
        }
    }

    fn patterns(&self, dependency: usize, digest: &Digest, values: Option<&Values>, out: &mut Patterns) {
        for at in self.clause().member_positions().filter(|at| at.dependency == dependency) {
            let digest = match values {
                Some(values) => self.clause().digest(at.position, values, self.tagger.scope()),
                None => *digest,
            };
            out.insert((at.position, digest));
        }
    }

    fn null_pattern(&self, dependency: usize, null: &Values, out: &mut Patterns) {
        let digest = self.digest(dependency, null);
        self.patterns(dependency, &digest, Some(null), out);
    }
}

/// What a move tells clients.
#[derive(Debug, Default)]
struct Step {
    outs: Patterns,
    ins: Patterns,
    xids: BTreeSet<u32>,
    note: Note,
}

impl Step {
    fn outcome(&self) -> Outcome {
        let xids: Vec<u64> = self.xids.iter().map(|xid| u64::from(*xid)).collect();
        let mut outcome = Outcome { note: self.note.encode(), ..Outcome::default() };
        for (to, patterns) in [(Move::Out, &self.outs), (Move::In, &self.ins)] {
            if patterns.is_empty() {
                continue;
            }
            let shown: Vec<(usize, String)> =
                patterns.iter().map(|(position, digest)| (*position, digest.to_string())).collect();
            outcome.messages.push(move_event(to, &shown, &xids).into());
            outcome.rows.push(RowChange::Turn(patterns.clone(), to == Move::In));
        }
        outcome
    }
}

/// Values as a list of SQL; `None` where one has no such form.
fn value_list(values: &[&Values]) -> Option<String> {
    let literal = |text: &Option<Box<[u8]>>| {
        let text = std::str::from_utf8(text.as_deref()?).ok()?;
        let escaped = text.replace('\\', "\\\\").replace('\'', "''");
        Some(if text.contains('\\') { format!("E'{escaped}'") } else { format!("'{escaped}'") })
    };
    let row = |values: &&Values| {
        let cells = values.iter().map(literal).collect::<Option<Vec<_>>>()?;
        Some(if cells.len() == 1 { cells.concat() } else { format!("({})", cells.join(", ")) })
    };
    values.iter().map(row).collect::<Option<Vec<_>>>().map(|rows| rows.join(", "))
}
