//! `mesh-agent cni`: the CNI plugin, as a container runtime calls it, and its installation by hand.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use super::{fail, print};
use crate::cni;
use crate::config::{CniApi, CniEnvironment, CniInstall, CniOptions, EXIT_USAGE};

/// More than any network configuration.
const LARGEST: u64 = 1024 * 1024;

/// Arguments of `cni`.
#[derive(Debug, clap::Args)]
pub struct CniArgs {
    #[command(subcommand)]
    command: Option<CniCommand>,
}

#[derive(Debug, clap::Subcommand)]
enum CniCommand {
    /// Put the plugin onto this node once, or take it away; `run --cni-conf-dir` keeps it there
    Install(Box<InstallArgs>),
}

#[derive(Debug, clap::Args)]
struct InstallArgs {
    /// Where the network configurations are.
    #[arg(long = "conf-dir", default_value = "/etc/cni/net.d")]
    conf: PathBuf,
    /// Where the container runtime looks for plugins.
    #[arg(long = "bin-dir", default_value = "/opt/cni/bin")]
    bin: PathBuf,
    /// The agent's state directory.
    #[arg(long = "state-dir", env = "MESH_STATE_DIR", default_value = "/var/lib/mesh-agent")]
    state: PathBuf,
    /// How the plugin asks the API server while the agent is away; in a cluster: as the pod's service account.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    #[command(flatten)]
    options: CniOptions,
    /// Take everything of the plugin away.
    #[arg(long)]
    uninstall: bool,
}

pub(super) fn run(args: CniArgs) -> ExitCode {
    match args.command {
        None => plugin(),
        Some(CniCommand::Install(args)) => install(*args),
    }
}

/// Reads the call from environment and stdin, prints its result. Nothing else goes to stdout.
#[must_use]
pub fn plugin() -> ExitCode {
    let mut stdin = Vec::new();
    // What could not be read is no JSON, and is reported as such.
    let _ = std::io::stdin().lock().take(LARGEST).read_to_end(&mut stdin);
    let outcome = cni::call(&CniEnvironment::read(), &stdin);
    let printed = outcome.printed.map_or(Ok(()), |value| writeln!(std::io::stdout().lock(), "{value}"));
    if outcome.is_success && printed.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn install(args: InstallArgs) -> ExitCode {
    if args.uninstall {
        return match cni::uninstall(&args.conf, &args.bin) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error),
        };
    }
    let mut errors = Vec::new();
    let api = CniApi::of_this_process(args.kubeconfig);
    let install = args.options.check(&mut errors, (args.conf, args.bin, args.state), api);
    if !errors.is_empty() {
        fail(&errors.join("\n"));
        return ExitCode::from(EXIT_USAGE);
    }
    match all(&install) {
        Ok(done) => {
            print(&done);
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}

fn all(install: &CniInstall) -> Result<String, cni::InstallError> {
    let is_new = cni::install_binary(install)?;
    cni::install_kubeconfig(install)?;
    let changed = cni::install_entry(install)?;
    let binary = if is_new { "copied" } else { "there already" };
    let entry = changed.map_or("there already".to_owned(), |path| format!("added to {}", path.display()));
    Ok(format!("binary: {binary}\nentry: {entry}\n"))
}
