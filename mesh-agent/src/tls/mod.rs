//! Sessions with peers: TLS 1.3, mutual, SPIFFE names (design §3).
//!
//! The only place where a [`Peer`] comes into being: `Peer::verified_by_tls`, called once, after a handshake
//! whose certificate has been verified. With `identity` the only user of rustls. It knows nothing about
//! policy: it says who the other side is, not what it may do.

mod configs;
mod error;
mod handshake;
pub mod records;
mod session;
#[cfg(test)]
mod session_tests;
#[cfg(test)]
mod tests;
mod verify;

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;

use crate::identity::CertStore;
use crate::model::identity::Identity;
use configs::Configs;
pub use error::TlsError;
pub use session::Session;

/// A session that a peer opened.
pub type ServerStream<IO> = tokio_rustls::server::TlsStream<IO>;

/// Time allowed for a handshake unless the caller says otherwise.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// Makes sessions out of connections, with the certificates of a [`CertStore`].
#[derive(Debug)]
pub struct Tls {
    store: Arc<CertStore>,
    configs: Configs,
    deadline: Duration,
}

/// Who the other side of a session is. Exists only if a handshake has proven it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    identity: Identity,
    alpn: Arc<[u8]>,
}

impl Tls {
    /// Sessions out of `store`, each handshake within [`HANDSHAKE_DEADLINE`].
    #[must_use]
    pub fn new(store: Arc<CertStore>) -> Self {
        Self { configs: Configs::new(Arc::clone(&store)), store, deadline: HANDSHAKE_DEADLINE }
    }

    /// The same with another deadline for handshakes.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }
}

impl Peer {
    /// The trust point. `certificate` is what the session holds after a handshake that `verify` accepted.
    fn verified_by_tls(certificate: &CertificateDer<'_>, alpn: &[u8], store: &CertStore) -> Result<Self, TlsError> {
        let identity = verify::identity_of(certificate, store.trust_domain())
            .map_err(|fault| TlsError::PeerCertificate { fault })?;
        Ok(Self { identity, alpn: alpn.into() })
    }

    /// The proven identity.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The application protocol agreed on.
    #[must_use]
    pub fn alpn(&self) -> &[u8] {
        &self.alpn
    }
}
