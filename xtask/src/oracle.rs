//! Random shapes over random tables with foreign keys, random concurrent transactions, and the official
//! client, which must end with the rows of SQL. Subqueries are nested to depth 3. A test does it once; the
//! command `soak-oracle` for as long as it is told, while the service is killed and restarted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::json;
use tokio::sync::watch;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::http::{HttpClient, encode};
use crate::node::{NodeClient, NodeFollower};
use crate::service::{Service, ServiceSettings};
use crate::shape_client::Row;
use crate::soak::{Figures, SoakOptions, kill_until};
use crate::stage::{Stage, report};
use crate::{Outcome, journal};

/// Shapes of one run.
pub const SHAPES: usize = 60;
/// Concurrent writing sessions.
pub const WRITERS: usize = 4;
/// Writes and kills between two comparisons.
const ROUND_MINUTES: f64 = 0.5;
/// Between two transactions of a writer of the soak, at most.
const PAUSE_MS: u64 = 80;
/// How long clients may take, once nobody writes, until their rows equal SQL: the official client waits
/// longer and longer for a service that is down.
const SETTLE_DURATION_MAX: Duration = Duration::from_secs(90);

/// Columns of one type, by table: what may be compared with what.
const TABLES: [(&str, &[&str]); 4] = [
    ("org", &["id", "parent", "tier"]),
    ("team", &["id", "org", "size"]),
    ("person", &["id", "team", "boss", "age"]),
    ("task", &["id", "owner", "team", "n"]),
];

/// Tables with references to each other.
pub const SCHEMA: &str = "
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

/// Random clauses and transactions.
#[derive(Debug)]
pub struct Generator {
    random: StdRng,
}

impl Generator {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { random: StdRng::seed_from_u64(seed) }
    }

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

/// The rows of a shape as SQL has them, sorted.
///
/// # Errors
/// Of Postgres.
pub async fn expected(sql: &Client, shape: &OracleShape) -> Outcome<Vec<Row>> {
    let query = format!("SELECT * FROM {} WHERE {}", shape.table, shape.clause);
    let mut rows = Vec::new();
    for message in sql.simple_query(&query).await? {
        if let SimpleQueryMessage::Row(found) = message {
            let cell = |(index, column): (usize, &tokio_postgres::SimpleColumn)| {
                (column.name().to_owned(), found.get(index).map(str::to_owned))
            };
            rows.push(found.columns().iter().enumerate().map(cell).collect());
        }
    }
    rows.sort();
    Ok(rows)
}

/// One of the shapes.
#[derive(Clone, Debug)]
pub struct OracleShape {
    pub table: &'static str,
    pub clause: String,
}

/// Makes [`SHAPES`] shapes. Clauses that the contract refuses are left out.
///
/// # Errors
/// The service refuses one for another reason, or does not answer.
pub async fn shapes(http: &mut HttpClient, generator: &mut Generator) -> Outcome<Vec<OracleShape>> {
    let mut shapes: Vec<OracleShape> = Vec::new();
    let mut refused = 0;
    while shapes.len() < SHAPES {
        let table = generator.random.random_range(0..TABLES.len());
        let depth = shapes.len() % 4;
        let clause = generator.clause(table, depth);
        let path = format!("/v1/shape?table={}&offset=-1&where={}", TABLES[table].0, encode(&clause));
        let answer = http.get(&path).await?;
        match answer.status {
            200 => shapes.push(OracleShape { table: TABLES[table].0, clause }),
            400 if ["polarity", "too complex"].iter().any(|why| answer.text().contains(why)) => {
                refused += 1;
                if refused > 10 * SHAPES {
                    return Err("most clauses are refused".into());
                }
            }
            status => return Err(format!("{status} for {clause}: {}", answer.text()).into()),
        }
    }
    Ok(shapes)
}

/// A client of each shape, named by its number.
#[must_use]
pub fn clients(shapes: &[OracleShape]) -> Vec<NodeClient> {
    let client = |(index, shape): (usize, &OracleShape)| {
        NodeClient::stream(&index.to_string(), json!({ "table": shape.table, "where": shape.clause }))
    };
    shapes.iter().enumerate().map(client).collect()
}

/// One transaction. Whether it was committed: deadlocks and broken references end one, and it is then as if
/// it had not been.
///
/// # Errors
/// The session is gone.
pub async fn write(sql: &Client, generator: &mut Generator) -> Outcome<bool> {
    let committed = sql.batch_execute(&generator.transaction()).await.is_ok();
    if !committed {
        sql.batch_execute("ROLLBACK").await?;
    }
    Ok(committed)
}

