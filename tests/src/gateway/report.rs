//! The table of results: a line for each test, a column for each placement and level.

use std::fmt::Write as _;

use super::run::Finding;
use super::world::Placement;

/// A line for each test and source: how many of its cases hold at level U and at level S in each placement.
#[must_use]
pub fn table(findings: &[Finding]) -> String {
    let mut placements: Vec<Placement> = Vec::new();
    let mut rows: Vec<(&str, &str)> = Vec::new();
    for finding in findings {
        if !placements.contains(&finding.placement) {
            placements.push(finding.placement);
        }
        if !rows.contains(&(finding.test, finding.source)) {
            rows.push((finding.test, finding.source));
        }
    }
    let mut text = format!("{:<44} {:<12} {:<9} cases", "test", "class", "manifest");
    for placement in &placements {
        let _ = write!(text, "  {:>9} {:>3}", format!("{} U", placement.name()), "S");
    }
    text.push('\n');
    for (test, source) in rows {
        let of = |placement: Placement| {
            let own =
                |finding: &&Finding| (finding.test, finding.source, finding.placement) == (test, source, placement);
            findings.iter().find(own)
        };
        let Some(any) = placements.iter().find_map(|placement| of(*placement)) else { continue };
        let _ = write!(text, "{test:<44} {:<12} {source:<9} {:>5}", any.class.name(), any.cases.len());
        for placement in &placements {
            let (upstream, strict) = of(*placement).map_or((0, 0), Finding::held);
            let _ = write!(text, "  {upstream:>9} {strict:>3}");
        }
        let all = |placement: &Placement| of(*placement).is_some_and(|finding| finding.held().1 == finding.cases.len());
        text.push_str(if placements.iter().all(all) { "\n" } else { "  MISSED\n" });
    }
    text
}

/// A line for each case that does not hold.
#[must_use]
pub fn misses(findings: &[Finding]) -> Vec<String> {
    findings.iter().flat_map(Finding::misses).collect()
}

/// How many tests and cases there are, and how many of the cases hold at level S; one source and placement is one.
#[must_use]
pub fn summary(findings: &[Finding]) -> String {
    let cases: usize = findings.iter().map(|finding| finding.cases.len()).sum();
    let (upstream, strict) = findings.iter().map(Finding::held).fold((0, 0), |(u, s), held| (u + held.0, s + held.1));
    format!("{} runs of tests, {cases} of cases: {upstream} hold at level U, {strict} at level S", findings.len())
}
