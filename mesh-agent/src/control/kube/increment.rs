//! A changed cluster → what the snapshot is made of, at the cost of what has changed.
//!
//! There is one compiler. It is given a part of the objects that nothing outside of has a say in: the pods that have
//! changed with all that share an address or a uid with them, the Services behind which they are with all that share a
//! virtual address or a policy with those, and what each of them looks up. What comes out takes the place of what came
//! out for the same objects before.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::dirty::{Dirty, service_key, targets};
use super::index::{Index, claims};
use super::kept::Kept;
use super::{Key, Kind, Object};
use crate::control::compile::{Objects, compile, namespaces, routes};
use crate::control::object::Pod;
use crate::model::policy::Target;
use crate::model::problem::Problem;
use crate::snapshot::SnapshotParts;

/// From this share of the pods on, everything is compiled: the second is no dearer then.
const SHARE: usize = 4;

/// What was compiled last, and what has changed since.
#[derive(Debug)]
pub(super) struct Increment {
    trust_domain: Arc<str>,
    index: Index,
    dirty: Dirty,
    /// `None`: nothing yet.
    last: Option<SnapshotParts>,
    /// What is wrong between objects, by the name of one of them.
    problems: BTreeMap<Arc<str>, Vec<Problem>>,
}

/// The objects to be compiled again, whether they are still there or not.
struct Part {
    pods: BTreeSet<Arc<Key>>,
    services: BTreeSet<Arc<Key>>,
    traffic: BTreeSet<Arc<Key>>,
    /// Pods that only decide who owns the address of an endpoint.
    bystanders: BTreeSet<Arc<Key>>,
}

impl Increment {
    pub(super) fn new(trust_domain: &str) -> Self {
        let (index, dirty) = (Index::default(), Dirty::default());
        Self { trust_domain: trust_domain.into(), index, dirty, last: None, problems: BTreeMap::new() }
    }

    /// Takes in that the object at `key` was the first and is the second.
    pub(super) fn note(&mut self, kept: &Kept, key: &Arc<Key>, change: (Option<&Object>, Option<&Object>)) {
        self.dirty.note(&mut self.index, kept, self.last.as_ref(), key, change);
        if self.last.is_none() {
            // Everything is compiled anyway: what concerns what need not be remembered.
            self.dirty = Dirty::default();
        }
    }

    /// Takes in that the node knows something else of these pods; `learn` makes `kept` know it.
    pub(super) fn note_local(&mut self, kept: &mut Kept, uids: &[Arc<str>], learn: impl FnOnce(&mut Kept)) {
        let keys = uids.iter().flat_map(|uid| self.index.pods_by_uid.of(uid));
        let pods: Vec<(Arc<Key>, Option<Arc<Pod>>)> = keys.map(|key| (Arc::clone(key), kept.pod(key))).collect();
        learn(kept);
        for (key, before) in pods {
            self.dirty.pod(&mut self.index, &key, before.as_deref(), kept.pod(&key).as_deref());
        }
    }

    /// Takes in that something else is wrong with single objects, or cannot be read.
    pub(super) fn note_problems(&mut self) {
        self.dirty.problems = true;
    }

    /// What follows from `kept`, beside which `standing` is wrong.
    pub(super) fn compile(&mut self, kept: &Kept, standing: Vec<Problem>) -> SnapshotParts {
        let dirty = std::mem::take(&mut self.dirty);
        let parts = match self.last.take() {
            Some(last) if !dirty.everything && dirty.pods.len() * SHARE <= last.workloads.len() => {
                self.compile_part(last, kept, &dirty, standing)
            }
            _ => self.compile_all(kept, standing),
        };
        self.last.insert(parts).clone()
    }

    fn compile_all(&mut self, kept: &Kept, standing: Vec<Problem>) -> SnapshotParts {
        let mut parts = compile(&kept.all(), &kept.node, &self.trust_domain);
        self.problems.clear();
        self.keep_problems(&parts.problems, |_| true);
        parts.problems = self.all_problems(kept, standing);
        parts
    }

