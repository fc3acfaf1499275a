//! Who may connect.

use shapefold::postgres::{DatabaseUrl, PgErrorKind, connect};
use shapefold::replication::{ReplicationClient, ReplicationError, connect_and_identify};

use crate::postgres::{Harness, connect_as, options, url_as};

/// Roles are shared by the databases of a cluster. `pg_hba.conf` decides how they must identify
/// themselves: the exchange itself is tested where it asks this role for its password.
async fn with_role(harness: &Harness, attributes: &str) -> String {
    let role = format!("role_{}", harness.settings.url.database());
    harness
        .run(&format!("SET password_encryption = 'scram-sha-256'; CREATE ROLE {role} LOGIN {attributes}"))
        .await;
    role
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_checked_on_both_kinds_of_connections() {
    let harness = Harness::new("auth").await;
    let role = with_role(&harness, "REPLICATION PASSWORD 'right:@/ word'").await;
    let asks = connect_as(&harness, &role, Some("wrong")).await.is_err();
    let right = url_as(&harness, &role, Some("right:@/ word"));
    connect(&right, &options()).await.expect("the right password");
    let mut client = ReplicationClient::connect(&right, &options()).await.expect("the right password");
    assert!(client.identify_system().await.expect("an identity").system_id > 0);
    drop(client);
    if asks {
        let wrong = url_as(&harness, &role, Some("wrong"));
        let error = ReplicationClient::connect(&wrong, &options()).await.expect_err("the wrong password");
        assert_eq!((error.kind(), error.fatal()), (PgErrorKind::WrongPassword, true));
        let error = connect(&wrong, &options()).await.expect_err("the wrong password");
        assert_eq!(error.kind(), PgErrorKind::WrongPassword);
        let none = url_as(&harness, &role, None);
        let error = ReplicationClient::connect(&none, &options()).await.expect_err("no password");
        assert_eq!(error.kind(), PgErrorKind::WrongPassword);
    } else {
        eprintln!("pg_hba.conf trusts every role: passwords were not asked for");
    }
    harness.run(&format!("DROP ROLE {role}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_without_replication_is_told_so() {
    let mut harness = Harness::new("norepl").await;
    let role = with_role(&harness, "PASSWORD 'secret'").await;
    harness.settings.url = url_as(&harness, &role, Some("secret"));
    match connect_and_identify(&harness.settings, &mut |_| {}).await {
        Err(ReplicationError::Postgres(error)) => {
            assert_eq!((error.kind(), error.fatal()), (PgErrorKind::NotReplicationRole, true));
        }
        other => panic!("{other:?}"),
    }
    harness.run(&format!("DROP ROLE {role}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_or_server_that_is_not_there_is_told_apart() {
    let harness = Harness::new("nodb").await;
    let error = connect(&harness.settings.url.with_database("no_such"), &options()).await.expect_err("none");
    assert_eq!(error.kind(), PgErrorKind::NoSuchDatabase);
    let error = ReplicationClient::connect(&harness.settings.url.with_database("no_such"), &options()).await;
    assert_eq!(error.expect_err("none").kind(), PgErrorKind::NoSuchDatabase);
    // A port that was free a moment ago, and that nobody listens on.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|socket| socket.local_addr())
        .expect("a port")
        .port();
    let closed = DatabaseUrl::parse(&format!("postgres://u:hidden@127.0.0.1:{port}/d")).expect("a URL");
    let error = connect(&closed, &options()).await.expect_err("nobody listens");
    assert_eq!((error.kind(), error.fatal()), (PgErrorKind::Unreachable, false));
    assert!(!format!("{error} {error:?}").contains("hidden"));
}

/// Passes on every server: one with TLS must take both kinds of connections, one without must be
/// refused where TLS is required, and used in plain text where it is only preferred.
#[tokio::test(flavor = "multi_thread")]
async fn tls_is_required_or_not() {
    let harness = Harness::new("tls").await;
    let row = harness.sql.query_one("SELECT current_setting('ssl')", &[]).await.expect("the setting");
    let offered = row.get::<_, &str>(0) == "on";
    let encrypted = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    for mode in ["disable", "allow", "prefer", "require"] {
        let url = DatabaseUrl::parse(&format!("{}?sslmode={mode}", harness.database.url)).expect("a URL");
        let sql = connect(&url, &options()).await;
        let replication = ReplicationClient::connect(&url, &options()).await;
        if mode == "require" && !offered {
            assert_eq!(sql.expect_err("no TLS").kind(), PgErrorKind::Tls);
            assert_eq!(replication.expect_err("no TLS").kind(), PgErrorKind::Tls);
            continue;
        }
        let expected = offered && mode != "disable";
        let row = sql.expect("a connection").query_one(encrypted, &[]).await.expect("a row");
        assert_eq!(row.get::<_, bool>(0), expected, "{mode}");
        let rows = replication.expect("a connection").simple_query(encrypted).await.expect("a row");
        assert_eq!(rows[0][0].as_deref(), Some(if expected { "t" } else { "f" }), "{mode}");
    }
    let missing = std::path::Path::new("/nonexistent.pem");
    assert_eq!(
        shapefold::postgres::Tls::with_ca_file(missing).expect_err("no file").kind(),
        PgErrorKind::Tls
    );
}
