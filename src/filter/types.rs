//! Types of expressions, and how Postgres resolves operators and lists over them.

use std::fmt;

use crate::domain::{Column, Oid};

/// The type of an expression. Only `Enum` and `Other` stand for more than one Postgres type.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Type {
    Bool,
    Int2,
    Int4,
    Int8,
    Float4,
    Float8,
    Numeric,
    Text,
    Varchar,
    Bpchar,
    Name,
    Uuid,
    Date,
    Time,
    Timestamp,
    Timestamptz,
    Interval,
    Jsonb,
    /// Of one of the types above; Postgres does not tell arrays by their dimensions.
    Array(Box<Type>),
    Enum {
        oid: Oid,
        name: String,
    },
    /// A type without operators here: only `IS [NOT] NULL`, which looks inside a composite value.
    Other {
        name: String,
        composite: bool,
    },
}

impl Type {
    /// The type of a column; that of a domain is the one below it.
    pub(super) fn of_column(column: &Column) -> Type {
        let is_array = column.element_oid != Oid(0);
        // A domain below an array is a domain over arrays, or the elements are of a domain.
        let (oid, name, kind) = match &column.base {
            Some(base) => (base.type_oid, &base.type_name, base.type_kind),
            None if is_array => (column.element_oid, &column.type_name, column.type_kind),
            None => (column.type_oid, &column.type_name, column.type_kind),
        };
        let base_array = column.base.as_ref().is_some_and(|base| base.is_array);
        let scalar = Type::of_oid(oid, name, kind);
        let shown = || {
            let brackets = if is_array || base_array { "[]" } else { "" };
            Type::Other {
                name: format!("{}{brackets}", column.type_name),
                composite: kind == 'c' && !is_array && !base_array,
            }
        };
        match scalar {
            Some(scalar) if !is_array && !base_array => scalar,
            Some(element) if is_array != base_array && element.may_be_element() => {
                Type::Array(Box::new(element))
            }
            _ => shown(),
        }
    }

    fn of_oid(oid: Oid, name: &str, kind: char) -> Option<Type> {
        if kind == 'e' {
            return Some(Type::Enum { oid, name: name.to_owned() });
        }
        Some(match oid.0 {
            16 => Type::Bool,
            19 => Type::Name,
            20 => Type::Int8,
            21 => Type::Int2,
            23 => Type::Int4,
            25 => Type::Text,
            700 => Type::Float4,
            701 => Type::Float8,
            1042 => Type::Bpchar,
            1043 => Type::Varchar,
            1082 => Type::Date,
            1083 => Type::Time,
            1114 => Type::Timestamp,
            1184 => Type::Timestamptz,
            1186 => Type::Interval,
            1700 => Type::Numeric,
            2950 => Type::Uuid,
            3802 => Type::Jsonb,
            _ => return None,
        })
    }

    /// Whether arrays of it are supported. Those of `char(n)` compare in a way of their own.
    pub(super) fn may_be_element(&self) -> bool {
        !matches!(self, Type::Bpchar | Type::Jsonb | Type::Array(_) | Type::Other { .. })
    }

    pub(super) fn array_of(element: &Type) -> Type {
        Type::Array(Box::new(element.clone()))
    }

    pub(super) fn element(&self) -> Option<&Type> {
        match self {
            Type::Array(element) => Some(element),
            _ => None,
        }
    }

    pub(super) fn other(name: &str) -> Type {
        Type::Other { name: name.to_owned(), composite: false }
    }

    /// The type of that catalog name, among those that a literal or a cast may have.
    pub(super) fn of_name(name: &str) -> Option<Type> {
        Some(match name {
            "bool" => Type::Bool,
            "int2" => Type::Int2,
            "int4" => Type::Int4,
            "int8" => Type::Int8,
            "float4" => Type::Float4,
            "float8" => Type::Float8,
            "numeric" => Type::Numeric,
            "text" => Type::Text,
            "varchar" => Type::Varchar,
            "bpchar" => Type::Bpchar,
            "name" => Type::Name,
            "uuid" => Type::Uuid,
            "date" => Type::Date,
            "time" => Type::Time,
            "timestamp" => Type::Timestamp,
            "timestamptz" => Type::Timestamptz,
            "interval" => Type::Interval,
            "jsonb" => Type::Jsonb,
            _ => return None,
        })
    }

