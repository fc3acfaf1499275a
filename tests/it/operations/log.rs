//! What is in the log, and what never is.

use serde_json::Value;

use super::shapefold;
use crate::service::{ITEMS, catch_up, until};
use crate::support::{Service, ShapeRequest, database};

/// Rows, parameters, the text of where clauses, passwords, the secret, tokens of others in the query: none of
/// it is in the log, at its most talkative.
#[tokio::test]
async fn no_data_and_no_secret_is_in_the_log() {
    let database = database("redact").await;
    let user = format!("{}_user", database.name);
    database
        .execute(&format!(
            "CREATE ROLE {user} LOGIN SUPERUSER PASSWORD 'marker-password';
             CREATE TABLE items (id int PRIMARY KEY, v text);
             INSERT INTO items VALUES (1, 'marker-row'), (2, 'other')"
        ))
        .await;
    let url = database.url_as(&user, "marker-password");
    let mut service = Service::start(&database, |settings| {
        settings.database_url = url;
        settings
            .set("ELECTRIC_LOG_LEVEL", "trace")
            .set("ELECTRIC_INSECURE", "false")
            .set("ELECTRIC_SECRET", "marker-secret")
            .set("ELECTRIC_HNY_API_KEY", "marker-key")
            .set("ELECTRIC_OTLP_ENDPOINT", "http://127.0.0.1:1")
            .set("ELECTRIC_OTEL_EXPORT_PERIOD", "50ms");
    })
    .await;
    let secret = "secret=marker-secret";
    for query in [
        "table=items&offset=-1",
        "table=items&offset=-1&where=v%3D%27marker-clause%27",
        "table=items&offset=-1&where=v%3D%241&params%5B1%5D=marker-param",
        "table=items&offset=-1&where=marker_column%3D1",
        "table=items&offset=-1&where=id%3D%27marker-literal%27",
        "table=items&offset=-1&where=10%2F(id-1)%3E0&api_key=marker-apikey&token=marker-token&password=marker-pw",
        "table=items&offset=0_inf&subset__where=v%3D%27marker-subset%27&handle=1-1",
        "table=marker_table&offset=-1",
    ] {
        service.get(&format!("/v1/shape?{query}&{secret}")).await;
    }
    let wrong = service.get("/v1/shape?table=items&offset=-1&secret=marker-wrong").await;
    assert_eq!(wrong.status, 401);
    database.execute("UPDATE items SET v = 'marker-update'; DELETE FROM items WHERE id = 2").await;
    let path = format!("/v1/shape?table=items&offset=-1&{secret}");
    let mut http = service.http();
    let body = br#"{"where": "v = 'marker-body'"}"#;
    let headers = [("content-type", "application/json"), ("authorization", "Bearer marker-bearer")];
    http.request("POST", &path, &headers, body).await.expect("an answer");
    until("the update was written", async || {
        let answer = service.get(&path).await;
        let handle = answer.header("electric-handle").unwrap_or_default().to_owned();
        let log = format!("/v1/shape?table=items&offset=0_inf&handle={handle}&{secret}");
        service.get(&log).await.text().contains("marker-update").then_some(())
    })
    .await;
    assert!(service.terminate().await, "{}", service.output());
    let output = service.output();
    assert!(output.contains("DEBUG") && output.contains("answered"), "{output}");
    let shown: Vec<&str> = output.lines().filter(|line| line.contains("marker")).collect();
    assert!(shown.is_empty(), "{shown:#?}");
    database.execute(&format!("DROP OWNED BY {user} CASCADE; DROP ROLE {user}")).await;
}

#[tokio::test]
async fn lines_are_objects_where_that_is_asked_for() {
    let database = database("jsonlog").await;
    database.execute("CREATE TABLE items (id int PRIMARY KEY, v text)").await;
    let mut service = Service::start(&database, |settings| {
        settings.set("SHAPEFOLD_LOG_FORMAT", "json").set("ELECTRIC_LOG_LEVEL", "debug");
    })
    .await;
    let mut client = service.follow(ShapeRequest::table("items"));
    catch_up(&mut client, &ITEMS, &database.client().await).await;
    let id = "a-request-id-of-its-own";
    service.http().request("GET", "/v1/health", &[("x-request-id", id)], b"").await.expect("an answer");
    let answered = until("the line of a request", async || {
        let output = service.stdout();
        output.lines().find(|line| line.contains(id)).map(str::to_owned)
    })
    .await;
    let line: Value = serde_json::from_str(&answered).expect("an object");
    for (key, value) in [("request_id", id), ("method", "GET"), ("route", "health"), ("level", "DEBUG")] {
        assert_eq!(line[key], value, "{line}");
    }
    assert!(line["timestamp"].is_string() && line["status"] == 200, "{line}");
    assert!(service.terminate().await, "{}", service.output());
    for line in service.stdout().lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
}

/// Not to a file or a pipe, unless it is asked for.
#[test]
fn colours_are_for_terminals() {
    let start = |colors: Option<&'static str>| {
        let mut environment = vec![("DATABASE_URL", "postgresql://u@h/d"), ("ELECTRIC_SECRET", "")];
        environment.extend(colors.map(|colors| ("ELECTRIC_LOG_COLORS", colors)));
        shapefold(&["serve"], &environment).stdout
    };
    let colored = |output: &[u8]| output.contains(&0x1b);
    assert!(!colored(&start(None)) && !colored(&start(Some("false"))));
    assert!(colored(&start(Some("true"))));
}
