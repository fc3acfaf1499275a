//! Nothing of what is in the tables, in the definitions of shapes or in the settings leaves the service by another
//! way than the rows that a client asked for: not by a command, an export, a log, an error or a page.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use super::commands::run_all;
use crate::service::until;
use crate::support::{HttpClient, Service, database, encode, said};

const ROW: &str = "MARKROW7f3a91";
const KEY: &str = "MARKKEY7f3a91";
const WHERE: &str = "MARKWHERE7f3a91";
const PARAMETER: &str = "MARKPARAM7f3a91";
const PASSWORD: &str = "MARKPASSWORD7f3a91";
const SECRET: &str = "MARKSECRET7f3a91";
const ADMIN_TOKEN: &str = "MARKADMIN7f3a91";
const MARKERS: [&str; 7] = [ROW, KEY, WHERE, PARAMETER, PASSWORD, SECRET, ADMIN_TOKEN];

/// Further pages of the service that anybody may look at while it runs.
const PAGES: &[&str] = &["/v1/health", "/v1/ready", "/", "/v1/no-such-path", "/v1/shape"];

/// Pages and answers of the admin port; `HANDLE` stands for the handle of a shape.
const ADMIN_PAGES: &[&str] = &[
    "/",
    "/v1/now",
    "/v1/moment?at=end",
    "/v1/state?at=end",
    "/v1/holding",
    "/v1/consumers",
    "/v1/shapes",
    "/v1/shape/HANDLE",
    "/v1/why/HANDLE",
    "/v1/why/ack",
    "/v1/owners",
    "/v1/acks",
    "/v1/diff?before=1",
    "/v1/events",
    "/v1/timeline",
    "/v1/progress",
    "/v1/incident",
    "/v1/verify",
    "/v1/stats",
    "/v1/export",
];

#[track_caller]
fn clean(what: &str, bytes: &[u8]) {
    clean_of(&MARKERS, what, bytes);
}

#[track_caller]
fn clean_of(markers: &[&str], what: &str, bytes: &[u8]) {
    for marker in markers {
        assert!(memchr::memmem::find(bytes, marker.as_bytes()).is_none(), "{marker} is in {what}");
    }
}

fn clean_files(dir: &Path) -> usize {
    let mut count = 0;
    for found in fs::read_dir(dir).expect("reads the directory") {
        let path = found.expect("reads the directory").path();
        if path.is_dir() {
            count += clean_files(&path);
        } else {
            clean(&path.display().to_string(), &fs::read(&path).expect("reads the file"));
            count += 1;
        }
    }
    count
}

fn shape(filter: &str, rest: &str) -> String {
    format!("/v1/shape?table=people&offset=-1&where={}&secret={SECRET}{rest}", encode(filter))
}

/// Requests that are refused; each has a marker in it.
fn refused() -> Vec<String> {
    let no_secret = format!("/v1/shape?table=people&offset=-1&secret=not-{SECRET}");
    vec![
        shape(&format!("no_such_column = '{WHERE}'"), ""),
        shape(&format!("name = '{WHERE}' AND"), ""),
        shape(&format!("age = '{WHERE}'"), ""),
        shape(&format!("no_such_function('{WHERE}') = name"), ""),
        shape("name = $2", &format!("&params%5B1%5D={PARAMETER}")),
        shape("age = $1", &format!("&params%5B1%5D={PARAMETER}")),
        shape("name = $1", &format!("&params={PARAMETER}")),
        format!("/v1/shape?table=people&offset={PARAMETER}&secret={SECRET}"),
        format!("/v1/shape?table=people&offset=0_0&handle={PARAMETER}&secret={SECRET}"),
        no_secret,
    ]
}

/// Where the admin port is, as the log says.
fn admin_address(service: &Service) -> SocketAddr {
    let said = said(service, "dashboard on http://");
    let address = said.split('/').next().unwrap_or_default();
    address.parse().unwrap_or_else(|error| panic!("{address:?}: {error}"))
}

