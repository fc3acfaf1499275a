//! Refusals. The texts are those of the wire contract, sections 1.5 and 2.

use std::collections::BTreeMap;

/// Bytes of `SELECT 1 WHERE `, which stands before every clause when it is parsed. Semantic errors
/// count from the clause, syntax errors from the whole statement: contract 2.1.
pub(super) const PREFIX: &str = "SELECT 1 WHERE ";

/// Why a where clause was refused. May quote the clause: for the client that sent it, not for logs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WhereError {
    #[error("At location {location}: {message}")]
    Located { location: usize, message: String },
    /// The same, of what would be wrong for Postgres, too.
    #[error("At location {location}: {message}")]
    Settled { location: usize, message: String },
    #[error("unescaped \";\" causing statement split")]
    SecondStatement,
    #[error("malformed query ending with SQL clauses")]
    TrailingClauses,
    #[error("Subqueries are not allowed in subsets")]
    SubqueryInSubset,
    #[error("Unexpected `;` in order by")]
    SemicolonInOrder,
    #[error("WHERE clause must return a boolean")]
    NotBoolean,
    /// Of an inner query.
    #[error("{0}")]
    Inner(&'static str),
    #[error("WHERE clause too complex for DNF decomposition ({found} disjuncts exceeds limit of {max})")]
    TooManyDisjuncts { found: usize, max: usize },
    #[error(
        "a subquery dependency cannot be used with both positive and negative polarity in the same filter"
    )]
    BothPolarities,
    #[error("WHERE clause is bigger than maximum size of {max} bytes")]
    TooLong { max: usize },
}

impl WhereError {
    /// A refusal at a byte offset of the parsed statement, prefix included.
    pub(super) fn at(offset: i32, message: impl Into<String>) -> WhereError {
        let offset = usize::try_from(offset).unwrap_or(0);
        WhereError::Located { location: offset.saturating_sub(PREFIX.len()), message: message.into() }
    }

    /// The same, where Postgres need not be asked whether it knows better.
    pub(super) fn settled(offset: i32, message: impl Into<String>) -> WhereError {
        let offset = usize::try_from(offset).unwrap_or(0);
        WhereError::Settled { location: offset.saturating_sub(PREFIX.len()), message: message.into() }
    }

    /// Whether it is about a construct that Postgres may evaluate where this module does not.
    pub(super) fn may_be_delegated(&self) -> bool {
        matches!(self, WhereError::Located { .. })
    }

    pub(super) fn location(&self) -> Option<usize> {
        match self {
            WhereError::Located { location, .. } | WhereError::Settled { location, .. } => Some(*location),
            WhereError::SecondStatement
            | WhereError::TrailingClauses
            | WhereError::SubqueryInSubset
            | WhereError::SemicolonInOrder
            | WhereError::NotBoolean
            | WhereError::Inner(_)
            | WhereError::TooManyDisjuncts { .. }
            | WhereError::BothPolarities
            | WhereError::TooLong { .. } => None,
        }
    }
}

/// Why a map of parameters was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParamsError {
    #[error("Parameters can only use numbers as keys")]
    NotANumber,
    #[error("Parameters must be numbered sequentially, starting from 1")]
    NotSequential,
}

/// Checks the keys of a parameter map and gives the values by number.
///
/// A key with leading zeros counts as its number in the check, but defines no parameter.
///
/// # Errors
/// The rule of contract 1.5 that the keys break.
pub fn check_params(params: &BTreeMap<String, String>) -> Result<BTreeMap<u32, String>, ParamsError> {
    let mut numbers = Vec::with_capacity(params.len());
    let mut values = BTreeMap::new();
    for (key, value) in params {
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(ParamsError::NotANumber);
        }
        // A number beyond u32 can only be part of a sequence with a gap.
        let number: u32 = key.parse().map_err(|_| ParamsError::NotSequential)?;
        numbers.push(number);
        if !key.starts_with('0') {
            values.insert(number, value.clone());
        }
    }
    numbers.sort_unstable();
    if numbers.iter().zip(1u32..).all(|(number, expected)| *number == expected) {
        Ok(values)
    } else {
        Err(ParamsError::NotSequential)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(keys: &[&str]) -> String {
        let params = keys.iter().map(|key| ((*key).to_owned(), format!("v{key}"))).collect();
        match check_params(&params) {
            Ok(values) => format!("{values:?}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn parameters_are_numbered_from_one_without_gaps() {
        let number = "Parameters can only use numbers as keys";
        let sequence = "Parameters must be numbered sequentially, starting from 1";
        for (keys, expected) in [
            (&[][..], "{}"),
            (&["1", "2"], r#"{1: "v1", 2: "v2"}"#),
            (&["01"], "{}"),
            (&["10", "9", "8", "7", "6", "5", "4", "3", "2"], sequence),
            (&["0", "1"], sequence),
            (&["1", "3"], sequence),
            (&["1", "01"], sequence),
            (&["99999999999"], sequence),
            (&["a"], number),
            (&[""], number),
            (&["-1"], number),
        ] {
            assert_eq!(check(keys), expected, "{keys:?}");
        }
    }
}
