//! `jsonb`: read from its text form, with numbers kept exact, and what the operators do with it.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt::Write as _;

use super::decimal::Decimal;

/// Deeper values are treated as not decodable: they are read and dropped by recursion.
const DEPTH_MAX: usize = 512;

#[derive(Clone, Debug)]
pub(super) enum Json {
    Null,
    Bool(bool),
    Number(Decimal<'static>),
    Text(String),
    Array(Vec<Json>),
    /// By key, each once: of equal keys the last one counts.
    Object(Vec<(String, Json)>),
}

impl Json {
    pub(super) fn parse(text: &[u8]) -> Option<Json> {
        let mut reader = Reader { rest: text };
        let json = reader.value(0)?;
        reader.blanks();
        reader.rest.is_empty().then_some(json)
    }

    /// Zero exactly where `=` holds; otherwise some order.
    pub(super) fn compare(&self, other: &Json) -> Ordering {
        let rank = |json: &Json| match json {
            Json::Null => 0,
            Json::Text(_) => 1,
            Json::Number(_) => 2,
            Json::Bool(_) => 3,
            Json::Array(_) => 4,
            Json::Object(_) => 5,
        };
        match (self, other) {
            (Json::Bool(a), Json::Bool(b)) => a.cmp(b),
            (Json::Number(a), Json::Number(b)) => a.cmp(b),
            (Json::Text(a), Json::Text(b)) => a.cmp(b),
            (Json::Array(a), Json::Array(b)) => {
                let pairs = || a.iter().zip(b).map(|(a, b)| a.compare(b)).find(|order| order.is_ne());
                a.len().cmp(&b.len()).then_with(|| pairs().unwrap_or(Ordering::Equal))
            }
            (Json::Object(a), Json::Object(b)) => {
                let pair = |((k, v), (l, w)): (&(String, Json), &(String, Json))| {
                    k.cmp(l).then_with(|| v.compare(w))
                };
                let pairs = || a.iter().zip(b).map(pair).find(|order| order.is_ne());
                a.len().cmp(&b.len()).then_with(|| pairs().unwrap_or(Ordering::Equal))
            }
            _ => rank(self).cmp(&rank(other)),
        }
    }

    fn equals(&self, other: &Json) -> bool {
        self.compare(other).is_eq()
    }

    /// `-> 'key'`.
    pub(super) fn field(&self, key: &str) -> Option<&Json> {
        match self {
            Json::Object(fields) => {
                fields.binary_search_by(|(name, _)| name.as_str().cmp(key)).ok().map(|at| &fields[at].1)
            }
            _ => None,
        }
    }

    /// `-> index`, from the end where it is negative.
    pub(super) fn item(&self, index: i64) -> Option<&Json> {
        let Json::Array(items) = self else { return None };
        let len = i64::try_from(items.len()).ok()?;
        let at = if index < 0 { index.checked_add(len)? } else { index };
        items.get(usize::try_from(at).ok()?)
    }

