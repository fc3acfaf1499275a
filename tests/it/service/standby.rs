//! A second instance on the directory of the first: what it serves while it waits, that it changes
//! nothing there, and that nobody notices when it takes over. Contract 6.7.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;
use shapefold_xtask::rolling::{self, Setup};

use super::http_log::{header, is_up_to_date, messages};
use super::{ITEMS, OWN_FILES, PACKED, POLL, catch_up, handle, health_message, journal_is_sound, until};
use crate::support::{
    Audit, BINARY, HttpClient, Process, Response, Service, ShapeClient, ShapeRequest, TestDatabase,
    WAIT_DURATION_MAX, count, database, difference, rows_in_postgres,
};

const TABLE: &str = "CREATE TABLE items (id int PRIMARY KEY, k int NOT NULL, v text);
     INSERT INTO items SELECT i, i % 4, 'start' FROM generate_series(1, 200) i";
const WAITING: &str = "Timeout waiting for Postgres lock acquisition";

/// An owner with a shape, the client that made it, and an instance that waits.
struct Pair {
    database: TestDatabase,
    first: Service,
    second: Process,
    client: ShapeClient,
}

async fn pair(hint: &str, settings: &[(&str, &str)]) -> Pair {
    let database = database(hint).await;
    database.execute(TABLE).await;
    let configure = |configured: &mut crate::support::ServiceSettings| {
        for (name, value) in settings {
            configured.set(name, *value);
        }
    };
    let first = Service::start(&database, configure).await;
    let mut client = first.follow(ShapeRequest::table("items"));
    client.sync().await.expect("the shape is made");
    let mut second = first.spawn_beside(&database, configure);
    health_message(&mut second, "waiting", WAITING).await;
    Pair { database, first, second, client }
}

async fn get(process: &Process, path: &str) -> Response {
    HttpClient::new(process.address()).get(path).await.expect("an answer")
}

/// In the background, once the request has been read.
fn ask(process: &Process, path: &str) -> tokio::task::JoinHandle<Response> {
    let (mut http, path) = (HttpClient::new(process.address()), path.to_owned());
    tokio::spawn(async move { http.get(&path).await.expect("an answer") })
}

/// Follows until the rows equal those of Postgres; every answer on the way must be a 200.
async fn served(client: &mut ShapeClient, postgres: &tokio_postgres::Client) {
    let expected = rows_in_postgres(postgres, &ITEMS, client.request()).await.expect("rows of the table");
    let deadline = Instant::now() + WAIT_DURATION_MAX;
    loop {
        client.sync().await.unwrap_or_else(|error| panic!("{error}"));
        let Some(different) = difference(client.rows(), &expected) else { break };
        assert!(Instant::now() < deadline, "{different}");
        tokio::time::sleep(POLL).await;
    }
    assert_eq!((client.anomaly_count(), client.refetches().len()), (0, 0), "{:?}", client.anomalies());
}

#[tokio::test]
async fn a_waiting_instance_serves_what_the_owner_writes() {
    let mut pair = pair("standby_serves", &[PACKED]).await;
    let postgres = pair.database.client().await;
    let known = handle(&pair.client);

    // From the start, and from where the owner's client is.
    let mut fresh = ShapeClient::new(pair.second.address(), ShapeRequest::table("items"));
    served(&mut fresh, &postgres).await;
    assert_eq!(handle(&fresh), known);
    pair.client.redirect(pair.second.address());
    pair.database
        .execute("UPDATE items SET v = 'changed' WHERE id < 100; DELETE FROM items WHERE id = 7")
        .await;
    served(&mut pair.client, &postgres).await;
    served(&mut fresh, &postgres).await;

    // A request that waits is told, by each way of waiting.
    let at = format!("/v1/shape?table=items&handle={known}&offset={}&live=true", fresh.offset());
    let (poll, other) = (ask(&pair.second, &at), ask(&pair.second, &at));
    pair.database.execute("INSERT INTO items VALUES (1000, 1, 'news')").await;
    for answer in [poll.await.expect("it ended"), other.await.expect("it ended")] {
        let body = messages(&answer);
        assert_eq!(body[0]["value"], json!({ "id": "1000", "k": "1", "v": "news" }));
        assert!(is_up_to_date(&body[1]), "{body:?}");
        assert_eq!(body[1]["headers"]["global_last_seen_lsn"], body[0]["headers"]["lsn"]);
    }

    // A shape that is made meanwhile, with its own condition; `offset=now` knows its end.
    let request = ShapeRequest::table("items").filtered("k = 3", &[]);
    let mut filtered = pair.first.follow(request);
    filtered.sync().await.expect("the owner makes it");
    filtered.redirect(pair.second.address());
    pair.database.execute("UPDATE items SET v = 'again' WHERE k = 3").await;
    served(&mut filtered, &postgres).await;
    let now = get(&pair.second, "/v1/shape?table=items&where=k%3D3&offset=now").await;
    assert_eq!(header(&now, "electric-handle"), handle(&filtered));
    assert_eq!(header(&now, "electric-offset"), filtered.offset());

    assert_eq!(pair.second.health().await, Some(202), "it was waiting all the time");
    assert!(pair.second.terminate().await, "{}", pair.second.output());
}

