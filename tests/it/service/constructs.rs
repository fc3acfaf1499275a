//! Where clauses: constructs with a syntax of their own, constants that Postgres has an error for, and
//! what encodings and collations do with texts.

use serde_json::json;

use super::{ITEMS, catch_up, errors};
use crate::support::{Service, ShapeRequest, TestDatabase, database, database_with, encode};

async fn version(database: &TestDatabase) -> u32 {
    let version = database.value("SHOW server_version_num").await.expect("a version");
    version.parse::<u32>().expect("a number") / 10_000
}

const DOCUMENTS: &str = r#"
CREATE TABLE items (id int PRIMARY KEY, v text, n int, j jsonb, x xml);
INSERT INTO items SELECT i, CASE i % 4 WHEN 0 THEN '{"a":' || i || '}' WHEN 1 THEN '[' || i || ']' WHEN 2 THEN 'no' END,
    i % 5, jsonb_build_object('a', i, 'b', ARRAY[i, 2]), xmlelement(name r, xmlattributes(i AS a), i % 3)
    FROM generate_series(1, 20) i"#;

/// With the first version that has it.
const CONSTRUCTS: &[(u32, &str)] = &[
    (14, "xmlelement(name \"A b\", xmlattributes(v AS c, n), n, 'x')::text LIKE '%2%'"),
    (14, "xmlforest(v AS a, n)::text LIKE '%<n>3%'"),
    (14, "xmlconcat(x, xmlpi(name a, 'b'))::text LIKE '%>1</r>%'"),
    (14, "xmlserialize(CONTENT x AS text) LIKE '%>0<%' OR x IS NOT DOCUMENT"),
    (14, "xmlparse(CONTENT '<a>' || n || '</a>')::text = '<a>4</a>'"),
    (
        14,
        "xmlroot(x, VERSION '1.0', STANDALONE yes)::text LIKE '%>2<%' OR xmlexists('/r[@a=7]' PASSING BY VALUE x)",
    ),
    (14, "v IS NFC NORMALIZED AND normalize(v, NFD) LIKE '[%'"),
    (16, "JSON_OBJECT('a' : v, 'n' VALUE n ABSENT ON NULL WITH UNIQUE KEYS RETURNING jsonb) @> '{\"n\": 2}'"),
    (16, "JSON_OBJECT()::text = '{}' AND JSON_ARRAY(v, n NULL ON NULL)::text LIKE '%null%'"),
    (16, "v IS JSON OBJECT WITH UNIQUE KEYS OR v IS JSON ARRAY"),
    (16, "v IS NOT JSON OR v IS JSON SCALAR"),
    (17, "JSON_EXISTS(j, '$.b[*] ? (@ > $least)' PASSING n + 10 AS least)"),
    (17, "JSON_VALUE(j, '$.a' RETURNING int DEFAULT 3 ON EMPTY ERROR ON ERROR) = n"),
    (
        17,
        "JSON_QUERY(j, 'lax $.b[*]' WITH CONDITIONAL WRAPPER NULL ON EMPTY EMPTY ARRAY ON ERROR)::text LIKE '%3%'",
    ),
    (17, "JSON_SERIALIZE(j RETURNING text) LIKE '%5%' OR JSON_SCALAR(n)::text = '4'"),
    // In 16 it is the function of that name.
    (16, "CASE WHEN v IS JSON THEN JSON(v)::text LIKE '%1%' END"),
];

#[tokio::test]
async fn constructs_of_xml_and_json_follow_the_table() {
    let database = database("constructs").await;
    database.execute(DOCUMENTS).await;
    let version = version(&database).await;
    let service = Service::start(&database, |_| {}).await;
    let mut clients = Vec::new();
    for (since, clause) in CONSTRUCTS {
        if *since > version {
            // Postgres has no such construct, or no such function: it is refused as any other.
            let path = format!("/v1/shape?table=items&offset=-1&where={}", encode(clause));
            assert_eq!(service.get(&path).await.status, 400, "{clause}");
            continue;
        }
        let mut client = service.follow(ShapeRequest::table("items").filtered(clause, &[]));
        client.sync().await.unwrap_or_else(|error| panic!("{clause}: {error}\n{}", service.output()));
        clients.push(client);
    }
    for sql in [
        "INSERT INTO items SELECT id + 100, v, n + 1, j || '{\"a\": 2}', x FROM items",
        "UPDATE items SET v = '{\"a\":1,\"a\":2}', j = '[]', x = '<r/>' WHERE id % 3 = 0",
        "UPDATE items SET v = NULL, n = NULL, j = NULL, x = NULL WHERE id % 7 = 0",
        "UPDATE items SET n = (n + 1) % 5",
    ] {
        database.execute(sql).await;
        let postgres = database.client().await;
        for client in &mut clients {
            catch_up(client, &ITEMS, &postgres).await;
        }
    }
    for client in &clients {
        assert!(client.refetches().is_empty(), "{:?}", client.request());
    }
}

