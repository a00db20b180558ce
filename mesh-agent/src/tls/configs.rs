//! rustls configurations, made once per (identity, certificate, roots) and then shared by all handshakes.
//!
//! A configuration holds its key weakly: when the store drops a certificate, its key is gone, however many
//! configurations were made of it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustls::client::{ResolvesClientCert, Resumption};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, ServerConfig, SignatureScheme, version};

use super::error::TlsError;
use super::verify::PeerVerifier;
use crate::identity::{CertStore, Credential, TlsTime, provider};
use crate::model::identity::Identity;

/// Most configurations of one kind kept. Far above any node's pairs of service accounts that talk; a full
/// cache is emptied and fills again.
const CONFIGS_MAX: usize = 8192;

#[derive(Debug)]
pub(super) struct Configs {
    store: Arc<CertStore>,
    servers: Cache<(Identity, Alpn), ServerConfig>,
    clients: Cache<(Identity, Identity, Alpn), ClientConfig>,
}

type Alpn = Vec<Vec<u8>>;

/// A configuration and the certificate it presents. The certificate must be kept until the handshake ends:
/// it may be renewed or dropped by the store meanwhile.
#[derive(Debug)]
pub(super) struct Held<C> {
    pub(super) config: Arc<C>,
    pub(super) credential: Arc<Credential>,
}

/// What a configuration was made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Made {
    credential_generation: u64,
    trust_generation: u64,
}

#[derive(Debug)]
struct Cache<K, C>(Mutex<HashMap<K, Entry<C>>>);

#[derive(Debug)]
struct Entry<C> {
    made: Made,
    key: Weak<CertifiedKey>,
    config: Arc<C>,
}

impl Configs {
    pub(super) fn new(store: Arc<CertStore>) -> Self {
        Self { store, servers: Cache(Mutex::default()), clients: Cache(Mutex::default()) }
    }

    pub(super) fn server(&self, own: &Identity, alpn: &[&[u8]]) -> Result<Held<ServerConfig>, TlsError> {
        let (credential, trust) = (self.credential(own)?, self.store.trust());
        let made = Made { credential_generation: credential.generation(), trust_generation: trust.generation() };
        let config = self.servers.get_or_make((own.clone(), owned(alpn)), made, &credential, || {
            let verifier = Arc::new(PeerVerifier::any_of(self.store.trust_domain(), trust));
            let mut config = ServerConfig::builder_with_details(provider(), self.time())
                .with_protocol_versions(&[&version::TLS13])
                .map_err(internal)?
                .with_client_cert_verifier(verifier)
                .with_cert_resolver(Arc::new(HeldByStore(credential.weak_key())));
            config.alpn_protocols = owned(alpn);
            // For `records`: the keys of the session, which are this process's own, leave rustls.
            config.enable_secret_extraction = true;
            // Resumption is off (design §3): no tickets, no sessions.
            config.send_tls13_tickets = 0;
            config.session_storage = Arc::new(NoServerSessionStorage {});
            Ok(config)
        })?;
        Ok(Held { config, credential })
    }

    pub(super) fn client(
        &self,
        own: &Identity,
        expected: &Identity,
        alpn: &[&[u8]],
    ) -> Result<Held<ClientConfig>, TlsError> {
        let (credential, trust) = (self.credential(own)?, self.store.trust());
        let made = Made { credential_generation: credential.generation(), trust_generation: trust.generation() };
        let config =
            self.clients.get_or_make((own.clone(), expected.clone(), owned(alpn)), made, &credential, || {
                let verifier = Arc::new(PeerVerifier::only(expected.clone(), self.store.trust_domain(), trust));
                let mut config = ClientConfig::builder_with_details(provider(), self.time())
                    .with_protocol_versions(&[&version::TLS13])
                    .map_err(internal)?
                    .dangerous()
                    .with_custom_certificate_verifier(verifier)
                    .with_client_cert_resolver(Arc::new(HeldByStore(credential.weak_key())));
                config.alpn_protocols = owned(alpn);
                config.enable_secret_extraction = true;
                config.resumption = Resumption::disabled();
                config.enable_sni = false;
                Ok(config)
            })?;
        Ok(Held { config, credential })
    }

    fn credential(&self, own: &Identity) -> Result<Arc<Credential>, TlsError> {
        self.store.current(own).ok_or_else(|| TlsError::NoCertificate { identity: own.clone() })
    }

    fn time(&self) -> Arc<dyn TimeProvider> {
        Arc::new(TlsTime(Arc::clone(self.store.clock())))
    }
}

impl<K: Eq + Hash, C> Cache<K, C> {
    /// The configuration for `key` if it is `made` of what is in force, else a new one in its place.
    fn get_or_make(
        &self,
        key: K,
        made: Made,
        credential: &Credential,
        make: impl FnOnce() -> Result<C, TlsError>,
    ) -> Result<Arc<C>, TlsError> {
        // Held for a map look-up; making a configuration moves a few pointers, no cryptography.
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.get(&key).filter(|entry| entry.made == made) {
            return Ok(Arc::clone(&entry.config));
        }
        let config = Arc::new(make()?);
        entries.retain(|_, entry| entry.key.strong_count() > 0);
        if entries.len() >= CONFIGS_MAX {
            entries.clear();
        }
        entries.insert(key, Entry { made, key: credential.weak_key(), config: Arc::clone(&config) });
        Ok(config)
    }
}

/// The certificate that a configuration was made for, as long as the store holds it.
#[derive(Debug)]
struct HeldByStore(Weak<CertifiedKey>);

impl ResolvesServerCert for HeldByStore {
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.upgrade()
    }
}

impl ResolvesClientCert for HeldByStore {
    fn resolve(&self, _root_hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.upgrade()
    }

    fn has_certs(&self) -> bool {
        self.0.strong_count() > 0
    }
}

fn owned(alpn: &[&[u8]]) -> Alpn {
    alpn.iter().map(|protocol| protocol.to_vec()).collect()
}

fn internal(error: rustls::Error) -> TlsError {
    TlsError::Internal { reason: error.to_string() }
}
