//! One text per value, wherever it comes from: contract 3.1.

use std::collections::BTreeMap;

use shapefold::domain::Change;

use crate::postgres::{Harness, text};

/// Type and an expression for its value; every family of built-in types.
const VALUES: &[(&str, &str)] = &[
    ("bool", "true"),
    ("int2", "-32768"),
    ("int4", "2147483647"),
    ("int8", "-9223372036854775808"),
    ("oid", "4294967295"),
    ("numeric", "'NaN'"),
    ("numeric(10,4)", "12.34"),
    ("numeric", "1e-20"),
    ("float4", "0.1"),
    ("float8", "0.1::float8 + 0.2::float8"),
    ("float8", "'-Infinity'"),
    ("float8", "1e20"),
    ("money", "12.5::numeric::money"),
    ("text", r"E'tab\t newline\n return\r backslash\\ \b\f\v quote'' \\N é 🐘'"),
    ("text", r"'\N'"),
    ("text", "''"),
    ("text", "NULL"),
    ("text", r"'\.'"),
    ("varchar(5)", "'abc'"),
    ("char(5)", "'ab'"),
    ("\"char\"", "'x'"),
    ("name", "'some_name'"),
    ("uuid", "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'"),
    ("bytea", r"'\x0001fffe'"),
    ("date", "'2024-01-31'"),
    ("date", "'0044-03-15 BC'"),
    ("date", "'infinity'"),
    ("time", "'12:34:56.789'"),
    ("timetz", "'12:34:56+02'"),
    ("timestamp", "'2024-01-31 12:34:56.000001'"),
    ("timestamptz", "'2024-01-31 12:34:56+02'"),
    ("interval", "'1 year 2 months 3 days 4 hours 5 minutes 6 seconds'"),
    ("interval", "'-1 day 3 hours'"),
    ("json", r#"E'{"a" : 1,\n "a":2}'"#),
    ("jsonb", r#"'{"b":1,  "a":[1.0, null]}'"#),
    ("jsonpath", "'$.a[*] ? (@ > 1)'"),
    ("xml", "'<a>b</a>'"),
    ("int4[]", "'{1,2,NULL}'"),
    ("text[]", r#"ARRAY['a,b', 'c"d', E'e\\f', NULL, 'NULL', '']"#),
    ("int4[]", "'{{1,2},{3,4}}'"),
    ("int4[]", "'[0:1]={1,2}'"),
    ("bool[]", "'{t,f}'"),
    ("timestamptz[]", "'{2024-01-31 12:34:56+02}'"),
    ("mood", "'so so'"),
    ("pair", r#"ROW(1, 'a"b,c')"#),
    ("positive", "7"),
    ("int4range", "'[1,10)'"),
    ("tstzrange", "'[2024-01-31 00:00+01,)'"),
    ("int4multirange", "'{[1,3),[5,7)}'"),
    ("point", "'(1.1,2.2)'"),
    ("box", "'(3,4),(1,2)'"),
    ("path", "'[(0,0),(1,1)]'"),
    ("circle", "'<(0,0),1>'"),
    ("line", "'{1,2,3}'"),
    ("lseg", "'[(0,0),(1,1)]'"),
    ("polygon", "'((0,0),(1,1),(1,0))'"),
    ("inet", "'192.168.0.1/24'"),
    ("cidr", "'10.0.0.0/8'"),
    ("macaddr", "'08:00:2b:01:02:03'"),
    ("macaddr8", "'08:00:2b:01:02:03:04:05'"),
    ("bit(3)", "B'101'"),
    ("varbit", "B'10101'"),
    ("tsvector", "'a:1 fat:2 cat:3'"),
    ("tsquery", "'fat & rat'"),
    ("pg_lsn", "'16/B374D848'"),
    ("pg_snapshot", "'10:20:10,14,15'"),
    ("xid8", "'42'"),
    ("regclass", "'pg_class'"),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_value_has_the_same_text_in_snapshot_and_stream() {
    let harness = Harness::new("types").await;
    let columns: Vec<String> =
        VALUES.iter().enumerate().map(|(index, (kind, _))| format!("c{index:02} {kind}")).collect();
    let values: Vec<&str> = VALUES.iter().map(|(_, value)| *value).collect();
    harness
        .run(&format!(
            "CREATE TYPE mood AS ENUM ('so so', 'fine'); CREATE TYPE pair AS (a int, b text);
             CREATE DOMAIN positive AS int CHECK (VALUE > 0);
             -- What a role has set must not show.
             DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET timezone = ''Asia/Tokyo''', current_database());
                EXECUTE format('ALTER DATABASE %I SET datestyle = ''SQL, MDY''', current_database());
                EXECUTE format('ALTER DATABASE %I SET bytea_output = ''escape''', current_database());
                EXECUTE format('ALTER DATABASE %I SET extra_float_digits = -3', current_database()); END $$;
             CREATE TABLE items (id int PRIMARY KEY, {})",
            columns.join(", ")
        ))
        .await;
    let mut stream = harness.stream().await;
    harness.publish("items").await;
    harness.run(&format!("INSERT INTO items VALUES (1, {})", values.join(", "))).await;
    let definition = harness.definition("items", None).await;

    let snapshot = harness.snapshot(&definition).await;
    let from_snapshot: BTreeMap<String, Option<String>> =
        definition.columns.iter().cloned().zip(snapshot[0].iter().cloned()).collect();
    let transaction = stream.transaction().await;
    let mut from_stream = BTreeMap::new();
    transaction
        .for_each_chunk(&mut |changes| {
            let Change::Insert { relation, new, .. } = &changes[0] else { panic!("not an insert") };
            for (index, column) in relation.columns.iter().enumerate() {
                from_stream.insert(column.name.clone(), text(new.get(index)));
            }
        })
        .expect("readable changes");
    assert_eq!(from_stream.len(), VALUES.len() + 1);
    for (column, value) in &from_snapshot {
        assert_eq!(from_stream.get(column), Some(value), "{column}");
    }

    let of = |kind: &str| {
        let index = VALUES.iter().position(|(name, _)| *name == kind).expect("a type of the list");
        from_snapshot[&format!("c{index:02}")].clone().expect("not NULL")
    };
    assert_eq!(of("bytea"), r"\x0001fffe");
    assert_eq!(of("timestamptz"), "2024-01-31 10:34:56+00");
    assert_eq!(of("interval"), "P1Y2M3DT4H5M6S");
    assert_eq!(of("float8"), "0.30000000000000004");
    assert_eq!(of("date"), "2024-01-31");
    assert_eq!(of("char(5)"), "ab   ");
    assert_eq!(of("bool"), "t", "the encoder makes it true");
}
