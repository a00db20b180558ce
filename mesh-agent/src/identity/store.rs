//! Where the node's certificates are: written by the rotator, read by `tls` on every handshake.
//!
//! Reads never block. A certificate past its end is not handed out: the local error is clearer than the
//! peer's alert.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::bundle::TrustBundle;
use super::ca::Issued;
use super::clock::{Clock, SystemClock};
use super::credential::Credential;
use super::error::CertError;
use crate::model::identity::Identity;

/// The certificates of the service accounts with a pod on this node, and the trust bundle.
#[derive(Debug)]
pub struct CertStore {
    trust_domain: Arc<str>,
    clock: Arc<dyn Clock>,
    current: ArcSwap<HashMap<Identity, Arc<Credential>>>,
    trust: ArcSwap<TrustBundle>,
    wanted: Mutex<BTreeMap<Identity, Progress>>,
    generation: AtomicU64,
    changed: watch::Sender<u64>,
}

/// What the rotator last said about an identity.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    pub(super) failures: u32,
    pub(super) last_error: Option<CertError>,
}

/// One identity of [`CertStore::status`].
#[derive(Clone, Debug)]
pub struct CertStatus {
    /// Whose certificate.
    pub identity: Identity,
    /// How it stands.
    pub state: CertState,
    /// Failed attempts since the last success.
    pub failures: u32,
    /// The last failure, cleared by the next success.
    pub last_error: Option<String>,
}

/// How an identity's certificate stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertState {
    /// Wanted, not there yet.
    Missing,
    /// In use.
    Valid(CertDates),
    /// Was in use; the CA has been away for too long.
    Expired(CertDates),
}

/// Dates and numbers of one certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertDates {
    /// From when it is valid.
    pub not_before: SystemTime,
    /// Until when it is valid.
    pub not_after: SystemTime,
    /// Serial number, hexadecimal.
    pub serial: String,
    /// The store's number of it.
    pub generation: u64,
}

impl CertStore {
    /// An empty store for `trust_domain`: knows no certificate and trusts nobody.
    #[must_use]
    pub fn new(trust_domain: &str) -> Self {
        Self::with_clock(trust_domain, Arc::new(SystemClock))
    }

    /// As [`Self::new`], by another clock than the machine's.
    #[must_use]
    pub fn with_clock(trust_domain: &str, clock: Arc<dyn Clock>) -> Self {
        Self {
            trust_domain: trust_domain.into(),
            clock,
            current: ArcSwap::default(),
            trust: ArcSwap::default(),
            wanted: Mutex::default(),
            generation: AtomicU64::new(0),
            changed: watch::Sender::new(0),
        }
    }

    /// Our trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The clock by which certificates are judged.
    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// The certificate of `identity` if this node has one that is valid now. Never blocks.
    #[must_use]
    pub fn current(&self, identity: &Identity) -> Option<Arc<Credential>> {
        let now = self.clock.now();
        self.current.load().get(identity).filter(|c| c.not_after() > now).cloned()
    }

    /// The roots in force. Never blocks.
    #[must_use]
    pub fn trust(&self) -> Arc<TrustBundle> {
        self.trust.load_full()
    }

    /// Wakes after each change of a certificate or of the roots.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The certificate of `identity`, waiting for it for at most `within`.
    ///
    /// # Errors
    /// [`CertError::NotIssued`] with the last failure.
    pub async fn wait_for(&self, identity: &Identity, within: Duration) -> Result<Arc<Credential>, CertError> {
        let mut changed = self.changed.subscribe();
        let found = async {
            loop {
                changed.mark_unchanged();
                if let Some(credential) = self.current(identity) {
                    return credential;
                }
                // The sender is `self`: it cannot be gone.
                let _ = changed.changed().await;
            }
        };
        tokio::time::timeout(within, found).await.map_err(|_| CertError::NotIssued {
            subject: identity.to_string(),
            waited: within,
            reason: self.why_missing(identity),
        })
    }

    /// Every identity wanted on this node, in order.
    #[must_use]
    pub fn status(&self) -> Vec<CertStatus> {
        let now = self.clock.now();
        let current = self.current.load();
        self.progress()
            .iter()
            .map(|(identity, progress)| CertStatus {
                identity: identity.clone(),
                state: match current.get(identity) {
                    None => CertState::Missing,
                    Some(credential) if credential.not_after() > now => CertState::Valid(dates(credential)),
                    Some(credential) => CertState::Expired(dates(credential)),
                },
                failures: progress.failures,
                last_error: progress.last_error.as_ref().map(ToString::to_string),
            })
            .collect()
    }

    /// Puts a certificate in force, and the roots that came with it if they differ.
    pub fn install(&self, issued: Issued) {
        let mut progress = self.progress();
        let identity = issued.credential.identity().clone();
        self.trust_locked(issued.trust);
        let credential = Arc::new(issued.credential.with_generation(self.next_generation()));
        let mut map = HashMap::clone(&self.current.load());
        map.insert(identity.clone(), credential);
        self.current.store(Arc::new(map));
        progress.insert(identity, Progress::default());
        self.wake();
    }

    /// Puts other roots in force; does nothing when they are the same.
    pub fn set_trust(&self, bundle: TrustBundle) {
        let _writer = self.progress();
        self.trust_locked(bundle);
        self.wake();
    }

    /// Notes that `identity` is wanted from now on.
    pub(super) fn want(&self, identity: &Identity) {
        self.progress().entry(identity.clone()).or_default();
    }

    /// Notes a failed attempt.
    pub(super) fn failed(&self, identity: &Identity, error: CertError) {
        if let Some(progress) = self.progress().get_mut(identity) {
            progress.failures = progress.failures.saturating_add(1);
            progress.last_error = Some(error);
        }
    }

    /// Forgets `identity`. Its key is wiped as soon as no handshake under way still uses it.
    pub fn remove(&self, identity: &Identity) {
        let mut progress = self.progress();
        progress.remove(identity);
        let mut map = HashMap::clone(&self.current.load());
        if map.remove(identity).is_some() {
            self.current.store(Arc::new(map));
            self.wake();
        }
    }

    /// The certificate of `identity`, valid or not.
    pub(super) fn held(&self, identity: &Identity) -> Option<Arc<Credential>> {
        self.current.load().get(identity).cloned()
    }

    fn trust_locked(&self, bundle: TrustBundle) {
        if !self.trust.load().same_roots(&bundle) {
            self.trust.store(Arc::new(bundle.with_generation(self.next_generation())));
        }
    }

    fn why_missing(&self, identity: &Identity) -> String {
        match self.progress().get(identity) {
            None => "no pod on this node has this service account".to_owned(),
            Some(Progress { last_error: Some(error), .. }) => error.to_string(),
            Some(_) => "the CA has not answered yet".to_owned(),
        }
    }

    fn next_generation(&self) -> u64 {
        self.generation.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn wake(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    /// Also the writers' lock. Held for map operations only, so a poisoned one is still consistent.
    fn progress(&self) -> MutexGuard<'_, BTreeMap<Identity, Progress>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn dates(credential: &Credential) -> CertDates {
    CertDates {
        not_before: credential.not_before(),
        not_after: credential.not_after(),
        serial: credential.serial().to_owned(),
        generation: credential.generation(),
    }
}
