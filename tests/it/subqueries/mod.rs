//! Shapes with subqueries over a real Postgres: contract 1.16 and 2.9.

mod lasting;
mod messages;
mod oracle;
mod semantics;

use std::time::Instant;

use serde_json::Value;

use crate::support::{
    HttpClient, Service, ShapeClient, ShapeRequest, Table, TestDatabase, WAIT_DURATION_MAX, database,
    difference, encode, rows_in_postgres,
};

/// `par (id, act, gp)` with two rows, of which the first is active, and `child (id, p, t)` with three.
const SCHEMA: &str = "
    CREATE TABLE par (id int PRIMARY KEY, act bool, gp int);
    CREATE TABLE child (id int PRIMARY KEY, p int, t text);
    INSERT INTO par VALUES (1, true, 1), (2, false, 2);
    INSERT INTO child VALUES (1, 1, 'x'), (2, 2, 'y'), (3, NULL, 'z');";

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

/// Reads all messages of one shape as they come.
struct Reader {
    http: HttpClient,
    query: String,
    handle: String,
    offset: String,
    live: bool,
}

impl Reader {
    async fn new(service: &Service, table: &str, clause: &str) -> Reader {
        Reader::with(service, &format!("table={table}&where={}", encode(clause))).await
    }

    async fn with(service: &Service, query: &str) -> Reader {
        let query = query.to_owned();
        let http = service.http();
        Reader { http, query, handle: String::new(), offset: "-1".to_owned(), live: false }
    }

    /// The messages of one answer; `None` for a 409.
    async fn step(&mut self) -> Option<Vec<Value>> {
        let mut path = format!("/v1/shape?{}&offset={}", self.query, self.offset);
        if !self.handle.is_empty() {
            path.push_str(&format!("&handle={}", self.handle));
        }
        if self.live {
            path.push_str("&live=true");
        }
        let answer = self.http.get(&path).await.expect("the service answers");
        if answer.status == 409 {
            return None;
        }
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        self.handle = answer.header("electric-handle").expect("a handle").to_owned();
        self.offset = answer.header("electric-offset").expect("an offset").to_owned();
        self.live = answer.header("electric-up-to-date").is_some();
        Some(answer.json().as_array().expect("an array").clone())
    }

    /// The messages up to the next `up-to-date`, without it and without the end of the snapshot.
    async fn news(&mut self) -> Vec<Value> {
        let mut all = Vec::new();
        self.live = self.live && self.offset != "-1";
        loop {
            all.extend(self.step().await.expect("no must-refetch"));
            let last = all.pop_if(|last| last["headers"]["control"] == "up-to-date");
            // A long-poll that timed out brings nothing.
            if last.is_some() && (!all.is_empty() || !self.live) {
                return all;
            }
        }
    }

    /// All messages of the initial rows, to the end of the log.
    async fn initial(&mut self) -> Vec<Value> {
        let mut all = Vec::new();
        while !self.live {
            all.extend(self.step().await.expect("no must-refetch"));
        }
        all.pop();
        all
    }
}

/// `md5('single_stack' ‖ handle ‖ 'v:' ‖ value)`, by Postgres.
async fn hash(database: &TestDatabase, handle: &str, value: &str) -> String {
    database.value(&format!("SELECT md5('single_stack{handle}{value}')")).await.expect("a hash")
}

/// A client that keeps the rows of a shape and distrusts the service.
struct Follower {
    client: ShapeClient,
    table: Table,
}

impl Follower {
    fn new(service: &Service, table: &str, clause: &str) -> Follower {
        let table = ["child", "par", "a", "b", "c", "d"]
            .into_iter()
            .find(|known| *known == table)
            .expect("a table of these tests");
        let client = service.follow(ShapeRequest::table(table).filtered(clause, &[]));
        Follower { client, table: Table { name: table, primary_key: &["id"] } }
    }

    /// Reads on until the rows are those of SQL.
    async fn expect_sql(&mut self, database: &TestDatabase, when: &str) {
        let expected = rows_in_postgres(&database.client().await, &self.table, self.client.request())
            .await
            .expect("the shape's clause is SQL");
        let deadline = Instant::now() + WAIT_DURATION_MAX;
        loop {
            let synced = self.client.sync().await;
            let Some(differs) = difference(self.client.rows(), &expected) else { return };
            assert!(
                Instant::now() < deadline,
                "{} after {when:?}: {differs} ({synced:?})",
                self.client.request().where_clause.as_deref().unwrap_or_default()
            );
            tokio::task::yield_now().await;
        }
    }

    /// Nothing contradicted the contract, and nothing was fetched again.
    fn expect_clean(&self) {
        assert_eq!(self.client.anomalies(), [] as [&str; 0], "{:?}", self.client.request());
        assert!(self.client.refetches().is_empty(), "{:?}", self.client.refetches());
    }

    fn handle(&self) -> String {
        self.client.handle().unwrap_or_default().to_owned()
    }

    fn redirect(&mut self, service: &Service) {
        self.client.redirect(service.address());
    }
}
