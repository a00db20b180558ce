//! Endpoint choice: the only room that remembers how endpoints fared.
//!
//! Among the endpoints that kube-proxy's rules allow ([`eligible()`]) the less busy of two drawn at random is taken
//! (least-request, power of two choices). What is remembered is the number of live connections per endpoint and
//! the pins of `sessionAffinity`; both die with their endpoint. No IO; clock and randomness are arguments of
//! [`Balancer::choose_at`]. No lock is held longer than two map look-ups, and none over an await.

mod affinity;
mod eligible;
pub mod kernel;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rand::{Rng, RngExt};

use self::affinity::Affinity;
pub use self::eligible::eligible;
use crate::model::addr::EndpointAddr;
use crate::model::route::{PortRoutes, Rule, RuleId};
use crate::model::service::{Endpoint, ServicePort};
use crate::model::workload::Workload;
use crate::route::weights::SmoothWeights;

/// Who asks for an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// Source address of the connection: key of the session affinity; endpoints of its family are eligible.
    pub ip: IpAddr,
    /// The client's node; empty when unknown.
    pub node: Arc<str>,
    /// The client's zone; empty when unknown.
    pub zone: Arc<str>,
}

impl Client {
    /// `workload` connecting from `ip`.
    #[must_use]
    pub fn new(workload: &Workload, ip: IpAddr) -> Self {
        Self { ip, node: Arc::clone(&workload.node), zone: Arc::clone(&workload.zone) }
    }
}

/// Chooses endpoints. One per agent, shared by all its connections.
#[derive(Debug, Default)]
pub struct Balancer {
    live: Arc<Live>,
    affinity: Mutex<Affinity>,
    /// Whose turn it is among the backends of each rule.
    turns: Mutex<HashMap<RuleId, SmoothWeights>>,
}

impl Balancer {
    /// A balancer that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Chooses an endpoint of `service` for `client`, none of `exclude`; `None` when there is none to be had.
    #[must_use]
    pub fn choose(&self, service: &ServicePort, client: &Client, exclude: &[EndpointAddr]) -> Option<Pick> {
        self.choose_at(service, client, exclude, Instant::now(), &mut rand::rng())
    }

    /// [`Self::choose`] with the clock and the dice given.
    #[must_use]
    pub fn choose_at(
        &self,
        service: &ServicePort,
        client: &Client,
        exclude: &[EndpointAddr],
        now: Instant,
        dice: &mut impl Rng,
    ) -> Option<Pick> {
        let mut candidates = eligible(service, client);
        candidates.retain(|endpoint| !exclude.contains(&endpoint.addr));
        let Some(timeout) = service.affinity else {
            return self.less_busy(&candidates, dice);
        };
        let pinned = lock(&self.affinity).find(service, client.ip, now);
        let pick = match candidates.iter().find(|endpoint| Some(endpoint.addr) == pinned) {
            Some(endpoint) => self.take(endpoint),
            None => self.less_busy(&candidates, dice)?,
        };
        lock(&self.affinity).pin(service, client.ip, pick.endpoint.addr, timeout, now);
        Some(pick)
    }

    /// The backend of `rule` whose turn it is, by their weights; `None` when none has any.
    #[must_use]
    pub fn pick_backend(&self, rule: &Rule) -> Option<usize> {
        let weights = rule.backends.iter().map(|backend| backend.weight);
        let mut turns = lock(&self.turns);
        if let Some(turn) = turns.get_mut(&rule.id) {
            return turn.pick(weights);
        }
        turns.entry(rule.id.clone()).or_default().pick(weights)
    }

    /// Forgets what concerns endpoints and rules that are no longer there. To be called with each new snapshot.
    pub fn retain(&self, services: &[Arc<ServicePort>], routes: &[Arc<PortRoutes>]) {
        lock(&self.affinity).retain(services);
        let mut turns = lock(&self.turns);
        if !turns.is_empty() {
            let rules: HashSet<&RuleId> =
                routes.iter().flat_map(|routes| &routes.candidates).map(|candidate| &candidate.rule.id).collect();
            turns.retain(|rule, _| rules.contains(rule));
        }
    }

    /// Live connections to `endpoint`.
    #[must_use]
    pub fn live(&self, endpoint: EndpointAddr) -> u32 {
        lock(&self.live.0).get(&endpoint).copied().unwrap_or(0)
    }

    /// How many clients are pinned by session affinity.
    #[must_use]
    pub fn pinned(&self) -> usize {
        lock(&self.affinity).len()
    }

    fn less_busy(&self, candidates: &[&Endpoint], dice: &mut impl Rng) -> Option<Pick> {
        let chosen = match candidates {
            [] => return None,
            [only] => only,
            [..] => {
                let first = dice.random_range(0..candidates.len());
                // Drawn from the others: adding 1..len to `first` around the ring never meets `first` again.
                let second = (first + dice.random_range(1..candidates.len())) % candidates.len();
                let (first, second) = (candidates.get(first)?, candidates.get(second)?);
                if self.live(second.addr) < self.live(first.addr) { second } else { first }
            }
        };
        Some(self.take(chosen))
    }

    fn take(&self, endpoint: &Endpoint) -> Pick {
        *lock(&self.live.0).entry(endpoint.addr).or_insert(0) += 1;
        Pick { endpoint: endpoint.clone(), counted: Counted { addr: endpoint.addr, live: Arc::clone(&self.live) } }
    }
}

/// Live connections by endpoint; an endpoint without any has no entry, so a vanished one leaves none.
#[derive(Debug, Default)]
struct Live(Mutex<HashMap<EndpointAddr, u32>>);

/// A chosen endpoint. It counts as one live connection until it is dropped.
#[derive(Debug)]
pub struct Pick {
    endpoint: Endpoint,
    counted: Counted,
}

impl Pick {
    /// The chosen endpoint.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Its address.
    #[must_use]
    pub fn addr(&self) -> EndpointAddr {
        self.counted.addr
    }
}

#[derive(Debug)]
struct Counted {
    addr: EndpointAddr,
    live: Arc<Live>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut live = lock(&self.live.0);
        if let Some(count) = live.get_mut(&self.addr) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                live.remove(&self.addr);
            }
        }
    }
}

/// The maps are valid after every statement, so a panic elsewhere while one was locked does not matter.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
