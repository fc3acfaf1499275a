//! Which shapes a change is routed to.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use super::{COLUMNS, relation, row, wire};
use crate::domain::{Change, Oid, Sid, Tuple, Value};
use crate::filter::{Predicate, RouteError, RowMove, ShapeIndex};

/// What the index says about changes, one line each.
fn route(clauses: &[&str], changes: &[Change]) -> String {
    let mut index = ShapeIndex::new();
    for (sid, clause) in (1..).zip(clauses) {
        let predicate = (!clause.is_empty())
            .then(|| Predicate::parse(clause, &BTreeMap::new(), &relation()).expect("a supported clause"));
        index.insert(Sid(sid), Oid(16_400), predicate);
    }
    index.announce(&wire());
    let mut text = String::new();
    for change in changes {
        let mut moves = Vec::new();
        match index.route(change, &mut moves) {
            Ok(()) => {
                let shown: Vec<String> = moves.iter().map(|(sid, kind)| format!("{sid}:{kind:?}")).collect();
                writeln!(text, "{}", shown.join(" ")).expect("a String takes it");
            }
            Err(error) => writeln!(text, "{error}").expect("a String takes it"),
        }
    }
    text
}

fn insert(new: &str) -> Change {
    Change::Insert { op: 0, relation: wire(), new: row(new) }
}

fn update(old: &str, new: &str) -> Change {
    Change::Update { op: 0, relation: wire(), old: Some(row(old)), new: row(new) }
}

fn delete(old: &str) -> Change {
    Change::Delete { op: 0, relation: wire(), old: row(old) }
}

#[test]
fn a_change_is_routed_to_the_shapes_that_it_concerns() {
    let clauses = [
        "id = 1",
        "",
        "id in (1, 2) and b",
        "t = 'x' or n = 1.0",
        "id > 1",
        "t::int4 = 1",
        "id = 1 or id = 2",
        "(id = 1 and b) or (n = 2 and not b)",
    ];
    let changes = [
        insert("id=1 b=t"),
        insert("id=2 b=t n=1.00 t=x"),
        update("id=1 b=t", "id=2 b=t"),
        update("id=1 b=t", "id=1 b=f"),
        update("id=3", "id=1"),
        delete("id=2 b=t t=1"),
        delete(""),
        Change::Truncate { op: 0, relations: vec![Oid(16_400)] },
        Change::Update { op: 0, relation: wire(), old: None, new: row("id=1") },
    ];
    assert_eq!(
        route(&clauses, &changes),
        "1:Insert 2:Insert 3:Insert 7:Insert 8:Insert\n\
         2:Insert 3:Insert 4:Insert 5:Insert 7:Insert\n\
         1:Delete 2:Update 3:Update 5:Insert 7:Update 8:Delete\n\
         1:Update 2:Update 3:Delete 7:Update 8:Delete\n\
         1:Insert 2:Update 5:Delete 7:Insert\n\
         2:Delete 3:Delete 5:Delete 6:Delete 7:Delete\n\
         2:Delete\n\
         \n\
         a change of relation 16400 came without its old row\n"
    );
}

#[test]
fn a_value_that_was_not_sent_is_taken_from_the_old_row() {
    let mut index = ShapeIndex::new();
    let predicate = Predicate::parse("t = 'big'", &BTreeMap::new(), &relation()).expect("a clause");
    index.insert(Sid(1), Oid(16_400), Some(predicate));
    index.announce(&wire());
    let values: Vec<Value<'_>> =
        COLUMNS.iter().map(|column| if column.0 == "t" { Value::Unchanged } else { Value::Null }).collect();
    let new = Tuple::from_values(&values);
    let mut moves = Vec::new();
    let change = Change::Update { op: 0, relation: wire(), old: Some(row("t=big")), new };
    assert_eq!(index.route(&change, &mut moves), Ok(()));
    assert_eq!(moves, [(Sid(1), RowMove::Update)]);
    assert_eq!(index.undecodable(), 0);
}

