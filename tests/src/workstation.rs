//! The place from which an operator asks agents through the API server: no state folder, no way to another node; and
//! what a cluster has for that: the agents' pods, in whose containers a command can be run, and the rest of what is
//! installed.
#![allow(clippy::indexing_slicing, reason = "JSON values: what is not there reads as null")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::deployed;
use crate::kube_api::{ApiServer, Container};
use crate::mesh::Mesh;
use crate::netns::Netns;
use crate::programs;
use crate::said::Said;
use crate::topology::{Node, Side};

/// The namespace of the agents.
pub const NAMESPACE: &str = "mesh-agent-system";
/// A machine that reaches the API server and nothing else of the mesh.
#[derive(Debug)]
pub struct Workstation<'a> {
    netns: &'a Netns,
    kubeconfig: PathBuf,
}

impl<'a> Workstation<'a> {
    /// One with the kubeconfig of `mesh`'s API server, beside the first node.
    ///
    /// # Errors
    /// What the system says.
    pub fn of(mesh: &'a Mesh) -> Result<Self> {
        Ok(Self { netns: mesh.node(Side::A).netns(), kubeconfig: mesh.kubeconfig()? })
    }

    /// The same for somebody else.
    #[must_use]
    pub fn with(&self, kubeconfig: &Path) -> Self {
        Self { netns: self.netns, kubeconfig: kubeconfig.to_owned() }
    }

    /// Runs `mesh-agent` with `words` and the kubeconfig.
    ///
    /// # Errors
    /// When it does not start or does not end.
    pub fn says(&self, words: &[&str]) -> Result<Said> {
        let mut command = Command::new(programs::agent()?);
        command.args(words).arg("--kubeconfig").arg(&self.kubeconfig).env_clear();
        // Nothing is there: whatever is answered has come through the API server.
        command.env("MESH_STATE_DIR", "/nonexistent");
        self.netns.run(|| Said::by(command))?
    }
}

/// The pod of a node's agent.
#[must_use]
pub fn agent_pod(node: &Node) -> String {
    format!("mesh-agent-{}", node.name())
}

/// Puts the pods of both agents of `mesh`, as the DaemonSet would have made them, with their containers.
///
/// # Errors
/// What the API server refuses.
pub fn put_agents(mesh: &Mesh, api: &ApiServer) -> Result<()> {
    for side in Side::BOTH {
        let node = mesh.node(side);
        put_agent(api, node, true)?;
        api.run_container((NAMESPACE, &agent_pod(node)), "agent", container(mesh.agent(side)?)?);
    }
    Ok(())
}

/// What is in an agent's container: its program, and its state folder.
///
/// # Errors
/// When the agent is not built.
pub fn container(agent: &Agent) -> Result<Container> {
    let state = agent.state().display().to_string();
    Ok(Container {
        programs: BTreeMap::from([("mesh-agent".to_owned(), programs::agent()?)]),
        environment: vec![("MESH_STATE_DIR".to_owned(), state)],
    })
}

/// Puts the pod of a node's agent, ready or not.
///
/// # Errors
/// What the API server refuses.
pub fn put_agent(api: &ApiServer, node: &Node, ready: bool) -> Result<()> {
    api.put(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  namespace: {NAMESPACE}\n  name: {}\n  \
         labels: {{app.kubernetes.io/name: mesh-agent}}\n\
         spec: {{nodeName: {}, hostNetwork: true, containers: [{{name: agent, image: mesh-agent, \
         args: [run, \"--bpffs={}\", \"--cgroup={}\"]}}]}}\n\
         status: {{phase: Running, containerStatuses: [{{name: agent, image: \"mesh-agent:test\", ready: {ready}, \
         restartCount: 2, state: {{running: {{}}}}}}]}}\n",
        agent_pod(node),
        node.name(),
        node.bpffs().display(),
        node.cgroup().display(),
    ))
}

/// Puts what `deploy/` installs beside the agents' pods, as it is when all is well: definitions, workloads with their
/// statuses, nodes, and the authority's roots.
///
/// # Errors
/// What the API server refuses.
pub fn put_installation(api: &ApiServer) -> Result<()> {
    api.put(&format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}}}\n"))?;
    deployed::objects("crds")?.into_iter().try_for_each(|crd| api.put_object(crd))?;
    for side in Side::BOTH {
        api.put(&format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {}}}\n", side.node_name()))?;
    }
    put_daemon_set(api, 2)?;
    put_deployment(api, "mesh-agent-ca", 2)?;
    put_deployment(api, "mesh-agent-controller", 2)?;
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = root.self_signed(&KeyPair::generate()?)?;
    put_roots(api, &root.pem())
}

/// Puts the agents' DaemonSet, so many of whose two pods are ready.
///
/// # Errors
/// What the API server refuses.
pub fn put_daemon_set(api: &ApiServer, ready: u32) -> Result<()> {
    let status = json!({"desiredNumberScheduled": 2, "numberReady": ready, "updatedNumberScheduled": 2});
    put_workload(api, "DaemonSet", "mesh-agent", status)
}

/// Puts a Deployment, with so many replicas available.
///
/// # Errors
/// What the API server refuses.
pub fn put_deployment(api: &ApiServer, name: &str, available: u32) -> Result<()> {
    put_workload(api, "Deployment", name, json!({"availableReplicas": available}))
}

/// Puts the roots that the authority publishes.
///
/// # Errors
/// What the API server refuses.
pub fn put_roots(api: &ApiServer, pem: &str) -> Result<()> {
    let metadata = json!({"namespace": NAMESPACE, "name": "mesh-agent-ca-roots"});
    let data = json!({"root-cert.pem": pem});
    api.put_object(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}))
}

/// A workload of `deploy/`, whose controller has seen all of it.
fn put_workload(api: &ApiServer, kind: &str, name: &str, mut status: Value) -> Result<()> {
    status["observedGeneration"] = json!(u32::MAX);
    let mut object = deployed::object(kind, name)?;
    object["status"] = status;
    api.put_object(object)
}
