//! A child process appends until it is killed; whatever it had acknowledged must be there.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use super::*;
use crate::journal::SledJournal;

pub(super) const DIR_VARIABLE: &str = "SHAPEFOLD_TEST_KILL_DIR";
pub(super) const SIZE_OF: fn(u64) -> usize = |id| if id % 97 == 0 { 9000 } else { (id % 300) as usize };

/// Does nothing in an ordinary run: it is the body of the child process.
#[test]
fn child_appends_until_killed() {
    let Some(dir) = std::env::var_os(DIR_VARIABLE) else { return };
    let (mut journal, _) = SledJournal::open(dir.as_ref(), EventId(0)).unwrap();
    for round in 0.. {
        let first = journal.last().0 + 1;
        let count = 1 + first * 7 % 60;
        let batch: Vec<Entry> = (first..first + count).map(|id| entry(id, SIZE_OF(id))).collect();
        journal.append(&batch).unwrap();
        println!("\nack {}", journal.sync().unwrap());
        if round % 20 == 19 {
            let upto = journal.last();
            journal.checkpoint(upto, &vec![1; 50_000]).unwrap();
            journal.trim(upto).unwrap();
        }
    }
}

#[test]
fn kill_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = 0;
    for acks in [1, 7, 25, 60, 3] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["journal::tests::kill::child_appends_until_killed", "--exact", "--nocapture"])
            .env(DIR_VARIABLE, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut ack =
            || lines.by_ref().map_while(Result::ok).find_map(|line| line.strip_prefix("ack ")?.parse().ok());
        for _ in 0..acks {
            acknowledged = ack().expect("the child acknowledges");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        while let Some(later) = ack() {
            acknowledged = later;
        }
        let (journal, report) = SledJournal::open(dir.path(), EventId(0)).unwrap();
        assert!(report.last >= EventId(acknowledged), "lost: {} < {acknowledged}", report.last);
        assert_eq!((report.torn, report.missing_upto, report.findings), (None, None, Vec::new()));
        let read = read_all(&journal);
        assert_eq!(read.first().map(|entry| entry.id), Some(report.first));
        assert_eq!(read.last().map(|entry| entry.id), Some(report.last));
        for found in read {
            assert_eq!(found, entry(found.id.0, SIZE_OF(found.id.0)));
        }
    }
}
