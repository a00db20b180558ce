//! What `mesh-agent status` shows, as it goes over the socket.

use serde::{Deserialize, Serialize};

/// The agent's state at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the agent.
    pub version: String,
    /// Node it serves.
    pub node: String,
    /// The snapshot in force.
    pub snapshot: SnapshotStatus,
    /// Opted-in pods of this node.
    pub pods: Vec<PodStatus>,
    /// Certificates of this node's service accounts.
    pub identities: Vec<IdentityStatus>,
    /// What is said of each route at each of its parents.
    #[serde(default)]
    pub routes: Vec<RouteLine>,
    /// Agents that tunnels are open to or from.
    pub peers: Vec<PeerStatus>,
    /// Mistakes in configuration objects that are not mended yet.
    pub problems: Vec<String>,
}

/// The snapshot in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotStatus {
    /// Its generation: also the generation of every policy in it.
    pub generation: u64,
    /// Known pods.
    pub workloads: usize,
    /// Known TCP service ports.
    pub services: usize,
    /// Authorization policies in force.
    pub policies: usize,
}

/// One pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodStatus {
    /// `namespace/name`.
    pub pod: String,
    /// `waiting`, `joining`, `captured`, `leaving`, `draining`, `failed` or `outside`.
    pub stage: String,
    /// Why it is not captured; empty otherwise.
    pub reason: String,
    /// SPIFFE id.
    pub identity: String,
    /// Inbound mode: `strict` or `permissive`.
    pub mode: String,
    /// Policies that select it.
    pub policies: Vec<String>,
}

/// Whether a pod in this stage should be captured: what `mesh_pods_expected` counts.
#[must_use]
pub fn is_expected(stage: &str) -> bool {
    matches!(stage, "joining" | "captured" | "failed")
}

/// One route at one parent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteLine {
    /// `Kind namespace/name`.
    pub route: String,
    /// The parent, with its port where one is named.
    pub parent: String,
    /// `Accepted`: whether it holds.
    pub accepted: bool,
    /// Its reason.
    pub accepted_reason: String,
    /// `ResolvedRefs`: whether it holds.
    pub resolved_refs: bool,
    /// Its reason.
    pub resolved_refs_reason: String,
    /// `metadata.generation` that this is said of; 0 where the source has none.
    pub observed_generation: i64,
    /// The conditions' messages, dropped rules included; empty when there is nothing to say.
    pub message: String,
}

/// One certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityStatus {
    /// SPIFFE id.
    pub identity: String,
    /// `valid`, `missing` or `expired`.
    pub state: String,
    /// Seconds since 1970; 0 while missing.
    pub not_after: i64,
    /// The last failure to get one; empty when there is none.
    pub error: String,
}

/// One other agent's pod, with the tunnels open to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// SPIFFE id of the other side.
    pub identity: String,
    /// Its address.
    pub address: String,
    /// Open tunnel connections.
    pub tunnels: usize,
}
