//! The trust bundle: the roots that vouch for peers, several at once so that a root can be replaced.

use std::borrow::Cow;
use std::time::SystemTime;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, TrustAnchor};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::clock::from_timestamp;

/// Most roots a bundle may hold: path building is linear in them, and a rotation needs two.
const ROOTS_MAX: usize = 16;

/// One root, but for its anchor.
#[derive(Clone, Debug)]
struct Root {
    der: CertificateDer<'static>,
    not_after: SystemTime,
}

/// Roots that are trusted together. Immutable: a change is a new bundle with a higher generation.
#[derive(Clone, Debug, Default)]
pub struct TrustBundle {
    roots: Vec<Root>,
    /// Subject and public key of each of `roots`, in the same order, in the form that path building takes.
    anchors: Vec<TrustAnchor<'static>>,
    generation: u64,
}

/// Why a set of certificates is no trust bundle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// There is no certificate at all.
    #[error("there is no certificate in it")]
    Empty,
    /// One of the certificates is not a CA certificate.
    #[error("certificate {0} of it is not a readable CA certificate")]
    NotACa(usize),
    /// More roots than path building should be made to try.
    #[error("it has {0} roots, more than {ROOTS_MAX}")]
    TooMany(usize),
}

impl TrustBundle {
    /// A bundle of `roots` (duplicates are dropped).
    ///
    /// # Errors
    /// When there is none, one is not a CA certificate, or there are too many.
    pub fn new(roots: &[CertificateDer<'_>], generation: u64) -> Result<Self, BundleError> {
        let mut bundle = Self { generation, ..Self::default() };
        for (index, der) in roots.iter().enumerate() {
            if bundle.roots().any(|root| root == der) {
                continue;
            }
            let (root, anchor) = read_root(der).ok_or(BundleError::NotACa(index))?;
            bundle.roots.push(root);
            bundle.anchors.push(anchor);
        }
        match bundle.roots.len() {
            0 => Err(BundleError::Empty),
            1..=ROOTS_MAX => Ok(bundle),
            more => Err(BundleError::TooMany(more)),
        }
    }

    /// A bundle of the certificates of a PEM text.
    ///
    /// # Errors
    /// As [`Self::new`]; a broken PEM section counts as [`BundleError::NotACa`].
    pub fn from_pem(pem: &[u8], generation: u64) -> Result<Self, BundleError> {
        let mut roots = Vec::new();
        for (index, der) in CertificateDer::pem_slice_iter(pem).enumerate() {
            roots.push(der.map_err(|_| BundleError::NotACa(index))?);
        }
        Self::new(&roots, generation)
    }

    /// Grows with each change of the roots.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The roots, DER.
    pub fn roots(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        self.roots.iter().map(|root| &root.der)
    }

    /// Until when the longest-living root is valid; `None` for an empty bundle.
    #[must_use]
    pub fn not_after(&self) -> Option<SystemTime> {
        self.roots.iter().map(|root| root.not_after).max()
    }

    /// Whether both bundles hold the same roots, in whatever order.
    #[must_use]
    pub fn same_roots(&self, other: &Self) -> bool {
        self.roots.len() == other.roots.len() && self.roots().all(|root| other.roots().any(|o| o == root))
    }

    pub(crate) fn with_generation(mut self, generation: u64) -> Self {
        self.generation = generation;
        self
    }

    /// The roots valid at `now`, as webpki wants them: it does not look at an anchor's own validity.
    pub(crate) fn anchors(&self, now: SystemTime) -> Cow<'_, [TrustAnchor<'static>]> {
        if self.roots.iter().all(|root| root.not_after > now) {
            return Cow::Borrowed(&self.anchors);
        }
        let valid = self.roots.iter().zip(&self.anchors).filter(|(root, _)| root.not_after > now);
        Cow::Owned(valid.map(|(_, anchor)| anchor.clone()).collect())
    }
}

fn read_root(der: &CertificateDer<'_>) -> Option<(Root, TrustAnchor<'static>)> {
    let anchor = webpki::anchor_from_trusted_cert(der).ok()?.to_owned();
    let (_, x509) = X509Certificate::from_der(der).ok()?;
    let not_after = from_timestamp(x509.validity().not_after.timestamp());
    x509.is_ca().then(|| (Root { not_after, der: der.clone().into_owned() }, anchor))
}
