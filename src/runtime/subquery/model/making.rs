//! Shapes that are made while the others live: what snapshot tasks and the executor do, at once.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::clauses::{COLUMNS, Row, Tables};
use super::database::{self, Look};
use super::process::Process;
use super::{Spec, data};
use crate::domain::{ShapeDefinition, Tuple, Value};
use crate::filter::Predicate;
use crate::filter::subquery::{Clause, Selection, Values};
use crate::runtime::handle::{LiveShape, Phase};
use crate::runtime::subquery::{GIVEN_VALUES_MAX, Members, RowTagger, base_note, load_snapshot};
use crate::shape_log::{ShapeFiles, ShapeReader, SimDisk, SnapshotWriter};

impl Process {
    /// Makes a shape with what somebody sees of the database. Its inner queries are there already.
    pub fn make(&mut self, spec: &Spec, disk: &SimDisk, look: &Look) {
        let Spec { sid, handle, definition, dependencies, .. } = spec;
        let files = ShapeFiles::create(Arc::new(disk.clone()), data(), *handle, definition).expect("files");
        let reader = ShapeReader::new(&files);
        let tagger = RowTagger::of(definition, "single_stack", *handle).expect("its own canonical form");
        let tagger = tagger.map(Arc::new);
        let clause = tagger.as_ref().map(|tagger| Arc::new(tagger.clause().clone()));
        let subqueries = &mut self.router.subqueries;
        if let Some(tagger) = &tagger {
            let (definition, tagger) = (Arc::clone(definition), Arc::clone(tagger));
            subqueries.insert_outer(*sid, definition, tagger, dependencies.clone());
        }
        if definition.is_inner() {
            subqueries.insert_inner(*sid, Arc::clone(definition), clause.clone());
        }
        self.match_against(*sid, definition, tagger.as_deref());
        let subqueries = &mut self.router.subqueries;
        subqueries.begin(*sid);
        subqueries.visible(*sid, &look.snapshot, look.lsn);
        if tagger.is_some() {
            subqueries.opened(*sid, look.lsn, &given(definition, &look.tables));
        }
        // Postgres may make transactions visible in another order than it commits them; only what is noted
        // does not depend on that.
        let noted = if look.snapshot.xip.is_empty() && sid.0 % 2 == 0 { 0 } else { GIVEN_VALUES_MAX };
        write_snapshot(&files, &reader, spec, (tagger.as_deref(), noted), look);
        if definition.is_inner() {
            let mut members = Members::new(Arc::clone(definition), clause);
            load_snapshot(&reader.view(), &mut members).expect("a snapshot that can be folded");
            subqueries.loaded(*sid, members);
        }
        let definition = Arc::clone(definition);
        let published = Arc::new(AtomicU64::new(0));
        let shape = Arc::new(LiveShape::new(*sid, *handle, definition, reader, Phase::Readable, published));
        self.begin_writing(spec, shape, files, tagger);
        self.perform();
    }
}

fn write_snapshot(
    files: &ShapeFiles,
    reader: &Arc<ShapeReader>,
    spec: &Spec,
    (tagger, noted): (Option<&RowTagger>, usize),
    look: &Look,
) {
    let definition = &spec.definition;
    let mut writer =
        SnapshotWriter::create(files, definition, Arc::clone(reader), u64::MAX).expect("a snapshot");
    if let Some(tagger) = tagger {
        writer.note(base_note(definition, tagger, &given(definition, &look.tables), noted));
    }
    let extra = tagger.map_or(&[][..], RowTagger::extra_columns);
    let wanted: Vec<usize> = (definition.columns.iter().chain(extra))
        .map(|name| COLUMNS.iter().position(|known| known == name).expect("a column"))
        .collect();
    for (row, active) in rows(definition, &look.tables) {
        let all = database::tuple(&row);
        let mut cells: Vec<Value<'_>> = wanted.iter().map(|at| all.get(*at)).collect();
        cells.extend(active.iter().map(|active| Value::Text(if *active { b"t" } else { b"f" })));
        match tagger {
            Some(tagger) => {
                let (own, tags) = tagger.tags(&cells);
                writer.push_tagged_row(own, Some(&tags))
            }
            None => writer.push_row(&cells),
        }
        .expect("a row");
    }
    writer.finish(&look.snapshot).expect("the disk works");
}

/// The rows of a shape, and which of its positions are true for each.
fn rows(definition: &ShapeDefinition, tables: &Tables) -> Vec<(Row, Vec<bool>)> {
    let all = tables[definition.relation.oid.0 as usize - 1].values();
    let Some(sql) = &definition.where_sql else { return all.map(|row| (*row, Vec::new())).collect() };
    if definition.dependencies.is_empty() {
        let predicate = Predicate::from_canonical(sql, &definition.relation).expect("its own form");
        let wire = database::wire(&definition.relation);
        let accepted = |row: &&Row| predicate.accepts(&wire, &database::tuple(row)) == Some(true);
        return all.filter(accepted).map(|row| (*row, Vec::new())).collect();
    }
    let clause = Clause::from_canonical(sql, &definition.relation, &definition.dependencies);
    let clause = clause.expect("its own form");
    let given = given(definition, tables);
    let contains = |dependency: usize, values: &Values| contains(&given[dependency], values);
    let positions = clause.bind_names(&COLUMNS.map(str::to_owned));
    let look = |row: &Row| {
        let active = clause.active(&clause.look(&positions, &database::tuple(row), None), &contains);
        (*row, active)
    };
    all.map(look).filter(|(_, active)| clause.holds(active)).collect()
}

/// What the inner queries of a shape give.
fn given(definition: &ShapeDefinition, tables: &Tables) -> Vec<BTreeSet<Values>> {
    definition.dependencies.iter().map(|inner| gives(inner, tables)).collect()
}

/// The values that an inner query gives.
fn gives(definition: &ShapeDefinition, tables: &Tables) -> BTreeSet<Values> {
    let selection = Selection::of(definition);
    let places: Vec<usize> = (selection.names())
        .map(|name| COLUMNS.iter().position(|known| *known == name).expect("a column"))
        .collect();
    let values = |row: &Row| -> Tuple { database::tuple(row) };
    (rows(definition, tables).iter())
        .map(|(row, _)| selection.of_tuple(&places, &values(row), None).expect("values of columns"))
        .collect()
}

/// `values IN (given)`, as SQL has it.
fn contains(given: &BTreeSet<Values>, values: &Values) -> Option<bool> {
    let differ = |other: &Values| {
        let mut pairs = values.iter().zip(other.iter());
        pairs.any(|(a, b)| matches!((a, b), (Some(a), Some(b)) if a != b))
    };
    let complete = |values: &Values| values.iter().all(Option::is_some);
    let alike: Vec<&Values> = given.iter().filter(|other| !differ(other)).collect();
    match alike.iter().any(|other| complete(other) && complete(values)) {
        true => Some(true),
        false if alike.is_empty() => Some(false),
        false => None,
    }
}
