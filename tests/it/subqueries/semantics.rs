//! Which rows are in: NULLs, NOT, several positions, rows of several columns, nesting.

use super::{Follower, SCHEMA, started};

/// Runs the steps; after each of them every shape has the rows of SQL, without a refetch.
async fn follows(hint: &str, schema: &str, shapes: &[(&str, &str)], steps: &[&str]) {
    let (database, service) = started(hint, schema, &[]).await;
    let mut followers: Vec<Follower> =
        shapes.iter().map(|(table, clause)| Follower::new(&service, table, clause)).collect();
    for follower in &mut followers {
        follower.expect_sql(&database, "at first").await;
    }
    for step in steps {
        database.execute(step).await;
        for follower in &mut followers {
            follower.expect_sql(&database, step).await;
        }
    }
    for follower in &followers {
        follower.expect_clean();
    }
}

/// NULL in the inner query, NULL on the left, the inner query empty: as SQL has it. Upstream crashes when
/// such a row goes (U5).
#[tokio::test]
async fn nulls_are_those_of_sql() {
    let schema = format!("{SCHEMA} INSERT INTO child VALUES (4, 4, 'x'), (5, NULL, 'x'), (6, 1, 'w');");
    let shapes = [
        ("child", "p IN (SELECT gp FROM par WHERE act)"),
        ("child", "p NOT IN (SELECT gp FROM par WHERE act)"),
        ("child", "NOT (p IN (SELECT gp FROM par WHERE act) OR t = 'x')"),
        ("child", "p NOT IN (SELECT gp FROM par WHERE act) OR t = 'w'"),
    ];
    let steps = [
        "INSERT INTO par VALUES (7, true, NULL)",
        "INSERT INTO child VALUES (10, 9, 'q'), (11, NULL, 'q')",
        "INSERT INTO par VALUES (8, true, NULL), (9, true, 4)",
        "DELETE FROM par WHERE id = 7",
        "DELETE FROM par WHERE id = 8",
        "UPDATE par SET act = NULL WHERE act",
        "UPDATE child SET t = NULL WHERE id IN (1, 6)",
        "UPDATE par SET act = true WHERE id IN (1, 9)",
        "UPDATE par SET gp = NULL WHERE id = 9",
        "DELETE FROM par",
    ];
    follows("nulls", &schema, &shapes, &steps).await;
}

#[tokio::test]
async fn several_columns_positions_and_levels() {
    let schema = "
        CREATE TABLE a (id int PRIMARY KEY, x int, y text, f bool);
        CREATE TABLE b (id int PRIMARY KEY, a int, x int, y text);
        CREATE TABLE c (id int PRIMARY KEY, b int, a int, n numeric);
        INSERT INTO a VALUES (1, 1, 'p', true), (2, 2, 'q', false), (3, NULL, 'r', true);
        INSERT INTO b VALUES (1, 1, 1, 'p'), (2, 2, 2, 'q'), (3, 3, 1, NULL), (4, NULL, NULL, 'p');
        INSERT INTO c VALUES (1, 1, 2, 1.0), (2, 2, 1, 1.50), (3, 3, NULL, 2), (4, NULL, 3, NULL);";
    let shapes = [
        ("b", "(x, y) IN (SELECT x, y FROM a WHERE f)"),
        ("b", "(x, y) NOT IN (SELECT x, y FROM a WHERE f)"),
        (
            "c",
            "b IN (SELECT id FROM b WHERE a IN (SELECT id FROM a WHERE f)) OR a IN (SELECT id FROM a WHERE f)",
        ),
        ("c", "b IN (SELECT id FROM b WHERE a NOT IN (SELECT id FROM a WHERE f)) AND n BETWEEN 1 AND 2"),
        ("c", "NOT (b IN (SELECT id FROM b WHERE a IN (SELECT id FROM a WHERE f)))"),
        ("a", "id IN (SELECT x FROM a WHERE f)"),
        ("a", "id IN (SELECT a FROM b WHERE x IN (SELECT x FROM a WHERE f)) OR f"),
    ];
    let steps = [
        "UPDATE a SET f = true WHERE id = 2",
        "UPDATE a SET f = NOT f",
        "UPDATE b SET a = 2 WHERE id = 3; UPDATE a SET f = true WHERE id = 1",
        "BEGIN; INSERT INTO a VALUES (5, 5, 'z', true); INSERT INTO b VALUES (5, 5, 5, 'z'); INSERT INTO c VALUES (5, 5, 5, 1); COMMIT",
        "BEGIN; UPDATE c SET id = 50 WHERE id = 5; UPDATE a SET f = false WHERE id = 5; COMMIT",
        "UPDATE a SET f = true WHERE id = 5; UPDATE a SET f = false WHERE id = 5; UPDATE a SET f = true WHERE id = 5",
        "UPDATE a SET x = 1 WHERE id = 2",
        "DELETE FROM a WHERE id = 1",
        "UPDATE c SET b = NULL WHERE id = 2; UPDATE b SET x = NULL WHERE id = 1",
        "DELETE FROM b WHERE a = 2; INSERT INTO a VALUES (1, 1, 'p', true)",
        "DELETE FROM a",
        "INSERT INTO a VALUES (2, 2, 'q', true), (3, 3, NULL, true)",
    ];
    follows("several", schema, &shapes, &steps).await;
}

/// Equal values with different texts are one value: numerics, and booleans in snapshot and log.
#[tokio::test]
async fn equal_values_of_different_texts() {
    let schema = "
        CREATE TABLE a (id int PRIMARY KEY, n numeric, b bool, c char(4), i interval);
        CREATE TABLE d (id int PRIMARY KEY, n numeric, b bool, c char(4), i interval);
        INSERT INTO a VALUES (1, 1.50, true, 'x', '1 mon');
        INSERT INTO d VALUES (1, 1.5, true, 'x', '30 days'), (2, 2.00, false, 'y', '1 day');";
    let shapes = [
        ("d", "n IN (SELECT n FROM a)"),
        ("d", "b IN (SELECT b FROM a)"),
        ("d", "c IN (SELECT c FROM a)"),
        ("d", "i IN (SELECT i FROM a)"),
    ];
    let steps = [
        "INSERT INTO a VALUES (2, 2, false, 'y', '24 hours')",
        "INSERT INTO d VALUES (3, 2.000, false, 'y', '1 day')",
        "UPDATE d SET n = 1.500, b = true, c = 'x', i = '1 mon' WHERE id = 3",
        "DELETE FROM a WHERE id = 1",
    ];
    follows("texts", schema, &shapes, &steps).await;
}
