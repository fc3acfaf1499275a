//! The shapes of one table in the index.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::Arc;

use super::access::{Want, conjunction, ways};
use super::datum::Datum;
use super::delegated::Verdicts;
use super::expr::Expr;
use super::function::array;
use super::keys::{Key, Posting, Postings, key};
use super::predicate::Predicate;
use super::program::{Condition, Operand, Row, Undecodable};
use super::ranges::{Ranges, Span};
use crate::domain::{Sid, Tuple, WireRelation};

#[derive(Debug, Default)]
pub(super) struct Table {
    wire: Option<Arc<WireRelation>>,
    /// Shapes without a where clause.
    pub(super) everything: BTreeSet<Sid>,
    filtered: BTreeMap<Sid, Ways>,
    fields: Slab<Field>,
    conditions: Slab<Shared>,
    /// Conditions that are asked of every row.
    asked: BTreeSet<NonZeroU32>,
}

/// How a shape is found, so that it can be taken out again. One way for most: there may be a million.
#[derive(Debug)]
enum Ways {
    One(Place, Option<NonZeroU32>),
    Several(Box<[(Place, Option<NonZeroU32>)]>),
}

#[derive(Debug)]
enum Place {
    Equal(NonZeroU32, Key),
    Element(NonZeroU32, Key),
    Within(NonZeroU32, Option<Key>),
    Range(NonZeroU32, Box<Span>),
    /// By the condition itself.
    Condition(NonZeroU32),
}

/// A row that is looked at, whoever looks.
#[derive(Clone, Copy)]
pub(super) struct Seen<'a> {
    pub(super) tuple: &'a Tuple,
    pub(super) before: Option<&'a Tuple>,
    pub(super) verdicts: Option<&'a Verdicts>,
}

/// Columns of an expression, and where they are in a tuple.
#[derive(Debug)]
struct Columns {
    names: Box<[String]>,
    /// Moved by insert and announce.
    positions: Box<[Option<usize>]>,
}

/// An expression, evaluated once for a row whatever the number of shapes.
#[derive(Debug)]
struct Field {
    operand: Operand,
    columns: Columns,
    equal: BTreeMap<Key, Postings>,
    elements: BTreeMap<Key, Postings>,
    /// Shapes by the elements that they allow, and those that allow an array without elements.
    within: BTreeMap<Key, Postings>,
    empty: Postings,
    ranges: Ranges,
}

/// A condition that shapes share.
#[derive(Debug)]
struct Shared {
    condition: Condition,
    columns: Columns,
    /// Shapes that it finds, and uses of it as a residual.
    shapes: BTreeSet<Sid>,
    residual_of: usize,
}

/// Things by number and by name.
#[derive(Debug)]
struct Slab<T> {
    items: BTreeMap<NonZeroU32, (Arc<str>, T)>,
    names: BTreeMap<Arc<str>, NonZeroU32>,
    last: u32,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Slab { items: BTreeMap::new(), names: BTreeMap::new(), last: 0 }
    }
}

impl<T> Slab<T> {
    /// The item of that name, made where there is none.
    fn entry(&mut self, name: String, make: impl FnOnce() -> T) -> (NonZeroU32, &mut T) {
        let number = match self.names.get(name.as_str()) {
            Some(number) => *number,
            None => {
                // After four thousand million of them numbers come round to some long gone.
                let number = loop {
                    self.last = self.last.wrapping_add(1);
                    match NonZeroU32::new(self.last) {
                        Some(number) if !self.items.contains_key(&number) => break number,
                        _ => {}
                    }
                };
                let name: Arc<str> = name.into();
                self.names.insert(Arc::clone(&name), number);
                self.items.insert(number, (name, make()));
                number
            }
        };
        let (_, item) = self.items.get_mut(&number).expect("a name stands for an item");
        (number, item)
    }

    fn get(&self, number: NonZeroU32) -> Option<&T> {
        self.items.get(&number).map(|(_, item)| item)
    }

    fn get_mut(&mut self, number: NonZeroU32) -> Option<&mut T> {
        self.items.get_mut(&number).map(|(_, item)| item)
    }

    fn remove(&mut self, number: NonZeroU32) {
        if let Some((name, _)) = self.items.remove(&number) {
            self.names.remove(&name);
        }
    }

    fn iter(&self) -> impl Iterator<Item = &T> {
        self.items.values().map(|(_, item)| item)
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.items.values_mut().map(|(_, item)| item)
    }
}

impl Columns {
    fn new(names: &[String], wire: Option<&Arc<WireRelation>>) -> Columns {
        let mut columns =
            Columns { names: names.into(), positions: vec![None; names.len()].into_boxed_slice() };
        if let Some(wire) = wire {
            columns.bind(wire);
        }
        columns
    }

    fn bind(&mut self, wire: &WireRelation) {
        self.positions = self.names.iter().map(|name| wire.position(name)).collect();
    }

