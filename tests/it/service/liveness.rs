//! Parts of the pipeline that stand still, and shapes that nobody may give up.

use serde_json::Value;

use super::{ITEMS, catch_up, fresh, handle, journal_is_sound, journal_tail, until};
use crate::support::{Service, ShapeClient, ShapeRequest, TestDatabase, database};

const SHAPES: usize = 3;

async fn table(database: &TestDatabase) {
    database
        .execute(&format!(
            "CREATE TABLE items (id int PRIMARY KEY, k int NOT NULL, v text);
             INSERT INTO items SELECT i, i % {SHAPES}, 'start' FROM generate_series(1, 30) i"
        ))
        .await;
}

async fn clients(service: &Service) -> Vec<ShapeClient> {
    let mut clients: Vec<ShapeClient> = (0..SHAPES)
        .map(|k| service.follow(ShapeRequest::table("items").filtered(&format!("k = {k}"), &[])))
        .collect();
    for client in &mut clients {
        client.sync().await.expect("the shape is made");
    }
    clients
}

async fn hold(service: &Service, part: &str, held: bool) {
    let path = format!("/test-hooks/hold?part={part}&held={held}");
    let answer = service.http().request("POST", &path, &[], b"").await.expect("the hook answers");
    assert_eq!(answer.status, 202, "{}", answer.text());
}

/// Waits for an answer of `/v1/ready` that satisfies.
async fn ready(service: &Service, what: &str, satisfies: impl Fn(u16, &Value) -> bool) -> Value {
    until(what, async || {
        let answer = service.get("/v1/ready").await;
        let body = answer.json();
        satisfies(answer.status, &body).then_some(body)
    })
    .await
}

/// X18: whoever stands still does not blind those who watch; and what stands still is told of within a second,
/// by name, and journaled when it goes on. No shape ends for it, although the grace has passed several times.
#[tokio::test]
async fn a_part_that_stands_still_is_told_of_and_ends_no_shape() {
    let database = database("standstill").await;
    let postgres = database.client().await;
    table(&database).await;
    let mut service = Service::start(&database, |settings| {
        settings.set("SHAPEFOLD_WATCHDOG_AFTER", "500ms");
        settings.set("ELECTRIC_FLUSH_STALL_GRACE_PERIOD", "1s");
        settings.set("ELECTRIC_PROMETHEUS_PORT", "0");
    })
    .await;
    let mut clients = clients(&service).await;
    let handles: Vec<String> = clients.iter().map(handle).collect();
    for part in ["driver", "writers-0", "journal"] {
        hold(&service, part, true).await;
        database.execute(&format!("UPDATE items SET v = 'while {part} stood'")).await;
        // Longer than twice the grace: all of them would be due.
        let still = |body: &Value| {
            let parts = body["progress"]["standing_still"].as_array().cloned().unwrap_or_default();
            parts.iter().any(|still| {
                still["part"] == part && still["still_ms"].as_u64().is_some_and(|millis| millis > 2_500)
            })
        };
        let body = ready(&service, part, |status, body| status == 503 && still(body)).await;
        let message = body["message"].as_str().unwrap_or_default();
        assert!(message.starts_with(&format!("{part} has shown no sign of life for ")), "{message}");
        assert_eq!(body["ready"], false);
        let health = service.get("/v1/health").await;
        assert_eq!(
            (health.status, &health.json()["status"]),
            (200, &"active".into()),
            "it is the owner, and serves"
        );
        assert!(
            health.json()["message"].as_str().is_some_and(|text| text.contains(part)),
            "{}",
            health.text()
        );
        for client in &clients {
            let rows = fresh(&service, client).await;
            assert_eq!(rows.handle(), client.handle(), "what is there is served");
        }
        hold(&service, part, false).await;
        ready(&service, "it goes on", |status, body| status == 200 && body["ready"] == true).await;
        for client in &mut clients {
            catch_up(client, &ITEMS, &postgres).await;
            assert!(client.refetches().is_empty(), "{:?}", client.refetches());
        }
    }
    assert_eq!(clients.iter().map(handle).collect::<Vec<_>>(), handles);
    let told = |part: &str| {
        let output = service.output();
        output.lines().filter(|line| line.contains("stands still") && line.contains(part)).count()
    };
    for part in ["driver", "writers-0", "journal"] {
        assert!((1..=4).contains(&told(part)), "collapsed: {} lines about {part}", told(part));
    }
    assert!(service.terminate().await, "{}", service.output());
    for kind in ["ProgressStopped", "ProgressResumed"] {
        let tail = journal_tail(service.data_dir(), &["--kind", kind]);
        for part in ["driver", "writers-0", "journal"] {
            assert!(tail.contains(part), "{kind} {part}: {tail}");
        }
    }
    assert_eq!(journal_tail(service.data_dir(), &["--kind", "ShapeInvalidated"]), "");
    journal_is_sound(service.data_dir());
}

