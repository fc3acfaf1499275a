//! Tables in the publication, their identity, and the fence.

use std::time::Duration;

use shapefold::replication::{
    ReplicationError, drop_table, ensure_publication, ensure_table, published_tables,
};

use crate::postgres::{Harness, WAIT_MAX, name};

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_waits_for_those_who_wrote_before_the_table_was_published() {
    let harness = Harness::new("fence").await;
    // FULL already, so that nothing but the fence waits for the writer.
    harness.run("CREATE TABLE items (id int PRIMARY KEY); ALTER TABLE items REPLICA IDENTITY FULL").await;
    let mut stream = harness.stream().await;
    let writer = harness.connection().await;
    writer.batch_execute("BEGIN; INSERT INTO items VALUES (1)").await.expect("a write");
    let relation = harness.relation("items").await;
    let ensured = ensure_table(&harness.sql, &harness.settings.publication, &relation, false)
        .await
        .expect("a published table");
    assert!(ensured.added && ensured.identities_set.is_empty());
    assert_eq!(ensured.fence.writers(), 1);
    assert!(!ensured.fence.passed(&harness.sql).await.expect("the locks"));
    let timeout = ensured.fence.wait(&harness.sql, Duration::ZERO).await;
    assert!(matches!(timeout, Err(ReplicationError::FenceTimeout(_))), "{timeout:?}");
    // Later writers are not waited for.
    let late = harness.connection().await;
    late.batch_execute("BEGIN; INSERT INTO items VALUES (2)").await.expect("a write");
    writer.batch_execute("COMMIT").await.expect("a commit");
    ensured.fence.wait(&harness.sql, WAIT_MAX).await.expect("the fence passes");
    let rows = harness.snapshot(&harness.definition("items", None).await).await;
    assert_eq!(rows, [[Some("1".to_owned())]], "the row that the stream does not bring");
    late.batch_execute("COMMIT").await.expect("a commit");
    assert_eq!(stream.shown().await.last().map(String::as_str), Some("0 items + 2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_is_prepared_has_not_ended() {
    let harness = Harness::new("prepared").await;
    let enabled = harness.sql.query_one("SELECT current_setting('max_prepared_transactions')::int4 > 0", &[]);
    if !enabled.await.expect("the setting").get::<_, bool>(0) {
        eprintln!("max_prepared_transactions is 0: nothing to test on this server");
        return;
    }
    harness.run("CREATE TABLE items (id int PRIMARY KEY); ALTER TABLE items REPLICA IDENTITY FULL").await;
    ensure_publication(&harness.sql, &harness.settings.publication).await.expect("a publication");
    let writer = harness.connection().await;
    writer.batch_execute("BEGIN; INSERT INTO items VALUES (1)").await.expect("a write");
    let relation = harness.relation("items").await;
    let ensured =
        ensure_table(&harness.sql, &harness.settings.publication, &relation, false).await.expect("published");
    let prepared = format!("p_{}", harness.settings.url.database());
    writer.batch_execute(&format!("PREPARE TRANSACTION '{prepared}'")).await.expect("prepared");
    assert!(!ensured.fence.passed(&harness.sql).await.expect("the locks"));
    harness.run(&format!("COMMIT PREPARED '{prepared}'")).await;
    assert!(ensured.fence.passed(&harness.sql).await.expect("the locks"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_partition_gets_full_identity() {
    let harness = Harness::new("partitions").await;
    harness
        .run(
            "CREATE TABLE items (id int, v text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
              CREATE TABLE low PARTITION OF items FOR VALUES FROM (0) TO (10);
              CREATE TABLE high PARTITION OF items FOR VALUES FROM (10) TO (100) PARTITION BY RANGE (id);
              CREATE TABLE higher PARTITION OF high FOR VALUES FROM (50) TO (100)",
        )
        .await;
    let mut stream = harness.stream().await;
    let relation = harness.relation("items").await;
    assert!(relation.partitioned);
    let publication = &harness.settings.publication;
    let ensured = ensure_table(&harness.sql, publication, &relation, false).await.expect("published");
    assert_eq!(ensured.identities_set.len(), 4);
    harness.run("INSERT INTO items VALUES (1, 'a')").await;
    harness.run("UPDATE items SET v = 'b'").await;
    harness.run("UPDATE items SET id = 51").await;
    assert_eq!(stream.shown().await, ["0 low + 1,a"]);
    assert_eq!(stream.shown().await, ["0 low 1,a > 1,b"]);
    assert_eq!(stream.shown().await, ["0 low - 1,b", "2 higher + 51,b"]);

    harness.run("CREATE TABLE late PARTITION OF items FOR VALUES FROM (100) TO (200)").await;
    let tables = published_tables(&harness.sql, publication).await.expect("the tables");
    assert!(!tables[0].identity_full, "the new partition is noticed");
    let ensured = ensure_table(&harness.sql, publication, &relation, false).await.expect("published");
    assert!(!ensured.added);
    assert_eq!(ensured.identities_set, [harness.relation("late").await.oid]);
    let tables = published_tables(&harness.sql, publication).await.expect("the tables");
    assert!(tables.len() == 1 && tables[0].name == relation.name && tables[0].identity_full);
}

#[tokio::test(flavor = "multi_thread")]
async fn manual_mode_changes_nothing() {
    let harness = Harness::new("manual").await;
    harness.run("CREATE TABLE items (id int PRIMARY KEY)").await;
    let publication = &harness.settings.publication;
    assert!(ensure_publication(&harness.sql, publication).await.expect("a publication").created);
    assert!(!ensure_publication(&harness.sql, publication).await.expect("a publication").created);
    let relation = harness.relation("items").await;
    let error = ensure_table(&harness.sql, publication, &relation, true).await.expect_err("not published");
    assert_eq!(
        error.to_string(),
        format!(
            "Database table \"public.items\" is missing from the publication \"{publication}\" and the ELECTRIC_MANUAL_TABLE_PUBLISHING setting prevents Electric from adding it"
        )
    );
    harness.run(&format!("ALTER PUBLICATION {publication} ADD TABLE items")).await;
    let error = ensure_table(&harness.sql, publication, &relation, true).await.expect_err("not full");
    assert_eq!(
        error.to_string(),
        "Database table \"public.items\" does not have its replica identity set to FULL"
    );
    harness.run("ALTER TABLE items REPLICA IDENTITY FULL").await;
    assert!(!ensure_table(&harness.sql, publication, &relation, true).await.expect("all is set").added);

    let drop = async |oid| drop_table(&harness.sql, publication, oid, &name("items")).await;
    drop(shapefold::domain::Oid(1)).await.expect("another table");
    assert_eq!(published_tables(&harness.sql, publication).await.expect("the tables").len(), 1);
    drop(relation.oid).await.expect("dropped");
    drop(relation.oid).await.expect("nothing to drop");
    assert!(published_tables(&harness.sql, publication).await.expect("the tables").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_gone_or_another_one_is_named() {
    let harness = Harness::new("gone").await;
    harness.run("CREATE TABLE items (id int PRIMARY KEY)").await;
    let publication = &harness.settings.publication;
    ensure_publication(&harness.sql, publication).await.expect("a publication");
    let relation = harness.relation("items").await;
    harness.run("DROP TABLE items; CREATE TABLE items (id int PRIMARY KEY)").await;
    let error = ensure_table(&harness.sql, publication, &relation, false).await.expect_err("another table");
    assert_eq!(error.to_string(), "Database table \"public.items\" has been dropped or renamed");
    harness.run(&format!("DROP PUBLICATION {publication}")).await;
    let relation = harness.relation("items").await;
    let error = ensure_table(&harness.sql, publication, &relation, false).await.expect_err("no publication");
    assert!(error.to_string().contains(&format!("publication \"{publication}\" does not exist")), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_leaves_out_operations_is_refused() {
    let harness = Harness::new("incomplete").await;
    let publication = &harness.settings.publication;
    harness.run(&format!("CREATE PUBLICATION {publication} WITH (publish = 'insert, update')")).await;
    let error = ensure_publication(&harness.sql, publication).await.expect_err("incomplete");
    assert_eq!(
        error.to_string(),
        format!(
            "Publication \"{publication}\" does not publish all required operations: INSERT, UPDATE, DELETE, TRUNCATE"
        )
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_lacks_privileges_is_told_which() {
    let harness = Harness::new("privileges").await;
    let role = format!("role_{}", harness.settings.url.database());
    let publication = &harness.settings.publication;
    harness.run(&format!("CREATE TABLE items (id int PRIMARY KEY); CREATE ROLE {role}")).await;
    let sql = harness.connection().await;
    sql.batch_execute(&format!("SET ROLE {role}")).await.expect("the role");
    let error = ensure_publication(&sql, publication).await.expect_err("no CREATE on the database");
    assert_eq!(error.to_string(), format!("Publication \"{publication}\" not found in the database"));
    assert!(error.fatal());

    ensure_publication(&harness.sql, publication).await.expect("a publication");
    assert!(!ensure_publication(&sql, publication).await.expect("it is there").owned);
    let relation = harness.relation("items").await;
    let error = ensure_table(&sql, publication, &relation, false).await.expect_err("not the owner");
    assert_eq!(
        error.to_string(),
        format!(
            "Database table \"public.items\" is missing from the publication \"{publication}\" and Electric lacks privileges to add it"
        )
    );

    harness.run(&format!("ALTER PUBLICATION {publication} ADD TABLE items")).await;
    let error = ensure_table(&sql, publication, &relation, false).await.expect_err("not the owner");
    assert_eq!(
        error.to_string(),
        "Database table \"public.items\" does not have its replica identity set to FULL"
    );

    let database = harness.settings.url.database();
    harness
        .run(&format!(
            "ALTER PUBLICATION {publication} DROP TABLE items; GRANT CREATE ON DATABASE {database} TO {role};
             ALTER PUBLICATION {publication} OWNER TO {role}"
        ))
        .await;
    match ensure_table(&sql, publication, &relation, false).await {
        Err(ReplicationError::Postgres(error)) => {
            assert_eq!(error.message(), Some("must be owner of table items"));
        }
        other => panic!("{other:?}"),
    }
    harness.run(&format!("DROP PUBLICATION {publication}; DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_stays_locked_is_given_up() {
    let harness = Harness::new("locked").await;
    harness.run("CREATE TABLE items (id int PRIMARY KEY)").await;
    ensure_publication(&harness.sql, &harness.settings.publication).await.expect("a publication");
    let relation = harness.relation("items").await;
    let holder = harness.connection().await;
    holder.batch_execute("BEGIN; LOCK TABLE items IN ROW EXCLUSIVE MODE").await.expect("a lock");
    let error = ensure_table(&harness.sql, &harness.settings.publication, &relation, false)
        .await
        .expect_err("locked");
    assert_eq!(error.to_string(), "Snapshot timed out while waiting for a table lock");
    let tables = published_tables(&harness.sql, &harness.settings.publication).await.expect("the tables");
    assert!(tables.is_empty(), "both steps are one transaction");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_may_ask_for_one_table_at_once() {
    let harness = Harness::new("many").await;
    harness.run("CREATE TABLE items (id int PRIMARY KEY)").await;
    ensure_publication(&harness.sql, &harness.settings.publication).await.expect("a publication");
    let relation = harness.relation("items").await;
    let ensure = async || {
        let sql = harness.connection().await;
        ensure_table(&sql, &harness.settings.publication, &relation, false).await.expect("published").added
    };
    let (a, b, c, d) = tokio::join!(ensure(), ensure(), ensure(), ensure());
    assert_eq!([a, b, c, d].iter().filter(|added| **added).count(), 1);
    let tables = published_tables(&harness.sql, &harness.settings.publication).await.expect("the tables");
    assert!(tables.len() == 1 && tables[0].identity_full);
}
