//! Services with their slices, or with the pods they select → service ports.
//!
//! kube-proxy's reading of the objects. Where a Service has a selector and no slice, which is how a directory is
//! written by hand, this file stands in for Kubernetes' EndpointSlice controller.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use thin_vec::thin_vec;

use super::ownership::Owners;
use super::{Found, Objects};
use crate::control::object::{Distribution, Pod, Service, ServiceSpecPort, Slice, SliceEndpoint, TargetPort};
use crate::model::addr::EndpointAddr;
use crate::model::problem::{Effect, Problem};
use crate::model::service::{Endpoint, Protocol, ServicePort};
use crate::model::workload::List;

/// Looked up for every service.
struct Context<'a> {
    owners: &'a Owners<'a>,
    slices: HashMap<(&'a str, &'a str), Vec<&'a Slice>>,
    pods: &'a [Found<Pod>],
    by_label: HashMap<(&'a str, &'a str, &'a str), Vec<&'a Pod>>,
    zones: HashMap<&'a str, &'a Arc<str>>,
}

/// Compiled service ports.
type Ports = Vec<Arc<ServicePort>>;

/// Compiles every port of every service: those of TCP, and those of UDP.
pub(super) fn compile(objects: &Objects, owners: &Owners<'_>, problems: &mut Vec<Problem>) -> (Ports, Ports) {
    let mut context = Context {
        owners,
        slices: HashMap::new(),
        pods: &objects.pods,
        by_label: HashMap::new(),
        zones: objects.nodes.iter().map(|found| (&*found.object.name, &found.object.zone)).collect(),
    };
    for slice in objects.slices.iter().map(|found| &*found.object) {
        if let Some(service) = &slice.service {
            context.slices.entry((&slice.namespace, service)).or_default().push(slice);
        }
    }
    context.index_pods(&objects.services);
    let vips = claim_vips(&objects.services, problems);
    let (mut tcp, mut udp) = (Vec::new(), Vec::new());
    for (found, vips) in objects.services.iter().zip(vips) {
        for port in &found.object.ports {
            let own = |(_, protocol, number): &&Claim| (*protocol, *number) == (port.protocol, port.port);
            let vips = vips.iter().filter(own).map(|(ip, ..)| *ip).collect();
            let ports = if port.protocol == Protocol::Tcp { &mut tcp } else { &mut udp };
            ports.push(Arc::new(context.service_port(found, port, vips, problems)));
        }
    }
    (tcp, udp)
}

/// A virtual address, with a port of a protocol.
type Claim = (IpAddr, Protocol, u16);

fn first_label(service: &Service) -> Option<(&str, &str)> {
    service.selector.iter().flatten().next().map(|(key, value)| (&**key, &**value))
}

fn title(service: &Service) -> String {
    format!("Service {}/{}", service.namespace, service.name)
}

/// The (address, port) pairs that each service, in the order given, may have. A cluster IP goes before anybody's
/// external IP, which its namespace may choose freely; among equals the first one wins.
fn claim_vips(services: &[Found<Service>], problems: &mut Vec<Problem>) -> Vec<HashSet<Claim>> {
    let mut owners: HashMap<Claim, usize> = HashMap::new();
    let mut won = vec![HashSet::new(); services.len()];
    type Addresses = fn(&Service) -> &Vec<IpAddr>;
    let claims: [(Addresses, &str); 2] =
        [(|service| &service.cluster_ips, "spec.clusterIPs"), (|service| &service.outer_ips, "spec.externalIPs")];
    for (addresses, field) in claims {
        for ((at, found), won) in services.iter().enumerate().zip(&mut won) {
            let service = &found.object;
            let ports = |ip: IpAddr| service.ports.iter().map(move |port| (ip, port.protocol, port.port));
            for claim in addresses(service).iter().flat_map(|ip| ports(*ip)) {
                let owner = *owners.entry(claim).or_insert(at);
                if owner == at {
                    won.insert(claim);
                } else if let Some(other) = services.get(owner) {
                    let (ip, _, port) = claim;
                    let (namespace, name) = (&other.object.namespace, &other.object.name);
                    let reason =
                        format!("{ip} port {port} belongs to service {namespace}/{name} of {}", other.location);
                    problems.push(found.problem(title(service), field, reason, Effect::Partly));
                }
            }
        }
    }
    won
}

