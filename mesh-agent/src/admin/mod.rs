//! What operators reach: `/metrics`, `/livez`, `/readyz` on the network, status and `explain` on a 0600 unix socket.
//!
//! The network sees numbers and readiness, never configuration, identities in flight or debug data. This room
//! serves what other rooms hand it and knows none of them.

pub mod callers;
mod http;
pub mod pods;
mod ready;
mod report;
mod request;
mod socket;
pub mod status;

pub use http::serve as serve_metrics;
pub use ready::{Condition, Readiness};
pub use report::{LogAnswer, LogRequest, Report};
pub use request::{EnrolAnswer, EnrolRequest, ExplainRequest, ReleaseRequest, Request};
pub use socket::{SOCKET_NAME, ask, listen as private_socket, serve as serve_socket};

/// Why an admin endpoint cannot be served or asked.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The metrics address is taken or not ours.
    #[error("--metrics {address}: {source}; choose another address or end what listens there")]
    Metrics {
        /// The address.
        address: std::net::SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The socket cannot be made or reached.
    #[error("{path}: {source}")]
    Socket {
        /// The socket's path.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The answer is not what this version speaks.
    #[error("{path}: {reason}")]
    Answer {
        /// The socket's path.
        path: std::path::PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}
