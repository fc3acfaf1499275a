//! Positions in the log of a shape: contract, section 1.11.

use std::fmt;
use std::str::FromStr;

use crate::domain::Lsn;

/// A position in the log of one shape, and what a client sends as `offset`.
///
/// Ordered: [`Offset::BeforeAll`] is smaller than every other, then by transaction, then by operation.
/// `tx == 0` is virtual: `0_N` is the end of snapshot chunk `N`, `0_inf` the end of the snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Offset {
    /// `-1`: before the first snapshot row.
    BeforeAll,
    /// `<tx>_<op>`; `tx` is the LSN of the commit record (its *final LSN*).
    At { tx: Lsn, op: Op },
}

/// The part of an [`Offset`] inside its transaction. `inf` is larger than every number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Op {
    At(u64),
    Infinity,
}

/// The text is not `-1`, `<n>_<n>` or `<n>_inf`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("has invalid format")]
pub struct OffsetError;

impl Offset {
    /// The end of every snapshot: also the latest offset of a shape whose log is empty.
    pub const SNAPSHOT_END: Offset = Offset::At { tx: Lsn(0), op: Op::Infinity };

    /// The end of snapshot chunk `chunk`.
    #[must_use]
    pub fn snapshot_chunk(chunk: u64) -> Offset {
        Offset::At { tx: Lsn(0), op: Op::At(chunk) }
    }

    #[must_use]
    pub fn new(tx: Lsn, op: u64) -> Offset {
        Offset::At { tx, op: Op::At(op) }
    }

    /// The transaction part; 0 for the offsets inside and before the snapshot.
    #[must_use]
    pub fn tx(self) -> Lsn {
        match self {
            Offset::BeforeAll => Lsn(0),
            Offset::At { tx, .. } => tx,
        }
    }

    /// The part inside its transaction; `None` for `-1` and at the end.
    #[must_use]
    pub fn op(self) -> Option<u64> {
        match self {
            Offset::At { op: Op::At(op), .. } => Some(op),
            Offset::BeforeAll | Offset::At { op: Op::Infinity, .. } => None,
        }
    }

    /// Whether the position lies before or inside the snapshot (`-1` and `0_*`).
    #[must_use]
    pub fn is_virtual(self) -> bool {
        self.tx() == Lsn(0)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Offset::BeforeAll => f.write_str("-1"),
            Offset::At { tx, op: Op::At(op) } => write!(f, "{}_{op}", tx.0),
            Offset::At { tx, op: Op::Infinity } => write!(f, "{}_inf", tx.0),
        }
    }
}

impl FromStr for Offset {
    type Err = OffsetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "-1" || text == "-1_0" {
            return Ok(Offset::BeforeAll);
        }
        let (tx, op) = text.split_once('_').ok_or(OffsetError)?;
        let op = if op == "inf" { Op::Infinity } else { Op::At(decimal(op)?) };
        Ok(Offset::At { tx: Lsn(decimal(tx)?), op })
    }
}

/// Decimal digits only: `u64::from_str` would also take a leading `+`.
fn decimal(digits: &str) -> Result<u64, OffsetError> {
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(OffsetError);
    }
    digits.parse().map_err(|_| OffsetError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_the_forms_of_the_contract_and_no_others() {
        for (text, shown) in [
            ("-1", "-1"),
            ("-1_0", "-1"),
            ("0_0", "0_0"),
            ("0_inf", "0_inf"),
            ("007_010", "7_10"),
            ("18446744073709551615_2", "18446744073709551615_2"),
        ] {
            assert_eq!(text.parse::<Offset>().map(|o| o.to_string()), Ok(shown.to_owned()), "{text}");
        }
        for bad in [
            "",
            "10",
            "1_2_3",
            "1_2 ",
            " 1_2",
            "-2",
            "-1_1",
            "1_-2",
            "+1_2",
            "1_",
            "_1",
            "18446744073709551616_0",
        ] {
            assert_eq!(bad.parse::<Offset>(), Err(OffsetError), "{bad}");
        }
    }

    #[test]
    fn orders_as_the_contract_says() {
        let ascending: Vec<Offset> = ["-1", "0_0", "0_7", "0_inf", "5_0", "5_2", "5_inf", "6_0"]
            .iter()
            .map(|text| text.parse().expect("a valid offset"))
            .collect();
        assert!(ascending.is_sorted());
        assert!(ascending.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
