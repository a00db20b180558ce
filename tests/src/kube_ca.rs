//! `mesh-agent ca --source kube` with its replicas, and what the kubelet does for it and for the agents: pods, tokens,
//! and mounted Secrets and ConfigMaps.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::agent::{CaSource, READY_WITHIN, TRUST_DOMAIN};
use crate::kube_api::ApiServer;
use crate::metrics::Metrics;
use crate::process::{Process, tail};
use crate::topology::{Node, Side, Sides};
use crate::{http, programs, wait};

/// Where everything of the mesh's own lives.
pub const NAMESPACE: &str = "mesh-agent-system";
/// Whom agents' tokens are for.
pub const AUDIENCE: &str = "mesh-agent-ca";
/// The Secret of the root.
pub const SECRET: &str = "mesh-agent-ca-root";
/// The ConfigMap of the roots to trust.
pub const ROOTS: &str = "mesh-agent-ca-roots";
const PORT: u16 = 15012;
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15014);
/// A change of a mounted file is seen within this, on a busy machine.
const SEEN_WITHIN: Duration = Duration::from_secs(20);

/// The authority of one cluster: at most one replica on each node.
#[derive(Debug)]
pub struct KubeCa {
    api: Arc<ApiServer>,
    folder: PathBuf,
    replicas: Sides<Option<Process>>,
}

