//! Where clauses that Postgres evaluates: which are taken, what they find, and what happens around them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use serde_json::json;

use super::{ITEMS, PrivatePostgres, catch_up, errors, journal_is_sound, until};
use crate::support::{ClientError, Service, ShapeClient, ShapeRequest, TestDatabase, database, encode};

const SCHEMA: &str = r#"
CREATE TYPE mood AS ENUM ('sad', 'ok', 'great');
CREATE TYPE pair AS (a int, b text);
CREATE FUNCTION twice(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1 * 2';
CREATE FUNCTION unsteady(int) RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN $1; END';
CREATE TABLE items (id int PRIMARY KEY, k int NOT NULL, v text COLLATE "C", n numeric, m mood, tz timestamptz,
    tt timetz, cs char(3)[], j jsonb, js jsonb[], r int4range, p pair, ai int[], "odd Name" text);
INSERT INTO items SELECT i, i % 10, 'row ' || i, i / 3.0, (enum_range(NULL::mood))[1 + i % 3],
    '2024-03-30 23:30Z'::timestamptz + i * interval '1 hour', '10:00+02'::timetz + i * interval '1 minute',
    ARRAY['a', 'b' || i]::char(3)[], jsonb_build_object('a', i, 'b', 'x' || i), ARRAY[to_jsonb(i), 'null'],
    int4range(i, i + 5), ROW(i, 'b' || i)::pair, ARRAY[i, NULL, 3], NULLIF('o' || i, 'o7')
    FROM generate_series(1, 40) i"#;

/// Each with something that is not native.
const CLAUSES: &[&str] = &[
    "v ~ '^row [1-3]'",
    "v !~* 'ROW 1' AND k = 3",
    "k IN (1, 2) AND (v ~ '1' OR length(v) = 5)",
    "NOT (v SIMILAR TO '%(1|2)%') OR k > 8",
    "n ^ 2 > 20 AND n ^ 0.5 < 3",
    "v || id = 'row 77'",
    "m > 'sad'",
    "m = 'ok' AND v LIKE 'row%'",
    "m IN ('sad', 'great')",
    "tz AT TIME ZONE 'Europe/Berlin' > '2024-03-31 12:00'",
    "extract(hour FROM tz AT TIME ZONE 'America/St_Johns') = 3",
    "tt > '10:20:00+02'",
    "cs @> ARRAY['b5']::char(3)[] OR cs[1] = 'z'",
    "j || '{\"c\": 1}' = '{\"a\": 5, \"b\": \"x5\", \"c\": 1}'",
    "j > '{\"a\": 20, \"b\": \"x\"}'",
    "js[1] = '4' OR '7' = ANY (js)",
    "r @> 12 AND NOT isempty(r)",
    "(p).a % 7 = 2 AND (p).b IS NOT NULL",
    "ai < ARRAY[20, 1]",
    "CASE WHEN k < 5 THEN v LIKE '%1' ELSE k = 7 END",
    "NULLIF(k, 3) IS NULL OR k = 4",
    "twice(k) = 8",
    "substring(v FROM 5 FOR 1) = '3'",
    "\"odd Name\" COLLATE \"C\" > 'o3' AND (k BETWEEN SYMMETRIC 9 AND 1)",
    "(length(v) > 3) IS NOT FALSE AND regexp_replace(v, '\\d', 'x') = 'row x'",
    "'abc' ~ 'b' AND k = 5",
    "VARIADIC_free(k) = 1 OR ROW(k, id) < ROW(3, 7)",
];

async fn follow(service: &Service, clause: &str) -> ShapeClient {
    let mut client = service.follow(ShapeRequest::table("items").filtered(clause, &[]));
    client.sync().await.unwrap_or_else(|error| panic!("{clause}: {error}\n{}", service.output()));
    client
}

#[tokio::test]
async fn clauses_beyond_the_native_ones_follow_the_table() {
    let database = database("evaluation").await;
    database.execute(SCHEMA).await;
    database
        .execute(
            "CREATE FUNCTION variadic_free(int) RETURNS int IMMUTABLE STRICT LANGUAGE sql AS 'SELECT $1 / 5'",
        )
        .await;
    let mut service = Service::start(&database, |_| {}).await;
    let mut clients = Vec::new();
    for clause in CLAUSES {
        clients.push(follow(&service, clause).await);
    }
    let mut params = service.follow(
        ShapeRequest::table("items").filtered("v ~ $1 AND k = $2 AND $1 <> 'x'", &["^row [12]", "2"]),
    );
    params.sync().await.expect("parameters are literals");
    clients.push(params);
    for sql in [
        "INSERT INTO items SELECT id + 100, k, 'row ' || id + 1, n + 1, m, tz, tt, cs, j, js, r, p, ai, \"odd Name\" FROM items",
        "INSERT INTO items (id, k) VALUES (77, 7), (78, 8)",
        "UPDATE items SET k = (k + 1) % 10, n = n * 2, tz = tz + interval '5 hours', tt = tt + interval '7 minutes'",
        "UPDATE items SET v = 'row 77', m = 'great', ai = '{}', r = 'empty', j = '5', js = '{}', p = NULL WHERE id % 5 = 0",
        "UPDATE items SET v = NULL, m = NULL, cs = '{z}', \"odd Name\" = E'o9\\\\''x' WHERE id % 7 = 0",
        "BEGIN; UPDATE items SET id = id + 1000 WHERE id < 20; DELETE FROM items WHERE id % 3 = 0; \
         INSERT INTO items (id, k, v) VALUES (5, 5, 'now'), (6, 6, 'row 77'); COMMIT",
    ] {
        database.execute(sql).await;
        let postgres = database.client().await;
        for client in &mut clients {
            catch_up(client, &ITEMS, &postgres).await;
        }
    }
    for client in &clients {
        assert!(client.refetches().is_empty(), "{:?}", client.request());
    }
    // The definition tells what needs Postgres: it does after a restart, too.
    service.kill9();
    database.execute("UPDATE items SET k = k + 1, v = v || '1'").await;
    service.restart().await.expect("the service starts again");
    database.execute("UPDATE items SET m = 'sad', v = 'row 3' || id WHERE id % 2 = 0").await;
    let postgres = database.client().await;
    for client in &mut clients {
        client.redirect(service.address());
        catch_up(client, &ITEMS, &postgres).await;
        assert!(client.refetches().is_empty(), "{:?}", client.request());
    }
    assert!(service.terminate().await, "{}", service.output());
    journal_is_sound(service.data_dir());
}

async fn refusal(service: &Service, clause: &str) -> serde_json::Value {
    let path = format!("/v1/shape?table=items&offset=-1&where={}", encode(clause));
    errors(&service.get(&path).await, "where")
}

#[tokio::test]
async fn what_is_not_immutable_or_not_legal_is_refused_with_its_place() {
    let database = database("mutable").await;
    database.execute(SCHEMA).await;
    let service = Service::start(&database, |_| {}).await;
    for (clause, message) in [
        ("tz < now()", "At location 5: unknown or unsupported function now/0"),
        ("random() < 0.5", "At location 0: unknown or unsupported function random/0"),
        ("k = 1 AND v ~ current_user", "At location 14: SQLValueFunction is not supported in this context"),
        ("tz < CURRENT_DATE", "At location 5: SQLValueFunction is not supported in this context"),
        ("v ~ 'a' AND v ~ to_char(tz, 'YYYY')", "At location 16: unknown or unsupported function to_char/2"),
        ("unsteady(k) = 1", "At location 0: unknown or unsupported function unsteady/1"),
        ("v ~ (unsteady(k)::text)", "At location 5: unknown or unsupported function unsteady/1"),
        ("(v ~ 'a') = (k = unsteady(k))", "At location 17: unsteady is not immutable"),
        (
            "tz > 'yesterday'",
            "At location 5: a date or time that depends on the present time is not supported",
        ),
        (
            "v ~ 'x' OR tz IN ('2024-01-01', ' Now ')",
            "At location 32: a date or time that depends on the present time is not supported",
        ),
        ("m = 'happy'", "At location 4: invalid syntax for type enum mood: happy"),
        ("v ~ 5", "At location 2: unknown binary operator \"~\""),
        ("id <> tz", "At location 3: Could not select an operator overload"),
        ("k % 0 = 1 AND nothing(k)", "At location 14: unknown or unsupported function nothing/1"),
        ("v ~ 'a' AND zzz ~ 'b'", "At location 12: unknown reference zzz"),
        ("count(*) > 1", "At location 0: aggregation is not supported in this context"),
        ("generate_series(1, k) > 1", "At location 0: unknown or unsupported function generate_series/2"),
        ("length(v)", "At location 0: unknown or unsupported function length/1"),
    ] {
        assert_eq!(refusal(&service, clause).await, json!([message]), "{clause}");
    }
    // A text is a text.
    for clause in ["v ~ 'now'", "lower(v) || 'x' ~* 'today x'"] {
        follow(&service, clause).await;
    }
    let left = database.value("SELECT count(*)::text FROM pg_class WHERE relname = 'shapefold_check'").await;
    assert_eq!(left.as_deref(), Some("0"));
}

#[tokio::test]
async fn one_setting_switches_it_off() {
    let database = database("switchedoff").await;
    database.execute(SCHEMA).await;
    let service = Service::start(&database, |settings| {
        settings.set("SHAPEFOLD_POSTGRES_EVALUATION", "false");
    })
    .await;
    for (clause, message) in [
        ("v ~ '^row'", "At location 2: unknown binary operator \"~\""),
        ("m = 'ok'", "At location 4: invalid syntax for type enum mood: ok"),
        ("k = 1 OR length(v) = 1", "At location 9: unknown or unsupported function length/1"),
    ] {
        assert_eq!(refusal(&service, clause).await, json!([message]), "{clause}");
    }
    follow(&service, "k = 1").await;
}

/// An error of Postgres is no answer: a snapshot fails as a whole, a changed row is not in the shape.
#[tokio::test]
async fn a_row_that_makes_the_clause_fail_is_not_in_the_shape() {
    let database = database("rowerrors").await;
    database
        .execute(
            "CREATE TABLE items (id int PRIMARY KEY, n int, v text);
             INSERT INTO items VALUES (1, 1, 'a'), (2, 20, 'b'), (3, 0, 'c')",
        )
        .await;
    let service = Service::start(&database, |_| {}).await;
    let clause = "width_bucket(10, 0, n, 5) > 5 AND v ~ '.'";
    let path = format!("/v1/shape?table=items&offset=-1&where={}", encode(clause));
    let answer = service.get(&path).await;
    assert_eq!(answer.status, 500, "{}", answer.text());
    let said = answer.json()["message"].as_str().unwrap_or_default().to_owned();
    assert!(said.starts_with("Unexpected error while creating snapshot: "), "{said}");
    database.execute("UPDATE items SET n = 5 WHERE id = 3").await;
    let mut client = follow(&service, clause).await;
    let ids = |client: &ShapeClient| -> Vec<String> {
        client.rows().values().filter_map(|row| row.get("id").cloned().flatten()).collect()
    };
    // Errors beside rows that are decided, in one transaction: the others are not affected.
    database
        .execute(
            "BEGIN; INSERT INTO items SELECT i, i % 3, 'many' FROM generate_series(10, 30) i;
             UPDATE items SET n = 0 WHERE id = 1; UPDATE items SET v = 'z' WHERE id = 3; COMMIT",
        )
        .await;
    until("the rows that can be decided", async || {
        client.sync().await.expect("the shape is served");
        (client.rows().values().any(|row| row.get("v").cloned().flatten().as_deref() == Some("z")))
            .then_some(())
    })
    .await;
    let mut expected: Vec<String> = (10..=30).filter(|i| i % 3 != 0).map(|i| i.to_string()).collect();
    expected.push("3".to_owned());
    let mut have = ids(&client);
    expected.sort();
    have.sort();
    assert_eq!(have, expected, "neither 1, which fails now, nor those with n = 0");
    database.execute("UPDATE items SET n = 5 WHERE n = 0").await;
    catch_up(&mut client, &ITEMS, &database.client().await).await;
}

/// The order of texts is that of the column, whatever it is.
#[tokio::test]
async fn texts_are_ordered_by_their_collation() {
    let database = database("collation").await;
    database
        .execute(
            "CREATE TABLE items (id int PRIMARY KEY, v text COLLATE \"und-x-icu\");
             CREATE TABLE plain (id int PRIMARY KEY, v text COLLATE \"C\")",
        )
        .await;
    let service = Service::start(&database, |_| {}).await;
    let mut clients = Vec::new();
    for table in ["items", "plain"] {
        for clause in ["v < 'b'", "v BETWEEN 'A' AND 'é'", "greatest(v, 'c') = 'c' AND id > 2"] {
            let mut client = service.follow(ShapeRequest::table(table).filtered(clause, &[]));
            client.sync().await.unwrap_or_else(|error| panic!("{clause}: {error}"));
            clients.push((table, client));
        }
    }
    for table in ["items", "plain"] {
        let values =
            "(1, 'a'), (2, 'A'), (3, 'b'), (4, 'B'), (5, 'c'), (6, 'é'), (7, 'Z'), (8, ''), (9, NULL)";
        database.execute(&format!("INSERT INTO {table} VALUES {values}")).await;
        database.execute(&format!("UPDATE {table} SET id = id + 10, v = upper(v) WHERE id > 4")).await;
    }
    let postgres = database.client().await;
    let mut counts = Vec::new();
    for (table, client) in &mut clients {
        catch_up(client, &crate::support::Table { name: table, primary_key: &["id"] }, &postgres).await;
        counts.push(client.rows().len());
    }
    assert_ne!(counts[..3], counts[3..], "the collations differ");
}

/// What an expression names may go away: then nobody can tell, and the shape ends.
#[tokio::test]
async fn a_shape_ends_when_its_function_is_gone() {
    let database = database("gone").await;
    database.execute(SCHEMA).await;
    let service = Service::start(&database, |_| {}).await;
    let mut lost = follow(&service, "twice(k) = 8").await;
    let mut kept = follow(&service, "v ~ '1'").await;
    database.execute("DROP FUNCTION twice(int); UPDATE items SET v = v || '1'").await;
    catch_up(&mut kept, &ITEMS, &database.client().await).await;
    assert!(kept.refetches().is_empty());
    let before = super::handle(&lost);
    until("the shape ends", async || match lost.sync().await {
        Ok(()) => (!lost.refetches().is_empty()).then_some(()),
        // Whoever comes after it is told that there is no such function.
        Err(ClientError::Unavailable(_)) => None,
        Err(error) => {
            assert!(error.to_string().contains("twice"), "{error}");
            Some(())
        }
    })
    .await;
    let answer = service
        .get(&format!("/v1/shape?table=items&offset=0_0&handle={before}&where={}", encode("twice(k) = 8")))
        .await;
    assert_eq!(errors(&answer, "where"), json!(["At location 0: unknown or unsupported function twice/1"]));
}

/// A transaction that does not fit into memory is asked about piece by piece.
#[tokio::test]
async fn large_transactions_are_evaluated_in_batches() {
    let database = database("largetxn").await;
    database.execute("CREATE TABLE items (id int PRIMARY KEY, v text, pad text)").await;
    let service = Service::start(&database, |_| {}).await;
    let mut client = follow(&service, "v ~ '7$' OR (v ~ '^99' AND id % 2 = 0)").await;
    let mut whole = service.follow(ShapeRequest::table("items").filtered("id % 1000 = 7", &[]));
    whole.sync().await.expect("a native shape beside it");
    database
        .execute("INSERT INTO items SELECT i, 'v' || i, repeat('x', 1000) FROM generate_series(1, 20000) i")
        .await;
    let postgres = database.client().await;
    catch_up(&mut client, &ITEMS, &postgres).await;
    catch_up(&mut whole, &ITEMS, &postgres).await;
    database.execute("UPDATE items SET v = (id * 7)::text").await;
    catch_up(&mut client, &ITEMS, &postgres).await;
    assert!(client.refetches().is_empty());
}

/// Without Postgres nothing is decided, and nothing is lost.
#[tokio::test]
async fn a_lost_connection_loses_no_change() {
    let mut server = PrivatePostgres::start().await;
    let database = server.database("evaldown").await;
    database.execute(SCHEMA).await;
    let service = Service::start(&database, |_| {}).await;
    let mut clients = Vec::new();
    for clause in ["v ~ '1'", "k = 3 AND length(v) > 4"] {
        clients.push(follow(&service, clause).await);
    }
    for round in 0..4 {
        database.execute(&format!("UPDATE items SET v = v || '{round}', k = (k + 1) % 10")).await;
        if round % 2 == 0 {
            server.stop();
            server.start_again().await;
        } else {
            // Only the sessions that evaluate: the stream goes on meanwhile.
            database
                .execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                     WHERE query LIKE '%WITH ORDINALITY%' AND pid <> pg_backend_pid()",
                )
                .await;
        }
        database.execute("UPDATE items SET v = 'again ' || id WHERE id % 4 = 1").await;
        let postgres = database.client().await;
        for client in &mut clients {
            catch_up(client, &ITEMS, &postgres).await;
            assert!(client.refetches().is_empty(), "{:?}", client.request());
        }
    }
}

async fn write(database: Arc<TestDatabase>, number: u32, stop: Arc<AtomicBool>, done: Arc<AtomicU32>) {
    let client = database.client().await;
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        let (key, id) = (round % 40 + 1, number * 1_000_000 + round);
        let sql = format!(
            "BEGIN; UPDATE items SET v = 'w{number} {round}', k = (k + 1) % 10 WHERE id = {key};
             INSERT INTO items (id, k, v) VALUES ({id}, {round} % 10, 'new {id}');
             DELETE FROM items WHERE id = {id} - 5; COMMIT"
        );
        // Two writers may block each other for good; Postgres then ends one of them.
        if client.batch_execute(&sql).await.is_err() {
            client.batch_execute("ROLLBACK").await.expect("a transaction can be given up");
        }
        round += 1;
        done.fetch_add(1, Ordering::Relaxed);
    }
}

