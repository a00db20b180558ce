//! The root of a mesh: its key, its certificate, and the certificates it signs.
//!
//! Used in process by `local` (one machine) and by `mesh-agent ca` (several nodes). What a request asks for
//! besides its public key is ignored: name, usages and life are the caller's decision.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::bundle::TrustBundle;
use super::ca::{SignedCert, backdate};
use super::chain::{self, Usage};
use super::clock::Clock;
use super::error::CertError;
use super::key::PrivateKey;
use super::root::{self, RootPem};

/// Life of the certificate by which a root is tried.
const TRIAL: Duration = Duration::from_secs(3600);

/// What a certificate may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A workload: dials and answers.
    Workload,
    /// A node's agent towards the CA: dials only.
    Node,
    /// The CA's own listener: answers only.
    CaServer,
}

/// A root or intermediate that signs, and every root that is trusted beside it.
pub(crate) struct Authority {
    issuer: Issuer<'static, PrivateKey>,
    not_after: SystemTime,
    /// What stands between a leaf and its root, in order.
    intermediates: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("roots", &self.roots.len()).finish_non_exhaustive()
    }
}

impl Authority {
    /// Opens the root under `<state_dir>/ca`, making a new one if there is none at all.
    ///
    /// # Errors
    /// [`CertError::StateDir`] naming the file when it is partial, broken, open to others, or of another
    /// trust domain: it never replaces a root by itself, since that cuts every peer off.
    pub(crate) fn open(state_dir: &Path, trust_domain: &str, clock: Arc<dyn Clock>) -> Result<Self, CertError> {
        let pem = root::open(state_dir, trust_domain, clock.now())?;
        Self::new(&pem, trust_domain, clock)
    }

    /// Takes what `pem` holds.
    ///
    /// # Errors
    /// [`CertError::StateDir`] naming the file that is broken, does not belong to the others, is of another trust
    /// domain, or signs nothing that a peer would accept.
    pub(crate) fn new(pem: &RootPem, trust_domain: &str, clock: Arc<dyn Clock>) -> Result<Self, CertError> {
        let (key_path, key) = &pem.key;
        let (cert_path, cert) = &pem.cert;
        let broken = |path: &Path, fault: String| CertError::state(path, fault, pem.remedy);
        let key = PrivateKey::from_pem(key).map_err(|fault| broken(key_path, fault))?;
        let chain = CertificateDer::pem_slice_iter(cert).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|_| broken(cert_path, "holds a broken certificate (PEM)".to_owned()))?;
        let signing =
            chain.first().cloned().ok_or_else(|| broken(cert_path, "holds no certificate (PEM)".to_owned()))?;
        let not_after = root::check(&signing, (&key, key_path), trust_domain, clock.now())
            .map_err(|fault| broken(cert_path, fault))?;
        let issuer = Issuer::from_ca_cert_der(&signing, key).map_err(|e| broken(cert_path, e.to_string()))?;

