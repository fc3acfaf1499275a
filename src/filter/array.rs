//! Arrays: their text form, and what Postgres' functions do with them.

use std::cmp::Ordering;

use super::datum::Datum;
use super::decode::decode_natural;
use super::types::Type;

/// `MAXDIM` of Postgres.
const DIMENSIONS_MAX: usize = 6;

/// Elements in row-major order. Invariant: their count is the product of the lengths, none for no
/// dimensions; elements are in the form of their type.
#[derive(Clone, Debug, Default)]
pub(super) struct Array<'a> {
    pub(super) dimensions: Vec<Dimension>,
    pub(super) elements: Vec<Option<Datum<'a>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Dimension {
    pub(super) length: usize,
    /// The subscript of the first element.
    pub(super) lower: i32,
}

impl<'a> Array<'a> {
    pub(super) fn of_elements(elements: Vec<Option<Datum<'a>>>) -> Array<'a> {
        if elements.is_empty() {
            return Array::default();
        }
        Array { dimensions: vec![Dimension { length: elements.len(), lower: 1 }], elements }
    }

    /// `ARRAY[a, b]` of arrays: one dimension more. None where they differ in dimensions.
    pub(super) fn of_arrays(arrays: Vec<Option<Array<'a>>>) -> Option<Array<'a>> {
        let count = arrays.len();
        // A NULL among them counts as an empty array.
        let mut arrays = arrays.into_iter().map(Option::unwrap_or_default);
        let mut sum = arrays.next().unwrap_or_default();
        let inner = sum.dimensions.clone();
        for next in arrays {
            let same = next.dimensions == inner;
            if !same {
                return None;
            }
            sum.elements.extend(next.elements);
        }
        if inner.is_empty() {
            return Some(Array::default());
        }
        if inner.len() == DIMENSIONS_MAX {
            return None;
        }
        sum.dimensions.insert(0, Dimension { length: count, lower: 1 });
        Some(sum)
    }

    pub(super) fn borrowed(&self) -> Array<'_> {
        let elements = self.elements.iter().map(|element| element.as_ref().map(Datum::borrowed)).collect();
        Array { dimensions: self.dimensions.clone(), elements }
    }

    pub(super) fn into_owned(self) -> Array<'static> {
        let elements = self.elements.into_iter().map(|element| element.map(Datum::into_owned)).collect();
        Array { dimensions: self.dimensions, elements }
    }

    /// Zero exactly where `=` holds, which minds dimensions and lower bounds; otherwise some order.
    pub(super) fn compare(&self, other: &Array<'_>) -> Ordering {
        let elements = || {
            let pairs = self.elements.iter().zip(&other.elements);
            pairs.map(|(a, b)| compare_elements(a.as_ref(), b.as_ref())).find(|order| order.is_ne())
        };
        self.dimensions.cmp(&other.dimensions).then_with(|| elements().unwrap_or(Ordering::Equal))
    }

    fn has(&self, value: &Datum<'_>) -> bool {
        self.elements.iter().flatten().any(|element| element.compare(value) == Some(Ordering::Equal))
    }

    /// `self @> other`: a NULL is in no array.
    pub(super) fn contains(&self, other: &Array<'_>) -> bool {
        other.elements.iter().all(|element| element.as_ref().is_some_and(|element| self.has(element)))
    }

    pub(super) fn overlaps(&self, other: &Array<'_>) -> bool {
        other.elements.iter().flatten().any(|element| self.has(element))
    }