    /// The name in `pg_type`, as far as operators are resolved by it.
    pub(super) fn catalog_name(&self) -> &'static str {
        match self {
            Type::Bool => "bool",
            Type::Int2 => "int2",
            Type::Int4 => "int4",
            Type::Int8 => "int8",
            Type::Float4 => "float4",
            Type::Float8 => "float8",
            Type::Numeric => "numeric",
            Type::Text => "text",
            Type::Varchar => "varchar",
            Type::Bpchar => "bpchar",
            Type::Name => "name",
            Type::Uuid => "uuid",
            Type::Date => "date",
            Type::Time => "time",
            Type::Timestamp => "timestamp",
            Type::Timestamptz => "timestamptz",
            Type::Interval => "interval",
            Type::Jsonb => "jsonb",
            Type::Array(element) if **element == Type::Text => "_text",
            Type::Array(_) => "array",
            Type::Enum { .. } => "enum",
            Type::Other { .. } => "other",
        }
    }

    pub(super) fn is_integer(&self) -> bool {
        matches!(self, Type::Int2 | Type::Int4 | Type::Int8)
    }

    pub(super) fn is_float(&self) -> bool {
        matches!(self, Type::Float4 | Type::Float8)
    }

    pub(super) fn is_number(&self) -> bool {
        self.is_integer() || self.is_float() || *self == Type::Numeric
    }

    pub(super) fn is_text(&self) -> bool {
        matches!(self, Type::Text | Type::Varchar | Type::Bpchar | Type::Name)
    }

    fn is_datetime(&self) -> bool {
        matches!(self, Type::Date | Type::Timestamp | Type::Timestamptz)
    }

    /// `typispreferred`: the type that its category prefers.
    fn is_preferred(&self) -> bool {
        matches!(self, Type::Bool | Type::Float8 | Type::Text | Type::Timestamptz)
    }

    fn same_category(&self, other: &Type) -> bool {
        (self.is_number() && other.is_number())
            || (self.is_text() && other.is_text())
            || (self.is_datetime() && other.is_datetime())
            || self == other
    }

    /// Whether Postgres casts without being asked, among the types of one category.
    pub(super) fn casts_implicitly(&self, to: &Type) -> bool {
        let rank = |number: &Type| match number {
            Type::Int2 => 0,
            Type::Int4 => 1,
            Type::Int8 => 2,
            Type::Numeric => 3,
            Type::Float4 => 4,
            _ => 5,
        };
        if self == to {
            return true;
        }
        if self.is_number() && to.is_number() {
            return rank(self) < rank(to);
        }
        if self.is_text() && to.is_text() {
            // name -> bpchar and name -> varchar happen on assignment only.
            return *self != Type::Name || *to == Type::Text;
        }
        if let (Type::Array(from), Type::Array(to)) = (self, to) {
            return from.casts_implicitly(to);
        }
        if *self == Type::Time && *to == Type::Interval {
            return true;
        }
        // Casts to timestamptz depend on the time zone of the session: contract 2.4 leaves them out.
        *self == Type::Date && *to == Type::Timestamp
    }
}

/// The catalog name, as messages and canonical SQL have it.
impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Array(element) => write!(f, "{element}[]"),
            Type::Enum { name, .. } => write!(f, "enum {name}"),
            Type::Other { name, .. } => f.write_str(name),
            scalar => f.write_str(scalar.catalog_name()),
        }
    }
}

/// The form in which two values are compared: the operator that Postgres would pick.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Form {
    Bool,
    Integer,
    Numeric,
    Float,
    /// Text by bytes; a `char(n)` has lost its trailing blanks on the way.
    Text,
    /// `char(n)` on both sides: trailing blanks do not count on either.
    Blanks,
    Uuid,
    Date,
    Time,
    Timestamp,
    Timestamptz,
    Interval,
    /// Elements in the forms of their type.
    Array,
    Json,
}

impl Form {
    /// The form in which an expression of that type has its own value. None where it has no
    /// comparisons at all.
    pub(super) fn of_type(ty: &Type) -> Option<Form> {
        Some(match ty {
            Type::Bool => Form::Bool,
            Type::Int2 | Type::Int4 | Type::Int8 => Form::Integer,
            Type::Float4 | Type::Float8 => Form::Float,
            Type::Numeric => Form::Numeric,
            Type::Text | Type::Varchar | Type::Name | Type::Enum { .. } => Form::Text,
            Type::Bpchar => Form::Blanks,
            Type::Uuid => Form::Uuid,
            Type::Date => Form::Date,
            Type::Time => Form::Time,
            Type::Timestamp => Form::Timestamp,
            Type::Timestamptz => Form::Timestamptz,
            Type::Interval => Form::Interval,
            Type::Jsonb => Form::Json,
            Type::Array(_) => Form::Array,
            Type::Other { .. } => return None,
        })
    }

    /// The comparison that Postgres resolves for operands of two known types.
    pub(super) fn of_operands(left: &Type, right: &Type) -> Option<Form> {
        if left == right {
            return Form::of_type(left);
        }
        if left.is_number() && right.is_number() {
            return Some(if left.is_float() || right.is_float() {
                Form::Float
            } else if *left == Type::Numeric || *right == Type::Numeric {
                Form::Numeric
            } else {
                Form::Integer
            });
        }
        if left.is_text() && right.is_text() {
            // bpchar with varchar has one exact match, bpchar = bpchar. With text or name the
            // preferred type wins, and the bpchar is cast to text.
            let blanks = |a: &Type, b: &Type| *a == Type::Bpchar && *b == Type::Varchar;
            return Some(if blanks(left, right) || blanks(right, left) { Form::Blanks } else { Form::Text });
        }
        match (left, right) {
            (Type::Date, Type::Timestamp) | (Type::Timestamp, Type::Date) => Some(Form::Timestamp),
            (Type::Time, Type::Interval) | (Type::Interval, Type::Time) => Some(Form::Interval),
            _ => None,
        }
    }

    /// Whether `<` and its kin exist: contract 2.5 gives bool and arrays none, and texts inside a
    /// jsonb are ordered by the collation of the database.
    pub(super) fn is_ordered(self) -> bool {
        !matches!(self, Form::Bool | Form::Array | Form::Json)
    }

    /// Whether the order depends on a collation.
    pub(super) fn is_collated(self) -> bool {
        matches!(self, Form::Text | Form::Blanks)
    }
}

/// The common type of a list, as Postgres' `select_common_type` picks it; None stands for an untyped
/// literal. No result: the types have none in common.
pub(super) fn common_type(types: &[Option<Type>]) -> Option<Type> {
    let mut chosen: Option<&Type> = types.first()?.as_ref();
    for next in types.iter().skip(1).flatten() {
        chosen = match chosen {
            None => Some(next),
            Some(current) if current == next => Some(current),
            Some(current) if !current.same_category(next) => return None,
            Some(current) => {
                let better = !current.is_preferred()
                    && current.casts_implicitly(next)
                    && !next.casts_implicitly(current);
                Some(if better { next } else { current })
            }
        };
    }
    Some(chosen.cloned().unwrap_or(Type::Text))
}