#[test]
fn the_index_forgets_what_is_removed_and_counts_what_it_cannot_read() {
    let mut index = ShapeIndex::new();
    for (sid, clause) in [(1, "id in (1, 2)"), (2, "id = 1"), (3, "t::int4 = 1")] {
        let predicate = Predicate::parse(clause, &BTreeMap::new(), &relation()).expect("a clause");
        index.insert(Sid(sid), Oid(16_400), Some(predicate));
    }
    index.insert(Sid(4), Oid(16_400), None);
    let mut moves = Vec::new();
    assert_eq!(index.route(&insert("id=1"), &mut moves), Err(RouteError::NotAnnounced { oid: Oid(16_400) }));
    index.announce(&wire());
    assert_eq!(index.route(&insert("id=1 t=x"), &mut moves), Ok(()));
    assert_eq!(moves, [(Sid(1), RowMove::Insert), (Sid(2), RowMove::Insert), (Sid(4), RowMove::Insert)]);
    assert_eq!(index.undecodable(), 1);
    for sid in [1, 3, 4] {
        assert!(index.remove(Sid(sid)));
        assert!(!index.remove(Sid(sid)));
    }
    moves.clear();
    assert_eq!(index.route(&insert("id=1 t=x"), &mut moves), Ok(()));
    assert_eq!(moves, [(Sid(2), RowMove::Insert)]);
    assert!(index.remove(Sid(2)) && index.is_empty());
    // A table without shapes has nothing to invalidate.
    moves.clear();
    let lost = Change::Update { op: 0, relation: wire(), old: None, new: row("id=1") };
    assert_eq!(index.route(&lost, &mut moves), Ok(()));
    assert!(moves.is_empty());
}

#[test]
fn an_identity_of_key_columns_does_not_pass_for_a_full_one() {
    let mut keyed = (*wire()).clone();
    keyed.replica_identity = 'd';
    for column in &mut keyed.columns[1..] {
        column.in_identity = false;
    }
    let keyed = Arc::new(keyed);
    let mut index = ShapeIndex::new();
    index.insert(Sid(1), Oid(16_400), None);
    index.announce(&keyed);
    let mut moves = Vec::new();
    let change = Change::Delete { op: 0, relation: keyed, old: row("id=1") };
    assert_eq!(index.route(&change, &mut moves), Err(RouteError::MissingOldTuple { oid: Oid(16_400) }));
}

#[test]
fn shapes_are_found_by_ranges_elements_prefixes_and_expressions() {
    let clauses = [
        "id between 5 and 10",
        "id > 5 and id < 10 and b",
        "id <= 5 or t like 'ab%'",
        "t ilike 'AB%c'",
        "t like 'a\\%'",
        "5 = any(arr)",
        "arr @> '{5,6}'",
        "arr && '{6,7}'",
        "id = any('{5,7}')",
        "j @> '{\"k\": {\"l\": 1}, \"m\": []}'",
        "j->>'n' = '2'",
        "lower(t) = 'abxc'",
        "id + 1 = 6",
        "n >= 1.5 and n < 'NaN'",
        "id = null or id > 5 and id < 5",
        "id is null",
        "id is null",
        "b and id is null",
        "greatest(id, i2) <= 7",
    ];
    let changes = [
        insert("id=5 b=t t=abxC arr={5} n=1.50"),
        insert("id=7 b=t t=ABxc arr={6,5,NULL} n=Infinity i2=8"),
        insert("t=a% b=f j={\"k\":{\"l\":1.0,\"o\":2},\"m\":[3],\"n\":2} n=NaN"),
        update("id=4", "id=10 b=t j={\"k\":{\"l\":1}} arr={}"),
    ];
    assert_eq!(
        route(&clauses, &changes),
        "1:Insert 3:Insert 4:Insert 6:Insert 9:Insert 12:Insert 13:Insert 14:Insert 19:Insert\n\
         1:Insert 2:Insert 4:Insert 6:Insert 7:Insert 8:Insert 9:Insert 12:Insert 14:Insert\n\
         5:Insert 10:Insert 11:Insert 16:Insert 17:Insert\n\
         1:Insert 3:Delete 19:Delete\n"
    );
}