    fn row<'a>(&'a self, seen: &Seen<'a>) -> Row<'a> {
        let Seen { tuple, before, verdicts } = *seen;
        Row { tuple, before, positions: &self.positions, verdicts }
    }
}

impl Table {
    pub(super) fn is_empty(&self) -> bool {
        self.everything.is_empty() && self.filtered.is_empty()
    }

    pub(super) fn announce(&mut self, wire: &Arc<WireRelation>) {
        for shared in self.conditions.iter_mut() {
            shared.columns.bind(wire);
        }
        for field in self.fields.iter_mut() {
            field.columns.bind(wire);
        }
        self.wire = Some(Arc::clone(wire));
    }

    pub(super) fn insert_filtered(&mut self, sid: Sid, predicate: &Predicate) {
        let names = predicate.columns();
        let mut places = match ways(&predicate.expr) {
            Some(found) => {
                let mut places = Vec::with_capacity(found.len());
                for way in found {
                    let residual = self.residual(&way.residual, names);
                    let posting = Posting { sid, residual };
                    let wire = self.wire.as_ref();
                    let (number, field) = self.fields.entry(way.probed.name, || Field {
                        operand: way.probed.operand,
                        columns: Columns::new(names, wire),
                        equal: BTreeMap::new(),
                        elements: BTreeMap::new(),
                        within: BTreeMap::new(),
                        empty: Postings::default(),
                        ranges: Ranges::default(),
                    });
                    places.push((field.insert(number, way.want, posting), residual));
                }
                places
            }
            None => {
                let (number, shared) = self.condition(&[&predicate.expr], names);
                shared.shapes.insert(sid);
                self.asked.insert(number);
                vec![(Place::Condition(number), None)]
            }
        };
        let ways = match places.len() {
            1 => {
                let (place, residual) = places.remove(0);
                Ways::One(place, residual)
            }
            _ => Ways::Several(places.into_boxed_slice()),
        };
        self.filtered.insert(sid, ways);
    }

    fn residual(&mut self, args: &[&Expr], names: &[String]) -> Option<NonZeroU32> {
        if args.is_empty() {
            return None;
        }
        let (number, shared) = self.condition(args, names);
        shared.residual_of += 1;
        Some(number)
    }

    fn condition(&mut self, args: &[&Expr], names: &[String]) -> (NonZeroU32, &mut Shared) {
        let (sql, condition) = conjunction(args).expect("the whole clause has been compiled before");
        let wire = self.wire.as_ref();
        self.conditions.entry(sql, || Shared {
            condition,
            columns: Columns::new(names, wire),
            shapes: BTreeSet::new(),
            residual_of: 0,
        })
    }

    pub(super) fn remove(&mut self, sid: Sid) {
        self.everything.remove(&sid);
        match self.filtered.remove(&sid) {
            None => {}
            Some(Ways::One(place, residual)) => self.remove_place(sid, place, residual),
            Some(Ways::Several(places)) => {
                for (place, residual) in places {
                    self.remove_place(sid, place, residual);
                }
            }
        }
    }

    fn remove_place(&mut self, sid: Sid, place: Place, residual: Option<NonZeroU32>) {
        let posting = Posting { sid, residual };
        let number = match &place {
            Place::Equal(number, _)
            | Place::Element(number, _)
            | Place::Within(number, _)
            | Place::Range(number, _) => Some(*number),
            Place::Condition(number) => {
                if let Some(shared) = self.conditions.get_mut(*number) {
                    shared.shapes.remove(&sid);
                    if shared.shapes.is_empty() {
                        self.asked.remove(number);
                    }
                }
                self.forget(*number);
                None
            }
        };
        if let Some(number) = number
            && let Some(field) = self.fields.get_mut(number)
        {
            field.remove(&place, posting);
            if field.is_empty() {
                self.fields.remove(number);
            }
        }
        if let Some(number) = residual {
            if let Some(shared) = self.conditions.get_mut(number) {
                shared.residual_of -= 1;
            }
            self.forget(number);
        }
    }

    fn forget(&mut self, number: NonZeroU32) {
        let unused = |shared: &Shared| shared.shapes.is_empty() && shared.residual_of == 0;
        if self.conditions.get(number).is_some_and(unused) {
            self.conditions.remove(number);
        }
    }

    /// Appends the filtered shapes that hold a row, in no particular order and maybe more than once.
    /// Gives the count of values that could not be decoded.
    pub(super) fn find(&self, seen: &Seen<'_>, found: &mut Vec<Sid>) -> u64 {
        let mut search = Search { table: self, seen, asked: BTreeMap::new(), failures: 0, found };
        for field in self.fields.iter() {
            search.field(field);
        }
        for number in &self.asked {
            if search.holds(*number)
                && let Some(shared) = self.conditions.get(*number)
            {
                search.found.extend(&shared.shapes);
            }
        }
        search.failures
    }
}

