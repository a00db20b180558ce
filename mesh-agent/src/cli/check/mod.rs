//! `mesh-agent check`: can this machine run the agent, and does what is installed in the cluster? Reads, attaches
//! nothing, changes nothing.
//!
//! Each finding says what it is for, what to do and where that is explained. `machine` and `cluster` read, `judge`,
//! `folders` and `installed` decide: these are pure and are tested with machines and clusters that do not exist here.

mod cluster;
mod docs;
mod folders;
mod installed;
mod judge;
mod machine;
mod strict;

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;

use super::place::Place;
use super::{Output, fail, plain, print, show};
use crate::control::AgentPod;
use machine::Machine;

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct CheckArgs {
    #[command(subcommand)]
    command: Option<CheckCommand>,
    #[command(flatten)]
    places: Places,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Check what is installed in the cluster, through the API server, and ask the agents of all nodes
    #[arg(long, conflicts_with_all = ["node", "pod"], help_heading = "Through the API server")]
    all_nodes: bool,
    #[command(flatten)]
    place: Place,
}

/// Where the agent would have what it needs.
#[derive(Clone, Debug, Default, clap::Args)]
struct Places {
    /// The bpffs that the agent will pin to.
    #[arg(long, env = "MESH_BPFFS", default_value = "/sys/fs/bpf")]
    bpffs: PathBuf,
    /// The cgroup v2 directory above the pods; any is looked for when this is not given.
    #[arg(long, env = "MESH_CGROUP")]
    cgroup: Option<PathBuf>,
    /// Where the node's network configurations are, if the agent installs the CNI plugin.
    #[arg(long, env = "MESH_CNI_CONF_DIR")]
    cni_conf_dir: Option<PathBuf>,
    /// Where runtimes look for CNI plugins, if the agent installs its own.
    #[arg(long, env = "MESH_CNI_BIN_DIR")]
    cni_bin_dir: Option<PathBuf>,
    /// `--state-dir`, which is where the agent is asked too.
    #[arg(skip)]
    state_dir: PathBuf,
}

/// The options of an agent that `check` takes as well.
const SHARED: [&str; 5] = ["--bpffs", "--cgroup", "--cni-conf-dir", "--cni-bin-dir", "--state-dir"];

#[derive(Debug, clap::Subcommand)]
enum CheckCommand {
    /// Say whom strict peer mode would refuse in a namespace, from traffic seen
    Strict(strict::StrictArgs),
}

/// Loading all programs once takes seconds at most.
const WITHIN: Duration = Duration::from_secs(60);

/// How a finding counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    /// As it should be.
    Ok,
    /// It runs, with less, or it could not be found out.
    Warn,
    /// It cannot run, or does not.
    Fail,
}

/// One thing looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    name: &'static str,
    verdict: Verdict,
    /// What was found.
    found: String,
    /// What it is needed for.
    purpose: &'static str,
    /// What to do; empty when nothing.
    remedy: String,
    /// Where it is explained, below `docs/`.
    docs: &'static str,
}

fn ok(name: &'static str, found: impl Into<String>, purpose: &'static str) -> Finding {
    Finding { name, verdict: Verdict::Ok, found: found.into(), purpose, remedy: String::new(), docs: docs::of(name) }
}

fn warn(name: &'static str, found: impl Into<String>, purpose: &'static str, remedy: impl Into<String>) -> Finding {
    Finding { verdict: Verdict::Warn, remedy: remedy.into(), ..ok(name, found, purpose) }
}

fn bad(name: &'static str, found: impl Into<String>, purpose: &'static str, remedy: impl Into<String>) -> Finding {
    Finding { verdict: Verdict::Fail, ..warn(name, found, purpose, remedy) }
}

/// All that was looked at.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    passed: bool,
    findings: Vec<Finding>,
}

impl Report {
    fn of(findings: Vec<Finding>) -> Self {
        let passed = findings.iter().all(|finding| finding.verdict != Verdict::Fail);
        Self { passed, findings }
    }

