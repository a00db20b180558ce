//! Key and certificate of a signing root: made, kept in a state directory, checked. Signs nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyUsagePurpose, PublicKeyData};
use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::authority::{serial, uri_name};
use super::ca::BACKDATE;
use super::clock::from_timestamp;
use super::error::CertError;
use super::key::PrivateKey;
use super::state;

/// Life of a root made here.
const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// File names below `<state dir>/ca`.
const ROOT_KEY: &str = "root.key";
const ROOT_CERT: &str = "root.crt";
const EXTRA_ROOTS: &str = "extra-roots.crt";

/// A text and where it was found, as errors name it.
pub(crate) type Found = (PathBuf, Zeroizing<Vec<u8>>);

/// What an authority is made of, PEM.
pub(crate) struct RootPem {
    /// The signing key.
    pub(crate) key: Found,
    /// The certificate that signs, then its chain if it is an intermediate.
    pub(crate) cert: Found,
    /// Certificates to trust besides.
    pub(crate) roots: Vec<Found>,
    /// What to do when something is wrong with one of them.
    pub(crate) remedy: &'static str,
}

/// A new root: key and certificate, PEM.
pub(crate) struct NewRoot {
    pub(crate) key: Zeroizing<String>,
    pub(crate) cert: Zeroizing<String>,
}

impl NewRoot {
    /// Makes one for `trust_domain`.
    pub(crate) fn make(trust_domain: &str, now: SystemTime) -> Result<Self, CertError> {
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
        Ok(Self { key: state::pem("PRIVATE KEY", &pkcs8), cert: state::pem("CERTIFICATE", cert.der()) })
    }
}

/// The root under `<state_dir>/ca`; makes one if there is none at all.
pub(crate) fn open(state_dir: &Path, trust_domain: &str, now: SystemTime) -> Result<RootPem, CertError> {
    state::state_dir(state_dir)?;
    let dir = state_dir.join("ca");
    if !dir.exists() {
        create(state_dir, &dir, trust_domain, now)?;
    }
    state::check_dir(&dir)?;
    let (key_path, cert_path) = (dir.join(ROOT_KEY), dir.join(ROOT_CERT));
    let missing = |path: &PathBuf| {
        let remedy = format!(
            "restore it from a backup, or move {} away to start a new root (every certificate of the old one \
             stops being trusted)",
            dir.display()
        );
        CertError::state(path, "is missing", remedy)
    };
    let key = state::read_private(&key_path)?.ok_or_else(|| missing(&key_path))?;
    let cert = state::read_public(&cert_path)?.ok_or_else(|| missing(&cert_path))?;
    let extra_path = dir.join(EXTRA_ROOTS);
    let roots = state::read_public(&extra_path)?.map(|pem| (extra_path, pem)).into_iter().collect();
    Ok(RootPem { key: (key_path, key), cert: (cert_path, cert), roots, remedy: "restore it from a backup" })
}

/// Makes a root in a directory of another name, which becomes `dir` in one step.
fn create(state_dir: &Path, dir: &Path, trust_domain: &str, now: SystemTime) -> Result<(), CertError> {
    let root = NewRoot::make(trust_domain, now)?;
    let new = state_dir.join(format!("ca.new.{}", state::unique_suffix()?));
    let io = |e: std::io::Error| CertError::state(&new, e.to_string(), "make the state directory writable");
    state::private_dir(&new)?;
    state::write_private(&new.join(ROOT_KEY), root.key.as_bytes())?;
    state::write_private(&new.join(ROOT_CERT), root.cert.as_bytes())?;
    if let Err(e) = fs::rename(&new, dir) {
        let _ = fs::remove_dir_all(&new);
        // Another process was faster: its root is the root.
        return if dir.exists() { Ok(()) } else { Err(io(e)) };
    }
    state::sync_dir(state_dir).map_err(io)
}

/// Checks that `cert` can sign with `key` for `trust_domain`; gives its end.
pub(crate) fn check(
    cert: &CertificateDer<'_>,
    (key, key_path): (&PrivateKey, &Path),
    trust_domain: &str,
    now: SystemTime,
) -> Result<SystemTime, String> {
    let (_, x509) = X509Certificate::from_der(cert).map_err(|_| "is no X.509 certificate".to_owned())?;
    if !x509.is_ca() {
        return Err("is not a CA certificate".to_owned());
    }
    if x509.public_key().subject_public_key.data.as_ref() != key.der_bytes() {
        let file = key_path.file_name().unwrap_or_default().display();
        return Err(format!("does not belong to the key in {file}"));
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
