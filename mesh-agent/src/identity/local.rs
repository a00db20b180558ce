//! The embedded CA: the root lives in this process, under its state directory.
//!
//! For one machine or a test. With more than one node the root belongs in one `mesh-agent ca` process and
//! agents use `grpc`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::authority::{Authority, Purpose, Request, uri_name};
use super::bundle::{BundleError, TrustBundle};
use super::ca::{CaClient, SignFuture, SignedCert};
use super::clock::{Clock, SystemClock};
use super::error::CertError;
use crate::model::identity::Identity;

/// A CA in this process.
#[derive(Debug)]
pub struct LocalCa {
    authority: Authority,
    trust_domain: Arc<str>,
}

impl LocalCa {
    /// Opens the root under `<state_dir>/ca`, making a new one if there is none.
    ///
    /// # Errors
    /// [`CertError::StateDir`] naming the file and the way out when what is there cannot be used safely.
    pub fn open(state_dir: &Path, trust_domain: &str) -> Result<Self, CertError> {
        Self::with_clock(state_dir, trust_domain, Arc::new(SystemClock))
    }

    /// As [`Self::open`], by another clock than the machine's.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn with_clock(state_dir: &Path, trust_domain: &str, clock: Arc<dyn Clock>) -> Result<Self, CertError> {
        let authority = Authority::open(state_dir, trust_domain, clock)?;
        Ok(Self { authority, trust_domain: trust_domain.into() })
    }

    /// The roots, before anything is issued.
    ///
    /// # Errors
    /// Never in practice: the roots were checked when they were opened.
    pub fn trust(&self) -> Result<TrustBundle, BundleError> {
        TrustBundle::new(self.authority.roots(), 0)
    }

    fn sign_now(&self, csr_pem: &str, identity: &Identity, ttl: Duration) -> Result<SignedCert, CertError> {
        if identity.trust_domain() != &*self.trust_domain {
            return Err(CertError::CaRefused {
                ca: self.name().to_owned(),
                subject: identity.to_string(),
                reason: format!("this CA is the root of {}", self.trust_domain),
            });
        }
        let request = Request::read(csr_pem)?;
        self.authority.sign(&request, vec![uri_name(&identity.to_string())?], Purpose::Workload, ttl)
    }
}

impl CaClient for LocalCa {
    fn name(&self) -> &str {
        "local"
    }

    fn sign<'a>(&'a self, csr_pem: &'a str, identity: &'a Identity, ttl: Duration) -> SignFuture<'a> {
        Box::pin(std::future::ready(self.sign_now(csr_pem, identity, ttl)))
    }
}

#[cfg(test)]
#[path = "local_tests.rs"]
mod tests;