/// What it cannot serve it says so: an unknown handle is led to the right one, an ended shape is over,
/// and what only the owner may do is refused.
#[tokio::test]
async fn a_waiting_instance_is_truthful_about_what_it_cannot_serve() {
    let mut pair = pair("standby_truth", &[]).await;
    let known = handle(&pair.client);
    let other = get(&pair.second, "/v1/shape?table=items&handle=1-2&offset=0_inf").await;
    assert_eq!(
        (other.status, other.header("electric-handle")),
        (409, Some(known.as_str())),
        "{}",
        other.text()
    );

    let missing = get(&pair.second, "/v1/shape?table=nothing&offset=-1").await;
    assert_eq!(missing.status, 400, "{}", missing.text());

    let refused = [
        ("GET", "/v1/shape?table=items&where=k%3D1&offset=-1".to_owned()),
        ("GET", format!("/v1/shape?table=items&handle={known}&offset=0_inf&subset__where=k%3D1")),
        ("DELETE", format!("/v1/shape?handle={known}")),
    ]
    .map(|(method, path)| {
        let mut http = HttpClient::new(pair.second.address());
        tokio::spawn(async move { http.request(method, &path, &[], b"").await.expect("an answer") })
    });
    for answer in refused {
        let answer = answer.await.expect("it ended");
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("5")), "{}", answer.text());
        assert_eq!(answer.text(), format!(r#"{{"message":"{WAITING}"}}"#));
    }

    // It ends while somebody waits, and its successor is found.
    let at = format!("/v1/shape?table=items&handle={known}&offset={}&live=true", pair.client.offset());
    let waits = ask(&pair.second, &at);
    pair.database.execute("TRUNCATE items").await;
    let told = waits.await.expect("it ended");
    assert_eq!((told.status, told.text().as_str()), (409, r#"[{"headers":{"control":"must-refetch"}}]"#));
    let successor = until("the owner has another shape", async || {
        pair.client.sync().await.ok()?;
        Some(handle(&pair.client)).filter(|next| *next != known)
    })
    .await;
    let led = get(&pair.second, &at).await;
    assert_eq!(
        (led.status, led.header("electric-handle")),
        (409, Some(successor.as_str())),
        "{}",
        led.text()
    );
    let served = get(&pair.second, "/v1/shape?table=items&offset=-1").await;
    assert_eq!((served.status, header(&served, "electric-handle")), (200, successor));
}

#[tokio::test]
async fn requests_that_wait_are_answered_across_a_takeover() {
    for killed in [false, true] {
        let mut pair = pair(if killed { "standby_kill" } else { "standby_drain" }, &[PACKED]).await;
        let known = handle(&pair.client);
        let at = format!("/v1/shape?table=items&handle={known}&offset={}&live=true", pair.client.offset());
        let waits = ask(&pair.second, &at);
        // The other is served by the waiting instance from here on.
        pair.client.redirect(pair.second.address());
        pair.client.sync().await.expect("it is served");
        if killed {
            pair.first.kill9();
        } else {
            assert!(pair.first.terminate().await, "{}", pair.first.output());
        }
        pair.second.wait_active(WAIT_DURATION_MAX).await.unwrap_or_else(|error| panic!("{error}"));
        pair.database.execute("INSERT INTO items VALUES (1000, 1, 'after')").await;
        let answer = waits.await.expect("it ended");
        let body = messages(&answer);
        assert_eq!(body[0]["value"]["v"], json!("after"), "{body:?}");
        assert_eq!(header(&answer, "electric-handle"), known);
        catch_up(&mut pair.client, &ITEMS, &pair.database.client().await).await;
        assert_eq!((handle(&pair.client), pair.client.refetches().len()), (known, 0));
        assert!(pair.second.terminate().await, "{}", pair.second.output());
        journal_is_sound(pair.first.data_dir());
    }
}

/// O7, incident 0: from its start to the release of the directory, the waiting instance makes no call
/// that could change anything in it, while it serves and while the owner makes, changes and removes shapes.
#[tokio::test]
async fn a_waiting_instance_makes_no_mutating_call() {
    let database = database("standby_audit").await;
    database.execute(TABLE).await;
    let mut first = Service::start(&database, |_| {}).await;
    let mut client = first.follow(ShapeRequest::table("items"));
    client.sync().await.expect("the shape is made");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut audit = None;
    let mut second = first.spawn_beside(&database, |settings| {
        let trace = folder.path().join("trace");
        audit = Some(Audit::attach(settings, &trace).unwrap_or_else(|error| panic!("{error}")));
    });
    let audit = audit.expect("configured");
    health_message(&mut second, "waiting", WAITING).await;

    client.redirect(second.address());
    let postgres = database.client().await;
    served(&mut client, &postgres).await;
    let live =
        format!("/v1/shape?table=items&handle={}&offset={}&live=true", handle(&client), client.offset());
    let waits = ask(&second, &live);
    database.execute("UPDATE items SET v = 'seen'").await;
    assert_eq!(waits.await.expect("it ended").status, 200);
    // A shape comes and goes under its eyes.
    let mut filtered = first.follow(ShapeRequest::table("items").filtered("k = 1", &[]));
    filtered.sync().await.expect("the owner makes it");
    let path = format!("/v1/shape?table=items&where=k%3D1&handle={}&offset=0_inf", handle(&filtered));
    assert_eq!(get(&second, &path).await.status, 200);
    let delete = format!("/v1/shape?handle={}", handle(&filtered));
    let deleted = first.http().request("DELETE", &delete, &[], b"").await.expect("an answer");
    assert_eq!(deleted.status, 202);
    until("the end is noticed", async || (get(&second, &path).await.status != 200).then_some(())).await;

    let seen = audit.seen().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(seen.mutating, Vec::<String>::new(), "calls of an instance that waits");
    assert!(seen.harmless > 10, "the trace is of this directory: {seen:?}");
    // The control: the trace sees what an owner does.
    assert!(first.terminate().await, "{}", first.output());
    second.wait_active(WAIT_DURATION_MAX).await.unwrap_or_else(|error| panic!("{error}"));
    served(&mut client, &postgres).await;
    let seen = audit.seen().unwrap_or_else(|error| panic!("{error}"));
    assert!(seen.mutating.len() > 5, "an owner writes: {:?}", seen.mutating);
    assert!(second.terminate().await, "{}", second.output());
}

/// A small `./dev chaos rolling`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rolling_deploys_under_traffic_go_unnoticed() {
    let database = database("standby_rolling").await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let setup = Setup {
        database_url: database.url.clone(),
        stream_id: database.name.clone(),
        builds: [PathBuf::from(BINARY), PathBuf::from(BINARY)],
        folder: folder.path().to_owned(),
        rounds: 2,
        seed: 7,
    };
    let report = rolling::deploy(&setup).await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(report.rounds.len(), 2);
    assert_eq!(report.mutating, Vec::<String>::new(), "calls of instances that wait");
    assert!(report.harmless > 0, "the calls are seen");
    assert_eq!(report.forbidden, Vec::<String>::new(), "5xx other than the documented 503");
    assert_eq!(report.refetches, 0);
    assert_eq!(report.unequal, Vec::<String>::new());
    for follower in &report.followers {
        assert_eq!(follower.refusals, Vec::<String>::new(), "{:?}", follower.client.request());
        let told = (follower.client.request(), follower.client.anomalies());
        assert_eq!(follower.client.anomaly_count(), 0, "{told:?}");
    }
    assert!(report.verified.is_ok(), "{:?}", report.verified);
    assert!(report.graceful, "an instance that is drained exits 0");
    count("rolling deploys", report.rounds.len() as u64, "deploys");
}

/// The owner's files may vanish, be damaged, or not be complete: never rows that are wrong, never a 500.
#[tokio::test]
async fn a_waiting_instance_meets_files_that_are_not_whole() {
    let pair = pair("standby_files", &[("ELECTRIC_LONG_POLL_TIMEOUT", "1000"), OWN_FILES]).await;
    let known = handle(&pair.client);
    pair.database.execute("UPDATE items SET v = 'logged'").await;
    let path = format!("/v1/shape?table=items&handle={known}&offset=0_inf");
    until("the update is on disk", async || {
        (messages(&get(&pair.second, &path).await).len() == 201).then_some(())
    })
    .await;

    // A directory that nobody made a shape of is not one.
    let shapes = pair.first.data_dir().join("shapes");
    let directory = std::fs::read_dir(&shapes)
        .expect("there is a shape")
        .map(|shard| shard.expect("an entry").path().join(&known))
        .find(|path| path.is_dir())
        .expect("the shape's directory");
    let (hash, micros) = known.split_once('-').expect("a handle");
    let stranger = format!("{hash}-{}", micros.parse::<u64>().expect("a number") + 1);
    copy_directory(&directory, &place_of(&shapes, &stranger));
    let answer = get(&pair.second, &path.replace(&known, &stranger)).await;
    assert_ne!(answer.status, 200, "{}", answer.text());
    assert!(answer.status < 500 || answer.status == 503, "{}", answer.status);

    // Damage to bytes that were durable.
    let log = directory.join("log");
    let whole = std::fs::read(&log).expect("a log");
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 0x40;
    let mut fresh = pair.first.spawn_beside(&pair.database, |_| {});
    health_message(&mut fresh, "waiting", WAITING).await;
    std::fs::write(&log, &damaged).expect("it is ours");
    let deadline = Instant::now() + Duration::from_secs(3);
    while Instant::now() < deadline {
        for process in [&pair.second, &fresh] {
            // A body that turns out to be damaged is cut off.
            let Ok(answer) = HttpClient::new(process.address()).get(&path).await else { continue };
            match answer.status {
                200 => {
                    let whole = messages(&answer);
                    let updates = whole.iter().filter(|message| message["value"]["v"] == "logged").count();
                    assert!(updates == 200 || whole.len() == 1, "all of it or nothing yet: {updates}");
                }
                503 => {}
                other => panic!("{other}: {}", answer.text()),
            }
        }
        tokio::time::sleep(POLL).await;
    }
    std::fs::write(&log, &whole).expect("it is ours");
    assert_eq!(get(&fresh, &path).await.status, 200, "what was put right is served again");
}

/// Where the directory of a handle belongs: the rule is the format's, docs/shape-log-format.md.
pub(super) fn place_of(shapes: &std::path::Path, handle: &str) -> PathBuf {
    let (hash, micros) = handle.split_once('-').expect("a handle");
    let number = |text: &str| text.parse::<u64>().expect("a number");
    let mixed = (number(hash) ^ number(micros)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    shapes.join(format!("{:02x}", mixed >> 56)).join(handle)
}

fn copy_directory(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
    }
}

/// X17: a stream of events that was opened on the waiting instance goes on when that takes over.
#[tokio::test]
async fn an_event_stream_goes_on_over_a_takeover() {
    let mut pair = pair("standby_events", &[]).await;
    // One that finds rows at once is closed when it has caught up; two changes over one stream show that
    // it was there before the first.
    let mut stream = loop {
        pair.client.sync().await.expect("the owner serves");
        let mut stream = EventStream::open(&pair.second, &pair.client);
        let mut both = true;
        for word in ["first", "second"] {
            pair.database.execute(&format!("UPDATE items SET v = '{word}' WHERE id = 1")).await;
            both &= stream.reaches(word).await;
        }
        if both {
            break stream;
        }
        catch_up(&mut pair.client, &ITEMS, &pair.database.client().await).await;
    };
    pair.first.kill9();
    pair.second.wait_active(WAIT_DURATION_MAX).await.unwrap_or_else(|error| panic!("{error}"));
    pair.database.execute("UPDATE items SET v = 'after' WHERE id = 1").await;
    assert!(stream.reaches("after").await, "the stream has ended: {}", stream.seen);
    assert_eq!(stream.seen.matches("\"operation\"").count(), 3, "each change once: {}", stream.seen);
    assert!(pair.second.terminate().await, "{}", pair.second.output());
}

/// What a stream of events has sent so far.
struct EventStream {
    seen: String,
    parts: tokio::sync::mpsc::UnboundedReceiver<String>,
}

impl EventStream {
    fn open(process: &Process, client: &ShapeClient) -> Self {
        let path = format!(
            "/v1/shape?table=items&handle={}&offset={}&live=true&live_sse=true",
            handle(client),
            client.offset()
        );
        let mut http = HttpClient::new(process.address());
        let (send, parts) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            let push = |part: &[u8]| {
                let _gone = send.send(String::from_utf8_lossy(part).into_owned());
            };
            http.request_streaming("GET", &path, &[], b"", push).await
        });
        Self { seen: String::new(), parts }
    }

    /// Whether the word comes before the stream ends.
    async fn reaches(&mut self, word: &str) -> bool {
        let arrives = async {
            while !self.seen.contains(word) {
                match self.parts.recv().await {
                    Some(part) => self.seen.push_str(&part),
                    None => return false,
                }
            }
            true
        };
        tokio::time::timeout(WAIT_DURATION_MAX, arrives).await.unwrap_or_else(|_| panic!("no {word}"))
    }
}
