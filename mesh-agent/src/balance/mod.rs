//! Endpoint choice: the only room that remembers how endpoints fared.
//!
//! Of the endpoints that kube-proxy's rules allow ([`eligible()`]) a connection goes to the less busy of two drawn at
//! random (least-request, power of two choices), and a request to the one that its Service's policy says
//! ([`Balancing`], `choose`). What is remembered is how much each endpoint has to do and how it has answered (`load`,
//! `health`), the pins of `sessionAffinity`, whose turn it is, and the retries of each Service (`budget`); all of it is
//! shared by the workers of the node and dies with its endpoint or Service. No IO; clock and randomness are arguments
//! of the `…_at` functions. No lock is held longer than a few map look-ups, and none over an await.

mod affinity;
mod budget;
mod choose;
mod eligible;
mod health;
pub mod kernel;
mod load;
mod pick;
#[cfg(test)]
mod request_tests;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rand::Rng;

use self::affinity::Affinity;
use self::budget::Budget;
pub use self::choose::key;
pub use self::eligible::eligible;
use self::health::Standing;
use self::load::{Loads, Moment};
pub use self::pick::Pick;
use crate::model::addr::EndpointAddr;
use crate::model::route::{PortRoutes, Rule, RuleId, ServiceRef};
use crate::model::service::{Endpoint, ServicePort};
use crate::model::traffic::{Balancing, Ejection, RetryBudget};
use crate::model::workload::Workload;
use crate::route::weights::SmoothWeights;
use crate::snapshot::Table;

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
#[derive(Debug)]
pub struct Balancer {
    /// What moments are counted from.
    born: Instant,
    loads: Loads,
    services: RwLock<HashMap<ServiceRef, Arc<Remembered>>>,
    affinity: Mutex<Affinity>,
    /// Whose turn it is among the backends of each rule.
    turns: Mutex<HashMap<RuleId, SmoothWeights>>,
}

/// What is remembered of one Service port.
#[derive(Debug, Default)]
struct Remembered {
    /// Round robin: whose turn it is, for clients of IPv4 and of IPv6, which have endpoints of their own.
    turns: [AtomicUsize; 2],
    budget: Mutex<Budget>,
    /// The last connection whose protocol was looked at had requests.
    had_requests: AtomicBool,
}

/// By what an endpoint is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// What they have to do.
    InFlight,
    /// What a request to them costs.
    Cost,
    /// Whose turn it is.
    Turn,
    /// To whom this key belongs.
    Key(u64),
}

/// How an endpoint is chosen, and from whom failing ones are kept: connections say nothing of how requests fare.
struct Way {
    by: By,
    ejection: Option<Ejection>,
}

impl Default for Balancer {
    fn default() -> Self {
        Self {
            born: Instant::now(),
            loads: Loads::default(),
            services: RwLock::default(),
            affinity: Mutex::default(),
            turns: Mutex::default(),
        }
    }
}

