//! Writers that die at random: the audit flags exactly those. With 300,000 shapes: `./dev chaos writers`.

use std::time::Duration;

use crate::fleet::{FleetError, FleetSettings, run};

fn settings(seed: u64) -> FleetSettings {
    FleetSettings {
        shapes: 2_000,
        duration: Duration::from_secs(6),
        txns_per_second: 1_000,
        fan_out: 10,
        wal_bytes: 1_000,
        killed_percent: 1.0,
        audit_every: Duration::from_secs(1),
        seed,
        real_time: false,
    }
}

/// 4.6, 4.18: those that die are flagged, nobody else is, and the log that is kept stays bounded. The same
/// with 300,000: `./dev chaos writers`.
#[test]
fn the_audit_flags_exactly_those_that_died() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(1);
    let report = run(directory.path(), &settings, |_, _| {}).unwrap();
    assert_eq!(report.faults(&settings), Vec::<String>::new(), "{report:?}");
    assert_eq!((report.transactions, report.living_at_start), (6_001, 2_000));
    assert!(report.killed >= 60, "{report:?}");
    assert!(report.end_events >= 4 * 2_000, "one step ended them all: {report:?}");
}

/// Without an audit nobody would find them: the check must notice.
#[test]
fn a_fleet_without_an_audit_is_found_out() {
    let directory = tempfile::tempdir().unwrap();
    let settings = FleetSettings { audit_every: Duration::from_secs(3_600), ..settings(2) };
    let ended = run(directory.path(), &settings, |_, _| {});
    assert!(matches!(ended, Err(FleetError::NoEnd(_))), "{ended:?}");
}
