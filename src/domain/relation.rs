//! Tables: as the catalog describes them, and as the replication stream announces them.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::domain::Oid;
use crate::domain::fnv::Fnv;

/// The qualified name of a table, unquoted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RelationName {
    pub schema: String,
    pub table: String,
}

impl RelationName {
    /// Quoted for SQL: `"public"."items"`, quotes inside doubled.
    #[must_use]
    pub fn to_sql(&self) -> String {
        format!("{}.{}", quote_identifier(&self.schema), quote_identifier(&self.table))
    }
}

/// `schema.table`, unquoted: for messages.
impl fmt::Display for RelationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.table)
    }
}

/// Wraps an identifier in double quotes, doubling those inside.
#[must_use]
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A table as `pg_class`, `pg_attribute` and `pg_index` describe it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relation {
    pub oid: Oid,
    pub name: RelationName,
    /// In the order of `attnum`, without dropped columns.
    pub columns: Vec<Column>,
    /// `relkind = 'p'`.
    pub partitioned: bool,
    /// Not known of shapes that were made before it was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,
}

/// What of the catalog tells that values are others although no change said so: `ALTER COLUMN … TYPE …
/// USING …` writes the table anew and says nothing in the stream, not even where the type stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Storage {
    /// `relfilenode`: another one after everything that writes the table anew, also VACUUM FULL, CLUSTER
    /// and TRUNCATE. 0 for a partitioned table, which has no rows of its own.
    pub file: u32,
    /// `xmin` of the row of `pg_class`: of whoever wrote the table anew, until something else of the table
    /// is altered.
    pub altered: u32,
    /// `xmin` of the row of `pg_attribute` of each column, in the order of the columns: another one after
    /// every ALTER COLUMN.
    pub columns: Vec<u32>,
}

impl Relation {
    /// The columns that were altered since the table was as here, if it was written anew since then, too;
    /// and of each, whether one transaction did both. If not, they may have been two statements that change
    /// no value, such as VACUUM FULL and SET STATISTICS. If so, it may have been VACUUM FULL of a column that
    /// was added with a default, which is then written into the rows.
    pub fn rewritten<'a>(&'a self, now: &'a Relation) -> impl Iterator<Item = (&'a str, bool)> {
        let both = self.storage.as_ref().zip(now.storage.as_ref());
        both.filter(|(known, now)| known.file != now.file).into_iter().flat_map(move |(known, other)| {
            let columns = self.columns.iter().zip(&known.columns);
            columns.filter_map(move |(column, before)| {
                let index = now.columns.iter().position(|found| found.name == column.name)?;
                let after = other.columns.get(index)?;
                (after != before).then_some((column.name.as_str(), *after == other.altered))
            })
        })
    }

    /// The columns that make up the key of a row, in index order: those of the primary key, or all
    /// columns in table order where there is none (contract 3.4).
    #[must_use]
    pub fn key_columns(&self) -> Vec<&Column> {
        let mut key: Vec<&Column> = self.columns.iter().filter(|c| c.pk_position.is_some()).collect();
        if key.is_empty() {
            return self.columns.iter().collect();
        }
        key.sort_by_key(|column| column.pk_position);
        key
    }

    #[must_use]
    pub fn has_primary_key(&self) -> bool {
        self.columns.iter().any(|column| column.pk_position.is_some())
    }

    #[must_use]
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }
}

/// One column of a [`Relation`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    pub name: String,
    pub type_oid: Oid,
    /// Catalog name of the type, of the *element* type for an array: `int4`, `text`, `bpchar`.
    pub type_name: String,
    /// For an array the oid of its element type, otherwise 0.
    pub element_oid: Oid,
    /// `atttypmod`; -1 where the type has no modifier.
    pub type_modifier: i32,
    /// Declared array dimensions; 0 for a type that is no array.
    pub dimensions: u16,
    pub not_null: bool,
    /// Position in the primary key, from 0, in index order.
    pub pk_position: Option<u16>,
    /// Generated, and never in the stream: all of them before Postgres 18, from there on those that are
    /// virtual. One that is stored is then like any other column.
    pub generated: bool,
    /// `pg_type.typtype` of the (element) type: `b` base, `c` composite, `d` domain, `e` enum, …
    pub type_kind: char,
    /// Where the (element) type is a domain, what it is a domain over. None in what was stored before
    /// there was such a field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<BaseType>,
}

/// The type below a domain, and below the domains that it may be a domain over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseType {
    /// Of the *element* type for an array.
    pub type_oid: Oid,
    pub type_name: String,
    /// `pg_type.typtype` of the (element) type.
    pub type_kind: char,
    pub is_array: bool,
}

/// A relation as a pgoutput Relation message announces it; changes refer to it by position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireRelation {
    pub oid: Oid,
    pub name: RelationName,
    /// `relreplident`: `d` default, `n` nothing, `f` full, `i` index.
    pub replica_identity: char,
    pub columns: Vec<WireColumn>,
}

impl WireRelation {
    /// Position of a column in the tuples of this relation.
    #[must_use]
    pub fn position(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name)
    }

    /// A stable hash of name and columns: tells whether a relation was announced anew with a change.
    #[must_use]
    pub fn schema_hash(&self) -> u64 {
        let mut hash = Fnv::new();
        hash.text(&self.name.schema);
        hash.text(&self.name.table);
        for column in &self.columns {
            hash.text(&column.name);
            hash.number(u64::from(column.type_oid.0));
            hash.number(u64::from(column.type_modifier.cast_unsigned()));
        }
        hash.finish()
    }
}

/// One column of a [`WireRelation`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireColumn {
    pub name: String,
    pub type_oid: Oid,
    pub type_modifier: i32,
    /// Part of the replica identity; all columns are where it is FULL.
    pub in_identity: bool,
}
