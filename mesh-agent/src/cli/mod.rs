//! The subcommands for people: `bugreport`, `ca`, `check`, `config`, `controller`, `crds`, `explain`, `logs`, `pods`,
//! `status`. `run` is the agent itself and lives in `main`.
//!
//! Each parses its arguments, does one thing with the rooms it needs, prints, and gives an exit code: 0 done,
//! 1 not, 64 wrong arguments. Results go to stdout, everything else to stderr.

mod bugreport;
mod ca;
mod check;
pub mod cni;
mod config;
mod controller;
mod crds;
mod explain;
pub mod log;
mod logs;
mod nodes;
mod place;
mod pods;
mod status;
mod table;

use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// What `mesh-agent` can do besides `run`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Hand a request to the agent beside it: what the other commands run in its container
    #[command(hide = true)]
    Ask(place::AskArgs),
    /// Put into one archive what somebody needs who looks for a fault, without secrets
    Bugreport(bugreport::BugreportArgs),
    /// Hold the root of a mesh of several nodes and certify their workloads
    Ca(Box<ca::CaArgs>),
    /// Say whether this machine can run the agent, and what to do if not
    Check(Box<check::CheckArgs>),
    /// Enrol a pod before its containers start: the CNI plugin, as a container runtime calls it
    Cni(cni::CniArgs),
    /// Show what became of the objects: the snapshot that an agent decides by
    Config(config::ConfigArgs),
    /// Write back to the API server what the mesh makes of routes and policies
    Controller(controller::ControllerArgs),
    /// Print the CustomResourceDefinitions of the mesh's kinds, for `kubectl apply -f -`
    Crds,
    /// Say what becomes of a connection and why: lane, verdict, rule, and where it is enforced
    Explain(explain::ExplainArgs),
    /// Show or change what is in the log of an agent
    Logs(logs::LogsArgs),
    /// Show every pod of a node: in the mesh or not, and why
    Pods(pods::PodsArgs),
    /// Show pods, identities, peers and problems of an agent, or a line for every node
    Status(status::StatusArgs),
}

impl Command {
    /// Does it.
    #[must_use]
    pub fn run(self) -> ExitCode {
        match self {
            Self::Ask(args) => place::ask(&args),
            Self::Bugreport(args) => bugreport::run(&args),
            Self::Ca(args) => ca::run(*args),
            Self::Check(args) => check::run(&args),
            Self::Cni(args) => cni::run(args),
            Self::Config(args) => config::run(args),
            Self::Controller(args) => controller::run(args),
            Self::Crds => crds::run(),
            Self::Explain(args) => explain::run(args),
            Self::Logs(args) => logs::run(args),
            Self::Pods(args) => pods::run(&args),
            Self::Status(args) => status::run(&args),
        }
    }
}

/// How a result is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Text,
    Json,
}

impl Output {
    /// By a flag `--json`.
    fn of(json: bool) -> Self {
        if json { Self::Json } else { Self::Text }
    }
}

/// Prints a result: as JSON, or as `render` makes it.
fn show<T: Serialize>(result: &T, output: Output, render: impl FnOnce(&T) -> String) -> ExitCode {
    match output {
        Output::Text => print(&render(result)),
        Output::Json => match serde_json::to_string_pretty(result) {
            Ok(json) => print(&format!("{json}\n")),
            Err(error) => return fail(&error),
        },
    }
    ExitCode::SUCCESS
}

/// Seconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// One line, and nothing that a terminal would obey: reasons may quote what somebody wrote into an object.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Prints a result. A reader that hangs up (`| head`) is no failure of ours.
fn print(text: &impl Display) {
    let mut out = std::io::stdout().lock();
    let _ = write!(out, "{text}").and_then(|()| out.flush());
}

/// Prints what went wrong, and what that means for the exit code.
fn fail(error: &impl Display) -> ExitCode {
    let _ = writeln!(std::io::stderr().lock(), "mesh-agent: {error}");
    ExitCode::FAILURE
}
