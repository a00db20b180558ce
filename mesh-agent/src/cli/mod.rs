//! The subcommands for people: `ca`, `check`, `status`. `run` is the agent itself and lives in `main`.
//!
//! Each parses its arguments, does one thing with the rooms it needs, prints, and gives an exit code: 0 done,
//! 1 not, 64 wrong arguments. Results go to stdout, everything else to stderr.

mod ca;
mod check;
pub mod log;
mod status;

use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

/// What `mesh-agent` can do besides `run`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Hold the root of a mesh of several nodes and certify their workloads
    Ca(ca::CaArgs),
    /// Say whether this machine can run the agent, and what to do if not
    Check(check::CheckArgs),
    /// Show pods, identities, peers and problems of the agent on this node
    Status(status::StatusArgs),
}

impl Command {
    /// Does it.
    #[must_use]
    pub fn run(self) -> ExitCode {
        match self {
            Self::Ca(args) => ca::run(args),
            Self::Check(args) => check::run(&args),
            Self::Status(args) => status::run(&args),
        }
    }
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
