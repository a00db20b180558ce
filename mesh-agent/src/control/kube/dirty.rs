//! What has to be compiled again when an object changes.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::index::{Claim, Index, claims};
use super::kept::Kept;
use super::{Key, Kind, Object};
use crate::control::object::{CaptureState, PeerPolicy, Pod, Service, Slice, TrafficPolicy};
use crate::model::policy::Target;
use crate::model::workload::Captured;
use crate::snapshot::SnapshotParts;

/// An object that may be there, as one of a kind.
macro_rules! of {
    ($object:expr, $kind:ident) => {
        $object.and_then(|object| if let Object::$kind(one) = object { Some(&**one) } else { None })
    };
}

/// What has changed since the last compilation.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    /// Something that concerns all pods.
    pub(super) everything: bool,
    pub(super) pods: BTreeSet<Arc<Key>>,
    /// What those pods have and had.
    pub(super) uids: HashSet<Arc<str>>,
    pub(super) ips: HashSet<IpAddr>,
    /// Another pod may own one of these addresses.
    pub(super) owners: bool,
    pub(super) services: BTreeSet<Arc<Key>>,
    /// What those services had.
    pub(super) claims: HashSet<Claim>,
    pub(super) traffic: BTreeSet<Arc<Key>>,
    pub(super) namespaces: bool,
    pub(super) routes: bool,
    pub(super) policies: bool,
    /// What is wrong with single objects, or cannot be read.
    pub(super) problems: bool,
}

impl Dirty {
    /// Takes in that the object at `key` was `before` and is `after`; `kept` has it as it is after, or not any more.
    /// `last` is what was compiled last.
    pub(super) fn note(
        &mut self,
        index: &mut Index,
        kept: &Kept,
        last: Option<&SnapshotParts>,
        key: &Arc<Key>,
        (before, after): (Option<&Object>, Option<&Object>),
    ) {
        match before.or(after) {
            Some(Object::Pod(_)) => self.pod(index, key, of!(before, Pod), of!(after, Pod)),
            Some(Object::Slice(_)) => {
                self.slice(index, kept, key, of!(before, Slice), of!(after, Slice));
            }
            Some(Object::Service(_)) => {
                self.service(index, key, of!(before, Service), of!(after, Service));
            }
            Some(Object::CaptureState(_)) => {
                self.captures(index, key, of!(before, CaptureState), of!(after, CaptureState));
            }
            Some(Object::Namespace(_)) => {
                self.namespaces = true;
                self.pods_in(kept, &key.name);
            }
            Some(Object::Node(_)) => self.node(kept, last, &key.name),
            Some(Object::Peer(_)) => {
                let policies = of!(before, Peer).into_iter().chain(of!(after, Peer));
                policies.for_each(|policy| self.peer(kept, policy));
            }
            Some(Object::Traffic(_)) => {
                self.traffic.insert(Arc::clone(key));
                if let Some(Object::Traffic(policy)) = before {
                    self.services.extend(targets(policy));
                }
            }
            Some(Object::Route(_)) => self.routes = true,
            Some(Object::Authorization(_)) => self.policies = true,
            Some(Object::ServiceAccount | Object::ReferenceGrant) | None => {}
        }
    }

    pub(super) fn pod(&mut self, index: &mut Index, key: &Arc<Key>, before: Option<&Pod>, after: Option<&Pod>) {
        self.owners |= before.map(claim) != after.map(claim);
        if let Some(pod) = before {
            index.take_pod(key, pod);
        }
        if let Some(pod) = after {
            index.add_pod(key, pod);
        }
        for pod in before.into_iter().chain(after) {
            self.uids.insert(Arc::clone(&pod.uid));
            self.ips.extend(&pod.ips);
        }
        self.pods.insert(Arc::clone(key));
    }

    fn slice(&mut self, index: &mut Index, kept: &Kept, key: &Arc<Key>, before: Option<&Slice>, after: Option<&Slice>) {
        if let Some(slice) = before {
            index.take_slice(key, slice);
        }
        if let Some(slice) = after {
            index.add_slice(key, slice);
        }
        for slice in before.into_iter().chain(after) {
            let Some(name) = &slice.service else { continue };
            let service = service_key(&slice.namespace, name);
            match kept.object(&service) {
                Some(Object::Service(object)) => index.derive(&service, Some(&object)),
                _ => index.derive(&service, None),
            }
            self.services.insert(service);
        }
    }

    fn service(&mut self, index: &mut Index, key: &Arc<Key>, before: Option<&Service>, after: Option<&Service>) {
        if let Some(service) = before {
            index.take_service(key, service);
            self.claims.extend(claims(service));
        }
        if let Some(service) = after {
            index.add_service(key, service);
        }
        index.derive(key, after);
        self.services.insert(Arc::clone(key));
        self.routes = true;
    }

    fn captures(
        &mut self,
        index: &mut Index,
        key: &Arc<Key>,
        before: Option<&CaptureState>,
        after: Option<&CaptureState>,
    ) {
        if let Some(state) = before {
            index.captures_by_node.take(&state.node, key);
        }
        if let Some(state) = after {
            index.captures_by_node.add(Arc::clone(&state.node), key);
        }
        let uids = before.into_iter().chain(after).flat_map(|state| state.pods.keys());
        for uid in uids.filter(|uid| captured(before, uid) != captured(after, uid)) {
            self.pods.extend(index.pods_by_uid.of(uid).iter().cloned());
        }
    }

    /// Another zone: of its pods, and of the endpoints on it.
    fn node(&mut self, kept: &Kept, last: Option<&SnapshotParts>, node: &str) {
        let on_it = |key: &&Arc<Key>| kept.pod(key).is_some_and(|pod| *pod.node == *node);
        self.pods.extend(kept.keys_of(Kind::Pod).filter(on_it).cloned());
        let Some(last) = last else { return };
        for service in last.services.iter().chain(last.udp_services.iter()) {
            if service.endpoints.iter().any(|endpoint| *endpoint.node == *node) {
                self.services.insert(service_key(&service.namespace, &service.name));
            }
        }
    }

    fn peer(&mut self, kept: &Kept, policy: &PeerPolicy) {
        match &policy.target {
            Target::Mesh => self.everything = true,
            Target::Namespace(namespace) | Target::Selector { namespace, .. } => self.pods_in(kept, namespace),
        }
    }

    fn pods_in(&mut self, kept: &Kept, namespace: &str) {
        self.pods.extend(kept.keys_in(Kind::Pod, namespace).cloned());
    }
}

/// What decides which addresses a pod owns, and where.
fn claim(pod: &Pod) -> impl PartialEq {
    (&pod.uid, &pod.ips, pod.started, pod.host_network, pod.finished, &pod.node)
}

fn captured<'a>(state: Option<&'a CaptureState>, uid: &str) -> Option<(&'a Arc<str>, &'a Captured)> {
    state.and_then(|state| Some((&state.node, state.pods.get(uid)?)))
}

/// The Services that a policy is for, whether they are there or not.
pub(super) fn targets(policy: &TrafficPolicy) -> impl Iterator<Item = Arc<Key>> {
    policy.targets.iter().map(|target| service_key(&policy.namespace, &target.service))
}

pub(super) fn service_key(namespace: &Arc<str>, name: &Arc<str>) -> Arc<Key> {
    Arc::new(Key { kind: Kind::Service, namespace: Arc::clone(namespace), name: Arc::clone(name) })
}
