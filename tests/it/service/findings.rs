//! Where the reference implementation was seen to be wrong (U1 to U4, U10), under load and small chunks.
//! U7 to U9 are with what they are about: subsets, keys and values, streams of events.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use shapefold_xtask::http::HttpClient;
use tokio_postgres::Client;

use super::http_log::{header, is_up_to_date, messages, started};
use super::{ITEMS, catch_up, fresh, handle};
use crate::support::{Service, ShapeRequest, TestDatabase, WAIT_DURATION_MAX, database};

const SMALL_CHUNKS: [(&str, &str); 1] = [("ELECTRIC_SHAPE_CHUNK_BYTES_THRESHOLD", "10000")];
const TABLE: &str = "CREATE TABLE items (id int PRIMARY KEY, k int NOT NULL, v text)";

/// Transactions of 1 to 80 changes, of which those with even `k` are wanted; the last change of many is
/// not. Ends when the flag is set.
async fn write_until(session: Client, stop: Arc<AtomicBool>) {
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        round += 1;
        let (first, count) = (round * 100, 1 + round * 37 % 80);
        session
            .batch_execute(&format!(
                "BEGIN; INSERT INTO items SELECT {first} + n, n, repeat('x', 20 * (n % 7)) FROM generate_series(1, {count}) n;
                 UPDATE items SET v = 'changed' WHERE id = {first} - 98; DELETE FROM items WHERE id = {first} - 199;
                 INSERT INTO items VALUES ({first}, 1, 'nobody wants it'); COMMIT"
            ))
            .await
            .expect("the test's SQL is right");
    }
}

fn is_change(message: &Value) -> bool {
    message["headers"]["operation"].is_string()
}

/// The log as somebody reads it who follows it at the end.
struct Read {
    changes: Vec<Value>,
    /// Number of changes before each `up-to-date`.
    up_to_date: Vec<usize>,
    offset: String,
}

async fn read_on(http: &mut HttpClient, shape: &str, read: &mut Read, live: bool) {
    let live = if live { "&live=true" } else { "" };
    let path = format!("/v1/shape?{shape}&offset={}{live}", read.offset);
    let answer = http.get(&path).await.expect("an answer");
    read.offset = header(&answer, "electric-offset");
    let all = messages(&answer);
    read.changes.extend(all.iter().filter(|message| is_change(message)).cloned());
    if all.last().is_some_and(is_up_to_date) {
        read.up_to_date.push(read.changes.len());
    }
}

/// U1: an offset that covers a change which the body lacks. U2: `up-to-date` in the middle of a transaction,
/// and transactions without `last`.
#[tokio::test]
async fn u1_u2_an_offset_covers_what_was_sent_and_nothing_else() {
    let (database, service) = started("u1u2", TABLE, &SMALL_CHUNKS).await;
    let shape = "table=items&where=k%20%25%202%20%3D%200";
    let first = service.get(&format!("/v1/shape?{shape}&offset=-1")).await;
    let shape = format!("{shape}&handle={}", header(&first, "electric-handle"));
    let start = || Read { changes: Vec::new(), up_to_date: Vec::new(), offset: "0_inf".to_owned() };
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn(write_until(database.client().await, Arc::clone(&stop)));
    let (mut followed, mut http) = (start(), service.http());
    let deadline = std::time::Instant::now() + WAIT_DURATION_MAX;
    while followed.up_to_date.len() < 80 || followed.changes.len() < 3_000 {
        read_on(&mut http, &shape, &mut followed, true).await;
        assert!(std::time::Instant::now() < deadline, "{} changes", followed.changes.len());
    }
    stop.store(true, Ordering::Relaxed);
    writer.await.expect("the writer");
    // The log from its beginning is the truth.
    let mut again = start();
    while again.offset != followed.offset && again.changes.len() < followed.changes.len() {
        read_on(&mut http, &shape, &mut again, false).await;
    }
    again.changes.truncate(followed.changes.len());
    assert!(again.changes == followed.changes, "the follower missed a change");
    let lsn = |change: &Value| change["headers"]["lsn"].as_str().expect("an LSN").to_owned();
    for end in followed.up_to_date.into_iter().filter(|end| *end > 0) {
        assert_eq!(again.changes[end - 1]["headers"]["last"], true, "up-to-date in mid-transaction");
    }
    for pair in again.changes.windows(2) {
        let ends = lsn(&pair[0]) != lsn(&pair[1]);
        assert_eq!(pair[0]["headers"]["last"] == true, ends, "{}", pair[0]);
    }
}

