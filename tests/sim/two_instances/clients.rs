//! Clients of both instances, in a model of the read path: what one sees is a view that is taken once.

use shapefold::domain::{DefinitionHash, Incarnation, Lsn, Seq, Sid};
use shapefold::state::{Life, OwnerPhase};
use shapefold::testing::model::postgres::definition as model_definition;

use super::pair::{Pair, Protocol, Up};

pub struct Client {
    definition: DefinitionHash,
    shape: Option<Sid>,
    /// Up to here, by commits.
    from: Lsn,
    /// The commits whose rows it was sent, in this order.
    rows: Vec<Lsn>,
    looking: Option<View>,
    /// It waits for a log with more in it than this.
    asleep: Option<(usize, usize)>,
}

/// One immutable state of a log.
#[derive(Clone)]
struct View {
    who: usize,
    shape: Sid,
    log: Vec<Lsn>,
    /// All of these commits that concern the shape are in it.
    mark: Option<Lsn>,
    writer: Option<Incarnation>,
}

impl View {
    fn last(&self) -> Lsn {
        self.log.last().copied().unwrap_or_default()
    }
}

impl Client {
    pub fn new(definition: u64) -> Client {
        Client {
            definition: DefinitionHash(definition),
            shape: None,
            from: Lsn(0),
            rows: Vec::new(),
            looking: None,
            asleep: None,
        }
    }

    pub fn shape(&self) -> Option<Sid> {
        self.shape
    }

    fn refetch(&mut self) {
        *self = Client::new(self.definition.0);
    }
}

impl Pair {
    /// A client asks an instance, or reads the answer to what it asked.
    pub fn client_works(&mut self, number: usize, who: usize) {
        if self.clients[number].asleep.is_some() && !self.wakes(number) {
            return;
        }
        match self.clients[number].looking.take() {
            Some(view) => self.reads(number, view),
            None => self.asks(number, who),
        }
    }

    fn asks(&mut self, number: usize, who: usize) {
        let (shape, definition) = (self.clients[number].shape, self.clients[number].definition);
        let found = match shape {
            Some(sid) => self.view(who, sid),
            None => self.served(who, definition).into_iter().next(),
        };
        match (found, shape) {
            (Some(view), _) => {
                // An answer that was begun before is another matter.
                if self.gone.contains(&(who, view.shape)) {
                    let why =
                        format!("L6: shape {} is served, and a client was told that it is gone", view.shape);
                    return self.world.fail(why);
                }
                self.clients[number].looking = Some(view);
                if self.world.choices.chance(60) {
                    self.client_works(number, who);
                }
            }
            // 409, once it is decided for good.
            (None, Some(sid)) if self.is_gone(who, sid) => {
                self.gone.insert((who, sid));
                self.clients[number].refetch();
                self.count("refetches");
            }
            // A first request makes the shape, where somebody may.
            (None, None) if self.up[who] == Up::Owner && self.world.choices.chance(50) => {
                self.as_process(who, |world| world.create_shape(definition, model_definition(definition).0));
            }
            (None, _) => {}
        }
    }

    fn reads(&mut self, number: usize, view: View) {
        if self.up[view.who] == Up::Down {
            // The connection broke.
            return;
        }
        let (protocol, from) = (self.protocol, self.clients[number].from);
        let later = self.view(view.who, view.shape).unwrap_or_else(|| view.clone());
        if protocol == Protocol::ReadersDieWithWriters && later.writer != view.writer {
            return self.world.fail("P5: an answer fails with the writer that published it");
        }
        let (mut end, mut body) = (view.last(), view.log.clone());
        match protocol {
            Protocol::OffsetOfALaterView => end = later.last(),
            Protocol::BodyOfALaterView => body.clone_from(&later.log),
            _ => {}
        }
        if end < from && protocol != Protocol::OffsetsFallBack {
            // It has read rows that a crash took: they come again, to the same places.
            return;
        }
        let fresh: Vec<Lsn> = body.into_iter().filter(|lsn| *lsn > from).collect();
        if fresh.is_empty() && end == from {
            self.sleeps(number, &view);
        }
        self.takes(number, &view, end, fresh);
    }

    /// It found nothing new: it waits for more than it has looked at.
    fn sleeps(&mut self, number: usize, view: &View) {
        let seen = match self.protocol {
            // Registered only now, when more may have come.
            Protocol::RegistersAfterTheCheck => {
                self.view(view.who, view.shape).map_or(view.log.len(), |now| now.log.len())
            }
            _ => view.log.len(),
        };
        self.clients[number].asleep = Some((view.who, seen));
        self.count("P6: clients that waited");
    }

    /// P6: a log that has grown wakes who waits for it.
    fn wakes(&mut self, number: usize) -> bool {
        let client = &self.clients[number];
        let (Some((who, seen)), Some(sid)) = (client.asleep, client.shape) else { return true };
        let now = self.view(who, sid);
        let woken = now.as_ref().is_none_or(|now| now.log.len() != seen);
        let has_more = now.is_some_and(|now| now.last() > client.from);
        if has_more && !woken {
            self.world.fail(format!("P6: client {number} sleeps, and there is more for it"));
        }
        // A request that waits ends after a while.
        if woken || self.world.choices.chance(20) {
            self.clients[number].asleep = None;
            return true;
        }
        false
    }

