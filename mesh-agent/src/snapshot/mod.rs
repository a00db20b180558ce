//! The compiled, immutable view that every decision of the data path reads.
//!
//! Built by `control`, swapped whole by generation. It never changes after it is published, so two look-ups
//! in one snapshot always agree.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::model::egress::{BuiltIn, Destination};
use crate::model::policy::{Policy, Target};
use crate::model::problem::Problem;
use crate::model::route::{PortRoutes, RouteStatus, ServiceRef};
use crate::model::service::ServicePort;
use crate::model::workload::{Workload, WorkloadUid};

/// The policies that select one workload; workloads with the same labels share them.
type Policies = Arc<[Arc<Policy>]>;

/// What a source must hand over to make a [`Snapshot`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SnapshotParts {
    /// Name of the node this agent serves.
    pub node: Arc<str>,
    /// SPIFFE trust domain.
    pub trust_domain: Arc<str>,
    /// Every known namespace, and whether it is opted in.
    pub namespaces: BTreeMap<Arc<str>, bool>,
    /// Every known pod.
    pub workloads: Vec<Arc<Workload>>,
    /// Every known TCP service port.
    pub services: Vec<Arc<ServicePort>>,
    /// Every known UDP service port: of these only addresses matter, as destinations that are admitted.
    pub udp_services: Vec<Arc<ServicePort>>,
    /// Where the node's DNS cache listens, if pods may use one.
    pub node_local_dns: Option<IpAddr>,
    /// Every policy in force.
    pub policies: Vec<Arc<Policy>>,
    /// The routes in force: at most one entry for a Service port and a consumer namespace (or none).
    pub routes: Vec<Arc<PortRoutes>>,
    /// What is said of each route that has a parent of ours.
    pub route_statuses: Vec<RouteStatus>,
    /// Every mistake not yet mended.
    pub problems: Vec<Problem>,
}

/// One generation of the mesh's state.
#[derive(Debug, Default)]
pub struct Snapshot {
    generation: u64,
    parts: SnapshotParts,
    by_uid: HashMap<WorkloadUid, Arc<Workload>>,
    by_ip: HashMap<IpAddr, Arc<Workload>>,
    by_vip: HashMap<SocketAddr, Arc<ServicePort>>,
    by_ref: HashMap<ServiceRef, Arc<ServicePort>>,
    routes: HashMap<ServiceRef, Attached>,
    selected: HashMap<WorkloadUid, Policies>,
    admitted: HashMap<Destination, BuiltIn>,
}

/// The routes of one Service port.
#[derive(Debug, Default)]
struct Attached {
    producer: Option<Arc<PortRoutes>>,
    consumers: HashMap<Arc<str>, Arc<PortRoutes>>,
}

impl Snapshot {
    /// Indexes `parts` as generation `generation`.
    #[must_use]
    pub fn new(generation: u64, parts: SnapshotParts) -> Self {
        let by_uid = parts.workloads.iter().map(|w| (Arc::clone(&w.uid), Arc::clone(w))).collect();
        let by_ip = parts.workloads.iter().flat_map(|w| w.ips.iter().map(|ip| (*ip, Arc::clone(w)))).collect();
        let by_vip = parts
            .services
            .iter()
            .flat_map(|s| s.vips.iter().map(|ip| (SocketAddr::new(*ip, s.port), Arc::clone(s))))
            .collect();
        let by_ref = parts.services.iter().map(|s| (s.reference(), Arc::clone(s))).collect();
        let routes = attach(&parts.routes);
        let selected = select(&parts);
        let admitted = crate::policy::egress::admitted(&parts);
        Self { generation, parts, by_uid, by_ip, by_vip, by_ref, routes, selected, admitted }
    }

