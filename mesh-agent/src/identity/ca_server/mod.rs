//! `mesh-agent ca`: the one process of a multi-node mesh that holds the root.
//!
//! Serves Istio's CA API over TLS 1.3. A node joins with a one-time token, then asks with its node certificate
//! for the certificates of the service accounts that have a pod there, by this process' own view of the
//! objects. It talks to nobody of its own accord and serves no workload.

mod authorize;
mod listen;
mod log_limit;
mod node_verifier;
mod own_cert;
mod root_file;
mod service;
#[cfg(test)]
mod service_tests;
#[cfg(test)]
mod tests;
mod tokens;

pub use authorize::{BySnapshot, NodeAuthorizer};
pub use listen::{CaServer, CaServerSettings};
pub use root_file::{ROOT_FILE, roots_pem};
pub use tokens::{JoinTokens, TOKEN_TTL_MAX, TokenError};