    fn takes(&mut self, number: usize, view: &View, end: Lsn, fresh: Vec<Lsn>) {
        let waits = self.up[view.who] == Up::Waiting;
        self.count(if waits { "answers of one that waits" } else { "answers of the owner" });
        let sid = view.shape;
        let from = self.clients[number].from;
        let mut broken = None;
        if end < from {
            broken = Some(format!("P4: an answer leads from {from} to {end}"));
        } else if let Some(beyond) = fresh.iter().find(|lsn| **lsn > end) {
            broken = Some(format!("P2: an answer up to {end} has {beyond}"));
        }
        let client = &mut self.clients[number];
        client.shape = Some(sid);
        client.from = end;
        client.rows.extend(fresh);
        let rows = client.rows.clone();
        if broken.is_none()
            && let Some(expected) = self.expected_of(sid)
        {
            let upto = |lsn: Lsn| expected.iter().copied().filter(|own| *own <= lsn).collect::<Vec<_>>();
            self.counts.entry("P1, P2: answers compared").and_modify(|count| *count += 1).or_insert(1);
            if view.mark.is_some() {
                self.counts.entry("P3: up to date, compared").and_modify(|count| *count += 1).or_insert(1);
            }
            if rows != upto(end) {
                broken = Some(format!("P1: a client at {end} has {rows:?}, not {:?}", upto(end)));
            } else if let Some(mark) = view.mark
                && upto(mark.max(end)) != rows
            {
                broken = Some(format!("P3: a client is up to date with {mark} and has {rows:?}"));
            }
        }
        if let Some(why) = broken {
            self.world.fail(why);
        }
    }

    /// The commits that the log of a shape must hold in the end. Where somebody meddled with slot or
    /// publication, what is missing is found out later: nothing is said then.
    fn expected_of(&self, sid: Sid) -> Option<Vec<Lsn>> {
        if self.world.slot_meddled {
            return None;
        }
        self.world.expected(self.world.disk.shapes.get(&sid)?)
    }

    fn view(&self, who: usize, sid: Sid) -> Option<View> {
        match self.up[who] {
            Up::Down => None,
            Up::Waiting => self.view_from_outside(who, sid, false),
            Up::Owner => self.view_of_the_owner(who, sid),
        }
    }

    /// The shapes of a definition that an instance serves.
    fn served(&self, who: usize, definition: DefinitionHash) -> Vec<View> {
        let sids = self.world.disk.shapes.iter().filter(|(_, files)| files.definition == definition);
        let sids: Vec<Sid> = sids.map(|(sid, _)| *sid).collect();
        let stale = self.protocol == Protocol::ServesWhatIsGone && self.up[who] == Up::Waiting;
        let view = |sid| if stale { self.view_from_outside(who, sid, true) } else { self.view(who, sid) };
        sids.into_iter().filter_map(view).collect()
    }

    /// What is durable, of shapes that the durable journal says live.
    fn view_from_outside(&self, who: usize, sid: Sid, stale: bool) -> Option<View> {
        let life = self.world.disk.state.shape(sid)?.life;
        if life != Life::Live && !(stale && life == Life::Invalidated) {
            return None;
        }
        let files = self.world.disk.shapes.get(&sid).filter(|files| files.initial_complete)?;
        Some(View { who, shape: sid, log: files.log.clone(), mark: None, writer: None })
    }

    /// All that its writer has written, and how much that is.
    fn view_of_the_owner(&self, who: usize, sid: Sid) -> Option<View> {
        let process = self.process(who)?;
        let files = self.world.disk.shapes.get(&sid).filter(|files| files.initial_complete)?;
        process.router.get(&sid)?;
        let state = process.engine.state();
        if state.owner.phase != OwnerPhase::Active {
            return None;
        }
        let shape = state.shape(sid)?;
        let writer = process.writers.iter().find(|((own, _), _)| *own == sid);
        let mut log = files.log.clone();
        if let Some((_, writer)) = writer {
            log.extend_from_slice(&writer.unsynced);
        }
        let handled = writer.and_then(|(_, writer)| writer.handled).unwrap_or(Seq(0));
        // One that is over owes nothing, and lacks what it owed all the same.
        let living = shape.life < Life::Invalidated;
        let written = living && shape.pending.back().is_none_or(|newest| *newest <= handled);
        let received = state.stream.received;
        let mark = (written || self.protocol == Protocol::UpToDateOnReceipt).then_some(received);
        Some(View { who, shape: sid, log, mark, writer: writer.map(|((_, incarnation), _)| *incarnation) })
    }

    /// Whether an instance answers that the shape is gone: what is decided durably.
    fn is_gone(&self, who: usize, sid: Sid) -> bool {
        let over = self.world.disk.state.shape(sid).is_none_or(|shape| shape.life == Life::Invalidated);
        match self.up[who] {
            Up::Down => false,
            Up::Waiting => over,
            Up::Owner => over && self.process(who).is_some_and(|process| !process.router.contains_key(&sid)),
        }
    }

    /// In the end every client has what the table has.
    pub fn check_client_at_the_end(&mut self, number: usize, owner: usize) {
        let Some(sid) = self.clients[number].shape else { return };
        if !self.world.disk.shapes.contains_key(&sid) {
            return self.world.fail(format!("P1: client {number} ends with shape {sid}, which is gone"));
        }
        self.wakes(number);
        let Some(expected) = self.expected_of(sid) else { return };
        if self.clients[number].rows != expected {
            let view = self.view(owner, sid).map(|view| view.log);
            let rows = &self.clients[number].rows;
            self.world
                .fail(format!("P1: client {number} ends with {rows:?} of {expected:?}, served {view:?}"));
        }
        self.count("clients compared at the end");
    }
}
