//! From what the application dialled to the endpoints that may serve it.
//!
//! Only this file makes a [`Target`], and only a [`Target`] can be dialled: so the rule that a captured
//! endpoint is never dialled in plaintext is in one place.

use std::sync::Arc;

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
    _pick: Option<Pick>,
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
}

/// What a connection is meant for.
#[derive(Clone, Debug)]
pub(super) enum Goal {
    /// What the application dialled: an address, or the endpoints of a service as far as the kernel leaves them.
    Dialled(OrigDst, Scope),
    /// Where a route has sent it.
    Service(ServiceRef),
}

/// The candidates for one connection, best first.
#[derive(Debug)]
pub(super) struct Candidates<'a> {
    balancer: &'a Balancer,
    client: Client,
    goal: Goal,
    tried: Vec<EndpointAddr>,
}

impl<'a> Candidates<'a> {
    /// What may serve a connection of `client`'s.
    pub(super) fn new(balancer: &'a Balancer, client: Client, goal: Goal) -> Self {
        Self { balancer, client, goal, tried: Vec::new() }
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
            Goal::Service(name) => snapshot.service(name).ok_or_else(|| Failure::NoEndpoints(name.to_string()))?,
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
    /// Keeps to what the kernel has drawn, unless nothing of it is left.
    fn choose(&self, service: &ServicePort, snapshot: &Snapshot) -> Option<Pick> {
        if matches!(self.goal, Goal::Dialled(_, Scope::Rest)) {
            let kernels = service.endpoints.iter().filter(|one| is_kernels(one, snapshot, snapshot.node()));
            let mut exclude = self.tried.clone();
            exclude.extend(kernels.map(|endpoint| endpoint.addr));
            if let Some(pick) = self.balancer.choose(service, &self.client, &exclude) {
                return Some(pick);
            }
        }
        self.balancer.choose(service, &self.client, &self.tried)
    }
}

fn target(snapshot: &Snapshot, addr: EndpointAddr, pick: Option<Pick>) -> Target {
    let named = pick.as_ref().and_then(|pick| pick.endpoint().workload.as_ref());
    let workload = snapshot.behind(addr.ip(), named).map(Arc::clone);
    Target { addr, workload, _pick: pick }
}