    /// This machine, with the usual places and those that the environment names.
    pub(super) fn of_this_machine(state_dir: &Path) -> Self {
        let places = Places { bpffs: "/sys/fs/bpf".into(), state_dir: state_dir.to_owned(), ..Places::default() };
        Self::of(judge::all(&Machine::here(&places), &places))
    }
}

pub(super) fn run(args: &CheckArgs) -> ExitCode {
    if let Some(CheckCommand::Strict(args)) = &args.command {
        return strict::run(args);
    }
    if args.place.is_a_node() {
        return there(args);
    }
    let (report, subject) = if args.all_nodes || args.place.is_the_cluster() {
        match cluster::read(&args.place.api) {
            Ok(installed) => (Report::of(installed::all(&installed)), &CLUSTER),
            Err(error) => return fail(&error),
        }
    } else {
        let places = Places { state_dir: args.place.state_dir.clone(), ..args.places.clone() };
        (Report::of(judge::all(&Machine::here(&places), &places)), &MACHINE)
    };
    match show(&report, Output::of(args.json), |report| render(&report.findings, subject)) {
        ExitCode::SUCCESS if report.passed => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// The check of a node, made in its agent's container, with the places that the agent was given.
fn there(args: &CheckArgs) -> ExitCode {
    let command = |agent: &AgentPod| {
        let json = args.json.then(|| "--json".to_owned());
        let is_shared = |arg: &&String| SHARED.iter().any(|name| arg.split('=').next() == Some(name));
        ["check".to_owned()].into_iter().chain(json).chain(agent.args.iter().filter(is_shared).cloned()).collect()
    };
    match args.place.run_there(command, WITHIN) {
        // What it says is its result, whichever that is.
        Ok(ran) if !ran.stdout.is_empty() => {
            print(&String::from_utf8_lossy(&ran.stdout));
            if ran.code == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Ok(ran) => fail(&plain(ran.stderr.trim())),
        Err(error) => fail(&error),
    }
}

/// What is checked, in the words of the last line.
struct Subject {
    well: &'static str,
    amiss: &'static str,
}

const MACHINE: Subject =
    Subject { well: "This machine can run mesh-agent", amiss: "This machine cannot run mesh-agent yet; missing" };
const CLUSTER: Subject =
    Subject { well: "The mesh of this cluster is in order", amiss: "The mesh of this cluster is not in order; failed" };

fn render(findings: &[Finding], subject: &Subject) -> String {
    let width = findings.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for finding in findings {
        let word = match finding.verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{word:4}  {:width$}  {}", finding.name, plain(&finding.found));
        if finding.verdict != Verdict::Ok {
            let _ = writeln!(text, "      {:width$}  for: {}", "", finding.purpose);
            let _ = writeln!(text, "      {:width$}  do:  {}", "", plain(&finding.remedy));
            let _ = writeln!(text, "      {:width$}  see: docs/{}", "", finding.docs);
        }
    }
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let (failed, warned) = (count(Verdict::Fail), count(Verdict::Warn));
    let Subject { well, amiss } = subject;
    let _ = match (failed, warned) {
        (0, 0) => writeln!(text, "\n{well}."),
        (0, _) => writeln!(text, "\n{well}; warnings: {warned}."),
        _ => writeln!(text, "\n{amiss}: {failed}."),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_with_purpose_remedy_and_place() {
        let finding = |name, verdict| Finding {
            name,
            verdict,
            found: "x".into(),
            purpose: "y",
            remedy: "z".into(),
            docs: "a.md#b",
        };
        let text = render(&[finding("kernel", Verdict::Ok), finding("btf", Verdict::Fail)], &MACHINE);
        assert_eq!(
            text,
            "ok    kernel  x\nFAIL  btf     x\n              for: y\n              do:  z\n              \
             see: docs/a.md#b\n\nThis machine cannot run mesh-agent yet; missing: 1.\n"
        );
        assert!(render(&[finding("kernel", Verdict::Warn)], &CLUSTER).contains("is in order; warnings: 1"));
    }
}