impl<'a> Context<'a> {
    fn is_derived(&self, service: &Service) -> bool {
        service.selector.is_some() && !self.slices.contains_key(&(&*service.namespace, &*service.name))
    }

    /// Finds pods by the first label of each selector that will be asked for: a selector is then compared with few.
    fn index_pods(&mut self, services: &'a [Found<Service>]) {
        let derived = services.iter().map(|found| &*found.object).filter(|service| self.is_derived(service));
        let keys: BTreeSet<&str> = derived.filter_map(|service| first_label(service)).map(|(key, _)| key).collect();
        for pod in self.pods.iter().map(|found| &*found.object).filter(|pod| !pod.finished) {
            for key in &keys {
                if let Some(value) = pod.labels.get(*key) {
                    self.by_label.entry((&pod.namespace, key, value)).or_default().push(pod);
                }
            }
        }
    }

    fn service_port(
        &self,
        found: &Found<Service>,
        port: &ServiceSpecPort,
        mut vips: Vec<IpAddr>,
        problems: &mut Vec<Problem>,
    ) -> ServicePort {
        let service = &*found.object;
        let mut endpoints = match &service.selector {
            Some(selector) if self.is_derived(service) => self.derive(found, selector, port, problems),
            _ => self.of_slices(found, port, problems),
        };
        if service.publish_not_ready {
            endpoints.iter_mut().for_each(|endpoint| endpoint.ready = true);
        }
        vips.sort();
        ServicePort {
            namespace: Arc::clone(&service.namespace),
            name: Arc::clone(&service.name),
            port_name: Arc::clone(&port.name),
            port: port.port,
            app_protocol: port.app_protocol.clone(),
            vips,
            affinity: service.affinity,
            local_only: service.local_only,
            prefer_zone: endpoints.iter().any(|endpoint| !(endpoint.zones.is_empty() && endpoint.nodes.is_empty())),
            traffic: None,
            endpoints,
        }
    }

    /// Slice ports belong to service ports by name; an address that two slices carry (as they do while one replaces
    /// the other) counts once, ready if either says so.
    fn of_slices(&self, found: &Found<Service>, port: &ServiceSpecPort, problems: &mut Vec<Problem>) -> Vec<Endpoint> {
        let service = &found.object;
        let Some(slices) = self.slices.get(&(&*service.namespace, &*service.name)) else {
            let reason = "neither a selector nor an EndpointSlice: connections find no endpoint".to_owned();
            problems.push(found.problem(title(service), "spec.selector", reason, Effect::Partly));
            return Vec::new();
        };
        // As many as there are in general, so that no room is kept for more.
        let expected = slices.iter().map(|slice| slice.endpoints.len()).sum();
        let mut endpoints: Vec<Endpoint> = Vec::with_capacity(expected);
        let mut seen: HashMap<EndpointAddr, usize> = HashMap::with_capacity(expected);
        for slice in slices {
            let named =
                |(protocol, name, _): &&(Protocol, Arc<str>, u16)| (*protocol, name) == (port.protocol, &port.name);
            for (_, _, number) in slice.ports.iter().filter(named) {
                for candidate in slice.endpoints.iter().map(|one| self.slice_endpoint(one, *number)) {
                    match seen.get(&candidate.addr).and_then(|at| endpoints.get_mut(*at)) {
                        Some(known) if candidate.ready && !known.ready => *known = candidate,
                        Some(_) => {}
                        None => {
                            seen.insert(candidate.addr, endpoints.len());
                            endpoints.push(candidate);
                        }
                    }
                }
            }
        }
        endpoints
    }

