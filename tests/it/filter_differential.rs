//! Where clauses against Postgres: random clauses over rows of every type, each decided by us and by
//! `SELECT (clause)`, three-valued.
//!
//! The same clauses every time. `./dev soak where` takes others: `SHAPEFOLD_FILTER_SEED`, and more of them:
//! `SHAPEFOLD_FILTER_CASES`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use shapefold::domain::{Change, Relation, RelationName, Sid, Tuple, Value, WireColumn, WireRelation};
use shapefold::filter::{Predicate, RowMove, ShapeIndex, native_operations};
use shapefold::postgres::{ConnectOptions, DatabaseUrl, TcpOptions, Tls, inspect};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage, SimpleQueryRow};

use crate::support;
use computed::{FEATURES, MORE_FEATURES};
use generator::Generator;
use kinds::columns;

mod computed;
mod directed;
mod generator;
mod kinds;

/// What the clauses and the rows follow from, unless another one is given.
const SEED: u64 = 20_261_120;
/// Clauses that both sides have to decide.
const CASES: usize = 20_000;
const ROWS: usize = 40;
/// Clauses that Postgres decides in one query, unless one of them fails.
const BATCH: usize = 25;
/// How often every operator and function has to occur.
const USES_MIN: usize = 50;
/// As `server_version_num` spells it.
const FIRST_WITH_INFINITE_INTERVALS: &str = "170000";

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("Postgres answers");
    tokio::spawn(connection);
    // Contract 3.1: what the stream and the snapshots run with.
    client
        .batch_execute(
            "SET bytea_output = 'hex'; SET DateStyle = 'ISO, DMY'; SET TimeZone = 'UTC'; SET extra_float_digits = 1; \
             SET IntervalStyle = 'iso_8601'; SET client_min_messages = 'warning'",
        )
        .await
        .expect("settings are taken");
    client
}

async fn fill(client: &Client, random: &mut StdRng) {
    let mut ddl = String::from(
        "DROP TABLE IF EXISTS filter_rows; DROP TYPE IF EXISTS mood; CREATE TYPE mood AS ENUM ('sad', 'ok', 'Ünhappy'); \
         DROP DOMAIN IF EXISTS pos; CREATE DOMAIN pos AS int4; \
         CREATE TABLE filter_rows (row_number int PRIMARY KEY",
    );
    for (name, kind) in columns() {
        let ty = match (name, kind.ty) {
            ("dm", _) => "pos",
            (_, "bpchar") => "char(5)",
            (_, ty) => ty,
        };
        write!(ddl, ", {name} {ty}").expect("a String takes it");
    }
    ddl.push_str(
        "); CREATE OR REPLACE FUNCTION filter_try(clause text, number int) RETURNS text LANGUAGE plpgsql AS $f$ \
         DECLARE result text; BEGIN EXECUTE format('SELECT (%s) FROM filter_rows WHERE row_number = %s', clause, number) \
         INTO result; RETURN coalesce(result, 'null'); EXCEPTION WHEN OTHERS THEN RETURN 'error'; END $f$;",
    );
    client.batch_execute(&ddl).await.expect("the table is made");
    for number in 0..ROWS {
        let values: Vec<String> = columns()
            .map(|(_, kind)| match random.random_ratio(20, 100) {
                true => "NULL".to_owned(),
                false => format!("'{}'", kind.values.choose(random).expect("a value").replace('\'', "''")),
            })
            .collect();
        let insert = format!("INSERT INTO filter_rows VALUES ({number}, {})", values.join(", "));
        client.batch_execute(&insert).await.expect("the row fits");
    }
}

/// As the service sees it.
async fn relation(url: &str) -> (Relation, WireRelation) {
    let url = DatabaseUrl::parse(url).expect("a database URL");
    let options = ConnectOptions { tls: Tls::unverified().expect("TLS"), tcp: TcpOptions::default() };
    let client = shapefold::postgres::connect(&url, &options).await.expect("a connection");
    let name = RelationName { schema: "public".to_owned(), table: "filter_rows".to_owned() };
    let relation = inspect(&client, &name).await.expect("the catalog answers").expect("the table is there");
    let columns = relation
        .columns
        .iter()
        .map(|column| WireColumn {
            name: column.name.clone(),
            type_oid: column.type_oid,
            type_modifier: -1,
            in_identity: true,
        })
        .collect();
    let wire = WireRelation { oid: relation.oid, name, replica_identity: 'f', columns };
    (relation, wire)
}

