//! Durations as the Gateway API writes them (GEP-2257): `1h30m`, `500ms`, `0s`.

use std::time::Duration;

use super::{Checked, wrong};

/// Each part is a number of at most five digits and a unit; at most four parts.
const MAX_PARTS: usize = 4;
const MAX_DIGITS: usize = 5;

/// Reads the duration at `field`.
pub(super) fn read(field: &str, text: &str) -> Checked<Duration> {
    parse(text).map_or_else(|| wrong(field, format!("`{text}` is no duration such as 1h30m, 10s or 500ms")), Ok)
}

/// Reads a duration.
pub(in crate::control::object) fn parse(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    for _ in 0..MAX_PARTS {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|digits| (1..=MAX_DIGITS).contains(digits))?;
        let (number, after) = rest.split_at_checked(digits)?;
        let number: u64 = number.parse().ok()?;
        let units = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];
        let (after, millis) = units.iter().find_map(|(unit, millis)| Some((after.strip_prefix(unit)?, millis)))?;
        total += Duration::from_millis(number * millis);
        if after.is_empty() {
            return Some(total);
        }
        rest = after;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_gep_2257() {
        for (text, millis) in [
            ("0s", Some(0)),
            ("500ms", Some(500)),
            ("1h30m", Some(5_400_000)),
            ("10s", Some(10_000)),
            ("1m", Some(60_000)),
            ("1m1ms", Some(60_001)),
            ("99999h", Some(359_996_400_000)),
            ("1h1m1s1ms", Some(3_661_001)),
            ("1s1h", Some(3_601_000)),
            ("", None),
            ("s", None),
            ("1", None),
            ("1.5s", None),
            ("-1s", None),
            ("1d", None),
            ("1us", None),
            ("100000s", None),
            ("1s1s1s1s1s", None),
            ("1 s", None),
            ("1S", None),
        ] {
            assert_eq!(parse(text), millis.map(Duration::from_millis), "{text}");
        }
    }
}