    /// Grows by one with every published change.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Name of the node this agent serves.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.parts.node
    }

    /// SPIFFE trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.parts.trust_domain
    }

    /// The pod with this uid.
    #[must_use]
    pub fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.by_uid.get(uid)
    }

    /// The pod that owns this (canonical) address.
    #[must_use]
    pub fn workload_by_ip(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.by_ip.get(&ip)
    }

    /// The pod behind an endpoint at `ip` whose slice names the pod `named`: that one if it has the address, else
    /// whoever owns it (a slice may be behind), else the named one if it has the node's addresses.
    #[must_use]
    pub fn behind(&self, ip: IpAddr, named: Option<&WorkloadUid>) -> Option<&Arc<Workload>> {
        let named = named.and_then(|uid| self.workload(uid));
        named
            .filter(|workload| workload.ips.contains(&ip))
            .or_else(|| self.workload_by_ip(ip))
            .or(named.filter(|workload| workload.host_network))
    }

    /// The service port behind a virtual address (canonical) and port.
    #[must_use]
    pub fn service_by_vip(&self, vip: SocketAddr) -> Option<&Arc<ServicePort>> {
        self.by_vip.get(&vip)
    }

    /// The service port of this name: where a route's backend leads.
    #[must_use]
    pub fn service(&self, reference: &ServiceRef) -> Option<&Arc<ServicePort>> {
        self.by_ref.get(reference)
    }

    /// The routes that clients of `client_namespace` meet when they dial `service` by one of its virtual addresses:
    /// those of their own namespace, else the producer's. `None`: the service's endpoints are meant, as without
    /// routes. A connection to a pod's address meets none.
    #[must_use]
    pub fn routes_for(&self, service: &ServicePort, client_namespace: &str) -> Option<&Arc<PortRoutes>> {
        if self.routes.is_empty() {
            return None;
        }
        let attached = self.routes.get(&service.reference())?;
        attached.consumers.get(client_namespace).or(attached.producer.as_ref())
    }

    /// Whether anybody's connections to `service` meet routes.
    #[must_use]
    pub fn is_routed(&self, service: &ServicePort) -> bool {
        !self.routes.is_empty() && self.routes.contains_key(&service.reference())
    }

    /// The routes in force.
    #[must_use]
    pub fn routes(&self) -> &[Arc<PortRoutes>] {
        &self.parts.routes
    }

    /// What is outside the mesh and may be reached by every pod, with the built-in rule that admits it.
    #[must_use]
    pub fn admitted(&self) -> &HashMap<Destination, BuiltIn> {
        &self.admitted
    }

    /// Every known namespace, and whether it is opted in.
    #[must_use]
    pub fn namespaces(&self) -> &BTreeMap<Arc<str>, bool> {
        &self.parts.namespaces
    }

    /// Every known pod.
    #[must_use]
    pub fn workloads(&self) -> &[Arc<Workload>] {
        &self.parts.workloads
    }

    /// The pods of this node.
    pub fn local_workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.parts.workloads.iter().filter(|w| w.node == self.parts.node)
    }

    /// Every known service port.
    #[must_use]
    pub fn services(&self) -> &[Arc<ServicePort>] {
        &self.parts.services
    }

    /// The policies that select this pod; empty when none does.
    #[must_use]
    pub fn policies_for(&self, uid: &str) -> &[Arc<Policy>] {
        self.selected.get(uid).map_or(&[], |policies| policies)
    }

    /// Every policy in force.
    #[must_use]
    pub fn policies(&self) -> &[Arc<Policy>] {
        &self.parts.policies
    }

    /// What is said of each route.
    #[must_use]
    pub fn route_statuses(&self) -> &[RouteStatus] {
        &self.parts.route_statuses
    }

    /// Every mistake not yet mended.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.parts.problems
    }
}

fn attach(routes: &[Arc<PortRoutes>]) -> HashMap<ServiceRef, Attached> {
    let mut attached: HashMap<ServiceRef, Attached> = HashMap::new();
    for routes in routes {
        let at = attached.entry(routes.service.clone()).or_default();
        match &routes.consumer {
            Some(namespace) => {
                at.consumers.insert(Arc::clone(namespace), Arc::clone(routes));
            }
            None => at.producer = Some(Arc::clone(routes)),
        }
    }
    attached
}

/// The policies of each workload that has any. Policies of other namespaces cost nothing, and workloads with the
/// same labels, such as the replicas of a Deployment, are looked at once.
fn select(parts: &SnapshotParts) -> HashMap<WorkloadUid, Policies> {
    let mut candidates: HashMap<&str, Vec<Arc<Policy>>> = HashMap::new();
    let mut alike: HashMap<(&str, &BTreeMap<String, String>), Policies> = HashMap::new();
    let mut selected = HashMap::new();
    for workload in parts.workloads.iter().filter(|_| !parts.policies.is_empty()) {
        let candidates = candidates.entry(&workload.namespace).or_insert_with(|| {
            let reaches = |policy: &&Arc<Policy>| match &policy.target {
                Target::Mesh => true,
                Target::Namespace(own) | Target::Selector { namespace: own, .. } => *own == workload.namespace,
            };
            parts.policies.iter().filter(reaches).cloned().collect()
        });
        let policies = alike
            .entry((&workload.namespace, &workload.labels))
            .or_insert_with(|| crate::policy::selecting(workload, candidates).into());
        if !policies.is_empty() {
            selected.insert(Arc::clone(&workload.uid), Arc::clone(policies));
        }
    }
    selected
}

/// Where `control` publishes and everybody else reads.
#[derive(Debug)]
pub struct SnapshotStore {
    current: ArcSwap<Snapshot>,
    changed: watch::Sender<u64>,
}

impl Default for SnapshotStore {
    fn default() -> Self {
        Self { current: ArcSwap::from_pointee(Snapshot::default()), changed: watch::Sender::new(0) }
    }
}

impl SnapshotStore {
    /// The snapshot in force. Never blocks.
    #[must_use]
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Puts a new generation in force and wakes whoever watches.
    pub fn publish(&self, snapshot: Snapshot) {
        let generation = snapshot.generation();
        self.current.store(Arc::new(snapshot));
        self.changed.send_replace(generation);
    }

    /// Wakes with the generation number after each [`Self::publish`].
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}
