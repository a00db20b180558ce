//! This node's own certificate towards `mesh-agent ca`: joined once with a token, renewed, kept on disk.
//!
//! `<state dir>/node/node.pem` (0600) holds certificate and key together, so that the two never disagree. A
//! restart needs no new token; a node that was away for longer than its certificate lives does.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rand::RngExt;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::ca::signing_request;
use super::chain;
use super::error::CertError;
use super::grpc::{Caller, Proof, bearer};
use super::key::PrivateKey;
use super::node::NodeIdentity;
use super::schedule::{backoff, refresh_at};
use super::state;

/// Life of a node certificate: a laptop or a node in repair may be off for a few days.
pub const NODE_TTL: Duration = Duration::from_secs(7 * 24 * 3600);
/// Longest time until the wall clock is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// How this node proves itself to `mesh-agent ca`.
#[derive(Debug)]
pub struct NodeLogin {
    node: NodeIdentity,
    dir: PathBuf,
    join_token: Option<PathBuf>,
    /// Held over a join or renewal: two at once would spend a one-time token twice.
    held: Mutex<Option<NodeCertificate>>,
}

#[derive(Clone, Debug)]
struct NodeCertificate {
    key: Arc<CertifiedKey>,
    not_after: SystemTime,
    refresh_at: SystemTime,
}

impl NodeLogin {
    /// The login of `node`, kept under `<state_dir>/node`; `join_token` is a file with a one-time token, needed
    /// only while there is no valid certificate.
    #[must_use]
    pub fn new(node: NodeIdentity, state_dir: &std::path::Path, join_token: Option<PathBuf>) -> Self {
        Self { node, dir: state_dir.join("node"), join_token, held: Mutex::new(None) }
    }

    /// The node's certificate: the one held, the one on disk, or a new one for the join token.
    pub(super) async fn certificate(&self, caller: &Caller) -> Result<Arc<CertifiedKey>, CertError> {
        let mut held = self.held.lock().await;
        let now = caller.clock.now();
        if held.is_none() {
            *held = self.load()?;
        }
        if let Some(certificate) = held.as_ref().filter(|certificate| certificate.not_after > now) {
            return Ok(Arc::clone(&certificate.key));
        }
        let new = self.join(caller).await?;
        let key = Arc::clone(&new.key);
        *held = Some(new);
        Ok(key)
    }

    /// Joins, then renews at half-life, for ever.
    pub(super) async fn keep(&self, caller: &Caller) {
        let mut failures: u32 = 0;
        loop {
            let result = match self.due(caller).await {
                Ok(true) => self.renew(caller).await,
                Ok(false) => Ok(()),
                Err(error) => Err(error),
            };
            let wait = match result {
                Ok(()) => {
                    failures = 0;
                    LOOK_AGAIN
                }
                Err(error) => {
                    failures = failures.saturating_add(1);
                    // At once, and then about every eight minutes.
                    if failures % 16 == 1 {
                        tracing::warn!(node = %self.node.name(), %error, "node certificate not obtained or renewed");
                    }
                    backoff(failures, rand::rng().random::<f64>())
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// Whether there is a certificate that wants renewal. Joins if there is none.
    async fn due(&self, caller: &Caller) -> Result<bool, CertError> {
        self.certificate(caller).await?;
        let held = self.held.lock().await;
        Ok(held.as_ref().is_some_and(|certificate| certificate.refresh_at <= caller.clock.now()))
    }

    async fn join(&self, caller: &Caller) -> Result<NodeCertificate, CertError> {
        let not_joined = |remedy: String| CertError::NotJoined { ca: caller.name().to_owned(), remedy };
        let make = format!("`mesh-agent ca token --node {}` beside the CA", self.node.name());
        let Some(file) = &self.join_token else {
            return Err(not_joined(format!("make a token with {make} and give it with --join-token-file")));
        };
        let token = bearer(file).map_err(|e| not_joined(format!("{e}; make a token with {make}")))?;
        let certificate = self.ask(caller, Proof::Bearer(token)).await?;
        tracing::info!(node = %self.node.name(), ca = caller.name(), "joined");
        Ok(certificate)
    }

    async fn renew(&self, caller: &Caller) -> Result<(), CertError> {
        let mut held = self.held.lock().await;
        let Some(certificate) = held.as_ref() else { return Ok(()) };
        let new = self.ask(caller, Proof::Certificate(Arc::clone(&certificate.key))).await?;
        *held = Some(new);
        tracing::info!(node = %self.node.name(), "node certificate renewed");
        Ok(())
    }

    /// Gets a certificate for a new key and keeps it on disk.
    async fn ask(&self, caller: &Caller, proof: Proof) -> Result<NodeCertificate, CertError> {
        let subject = self.node.to_string();
        // Before a one-time token is spent: is there a place for what it buys?
        state::private_dir(&self.dir)?;
        let (key, pkcs8) = PrivateKey::generate_pkcs8()?;
        let csr = signing_request(&key, &subject)?;
        let signed = caller.call(proof, &csr, &subject, None, NODE_TTL).await?;
        let certificate = self.check(&key, signed.chain.clone()).map_err(|reason| CertError::BadAnswer {
            ca: caller.name().to_owned(),
            subject,
            reason,
        })?;
        let mut pem = Zeroizing::new(String::with_capacity(16 * 1024));
        for cert in &signed.chain {
            pem.push_str(&state::pem("CERTIFICATE", cert));
        }
        pem.push_str(&state::pem("PRIVATE KEY", &pkcs8));
        state::write_private(&self.file(), pem.as_bytes())?;
        Ok(certificate)
    }

    /// What is on disk; `None` when there is nothing.
    fn load(&self) -> Result<Option<NodeCertificate>, CertError> {
        let file = self.file();
        let Some(pem) = state::read_private(&file)? else { return Ok(None) };
        let broken = |fault: String| CertError::state(&file, fault, "remove it and join again with a new token");
        let pkcs8 = PrivatePkcs8KeyDer::from_pem_slice(&pem)
            .map_err(|_| broken("holds no PKCS #8 private key (PEM)".to_owned()))?;
        let key = PrivateKey::from_pkcs8(pkcs8.secret_pkcs8_der()).map_err(|e| broken(e.to_string()))?;
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem)
            .collect::<Result<_, _>>()
            .map_err(|_| broken("holds a broken certificate (PEM)".to_owned()))?;
        self.check(&key, chain).map(Some).map_err(broken)
    }

    /// Whether `chain` is for `key` and names this node. Whether it is trusted is the CA's business.
    fn check(&self, key: &PrivateKey, chain: Vec<CertificateDer<'static>>) -> Result<NodeCertificate, String> {
        let leaf = chain.first().ok_or("holds no certificate")?;
        let named = chain::node(leaf, self.node.trust_domain()).map_err(|e| e.to_string())?;
        if named != self.node {
            return Err(format!("is for {named}, but this node is {}", self.node));
        }
        let dates = chain::particulars(leaf).map_err(|e| e.to_string())?;
        let key = CertifiedKey::new(chain, key.signer());
        key.keys_match().map_err(|_| "certificate and key do not belong together".to_owned())?;
        Ok(NodeCertificate {
            key: Arc::new(key),
            not_after: dates.not_after,
            refresh_at: refresh_at(dates.not_before, dates.not_after, rand::rng().random::<f64>()),
        })
    }

    fn file(&self) -> PathBuf {
        self.dir.join("node.pem")
    }
}
