//! Clauses with inner queries: what is printed and refused, positions, tags, and what holds.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::domain::{Column, Handle, Oid, Tuple, Value};

fn table(name: &str, columns: &[(&str, u32, &str)]) -> Relation {
    let column = |index: usize, (name, oid, ty): &(&str, u32, &str)| Column {
        name: (*name).to_owned(),
        type_oid: Oid(*oid),
        type_name: (*ty).to_owned(),
        element_oid: Oid(0),
        type_modifier: -1,
        dimensions: 0,
        not_null: index == 0,
        pk_position: (index == 0).then_some(0),
        generated: name.starts_with("generated"),
        type_kind: 'b',
        base: None,
    };
    Relation {
        oid: Oid(1),
        name: RelationName { schema: "public".to_owned(), table: name.to_owned() },
        columns: columns.iter().enumerate().map(|(index, it)| column(index, it)).collect(),
        partitioned: false,
        storage: None,
    }
}

/// `child (id, p, q, r, owner, n)` and `par (id, gp, act, big, t, n, generated)`.
fn child() -> Relation {
    let int = (23, "int4");
    table(
        "child",
        &[
            ("id", int.0, int.1),
            ("p", int.0, int.1),
            ("q", int.0, int.1),
            ("owner", 25, "text"),
            ("n", 1700, "numeric"),
            ("j", 3802, "jsonb"),
        ],
    )
}

fn inner() -> Relations {
    let par = table(
        "par",
        &[
            ("id", 23, "int4"),
            ("gp", 23, "int4"),
            ("act", 16, "bool"),
            ("big", 20, "int8"),
            ("t", 25, "text"),
            ("n", 1700, "numeric"),
            ("j", 3802, "jsonb"),
            ("generated", 23, "int4"),
        ],
    );
    let mut relations = Relations::new();
    for relation in [par, child()] {
        relations.insert(relation.name.clone(), relation);
    }
    relations
}

fn parse(text: &str) -> Result<Clause, ClauseError> {
    Clause::parse(text, &BTreeMap::from([(1, "7".to_owned())]), &child(), &inner())
}

