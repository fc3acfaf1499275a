//! Random transactions over three tables, from a seed, and the shapes that look at them.
//!
//! Each writer owns the keys that are its number modulo the number of writers: it knows without
//! asking which rows exist, and writers never wait for each other.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use crate::compare::Table;
use crate::shape_client::ShapeRequest;

/// Above this many rows of one writer in one table, deletes win over inserts.
const ROWS_PER_WRITER_MAX: usize = 1_500;
/// Rows of a large transaction.
const LARGE_ROWS: std::ops::Range<usize> = 3_000..9_000;

pub const ACCOUNTS: Table = Table { name: "accounts", primary_key: &["id"] };
pub const EVENTS: Table = Table { name: "events", primary_key: &["tenant", "seq"] };
pub const NOTES: Table = Table { name: "notes", primary_key: &["slug"] };
pub const TABLES: [Table; 3] = [ACCOUNTS, EVENTS, NOTES];

pub const SCHEMA: &str = "
CREATE TABLE accounts (id bigint PRIMARY KEY, owner int NOT NULL, status text, amount numeric(12,2),
    active boolean NOT NULL, note text, big text);
CREATE TABLE events (tenant int, seq bigint, kind text NOT NULL, payload jsonb, score int, PRIMARY KEY (tenant, seq));
CREATE TABLE notes (slug text PRIMARY KEY, body text, score int, tags text[], at timestamptz);
";

const STATUSES: [&str; 5] = ["open", "held", "closed", "it's", "ünïcode ✓"];
const KINDS: [&str; 6] = ["created", "changed", "moved", "paid", "sent", "x\\y\"z"];

/// The shapes that are followed: whole tables, `field = k`, IN, comparisons, parameters, columns, and those
/// with inner queries.
#[must_use]
pub fn shapes() -> Vec<(Table, ShapeRequest)> {
    let mut shapes = Vec::new();
    for table in TABLES {
        shapes.push((table, ShapeRequest::table(table.name)));
    }
    let accounts = || ShapeRequest::table("accounts");
    let events = || ShapeRequest::table("events");
    let notes = || ShapeRequest::table("notes");
    for owner in 0..16 {
        shapes.push((ACCOUNTS, accounts().filtered(&format!("owner = {owner}"), &[])));
    }
    for status in STATUSES {
        shapes.push((ACCOUNTS, accounts().filtered("status = $1", &[status])));
    }
    for tenant in ["1", "2", "3", "4", "5", "6", "7", "8"] {
        shapes.push((EVENTS, events().filtered("tenant = $1", &[tenant])));
    }
    for kind in KINDS {
        shapes.push((EVENTS, events().filtered("kind = $1", &[kind]).columns(&["tenant", "seq", "kind"])));
    }
    for clause in [
        "status IN ('open', 'held')",
        "owner IN (1, 3, 5, 7) AND active = true",
        "amount >= 100 AND amount < 500",
        "amount < 50 OR amount > 950",
        "status IS NULL",
        "NOT (owner < 8) AND status IS NOT NULL",
        "id > 500 AND (owner = 2 OR owner = 4 OR status = 'closed')",
    ] {
        shapes.push((ACCOUNTS, accounts().filtered(clause, &[])));
    }
    for clause in
        ["score > 50", "score <= 10 OR score IS NULL", "tenant IN (2, 4) AND kind <> 'paid'", "seq >= 100"]
    {
        shapes.push((EVENTS, events().filtered(clause, &[])));
    }
    for clause in [
        "score BETWEEN 10 AND 40",
        "score < 0 OR score > 90",
        "slug > 'm'",
        "body IS NOT NULL AND score <> 7",
    ] {
        shapes.push((NOTES, notes().filtered(clause, &[])));
    }
    shapes.push((ACCOUNTS, accounts().columns(&["id", "note"])));
    shapes.push((
        ACCOUNTS,
        accounts().filtered("owner >= $1 AND status = $2", &["10", "it's"]).columns(&["id", "status"]),
    ));
    shapes.push((NOTES, notes().columns(&["slug", "tags", "at"])));
    shapes.extend(with_subqueries());
    shapes
}

