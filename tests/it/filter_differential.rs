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

/// Clauses that both sides have to decide.
const CASES: usize = 3_000;
const ROWS: usize = 80;

/// Columns of one type, and texts that its input function takes.
struct Kind {
    ty: &'static str,
    columns: &'static [&'static str],
    values: &'static [&'static str],
    family: Family,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Number,
    Text,
    Bool,
    Uuid,
    Day,
    Time,
    Instant,
    Enum,
}

const KINDS: [Kind; 16] = [
    Kind {
        ty: "int4",
        columns: &["i4", "j4"],
        values: &["0", "1", "-1", "2", "7", "2147483647", "-2147483648"],
        family: Family::Number,
    },
    Kind {
        ty: "int2",
        columns: &["i2"],
        values: &["0", "1", "-1", "2", "32767", "-32768"],
        family: Family::Number,
    },
    Kind {
        ty: "int8",
        columns: &["i8"],
        values: &[
            "0",
            "1",
            "-1",
            "2",
            "2147483648",
            "9007199254740993",
            "9223372036854775807",
            "-9223372036854775808",
        ],
        family: Family::Number,
    },
    Kind {
        ty: "float4",
        columns: &["f4"],
        values: &[
            "0",
            "-0",
            "1",
            "0.1",
            "-1.5",
            "NaN",
            "Infinity",
            "-Infinity",
            "3.4e38",
            "1e-40",
            "16777217",
            "1e6",
            "123456.7",
        ],
        family: Family::Number,
    },
    Kind {
        ty: "float8",
        columns: &["f8"],
        values: &[
            "0",
            "-0",
            "1",
            "0.1",
            "-1.5",
            "NaN",
            "Infinity",
            "-Infinity",
            "1e300",
            "5e-324",
            "9007199254740992",
            "1e15",
            "0.00001",
            "0.0001",
        ],
        family: Family::Number,
    },
    Kind {
        ty: "numeric",
        columns: &["n", "n2"],
        values: &[
            "0",
            "1",
            "1.0",
            "1.00",
            "0.1",
            "-1.5",
            "NaN",
            "Infinity",
            "-Infinity",
            "12345678901234567890.12345678900",
            "0.00000000000000000001",
            "9007199254740993",
            "-0.50",
            "1e30",
        ],
        family: Family::Number,
    },
    Kind {
        ty: "text",
        columns: &["t", "t2"],
        values: &[
            "",
            "a",
            "A",
            "b",
            "ab",
            "aB",
            "a ",
            " a",
            "é",
            "É",
            "éa",
            "日本",
            "a\nb",
            "50%",
            "a_b",
            "a\\b",
            "%",
            "\\",
            "İ",
            "ß",
            "ẞ",
            "Σ",
            "1",
            "-5",
            " 7 ",
            "true",
            "off",
            "NaN",
            "1e3",
            "2024-01-31",
            "10:00",
            "it's",
            "zzz",
            "\u{10348}",
            "\u{fffd}",
        ],
        family: Family::Text,
    },
    Kind {
        ty: "varchar",
        columns: &["v"],
        values: &["", "a", "a ", "A", "ab", "é", "a_b", "1", "zzz"],
        family: Family::Text,
    },
    Kind {
        ty: "bpchar",
        columns: &["c"],
        values: &["", "a", "a  ", "A", "ab", "é", "abcde", " a", "a\t"],
        family: Family::Text,
    },
    Kind {
        ty: "name",
        columns: &["nm"],
        values: &["", "a", "A", "ab", "é", "zzz", "1"],
        family: Family::Text,
    },
    Kind { ty: "bool", columns: &["b", "b2"], values: &["t", "f", "true", "false"], family: Family::Bool },
    Kind {
        ty: "uuid",
        columns: &["u", "u2"],
        values: &[
            "00000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            "{A0EEBC99-9c0b4ef8bb6d6bb9bd380a12}",
        ],
        family: Family::Uuid,
    },
    Kind {
        ty: "date",
        columns: &["d"],
        values: &[
            "2000-01-01",
            "2024-02-29",
            "1999-12-31",
            "0044-03-15 BC",
            "infinity",
            "-infinity",
            "5874897-12-31",
            "4714-11-24 BC",
            "10000-01-01",
            "epoch",
        ],
        family: Family::Day,
    },
    Kind {
        ty: "time",
        columns: &["tm"],
        values: &["00:00:00", "24:00:00", "12:34:56.789", "12:34:56.7890001", "23:59:59.999999", "10:00"],
        family: Family::Time,
    },
    Kind {
        ty: "timestamp",
        columns: &["ts"],
        values: &[
            "2000-01-01 00:00:00",
            "2024-02-29T12:34:56.789",
            "2024-02-29 00:00:00",
            "0044-03-15 01:02:03 BC",
            "infinity",
            "-infinity",
            "294276-12-31 23:59:59.999999",
            "4714-11-24 00:00:00 BC",
            "2024-02-29 12:34:56Z",
            "epoch",
            "2024-02-29",
        ],
        family: Family::Day,
    },
    Kind {
        ty: "timestamptz",
        columns: &["tz"],
        values: &[
            "2000-01-01 00:00:00+00",
            "2024-02-29 12:34:56.789+02",
            "2024-02-29 12:34:56-05:30",
            "infinity",
            "-infinity",
            "0044-03-15 01:02:03+00 BC",
            "294276-12-31 23:59:59.999999+00",
            "2024-02-29 10:34:56.789Z",
            "2024-02-29",
        ],
        family: Family::Instant,
    },
];