impl Field {
    fn insert(&mut self, number: NonZeroU32, want: Want, posting: Posting) -> Place {
        match want {
            Want::Equal(key) => {
                self.equal.entry(key.clone()).or_default().insert(posting);
                Place::Equal(number, key)
            }
            Want::Element(keys) => {
                let shapes = |key: &Key| self.elements.get(key).map_or(0, Postings::len);
                let key = keys.into_iter().min_by_key(shapes).expect("at least one element is wanted");
                self.elements.entry(key.clone()).or_default().insert(posting);
                Place::Element(number, key)
            }
            Want::Within(key) => {
                match &key {
                    Some(key) => self.within.entry(key.clone()).or_default().insert(posting),
                    None => self.empty.insert(posting),
                }
                Place::Within(number, key)
            }
            Want::Range(span) => {
                self.ranges.entry(&span).insert(posting);
                Place::Range(number, Box::new(span))
            }
        }
    }

    fn remove(&mut self, place: &Place, posting: Posting) {
        match place {
            Place::Equal(_, key) => remove_from(&mut self.equal, key, posting),
            Place::Element(_, key) => remove_from(&mut self.elements, key, posting),
            Place::Within(_, Some(key)) => remove_from(&mut self.within, key, posting),
            Place::Within(_, None) => {
                self.empty.remove(posting);
            }
            Place::Range(_, span) => {
                if self.ranges.get_mut(span).is_some_and(|postings| postings.remove(posting)) {
                    self.ranges.remove(span);
                }
            }
            Place::Condition(_) => {}
        }
    }

    fn is_empty(&self) -> bool {
        self.equal.is_empty()
            && self.elements.is_empty()
            && self.within.is_empty()
            && self.empty.len() == 0
            && self.ranges.is_empty()
    }
}

fn remove_from(map: &mut BTreeMap<Key, Postings>, key: &Key, posting: Posting) {
    if map.get_mut(key).is_some_and(|postings| postings.remove(posting)) {
        map.remove(key);
    }
}

/// One look for the shapes of a row.
struct Search<'a> {
    table: &'a Table,
    seen: &'a Seen<'a>,
    /// What conditions have said: each is asked once.
    asked: BTreeMap<NonZeroU32, bool>,
    failures: u64,
    found: &'a mut Vec<Sid>,
}

impl Search<'_> {
    fn field(&mut self, field: &Field) {
        match field.operand.evaluate(&field.columns.row(self.seen)) {
            Ok(None) => {}
            Err(Undecodable) => self.failures += 1,
            Ok(Some(value)) => {
                if !field.elements.is_empty() {
                    self.elements(field, &value);
                }
                if field.empty.len() > 0 {
                    self.within(field, &value);
                }
                if field.equal.is_empty() && field.ranges.is_empty() {
                    return;
                }
                let Some(key) = key(&value) else { return };
                if let Some(postings) = field.equal.get(&key) {
                    self.take(postings);
                }
                if !field.ranges.is_empty() {
                    field.ranges.at(key, &mut |postings| self.take(postings));
                }
            }
        }
    }

    fn elements(&mut self, field: &Field, value: &Datum<'_>) {
        let Ok(array) = array(value.borrowed()) else { return };
        let mut keys: Vec<Key> = array.elements.iter().flatten().filter_map(key).collect();
        keys.sort();
        keys.dedup();
        for key in keys {
            if let Some(postings) = field.elements.get(&key) {
                self.take(postings);
            }
        }
    }

    /// The shapes that allow the rarest element; each looks at the others itself.
    fn within(&mut self, field: &Field, value: &Datum<'_>) {
        let Ok(array) = array(value.borrowed()) else { return };
        if array.elements.is_empty() {
            return self.take(&field.empty);
        }
        let mut rarest = None;
        for element in &array.elements {
            // A NULL is in no array, an element that no shape allows in none of theirs.
            let Some(key) = element.as_ref().and_then(key) else { return };
            let Some(postings) = field.within.get(&key) else { return };
            if rarest.is_none_or(|least: &Postings| postings.len() < least.len()) {
                rarest = Some(postings);
            }
        }
        if let Some(postings) = rarest {
            self.take(postings);
        }
    }

    fn take(&mut self, postings: &Postings) {
        for Posting { sid, residual } in postings.iter() {
            if residual.is_none_or(|number| self.holds(number)) {
                self.found.push(sid);
            }
        }
    }

    fn holds(&mut self, number: NonZeroU32) -> bool {
        if let Some(known) = self.asked.get(&number) {
            return *known;
        }
        let answer = match self.table.conditions.get(number) {
            None => false,
            Some(shared) => match shared.condition.evaluate(&shared.columns.row(self.seen)) {
                Ok(value) => value == Some(true),
                Err(Undecodable) => {
                    self.failures += 1;
                    false
                }
            },
        };
        self.asked.insert(number, answer);
        answer
    }
}
