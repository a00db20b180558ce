//! Arguments → Config → Agent → signal → drain.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use mesh_agent::agent;
use mesh_agent::config::{EXIT_USAGE, LogFormat, RunArgs};

/// Node-level service mesh agent.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve this node: capture its enrolled pods and carry their traffic.
    Run(RunArgs),
    /// Remove every program, map, rule and sysctl of an instance whose agent is gone.
    Uninstall {
        /// Name of the instance.
        #[arg(long, env = "MESH_INSTANCE", default_value = "mesh-agent")]
        instance: String,
        /// The bpffs it was pinned in.
        #[arg(long, env = "MESH_BPFFS", default_value = "/sys/fs/bpf")]
        bpffs: PathBuf,
        /// The cgroup it was attached to.
        #[arg(long, env = "MESH_CGROUP")]
        cgroup: PathBuf,
    },
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(args) => match args.check() {
            Ok(config) => {
                start_log(config.log_format);
                finish(agent::run(config))
            }
            Err(errors) => {
                eprintln!("{errors}");
                ExitCode::from(EXIT_USAGE)
            }
        },
        Command::Uninstall { instance, bpffs, cgroup } => {
            start_log(LogFormat::Text);
            finish(agent::remove_instance(instance, bpffs, cgroup))
        }
    }
}

fn finish(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mesh-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The agent's own log goes to stderr; stdout is the access log's. `RUST_LOG` sets the level, `info` by default.
fn start_log(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
}
