//! The HTTP contract over a real Postgres, beyond the log itself: events, subsets, and the table of
//! what is covered.

mod events;
mod log;
mod openapi;
mod subset;

use serde_json::Value;

use crate::support::{Response, Service, TestDatabase, database};

/// A database with these tables, and a service on it with these settings.
async fn started(hint: &str, schema: &str, settings: &[(&str, &str)]) -> (TestDatabase, Service) {
    let database = database(hint).await;
    database.execute(schema).await;
    let service = Service::start(&database, |service| {
        for (name, value) in settings {
            service.set(name, *value);
        }
    })
    .await;
    (database, service)
}

/// A header that has to be there.
fn header(answer: &Response, name: &str) -> String {
    answer.header(name).unwrap_or_else(|| panic!("no {name}: {} {}", answer.status, answer.text())).to_owned()
}

async fn post(service: &Service, path: &str, body: &str) -> Response {
    let headers = [("content-type", "application/json")];
    service.http().request("POST", path, &headers, body.as_bytes()).await.expect("the service answers")
}

/// Reads without live until the end of the log: the last answer and all messages.
async fn tail(service: &Service, query: &str) -> (Response, Vec<Value>) {
    let mut http = service.http();
    let mut messages = Vec::new();
    let mut path = format!("/v1/shape?{query}&offset=-1");
    loop {
        let answer = http.get(&path).await.expect("the service answers");
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        messages.extend(answer.json().as_array().expect("an array").iter().cloned());
        if answer.header("electric-up-to-date").is_some() {
            return (answer, messages);
        }
        let (handle, offset) = (header(&answer, "electric-handle"), header(&answer, "electric-offset"));
        path = format!("/v1/shape?{query}&handle={handle}&offset={offset}");
    }
}
