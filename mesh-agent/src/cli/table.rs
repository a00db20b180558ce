//! Tables, and the words in them that several commands have.

use std::fmt::Write;

use super::plain;

/// A title and columns as wide as their widest cell; the last one is not padded.
pub(super) fn table<const N: usize>(
    text: &mut String,
    title: &str,
    head: &[&str; N],
    rows: impl Iterator<Item = [String; N]>,
) {
    let rows: Vec<[String; N]> = rows.map(|row| row.map(|cell| plain(&cell))).collect();
    let _ = writeln!(text, "\n{title}");
    if rows.is_empty() {
        text.push_str("  none\n");
        return;
    }
    let mut widths = head.map(str::len);
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut line = |cells: &[&str]| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        let _ = writeln!(text, "  {}", padded.collect::<Vec<_>>().join("  ").trim_end());
    };
    line(head);
    for row in &rows {
        line(&row.each_ref().map(String::as_str));
    }
}

/// What is empty is a dash.
pub(super) fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

/// When something that lasts until `not_after` ends, seen from `now`; both in seconds since 1970, 0 for never.
pub(super) fn expiry(not_after: i64, now: i64) -> String {
    match not_after {
        0 => "-".to_owned(),
        not_after if not_after > now => format!("in {}", span(not_after - now)),
        not_after => format!("{} ago", span(now - not_after)),
    }
}

/// Seconds as a person says them: the two largest units.
pub(super) fn span(seconds: i64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_short() {
        for (seconds, words) in [(5, "5 s"), (300, "5 min"), (3_660, "1 h 1 min"), (180_000, "2 d 2 h")] {
            assert_eq!(span(seconds), words);
        }
    }
}
