//! Keeps a valid certificate for each service account with a pod on this node.
//!
//! One task owns the table below; each attempt is a task of its own, a bounded number at a time. A failed
//! refresh changes nothing: the old certificate serves until its end. An identity that leaves is forgotten
//! at once, and an answer that comes too late for it is dropped.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rand::RngExt;
use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::ca::{CaClient, Issued, WORKLOAD_TTL_MAX, issue};
use super::chain::{self, Usage};
use super::clock::Clock;
use super::credential::Credential;
use super::error::CertError;
use super::schedule::{BACKOFF_MIN, backoff, refresh_at};
use super::store::CertStore;
use crate::model::identity::Identity;

/// Longest time until the wall clock is looked at again: tokio's clock stands still while a machine
/// sleeps, and the wall clock may be set.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// A CA that reads the objects itself may learn of a new pod after its node's agent: the first refusals are no
/// reason to call somebody.
const PATIENCE: u32 = 4;
/// Over how long the renewals are spread that a change of the CA's roots asks for.
const RENEWAL_SPREAD: Duration = Duration::from_secs(30);
/// A failed renewal is tried again before so much of what is left of the certificate's life is over.
const SHARE_OF_WHAT_IS_LEFT: u32 = 4;
/// A lasting failure of one identity is logged this often.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// How the rotator works.
#[derive(Clone, Copy, Debug)]
pub struct RotatorSettings {
    /// Life of the certificates asked for; at most 24 h.
    pub ttl: Duration,
    /// Attempts under way at once: enough to start a full node in a second, too few to hurt the CA.
    pub concurrency: usize,
}

impl Default for RotatorSettings {
    fn default() -> Self {
        Self { ttl: WORKLOAD_TTL_MAX, concurrency: 8 }
    }
}

/// The task that issues and renews.
pub struct Rotator {
    store: Arc<CertStore>,
    ca: Arc<dyn CaClient>,
    settings: RotatorSettings,
    dice: Box<dyn FnMut() -> f64 + Send>,
    slots: BTreeMap<Identity, Slot>,
    attempts: JoinSet<Result<Issued, CertError>>,
    running: HashMap<Id, (Identity, u64)>,
    epoch: u64,
}

/// One wanted identity.
#[derive(Debug)]
struct Slot {
    /// Tells this stay of the identity from an earlier one.
    epoch: u64,
    due: Due,
    failures: u32,
    logged: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
enum Due {
    /// An attempt is under way.
    Running,
    /// The first attempt, or the next one after a failure.
    Attempt(Instant),
    /// The renewal of a certificate in force, by the wall clock.
    Refresh(SystemTime),
}

impl fmt::Debug for Rotator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rotator").field("ca", &self.ca).field("slots", &self.slots).finish_non_exhaustive()
    }
}

impl Rotator {
    /// A rotator that fills `store` from `ca`.
    #[must_use]
    pub fn new(store: Arc<CertStore>, ca: Arc<dyn CaClient>, settings: RotatorSettings) -> Self {
        Self::with_dice(store, ca, settings, Box::new(|| rand::rng().random::<f64>()))
    }

    /// As [`Self::new`]; `dice` gives the jitter, in 0..1.
    #[must_use]
    pub fn with_dice(
        store: Arc<CertStore>,
        ca: Arc<dyn CaClient>,
        settings: RotatorSettings,
        dice: Box<dyn FnMut() -> f64 + Send>,
    ) -> Self {
        Self {
            store,
            ca,
            settings,
            dice,
            slots: BTreeMap::new(),
            attempts: JoinSet::new(),
            running: HashMap::new(),
            epoch: 0,
        }
    }

