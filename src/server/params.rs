//! The parameters of a shape request, checked stage by stage: contract 1.5.

use std::collections::BTreeMap;
use std::fmt;

use crate::domain::{Handle, LogMode, Offset, Replica};

use super::error::{Failure, FieldErrors};
use super::fields::{Fields, Scalar, Value};

const BLANK: &str = "can't be blank";
const INVALID: &str = "is invalid";

/// Where in the log a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Requested {
    /// At its end, whatever that is.
    Now,
    After(Offset),
}

impl fmt::Display for Requested {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Requested::Now => f.write_str("now"),
            Requested::After(offset) => offset.fmt(f),
        }
    }
}

/// A request whose parameters are well-formed; its table is not looked up yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub requested: Requested,
    /// `None` for `-1` and `now`, and where the text is none that this server ever made.
    pub handle: Option<Handle>,
    pub live: bool,
    pub sse: bool,
    pub cursor: Option<String>,
    pub shape: AskedShape,
    pub subset: bool,
}

/// The part of a request that names a shape.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct AskedShape {
    pub table: Option<String>,
    pub where_clause: Option<String>,
    /// By the keys that were sent.
    pub params: BTreeMap<String, String>,
    pub columns: Option<String>,
    pub queryable_columns: Option<String>,
    pub replica: Replica,
    pub log: LogMode,
    /// `experimental_compaction`: refused for some shapes, without effect for the others.
    pub compaction: bool,
}

impl Asked {
    /// Checks everything that needs no table. Stops at the first stage that fails.
    ///
    /// # Errors
    /// All messages of that stage.
    pub(super) fn parse(fields: &Fields) -> Result<Asked, Failure> {
        let mut errors = FieldErrors::new();
        let shape = AskedShape::cast(fields, &mut errors);
        let offset = required(fields, "offset", &mut errors);
        let handle = text(fields, "handle", &mut errors);
        let live = flag(fields, "live");
        let alias = strict_flag(fields, "experimental_live_sse");
        if alias.is_err() && fields.get("live_sse").is_none() {
            add(&mut errors, "live_sse", INVALID);
        }
        if strict_flag(fields, "experimental_compaction").is_err() {
            add(&mut errors, "experimental_compaction", INVALID);
        }
        if !errors.is_empty() {
            return Err(Failure::Invalid(errors));
        }
        let requested =
            match offset.unwrap_or_default() {
                "now" => Requested::Now,
                text => Requested::After(text.parse().map_err(|error: crate::domain::OffsetError| {
                    Failure::field("offset", error.to_string())
                })?),
            };
        let initial = matches!(requested, Requested::Now | Requested::After(Offset::BeforeAll));
        if !initial && handle.is_none() {
            return Err(Failure::field("handle", "can't be blank when offset != -1"));
        }
        match requested {
            Requested::Now if live => {
                return Err(Failure::field("live", "can't be true when offset is 'now'"));
            }
            Requested::After(Offset::BeforeAll) if live => {
                return Err(Failure::field("live", "can't be true when offset == -1"));
            }
            Requested::Now | Requested::After(_) => {}
        }
        let sse = match fields.get("live_sse") {
            Some(_) => flag(fields, "live_sse"),
            None => alias.ok().flatten().unwrap_or(false),
        };
        if sse && !live {
            return Err(Failure::field("live_sse", "can't be true unless live is also true"));
        }
        Ok(Asked {
            requested,
            handle: handle.filter(|_| !initial).and_then(|text| text.parse().ok()),
            live,
            sse,
            cursor: fields.text("cursor").map(str::to_owned),
            shape,
            subset: fields.subset,
        })
    }
}

impl AskedShape {
    /// Casts the fields that name a shape, and notes those that cannot be.
    pub(super) fn cast(fields: &Fields, errors: &mut FieldErrors) -> AskedShape {
        let params = match fields.get("params") {
            None => BTreeMap::new(),
            Some(Value::Map(params)) => params.clone(),
            Some(Value::Text(text)) if text.trim().is_empty() => BTreeMap::new(),
            Some(Value::Text(_) | Value::Unusable) => {
                add(errors, "params", INVALID);
                BTreeMap::new()
            }
        };
        let mut owned = |name| text(fields, name, errors).map(str::to_owned);
        AskedShape {
            table: owned("table"),
            where_clause: owned("where"),
            columns: owned("columns"),
            queryable_columns: owned("queryable_columns"),
            replica: choice(
                fields,
                "replica",
                &[("default", Replica::Default), ("full", Replica::Full)],
                errors,
            ),
            log: choice(
                fields,
                "log",
                &[("full", LogMode::Full), ("changes_only", LogMode::ChangesOnly)],
                errors,
            ),
            params,
            compaction: strict_flag(fields, "experimental_compaction").ok().flatten().unwrap_or(false),
        }
    }
}

