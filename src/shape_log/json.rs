//! JSON text by hand: escaping on the way in, finding message boundaries on the way out.

use super::error::EncodeError;

/// Appends `text` as the inside of a JSON string.
///
/// # Errors
/// [`EncodeError::InvalidUtf8`]; what was appended then is of no use.
pub(crate) fn escape_into(out: &mut Vec<u8>, text: &[u8]) -> Result<(), EncodeError> {
    if escape_until_slash::<false>(out, text) { check_utf8(text) } else { Ok(()) }
}

/// As [`escape_into`], every `/` doubled: the form of values in message keys (contract 3.4).
pub(crate) fn escape_key_into(out: &mut Vec<u8>, text: &[u8]) -> Result<(), EncodeError> {
    if escape_until_slash::<true>(out, text) { check_utf8(text) } else { Ok(()) }
}

/// A JSON string of a name, quotes included.
pub(crate) fn quoted(text: &str) -> Vec<u8> {
    let mut out = vec![b'"'];
    escape_until_slash::<false>(&mut out, text.as_bytes());
    out.push(b'"');
    out
}

/// Decimal digits without the formatting machinery.
pub(crate) fn decimal_into(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0_u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Whole messages of a body piece, without the commas between them. The piece must hold whole
/// messages, as those of a log or snapshot range do.
pub fn messages(piece: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = piece;
    std::iter::from_fn(move || {
        while let Some((b',', tail)) = rest.split_first() {
            rest = tail;
        }
        if rest.is_empty() {
            return None;
        }
        let (message, tail) = rest.split_at(message_len(rest));
        rest = tail;
        Some(message)
    })
}

/// How many bytes the messages, with the comma after each, at the beginning of `bytes` take that are together
/// no longer than `max`; the first where it alone is longer.
pub(crate) fn whole_messages(bytes: &[u8], max: usize) -> usize {
    if bytes.len() <= max {
        return bytes.len();
    }
    let mut end = 0;
    for message in messages(bytes) {
        let next = end + message.len() + 1;
        if end > 0 && next > max {
            break;
        }
        end = next;
    }
    end.min(bytes.len())
}

/// Length of the JSON object at the start; all of it where the object does not end.
fn message_len(bytes: &[u8]) -> usize {
    let (mut at, mut depth) = (0, 0_usize);
    while let Some(found) = memchr::memchr3(b'"', b'{', b'}', &bytes[at..]) {
        at += found + 1;
        match bytes[at - 1] {
            b'{' => depth += 1,
            b'}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return at;
                }
            }
            _ => at = string_end(bytes, at),
        }
    }
    bytes.len()
}

/// Position after the closing quote of the string whose inside starts at `at`.
pub(super) fn string_end(bytes: &[u8], mut at: usize) -> usize {
    while let Some(found) = memchr::memchr2(b'"', b'\\', &bytes[at..]) {
        at += found + 1;
        if bytes[at - 1] == b'"' {
            return at;
        }
        // The escaped byte is part of the string whatever it is.
        at = (at + 1).min(bytes.len());
    }
    bytes.len()
}

fn check_utf8(text: &[u8]) -> Result<(), EncodeError> {
    std::str::from_utf8(text).map(|_| ()).map_err(|_| EncodeError::InvalidUtf8)
}

/// Appends the escaped text; true where it holds bytes beyond ASCII, which are then to be checked.
fn escape_until_slash<const DOUBLE_SLASH: bool>(out: &mut Vec<u8>, text: &[u8]) -> bool {
    let mut beyond_ascii = false;
    let mut rest = text;
    loop {
        let clean = clean_len::<DOUBLE_SLASH>(rest, &mut beyond_ascii);
        out.extend_from_slice(&rest[..clean]);
        let Some(&byte) = rest.get(clean) else { return beyond_ascii };
        escape_byte(out, byte);
        rest = &rest[clean + 1..];
    }
}