    /// Works until the sender of `wanted` is gone; certificates stay in the store then.
    pub async fn run(mut self, mut wanted: watch::Receiver<BTreeSet<Identity>>) {
        let first = wanted.borrow_and_update().clone();
        self.reconcile(&first);
        let ca = Arc::clone(&self.ca);
        let mut keep_ready = ca.keep_ready();
        let mut changed_roots = ca.changed();
        loop {
            let wake = self.start_due();
            tokio::select! {
                changed = wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let set = wanted.borrow_and_update().clone();
                    self.reconcile(&set);
                }
                Some(ended) = self.attempts.join_next_with_id() => self.ended(ended),
                () = sleep_until(wake) => {}
                () = &mut keep_ready => keep_ready = Box::pin(std::future::pending()),
                () = &mut changed_roots => {
                    tracing::info!(ca = ca.name(), "the roots of the CA have changed: certificates are renewed");
                    self.renew_all();
                    changed_roots = ca.changed();
                }
            }
        }
    }

    /// Takes in who is wanted now.
    fn reconcile(&mut self, wanted: &BTreeSet<Identity>) {
        let gone: Vec<Identity> = self.slots.keys().filter(|identity| !wanted.contains(*identity)).cloned().collect();
        for identity in gone {
            self.slots.remove(&identity);
            self.store.remove(&identity);
            tracing::info!(%identity, "last pod of this service account left: certificate dropped");
        }
        for identity in wanted {
            if !self.slots.contains_key(identity) {
                self.epoch += 1;
                self.store.want(identity);
                let slot = Slot { epoch: self.epoch, due: Due::Attempt(Instant::now()), failures: 0, logged: None };
                self.slots.insert(identity.clone(), slot);
            }
        }
    }

    /// Starts what is due, as far as the limit allows; gives the time of the next look. What is due but over
    /// the limit is looked at again when an attempt ends.
    fn start_due(&mut self) -> Instant {
        let (now, wall) = (Instant::now(), self.store.clock().now());
        let mut wake = now + LOOK_AGAIN;
        let mut free = self.settings.concurrency.max(1).saturating_sub(self.attempts.len());
        for (identity, slot) in &mut self.slots {
            let wait = match slot.due {
                Due::Running => continue,
                Due::Attempt(at) => at.saturating_duration_since(now),
                Due::Refresh(at) => at.duration_since(wall).unwrap_or_default(),
            };
            if !wait.is_zero() {
                wake = wake.min(now + wait.min(LOOK_AGAIN));
            } else if free > 0 {
                free -= 1;
                slot.due = Due::Running;
                let (ca, subject, ttl) = (Arc::clone(&self.ca), identity.clone(), self.settings.ttl);
                let task = self.attempts.spawn(async move { issue(&*ca, &subject, ttl, wall).await });
                self.running.insert(task.id(), (identity.clone(), slot.epoch));
            }
        }
        wake
    }

    /// Takes in the end of an attempt.
    fn ended(&mut self, ended: Result<(Id, Result<Issued, CertError>), JoinError>) {
        let (id, result) = match ended {
            Ok((id, result)) => (id, result),
            Err(panic) => (panic.id(), Err(CertError::crypto("a certificate", "the attempt panicked"))),
        };
        let Some((identity, epoch)) = self.running.remove(&id) else { return };
        let Some(slot) = self.slots.get_mut(&identity).filter(|slot| slot.epoch == epoch) else {
            // It left while the CA was thinking: the key is wiped here.
            return;
        };
        let dice = (self.dice)();
        let wall = Arc::clone(self.store.clock());
        match result {
            Ok(issued) => {
                slot.due =
                    Due::Refresh(refresh_at(issued.credential.not_before(), issued.credential.not_after(), dice));
                slot.failures = 0;
                slot.logged = None;
                let before = self.store.trust().generation();
                self.store.install(issued);
                tracing::debug!(%identity, "certificate issued");
                if self.store.trust().generation() != before {
                    self.renew_what_lost_its_root();
                }
            }
            Err(error) => {
                slot.failures = slot.failures.saturating_add(1);
                let wait = soon_enough(backoff(slot.failures, dice), self.store.current(&identity), &*wall);
                slot.due = Due::Attempt(Instant::now() + wait);
                let log = slot.failures == PATIENCE || slot.logged.is_none_or(|at| at.elapsed() >= LOG_EVERY);
                if log {
                    slot.logged = Some(Instant::now());
                    log_failure(&identity, &error, slot.failures, wait, self.store.current(&identity).is_some());
                }
                self.store.failed(&identity, error);
            }
        }
    }

    /// After a change at the CA: everything is asked for anew, not all at the same time.
    fn renew_all(&mut self) {
        let (now, wall) = (Instant::now(), self.store.clock().now());
        for slot in self.slots.values_mut() {
            let wait = RENEWAL_SPREAD.mul_f64((self.dice)().clamp(0.0, 1.0));
            slot.due = match slot.due {
                Due::Running => Due::Running,
                Due::Attempt(at) => Due::Attempt(at.min(now + wait)),
                Due::Refresh(at) => Due::Refresh(at.min(wall + wait)),
            };
        }
    }

    /// After a change of roots: certificates that no root of the bundle vouches for are renewed at once.
    fn renew_what_lost_its_root(&mut self) {
        let (trust, now) = (self.store.trust(), self.store.clock().now());
        for (identity, slot) in &mut self.slots {
            let Some(credential) = self.store.held(identity) else { continue };
            let lost = credential.chain().split_first().is_none_or(|(leaf, intermediates)| {
                chain::verify(leaf, intermediates, &trust, now, Usage::Server).is_err()
            });
            if lost && matches!(slot.due, Due::Refresh(_)) {
                slot.due = Due::Attempt(Instant::now());
            }
        }
    }
}

/// `wait`, or less where the certificate in force would be over too soon for another attempt.
fn soon_enough(wait: Duration, in_force: Option<Arc<Credential>>, clock: &dyn Clock) -> Duration {
    let left = in_force.and_then(|credential| credential.not_after().duration_since(clock.now()).ok());
    left.map_or(wait, |left| wait.min((left / SHARE_OF_WHAT_IS_LEFT).max(BACKOFF_MIN)))
}

fn log_failure(identity: &Identity, error: &CertError, failures: u32, wait: Duration, still_valid: bool) {
    let retry_ms = wait.as_millis();
    if still_valid {
        tracing::warn!(%identity, %error, failures, retry_ms, "certificate not renewed; the old one keeps serving");
    } else if failures < PATIENCE {
        tracing::info!(%identity, %error, failures, retry_ms, "no certificate yet");
    } else {
        tracing::error!(%identity, %error, failures, retry_ms, "no certificate: this service account cannot talk");
    }
}

#[cfg(test)]
#[path = "rotate_tests.rs"]
mod tests;
