//! Random histories with crashes: what was flushed is there, and the bodies are those of a log that
//! never crashed.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    /// Lengths of the texts of the rows.
    Transaction(Vec<usize>),
    /// A transaction that is given up after these rows.
    Aborted(Vec<usize>),
    WriteOut,
    Flush,
    /// The machine stops, in the middle of a transaction of these rows.
    Crash(u64, Vec<usize>),
    /// The writer ends and a new one takes over; the file system stays.
    Restart,
}

fn rows() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        6 => proptest::collection::vec(0..300_usize, 1..6),
        1 => proptest::collection::vec(0..3000_usize, 20..80),
        1 => proptest::collection::vec(20_000..80_000_usize, 1..30),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => rows().prop_map(Step::Transaction),
        1 => rows().prop_map(Step::Aborted),
        1 => Just(Step::WriteOut),
        4 => Just(Step::Flush),
        2 => (any::<u64>(), rows()).prop_map(|(seed, rows)| Step::Crash(seed, rows)),
        1 => Just(Step::Restart),
    ]
}

fn texts(lens: &[usize]) -> Vec<String> {
    lens.iter().map(|len| text(*len)).collect()
}

/// The transactions that were committed, as Postgres would send them again, and how far the log
/// was reported as durable.
struct History {
    shape: Shape,
    sent: Vec<(u64, Vec<String>)>,
    flushed: Offset,
}

impl History {
    fn next_tx(&self) -> u64 {
        self.sent.len() as u64 * 8 + 8
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::Transaction(rows) => {
                let (tx, texts) = (self.next_tx(), texts(rows));
                self.shape.transaction(tx, &texts);
                self.sent.push((tx, texts));
            }
            Step::Aborted(rows) => {
                self.begin_only(rows);
                self.shape.writer.abort().expect("the disk works");
            }
            Step::WriteOut => self.shape.writer.write_out().expect("the disk works"),
            Step::Flush => self.flushed = self.shape.flush(),
            Step::Crash(seed, rows) => {
                self.begin_only(rows);
                self.shape.disk.crash(*seed);
                self.take_over();
            }
            Step::Restart => self.take_over(),
        }
    }

    fn begin_only(&mut self, rows: &[usize]) {
        self.shape.writer.begin(Lsn(self.next_tx() + 1), Xid(3)).expect("begins");
        for (index, text) in texts(rows).iter().enumerate() {
            let change = insert(index as u64 * 2, &self.shape.relation, &["9", text, "f"]);
            self.shape.writer.push(&change, Op::Insert).expect("a row");
        }
    }

    /// Opens what is left, checks it, and sends again everything from before the flush.
    fn take_over(&mut self) {
        self.shape = self.shape.reopen();
        let last = self.shape.recovered.last;
        assert!(last >= self.flushed, "flushed to {}, found {last}", self.flushed);
        let ends = |(tx, rows): &(u64, Vec<String>)| Offset::new(Lsn(*tx), rows.len() as u64 * 2 - 2);
        assert!(
            last == Offset::SNAPSHOT_END || self.sent.iter().any(|sent| ends(sent) == last),
            "{last} is no commit"
        );
        for (tx, texts) in self.sent.clone() {
            self.shape.transaction(tx, &texts);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn flushed_rows_survive_and_bodies_do_not_change(
        chunk in prop_oneof![Just(1_u64), Just(500), Just(100_000)],
        packed in prop_oneof![Just(None), Just(Some(1 << 24)), Just(Some(100_000))],
        steps in proptest::collection::vec(step(), 1..25),
    ) {
        let mut history = History { shape: Shape::new_in(chunk, packed), sent: Vec::new(), flushed: Offset::SNAPSHOT_END };
        for step in &steps {
            history.run(step);
        }
        let mut undisturbed = Shape::new(chunk);
        for (tx, texts) in &history.sent {
            undisturbed.transaction(*tx, texts);
        }
        let expected = walk(&undisturbed.reader.view(), Offset::SNAPSHOT_END);
        prop_assert_eq!(&walk(&history.shape.reader.view(), Offset::SNAPSHOT_END), &expected);
        history.shape.flush();
        history.shape.disk.crash(0);
        let after = history.shape.reopen();
        prop_assert_eq!(&walk(&after.reader.view(), Offset::SNAPSHOT_END), &expected);
        // The index is derived: without it nothing changes.
        let index = after.files.path("log.idx");
        if after.disk.content(&index).is_ok() {
            Disk::remove_file(&after.disk, &index).expect("removed");
        }
        prop_assert_eq!(&walk(&after.reopen().reader.view(), Offset::SNAPSHOT_END), &expected);
        prop_assert_eq!(expected.0.len(), history.sent.iter().map(|(_, texts)| texts.len()).sum::<usize>());
    }
}

/// A log file that an aborted transaction left behind, empty: its entry was never synced, and the
/// next writer does not create it, yet has to sync it.
#[test]
fn the_entry_of_an_empty_log_is_synced_too() {
    for seed in 0..16 {
        let mut history = History { shape: Shape::new(1), sent: Vec::new(), flushed: Offset::SNAPSHOT_END };
        let large = Step::Aborted(vec![100_000; 20]);
        for step in [large, Step::Restart, Step::Transaction(vec![1]), Step::Flush, Step::Crash(seed, vec![])]
        {
            history.run(&step);
        }
    }
}
