//! Where clauses against Postgres: random clauses over rows of every type, each decided by us and by
//! `SELECT (clause)`, three-valued.
//!
//! `SHAPEFOLD_FILTER_SEED` replays a run, `SHAPEFOLD_FILTER_CASES` makes it longer.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use shapefold::domain::{Column, Oid, Relation, RelationName, Tuple, Value, WireColumn, WireRelation};
use shapefold::filter::Predicate;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage, SimpleQueryRow};

use crate::support;
use generator::{Generator, columns};

mod generator;

/// Clauses that both sides have to decide.
const CASES: usize = 3_000;
const ROWS: usize = 80;

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
         CREATE TABLE filter_rows (row_number int PRIMARY KEY",
    );
    for (name, kind) in columns() {
        let ty = if kind.ty == "bpchar" { "char(5)" } else { kind.ty };
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

async fn relation(client: &Client) -> (Relation, WireRelation) {
    let name = RelationName { schema: "public".to_owned(), table: "filter_rows".to_owned() };
    let rows = client
        .query(
            "SELECT a.attname::text, t.oid, t.typname::text, t.typtype::text, a.attrelid FROM pg_attribute a \
             JOIN pg_type t ON t.oid = a.atttypid WHERE a.attrelid = 'filter_rows'::regclass AND a.attnum > 0 ORDER BY a.attnum",
            &[],
        )
        .await
        .expect("the catalog answers");
    let oid = Oid(rows[0].get(4));
    let columns: Vec<Column> = rows
        .iter()
        .map(|row| Column {
            name: row.get(0),
            type_oid: Oid(row.get(1)),
            type_name: row.get(2),
            element_oid: Oid(0),
            type_modifier: -1,
            dimensions: 0,
            not_null: false,
            pk_position: None,
            generated: false,
            type_kind: row.get::<_, String>(3).chars().next().expect("a kind"),
        })
        .collect();
    let wire_columns = columns
        .iter()
        .map(|column| WireColumn {
            name: column.name.clone(),
            type_oid: column.type_oid,
            type_modifier: -1,
            in_identity: true,
        })
        .collect();
    let wire = WireRelation { oid, name: name.clone(), replica_identity: 'f', columns: wire_columns };
    (Relation { oid, name, columns, partitioned: false }, wire)
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

/// `t`, `f`, `null` or, per row, `error`.
async fn ask_postgres(client: &Client, clause: &str) -> Vec<String> {
    if let Ok(rows) = rows(client, &format!("SELECT ({clause}) FROM filter_rows ORDER BY row_number")).await {
        return rows.iter().map(|row| row.get(0).unwrap_or("null").to_owned()).collect();
    }
    // Some rows fail; the clause itself must not.
    rows(client, &format!("SELECT ({clause}) FROM filter_rows WHERE false")).await.unwrap_or_else(|error| {
        panic!("Postgres refuses {clause}: {error:?}");
    });
    let literal = clause.replace('\\', "\\\\").replace('\'', "''");
    let sql = format!("SELECT filter_try(E'{literal}', row_number) FROM filter_rows ORDER BY row_number");
    let rows = rows(client, &sql).await.expect("the function catches errors");
    rows.iter()
        .map(|row| match row.get(0) {
            Some("true") => "t".to_owned(),
            Some("false") => "f".to_owned(),
            other => other.expect("never null").to_owned(),
        })
        .collect()
}

fn ask_us(
    clause: &str,
    params: &BTreeMap<u32, String>,
    relation: &Relation,
    wire: &WireRelation,
    tuples: &[Tuple],
) -> Vec<&'static str> {
    let holds = Predicate::parse(clause, params, relation).expect("the clause was accepted before");
    let unknown =
        Predicate::parse(&format!("({clause}) IS UNKNOWN"), params, relation).expect("so is a test of it");
    tuples
        .iter()
        .map(|tuple| match (holds.accepts(wire, tuple), unknown.accepts(wire, tuple)) {
            (Some(true), Some(false)) => "t",
            (Some(false), Some(false)) => "f",
            (Some(false), Some(true)) => "null",
            (None, None) => "error",
            other => panic!("{clause}: {other:?}"),
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
    ["::time", "::date"].iter().any(|cast| clause.contains(cast))
}

#[tokio::test]
async fn clauses_mean_the_same_here_and_in_postgres() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seed = number("SHAPEFOLD_FILTER_SEED").unwrap_or_else(|| rand::rng().random());
    let cases =
        number("SHAPEFOLD_FILTER_CASES").map_or(CASES, |cases| usize::try_from(cases).expect("a count"));
    println!("SHAPEFOLD_FILTER_SEED={seed}");
    let database = support::database("filter").await;
    let client = connect(&database.url).await;
    let mut generator = Generator { random: StdRng::seed_from_u64(seed), params: Vec::new(), ilike: true };
    fill(&client, &mut generator.random).await;
    let (relation, wire) = relation(&client).await;
    let tuples = tuples(&client).await;

    // Databases fold case by their locale; the clauses do so as C libraries do in UTF-8.
    let folds = rows(&client, "SELECT 'É' ILIKE 'é' AND 'İ' ILIKE 'i'").await.expect("an answer");
    generator.ilike = folds[0].get(0) == Some("t");
    if !generator.ilike {
        println!("ILIKE is left out: the database does not have a UTF-8 locale of the C library");
    }
    // Under another collation the clause as written orders text in another way than its canonical SQL.
    let bytewise = rows(&client, "SELECT 'a' > 'B', 'a-b' < 'aa'").await.expect("an answer");
    let bytewise = bytewise[0].get(0) == Some("t") && bytewise[0].get(1) == Some("t");
    let (mut decided, mut refused) = (0, BTreeMap::<String, usize>::new());
    let (mut values, mut errors, mut gaps) = (0usize, 0usize, 0usize);
    let mut differences = Vec::new();
    while decided < cases {
        generator.params.clear();
        let clause = generator.clause(3);
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
        let ours = ask_us(&clause, &params, &relation, &wire, &tuples);
        let mut texts = vec![predicate.sql()];
        if params.is_empty() && bytewise {
            texts.push(&clause);
        }
        for text in texts {
            let theirs = ask_postgres(&client, text).await;
            assert_eq!(theirs.len(), ours.len());
            for (number, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
                values += 1;
                errors += usize::from(theirs == "error");
                // Where Postgres fails on a row the snapshot fails as a whole: there is no answer to
                // agree with. The other way round is a difference.
                let gap = *ours == "error" && is_cast_to_datetime(text);
                gaps += usize::from(gap && ours != theirs);
                if ours != theirs && theirs != "error" && !gap {
                    differences
                        .push(format!("row {number}: we say {ours}, Postgres {theirs}: {text}  <- {clause}"));
                    break;
                }
            }
        }
    }
    println!(
        "{decided} clauses over {ROWS} rows: {values} values compared, {errors} errors in Postgres, {gaps} datetimes read only there; refused: {refused:?}"
    );
    let shown: Vec<&str> = differences.iter().take(20).map(String::as_str).collect();
    assert!(differences.is_empty(), "{} clauses differ:\n{}", differences.len(), shown.join("\n"));
}
