//! `cargo xtask test`: every suite, and one line at the end that says how many tests passed, failed and were skipped.
//!
//! Suites that need root or the eBPF programs are skipped here and nowhere else, with the reason said aloud.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use mesh_tests::{interrupt, leftovers};

use crate::{compile, image, kernels, setup, shell};

/// Tells the suites to run in full length; see `mesh_tests::scale`.
const LONG: &str = "MESH_TEST_LONG";

/// A folder of tests that needs the same things.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Suite {
    /// Pure rooms and the agent in process: no privileges.
    Unit,
    /// Programs attached to real cgroups and namespaces.
    Kernel,
    /// Two nodes end to end.
    Mesh,
    /// The cases of Gateway API's mesh suite, and ours.
    Conformance,
    /// The kernel suites once more, under other kernels (`kernels`).
    Guest,
}

const SUITES: [Suite; 5] = [Suite::Unit, Suite::Kernel, Suite::Mesh, Suite::Conformance, Suite::Guest];

impl Suite {
    fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Kernel => "kernel",
            Self::Mesh => "mesh",
            Self::Conformance => "conformance",
            Self::Guest => "guest",
        }
    }

    /// Test targets of the harness crate, by the prefix of their file names.
    fn targets(self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        let folder = shell::root().join("tests/tests");
        for entry in folder.read_dir().with_context(|| format!("cannot read {}", folder.display()))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            // A suite is a file, or a folder with its `main.rs`.
            let name = name.strip_suffix(".rs").unwrap_or(&name);
            if name.starts_with(&format!("{}_", self.name())) {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }
}

/// What was asked for.
struct Options {
    long: bool,
    suites: Vec<Suite>,
    test_args: Vec<String>,
}

/// How many tests ended how.
#[derive(Default, Debug, PartialEq, Eq)]
pub struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
}

/// Runs the suites; any failure is an error after the last line.
pub fn run(args: &[String]) -> Result<()> {
    let options = parse(args)?;
    // Ctrl-C ends the suites, which get it too, and then this task, which takes away what they leave.
    interrupt::catch()?;
    let mut tally = Tally::default();
    let needs_programs = options.suites != [Suite::Unit];
    let obstacle = if needs_programs { obstacle() } else { None };
    if options.suites.contains(&Suite::Mesh) && obstacle.is_none() {
        // Before the usual build, whose binaries are under the same names.
        image::for_suites()?;
    }
    // Everything in one go, so that all suites share one set of dependencies and features.
    if needs_programs && obstacle.is_none() {
        compile::workspace_with_programs(&["--all-targets"])?;
    } else {
        compile::workspace(&["--all-targets"])?;
    }
    for suite in &options.suites {
        eprintln!("\n== {} ==", suite.name());
        match &obstacle {
            None if *suite == Suite::Guest => kernels::guests(options.long, &options.test_args, &mut tally),
            Some(why) if *suite == Suite::Guest => tally.skip("guest", why),
            Some(why) if *suite != Suite::Unit => {
                let count = count(*suite)?;
                eprintln!("{}: {count} tests skipped: {why}", suite.name());
                tally.skipped += count;
            }
            _ => run_suite(*suite, &options, &mut tally)?,
        }
        interrupt::check()?;
    }
    tally.finish();
    Ok(())
}

fn parse(args: &[String]) -> Result<Options> {
    let mut options = Options { long: false, suites: Vec::new(), test_args: Vec::new() };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--long" => options.long = true,
            "--" => options.test_args.extend(args.by_ref().cloned()),
            name => match SUITES.iter().find(|suite| suite.name() == name) {
                Some(suite) => options.suites.push(*suite),
                None => bail!("`{name}` is no option and no suite (unit, kernel, mesh, conformance, guest)"),
            },
        }
    }
    if options.suites.is_empty() {
        // Other kernels are emulated, minutes each: when asked for by name, or in a long run.
        options.suites = SUITES.into_iter().filter(|suite| *suite != Suite::Guest || options.long).collect();
    }
    Ok(options)
}

/// Why the suites with real programs cannot run here, after trying to install what they need.
fn obstacle() -> Option<String> {
    if !shell::is_root() {
        return Some("namespaces, cgroups and eBPF need root".to_owned());
    }
    setup::ebpf_toolchain().and_then(|()| setup::programs(setup::SUITES)).err().map(|error| format!("{error:#}"))
}