    fn compile_part(
        &mut self,
        last: SnapshotParts,
        kept: &Kept,
        dirty: &Dirty,
        standing: Vec<Problem>,
    ) -> SnapshotParts {
        let part = self.part(kept, dirty);
        let objects = part.objects(kept, &self.index);
        let compiled = compile(&objects, &kept.node, &self.trust_domain);
        let mut parts = last;
        put_workloads(&mut parts, &compiled, &objects, dirty);
        put_services(&mut parts, &compiled, &part);
        if dirty.namespaces {
            let mut objects = Objects::default();
            kept.add(&mut objects, kept.keys_of(Kind::Namespace));
            parts.namespaces = Arc::new(namespaces(&objects.namespaces));
        }
        if dirty.policies {
            let mut objects = Objects::default();
            kept.add(&mut objects, kept.keys_of(Kind::AuthorizationPolicy));
            parts.policies = objects.policies;
        }
        if dirty.routes {
            put_routes(&mut parts, kept);
        }
        if self.replace_problems(&part, &compiled.problems) || dirty.problems {
            parts.problems = self.all_problems(kept, standing);
        }
        parts
    }

    /// Keeps the problems of `part`; whether there is any change.
    fn replace_problems(&mut self, part: &Part, now: &[Problem]) -> bool {
        if self.problems.is_empty() && now.is_empty() {
            return false;
        }
        let titles = part.pods.iter().chain(&part.services).chain(&part.traffic).map(|key| Arc::from(key.to_string()));
        let titles: HashSet<Arc<str>> = titles.collect();
        let removed = titles.iter().filter(|title| self.problems.remove(*title).is_some()).count();
        // Of bystanders not everything has been looked at.
        self.keep_problems(now, |title| titles.contains(title)) || removed > 0
    }

    fn keep_problems(&mut self, problems: &[Problem], of: impl Fn(&Arc<str>) -> bool) -> bool {
        let mut any = false;
        for problem in problems.iter().filter(|problem| of(&problem.object)) {
            self.problems.entry(Arc::clone(&problem.object)).or_default().push(problem.clone());
            any = true;
        }
        any
    }

    fn all_problems(&self, kept: &Kept, standing: Vec<Problem>) -> Arc<[Problem]> {
        let between = self.problems.values().flatten();
        let mut all: Vec<Problem> = kept.problems().chain(between).cloned().chain(standing).collect();
        all.sort();
        all.dedup();
        all.into()
    }

    fn part(&self, kept: &Kept, dirty: &Dirty) -> Part {
        let by_ip = dirty.ips.iter().flat_map(|ip| self.index.pods_by_ip.of(ip));
        let by_uid = dirty.uids.iter().flat_map(|uid| self.index.pods_by_uid.of(uid));
        let pods = self.related(kept, dirty.pods.iter().chain(by_ip).chain(by_uid).cloned());

        let mut services = dirty.services.clone();
        services.extend(dirty.claims.iter().flat_map(|claim| self.index.services_by_claim.of(claim)).cloned());
        if dirty.owners {
            let of_pods = pods.iter().filter_map(|key| kept.pod(key)).flat_map(|pod| pod.ips.clone());
            let ips: HashSet<IpAddr> = of_pods.chain(dirty.ips.iter().copied()).collect();
            let slices = ips.iter().flat_map(|ip| self.index.slices_by_ip.of(ip));
            services.extend(slices.filter_map(|key| of_slice(kept, key)));
        }
        let namespaces: HashSet<&Arc<str>> = pods.iter().map(|key| &key.namespace).collect();
        services.extend(self.index.derived.iter().filter(|key| namespaces.contains(&key.namespace)).cloned());
        let (services, traffic) = self.bound_together(kept, services, dirty.traffic.clone());

        let ips = services.iter().flat_map(|key| slices_of(&self.index, key)).filter_map(|key| kept.object(key));
        let ips: HashSet<IpAddr> = ips.flat_map(|object| endpoint_ips(&object)).collect();
        let behind = ips.iter().flat_map(|ip| self.index.pods_by_ip.of(ip));
        let derived = services.iter().filter(|key| self.index.derived.contains(*key));
        let selectable = derived.flat_map(|key| kept.keys_in(Kind::Pod, &key.namespace));
        let mut bystanders = self.related(kept, behind.chain(selectable).cloned());
        bystanders.retain(|key| !pods.contains(key));
        Part { pods, services, traffic, bystanders }
    }

