//! `mesh-agent ca`, `ca token`, `ca root`.

mod cluster;
mod serve;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{anyhow, bail};

use super::{fail, print};
use crate::config::{EXIT_USAGE, LogFormat, Source};
use crate::identity::ca_server::{Account, JoinTokens, TOKEN_TTL_MAX, roots_pem};
use crate::identity::{NodeName, SystemClock, WORKLOAD_TTL_MAX};

/// Shortest `--max-ttl-seconds`: a certificate of less is renewed more often than a second-counting format can say.
const MAX_TTL_LEAST: u64 = 10;

/// Arguments of `ca`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct CaArgs {
    #[command(subcommand)]
    command: Option<CaCommand>,
    /// Stand-alone: root key, join tokens. Keep this directory, and keep it secret.
    #[arg(long, env = "MESH_CA_STATE_DIR")]
    state_dir: Option<PathBuf>,
    /// Where agents reach the CA: ADDRESS:PORT.
    #[arg(long, env = "MESH_CA_LISTEN", required = true)]
    listen: Option<SocketAddr>,
    /// A host name or address by which agents reach it, besides the listen address; may be repeated.
    #[arg(long = "name")]
    names: Vec<String>,
    /// Where the objects come from that say which node needs which identity: `dir:PATH`, stand-alone with join tokens;
    /// `kube` or `kube:CONTEXT`, in a cluster with service account tokens.
    #[arg(long, env = "MESH_SOURCE", required = true)]
    source: Option<String>,
    /// How the API server is reached from outside a cluster.
    #[arg(long, env = "KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// In a cluster: the directory of the root, a mounted Secret with tls.crt, tls.key and ca.crt; read again when it
    /// changes.
    #[arg(long, env = "MESH_CA_ROOT_DIR")]
    root_dir: Option<PathBuf>,
    /// In a cluster: NAMESPACE/NAME of that Secret, to be read or made while the directory is empty.
    #[arg(long, env = "MESH_CA_CREATE_ROOT_SECRET")]
    create_root_secret: Option<Account>,
    /// In a cluster: NAMESPACE/NAME of the ConfigMap in which the roots to trust are published (root-cert.pem).
    #[arg(long, env = "MESH_CA_PUBLISH_ROOTS")]
    publish_roots: Option<Account>,
    /// In a cluster: the audience that agents' tokens must be for.
    #[arg(long, env = "MESH_CA_TOKEN_AUDIENCE", default_value = "mesh-agent-ca")]
    token_audience: String,
    /// In a cluster: NAMESPACE/NAME of the agents' service account.
    #[arg(long, env = "MESH_CA_AGENT_ACCOUNT", default_value = "mesh-agent-system/mesh-agent")]
    agent_account: Account,
    /// Longest life of a workload's certificate, in seconds; at most a day.
    #[arg(long, env = "MESH_CA_MAX_TTL_SECONDS", default_value_t = WORKLOAD_TTL_MAX.as_secs(),
          value_parser = clap::value_parser!(u64).range(MAX_TTL_LEAST..=WORKLOAD_TTL_MAX.as_secs()))]
    max_ttl_seconds: u64,
    /// Where /metrics, /livez and /readyz are served; nowhere when not given.
    #[arg(long, env = "MESH_CA_METRICS")]
    metrics: Option<SocketAddr>,
    /// SPIFFE trust domain.
    #[arg(long, env = "TRUST_DOMAIN", default_value = "cluster.local")]
    trust_domain: String,
    /// Format of the log on stderr: `text` or `json`.
    #[arg(long, env = "MESH_LOG_FORMAT", default_value = "text")]
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
            Ok(settings) => serve::served(settings),
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

/// `mesh-agent ca`, checked.
struct Settings {
    listen: SocketAddr,
    names: Vec<String>,
    trust_domain: String,
    max_ttl: Duration,
    metrics: Option<SocketAddr>,
    setting: Setting,
    log_format: LogFormat,
}

/// Where it serves.
enum Setting {
    Alone { state_dir: PathBuf, objects: PathBuf },
    Cluster(cluster::Settings),
}

