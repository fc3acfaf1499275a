//! Tables that change under their shapes: contract 4.2 and 4.6. What need not end goes on.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{ITEMS, catch_up, handle, journal_is_sound, journal_tail, until};
use crate::support::{Service, ServiceSettings, ShapeRequest, Table, TestDatabase, database, encode};

const SCHEMA_CHANGED: &str = "SchemaChanged";
const TRUNCATED: &str = "Truncated";
const UNPUBLISHED: &str = "Unpublished";

/// A change of a table `t`, which of its three shapes it ends, and the cause in the journal.
struct Case {
    sql: &'static str,
    ends: &'static [&'static str],
    cause: &'static str,
    /// There is a table of this name afterwards.
    stays: bool,
}

const fn case(sql: &'static str, ends: &'static [&'static str]) -> Case {
    Case { sql, ends, cause: SCHEMA_CHANGED, stays: true }
}

const ALL: &str = "";
const NAMED: &str = "&columns=id,a";
const FILTERED: &str = "&columns=id&where=b%3E0";
const EVERY: &[&str] = &[ALL, NAMED, FILTERED];

const CASES: &[Case] = &[
    case("ALTER TABLE t ADD COLUMN d int", &[ALL]),
    case("ALTER TABLE t DROP COLUMN c", &[ALL]),
    case("ALTER TABLE t DROP COLUMN a", &[ALL, NAMED]),
    case("ALTER TABLE t DROP COLUMN b", &[ALL, FILTERED]),
    case("ALTER TABLE t RENAME COLUMN a TO a2", &[ALL, NAMED]),
    case("ALTER TABLE t ALTER COLUMN a TYPE varchar", &[ALL, NAMED]),
    case("ALTER TABLE t ALTER COLUMN b TYPE int8", &[ALL, FILTERED]),
    // Its values get other texts, which no change of a row tells.
    case("ALTER TABLE t ALTER COLUMN c TYPE numeric(10,4)", &[ALL]),
    case("ALTER TABLE t ALTER COLUMN c TYPE numeric(12,2)", &[]),
    // Nothing but the catalog tells of these values, either.
    case("ALTER TABLE t ALTER COLUMN a TYPE text USING upper(a)", &[ALL, NAMED]),
    case("ALTER TABLE t ALTER COLUMN b TYPE int USING b+1", &[ALL, FILTERED]),
    case("VACUUM FULL t", &[]),
    case("CLUSTER t USING t_pkey", &[]),
    case("ALTER TABLE t ALTER COLUMN b SET STATISTICS 10", &[]),
    case("ALTER TABLE t ALTER COLUMN b SET NOT NULL", &[]),
    case("ALTER TABLE t ALTER COLUMN a SET DEFAULT 'z'", &[]),
    case("ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (id, b)", EVERY),
    case("ALTER TABLE t REPLICA IDENTITY DEFAULT", &[]),
    case(
        "DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, a text, b int, c numeric(10,2) DEFAULT 1)",
        EVERY,
    ),
    Case { cause: TRUNCATED, ..case("TRUNCATE t", EVERY) },
    Case { cause: UNPUBLISHED, ..case("ALTER PUBLICATION p DROP TABLE t", EVERY) },
    Case { stays: false, ..case("ALTER TABLE t RENAME TO t_renamed", EVERY) },
    Case { stays: false, ..case("ALTER TABLE t SET SCHEMA elsewhere", EVERY) },
    Case { stays: false, ..case("DROP TABLE t", EVERY) },
];

fn often(settings: &mut ServiceSettings) {
    settings.set("ELECTRIC_TWEAKS_PUBLICATION_REFRESH_PERIOD", "1s");
}

/// The statement about the table and the publication of a case.
fn named(sql: &str, table: &str, publication: &str) -> String {
    let word = |word: &str| match word {
        "t" => table.to_owned(),
        "t;" => format!("{table};"),
        "p" => publication.to_owned(),
        "t_pkey" => format!("{table}_pkey"),
        "t_pkey," => format!("{table}_pkey,"),
        "t_renamed" => format!("{table}_renamed"),
        other => other.to_owned(),
    };
    sql.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

struct Shapes {
    service: Service,
    database: TestDatabase,
    /// Handle and offset of each shape: by table and parameters.
    tails: BTreeMap<(String, &'static str), (String, String)>,
}

impl Shapes {
    async fn start(hint: &str, configure: impl FnOnce(&mut ServiceSettings)) -> Shapes {
        let database = database(hint).await;
        let mut sql = "CREATE SCHEMA elsewhere;".to_owned();
        for index in 0..CASES.len() {
            sql.push_str(&format!(
                "CREATE TABLE t{index} (id int PRIMARY KEY, a text, b int, c numeric(10,2) DEFAULT 1);
                 INSERT INTO t{index} VALUES (1, 'x', 1);"
            ));
        }
        database.execute(&sql).await;
        let service = Service::start(&database, configure).await;
        let mut shapes = Shapes { service, database, tails: BTreeMap::new() };
        for index in 0..CASES.len() {
            for parameters in EVERY {
                shapes.remember(&format!("t{index}"), parameters).await;
            }
        }
        shapes
    }

    async fn remember(&mut self, table: &str, parameters: &'static str) {
        let path = format!("/v1/shape?table={table}{parameters}&offset=-1");
        let answer = self.service.get(&path).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        let header = |name: &str| answer.header(name).expect("a header of every log").to_owned();
        let tail = (header("electric-handle"), header("electric-offset"));
        self.tails.insert((table.to_owned(), parameters), tail);
    }

    /// The status that who follows the shape is given.
    async fn status(&self, table: &str, parameters: &'static str) -> u16 {
        let (handle, offset) = &self.tails[&(table.to_owned(), parameters)];
        let path = format!("/v1/shape?table={table}{parameters}&handle={handle}&offset={offset}");
        self.service.get(&path).await.status
    }

    fn handle(&self, table: &str, parameters: &'static str) -> &str {
        &self.tails[&(table.to_owned(), parameters)].0
    }
}

/// Runs all cases, with a write after each change or without, and looks at every shape.
async fn run(shapes: &mut Shapes, write: bool) {
    let publication = format!("electric_publication_{}", shapes.database.name);
    for (index, case) in CASES.iter().enumerate() {
        let table = format!("t{index}");
        shapes.database.execute(&named(case.sql, &table, &publication)).await;
        if write && case.stays && case.cause != UNPUBLISHED {
            let columns =
                if case.sql.contains("COLUMN b") && case.sql.contains("DROP") { "(id)" } else { "(id, b)" };
            let values = if columns == "(id)" { "(2)" } else { "(2, 2)" };
            shapes.database.execute(&format!("INSERT INTO {table} {columns} VALUES {values}")).await;
        }
    }
    for (index, case) in CASES.iter().enumerate() {
        let table = format!("t{index}");
        for parameters in case.ends {
            let expected = if case.stays { [409, 400] } else { [400, 400] };
            until(&format!("{} ends {table}{parameters}", case.sql), async || {
                expected.contains(&shapes.status(&table, parameters).await).then_some(())
            })
            .await;
        }
    }
    // All of it has been looked at when the last of these is known.
    for (index, case) in CASES.iter().enumerate() {
        for parameters in EVERY.iter().filter(|parameters| !case.ends.contains(parameters)) {
            assert_eq!(
                shapes.status(&format!("t{index}"), parameters).await,
                200,
                "{} {parameters}",
                case.sql
            );
        }
    }
}

async fn ended(shapes: &mut Shapes, handle: &str) {
    // A live request knows the shape by its handle and waits for its end.
    let (key, (_, offset)) =
        shapes.tails.iter().find(|(_, (known, _))| known == handle).expect("a shape of the test");
    let path = format!("/v1/shape?table={}{}&handle={handle}&offset={offset}&live=true", key.0, key.1);
    until("a live request is sent away", async || {
        let status = shapes.service.get(&path).await.status;
        [400, 409].contains(&status).then_some(())
    })
    .await;
}

/// What the journal says about the end of each shape.
async fn explained(mut shapes: Shapes) {
    for (index, case) in CASES.iter().enumerate() {
        for parameters in case.ends {
            let handle = shapes.handle(&format!("t{index}"), parameters).to_owned();
            ended(&mut shapes, &handle).await;
        }
    }
    assert!(shapes.service.terminate().await);
    journal_is_sound(shapes.service.data_dir());
    let told = journal_tail(shapes.service.data_dir(), &["--kind", "ShapeInvalidated"]);
    for (index, case) in CASES.iter().enumerate() {
        for parameters in EVERY {
            let handle = shapes.handle(&format!("t{index}"), parameters);
            let line = told.lines().find(|line| line.contains(handle));
            let cause = line.and_then(|line| line.split("cause: ").nth(1)?.split(',').next());
            let expected = case.ends.contains(parameters).then_some(case.cause);
            assert_eq!(cause, expected, "{} {parameters}: {line:?}", case.sql);
        }
    }
}

#[tokio::test]
async fn a_change_with_a_write_after_it_ends_the_shapes_that_need_it() {
    let mut shapes = Shapes::start("altered", often).await;
    run(&mut shapes, true).await;
    explained(shapes).await;
}

#[tokio::test]
async fn a_change_that_the_stream_does_not_tell_is_found_in_the_catalog() {
    let mut shapes = Shapes::start("silent", often).await;
    run(&mut shapes, false).await;
    let identity = format!(
        "SELECT relreplident FROM pg_class WHERE relname = 't{}'",
        CASES.iter().position(|case| case.sql.contains("IDENTITY")).expect("a case")
    );
    until("the identity is set again", async || {
        (shapes.database.value(&identity).await.as_deref() == Some("f")).then_some(())
    })
    .await;
    // Without a new handle, yet as it is now.
    let schema = async |part: &str| -> Value {
        let index = CASES.iter().position(|case| case.sql.contains(part)).expect("a case");
        let table = format!("t{index}");
        let (handle, offset) = &shapes.tails[&(table.clone(), ALL)];
        let path = format!("/v1/shape?table={table}&handle={handle}&offset={offset}");
        let answer = shapes.service.get(&path).await;
        serde_json::from_str(answer.header("electric-schema").expect("a schema")).expect("JSON")
    };
    assert_eq!(schema("NOT NULL").await["b"]["not_null"], true);
    assert_eq!(schema("numeric(12,2)").await["c"]["precision"], 12);
    explained(shapes).await;
}

/// U10: under the same name there is another table now.
#[tokio::test]
async fn a_table_that_was_made_anew_is_another_one() {
    let database = database("anew").await;
    database.execute("CREATE TABLE items (id int PRIMARY KEY); INSERT INTO items VALUES (1)").await;
    let service = Service::start(&database, |_| {}).await;
    let postgres = database.client().await;
    let mut client = service.follow(ShapeRequest::table("items"));
    client.sync().await.expect("the shape is served");
    for round in 0..5 {
        let sql = format!(
            "DROP TABLE items; CREATE TABLE items (id int PRIMARY KEY); INSERT INTO items VALUES ({round}), (10)"
        );
        postgres.batch_execute(&sql).await.expect("another table");
        catch_up(&mut client, &ITEMS, &postgres).await;
        postgres.batch_execute("INSERT INTO items VALUES (11)").await.expect("a row");
        catch_up(&mut client, &ITEMS, &postgres).await;
    }
    assert_eq!(client.refetches().len(), 5, "{:?}", client.refetches());
}

/// U3: rows of the truncating transaction, and of those at the same time, are in the new snapshot or
/// in its log.
#[tokio::test]
async fn truncate_among_writers_loses_nothing() {
    const WRITERS: usize = 3;
    const ROUNDS: usize = 30;
    let database = database("truncated").await;
    database.execute("CREATE TABLE items (id int, w int, PRIMARY KEY (id, w)); CREATE TABLE other (id int PRIMARY KEY)").await;
    let service = Service::start(&database, |_| {}).await;
    const PAIRS: Table = Table { name: "items", primary_key: &["id", "w"] };
    let mut client = service.follow(ShapeRequest::table("items"));
    client.sync().await.expect("the shape is served");
    let mut other = service.follow(ShapeRequest::table("other"));
    other.sync().await.expect("the shape is served");
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let postgres = database.client().await;
        writers.spawn(async move {
            for round in 0..ROUNDS {
                let truncate = if round % 5 == writer { "TRUNCATE items;" } else { "" };
                let sql = format!("BEGIN; {truncate} INSERT INTO items VALUES ({round}, {writer}); COMMIT");
                postgres.batch_execute(&sql).await.expect("a write");
                // One that is open while another one truncates.
                let sql = format!(
                    "BEGIN; INSERT INTO other VALUES ({}); INSERT INTO items VALUES ({}, {writer}); COMMIT",
                    writer * 1000 + round,
                    round + 100
                );
                postgres.batch_execute(&sql).await.expect("a write");
            }
        });
    }
    let writing = async { while writers.join_next().await.transpose().expect("a writer").is_some() {} };
    let following = async {
        loop {
            let _unavailable = client.sync().await;
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = writing => {}
        () = following => {}
    }
    let postgres = database.client().await;
    catch_up(&mut client, &PAIRS, &postgres).await;
    catch_up(&mut other, &Table { name: "other", primary_key: &["id"] }, &postgres).await;
    assert!(other.refetches().is_empty());
    assert!(!client.refetches().is_empty(), "the shape was truncated");
}

#[tokio::test]
async fn a_lost_identity_ends_the_shapes_of_that_table_alone() {
    let database = database("identity").await;
    database
        .execute("CREATE TABLE items (id int PRIMARY KEY, v text); INSERT INTO items VALUES (1, 'a'); CREATE TABLE other (id int PRIMARY KEY)")
        .await;
    let mut service = Service::start(&database, |_| {}).await;
    let postgres = database.client().await;
    let mut client = service.follow(ShapeRequest::table("items"));
    client.sync().await.expect("the shape is served");
    let mut other = service.follow(ShapeRequest::table("other"));
    other.sync().await.expect("the shape is served");
    let before = handle(&client);
    postgres
        .batch_execute("ALTER TABLE items REPLICA IDENTITY DEFAULT; UPDATE items SET v = 'b'; INSERT INTO other VALUES (1)")
        .await
        .expect("an update");
    catch_up(&mut client, &ITEMS, &postgres).await;
    assert_eq!(client.refetches().len(), 1);
    postgres.batch_execute("UPDATE items SET v = 'c'").await.expect("an update");
    catch_up(&mut client, &ITEMS, &postgres).await;
    catch_up(&mut other, &Table { name: "other", primary_key: &["id"] }, &postgres).await;
    assert!(client.refetches().len() == 1 && other.refetches().is_empty());
    assert!(service.terminate().await);
    let told = journal_tail(service.data_dir(), &["--shape", &before]);
    assert!(told.contains("cause: OldRowMissing"), "{told}");
}

/// Larger than what is kept in memory of a transaction.
#[tokio::test]
async fn a_large_transaction_ends_nothing() {
    let database = database("large").await;
    database
        .execute("CREATE TABLE items (id int PRIMARY KEY, v text); CREATE TABLE other (id int PRIMARY KEY); INSERT INTO items VALUES (0, 'a')")
        .await;
    let service = Service::start(&database, |_| {}).await;
    let postgres = database.client().await;
    let mut all = service.follow(ShapeRequest::table("items"));
    let mut some = service.follow(ShapeRequest::table("items").filtered("id % 100 = 0", &[]));
    let mut other = service.follow(ShapeRequest::table("other"));
    for client in [&mut all, &mut some, &mut other] {
        client.sync().await.expect("the shape is served");
    }
    postgres
        .batch_execute(
            "BEGIN; INSERT INTO items SELECT i, repeat(md5(i::text), 20) FROM generate_series(1, 20000) i;
             UPDATE items SET v = v || 'x' WHERE id % 2 = 0; INSERT INTO other VALUES (1); COMMIT",
        )
        .await
        .expect("a large transaction");
    catch_up(&mut all, &ITEMS, &postgres).await;
    catch_up(&mut some, &ITEMS, &postgres).await;
    catch_up(&mut other, &Table { name: "other", primary_key: &["id"] }, &postgres).await;
    for client in [&all, &some, &other] {
        assert!(client.refetches().is_empty(), "{:?}", client.request());
    }
}

/// A table enters the publication with its first shape and leaves it with the last.
#[tokio::test]
async fn tables_come_into_the_publication_and_leave_it() {
    const TABLES: usize = 50;
    let database = database("published").await;
    let mut sql = String::from("CREATE SCHEMA \"My-Schema\";");
    for index in 0..TABLES {
        sql.push_str(&format!(
            "CREATE TABLE \"My-Schema\".\"Tab/l.e {index}\" (\"I\"\"d\" int PRIMARY KEY); INSERT INTO \"My-Schema\".\"Tab/l.e {index}\" VALUES ({index});"
        ));
    }
    database.execute(&sql).await;
    let service = Service::start(&database, |settings| {
        often(settings);
        settings.set("ELECTRIC_ENABLE_INTEGRATION_TESTING", "true");
    })
    .await;
    let table = |index: usize| encode(&format!("\"My-Schema\".\"Tab/l.e {index}\""));
    let asked = (0..TABLES).map(|index| {
        let (http, path) = (service.http(), format!("/v1/shape?table={}&offset=-1", table(index)));
        tokio::spawn(async move {
            let mut http = http;
            http.get(&path).await.expect("the service answers")
        })
    });
    let asked: Vec<_> = asked.collect();
    for (index, asked) in asked.into_iter().enumerate() {
        let answer = asked.await.expect("a request");
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()[0]["value"]["I\"d"], index.to_string());
        assert_eq!(answer.json()[0]["key"], format!("\"My-Schema\".\"Tab//l..e {index}\"/\"{index}\""));
    }
    let published = format!(
        "SELECT count(*) FROM pg_publication_tables t JOIN pg_class c ON c.relname = t.tablename AND c.relreplident = 'f'
         WHERE t.pubname = 'electric_publication_{}'",
        database.name
    );
    assert_eq!(database.value(&published).await, Some(TABLES.to_string()));
    for index in 0..TABLES - 1 {
        let path = format!("/v1/shape?table={}", table(index));
        let answer = service.http().request("DELETE", &path, &[], &[]).await.expect("the service answers");
        assert_eq!(answer.status, 202, "{}", answer.text());
    }
    until("only one table is left in the publication", async || {
        (database.value(&published).await.as_deref() == Some("1")).then_some(())
    })
    .await;
}

/// What a publication of somebody else leaves out must not be missed in silence.
#[tokio::test]
async fn a_publication_with_a_row_filter_is_refused() {
    let database = database("rowfilter").await;
    let version = database.value("SELECT current_setting('server_version_num')").await.expect("a version");
    let filters = version.as_str() >= "150000";
    let publication = format!("electric_publication_{}", database.name);
    let filter = if filters { "WHERE (id > 5)" } else { "" };
    database
        .execute(&format!(
            "CREATE TABLE items (id int PRIMARY KEY); ALTER TABLE items REPLICA IDENTITY FULL;
             CREATE PUBLICATION {publication} FOR TABLE items {filter}"
        ))
        .await;
    let service = Service::start(&database, |settings| {
        settings.set("ELECTRIC_MANUAL_TABLE_PUBLISHING", "true");
    })
    .await;
    let answer = service.get("/v1/shape?table=items&offset=-1").await;
    if filters {
        assert_eq!(answer.status, 503);
        let message = answer.json()["message"].as_str().expect("a message").to_owned();
        assert!(message.contains("has a row filter or a list of columns for it"), "{message}");
    } else {
        assert_eq!(answer.status, 200, "no such thing in this version: {}", answer.text());
    }
}
