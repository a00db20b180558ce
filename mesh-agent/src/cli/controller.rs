//! `mesh-agent controller`: its arguments.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use super::{fail, log};
use crate::agent::controller::{self, Settings};
use crate::config::{EXIT_USAGE, LogFormat, Source};

/// Arguments of `controller`.
#[derive(Debug, clap::Args)]
pub struct ControllerArgs {
    /// The API server: `kube`, that of --kubeconfig or of the cluster it runs in; `kube:CONTEXT`, that of a context.
    #[arg(long, env = "MESH_SOURCE", default_value = "kube")]
    source: String,
    /// How the API server is reached from outside a cluster.
    #[arg(long, env = "KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// SPIFFE trust domain: the agents' own.
    #[arg(long, env = "TRUST_DOMAIN", default_value = "cluster.local")]
    trust_domain: String,
    /// Where /metrics, /livez and /readyz are served.
    #[arg(long, env = "MESH_METRICS", default_value = "0.0.0.0:9090")]
    metrics: SocketAddr,
    /// Format of the log on stderr: `text` or `json`.
    #[arg(long, env = "MESH_LOG_FORMAT", default_value = "text")]
    log_format: LogFormat,
}

pub(super) fn run(args: ControllerArgs) -> ExitCode {
    let access = match Source::parse(&args.source, args.kubeconfig.clone(), false) {
        Ok(Source::Kube { access, .. }) => access,
        Ok(Source::Dir(_)) => return usage("--source: a directory has no statuses; kube or kube:CONTEXT"),
        Err(error) => return usage(&error),
    };
    log::init(args.log_format);
    match controller::run(Settings { access, trust_domain: args.trust_domain, metrics: args.metrics }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("{error:#}")),
    }
}

fn usage(error: &str) -> ExitCode {
    fail(&error);
    ExitCode::from(EXIT_USAGE)
}
