//! The table, ratios first, and the same with every sample as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::rows::{Bar, Row, Sheet};
use super::stats::{interval, median};

/// A 99th percentile counts only with at least this many samples behind it.
const SAMPLES_FOR_P99: u64 = 100_000;

/// Sheets of every path, one a round.
pub struct Report {
    paths: Vec<(String, Vec<Sheet>)>,
    remarks: Vec<String>,
}

impl Report {
    /// An empty report on these paths; the first is what the others are compared with, the second is A/A.
    pub fn new(paths: Vec<String>) -> Self {
        Self { paths: paths.into_iter().map(|name| (name, Vec::new())).collect(), remarks: Vec::new() }
    }

    /// Adds one round of one path.
    pub fn add(&mut self, path: &str, sheet: Sheet) {
        if let Some((_, sheets)) = self.paths.iter_mut().find(|(name, _)| name == path) {
            sheets.push(sheet);
        }
    }

    /// Adds a line below the table.
    pub fn remark(&mut self, text: String) {
        self.remarks.push(text);
    }

    fn values(&self, path: usize, row: Row) -> Vec<f64> {
        self.paths.get(path).into_iter().flat_map(|(_, sheets)| sheets).filter_map(|sheet| sheet.value(row)).collect()
    }

    /// Ratios to direct, each within its round.
    fn ratios(&self, path: usize, row: Row) -> Vec<f64> {
        self.values(path, row).iter().zip(self.values(0, row)).map(|(value, direct)| value / direct).collect()
    }

    fn fewest_samples(&self, row: Row) -> u64 {
        let sheets = self.paths.iter().flat_map(|(_, sheets)| sheets).filter(|sheet| sheet.value(row).is_some());
        sheets.map(|sheet| sheet.samples(row)).min().unwrap_or(0)
    }

    /// The table as text.
    pub fn table(&self) -> String {
        let mut text = String::new();
        for path in 2..self.paths.len() {
            let name = self.paths.get(path).map_or("", |(name, _)| name);
            let _ = writeln!(
                text,
                "\n{name}: ratio to direct, median of {} rounds\n\n{:44} {:>7} {:>15} {:>6} {:>10} {:>11} {:>11}  met",
                self.paths.get(path).map_or(0, |(_, sheets)| sheets.len()),
                "",
                "ratio",
                "95 % interval",
                "a/a",
                "must reach",
                "direct",
                name
            );
            for row in Row::ALL {
                let _ = writeln!(text, "{}", self.line(path, row));
            }
        }
        for remark in &self.remarks {
            let _ = writeln!(text, "\nNote: {remark}.");
        }
        text
    }

