//! `cargo xtask conformance`: the Gateway API mesh cases on two nodes of this machine, as a table.
//!
//! The cases are the harness's (`mesh_tests::gateway`), the same that `cargo xtask test` runs.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::gateway::manifests::{Source, VARIABLE};
use mesh_tests::gateway::world::Placement;
use mesh_tests::gateway::{report, run, table};
use mesh_tests::{interrupt, leftovers, programs};

use crate::{compile, setup, shell};

/// What was asked for.
struct Options {
    placements: Vec<Placement>,
    /// Only tests whose names contain one of these; all when empty.
    names: Vec<String>,
    within: Duration,
}

/// Runs the cases and prints the table; a miss is an error.
pub fn run(args: &[String]) -> Result<()> {
    let options = parse(args)?;
    ensure!(shell::is_root(), "namespaces, cgroups and eBPF need root: sudo cargo xtask conformance");
    interrupt::catch()?;
    setup::ebpf_toolchain()?;
    setup::programs(setup::TOPOLOGY)?;
    compile::workspace_with_programs(&[])?;
    programs::prefer(shell::target_dir()?.join("debug"));
    for leftover in leftovers::sweep()? {
        eprintln!("conformance: removed what a run that was killed had left: {leftover:?}");
    }
    let sources = Source::all()?;
    if !sources.iter().any(|source| matches!(source, Source::Upstream(_))) {
        eprintln!("conformance: upstream's manifests are not on this machine; {VARIABLE} may name their tree");
    }
    let wanted = |name: &str| options.names.is_empty() || options.names.iter().any(|part| name.contains(part));
    let tests: Vec<_> = table::all().into_iter().filter(|test| wanted(test.name)).collect();
    ensure!(!tests.is_empty(), "no test is called like that");
    let began = Instant::now();
    let mut findings = Vec::new();
    let ended = options.placements.iter().try_for_each(|placement| {
        eprintln!("conformance: {}", placement.name());
        run::run(&tests, &sources, *placement, options.within, &mut findings)
    });
    println!("{}", report::table(&findings));
    let misses = report::misses(&findings);
    for miss in &misses {
        println!("{miss}");
    }
    println!("{}, in {:.0} s", report::summary(&findings), began.elapsed().as_secs_f64());
    ended?;
    ensure!(misses.is_empty(), "{} misses", misses.len());
    Ok(())
}

fn parse(args: &[String]) -> Result<Options> {
    let mut options = Options { placements: Vec::new(), names: Vec::new(), within: run::CONVERGENCE };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == "--within" {
            let seconds = args.next().and_then(|seconds| seconds.parse().ok());
            options.within = Duration::from_secs(seconds.context("--within needs a number of seconds")?);
        } else if arg.starts_with('-') {
            bail!("`{arg}`: the only option is --within SECONDS");
        } else if let Some(placement) = Placement::ALL.into_iter().find(|placement| placement.name() == arg) {
            options.placements.push(placement);
        } else {
            options.names.push(arg.clone());
        }
    }
    if options.placements.is_empty() {
        options.placements = Placement::ALL.to_vec();
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placements_names_and_options_are_told_apart() {
        let args = ["same", "--within", "3", "Redirect"].map(String::from);
        let options = parse(&args).unwrap();
        assert!(options.placements == [Placement::Same] && options.names == ["Redirect"]);
        assert_eq!(options.within, Duration::from_secs(3));
        assert!(parse(&["--fast".to_owned()]).is_err() && parse(&["--within".to_owned()]).is_err());
        assert_eq!(parse(&[]).unwrap().placements.len(), 3);
    }
}
