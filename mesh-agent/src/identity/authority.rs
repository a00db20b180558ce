//! The root of a mesh: its key, its certificate, and the certificates it signs.
//!
//! Used in process by `local` (one machine) and by `mesh-agent ca` (several nodes). What a request asks for
//! besides its public key is ignored: name, usages and life are the caller's decision.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
    SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::bundle::TrustBundle;
use super::ca::{BACKDATE, SignedCert};
use super::clock::{Clock, from_timestamp};
use super::error::CertError;
use super::key::PrivateKey;
use super::state;

/// Life of a root made here.
const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// File names below `<state dir>/ca`.
const ROOT_KEY: &str = "root.key";
const ROOT_CERT: &str = "root.crt";
const EXTRA_ROOTS: &str = "extra-roots.crt";

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

/// A signing root and every root that is trusted beside it.
pub(crate) struct Authority {
    issuer: Issuer<'static, PrivateKey>,
    not_after: SystemTime,
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
        state::state_dir(state_dir)?;
        let dir = state_dir.join("ca");
        if !dir.exists() {
            create(state_dir, &dir, trust_domain, clock.now())?;
        }
        state::check_dir(&dir)?;
        Self::load(&dir, trust_domain, clock)
    }

    fn load(dir: &Path, trust_domain: &str, clock: Arc<dyn Clock>) -> Result<Self, CertError> {
        let (key_path, cert_path) = (dir.join(ROOT_KEY), dir.join(ROOT_CERT));
        let missing = |path: &PathBuf| {
            let remedy = format!(
                "restore it from a backup, or move {} away to start a new root (every certificate of the old one \
                 stops being trusted)",
                dir.display()
            );
            CertError::state(path, "is missing", remedy)
        };
        let key_pem = state::read_private(&key_path)?.ok_or_else(|| missing(&key_path))?;
        let cert_pem = state::read_public(&cert_path)?.ok_or_else(|| missing(&cert_path))?;
        let broken = |path: &Path, fault: String| CertError::state(path, fault, "restore it from a backup");

        let pkcs8 = PrivatePkcs8KeyDer::from_pem_slice(&key_pem)
            .map_err(|_| broken(&key_path, "holds no PKCS #8 private key (PEM)".to_owned()))?;
        let key = PrivateKey::from_pkcs8(pkcs8.secret_pkcs8_der()).map_err(|e| broken(&key_path, e.to_string()))?;
        let cert = CertificateDer::from_pem_slice(&cert_pem)
            .map_err(|_| broken(&cert_path, "holds no certificate (PEM)".to_owned()))?;
        let not_after =
            check_root(&cert, &key, trust_domain, clock.now()).map_err(|fault| broken(&cert_path, fault))?;
        let issuer = Issuer::from_ca_cert_der(&cert, key).map_err(|e| broken(&cert_path, e.to_string()))?;

        let mut roots = vec![cert];
        let extra_path = dir.join(EXTRA_ROOTS);
        if let Some(pem) = state::read_public(&extra_path)? {
            let extra = TrustBundle::from_pem(&pem, 0).map_err(|e| broken(&extra_path, e.to_string()))?;
            roots.extend(extra.roots().cloned());
        }
        TrustBundle::new(&roots, 0).map_err(|e| broken(&extra_path, e.to_string()))?;
        Ok(Self { issuer, not_after, roots, clock })
    }

    /// Every root to trust, the signing one first.
    pub(crate) fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
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
        let not_before = self.clock.now() - BACKDATE;
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
        Ok(SignedCert { chain: vec![cert.into()], roots: self.roots.clone() })
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
fn serial() -> Result<SerialNumber, CertError> {
    let mut bytes = [0u8; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|e| CertError::crypto("a serial number", e))?;
    if let Some(first) = bytes.first_mut() {
        *first = (*first & 0x7f) | 0x40;
    }
    Ok(SerialNumber::from_slice(&bytes))
}

/// Makes a root in a directory of another name, which becomes `dir` in one step.
fn create(state_dir: &Path, dir: &Path, trust_domain: &str, now: SystemTime) -> Result<(), CertError> {
    let (key, pkcs8) = PrivateKey::generate_pkcs8()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("mesh-agent root of {trust_domain}"));
    params.subject_alt_names = vec![uri_name(&format!("spiffe://{trust_domain}"))?];
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + ROOT_LIFE).into();
    params.serial_number = Some(serial()?);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let cert = params.self_signed(&key).map_err(|e| CertError::crypto("a root certificate", e))?;

    let new = state_dir.join(format!("ca.new.{}", state::unique_suffix()?));
    let io = |e: std::io::Error| CertError::state(&new, e.to_string(), "make the state directory writable");
    state::private_dir(&new)?;
    state::write_private(&new.join(ROOT_KEY), state::pem("PRIVATE KEY", &pkcs8).as_bytes())?;
    state::write_private(&new.join(ROOT_CERT), state::pem("CERTIFICATE", cert.der()).as_bytes())?;
    if let Err(e) = fs::rename(&new, dir) {
        let _ = fs::remove_dir_all(&new);
        // Another process was faster: its root is the root.
        return if dir.exists() { Ok(()) } else { Err(io(e)) };
    }
    state::sync_dir(state_dir).map_err(io)
}

/// Checks that `cert` can sign with `key` for `trust_domain`; gives its end.
fn check_root(
    cert: &CertificateDer<'_>,
    key: &PrivateKey,
    trust_domain: &str,
    now: SystemTime,
) -> Result<SystemTime, String> {
    let (_, x509) = X509Certificate::from_der(cert).map_err(|_| "is no X.509 certificate".to_owned())?;
    if !x509.is_ca() {
        return Err("is not a CA certificate".to_owned());
    }
    if x509.public_key().subject_public_key.data.as_ref() != key.der_bytes() {
        return Err(format!("does not belong to the key in {ROOT_KEY}"));
    }
    let san = x509.subject_alternative_name().map_err(|e| e.to_string())?;
    let own = format!("spiffe://{trust_domain}");
    for name in san.iter().flat_map(|extension| &extension.value.general_names) {
        match name {
            GeneralName::URI(uri) if *uri != own => {
                return Err(format!("is the root of {uri}, but the trust domain is {own}"));
            }
            _ => {}
        }
    }
    let not_after = from_timestamp(x509.validity().not_after.timestamp());
    if not_after <= now {
        return Err("has expired".to_owned());
    }
    Ok(not_after)
}
