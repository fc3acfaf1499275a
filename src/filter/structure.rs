//! The operators of jsonb.

use std::borrow::Cow;
use std::sync::Arc;

use super::array::Array;
use super::datum::Datum;
use super::function::Computed;
use super::program::Undecodable;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JsonOp {
    /// `->`, and `->>` with `text`; by key or by index.
    Get { text: bool },
    /// `#>` and `#>>`.
    Path { text: bool },
    /// `?`.
    Has,
    /// `?|`.
    HasAny,
    /// `?&`.
    HasAll,
    /// `@>`.
    Contains,
    /// `<@`.
    Contained,
}

/// Neither argument is NULL.
pub(super) fn json(op: JsonOp, left: &Datum<'_>, right: &Datum<'_>) -> Computed<'static> {
    let Datum::Json(json) = left else { return Err(Undecodable) };
    let found = match (op, right) {
        (JsonOp::Get { text }, Datum::Text(key)) => (text, json.field(&utf8(key)?)),
        // To this operator of Postgres a scalar is an array of one.
        (JsonOp::Get { text }, Datum::Integer(0 | -1)) if json.is_scalar() => (text, Some(&**json)),
        (JsonOp::Get { text }, Datum::Integer(index)) => (text, json.item(*index)),
        (JsonOp::Path { text }, Datum::Array(steps)) => match texts(steps)? {
            // A NULL in the path leads nowhere.
            None => return Ok(None),
            Some(steps) => (text, json.path(&steps)),
        },
        (JsonOp::Has, Datum::Text(key)) => return Ok(Some(Datum::Bool(json.has_key(&utf8(key)?)))),
        (JsonOp::HasAny | JsonOp::HasAll, Datum::Array(keys)) => {
            let mut found = Vec::with_capacity(keys.elements.len());
            for key in keys.elements.iter().flatten() {
                let Datum::Text(key) = key else { return Err(Undecodable) };
                found.push(json.has_key(&utf8(key)?));
            }
            let holds = match op {
                JsonOp::HasAny => found.contains(&true),
                _ => !found.contains(&false),
            };
            return Ok(Some(Datum::Bool(holds)));
        }
        (JsonOp::Contains, Datum::Json(other)) => return Ok(Some(Datum::Bool(json.contains(other)))),
        (JsonOp::Contained, Datum::Json(other)) => return Ok(Some(Datum::Bool(other.contains(json)))),
        _ => return Err(Undecodable),
    };
    Ok(match found {
        (_, None) => None,
        (false, Some(json)) => Some(Datum::Json(Arc::new(json.clone()))),
        (true, Some(json)) => json.to_text().map(|text| Datum::Text(text.into_bytes().into())),
    })
}

fn utf8<'a>(text: &'a [u8]) -> Result<Cow<'a, str>, Undecodable> {
    std::str::from_utf8(text).map(Cow::Borrowed).map_err(|_| Undecodable)
}

fn texts<'a>(array: &'a Array<'_>) -> Result<Option<Vec<Cow<'a, str>>>, Undecodable> {
    let mut steps = Vec::with_capacity(array.elements.len());
    for element in &array.elements {
        match element {
            None => return Ok(None),
            Some(Datum::Text(text)) => steps.push(utf8(text)?),
            Some(_) => return Err(Undecodable),
        }
    }
    Ok(Some(steps))
}
