//! LIKE and ILIKE, as Postgres matches them in UTF-8.

use std::borrow::Cow;

/// The pattern ends in a backslash that escapes nothing; Postgres reports an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadPattern;

/// Whether the whole of `text` matches: `%` is any run of characters, newlines too, `_` one
/// character, and a backslash takes the next character literally.
///
/// Greedy with one way back, to the last `%`: no recursion, and at worst the product of the lengths.
pub(super) fn matches(text: &[u8], pattern: &[u8]) -> Result<bool, BadPattern> {
    let (mut at, mut next) = (0, 0);
    // Where to go on after a mismatch: the pattern behind the last `%`, and the text it began at.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        let matched = match pattern.get(next) {
            Some(b'%') => {
                next += 1;
                retry = Some((next, at));
                continue;
            }
            None if at == text.len() => return Ok(true),
            // At the end of the text only more `%` could match; the escape still has to be valid.
            _ if at == text.len() => return Ok(false),
            None => false,
            Some(b'_') => {
                at += char_len(&text[at..]);
                next += 1;
                true
            }
            Some(b'\\') => {
                let literal = *pattern.get(next + 1).ok_or(BadPattern)?;
                let same = literal == text[at];
                if same {
                    at += 1;
                    next += 2;
                }
                same
            }
            Some(literal) => {
                let same = *literal == text[at];
                if same {
                    at += 1;
                    next += 1;
                }
                same
            }
        };
        if !matched {
            let Some((pattern_from, text_from)) = retry else { return Ok(false) };
            let text_from = text_from + char_len(&text[text_from..]);
            retry = Some((pattern_from, text_from));
            (at, next) = (text_from, pattern_from);
        }
    }
}

/// Whether a pattern ends in a lone backslash, so that matching may fail.
pub(super) fn is_malformed(pattern: &[u8]) -> bool {
    pattern.iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 1
}

/// What a pattern begins with before its first wildcard, escapes resolved, and the rest of it. None
/// for a malformed one.
pub(super) fn literal_prefix(pattern: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let (mut prefix, mut rest) = (Vec::new(), pattern);
    loop {
        match rest {
            [] | [b'%' | b'_', ..] => return Some((prefix, rest)),
            [b'\\', literal, after @ ..] => {
                prefix.push(*literal);
                rest = after;
            }
            [b'\\'] => return None,
            [literal, after @ ..] => {
                prefix.push(*literal);
                rest = after;
            }
        }
    }
}

/// The first text above all that begin with `prefix`. None where there is none.
pub(super) fn successor(mut prefix: Vec<u8>) -> Option<Vec<u8>> {
    while let Some(last) = prefix.pop() {
        if let Some(next) = last.checked_add(1) {
            prefix.push(next);
            return Some(prefix);
        }
    }
    None
}

/// Lower case, letter by letter: what Postgres does to both sides of an ILIKE in UTF-8.
pub(super) fn fold(text: &[u8]) -> Cow<'_, [u8]> {
    if text.is_ascii() {
        return if text.iter().any(u8::is_ascii_uppercase) {
            Cow::Owned(text.to_ascii_lowercase())
        } else {
            Cow::Borrowed(text)
        };
    }
    let mut folded = Vec::with_capacity(text.len());
    for c in String::from_utf8_lossy(text).chars() {
        let mut lower = c.to_lowercase();
        let first = lower.next().unwrap_or(c);
        // Only the dotted capital I has a longer lower case; C libraries map it to the plain i.
        let one = if lower.next().is_some() { 'i' } else { first };
        folded.extend_from_slice(one.encode_utf8(&mut [0; 4]).as_bytes());
    }
    Cow::Owned(folded)
}

/// Upper case, letter by letter: one that would become several stays as it is, unless there is a single
/// one for it (the Greek ones with a small iota below, which then have it beside).
pub(super) fn raise(text: &[u8]) -> Vec<u8> {
    if text.is_ascii() {
        return text.to_ascii_uppercase();
    }
    let mut raised = Vec::with_capacity(text.len());
    for c in String::from_utf8_lossy(text).chars() {
        let mut upper = c.to_uppercase();
        let first = upper.next().unwrap_or(c);
        let one = if upper.next().is_some() { with_iota_beside(c) } else { first };
        raised.extend_from_slice(one.encode_utf8(&mut [0; 4]).as_bytes());
    }
    raised
}

