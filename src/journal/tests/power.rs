//! A simulated power cut: what had not reached the block device is gone, also what the kernel would have
//! kept over a kill. Needs root, `mkfs.ext4` and loop mounts, so it runs only where
//! `SHAPEFOLD_TEST_POWER_CUTS` gives a number of rounds.
//!
//! A child appends to a journal on an ext4 in a file; it is frozen, the file is copied, and the copy is
//! mounted as the machine would find it after the cut. Not simulated: a disk that reorders or tears.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::kill::{DIR_VARIABLE, SIZE_OF};
use super::*;
use crate::journal::SledJournal;

const ROUNDS_VARIABLE: &str = "SHAPEFOLD_TEST_POWER_CUTS";

struct Mount(PathBuf);

impl Mount {
    fn new(image: &Path, at: PathBuf) -> Mount {
        std::fs::create_dir_all(&at).unwrap();
        run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(&at));
        Mount(at)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        run(Command::new("umount").arg(&self.0));
    }
}

fn run(command: &mut Command) {
    assert!(command.status().unwrap().success(), "{command:?}");
}

#[test]
fn a_power_cut_loses_nothing_acknowledged() {
    let Some(rounds) = std::env::var_os(ROUNDS_VARIABLE) else { return };
    let rounds: usize = rounds.to_str().unwrap().parse().unwrap();
    for round in 0..rounds {
        let dir = tempfile::tempdir().unwrap();
        let (live, copy) = (dir.path().join("live.img"), dir.path().join("copy.img"));
        std::fs::File::create(&live).unwrap().set_len(256 << 20).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&live));
        let mounted = Mount::new(&live, dir.path().join("live"));
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["journal::tests::kill::child_appends_until_killed", "--exact", "--nocapture"])
            .env(DIR_VARIABLE, mounted.0.join("data"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut acks = lines.filter_map(|line| line.strip_prefix("ack ")?.parse::<u64>().ok());
        let acknowledged = acks.nth(200 + round * 83 % 1500).expect("the child acknowledges");
        let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        std::fs::copy(&live, &copy).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        drop(mounted);
        let found = Mount::new(&copy, dir.path().join("copy"));
        let (journal, report) = SledJournal::open(&found.0.join("data"), EventId(0)).unwrap();
        println!("round {round}: acknowledged {acknowledged}, found {report:?}");
        assert!(report.last >= EventId(acknowledged), "lost: {} < {acknowledged}", report.last);
        assert_eq!((report.torn, report.missing_upto), (None, None));
        for entry_found in read_all(&journal) {
            assert_eq!(entry_found, entry(entry_found.id.0, SIZE_OF(entry_found.id.0)));
        }
    }
}
