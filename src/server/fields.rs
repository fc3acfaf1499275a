//! The raw parameters of a request: the query string, and the body of a POST over it.

use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;

use super::error::Failure;

/// Parameters of one request, at most. The rest is not read.
const FIELDS_MAX: usize = 4_096;
/// Keys that make a POST body one of a subset snapshot, contract 1.14.
const SUBSET_KEYS: [&str; 7] =
    ["where", "order_by", "limit", "offset", "params", "where_expr", "order_by_expr"];
/// What the keys of a subset begin with in a query string, and in [`Fields`].
const SUBSET: &str = "subset__";

/// A value as it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    /// `name[key]=value`, or a JSON object of scalars.
    Map(BTreeMap<String, String>),
    /// Not UTF-8, a list, or nested deeper than one level.
    Unusable,
}

/// What was sent, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fields {
    values: BTreeMap<String, Value>,
    /// Some `subset__…` key, or `subset` or one of [`SUBSET_KEYS`] in a body.
    pub subset: bool,
}

/// A scalar field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scalar<'a> {
    Absent,
    Text(&'a str),
    Unusable,
}

impl Fields {
    /// Reads a query string: `a=1&b[2]=c`, percent-encoded, `+` for a space. The last of equal names
    /// wins.
    #[must_use]
    pub(super) fn from_query(query: &str) -> Fields {
        let mut fields = Fields::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()).take(FIELDS_MAX) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            // A name that is no text is none that is known.
            let Some(name) = decode(name) else { continue };
            fields.insert(&name, decode(value));
        }
        fields
    }

    fn insert(&mut self, name: &str, value: Option<String>) {
        self.subset |= name.starts_with(SUBSET);
        let Some((name, rest)) = name.split_once('[') else {
            self.values.insert(name.to_owned(), value.map_or(Value::Unusable, Value::Text));
            return;
        };
        let key = rest.strip_suffix(']').filter(|key| !key.is_empty() && !key.contains(['[', ']']));
        let (Some(key), Some(value)) = (key, value) else {
            self.values.insert(name.to_owned(), Value::Unusable);
            return;
        };
        match self.values.get_mut(name) {
            Some(Value::Map(map)) => {
                map.insert(key.to_owned(), value);
            }
            Some(Value::Unusable) => {}
            Some(Value::Text(_)) | None => {
                self.values.insert(name.to_owned(), Value::Map(BTreeMap::from([(key.to_owned(), value)])));
            }
        }
    }

    /// Puts the members of a JSON object over what the query said.
    ///
    /// # Errors
    /// The body is not JSON, or no object.
    pub(super) fn merge_body(&mut self, body: &[u8]) -> Result<(), Failure> {
        if body.is_empty() {
            return Ok(());
        }
        let json: serde_json::Value =
            serde_json::from_slice(body).map_err(|error| Failure::BodyNotJson(error.to_string()))?;
        let serde_json::Value::Object(members) = json else { return Err(Failure::BodyNotObject) };
        for (name, value) in members {
            match value {
                serde_json::Value::Object(members) if name == "subset" => {
                    self.subset = true;
                    for (name, value) in members {
                        self.put(format!("{SUBSET}{name}"), value);
                    }
                }
                _ if name == "subset" => return Err(Failure::field("subset", "is invalid")),
                value if SUBSET_KEYS.contains(&name.as_str()) => {
                    self.subset = true;
                    self.put(format!("{SUBSET}{name}"), value);
                }
                value => {
                    self.subset |= name.starts_with(SUBSET);
                    self.put(name, value);
                }
            }
        }
        Ok(())
    }

    fn put(&mut self, name: String, value: serde_json::Value) {
        if let Some(value) = Value::from_json(value) {
            self.values.insert(name, value);
        }
    }

    #[must_use]
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.values.get(name)
    }

    /// A scalar; blank ones count as absent.
    #[must_use]
    pub(super) fn scalar(&self, name: &str) -> Scalar<'_> {
        match self.values.get(name) {
            None => Scalar::Absent,
            Some(Value::Text(text)) if text.trim().is_empty() => Scalar::Absent,
            Some(Value::Text(text)) => Scalar::Text(text),
            Some(Value::Map(_) | Value::Unusable) => Scalar::Unusable,
        }
    }

    /// A scalar that is there and usable.
    #[must_use]
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        match self.scalar(name) {
            Scalar::Text(text) => Some(text),
            Scalar::Absent | Scalar::Unusable => None,
        }
    }
}

