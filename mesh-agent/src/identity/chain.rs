//! Is this certificate what it claims? Path to the trust bundle (rustls-webpki), usage, and the one name.
//!
//! Used on every handshake by `tls`, on every answer of a CA, and by the CA on its callers. Pure: bytes,
//! bundle and time in, verdict out.

use std::time::SystemTime;

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::bundle::TrustBundle;
use super::clock::{from_timestamp, unix_time};
use super::node::NodeIdentity;
use crate::model::identity::Identity;

/// What the certificate's holder does with it in this handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Usage {
    /// It dialled us: `clientAuth`.
    Client,
    /// It answered us: `serverAuth`.
    Server,
}

/// Why a peer's certificate proves nothing. All of these are the peer's, or its CA's, fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertFault {
    /// Not an X.509 certificate that we can read.
    #[error("it cannot be read")]
    Unreadable,
    /// No path to a root of the bundle.
    #[error("it is not signed by any root of the trust bundle")]
    Untrusted,
    /// Its time is over.
    #[error("it has expired")]
    Expired,
    /// Its time has not come; most often one of the two clocks is wrong.
    #[error("it is not valid yet (is a clock wrong?)")]
    NotYetValid,
    /// It may not be used in this role.
    #[error("it lacks the extended key usage {0}")]
    Usage(&'static str),
    /// SPIFFE X509-SVID §4.1: exactly one URI SAN.
    #[error("it has {0} URI SANs instead of exactly one")]
    UriSans(usize),
    /// The one URI SAN is not the kind of name that is needed here.
    #[error("its name `{uri}` is not a {wanted}")]
    Name {
        /// The URI SAN.
        uri: String,
        /// The kind of name needed.
        wanted: &'static str,
    },
    /// A good name, but not of our trust domain.
    #[error("its name `{uri}` is not of the trust domain {ours}")]
    TrustDomain {
        /// The URI SAN.
        uri: String,
        /// Our trust domain.
        ours: String,
    },
    /// Whatever else the path builder objects to.
    #[error("{0}")]
    Path(String),
}

/// Checks path, validity and usage of `leaf` at `now`. Says nothing about its name.
pub(crate) fn verify(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    bundle: &TrustBundle,
    now: SystemTime,
    usage: Usage,
) -> Result<(), CertFault> {
    let cert = webpki::EndEntityCert::try_from(leaf).map_err(|_| CertFault::Unreadable)?;
    let key_usage = match usage {
        Usage::Client => webpki::KeyUsage::client_auth(),
        Usage::Server => webpki::KeyUsage::server_auth(),
    };
    cert.verify_for_usage(
        webpki::ALL_VERIFICATION_ALGS,
        &bundle.anchors(now),
        intermediates,
        unix_time(now),
        key_usage,
        None,
        None,
    )
    .map_err(|e| path_fault(&e, usage))?;
    // webpki asks for the usage only where the extension is present, which is right for intermediates.
    let (_, x509) = X509Certificate::from_der(leaf).map_err(|_| CertFault::Unreadable)?;
    let present = x509.extended_key_usage().map_err(|_| CertFault::Unreadable)?.is_some_and(|eku| match usage {
        Usage::Client => eku.value.client_auth,
        Usage::Server => eku.value.server_auth,
    });
    present.then_some(()).ok_or(CertFault::Usage(usage.name()))
}

/// The workload that `leaf` names, which must be of `trust_domain`.
pub(crate) fn workload(leaf: &CertificateDer<'_>, trust_domain: &str) -> Result<Identity, CertFault> {
    let uri = uri_san(leaf)?;
    match uri.parse::<Identity>() {
        Ok(identity) if identity.trust_domain() == trust_domain => Ok(identity),
        Ok(_) => Err(CertFault::TrustDomain { uri, ours: trust_domain.to_owned() }),
        Err(_) => Err(CertFault::Name { uri, wanted: "workload identity" }),
    }
}

/// The node that `leaf` names, which must be of `trust_domain`.
pub(crate) fn node(leaf: &CertificateDer<'_>, trust_domain: &str) -> Result<NodeIdentity, CertFault> {
    let uri = uri_san(leaf)?;
    match uri.parse::<NodeIdentity>() {
        Ok(node) if node.trust_domain() == trust_domain => Ok(node),
        Ok(_) => Err(CertFault::TrustDomain { uri, ours: trust_domain.to_owned() }),
        Err(_) => Err(CertFault::Name { uri, wanted: "node identity" }),
    }
}

/// Whether a certificate names itself as its issuer, as roots do.
pub(crate) fn is_self_issued(cert: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(cert).is_ok_and(|(_, x509)| x509.is_ca() && x509.subject() == x509.issuer())
}

/// Validity and serial number of a certificate.
pub(crate) struct Particulars {
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    /// Hexadecimal, as certificate tools print it.
    pub(crate) serial: String,
}

/// Reads validity and serial number.
pub(crate) fn particulars(cert: &CertificateDer<'_>) -> Result<Particulars, CertFault> {
    let (_, x509) = X509Certificate::from_der(cert).map_err(|_| CertFault::Unreadable)?;
    let validity = x509.validity();
    Ok(Particulars {
        not_before: from_timestamp(validity.not_before.timestamp()),
        not_after: from_timestamp(validity.not_after.timestamp()),
        serial: format!("{:x}", x509.serial),
    })
}

/// The only URI SAN of `leaf`; SANs of other kinds do not count.
fn uri_san(leaf: &CertificateDer<'_>) -> Result<String, CertFault> {
    let (_, x509) = X509Certificate::from_der(leaf).map_err(|_| CertFault::Unreadable)?;
    // An error here is a duplicate extension: two lists of names, so there is no "the" name.
    let san = x509.subject_alternative_name().map_err(|_| CertFault::Unreadable)?;
    let uris: Vec<&str> = san
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    match uris.as_slice() {
        [uri] => Ok((*uri).to_owned()),
        several => Err(CertFault::UriSans(several.len())),
    }
}

fn path_fault(error: &webpki::Error, usage: Usage) -> CertFault {
    match error {
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => CertFault::Untrusted,
        webpki::Error::CertExpired { .. } => CertFault::Expired,
        webpki::Error::CertNotValidYet { .. } => CertFault::NotYetValid,
        webpki::Error::RequiredEkuNotFoundContext(_) | webpki::Error::EmptyEkuExtension => {
            CertFault::Usage(usage.name())
        }
        other => CertFault::Path(other.to_string()),
    }
}

impl Usage {
    fn name(self) -> &'static str {
        match self {
            Self::Client => "clientAuth",
            Self::Server => "serverAuth",
        }
    }
}
