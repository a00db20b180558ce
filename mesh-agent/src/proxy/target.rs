//! From what the application dialled to the endpoints that may serve it.
//!
//! Only this file makes a [`Target`], and only a [`Target`] can be dialled: so the rule that a captured
//! endpoint is never dialled in plaintext is in one place.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::failure::Failure;
use crate::balance::kernel::is_kernels;
use crate::balance::{Balancer, Client, Pick};
use crate::model::addr::{EndpointAddr, OrigDst, Scope};
use crate::model::route::ServiceRef;
use crate::model::service::ServicePort;
use crate::model::workload::{Captured, Workload};
use crate::snapshot::Snapshot;

/// How many endpoints of a service are tried. With more, a client would wait longer than its own patience.
const TRIES: usize = 3;

/// One endpoint to dial.
#[derive(Debug)]
pub(super) struct Target {
    addr: EndpointAddr,
    workload: Option<Arc<Workload>>,
    /// Counts as live at this endpoint until dropped; `None` when the application chose the endpoint itself.
    pick: Option<Pick>,
}

impl Target {
    /// Where the application listens.
    pub(super) fn addr(&self) -> EndpointAddr {
        self.addr
    }

    /// The pod behind it, where one is known.
    pub(super) fn workload(&self) -> Option<&Arc<Workload>> {
        self.workload.as_ref()
    }

    /// `Some`: only a tunnel to this workload, proven to be it, will do. `None`: plaintext.
    pub(super) fn tunnel(&self) -> Option<(&Arc<Workload>, &Captured)> {
        let workload = self.workload.as_ref()?;
        Some((workload, workload.captured.as_ref()?))
    }

    /// A request is sent to it now.
    pub(super) fn sent(&mut self) {
        if let Some(pick) = &mut self.pick {
            pick.sent_at(Instant::now());
        }
    }

    /// The head of its answer has come; `failed`: it says that the endpoint could not serve. Returns for how long the
    /// endpoint is ejected, if that is now.
    pub(super) fn answered(&mut self, failed: bool) -> Option<Duration> {
        self.pick.as_mut()?.answered_at(failed, Instant::now())
    }

    /// It could not be reached, or has not answered. Returns for how long the endpoint is ejected, if that is now.
    pub(super) fn failed(&mut self) -> Option<Duration> {
        self.pick.as_mut()?.failed_at(Instant::now())
    }
}

/// What a connection is meant for.
#[derive(Clone, Debug)]
pub(super) enum Goal {
    /// What the application dialled: an address, or the endpoints of a service as far as the kernel leaves them.
    Dialled(OrigDst, Scope),
    /// Where a route has sent it.
    Service(ServiceRef),
    /// The same for one of its requests, with what the request is hashed by.
    Request(ServiceRef, Option<u64>),
}

/// The candidates for one connection, best first.
#[derive(Debug)]
pub(super) struct Candidates<'a> {
    balancer: &'a Balancer,
    client: Client,
    goal: Goal,
    tried: Vec<EndpointAddr>,
    /// Not to be tried while there are others.
    avoided: Vec<EndpointAddr>,
}

impl<'a> Candidates<'a> {
    /// What may serve a connection of `client`'s.
    pub(super) fn new(balancer: &'a Balancer, client: Client, goal: Goal) -> Self {
        Self { balancer, client, goal, tried: Vec::new(), avoided: Vec::new() }
    }

    /// The same, leaving out `endpoints` while there are others.
    pub(super) fn avoiding(self, endpoints: &[EndpointAddr]) -> Self {
        Self { avoided: endpoints.to_vec(), ..self }
    }

    /// The next endpoint to try, by `snapshot`. `failed` is why the one before did not serve.
    ///
    /// # Errors
    /// `failed`, when there is nothing more to try; [`Failure::NoEndpoints`], when there was nothing at all.
    pub(super) fn next(&mut self, snapshot: &Snapshot, mut failed: Option<Failure>) -> Result<Target, Failure> {
        if let Some(failure) = failed.as_ref().filter(|f| self.tried.len() >= TRIES || !f.is_retryable()) {
            return Err(failure.clone());
        }
        let service = match &self.goal {
            Goal::Service(name) | Goal::Request(name, _) => {
                snapshot.service(name).ok_or_else(|| Failure::NoEndpoints(name.to_string()))?
            }
            Goal::Dialled(dialled, _) => match (snapshot.service_by_vip(dialled.addr()), failed) {
                (Some(service), now) => {
                    failed = now;
                    service
                }
                // The application chose this endpoint: there is no other.
                (None, Some(failure)) => return Err(failure),
                (None, None) => return Ok(target(snapshot, EndpointAddr::new(dialled.addr()), None)),
            },
        };
        let Some(pick) = self.choose(service, snapshot) else {
            return Err(failed.unwrap_or_else(|| Failure::NoEndpoints(service.display_name())));
        };
        self.tried.push(pick.addr());
        Ok(target(snapshot, pick.addr(), Some(pick)))
    }
}

impl Candidates<'_> {
    /// Keeps to what the kernel has drawn, and from what is to be avoided, unless nothing is left then.
    fn choose(&self, service: &ServicePort, snapshot: &Snapshot) -> Option<Pick> {
        // Whoever is pinned to an endpoint is not sent elsewhere for an answer of the application's.
        let mut others = if service.affinity.is_none() { self.avoided.clone() } else { Vec::new() };
        if matches!(self.goal, Goal::Dialled(_, Scope::Rest)) {
            let kernels = service.endpoints.iter().filter(|one| is_kernels(one, snapshot, snapshot.node()));
            others.extend(kernels.map(|endpoint| endpoint.addr));
        }
        if !others.is_empty() {
            others.extend(&self.tried);
            if let Some(pick) = self.choose_without(service, &others) {
                return Some(pick);
            }
        }
        self.choose_without(service, &self.tried)
    }

    fn choose_without(&self, service: &ServicePort, exclude: &[EndpointAddr]) -> Option<Pick> {
        match self.goal {
            Goal::Request(_, key) => self.balancer.choose_for_request(service, &self.client, exclude, key),
            Goal::Dialled(..) | Goal::Service(_) => self.balancer.choose(service, &self.client, exclude),
        }
    }
}

fn target(snapshot: &Snapshot, addr: EndpointAddr, pick: Option<Pick>) -> Target {
    let named = pick.as_ref().and_then(|pick| pick.endpoint().workload.as_ref());
    let workload = snapshot.behind(addr.ip(), named).map(Arc::clone);
    Target { addr, workload, pick }
}