    fn slice_endpoint(&self, endpoint: &SliceEndpoint, port: u16) -> Endpoint {
        let owner = self.owners.by_ip.get(&endpoint.ip).map(|found| &found.object);
        let node = match owner {
            Some(pod) if endpoint.node.is_empty() => &pod.node,
            _ => &endpoint.node,
        };
        let zone = self.zones.get(&**node).copied().filter(|_| endpoint.zone.is_empty()).unwrap_or(&endpoint.zone);
        Endpoint {
            addr: EndpointAddr::new((endpoint.ip, port).into()),
            workload: owner.map(|pod| Arc::clone(&pod.uid)),
            node: Arc::clone(node),
            zones: endpoint.hinted_zones.clone(),
            nodes: endpoint.hinted_nodes.clone(),
            zone: Arc::clone(zone),
            ready: endpoint.ready,
            serving: endpoint.serving,
            terminating: endpoint.terminating,
        }
    }

    /// What the EndpointSlice controller would have written for the pods that `selector` selects.
    fn derive(
        &self,
        found: &Found<Service>,
        selector: &[(Box<str>, Box<str>)],
        port: &ServiceSpecPort,
        problems: &mut Vec<Problem>,
    ) -> Vec<Endpoint> {
        let service = &found.object;
        let candidates = first_label(service)
            .and_then(|(key, value)| self.by_label.get(&(&*service.namespace, key, value)))
            .map_or(&[][..], Vec::as_slice);
        let selects = |pod: &&&Pod| {
            selector.iter().all(|(key, value)| pod.labels.get(&**key).is_some_and(|own| **own == **value))
        };
        let pods: Vec<&Pod> = candidates.iter().filter(selects).copied().collect();
        let mut endpoints = Vec::new();
        let mut unnamed = 0;
        for pod in &pods {
            match target(&port.target, pod) {
                Some(number) => {
                    endpoints.extend(pod.ips.iter().filter_map(|ip| self.pod_endpoint(service, pod, *ip, number)))
                }
                None => unnamed += 1,
            }
        }
        if pods.is_empty() {
            let reason = format!("selects no pod: connections to port {} find no endpoint", port.port);
            problems.push(found.problem(title(service), "spec.selector", reason, Effect::Partly));
        } else if let (TargetPort::Name(name), 1..) = (&port.target, unnamed) {
            let reason = format!("{unnamed} of {} selected pods have no port named `{name}`", pods.len());
            problems.push(found.problem(title(service), "spec.ports.targetPort", reason, Effect::Partly));
        }
        endpoints
    }

    /// A pod that lost the address to another is not behind it.
    fn pod_endpoint(&self, service: &Service, pod: &Pod, ip: IpAddr, port: u16) -> Option<Endpoint> {
        let owner = self.owners.by_ip.get(&ip).map(|found| &found.object);
        if !pod.host_network && owner.is_none_or(|owner| owner.uid != pod.uid) {
            return None;
        }
        let zone = self.zones.get(&*pod.node).map_or_else(|| Arc::from(""), |zone| Arc::clone(zone));
        let hint = |wanted: Distribution, name: &Arc<str>| {
            let hinted = service.distribution == Some(wanted) && !name.is_empty();
            if hinted { thin_vec![Arc::clone(name)] } else { List::new() }
        };
        let same_zone = hint(Distribution::SameZone, &zone);
        let by_node = service.distribution == Some(Distribution::SameNode);
        Some(Endpoint {
            addr: EndpointAddr::new((ip, port).into()),
            workload: Some(Arc::clone(&pod.uid)),
            node: Arc::clone(&pod.node),
            // PreferSameNode falls back to the zone, so the controller hints both.
            zones: if by_node && !zone.is_empty() { thin_vec![Arc::clone(&zone)] } else { same_zone },
            nodes: hint(Distribution::SameNode, &pod.node),
            zone,
            ready: pod.ready && !pod.terminating,
            serving: pod.ready,
            terminating: pod.terminating,
        })
    }
}

/// A named target port is the pod's own port of that name, so it may differ from pod to pod.
fn target(target: &TargetPort, pod: &Pod) -> Option<u16> {
    match target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => pod.ports.iter().find(|port| *port.name == **name).map(|port| port.port),
    }
}