async fn rows(client: &Client, sql: &str) -> Result<Vec<SimpleQueryRow>, tokio_postgres::Error> {
    let messages = client.simple_query(sql).await?;
    Ok(messages
        .into_iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        })
        .collect())
}

fn shown(text: Option<&str>) -> &'static str {
    match text {
        None => "null",
        Some("t" | "true") => "t",
        Some("f" | "false") => "f",
        Some("null") => "null",
        Some(_) => "error",
    }
}

/// By clause and row: `t`, `f`, `null` or `error`.
async fn ask_postgres(client: &Client, clauses: &[String]) -> Vec<Vec<&'static str>> {
    let list: Vec<String> = clauses.iter().map(|clause| format!("({clause})")).collect();
    let sql = format!("SELECT {} FROM filter_rows ORDER BY row_number", list.join(", "));
    if let Ok(rows) = rows(client, &sql).await {
        return (0..clauses.len()).map(|at| rows.iter().map(|row| shown(row.get(at))).collect()).collect();
    }
    let mut answers = Vec::with_capacity(clauses.len());
    for clause in clauses {
        answers.push(ask_alone(client, clause).await);
    }
    answers
}

async fn ask_alone(client: &Client, clause: &str) -> Vec<&'static str> {
    if let Ok(rows) = rows(client, &format!("SELECT ({clause}) FROM filter_rows ORDER BY row_number")).await {
        return rows.iter().map(|row| shown(row.get(0))).collect();
    }
    // Some rows fail; the clause itself must not, unless a part of it is constant once simplified.
    if let Err(error) = rows(client, &format!("SELECT ({clause}) FROM filter_rows WHERE false")).await {
        let data = error.code().is_some_and(|code| code.code().starts_with("22"));
        assert!(data, "Postgres refuses {clause}: {error:?}");
    }
    let literal = clause.replace('\\', "\\\\").replace('\'', "''");
    let sql = format!("SELECT filter_try(E'{literal}', row_number) FROM filter_rows ORDER BY row_number");
    let rows = rows(client, &sql).await.expect("the function catches errors");
    rows.iter().map(|row| shown(row.get(0))).collect()
}

fn ask_us(predicate: &Predicate, wire: &WireRelation, tuples: &[Tuple]) -> Vec<&'static str> {
    tuples
        .iter()
        .map(|tuple| match predicate.decide(wire, tuple) {
            Some(Some(true)) => "t",
            Some(Some(false)) => "f",
            Some(None) => "null",
            None => "error",
        })
        .collect()
}

/// The rows as the stream would send them: the simple protocol, too, gives the text of the output
/// functions.
async fn tuples(client: &Client) -> Vec<Tuple> {
    let rows = rows(client, "SELECT * FROM filter_rows ORDER BY row_number").await.expect("rows are read");
    rows.iter()
        .map(|row| {
            let cells: Vec<Value<'_>> = (0..row.len())
                .map(|i| row.get(i).map_or(Value::Null, |text| Value::Text(text.as_bytes())))
                .collect();
            Tuple::from_values(&cells)
        })
        .collect()
}

/// Postgres reads dates and times in spellings that we do not: a row with such a text counts as not
/// decodable here. Literals in them are refused, so it takes a cast of a text column.
fn is_cast_to_datetime(clause: &str) -> bool {
    ["::time", "::date", "::interval"].iter().any(|cast| clause.contains(cast))
}

/// A clause that both sides decide.
struct Case {
    clause: String,
    /// What Postgres is asked: the canonical SQL, or the clause as it was written.
    text: String,
    /// Whether we may fail where Postgres does not.
    lenient: bool,
    ours: Vec<&'static str>,
}

/// The index finds those shapes that plain evaluation finds, and forgets what is taken out.
fn check_index(wire: &Arc<WireRelation>, tuples: &[Tuple], predicates: &mut Vec<Predicate>) {
    let mut index = ShapeIndex::new();
    index.announce(wire);
    let sids: Vec<Sid> = (1..).map(Sid).take(predicates.len()).collect();
    for (sid, predicate) in sids.iter().zip(&*predicates) {
        index.insert(*sid, wire.oid, Some(predicate.clone()));
    }
    for gone in [0, 1] {
        for tuple in tuples {
            let change = Change::Insert { op: 0, relation: Arc::clone(wire), new: tuple.clone() };
            let mut moves = Vec::new();
            index.route(&change, &mut moves).expect("the relation is known");
            let shapes = sids.iter().zip(&*predicates).skip(gone);
            let holding = shapes.filter(|(_, predicate)| predicate.accepts(wire, tuple) == Some(true));
            let plain: Vec<(Sid, RowMove)> = holding.map(|(sid, _)| (*sid, RowMove::Insert)).collect();
            let clauses: Vec<&str> = predicates.iter().map(Predicate::sql).collect();
            assert_eq!(moves, plain, "{clauses:?}");
        }
        index.remove(Sid(1));
    }
    sids.iter().for_each(|sid| {
        index.remove(*sid);
    });
    assert!(index.is_empty());
    predicates.clear();
}