/// What Postgres would say of the first row is said before there is a shape.
#[tokio::test]
async fn constants_that_are_errors_are_refused_in_the_words_of_postgres() {
    let database = database("constants").await;
    database.execute("CREATE TABLE items (id int PRIMARY KEY, k int, v text, w text)").await;
    let service = Service::start(&database, |_| {}).await;
    let parentheses = "invalid regular expression: parentheses () not balanced";
    for (clause, message) in [
        ("v ~ '('", format!("At location 2: {parentheses}")),
        ("k = 1 AND v !~* ('a' || '(')", format!("At location 12: {parentheses}")),
        (
            "CASE WHEN k = 1 THEN v ~ '[' END",
            "At location 23: invalid regular expression: brackets [] not balanced".to_owned(),
        ),
        ("CASE WHEN k = 1 THEN v ~ ANY ('{a,(}') END", format!("At location 23: {parentheses}")),
        ("regexp_replace(v, '(', w) = 'a'", String::new()),
        ("regexp_replace(v, '(', 'x') = w", format!("At location 0: {parentheses}")),
        ("length(v) > 1 OR (v SIMILAR TO 'a(') IS NULL", format!("At location 20: {parentheses}")),
        ("v ~ 'a' AND (v ~ 'b') = (1 / 0 = 1)", "At location 15: division by zero".to_owned()),
        ("1 / 0 = k", "At location 2: Failed to apply function to constant arguments".to_owned()),
        ("k = 'abc'::int", "At location 4: could not cast value \"abc\" from text to int4".to_owned()),
    ] {
        let path = format!("/v1/shape?table=items&offset=-1&where={}", encode(clause));
        let answer = service.get(&path).await;
        if message.is_empty() {
            // The replacement is a column: that the pattern is none only a row tells.
            assert_eq!(answer.status, 200, "{clause}: {}", answer.text());
            continue;
        }
        assert_eq!(errors(&answer, "where"), json!([message]), "{clause}");
    }
    for pattern in ["(", "a{3,1}"] {
        let path = "/v1/shape?table=items&offset=-1&where=v%20~%20$1&params[1]=";
        let answer = service.get(&format!("{path}{}", encode(pattern))).await;
        assert_eq!(answer.status, 400, "{pattern}: {}", answer.text());
    }
    assert!(!service.output().contains("a{3,1}"), "no text of a clause is logged:\n{}", service.output());
}

/// Options of a database, the first version that has them, and texts that its encoding has.
const DATABASES: &[(u32, &str, &str)] = &[
    (14, "TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'", UNICODE),
    (14, "TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C.UTF-8'", UNICODE),
    (14, "TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'", LATIN),
    (14, "TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'", LATIN),
    (14, "TEMPLATE template0 ENCODING 'EUC_JP' LOCALE 'C'", JAPANESE),
    (15, "TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C' LOCALE_PROVIDER icu ICU_LOCALE 'und'", UNICODE),
    (15, "TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C' LOCALE_PROVIDER icu ICU_LOCALE 'tr'", UNICODE),
    (
        17,
        "TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C' LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8'",
        UNICODE,
    ),
    (
        18,
        "TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C' LOCALE_PROVIDER builtin BUILTIN_LOCALE 'PG_UNICODE_FAST'",
        UNICODE,
    ),
];
const UNICODE: &str = "É,é,e,E,ß,SS,ss,i,I,İ,ı,Σας,ΣΑΣ,σας,k,K,\u{212A},ᾳ,ᾼ,ΑΙ,ŉ,日,Z,_";
const LATIN: &str = "É,é,e,E,ß,SS,ss,i,I,k,K,ü,Z,_";
const JAPANESE: &str = "e,E,i,I,k,日,本,ア,あ,ｱ,Я,я,Z,_";

