//! What a server says about the history that its log continues.

use crate::domain::Lsn;

/// Where a server's log comes from. A standby that is promoted begins a new timeline; its history file
/// names the timelines before it, and where each was left:
/// <https://www.postgresql.org/docs/current/continuous-archiving.html#BACKUP-TIMELINES>.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lineage {
    /// Timelines before the present one, and the end of the log of each as far as it is part of the
    /// present one: what was written to it at or above is not. Oldest first.
    pub ancestors: Vec<(u32, Lsn)>,
    /// The slot was kept in step with one of that name on the server that this one followed until it was
    /// promoted. From Postgres 17 on; it stays so for ever.
    pub slot_synced: bool,
    /// Insert position of the log: nothing above it can have been read.
    pub end: Lsn,
    /// Above everything that this process has read of the database beside the stream, and may have given
    /// to a client, but for the initial rows of shapes. 0 where it has read nothing.
    pub queried: Lsn,
}

impl Lineage {
    /// The ancestors in a timeline's history file. `None` where it is not of that form: lines of timeline,
    /// position and reason, comments, and empty lines.
    #[must_use]
    pub fn parse_history(text: &str) -> Option<Vec<(u32, Lsn)>> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines
            .map(|line| {
                let mut fields = line.split_whitespace();
                let timeline = fields.next()?.parse().ok()?;
                Some((timeline, fields.next()?.parse().ok()?))
            })
            .collect()
    }

    /// Where the present timeline has left that one; `None` where it does not come from it.
    #[must_use]
    pub fn fork(&self, timeline: u32) -> Option<Lsn> {
        self.ancestors.iter().find(|(ancestor, _)| *ancestor == timeline).map(|(_, fork)| *fork)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_file_says_where_each_timeline_was_left() {
        let text = "1\t0/3000148\tno recovery target specified\n\n# a comment\n  2\t1/A0\tbefore transaction 7 at 2026\n";
        let ancestors = Lineage::parse_history(text).expect("it is of that form");
        assert_eq!(ancestors, [(1, Lsn(0x300_0148)), (2, Lsn(0x1_0000_00A0))]);
        let lineage = Lineage { ancestors, ..Lineage::default() };
        assert_eq!((lineage.fork(1), lineage.fork(3)), (Some(Lsn(0x300_0148)), None));
        assert_eq!(Lineage::parse_history(""), Some(Vec::new()));
        for bad in ["1", "one\t0/1\tx", "1\tnowhere\tx"] {
            assert_eq!(Lineage::parse_history(bad), None, "{bad}");
        }
    }
}
