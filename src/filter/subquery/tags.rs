//! The canonical text of values, and their hashes.

use std::fmt;

use md5::{Digest as _, Md5};

use super::super::datum::Datum;
use super::super::decode::decode_natural;
use super::super::types::Type;
use crate::domain::{Handle, ShapeDefinition, Tuple, Value};

/// The canonical texts of the columns that are looked up, or that an inner query gives; `None` is NULL.
pub type Values = Box<[Option<Box<[u8]>>]>;

/// The hash of a value, as clients know it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Digest(pub [u8; 16]);

impl Digest {
    /// Reads what was printed.
    #[must_use]
    pub fn parse(text: &str) -> Option<Digest> {
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        u128::from_str_radix(text, 16).ok().map(|number| Digest(number.to_be_bytes()))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What makes the hashes of one shape its own: the name of the stack and the handle.
#[derive(Clone, Debug)]
pub struct TagScope(Vec<u8>);

impl TagScope {
    #[must_use]
    pub fn new(stack: &str, handle: Handle) -> TagScope {
        TagScope(format!("{stack}{handle}").into_bytes())
    }

    /// `md5(stack ‖ handle ‖ ns(value))`; of several columns `name:ns(value)` for each.
    #[must_use]
    pub fn digest(&self, names: &[&str], values: &Values) -> Digest {
        let mut hash = Md5::new();
        hash.update(&self.0);
        for (index, value) in values.iter().enumerate() {
            if values.len() > 1 {
                hash.update(names.get(index).copied().unwrap_or_default().as_bytes());
                hash.update(b":");
            }
            match value {
                Some(text) => {
                    hash.update(b"v:");
                    hash.update(text);
                }
                None => hash.update(b"NULL"),
            }
        }
        Digest(hash.finalize().into())
    }
}

/// Whether values of a type have a canonical text: equal ones and only those have the same.
pub(super) fn has_canonical_text(ty: &Type) -> bool {
    match ty {
        Type::Bool
        | Type::Int2
        | Type::Int4
        | Type::Int8
        | Type::Float4
        | Type::Float8
        | Type::Numeric
        | Type::Text
        | Type::Varchar
        | Type::Bpchar
        | Type::Name
        | Type::Uuid
        | Type::Date
        | Type::Time
        | Type::Timestamp
        | Type::Timestamptz
        | Type::Interval
        | Type::Enum { .. } => true,
        Type::Jsonb | Type::Array(_) | Type::Other { .. } => false,
    }
}

/// The text that stands for all that are equal to a value; `None` where it cannot be read.
pub(super) fn canonical(text: &[u8], ty: &Type) -> Option<Box<[u8]>> {
    Some(match ty {
        Type::Bool => match text {
            b"t" | b"true" => b"true"[..].into(),
            b"f" | b"false" => b"false"[..].into(),
            _ => return None,
        },
        Type::Float4 | Type::Float8 if text == b"-0" => b"0"[..].into(),
        Type::Numeric => canonical_numeric(text),
        Type::Bpchar => {
            let end = text.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
            text[..end].into()
        }
        // A month counts as 30 days and a day as 24 hours where intervals are compared.
        Type::Interval => match decode_natural(text, ty)? {
            Datum::Interval(interval) => interval.span().to_string().into_bytes().into(),
            _ => return None,
        },
        _ => text.into(),
    })
}

/// `1.50` as `1.5`, `2.00` as `2`: zeros at the end of a fraction say nothing about the value.
fn canonical_numeric(text: &[u8]) -> Box<[u8]> {
    if !text.contains(&b'.') {
        return text.into();
    }
    let end = text.iter().rposition(|byte| *byte != b'0').map_or(0, |last| last + 1);
    let kept = &text[..end];
    kept.strip_suffix(b".").unwrap_or(kept).into()
}

/// How the rows of an inner query become values.
#[derive(Clone, Debug)]
pub struct Selection {
    columns: Vec<(String, Type)>,
}

impl Selection {
    #[must_use]
    pub fn of(definition: &ShapeDefinition) -> Selection {
        let column = |name: &String| {
            let ty = definition.relation.column(name).map_or_else(|| Type::other("unknown"), Type::of_column);
            (name.clone(), ty)
        };
        Selection { columns: definition.selects.iter().map(column).collect() }
    }

    /// Names of the selected columns.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.columns.iter().map(|(name, _)| name.as_str())
    }

    /// The value of one selected column, from its text.
    #[must_use]
    pub fn value(&self, index: usize, text: Option<&[u8]>) -> Option<Option<Box<[u8]>>> {
        let (_, ty) = self.columns.get(index)?;
        text.map_or(Some(None), |text| canonical(text, ty).map(Some))
    }

    /// The values of one row, from the texts of its selected columns.
    #[must_use]
    pub fn values<'t>(&self, texts: impl IntoIterator<Item = Option<&'t [u8]>>) -> Option<Values> {
        self.columns
            .iter()
            .zip(texts)
            .map(|((_, ty), text)| text.map_or(Some(None), |text| canonical(text, ty).map(Some)))
            .collect()
    }

    /// The values of a row of the stream; `places` are those of the selected columns. `None` where a value
    /// is missing or cannot be decoded.
    #[must_use]
    pub fn of_tuple(&self, places: &[usize], tuple: &Tuple, before: Option<&Tuple>) -> Option<Values> {
        let mut texts = Vec::with_capacity(places.len());
        for place in places {
            let value = match (tuple.get(*place), before) {
                (Value::Unchanged, Some(before)) => before.get(*place),
                (value, _) => value,
            };
            texts.push(match value {
                Value::Null => None,
                Value::Text(text) => Some(text),
                Value::Unchanged => return None,
            });
        }
        self.values(texts)
    }
}