impl Settings {
    fn new(args: CaArgs) -> anyhow::Result<Self> {
        // clap has seen to it that they are there.
        let (Some(listen), Some(source)) = (args.listen, args.source.clone()) else {
            bail!("--listen and --source are needed");
        };
        let access = match Source::parse(&source, args.kubeconfig.clone(), false).map_err(|error| anyhow!(error))? {
            Source::Dir(objects) => return Self::alone(args, listen, objects),
            Source::Kube { access, .. } => access,
        };
        if args.state_dir.is_some() {
            bail!("--state-dir: a CA of a cluster keeps nothing; its root is in --root-dir");
        }
        let root_dir = args.root_dir.clone().ok_or_else(|| {
            anyhow!("--source {source} needs --root-dir, the directory at which the Secret of the root is mounted")
        })?;
        let cluster = cluster::Settings {
            access,
            root_dir,
            root_secret: args.create_root_secret.clone(),
            publish: args.publish_roots.clone(),
            audience: args.token_audience.clone(),
            agents: args.agent_account.clone(),
        };
        Ok(Self::with(args, listen, Setting::Cluster(cluster)))
    }

    fn with(args: CaArgs, listen: SocketAddr, setting: Setting) -> Self {
        Self {
            listen,
            names: args.names,
            trust_domain: args.trust_domain,
            max_ttl: Duration::from_secs(args.max_ttl_seconds),
            metrics: args.metrics,
            setting,
            log_format: args.log_format,
        }
    }

    fn alone(args: CaArgs, listen: SocketAddr, objects: PathBuf) -> anyhow::Result<Self> {
        for (option, given) in [
            ("--root-dir", args.root_dir.is_some()),
            ("--create-root-secret", args.create_root_secret.is_some()),
            ("--publish-roots", args.publish_roots.is_some()),
        ] {
            if given {
                bail!("{option} is for --source kube: a stand-alone CA keeps its root in --state-dir");
            }
        }
        let state_dir = args.state_dir.clone().ok_or_else(|| anyhow!("--source dir:PATH needs --state-dir"))?;
        Ok(Self::with(args, listen, Setting::Alone { state_dir, objects }))
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
            super::super::Command::Ca(args) => Ok(*args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn serving_needs_its_arguments_and_the_subcommands_do_not() {
        let missing = parse(&[]).unwrap_err();
        for option in ["--listen", "--source"] {
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
        let alone = ["--state-dir", "s", "--source", "dir:/"];
        for (more, words) in [
            (&["--source", "kub"][..], "expected dir:PATH, kube or kube:CONTEXT"),
            (&["--source", "kube:"], "expected dir:PATH, kube or kube:CONTEXT"),
            (&["--source", "kube"], "needs --root-dir"),
            (&["--source", "kube", "--root-dir", "r", "--state-dir", "s"], "keeps nothing"),
            (&["--source", "dir:/nowhere/at/all"], "is not a directory"),
            (&["--source", "dir:/"], "needs --state-dir"),
            (&[&alone[..], &["--publish-roots", "a/b"]].concat(), "--publish-roots is for --source kube"),
        ] {
            let args = parse(&[&["--listen", "127.0.0.1:1"], more].concat()).unwrap();
            let error = Settings::new(args).err().unwrap().to_string();
            assert!(error.contains(words), "{more:?}: {error}");
        }
        assert!(parse(&["--listen", "127.0.0.1:1", "--source", "kube", "--publish-roots", "a"]).is_err());
        assert!(parse(&["--listen", "127.0.0.1:1", "--source", "kube", "--max-ttl-seconds", "9"]).is_err());
    }

    #[test]
    fn a_cluster_is_a_source() {
        let args = parse(&["--listen", "0.0.0.0:1", "--source", "kube:c:d", "--root-dir", "/r"]).unwrap();
        let Setting::Cluster(cluster) = Settings::new(args).unwrap().setting else { panic!("not in a cluster") };
        assert_eq!(cluster.access.context.as_deref(), Some("c:d"));
        assert_eq!(cluster.agents, Account { namespace: "mesh-agent-system".into(), name: "mesh-agent".into() });
        assert_eq!(cluster.audience, "mesh-agent-ca");
    }
}
