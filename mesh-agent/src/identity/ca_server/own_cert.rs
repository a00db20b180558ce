//! The CA listener's own certificate: signed by its own root, made anew at half-life on the next handshake.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rcgen::SanType;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::super::authority::{Authority, Purpose};
use super::super::ca::WORKLOAD_TTL_MAX;
use super::super::chain;
use super::super::error::CertError;
use super::super::key::PrivateKey;
use super::super::schedule::refresh_at;
use super::in_force::RootInForce;

/// Presents a certificate for the CA's host names and addresses; it has no SPIFFE name, so no workload ever
/// takes it for a peer.
#[derive(Debug)]
pub(super) struct OwnCert {
    root: RootInForce,
    names: Vec<SanType>,
    current: Mutex<Made>,
}

#[derive(Debug)]
struct Made {
    certificate: Arc<CertifiedKey>,
    /// Made anew from here on.
    until: SystemTime,
    /// By whom it was signed.
    authority: Arc<Authority>,
}

impl OwnCert {
    /// Makes the first certificate.
    pub(super) fn new(root: RootInForce, names: &[String]) -> Result<Self, CertError> {
        let names = names.iter().map(|name| san(name)).collect::<Result<Vec<_>, _>>()?;
        let current = Mutex::new(make(root.load(), &names)?);
        Ok(Self { root, names, current })
    }
}

impl ResolvesServerCert for OwnCert {
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let authority = self.root.load();
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.until <= authority.clock().now() || !Arc::ptr_eq(&current.authority, &authority) {
            match make(authority, &self.names) {
                Ok(new) => *current = new,
                Err(error) => tracing::error!(%error, "the CA's own certificate cannot be renewed"),
            }
        }
        Some(Arc::clone(&current.certificate))
    }
}

fn make(authority: Arc<Authority>, names: &[SanType]) -> Result<Made, CertError> {
    let key = PrivateKey::generate()?;
    let signed = authority.sign_own(&key, names.to_vec(), Purpose::CaServer, WORKLOAD_TTL_MAX)?;
    let leaf = signed.chain.first().ok_or_else(|| CertError::crypto("a server certificate", "empty chain"))?;
    let dates = chain::particulars(leaf).map_err(|e| CertError::crypto("a server certificate", e))?;
    let until = refresh_at(dates.not_before, dates.not_after, 0.5);
    Ok(Made { certificate: Arc::new(CertifiedKey::new(signed.chain, key.signer())), until, authority })
}

fn san(name: &str) -> Result<SanType, CertError> {
    match name.parse::<IpAddr>() {
        Ok(ip) => Ok(SanType::IpAddress(ip)),
        Err(_) => name
            .try_into()
            .map(SanType::DnsName)
            .map_err(|_| CertError::Setting { reason: format!("`{name}` is neither a DNS name nor an IP address") }),
    }
}