impl KubeCa {
    /// Prepares the cluster of `api`: namespace, service account and agents' pods. Nothing runs yet. `folder` is for
    /// mounted files; it must be empty.
    ///
    /// # Errors
    /// What the API server refuses, or the system says.
    pub fn new(api: Arc<ApiServer>, folder: PathBuf) -> Result<Self> {
        let ca = Self { api, folder, replicas: Sides::default() };
        fs::create_dir_all(ca.root_dir())?;
        ca.api.put(&format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}}}\n"))?;
        for account in ["mesh-agent", "other"] {
            ca.put_account(NAMESPACE, account)?;
        }
        for side in Side::BOTH {
            ca.put_agent_pod(side, "1")?;
        }
        Ok(ca)
    }

    /// Puts a service account.
    ///
    /// # Errors
    /// What the API server refuses.
    pub fn put_account(&self, namespace: &str, name: &str) -> Result<()> {
        self.api
            .put(&format!("apiVersion: v1\nkind: ServiceAccount\nmetadata: {{namespace: {namespace}, name: {name}}}\n"))
    }

    /// Puts the pod of a node's agent; `stay` tells it from the one that was there before.
    ///
    /// # Errors
    /// What the API server refuses.
    pub fn put_agent_pod(&self, side: Side, stay: &str) -> Result<()> {
        let (node, pod) = (side.node_name(), agent_pod(side));
        self.api.put(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{namespace: {NAMESPACE}, name: {pod}, uid: uid-{pod}-{stay}}}\n\
             spec: {{nodeName: {node}, serviceAccountName: mesh-agent, hostNetwork: true, containers: []}}\n"
        ))
    }

    /// Starts the replica on `node`, with `more` options, and waits until it is ready.
    ///
    /// # Errors
    /// When it is not in time; with its last words.
    pub fn start(&mut self, node: &Node, more: &[&str]) -> Result<()> {
        let mut process = node.spawn("kube-ca", self.command(node, more)?)?;
        let ready = wait::until("the certificate authority is ready", READY_WITHIN, || {
            if let Err(ended) = process.check_running() {
                return Ok(Err(ended));
            }
            let response = http::get(node.netns(), METRICS, "/readyz")?;
            ensure!(response.status == 200, "/readyz: {} {}", response.status, response.body.trim());
            Ok(Ok(()))
        });
        ready.and_then(|inner| inner).with_context(|| format!("its last words:\n{}", tail(&process.stderr(), 15)))?;
        *self.replicas.of_mut(node.side()) = Some(process);
        Ok(())
    }

    /// Starts a replica that is to give up by itself; gives what it said.
    ///
    /// # Errors
    /// When it does not end.
    pub fn gives_up(&self, node: &Node, more: &[&str]) -> Result<String> {
        let mut process = node.spawn("kube-ca-in-vain", self.command(node, more)?)?;
        let status = process.wait(READY_WITHIN)?;
        ensure!(!status.success(), "it ended as if all were well: {}", process.stderr());
        Ok(process.stderr())
    }

    fn command(&self, node: &Node, more: &[&str]) -> Result<Command> {
        let kubeconfig = self.folder.join("kubeconfig");
        self.api.write_kubeconfig(&kubeconfig, &self.api.url(0)?)?;
        let mut command = Command::new(programs::agent()?);
        command.args([
            "ca",
            "--source",
            "kube",
            "--listen",
            &address(node).to_string(),
            "--trust-domain",
            TRUST_DOMAIN,
        ]);
        command.args(["--metrics", &METRICS.to_string(), "--publish-roots", &format!("{NAMESPACE}/{ROOTS}")]);
        command.arg("--kubeconfig").arg(kubeconfig).arg("--root-dir").arg(self.root_dir()).args(more);
        command.env_remove("RUST_LOG");
        Ok(command)
    }

    /// Kills the replica on one node.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill(&mut self, side: Side) -> Result<()> {
        self.replicas.of_mut(side).take().context("there is no replica on this node")?.kill()
    }

    /// What the agent of `node` is started with: a token of its pod, and the roots as they are published now.
    ///
    /// # Errors
    /// When nothing is published.
    pub fn source(&self, node: &Node) -> Result<CaSource> {
        let token = self.token(node.side(), &[AUDIENCE], Duration::from_secs(3600))?;
        let file = self.folder.join(format!("token-{}", node.name()));
        replace(&file, &token)?;
        self.mount_roots()?;
        Ok(CaSource::Cluster { address: address(node), roots: self.roots_file(), token: file })
    }

    /// A token of the pod of one node's agent.
    ///
    /// # Errors
    /// When the pod is not there.
    pub fn token(&self, side: Side, audiences: &[&str], lifetime: Duration) -> Result<String> {
        self.api.issue_token(NAMESPACE, "mesh-agent", audiences, Some(&agent_pod(side)), lifetime)
    }

    /// The roots to trust as they are published; waits until they are there.
    ///
    /// # Errors
    /// When they are not in time.
    pub fn published(&self) -> Result<String> {
        wait::until("the roots are published", SEEN_WITHIN, || {
            let map = self.api.get("ConfigMap", NAMESPACE, ROOTS).context("there is no ConfigMap")?;
            let roots = map.pointer("/data/root-cert.pem").and_then(Value::as_str).map(str::to_owned);
            roots.with_context(|| format!("no roots in {map}"))
        })
    }

    /// Plays the kubelet: what is published stands in the file that agents read.
    ///
    /// # Errors
    /// When nothing is published.
    pub fn mount_roots(&self) -> Result<()> {
        replace(&self.roots_file(), &self.published()?)
    }

    /// Plays the kubelet: what the root's Secret holds stands in the directory of the replicas.
    ///
    /// # Errors
    /// When there is no such Secret.
    pub fn mount_secret(&self) -> Result<()> {
        let secret = self.api.get("Secret", NAMESPACE, SECRET).context("there is no Secret")?;
        let data = secret.get("data").and_then(Value::as_object).context("the Secret has no data")?;
        for (name, value) in data {
            let bytes = STANDARD.decode(value.as_str().unwrap_or_default())?;
            replace(&self.root_dir().join(name), std::str::from_utf8(&bytes)?)?;
        }
        Ok(())
    }

    /// Writes the root's Secret, mounts it, and waits until every replica publishes `roots`.
    ///
    /// # Errors
    /// When they do not in time.
    pub fn change_root(&self, files: &[(&str, &str)], roots: &str) -> Result<()> {
        let data: serde_json::Map<String, Value> =
            files.iter().map(|(name, text)| ((*name).to_owned(), json!(STANDARD.encode(text)))).collect();
        self.api.put_object(json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
            "metadata": {"namespace": NAMESPACE, "name": SECRET}, "data": data,
        }))?;
        self.mount_secret()?;
        wait::until("the new roots are published", SEEN_WITHIN, || {
            let published = self.published()?;
            wait::holds(published == roots, || format!("published is\n{published}"))
        })
    }

    /// Scrapes the replica on `node`.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn metrics(&self, node: &Node) -> Result<Metrics> {
        let response = http::get(node.netns(), METRICS, "/metrics")?;
        ensure!(response.status == 200 && response.body.ends_with("# EOF\n"), "/metrics: {}", response.status);
        Ok(Metrics::parse(&response.body))
    }

    /// The log of the replica on one node.
    ///
    /// # Errors
    /// When there is none.
    pub fn log(&self, side: Side) -> Result<String> {
        Ok(self.replicas.of(side).as_ref().ok_or_else(|| anyhow!("there is no replica on this node"))?.stderr())
    }

    /// The directory of the root, a mounted Secret.
    #[must_use]
    pub fn root_dir(&self) -> PathBuf {
        self.folder.join("root")
    }

    /// The file of the roots, of a mounted ConfigMap.
    #[must_use]
    pub fn roots_file(&self) -> PathBuf {
        self.folder.join("roots.pem")
    }
}

/// Where the replica of `node` listens.
#[must_use]
pub fn address(node: &Node) -> SocketAddr {
    SocketAddr::new(node.ip(), PORT)
}

/// The name of the pod of one node's agent.
#[must_use]
pub fn agent_pod(side: Side) -> String {
    format!("agent-{}", side.node_name())
}

/// In one step for whoever reads it, as the kubelet does it.
fn replace(path: &Path, text: &str) -> Result<()> {
    let draft = path.with_extension("draft");
    fs::write(&draft, text)?;
    fs::rename(&draft, path).with_context(|| format!("cannot put {}", path.display()))
}
