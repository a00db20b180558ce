//! How a session fails to come about, and whose fault that is.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::identity::CertFault;
use crate::model::identity::Identity;
use crate::model::outcome::Outcome;

/// Why there is no session.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TlsError {
    /// Ours: this node has no valid certificate for the side that it speaks for.
    #[error("this node has no valid certificate for {identity}")]
    NoCertificate {
        /// Whose certificate is missing.
        identity: Identity,
    },
    /// The peer's: what it presented proves nothing.
    #[error("the peer's certificate is not acceptable: {fault}")]
    PeerCertificate {
        /// What is wrong with it.
        fault: CertFault,
    },
    /// The peer's: it presented no certificate.
    #[error("the peer presented no certificate")]
    NoPeerCertificate,
    /// The endpoint's or the registry's: a proven peer, but not the one that should be there.
    #[error("the peer proved to be {presented}, but {expected} was expected")]
    IdentityMismatch {
        /// Who should be at that address.
        expected: Identity,
        /// Who is.
        presented: Identity,
    },
    /// Ours in the peer's eyes: it ended the handshake with an alert.
    #[error("the peer refused the session: {alert}")]
    RefusedByPeer {
        /// The alert's name (RFC 8446 §6).
        alert: String,
    },
    /// Nobody's in particular: the two sides share no version, suite, group or application protocol.
    #[error("no common ground with the peer: {reason}")]
    Incompatible {
        /// What is not shared.
        reason: String,
    },
    /// The peer's: what it sent is not a TLS handshake.
    #[error("the peer does not speak TLS: {reason}")]
    Protocol {
        /// What is wrong with it.
        reason: String,
    },
    /// The peer's or the network's: the handshake did not end in time.
    #[error("the handshake did not end within {:.1} s", deadline.as_secs_f64())]
    Timeout {
        /// The time allowed.
        deadline: Duration,
    },
    /// The network's, or the peer's: the connection broke.
    #[error("the connection broke during the handshake: {0}")]
    Io(Arc<io::Error>),
    /// Ours: no configuration could be made.
    #[error("no TLS configuration: {reason}")]
    Internal {
        /// The library's words.
        reason: String,
    },
}

impl TlsError {
    /// The word for a connection that ends for this reason.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::NoCertificate { .. } => Outcome::NoCertificate,
            Self::IdentityMismatch { .. } => Outcome::IdentityMismatch,
            Self::PeerCertificate { .. }
            | Self::NoPeerCertificate
            | Self::RefusedByPeer { .. }
            | Self::Incompatible { .. }
            | Self::Protocol { .. }
            | Self::Timeout { .. }
            | Self::Io(_) => Outcome::TlsFailed,
            Self::Internal { .. } => Outcome::Internal,
        }
    }

    /// What an IO error of a TLS stream means. In TLS 1.3 a server judges the client's certificate when the
    /// client's handshake has already ended: its refusal arrives as an error of the first read.
    #[must_use]
    pub fn of_io(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(tls) => Self::of_rustls(tls),
            None => Self::Io(Arc::new(error)),
        }
    }

    fn of_rustls(error: &rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidCertificate(fault) => Self::of_certificate_error(fault),
            rustls::Error::NoCertificatesPresented => Self::NoPeerCertificate,
            rustls::Error::AlertReceived(alert) => Self::RefusedByPeer { alert: format!("{alert:?}") },
            rustls::Error::PeerIncompatible(what) => Self::Incompatible { reason: format!("{what:?}") },
            rustls::Error::NoApplicationProtocol => Self::Incompatible { reason: "no application protocol".to_owned() },
            rustls::Error::InvalidMessage(what) => Self::Protocol { reason: format!("{what:?}") },
            rustls::Error::General(_)
            | rustls::Error::FailedToGetCurrentTime
            | rustls::Error::FailedToGetRandomBytes
            | rustls::Error::InconsistentKeys(_) => Self::Internal { reason: error.to_string() },
            other => Self::Protocol { reason: other.to_string() },
        }
    }

    fn of_certificate_error(error: &rustls::CertificateError) -> Self {
        let rustls::CertificateError::Other(other) = error else {
            return Self::PeerCertificate { fault: CertFault::Path(error.to_string()) };
        };
        // What `verify` put in comes out here.
        match other.0.downcast_ref::<Self>() {
            Some(ours) => ours.clone(),
            None => Self::PeerCertificate { fault: CertFault::Path(other.to_string()) },
        }
    }
}

/// How `verify` hands its finding through rustls.
impl From<TlsError> for rustls::Error {
    fn from(error: TlsError) -> Self {
        Self::InvalidCertificate(rustls::CertificateError::Other(rustls::OtherError(Arc::new(error))))
    }
}