const ENUM: Kind =
    Kind { ty: "mood", columns: &["m", "m2"], values: &["sad", "ok", "Ünhappy"], family: Family::Enum };

struct Generator {
    random: StdRng,
    params: Vec<String>,
}

impl Generator {
    fn pick<'a, T: ?Sized>(&mut self, choices: &[&'a T]) -> &'a T {
        choices.choose(&mut self.random).expect("there are choices")
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.random.random_ratio(percent, 100)
    }

    fn kind(&mut self) -> &'static Kind {
        KINDS.choose(&mut self.random).expect("there are kinds")
    }

    fn quoted(&mut self, kind: &Kind) -> String {
        let value = self.pick(kind.values);
        // Only canonical SQL is compared for clauses with parameters, so they are not the rule.
        if self.chance(10) {
            self.params.push(value.to_owned());
            return format!("${}", self.params.len());
        }
        format!("'{}'", value.replace('\'', "''"))
    }

    /// An operand of a kind: a column more often than not.
    fn operand(&mut self, kind: &Kind) -> String {
        match self.random.random_range(0..12) {
            0..=5 => self.pick(kind.columns).to_owned(),
            6 | 7 => self.quoted(kind),
            8 if !matches!(kind.ty, "numeric" | "bpchar" | "name" | "mood") => {
                let value = self.pick(kind.values);
                format!("'{}'::{}", value.replace('\'', "''"), kind.ty)
            }
            8 | 9 if kind.family == Family::Number => self
                .pick(&[
                    "0",
                    "1",
                    "-1",
                    "0.1",
                    "-1.5",
                    "1.0",
                    "3000000000",
                    "1e3",
                    "9007199254740993",
                    "1e-3",
                ])
                .to_owned(),
            9 if kind.family == Family::Bool => self.pick(&["true", "false"]).to_owned(),
            9 => "NULL".to_owned(),
            10 => self.cast(kind),
            _ => self.pick(kind.columns).to_owned(),
        }
    }

    /// Another kind, cast to this one.
    fn cast(&mut self, kind: &Kind) -> String {
        let from = self.kind();
        if kind.ty == "text" && self.chance(10) {
            return format!("{}::text", self.pick(ENUM.columns));
        }
        let column = self.pick(from.columns);
        if self.chance(15) {
            let through = self.kind().ty;
            return format!("{column}::{through}::{}", kind.ty);
        }
        format!("{column}::{}", kind.ty)
    }

    /// A kind that this one may be compared with.
    fn partner(&mut self, kind: &'static Kind) -> &'static Kind {
        let partners: Vec<&Kind> = KINDS.iter().filter(|other| other.family == kind.family).collect();
        if self.chance(50) { kind } else { self.pick(&partners) }
    }

    fn leaf(&mut self) -> String {
        let kind = if self.chance(3) { &ENUM } else { self.kind() };
        let other = if kind.family == Family::Enum { kind } else { self.partner(kind) };
        let left = self.operand(kind);
        match self.random.random_range(0..11) {
            0..=3 => {
                let op = self.pick(&["=", "<>", "!=", "<", "<=", ">", ">="]);
                format!("{left} {op} {}", self.operand(other))
            }
            4 => {
                let op = self.pick(&["IS DISTINCT FROM", "IS NOT DISTINCT FROM"]);
                format!("{left} {op} {}", self.operand(other))
            }
            5 | 6 => {
                let list: Vec<String> =
                    (0..self.random.random_range(1..5)).map(|_| self.operand(other)).collect();
                let op = self.pick(&["IN", "NOT IN"]);
                format!("{left} {op} ({})", list.join(", "))
            }
            7 => {
                let op = self.pick(&["BETWEEN", "NOT BETWEEN", "BETWEEN SYMMETRIC", "NOT BETWEEN SYMMETRIC"]);
                format!("{left} {op} {} AND {}", self.operand(other), self.operand(kind))
            }
            8 => {
                let text = KINDS.iter().find(|kind| kind.ty == "text").expect("text is a kind");
                let text = self.partner(text);
                let (left, op) = (self.operand(text), self.pick(&["LIKE", "NOT LIKE", "ILIKE", "NOT ILIKE"]));
                let pattern = match self.random.random_range(0..4) {
                    0 => self.operand(text),
                    _ => self
                        .pick(&[
                            "'%'", "'a%'", "'%A'", "'_'", "'__'", "'%b%'", "'a_b'", "'a\\_b'", "'50\\%'",
                            "'%\\%'", "'É%'", "'ß'", "'a\\\\b'", "''", "'%_%'", "'σ'", "'i'", "'_ '",
                            "'日_'",
                        ])
                        .to_owned(),
                };
                format!("{left} {op} {pattern}")
            }
            9 => format!("{left} {}", self.pick(&["IS NULL", "IS NOT NULL"])),
            _ => {
                let bools = KINDS.iter().find(|kind| kind.ty == "bool").expect("bool is a kind");
                let test = self.pick(&[
                    "",
                    "IS TRUE",
                    "IS NOT TRUE",
                    "IS FALSE",
                    "IS NOT FALSE",
                    "IS UNKNOWN",
                    "IS NOT UNKNOWN",
                ]);
                format!("{} {test}", self.operand(bools))
            }
        }
    }

    fn clause(&mut self, depth: u32) -> String {
        if depth == 0 || self.chance(45) {
            return self.leaf();
        }
        match self.random.random_range(0..6) {
            0 | 1 => format!("({}) AND ({})", self.clause(depth - 1), self.clause(depth - 1)),
            2 | 3 => format!("({}) OR ({})", self.clause(depth - 1), self.clause(depth - 1)),
            4 => format!("NOT ({})", self.clause(depth - 1)),
            _ => format!("({}) = ({})", self.clause(depth - 1), self.clause(depth - 1)),
        }
    }
}

