//! What can be asked over the admin socket.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::report::LogRequest;
use crate::explain::RequestQuestion;
use crate::explain::effective::Wanted;

/// A question; each connection asks one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Request {
    /// Everything: see [`super::status::Status`].
    Status,
    /// Why a connection is let through or refused.
    Explain(ExplainRequest),
    /// A pod's sandbox stands: answered with an [`EnrolAnswer`], within a second or two.
    Enrol(EnrolRequest),
    /// A pod's sandbox is taken down: answered with `null`.
    Release(ReleaseRequest),
    /// What is in the agent's own log, and a change of it: answered by a [`super::LogAnswer`].
    Log(LogRequest),
    /// What somebody needs who looks for a fault: answered by a [`super::Report`].
    Report,
    /// Every pod of the node: answered by [`super::pods::Pods`].
    Pods,
    /// The snapshot in force: answered by the document of [`crate::explain::effective`].
    Config(Wanted),
    /// Who has come to the pods of a namespace without proof: answered by [`super::callers::Callers`].
    Callers {
        /// The namespace.
        namespace: String,
    },
}

/// A sandbox, as the container runtime tells of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolRequest {
    /// `metadata.uid` of the pod.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Id of the sandbox.
    pub container: String,
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// The end of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseRequest {
    /// `metadata.uid` of the pod.
    pub uid: String,
    /// Id of the sandbox.
    pub container: String,
}

/// How far a pod has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum EnrolAnswer {
    /// This sandbox is in the mesh: its containers may start.
    Captured,
    /// It is not to be in the mesh.
    NotAsked,
    /// It should be and cannot be.
    Refused {
        /// Why, and the way out.
        reason: String,
    },
    /// Not yet; to be asked again.
    Waiting {
        /// For what.
        reason: String,
    },
}

/// A connection, in the words of whoever asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainRequest {
    /// `namespace/pod` or an address.
    pub source: String,
    /// `namespace/service`, `namespace/pod` or an address, with `:port` if need be.
    pub destination: String,
    /// The port dialled.
    pub port: Option<u16>,
    /// A request on it.
    #[serde(default)]
    pub request: Option<RequestQuestion>,
}
