//! The only reader of arguments and environment. Everything is parsed before anything starts, every mistake is
//! reported at once, and the process exits with 64 (EX_USAGE of sysexits.h) when there is one.

mod ca;
mod cni;
mod http;
mod source;
mod telemetry;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

pub use self::ca::{Ca, CaLogin};
pub use self::cni::{CniApi, CniEnvironment, CniInstall, CniOptions, is_called_as_plugin};
use crate::capture::{Half, Kubelet};
use crate::policy::egress::NODE_LOCAL_DNS;
use crate::proxy::HttpLimits;
use crate::telemetry::Settings;

pub use self::source::Source;

/// `mesh-agent run`: as it stands on the command line or in the environment, not yet checked.
#[derive(Clone, Debug, clap::Args)]
pub struct RunArgs {
    /// Name of this node: pods with this `spec.nodeName` are its own.
    #[arg(long, env = "NODE_NAME")]
    node: String,
    /// Where the objects come from: `dir:PATH`, a directory of YAML files that is watched; `kube`, the API server of
    /// --kubeconfig or of the cluster the agent runs in; `kube:CONTEXT`, that of a context of the kubeconfig.
    #[arg(long, env = "MESH_SOURCE")]
    source: String,
    /// How the API server is reached from outside a cluster.
    #[arg(long, env = "KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// Believe the mesh-agent.io/netns of pods from the API server: only where nobody but operators creates pods.
    #[arg(long, env = "MESH_TRUST_NETNS_ANNOTATION")]
    trust_netns_annotation: bool,
    /// Keep the CNI plugin in the node's network configuration here, where the path is the host's; needs --cni-bin-dir.
    #[arg(long, env = "MESH_CNI_CONF_DIR")]
    cni_conf_dir: Option<PathBuf>,
    /// Where the container runtime looks for plugins.
    #[arg(long, env = "MESH_CNI_BIN_DIR")]
    cni_bin_dir: Option<PathBuf>,
    #[command(flatten)]
    cni: CniOptions,
    /// Name of this instance; its programs and maps are pinned under BPFFS/INSTANCE.
    #[arg(long, env = "MESH_INSTANCE", default_value = "mesh-agent")]
    instance: String,
    /// The cgroup v2 directory above every pod of this node.
    #[arg(long, env = "MESH_CGROUP")]
    cgroup: PathBuf,
    /// A mounted bpffs.
    #[arg(long, env = "MESH_BPFFS", default_value = "/sys/fs/bpf")]
    bpffs: PathBuf,
    /// Who may probe strict pods: port:N (whoever listens on it, usually 10250) or cgroup:DIR; nobody when not given.
    #[arg(long, env = "MESH_KUBELET")]
    kubelet: Option<String>,
    /// Where the node's DNS cache listens: pods that may not leave the mesh may use it all the same.
    #[arg(long, env = "MESH_NODE_LOCAL_DNS", default_value_t = NODE_LOCAL_DNS.to_string())]
    node_local_dns: String,
    /// What an application sees when a policy refuses its connect(): refused (ECONNREFUSED) or access (EACCES).
    #[arg(long, env = "MESH_DENY_ERRNO", default_value = "refused")]
    deny_errno: String,
    /// Node certificate, embedded CA and the status socket live here.
    #[arg(long, env = "MESH_STATE_DIR", default_value = "/var/lib/mesh-agent")]
    state_dir: PathBuf,
    /// SPIFFE trust domain.
    #[arg(long, env = "TRUST_DOMAIN", default_value = "cluster.local")]
    trust_domain: String,
    #[command(flatten)]
    ca: ca::CaArgs,
    /// Where /metrics, /livez and /readyz are served.
    #[arg(long, env = "MESH_METRICS", default_value = "0.0.0.0:9090")]
    metrics: String,
    /// Proxy threads; 0 = one for each CPU, at most 4. A connection lives on one of them.
    #[arg(long, env = "MESH_WORKERS", default_value = "0")]
    workers: String,
    #[command(flatten)]
    http: http::HttpArgs,
    /// Format of the agent's own log on stderr: `text` or `json`. The access log on stdout is always JSON.
    #[arg(long, env = "MESH_LOG_FORMAT", default_value = "text")]
    log_format: String,
    #[command(flatten)]
    telemetry: telemetry::TelemetryArgs,
    /// How long live connections may go on after SIGTERM, in seconds.
    #[arg(long, env = "TERMINATION_GRACE_PERIOD_SECONDS", default_value = "5")]
    grace_seconds: String,
    /// Leave the node as found on SIGTERM: without it, hooks and maps stay for the next agent.
    #[arg(long, env = "MESH_UNINSTALL_ON_EXIT")]
    uninstall_on_exit: bool,
    /// After another agent has taken over: wait for SIGTERM instead of ending. For a DaemonSet, whose kubelet would
    /// start a container again that ends by itself.
    #[arg(long, env = "MESH_WAIT_WHEN_SUCCEEDED")]
    wait_when_succeeded: bool,
    /// Which programs to load: the agent's `own`, those of its `twin`, or the twin's as a `stranger` to all records.
    /// Exists in debug builds alone: upgrades are tested with it.
    #[cfg(mesh_ebpf_twin)]
    #[arg(long, hide = true, default_value = "own", value_parser = parse_half)]
    kernel_half: Half,
}