/// What a DELETE names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AskedDeletion {
    pub handle: Option<Handle>,
    /// Whether some handle was sent, be it one that never was.
    pub handle_given: bool,
    /// `None` where the shape is named by its handle alone.
    pub shape: Option<AskedShape>,
}

impl AskedDeletion {
    /// # Errors
    /// The casts of [`Asked::parse`], `live` as a strict boolean, and neither table nor handle.
    pub(super) fn parse(fields: &Fields) -> Result<AskedDeletion, Failure> {
        let mut errors = FieldErrors::new();
        let shape = AskedShape::cast(fields, &mut errors);
        let handle = text(fields, "handle", &mut errors);
        text(fields, "offset", &mut errors);
        for name in ["live", "live_sse", "experimental_live_sse", "experimental_compaction"] {
            if strict_flag(fields, name).is_err() {
                add(&mut errors, name, INVALID);
            }
        }
        if !errors.is_empty() {
            return Err(Failure::Invalid(errors));
        }
        if shape.table.is_none() && handle.is_none() {
            return Err(Failure::field("handle", "can't be blank when shape definition is missing"));
        }
        Ok(AskedDeletion {
            handle: handle.and_then(|text| text.parse().ok()),
            handle_given: handle.is_some(),
            shape: shape.table.is_some().then_some(shape),
        })
    }
}

fn add(errors: &mut FieldErrors, name: &'static str, message: &str) {
    errors.entry(name).or_default().push(message.to_owned());
}

fn text<'a>(fields: &'a Fields, name: &'static str, errors: &mut FieldErrors) -> Option<&'a str> {
    match fields.scalar(name) {
        Scalar::Absent => None,
        Scalar::Text(text) => Some(text),
        Scalar::Unusable => {
            add(errors, name, INVALID);
            None
        }
    }
}

fn required<'a>(fields: &'a Fields, name: &'static str, errors: &mut FieldErrors) -> Option<&'a str> {
    if fields.scalar(name) == Scalar::Absent {
        add(errors, name, BLANK);
    }
    text(fields, name, errors)
}

fn choice<T: Copy + Default>(
    fields: &Fields,
    name: &'static str,
    choices: &[(&str, T)],
    errors: &mut FieldErrors,
) -> T {
    let Some(sent) = text(fields, name, errors) else { return T::default() };
    let chosen = choices.iter().find(|(spelling, _)| *spelling == sent).map(|(_, choice)| *choice);
    if chosen.is_none() {
        add(errors, name, INVALID);
    }
    chosen.unwrap_or_default()
}

/// Anything but `false`, once it is there at all: even an empty value.
fn flag(fields: &Fields, name: &str) -> bool {
    fields.get(name).is_some_and(|value| *value != Value::Text("false".to_owned()))
}

