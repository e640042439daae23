use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;

/// A duration or an age in seconds, to the microsecond.
// Prints as people read it: `0.4s`, `41s`, `4m12s`, `3h05m`. (No doc comment: that is the schema's description.)
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct Seconds(f64);

impl Seconds {
    pub fn new(seconds: f64) -> Self {
        Self((seconds * 1e6).round() / 1e6)
    }
    pub fn known(seconds: Option<f64>) -> Option<Self> {
        seconds.map(Self::new)
    }
    /// The way from the other end.
    pub fn negated(self) -> Self {
        Self(-self.0)
    }
    /// For latencies: below a second in milliseconds.
    pub fn fine(self) -> String {
        if self.0 < 1.0 {
            format!("{:.1}ms", self.0 * 1000.0)
        } else {
            self.to_string()
        }
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Rounded down, so that no age claims more than has passed; a float beyond u64 saturates.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the cast saturates, and a negative age prints as 0"
        )]
        let tenths = (self.0 * 10.0 + 1e-6) as u64;
        let whole = tenths / 10;
        let (major, minor, units) = match whole {
            0..10 if !tenths.is_multiple_of(10) => return write!(f, "{whole}.{}s", tenths % 10),
            0..60 => return write!(f, "{whole}s"),
            60..3600 => (whole / 60, whole % 60, ('m', 's')),
            3600..86400 => (whole / 3600, whole / 60 % 60, ('h', 'm')),
            _ => (whole / 86400, whole / 3600 % 24, ('d', 'h')),
        };
        write!(f, "{major}{}", units.0)?;
        if minor > 0 {
            write!(f, "{minor:02}{}", units.1)?;
        }
        Ok(())
    }
}

/// `-` where a value is not known.
pub fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |v| v.to_string())
}

/// `-` for an empty text.
pub fn text_or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

/// `1 peer`, `2 peers`.
pub fn count(number: u64, noun: &str) -> String {
    if number == 1 {
        format!("1 {noun}")
    } else {
        format!("{number} {noun}s")
    }
}

/// `4.0 KiB`, `512 B`.
pub fn bytes(number: u64) -> String {
    #[expect(
        clippy::cast_precision_loss,
        reason = "one decimal is shown: 52 bits are plenty"
    )]
    let mut value = number as f64;
    if value < 1024.0 {
        return format!("{number} B");
    }
    let mut unit = "";
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

/// Names and errors come from other clusters: what a terminal would obey is left out.
pub fn clean(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// At most `max` characters, the last one `…` if some are missing.
pub fn shorten(text: &str, max: usize) -> String {
    if text.chars().count() <= max {
        return text.to_owned();
    }
    let kept: String = text.chars().take(max.saturating_sub(1)).collect();
    format!("{}…", kept.trim_end())
}

/// Joined as in a sentence: `a`, `a and b`, `a, b and c`.
pub fn listed(items: &[String]) -> String {
    match items {
        [] => String::new(),
        [only] => only.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// `10.96.71.4:8080`, `[fd00::1]:8080`.
pub fn address_port(address: &str, port: u32) -> String {
    if address.contains(':') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_read_as_people_say_them() {
        for (seconds, text) in [
            (0.0, "0s"),
            (0.04, "0s"),
            (0.4, "0.4s"),
            (1.96, "1.9s"),
            (8.0, "8s"),
            (9.99, "9.9s"),
            (10.5, "10s"),
            (41.0, "41s"),
            (63.0, "1m03s"),
            (252.4, "4m12s"),
            (300.0, "5m"),
            (3600.0, "1h"),
            (11_100.0, "3h05m"),
            (187_200.0, "2d04h"),
            (-3.0, "0s"),
        ] {
            assert_eq!(Seconds::new(seconds).to_string(), text, "{seconds}");
        }
        assert_eq!(Seconds::new(0.0019).fine(), "1.9ms");
        assert_eq!(Seconds::new(2.0).fine(), "2s");
    }

    #[test]
    fn sizes_lists_and_short_texts() {
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(4096), "4.0 KiB");
        assert_eq!(bytes(5 << 20), "5.0 MiB");
        assert_eq!(listed(&["a", "b", "c"].map(String::from)), "a, b and c");
        assert_eq!(shorten("heartbeat timed out", 10), "heartbeat…");
        assert_eq!(clean("a\u{1b}[31mb\n"), "a [31mb ");
        assert_eq!(address_port("fd00::1", 80), "[fd00::1]:80");
        assert_eq!(count(1, "peer"), "1 peer");
        assert_eq!(count(0, "peer"), "0 peers");
    }
}
