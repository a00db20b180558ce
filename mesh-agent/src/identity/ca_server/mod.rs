//! `mesh-agent ca`: what holds the root of a multi-node mesh: one process, or the replicas of a Deployment.
//!
//! Serves Istio's CA API over TLS 1.3. A node asks for the certificates of the service accounts that have a pod there,
//! by this process' own view of the objects. Alone, a node joins with a one-time token and asks with its node
//! certificate (`tokens`); in a cluster its agent shows a service account token each time (`agent_login`, decision
//! 0011). It talks to nobody of its own accord and serves no workload.

mod agent_login;
mod audit;
mod authorize;
mod claims;
mod in_force;
mod listen;
mod log_limit;
mod node_verifier;
mod outcome;
mod own_cert;
mod root_dir;
mod root_file;
mod service;
#[cfg(test)]
mod service_tests;
#[cfg(test)]
mod tests;
mod tokens;

pub use agent_login::{Account, AgentLogin, ReviewFuture, TokenReviewer};
pub use authorize::{BySnapshot, NodeAuthorizer};
pub use in_force::RootInForce;
pub use listen::{CaServer, CaServerSettings, CaSetting};
pub use root_dir::{RootDir, RootSecret, SecretData, SecretFuture};
pub use root_file::{ROOT_FILE, roots_pem};
pub use tokens::{JoinTokens, TOKEN_TTL_MAX, TokenError};
