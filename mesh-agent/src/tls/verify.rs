//! Judging a peer's certificate: path and usage by webpki, then the one SPIFFE name, then whom we expected.
//!
//! There is no host name here: a peer is who its URI SAN says, wherever it was reached.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, PeerMisbehaved, SignatureScheme};

use super::error::TlsError;
use crate::identity::chain::{self, Usage};
use crate::identity::{CertFault, TrustBundle, provider};
use crate::model::identity::Identity;

/// The workload that a verified certificate names.
pub(super) fn identity_of(certificate: &CertificateDer<'_>, trust_domain: &str) -> Result<Identity, CertFault> {
    chain::workload(certificate, trust_domain)
}

/// Accepts any workload of the trust domain, or only the expected one.
#[derive(Debug)]
pub(super) struct PeerVerifier {
    trust_domain: Arc<str>,
    bundle: Arc<TrustBundle>,
    expected: Option<Identity>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PeerVerifier {
    /// For a server: any client of `trust_domain` whom `bundle` vouches for.
    pub(super) fn any_of(trust_domain: &str, bundle: Arc<TrustBundle>) -> Self {
        let algorithms = provider().signature_verification_algorithms;
        Self { trust_domain: trust_domain.into(), bundle, expected: None, algorithms }
    }

    /// For a client: `expected` and nobody else.
    pub(super) fn only(expected: Identity, trust_domain: &str, bundle: Arc<TrustBundle>) -> Self {
        Self { expected: Some(expected), ..Self::any_of(trust_domain, bundle) }
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: Usage,
    ) -> Result<(), TlsError> {
        let now = UNIX_EPOCH + Duration::from_secs(now.as_secs());
        let presented = chain::verify(leaf, intermediates, &self.bundle, now, usage)
            .and_then(|()| identity_of(leaf, &self.trust_domain))
            .map_err(|fault| TlsError::PeerCertificate { fault })?;
        match &self.expected {
            Some(expected) if *expected != presented => {
                Err(TlsError::IdentityMismatch { expected: expected.clone(), presented })
            }
            _ => Ok(()),
        }
    }
}

/// TLS 1.2 is not configured anywhere; should a library bug ever ask, the answer is no.
fn no_tls12() -> rustls::Error {
    rustls::Error::PeerMisbehaved(PeerMisbehaved::SelectedUnofferedCipherSuite)
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now, Usage::Server)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn client_auth_mandatory(&self) -> bool {
        true
    }

    /// None: the client has exactly one certificate to offer, and names would only tell strangers our roots.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now, Usage::Client)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