    fn line(&self, path: usize, row: Row) -> String {
        let meaning = row.meaning();
        let ratios = self.ratios(path, row);
        let noise = median(&self.ratios(1, row));
        let ratio = median(&ratios);
        let value = median(&self.values(path, row));
        let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"));
        let range = interval(&ratios).map_or_else(|| "-".to_owned(), |(low, high)| format!("{low:.2}..{high:.2}"));
        let with_unit = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| short(v, meaning.unit));
        let bar = match meaning.bar {
            Bar::AtLeast(bar) => format!(">= {bar:.2}"),
            Bar::AtMost(bar) => format!("<= {bar:.2}"),
            Bar::ValueAtMost(bar) => format!("<= {}", short(bar, meaning.unit)),
            Bar::None => "-".to_owned(),
        };
        // Corrected by what noise alone does to the same comparison.
        let corrected = ratio.map(|ratio| ratio / noise.unwrap_or(1.0));
        let met = match (meaning.bar, corrected, value) {
            (Bar::AtLeast(bar), Some(ratio), _) => verdict(ratio >= bar),
            (Bar::AtMost(bar), Some(ratio), _) => verdict(ratio <= bar),
            (Bar::ValueAtMost(bar), _, Some(value)) => verdict(value <= bar),
            _ => "-",
        };
        let few = matches!(row, Row::Http1P99 | Row::Http16P99) && self.fewest_samples(row) < SAMPLES_FOR_P99;
        format!(
            "{:44} {:>7} {:>15} {:>6} {:>10} {:>11} {:>11}  {}",
            meaning.text,
            number(ratio),
            range,
            number(noise),
            bar,
            with_unit(median(&self.values(0, row))),
            with_unit(value),
            if few { "too few samples" } else { met },
        )
    }

    /// Everything as JSON.
    pub fn json(&self) -> String {
        let sheet = |sheet: &Sheet| -> Value {
            Row::ALL.iter().filter_map(|row| Some((row.key().to_owned(), json!(sheet.value(*row)?)))).collect()
        };
        let paths: Value = self
            .paths
            .iter()
            .map(|(name, sheets)| (name.clone(), sheets.iter().map(sheet).collect::<Vec<_>>().into()))
            .collect::<serde_json::Map<String, Value>>()
            .into();
        let summary = |path: usize| -> Value {
            let rows = Row::ALL.iter().filter_map(|row| {
                let ratios = self.ratios(path, *row);
                let value = median(&self.values(path, *row))?;
                let ratio = json!({ "ratio": median(&ratios), "interval_95": interval(&ratios), "value": value });
                Some((row.key().to_owned(), ratio))
            });
            rows.collect::<serde_json::Map<String, Value>>().into()
        };
        let summaries: serde_json::Map<String, Value> =
            self.paths.iter().enumerate().skip(1).map(|(path, (name, _))| (name.clone(), summary(path))).collect();
        let all = json!({ "machine": machine(), "remarks": self.remarks, "summary": summaries, "rounds": paths });
        serde_json::to_string_pretty(&all).unwrap_or_default()
    }
}

/// The last column.
pub fn verdict(met: bool) -> &'static str {
    if met { "yes" } else { "NO" }
}

/// Three figures and a unit.
pub fn short(value: f64, unit: &str) -> String {
    let digits = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    if unit == "1/s" && value >= 10_000.0 {
        return format!("{:.1} k/s", value / 1000.0);
    }
    format!("{value:.digits$} {unit}")
}

/// What the numbers were made on.
pub fn machine() -> Value {
    let first = |path: &str, prefix: &str| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(prefix)).unwrap_or_default();
        line.rsplit_once(": ").map_or(line, |(_, value)| value).trim().to_owned()
    };
    json!({
        "kernel": first("/proc/sys/kernel/osrelease", ""),
        "cpu": first("/proc/cpuinfo", "model name"),
        "cpus": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "memory": first("/proc/meminfo", "MemTotal"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sheet(row: Row, value: f64) -> Sheet {
        let mut sheet = Sheet::default();
        sheet.note(row, value);
        sheet
    }

    #[test]
    fn a_bar_is_judged_by_the_median_ratio_corrected_by_noise() {
        let report = |mesh: f64, again: f64| {
            let mut report = Report::new(["direct", "a/a", "mesh"].map(str::to_owned).into());
            for _ in 0..7 {
                report.add("direct", sheet(Row::Stream1, 10.0));
                report.add("a/a", sheet(Row::Stream1, again));
                report.add("mesh", sheet(Row::Stream1, mesh));
            }
            report.line(2, Row::Stream1)
        };
        assert!(report(3.1, 10.0).ends_with("yes"), "{}", report(3.1, 10.0));
        assert!(report(2.9, 10.0).ends_with("NO"));
        // The machine gave the second of two equal runs 10 % less: so it would have given the mesh.
        assert!(report(2.9, 9.0).ends_with("yes"));
    }

    #[test]
    fn json_has_every_sample_and_the_summary() {
        let mut report = Report::new(["direct", "a/a", "mesh"].map(str::to_owned).into());
        for (path, value) in [("direct", 8.0), ("a/a", 8.0), ("mesh", 4.0)] {
            report.add(path, sheet(Row::Stream4, value));
        }
        let parsed: Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!(parsed.pointer("/rounds/mesh/0/stream_4_gbit_s"), Some(&json!(4.0)));
        assert_eq!(parsed.pointer("/summary/mesh/stream_4_gbit_s/ratio"), Some(&json!(0.5)));
    }
}
