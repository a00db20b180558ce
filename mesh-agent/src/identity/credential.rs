//! A service account's certificate and key, as the rest of the agent may hold it.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;

use super::chain::{self, CertFault};
use super::key::PrivateKey;
use crate::model::identity::Identity;

/// One certificate with the key that proves it. The key can sign and cannot be read; it is wiped when the
/// last holder lets go. `Debug` shows names and dates only.
pub struct Credential {
    identity: Identity,
    key: Arc<CertifiedKey>,
    not_before: SystemTime,
    not_after: SystemTime,
    serial: String,
    generation: u64,
}

impl Credential {
    /// Joins `key` and its certificate `chain` (leaf first).
    pub(super) fn new(
        identity: Identity,
        key: &PrivateKey,
        chain: Vec<CertificateDer<'static>>,
    ) -> Result<Self, CertFault> {
        let leaf = chain.first().ok_or(CertFault::Unreadable)?;
        let particulars = chain::particulars(leaf)?;
        let key = CertifiedKey::new(chain, key.signer());
        key.keys_match().map_err(|_| CertFault::Path("it is for another key".to_owned()))?;
        Ok(Self {
            identity,
            key: Arc::new(key),
            not_before: particulars.not_before,
            not_after: particulars.not_after,
            serial: particulars.serial,
            generation: 0,
        })
    }

    /// Whose it is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// From when it is valid.
    #[must_use]
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// Until when it is valid.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Serial number, hexadecimal.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Grows with each certificate installed on this node; never used twice.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The key without a share in its life: a TLS configuration that outlives the credential cannot sign.
    pub(crate) fn weak_key(&self) -> Weak<CertifiedKey> {
        Arc::downgrade(&self.key)
    }

    /// The certificate chain, leaf first.
    pub(crate) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.key.cert
    }

    /// A credential that the store hands out whatever its certificate says: a liar's store.
    #[cfg(test)]
    pub(crate) fn believed_valid(mut self) -> Self {
        self.not_after = SystemTime::now() + std::time::Duration::from_secs(3600);
        self
    }

    pub(super) fn with_generation(mut self, generation: u64) -> Self {
        self.generation = generation;
        self
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("identity", &self.identity)
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .field("serial", &self.serial)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}
