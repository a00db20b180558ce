//! Test fixtures: a CA that signs whatever a test wants, and clocks and CAs that do as they are told.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::CertificateDer;

use super::authority::Request;
use super::bundle::TrustBundle;
use super::ca::{CaClient, Issued, KeepReady, SignFuture, SignedCert};
use super::clock::Clock;
use super::credential::Credential;
use super::error::CertError;
use super::key::PrivateKey;
use super::store::CertStore;
use crate::model::identity::Identity;

/// The trust domain of the tests.
pub(crate) const TRUST_DOMAIN: &str = "cluster.local";

/// `spiffe://cluster.local/ns/<namespace>/sa/<service account>`.
pub(crate) fn identity(namespace: &str, service_account: &str) -> Identity {
    Identity::new(TRUST_DOMAIN, namespace, service_account).unwrap()
}

/// A root that signs anything.
pub(crate) struct TestCa {
    issuer: Issuer<'static, PrivateKey>,
    pub(crate) root: CertificateDer<'static>,
}

/// A leaf to be forged; the default is a good workload certificate but for its names.
#[derive(Clone)]
pub(crate) struct Leaf {
    pub(crate) names: Vec<SanType>,
    pub(crate) usages: Vec<ExtendedKeyUsagePurpose>,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    pub(crate) is_ca: IsCa,
}

impl Leaf {
    pub(crate) fn named(uris: &[&str]) -> Self {
        let now = SystemTime::now();
        Self {
            names: uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect(),
            usages: vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth],
            not_before: now - Duration::from_secs(60),
            not_after: now + Duration::from_secs(3600),
            is_ca: IsCa::ExplicitNoCa,
        }
    }

    fn params(&self) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = self.names.clone();
        params.extended_key_usages = self.usages.clone();
        params.not_before = self.not_before.into();
        params.not_after = self.not_after.into();
        params.is_ca = self.is_ca;
        params
    }
}

impl TestCa {
    pub(crate) fn new(name: &str) -> Self {
        let key = PrivateKey::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = params.self_signed(&key).unwrap();
        let issuer = Issuer::from_ca_cert_der(root.der(), key).unwrap();
        Self { issuer, root: root.der().clone() }
    }

    /// A key and its certificate.
    pub(crate) fn forge(&self, leaf: &Leaf) -> (PrivateKey, CertificateDer<'static>) {
        let key = PrivateKey::generate().unwrap();
        let cert = self.certify(&key, leaf);
        (key, cert)
    }

    pub(crate) fn certify(&self, key: &impl rcgen::PublicKeyData, leaf: &Leaf) -> CertificateDer<'static> {
        leaf.params().signed_by(key, &self.issuer).unwrap().into()
    }

    /// The root alone as a bundle.
    pub(crate) fn bundle(&self) -> TrustBundle {
        TrustBundle::new(std::slice::from_ref(&self.root), 0).unwrap()
    }

    /// What a CA would have given for `identity`, out of `leaf`, whether it is sound or not.
    pub(crate) fn issued(&self, identity: &Identity, leaf: &Leaf) -> Issued {
        let (key, cert) = self.forge(leaf);
        let credential = Credential::new(identity.clone(), &key, vec![cert]).unwrap();
        Issued { credential, trust: self.bundle() }
    }

    /// A store with one good certificate for each of `identities`.
    pub(crate) fn store(&self, identities: &[&Identity]) -> Arc<CertStore> {
        let store = CertStore::new(TRUST_DOMAIN);
        for identity in identities {
            store.install(self.issued(identity, &Leaf::named(&[&identity.to_string()])));
        }
        Arc::new(store)
    }

    /// A certificate for `identity` signed by an honest workload's key instead of a CA's.
    pub(crate) fn issued_below_a_leaf(&self, identity: &Identity) -> Issued {
        let (issuer_key, issuer_cert) = self.forge(&Leaf::named(&["spiffe://cluster.local/ns/shop/sa/other"]));
        let issuer = Issuer::from_ca_cert_der(&issuer_cert, issuer_key).unwrap();
        let key = PrivateKey::generate().unwrap();
        let cert = Leaf::named(&[&identity.to_string()]).params().signed_by(&key, &issuer).unwrap();
        let credential = Credential::new(identity.clone(), &key, vec![cert.into(), issuer_cert]).unwrap();
        Issued { credential, trust: self.bundle() }
    }
}

