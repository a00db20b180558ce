//! The CNI plugin: its environment, as a container runtime sets it, and how it is installed.

use std::env;
use std::net::IpAddr;
use std::path::PathBuf;

use super::{Source, keep, parse};

/// `CNI_*`, as they are; empty when not set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CniEnvironment {
    /// `CNI_COMMAND`.
    pub command: String,
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_NETNS`.
    pub netns: String,
    /// `CNI_IFNAME`.
    pub interface: String,
    /// `CNI_ARGS`.
    pub args: String,
}

impl CniEnvironment {
    /// Of this process.
    #[must_use]
    pub fn read() -> Self {
        let text = |name: &str| env::var(name).unwrap_or_default();
        Self {
            command: text("CNI_COMMAND"),
            container: text("CNI_CONTAINERID"),
            netns: text("CNI_NETNS"),
            interface: text("CNI_IFNAME"),
            args: text("CNI_ARGS"),
        }
    }
}

/// Whether this process was started as a plugin: those get no arguments.
#[must_use]
pub fn is_called_as_plugin() -> bool {
    env::args_os().len() == 1 && env::var_os("CNI_COMMAND").is_some()
}

/// How the plugin is installed: options of `run` and of `cni install`.
#[derive(Clone, Debug, clap::Args)]
pub struct CniOptions {
    /// Namespaces whose pods start without the mesh, by comma: the agent's own must be one; kube-system always is.
    #[arg(long, env = "MESH_CNI_EXEMPT_NAMESPACES", value_delimiter = ',')]
    cni_exempt_namespaces: Vec<String>,
    /// How long the plugin waits until a pod is captured, in seconds (1-120).
    #[arg(long, env = "MESH_CNI_DEADLINE_SECONDS", default_value = "30")]
    cni_deadline_seconds: String,
}

/// Where the plugin is installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniInstall {
    /// Where the network configurations are; the same path as on the host.
    pub conf_dir: PathBuf,
    /// Where runtimes look for plugins; the same path as on the host.
    pub bin_dir: PathBuf,
    /// The agent's state directory; the same path as on the host.
    pub state_dir: PathBuf,
    /// How long ADD may wait.
    pub deadline_seconds: u64,
    /// Whose pods start without the mesh.
    pub exempt_namespaces: Vec<String>,
    /// How the plugin asks the API server.
    pub api: CniApi,
}

/// How the plugin asks the API server while the agent is away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CniApi {
    /// Not at all.
    None,
    /// By a kubeconfig that is there.
    Kubeconfig(PathBuf),
    /// As the pod's service account.
    ServiceAccount {
        /// URL.
        server: String,
        /// Where its token and the API server's certificate authority are.
        folder: PathBuf,
    },
}

/// Where a pod finds its service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

impl CniApi {
    /// By what this process itself has; `kubeconfig` first.
    #[must_use]
    pub fn of_this_process(kubeconfig: Option<PathBuf>) -> Self {
        let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let (host, port) = (variable("KUBERNETES_SERVICE_HOST"), variable("KUBERNETES_SERVICE_PORT"));
        match (kubeconfig, host.zip(port)) {
            (Some(path), _) => Self::Kubeconfig(path),
            (None, Some((host, port))) => {
                let is_v6 = host.parse().is_ok_and(|ip: IpAddr| ip.is_ipv6());
                let host = if is_v6 { format!("[{host}]") } else { host };
                Self::ServiceAccount { server: format!("https://{host}:{port}"), folder: SERVICE_ACCOUNT.into() }
            }
            (None, None) => Self::None,
        }
    }
}

impl CniOptions {
    /// Checks everything; mistakes go to `errors`.
    pub fn check(
        self,
        errors: &mut Vec<String>,
        (conf_dir, bin_dir, state_dir): (PathBuf, PathBuf, PathBuf),
        api: CniApi,
    ) -> CniInstall {
        let expected = "whole seconds from 1 to 120";
        let deadline = keep(errors, parse::<u64>("--cni-deadline-seconds", &self.cni_deadline_seconds, expected));
        if deadline.is_some_and(|seconds| !(1..=120).contains(&seconds)) {
            errors.push(format!("--cni-deadline-seconds `{}`: not {expected}", self.cni_deadline_seconds));
        }
        for (option, path) in [("--cni-conf-dir", &conf_dir), ("--cni-bin-dir", &bin_dir), ("--state-dir", &state_dir)]
        {
            if !path.is_absolute() {
                errors.push(format!("{option} `{}`: an absolute path is needed: that of the host", path.display()));
            }
        }
        let exempt_namespaces = self.cni_exempt_namespaces.into_iter().filter(|name| !name.is_empty()).collect();
        let deadline_seconds = deadline.unwrap_or_default();
        CniInstall { conf_dir, bin_dir, state_dir, deadline_seconds, exempt_namespaces, api }
    }
}

/// Of `run`: the plugin is kept installed where both directories are given.
pub(super) fn duty(
    errors: &mut Vec<String>,
    options: CniOptions,
    (conf_dir, bin_dir): (Option<PathBuf>, Option<PathBuf>),
    (state_dir, source): (PathBuf, Option<&Source>),
) -> Option<CniInstall> {
    let api = match source {
        Some(Source::Kube { access, .. }) => CniApi::of_this_process(access.kubeconfig.clone()),
        _ => CniApi::None,
    };
    match (conf_dir, bin_dir) {
        (None, None) => None,
        (Some(conf_dir), Some(bin_dir)) => Some(options.check(errors, (conf_dir, bin_dir, state_dir), api)),
        _ => {
            errors.push("--cni-conf-dir and --cni-bin-dir: both or neither".to_owned());
            None
        }
    }
}
