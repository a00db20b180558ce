//! What `mesh-agent pods` shows, as it goes over the socket.

use serde::{Deserialize, Serialize};

/// The pods of a node that the agent knows, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pods {
    /// The node.
    pub node: String,
    /// Those that are opted in and those that are not, by name.
    pub pods: Vec<PodLine>,
}

/// One pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodLine {
    /// `namespace/name`.
    pub pod: String,
    /// Whether it is to be in the mesh.
    pub opted_in: bool,
    /// What says so.
    pub opted_in_by: String,
    /// `captured` when it is in the mesh; on the way there or from there `waiting`, `joining`, `leaving`, `draining`;
    /// else `failed`, `outside`, or `-` for one that is not to be.
    pub stage: String,
    /// Why it is not captured although it is to be, or what its capture lacks; empty otherwise.
    pub reason: String,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// SPIFFE id.
    pub identity: String,
    /// Its certificate: `valid`, `missing` or `expired`; `-` for a pod that needs none.
    pub certificate: String,
    /// When that expires, in seconds since 1970; 0 without one.
    pub not_after: i64,
    /// Inbound mode: `strict` or `permissive`.
    pub mode: String,
    /// Policies that select it.
    pub policies: Vec<String>,
    /// What connections of this pod meet that others do not: exclusions, refusals, requests that are judged.
    pub notes: Vec<String>,
}
