//! Comparisons of columns, what is compared with, the same again (A/A) and the subjects, as tables and JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::report::{machine, short, verdict};
use super::rows::Bar;
use super::stats::{interval, median};

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

/// Rounds of at least three columns: what is compared with, the same again, and each subject.
pub struct Comparison {
    key: &'static str,
    columns: Vec<&'static str>,
    rows: &'static [Row],
    rounds: Vec<Vec<Sheet>>,
}

/// One row of one subject over all rounds.
struct Outcome {
    subject: f64,
    /// `None`: there is nothing to compare it with.
    against: Option<Against>,
}

/// A subject compared.
struct Against {
    base: f64,
    /// Ratio of A/A.
    noise: f64,
    /// Ratio of the subject, corrected by A/A, with its 95 % interval.
    ratio: f64,
    interval: Option<(f64, f64)>,
}

impl Comparison {
    /// Without a round yet.
    pub fn new(key: &'static str, columns: &[&'static str], rows: &'static [Row]) -> Self {
        Self { key, columns: columns.to_vec(), rows, rounds: Vec::new() }
    }

    /// Adds a round: a sheet for each column.
    pub fn add(&mut self, round: impl Into<Vec<Sheet>>) {
        self.rounds.push(round.into());
    }

    /// What each subject is called, by its column.
    fn subjects(&self) -> impl Iterator<Item = (usize, &'static str)> {
        self.columns.iter().copied().enumerate().skip(2)
    }

    /// A column's values of a row; `None` when it lacks one in some round.
    fn values(&self, row: &Row, column: usize) -> Option<Vec<f64>> {
        self.rounds.iter().map(|round| round.get(column)?.get(row.key).copied()).collect()
    }

    /// `None` when the subject has no value of the row in some round.
    fn outcome(&self, row: &Row, column: usize) -> Option<Outcome> {
        let subject = self.values(row, column)?;
        let against = self.values(row, 0).zip(self.values(row, 1)).and_then(|(base, again)| {
            let ratios =
                |column: &[f64]| -> Vec<f64> { column.iter().zip(&base).map(|(value, base)| value / base).collect() };
            let noise = median(&ratios(&again))?;
            let corrected: Vec<f64> = ratios(&subject).iter().map(|ratio| ratio / noise).collect();
            Some(Against { base: median(&base)?, noise, ratio: median(&corrected)?, interval: interval(&corrected) })
        });
        Some(Outcome { subject: median(&subject)?, against })
    }

    /// As text: a table for each subject.
    pub fn table(&self) -> String {
        let base = self.columns.first().copied().unwrap_or_default();
        let mut text = String::new();
        for (column, subject) in self.subjects() {
            let _ = write!(
                text,
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
                let Some(outcome) = self.outcome(row, column) else { continue };
                let _ = writeln!(text, "{}", outcome.line(row));
            }
        }
        text
    }

    fn json(&self) -> Value {
        let summary = |column: usize| -> Map<String, Value> {
            let rows = self.rows.iter().filter_map(|row| {
                let outcome = self.outcome(row, column)?;
                let met = judged(row.bar, row.unit, outcome.ratio(), outcome.subject).1;
                let mut value = json!({ "median": outcome.subject, "met": met });
                if let (Some(against), Some(value)) = (&outcome.against, value.as_object_mut()) {
                    value.insert("ratio".to_owned(), json!(against.ratio));
                    value.insert("interval_95".to_owned(), json!(against.interval));
                    value.insert("a_a".to_owned(), json!(against.noise));
                    value.insert("base".to_owned(), json!(against.base));
                }
                Some((row.key.to_owned(), value))
            });
            rows.collect()
        };
        let summaries: Map<String, Value> =
            self.subjects().map(|(column, name)| (name.to_owned(), Value::Object(summary(column)))).collect();
        let column = |at: usize| self.rounds.iter().filter_map(|round| round.get(at)).collect::<Vec<_>>();
        let rounds: Map<String, Value> =
            self.columns.iter().enumerate().map(|(at, name)| ((*name).to_owned(), json!(column(at)))).collect();
        json!({ "summary": summaries, "rounds": rounds })
    }
}

