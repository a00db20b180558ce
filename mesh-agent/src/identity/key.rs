//! Private keys. Their bytes exist in this file only: made, handed to the crypto library, wiped.
//!
//! The library keeps its own copy in memory that it wipes when it frees it (AWS-LC's `OPENSSL_free`). What
//! the rest of the room holds is rustls' `SigningKey`, an object that signs and cannot be asked for its key:
//! a signer in a process of its own could take its place.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use rcgen::{PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm};
use rustls::SignatureScheme;
use rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::SigningKey;
use zeroize::Zeroizing;

use super::error::CertError;

/// Length of an uncompressed P-256 point: `04 | X (32) | Y (32)` (SEC 1 §2.3.3).
const POINT_BYTES: usize = 65;

/// An ECDSA P-256 key pair. `Debug` shows nothing of it.
#[derive(Clone)]
pub(crate) struct PrivateKey {
    signer: Arc<dyn SigningKey>,
    point: [u8; POINT_BYTES],
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(P-256)")
    }
}

impl PrivateKey {
    /// A new key that never leaves memory.
    pub(crate) fn generate() -> Result<Self, CertError> {
        Self::generate_pkcs8().map(|(key, _)| key)
    }

    /// A new key and its PKCS #8 encoding, for the two keys that are kept on disk (CA root, node).
    pub(crate) fn generate_pkcs8() -> Result<(Self, Zeroizing<Vec<u8>>), CertError> {
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new())
            .map_err(|e| CertError::crypto("a P-256 key", e))?;
        let key = Self::from_pkcs8(document.as_ref())?;
        Ok((key, Zeroizing::new(document.as_ref().to_vec())))
    }

    /// Reads a PKCS #8 encoded P-256 key.
    pub(crate) fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, CertError> {
        let not_p256 = || CertError::crypto("an ECDSA P-256 key from PKCS #8", "it is of another kind or broken");
        Self::from_der(&PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8))).ok_or_else(not_p256)
    }

    /// Reads a P-256 key in PEM: PKCS #8, or SEC 1 as cert-manager writes it. The error says what is wrong.
    pub(crate) fn from_pem(pem: &[u8]) -> Result<Self, String> {
        let der = PrivateKeyDer::from_pem_slice(pem).map_err(|_| "holds no PKCS #8 or SEC 1 private key (PEM)")?;
        Self::from_der(&der).ok_or_else(|| "holds a key that is not ECDSA P-256, or is broken".to_owned())
    }

    fn from_der(der: &PrivateKeyDer<'_>) -> Option<Self> {
        let signer = any_ecdsa_type(der).ok()?;
        signer.choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256])?;
        let point = *signer.public_key()?.last_chunk::<POINT_BYTES>()?;
        Some(Self { signer, point })
    }

    /// The key as TLS uses it.
    pub(crate) fn signer(&self) -> Arc<dyn SigningKey> {
        Arc::clone(&self.signer)
    }
}

impl PublicKeyData for PrivateKey {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for PrivateKey {
    fn sign(&self, msg: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.signer
            .choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256])
            .and_then(|signer| signer.sign(msg).ok())
            .ok_or(rcgen::Error::RemoteKeyError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_read_back_signs_for_the_same_public_key() {
        let (key, pkcs8) = PrivateKey::generate_pkcs8().unwrap();
        let again = PrivateKey::from_pkcs8(&pkcs8).unwrap();
        assert_eq!(key.der_bytes(), again.der_bytes());
        assert_eq!(again.der_bytes()[0], 4, "uncompressed point");
    }

    #[test]
    fn debug_shows_no_key_bytes() {
        let (key, _) = PrivateKey::generate_pkcs8().unwrap();
        assert_eq!(format!("{key:?}"), "PrivateKey(P-256)");
    }

    #[test]
    fn a_key_is_read_from_either_form_of_pem() {
        // openssl ecparam -name prime256v1 -genkey: SEC 1, as cert-manager writes it by default.
        let sec1 = "-----BEGIN EC PRIVATE KEY-----\n\
                    MHcCAQEEIDWEvxN2bbWeM3eb+WZX98oQZAJG5JPEYFaCvRDyqKeNoAoGCCqGSM49\n\
                    AwEHoUQDQgAEM9dPDLTyqzWnIbabGFAN4Vjzm6dPsoi9+fup0QOV1xP4pg3Ycqm8\n\
                    Tng9HQN3C0HgDl1UPg/DlzGsC1lMEstgeA==\n\
                    -----END EC PRIVATE KEY-----\n";
        PrivateKey::from_pem(sec1.as_bytes()).unwrap();
        let (key, pkcs8) = PrivateKey::generate_pkcs8().unwrap();
        let again = PrivateKey::from_pem(super::super::state::pem("PRIVATE KEY", &pkcs8).as_bytes()).unwrap();
        assert_eq!(key.der_bytes(), again.der_bytes());
        assert!(PrivateKey::from_pem(b"junk").unwrap_err().contains("no PKCS #8"));
    }

    #[test]
    fn a_key_of_another_kind_is_refused() {
        let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        assert!(PrivateKey::from_pkcs8(&p384.serialize_der()).is_err());
        assert!(PrivateKey::from_pkcs8(b"junk").is_err());
    }
}
