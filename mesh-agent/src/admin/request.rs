//! What can be asked over the admin socket.

use serde::{Deserialize, Serialize};

use crate::explain::RequestQuestion;

/// A question; each connection asks one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Request {
    /// Everything: see [`super::status::Status`].
    Status,
    /// Why a connection is let through or refused.
    Explain(ExplainRequest),
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
