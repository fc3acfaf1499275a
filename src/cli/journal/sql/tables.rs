//! The tables and their columns. Stable: columns may be added at the end, none is renamed or removed.

use std::io::{self, Write};

/// One table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    Moment,
    Shapes,
    Flush,
    Consumers,
    Transactions,
    Events,
    Acks,
    Owners,
}

impl Table {
    pub const ALL: [Table; 8] = [
        Table::Moment,
        Table::Shapes,
        Table::Flush,
        Table::Consumers,
        Table::Transactions,
        Table::Events,
        Table::Acks,
        Table::Owners,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Table::Moment => "moment",
            Table::Shapes => "shapes",
            Table::Flush => "flush",
            Table::Consumers => "consumers",
            Table::Transactions => "transactions",
            Table::Events => "events",
            Table::Acks => "acks",
            Table::Owners => "owners",
        }
    }

    fn about(self) -> &'static str {
        match self {
            Table::Moment => "the place that was asked about: one row",
            Table::Shapes => "every shape there is",
            Table::Flush => "the shapes that owe something: who holds the write-ahead log",
            Table::Consumers => "the writer of every shape, or how its last one ended",
            Table::Transactions => "routed transactions that some shape owes",
            Table::Events => "every event; `fields` is JSON: json_extract(fields, '$.cause')",
            Table::Acks => "every acknowledgement, judged",
            Table::Owners => "every ownership of the directory",
        }
    }

    /// Name, type and meaning. Times are text, UTC; `_us` are microseconds since 1970; ages and idle times are
    /// seconds at the place that was asked about; LSNs are text as Postgres writes it, positions in bytes are
    /// numbers.
    pub fn columns(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Table::Moment => &[
                ("event", "INTEGER"),
                ("at", "TEXT"),
                ("at_us", "INTEGER"),
                ("epoch", "INTEGER"),
                ("owner", "TEXT"),
                ("stream", "TEXT"),
                ("received", "TEXT"),
                ("boundary", "TEXT"),
                ("acked", "TEXT"),
                ("received_bytes", "INTEGER"),
                ("boundary_bytes", "INTEGER"),
                ("gap_bytes", "INTEGER"),
                ("shapes", "INTEGER"),
                ("owing", "INTEGER"),
            ],
            Table::Shapes => &[
                ("sid", "INTEGER PRIMARY KEY"),
                ("handle", "TEXT"),
                ("table_oid", "INTEGER"),
                ("definition", "TEXT"),
                ("life", "TEXT"),
                ("created_event", "INTEGER"),
                ("created_at", "TEXT"),
                ("age_s", "REAL"),
                ("writer", "TEXT"),
                ("incarnation", "INTEGER"),
                ("snapshot_attempt", "INTEGER"),
                ("snapshot_lsn", "TEXT"),
                ("pending", "INTEGER"),
                ("oldest_seq", "INTEGER"),
                ("flushed_seq", "INTEGER"),
                ("progressed_at", "TEXT"),
                ("idle_s", "REAL"),
                ("suspected", "INTEGER"),
                ("ended_cause", "TEXT"),
                ("ended_event", "INTEGER"),
                ("ended_at", "TEXT"),
            ],
            Table::Flush => &[
                ("sid", "INTEGER PRIMARY KEY"),
                ("handle", "TEXT"),
                ("table_oid", "INTEGER"),
                ("oldest_seq", "INTEGER"),
                ("lsn", "TEXT"),
                ("xid", "INTEGER"),
                ("held_bytes", "INTEGER"),
                ("owed", "INTEGER"),
                ("since", "TEXT"),
                ("idle_s", "REAL"),
                ("payer", "TEXT"),
                ("stuck", "INTEGER"),
                ("suspected", "INTEGER"),
                ("flushed_nothing", "INTEGER"),
                ("last_exit_event", "INTEGER"),
                ("last_exit_at", "TEXT"),
                ("last_exit_cause", "TEXT"),
            ],
            Table::Consumers => &[
                ("sid", "INTEGER PRIMARY KEY"),
                ("handle", "TEXT"),
                ("table_oid", "INTEGER"),
                ("state", "TEXT"),
                ("incarnation", "INTEGER"),
                ("live", "INTEGER"),
                ("pending", "INTEGER"),
                ("restart_due", "TEXT"),
                ("last_exit_event", "INTEGER"),
                ("last_exit_at", "TEXT"),
                ("last_exit_cause", "TEXT"),
                ("last_exit_age_s", "REAL"),
            ],
            Table::Transactions => &[
                ("seq", "INTEGER PRIMARY KEY"),
                ("lsn", "TEXT"),
                ("lsn_bytes", "INTEGER"),
                ("xid", "INTEGER"),
                ("routed_to", "INTEGER"),
                ("owed_by", "INTEGER"),
            ],
            Table::Events => &[
                ("id", "INTEGER PRIMARY KEY"),
                ("at", "TEXT"),
                ("at_us", "INTEGER"),
                ("age_s", "REAL"),
                ("epoch", "INTEGER"),
                ("because", "INTEGER"),
                ("kind", "TEXT"),
                ("sid", "INTEGER"),
                ("handle", "TEXT"),
                ("table_oid", "INTEGER"),
                ("cause", "TEXT"),
                ("fields", "TEXT"),
            ],
            Table::Acks => &[
                ("event", "INTEGER PRIMARY KEY"),
                ("at", "TEXT"),
                ("at_us", "INTEGER"),
                ("age_s", "REAL"),
                ("lsn", "TEXT"),
                ("lsn_bytes", "INTEGER"),
                ("cause", "TEXT"),
                ("safe", "INTEGER"),
                ("owed_seq", "INTEGER"),
                ("owed_lsn", "TEXT"),
                ("holder", "TEXT"),
                ("holders", "INTEGER"),
                ("gap_bytes", "INTEGER"),
            ],
            Table::Owners => &[
                ("epoch", "INTEGER"),
                ("host", "TEXT"),
                ("pid", "INTEGER"),
                ("boot_id", "TEXT"),
                ("version", "TEXT"),
                ("config_hash", "TEXT"),
                ("waited_ms", "INTEGER"),
                ("from_event", "INTEGER"),
                ("from_at", "TEXT"),
                ("last_event", "INTEGER"),
                ("until_at", "TEXT"),
                ("age_s", "REAL"),
                ("ended", "TEXT"),
                ("events_beside_another", "INTEGER"),
            ],
        }
    }

    pub fn create(self) -> String {
        let columns: Vec<String> =
            self.columns().iter().map(|(name, kind)| format!("{name} {kind}")).collect();
        format!("CREATE TABLE {} ({});", self.name(), columns.join(", "))
    }

    pub fn insert(self) -> String {
        let places = vec!["?"; self.columns().len()].join(", ");
        format!("INSERT OR REPLACE INTO {} VALUES ({places})", self.name())
    }
}

/// The tables, for somebody who wants to ask.
pub fn describe(out: &mut impl Write) -> io::Result<()> {
    for table in Table::ALL {
        let columns: Vec<&str> = table.columns().iter().map(|(name, _)| *name).collect();
        writeln!(out, "{:<13} {}", table.name(), table.about())?;
        writeln!(out, "              {}", columns.join(", "))?;
    }
    Ok(())
}