/// However a database compares texts and folds their case, the log agrees with it.
#[tokio::test]
async fn texts_are_what_the_database_says() {
    let default = database("texts").await;
    let version = version(&default).await;
    for (since, options, texts) in DATABASES {
        if *since > version {
            continue;
        }
        let database = database_with("texts", options).await;
        database.execute("CREATE TABLE items (id serial PRIMARY KEY, v text)").await;
        let service = Service::start(&database, |_| {}).await;
        let mut clients = Vec::new();
        for clause in [
            "v ILIKE 'É'",
            "v NOT ILIKE 'k%'",
            "lower(v) = 'i'",
            "upper(v) = 'SS'",
            "upper(v) IN ('ΑΙ', 'ᾼ', 'É', 'I')",
            "lower(v) LIKE 'σα_'",
            "v ILIKE ANY ('{i,ß,σας}')",
            "v < 'f'",
            "v > 'Z' AND v <= 'ß'",
            "v LIKE '_'",
            "v = 'é' OR v IN ('日', 'я')",
            "greatest(v, 'k') = 'k'",
        ] {
            // What the encoding does not have cannot be in a clause, either.
            let writable = clause
                .split('\'')
                .skip(1)
                .step_by(2)
                .all(|literal| literal.chars().all(|c| c.is_ascii() || texts.contains(c)));
            if !writable {
                continue;
            }
            let mut client = service.follow(ShapeRequest::table("items").filtered(clause, &[]));
            client.sync().await.unwrap_or_else(|error| panic!("{options}: {clause}: {error}"));
            clients.push(client);
        }
        assert!(clients.len() >= 6, "{options}: {}", clients.len());
        let insert = format!("INSERT INTO items (v) SELECT unnest('{{{texts}}}'::text[] || NULL::text)");
        for sql in [
            &insert,
            "UPDATE items SET id = id + 100, v = lower(v)",
            &insert,
            "UPDATE items SET v = v || 'k'",
        ] {
            database.execute(sql).await;
            let postgres = database.client().await;
            for client in &mut clients {
                catch_up(client, &ITEMS, &postgres).await;
            }
        }
        assert!(clients.iter().all(|client| client.refetches().is_empty()), "{options}");
    }
}

/// Under such a collation texts may be equal that are not the same.
#[tokio::test]
async fn collations_that_are_not_deterministic_are_minded() {
    let database = database("nondeterministic").await;
    database
        .execute(
            "CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
             CREATE TABLE items (id int PRIMARY KEY, v text COLLATE nocase, w text)",
        )
        .await;
    let service = Service::start(&database, |_| {}).await;
    let mut clients = Vec::new();
    for clause in [
        "v = 'a'",
        "v IN ('A', 'b') AND id > 1",
        "v <> 'B' OR id = 3",
        "v IS DISTINCT FROM 'a'",
        "v = ANY ('{B}')",
        "v IS NULL",
        "'a' = w OR v BETWEEN 'B' AND 'c'",
    ] {
        let mut client = service.follow(ShapeRequest::table("items").filtered(clause, &[]));
        client.sync().await.unwrap_or_else(|error| panic!("{clause}: {error}"));
        clients.push(client);
    }
    for sql in [
        "INSERT INTO items VALUES (1, 'a', 'a'), (2, 'A', 'A'), (3, 'b', 'b'), (4, 'B', 'a'), (5, NULL, NULL), (6, 'c', '')",
        "UPDATE items SET v = upper(v) WHERE id % 2 = 1",
        "UPDATE items SET v = 'a', id = id + 10 WHERE id IN (4, 5)",
    ] {
        database.execute(sql).await;
        let postgres = database.client().await;
        for client in &mut clients {
            catch_up(client, &ITEMS, &postgres).await;
        }
    }
    assert!(clients.iter().all(|client| client.refetches().is_empty()));
}
