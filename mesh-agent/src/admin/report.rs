//! What can be asked about the agent itself over the admin socket: its own log, and all of it together.

use serde::{Deserialize, Serialize};

use super::status::Status;

/// A change of what is in the agent's own log; none, when there is no filter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRequest {
    /// A level, or levels by target, as `RUST_LOG` has them.
    pub filter: Option<String>,
    /// How long it is to last, in seconds; 0: until the agent ends.
    #[serde(default)]
    pub seconds: u64,
}

/// What is in the agent's own log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogAnswer {
    /// The filter in force.
    pub present: String,
    /// That with which the agent was started.
    pub given: String,
    /// Why nothing was changed, if something was to be.
    pub refused: Option<String>,
}

/// What somebody needs who looks for a fault; no key, no token, nothing of what the pods say to each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// As `mesh-agent status` shows it.
    pub status: Status,
    /// The agent's options, as it understood them.
    pub options: String,
    /// As `/metrics` shows them.
    pub metrics: String,
    /// The newest lines of its own log.
    pub log: Vec<String>,
}
