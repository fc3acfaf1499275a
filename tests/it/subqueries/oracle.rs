//! The oracle: random shapes over random tables with foreign keys, random concurrent transactions, and the
//! official client, which must end with the rows of SQL.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio_postgres::{Client, SimpleQueryMessage};

use super::started;
use crate::support::{NodeClient, NodeFollower, Row, Service, TestDatabase, count, encode};

const SHAPES: usize = 60;
const TRANSACTIONS: usize = 300;
const WRITERS: usize = 4;

/// Columns of one type, by table: what may be compared with what.
const TABLES: [(&str, &[&str]); 4] = [
    ("org", &["id", "parent", "tier"]),
    ("team", &["id", "org", "size"]),
    ("person", &["id", "team", "boss", "age"]),
    ("task", &["id", "owner", "team", "n"]),
];

const SCHEMA: &str = "
    CREATE TABLE org (id int PRIMARY KEY, parent int REFERENCES org ON DELETE SET NULL, tier int, act bool);
    CREATE TABLE team (id int PRIMARY KEY, org int REFERENCES org ON DELETE SET NULL, size int, act bool);
    CREATE TABLE person (id int PRIMARY KEY, team int REFERENCES team ON DELETE CASCADE, boss int, age int, act bool);
    CREATE TABLE task (id int PRIMARY KEY, owner int REFERENCES person ON DELETE SET NULL, team int, n int, act bool);
    INSERT INTO org SELECT i, NULL, i % 4, i % 2 = 0 FROM generate_series(1, 8) i;
    INSERT INTO team SELECT i, 1 + i % 8, i % 5, i % 3 = 0 FROM generate_series(1, 12) i;
    INSERT INTO person SELECT i, 1 + i % 12, i % 7, 20 + i % 9, i % 2 = 0 FROM generate_series(1, 24) i;
    INSERT INTO task SELECT i, 1 + i % 24, 1 + i % 12, i % 6, i % 4 = 0 FROM generate_series(1, 40) i;";

/// Keys of rows that transactions write to.
const KEYS: [i32; 4] = [8, 12, 24, 40];

struct Generator {
    random: StdRng,
}

impl Generator {
    fn clause(&mut self, table: usize, depth: usize) -> String {
        match self.random.random_range(0..10) {
            0..=1 => format!("({} AND {})", self.literal(table, depth), self.literal(table, depth)),
            2..=3 => format!("({} OR {})", self.literal(table, depth), self.literal(table, depth)),
            4 => format!("NOT ({})", self.clause(table, depth)),
            _ => self.literal(table, depth),
        }
    }

    fn literal(&mut self, table: usize, depth: usize) -> String {
        let column = self.column(table);
        if depth > 0 && self.random.random_bool(0.7) {
            let inner = self.random.random_range(0..TABLES.len());
            let selected = self.column(inner);
            let not = if self.random.random_bool(0.25) { "NOT " } else { "" };
            let filter = match self.random.random_range(0..8) {
                0 => String::new(),
                _ => format!(" WHERE {}", self.clause(inner, depth - 1)),
            };
            return format!("{column} {not}IN (SELECT {selected} FROM {}{filter})", TABLES[inner].0);
        }
        let value = self.random.random_range(0..10);
        match self.random.random_range(0..6) {
            0 => "act".to_owned(),
            1 => "NOT act".to_owned(),
            2 => format!("{column} > {value}"),
            3 => format!("{column} IN ({value}, {})", value + 1),
            4 => format!("{column} IS NULL"),
            _ => format!("{column} BETWEEN {value} AND {}", value + 4),
        }
    }

    fn column(&mut self, table: usize) -> &'static str {
        TABLES[table].1.choose(&mut self.random).expect("a table has columns")
    }

    fn value(&mut self, most: i32) -> String {
        if self.random.random_bool(0.12) {
            "NULL".to_owned()
        } else {
            self.random.random_range(1..=most).to_string()
        }
    }

    fn transaction(&mut self) -> String {
        let statements = self.random.random_range(1..=3);
        let body: String = (0..statements).map(|_| self.statement()).collect();
        format!("BEGIN; {body} COMMIT")
    }

    fn statement(&mut self) -> String {
        let table = self.random.random_range(0..TABLES.len());
        let name = TABLES[table].0;
        let id = self.random.random_range(1..=KEYS[table]);
        let act = ["true", "false", "NULL"].choose(&mut self.random).expect("three");
        match self.random.random_range(0..10) {
            0 => format!("DELETE FROM {name} WHERE id = {id};"),
            1..=2 => format!("UPDATE {name} SET act = NOT act WHERE id = {id};"),
            3 => format!("UPDATE {name} SET act = {act} WHERE id % 5 = {};", id % 5),
            4..=6 => {
                let column = TABLES[table].1[1..].choose(&mut self.random).expect("more than a key");
                let value = self.reference(column);
                format!("UPDATE {name} SET {column} = {value} WHERE id = {id};")
            }
            _ => {
                let columns = TABLES[table].1[1..].join(", ");
                let values: Vec<String> =
                    TABLES[table].1[1..].iter().map(|column| self.reference(column)).collect();
                format!(
                    "INSERT INTO {name} (id, {columns}, act) VALUES ({id}, {}, {act}) ON CONFLICT (id) DO UPDATE SET \
                     act = EXCLUDED.act;",
                    values.join(", ")
                )
            }
        }
    }

    /// A value for a column; where it is a reference, of a row that is there.
    fn reference(&mut self, column: &str) -> String {
        let of = |table: &str, value: String| format!("(SELECT id FROM {table} WHERE id = {value})");
        match column {
            "parent" | "org" => of("org", self.value(8)),
            "team" => of("team", self.value(12)),
            "owner" => of("person", self.value(24)),
            _ => self.value(9),
        }
    }
}

