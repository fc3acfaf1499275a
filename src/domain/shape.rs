//! What a shape is, and what it is called: contract, section 1.8.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::domain::fnv::Fnv;
use crate::domain::{Oid, Relation};

/// The name of a shape on the wire: `<decimal hash>-<decimal unix time in microseconds>`.
///
/// Never reused: clients and caches remember expired handles.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Handle {
    pub hash: u64,
    pub micros: u64,
}

/// The text is not `<digits>-<digits>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a shape handle")]
pub struct HandleError;

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.hash, self.micros)
    }
}

/// As it is on the wire, also inside other values.
impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Handle {
    type Err = HandleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let decimal = |digits: &str| {
            // Leading zeros would give one handle two spellings, hence two cache keys.
            let canonical = digits == "0" || !digits.starts_with('0');
            let digits_only = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            if canonical && digits_only {
                digits.parse::<u64>().map_err(|_| HandleError)
            } else {
                Err(HandleError)
            }
        };
        let (hash, micros) = text.split_once('-').ok_or(HandleError)?;
        Ok(Handle { hash: decimal(hash)?, micros: decimal(micros)? })
    }
}

/// Hash of a [`ShapeDefinition`]: all that the journal keeps of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DefinitionHash(pub u64);

/// Which columns updates and deletes carry: contract 1.10.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Replica {
    #[default]
    Default,
    Full,
}

/// Whether a shape has initial rows: contract 1.15.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LogMode {
    #[default]
    Full,
    ChangesOnly,
}

/// What a client asked for, resolved against the catalog. Two requests with equal definitions share
/// one shape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShapeDefinition {
    /// Shared by the shapes of a table.
    pub relation: Arc<Relation>,
    /// Canonical SQL of the where clause, parameters replaced by typed literals.
    pub where_sql: Option<String>,
    /// Names of the selected columns, sorted.
    pub columns: Vec<String>,
    /// The client named its columns. Naming all of them is another shape than naming none.
    pub columns_named: bool,
    pub replica: Replica,
    pub log: LogMode,
    /// The inner queries of the where clause, in the order of their first appearance: shapes of their
    /// own, which other shapes may share.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dependencies: Vec<ShapeDefinition>,
    /// Of an inner query: the columns whose values are asked for, in the order of its select list. Empty
    /// for the shapes of clients, so that none of them is ever the same shape as an inner query.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub selects: Vec<String>,
}

impl ShapeDefinition {
    /// Whether it is an inner query: known to the shapes that depend on it, and to no client.
    #[must_use]
    pub fn is_inner(&self) -> bool {
        !self.selects.is_empty()
    }

    /// The tables whose rows decide about the shape, ascending: its own, and those of its inner queries.
    #[must_use]
    pub fn tables(&self) -> Vec<Oid> {
        let mut tables = vec![self.relation.oid];
        self.dependencies.iter().for_each(|dependency| tables.extend(dependency.tables()));
        tables.sort_unstable();
        tables.dedup();
        tables
    }

    /// Names of the columns that make up the key, in key order.
    #[must_use]
    pub fn key_columns(&self) -> Vec<&str> {
        self.relation.key_columns().into_iter().map(|column| column.name.as_str()).collect()
    }

    /// A stable hash over everything that makes the identity of a shape; the same in every build
    /// and on every machine, since handles and the journal carry it.
    ///
    /// A collision is harmless: equality of definitions decides, the hash only finds candidates.
    #[must_use]
    pub fn hash(&self) -> DefinitionHash {
        let mut hash = Fnv::new();
        hash.number(u64::from(self.relation.oid.0));
        hash.text(&self.relation.name.schema);
        hash.text(&self.relation.name.table);
        for key in self.key_columns() {
            hash.text(key);
        }
        hash.number(u64::from(self.where_sql.is_some()));
        hash.text(self.where_sql.as_deref().unwrap_or_default());
        for column in &self.columns {
            hash.text(column);
        }
        hash.number(u64::from(self.columns_named));
        hash.number(match self.replica {
            Replica::Default => 0,
            Replica::Full => 1,
        });
        hash.number(match self.log {
            LogMode::Full => 0,
            LogMode::ChangesOnly => 1,
        });
        // Nothing where there is nothing: shapes without inner queries keep the hash that they had.
        for dependency in &self.dependencies {
            hash.number(dependency.hash().0);
        }
        for column in &self.selects {
            hash.text(column);
        }
        DefinitionHash(hash.finish())
    }

