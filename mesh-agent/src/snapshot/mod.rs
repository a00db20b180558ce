//! The compiled, immutable view that every decision of the data path reads.
//!
//! Built by `control`, swapped whole by generation. It never changes after it is published, so two look-ups
//! in one snapshot always agree. A generation shares with the one before whatever is the same in both: it costs what
//! has changed, and so does looking for what that is.

mod routing;
mod select;
mod table;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use imbl::OrdMap;
use tokio::sync::watch;

pub use self::routing::Routing;
use self::select::{Selected, same};
pub use self::table::{Change, Keyed, Table};

use crate::model::egress::{BuiltIn, Destination};
use crate::model::policy::Policy;
use crate::model::problem::Problem;
use crate::model::route::{PortRoutes, RouteStatus, ServiceRef};
use crate::model::service::ServicePort;
use crate::model::workload::{Workload, WorkloadUid};
use crate::policy::egress;

/// What a source must hand over to make a [`Snapshot`].
#[derive(Clone, Debug, Default)]
pub struct SnapshotParts {
    /// Name of the node this agent serves.
    pub node: Arc<str>,
    /// SPIFFE trust domain.
    pub trust_domain: Arc<str>,
    /// Every known namespace, and whether it is opted in.
    pub namespaces: Arc<BTreeMap<Arc<str>, bool>>,
    /// Every known pod.
    pub workloads: Table<Workload>,
    /// Every known TCP service port.
    pub services: Table<ServicePort>,
    /// Every known UDP service port: of these only addresses matter, as destinations that are admitted.
    pub udp_services: Table<ServicePort>,
    /// Where the node's DNS cache listens, if pods may use one.
    pub node_local_dns: Option<IpAddr>,
    /// Every policy in force.
    pub policies: Vec<Arc<Policy>>,
    /// The routes in force: at most one entry for a Service port and a consumer namespace (or none).
    pub routes: Vec<Arc<PortRoutes>>,
    /// What is said of each route that has a parent of ours.
    pub route_statuses: Arc<[RouteStatus]>,
    /// Every mistake not yet mended.
    pub problems: Arc<[Problem]>,
}

impl PartialEq for SnapshotParts {
    fn eq(&self, other: &Self) -> bool {
        (&self.node, &self.trust_domain, self.node_local_dns, &self.namespaces)
            == (&other.node, &other.trust_domain, other.node_local_dns, &other.namespaces)
            && self.workloads == other.workloads
            && self.services == other.services
            && self.udp_services == other.udp_services
            && same(&self.policies, &other.policies)
            && same(&self.routes, &other.routes)
            && self.route_statuses == other.route_statuses
            && self.problems == other.problems
    }
}

/// Workloads by the addresses that they own.
pub type Addresses = OrdMap<IpAddr, Arc<Workload>>;

/// One generation of the mesh's state.
#[derive(Debug, Default)]
pub struct Snapshot {
    generation: u64,
    parts: SnapshotParts,
    by_ip: Addresses,
    by_vip: OrdMap<SocketAddr, Arc<ServicePort>>,
    local: Table<Workload>,
    routing: Arc<Routing>,
    selected: Selected,
    admitted: Arc<OnceLock<HashMap<Destination, BuiltIn>>>,
}

impl Snapshot {
    /// Indexes `parts` as generation `generation`.
    #[must_use]
    pub fn new(generation: u64, parts: SnapshotParts) -> Self {
        let nothing =
            Self { parts: SnapshotParts { node: Arc::clone(&parts.node), ..Default::default() }, ..Self::default() };
        Self { generation, ..nothing.next(parts) }
    }

    /// The generation after this one, of `parts`: the same as a [`Self::new`] one, at the cost of what has changed.
    #[must_use]
    pub fn next(&self, parts: SnapshotParts) -> Self {
        let generation = self.generation + 1;
        if self.parts.node != parts.node {
            return Self::new(generation, parts);
        }
        let same_routes = generation > 1 && same(&self.parts.routes, &parts.routes);
        let same_admitted = generation > 1 && !egress::differs(&self.parts, &parts);
        Self {
            generation,
            by_ip: self.by_ip_in(&parts),
            by_vip: self.by_vip_in(&parts),
            local: self.local_in(&parts),
            routing: if same_routes { Arc::clone(&self.routing) } else { Arc::new(Routing::new(&parts.routes)) },
            selected: select::update(self.selected.clone(), &self.parts, &parts),
            admitted: if same_admitted { Arc::clone(&self.admitted) } else { Arc::default() },
            parts,
        }
    }