fn cargo_test(suite: Suite) -> Result<Option<Command>> {
    let mut command = shell::cargo();
    command.args(["test", "--workspace", "--no-fail-fast"]);
    if suite != Suite::Unit {
        let targets = suite.targets()?;
        if targets.is_empty() {
            return Ok(None);
        }
        for target in targets {
            command.args(["--test", &target]);
        }
    }
    Ok(Some(command))
}

fn count(suite: Suite) -> Result<u64> {
    let Some(mut command) = cargo_test(suite)? else { return Ok(0) };
    let list = shell::output(command.args(["--quiet", "--", "--list"]))?;
    Ok(list.lines().filter(|line| line.ends_with(": test")).count() as u64)
}

fn run_suite(suite: Suite, options: &Options, tally: &mut Tally) -> Result<()> {
    if suite != Suite::Unit {
        for leftover in leftovers::sweep()? {
            eprintln!("{}: removed what an earlier run that was killed had left: {leftover:?}", suite.name());
        }
    }
    let Some(mut command) = cargo_test(suite)? else {
        eprintln!("{}: no tests yet", suite.name());
        return Ok(());
    };
    let binaries = shell::target_dir()?.join("debug");
    command.env("MESH_AGENT_BIN", binaries.join("mesh-agent")).env("MESH_SAMPLE_BIN", binaries.join("mesh-sample"));
    command.env("MESH_IMAGE", binaries.join(mesh_tests::image::FOLDER));
    if options.long {
        command.env(LONG, "1");
    }
    command.arg("--").args(&options.test_args);
    if suite != Suite::Unit {
        // They share the machine: ports of time, not of address, would collide.
        command.arg("--test-threads=1");
    }
    let before = tally.failed;
    let mut child = command.stdout(Stdio::piped()).spawn().context("cargo test does not start")?;
    let stdout = child.stdout.take().context("cargo test has no output")?;
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        println!("{line}");
        tally.add(&line);
    }
    let status = child.wait()?;
    if suite != Suite::Unit {
        let left = leftovers::sweep()?;
        if !left.is_empty() {
            eprintln!("{}: left behind and now removed: {left:?}", suite.name());
            tally.failed += 1;
        }
    }
    // A binary that dies prints no result of its own.
    if !status.success() && tally.failed == before {
        tally.failed += 1;
    }
    Ok(())
}

impl Tally {
    /// Prints the last line, alone, and ends the program if anything failed.
    pub fn finish(&self) {
        let skipped = if self.skipped == 0 { String::new() } else { format!(", {} skipped", self.skipped) };
        println!("{} passed, {} failed{skipped}", self.passed, self.failed);
        if self.failed > 0 {
            std::process::exit(1);
        }
    }

    /// Adds one test, or what counts as one, that was not run, and says why.
    pub fn skip(&mut self, what: &str, why: &str) {
        eprintln!("{what}: skipped: {why}");
        self.skipped += 1;
    }

    /// Adds one failure.
    pub fn fail(&mut self) {
        self.failed += 1;
    }

    /// Adds a line like `test result: ok. 12 passed; 0 failed; 0 ignored; …`; leaves other lines alone.
    pub fn add(&mut self, line: &str) {
        let Some((_, counts)) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". ")) else {
            return;
        };
        for part in counts.split("; ") {
            match part.split_once(' ') {
                Some((n, "passed")) => self.passed += n.parse::<u64>().unwrap_or(0),
                Some((n, "failed")) => self.failed += n.parse::<u64>().unwrap_or(0),
                Some((n, "ignored")) => self.skipped += n.parse::<u64>().unwrap_or(0),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_added_up_and_others_are_not() {
        let mut tally = Tally::default();
        for line in [
            "running 3 tests",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s",
            "test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        ] {
            tally.add(line);
        }
        assert_eq!(tally, Tally { passed: 7, failed: 2, skipped: 1 });
    }

    #[test]
    fn suites_and_options_are_read() {
        let args = ["mesh", "--long", "--", "half_close"].map(String::from);
        let options = parse(&args).unwrap();
        assert!(options.long && options.suites == [Suite::Mesh] && options.test_args == ["half_close"]);
        assert!(parse(&["--lnog".to_owned()]).is_err());
    }
}
