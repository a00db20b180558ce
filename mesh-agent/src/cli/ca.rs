//! `mesh-agent ca`, `ca token`, `ca root`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::{fail, log, print};
use crate::config::{EXIT_USAGE, LogFormat};
use crate::control::{self, DirConfig};
use crate::identity::ca_server::{BySnapshot, CaServer, CaServerSettings, JoinTokens, TOKEN_TTL_MAX, roots_pem};
use crate::identity::{NodeName, SystemClock};
use crate::snapshot::SnapshotStore;

/// Arguments of `ca`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct CaArgs {
    #[command(subcommand)]
    command: Option<CaCommand>,
    /// Root key, join tokens: keep this directory, and keep it secret.
    #[arg(long, env = "MESH_CA_STATE_DIR", required = true)]
    state_dir: Option<PathBuf>,
    /// Where agents reach the CA: ADDRESS:PORT.
    #[arg(long, env = "MESH_CA_LISTEN", required = true)]
    listen: Option<SocketAddr>,
    /// A host name or address by which agents reach it, besides the listen address; may be repeated.
    #[arg(long = "name")]
    names: Vec<String>,
    /// Where the objects come from that say which node needs which identity: `dir:PATH`.
    #[arg(long, env = "MESH_SOURCE", required = true)]
    source: Option<String>,
    /// SPIFFE trust domain.
    #[arg(long, env = "TRUST_DOMAIN", default_value = "cluster.local")]
    trust_domain: String,
    /// Format of the log on stderr: `text` or `json`.
    #[arg(long, env = "MESH_LOG_FORMAT", default_value = "text", value_parser = log_format)]
    log_format: LogFormat,
}

#[derive(Debug, clap::Subcommand)]
enum CaCommand {
    /// Make a one-time token by which a node's agent joins, and print it
    Token(TokenArgs),
    /// Print the roots (PEM) for the agents' --ca-root
    Root(RootArgs),
}

/// Arguments of `ca token`.
#[derive(Debug, clap::Args)]
struct TokenArgs {
    /// The CA's state directory.
    #[arg(long, env = "MESH_CA_STATE_DIR")]
    state_dir: PathBuf,
    /// The node that may join with it: its --node.
    #[arg(long, value_parser = |name: &str| name.parse::<NodeName>())]
    node: NodeName,
    /// How long it is good for, in seconds; at most a day.
    #[arg(long, default_value_t = 3600, value_parser = clap::value_parser!(u64).range(1..=TOKEN_TTL_MAX.as_secs()))]
    ttl_seconds: u64,
}

/// Arguments of `ca root`.
#[derive(Debug, clap::Args)]
struct RootArgs {
    /// The CA's state directory.
    #[arg(long, env = "MESH_CA_STATE_DIR")]
    state_dir: PathBuf,
}

pub(super) fn run(args: CaArgs) -> ExitCode {
    match args.command {
        Some(CaCommand::Token(args)) => token(&args),
        Some(CaCommand::Root(args)) => root(&args),
        None => match Settings::new(args) {
            Ok(settings) => served(settings),
            Err(error) => {
                fail(&format!("{error:#}"));
                ExitCode::from(EXIT_USAGE)
            }
        },
    }
}