    /// An address may go from one pod to another in one step: what is given up goes first.
    fn by_ip_in(&self, parts: &SnapshotParts) -> Addresses {
        let mut by_ip = self.by_ip.clone();
        for old in parts.workloads.since(&self.parts.workloads).filter_map(|(old, _)| old) {
            for ip in &old.ips {
                if by_ip.get(ip).is_some_and(|owner| owner.uid == old.uid) {
                    by_ip.remove(ip);
                }
            }
        }
        for new in parts.workloads.since(&self.parts.workloads).filter_map(|(_, new)| new) {
            by_ip.extend(new.ips.iter().map(|ip| (*ip, Arc::clone(new))));
        }
        by_ip
    }

    fn by_vip_in(&self, parts: &SnapshotParts) -> OrdMap<SocketAddr, Arc<ServicePort>> {
        let mut by_vip = self.by_vip.clone();
        for old in parts.services.since(&self.parts.services).filter_map(|(old, _)| old) {
            for vip in old.vip_addresses() {
                if by_vip.get(&vip).is_some_and(|owner| owner.is_same_port(old)) {
                    by_vip.remove(&vip);
                }
            }
        }
        for new in parts.services.since(&self.parts.services).filter_map(|(_, new)| new) {
            by_vip.extend(new.vip_addresses().map(|vip| (vip, Arc::clone(new))));
        }
        by_vip
    }

    fn local_in(&self, parts: &SnapshotParts) -> Table<Workload> {
        let mut local = self.local.clone();
        for (old, new) in parts.workloads.since(&self.parts.workloads) {
            match new.filter(|workload| workload.node == parts.node) {
                Some(workload) => local.put(Arc::clone(workload)),
                None => old.into_iter().for_each(|old| local.remove(&old.uid)),
            }
        }
        local
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
        self.parts.workloads.get(uid)
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
        self.parts.services.get(reference)
    }

    /// The routes that clients of `client_namespace` meet when they dial `service` by one of its virtual addresses:
    /// those of their own namespace, else the producer's. `None`: the service's endpoints are meant, as without
    /// routes. A connection to a pod's address meets none.
    #[must_use]
    pub fn routes_for(&self, service: &ServicePort, client_namespace: &str) -> Option<&Arc<PortRoutes>> {
        self.routing.of(service, client_namespace)
    }

    /// Whether anybody's connections to `service` meet routes.
    #[must_use]
    pub fn is_routed(&self, service: &ServicePort) -> bool {
        self.routing.has(service)
    }

    /// The same in two generations: no connection meets other routes.
    #[must_use]
    pub fn routing(&self) -> &Arc<Routing> {
        &self.routing
    }

    /// The routes in force.
    #[must_use]
    pub fn routes(&self) -> &[Arc<PortRoutes>] {
        &self.parts.routes
    }

    /// What is outside the mesh and may be reached by every pod, with the built-in rule that admits it. Found when it
    /// is first asked for: most nodes have no pod that is refused what is outside.
    #[must_use]
    pub fn admitted(&self) -> &HashMap<Destination, BuiltIn> {
        self.admitted.get_or_init(|| egress::admitted(&self.parts))
    }

    /// Every known namespace, and whether it is opted in.
    #[must_use]
    pub fn namespaces(&self) -> &Arc<BTreeMap<Arc<str>, bool>> {
        &self.parts.namespaces
    }

    /// Every known pod.
    #[must_use]
    pub fn workloads(&self) -> &Table<Workload> {
        &self.parts.workloads
    }

    /// The pods of this node.
    pub fn local_workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.local.iter()
    }

    /// The pods of this node, to be compared with those of another generation.
    #[must_use]
    pub fn local(&self) -> &Table<Workload> {
        &self.local
    }

    /// Every pod by the addresses it owns, to be compared with another generation's.
    #[must_use]
    pub fn addresses(&self) -> &Addresses {
        &self.by_ip
    }

    /// Every known service port.
    #[must_use]
    pub fn services(&self) -> &Table<ServicePort> {
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
    pub fn route_statuses(&self) -> &Arc<[RouteStatus]> {
        &self.parts.route_statuses
    }

    /// Every mistake not yet mended.
    #[must_use]
    pub fn problems(&self) -> &Arc<[Problem]> {
        &self.parts.problems
    }
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

    /// Waits for a snapshot that `is_so`, and gives it. There is no deadline: that is the caller's.
    pub async fn until(&self, is_so: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        let mut changed = self.watch();
        loop {
            let snapshot = self.load();
            if is_so(&snapshot) {
                return snapshot;
            }
            // Cannot fail: the other end is this store's own.
            let _ = changed.changed().await;
        }
    }

    /// Wakes with the generation number after each [`Self::publish`].
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}