    /// These pods, with all that share an address or a uid with one of them, and so on.
    fn related(&self, kept: &Kept, start: impl Iterator<Item = Arc<Key>>) -> BTreeSet<Arc<Key>> {
        let mut related = BTreeSet::new();
        let mut open: Vec<Arc<Key>> = start.collect();
        while let Some(key) = open.pop() {
            if related.contains(&key) {
                continue;
            }
            if let Some(pod) = kept.pod(&key) {
                let by_ip = pod.ips.iter().flat_map(|ip| self.index.pods_by_ip.of(ip));
                let others = by_ip.chain(self.index.pods_by_uid.of(&pod.uid));
                open.extend(others.filter(|other| **other != key).cloned());
            }
            related.insert(key);
        }
        related
    }

    /// These Services and policies of traffic, with all that share a virtual address or a policy, and so on.
    fn bound_together(
        &self,
        kept: &Kept,
        start: BTreeSet<Arc<Key>>,
        policies: BTreeSet<Arc<Key>>,
    ) -> (BTreeSet<Arc<Key>>, BTreeSet<Arc<Key>>) {
        let (mut services, mut traffic) = (BTreeSet::new(), BTreeSet::new());
        let mut open: Vec<Arc<Key>> = start.into_iter().chain(policies).collect();
        while let Some(key) = open.pop() {
            let seen = if key.kind == Kind::Service { &mut services } else { &mut traffic };
            if !seen.insert(Arc::clone(&key)) {
                continue;
            }
            match kept.object(&key) {
                Some(Object::Service(service)) => {
                    let claims: Vec<_> = claims(&service).collect();
                    open.extend(claims.iter().flat_map(|claim| self.index.services_by_claim.of(claim)).cloned());
                }
                Some(Object::Traffic(policy)) => open.extend(targets(&policy)),
                _ => {}
            }
            if key.kind == Kind::Service {
                let of_namespace = kept.keys_in(Kind::TrafficPolicy, &key.namespace);
                open.extend(of_namespace.filter(|policy| is_for(kept, policy, &key)).cloned());
            }
        }
        (services, traffic)
    }
}

fn slices_of<'a>(index: &'a Index, service: &Key) -> &'a [Arc<Key>] {
    index.slices_by_service.of(&(Arc::clone(&service.namespace), Arc::clone(&service.name)))
}

fn of_slice(kept: &Kept, key: &Key) -> Option<Arc<Key>> {
    match kept.object(key)? {
        Object::Slice(slice) => Some(service_key(&slice.namespace, slice.service.as_ref()?)),
        _ => None,
    }
}

fn endpoint_ips(object: &Object) -> Vec<IpAddr> {
    match object {
        Object::Slice(slice) => slice.endpoints.iter().map(|endpoint| endpoint.ip).collect(),
        _ => Vec::new(),
    }
}

fn is_for(kept: &Kept, policy: &Key, service: &Arc<Key>) -> bool {
    match kept.object(policy) {
        Some(Object::Traffic(policy)) => targets(&policy).any(|target| target == *service),
        _ => false,
    }
}