impl Outcome {
    fn ratio(&self) -> Option<f64> {
        self.against.as_ref().map(|against| against.ratio)
    }

    /// Its line in the table.
    fn line(&self, row: &Row) -> String {
        let dash = || "-".to_owned();
        let (bar, met) = judged(row.bar, row.unit, self.ratio(), self.subject);
        let subject = short(self.subject, row.unit);
        let (ratio, range, noise, base) = match &self.against {
            None => (dash(), dash(), dash(), dash()),
            Some(Against { base, noise, ratio, interval }) => (
                format!("{ratio:.3}"),
                interval.map_or_else(dash, |(low, high)| format!("{low:.3}..{high:.3}")),
                format!("{noise:.3}"),
                short(*base, row.unit),
            ),
        };
        format!("{:44} {ratio:>6} {range:>15} {noise:>6} {bar:>10} {base:>11} {subject:>11}  {met}", row.text)
    }
}

/// The bar as text, and whether it is met.
fn judged(bar: Bar, unit: &str, ratio: Option<f64>, value: f64) -> (String, &'static str) {
    match bar {
        Bar::AtLeast(bar) => (format!(">= {bar:.2}"), ratio.map_or("-", |ratio| verdict(ratio >= bar))),
        Bar::AtMost(bar) => (format!("<= {bar:.2}"), ratio.map_or("-", |ratio| verdict(ratio <= bar))),
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
    /// Words on how it was measured.
    pub remarks: Vec<String>,
}

impl Report {
    /// As text.
    pub fn table(&self) -> String {
        let mut text: String = self.comparisons.iter().map(Comparison::table).collect();
        if !self.facts.is_empty() {
            text.push('\n');
        }
        for Fact { row, value } in &self.facts {
            let (bar, met) = judged(row.bar, row.unit, None, *value);
            let _ = writeln!(text, "{:44} {:>16} {bar:>22}  {met}", row.text, short(*value, row.unit));
        }
        for remark in &self.remarks {
            let _ = writeln!(text, "\nNote: {remark}.");
        }
        text
    }

    /// With every sample.
    pub fn json(&self) -> String {
        let mut all = Map::new();
        all.insert("machine".to_owned(), machine());
        all.insert("remarks".to_owned(), json!(self.remarks));
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
        let mut comparison = Comparison::new("x", &["direct", "a/a", "native"], &ROWS);
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
        assert_eq!(value.pointer("/summary/native/rate/ratio"), Some(&json!(0.5)));
        assert_eq!(value.pointer("/summary/native/rate/met"), Some(&json!("NO")));
        assert_eq!(value.pointer("/rounds/native/6/rate"), Some(&json!(50.0)));
    }

    #[test]
    fn a_row_that_a_subject_lacks_is_left_out_of_its_table_alone() {
        let mut comparison = Comparison::new("x", &["direct", "a/a", "one", "other"], &ROWS);
        for _ in 0..7 {
            let value = |value| Sheet::from([("rate", value)]);
            comparison.add([value(100.0), value(100.0), Sheet::new(), value(50.0)]);
        }
        assert_eq!(comparison.json().pointer("/summary/one/rate"), None);
        assert_eq!(comparison.json().pointer("/summary/other/rate/ratio"), Some(&json!(0.5)));
        assert_eq!(comparison.table().lines().filter(|line| line.starts_with("rate")).count(), 1);
    }

    #[test]
    fn a_value_without_its_like_on_the_direct_path_is_judged_by_itself() {
        static ROWS: [Row; 1] = [Row::new("cpu", "cpu", "us", Bar::ValueAtMost(75.0))];
        let line = |cpu: f64| {
            let mut comparison = Comparison::new("x", &["direct", "a/a", "mesh"], &ROWS);
            comparison.add([Sheet::new(), Sheet::new(), Sheet::from([("cpu", cpu)])]);
            comparison.table()
        };
        assert!(line(74.0).trim_end().ends_with("yes") && line(76.0).trim_end().ends_with("NO"));
    }
}