/// Runs the soak; true when everything held.
///
/// # Errors
/// What keeps it from running at all.
pub async fn run(options: SoakOptions) -> Outcome<bool> {
    let seed = options.seed.unwrap_or_else(|| rand::rng().random());
    println!(
        "oracle: {} minutes, seed {seed} (--seed {seed} makes the same shapes and writes)",
        options.minutes
    );
    let stage = Stage::open("oracle", options.postgres).await?;
    stage.sql.batch_execute(SCHEMA).await?;
    let settings = stage.service_settings("oracle");
    let mut service = Service::start(settings.clone()).await?;
    let mut generator = Generator::new(seed);
    let shapes = shapes(&mut HttpClient::new(service.address()), &mut generator).await?;
    let nested = shapes.iter().filter(|shape| shape.clause.contains("SELECT")).count();
    println!(
        "service: {}, {} shapes, {nested} with subqueries, one client each",
        service.url(),
        shapes.len()
    );
    let mut node = NodeFollower::start(&service, &clients(&shapes));
    let mut writers = Vec::new();
    for number in 1..=WRITERS as u64 {
        writers.push((stage.connect().await?, Generator::new(seed ^ number << 40)));
    }
    let started = Instant::now();
    let (mut round, mut committed, mut kills, mut graceful) = (0_u64, 0, 0, 0);
    let mut unequal = Vec::new();
    while unequal.is_empty() && (round == 0 || started.elapsed().as_secs_f64() < options.minutes * 60.0) {
        round += 1;
        let (stop, stopped) = watch::channel(false);
        let writing: Vec<_> = writers
            .drain(..)
            .map(|(sql, generator)| tokio::spawn(write_until(sql, generator, stopped.clone())))
            .collect();
        let part = SoakOptions { minutes: ROUND_MINUTES, ..options.clone() };
        let figures = Arc::new(Figures::default());
        let deaths = tokio::select! {
            deaths = kill_until(&mut service, &part, 3.0, seed.wrapping_add(round), &figures) => deaths?,
            never = node.listen() => match never {},
        };
        stop.send_replace(true);
        for task in writing {
            let (writer, count) = task.await??;
            committed += count;
            writers.push(writer);
        }
        (kills, graceful) = (kills + deaths.kills, graceful + deaths.graceful);
        unequal = settle(&mut node, &stage.sql, &shapes).await?;
        println!("  round {round}: {committed} transactions, {kills} kills, {} unequal", unequal.len());
    }
    let ended = service.terminate().await;
    println!("oracle: {committed} transactions, {kills} kills, {graceful} graceful restarts, {round} rounds");
    verdict(&node, &shapes, &unequal, ended, &settings)
}

async fn write_until(
    sql: Client,
    mut generator: Generator,
    stopped: watch::Receiver<bool>,
) -> Outcome<((Client, Generator), u64)> {
    let mut committed = 0;
    while !*stopped.borrow() {
        committed += u64::from(write(&sql, &mut generator).await?);
        let pause = rand::rng().random_range(0..PAUSE_MS);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    Ok(((sql, generator), committed))
}

/// Lets every client come to the rows of SQL; what differs in the end.
async fn settle(node: &mut NodeFollower, sql: &Client, shapes: &[OracleShape]) -> Outcome<Vec<String>> {
    let mut unequal = Vec::new();
    for (index, shape) in shapes.iter().enumerate() {
        let rows = expected(sql, shape).await?;
        let same = |seen: &crate::node::Seen| seen.rows.as_ref() == Some(&rows);
        if let Err(seen) = node.wait_at_most(SETTLE_DURATION_MAX, &index.to_string(), same).await {
            let has = seen.rows.unwrap_or_default();
            unequal.push(format!("{} WHERE {}: {has:?}, not {rows:?}", shape.table, shape.clause));
        }
    }
    Ok(unequal)
}

fn verdict(
    node: &NodeFollower,
    shapes: &[OracleShape],
    unequal: &[String],
    ended: bool,
    settings: &ServiceSettings,
) -> Outcome<bool> {
    let mut passed =
        report(unequal.is_empty(), &format!("{} of {} clients differ from SQL", unequal.len(), shapes.len()));
    unequal.iter().for_each(|text| println!("          {text}"));
    let seen: Vec<_> = (0..shapes.len()).map(|index| node.seen(&index.to_string())).collect();
    let refetches: usize = seen.iter().map(|seen| seen.refetches).sum();
    passed &= report(refetches == 0, &format!("{refetches} clients sent away by a 409"));
    let errors: Vec<&String> = seen.iter().flat_map(|seen| &seen.errors).collect();
    passed &= report(errors.is_empty(), &format!("{} errors of clients", errors.len()));
    errors.iter().take(5).for_each(|error| println!("          {error}"));
    let verified = journal::verify(&settings.binary, &settings.data_dir);
    let text = match &verified {
        Ok(text) => text.lines().last().unwrap_or_default().to_owned(),
        Err(error) => error.to_string(),
    };
    passed &= report(verified.is_ok(), &format!("journal verify: {text}"));
    passed &= report(ended, "the service ended by itself, with success, on SIGTERM");
    println!("oracle: {}", if passed { "passed" } else { "FAILED" });
    Ok(passed)
}