impl Balancer {
    /// A balancer that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Chooses an endpoint of `service` for a connection of `client`, none of `exclude`; `None` when there is none to
    /// be had.
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
        let way = Way { by: By::InFlight, ejection: None };
        self.choose_by(way, service, client, exclude, now, dice)
    }

    /// Chooses an endpoint of `service` for a request of `client`, none of `exclude`, as the Service's policy says.
    /// `key` is what the request is hashed by ([`key()`]), if it is.
    #[must_use]
    pub fn choose_for_request(
        &self,
        service: &ServicePort,
        client: &Client,
        exclude: &[EndpointAddr],
        key: Option<u64>,
    ) -> Option<Pick> {
        self.choose_for_request_at(service, client, exclude, key, Instant::now(), &mut rand::rng())
    }

    /// [`Self::choose_for_request`] with the clock and the dice given.
    #[must_use]
    pub fn choose_for_request_at(
        &self,
        service: &ServicePort,
        client: &Client,
        exclude: &[EndpointAddr],
        key: Option<u64>,
        now: Instant,
        dice: &mut impl Rng,
    ) -> Option<Pick> {
        let balancing = service.traffic.as_ref().map(|traffic| &traffic.balancing);
        let by = match (balancing, key) {
            (Some(Balancing::Hash(_)), Some(key)) => By::Key(key),
            (Some(Balancing::LeastRequest), _) => By::InFlight,
            (Some(Balancing::RoundRobin), _) => By::Turn,
            (Some(Balancing::PeakEwma | Balancing::Hash(_)) | None, _) => By::Cost,
        };
        let ejection = service.traffic.as_ref().and_then(|traffic| traffic.ejection);
        self.choose_by(Way { by, ejection }, service, client, exclude, now, dice)
    }

    /// `sessionAffinity` goes before everything else: it is a promise.
    fn choose_by(
        &self,
        Way { by, ejection }: Way,
        service: &ServicePort,
        client: &Client,
        exclude: &[EndpointAddr],
        now: Instant,
        dice: &mut impl Rng,
    ) -> Option<Pick> {
        let mut candidates = eligible(service, client);
        candidates.retain(|endpoint| !exclude.contains(&endpoint.addr));
        let moment = self.moment(now);
        let pinned = service.affinity.and_then(|_| lock(&self.affinity).find(service, client.ip, now));
        let pinned = candidates.iter().find(|endpoint| Some(endpoint.addr) == pinned).copied();
        let chosen = match (pinned, &ejection) {
            (Some(pinned), _) => pinned,
            (None, None) => self.one_of(&candidates, by, service, client, moment, dice)?,
            (None, Some(policy)) => {
                let (in_use, on_probation) = self.in_use(candidates, policy, moment);
                match on_probation.filter(|_| !matches!(by, By::Key(_))) {
                    Some(endpoint) => endpoint,
                    None => self.one_of(&in_use, by, service, client, moment, dice)?,
                }
            }
        };
        if let Some(timeout) = service.affinity {
            lock(&self.affinity).pin(service, client.ip, chosen.addr, timeout, now);
        }
        Some(Pick::new(chosen.clone(), self.loads.of(chosen.addr), ejection, self.born, now))
    }

    fn one_of<'a>(
        &self,
        candidates: &[&'a Endpoint],
        by: By,
        service: &ServicePort,
        client: &Client,
        now: Moment,
        dice: &mut impl Rng,
    ) -> Option<&'a Endpoint> {
        match by {
            By::InFlight | By::Cost => {
                let (first, second) = choose::two(candidates.len(), dice)?;
                let (first, second) = (*candidates.get(first)?, *candidates.get(second)?);
                let cost = |endpoint: &Endpoint| self.loads.find(endpoint.addr).map_or(0.0, |load| load.cost(now));
                let rather_second = match by {
                    By::Cost => choose::second_of(cost(first), cost(second), dice),
                    _ => self.live(second.addr) < self.live(first.addr),
                };
                Some(if rather_second { second } else { first })
            }
            By::Turn => {
                let remembered = self.remembered(&service.reference());
                let [v4, v6] = &remembered.turns;
                let turns = if client.ip.to_canonical().is_ipv4() { v4 } else { v6 };
                let turn = turns.fetch_add(1, Relaxed).checked_rem(candidates.len())?;
                candidates.get(turn).copied()
            }
            By::Key(key) => candidates.iter().max_by_key(|endpoint| choose::affinity(key, endpoint.addr)).copied(),
        }
    }

    /// The candidates that are not ejected, and the first of them that is on probation. Where too few would be left,
    /// all of them: then it is not the endpoints that fail, or there is nothing better.
    fn in_use<'a>(
        &self,
        candidates: Vec<&'a Endpoint>,
        policy: &Ejection,
        now: Moment,
    ) -> (Vec<&'a Endpoint>, Option<&'a Endpoint>) {
        let standing = |endpoint: &Endpoint| {
            let load = self.loads.find(endpoint.addr);
            load.map_or(Standing::InUse, |load| load.with_health(|health| health.standing(now)))
        };
        let mut on_probation = None;
        let mut in_use = candidates.clone();
        in_use.retain(|endpoint| {
            let standing = standing(endpoint);
            if standing == Standing::Probation {
                on_probation.get_or_insert(*endpoint);
            }
            standing != Standing::Ejected
        });
        let enough = in_use.len() * 100 >= candidates.len() * policy.min_health_percent as usize;
        (if enough { in_use } else { candidates }, on_probation)
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

    /// Counts a request to `service` that may be sent again: its retries are a share of these.
    pub fn requested(&self, service: &ServiceRef, budget: &RetryBudget) {
        let since_born = self.born.elapsed();
        lock(&self.remembered(service).budget).requested(budget, since_born);
    }

    /// Takes one retry from the budget of `service`; `false`: it is used up.
    #[must_use]
    pub fn may_retry(&self, service: &ServiceRef, budget: &RetryBudget) -> bool {
        let since_born = self.born.elapsed();
        lock(&self.remembered(service).budget).retry(budget, since_born)
    }

    /// Whether the last connection to `service` whose protocol was looked at had requests: then so will the next one,
    /// and there is an endpoint to choose for each of them.
    #[must_use]
    pub fn had_requests(&self, service: &ServiceRef) -> bool {
        let services = self.services.read().unwrap_or_else(PoisonError::into_inner);
        services.get(service).is_some_and(|remembered| remembered.had_requests.load(Relaxed))
    }

    /// A connection to `service` whose protocol was looked at has requests, or has none.
    pub fn has_requests(&self, service: &ServiceRef, has: bool) {
        if self.had_requests(service) != has {
            self.remembered(service).had_requests.store(has, Relaxed);
        }
    }

    /// Forgets what concerns endpoints, Services and rules that are no longer there. To be called with each new
    /// snapshot, or now and then.
    pub fn retain(&self, services: &Table<ServicePort>, routes: &[Arc<PortRoutes>]) {
        lock(&self.affinity).retain(services);
        let endpoints: HashSet<EndpointAddr> =
            services.iter().flat_map(|service| &service.endpoints).map(|endpoint| endpoint.addr).collect();
        self.loads.retain(|addr| endpoints.contains(addr));
        let present: HashSet<ServiceRef> = services.iter().map(|service| service.reference()).collect();
        let mut remembered = self.services.write().unwrap_or_else(PoisonError::into_inner);
        remembered.retain(|service, _| present.contains(service));
        drop(remembered);
        let mut turns = lock(&self.turns);
        if !turns.is_empty() {
            let rules: HashSet<&RuleId> =
                routes.iter().flat_map(|routes| &routes.candidates).map(|candidate| &candidate.rule.id).collect();
            turns.retain(|rule, _| rules.contains(rule));
        }
    }

    /// Connections and requests under way to `endpoint`.
    #[must_use]
    pub fn live(&self, endpoint: EndpointAddr) -> u32 {
        self.loads.find(endpoint).map_or(0, |load| load.in_flight())
    }

    /// How many clients are pinned by session affinity.
    #[must_use]
    pub fn pinned(&self) -> usize {
        lock(&self.affinity).len()
    }

    fn remembered(&self, service: &ServiceRef) -> Arc<Remembered> {
        if let Some(known) = self.services.read().unwrap_or_else(PoisonError::into_inner).get(service) {
            return Arc::clone(known);
        }
        let mut services = self.services.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(services.entry(service.clone()).or_default())
    }

    fn moment(&self, now: Instant) -> Moment {
        moment(self.born, now)
    }
}

/// Milliseconds, beginning anew after 49 days.
fn moment(born: Instant, now: Instant) -> Moment {
    let passed: Duration = now.saturating_duration_since(born);
    Moment(u32::try_from(passed.as_millis() % (u128::from(u32::MAX) + 1)).unwrap_or_default())
}

/// The maps are valid after every statement, so a panic elsewhere while one was locked does not matter.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