/// Left out where the database folds case in another way.
fn folds_case(operation: &str) -> bool {
    operation.contains("ILIKE") || operation == "upper()" || operation == "lower()"
}

/// What a run has met.
#[derive(Default)]
struct Tally {
    values: usize,
    errors: usize,
    gaps: usize,
    differences: Vec<String>,
}

impl Tally {
    async fn compare(&mut self, client: &Client, batch: &mut Vec<Case>) {
        let texts: Vec<String> = batch.iter().map(|case| case.text.clone()).collect();
        let answers = ask_postgres(client, &texts).await;
        for (case, theirs) in batch.drain(..).zip(answers) {
            assert_eq!(theirs.len(), case.ours.len());
            for (number, (ours, theirs)) in case.ours.iter().zip(&theirs).enumerate() {
                self.values += 1;
                self.errors += usize::from(*theirs == "error");
                // Where Postgres fails on a row the snapshot fails as a whole: there is no answer to
                // agree with. The other way round is a difference.
                let gap = *ours == "error" && case.lenient;
                self.gaps += usize::from(gap && ours != theirs);
                if ours != theirs && *theirs != "error" && !gap {
                    let Case { clause, text, .. } = &case;
                    self.differences
                        .push(format!("row {number}: we say {ours}, Postgres {theirs}: {text}  <- {clause}"));
                    break;
                }
            }
        }
    }
}

