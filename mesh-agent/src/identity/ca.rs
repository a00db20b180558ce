//! What every source of certificates has in common: a signing request goes in, a chain and roots come out.

use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DistinguishedName, SanType};
use rustls::pki_types::CertificateDer;

use super::bundle::TrustBundle;
use super::chain::{self, Usage};
use super::credential::Credential;
use super::error::CertError;
use super::key::PrivateKey;
use crate::model::identity::Identity;

/// Longest life of a workload certificate.
pub const WORKLOAD_TTL_MAX: Duration = Duration::from_secs(24 * 3600);
/// How far back a certificate's validity starts at most, so that a peer whose clock is behind accepts it.
pub const BACKDATE: Duration = Duration::from_secs(60);

/// How far back the validity of a certificate with a life of `ttl` starts: of a short life a tenth.
pub(crate) fn backdate(ttl: Duration) -> Duration {
    BACKDATE.min(ttl / 10)
}

/// A CA's answer.
#[derive(Clone, Debug)]
pub struct SignedCert {
    /// The leaf, then its intermediates in order; no root.
    pub chain: Vec<CertificateDer<'static>>,
    /// Every root that the CA wants trusted now.
    pub roots: Vec<CertificateDer<'static>>,
}

/// The future of [`CaClient::sign`].
pub type SignFuture<'a> = Pin<Box<dyn Future<Output = Result<SignedCert, CertError>> + Send + 'a>>;

/// The future of [`CaClient::keep_ready`] and [`CaClient::changed`].
pub type KeepReady<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// A source of workload certificates. Object safe; shared by all identities of the node.
pub trait CaClient: Debug + Send + Sync + 'static {
    /// Address for messages, or `local`.
    fn name(&self) -> &str;

    /// Asks for a certificate for the key of `csr_pem` (PKCS #10) in the name of `identity`, valid for `ttl`.
    /// Bounded in time by the implementation. The answer is not trusted: [`issue`] checks it.
    fn sign<'a>(&'a self, csr_pem: &'a str, identity: &'a Identity, ttl: Duration) -> SignFuture<'a>;

    /// What must be done between requests so that the next one works (such as renewing the node's own
    /// certificate). Never ends; polled by the rotator for as long as it runs.
    fn keep_ready(&self) -> KeepReady<'_> {
        Box::pin(std::future::pending())
    }

    /// Ends when everything issued so far should be asked for anew, soon: the CA's roots have changed. Asked for again
    /// each time it has ended; nothing is lost when it is dropped.
    fn changed(&self) -> KeepReady<'_> {
        Box::pin(std::future::pending())
    }
}

/// A checked certificate with its key, and the roots that came with it.
#[derive(Debug)]
pub struct Issued {
    /// What the store will hold.
    pub credential: Credential,
    /// The CA's roots, generation not yet set.
    pub trust: TrustBundle,
}

/// Makes a key, has `ca` certify it for `identity`, and checks that the answer is one peers will accept.
///
/// # Errors
/// The CA's, or [`CertError::BadAnswer`].
pub async fn issue(
    ca: &dyn CaClient,
    identity: &Identity,
    ttl: Duration,
    now: SystemTime,
) -> Result<Issued, CertError> {
    let key = PrivateKey::generate()?;
    let csr = signing_request(&key, &identity.to_string())?;
    let signed = ca.sign(&csr, identity, ttl.min(WORKLOAD_TTL_MAX)).await?;
    let bad = |reason: String| CertError::BadAnswer { ca: ca.name().to_owned(), subject: identity.to_string(), reason };
    let trust = TrustBundle::new(&signed.roots, 0).map_err(|e| bad(format!("its trust bundle: {e}")))?;
    let (leaf, intermediates) = signed.chain.split_first().ok_or_else(|| bad("the chain is empty".to_owned()))?;
    for usage in [Usage::Client, Usage::Server] {
        chain::verify(leaf, intermediates, &trust, now, usage).map_err(|e| bad(e.to_string()))?;
    }
    let named = chain::workload(leaf, identity.trust_domain()).map_err(|e| bad(e.to_string()))?;
    if named != *identity {
        return Err(bad(format!("it is for {named}")));
    }
    let credential = Credential::new(identity.clone(), &key, signed.chain).map_err(|e| bad(e.to_string()))?;
    Ok(Issued { credential, trust })
}

/// A PKCS #10 request, PEM, for `key` with `uri` as its only name.
pub(crate) fn signing_request(key: &PrivateKey, uri: &str) -> Result<String, CertError> {
    let what = "a signing request";
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(uri.try_into().map_err(|e| CertError::crypto(what, e))?)];
    params.serialize_request(key).and_then(|csr| csr.pem()).map_err(|e| CertError::crypto(what, e))
}
