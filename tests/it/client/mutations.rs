//! Random transactions on `items`, the same for the same seed.

use tokio_postgres::Client;

/// Numbers of a linear congruential generator: Knuth's MMIX.
pub struct Mutations {
    state: u64,
    /// Ids are below this.
    ids: u64,
}

impl Mutations {
    pub fn new(seed: u64, ids: u64) -> Mutations {
        Mutations { state: seed, ids }
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.state =
            self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) % bound
    }

    /// One statement; none of them can fail.
    fn statement(&mut self) -> String {
        let (id, other, owner) = (self.below(self.ids), self.below(self.ids), self.below(4));
        let title = "x".repeat(usize::try_from(self.below(300)).expect("a small number"));
        match self.below(10) {
            0..=3 => format!(
                "INSERT INTO items VALUES ({id}, {owner}, '{title}') \
                 ON CONFLICT (id) DO UPDATE SET owner = {owner}, title = '{title}'"
            ),
            4 | 5 => format!("UPDATE items SET title = '{title}', done = NOT done WHERE id = {id}"),
            6 => format!("UPDATE items SET owner = {owner} WHERE id % 7 = {}", id % 7),
            7 => format!("DELETE FROM items WHERE id = {id}"),
            8 => format!("DELETE FROM items WHERE id % 11 = {}", id % 11),
            _ => format!(
                "UPDATE items SET id = {other} WHERE id = {id} AND NOT EXISTS (SELECT FROM items WHERE id = {other})"
            ),
        }
    }

    /// A transaction of a few statements, now and then of many.
    pub fn transaction(&mut self) -> String {
        let count = if self.below(12) == 0 { 60 } else { 1 + self.below(5) };
        let statements: Vec<String> = (0..count).map(|_| self.statement()).collect();
        let end = if self.below(10) == 0 { "ROLLBACK" } else { "COMMIT" };
        format!("BEGIN; {}; {end}", statements.join("; "))
    }

    pub async fn run(&mut self, session: &Client, transactions: usize) {
        for _ in 0..transactions {
            session.batch_execute(&self.transaction()).await.expect("the test's SQL is right");
        }
    }
}