fn with_iota_beside(c: char) -> char {
    let above = match u32::from(c) {
        0x1F80..=0x1F87 | 0x1F90..=0x1F97 | 0x1FA0..=0x1FA7 => 8,
        0x1FB3 | 0x1FC3 | 0x1FF3 => 9,
        _ => 0,
    };
    char::from_u32(u32::from(c) + above).unwrap_or(c)
}

/// All letters that [`fold`] or [`raise`] change, and what they make of them: for asking whether somebody
/// else does the same.
#[must_use]
pub fn letters_with_case() -> [String; 3] {
    let changed = |c: &char| {
        let mut utf8 = [0; 4];
        let text = c.encode_utf8(&mut utf8).as_bytes();
        fold(text) != text || raise(text) != text
    };
    let letters: String = ('\0'..=char::MAX).filter(changed).collect();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (lower, upper) = (text(&fold(letters.as_bytes())), text(&raise(letters.as_bytes())));
    [letters, lower, upper]
}

/// Bytes of the first character; text in the stream is valid UTF-8.
fn char_len(text: &[u8]) -> usize {
    let continued = text.iter().skip(1).take_while(|byte| **byte & 0xC0 == 0x80).count();
    (1 + continued).min(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_as_postgres_does() {
        for (text, pattern, expected) in [
            ("", "", true),
            ("", "%", true),
            ("", "_", false),
            ("abc", "abc", true),
            ("abc", "ab", false),
            ("abc", "a%", true),
            ("abc", "%c", true),
            ("abc", "%b%", true),
            ("abc", "a_c", true),
            ("abc", "____", false),
            ("abcabc", "%abc", true),
            ("aXbXc", "a%b%d", false),
            ("é", "_", true),
            ("日本", "__", true),
            ("日本", "_", false),
            ("a\nb", "a_b", true),
            ("a\nb", "a%b", true),
            ("50%", "50\\%", true),
            ("50x", "50\\%", false),
            ("a_c", "a\\_c", true),
            ("abc", "a\\_c", false),
            ("a\\c", "a\\\\c", true),
            ("aéc", "a\\éc", true),
            ("abc", "%%%", true),
            ("ab", "a%_", true),
            ("a", "a%_", false),
            ("mississippi", "m%iss%ip%", true),
        ] {
            assert_eq!(matches(text.as_bytes(), pattern.as_bytes()), Ok(expected), "{text:?} {pattern:?}");
        }
    }

    #[test]
    fn a_lone_backslash_is_an_error_where_it_is_reached() {
        assert_eq!(matches(b"ab", b"a\\"), Err(BadPattern));
        assert_eq!(matches(b"xb", b"a\\"), Ok(false));
        assert!(is_malformed(b"a\\") && is_malformed(b"\\\\\\"));
        assert!(!is_malformed(b"a\\\\") && !is_malformed(b""));
    }

    #[test]
    fn raises_letter_by_letter() {
        for (text, raised) in [("aB1", "AB1"), ("éß", "Éß"), ("ᾀᾧῳ", "ᾈᾯῼ"), ("ŉǰ", "ŉǰ"), ("ςσ", "ΣΣ")]
        {
            assert_eq!(String::from_utf8_lossy(&raise(text.as_bytes())), raised, "{text}");
        }
        let [letters, lower, upper] = letters_with_case();
        assert!(letters.starts_with("ABC") && lower.starts_with("abc") && upper.starts_with("ABC"));
        assert_eq!(letters.chars().count(), lower.chars().count());
        assert_eq!(letters.chars().count(), upper.chars().count());
    }

    #[test]
    fn folds_letter_by_letter() {
        for (text, folded) in
            [("aBC1", "abc1"), ("ÄÉ", "äé"), ("ΑΣ", "ασ"), ("ΣΑ", "σα"), ("İ", "i"), ("ẞ", "ß")]
        {
            assert_eq!(fold(text.as_bytes()).as_ref(), folded.as_bytes(), "{text}");
        }
    }
}