fn escape_byte(out: &mut Vec<u8>, byte: u8) {
    let short = match byte {
        b'"' => b"\\\"",
        b'\\' => b"\\\\",
        b'/' => b"//",
        b'\n' => b"\\n",
        b'\r' => b"\\r",
        b'\t' => b"\\t",
        0x08 => b"\\b",
        0x0c => b"\\f",
        control => {
            const HEX: &[u8; 16] = b"0123456789abcdef";
            let (high, low) = (HEX[usize::from(control >> 4)], HEX[usize::from(control & 15)]);
            return out.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
        }
    };
    out.extend_from_slice(short);
}

/// Length of the prefix that needs no escaping. Eight bytes at a time: a subtraction borrows into
/// the top bit of each byte that is below a bound, so one test covers all eight.
fn clean_len<const DOUBLE_SLASH: bool>(text: &[u8], beyond_ascii: &mut bool) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    let has_zero = |word: u64| word.wrapping_sub(ONES) & !word & HIGH;
    let (words, _) = text.as_chunks::<8>();
    let mut high = 0;
    let mut at = 0;
    for word in words {
        let word = u64::from_le_bytes(*word);
        let mut special = word.wrapping_sub(ONES * 0x20) & !word & HIGH;
        special |= has_zero(word ^ (ONES * u64::from(b'"')));
        special |= has_zero(word ^ (ONES * u64::from(b'\\')));
        if DOUBLE_SLASH {
            special |= has_zero(word ^ (ONES * u64::from(b'/')));
        }
        high |= word & HIGH;
        if special != 0 {
            // A borrow can only mark bytes above a true hit, so the lowest mark is true.
            *beyond_ascii |= high != 0;
            return at + special.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    *beyond_ascii |= high != 0;
    for &byte in &text[at..] {
        if byte < 0x20 || byte == b'"' || byte == b'\\' || (DOUBLE_SLASH && byte == b'/') {
            return at;
        }
        *beyond_ascii |= byte >= 0x80;
        at += 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn escaped(text: &str) -> String {
        let mut out = Vec::new();
        escape_into(&mut out, text.as_bytes()).expect("valid UTF-8");
        String::from_utf8(out).expect("valid UTF-8")
    }

    #[test]
    fn escapes_what_json_wants_escaped() {
        assert_eq!(escaped("a\"b\\c\nd\u{1}é/ende"), "a\\\"b\\\\c\\nd\\u0001é/ende");
        let mut key = Vec::new();
        escape_key_into(&mut key, b"test/path\"longer than eight/").expect("valid UTF-8");
        assert_eq!(key, b"test//path\\\"longer than eight//");
        let invalid = escape_into(&mut Vec::new(), b"some text before \xff\xfe");
        assert_eq!(invalid, Err(EncodeError::InvalidUtf8));
        assert_eq!(escape_into(&mut Vec::new(), b"\xc3"), Err(EncodeError::InvalidUtf8));
    }

    #[test]
    fn splits_messages_whatever_the_strings_hold() {
        let piece = br#"{"a":{"b":"}{,\"\\"}},{"c":1},{"d":"\\\"}"}"#;
        let split: Vec<&[u8]> = messages(piece).collect();
        assert_eq!(split, [&br#"{"a":{"b":"}{,\"\\"}}"#[..], br#"{"c":1}"#, br#"{"d":"\\\"}"}"#]);
        assert_eq!(messages(b"").count(), 0);
        assert_eq!(messages(b"{\"broken").collect::<Vec<_>>(), [b"{\"broken"]);
    }

    proptest! {
        #[test]
        fn agrees_with_serde_json(text in "\\PC*|[\\x00-\\x7f\"\\\\/é€𝄞]*") {
            let quoted = format!("\"{}\"", escaped(&text));
            prop_assert_eq!(serde_json::from_str::<String>(&quoted).expect("valid JSON"), text);
        }

        #[test]
        fn utf8_is_checked(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let result = escape_into(&mut Vec::new(), &bytes);
            prop_assert_eq!(result.is_ok(), std::str::from_utf8(&bytes).is_ok());
        }

        #[test]
        fn decimals(number in any::<u64>()) {
            let mut out = Vec::new();
            decimal_into(&mut out, number);
            prop_assert_eq!(out, number.to_string().into_bytes());
        }
    }
}
