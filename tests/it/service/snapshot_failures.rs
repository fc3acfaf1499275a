//! Why a shape cannot have its rows, as its first client is told: contract 4.4.

use serde_json::json;

use super::until;
use crate::support::{Service, database, encode};

#[tokio::test]
async fn missing_privileges_for_a_table_are_a_503_that_names_them() {
    let database = database("privileges").await;
    let user = format!("{}_user", database.name);
    let publication = format!("electric_publication_{}", database.name);
    database
        .execute(&format!(
            "CREATE ROLE {user} LOGIN REPLICATION PASSWORD 'pw';
             CREATE TABLE unpublished (id int PRIMARY KEY);
             CREATE TABLE partial (id int PRIMARY KEY);
             CREATE TABLE unreadable (id int PRIMARY KEY);
             ALTER TABLE unreadable REPLICA IDENTITY FULL;
             GRANT SELECT ON unpublished, partial TO {user};
             CREATE PUBLICATION {publication} FOR TABLE partial, unreadable"
        ))
        .await;
    let url = database.url_as(&user, "pw");
    let mut service = Service::start(&database, |settings| settings.database_url = url).await;
    let cases = [
        (
            "unpublished",
            format!(
                "Database table \"public.unpublished\" is missing from the publication \"{publication}\" and Electric lacks privileges to add it"
            ),
        ),
        (
            "partial",
            "Database table \"public.partial\" does not have its replica identity set to FULL".to_owned(),
        ),
        (
            "unreadable",
            "Unable to create initial snapshot: permission denied for table unreadable".to_owned(),
        ),
    ];
    for (table, message) in &cases {
        refused(&service, table, message).await;
    }
    // With the publication its own, what is missing is the table.
    database
        .execute(&format!(
            "GRANT CREATE ON DATABASE {} TO {user}; ALTER PUBLICATION {publication} OWNER TO {user}",
            database.name
        ))
        .await;
    refused(&service, "unpublished", "Unable to create initial snapshot: must be owner of table unpublished")
        .await;
    // A refused shape leaves nothing behind that the next request could run into.
    database
        .execute(&format!(
            "ALTER TABLE unpublished OWNER TO {user}; ALTER TABLE partial OWNER TO {user};
             ALTER TABLE unreadable OWNER TO {user}"
        ))
        .await;
    for (table, _) in &cases {
        let answer = service.get(&format!("/v1/shape?table={table}&offset=-1")).await;
        assert_eq!(answer.status, 200, "{table}: {}", answer.text());
    }
    assert!(service.terminate().await);
    database.execute(&format!("DROP OWNED BY {user} CASCADE; DROP ROLE {user}")).await;
}

