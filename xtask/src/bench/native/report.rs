//! Comparisons of three columns, what is compared with, the same again (A/A) and the subject, as table and JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::bench::report::{machine, short, verdict};
use crate::bench::rows::Bar;
use crate::bench::stats::{interval, median};

/// What is measured, and the bar.
#[derive(Clone, Copy)]
pub struct Row {
    key: &'static str,
    text: &'static str,
    unit: &'static str,
    bar: Bar,
}

impl Row {
    /// A row; `key` is its name in sheets and JSON.
    pub const fn new(key: &'static str, text: &'static str, unit: &'static str, bar: Bar) -> Self {
        Self { key, text, unit, bar }
    }
}

/// Values of one column in one round, by the row's key.
pub type Sheet = BTreeMap<&'static str, f64>;

/// A value that is not compared with another.
pub struct Fact {
    /// What it is.
    pub row: Row,
    /// It.
    pub value: f64,
}

/// Rounds of three columns.
pub struct Comparison {
    key: &'static str,
    columns: [&'static str; 3],
    rows: &'static [Row],
    rounds: Vec<[Sheet; 3]>,
}

/// One row over all rounds.
struct Outcome {
    medians: [f64; 3],
    /// Ratio of A/A.
    noise: f64,
    /// Ratio of the subject, corrected by A/A, with its 95 % interval.
    ratio: f64,
    interval: Option<(f64, f64)>,
}

impl Comparison {
    /// Without a round yet.
    pub fn new(key: &'static str, columns: [&'static str; 3], rows: &'static [Row]) -> Self {
        Self { key, columns, rows, rounds: Vec::new() }
    }

    /// Adds a round.
    pub fn add(&mut self, round: [Sheet; 3]) {
        self.rounds.push(round);
    }

    /// `None` when a column has no value of the row in some round.
    fn outcome(&self, row: &Row) -> Option<Outcome> {
        let mut columns = [const { Vec::new() }; 3];
        for round in &self.rounds {
            for (column, sheet) in columns.iter_mut().zip(round) {
                column.push(*sheet.get(row.key)?);
            }
        }
        let [base, again, subject] = &columns;
        let ratios =
            |column: &[f64]| -> Vec<f64> { column.iter().zip(base).map(|(value, base)| value / base).collect() };
        let noise = median(&ratios(again))?;
        let corrected: Vec<f64> = ratios(subject).iter().map(|ratio| ratio / noise).collect();
        let medians = [median(base)?, median(again)?, median(subject)?];
        Some(Outcome { medians, noise, ratio: median(&corrected)?, interval: interval(&corrected) })
    }

    /// As text.
    pub fn table(&self) -> String {
        let [base, _, subject] = self.columns;
        let mut text = format!(
            "\n{subject}: ratio to {base}, corrected by A/A, median of {} rounds\n\n\
             {:44} {:>6} {:>15} {:>6} {:>10} {base:>11} {subject:>11}  met\n",
            self.rounds.len(),
            "",
            "ratio",
            "95 % interval",
            "a/a",
            "must reach",
        );
        for row in self.rows {
            let Some(outcome) = self.outcome(row) else { continue };
            let Outcome { medians: [base, _, subject], noise, ratio, interval } = outcome;
            let interval = interval.map_or_else(|| "-".to_owned(), |(low, high)| format!("{low:.3}..{high:.3}"));
            let (bar, met) = judged(row.bar, row.unit, ratio);
            let (base, subject) = (short(base, row.unit), short(subject, row.unit));
            let _ = writeln!(
                text,
                "{:44} {ratio:>6.3} {interval:>15} {noise:>6.3} {bar:>10} {base:>11} {subject:>11}  {met}",
                row.text
            );
        }
        text
    }