/// A wall clock that moves with tokio's (paused) clock, or by hand.
#[derive(Debug)]
pub(crate) struct TestClock {
    start: SystemTime,
    began: tokio::time::Instant,
    ahead_s: AtomicU64,
}

impl TestClock {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { start: SystemTime::now(), began: tokio::time::Instant::now(), ahead_s: AtomicU64::new(0) })
    }

    /// A clock that is `by` behind.
    pub(crate) fn behind(by: Duration) -> Arc<Self> {
        Arc::new(Self { start: SystemTime::now() - by, began: tokio::time::Instant::now(), ahead_s: AtomicU64::new(0) })
    }

    /// Sets the wall clock forward without any time passing.
    pub(crate) fn jump(&self, by: Duration) {
        self.ahead_s.fetch_add(by.as_secs(), Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now(&self) -> SystemTime {
        self.start + self.began.elapsed() + Duration::from_secs(self.ahead_s.load(Ordering::SeqCst))
    }
}

/// A CA in memory that counts, can be away, and can be made to answer late.
#[derive(Debug)]
pub(crate) struct ScriptedCa {
    clock: Arc<dyn Clock>,
    /// Refuses to answer while set.
    pub(crate) away: AtomicBool,
    /// Requests so far.
    pub(crate) calls: AtomicU32,
    /// Requests under way now, and the most there ever were.
    pub(crate) under_way: AtomicU32,
    pub(crate) most_under_way: AtomicU32,
    /// How long each answer takes.
    pub(crate) takes: Duration,
    /// Tells that everything should be asked for anew.
    pub(crate) change: tokio::sync::Notify,
    ca: Mutex<Arc<TestCa>>,
    extra_roots: Mutex<Vec<CertificateDer<'static>>>,
}

impl std::fmt::Debug for TestCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TestCa")
    }
}

impl ScriptedCa {
    pub(crate) fn new(clock: Arc<dyn Clock>, takes: Duration) -> Arc<Self> {
        Arc::new(Self {
            clock,
            away: AtomicBool::new(false),
            calls: AtomicU32::new(0),
            under_way: AtomicU32::new(0),
            most_under_way: AtomicU32::new(0),
            takes,
            change: tokio::sync::Notify::new(),
            ca: Mutex::new(Arc::new(TestCa::new("scripted"))),
            extra_roots: Mutex::default(),
        })
    }

    /// Signs with `ca` from now on; `extra` roots are handed out beside its own.
    pub(crate) fn sign_with(&self, ca: Arc<TestCa>, extra: Vec<CertificateDer<'static>>) {
        *self.ca.lock().unwrap() = ca;
        *self.extra_roots.lock().unwrap() = extra;
    }

    pub(crate) fn root(&self) -> CertificateDer<'static> {
        self.ca.lock().unwrap().root.clone()
    }

    async fn answer(&self, csr_pem: &str, identity: &Identity, ttl: Duration) -> Result<SignedCert, CertError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let under_way = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_under_way.fetch_max(under_way, Ordering::SeqCst);
        tokio::time::sleep(self.takes).await;
        self.under_way.fetch_sub(1, Ordering::SeqCst);
        if self.away.load(Ordering::SeqCst) {
            return Err(CertError::CaUnreachable { ca: "scripted".to_owned(), reason: "away".to_owned() });
        }
        let request = Request::read(csr_pem)?;
        let not_before = self.clock.now() - Duration::from_secs(60);
        let leaf = Leaf { not_before, not_after: not_before + ttl, ..Leaf::named(&[&identity.to_string()]) };
        let ca = Arc::clone(&self.ca.lock().unwrap());
        let mut roots = vec![ca.root.clone()];
        roots.extend(self.extra_roots.lock().unwrap().iter().cloned());
        Ok(SignedCert { chain: vec![ca.certify(request.public_key(), &leaf)], roots })
    }
}

impl CaClient for ScriptedCa {
    fn name(&self) -> &str {
        "scripted"
    }

    fn sign<'a>(&'a self, csr_pem: &'a str, identity: &'a Identity, ttl: Duration) -> SignFuture<'a> {
        Box::pin(self.answer(csr_pem, identity, ttl))
    }

    fn changed(&self) -> KeepReady<'_> {
        Box::pin(self.change.notified())
    }
}