/// Shapes that are made while transactions wait for Postgres have every change once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shapes_made_under_load_have_every_change_once() {
    let database = Arc::new(database("evalload").await);
    database.execute(SCHEMA).await;
    let mut service = Service::start(&database, |_| {}).await;
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let writers: Vec<_> = (1..=3)
        .map(|number| {
            tokio::spawn(write(Arc::clone(&database), number, Arc::clone(&stop), Arc::clone(&done)))
        })
        .collect();
    let mut clients = Vec::new();
    for number in 0..24 {
        let before = done.load(Ordering::Relaxed);
        let clause = match number % 3 {
            0 => format!("v ~ '{}'", number % 10),
            1 => format!("k = {} AND v ~ '{}$'", number % 10, number % 7),
            _ => format!("k = {number} OR k < 5"),
        };
        clients.push(follow(&service, &clause).await);
        until("the writers go on", async || (done.load(Ordering::Relaxed) > before + 5).then_some(())).await;
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.expect("the writer ended");
    }
    let postgres = database.client().await;
    for client in &mut clients {
        catch_up(client, &ITEMS, &postgres).await;
        assert!(client.refetches().is_empty(), "{:?}", client.request());
    }
    assert!(service.terminate().await, "{}", service.output());
    journal_is_sound(service.data_dir());
}