/// U3: rows of transactions around a TRUNCATE that are neither in the new snapshot nor on the log.
#[tokio::test]
async fn u3_nothing_is_lost_around_a_truncate() {
    let (database, service) = started("u3", TABLE, &SMALL_CHUNKS).await;
    let mut client = service.follow(ShapeRequest::table("items"));
    client.sync().await.expect("the shape is made");
    let (one, other) = (database.client().await, database.client().await);
    for round in 0..25 {
        let truncate = async {
            one.batch_execute(&format!(
                "BEGIN; TRUNCATE items; INSERT INTO items VALUES ({round}, 0, 'with it'); COMMIT"
            ))
            .await
        };
        let beside = async {
            other
                .batch_execute(&format!(
                    "INSERT INTO items SELECT 1000 + {round} * 10 + n, n, 'beside' FROM generate_series(1, 3) n"
                ))
                .await
        };
        // The client asks meanwhile: it may make the new shape at any moment.
        let (truncated, inserted, _) = tokio::join!(truncate, beside, client.sync());
        truncated.and(inserted).expect("the test's SQL is right");
        catch_up(&mut client, &ITEMS, &one).await;
    }
    assert!(client.refetches().len() >= 25, "each TRUNCATE ends the shape");
}

/// U4: after kill -9 the tail of a transaction lost, transactions replayed that a fresh snapshot holds, and
/// a valid handle refused and served again.
#[tokio::test]
async fn u4_kill_9_loses_replays_and_refuses_nothing() {
    let (database, mut service) = started("u4", TABLE, &SMALL_CHUNKS).await;
    let session = database.client().await;
    let mut client = service.follow(ShapeRequest::table("items"));
    client.sync().await.expect("the shape is made");
    let known = handle(&client);
    for round in 0..4 {
        let write = format!(
            "INSERT INTO items SELECT {round} * 1000 + n, n, repeat('x', 50) FROM generate_series(1, 400) n"
        );
        session.batch_execute(&write).await.expect("the test's SQL is right");
        // A shape whose snapshot has that transaction, which the stream may bring again.
        let mut late = service.follow(ShapeRequest::table("items").filtered(&format!("k > {round}"), &[]));
        late.sync().await.expect("the shape is made");
        session
            .batch_execute("UPDATE items SET v = 'changed' WHERE k % 3 = 0")
            .await
            .expect("the test's SQL is right");
        service.kill9();
        service.restart().await.unwrap_or_else(|error| panic!("{error}"));
        for client in [&mut client, &mut late] {
            client.redirect(service.address());
            // It looks for updates of rows that are not there, and for inserts of those that are.
            catch_up(client, &ITEMS, &session).await;
            assert_eq!(client.refetches().len(), 0);
        }
        assert_eq!(handle(&client), known);
    }
}

/// U10: the old shape served after DROP and CREATE under the same name.
#[tokio::test]
async fn u10_a_table_of_the_same_name_is_another_shape() {
    let (database, service) = started("u10", TABLE, &[]).await;
    database.execute("INSERT INTO items VALUES (1, 1, 'old')").await;
    let mut client = service.follow(ShapeRequest::table("items"));
    client.sync().await.expect("the shape is made");
    let old = handle(&client);
    database.execute(&format!("DROP TABLE items; {TABLE}; INSERT INTO items VALUES (2, 2, 'new')")).await;
    catch_up(&mut client, &ITEMS, &database.client().await).await;
    assert_ne!(handle(&client), old);
    let rows = fresh(&service, &client).await;
    assert_eq!(rows.rows(), client.rows());
    let answer = service.get(&format!("/v1/shape?table=items&handle={old}&offset=0_0")).await;
    assert_eq!(answer.status, 409, "nobody is served the old rows: {}", answer.text());
}