    /// `array_cat`; None where the dimensions do not fit.
    pub(super) fn concatenate(self, other: Array<'a>) -> Option<Array<'a>> {
        if self.dimensions.is_empty() {
            return Some(other);
        }
        if other.dimensions.is_empty() {
            return Some(self);
        }
        let (outer, inner) = (&self.dimensions, &other.dimensions);
        let (longer, added) = match outer.len().cmp(&inner.len()) {
            Ordering::Equal => (outer, inner[0].length),
            Ordering::Greater if outer.len() == inner.len() + 1 => (outer, 1),
            Ordering::Less if inner.len() == outer.len() + 1 => (inner, 1),
            _ => return None,
        };
        // Lower bounds have to agree, too.
        let fits = match outer.len().cmp(&inner.len()) {
            Ordering::Equal => outer[1..] == inner[1..],
            Ordering::Greater => outer[1..] == inner[..],
            Ordering::Less => inner[1..] == outer[..],
        };
        if !fits {
            return None;
        }
        let mut dimensions = longer.clone();
        dimensions[0].length += added;
        let mut elements = self.elements;
        elements.extend(other.elements);
        Some(Array { dimensions, elements })
    }

    /// `array_append`; None for an array of more than one dimension.
    pub(super) fn append(mut self, element: Option<Datum<'a>>) -> Option<Array<'a>> {
        match &mut self.dimensions[..] {
            [] => return Some(Array::of_elements(vec![element])),
            [only] => only.length += 1,
            _ => return None,
        }
        self.elements.push(element);
        Some(self)
    }

    /// `array_prepend`: the lower bound stays.
    pub(super) fn prepend(mut self, element: Option<Datum<'a>>) -> Option<Array<'a>> {
        match &mut self.dimensions[..] {
            [] => return Some(Array::of_elements(vec![element])),
            [only] => only.length += 1,
            _ => return None,
        }
        self.elements.insert(0, element);
        Some(self)
    }

    /// `a[i][j]`: NULL where there is no such element.
    pub(super) fn element(self, subscripts: &[i64]) -> Option<Datum<'a>> {
        if subscripts.len() != self.dimensions.len() || subscripts.is_empty() {
            return None;
        }
        let mut index = 0;
        for (dimension, subscript) in self.dimensions.iter().zip(subscripts) {
            let at = usize::try_from(subscript - i64::from(dimension.lower)).ok()?;
            if at >= dimension.length {
                return None;
            }
            index = index * dimension.length + at;
        }
        self.elements.into_iter().nth(index).flatten()
    }

    /// `a[i:j][k:l]`, an end that is missing being that of the array. Counts from 1 again.
    pub(super) fn slice(self, bounds: &[(Option<i64>, Option<i64>)]) -> Array<'a> {
        if bounds.len() > self.dimensions.len() || bounds.is_empty() {
            return Array::default();
        }
        let mut ranges = Vec::with_capacity(self.dimensions.len());
        for (index, dimension) in self.dimensions.iter().enumerate() {
            let first = i64::from(dimension.lower);
            let last = first + i64::try_from(dimension.length).unwrap_or(i64::MAX) - 1;
            let (low, high) = bounds.get(index).copied().unwrap_or((None, None));
            let (low, high) = (low.unwrap_or(first).max(first), high.unwrap_or(last).min(last));
            if low > high {
                return Array::default();
            }
            let start = usize::try_from(low - first).unwrap_or(0);
            ranges.push(start..start + usize::try_from(high - low + 1).unwrap_or(0));
        }
        let inside = |mut index: usize| {
            let mut kept = true;
            for (dimension, range) in self.dimensions.iter().zip(&ranges).rev() {
                kept &= range.contains(&(index % dimension.length));
                index /= dimension.length;
            }
            kept
        };
        let elements = self
            .elements
            .into_iter()
            .enumerate()
            .filter(|(index, _)| inside(*index))
            .map(|(_, element)| element)
            .collect();
        let dimensions = ranges.iter().map(|range| Dimension { length: range.len(), lower: 1 }).collect();
        Array { dimensions, elements }
    }
}

fn compare_elements(a: Option<&Datum<'_>>, b: Option<&Datum<'_>>) -> Ordering {
    match (a, b) {
        (Some(a), Some(b)) => a.compare(b).unwrap_or(Ordering::Less),
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Greater,
        (Some(_), None) => Ordering::Less,
    }
}

/// Reads what `array_out` writes, and literals like it: blanks around elements, nothing left out.
pub(super) fn parse<'a>(text: &'a [u8], element: &Type) -> Option<Array<'a>> {
    let (bounds, body) = match text.trim_ascii() {
        bounded @ [b'[', ..] => {
            let at = bounded.iter().position(|byte| *byte == b'=')?;
            (Some(parse_bounds(bounded[..at].trim_ascii())?), bounded[at + 1..].trim_ascii())
        }
        body => (None, body),
    };
    let mut reader = Reader { rest: body, element, lengths: Vec::new(), elements: Vec::new(), leaf: None };
    reader.level(0)?;
    if !reader.rest.trim_ascii().is_empty() {
        return None;
    }
    if reader.elements.is_empty() {
        return (bounds.is_none() && reader.lengths == [0]).then(Array::default);
    }
    let lengths = reader.lengths;
    let dimensions = match bounds {
        Some(bounds) => {
            let same = bounds.len() == lengths.len()
                && bounds.iter().zip(&lengths).all(|(dimension, length)| dimension.length == *length);
            same.then_some(bounds)?
        }
        None => lengths.iter().map(|length| Dimension { length: *length, lower: 1 }).collect(),
    };
    Some(Array { dimensions, elements: reader.elements })
}

/// `[1:2][0:3]`.
fn parse_bounds(mut text: &[u8]) -> Option<Vec<Dimension>> {
    let mut dimensions = Vec::new();
    while let [b'[', rest @ ..] = text {
        let end = rest.iter().position(|byte| *byte == b']')?;
        let bounds = std::str::from_utf8(&rest[..end]).ok()?;
        let (lower, upper) = bounds.split_once(':')?;
        let (lower, upper): (i32, i32) = (lower.parse().ok()?, upper.parse().ok()?);
        let length = usize::try_from(i64::from(upper) - i64::from(lower) + 1).ok()?;
        dimensions.push(Dimension { length, lower });
        text = &rest[end + 1..];
    }
    (text.is_empty() && dimensions.len() <= DIMENSIONS_MAX).then_some(dimensions)
}

