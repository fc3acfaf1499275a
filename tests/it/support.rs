//! Where the tests find their Postgres.

/// A database of a test's own.
pub struct TestDatabase {
    pub url: String,
}

/// The database that `SHAPEFOLD_TEST_DATABASE_URL` names.
pub async fn database(name_hint: &str) -> TestDatabase {
    let url = std::env::var("SHAPEFOLD_TEST_DATABASE_URL");
    TestDatabase {
        url: url.unwrap_or_else(|_| panic!("{name_hint}: SHAPEFOLD_TEST_DATABASE_URL is not set")),
    }
}