async fn expected(database: &TestDatabase, table: &str, clause: &str) -> Vec<Row> {
    let sql = format!("SELECT * FROM {table} WHERE {clause}");
    let mut rows = Vec::new();
    for message in database.client().await.simple_query(&sql).await.expect("the clause is SQL") {
        if let SimpleQueryMessage::Row(found) = message {
            let cell = |(index, column): (usize, &tokio_postgres::SimpleColumn)| {
                (column.name().to_owned(), found.get(index).map(str::to_owned))
            };
            rows.push(found.columns().iter().enumerate().map(cell).collect());
        }
    }
    rows.sort();
    rows
}

/// Clauses that the contract refuses are left out.
async fn shapes(service: &Service, generator: &mut Generator) -> Vec<(&'static str, String)> {
    let mut shapes: Vec<(&'static str, String)> = Vec::new();
    let mut refused = 0;
    while shapes.len() < SHAPES {
        let table = generator.random.random_range(0..TABLES.len());
        let depth = shapes.len() % 4;
        let clause = generator.clause(table, depth);
        let path = format!("/v1/shape?table={}&offset=-1&where={}", TABLES[table].0, encode(&clause));
        let answer = service.get(&path).await;
        match answer.status {
            200 => shapes.push((TABLES[table].0, clause)),
            400 => {
                let text = answer.text();
                assert!(text.contains("polarity") || text.contains("too complex"), "{clause}: {text}");
                refused += 1;
                assert!(refused < 10 * SHAPES, "most clauses are fine");
            }
            status => panic!("{status} for {clause}: {}", answer.text()),
        }
    }
    shapes
}

/// Deadlocks and broken references end a transaction; it is then as if it had not been.
async fn write(client: Client, mut generator: Generator, transactions: usize) -> usize {
    let mut committed = 0;
    for _ in 0..transactions {
        match client.batch_execute(&generator.transaction()).await {
            Ok(()) => committed += 1,
            Err(_) => client.batch_execute("ROLLBACK").await.expect("the session lives"),
        }
    }
    committed
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_client_ends_with_the_rows_of_sql() {
    let seed = std::env::var("SHAPEFOLD_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| rand::rng().random_range(0..1 << 32));
    println!("SHAPEFOLD_SEED={seed}");
    let (database, service) = started("oracle", SCHEMA, &[]).await;
    let mut generator = Generator { random: StdRng::seed_from_u64(seed) };
    let shapes = shapes(&service, &mut generator).await;
    let clients: Vec<NodeClient> = shapes
        .iter()
        .enumerate()
        .map(|(index, (table, clause))| {
            NodeClient::stream(&index.to_string(), serde_json::json!({ "table": table, "where": clause }))
        })
        .collect();
    let mut node = NodeFollower::start(&service, &clients);
    let mut writers = Vec::new();
    for number in 0..WRITERS {
        let generator = Generator { random: StdRng::seed_from_u64(seed ^ (number as u64 + 1) << 40) };
        writers.push(tokio::spawn(write(database.client().await, generator, TRANSACTIONS.div_ceil(WRITERS))));
    }
    let mut committed = 0;
    for writer in writers {
        committed += writer.await.expect("the writer lives");
    }
    for (index, (table, clause)) in shapes.iter().enumerate() {
        let rows = expected(&database, table, clause).await;
        println!("{index}: {table} WHERE {clause}");
        let name = index.to_string();
        let waited = std::panic::AssertUnwindSafe(node.wait_for_rows(&name, &rows));
        let seen = match futures_util::FutureExt::catch_unwind(waited).await {
            Ok(seen) => seen,
            Err(panic) => {
                let mut fresh =
                    service.follow(crate::support::ShapeRequest::table(table).filtered(clause, &[]));
                println!("a fresh client: {:?}, {:?}", fresh.sync().await, fresh.rows().values());
                println!("what it found odd: {:?}", fresh.anomalies());
                println!("{}", service.output());
                std::panic::resume_unwind(panic);
            }
        };
        assert_eq!((seen.refetches, seen.errors.len()), (0, 0), "{clause}: {:?}", seen.errors);
    }
    let nested = shapes.iter().filter(|(_, clause)| clause.contains("SELECT")).count();
    count(
        "subquery oracle",
        shapes.len() as u64,
        &format!("shapes ({nested} with subqueries), {committed} transactions"),
    );
}
