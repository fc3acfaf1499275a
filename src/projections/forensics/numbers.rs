//! Numbers as people read them.

use std::time::Duration;

use crate::domain::Sid;

/// `1574459193` as `1,574,459,193`.
#[must_use]
pub fn commas(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 shape`, `1,518 shapes`.
#[must_use]
pub fn plural(count: u64, noun: &str) -> String {
    format!("{} {noun}{}", commas(count), if count == 1 { "" } else { "s" })
}

/// The same with a sign.
#[must_use]
pub fn signed(number: i128) -> String {
    let magnitude = commas(u64::try_from(number.unsigned_abs()).unwrap_or(u64::MAX));
    format!("{}{magnitude}", if number < 0 { '-' } else { '+' })
}

/// The two largest units: `3 d 4 h`, `52 min 10 s`, `1.25 s`, `40 ms`.
#[must_use]
pub fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    if days > 0 {
        format!("{days} d {hours} h")
    } else if hours > 0 {
        format!("{hours} h {minutes} min")
    } else if minutes > 0 {
        format!("{minutes} min {} s", seconds % 60)
    } else if seconds > 0 {
        format!("{:.2} s", duration.as_secs_f64())
    } else {
        format!("{} ms", duration.as_millis())
    }
}

/// Neighbours as ranges: `1-33, 40`.
#[must_use]
pub fn ranges(sids: impl IntoIterator<Item = Sid>) -> String {
    let mut text = String::new();
    let mut sids = sids.into_iter().peekable();
    while let Some(first) = sids.next() {
        let mut last = first;
        while let Some(next) = sids.peek().copied().filter(|next| next.0 == last.0 + 1) {
            last = next;
            sids.next();
        }
        let separator = if text.is_empty() { "" } else { ", " };
        text +=
            &if first == last { format!("{separator}{first}") } else { format!("{separator}{first}-{last}") };
    }
    text
}

/// Digits, with `_` or `,` between them if one likes, and an optional unit of bytes: `1.5 GB`, `20GiB`.
#[must_use]
pub fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let digits: String = text[..split].chars().filter(|c| !matches!(c, '_' | ',' | ' ')).collect();
    let factor: u64 = match text[split..].trim() {
        "" | "B" | "bytes" => 1,
        "KB" | "kB" => 1_000,
        "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "GiB" => 1 << 30,
        "TB" => 1_000_000_000_000,
        "TiB" => 1 << 40,
        _ => return None,
    };
    if let Ok(whole) = digits.parse::<u64>() {
        return whole.checked_mul(factor);
    }
    let fraction: f64 = digits.parse().ok()?;
    let bytes = fraction * factor as f64;
    (bytes.is_finite() && (0.0..9.0e15).contains(&bytes)).then_some(bytes as u64)
}

/// `60s`, `250 ms`, `5 min`, `2 h`.
#[must_use]
pub fn parse_span(text: &str) -> Option<Duration> {
    let text = text.trim();
    let split = text.find(|c: char| c.is_ascii_alphabetic())?;
    let number: u64 = text[..split].trim().parse().ok()?;
    match text[split..].trim() {
        "ms" => Some(Duration::from_millis(number)),
        "s" | "sec" => Some(Duration::from_secs(number)),
        "m" | "min" => Some(Duration::from_secs(number.checked_mul(60)?)),
        "h" => Some(Duration::from_secs(number.checked_mul(3600)?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_574_459_193, "1,574,459,193")] {
            assert_eq!(commas(number), text);
        }
        assert_eq!(signed(-1234), "-1,234");
        assert_eq!(ranges([1, 2, 3, 7, 9, 10].map(Sid)), "1-3, 7, 9-10");
        for (millis, text) in
            [(40, "40 ms"), (1250, "1.25 s"), (3_130_000, "52 min 10 s"), (273_600_000, "3 d 4 h")]
        {
            assert_eq!(span(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn amounts_are_read() {
        for (text, bytes) in
            [("5", 5), ("1,574,459,193", 1_574_459_193), ("1.5 GB", 1_500_000_000), ("20GiB", 20 << 30)]
        {
            assert_eq!(parse_bytes(text), Some(bytes), "{text}");
        }
        for bad in ["", "x", "1 XB", "-1", "1.2.3"] {
            assert_eq!(parse_bytes(bad), None, "{bad}");
        }
        assert_eq!(parse_span("60s"), Some(Duration::from_secs(60)));
        assert_eq!(parse_span("2 h"), Some(Duration::from_secs(7200)));
        assert_eq!(parse_span("60"), None, "a span without a unit is ambiguous");
    }
}
