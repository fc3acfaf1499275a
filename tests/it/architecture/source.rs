//! Rust text without what must not be looked at: comments, strings, tests.
//!
//! No parser: a lexer that knows comments, literals and braces is enough for every rule here, and the
//! rules are about text that rustfmt has laid out.

/// A source file, with everything blanked that no rule is about. Lines keep their numbers.
#[derive(Clone, Debug)]
pub struct Source {
    /// Relative to the crate, with `/`.
    pub path: String,
    pub raw: String,
    /// Comments, literals and items under `#[cfg(test)]` are spaces.
    pub code: String,
    /// Names of modules that are declared under `#[cfg(test)]` and live in other files.
    pub test_modules: Vec<String>,
}

impl Source {
    pub fn new(path: &str, raw: &str) -> Source {
        let mut code: Vec<u8> = blank_comments_and_literals(raw);
        let test_modules = blank_tests(&mut code);
        let code = String::from_utf8(code).expect("only whole characters are blanked");
        Source { path: path.to_owned(), raw: raw.to_owned(), code, test_modules }
    }

    /// The text without comments and literals, tests included.
    pub fn code_with_tests(raw: &str) -> String {
        String::from_utf8(blank_comments_and_literals(raw)).expect("only whole characters are blanked")
    }

    /// The folder below `src/`, or the name of a file that is there itself.
    pub fn module(&self) -> Option<&str> {
        let rest = self.path.strip_prefix("src/")?;
        Some(rest.split('/').next()?.trim_end_matches(".rs"))
    }

    /// How many modules this file is below the root of the crate.
    pub fn depth(&self) -> usize {
        let parts = self.path.trim_start_matches("src/").split('/').filter(|part| *part != "mod.rs").count();
        if self.path == "src/lib.rs" || self.path == "src/main.rs" { 0 } else { parts }
    }

    pub fn line(&self, at: usize) -> usize {
        self.code[..at].matches('\n').count() + 1
    }

    /// Where `word` stands by itself.
    pub fn words<'a>(&'a self, word: &'a str) -> impl Iterator<Item = usize> + 'a {
        let code = self.code.as_bytes();
        self.code.match_indices(word).map(|(at, _)| at).filter(move |at| {
            let before = at.checked_sub(1).map(|index| code[index]);
            let after = code.get(at + word.len()).copied();
            !before.is_some_and(is_word) && !after.is_some_and(is_word)
        })
    }

    /// The first segments that follow `root::`, groups taken apart: `root::{a::x, b}` gives `a` and `b`.
    pub fn paths_from(&self, root: &str) -> Vec<(usize, String)> {
        let mut found = Vec::new();
        for at in self.words(root) {
            let Some(rest) = self.code[at + root.len()..].strip_prefix("::") else { continue };
            let start = at + root.len() + 2;
            match rest.strip_prefix('{') {
                Some(_) => {
                    let end = closing(self.code.as_bytes(), start);
                    for (offset, part) in split_at_depth_0(&self.code[start + 1..end]) {
                        let space = part.len() - part.trim_start().len();
                        found.push((start + 1 + offset + space, first_word(part)));
                    }
                }
                None => found.push((start, first_word(rest))),
            }
        }
        found.retain(|(_, segment)| !segment.is_empty());
        found
    }

    /// The arms of every `match`: where each begins, and the pattern with its guard.
    pub fn matches(&self) -> Vec<Vec<(usize, String)>> {
        let code = self.code.as_bytes();
        let mut found = Vec::new();
        for at in self.words("match") {
            // The first brace at depth 0 after the word opens the arms: rustfmt and the language allow
            // no other one there outside parentheses.
            let Some(open) = open_of_match(code, at + "match".len()) else { continue };
            found.push(arms(&self.code, open, closing(code, open)));
        }
        found
    }
}

fn open_of_match(code: &[u8], from: usize) -> Option<usize> {
    let mut depth = 0_i32;
    for (offset, byte) in code[from..].iter().enumerate() {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b'{' if depth == 0 => return Some(from + offset),
            b';' if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

fn arms(code: &str, open: usize, close: usize) -> Vec<(usize, String)> {
    let bytes = code.as_bytes();
    let mut arms = Vec::new();
    let mut at = open + 1;
    while at < close {
        let Some(arrow) = find_at_depth_0(bytes, at, close, b"=>") else { break };
        let pattern = code[at..arrow].trim();
        let start = at + code[at..arrow].find(|c: char| !c.is_whitespace()).unwrap_or(0);
        arms.push((start, pattern.to_owned()));
        let body = arrow + 2;
        let first = (body..close).find(|index| !bytes[*index].is_ascii_whitespace()).unwrap_or(close);
        at = if bytes.get(first) == Some(&b'{') {
            let end = closing(bytes, first) + 1;
            let comma = (end..close).find(|index| !bytes[*index].is_ascii_whitespace());
            comma.filter(|index| bytes[*index] == b',').map_or(end, |index| index + 1)
        } else {
            find_at_depth_0(bytes, first, close, b",").map_or(close, |comma| comma + 1)
        };
    }
    arms
}

fn find_at_depth_0(code: &[u8], from: usize, to: usize, wanted: &[u8]) -> Option<usize> {
    let mut depth = 0_i32;
    (from..to).find(|at| {
        if depth == 0 && code[*at..].starts_with(wanted) {
            return true;
        }
        match code[*at] {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth -= 1,
            _ => {}
        }
        false
    })
}

/// The brace that closes the one at `open`; the end of the text where it is not closed.
fn closing(code: &[u8], open: usize) -> usize {
    let mut depth = 0_i32;
    for (offset, byte) in code[open..].iter().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return open + offset;
        }
    }
    code.len()
}

