//! What outlives what: restarts, kills, the ends of inner queries, too much at once.

use super::{Follower, Reader, SCHEMA, started};
use crate::support::{WAIT_DURATION_MAX, encode};

const ACTIVE: &str = "p IN (SELECT id FROM par WHERE act = true)";
const NESTED: &str = "p IN (SELECT id FROM par WHERE gp IN (SELECT id FROM par WHERE act))";
const NOT: &str = "p NOT IN (SELECT gp FROM par WHERE act)";

/// Upstream drops these shapes on every restart.
#[tokio::test]
async fn shapes_survive_restarts_and_kills_without_a_refetch() {
    let (database, mut service) = started("survive", SCHEMA, &[]).await;
    let mut followers: Vec<Follower> =
        [ACTIVE, NESTED, NOT].iter().map(|clause| Follower::new(&service, "child", clause)).collect();
    for follower in &mut followers {
        follower.expect_sql(&database, "at first").await;
    }
    let handles: Vec<String> = followers.iter().map(Follower::handle).collect();
    for round in 0..6 {
        database
            .execute(&format!(
                "INSERT INTO par VALUES ({0}, true, {1}); INSERT INTO child VALUES ({0}, {0}, 'n');
                 UPDATE par SET act = NOT act WHERE id = 1 + {round} % 2;
                 UPDATE child SET p = {0} WHERE id = 1;",
                round + 10,
                1 + round % 3
            ))
            .await;
        if round % 2 == 0 {
            service.kill9();
        } else {
            assert!(service.terminate().await, "a graceful end");
        }
        database.execute(&format!("DELETE FROM par WHERE id = {}", round + 8)).await;
        service.restart().await.expect("the service starts again");
        for follower in &mut followers {
            follower.redirect(&service);
            follower.expect_sql(&database, &format!("round {round}")).await;
        }
    }
    for (follower, handle) in followers.iter().zip(handles) {
        follower.expect_clean();
        assert_eq!(follower.handle(), handle);
    }
}

/// A shape ends with its inner queries, and they with the last shape that needs them.
#[tokio::test]
async fn inner_queries_and_their_shapes_end_together() {
    let settings = [("ELECTRIC_ENABLE_INTEGRATION_TESTING", "true")];
    let (database, service) = started("together", SCHEMA, &settings).await;
    let mut reader = Reader::new(&service, "child", ACTIVE).await;
    reader.initial().await;
    database.execute("TRUNCATE par").await;
    while reader.step().await.is_some() {}
    let mut follower = Follower::new(&service, "child", ACTIVE);
    follower.expect_sql(&database, "a new shape").await;
    let path = format!("/v1/shape?table=child&where={}", encode(ACTIVE));
    let answer = service.http().request("DELETE", &path, &[], b"").await.expect("an answer");
    assert_eq!(answer.status, 202);
    let history =
        crate::support::journal::history(std::path::Path::new(crate::support::BINARY), service.data_dir())
            .expect("the journal is read");
    for cause in ["DependencyGone", "NotNeeded", "Truncated"] {
        assert!(history.contains(cause), "no {cause} in\n{history}");
    }
}

/// Contract row 156: with a small buffer and a query that takes long, the shape starts over; others do not.
#[tokio::test]
async fn too_many_transactions_during_a_move_end_that_shape_only() {
    let settings = [("ELECTRIC_SUBQUERY_BUFFER_MAX_TRANSACTIONS", "1")];
    let (database, service) = started("overflow", SCHEMA, &settings).await;
    let mut reader = Reader::new(&service, "child", ACTIVE).await;
    reader.initial().await;
    let mut plain = Follower::new(&service, "child", "t = 'n'");
    plain.expect_sql(&database, "at first").await;
    // The query for the rows waits for this lock.
    let locker = database.client().await;
    locker.batch_execute("BEGIN; LOCK TABLE child IN ACCESS EXCLUSIVE MODE").await.expect("locked");
    for id in 20..24 {
        database.execute(&format!("INSERT INTO par VALUES ({id}, true, 1)")).await;
    }
    let ended = async { while reader.step().await.is_some() {} };
    tokio::time::timeout(WAIT_DURATION_MAX, ended).await.expect("the shape starts over");
    locker.batch_execute("ROLLBACK").await.expect("unlocked");
    database.execute("INSERT INTO child VALUES (30, 20, 'n')").await;
    plain.expect_sql(&database, "afterwards").await;
    plain.expect_clean();
    let mut again = Follower::new(&service, "child", ACTIVE);
    again.expect_sql(&database, "a new shape").await;
}

/// Subsets and `log=changes_only` carry tags, too.
#[tokio::test]
async fn subsets_have_tags() {
    let (database, service) = started("subsettags", SCHEMA, &[]).await;
    let query = format!("table=child&log=changes_only&where={}", encode(ACTIVE));
    let mut reader = Reader::with(&service, &query).await;
    assert_eq!(reader.initial().await.len(), 1, "nothing but the end of the snapshot");
    let path = format!(
        "/v1/shape?{query}&handle={}&offset={}&subset__where={}",
        reader.handle,
        reader.offset,
        encode("id < 5")
    );
    let answer = service.get(&path).await.json();
    let hash = super::hash(&database, &reader.handle, "v:1").await;
    let row = &answer["data"][0];
    assert_eq!(answer["data"].as_array().map(Vec::len), Some(1), "{answer}");
    assert_eq!(row["headers"]["tags"], serde_json::json!([hash]));
    assert_eq!(row["headers"]["active_conditions"], serde_json::json!([true]));
    assert!(row["headers"]["snapshot_mark"].is_u64());
    database.execute("UPDATE par SET act = true WHERE id = 2").await;
    let moved = reader.news().await;
    assert_eq!(moved[0]["headers"]["event"], "move-in");
    assert_eq!(moved[1]["value"]["id"], "2");
}
