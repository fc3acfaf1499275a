//! Parts of a clause that Postgres evaluates.

use std::collections::BTreeMap;

use super::{relation, row, wire};
use crate::domain::{Change, Oid, Sid};
use crate::filter::{CaseFolding, Predicate, RowMove, ShapeIndex, TextOrder, Texts, Verdict, Verdicts};

fn delegating(clause: &str) -> Result<Predicate, String> {
    let params = BTreeMap::from([(1, "it's".to_owned()), (2, "5".to_owned())]);
    Predicate::parse_delegating(clause, &params, &relation(), Texts::default())
        .map_err(|error| error.to_string())
}

#[test]
fn another_order_of_texts_is_left_to_postgres() {
    for (clause, expected) in [
        ("t < 'b' and id > 1", vec![r#"("t" < 'b')"#]),
        ("t between 'a' and v", vec![r#"("t" BETWEEN 'a' AND "v")"#]),
        (
            "t >= any ('{a}') or greatest(t, 'x') = v",
            vec![r#"("t" >= ANY ('{a}'))"#, r#"(GREATEST("t", 'x') = "v")"#],
        ),
        ("t = 'b' and t like 'a%' and t in ('x', 'y')", vec![]),
    ] {
        let relation = relation();
        let parse = |order| {
            let texts = Texts { order, ..Texts::default() };
            Predicate::parse_delegating(clause, &BTreeMap::new(), &relation, texts).expect("a clause")
        };
        let (other, bytes) = (parse(TextOrder::Other), parse(TextOrder::Bytes));
        assert_eq!((parts(&other), parts(&bytes)), (expected.clone(), vec![]), "{clause}");
        assert!(bytes.by_collation(), "{clause}");
        for predicate in [other, bytes] {
            let again = Predicate::from_canonical(predicate.sql(), &relation).expect("canonical SQL");
            assert_eq!((again.sql(), parts(&again)), (predicate.sql(), parts(&predicate)), "{clause}");
        }
    }
}

/// What is native, what is left to Postgres, and what the canonical SQL says of it.
#[test]
fn another_folding_of_case_is_left_to_postgres() {
    for (clause, letters, ascii, other) in [
        (
            "t ilike 'a%'",
            r#"("t" ILIKE 'a%')"#,
            r#"(("t" COLLATE "C") ILIKE 'a%')"#,
            r#"(CASE WHEN true THEN ("t" ILIKE 'a%') END)"#,
        ),
        (
            "lower(t) = upper(v)",
            r#"(lower("t") = upper("v"))"#,
            r#"(lower(("t" COLLATE "C")) = upper(("v" COLLATE "C")))"#,
            r#"(CASE WHEN true THEN ("lower"("t") = "upper"("v")) END)"#,
        ),
        (
            "t not ilike any ('{a}')",
            r#"("t" NOT ILIKE ANY ('{a}'))"#,
            r#"(("t" COLLATE "C") NOT ILIKE ANY ('{a}'))"#,
            r#"(CASE WHEN true THEN ("t" !~~* ANY ('{a}')) END)"#,
        ),
        ("t like 'a'", r#"("t" LIKE 'a')"#, r#"("t" LIKE 'a')"#, r#"("t" LIKE 'a')"#),
        ("nm ilike 'a'", r#"("nm" ILIKE 'a')"#, r#"("nm" ILIKE 'a')"#, r#"("nm" ILIKE 'a')"#),
    ] {
        for (case, expected) in
            [(CaseFolding::Letters, letters), (CaseFolding::Ascii, ascii), (CaseFolding::Other, other)]
        {
            let (relation, texts) = (relation(), Texts { case, ..Texts::default() });
            let parsed = Predicate::parse_delegating(clause, &BTreeMap::new(), &relation, texts);
            let predicate = parsed.expect("a clause");
            assert_eq!(predicate.sql(), expected, "{clause} {case:?}");
            let again = Predicate::from_canonical(predicate.sql(), &relation).expect("canonical SQL");
            assert_eq!((again.sql(), parts(&again)), (expected, parts(&predicate)), "{clause} {case:?}");
        }
    }
}

#[test]
fn only_ascii_letters_are_folded_where_the_collation_knows_no_others() {
    let texts = Texts { case: CaseFolding::Ascii, ..Texts::default() };
    for (clause, values, expected) in [
        ("t ilike 'ÉA'", "t=Éa", true),
        ("t ilike 'ÉA'", "t=éa", false),
        ("lower(t) = 'Éa'", "t=ÉA", true),
        ("upper(t) = 'ÉA'", "t=éa", false),
        ("t ilike any ('{ÉA}')", "t=Éa", true),
    ] {
        let relation = relation();
        let parsed = Predicate::parse_delegating(clause, &BTreeMap::new(), &relation, texts);
        let predicate = parsed.expect("a clause");
        for predicate in
            [Predicate::from_canonical(predicate.sql(), &relation).expect("canonical"), predicate]
        {
            assert_eq!(predicate.accepts(&wire(), &row(values)), Some(expected), "{clause} {values}");
        }
    }
}

/// Where bytes do not say whether two texts are equal, nothing about texts is native.
#[test]
fn texts_that_are_opaque_are_left_to_postgres() {
    let texts = Texts { opaque: true, ..Texts::default() };
    for (clause, expected) in [
        ("t = 'a'", vec![r#"(CASE WHEN true THEN ("t" = 'a') END)"#]),
        ("id = 1 and t is null", vec![]),
        ("t like 'a' or id in (1)", vec![r#"(CASE WHEN true THEN ("t" LIKE 'a') END)"#]),
    ] {
        let relation = relation();
        let parsed = Predicate::parse_delegating(clause, &BTreeMap::new(), &relation, texts);
        let predicate = parsed.expect("a clause");
        assert_eq!(parts(&predicate), expected, "{clause}");
        let again = Predicate::from_canonical(predicate.sql(), &relation).expect("canonical SQL");
        assert_eq!((again.sql(), parts(&again)), (predicate.sql(), expected), "{clause}");
    }
}

fn parts(predicate: &Predicate) -> Vec<&str> {
    predicate.delegated().iter().map(|part| part.sql()).collect()
}

#[test]
fn only_the_parts_that_are_not_native_are_left_to_postgres() {
    for (clause, expected) in [
        ("id = 1 and t = 'x'", vec![]),
        ("id = 1 and t ~ 'x'", vec![r#"("t" ~ 'x')"#]),
        (
            "not (t ~ $1 or (id = 1 and length(t) > $2)) or b",
            vec![r#"("t" ~ 'it''s')"#, r#"("length"("t") > '5')"#],
        ),
        (
            "case id when 1 then b else t like 'a' end",
            vec![r#"(CASE "id" WHEN 1 THEN "b" ELSE ("t" LIKE 'a') END)"#],
        ),
        ("(t similar to 'a%' escape '#') is true", vec![r#"(("t" SIMILAR TO 'a%' ESCAPE '#') IS TRUE)"#]),
        ("nullif(id, -3) is null", vec![r#"(NULLIF("id", (-3)) IS NULL)"#]),
        (
            "extract(year from t::timestamp(3)) not in (1, 2e1)",
            vec![
                r#"("pg_catalog"."extract"('year', CAST("t" AS "pg_catalog"."timestamp"(3))) NOT IN (1, 2e1))"#,
            ],
        ),
        (
            "t operator(pg_catalog.~) E'a\\\\b' and id::bit(3) = B'101'",
            vec![
                r#"("t" OPERATOR("pg_catalog".~) E'a\\b')"#,
                r#"(CAST("id" AS "pg_catalog"."bit"(3)) = b'101')"#,
            ],
        ),
        (
            "row(id, t) < row(1, 'x') and t collate \"de_DE\" > 'a' and concat_ws(variadic array['a', t]) = t",
            vec![
                r#"(ROW("id", "t") < ROW(1, 'x'))"#,
                r#"(("t" COLLATE "de_DE") > 'a')"#,
                r#"("concat_ws"(VARIADIC ARRAY['a', "t"]) = "t")"#,
            ],
        ),
        ("t ~ any ('{a,b}')", vec![r#"("t" ~ ANY ('{a,b}'))"#]),
        ("length(t) not between symmetric 5 and 1", vec![r#"("length"("t") NOT BETWEEN SYMMETRIC 5 AND 1)"#]),
    ] {
        let predicate = delegating(clause).unwrap_or_else(|error| panic!("{clause}: {error}"));
        assert_eq!(parts(&predicate), expected, "{clause}");
        let again = Predicate::from_canonical(predicate.sql(), &relation()).expect("canonical SQL");
        assert_eq!((again.sql(), parts(&again)), (predicate.sql(), expected), "{clause}");
    }
}

#[test]
fn what_postgres_could_not_take_either_is_refused_at_once() {
    for (clause, expected) in [
        ("t ~ 'x' and nope = 1", "At location 12: unknown reference nope"),
        ("t ~ $3", "At location 4: parameter $3 was not provided"),
        ("id = $2 and t = $2", "At location 16: type conflict for $2: int4 and text"),
        ("t ~ 'x' and 1", "At location 12: expression of type int4 is not castable to bool"),
        ("items.t ~ 'x'", "At location 0: unknown reference items.t"),
        ("count(*) over () = 1", "At location 0: aggregation is not supported in this context"),
        ("t = current_user", "At location 4: SQLValueFunction is not supported in this context"),
        ("id", "WHERE clause must return a boolean"),
    ] {
        let refusal = delegating(clause).map(|predicate| predicate.sql().to_owned());
        assert_eq!(refusal, Err(expected.to_owned()), "{clause}");
    }
}

#[test]
fn depth_is_bounded() {
    for deep in [
        "not ".repeat(220) + "t ~ 'x'",
        format!("t {} ~ 'x'", "|| t ".repeat(110)),
        format!("{}t ~ 'x'{}", "(".repeat(100), ")".repeat(100)),
        format!("t ~ {}t{}", "lower(".repeat(60), ")".repeat(60)),
    ] {
        let predicate = delegating(&deep).unwrap_or_else(|error| panic!("{deep}: {error}"));
        assert_eq!(predicate.delegated().len(), 1, "{deep}");
    }
}

/// What the changes mean to shape 1; None where a verdict is missing.
fn route(index: &ShapeIndex, verdicts: &Verdicts, change: &Change) -> Option<Vec<RowMove>> {
    let mut moves = Vec::new();
    index.route_with(change, Some(verdicts), &mut moves).expect("the relation is known");
    (verdicts.take_misses() == 0).then(|| moves.into_iter().map(|(_, row_move)| row_move).collect())
}

#[test]
fn verdicts_are_asked_for_once_and_then_looked_up() {
    let mut index = ShapeIndex::new();
    let predicate = delegating("id = 1 and (t ~ 'x' or b)").expect("a clause");
    index.insert(Sid(1), Oid(16_400), Some(predicate.clone()));
    index.announce(&wire());
    let mut verdicts = Verdicts::new();
    let insert = |new| Change::Insert { op: 0, relation: wire(), new: row(new) };
    let update = |old, new| Change::Update { op: 0, relation: wire(), old: Some(row(old)), new: row(new) };
    // Decided without Postgres: by the index, and by the other side of an OR.
    assert_eq!(route(&index, &verdicts, &insert("id=2 t=x")), Some(vec![]));
    assert_eq!(route(&index, &verdicts, &insert("id=1 t=x b=t")), Some(vec![RowMove::Insert]));
    assert!(verdicts.take_questions().is_empty());
    for change in [insert("id=1 t=x"), update("id=1 t=x", "id=1 t=y"), insert("id=1"), insert("id=1 t=z")] {
        assert_eq!(route(&index, &verdicts, &change), None);
    }
    let questions = verdicts.take_questions();
    assert_eq!(questions.len(), 1);
    let rows: Vec<Vec<Option<&[u8]>>> = questions[0].rows.iter().map(|row| row.cells()).collect();
    assert_eq!(rows, [vec![Some(&b"x"[..])], vec![Some(b"y")], vec![Some(b"z")], vec![None]]);
    let said =
        [Verdict::Value(Some(true)), Verdict::Value(Some(false)), Verdict::Error, Verdict::Value(None)];
    for (values, verdict) in questions[0].rows.iter().zip(said) {
        verdicts.learn(&questions[0].delegated, values.clone(), verdict);
    }
    assert_eq!(verdicts.len(), 4);
    assert_eq!(route(&index, &verdicts, &insert("id=1 t=x")), Some(vec![RowMove::Insert]));
    assert_eq!(route(&index, &verdicts, &update("id=1 t=x", "id=1 t=y")), Some(vec![RowMove::Delete]));
    for change in [insert("id=1"), insert("id=1 t=z")] {
        assert_eq!(route(&index, &verdicts, &change), Some(vec![]));
    }
    assert_eq!(predicate.decide_with(&wire(), &row("id=1 t=x"), Some(&verdicts)), Some(Some(true)));
    assert_eq!(predicate.decide(&wire(), &row("id=1 t=x")), None, "nothing is known without them");
    verdicts.clear();
    assert!(verdicts.is_empty());
}

#[test]
fn a_question_is_bounded() {
    let mut index = ShapeIndex::new();
    index.insert(Sid(1), Oid(16_400), Some(delegating("t ~ 'x'").expect("a clause")));
    index.announce(&wire());
    let mut verdicts = Verdicts::new();
    for number in 0..crate::filter::ROWS_WANTED_MAX + 10 {
        let new = row(&format!("t={number}"));
        route(&index, &verdicts, &Change::Insert { op: 0, relation: wire(), new });
    }
    assert!(verdicts.is_full());
    assert_eq!(verdicts.take_questions()[0].rows.len(), crate::filter::ROWS_WANTED_MAX);
    assert!(!verdicts.is_full());
}
