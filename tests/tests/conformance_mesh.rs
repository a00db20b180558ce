//! Every case of the Gateway API mesh suite and of ours, with clients and servers on one node and on two.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::gateway::manifests::Source;
use mesh_tests::gateway::world::Placement;
use mesh_tests::gateway::{report, run, table};

/// Far above the second in which a change is in force, far below what upstream waits.
const WITHIN: Duration = Duration::from_secs(10);

/// Our manifests in every placement; upstream's, where they are on this machine, in upstream's own: it is
/// `cargo xtask conformance` that runs everything.
fn check(placement: Placement) -> Result<()> {
    let mut sources = Source::all()?;
    if placement != Placement::Split {
        sources.truncate(1);
    }
    let mut findings = Vec::new();
    let ended = run::run(&table::all(), &sources, placement, WITHIN, &mut findings);
    println!("{}{}", report::table(&findings), report::summary(&findings));
    let misses = report::misses(&findings);
    ended.with_context(|| misses.join("\n"))?;
    ensure!(misses.is_empty(), "{} misses:\n{}", misses.len(), misses.join("\n"));
    Ok(())
}

#[test]
fn every_case_holds_on_one_node() -> Result<()> {
    check(Placement::Same)
}

#[test]
fn every_case_holds_from_one_node_to_the_other() -> Result<()> {
    check(Placement::Across)
}

#[test]
fn every_case_holds_with_a_version_on_each_node() -> Result<()> {
    check(Placement::Split)
}