/// What `mesh-agent run` does, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Name of this node.
    pub node: String,
    /// Where the objects come from.
    pub source: Source,
    /// Name of this instance.
    pub instance: String,
    /// The cgroup v2 directory above every pod of this node.
    pub cgroup: PathBuf,
    /// A mounted bpffs.
    pub bpffs: PathBuf,
    /// Who may probe strict pods.
    pub kubelet: Option<Kubelet>,
    /// Where the node's DNS cache listens.
    pub node_local_dns: IpAddr,
    /// What an application sees when a policy refuses its `connect()`.
    pub deny_errno: i32,
    /// State directory.
    pub state_dir: PathBuf,
    /// SPIFFE trust domain.
    pub trust_domain: String,
    /// Certificate authority.
    pub ca: Ca,
    /// Address of the metrics endpoint.
    pub metrics: SocketAddr,
    /// Proxy threads, at least 1.
    pub workers: usize,
    /// Bounds of the http lane.
    pub http: HttpLimits,
    /// Format of the agent's own log.
    pub log_format: LogFormat,
    /// What is told of requests.
    pub telemetry: Settings,
    /// Grace period of a drain.
    pub grace: Duration,
    /// Leave the node as found on SIGTERM.
    pub uninstall_on_exit: bool,
    /// Where the CNI plugin is kept installed.
    pub cni: Option<CniInstall>,
    /// Wait for SIGTERM after another agent has taken over.
    pub wait_when_succeeded: bool,
    /// Which programs to load.
    pub half: Half,
}

/// Format of the agent's own log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

impl FromStr for LogFormat {
    type Err = &'static str;

    fn from_str(value: &str) -> Result<Self, Self::Err> {
        match value {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("expected text or json"),
        }
    }
}

/// Every mistake of a command line, one a line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigErrors(pub Vec<String>);

/// Exit code for a wrong command line: EX_USAGE.
pub const EXIT_USAGE: u8 = 64;

