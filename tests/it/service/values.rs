//! One form of every value, in rows and in keys, wherever it comes from: contract 3.1 to 3.4.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tokio_postgres::SimpleQueryMessage;

use super::until;
use crate::support::{Service, database, encode};

const TYPES: &str = "
CREATE TYPE mood AS ENUM ('so so', 'f\"i/ne', '');
CREATE TYPE pair AS (a int, b text);
CREATE TYPE nested AS (p pair, many pair[], m mood);
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE DOMAIN yes_no AS bool;
CREATE DOMAIN words AS text[];
CREATE TYPE textrange AS RANGE (subtype = text, collation = \"C\")";

/// Type, and expressions for its values. Every one is also tried as NULL and as part of the key.
const VALUES: &[(&str, &[&str])] = &[
    ("bool", &["true", "false"]),
    ("yes_no", &["true", "false"]),
    ("int2", &["0", "-32768", "32767"]),
    ("int4", &["-2147483648", "2147483647"]),
    ("int8", &["-9223372036854775808", "9223372036854775807"]),
    ("oid", &["0", "4294967295"]),
    ("positive", &["1"]),
    ("numeric", &["'NaN'", "'Infinity'", "'-Infinity'", "0", "-0.00", "1e-20", "1e50", "12.3400"]),
    ("numeric(10,4)", &["12.34", "-0.00001"]),
    ("numeric(3,0)", &["999"]),
    ("float4", &["0.1", "1e20", "'NaN'", "'-Infinity'", "'-0'", "1.17549435e-38", "16777217"]),
    (
        "float8",
        &[
            "0.1::float8 + 0.2::float8",
            "1e22",
            "'NaN'",
            "'Infinity'",
            "'-0'",
            "5e-324",
            "1e-5",
            "123456789012345680",
        ],
    ),
    ("money", &["12.5::numeric::money", "'-0.01'", "'92233720368547758.07'"]),
    (
        "text",
        &[
            "''",
            r"E'tab\t line\n return\r \b\f\v \x01 \x7f'",
            r"'\N'",
            r"'\.'",
            r"'\\'",
            "'a/b//c'",
            "'\"q\"'",
            "'é 🐘 \u{2028} \u{feff}'",
            "'NULL'",
            "repeat('long ', 3000)",
            "' '",
        ],
    ),
    ("varchar(5)", &["'abc'", "'a    '", "''"]),
    ("char(5)", &["'ab'", "''", "'é'"]),
    ("\"char\"", &["'x'", "''"]),
    ("name", &["'some_name'", "''"]),
    ("uuid", &["'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'"]),
    ("bytea", &[r"'\x0001fffe'", "''", r"'\x5c22'"]),
    (
        "date",
        &["'2024-01-31'", "'0044-03-15 BC'", "'infinity'", "'-infinity'", "'5874897-12-31'", "'0001-01-01'"],
    ),
    ("time", &["'12:34:56.789'", "'24:00:00'", "'00:00:00'", "'23:59:59.999999'"]),
    ("time(2)", &["'12:34:56.789'"]),
    ("timetz", &["'12:34:56+02'", "'00:00:00-15:59:59'", "'12:00:00.5+00'"]),
    (
        "timestamp",
        &[
            "'2024-01-31 12:34:56.000001'",
            "'infinity'",
            "'-infinity'",
            "'4713-01-01 00:00:00 BC'",
            "'294276-12-31 23:59:59.999999'",
            "'2024-01-31 00:00:00'",
        ],
    ),
    ("timestamp(3)", &["'2024-01-31 12:34:56.123456'"]),
    (
        "timestamptz",
        &[
            "'2024-01-31 12:34:56+02'",
            "'0044-03-15 12:00:00+00 BC'",
            "'infinity'",
            "'1883-11-18 12:03:57.9-05'",
        ],
    ),
    (
        "interval",
        &[
            "'1 year 2 months 3 days 4 hours 5 minutes 6.789 seconds'",
            "'-1 day 3 hours'",
            "'0'",
            "'-1 year'",
            "'-0.5 seconds'",
            "'178000000 years'",
            "'1 month -1 day'",
        ],
    ),
    ("interval year to month", &["'14 months'"]),
    ("json", &[r#"E'{"a" : 1,\n "a":2}'"#, "'null'", "'\"\"'"]),
    ("jsonb", &[r#"'{"b":1,  "a":[1.0, null, 1e3]}'"#, "'null'", r#"'"\u00e9\u0001"'"#]),
    ("jsonpath", &["'$.a[*] ? (@ > 1)'"]),
    ("xml", &["'<a>b &amp; c</a>'", "''"]),
    (
        "int4[]",
        &[
            "'{1,2,NULL}'",
            "'{}'",
            "'{{1,2},{3,4}}'",
            "'[0:1]={1,2}'",
            "'[-1:0][2:3]={{1,2},{3,4}}'",
            "'{{{1}},{{2}}}'",
        ],
    ),
    ("text[]", &[r#"ARRAY['a,b', 'c"d', E'e\\f', NULL, 'NULL', '', ' ', '{}', E'\n']"#]),
    ("bool[]", &["'{t,f,NULL}'"]),
    ("bytea[]", &[r"ARRAY['\x00ff'::bytea, '']"]),
    ("timestamptz[]", &["'{2024-01-31 12:34:56+02,infinity}'"]),
    ("interval[]", &["'{1 day,-1 month}'"]),
    ("jsonb[]", &[r#"ARRAY['{"a": "x,y"}'::jsonb, '[]']"#]),
    ("char(3)[]", &["ARRAY['a'::char(3), 'b c']"]),
    ("mood", &["'so so'", "'f\"i/ne'", "''"]),
    ("mood[]", &["ARRAY['so so'::mood, 'f\"i/ne', '', NULL]"]),
    ("pair", &[r#"ROW(1, 'a"b,c')"#, "ROW(NULL, NULL)", "ROW(-1, '')", r"ROW(0, E'\\ (x)')"]),
    ("pair[]", &["ARRAY[ROW(1, 'a b')::pair, NULL]"]),
    ("nested", &["ROW(ROW(1, 'x,\"y')::pair, ARRAY[ROW(2, NULL)::pair], 'so so'::mood)"]),
    ("words", &["ARRAY['a', NULL]"]),
    ("positive[]", &["'{1,2}'"]),
    ("int4range", &["'[1,10)'", "'(,)'", "'empty'", "'[5,5]'"]),
    ("int8range", &["'(1,)'"]),
    ("numrange", &["'[1.50,2.0)'", "'(,NaN]'"]),
    ("daterange", &["'[2024-01-01,2024-02-01]'", "'[,infinity)'"]),
    ("tsrange", &["'[2024-01-01 12:00,)'"]),
    ("tstzrange", &["'[2024-01-31 00:00+01,)'"]),
    ("textrange", &["'[\"a,b\",\"c\"\"d\")'", "'[,\"\")'"]),
    ("int4multirange", &["'{[1,3),[5,7)}'", "'{}'"]),
    ("tstzmultirange", &["'{[2024-01-31 00:00+01,2024-02-01 00:00+01)}'"]),
    ("int4range[]", &["ARRAY['[1,2)'::int4range, 'empty']"]),
    ("point", &["'(1.1,-2.2)'", "'(0.1,1e300)'", "'(NaN,Infinity)'"]),
    ("box", &["'(3,4),(1,2)'"]),
    ("box[]", &["'{(3,4),(1,2);(1,1),(0,0)}'"]),
    ("path", &["'[(0,0),(1,1)]'", "'((0,0),(1,1))'"]),
    ("circle", &["'<(0,0),1.5>'"]),
    ("line", &["'{1,2,3}'"]),
    ("lseg", &["'[(0,0),(1,1)]'"]),
    ("polygon", &["'((0,0),(1,1),(1,0))'"]),
    (
        "inet",
        &[
            "'192.168.0.1/24'",
            "'10.0.0.1'",
            "'10.0.0.1/32'",
            "'::1'",
            "'2001:db8::1/64'",
            "'::ffff:1.2.3.4/128'",
        ],
    ),
    ("cidr", &["'10.0.0.0/8'", "'10.1.2.3/32'", "'2001:db8::/32'", "'::1/128'"]),
    ("macaddr", &["'08:00:2b:01:02:03'"]),
    ("macaddr8", &["'08:00:2b:01:02:03:04:05'"]),
    ("bit(3)", &["B'101'"]),
    ("bit", &["B'1'"]),
    ("varbit", &["B'10101'", "B''"]),
    ("tsvector", &["'a:1 fat:2A,3 \"c d\":4'", "''"]),
    ("tsquery", &["'fat & (rat | !cat) <-> dog:*A'"]),
    ("pg_lsn", &["'16/B374D848'", "'0/0'"]),
    ("pg_snapshot", &["'10:20:10,14,15'"]),
    ("txid_snapshot", &["'10:20:10,14,15'"]),
    ("xid", &["'42'"]),
    ("xid8", &["'18446744073709551615'"]),
    ("cid", &["'7'"]),
    ("tid", &["'(1,2)'"]),
    ("regclass", &["'pg_class'", "0"]),
    ("regtype", &["'int4'", "'mood'"]),
    ("regnamespace", &["'pg_catalog'"]),
    ("refcursor", &["'a cursor'"]),
    ("oidvector", &["'1 2 3'"]),
    ("int2vector", &["'1 2'"]),
];

/// The texts that Postgres has for the values, under the settings of the contract.
async fn texts(postgres: &tokio_postgres::Client, table: &str, kind: &str) -> BTreeSet<Option<String>> {
    let settings = "SET bytea_output = 'hex'; SET DateStyle = 'ISO, DMY'; SET TimeZone = 'UTC';
         SET extra_float_digits = 1; SET IntervalStyle = 'iso_8601'";
    postgres.batch_execute(settings).await.expect("settings");
    let rows = postgres.simple_query(&format!("SELECT v FROM {table}")).await.expect("the values");
    let boolean = ["bool", "yes_no"].contains(&kind);
    rows.iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row.get(0).map(|text| match text {
                "t" if boolean => "true".to_owned(),
                "f" if boolean => "false".to_owned(),
                text => text.to_owned(),
            })),
            _ => None,
        })
        .collect()
}

/// Key and value of all inserts, sorted.
fn inserts(messages: &[Value]) -> Vec<(String, String)> {
    let inserts = messages.iter().filter(|message| message["headers"]["operation"] == "insert");
    let mut found: Vec<_> =
        inserts.map(|message| (message["key"].to_string(), message["value"].to_string())).collect();
    found.sort();
    found
}

/// The key that the contract demands of a row of two columns without primary key.
fn key(table: &str, id: &str, value: Option<&str>) -> String {
    let value = value.map_or("_".to_owned(), |value| format!("\"{}\"", value.replace('/', "//")));
    Value::String(format!("\"public\".\"{table}\"/\"{id}\"/{value}")).to_string()
}

/// What the shape has after this offset, once there are so many messages about rows.
async fn after(service: &Service, table: &str, handle: &str, offset: &str, count: usize) -> Vec<Value> {
    until("the log has all messages", async || {
        let path = format!("/v1/shape?table={table}&replica=full&handle={handle}&offset={offset}");
        let answer = service.get(&path).await;
        let messages = answer.json().as_array().cloned().unwrap_or_default();
        (messages.iter().filter(|message| message["key"].is_string()).count() == count).then_some(messages)
    })
    .await
}

#[tokio::test]
async fn every_type_has_one_text_in_rows_keys_and_log() {
    let database = database("values").await;
    let mut sql = format!("{TYPES};");
    for (index, (kind, values)) in VALUES.iter().enumerate() {
        let rows: Vec<String> = values
            .iter()
            .chain(&["NULL"])
            .enumerate()
            .map(|(id, value)| format!("({id}, ({value})::{kind})"))
            .collect();
        sql.push_str(&format!(
            "CREATE TABLE v{index} (id int, v {kind}); INSERT INTO v{index} VALUES {};",
            rows.join(", ")
        ));
    }
    // What a database has set must not show.
    sql.push_str(&format!(
        "ALTER DATABASE {0} SET timezone = 'Asia/Tokyo'; ALTER DATABASE {0} SET datestyle = 'SQL, MDY';
         ALTER DATABASE {0} SET bytea_output = 'escape'; ALTER DATABASE {0} SET extra_float_digits = -3;
         ALTER DATABASE {0} SET intervalstyle = 'postgres_verbose'",
        database.name
    ));
    database.execute(&sql).await;
    let service = Service::start(&database, |_| {}).await;
    let postgres = database.client().await;
    for (index, (kind, values)) in VALUES.iter().enumerate() {
        let table = format!("v{index}");
        let rows = values.len() + 1;
        let answer = service.get(&format!("/v1/shape?table={table}&replica=full&offset=-1")).await;
        assert_eq!(answer.status, 200, "{kind}: {}", answer.text());
        let header = |name: &str| answer.header(name).expect("a header of every log").to_owned();
        let (handle, offset) = (header("electric-handle"), header("electric-offset"));
        let snapshot = inserts(answer.json().as_array().expect("messages"));
        assert_eq!(snapshot.len(), rows, "{kind}");

        // Against Postgres.
        let expected = texts(&postgres, &table, kind).await;
        let values: Vec<Value> =
            snapshot.iter().map(|(_, value)| serde_json::from_str(value).expect("JSON")).collect();
        let found: BTreeSet<Option<String>> =
            values.iter().map(|value| value["v"].as_str().map(str::to_owned)).collect();
        assert_eq!(found, expected, "{kind}");
        for ((found, _), value) in snapshot.iter().zip(&values) {
            let id = value["id"].as_str().expect("a number");
            assert_eq!(*found, key(&table, id, value["v"].as_str()), "{kind}");
        }

        // Inserted again, and moved by an update that does not touch the value.
        postgres
            .batch_execute(&format!(
                "BEGIN; CREATE TEMP TABLE copies ON COMMIT DROP AS SELECT * FROM {table}; DELETE FROM {table};
                 INSERT INTO {table} SELECT * FROM copies; COMMIT"
            ))
            .await
            .unwrap_or_else(|error| panic!("{kind}: {error:?}"));
        let log = after(&service, &table, &handle, &offset, 2 * rows).await;
        assert_eq!(inserts(&log), snapshot, "{kind}");
        let deleted: BTreeSet<String> = log
            .iter()
            .filter(|message| message["headers"]["operation"] == "delete")
            .map(|message| message["key"].to_string())
            .collect();
        assert_eq!(deleted, snapshot.iter().map(|(key, _)| key.clone()).collect(), "{kind}");
        postgres.batch_execute(&format!("UPDATE {table} SET id = id + 100")).await.expect("an update");
        let log = after(&service, &table, &handle, &offset, 4 * rows).await;
        let moved = &inserts(&log)[..];
        for value in &values {
            let id = value["id"].as_str().and_then(|id| id.parse::<u32>().ok()).expect("a number") + 100;
            let row = json!({ "id": id.to_string(), "v": value["v"] }).to_string();
            let expected = (key(&table, &id.to_string(), value["v"].as_str()), row);
            assert!(moved.contains(&expected), "{kind}: {expected:?}");
        }
    }
}

/// Names are quoted, folded and escaped in the same way everywhere.
#[tokio::test]
async fn names_are_what_they_are() {
    let database = database("names").await;
    let name = "\"My schema.é\".\"T/a\"\"b. 😀\"";
    database
        .execute(&format!(
            "CREATE SCHEMA \"My schema.é\"; CREATE TABLE {name} (\"Ключ/,\"\"\" text, \"select\" int, \"ü.\" text, PRIMARY KEY (\"select\", \"Ключ/,\"\"\"));
             INSERT INTO {name} VALUES ('a', 1, 'x')"
        ))
        .await;
    let service = Service::start(&database, |_| {}).await;
    let columns = "\"Ключ/,\"\"\",\"select\"";
    for query in [
        format!("table={}", encode(name)),
        format!("table={}&columns={}", encode(name), encode(columns)),
        format!("table={}&where={}", encode(name), encode("\"select\" > 0 AND \"Ключ/,\"\"\" <> 'z'")),
    ] {
        let path = format!("/v1/shape?{query}");
        let answer = service.get(&format!("{path}&offset=-1")).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let header = |name: &str| answer.header(name).expect("a header of every log").to_owned();
        let first = answer.json()[0].clone();
        let key = "\"My schema..é\".\"T//a\"b.. 😀\"";
        assert_eq!(first["key"], format!("{key}/\"1\"/\"a\""));
        assert_eq!(first["value"]["Ключ/,\""], "a");
        let schema: Value = serde_json::from_str(&header("electric-schema")).expect("JSON");
        assert_eq!(schema["Ключ/,\""]["pk_index"], 1);
        database.execute(&format!("INSERT INTO {name} VALUES ('b', 2, 'y')")).await;
        let live =
            format!("{path}&handle={}&offset={}", header("electric-handle"), header("electric-offset"));
        let inserted = until("the insert is there", async || {
            let messages = service.get(&live).await.json();
            messages[0]["key"].is_string().then(|| messages[0].clone())
        })
        .await;
        assert_eq!(inserted["key"], format!("{key}/\"2\"/\"b\""));
        assert_eq!(inserted["headers"]["relation"], json!(["My schema.é", "T/a\"b. 😀"]));
        database.execute(&format!("DELETE FROM {name} WHERE \"select\" = 2")).await;
    }
}

/// Contract 4.5: since Postgres 18 the stream brings those that are stored.
#[tokio::test]
async fn generated_columns_are_followed_where_postgres_sends_them() {
    let database = database("generated").await;
    let version: u32 = database
        .value("SELECT current_setting('server_version_num')")
        .await
        .and_then(|version| version.parse().ok())
        .expect("a version");
    database
        .execute(
            "CREATE TABLE items (id int PRIMARY KEY, n int, g int GENERATED ALWAYS AS (n * 2) STORED);
             INSERT INTO items VALUES (1, 1)",
        )
        .await;
    let service = Service::start(&database, |_| {}).await;
    let answer = service.get("/v1/shape?table=items&offset=-1").await;
    if version < 180_000 {
        assert_eq!(answer.status, 400, "{}", answer.text());
        let told = "The following columns are generated and cannot be included in the shape: g";
        assert_eq!(
            answer.json()["errors"]["columns"],
            json!([format!(
                "{told}. You can exclude them from the shape by explicitly listing which columns to fetch in the 'columns' query param"
            )])
        );
        let named = service.get("/v1/shape?table=items&columns=id,g&offset=-1").await;
        assert_eq!(named.json()["errors"]["columns"], json!([told]));
        let others = service.get("/v1/shape?table=items&columns=id,n&offset=-1").await;
        assert_eq!(others.status, 200, "{}", others.text());
        return;
    }
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()[0]["value"], json!({ "id": "1", "n": "1", "g": "2" }));
    let header = |name: &str| answer.header(name).expect("a header of every log").to_owned();
    database.execute("UPDATE items SET n = 5; INSERT INTO items VALUES (2, 7)").await;
    let path = format!(
        "/v1/shape?table=items&handle={}&offset={}",
        header("electric-handle"),
        header("electric-offset")
    );
    let log = until("the changes are there", async || {
        let messages = service.get(&path).await.json();
        (messages.as_array()?.len() == 3).then_some(messages)
    })
    .await;
    assert_eq!(log[0]["value"], json!({ "id": "1", "n": "5", "g": "10" }));
    assert_eq!(log[1]["value"], json!({ "id": "2", "n": "7", "g": "14" }));
    // What is not published would make Postgres refuse every update of the table.
    database
        .execute("CREATE TABLE seen (id int PRIMARY KEY, g int GENERATED ALWAYS AS (id * 2) VIRTUAL); INSERT INTO seen VALUES (1)")
        .await;
    let refused = service.get("/v1/shape?table=seen&columns=id&offset=-1").await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    database.execute("UPDATE seen SET id = 2").await;
    assert_eq!(service.get("/v1/shape?table=seen&offset=-1").await.status, 400);
    database
        .execute(&format!(
            "ALTER PUBLICATION electric_publication_{} SET (publish_generated_columns = none)",
            database.name
        ))
        .await;
    database
        .execute("CREATE TABLE late (id int PRIMARY KEY, g int GENERATED ALWAYS AS (id * 2) STORED)")
        .await;
    let refused = service.get("/v1/shape?table=late&offset=-1").await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert_eq!(
        refused.json()["message"],
        format!(
            "Publication \"electric_publication_{}\" does not publish generated columns. This is a feature introduced in PostgreSQL 18 and requires setting the publication parameter 'publish_generated_columns' to 'stored'. Alternatively, you can exclude them from the shape by explicitly listing which columns to fetch in the 'columns' query param.",
            database.name
        )
    );
}