fn token(args: &TokenArgs) -> ExitCode {
    let made = JoinTokens::open(&args.state_dir, Arc::new(SystemClock))
        .and_then(|tokens| tokens.create(&args.node, Duration::from_secs(args.ttl_seconds)));
    match made {
        Ok(token) => {
            print(&format!("{}\n", *token));
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}

fn root(args: &RootArgs) -> ExitCode {
    match roots_pem(&args.state_dir) {
        Ok(pem) => {
            print(&pem);
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}

struct Settings {
    server: CaServerSettings,
    objects: PathBuf,
    log_format: LogFormat,
}

impl Settings {
    fn new(args: CaArgs) -> anyhow::Result<Self> {
        // clap has seen to it that they are there.
        let (Some(state_dir), Some(listen), Some(source)) = (args.state_dir, args.listen, args.source) else {
            bail!("--state-dir, --listen and --source are needed");
        };
        let objects = match source.split_once(':') {
            Some(("dir", path)) if Path::new(path).is_dir() => path.into(),
            Some(("dir", path)) => bail!("--source `{source}`: {path} is not a directory"),
            _ => bail!("--source `{source}`: expected dir:PATH"),
        };
        let server = CaServerSettings { state_dir, trust_domain: args.trust_domain, listen, names: args.names };
        Ok(Self { server, objects, log_format: args.log_format })
    }
}

fn served(settings: Settings) -> ExitCode {
    log::init(settings.log_format);
    // Few nodes ask, a few times a day: two threads keep the source from delaying answers.
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    match runtime.block_on(serve(settings)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("{error:#}")),
    }
}

/// Serves until SIGTERM or SIGINT, or until the source fails.
async fn serve(settings: Settings) -> anyhow::Result<()> {
    crate::sys::set_undumpable().context("cannot forbid core dumps of the root key")?;
    let (stop, stopped) = watch::channel(());
    let store = Arc::new(SnapshotStore::default());
    let config = DirConfig {
        path: settings.objects,
        // The CA is no node: no pod is its own.
        node: String::new(),
        trust_domain: settings.server.trust_domain.clone(),
        node_local_dns: None,
    };
    let mut source = tokio::spawn(control::run(config, Arc::clone(&store), ended(stopped.clone())));
    let server = CaServer::bind(settings.server, Arc::new(BySnapshot(Arc::clone(&store)))).await?;
    let address = server.local_addr()?;
    let mut generation = store.watch();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);

    // A CA that has not read the objects yet would refuse everybody.
    tokio::select! {
        read = generation.wait_for(|generation| *generation > 0) => drop(read?),
        ended = &mut source => return Err(source_error(ended)),
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    }
    tracing::info!(%address, "certificate authority serves");
    let serving = server.serve(ended(stopped));
    let result = tokio::select! {
        () = serving => Ok(()),
        ended = &mut source => Err(source_error(ended)),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    drop(stop);
    result
}

/// Completes when the sender is gone.
async fn ended(mut stopped: watch::Receiver<()>) {
    while stopped.changed().await.is_ok() {}
}

fn source_error(ended: Result<Result<(), control::ControlError>, tokio::task::JoinError>) -> anyhow::Error {
    match ended {
        Ok(Ok(())) => anyhow!("the source of objects ended"),
        Ok(Err(error)) => anyhow::Error::new(error).context("the source of objects"),
        Err(error) => anyhow::Error::new(error).context("the source of objects"),
    }
}

fn log_format(value: &str) -> Result<LogFormat, &'static str> {
    match value {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("expected text or json"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser};

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(subcommand)]
        command: super::super::Command,
    }

    fn parse(args: &[&str]) -> Result<CaArgs, String> {
        let args = ["mesh-agent", "ca"].iter().chain(args);
        match Cli::try_parse_from(args).map_err(|e| e.to_string())?.command {
            super::super::Command::Ca(args) => Ok(args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn serving_needs_its_three_arguments_and_the_subcommands_do_not() {
        let missing = parse(&[]).unwrap_err();
        for option in ["--state-dir", "--listen", "--source"] {
            assert!(missing.contains(option), "{missing}");
        }
        assert!(parse(&["--state-dir", "s", "--listen", "127.0.0.1:1", "--source", "dir:/"]).is_ok());
        let token = parse(&["token", "--state-dir", "s", "--node", "a"]).unwrap();
        assert!(matches!(token.command, Some(CaCommand::Token(args)) if args.ttl_seconds == 3600));
        assert!(matches!(parse(&["root", "--state-dir", "s"]).unwrap().command, Some(CaCommand::Root(_))));
    }

    #[test]
    fn bad_values_are_named() {
        for (args, words) in [
            (&["token", "--state-dir", "s", "--node", "A_b"][..], "`A_b` is not a node name"),
            (&["token", "--state-dir", "s", "--node", "a", "--ttl-seconds", "90000"], "90000"),
            (&["--state-dir", "s", "--listen", "nowhere", "--source", "dir:/"], "nowhere"),
        ] {
            let error = parse(args).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        for (source, words) in [("kube", "expected dir:PATH"), ("dir:/nowhere/at/all", "is not a directory")] {
            let args = parse(&["--state-dir", "s", "--listen", "127.0.0.1:1", "--source", source]).unwrap();
            let error = Settings::new(args).err().unwrap().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
