//! What the catalog says about tables.

use shapefold::domain::{Column, RelationName};
use shapefold::postgres::inspect;

use crate::postgres::{Harness, name};

fn show(column: &Column) -> String {
    let position = column.pk_position.map_or(String::new(), |position| format!(" pk{position}"));
    let base = column.base.as_ref().map_or(String::new(), |base| {
        format!(" over {}{} kind={}", base.type_name, if base.is_array { "[]" } else { "" }, base.type_kind)
    });
    format!(
        "{} {} mod={} dims={} elem={} kind={}{}{}{position}{base}",
        column.name,
        column.type_name,
        column.type_modifier,
        column.dimensions,
        column.element_oid,
        column.type_kind,
        if column.not_null { " not_null" } else { "" },
        if column.generated { " generated" } else { "" },
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn describes_columns() {
    let harness = Harness::new("catalog").await;
    harness
        .run(
            "CREATE SCHEMA \"My Schema\"; CREATE TYPE mood AS ENUM ('a'); CREATE DOMAIN positive AS int; CREATE DOMAIN list AS int[];
              CREATE DOMAIN feeling AS mood; CREATE DOMAIN mine AS feeling;
              CREATE TABLE \"My Schema\".\"T.\" (
                  gone int, b varchar(5), a int NOT NULL, c numeric(10,2)[][], d mood[], e positive,
                  f int2vector, g point, h int GENERATED ALWAYS AS (a + 1) STORED, i timestamptz(3),
                  \"Key\" text, j list, k mine, PRIMARY KEY (\"Key\", a) INCLUDE (b));
              ALTER TABLE \"My Schema\".\"T.\" DROP gone; CREATE VIEW v AS SELECT 1 AS a;
              CREATE TABLE nothing ()",
        )
        .await;
    let table = RelationName { schema: "My Schema".to_owned(), table: "T.".to_owned() };
    let relation = inspect(&harness.sql, &table).await.expect("the catalog").expect("the table");
    assert_eq!(relation.name, table);
    assert!(!relation.partitioned);
    let columns: Vec<String> = relation.columns.iter().map(show).collect();
    assert_eq!(
        columns,
        [
            "b varchar mod=9 dims=0 elem=0 kind=b",
            "a int4 mod=-1 dims=0 elem=0 kind=b not_null pk1",
            "c numeric mod=655366 dims=2 elem=1700 kind=b",
            &format!("d mood mod=-1 dims=1 elem={} kind=e", relation.columns[3].element_oid),
            "e positive mod=-1 dims=0 elem=0 kind=d over int4 kind=b",
            "f int2vector mod=-1 dims=0 elem=0 kind=b",
            "g point mod=-1 dims=0 elem=0 kind=b",
            // In the stream since that version.
            if harness.sql.server_version() < 180_000 {
                "h int4 mod=-1 dims=0 elem=0 kind=b generated"
            } else {
                "h int4 mod=-1 dims=0 elem=0 kind=b"
            },
            "i timestamptz mod=3 dims=0 elem=0 kind=b",
            "Key text mod=-1 dims=0 elem=0 kind=b not_null pk0",
            "j list mod=-1 dims=0 elem=0 kind=d over int4[] kind=b",
            "k mine mod=-1 dims=0 elem=0 kind=d over mood kind=e",
        ]
    );
    assert_ne!(relation.columns[3].element_oid.0, 0);
    assert_eq!(inspect(&harness.sql, &name("v")).await.expect("the catalog"), None, "a view");
    assert_eq!(inspect(&harness.sql, &name("absent")).await.expect("the catalog"), None);
    let nothing = inspect(&harness.sql, &name("nothing")).await.expect("the catalog").expect("the table");
    assert!(nothing.columns.is_empty());
}
