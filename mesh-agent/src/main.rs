//! Arguments → Config → Agent → signal → drain.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use mesh_agent::agent;
use mesh_agent::cli::{cni, log};
use mesh_agent::config::{EXIT_USAGE, LogFormat, RunArgs, is_called_as_plugin};

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
    #[command(args_override_self = true)]
    Run(Box<RunArgs>),
    #[command(flatten)]
    Other(mesh_agent::cli::Command),
    /// Print what a shell needs to complete these commands.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
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
    mesh_agent::sys::bound_allocator();
    if is_called_as_plugin() {
        return cni::plugin();
    }
    match Cli::parse().command {
        Command::Run(args) => match args.check() {
            Ok(config) => {
                log::init(config.log_format);
                finish(agent::run(config))
            }
            Err(errors) => {
                eprintln!("{errors}");
                ExitCode::from(EXIT_USAGE)
            }
        },
        Command::Other(command) => command.run(),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "mesh-agent", &mut std::io::stdout());
            ExitCode::SUCCESS
        }
        Command::Uninstall { instance, bpffs, cgroup } => {
            log::init(LogFormat::Text);
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
