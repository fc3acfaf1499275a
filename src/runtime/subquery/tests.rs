//! Members of inner queries, and what differs from them. Whole moves are tested with a real Postgres, in
//! `tests/it/subqueries`.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::differing::{Differing, only};
use super::members::{Flip, Members, RowChange};
use crate::domain::{
    Column, LogMode, Lsn, Oid, PgSnapshot, Relation, RelationName, Replica, ShapeDefinition, Xid,
};
use crate::filter::subquery::{Digest, Values};

/// `SELECT v FROM t`.
fn members() -> Members {
    let column = |name: &str, pk_position| Column {
        name: name.to_owned(),
        type_oid: Oid(23),
        type_name: "int4".to_owned(),
        element_oid: Oid(0),
        type_modifier: -1,
        dimensions: 0,
        not_null: false,
        pk_position,
        generated: false,
        type_kind: 'b',
        base: None,
    };
    let definition = ShapeDefinition {
        relation: Arc::new(Relation {
            oid: Oid(7),
            name: RelationName { schema: "public".to_owned(), table: "t".to_owned() },
            columns: vec![column("id", Some(0)), column("v", None)],
            partitioned: false,
            storage: None,
        }),
        where_sql: None,
        columns: vec!["id".to_owned(), "v".to_owned()],
        columns_named: true,
        replica: Replica::Default,
        log: LogMode::Full,
        dependencies: Vec::new(),
        selects: vec!["v".to_owned()],
    };
    Members::new(Arc::new(definition), None)
}

fn value(text: Option<&str>) -> Values {
    Box::new([text.map(|text| text.as_bytes().into())])
}

fn flip(text: Option<&str>, selected: bool) -> Flip {
    Flip { values: value(text), selected }
}

#[test]
fn a_value_turns_with_its_first_and_last_row() {
    let mut members = members();
    members.load_nothing();
    let mut change = |text, by| {
        let mut flips = Vec::new();
        members.perform(RowChange::Count(value(text), by), &mut flips);
        flips
    };
    assert_eq!(change(Some("1"), 1), [flip(Some("1"), true)]);
    assert_eq!(change(Some("1"), 1), []);
    assert_eq!(change(Some("1"), -1), []);
    assert_eq!(change(Some("1"), -1), [flip(Some("1"), false)]);
    assert_eq!(change(None, 1), [flip(None, true)]);
    assert_eq!(change(None, -1), [flip(None, false)]);
}

#[test]
fn away_and_back_within_one_transaction_is_no_move() {
    let mut members = members();
    members.load_nothing();
    let mut flips = Vec::new();
    members.perform(RowChange::Count(value(Some("1")), 1), &mut flips);
    members.perform(RowChange::Count(value(Some("1")), -1), &mut flips);
    assert_eq!(flips, []);
}

/// What comes before the initial rows are known is counted once they are, unless they contain it.
#[test]
fn changes_wait_for_the_initial_rows() {
    let mut waiting = members();
    let mut flips = Vec::new();
    for (lsn, xid) in [(10, 3), (20, 5)] {
        assert!(waiting.change(Lsn(lsn), Xid(xid), RowChange::Count(value(Some("1")), 1), &mut flips));
    }
    assert_eq!(flips, []);
    waiting.visible = Some((PgSnapshot { xmin: 4, xmax: 4, xip: Vec::new() }, Lsn(15)));
    let mut initial = members();
    initial.load_nothing();
    initial.perform(RowChange::Count(value(Some("1")), 1), &mut Vec::new());
    waiting.adopt(initial);
    waiting.perform(RowChange::Count(value(Some("1")), -1), &mut flips);
    assert!(
        waiting.is_selected(&value(Some("1"))),
        "one row of the snapshot and one of the later transaction"
    );
    waiting.perform(RowChange::Count(value(Some("1")), -1), &mut flips);
    assert_eq!(flips, [flip(Some("1"), false)]);
}

#[test]
fn what_moves_back_before_it_was_followed_differs_no_more() {
    let mut differing = Differing::default();
    let digest = Digest([7; 16]);
    differing.turn(digest, &flip(Some("1"), true), Lsn(10), &only(Xid(3)));
    assert_eq!(differing.iter().map(|(_, entry)| entry.cause).collect::<Vec<_>>(), [Lsn(10)]);
    differing.turn(digest, &flip(Some("1"), false), Lsn(20), &only(Xid(4)));
    assert!(differing.is_empty());
    differing.insert(digest, None, Lsn(0), BTreeSet::new());
    let unknown: Vec<BTreeSet<u32>> = differing.iter().map(|(_, entry)| entry.xids.clone()).collect();
    assert_eq!(unknown, [BTreeSet::new()]);
}
