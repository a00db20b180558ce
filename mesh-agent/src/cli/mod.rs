//! The subcommands for people: `bugreport`, `ca`, `check`, `controller`, `crds`, `explain`, `logs`, `status`. `run` is
//! the agent itself and lives in `main`.
//!
//! Each parses its arguments, does one thing with the rooms it needs, prints, and gives an exit code: 0 done,
//! 1 not, 64 wrong arguments. Results go to stdout, everything else to stderr.

mod bugreport;
mod ca;
mod check;
pub mod cni;
mod controller;
mod crds;
mod explain;
pub mod log;
mod logs;
mod status;

use std::fmt::Display;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use crate::admin;

/// What `mesh-agent` can do besides `run`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Put into one archive what somebody needs who looks for a fault, without secrets
    Bugreport(bugreport::BugreportArgs),
    /// Hold the root of a mesh of several nodes and certify their workloads
    Ca(Box<ca::CaArgs>),
    /// Say whether this machine can run the agent, and what to do if not
    Check(check::CheckArgs),
    /// Enrol a pod before its containers start: the CNI plugin, as a container runtime calls it
    Cni(cni::CniArgs),
    /// Write back to the API server what the mesh makes of routes and policies
    Controller(controller::ControllerArgs),
    /// Print the CustomResourceDefinitions of the mesh's kinds, for `kubectl apply -f -`
    Crds,
    /// Say what becomes of a connection and why: lane, verdict, rule, and where it is enforced
    Explain(explain::ExplainArgs),
    /// Show or change what is in the log of the agent on this node
    Logs(logs::LogsArgs),
    /// Show pods, identities, peers and problems of the agent on this node
    Status(status::StatusArgs),
}

impl Command {
    /// Does it.
    #[must_use]
    pub fn run(self) -> ExitCode {
        match self {
            Self::Bugreport(args) => bugreport::run(&args),
            Self::Ca(args) => ca::run(*args),
            Self::Check(args) => check::run(&args),
            Self::Cni(args) => cni::run(args),
            Self::Controller(args) => controller::run(args),
            Self::Crds => crds::run(),
            Self::Explain(args) => explain::run(args),
            Self::Logs(args) => logs::run(args),
            Self::Status(args) => status::run(&args),
        }
    }
}

/// Asks the agent with this state directory.
///
/// # Errors
/// A sentence with what to look at.
fn ask<T: serde::de::DeserializeOwned>(state_dir: &Path, request: &admin::Request) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime
        .block_on(admin::ask(state_dir, request))
        .map_err(|error| format!("{error}; is an agent with this --state-dir running, and are you its user?"))
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