#[tokio::test]
async fn what_is_in_the_tables_is_said_to_nobody_else() {
    let database = database("redaction").await;
    database
        .execute(&format!(
            "CREATE TABLE people (id text PRIMARY KEY, name text, age int);
             INSERT INTO people VALUES ('{KEY}', '{WHERE}', 41), ('{KEY}-2', '{PARAMETER}', 42);
             CREATE ROLE \"{0}\" LOGIN SUPERUSER REPLICATION PASSWORD '{PASSWORD}'",
            database.name
        ))
        .await;
    let mut service = Service::start(&database, |settings| {
        settings.database_url = database.url_as(&database.name, PASSWORD);
        settings
            .set("ELECTRIC_SECRET", SECRET)
            .set("ELECTRIC_INSECURE", "false")
            .set("ELECTRIC_LOG_LEVEL", "debug")
            .set("SHAPEFOLD_ADMIN_PORT", "0")
            .set("SHAPEFOLD_ADMIN_TOKEN", ADMIN_TOKEN);
    })
    .await;

    // Shapes with markers in them are served …
    let served = service.get(&shape(&format!("name = '{WHERE}'"), "")).await;
    assert_eq!(served.status, 200, "{}", served.text());
    assert!(served.text().contains(KEY), "the marker is what is served: {}", served.text());
    let by_parameter = shape("name = $1", &format!("&params%5B1%5D={PARAMETER}"));
    assert_eq!(service.get(&by_parameter).await.status, 200);
    let handle = served.header("electric-handle").expect("a handle").to_owned();
    // … and followed through changes, a schema that changes under one, and a truncation.
    database
        .execute(&format!("UPDATE people SET age = 43; INSERT INTO people VALUES ('{KEY}-3', '{ROW}', 1)"))
        .await;
    let rows = service.get(&shape(&format!("name = '{ROW}'"), "")).await;
    assert!(rows.text().contains(ROW), "{}", rows.text());
    database.execute("ALTER TABLE people ADD COLUMN more text").await;
    database.execute(&format!("UPDATE people SET more = '{ROW}'; TRUNCATE people")).await;

    let mut statuses = Vec::new();
    for path in refused() {
        let answer = service.get(&path).await;
        assert!((400..500).contains(&answer.status), "{} for {path}", answer.status);
        statuses.push(answer.status);
        // The contract has a literal that does not fit its column quoted to whoever sent it, and to nobody else.
        let told = format!("the answer {} to {path}", answer.status);
        clean_of(&[ROW, KEY, PASSWORD, SECRET], &told, answer.text().as_bytes());
    }
    assert!(statuses.contains(&401), "{statuses:?}");
    for page in PAGES {
        clean(page, service.get(page).await.text().as_bytes());
    }
    let admin = admin_address(&service);
    for page in ADMIN_PAGES {
        let page = page.replace("HANDLE", &handle);
        let bearer = format!("Bearer {ADMIN_TOKEN}");
        let asked = HttpClient::new(admin).request("GET", &page, &[("authorization", &bearer)], b"").await;
        let answer = asked.expect("an answer");
        assert_eq!(answer.status, 200, "{page}: {}", answer.text());
        clean(&format!("admin {page}"), &answer.body);
    }

    let place = tempfile::tempdir().expect("a directory");
    let live = run_all(service.data_dir(), &handle, &place.path().join("live"));
    assert!(service.terminate().await, "{}", service.output());
    let settled = run_all(service.data_dir(), &handle, &place.path().join("settled"));
    for ran in live.iter().chain(&settled) {
        assert!(ran.code().is_some_and(|code| code == 0), "{}: {}", ran.call, ran.said());
        clean(&ran.call, &ran.output.stdout);
        clean(&format!("what {} complains of", ran.call), &ran.output.stderr);
    }
    assert!(clean_files(place.path()) >= 8, "exports, databases and plots were looked through");
    assert!(clean_files(&service.data_dir().join("journal")) >= 4, "the journal was looked through");
    for line in service.output().lines() {
        clean(&format!("the log: {line}"), line.as_bytes());
    }
    assert!(
        service.output().contains("DEBUG") || service.output().contains("debug"),
        "the log is a loud one"
    );
}

/// A database that refuses is told of without the password that it refuses.
#[tokio::test]
async fn a_password_is_in_no_complaint() {
    let database = database("refused").await;
    let nobody = format!("nobody_{}", database.name);
    for url in [
        database.url_as(&nobody, PASSWORD),
        format!("postgresql://{nobody}:{PASSWORD}@127.0.0.1:1/app"),
        format!("postgresql://{nobody}:{PASSWORD}@127.0.0.1:port/app"),
        format!("mysql://{nobody}:{PASSWORD}@127.0.0.1/app"),
    ] {
        let mut service = Service::spawn(&database, |settings| settings.database_url.clone_from(&url));
        let said = until("it says what is wrong", async || {
            let ended = service.try_wait().is_some();
            let output = service.output();
            (ended || output.contains("ERROR") || output.contains("WARN")).then_some(output)
        })
        .await;
        assert!(!said.is_empty());
        clean(
            &format!("what is said of a database ({})", url.split(':').next().unwrap_or_default()),
            said.as_bytes(),
        );
    }
}
