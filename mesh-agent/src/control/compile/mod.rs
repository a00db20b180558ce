//! Objects → [`SnapshotParts`]: everything that takes more than one object to know.
//!
//! Pure and total: whatever the objects say, there is a snapshot, and what had to be left out of it is a
//! [`Problem`]. The same objects in the same order give the same parts.

mod egress;
mod ownership;
mod peer_modes;
pub(super) mod routes;
mod services;
#[cfg(test)]
mod tests;
mod traffic;
mod workloads;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::object::{CaptureState, Mode, Namespace, Node, PeerPolicy, Pod, Route, Service, Slice, TrafficPolicy};
use crate::model::policy::Policy;
use crate::model::problem::{Effect, Problem};
use crate::model::service::ServicePort;
use crate::snapshot::{SnapshotParts, Table};

/// An object and where it was found.
#[derive(Debug)]
pub(super) struct Found<T> {
    pub(super) object: Arc<T>,
    pub(super) location: Arc<str>,
}

/// Every object in force, by kind, in the order of its source.
#[derive(Debug, Default)]
pub(super) struct Objects {
    pub(super) namespaces: Vec<Found<Namespace>>,
    pub(super) nodes: Vec<Found<Node>>,
    pub(super) pods: Vec<Found<Pod>>,
    /// Positions in `pods` of those that are there only to decide who owns an address, and make no workload.
    pub(super) bystanders: HashSet<usize>,
    pub(super) services: Vec<Found<Service>>,
    pub(super) slices: Vec<Found<Slice>>,
    pub(super) captures: Vec<Found<CaptureState>>,
    pub(super) peers: Vec<Found<PeerPolicy>>,
    pub(super) traffic: Vec<Found<TrafficPolicy>>,
    pub(super) routes: Vec<Found<Route>>,
    /// Their mistakes are in `problems` already.
    pub(super) policies: Vec<Arc<Policy>>,
    /// What is wrong with single objects.
    pub(super) problems: Vec<Problem>,
}

/// Compiles the objects for the agent of `node`. Of objects that are a part of all there are, this is the same part
/// of the snapshot, if nothing else has a say in it: [`super::kube`] sees to that.
pub(super) fn compile(objects: &Objects, node: &Arc<str>, trust_domain: &Arc<str>) -> SnapshotParts {
    let mut problems = objects.problems.clone();
    let owners = ownership::owners(&objects.pods, &mut problems);
    let workloads = workloads::compile(objects, &owners, trust_domain, &mut problems);
    let (mut services, udp_services) = services::compile(objects, &owners, &mut problems);
    traffic::attach(&objects.traffic, &mut services, &mut problems);
    let services: Table<ServicePort> = services.into();
    let (routes, route_statuses) = routes::compile(&objects.routes, &objects.services, &services);
    problems.sort();
    problems.dedup();
    SnapshotParts {
        node: Arc::clone(node),
        trust_domain: Arc::clone(trust_domain),
        namespaces: Arc::new(namespaces(&objects.namespaces)),
        workloads: workloads.into(),
        services,
        udp_services: udp_services.into(),
        node_local_dns: None,
        policies: objects.policies.clone(),
        routes,
        route_statuses: route_statuses.into(),
        problems: problems.into(),
    }
}

/// Every namespace, and whether it is opted in.
pub(super) fn namespaces(namespaces: &[Found<Namespace>]) -> BTreeMap<Arc<str>, bool> {
    let all = namespaces.iter().map(|found| &found.object);
    all.map(|one| (Arc::clone(&one.name), one.mode == Some(Mode::Enabled))).collect()
}

impl<T> Found<T> {
    fn problem(&self, object: String, field: &str, reason: String, effect: Effect) -> Problem {
        Problem {
            location: Arc::clone(&self.location),
            object: object.into(),
            field: field.into(),
            reason: reason.into(),
            effect,
        }
    }
}