fn split_at_depth_0(text: &str) -> Vec<(usize, &str)> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0_i32, 0);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            b',' if depth == 0 => {
                parts.push((start, &text[start..at]));
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push((start, &text[start..]));
    parts
}

fn first_word(text: &str) -> String {
    text.trim_start().bytes().take_while(|byte| is_word(*byte)).map(char::from).collect()
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn blank(bytes: &mut [u8]) {
    for byte in bytes {
        if *byte != b'\n' {
            *byte = b' ';
        }
    }
}

fn blank_comments_and_literals(raw: &str) -> Vec<u8> {
    let mut code = raw.as_bytes().to_vec();
    let mut at = 0;
    while at < code.len() {
        let end = match code[at] {
            b'/' if code[at..].starts_with(b"//") => end_of_line(&code, at),
            b'/' if code[at..].starts_with(b"/*") => end_of_block_comment(&code, at),
            b'"' => end_of_string(&code, at),
            b'r' | b'b' if !at.checked_sub(1).is_some_and(|before| is_word(code[before])) => {
                end_of_prefixed_literal(&code, at).unwrap_or(at)
            }
            b'\'' => end_of_character(&code, at).unwrap_or(at),
            _ => at,
        };
        if end > at {
            blank(&mut code[at..end]);
        }
        at = end.max(at + 1);
    }
    code
}

fn end_of_line(code: &[u8], at: usize) -> usize {
    code[at..].iter().position(|byte| *byte == b'\n').map_or(code.len(), |offset| at + offset)
}

fn end_of_block_comment(code: &[u8], at: usize) -> usize {
    let (mut depth, mut end) = (0, at);
    while end < code.len() {
        if code[end..].starts_with(b"/*") {
            depth += 1;
            end += 2;
        } else if code[end..].starts_with(b"*/") {
            depth -= 1;
            end += 2;
            if depth == 0 {
                return end;
            }
        } else {
            end += 1;
        }
    }
    end
}

fn end_of_string(code: &[u8], at: usize) -> usize {
    let mut end = at + 1;
    while end < code.len() && code[end] != b'"' {
        end += if code[end] == b'\\' { 2 } else { 1 };
    }
    (end + 1).min(code.len())
}

/// `r"…"`, `r#"…"#`, `b"…"`, `br#"…"#`, `b'…'`; not the raw identifier `r#type`.
fn end_of_prefixed_literal(code: &[u8], at: usize) -> Option<usize> {
    let mut quote = at + 1;
    if code[at] == b'b' && code.get(quote) == Some(&b'r') {
        quote += 1;
    }
    let raw = code[quote - 1] == b'r';
    let hashes = code[quote..].iter().take_while(|byte| **byte == b'#').count();
    match code.get(quote + hashes) {
        Some(b'"') if raw => {
            let mut end = vec![b'"'];
            end.resize(hashes + 1, b'#');
            let start = quote + hashes + 1;
            let found = code[start..].windows(end.len()).position(|window| window == end);
            Some(found.map_or(code.len(), |offset| start + offset + end.len()))
        }
        Some(b'"') if hashes == 0 => Some(end_of_string(code, quote)),
        Some(b'\'') if hashes == 0 && !raw => end_of_character(code, quote),
        _ => None,
    }
}

/// A character, as opposed to a lifetime.
fn end_of_character(code: &[u8], at: usize) -> Option<usize> {
    if code.get(at + 1) == Some(&b'\\') {
        return code[at + 3..].iter().position(|byte| *byte == b'\'').map(|offset| at + 4 + offset);
    }
    let text = std::str::from_utf8(&code[at + 1..]).ok()?;
    let length = text.chars().next()?.len_utf8();
    (code.get(at + 1 + length) == Some(&b'\'')).then_some(at + 2 + length)
}

/// Blanks what is only there for tests; the names of test modules in other files.
fn blank_tests(code: &mut [u8]) -> Vec<String> {
    const ATTRIBUTE: &[u8] = b"#[cfg(test)]";
    let mut modules = Vec::new();
    let mut from = 0;
    while let Some(offset) = code[from..].windows(ATTRIBUTE.len()).position(|window| window == ATTRIBUTE) {
        let start = from + offset;
        let item = start + ATTRIBUTE.len();
        let stop = code[item..].iter().position(|byte| matches!(byte, b'{' | b';'));
        let stop = stop.map_or(code.len(), |offset| item + offset);
        let end = if code.get(stop) == Some(&b'{') { closing(code, stop) } else { stop };
        let declaration = String::from_utf8_lossy(&code[item..stop]).into_owned();
        if code.get(stop) == Some(&b';')
            && let Some((_, name)) = declaration.rsplit_once("mod ")
        {
            modules.push(name.trim().to_owned());
        }
        let end = (end + 1).min(code.len());
        blank(&mut code[start..end]);
        from = end;
    }
    modules
}