impl Value {
    /// `None` for null, which says nothing.
    pub(super) fn from_json(value: serde_json::Value) -> Option<Value> {
        Some(match value {
            serde_json::Value::Null => return None,
            serde_json::Value::Object(members) => {
                let map: Option<_> =
                    members.into_iter().map(|(key, value)| Some((key, scalar(value)?))).collect();
                map.map_or(Value::Unusable, Value::Map)
            }
            value => scalar(value).map_or(Value::Unusable, Value::Text),
        })
    }
}

fn scalar(value: serde_json::Value) -> Option<String> {
    match value {
        serde_json::Value::String(text) => Some(text),
        serde_json::Value::Bool(flag) => Some(flag.to_string()),
        serde_json::Value::Number(number) => Some(number.to_string()),
        serde_json::Value::Null | serde_json::Value::Array(_) | serde_json::Value::Object(_) => None,
    }
}

fn decode(text: &str) -> Option<String> {
    let spaced = text.replace('+', " ");
    percent_decode_str(&spaced).decode_utf8().ok().map(std::borrow::Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(fields: &Fields) -> String {
        let values: Vec<String> =
            fields.values.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
        format!("{}{}", if fields.subset { "subset " } else { "" }, values.join(" "))
    }

    #[test]
    fn reads_query_strings() {
        for (query, expected) in [
            ("", ""),
            ("a=1&b", r#"a=Text("1") b=Text("")"#),
            ("a=1&a=2", r#"a=Text("2")"#),
            ("a=x+y%2Bz%20%C3%A9", r#"a=Text("x y+z é")"#),
            ("a=b=c", r#"a=Text("b=c")"#),
            ("a=%ff", "a=Unusable"),
            ("p[1]=x&p%5B2%5D=y", r#"p=Map({"1": "x", "2": "y"})"#),
            ("p=1&p[1]=x", r#"p=Map({"1": "x"})"#),
            ("p[]=x", "p=Unusable"),
            ("p[1][2]=x", "p=Unusable"),
            ("p[1=x", "p=Unusable"),
            ("subset__limit=1", r#"subset subset__limit=Text("1")"#),
        ] {
            assert_eq!(shown(&Fields::from_query(query)), expected, "{query}");
        }
    }

    #[test]
    fn a_body_goes_over_the_query() {
        for (query, body, expected) in [
            ("a=1", "", r#"a=Text("1")"#),
            ("a=1", r#"{"a":"2","b":true,"c":null}"#, r#"a=Text("2") b=Text("true")"#),
            ("", r#"{"m":{"1":"x","2":3},"l":[1]}"#, r#"l=Unusable m=Map({"1": "x", "2": "3"})"#),
            (
                "offset=-1",
                r#"{"offset":5,"subset__where":"a","order_by_expr":{"a":{}}}"#,
                r#"subset offset=Text("-1") subset__offset=Text("5") subset__order_by_expr=Unusable subset__where=Text("a")"#,
            ),
            (
                "where=b",
                r#"{"subset":{"where":"a","limit":5,"params":{"1":true}}}"#,
                r#"subset subset__limit=Text("5") subset__params=Map({"1": "true"}) subset__where=Text("a") where=Text("b")"#,
            ),
        ] {
            let mut fields = Fields::from_query(query);
            assert_eq!(fields.merge_body(body.as_bytes()), Ok(()));
            assert_eq!(shown(&fields), expected, "{query} {body}");
        }
        assert_eq!(Fields::default().merge_body(b"[1]"), Err(Failure::BodyNotObject));
        assert!(matches!(Fields::default().merge_body(b"{"), Err(Failure::BodyNotJson(_))));
        assert!(matches!(Fields::default().merge_body(br#"{"subset":1}"#), Err(Failure::Invalid(_))));
    }
}