    /// `#>`: each step is a key, or in an array an index.
    pub(super) fn path(&self, steps: &[Cow<'_, str>]) -> Option<&Json> {
        steps.iter().try_fold(self, |json, step| match json {
            Json::Object(_) => json.field(step),
            // What strtoint takes: leading blanks and a sign.
            Json::Array(_) => {
                let step = step.trim_start_matches([' ', '\t', '\n', '\u{b}', '\u{c}', '\r']);
                json.item(i64::from(step.parse::<i32>().ok()?))
            }
            _ => None,
        })
    }

    /// `->>`: a string without its quotes; None for a JSON null.
    pub(super) fn to_text(&self) -> Option<String> {
        match self {
            Json::Null => None,
            Json::Text(text) => Some(text.clone()),
            json => {
                let mut out = String::new();
                json.write(&mut out);
                Some(out)
            }
        }
    }

    /// `?`: a key of an object, a string in an array, or the string itself.
    pub(super) fn has_key(&self, key: &str) -> bool {
        match self {
            Json::Object(_) => self.field(key).is_some(),
            Json::Array(items) => items.iter().any(|item| matches!(item, Json::Text(text) if text == key)),
            Json::Text(text) => text == key,
            Json::Null | Json::Bool(_) | Json::Number(_) => false,
        }
    }

    /// `self @> other`.
    pub(super) fn contains(&self, other: &Json) -> bool {
        match (self, other) {
            // At the top only, an array contains a scalar that is one of its items.
            (Json::Array(items), scalar) if scalar.is_scalar() => {
                items.iter().any(|item| item.equals(scalar))
            }
            _ => self.contains_deep(other),
        }
    }

    fn contains_deep(&self, other: &Json) -> bool {
        match (self, other) {
            (Json::Object(_), Json::Object(fields)) => fields
                .iter()
                .all(|(key, wanted)| self.field(key).is_some_and(|found| found.contains_deep(wanted))),
            (Json::Array(items), Json::Array(wanted)) => wanted.iter().all(|wanted| {
                items.iter().any(|item| {
                    if wanted.is_scalar() { item.equals(wanted) } else { item.contains_deep(wanted) }
                })
            }),
            (a, b) => a.is_scalar() && a.equals(b),
        }
    }

    pub(super) fn is_scalar(&self) -> bool {
        !matches!(self, Json::Array(_) | Json::Object(_))
    }

    /// What `jsonb_out` writes: keys by length, then by bytes.
    fn write(&self, out: &mut String) {
        match self {
            Json::Null => out.push_str("null"),
            Json::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Json::Number(number) => out.push_str(&number.to_text()),
            Json::Text(text) => write_string(text, out),
            Json::Array(items) => {
                out.push('[');
                for (index, item) in items.iter().enumerate() {
                    out.push_str(if index == 0 { "" } else { ", " });
                    item.write(out);
                }
                out.push(']');
            }
            Json::Object(fields) => {
                let mut fields: Vec<&(String, Json)> = fields.iter().collect();
                fields.sort_by(|a, b| a.0.len().cmp(&b.0.len()).then_with(|| a.0.cmp(&b.0)));
                out.push('{');
                for (index, (key, value)) in fields.into_iter().enumerate() {
                    out.push_str(if index == 0 { "" } else { ", " });
                    write_string(key, out);
                    out.push_str(": ");
                    value.write(out);
                }
                out.push('}');
            }
        }
    }
}

fn write_string(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' => {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn blanks(&mut self) {
        while let [b' ' | b'\t' | b'\n' | b'\r', rest @ ..] = self.rest {
            self.rest = rest;
        }
    }

