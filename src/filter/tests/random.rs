//! Random clauses: the index against plain evaluation, the canonical SQL against itself, and the
//! parser against anything.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{relation, row, wire};
use crate::domain::{Change, Oid, Sid, Tuple};
use crate::filter::{Predicate, RowMove, ShapeIndex};

fn integer() -> impl Strategy<Value = String> {
    prop_oneof![
        "(id|i2|i8)",
        "(id|i2|i8)",
        "[0-3]",
        "'[0-3]'",
        Just("-1".to_owned()),
        Just("null".to_owned()),
        Just("1.0".to_owned()),
        Just("t::int4".to_owned()),
    ]
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["(t|t2|v|c)", "'[a-c0-2é%_]{0,2}'", Just("null".to_owned()), Just("id::text".to_owned())]
}

fn indexable() -> impl Strategy<Value = String> {
    prop_oneof![
        "(id|i2|i8) = [0-2]",
        "(id|i2) in \\([0-2], [0-3]\\)",
        "(t|t2|v|c) = '[ab]'",
        "'[0-2]' = (id|i2)"
    ]
}

fn leaf() -> impl Strategy<Value = String> {
    let compare = "(=|=|=|<>|<|<=|>|>=|is distinct from|is not distinct from)";
    let between = "(between|not between|between symmetric|not between symmetric)";
    prop_oneof![
        (integer(), compare, integer()).prop_map(|(a, op, b)| format!("{a} {op} {b}")),
        (text(), compare, text()).prop_map(|(a, op, b)| format!("{a} {op} {b}")),
        (integer(), "(in|not in)", prop::collection::vec(integer(), 1..4))
            .prop_map(|(a, op, list)| format!("{a} {op} ({})", list.join(", "))),
        (text(), "(in|not in)", prop::collection::vec(text(), 1..4))
            .prop_map(|(a, op, list)| format!("{a} {op} ({})", list.join(", "))),
        (integer(), between, integer(), integer()).prop_map(|(a, op, b, c)| format!("{a} {op} {b} and {c}")),
        (text(), "(like|not like|ilike|not ilike)", text()).prop_map(|(a, op, b)| format!("{a} {op} {b}")),
        "(b|b2|true|false|b = b2|b is null|id is null|t is not null|b is not true|b2 is unknown)",
        "(id|t) = \\$[12]",
        // What the index finds by value, often enough to meet in one AND or OR.
        indexable(),
        indexable(),
        indexable(),
    ]
}

fn clause() -> impl Strategy<Value = String> {
    leaf().prop_recursive(4, 24, 3, |inner| {
        prop_oneof![
            (inner.clone(), "(and|and|or)", inner.clone()).prop_map(|(a, op, b)| format!("({a}) {op} ({b})")),
            inner.clone().prop_map(|a| format!("not ({a})")),
            (inner.clone(), "(is true|is not false|is unknown)")
                .prop_map(|(a, test)| format!("({a}) {test}")),
            (inner.clone(), inner).prop_map(|(a, b)| format!("({a}) = ({b})")),
        ]
    })
}

fn cells() -> impl Strategy<Value = String> {
    let cell = |name: &'static str, values: &'static str| {
        prop::option::of(values)
            .prop_map(move |value| value.map_or(String::new(), |value| format!("{name}={value}")))
    };
    (
        cell("id", "[0-3]"),
        cell("i2", "[0-2]"),
        cell("i8", "(-1|[0-2])"),
        cell("t", "[a-c0-2é]{1,2}"),
        cell("t2", "[a-bA-B]{1}"),
        cell("v", "[ab]~?"),
        cell("c", "[ab]~~"),
        cell("b", "(t|f)"),
        cell("b2", "(t|f)"),
    )
        .prop_map(|(a, b, c, d, e, f, g, h, i)| [a, b, c, d, e, f, g, h, i].join(" "))
}

fn predicate(clause: &str) -> Option<Predicate> {
    let params = BTreeMap::from([(1, "1".to_owned()), (2, "2".to_owned())]);
    Predicate::parse(clause, &params, &relation()).ok()
}