impl RunArgs {
    /// Checks everything.
    ///
    /// # Errors
    /// All mistakes at once, each with the option's name and the way out.
    pub fn check(self) -> Result<Config, ConfigErrors> {
        let mut errors = Vec::new();
        let source = Source::parse(&self.source, self.kubeconfig.clone(), self.trust_netns_annotation);
        let source = keep(&mut errors, source);
        let ca = keep(&mut errors, self.ca.clone().check());
        let metrics = keep(&mut errors, parse("--metrics", &self.metrics, "an address and port, like 0.0.0.0:9090"));
        let workers = keep(&mut errors, parse::<usize>("--workers", &self.workers, "a number, 0 for automatic"));
        let grace = keep(&mut errors, parse::<u64>("--grace-seconds", &self.grace_seconds, "whole seconds"));
        let log_format = keep(
            &mut errors,
            self.log_format.parse().map_err(|why| format!("--log-format `{}`: {why}", self.log_format)),
        );
        let telemetry = self.telemetry.check(&mut errors);
        for (option, value) in [("--node", &self.node), ("--instance", &self.instance)] {
            if let Err(reason) = dns_label(value) {
                errors.push(format!("{option} `{value}`: {reason}"));
            }
        }
        if crate::model::identity::Identity::new(&self.trust_domain, "ns", "sa").is_err() {
            errors.push(format!("--trust-domain `{}`: only a-z, 0-9, `.`, `-` and `_` are allowed", self.trust_domain));
        }
        if !self.cgroup.is_absolute() {
            errors.push(format!("--cgroup `{}`: an absolute path is needed", self.cgroup.display()));
        }
        let kubelet = keep(&mut errors, parse_kubelet(self.kubelet.as_deref()));
        let node_local_dns = keep(&mut errors, parse("--node-local-dns", &self.node_local_dns, "an IP address"));
        let deny_errno = keep(&mut errors, parse_deny_errno(&self.deny_errno));
        let http = self.http.check(&mut errors);
        let cni_dirs = (self.cni_conf_dir, self.cni_bin_dir);
        let cni = cni::duty(&mut errors, self.cni, cni_dirs, (self.state_dir.clone(), source.as_ref()));
        let (
            Some(source),
            Some(ca),
            Some(metrics),
            Some(workers),
            Some(grace),
            Some(log_format),
            Some(telemetry),
            Some(kubelet),
            Some(node_local_dns),
            Some(deny_errno),
            true,
        ) = (
            source,
            ca,
            metrics,
            workers,
            grace,
            log_format,
            telemetry,
            kubelet,
            node_local_dns,
            deny_errno,
            errors.is_empty(),
        )
        else {
            return Err(ConfigErrors(errors));
        };
        Ok(Config {
            node: self.node,
            source,
            instance: self.instance,
            cgroup: self.cgroup,
            bpffs: self.bpffs,
            kubelet,
            node_local_dns: IpAddr::to_canonical(&node_local_dns),
            deny_errno,
            state_dir: self.state_dir,
            trust_domain: self.trust_domain,
            ca,
            metrics,
            workers: if workers == 0 { automatic_workers() } else { workers },
            http,
            log_format,
            telemetry,
            grace: Duration::from_secs(grace),
            uninstall_on_exit: self.uninstall_on_exit,
            cni,
            wait_when_succeeded: self.wait_when_succeeded,
            #[cfg(mesh_ebpf_twin)]
            half: self.kernel_half,
            #[cfg(not(mesh_ebpf_twin))]
            half: Half::Own,
        })
    }
}

/// What is to be in the process' own log, in the words of `RUST_LOG`.
#[must_use]
pub fn log_filter() -> Option<String> {
    std::env::var("RUST_LOG").ok()
}

/// One thread for each CPU: a proxy that needs more than four has a node to itself and says so.
fn automatic_workers() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(4)
}

fn keep<T>(errors: &mut Vec<String>, result: Result<T, String>) -> Option<T> {
    result.map_err(|error| errors.push(error)).ok()
}

fn parse<T: FromStr>(option: &str, value: &str, expected: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{option} `{value}`: not {expected}"))
}

fn parse_kubelet(value: Option<&str>) -> Result<Option<Kubelet>, String> {
    let Some(value) = value else { return Ok(None) };
    match value.split_once(':') {
        Some(("cgroup", path)) if Path::new(path).is_absolute() => Ok(Some(Kubelet::Cgroup(path.into()))),
        Some(("port", port)) => match port.parse() {
            Ok(port) if port != 0 => Ok(Some(Kubelet::Port(port))),
            _ => Err(format!("--kubelet `{value}`: {port} is not a port (1-65535)")),
        },
        _ => Err(format!("--kubelet `{value}`: expected port:N or cgroup:DIR with an absolute path")),
    }
}