impl Part {
    /// What is compiled: the objects of this part, and what they look up.
    fn objects(&self, kept: &Kept, index: &Index) -> Objects {
        let mut objects = Objects::default();
        let pods: BTreeSet<&Arc<Key>> = self.pods.union(&self.bystanders).collect();
        kept.add(&mut objects, pods);
        let of_part = |pod: &Pod| {
            let key = Key { kind: Kind::Pod, namespace: Arc::clone(&pod.namespace), name: Arc::clone(&pod.name) };
            self.pods.contains(&key)
        };
        let bystanders = objects.pods.iter().enumerate().filter(|(_, found)| !of_part(&found.object));
        objects.bystanders = bystanders.map(|(at, _)| at).collect();
        kept.add(&mut objects, &self.services);
        let slices: BTreeSet<&Arc<Key>> = self.services.iter().flat_map(|key| slices_of(index, key)).collect();
        kept.add(&mut objects, slices);
        kept.add(&mut objects, &self.traffic);
        self.look_up(&mut objects, kept, index);
        objects
    }

    fn look_up(&self, objects: &mut Objects, kept: &Kept, index: &Index) {
        let named = |kind, name: &Arc<str>| Arc::new(Key { kind, namespace: "".into(), name: Arc::clone(name) });
        let of_pods: BTreeSet<&Arc<str>> = self.pods.iter().map(|key| &key.namespace).collect();
        let wanted: Vec<Arc<Key>> = of_pods.iter().map(|name| named(Kind::Namespace, name)).collect();
        kept.add(objects, &wanted);

        let pods = objects.pods.iter().map(|found| &found.object.node);
        let endpoints = objects.slices.iter().flat_map(|found| found.object.endpoints.iter().map(|one| &one.node));
        let nodes: BTreeSet<Arc<str>> = pods.chain(endpoints).cloned().collect();
        let wanted: Vec<Arc<Key>> = nodes.iter().map(|name| named(Kind::Node, name)).collect();
        kept.add(objects, &wanted);
        let captures: BTreeSet<&Arc<Key>> = nodes.iter().flat_map(|node| index.captures_by_node.of(node)).collect();
        kept.add(objects, captures);

        let peers = kept.keys_of(Kind::PeerPolicy).filter(|key| match kept.object(key) {
            Some(Object::Peer(policy)) => match &policy.target {
                Target::Mesh => true,
                Target::Namespace(own) | Target::Selector { namespace: own, .. } => of_pods.contains(own),
            },
            _ => false,
        });
        kept.add(objects, peers);
    }
}

fn put_workloads(parts: &mut SnapshotParts, compiled: &SnapshotParts, objects: &Objects, dirty: &Dirty) {
    let of_part = objects.pods.iter().enumerate().filter(|(at, _)| !objects.bystanders.contains(at));
    let uids = dirty.uids.iter().chain(of_part.map(|(_, found)| &found.object.uid));
    for uid in uids.filter(|uid| compiled.workloads.get(&***uid).is_none()) {
        parts.workloads.remove(uid);
    }
    for workload in compiled.workloads.iter() {
        if parts.workloads.get(&workload.uid) != Some(workload) {
            parts.workloads.put(Arc::clone(workload));
        }
    }
}

fn put_services(parts: &mut SnapshotParts, compiled: &SnapshotParts, part: &Part) {
    let tables = [(&mut parts.services, &compiled.services), (&mut parts.udp_services, &compiled.udp_services)];
    for (table, compiled) in tables {
        for key in &part.services {
            let known: Vec<_> = table.of_service(&key.namespace, &key.name).map(|port| port.reference()).collect();
            for port in known.iter().filter(|port| compiled.get(*port).is_none()) {
                table.remove(port);
            }
        }
        for service in compiled.iter() {
            if table.get(&service.reference()) != Some(service) {
                table.put(Arc::clone(service));
            }
        }
    }
}

fn put_routes(parts: &mut SnapshotParts, kept: &Kept) {
    let mut objects = Objects::default();
    for kind in Kind::ALL.into_iter().filter(|kind| matches!(kind, Kind::Route(_))) {
        kept.add(&mut objects, kept.keys_of(kind));
    }
    if !objects.routes.is_empty() {
        kept.add(&mut objects, kept.keys_of(Kind::Service));
    }
    let (in_force, statuses) = routes::compile(&objects.routes, &objects.services, &parts.services);
    parts.routes = in_force;
    parts.route_statuses = statuses.into();
}

#[cfg(test)]
#[path = "increment_tests.rs"]
mod tests;
