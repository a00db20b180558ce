//! What can go wrong between "this pod needs a certificate" and "here it is", and whose fault it is.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::model::outcome::Outcome;

/// Errors of the identity room. Never carries key or token bytes.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CertError {
    /// The operator's: a file of the state directory is missing, broken or open to others.
    #[error("{}: {fault}; {remedy}", path.display())]
    StateDir {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        fault: String,
        /// What to do.
        remedy: String,
    },
    /// Ours: the crypto library refused to make a key, a request or a certificate.
    #[error("making {what} failed: {reason}")]
    Crypto {
        /// What was being made.
        what: &'static str,
        /// The library's words.
        reason: String,
    },
    /// The CA's or the network's: no answer.
    #[error("CA {ca} did not answer: {reason}")]
    CaUnreachable {
        /// Address of the CA.
        ca: String,
        /// What happened.
        reason: String,
    },
    /// The CA decided against us.
    #[error("CA {ca} refused a certificate for {subject}: {reason}")]
    CaRefused {
        /// Address of the CA, or `local`.
        ca: String,
        /// The identity asked for.
        subject: String,
        /// The CA's words.
        reason: String,
    },
    /// The CA's: it answered with something that cannot serve.
    #[error("CA {ca} answered with an unusable certificate for {subject}: {reason}")]
    BadAnswer {
        /// Address of the CA, or `local`.
        ca: String,
        /// The identity asked for.
        subject: String,
        /// Why it cannot serve.
        reason: String,
    },
    /// The requester's: a signing request that this CA does not serve.
    #[error("certificate request: {reason}")]
    BadRequest {
        /// What is wrong with it.
        reason: String,
    },
    /// The operator's: a setting that makes no sense.
    #[error("{reason}")]
    Setting {
        /// What is wrong with it.
        reason: String,
    },
    /// The operator's: this node has neither a node certificate nor a join token.
    #[error("this node has not joined {ca}: {remedy}")]
    NotJoined {
        /// Address of the CA.
        ca: String,
        /// What to do.
        remedy: String,
    },
    /// The operator's: the CA cannot listen there.
    #[error("the CA cannot listen on {address}: {reason}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        reason: String,
    },
    /// Nobody's yet: the certificate did not come within the time given.
    #[error("no certificate for {subject} after {:.1} s: {reason}", waited.as_secs_f64())]
    NotIssued {
        /// The identity waited for.
        subject: String,
        /// How long.
        waited: Duration,
        /// The last failure, if there was one.
        reason: String,
    },
}

impl CertError {
    /// The word for a connection that ends for this reason.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::CaUnreachable { .. }
            | Self::CaRefused { .. }
            | Self::BadAnswer { .. }
            | Self::NotJoined { .. }
            | Self::NotIssued { .. } => Outcome::NoCertificate,
            Self::StateDir { .. }
            | Self::Crypto { .. }
            | Self::BadRequest { .. }
            | Self::Setting { .. }
            | Self::Listen { .. } => Outcome::Internal,
        }
    }

    pub(crate) fn state(path: &Path, fault: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::StateDir { path: path.to_owned(), fault: fault.into(), remedy: remedy.into() }
    }

    pub(crate) fn crypto(what: &'static str, reason: impl ToString) -> Self {
        Self::Crypto { what, reason: reason.to_string() }
    }
}