/// Shapes whose rows follow from rows of other tables, or of their own.
fn with_subqueries() -> Vec<(Table, ShapeRequest)> {
    let accounts = [
        "owner IN (SELECT tenant FROM events WHERE score > 97)",
        "owner NOT IN (SELECT tenant FROM events WHERE score > 95)",
        "owner IN (SELECT owner FROM accounts WHERE amount > 990) AND active = true",
        "owner IN (SELECT score FROM notes WHERE score BETWEEN 0 AND 8) OR status = 'closed'",
    ];
    let events = [
        "tenant IN (SELECT owner FROM accounts WHERE amount > 995)",
        "tenant IN (SELECT owner FROM accounts WHERE owner IN (SELECT score FROM notes WHERE score < 6) AND amount > 900)",
        "score NOT IN (SELECT score FROM notes)",
    ];
    let notes = [
        "score IN (SELECT score FROM events WHERE kind = 'paid')",
        "score IN (SELECT owner FROM accounts WHERE owner NOT IN (SELECT tenant FROM events WHERE score > 98))",
    ];
    let of = |table: Table, clauses: &[&str]| {
        let request = |clause: &&str| (table, ShapeRequest::table(table.name).filtered(clause, &[]));
        clauses.iter().map(request).collect::<Vec<_>>()
    };
    [of(ACCOUNTS, &accounts), of(EVENTS, &events), of(NOTES, &notes)].concat()
}

#[derive(Clone, Copy)]
enum Kind {
    Accounts,
    Events,
    Notes,
}

/// One writer's random transactions.
pub struct Writer {
    random: StdRng,
    number: u64,
    writers: u64,
    next: u64,
    /// Keys that exist, as SQL conditions on the primary key, for each table.
    keys: [Vec<String>; 3],
}

/// A transaction to be sent as one string.
pub struct Transaction {
    pub sql: String,
    pub rows: usize,
    pub commits: bool,
    keys_after: [Vec<String>; 3],
}

impl Writer {
    #[must_use]
    pub fn new(random: StdRng, number: u64, writers: u64) -> Self {
        Self { random, number, writers, next: 0, keys: Default::default() }
    }

    /// The next transaction; call [`Self::done`] when Postgres has committed it.
    pub fn next_transaction(&mut self) -> Transaction {
        let commits = self.random.random_bool(0.92);
        let mut keys = self.keys.clone();
        let mut sql = String::from("BEGIN;\n");
        let rows = match self.random.random_range(0..1000) {
            0..4 => self.large(&mut sql, &mut keys),
            4..700 => self.mixed(1, 10, &mut sql, &mut keys),
            700..950 => self.mixed(10, 100, &mut sql, &mut keys),
            _ => self.mixed(100, 500, &mut sql, &mut keys),
        };
        if self.random.random_bool(0.1) {
            let mut discarded = keys.clone();
            sql.push_str("SAVEPOINT s;\n");
            self.mixed(1, 5, &mut sql, &mut discarded);
            sql.push_str("ROLLBACK TO SAVEPOINT s;\n");
        }
        sql.push_str(if commits { "COMMIT" } else { "ROLLBACK" });
        Transaction { sql, rows, commits, keys_after: keys }
    }

