//! Runs tests in a world: applies the manifest, asks until a case holds or its time is over, deletes the manifest.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::case::Case;
use super::manifests::Source;
use super::table::{Class, Manifest, Test};
use super::world::{Placement, World};
use crate::mesh::scenario;
use crate::{interrupt, wait};

/// A case holds when it holds this many times in a row.
const IN_A_ROW: usize = 3;
/// A case about shares is long and is asked in two ways; in a row too.
const SHARES_IN_A_ROW: usize = 2;
/// Time for a manifest to be in force everywhere, as upstream has it.
pub const CONVERGENCE: Duration = Duration::from_secs(30);
/// Pause after a miss.
const PACE: Duration = Duration::from_millis(50);
/// Where level U holds and level S does not, this long is waited for it.
const STRICT_WITHIN: Duration = Duration::from_secs(3);

/// How one case ended at both levels; `Err` says why.
#[derive(Debug)]
pub struct Outcome {
    /// Level U.
    pub upstream: Result<(), String>,
    /// Level S.
    pub strict: Result<(), String>,
}

/// One test with one source's manifest in one placement.
#[derive(Debug)]
pub struct Finding {
    /// The test's name.
    pub test: &'static str,
    /// Its class.
    pub class: Class,
    /// Where clients and servers were.
    pub placement: Placement,
    /// Whose manifest, and base objects, it was.
    pub source: &'static str,
    /// Each case with its outcome.
    pub cases: Vec<(String, Outcome)>,
}

impl Finding {
    /// How many cases hold at level U and at level S.
    #[must_use]
    pub fn held(&self) -> (usize, usize) {
        let count = |level: fn(&Outcome) -> bool| self.cases.iter().filter(|(_, outcome)| level(outcome)).count();
        (count(|outcome| outcome.upstream.is_ok()), count(|outcome| outcome.strict.is_ok()))
    }

    /// One line for each case that does not hold.
    #[must_use]
    pub fn misses(&self) -> Vec<String> {
        let place = format!("{} ({}, {} manifests)", self.test, self.placement.name(), self.source);
        let miss = |(case, outcome): &(String, Outcome)| match (&outcome.upstream, &outcome.strict) {
            (Err(why), _) => Some(format!("{place}: U: {case}: {why}")),
            (_, Err(why)) => Some(format!("{place}: S: {case}: {why}")),
            _ => None,
        };
        self.cases.iter().filter_map(miss).collect()
    }
}

/// Runs `tests` in one placement, in a mesh of its own for each source of base objects; `within` is the time for a
/// manifest to be in force. What was found before an error is found.
///
/// # Errors
/// When a mesh cannot be made, complains, or leaves something behind; cases that do not hold are no error.
pub fn run(
    tests: &[Test],
    sources: &[Source],
    placement: Placement,
    within: Duration,
    findings: &mut Vec<Finding>,
) -> Result<()> {
    for source in sources {
        scenario(|mesh| {
            for complaint in tests.iter().flat_map(|test| &test.complaints) {
                mesh.expect_complaint(complaint);
            }
            let world = World::build(mesh, source, placement)?;
            for test in tests {
                findings.extend(run_test(&world, test, source, within)?);
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// `None` where the source has no manifest for this test.
fn run_test(world: &World<'_>, test: &Test, source: &Source, within: Duration) -> Result<Option<Finding>> {
    let manifest = match (test.manifest, source) {
        (Manifest::None, _) => None,
        (Manifest::Own(stem), Source::Own) | (Manifest::Suite(stem), _) => match source.manifest(stem)? {
            None => return Ok(None),
            some => some,
        },
        (Manifest::Own(_), Source::Upstream(_)) => return Ok(None),
    };
    if let Some(manifest) = &manifest {
        world.apply(manifest)?;
    }
    let mut cases = Vec::new();
    let mut patience = within;
    for case in &test.cases {
        let outcome = hold(world, case, patience)?;
        // What was not in force in all that time is not waited for again.
        if outcome.upstream.is_err() {
            patience = Duration::ZERO;
        }
        cases.push((case.to_string(), outcome));
    }
    if let Some((what, look)) = test.afterwards {
        let found = look(world).map_err(|error| format!("{error:#}"));
        cases.push((what.to_owned(), Outcome { upstream: found.clone(), strict: found }));
    }
    if manifest.is_some() {
        world.delete()?;
    }
    Ok(Some(Finding { test: test.name, class: test.class, placement: world.placement(), source: source.name(), cases }))
}

/// Asks until the case holds often enough in a row at level S, or the time is over.
fn hold(world: &World<'_>, case: &Case, within: Duration) -> Result<Outcome> {
    let began = Instant::now();
    let wanted = if case.has_shares() { SHARES_IN_A_ROW } else { IN_A_ROW };
    let (mut upstream, mut strict) = (Streak::default(), Streak::default());
    let mut upstream_since = None;
    loop {
        interrupt::check()?;
        let misses = world.ask(case)?;
        let missed = !misses.upstream.is_empty() || !misses.strict.is_empty();
        upstream.note(&misses.upstream);
        strict.note(&[misses.upstream, misses.strict].concat());
        if upstream.length >= wanted && upstream_since.is_none() {
            upstream_since = Some(Instant::now());
        }
        let strict_is_late = upstream_since.is_some_and(|since| since.elapsed() >= STRICT_WITHIN.min(within));
        let over = began.elapsed() >= within;
        if strict.length >= wanted || (missed && (strict_is_late || over)) {
            let upstream = if upstream_since.is_some() { Ok(()) } else { upstream.verdict(wanted) };
            return Ok(Outcome { upstream, strict: strict.verdict(wanted) });
        }
        if missed {
            wait::pause(PACE);
        }
    }
}

/// Successes in a row, and the last miss.
#[derive(Default)]
struct Streak {
    length: usize,
    miss: String,
}

impl Streak {
    fn note(&mut self, misses: &[String]) {
        if misses.is_empty() {
            self.length += 1;
        } else {
            self.length = 0;
            self.miss = misses.join("; ");
        }
    }

    fn verdict(self, wanted: usize) -> Result<(), String> {
        if self.length >= wanted { Ok(()) } else { Err(self.miss) }
    }
}
