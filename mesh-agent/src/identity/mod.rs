//! Certificates of the service accounts with a pod on this node: asked for, kept, renewed, forgotten.
//!
//! `rotate` watches which identities are wanted, asks a CA (`local`, `grpc`) and fills the `store`, which
//! `tls` reads on every handshake. Keys are made here and never leave: other rooms hold objects that sign.
//! This room never decides who may talk to whom, and never opens a connection to a peer.

mod authority;
mod bundle;
mod ca;
pub mod ca_server;
pub(crate) mod chain;
mod clock;
mod credential;
mod error;
mod file_changes;
mod grpc;
mod istio;
mod key;
mod local;
mod node;
mod node_login;
mod provider;
mod root;
mod rotate;
mod schedule;
mod state;
mod store;
#[cfg(test)]
pub(crate) mod testing;

pub use bundle::{BundleError, TrustBundle};
pub use ca::{BACKDATE, CaClient, Issued, KeepReady, SignFuture, SignedCert, WORKLOAD_TTL_MAX, issue};
pub use chain::CertFault;
pub(crate) use clock::TlsTime;
pub use clock::{Clock, SystemClock};
pub use credential::Credential;
pub use error::CertError;
pub use grpc::{CaAuth, GrpcCa, GrpcTarget};
pub use local::LocalCa;
pub use node::{NodeIdentity, NodeName, NodeNameError};
pub use node_login::{NODE_TTL, NodeLogin};
pub(crate) use provider::provider;
pub use rotate::{Rotator, RotatorSettings};
pub use store::{CertDates, CertState, CertStatus, CertStore};