/// A refusal that is known: the whole body, and its headers.
async fn refused(service: &Service, table: &str, message: &str) {
    let answer = service.get(&format!("/v1/shape?table={}&offset=-1", encode(table))).await;
    assert_eq!(answer.status, 503, "{table}: {}", answer.text());
    assert_eq!(answer.json(), json!({ "message": message }));
    assert_eq!(answer.header("retry-after"), Some("10"));
    assert_eq!(answer.header("electric-internal-known-error"), Some("true"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(answer.header("surrogate-control"), Some("no-store"));
}

#[tokio::test]
async fn without_permission_to_publish_nothing_is_changed() {
    let database = database("manual").await;
    let publication = format!("electric_publication_{}", database.name);
    database
        .execute(&format!(
            "CREATE TABLE unpublished (id int PRIMARY KEY); CREATE TABLE partial (id int PRIMARY KEY);
             CREATE TABLE ready (id int PRIMARY KEY); ALTER TABLE ready REPLICA IDENTITY FULL;
             CREATE PUBLICATION {publication} FOR TABLE partial, ready"
        ))
        .await;
    let service = Service::start(&database, |settings| {
        settings.set("ELECTRIC_MANUAL_TABLE_PUBLISHING", "true");
    })
    .await;
    let missing = format!(
        "Database table \"public.unpublished\" is missing from the publication \"{publication}\" and the ELECTRIC_MANUAL_TABLE_PUBLISHING setting prevents Electric from adding it"
    );
    refused(&service, "unpublished", &missing).await;
    refused(
        &service,
        "partial",
        "Database table \"public.partial\" does not have its replica identity set to FULL",
    )
    .await;
    assert_eq!(service.get("/v1/shape?table=ready&offset=-1").await.status, 200);
    let identity = "SELECT string_agg(relname || relreplident::text, ',' ORDER BY relname) FROM pg_class
         WHERE relname IN ('unpublished', 'partial', 'ready')";
    assert_eq!(database.value(identity).await.as_deref(), Some("partiald,readyf,unpublishedd"));
    let published = format!(
        "SELECT string_agg(tablename, ',' ORDER BY tablename) FROM pg_publication_tables WHERE pubname = '{publication}'"
    );
    assert_eq!(database.value(&published).await.as_deref(), Some("partial,ready"));
}

#[tokio::test]
async fn a_query_that_fails_in_postgres_is_a_500_with_its_words() {
    let database = database("runtime").await;
    let user = format!("{}_user", database.name);
    // Row security with a clause that fails on that row: no where clause of a shape can do that.
    database
        .execute(&format!(
            "CREATE ROLE {user} LOGIN REPLICATION PASSWORD 'pw'; GRANT CREATE ON DATABASE {} TO {user};
             CREATE TABLE items (id int PRIMARY KEY, n int); INSERT INTO items VALUES (1, 0);
             ALTER TABLE items OWNER TO {user}; ALTER TABLE items FORCE ROW LEVEL SECURITY;
             CREATE POLICY p ON items USING (1 / n > 0); ALTER TABLE items ENABLE ROW LEVEL SECURITY",
            database.name
        ))
        .await;
    let url = database.url_as(&user, "pw");
    let mut service = Service::start(&database, |settings| settings.database_url = url).await;
    let path = "/v1/shape?table=items&offset=-1";
    let answer = service.get(path).await;
    assert_eq!(answer.status, 500, "{}", answer.text());
    assert_eq!(answer.text(), r#"{"message":"Unexpected error while creating snapshot: division by zero"}"#);
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(answer.header("electric-handle"), None);
    database.execute("ALTER TABLE items DISABLE ROW LEVEL SECURITY").await;
    let answer = service.get(path).await;
    assert_eq!((answer.status, answer.json().as_array().map(Vec::len)), (200, Some(2)), "{}", answer.text());
    assert!(service.terminate().await);
    database.execute(&format!("DROP OWNED BY {user} CASCADE; DROP ROLE {user}")).await;
}

#[tokio::test]
async fn a_locked_table_is_a_503_and_holds_up_nobody_else() {
    let database = database("locked").await;
    database
        .execute("CREATE TABLE items (id int PRIMARY KEY); CREATE TABLE other (id int PRIMARY KEY)")
        .await;
    let service = Service::start(&database, |_| {}).await;
    let lock = database.client().await;
    lock.batch_execute("BEGIN; LOCK TABLE items IN ACCESS EXCLUSIVE MODE").await.expect("the lock is free");
    let mut http = service.http();
    let waits =
        tokio::spawn(async move { http.get("/v1/shape?table=items&offset=-1").await.expect("an answer") });
    until("that request waits for the lock", async || {
        let sql = "SELECT 1 FROM pg_locks WHERE relation = 'items'::regclass AND NOT granted";
        database.value(sql).await.map(|_| ())
    })
    .await;
    // Asked for while that one waits, and answered before it.
    let other = service.get("/v1/shape?table=other&offset=-1").await;
    assert_eq!(other.status, 200, "{}\n{}", other.text(), service.output());
    assert!(!waits.is_finished(), "the other shape did not wait for the lock");
    let answer = waits.await.expect("the request ended");
    assert_eq!(
        (answer.status, &*answer.text()),
        (503, r#"{"message":"Snapshot timed out while waiting for a table lock"}"#)
    );
    assert_eq!(answer.header("retry-after"), Some("10"));
    assert_eq!(answer.header("electric-internal-known-error"), Some("true"));
    lock.batch_execute("ROLLBACK").await.expect("the lock is ours");
    assert_eq!(service.get("/v1/shape?table=items&offset=-1").await.status, 200);
}

/// Transactions that stay open hold up the first shapes of their own table, and no other.
#[tokio::test]
async fn open_transactions_hold_up_no_other_table() {
    let database = database("openelse").await;
    database
        .execute(
            "CREATE TABLE items (id int PRIMARY KEY); ALTER TABLE items REPLICA IDENTITY FULL;
             CREATE TABLE other (id int PRIMARY KEY); CREATE TABLE third (id int PRIMARY KEY)",
        )
        .await;
    let service = Service::start(&database, |_| {}).await;
    let open = database.client().await;
    open.batch_execute("BEGIN; INSERT INTO items VALUES (1)").await.expect("the test's SQL is right");
    // More shapes of that table than there are connections for publishing.
    let waiting: Vec<_> = (0..12)
        .map(|number| {
            let mut http = service.http();
            let path = format!("/v1/shape?table=items&offset=-1&where=id%20%3E%20{number}");
            tokio::spawn(async move { http.get(&path).await.expect("an answer") })
        })
        .collect();
    let publication = format!("electric_publication_{}", database.name);
    let sql = format!(
        "SELECT 1 FROM pg_publication_tables WHERE pubname = '{publication}' AND tablename = 'items'"
    );
    until("the table is published", async || database.value(&sql).await.map(|_| ())).await;
    for table in ["other", "third"] {
        let answer = service.get(&format!("/v1/shape?table={table}&offset=-1")).await;
        assert_eq!(answer.status, 200, "{table}: {}", answer.text());
    }
    assert!(waiting.iter().all(|request| !request.is_finished()), "that transaction is still open");
    open.batch_execute("COMMIT").await.expect("it can commit");
    for request in waiting {
        let answer = request.await.expect("the request ended");
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    // Once that has passed, open transactions are the log's business.
    open.batch_execute("BEGIN; INSERT INTO items VALUES (100)").await.expect("the test's SQL is right");
    let answer = service.get("/v1/shape?table=items&offset=-1&where=id%20%3E%2050").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    open.batch_execute("COMMIT").await.expect("it can commit");
}
