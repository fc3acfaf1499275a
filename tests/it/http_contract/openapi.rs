//! docs/openapi.yaml against the real service: schemathesis makes requests from it, good and bad ones,
//! and compares status, headers and bodies of the answers.

use std::path::Path;
use std::process::Command;

use super::started;
use crate::support::count;

/// The same requests in every run.
const SEED: &str = "20261120";
/// Requests for each operation and phase.
const EXAMPLES_MAX: &str = "40";

#[tokio::test]
async fn the_api_is_as_described() {
    let program = std::env::var("SHAPEFOLD_SCHEMATHESIS").unwrap_or_else(|_| {
        panic!("SHAPEFOLD_SCHEMATHESIS is not set: run ./dev test");
    });
    let schema = "CREATE TABLE items (id int PRIMARY KEY, title text);
                  INSERT INTO items SELECT n, 'a row ' || n FROM generate_series(1, 5) n";
    // Live requests would make it a long run.
    let (_database, service) = started("openapi", schema, &[("ELECTRIC_LONG_POLL_TIMEOUT", "200")]).await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.yaml");
    let run = Command::new(program)
        .current_dir(folder.path())
        .arg("run")
        .arg(document)
        .args(["--url", &service.url(), "--seed", SEED, "--max-examples", EXAMPLES_MAX])
        .args(["--phases", "examples,coverage,fuzzing", "--generation-database", "none"])
        .args(["--request-timeout", "30", "--warnings", "off", "--no-color"])
        .args([
            "--checks",
            "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance",
        ])
        .output()
        .expect("schemathesis runs");
    let output = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{output}{}", String::from_utf8_lossy(&run.stderr));
    let passed =
        output.lines().find_map(|line| line.trim().split_once(" generated, ")?.0.parse::<u64>().ok());
    count("requests by schemathesis", passed.expect("a summary"), "as described");
    assert_eq!(service.get("/v1/health").await.status, 200, "and it is well afterwards");
}
