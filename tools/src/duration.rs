//! Spans of time as people write them: `90s`, `15m`, `1h`, `7d`.

use std::time::Duration;

/// Parses a whole number with its unit.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a span of time; write 90s, 15m, 1h or 7d");
    let text_trimmed = text.trim();
    let unit = text_trimmed.chars().last().ok_or_else(bad)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return Err(bad()),
    };
    let number = &text_trimmed[..text_trimmed.len() - 1];
    if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    let number: u64 = number.parse().map_err(|_| bad())?;
    let total = number.checked_mul(seconds).filter(|s| *s <= 10_000 * 86_400);
    total
        .map(Duration::from_secs)
        .ok_or_else(|| format!("{text:?} is too long"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_parse() {
        assert_eq!(parse_duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("15m"), Ok(Duration::from_secs(900)));
        assert_eq!(parse_duration(" 1h "), Ok(Duration::from_secs(3_600)));
        assert_eq!(parse_duration("7d"), Ok(Duration::from_secs(604_800)));
        for wrong in [
            "",
            "7",
            "h",
            "1.5h",
            "-1h",
            "1w",
            "1é",
            "99999999999999999999d",
            "20000d",
        ] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }
}