/// Class 6: writers of all shapes panic as often as they try. One of three may be given up; the others are tried
/// further, an alarm is raised, nothing of theirs is acknowledged, and in the end they have everything.
#[tokio::test]
async fn a_fleet_that_fails_is_not_given_up() {
    let database = database("budget").await;
    let postgres = database.client().await;
    table(&database).await;
    let mut service = Service::start(&database, |_| {}).await;
    let mut clients = clients(&service).await;
    for client in &mut clients {
        client.expect_failing_writers();
        let path = format!("/test-hooks/panic?handle={}&times=8", handle(client));
        let answer = service.http().request("POST", &path, &[], b"").await.expect("the hook answers");
        assert_eq!(answer.status, 202, "{}", answer.text());
    }
    database.execute("UPDATE items SET v = 'eight times in vain'").await;
    let body = ready(&service, "the alarm", |status, body| {
        status == 503 && body["progress"]["give_up_exhausted_ms"].is_u64()
    })
    .await;
    let message = body["message"].as_str().unwrap_or_default();
    assert!(message.contains("more shapes make no progress than may be given up"), "{message}");
    assert!(
        message.contains(body["progress"]["holder"]["shape_handle"].as_str().expect("a holder")),
        "{message}"
    );
    assert_eq!(body["progress"]["next_holders"].as_array().map(Vec::len), Some(1), "{body}");
    for client in &mut clients {
        catch_up(client, &ITEMS, &postgres).await;
    }
    let sent_away: usize = clients.iter().map(|client| client.refetches().len()).sum();
    assert_eq!(sent_away, 1, "one of three");
    ready(&service, "all is well", |status, body| {
        status == 200 && body["progress"]["give_up_exhausted_ms"].is_null()
    })
    .await;
    assert!(service.terminate().await, "{}", service.output());
    for kind in ["ShapeInvalidated", "BudgetExhausted", "BudgetRestored"] {
        let tail = journal_tail(service.data_dir(), &["--kind", kind]);
        assert_eq!(tail.lines().count(), 1, "{kind}: {tail}");
    }
    journal_is_sound(service.data_dir());
}

/// X20: what waits for a snapshot that cannot be opened is held, up to a limit; then that shape is given up, and the
/// stream goes on for the others.
#[tokio::test]
async fn what_waits_for_a_snapshot_is_held_up_to_a_limit() {
    let database = database("backlog").await;
    let postgres = database.client().await;
    table(&database).await;
    database
        .execute(
            "CREATE TABLE busy (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text);
             ALTER TABLE busy REPLICA IDENTITY FULL",
        )
        .await;
    let mut service = Service::start(&database, |settings| {
        settings.set("RUST_LOG", "info");
    })
    .await;
    let mut other = service.follow(ShapeRequest::table("items"));
    other.sync().await.expect("the shape is made");
    let known = handle(&other);
    // A transaction that wrote into the table before it was published: its end has to be waited for (N3).
    let writer = database.client().await;
    writer.batch_execute("BEGIN; INSERT INTO busy (v) VALUES ('not yet')").await.expect("a transaction");
    let asking = service.http();
    let request = tokio::spawn(async move {
        let mut asking = asking;
        asking.get("/v1/shape?table=busy&offset=-1").await
    });
    until("the shape exists", async || service.output().contains("ShapeCreated").then_some(())).await;
    until("too much is held", async || {
        // Below what is put into a file, so that it is held in memory.
        database
            .execute("INSERT INTO busy (v) SELECT repeat(md5(i::text), 32768) FROM generate_series(1, 6) i")
            .await;
        service.output().contains("Backlog").then_some(())
    })
    .await;
    database.execute("UPDATE items SET v = 'goes on'").await;
    catch_up(&mut other, &ITEMS, &postgres).await;
    assert_eq!((handle(&other), other.refetches().len()), (known, 0));
    writer.batch_execute("COMMIT").await.expect("the transaction ends");
    let answer = request.await.expect("no panic").expect("an answer");
    assert!(matches!(answer.status, 200 | 409 | 503), "{} {}", answer.status, answer.text());
    let mut late = service.follow(ShapeRequest::table("busy").columns(&["id"]));
    late.sync().await.expect("the shape is made after all");
    assert!(late.rows().len() > 6);
    assert!(service.terminate().await, "{}", service.output());
    let ended = journal_tail(service.data_dir(), &["--kind", "ShapeInvalidated"]);
    assert!(ended.lines().all(|line| line.contains("Backlog")), "{ended}");
    journal_is_sound(service.data_dir());
}

/// Class 10: a transaction many times larger than what is kept of one in memory.
#[tokio::test]
async fn a_large_transaction_takes_little_memory() {
    const ROW_BYTES: u64 = 1 << 20;
    const ROWS: u64 = 128;
    let database = database("memory").await;
    let postgres = database.client().await;
    table(&database).await;
    let mut service = Service::start(&database, |_| {}).await;
    let mut client = service.follow(ShapeRequest::table("items").columns(&["id", "k"]));
    client.sync().await.expect("the shape is made");
    let mut whole = service.follow(ShapeRequest::table("items"));
    whole.sync().await.expect("the shape is made");
    let before = service.peak_memory_bytes().expect("Linux tells");
    database
        .execute(&format!(
            "INSERT INTO items SELECT 1000 + i, 7, repeat(md5(i::text), {}) FROM generate_series(1, {ROWS}) i",
            ROW_BYTES / 32
        ))
        .await;
    catch_up(&mut client, &ITEMS, &postgres).await;
    let grown = service.peak_memory_bytes().expect("Linux tells") - before;
    assert!(grown < ROWS * ROW_BYTES / 2, "{grown} bytes for a transaction of {}", ROWS * ROW_BYTES);
    assert!(service.terminate().await, "{}", service.output());
    journal_is_sound(service.data_dir());
}