fn holds(predicate: &Predicate, tuple: &Tuple) -> bool {
    predicate.accepts(&wire(), tuple) == Some(true)
}

fn expected(
    sid: Sid,
    predicate: &Predicate,
    old: Option<&Tuple>,
    new: Option<&Tuple>,
) -> Option<(Sid, RowMove)> {
    let inside = |tuple: Option<&Tuple>| tuple.is_some_and(|tuple| holds(predicate, tuple));
    match (inside(old), inside(new)) {
        (true, true) => Some((sid, RowMove::Update)),
        (true, false) => Some((sid, RowMove::Delete)),
        (false, true) => Some((sid, RowMove::Insert)),
        (false, false) => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn the_index_agrees_with_plain_evaluation(
        clauses in prop::collection::vec(clause(), 1..12),
        rows in prop::collection::vec(cells(), 2..6),
        removed in any::<prop::sample::Index>(),
    ) {
        let mut shapes: Vec<(Sid, Predicate)> =
            (1..).map(Sid).zip(clauses.iter().filter_map(|clause| predicate(clause))).collect();
        prop_assume!(!shapes.is_empty());
        let mut index = ShapeIndex::new();
        for (sid, predicate) in &shapes {
            index.insert(*sid, Oid(16_400), Some(predicate.clone()));
        }
        index.announce(&wire());
        let (gone, _) = shapes.remove(removed.index(shapes.len()));
        prop_assert!(index.remove(gone));

        let rows: Vec<Tuple> = rows.iter().map(|cells| row(cells)).collect();
        for pair in rows.windows(2) {
            let (old, new) = (&pair[0], &pair[1]);
            for (change, old, new) in [
                (Change::Insert { op: 0, relation: wire(), new: new.clone() }, None, Some(new)),
                (Change::Delete { op: 0, relation: wire(), old: old.clone() }, Some(old), None),
                (
                    Change::Update { op: 0, relation: wire(), old: Some(old.clone()), new: new.clone() },
                    Some(old),
                    Some(new),
                ),
            ] {
                let mut moves = Vec::new();
                prop_assert_eq!(index.route(&change, &mut moves), Ok(()));
                let plain: Vec<(Sid, RowMove)> =
                    shapes.iter().filter_map(|(sid, predicate)| expected(*sid, predicate, old, new)).collect();
                prop_assert_eq!(moves, plain, "{:?}", clauses);
            }
        }
    }

    #[test]
    fn canonical_sql_is_read_back_as_it_is(clause in clause(), cells in cells()) {
        if let Some(predicate) = predicate(&clause) {
            let again = Predicate::from_canonical(predicate.sql(), &relation());
            let again = again.map_err(|error| TestCaseError::fail(format!("{clause}: {error}")))?;
            prop_assert_eq!(again.sql(), predicate.sql());
            prop_assert_eq!(again.columns(), predicate.columns());
            let tuple = row(&cells);
            prop_assert_eq!(again.accepts(&wire(), &tuple), predicate.accepts(&wire(), &tuple));
        }
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC{0,60}") {
        let _ = predicate(&text);
    }

    #[test]
    fn no_run_of_tokens_makes_the_parser_panic(
        tokens in prop::collection::vec(
            prop_oneof![
                Just("id"), Just("t"), Just("b"), Just("mood"), Just("j"), Just("1"), Just("1.5"), Just("'a'"),
                Just("$1"), Just("null"), Just("true"), Just("("), Just(")"), Just(","), Just("="), Just("<"),
                Just("-"), Just("+"), Just("||"), Just("and"), Just("or"), Just("not"), Just("in"), Just("is"),
                Just("between"), Just("like"), Just("::int4"), Just("::text"), Just("case"), Just("when"),
                Just("end"), Just("select"), Just("array["), Just("]"), Just("any("), Just("distinct from"),
                Just("row("), Just("collate \"C\""), Just("at time zone"), Just("."), Just("*"), Just(";"),
                Just("limit 1"), Just("exists("), Just("x'1f'"), Just("0x1f"), Just("1_000"), Just("e'\\n'"),
            ],
            0..24,
        )
    ) {
        let _ = predicate(&tokens.join(" "));
    }
}
