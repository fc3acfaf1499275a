//! Where clauses over HTTP: what is found in snapshot and log, and what is refused with which words.

use serde_json::json;

use super::{ITEMS, catch_up, errors};
use crate::support::{Service, ShapeClient, ShapeRequest, database, encode};

async fn follow(service: &Service, clause: &str) -> ShapeClient {
    let mut client = service.follow(ShapeRequest::table("items").filtered(clause, &[]));
    client.sync().await.unwrap_or_else(|error| panic!("{clause}: {error}"));
    client
}

/// Finding U6: clauses of which the reference implementation refuses some and gets others wrong on
/// changes. The rows come twice, once in the snapshot and once as changes.
async fn is_right_in_snapshot_and_log(name: &str, clauses: &[&str]) {
    let database = database(name).await;
    database
        .execute(
            "CREATE TYPE mood AS ENUM ('sad', 'ok');
             CREATE TABLE items (id int PRIMARY KEY, d date, ts timestamp, tz timestamptz, tm time, v varchar(20),
                f8 float8, n numeric(20, 3), t text, j jsonb, m mood, js json)",
        )
        .await;
    const ROWS: &str = r#"
        (1, '2024-01-31', '2024-01-31 12:00', '2024-01-31 12:00Z', '12:00', 'ab', 3, 3, 'añb', '{"a": 1}', 'ok', '[]'),
        (2, '2024-02-29', 'infinity', '-infinity', '24:00', 'a', 3.5, 3.500, E'a\nb', 'null', NULL, NULL),
        (3, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
        (4, 'infinity', '2024-01-31 12:00', 'infinity', '00:00', '', 'NaN', 'NaN', '50%', '[]', 'sad', '{}'),
        (5, '0044-03-15 BC', 'epoch', 'epoch', '12:00', '%', '-0', 0, 'a_b', '3', 'ok', '1'),
        (6, '2024-01-31', '2024-01-31 00:00', 'epoch', '12:00:00.000001', 'a b', 1e15, 1e15, E'a\\b', '"x"', 'ok', '1'),
        (7, '2024-01-31', NULL, NULL, NULL, '日本', '-Infinity', 3.000, '日本', NULL, 'sad', NULL)"#;
    let insert = |offset: u32| {
        format!(
            "INSERT INTO items SELECT r.id + {offset}, d::date, ts::timestamp, tz::timestamptz, tm::time, v, f8::float8, \
                 n::numeric, t, j::jsonb, m::mood, js::json FROM (VALUES {ROWS}) AS r (id, d, ts, tz, tm, v, f8, n, t, j, m, js)"
        )
    };
    database.execute(&insert(0)).await;
    let service = Service::start(&database, |_| {}).await;
    let mut clients = Vec::new();
    for clause in clauses {
        clients.push(follow(&service, clause).await);
    }
    let postgres = database.client().await;
    for sql in [
        "SELECT 1".to_owned(),
        insert(100),
        "UPDATE items SET (d, ts, tz, tm, v, f8, n, t, j, m, js) = (SELECT d, ts, tz, tm, v, f8, n, t, j, m, js \
         FROM items AS other WHERE other.id = (items.id % 100) % 7 + 1)"
            .to_owned(),
        "DELETE FROM items WHERE id IN (2, 104)".to_owned(),
    ] {
        postgres.batch_execute(&sql).await.expect("the test's SQL is right");
        for client in &mut clients {
            catch_up(client, &ITEMS, &postgres).await;
            assert!(client.refetches().is_empty(), "{:?}", client.request());
        }
    }
}

#[tokio::test]
async fn dates_and_times_may_differ() {
    is_right_in_snapshot_and_log(
        "u6dates",
        &[
            "d <> '2024-01-31'",
            "d IS DISTINCT FROM '2024-01-31'",
            "d IS NOT DISTINCT FROM NULL",
            "ts != '2024-01-31 12:00'",
            "tz IS DISTINCT FROM 'epoch'",
            "tm <> '12:00'",
            "d::timestamp <> ts",
        ],
    )
    .await;
}

#[tokio::test]
async fn a_varchar_and_a_literal_are_concatenated() {
    is_right_in_snapshot_and_log(
        "u6concat",
        &["v || 'b' = 'ab'", "'x' || v || 'y' <> 'xy'", "(v || t) IS NOT NULL", "v || id = 'ab1'"],
    )
    .await;
}

#[tokio::test]
async fn floats_and_numerics_compare_with_whole_numbers() {
    is_right_in_snapshot_and_log(
        "u6numbers",
        &[
            "f8 = 3",
            "n = 3",
            "n <> 3",
            "f8 < 4",
            "n > 2",
            "f8 = 0",
            "n BETWEEN 0 AND 3",
            "n IN (3, 0)",
            "f8 = n",
        ],
    )
    .await;
}

#[tokio::test]
async fn patterns_mind_characters_newlines_and_escapes() {
    is_right_in_snapshot_and_log(
        "u6like",
        &[
            "t LIKE 'a_b'",
            "t LIKE '__'",
            "t LIKE 'a%b'",
            "t LIKE 'a\\_b'",
            "t LIKE '50\\%'",
            "t LIKE 'a\\\\b'",
            "t NOT LIKE '%\n%'",
            "t ILIKE 'A_B'",
            "v LIKE '日_' OR v LIKE '\\%'",
        ],
    )
    .await;
}

#[tokio::test]
async fn values_of_any_type_are_null_or_not() {
    is_right_in_snapshot_and_log(
        "u6null",
        &[
            "j IS NULL",
            "j IS NOT NULL",
            "m IS NULL",
            "m IS NOT NULL",
            "js IS NOT NULL",
            "m IS NULL OR j IS NULL AND id > 3",
        ],
    )
    .await;
}

#[tokio::test]
async fn refusals_are_in_the_words_of_the_contract() {
    let database = database("refusals").await;
    database
        .execute("CREATE TYPE mood AS ENUM ('sad'); CREATE TABLE items (id int PRIMARY KEY, t text, d date, m mood, n numeric)")
        .await;
    let service = Service::start(&database, |_| {}).await;
    let overload = "Could not select an operator overload";
    for (clause, params, message) in [
        ("1", "", "WHERE clause must return a boolean"),
        ("NULL", "", "WHERE clause must return a boolean"),
        ("'t'", "", "WHERE clause must return a boolean"),
        ("id =", "", "At location 19: syntax error at end of input"),
        ("id = 1)", "", "At location 21: syntax error at or near \")\""),
        ("true; select 1", "", "unescaped \";\" causing statement split"),
        ("true order by 1", "", "malformed query ending with SQL clauses"),
        ("true limit 1", "", "malformed query ending with SQL clauses"),
        ("true offset 1", "", "malformed query ending with SQL clauses"),
        ("true union select 1", "", "malformed query ending with SQL clauses"),
        ("true group by 1", "", "malformed query ending with SQL clauses"),
        ("true for update", "", "malformed query ending with SQL clauses"),
        ("zzz = 1", "", "At location 0: unknown reference zzz"),
        ("items.id = 1", "", "At location 0: unknown reference items.id"),
        ("d < now()", "", "At location 4: unknown or unsupported function now/0"),
        ("id !@# 2", "", "At location 3: unknown binary operator \"!@#\""),
        ("!! id", "", "At location 0: unknown unary operator \"!!\""),
        ("id <> d", "", &format!("At location 3: {overload}")),
        ("id = t", "", &format!("At location 3: {overload}")),
        ("d::int4 = 1", "", "At location 0: unknown cast from type date to type int4"),
        ("id::nothing = 1", "", "At location 4: unsupported type nothing"),
        ("id = 'x'", "", "At location 5: invalid syntax for type int4: x"),
        ("'x'::int4 = id", "", "At location 0: could not cast value \"x\" from text to int4"),
        ("m = 'x'", "", "At location 4: invalid syntax for type enum mood: x"),
        ("d < CURRENT_DATE", "", "At location 4: SQLValueFunction is not supported in this context"),
        ("CASE WHEN d THEN true END", "", "At location 0: CaseExpr is not supported in this context"),
        ("count(*) = 1", "", "At location 0: aggregation is not supported in this context"),
        ("id IS TRUE", "", "At location 3: argument of IS TRUE must be bool, not int4"),
        ("id AND true", "", "At location 0: reference id of type int4 is not castable to bool"),
        ("id = ANY (d)", "", "At location 3: argument of ANY must be an array"),
        ("id + ANY ('{1}') = 1", "", "At location 3: ANY/ALL requires operator that returns bool"),
        ("ARRAY[1, t] = '{1}'", "", "At location 0: ARRAY types int4 and text cannot be matched"),
        ("lower(id) = 'x'", "", "At location 0: Could not select a function overload for lower(int4)"),
        ("id = $1 AND t = $1", "&params[1]=5", "At location 16: type conflict for $1: int4 and text"),
        ("id = $2", "&params[1]=5", "At location 5: parameter $2 was not provided"),
        ("1/0 = 1", "", "At location 1: Failed to apply function to constant arguments"),
        ("B'1' = t", "", "At location 0: BitString values are not supported"),
        (
            "concat(VARIADIC ARRAY[t]) = 'x'",
            "",
            "At location 0: explicit VARIADIC function calls are not currently supported",
        ),
        (
            "NULLIF(id, t) = 1",
            "",
            "At location 0: expression \"=\" of :AEXPR_NULLIF is not currently supported",
        ),
    ] {
        let path = format!("/v1/shape?table=items&offset=-1&where={}{params}", encode(clause));
        assert_eq!(errors(&service.get(&path).await, "where"), json!([message]), "{clause}");
    }
}
