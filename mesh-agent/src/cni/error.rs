//! Why a call fails, in the words of the CNI specification.

use serde_json::{Value, json};

/// Newest version of the specification that is spoken.
pub(super) const NEWEST: &str = "1.1.0";
/// Those that are understood: the parts of results that are read here are the same in all of them.
pub(super) const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", NEWEST];

/// Codes of the specification, section "Error"; from 100 on the plugin's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    IncompatibleVersion = 1,
    InvalidEnvironment = 4,
    Io = 5,
    Undecodable = 6,
    InvalidConfiguration = 7,
    TryAgainLater = 11,
    /// It should be in the mesh and cannot be.
    NotCaptured = 100,
}

/// A failed call.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}: {details}")]
pub(super) struct CniError {
    pub(super) code: Code,
    /// What failed.
    pub(super) message: String,
    /// Why, and the way out.
    pub(super) details: String,
}

impl CniError {
    pub(super) fn new(code: Code, message: impl Into<String>, details: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: details.into() }
    }

    /// The error result. Runtimes show `msg` alone in a pod's events, so it says everything.
    pub(super) fn to_json(&self, version: &str) -> Value {
        let msg = format!("mesh-agent: {self}");
        json!({"cniVersion": version, "code": self.code as u32, "msg": msg, "details": self.details})
    }
}