/// A boolean in one of four spellings; `Err` where it is none.
fn strict_flag(fields: &Fields, name: &str) -> Result<Option<bool>, ()> {
    match fields.scalar(name) {
        Scalar::Absent => Ok(None),
        Scalar::Text("true" | "1") => Ok(Some(true)),
        Scalar::Text("false" | "0") => Ok(Some(false)),
        Scalar::Text(_) | Scalar::Unusable => Err(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(query: &str, expected: &str) {
        let shown = match Asked::parse(&Fields::from_query(query)) {
            Ok(asked) => {
                let handle = asked.handle.map_or_else(|| "-".to_owned(), |handle| handle.to_string());
                format!("{} handle={handle} live={} sse={}", asked.requested, asked.live, asked.sse)
            }
            Err(Failure::Invalid(errors)) => serde_json::to_string(&errors).expect("plain data"),
            Err(other) => format!("{other:?}"),
        };
        assert_eq!(shown, expected, "{query}");
    }

    #[test]
    fn casts_come_first_and_together() {
        check("", r#"{"offset":["can't be blank"]}"#);
        check("table=t&offset=+", r#"{"offset":["can't be blank"]}"#);
        check(
            "replica=some&log=none&params=5&offset=x",
            r#"{"log":["is invalid"],"params":["is invalid"],"replica":["is invalid"]}"#,
        );
        check("offset=-1&experimental_live_sse=maybe", r#"{"live_sse":["is invalid"]}"#);
        check("offset=-1&experimental_compaction=maybe", r#"{"experimental_compaction":["is invalid"]}"#);
        check("offset=-1&table[a]=b", r#"{"table":["is invalid"]}"#);
        check("offset[a]=b", r#"{"offset":["is invalid"]}"#);
        check("offset=-1&params[]=b", r#"{"params":["is invalid"]}"#);
    }

    #[test]
    fn then_offset_then_handle_then_live() {
        for bad in ["10", "1_2_3", "1_2%20", "-2", "x"] {
            check(&format!("offset={bad}&live=true"), r#"{"offset":["has invalid format"]}"#);
        }
        check("offset=0_0&live_sse=true", r#"{"handle":["can't be blank when offset != -1"]}"#);
        check("offset=-1&live=true", r#"{"live":["can't be true when offset == -1"]}"#);
        check("offset=now&live", r#"{"live":["can't be true when offset is 'now'"]}"#);
        check(
            "offset=0_0&handle=1-2&live_sse=true",
            r#"{"live_sse":["can't be true unless live is also true"]}"#,
        );
        check(
            "offset=0_0&handle=1-2&experimental_live_sse=1",
            r#"{"live_sse":["can't be true unless live is also true"]}"#,
        );
    }

    #[test]
    fn what_is_well_formed() {
        check("offset=-1", "-1 handle=- live=false sse=false");
        check("offset=-1&handle=1-2", "-1 handle=- live=false sse=false");
        check("offset=now&handle=1-2", "now handle=- live=false sse=false");
        check("offset=0_inf&handle=1-2", "0_inf handle=1-2 live=false sse=false");
        check("offset=007_010&handle=banana", "7_10 handle=- live=false sse=false");
        for on in ["live=true", "live=", "live", "live=0", "live=banana"] {
            check(&format!("offset=5_0&handle=1-2&{on}"), "5_0 handle=1-2 live=true sse=false");
        }
        check("offset=5_0&handle=1-2&live=false", "5_0 handle=1-2 live=false sse=false");
        check("offset=5_0&handle=1-2&live=true&live_sse=true", "5_0 handle=1-2 live=true sse=true");
        check(
            "offset=5_0&handle=1-2&live=true&live_sse=false&experimental_live_sse=x",
            "5_0 handle=1-2 live=true sse=false",
        );
        check(
            "offset=5_0&handle=1-2&live=true&experimental_live_sse=true",
            "5_0 handle=1-2 live=true sse=true",
        );
        check("offset=-1&expired_handle=9&cache-buster=1&cursor=banana", "-1 handle=- live=false sse=false");
    }

    #[test]
    fn shapes_are_cast() {
        let fields = Fields::from_query(
            "offset=-1&table=items&where=id=$1&params[1]=5&columns=id,a&replica=full&log=changes_only",
        );
        let asked = Asked::parse(&fields).expect("well-formed");
        let expected = AskedShape {
            table: Some("items".to_owned()),
            where_clause: Some("id=$1".to_owned()),
            params: BTreeMap::from([("1".to_owned(), "5".to_owned())]),
            columns: Some("id,a".to_owned()),
            queryable_columns: None,
            replica: Replica::Full,
            log: LogMode::ChangesOnly,
            compaction: false,
        };
        assert_eq!(asked.shape, expected);
        assert!(Asked::parse(&Fields::from_query("offset=-1&subset__limit=1")).expect("well-formed").subset);
    }

    #[test]
    fn deletions() {
        let check = |query: &str, expected: &str| {
            let shown = match AskedDeletion::parse(&Fields::from_query(query)) {
                Ok(asked) => format!("{:?} {} {}", asked.handle, asked.handle_given, asked.shape.is_some()),
                Err(Failure::Invalid(errors)) => serde_json::to_string(&errors).expect("plain data"),
                Err(other) => format!("{other:?}"),
            };
            assert_eq!(shown, expected, "{query}");
        };
        check("", r#"{"handle":["can't be blank when shape definition is missing"]}"#);
        check("table=t&live=banana", r#"{"live":["is invalid"]}"#);
        check("table=t&live=true&offset=whatever", "None false true");
        check("handle=1-2", "Some(1-2) true false");
        check("handle=x", "None true false");
    }
}