        let (mut roots, intermediates): (Vec<_>, Vec<_>) = chain.into_iter().partition(chain::is_self_issued);
        let mut last = cert_path;
        for (path, text) in &pem.roots {
            let more = TrustBundle::from_pem(text, 0).map_err(|e| broken(path, e.to_string()))?;
            let new: Vec<_> = more.roots().filter(|root| !roots.contains(root)).cloned().collect();
            roots.extend(new);
            last = path;
        }
        if roots.is_empty() {
            return Err(broken(cert_path, "is an intermediate, and there is no root beside it".to_owned()));
        }
        let bundle = TrustBundle::new(&roots, 0).map_err(|e| broken(last, e.to_string()))?;
        let authority = Self { issuer, not_after, intermediates, roots, clock };
        authority.tried(trust_domain, &bundle).map_err(|fault| broken(cert_path, fault))?;
        Ok(authority)
    }

    /// Whether a certificate made here is one that peers accept: constraints and chains are not judged twice.
    fn tried(&self, trust_domain: &str, bundle: &TrustBundle) -> Result<(), String> {
        let name = uri_name(&format!("spiffe://{trust_domain}/ns/trial/sa/trial")).map_err(|e| e.to_string())?;
        let key = PrivateKey::generate().map_err(|e| e.to_string())?;
        let signed = self.sign_own(&key, vec![name], Purpose::Workload, TRIAL).map_err(|e| e.to_string())?;
        let (leaf, rest) = signed.chain.split_first().ok_or("signs nothing")?;
        for usage in [Usage::Client, Usage::Server] {
            chain::verify(leaf, rest, bundle, self.clock.now(), usage)
                .map_err(|fault| format!("signs nothing that a peer would accept: {fault}"))?;
        }
        Ok(())
    }

    /// Whether both sign by the same key and certificates, and trust the same roots.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.issuer.key().der_bytes() == other.issuer.key().der_bytes()
            && self.intermediates == other.intermediates
            && self.roots == other.roots
    }

    /// Every root to trust, the signing one first.
    pub(crate) fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The end of what signs.
    pub(crate) fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// By whose time certificates are made.
    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// Certifies the key of `csr` for `names` and `purpose`, for `ttl` less the backdating and never beyond
    /// the root's own end.
    pub(crate) fn sign(
        &self,
        csr: &Request,
        names: Vec<SanType>,
        purpose: Purpose,
        ttl: Duration,
    ) -> Result<SignedCert, CertError> {
        self.certify(&csr.public_key, names, purpose, ttl)
    }

    /// As [`Self::sign`], for a key of this process.
    pub(crate) fn sign_own(
        &self,
        key: &PrivateKey,
        names: Vec<SanType>,
        purpose: Purpose,
        ttl: Duration,
    ) -> Result<SignedCert, CertError> {
        self.certify(key, names, purpose, ttl)
    }

    fn certify(
        &self,
        key: &impl PublicKeyData,
        names: Vec<SanType>,
        purpose: Purpose,
        ttl: Duration,
    ) -> Result<SignedCert, CertError> {
        let what = "a certificate";
        let not_before = self.clock.now() - backdate(ttl);
        let mut params = CertificateParams::default();
        // An empty subject makes the SAN critical (RFC 5280 §4.2.1.6): the SAN is the only name there is.
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        params.not_before = not_before.into();
        params.not_after = (not_before + ttl).min(self.not_after).into();
        params.serial_number = Some(serial()?);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = purpose.extended_key_usages();
        params.use_authority_key_identifier_extension = true;
        let cert = params.signed_by(key, &self.issuer).map_err(|e| CertError::crypto(what, e))?;
        let mut chain = vec![cert.into()];
        chain.extend(self.intermediates.iter().cloned());
        Ok(SignedCert { chain, roots: self.roots.clone() })
    }
}

/// A PKCS #10 request whose self-signature has been checked.
pub(crate) struct Request {
    public_key: rcgen::PublicKey,
    uris: BTreeSet<String>,
}

impl Request {
    /// Reads `pem`.
    ///
    /// # Errors
    /// [`CertError::BadRequest`] when it is broken, its key is not ECDSA P-256, or it names anything but URIs.
    pub(crate) fn read(pem: &str) -> Result<Self, CertError> {
        let bad = |reason: String| CertError::BadRequest { reason };
        let csr = CertificateSigningRequestParams::from_pem(pem).map_err(|e| bad(e.to_string()))?;
        if csr.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(bad("its key is not ECDSA P-256".to_owned()));
        }
        let mut uris = BTreeSet::new();
        for name in csr.params.subject_alt_names {
            let SanType::URI(uri) = name else {
                return Err(bad("it has a subject alternative name that is not a URI".to_owned()));
            };
            uris.insert(uri.to_string());
        }
        Ok(Self { public_key: csr.public_key, uris })
    }

    #[cfg(test)]
    pub(crate) fn public_key(&self) -> &rcgen::PublicKey {
        &self.public_key
    }

    /// The URI SANs asked for.
    pub(crate) fn uris(&self) -> &BTreeSet<String> {
        &self.uris
    }
}

/// A SAN of the URI kind.
pub(crate) fn uri_name(uri: &str) -> Result<SanType, CertError> {
    uri.try_into().map(SanType::URI).map_err(|e| CertError::crypto("a name", e))
}

impl Purpose {
    fn extended_key_usages(self) -> Vec<ExtendedKeyUsagePurpose> {
        match self {
            Self::Workload => vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth],
            Self::Node => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Self::CaServer => vec![ExtendedKeyUsagePurpose::ServerAuth],
        }
    }
}

/// 127 random bits: RFC 5280 §4.1.2.2 wants a positive number of at most 20 octets.
pub(super) fn serial() -> Result<SerialNumber, CertError> {
    let mut bytes = [0u8; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|e| CertError::crypto("a serial number", e))?;
    if let Some(first) = bytes.first_mut() {
        *first = (*first & 0x7f) | 0x40;
    }
    Ok(SerialNumber::from_slice(&bytes))
}