fn clause(text: &str) -> Clause {
    parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn refused(text: &str) -> String {
    match parse(text) {
        Ok(clause) => panic!("{text} was taken as {}", clause.sql()),
        Err(error) => format!("{}: {}", error.field, error.message),
    }
}

#[test]
fn canonical_sql_is_one_text_and_is_read_again() {
    for (text, sql) in [
        ("p in (select id from par where act)", r#"("p" IN (SELECT "id" FROM "public"."par" WHERE "act"))"#),
        ("p NOT IN (SELECT id FROM public.par)", r#"(NOT ("p" IN (SELECT "id" FROM "public"."par")))"#),
        (
            "(p, owner) IN (SELECT id, t FROM par) OR (q = $1 OR q IS NULL)",
            r#"((("p", "owner") IN (SELECT "id", "t" FROM "public"."par")) OR ("q" = '7'::int4) OR ("q" IS NULL))"#,
        ),
        (
            "p IN (SELECT id FROM par WHERE gp IN (SELECT id FROM par WHERE act)) AND id > 3",
            r#"(("p" IN (SELECT "id" FROM "public"."par" WHERE ("gp" IN (SELECT "id" FROM "public"."par" WHERE "act")))) AND ("id" > 3))"#,
        ),
    ] {
        let parsed = clause(text);
        assert_eq!(parsed.sql(), sql, "{text}");
        let again =
            Clause::from_canonical(sql, &child(), parsed.dependencies()).expect("canonical SQL is read");
        assert_eq!(again.sql(), sql);
        assert!(again.dependencies().iter().zip(parsed.dependencies()).all(|(a, b)| a.same_shape(b)));
    }
}

#[test]
fn inner_queries_are_shapes_of_their_own() {
    let parsed = clause("p IN (SELECT gp FROM par WHERE act) OR q IN (SELECT gp FROM par WHERE act)");
    let [query] = parsed.dependencies() else { panic!("equal queries are one: {:?}", parsed.dependencies()) };
    assert_eq!((query.selects.join(","), query.columns.join(",")), ("gp".to_owned(), "gp,id".to_owned()));
    assert!(query.is_inner() && query.columns_named);
    let tables =
        inner_tables("p IN (SELECT id FROM par WHERE gp IN (SELECT id FROM s.\"T\"))").expect("tables");
    assert_eq!(
        tables.iter().map(RelationName::to_sql).collect::<Vec<_>>(),
        [r#""public"."par""#, r#""s"."T""#]
    );
}

#[test]
fn refusals_have_the_texts_of_the_contract() {
    let left = "currently, left side of `IN (SELECT ...)` can only be a column reference or a list of column \
                references";
    let only = "only `value IN (SELECT ...)` sublinks are supported right now";
    for (text, expected) in [
        ("lower(owner) IN (SELECT t FROM par)", format!("where: At location 13: {left}")),
        ("5 IN (SELECT id FROM par)", format!("where: At location 2: {left}")),
        (
            "p IN (SELECT big FROM par)",
            "where: At location 2: left side of `IN (SELECT ...)` has type int4 but subquery returns int8[]"
                .to_owned(),
        ),
        (
            "(p, q) IN (SELECT id, t FROM par)",
            "where: At location 7: left side of `IN (SELECT ...)` has type (int4, int4) but subquery returns \
             (int4, text)[]"
                .to_owned(),
        ),
        ("EXISTS (SELECT 1 FROM par)", "where: At location 30: Expected a plain column reference".to_owned()),
        ("EXISTS (SELECT id FROM par)", format!("where: At location 0: {only}")),
        ("p = ANY (SELECT id FROM par)", format!("where: At location 2: {only}")),
        ("p < ALL (SELECT id FROM par)", format!("where: At location 2: {only}")),
        ("p = (SELECT id FROM par)", "where: At location 4: only `value IN (SELECT ...)` sublinks are supported right now".to_owned()),
        ("p IN (SELECT id + 1 FROM par)", "where: At location 28: Expected a plain column reference".to_owned()),
        ("p IN (SELECT * FROM par)", "where: At location 28: Expected a plain column reference".to_owned()),
        ("p IN (SELECT par.id FROM par)", "where: At location 28: Expected a plain column reference".to_owned()),
        ("p IN (SELECT id FROM par, child)", "where: Expected a single table reference".to_owned()),
        ("p IN (SELECT id FROM par JOIN child USING (id))", "where: Expected a single table reference".to_owned()),
        ("p IN (SELECT id)", "where: Expected a single table reference".to_owned()),
        ("p IN (SELECT DISTINCT id FROM par)", "where: SELECT statement must not contain any clauses".to_owned()),
        ("p IN (SELECT id FROM par LIMIT 1)", "where: SELECT statement must not contain any clauses".to_owned()),
        ("p IN (SELECT id FROM par ORDER BY id)", "where: SELECT statement must not contain any clauses".to_owned()),
        ("p IN (SELECT id FROM par GROUP BY id)", "where: SELECT statement must not contain any clauses".to_owned()),
        ("p IN (SELECT id FROM par UNION SELECT 1)", "where: SELECT statement must not contain any clauses".to_owned()),
        ("p IN (VALUES (1))", "where: SELECT statement must not contain any clauses".to_owned()),
        (
            "p IN (SELECT id FROM nope)",
            "table: Table \"public\".\"nope\" does not exist. If the table name contains capitals or special \
             characters you must quote it."
                .to_owned(),
        ),
        (
            "p IN (SELECT nope FROM par)",
            "columns: The following columns are not found on the table: nope".to_owned(),
        ),
        (
            "p IN (SELECT generated FROM par)",
            "columns: The following columns are generated and cannot be included in the shape: generated".to_owned(),
        ),
        // Correlated: a column of the outer table is no column of the inner one.
        ("p IN (SELECT id FROM par WHERE gp = q)", "where: At location 36: unknown reference q".to_owned()),
        ("p IN (SELECT id FROM par WHERE child.q = gp)", "where: At location 31: unknown reference child.q".to_owned()),
        ("j IN (SELECT j FROM par)", "where: At location 2: Could not select an operator overload".to_owned()),
        ("(p IN (SELECT id FROM par)) IS TRUE", "where: At location 3: SubLink is not supported in this context".to_owned()),
        (
            "p IN (SELECT id FROM par) AND q NOT IN (SELECT id FROM par)",
            "where: a subquery dependency cannot be used with both positive and negative polarity in the same filter"
                .to_owned(),
        ),
        (
            "p IN (SELECT id FROM par WHERE id IN (SELECT gp FROM par WHERE act) AND id NOT IN (SELECT gp FROM par WHERE act))",
            "where: a subquery dependency cannot be used with both positive and negative polarity in the same filter"
                .to_owned(),
        ),
        (
            "p IN (SELECT id FROM par) AND (q IN (1,2,3,4,5,6,7,8,9,10,11)) AND id IN (1,2,3,4,5,6,7,8,9,10)",
            "where: WHERE clause too complex for DNF decomposition (110 disjuncts exceeds limit of 100)".to_owned(),
        ),
    ] {
        assert_eq!(refused(text), expected, "{text}");
    }
    // Beside an inner query, everything else is as it is without one.
    clause("coalesce(q, 1) = 1 AND greatest(p, q) > 0 AND least(p, q) < 5 AND p IN (SELECT id FROM par)");
}

/// Positions as their SQL, disjuncts apart.
fn positions(text: &str) -> String {
    let clause = clause(text);
    let shown = |range: &Range<usize>| {
        clause.literals[range.clone()]
            .iter()
            .map(|literal| literal.sql.clone())
            .collect::<Vec<_>>()
            .join(" & ")
    };
    let sub = r#"("p" IN (SELECT "id" FROM "public"."par"))"#;
    clause.disjuncts.iter().map(shown).collect::<Vec<_>>().join(" | ").replace(sub, "S").replace('"', "")
}

#[test]
fn the_normal_form_numbers_literals_from_left_to_right() {
    for (text, expected) in [
        ("p IN (SELECT id FROM par)", "S"),
        ("p IN (SELECT id FROM par) OR owner = 'me'", "S | (owner = 'me')"),
        ("p IN (SELECT id FROM par) AND (q = 1 OR q = 2)", "S & (q = 1) | S & (q = 2)"),
        ("p IN (SELECT id FROM par) AND q IN (1, 2)", "S & (q = 1) | S & (q = 2)"),
        ("p IN (SELECT id FROM par) AND q BETWEEN 1 AND 2", "S & (q >= 1) & (q <= 2)"),
        ("p IN (SELECT id FROM par) AND q NOT BETWEEN 1 AND 2", "S & (NOT (q >= 1)) | S & (NOT (q <= 2))"),
        ("NOT (p IN (SELECT id FROM par) OR q = 1)", "(NOT S) & (NOT (q = 1))"),
        ("NOT (p IN (SELECT id FROM par) AND q IN (1, 2))", "(NOT S) | (NOT (q = 1)) & (NOT (q = 2))"),
        ("NOT NOT p IN (SELECT id FROM par)", "S"),
    ] {
        assert_eq!(positions(text), expected, "{text}");
    }
}

fn scope() -> TagScope {
    TagScope::new("single_stack", Handle { hash: 12, micros: 34 })
}

fn row(cells: &[(&str, Option<&str>)]) -> Tuple {
    let values: Vec<Value<'_>> = child()
        .columns
        .iter()
        .map(|column| match cells.iter().find(|(name, _)| *name == column.name) {
            Some((_, Some(text))) => Value::Text(text.as_bytes()),
            Some((_, None)) | None => Value::Null,
        })
        .collect();
    Tuple::from_values(&values)
}

fn look(clause: &Clause, cells: &[(&str, Option<&str>)]) -> RowPositions {
    let names: Vec<String> = child().columns.iter().map(|column| column.name.clone()).collect();
    clause.look(&clause.bind_names(&names), &row(cells), None)
}

#[test]
fn tags_have_a_slot_for_each_position() {
    let md5 = |text: &str| {
        Digest(
            md5::Digest::finalize(md5::Digest::chain_update(<md5::Md5 as md5::Digest>::new(), text)).into(),
        )
    };
    let one = md5("single_stack12-34v:1").to_string();
    let null = md5("single_stack12-34NULL").to_string();
    let two = md5("single_stack12-34p:v:1owner:NULL").to_string();
    for (text, expected) in [
        ("p IN (SELECT id FROM par)", vec![one.clone()]),
        ("p IN (SELECT id FROM par) OR owner = 'me'", vec![format!("{one}/"), "/1".to_owned()]),
        ("q IN (SELECT id FROM par) AND id = 1", vec![format!("{null}/1")]),
        ("(p, owner) IN (SELECT id, t FROM par)", vec![two]),
    ] {
        let clause = clause(text);
        let seen = look(&clause, &[("id", Some("1")), ("p", Some("1"))]);
        assert_eq!(clause.tags(&seen, &scope()), expected, "{text}");
    }
    let digest = Digest::parse(&one).expect("a hash");
    assert_eq!(digest.to_string(), one);
    assert_eq!(Digest::parse("nonsense"), None);
}

/// U5: unknown under NOT stays unknown.
#[test]
fn active_conditions_follow_sql() {
    let members = |_: usize, values: &Values| values[0].as_deref().map(|text| text == b"1");
    let check = |text: &str, cells: &[(&str, Option<&str>)], expected: &[bool], holds: bool| {
        let clause = clause(text);
        let active = clause.active(&look(&clause, cells), &members);
        assert_eq!((active.as_slice(), clause.holds(&active)), (expected, holds), "{text} {cells:?}");
    };
    let or = "p IN (SELECT id FROM par) OR owner = 'me'";
    check(or, &[("p", Some("1"))], &[true, false], true);
    check(or, &[("p", Some("2")), ("owner", Some("me"))], &[false, true], true);
    check(or, &[("p", None)], &[false, false], false);
    let not = "p NOT IN (SELECT id FROM par) AND NOT owner = 'me'";
    check(not, &[("p", Some("2")), ("owner", Some("you"))], &[true, true], true);
    check(not, &[("p", Some("2")), ("owner", None)], &[true, false], false);
    check(not, &[("p", None), ("owner", Some("you"))], &[false, true], false);
}

#[test]
fn equal_values_have_one_text() {
    let numeric = |text: &str| tags::canonical(text.as_bytes(), &Type::Numeric);
    assert_eq!(numeric("1.50"), numeric("1.5"));
    assert_eq!(numeric("100.00"), numeric("100"));
    assert_ne!(numeric("100"), numeric("1"));
    assert_eq!(numeric("0.000"), numeric("0"));
    let text = |text: &str, ty: &Type| tags::canonical(text.as_bytes(), ty).map(|text| text.to_vec());
    assert_eq!(text("t", &Type::Bool), text("true", &Type::Bool));
    assert_eq!(text("-0", &Type::Float8), text("0", &Type::Float8));
    assert_eq!(text("a  ", &Type::Bpchar), text("a", &Type::Bpchar));
    assert_eq!(text("P1M", &Type::Interval), text("P30D", &Type::Interval));
    assert_eq!(text("a  ", &Type::Text), Some(b"a  ".to_vec()));
}

proptest! {
    /// The normal form holds exactly where the clause does.
    #[test]
    fn the_normal_form_means_the_same(
        tree in tree_strategy(),
        p in 0..3_i32,
        q in proptest::option::of(0..3_i32),
        members in proptest::collection::btree_set(0..3_i32, 0..3),
        with_null in any::<bool>(),
    ) {
        let contains = |_: usize, values: &Values| {
            let text = values[0].as_deref();
            let value: Option<i32> = text.map(|text| String::from_utf8_lossy(text).parse().expect("a number"));
            match value {
                _ if members.is_empty() && !with_null => Some(false),
                Some(value) if members.contains(&value) => Some(true),
                Some(_) if !with_null => Some(false),
                _ => None,
            }
        };
        let text = tree.text();
        let Ok(clause) = parse(&text) else { return Ok(()) };
        let (p_text, q_text) = (p.to_string(), q.map(|q| q.to_string()));
        let seen = look(&clause, &[("p", Some(&p_text)), ("q", q_text.as_deref())]);
        let holds = clause.holds(&clause.active(&seen, &contains));
        let member = |value: Option<i32>| {
            contains(0, &vec![value.map(|value| value.to_string().into_bytes().into())].into())
        };
        let expected = tree.evaluate(&|leaf| match leaf {
            0 => member(Some(p)),
            1 => member(q),
            2 => q.map(|q| q == 1),
            3 => Some(p == 2),
            _ => Some(q.is_none()),
        });
        prop_assert_eq!(holds, expected == Some(true), "{}", text);
    }
}

#[derive(Clone, Debug)]
enum Node {
    Leaf(u8),
    And(Vec<Node>),
    Or(Vec<Node>),
    Not(Box<Node>),
}

fn tree_strategy() -> impl Strategy<Value = Node> {
    (0..5_u8).prop_map(Node::Leaf).prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 2..4).prop_map(Node::And),
            proptest::collection::vec(inner.clone(), 2..4).prop_map(Node::Or),
            inner.prop_map(|node| Node::Not(Box::new(node))),
        ]
    })
}

