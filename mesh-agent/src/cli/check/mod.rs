//! `mesh-agent check`: can this machine run the agent? Reads files, attaches nothing, changes nothing.
//!
//! Each finding says what it is for and what to do. `machine` reads, `judge` decides: the second is pure and is
//! tested with machines that do not exist here.

mod judge;
mod machine;
mod strict;

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;

use super::place::Place;
use super::{fail, plain, print};
use machine::Machine;

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct CheckArgs {
    #[command(subcommand)]
    command: Option<CheckCommand>,
    /// The bpffs that the agent will pin to.
    #[arg(long, env = "MESH_BPFFS", default_value = "/sys/fs/bpf")]
    bpffs: PathBuf,
    /// The cgroup v2 directory above the pods; any is looked for when this is not given.
    #[arg(long, env = "MESH_CGROUP")]
    cgroup: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

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
    /// The agent runs, with less, or it could not be found out.
    Warn,
    /// The agent cannot run.
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
}

pub(super) fn run(args: &CheckArgs) -> ExitCode {
    if let Some(CheckCommand::Strict(args)) = &args.command {
        return strict::run(args);
    }
    if args.place.is_a_node() {
        return there(args);
    }
    let machine = Machine::here();
    let findings = judge::all(&machine, &args.bpffs, args.cgroup.as_deref());
    let passed = findings.iter().all(|finding| finding.verdict != Verdict::Fail);
    if args.json {
        let document = serde_json::json!({ "passed": passed, "findings": findings });
        match serde_json::to_string_pretty(&document) {
            Ok(json) => print(&format!("{json}\n")),
            Err(error) => return fail(&error),
        }
    } else {
        print(&render(&findings));
    }
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The check of a node, made in its agent's container.
fn there(args: &CheckArgs) -> ExitCode {
    let json: &[&str] = if args.json { &["--json"] } else { &[] };
    match args.place.run_there(&[&["check"], json].concat(), WITHIN) {
        // What it says is its result, whichever that is.
        Ok(ran) if !ran.stdout.is_empty() => {
            print(&String::from_utf8_lossy(&ran.stdout));
            if ran.code == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Ok(ran) => fail(&plain(ran.stderr.trim())),
        Err(error) => fail(&error),
    }
}

/// The findings of a check with the usual places, as JSON.
pub(super) fn report() -> String {
    let findings = judge::all(&Machine::here(), Path::new("/sys/fs/bpf"), None);
    serde_json::to_string_pretty(&serde_json::json!({ "findings": findings })).unwrap_or_else(|error| error.to_string())
}

fn render(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for finding in findings {
        let word = match finding.verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{word:4}  {:width$}  {}", finding.name, finding.found);
        if finding.verdict != Verdict::Ok {
            let _ = writeln!(text, "      {:width$}  for: {}", "", finding.purpose);
            let _ = writeln!(text, "      {:width$}  do:  {}", "", finding.remedy);
        }
    }
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let (failed, warned) = (count(Verdict::Fail), count(Verdict::Warn));
    let _ = match (failed, warned) {
        (0, 0) => writeln!(text, "\nThis machine can run mesh-agent."),
        (0, _) => writeln!(text, "\nThis machine can run mesh-agent; warnings: {warned}."),
        _ => writeln!(text, "\nThis machine cannot run mesh-agent yet; missing: {failed}."),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_with_purpose_and_remedy() {
        let finding = |name, verdict| Finding { name, verdict, found: "x".into(), purpose: "y", remedy: "z".into() };
        let text = render(&[finding("kernel", Verdict::Ok), finding("btf", Verdict::Fail)]);
        assert_eq!(
            text,
            "ok    kernel  x\nFAIL  btf     x\n              for: y\n              do:  z\n\n\
             This machine cannot run mesh-agent yet; missing: 1.\n"
        );
        assert!(render(&[finding("kernel", Verdict::Warn)]).contains("warnings: 1"));
    }
}