/// Upstream's "exceedingly large transaction": more than is kept in memory, and nobody starts over.
#[tokio::test]
async fn an_exceedingly_large_transaction_reaches_everyone() {
    let (database, service) = started("hugetxn", TABLE, &[]).await;
    let requests = [ShapeRequest::table("items"), ShapeRequest::table("items").filtered("k = 7", &[])];
    let mut clients = requests.map(|request| service.follow(request));
    for client in &mut clients {
        client.sync().await.expect("the shape is made");
    }
    database
        .execute("INSERT INTO items SELECT n, n % 100, repeat(n::text, 60) FROM generate_series(1, 40000) n")
        .await;
    for client in &mut clients {
        catch_up(client, &ITEMS, &database.client().await).await;
        assert_eq!(client.refetches().len(), 0);
    }
}

/// Contract 1.4 and 5.2: a service that is open to everyone is so on purpose.
#[tokio::test]
async fn a_secret_or_insecure_is_needed_to_start() {
    let database = database("mode").await;
    for (secret, insecure, message) in [
        (None, "false", "set ELECTRIC_SECRET, or ELECTRIC_INSECURE=true to serve everyone"),
        (Some("s3cret"), "true", "give one of ELECTRIC_SECRET and ELECTRIC_INSECURE, not both"),
    ] {
        let output = refused_to_start(&database, secret, insecure).await;
        assert!(output.contains(message) && !output.contains("s3cret"), "{output}");
    }
}

async fn refused_to_start(database: &TestDatabase, secret: Option<&str>, insecure: &str) -> String {
    let mut service = Service::spawn(database, |settings| {
        settings.set("ELECTRIC_INSECURE", insecure);
        if let Some(secret) = secret {
            settings.set("ELECTRIC_SECRET", secret);
        }
    });
    let status = super::until("the process has ended", async || service.try_wait()).await;
    assert!(!status.success(), "{status}");
    super::until("it has said why", async || {
        Some(service.output()).filter(|output| output.contains("ELECTRIC"))
    })
    .await
}

/// Contract 3.1: values have one text, whatever was set for the role.
#[tokio::test]
async fn settings_of_a_role_change_no_value() {
    let database = database("rolesettings").await;
    let user = format!("{}_user", database.name);
    let insert = |id: i32| {
        format!(
            "INSERT INTO items VALUES ({id}, '2024-02-03 04:05:06+00', '2024-02-03', '\\xdeadbeef', 0.1, '1 day 2 hours')"
        )
    };
    database
        .execute(&format!(
            "CREATE ROLE {user} LOGIN SUPERUSER PASSWORD 'secret';
             ALTER ROLE {user} SET DateStyle = 'German, DMY'; ALTER ROLE {user} SET TimeZone = 'Asia/Tokyo';
             ALTER ROLE {user} SET bytea_output = 'escape'; ALTER ROLE {user} SET extra_float_digits = -10;
             ALTER ROLE {user} SET IntervalStyle = 'sql_standard';
             CREATE TABLE items (id int PRIMARY KEY, a timestamptz, b date, c bytea, d float8, e interval);
             {}",
            insert(1)
        ))
        .await;
    let url = database.url_as(&user, "secret");
    let mut service = Service::start(&database, |settings| settings.database_url = url).await;
    let mut client = service.follow(ShapeRequest::table("items"));
    client.sync().await.expect("the shape is made");
    database.execute(&insert(2)).await;
    catch_up_ids(&mut client, 2).await;
    let text = |values: [&str; 5]| values.map(|value| Some(value.to_owned()));
    let expected = text(["2024-02-03 04:05:06+00", "2024-02-03", "\\xdeadbeef", "0.1", "P1DT2H"]);
    for row in client.rows().values() {
        assert_eq!(["a", "b", "c", "d", "e"].map(|name| row[name].clone()), expected);
    }
    assert!(service.terminate().await);
    database.execute(&format!("DROP OWNED BY {user} CASCADE; DROP ROLE {user}")).await;
}

/// Follows until there are so many rows.
async fn catch_up_ids(client: &mut crate::support::ShapeClient, count: usize) {
    super::until("all rows", async || {
        client.sync().await.expect("an answer");
        (client.rows().len() == count).then_some(())
    })
    .await;
}