    /// Whether both name the same shape. Facts of the catalog that may change under a living shape
    /// (nullability, modifiers) do not count: contract 4.6.
    #[must_use]
    pub fn same_shape(&self, other: &ShapeDefinition) -> bool {
        self.relation.oid == other.relation.oid
            && self.relation.name == other.relation.name
            && self.key_columns() == other.key_columns()
            && self.where_sql == other.where_sql
            && self.columns == other.columns
            && self.columns_named == other.columns_named
            && self.replica == other.replica
            && self.log == other.log
            && self.selects == other.selects
            && self.dependencies.len() == other.dependencies.len()
            && self.dependencies.iter().zip(&other.dependencies).all(|(own, other)| own.same_shape(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Column, Oid, RelationName};

    fn definition() -> ShapeDefinition {
        let column = |name: &str, pk_position: Option<u16>| Column {
            name: name.to_owned(),
            type_oid: Oid(23),
            type_name: "int4".to_owned(),
            element_oid: Oid(0),
            type_modifier: -1,
            dimensions: 0,
            not_null: pk_position.is_some(),
            pk_position,
            generated: false,
            type_kind: 'b',
            base: None,
        };
        ShapeDefinition {
            relation: Arc::new(Relation {
                oid: Oid(16_400),
                name: RelationName { schema: "public".to_owned(), table: "items".to_owned() },
                columns: vec![column("b", Some(1)), column("a", Some(0)), column("v", None)],
                partitioned: false,
                storage: None,
            }),
            where_sql: None,
            columns: vec!["a".to_owned(), "b".to_owned(), "v".to_owned()],
            columns_named: false,
            replica: Replica::Default,
            log: LogMode::Full,
            dependencies: Vec::new(),
            selects: Vec::new(),
        }
    }

    #[test]
    fn the_key_is_in_index_order() {
        assert_eq!(definition().key_columns(), ["a", "b"]);
    }

    #[test]
    fn every_part_of_the_identity_changes_the_hash() {
        let base = definition();
        let variants = [
            ShapeDefinition { where_sql: Some(String::new()), ..base.clone() },
            ShapeDefinition { columns: vec!["a".to_owned(), "b".to_owned()], ..base.clone() },
            ShapeDefinition { columns_named: true, ..base.clone() },
            ShapeDefinition { replica: Replica::Full, ..base.clone() },
            ShapeDefinition { log: LogMode::ChangesOnly, ..base.clone() },
            ShapeDefinition { dependencies: vec![base.clone()], ..base.clone() },
            ShapeDefinition { selects: vec!["a".to_owned()], ..base.clone() },
        ];
        for variant in variants {
            assert!(!variant.same_shape(&base));
            assert_ne!(variant.hash(), base.hash(), "{variant:?}");
        }
        // Pinned: a change of the hash would rename every shape on disk.
        assert_eq!(base.hash(), definition().hash());
        assert!(base.same_shape(&definition()));
    }

    #[test]
    fn a_handle_has_one_spelling() {
        let handle: Handle = "123-1690000000000000".parse().expect("a handle");
        assert_eq!(handle.to_string(), "123-1690000000000000");
        for bad in ["", "-", "1", "1-", "-1", "01-1", "1-1-1", "a-1", "1- 1", "18446744073709551616-1"] {
            assert_eq!(bad.parse::<Handle>(), Err(HandleError), "{bad}");
        }
    }
}
