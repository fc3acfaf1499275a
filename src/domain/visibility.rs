//! Which transactions a snapshot has seen: `pg_current_snapshot()`,
//! <https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-PG-SNAPSHOT>.

use serde::{Deserialize, Serialize};

use crate::domain::Xid;

/// A Postgres snapshot on 64-bit, epoch-extended transaction ids.
///
/// Invariant: `xmin <= xmax`; every entry of `xip` lies in `xmin..xmax`, ascending.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PgSnapshot {
    /// Every transaction below is finished and, if committed, visible.
    pub xmin: u64,
    /// No transaction at or above was finished.
    pub xmax: u64,
    /// The transactions between the two that were still running.
    pub xip: Vec<u64>,
}

impl PgSnapshot {
    /// Parses the text form `xmin:xmax:xip,xip,…`. `None` where it is not of this form or breaks the
    /// invariant.
    #[must_use]
    pub fn parse(text: &str) -> Option<PgSnapshot> {
        let mut parts = text.split(':');
        let (xmin, xmax, list) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() {
            return None;
        }
        let (xmin, xmax) = (xmin.parse().ok()?, xmax.parse().ok()?);
        let xip = if list.is_empty() {
            Vec::new()
        } else {
            list.split(',').map(str::parse).collect::<Result<Vec<u64>, _>>().ok()?
        };
        let inside = xip.iter().all(|xid| (xmin..xmax).contains(xid)) && xip.is_sorted();
        (xmin <= xmax && inside).then_some(PgSnapshot { xmin, xmax, xip })
    }

    /// Whether the commit of `xid` is part of this snapshot.
    ///
    /// The stream's 32-bit id is widened first: it denotes the 64-bit id nearest to `xmax`, since
    /// two ids alive at one time are never 2^31 apart. Comparing an unwidened id with `xip` takes
    /// running transactions for finished ones after the first wrap-around, and loses their rows.
    #[must_use]
    pub fn sees(&self, xid: Xid) -> bool {
        let xid = widen(xid, self.xmax);
        xid < self.xmin || (xid < self.xmax && self.xip.binary_search(&xid).is_err())
    }

    /// Whether every transaction that is still to come is outside this snapshot for certain, once
    /// one with this id has been seen: ids at or above `xmax` were not assigned when it was taken.
    #[must_use]
    pub fn is_past(&self, xid: Xid) -> bool {
        widen(xid, self.xmax) >= self.xmax
    }
}

/// The 64-bit id with these low 32 bits that is nearest to `reference`.
fn widen(xid: Xid, reference: u64) -> u64 {
    let distance = xid.0.wrapping_sub(reference as u32) as i32;
    reference.wrapping_add_signed(i64::from(distance))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(text: &str) -> PgSnapshot {
        PgSnapshot::parse(text).expect("a valid snapshot")
    }

    #[test]
    fn parses_what_postgres_prints_and_refuses_the_rest() {
        assert_eq!(snapshot("10:20:10,14"), PgSnapshot { xmin: 10, xmax: 20, xip: vec![10, 14] });
        assert_eq!(snapshot("744:744:"), PgSnapshot { xmin: 744, xmax: 744, xip: vec![] });
        for bad in ["", "1:2", "2:1:", "1:5:7", "1:5:3,2", "1:5:3:", "a:b:c"] {
            assert_eq!(PgSnapshot::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn sees_finished_transactions_only() {
        let snapshot = snapshot("10:20:10,14");
        let seen: Vec<u32> = (8..22).filter(|&xid| snapshot.sees(Xid(xid))).collect();
        assert_eq!(seen, [8, 9, 11, 12, 13, 15, 16, 17, 18, 19]);
    }

    /// X1: after the first wrap-around the ids of the snapshot no longer fit in 32 bits.
    #[test]
    fn sees_the_same_after_the_wrap_around() {
        const EPOCH: u64 = 3 << 32;
        let wrapped = PgSnapshot { xmin: EPOCH - 2, xmax: EPOCH + 5, xip: vec![EPOCH - 2, EPOCH + 1] };
        for (xid, visible) in [
            (u32::MAX - 2, true),
            (u32::MAX - 1, false),
            (u32::MAX, true),
            (0, true),
            (1, false),
            (4, true),
            (5, false),
        ] {
            assert_eq!(wrapped.sees(Xid(xid)), visible, "{xid}");
        }
        assert!(wrapped.is_past(Xid(5)) && !wrapped.is_past(Xid(4)) && !wrapped.is_past(Xid(u32::MAX)));
    }
}