#[cfg(mesh_ebpf_twin)]
fn parse_half(text: &str) -> Result<Half, String> {
    match text {
        "own" => Ok(Half::Own),
        "twin" => Ok(Half::Twin),
        "stranger" => Ok(Half::Stranger),
        _ => Err("own, twin or stranger".to_owned()),
    }
}

fn parse_deny_errno(value: &str) -> Result<i32, String> {
    match value {
        "refused" => Ok(nix::libc::ECONNREFUSED),
        "access" => Ok(nix::libc::EACCES),
        _ => Err(format!("--deny-errno `{value}`: expected refused or access")),
    }
}

/// RFC 1123 names: what Kubernetes allows for nodes, and a safe file name.
fn dns_label(value: &str) -> Result<(), &'static str> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    match value {
        "" => Err("must not be empty"),
        _ if value.len() > 253 => Err("longer than 253 characters"),
        _ if !value.bytes().all(allowed) || value.starts_with(['-', '.']) || value.ends_with(['-', '.']) => {
            Err("only a-z, 0-9, `-` and `.` are allowed, and `-` and `.` not at the ends")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::ApiAccess;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        run: RunArgs,
    }

    fn check(args: &[&str]) -> Result<Config, Vec<String>> {
        let args = ["mesh-agent"].iter().chain(args);
        Cli::try_parse_from(args).expect("clap takes it").run.check().map_err(|errors| errors.0)
    }

    #[test]
    fn a_good_command_line_is_a_config() {
        let config = check(&["--node", "a", "--source", "dir:/", "--cgroup", "/c", "--workers", "3"]).expect("good");
        assert_eq!((config.workers, config.ca, config.source), (3, Ca::Local, Source::Dir("/".into())));
    }

    #[test]
    fn an_api_server_is_a_source() {
        let source = |args: &[&str]| {
            let common = ["--node", "a", "--cgroup", "/c"];
            check(&[&common, args].concat()).expect("good").source
        };
        let kube = |kubeconfig: Option<&str>, context: Option<&str>, trust_netns| Source::Kube {
            access: ApiAccess { kubeconfig: kubeconfig.map(Into::into), context: context.map(Into::into) },
            trust_netns,
        };
        // Whatever KUBECONFIG says here.
        assert!(matches!(source(&["--source", "kube"]), Source::Kube { trust_netns: false, .. }));
        assert_eq!(source(&["--source", "kube", "--kubeconfig", "/k"]), kube(Some("/k"), None, false));
        let all = ["--source", "kube:c:d", "--kubeconfig", "/k", "--trust-netns-annotation"];
        assert_eq!(source(&all), kube(Some("/k"), Some("c:d"), true));
    }

    #[test]
    fn every_mistake_is_named_at_once() {
        let errors = check(&[
            "--node",
            "A_",
            "--source",
            "kube:",
            "--cgroup",
            "c",
            "--workers",
            "x",
            "--metrics",
            "9090",
            "--ca",
            "grpc://h:1",
            "--trust-domain",
            "a/b",
            "--log-format",
            "xml",
            "--request-log",
            "some",
            "--otlp-endpoint",
            "https://collector",
            "--trace-ratio",
            "2",
            "--grace-seconds",
            "1s",
            "--instance",
            "../x",
            "--kubelet",
            "port:0",
            "--node-local-dns",
            "localhost",
            "--deny-errno",
            "sorry",
        ])
        .expect_err("sixteen mistakes");
        for option in [
            "--node",
            "--source",
            "--cgroup",
            "--workers",
            "--metrics",
            "--ca-root",
            "--trust-domain",
            "--log-format",
            "--request-log",
            "--otlp-endpoint",
            "--trace-ratio",
            "--grace-seconds",
            "--kubelet",
            "--node-local-dns",
            "--deny-errno",
            "--instance",
        ] {
            assert!(errors.iter().any(|e| e.contains(option)), "{option} is not named in {errors:?}");
        }
    }
}