#[tokio::test]
async fn clauses_mean_the_same_here_and_in_postgres() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seed = number("SHAPEFOLD_FILTER_SEED").unwrap_or(SEED);
    let cases =
        number("SHAPEFOLD_FILTER_CASES").map_or(CASES, |cases| usize::try_from(cases).expect("a count"));
    println!("SHAPEFOLD_FILTER_SEED={seed}");
    let database = support::database("filter").await;
    // Case is folded as C libraries fold it in UTF-8; the server itself has the locale C.
    let name = format!("{}_utf8", database.name);
    database.execute(&format!("CREATE DATABASE {name} TEMPLATE template0 LOCALE 'C.UTF-8'")).await;
    let url = format!("{}_utf8", database.url);
    let client = connect(&url).await;
    let random = StdRng::seed_from_u64(seed);
    let operations: Vec<String> = native_operations().into_iter().collect();
    let mut performed: BTreeMap<String, usize> = operations.iter().map(|name| (name.clone(), 0)).collect();
    let mut generator =
        Generator { random, params: Vec::new(), ilike: true, used: Vec::new(), fuel: 0, operations };
    fill(&client, &mut generator.random).await;
    let version = rows(&client, "SELECT current_setting('server_version_num')").await.expect("an answer");
    if version[0].get(0).is_some_and(|version| version >= FIRST_WITH_INFINITE_INTERVALS) {
        let sql = "UPDATE filter_rows SET iv = 'infinity' WHERE row_number % 5 = 1;
                   UPDATE filter_rows SET iv2 = '-infinity' WHERE row_number % 7 = 2";
        client.batch_execute(sql).await.expect("rows are changed");
    }
    let (relation, wire) = relation(&url).await;
    let tuples = tuples(&client).await;

    // An older server may not have the locale under that name.
    let folds = rows(&client, "SELECT 'É' ILIKE 'é' AND 'İ' ILIKE 'i'").await.expect("an answer");
    generator.ilike = folds[0].get(0) == Some("t");
    if !generator.ilike {
        println!("ILIKE is left out: the database does not have a UTF-8 locale of the C library");
    }
    let (mut decided, mut refused) = (0, BTreeMap::<String, usize>::new());
    let mut uses = BTreeMap::<&str, usize>::new();
    let mut tally = Tally::default();
    let (mut batch, mut predicates) = (Vec::new(), Vec::new());
    let wire = Arc::new(wire);
    loop {
        generator.params.clear();
        generator.used.clear();
        // In the end what has been rare so far.
        let rarest = performed.iter().filter(|(name, _)| generator.ilike || !folds_case(name));
        let rarest = rarest.min_by_key(|(_, count)| **count).map(|(name, count)| (name.clone(), *count));
        let clause = match rarest {
            _ if decided < cases => generator.clause(2),
            Some((name, count)) if count < USES_MIN && cases >= CASES => generator.directed(&name),
            _ => break,
        };
        assert!(decided < cases * 2, "there is no end of it: {clause}");
        let params: BTreeMap<u32, String> = (1..).zip(generator.params.iter().cloned()).collect();
        let predicate = match Predicate::parse(&clause, &params, &relation) {
            Ok(predicate) => predicate,
            Err(error) => {
                let text = error.to_string();
                let reason = text.split_once(": ").map_or(&*text, |(_, reason)| reason);
                let short: String = reason.split_whitespace().take(3).collect::<Vec<_>>().join(" ");
                *refused.entry(short).or_default() += 1;
                continue;
            }
        };
        decided += 1;
        for operation in predicate.operations() {
            let count = performed.get_mut(&operation);
            *count.unwrap_or_else(|| panic!("{operation} is in no table of what is native: {clause}")) += 1;
        }
        for feature in &generator.used {
            *uses.entry(feature).or_default() += 1;
        }
        let again = Predicate::from_canonical(predicate.sql(), &relation)
            .unwrap_or_else(|error| panic!("{}: {error}", predicate.sql()));
        assert_eq!(again.sql(), predicate.sql());
        let ours = ask_us(&predicate, &wire, &tuples);
        assert_eq!(ours, ask_us(&again, &wire, &tuples), "{}", predicate.sql());
        // Postgres decides the one or the other. Output functions give no text there, arrays of a
        // domain have no operators, and GREATEST of texts folds case by another collation.
        let other = ["out(", "dm", "greatest(", "least("].iter().any(|word| clause.contains(word));
        let written = params.is_empty() && decided % 2 == 0 && !other;
        let text = if written { clause.clone() } else { predicate.sql().to_owned() };
        // Before version 17 the difference of timestamps wraps around instead of failing.
        let lenient = is_cast_to_datetime(&text) || generator.used.contains(&"timestamp - timestamp");
        batch.push(Case { clause, text, lenient, ours });
        predicates.push(predicate);
        if batch.len() == BATCH {
            check_index(&wire, &tuples, &mut predicates);
            tally.compare(&client, &mut batch).await;
        }
    }
    tally.compare(&client, &mut batch).await;
    drop(client);
    database.execute(&format!("DROP DATABASE {name} WITH (FORCE)")).await;
    println!(
        "{decided} clauses over {ROWS} rows: {} values compared, {} errors in Postgres, {} datetimes read only there; refused: {refused:?}",
        tally.values, tally.errors, tally.gaps
    );
    support::count("where clauses compared with Postgres", decided as u64, "clauses");
    let shown: Vec<&str> = tally.differences.iter().take(20).map(String::as_str).collect();
    assert!(shown.is_empty(), "{} clauses differ:\n{}", tally.differences.len(), shown.join("\n"));
    let folding = |feature: &str| feature.contains("ILIKE") || feature == "upper";
    let mut counts: Vec<(&str, usize)> = FEATURES
        .iter()
        .chain(MORE_FEATURES)
        .filter(|feature| generator.ilike || !folding(feature))
        .map(|feature| (*feature, uses.get(feature).copied().unwrap_or(0)))
        .collect();
    counts.sort_by_key(|(_, count)| *count);
    println!("rarest: {:?}", &counts[..12]);
    let rare: Vec<_> = counts.iter().filter(|(_, count)| *count < USES_MIN).collect();
    assert!(rare.is_empty() || cases < CASES, "of some operators there were too few: {rare:?}");
    let mut performed: Vec<(&String, &usize)> =
        performed.iter().filter(|(name, _)| generator.ilike || !folds_case(name)).collect();
    performed.sort_by_key(|(_, count)| **count);
    println!("{} native operations; rarest: {:?}", performed.len(), &performed[..12]);
    let rare: Vec<_> = performed.iter().filter(|(_, count)| **count < USES_MIN).collect();
    assert!(rare.is_empty() || cases < CASES, "of what is native there was too little: {rare:?}");
}
