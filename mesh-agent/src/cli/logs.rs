//! `mesh-agent logs level`, `logs recent`: the log of a running agent.

use std::process::ExitCode;

use super::place::Place;
use super::{fail, plain, print};
use crate::admin::{LogAnswer, LogRequest, Report, Request};

/// Arguments of `logs`.
#[derive(Debug, clap::Args)]
pub struct LogsArgs {
    #[command(subcommand)]
    command: LogsCommand,
}

#[derive(Debug, clap::Subcommand)]
enum LogsCommand {
    /// Show what is in the log, or change it for a while
    Level(LevelArgs),
    /// Print the newest lines of the log that the agent still has
    Recent(RecentArgs),
}

/// Arguments of `logs level`.
#[derive(Debug, clap::Args)]
struct LevelArgs {
    /// error, warn, info, debug or trace, or by part: info,mesh_agent::capture=debug
    filter: Option<String>,
    /// How long it lasts, in seconds; 0: until the agent ends. So that no node is left writing everything.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    #[command(flatten)]
    place: Place,
}

/// Arguments of `logs recent`.
#[derive(Debug, clap::Args)]
struct RecentArgs {
    #[command(flatten)]
    place: Place,
}

pub(super) fn run(args: LogsArgs) -> ExitCode {
    match args.command {
        LogsCommand::Level(args) => level(args),
        LogsCommand::Recent(args) => recent(&args),
    }
}

fn level(args: LevelArgs) -> ExitCode {
    let request = Request::Log(LogRequest { filter: args.filter, seconds: args.seconds });
    match args.place.ask::<LogAnswer>(&request) {
        Ok(LogAnswer { refused: Some(reason), .. }) => fail(&plain(&reason)),
        Ok(LogAnswer { present, given, .. }) => {
            let started = if present == given { String::new() } else { format!(" (started with {given})") };
            print(&format!("{present}{started}\n"));
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}

fn recent(args: &RecentArgs) -> ExitCode {
    match args.place.ask::<Report>(&Request::Report) {
        Ok(report) => {
            report.log.iter().for_each(|line| print(&format!("{}\n", plain(line))));
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}
