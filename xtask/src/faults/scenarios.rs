//! Which fault strikes at which stage, and what the service is made to do so that it does.

use rustix::io::Errno;

use super::layer::{Call, Fault, Rule};

/// What makes the service come to the stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Small transactions for all shapes.
    Changes,
    /// A first request for a shape that nobody has asked for before, again and again.
    NewShape,
    /// Transactions that are too large for memory.
    LargeTransaction,
    /// A shape is deleted.
    DropShape,
    /// A client that begins anew reads everything from disk.
    Read,
}

/// One row of the table.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub stage: &'static str,
    pub name: String,
    pub rule: Rule,
    pub work: Work,
}

/// Longer than `SHAPEFOLD_WATCHDOG_AFTER` in these runs: a disk that takes so long raises the alarm.
const DELAY_MS: u32 = 3_000;
/// A disk that is as good as gone, and comes back.
const LONG_DELAY_MS: u32 = 30_000;
/// Strikes until it is lifted.
const ALWAYS: u32 = 0;

struct Stage {
    name: &'static str,
    call: Call,
    part: &'static str,
    without: &'static str,
    work: Work,
    faults: &'static [(Kind, u32)],
}

#[derive(Clone, Copy)]
enum Kind {
    Error(Errno),
    Short(Errno),
    Delay(u32),
}

const EIO: Kind = Kind::Error(Errno::IO);
const ENOSPC: Kind = Kind::Error(Errno::NOSPC);
const EMFILE: Kind = Kind::Error(Errno::MFILE);
const DELAY: Kind = Kind::Delay(DELAY_MS);
const LONG_DELAY: Kind = Kind::Delay(LONG_DELAY_MS);
const SHORT: Kind = Kind::Short(Errno::NOSPC);

const STAGES: [Stage; 17] = [
    Stage {
        name: "journal append",
        call: Call::Write,
        part: "/journal/sled/db",
        without: "",
        work: Work::Changes,
        faults: &[(EIO, 1), (ENOSPC, ALWAYS), (SHORT, ALWAYS)],
    },
    Stage {
        name: "journal sync",
        call: Call::Sync,
        part: "/journal/sled/db",
        without: "",
        work: Work::Changes,
        faults: &[(EIO, 1), (ENOSPC, ALWAYS), (DELAY, 1), (LONG_DELAY, 1)],
    },
    Stage {
        name: "shape log append",
        call: Call::Write,
        part: "/log",
        without: "log.idx",
        work: Work::Changes,
        faults: &[(EIO, 1), (EIO, ALWAYS), (ENOSPC, ALWAYS), (SHORT, 2)],
    },
    Stage {
        name: "shape log sync",
        call: Call::Sync,
        part: "/shapes/",
        without: "",
        work: Work::Changes,
        faults: &[(EIO, 1), (ENOSPC, 1), (DELAY, 1), (LONG_DELAY, 1)],
    },
    Stage {
        name: "shape log open",
        call: Call::Open,
        part: "/log",
        without: "/journal/",
        work: Work::NewShape,
        faults: &[(EMFILE, 1), (EMFILE, ALWAYS)],
    },
    Stage {
        name: "shape log read",
        call: Call::Read,
        part: "/log",
        without: "log.idx",
        work: Work::Read,
        faults: &[(EIO, 1), (EIO, ALWAYS)],
    },
    Stage {
        name: "shape directory",
        call: Call::Mkdir,
        part: "/shapes/",
        without: "",
        work: Work::NewShape,
        faults: &[(ENOSPC, ALWAYS), (EIO, 1)],
    },
    Stage {
        name: "definition create",
        call: Call::Open,
        part: "/definition",
        without: "",
        work: Work::NewShape,
        faults: &[(EMFILE, ALWAYS), (ENOSPC, ALWAYS)],
    },
    Stage {
        name: "snapshot write",
        call: Call::Write,
        part: "/snapshot",
        without: "",
        work: Work::NewShape,
        faults: &[(EIO, 1), (ENOSPC, ALWAYS), (SHORT, ALWAYS)],
    },
    Stage {
        name: "snapshot sync",
        call: Call::Sync,
        part: "/snapshot",
        without: "",
        work: Work::NewShape,
        faults: &[(EIO, 1), (DELAY, 1)],
    },
    Stage {
        name: "snapshot read",
        call: Call::Read,
        part: "/snapshot",
        without: "",
        work: Work::Read,
        faults: &[(EIO, 1), (EIO, ALWAYS)],
    },
    Stage {
        name: "spill open",
        call: Call::Open,
        part: "/spill",
        without: "",
        work: Work::LargeTransaction,
        faults: &[(EMFILE, 1)],
    },
    Stage {
        name: "spill write",
        call: Call::Write,
        part: "/spill",
        without: "",
        work: Work::LargeTransaction,
        faults: &[(EIO, 1), (ENOSPC, ALWAYS)],
    },
    Stage {
        name: "rename to trash",
        call: Call::Rename,
        part: "/shapes/",
        without: "",
        work: Work::DropShape,
        faults: &[(EIO, 1), (EIO, ALWAYS)],
    },
    Stage {
        name: "archive write",
        call: Call::Write,
        part: "/journal/archive",
        without: "",
        work: Work::Changes,
        faults: &[(EIO, 1), (ENOSPC, ALWAYS)],
    },
    Stage {
        name: "archive rename",
        call: Call::Rename,
        part: "/journal/archive",
        without: "",
        work: Work::Changes,
        faults: &[(EIO, 1)],
    },
    Stage {
        name: "high-water mark",
        call: Call::Write,
        part: "/journal/MARK",
        without: "",
        work: Work::Changes,
        faults: &[(EIO, 1)],
    },
];

/// All rows, in the order in which they are run; those whose stage or name contains `only`.
#[must_use]
pub fn all(only: Option<&str>) -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    for stage in &STAGES {
        for (kind, times) in stage.faults {
            let (fault, what) = match kind {
                Kind::Error(errno) => (Fault::Error(*errno), name(*errno).to_owned()),
                Kind::Short(errno) => (Fault::ShortWrite(*errno), format!("half, then {}", name(*errno))),
                Kind::Delay(millis) => (Fault::Delay(*millis), format!("{} s", millis / 1_000)),
            };
            let how_often = match *times {
                ALWAYS => "until lifted".to_owned(),
                1 => "once".to_owned(),
                times => format!("{times} times"),
            };
            let rule = Rule {
                call: stage.call,
                fault,
                part: stage.part,
                without: stage.without,
                skip: 0,
                times: *times,
            };
            let name = format!("{what} {how_often}");
            scenarios.push(Scenario { stage: stage.name, name, rule, work: stage.work });
        }
    }
    let wanted = |scenario: &Scenario| {
        only.is_none_or(|only| scenario.stage.contains(only) || scenario.name.contains(only))
    };
    scenarios.retain(wanted);
    scenarios
}

fn name(errno: Errno) -> &'static str {
    match errno {
        Errno::IO => "EIO",
        Errno::NOSPC => "ENOSPC",
        Errno::MFILE => "EMFILE",
        _ => "error",
    }
}