impl Node {
    fn text(&self) -> String {
        let list = |args: &[Node], word: &str| args.iter().map(Node::text).collect::<Vec<_>>().join(word);
        match self {
            Node::Leaf(0) => "p IN (SELECT id FROM par)".to_owned(),
            Node::Leaf(1) => "q IN (SELECT id FROM par)".to_owned(),
            Node::Leaf(2) => "q = 1".to_owned(),
            Node::Leaf(3) => "p IN (2)".to_owned(),
            Node::Leaf(_) => "q IS NULL".to_owned(),
            Node::And(args) => format!("({})", list(args, " AND ")),
            Node::Or(args) => format!("({})", list(args, " OR ")),
            Node::Not(arg) => format!("(NOT {})", arg.text()),
        }
    }

    fn evaluate(&self, leaf: &dyn Fn(u8) -> Option<bool>) -> Option<bool> {
        let chain = |args: &[Node], decisive: bool| {
            let values: Vec<Option<bool>> = args.iter().map(|arg| arg.evaluate(leaf)).collect();
            if values.contains(&Some(decisive)) {
                Some(decisive)
            } else if values.contains(&None) {
                None
            } else {
                Some(!decisive)
            }
        };
        match self {
            Node::Leaf(number) => leaf(*number),
            Node::And(args) => chain(args, false),
            Node::Or(args) => chain(args, true),
            Node::Not(arg) => arg.evaluate(leaf).map(|value| !value),
        }
    }
}