    fn json(&self) -> Value {
        let mut summary = Map::new();
        for row in self.rows {
            let Some(outcome) = self.outcome(row) else { continue };
            let met = judged(row.bar, row.unit, outcome.ratio).1;
            let value = json!({
                "ratio": outcome.ratio, "interval_95": outcome.interval, "a_a": outcome.noise,
                "medians": outcome.medians, "met": met,
            });
            summary.insert(row.key.to_owned(), value);
        }
        let column = |at: usize| self.rounds.iter().filter_map(|round| round.get(at)).collect::<Vec<_>>();
        let rounds: Map<String, Value> =
            self.columns.iter().enumerate().map(|(at, name)| ((*name).to_owned(), json!(column(at)))).collect();
        json!({ "summary": summary, "rounds": rounds })
    }
}

/// The bar as text, and whether it is met.
fn judged(bar: Bar, unit: &str, value: f64) -> (String, &'static str) {
    match bar {
        Bar::AtLeast(bar) => (format!(">= {bar:.2}"), verdict(value >= bar)),
        Bar::AtMost(bar) => (format!("<= {bar:.2}"), verdict(value <= bar)),
        Bar::ValueAtMost(bar) => (format!("<= {}", short(bar, unit)), verdict(value <= bar)),
        Bar::None => ("-".to_owned(), "-"),
    }
}

/// Everything that was measured.
pub struct Report {
    /// What was compared.
    pub comparisons: Vec<Comparison>,
    /// What stands for itself.
    pub facts: Vec<Fact>,
    /// A word on how it was measured.
    pub remark: Option<String>,
}

impl Report {
    /// As text.
    pub fn table(&self) -> String {
        let mut text: String = self.comparisons.iter().map(Comparison::table).collect();
        text.push('\n');
        for Fact { row, value } in &self.facts {
            let (bar, met) = judged(row.bar, row.unit, *value);
            let _ = writeln!(text, "{:44} {:>16} {bar:>22}  {met}", row.text, short(*value, row.unit));
        }
        if let Some(remark) = &self.remark {
            let _ = writeln!(text, "\nNote: {remark}.");
        }
        text
    }

    /// With every sample.
    pub fn json(&self) -> String {
        let mut all = Map::new();
        all.insert("machine".to_owned(), machine());
        all.insert("remark".to_owned(), json!(self.remark));
        all.extend(self.comparisons.iter().map(|comparison| (comparison.key.to_owned(), comparison.json())));
        let facts = self.facts.iter().map(|fact| (fact.row.key.to_owned(), json!(fact.value)));
        all.insert("facts".to_owned(), Value::Object(facts.collect()));
        serde_json::to_string_pretty(&Value::Object(all)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static ROWS: [Row; 1] = [Row::new("rate", "rate", "1/s", Bar::AtLeast(0.90))];

    fn met(base: f64, again: f64, subject: f64) -> Comparison {
        let mut comparison = Comparison::new("x", ["direct", "a/a", "native"], &ROWS);
        for _ in 0..7 {
            comparison.add([base, again, subject].map(|value| Sheet::from([("rate", value)])));
        }
        comparison
    }

    #[test]
    fn a_bar_is_judged_by_the_median_ratio_corrected_by_noise() {
        assert!(met(100.0, 100.0, 91.0).table().trim_end().ends_with("yes"));
        assert!(met(100.0, 100.0, 89.0).table().trim_end().ends_with("NO"));
        // The machine gave the second of two equal runs 5 % less: so it would have given the lane.
        assert!(met(100.0, 95.0, 89.0).table().trim_end().ends_with("yes"));
    }

    #[test]
    fn json_has_the_summary_and_every_sample() {
        let value = met(100.0, 100.0, 50.0).json();
        assert_eq!(value.pointer("/summary/rate/ratio"), Some(&json!(0.5)));
        assert_eq!(value.pointer("/summary/rate/met"), Some(&json!("NO")));
        assert_eq!(value.pointer("/rounds/native/6/rate"), Some(&json!(50.0)));
    }

    #[test]
    fn a_row_that_some_column_lacks_is_left_out() {
        let mut comparison = met(100.0, 100.0, 100.0);
        comparison.add([Sheet::new(), Sheet::new(), Sheet::new()]);
        assert_eq!(comparison.json().pointer("/summary/rate"), None);
    }
}
