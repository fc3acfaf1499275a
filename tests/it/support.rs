//! Helpers that all tests share.

use std::sync::atomic::{AtomicU32, Ordering};

/// A database of its own, dropped at the end.
pub struct TestDatabase {
    pub url: String,
    name: String,
    admin_url: String,
}

/// Makes a database in the cluster that `SHAPEFOLD_TEST_DATABASE_URL` names.
pub async fn database(name_hint: &str) -> TestDatabase {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let admin_url = std::env::var("SHAPEFOLD_TEST_DATABASE_URL").expect("SHAPEFOLD_TEST_DATABASE_URL is set");
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("{name_hint}_{}_{number}", std::process::id());
    execute(&admin_url, &[format!("CREATE DATABASE {name}")]).await;
    let base = admin_url.split('?').next().expect("a URL");
    let server = base.rsplit_once('/').expect("a URL with a database").0;
    TestDatabase { url: format!("{server}/{name}"), name, admin_url }
}

async fn execute(url: &str, statements: &[String]) {
    let (client, connection) =
        tokio_postgres::connect(url, tokio_postgres::NoTls).await.expect("the test database");
    tokio::spawn(connection);
    for statement in statements {
        client.batch_execute(statement).await.expect("a statement of the test");
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let statements = [
            format!("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = '{}' AND active", self.name),
            format!("DO $$ DECLARE s name; BEGIN FOR s IN SELECT slot_name FROM pg_replication_slots WHERE database = '{}' LOOP
                FOR i IN 1..100 LOOP BEGIN PERFORM pg_drop_replication_slot(s); EXIT; EXCEPTION WHEN object_in_use THEN PERFORM pg_sleep(0.05); WHEN undefined_object THEN EXIT; END; END LOOP;
                END LOOP; END $$", self.name),
            format!("DROP DATABASE {} WITH (FORCE)", self.name),
        ];
        let url = self.admin_url.clone();
        let dropped = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(execute(&url, &statements));
        });
        if dropped.join().is_err() && !std::thread::panicking() {
            panic!("the test database could not be dropped");
        }
    }
}
