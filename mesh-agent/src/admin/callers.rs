//! What `mesh-agent check strict` is told of a node, as it goes over the socket.

use serde::{Deserialize, Serialize};

use crate::explain::callers::Kind;

/// Who has come to pods of a namespace without proof, since the node's agent began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Callers {
    /// The node.
    pub node: String,
    /// By pod, port and source.
    pub callers: Vec<CallerLine>,
}

/// One of them, at one port of one pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallerLine {
    /// The pod, `namespace/name`.
    pub pod: String,
    /// Its port.
    pub port: u16,
    /// Where it came from.
    pub source: String,
    /// What it is.
    pub kind: Kind,
    /// Its name, as far as it is known.
    pub name: String,
    /// Connections, repeated SYNs included.
    pub count: u64,
    /// How long ago the last one was, in seconds.
    pub seconds_ago: u64,
    /// The object by which this port lets it in even when the namespace is strict; empty when it would be refused.
    pub exempt_by: String,
}