fn columns() -> impl Iterator<Item = (&'static str, &'static Kind)> {
    static ENUM_KIND: &Kind = &ENUM;
    KINDS
        .iter()
        .chain(std::iter::once(ENUM_KIND))
        .flat_map(|kind| kind.columns.iter().map(move |name| (*name, kind)))
}

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

#[tokio::test]
async fn clauses_mean_the_same_here_and_in_postgres() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seed = number("SHAPEFOLD_FILTER_SEED").unwrap_or_else(|| rand::rng().random());
    let cases =
        number("SHAPEFOLD_FILTER_CASES").map_or(CASES, |cases| usize::try_from(cases).expect("a count"));
    println!("SHAPEFOLD_FILTER_SEED={seed}");
    let database = support::database("filter").await;
    let client = connect(&database.url).await;
    let mut generator = Generator { random: StdRng::seed_from_u64(seed), params: Vec::new() };
    fill(&client, &mut generator.random).await;
    let (relation, wire) = relation(&client).await;
    // The simple protocol gives the text of the output functions, as the stream does.
    let tuples: Vec<Tuple> = rows(&client, "SELECT * FROM filter_rows ORDER BY row_number")
        .await
        .expect("rows are read")
        .iter()
        .map(|row| {
            let cells: Vec<Value<'_>> = (0..row.len())
                .map(|i| row.get(i).map_or(Value::Null, |text| Value::Text(text.as_bytes())))
                .collect();
            Tuple::from_values(&cells)
        })
        .collect();

    let (mut decided, mut refused, mut values, mut errors) =
        (0, BTreeMap::<String, usize>::new(), 0usize, 0usize);
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
        if params.is_empty() {
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
                if ours != theirs && theirs != "error" {
                    differences
                        .push(format!("row {number}: we say {ours}, Postgres {theirs}: {text}  <- {clause}"));
                    break;
                }
            }
        }
    }
    println!(
        "{decided} clauses over {ROWS} rows: {values} values compared, {errors} of them errors; refused: {refused:?}"
    );
    let shown: Vec<&str> = differences.iter().take(20).map(String::as_str).collect();
    assert!(differences.is_empty(), "{} clauses differ:\n{}", differences.len(), shown.join("\n"));
}
