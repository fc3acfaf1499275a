//! How values are written in Electric's environment variables: contract, section 5.

use std::time::Duration;

/// A number with `ms`, `msec`, `s`, `sec`, `m` or `min`; bare numbers are milliseconds. Above zero.
///
/// # Errors
/// The text is not of this form.
pub fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text)?;
    let millis = match unit {
        "" | "ms" | "msec" => 1.0,
        "s" | "sec" => 1_000.0,
        "m" | "min" => 60_000.0,
        _ => return Err(format!("unknown unit of time {unit:?}: use ms, s or min")),
    };
    let seconds = number * millis / 1_000.0;
    if seconds > 0.0 {
        Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
    } else {
        Err("a time must be greater than 0".to_owned())
    }
}

/// A number of bytes with `KB`, `KiB`, `MB`, `MiB`, `GB` or `GiB`.
///
/// # Errors
/// The text is not of this form.
pub fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text)?;
    let factor = match unit {
        "" | "B" => 1.0,
        "KB" => 1e3,
        "KiB" => 1_024.0,
        "MB" => 1e6,
        "MiB" => 1_048_576.0,
        "GB" => 1e9,
        "GiB" => 1_073_741_824.0,
        _ => return Err(format!("unknown unit of size {unit:?}: use KB, KiB, MB, MiB, GB or GiB")),
    };
    let bytes = number * factor;
    // Exact far beyond any size that makes sense here.
    if (1.0..9.0e15).contains(&bytes) {
        Ok(bytes as u64)
    } else {
        Err("a size must be at least 1 byte".to_owned())
    }
}

/// `true`, `false`, `1` or `0`, in any case.
///
/// # Errors
/// The text is none of them.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "1" => Ok(true),
        "false" | "0" | "" => Ok(false),
        _ => Err("must be true or false".to_owned()),
    }
}

/// A whole number above zero.
///
/// # Errors
/// The text is none.
pub fn positive(text: &str) -> Result<usize, String> {
    match text.trim().parse() {
        Ok(0) | Err(_) => Err("must be a whole number above 0".to_owned()),
        Ok(number) => Ok(number),
    }
}

/// A number from 0 to 1.
///
/// # Errors
/// The text is none.
pub fn ratio(text: &str) -> Result<f64, String> {
    match text.trim().parse() {
        Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
        Ok(_) | Err(_) => Err("must be a number from 0 to 1".to_owned()),
    }
}

fn split(text: &str) -> Result<(f64, &str), String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number = text[..digits].parse().map_err(|_| format!("{text:?} does not begin with a number"))?;
    Ok((number, text[digits..].trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_times() {
        for (text, millis) in [("5", 5), ("5ms", 5), ("1.5s", 1_500), ("2 min", 120_000), ("60sec", 60_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for bad in ["", "0", "s", "-1s", "5 h", "1e400s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn reads_sizes() {
        for (text, bytes) in
            [("10485760", 10_485_760), ("10MiB", 10_485_760), ("1.5 KB", 1_500), ("1GB", 1_000_000_000)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "0", "MB", "5 TB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn reads_counts_and_ratios() {
        assert_eq!(positive(" 2 "), Ok(2));
        assert!(positive("0").is_err() && positive("-1").is_err() && positive("many").is_err());
        assert_eq!(ratio("0.01"), Ok(0.01));
        assert!(ratio("1.1").is_err() && ratio("-0.1").is_err() && ratio("NaN").is_err());
    }

    #[test]
    fn reads_booleans() {
        for (text, value) in [("true", true), ("1", true), ("FALSE", false), ("0", false), ("", false)] {
            assert_eq!(boolean(text), Ok(value), "{text}");
        }
        assert!(boolean("yes").is_err());
    }
}
