//! Who has a say in what: for each thing that objects share (an address, a uid, a virtual address), the objects that
//! have it. Pure.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use smallvec::SmallVec;

use super::Key;
use crate::control::object::{Pod, Service, Slice};
use crate::model::service::Protocol;

/// A virtual address, with a port of a protocol.
pub(super) type Claim = (IpAddr, Protocol, u16);
/// Namespace and name of a Service, which a slice may name before there is one.
pub(super) type ServiceName = (Arc<str>, Arc<str>);

/// The keys of objects, by something that they have.
#[derive(Debug)]
pub(super) struct Holders<T>(HashMap<T, SmallVec<[Arc<Key>; 1]>>);

impl<T> Default for Holders<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T: Hash + Eq> Holders<T> {
    pub(super) fn of(&self, what: &T) -> &[Arc<Key>] {
        self.0.get(what).map_or(&[], |holders| holders)
    }

    pub(super) fn add(&mut self, what: T, holder: &Arc<Key>) {
        let holders = self.0.entry(what).or_default();
        if !holders.contains(holder) {
            holders.push(Arc::clone(holder));
        }
    }

    pub(super) fn take(&mut self, what: &T, holder: &Key) {
        let Some(holders) = self.0.get_mut(what) else { return };
        holders.retain(|one| **one != *holder);
        if holders.is_empty() {
            self.0.remove(what);
        }
    }
}

/// Of every object of the API server.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// Pods that claim an address of their own.
    pub(super) pods_by_ip: Holders<IpAddr>,
    pub(super) pods_by_uid: Holders<Arc<str>>,
    /// Slices, by the address of an endpoint.
    pub(super) slices_by_ip: Holders<IpAddr>,
    pub(super) slices_by_service: Holders<ServiceName>,
    pub(super) services_by_claim: Holders<Claim>,
    pub(super) captures_by_node: Holders<Arc<str>>,
    /// Services with a selector and without a slice, whose endpoints follow from the pods.
    pub(super) derived: BTreeSet<Arc<Key>>,
}

impl Index {
    pub(super) fn add_pod(&mut self, key: &Arc<Key>, pod: &Pod) {
        self.pods_by_uid.add(Arc::clone(&pod.uid), key);
        if has_claims(pod) {
            pod.ips.iter().for_each(|ip| self.pods_by_ip.add(*ip, key));
        }
    }

    pub(super) fn take_pod(&mut self, key: &Key, pod: &Pod) {
        self.pods_by_uid.take(&pod.uid, key);
        pod.ips.iter().for_each(|ip| self.pods_by_ip.take(ip, key));
    }

    pub(super) fn add_slice(&mut self, key: &Arc<Key>, slice: &Slice) {
        slice.endpoints.iter().for_each(|endpoint| self.slices_by_ip.add(endpoint.ip, key));
        if let Some(service) = &slice.service {
            self.slices_by_service.add((Arc::clone(&slice.namespace), Arc::clone(service)), key);
        }
    }

    pub(super) fn take_slice(&mut self, key: &Key, slice: &Slice) {
        slice.endpoints.iter().for_each(|endpoint| self.slices_by_ip.take(&endpoint.ip, key));
        if let Some(service) = &slice.service {
            self.slices_by_service.take(&(Arc::clone(&slice.namespace), Arc::clone(service)), key);
        }
    }

    pub(super) fn add_service(&mut self, key: &Arc<Key>, service: &Service) {
        claims(service).for_each(|claim| self.services_by_claim.add(claim, key));
    }

    pub(super) fn take_service(&mut self, key: &Key, service: &Service) {
        claims(service).for_each(|claim| self.services_by_claim.take(&claim, key));
    }

    /// Notes whether the Service at `key`, as it is now, is one whose endpoints follow from the pods.
    pub(super) fn derive(&mut self, key: &Arc<Key>, service: Option<&Service>) {
        let name = (Arc::clone(&key.namespace), Arc::clone(&key.name));
        let has_slices = !self.slices_by_service.of(&name).is_empty();
        if service.is_some_and(|service| service.selector.is_some() && !has_slices) {
            self.derived.insert(Arc::clone(key));
        } else {
            self.derived.remove(key);
        }
    }
}

/// Whether it may own the addresses it has (see `compile::ownership`): others share them with their node.
fn has_claims(pod: &Pod) -> bool {
    !pod.host_network && !pod.finished
}

/// Every address with every port at which a Service wants to be dialled.
pub(super) fn claims(service: &Service) -> impl Iterator<Item = Claim> {
    let ips = service.cluster_ips.iter().chain(&service.outer_ips);
    ips.flat_map(|ip| service.ports.iter().map(move |port| (*ip, port.protocol, port.port)))
}