    fn take(&mut self, byte: u8) -> bool {
        self.blanks();
        match self.rest {
            [first, rest @ ..] if *first == byte => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    fn value(&mut self, depth: usize) -> Option<Json> {
        if depth > DEPTH_MAX {
            return None;
        }
        self.blanks();
        match self.rest {
            [b'{', rest @ ..] => {
                self.rest = rest;
                self.object(depth)
            }
            [b'[', rest @ ..] => {
                self.rest = rest;
                self.array(depth)
            }
            [b'"', rest @ ..] => {
                self.rest = rest;
                self.string().map(Json::Text)
            }
            [b'-' | b'0'..=b'9', ..] => self.number(),
            _ => {
                let words = [("null", Json::Null), ("true", Json::Bool(true)), ("false", Json::Bool(false))];
                words.into_iter().find_map(|(word, json)| {
                    self.rest.strip_prefix(word.as_bytes()).map(|rest| {
                        self.rest = rest;
                        json
                    })
                })
            }
        }
    }

    fn array(&mut self, depth: usize) -> Option<Json> {
        let mut items = Vec::new();
        if self.take(b']') {
            return Some(Json::Array(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            if self.take(b']') {
                return Some(Json::Array(items));
            }
            if !self.take(b',') {
                return None;
            }
        }
    }

    fn object(&mut self, depth: usize) -> Option<Json> {
        let mut fields: Vec<(String, Json)> = Vec::new();
        if self.take(b'}') {
            return Some(Json::Object(fields));
        }
        loop {
            if !self.take(b'"') {
                return None;
            }
            let key = self.string()?;
            if !self.take(b':') {
                return None;
            }
            let value = self.value(depth + 1)?;
            fields.push((key, value));
            if self.take(b'}') {
                break;
            }
            if !self.take(b',') {
                return None;
            }
        }
        // The sort is stable: of equal keys the last one stays.
        fields.reverse();
        fields.sort_by(|a, b| a.0.cmp(&b.0));
        fields.dedup_by(|later, kept| later.0 == kept.0);
        Some(Json::Object(fields))
    }

    fn number(&mut self) -> Option<Json> {
        let end =
            self.rest.iter().position(|byte| !matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E'));
        let (text, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        let unsigned = text.strip_prefix(b"-").unwrap_or(text);
        let mantissa = unsigned.split(|byte| matches!(byte, b'e' | b'E')).next()?;
        // JSON has no leading zeros, and digits on both sides of the point.
        let padded = matches!(unsigned, [b'0', b'0'..=b'9', ..]);
        let bare = !mantissa.first()?.is_ascii_digit() || mantissa.ends_with(b".");
        if padded || bare {
            return None;
        }
        let number = Decimal::parse(text)?.into_owned();
        self.rest = rest;
        Some(Json::Number(number))
    }

    /// After the opening quote.
    fn string(&mut self) -> Option<String> {
        let mut text = Vec::new();
        loop {
            let [byte, rest @ ..] = self.rest else { return None };
            self.rest = rest;
            match byte {
                b'"' => return String::from_utf8(text).ok(),
                0..0x20 => return None,
                b'\\' => {
                    let [escape, rest @ ..] = self.rest else { return None };
                    self.rest = rest;
                    let c = match escape {
                        b'n' => '\n',
                        b'r' => '\r',
                        b't' => '\t',
                        b'b' => '\u{8}',
                        b'f' => '\u{c}',
                        b'"' | b'\\' | b'/' => char::from(*escape),
                        b'u' => self.unicode()?,
                        _ => return None,
                    };
                    text.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                }
                byte => text.push(*byte),
            }
        }
    }

    /// `XXXX` after `\u`, or a pair of surrogates. There is no zero character in a jsonb.
    fn unicode(&mut self) -> Option<char> {
        let first = self.hex()?;
        let code = if (0xD800..0xDC00).contains(&first) {
            self.rest = self.rest.strip_prefix(b"\\u")?;
            let second = self.hex().filter(|second| (0xDC00..0xE000).contains(second))?;
            0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00)
        } else {
            first
        };
        char::from_u32(code).filter(|c| *c != '\0')
    }

    fn hex(&mut self) -> Option<u32> {
        let (digits, rest) = self.rest.split_at_checked(4)?;
        self.rest = rest;
        digits.iter().try_fold(0, |sum, digit| Some(sum * 16 + char::from(*digit).to_digit(16)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Json {
        Json::parse(text.as_bytes()).unwrap_or_else(|| panic!("{text} is JSON"))
    }

    #[test]
    fn writes_what_jsonb_out_writes() {
        for (text, expected) in [
            (r#" {"bb":1,"a":[1.50,null,true],"a":2} "#, r#"{"a": 2, "bb": 1}"#),
            (r#"[ "\u00e9\n\u0001\ud83d\ude00" , 1e2, -0.0 ]"#, "[\"é\\n\\u0001😀\", 100, 0.0]"),
            ("{}", "{}"),
        ] {
            assert_eq!(json(text).to_text().as_deref(), Some(expected), "{text}");
        }
        for text in
            ["", "{", "[1,]", "01", "1.", ".5", "nul", "\"\\u0000\"", "\"\\ud800\"", "1 2", "{\"a\"}", "+1"]
        {
            assert!(Json::parse(text.as_bytes()).is_none(), "{text}");
        }
    }

    #[test]
    fn contains_as_postgres_does() {
        for (a, b, expected) in [
            ("[1, 2, [1, 3]]", "[1, 3]", false),
            ("[1, 2, [1, 3]]", "[[1, 3]]", true),
            ("[1, 2]", "[2, 2, 1]", true),
            ("[1, 2.0]", "2", true),
            ("2", "[2]", false),
            (r#"{"a":{"b":1,"c":2}}"#, r#"{"a":{"b":1}}"#, true),
            (r#"{"a":{"b":1}}"#, r#"{"a":{}}"#, true),
            (r#"{"a":[1]}"#, r#"{"a":1}"#, false),
            (r#"{"a":1}"#, "{}", true),
            ("[]", "{}", false),
            ("null", "null", true),
        ] {
            assert_eq!(json(a).contains(&json(b)), expected, "{a} {b}");
        }
    }
}