struct Reader<'a, 't> {
    rest: &'a [u8],
    element: &'t Type,
    /// By level; set by the first list of it.
    lengths: Vec<usize>,
    elements: Vec<Option<Datum<'a>>>,
    /// The level that has the elements.
    leaf: Option<usize>,
}

impl<'a> Reader<'a, '_> {
    fn level(&mut self, depth: usize) -> Option<()> {
        self.rest = self.rest.trim_ascii_start().strip_prefix(b"{")?;
        if depth == DIMENSIONS_MAX {
            return None;
        }
        let (mut count, mut first) = (0, true);
        if self.lengths.len() == depth {
            self.lengths.push(usize::MAX);
        }
        loop {
            self.rest = self.rest.trim_ascii_start();
            match self.rest {
                [b'}', rest @ ..] if first => {
                    self.rest = rest;
                    break;
                }
                [b'{', ..] => {
                    if self.leaf.is_some_and(|leaf| leaf <= depth) {
                        return None;
                    }
                    self.level(depth + 1)?;
                }
                _ => {
                    if self.leaf.is_some_and(|leaf| leaf != depth) || self.lengths.len() > depth + 1 {
                        return None;
                    }
                    self.leaf = Some(depth);
                    let element = self.item()?;
                    self.elements.push(element);
                }
            }
            count += 1;
            first = false;
            self.rest = self.rest.trim_ascii_start();
            match self.rest {
                [b',', rest @ ..] => self.rest = rest,
                [b'}', rest @ ..] => {
                    self.rest = rest;
                    break;
                }
                _ => return None,
            }
        }
        if self.lengths[depth] == usize::MAX {
            self.lengths[depth] = count;
        }
        (self.lengths[depth] == count).then_some(())
    }

    fn item(&mut self) -> Option<Option<Datum<'a>>> {
        if let [b'"', rest @ ..] = self.rest {
            let mut text = Vec::new();
            let mut bytes = rest.iter().enumerate();
            loop {
                match bytes.next()? {
                    (_, b'\\') => text.push(*bytes.next()?.1),
                    (at, b'"') => {
                        self.rest = &rest[at + 1..];
                        return Some(Some(decode_natural(&text, self.element)?.into_owned()));
                    }
                    (_, byte) => text.push(*byte),
                }
            }
        }
        let end = self.rest.iter().position(|byte| matches!(byte, b',' | b'{' | b'}' | b'"' | b'\\'))?;
        // Postgres would take a backslash or a quoted part here; array_out writes neither.
        if !matches!(self.rest[end], b',' | b'}') {
            return None;
        }
        let word = self.rest[..end].trim_ascii();
        self.rest = &self.rest[end..];
        if word.is_empty() {
            return None;
        }
        if word.eq_ignore_ascii_case(b"null") {
            return Some(None);
        }
        Some(Some(decode_natural(word, self.element)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        let Some(array) = parse(text.as_bytes(), &Type::Text) else { return "-".to_owned() };
        let elements: Vec<String> = array
            .elements
            .iter()
            .map(|element| match element {
                Some(Datum::Text(text)) => format!("<{}>", String::from_utf8_lossy(text)),
                _ => "NULL".to_owned(),
            })
            .collect();
        let dimensions: Vec<String> =
            array.dimensions.iter().map(|d| format!("{}@{}", d.length, d.lower)).collect();
        format!("{} {}", dimensions.join("x"), elements.join(""))
    }

    #[test]
    fn reads_what_postgres_writes() {
        for (text, expected) in [
            ("{}", " "),
            ("{a,b}", "2@1 <a><b>"),
            (" { a , b c } ", "2@1 <a><b c>"),
            ("{NULL,\"NULL\",null}", "3@1 NULL<NULL>NULL"),
            (r#"{"a,b","\"","\\",""}"#, "4@1 <a,b><\"><\\><>"),
            ("{{a,b},{c,d}}", "2@1x2@1 <a><b><c><d>"),
            ("[0:1]={a,b}", "2@0 <a><b>"),
            ("[-1:0][2:2]={{a},{b}}", "2@-1x1@2 <a><b>"),
            ("{{a},{b,c}}", "-"),
            ("{{a},b}", "-"),
            ("{a,{b}}", "-"),
            ("{a,}", "-"),
            ("{,a}", "-"),
            ("{a", "-"),
            ("a", "-"),
            ("{a}b", "-"),
            ("[0:2]={a,b}", "-"),
            ("{{{{{{{a}}}}}}}", "-"),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }
}