    /// Takes note of what the transaction left behind.
    pub fn done(&mut self, transaction: Transaction) {
        if transaction.commits {
            self.keys = transaction.keys_after;
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next * self.writers + self.number
    }

    fn mixed(&mut self, from: usize, to: usize, sql: &mut String, keys: &mut [Vec<String>; 3]) -> usize {
        let rows = self.random.random_range(from..=to);
        for _ in 0..rows {
            let kind =
                *[Kind::Accounts, Kind::Events, Kind::Notes].choose(&mut self.random).unwrap_or(&Kind::Notes);
            let keys = &mut keys[kind as usize];
            let full = keys.len() > ROWS_PER_WRITER_MAX;
            match self.random.random_range(0..100) {
                _ if keys.is_empty() => self.insert(kind, sql, keys),
                0..40 if !full => self.insert(kind, sql, keys),
                0..40 | 80..94 => {
                    let index = self.random.random_range(0..keys.len());
                    let key = keys.swap_remove(index);
                    sql.push_str(&format!("DELETE FROM {} WHERE {key};\n", TABLES[kind as usize].name));
                }
                40..80 => {
                    let index = self.random.random_range(0..keys.len());
                    let change = self.change(kind);
                    sql.push_str(&format!(
                        "UPDATE {} SET {change} WHERE {};\n",
                        TABLES[kind as usize].name, keys[index]
                    ));
                }
                _ => self.change_key(kind, sql, keys),
            }
        }
        rows
    }

    /// A bulk insert by one statement, and the deletion of the same rows at times in the same transaction.
    fn large(&mut self, sql: &mut String, keys: &mut [Vec<String>; 3]) -> usize {
        let rows = self.random.random_range(LARGE_ROWS);
        let first = self.number();
        self.next += rows as u64;
        let writers = self.writers;
        sql.push_str(&format!(
            "INSERT INTO events SELECT 9, {first} + n * {writers}, 'bulk', jsonb_build_object('n', n), n % 100 \
             FROM generate_series(0, {}) n;\n",
            rows - 1
        ));
        if self.random.random_bool(0.8) {
            let last = first + (rows as u64 - 1) * writers;
            sql.push_str(&format!(
                "DELETE FROM events WHERE tenant = 9 AND seq BETWEEN {first} AND {last} AND seq % {writers} = {};\n",
                first % writers
            ));
            return rows * 2;
        }
        keys[Kind::Events as usize]
            .extend((0..rows as u64).map(|n| format!("tenant = 9 AND seq = {}", first + n * writers)));
        rows
    }

    fn insert(&mut self, kind: Kind, sql: &mut String, keys: &mut Vec<String>) {
        let number = self.number();
        match kind {
            Kind::Accounts => {
                let (owner, status, amount) = (self.random.random_range(0..16), self.status(), self.amount());
                let (active, note, big) = (self.random.random_bool(0.5), self.text(), self.big());
                sql.push_str(&format!(
                    "INSERT INTO accounts VALUES ({number}, {owner}, {status}, {amount}, {active}, {note}, {big});\n"
                ));
                keys.push(format!("id = {number}"));
            }
            Kind::Events => {
                let (tenant, event, score) = (self.random.random_range(1..9), self.kind(), self.score());
                let payload = self.payload();
                sql.push_str(&format!(
                    "INSERT INTO events VALUES ({tenant}, {number}, {event}, {payload}, {score});\n"
                ));
                keys.push(format!("tenant = {tenant} AND seq = {number}"));
            }
            Kind::Notes => {
                let slug = self.slug(number);
                let (body, score) = (self.text(), self.score());
                sql.push_str(&format!(
                    "INSERT INTO notes VALUES ({slug}, {body}, {score}, ARRAY['a,b', NULL, {slug}], clock_timestamp());\n"
                ));
                keys.push(format!("slug = {slug}"));
            }
        }
    }

    fn change(&mut self, kind: Kind) -> String {
        match (kind, self.random.random_range(0..4)) {
            (Kind::Accounts, 0) => format!("owner = {}", self.random.random_range(0..16)),
            (Kind::Accounts, 1) => format!("status = {}, note = {}", self.status(), self.text()),
            (Kind::Accounts, 2) => format!("amount = {}, active = NOT active", self.amount()),
            (Kind::Accounts, _) => "active = active".to_owned(),
            (Kind::Events, 0 | 1) => format!("kind = {}", self.kind()),
            (Kind::Events, 2) => format!("payload = {}", self.payload()),
            (Kind::Events, _) => format!("score = {}", self.score()),
            (Kind::Notes, 0) => format!("body = {}", self.text()),
            (Kind::Notes, 1) => "at = clock_timestamp(), tags = tags || 'more'::text".to_owned(),
            (Kind::Notes, _) => format!("score = {}", self.score()),
        }
    }

    fn change_key(&mut self, kind: Kind, sql: &mut String, keys: &mut [String]) {
        let number = self.number();
        let index = self.random.random_range(0..keys.len());
        let (assignment, key) = match kind {
            Kind::Accounts => (format!("id = {number}"), format!("id = {number}")),
            Kind::Events => {
                let tenant = self.random.random_range(1..9);
                (
                    format!("tenant = {tenant}, seq = {number}"),
                    format!("tenant = {tenant} AND seq = {number}"),
                )
            }
            Kind::Notes => {
                let slug = self.slug(number);
                (format!("slug = {slug}"), format!("slug = {slug}"))
            }
        };
        let old = std::mem::replace(&mut keys[index], key);
        sql.push_str(&format!("UPDATE {} SET {assignment} WHERE {old};\n", TABLES[kind as usize].name));
    }

    fn slug(&mut self, number: u64) -> String {
        let head = *["a/b", "K", "n''1", "z \"q\""].choose(&mut self.random).unwrap_or(&"a");
        format!("'{head}-{number}'")
    }

    fn status(&mut self) -> String {
        if self.random.random_bool(0.1) {
            return "NULL".to_owned();
        }
        quote(STATUSES.choose(&mut self.random).copied().unwrap_or_default())
    }

    fn kind(&mut self) -> String {
        quote(KINDS.choose(&mut self.random).copied().unwrap_or_default())
    }

    fn amount(&mut self) -> String {
        format!("{}.{:02}", self.random.random_range(0..1000), self.random.random_range(0..100))
    }

    fn score(&mut self) -> String {
        if self.random.random_bool(0.05) {
            "NULL".to_owned()
        } else {
            self.random.random_range(-10..100).to_string()
        }
    }

    fn payload(&mut self) -> String {
        if self.random.random_bool(0.1) {
            return "NULL".to_owned();
        }
        format!(
            "'{{\"n\": {}, \"s\": \"tab\\tquote\\\"\", \"l\": [1, null]}}'",
            self.random.random_range(0..1000)
        )
    }

    fn text(&mut self) -> String {
        match self.random.random_range(0..8) {
            0 => "NULL".to_owned(),
            1 => "''".to_owned(),
            2 => "E'line\\nbreak\\ttab \\\\ \"quoted\" \\x01'".to_owned(),
            3 => "'emoji 🦀 and ''quotes'''".to_owned(),
            _ => format!("'note {}'", self.random.random::<u64>()),
        }
    }

    /// Now and then a value that Postgres stores out of line: an update that leaves it alone sends
    /// only a mark for it.
    fn big(&mut self) -> String {
        if self.random.random_bool(0.03) {
            return format!(
                "(SELECT string_agg(md5((n * {})::text), '') FROM generate_series(1, 300) n)",
                self.number()
            );
        }
        "NULL".to_owned()
    }
}

fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn there_are_at_least_fifty_different_shapes() {
        let mut queries: Vec<String> = shapes().iter().map(|(_, request)| request.query()).collect();
        queries.sort();
        queries.dedup();
        assert_eq!(queries.len(), shapes().len());
        assert!(queries.len() >= 50, "{}", queries.len());
    }

    #[test]
    fn the_same_seed_gives_the_same_transactions() {
        let run = || {
            let mut writer = Writer::new(StdRng::seed_from_u64(7), 0, 2);
            (0..50)
                .map(|_| {
                    let transaction = writer.next_transaction();
                    let sql = transaction.sql.clone();
                    writer.done(transaction);
                    sql
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(run(), run());
    }
}
