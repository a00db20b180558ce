//! What of a snapshot the kernel has been told, and so what there is to tell of the next one: a sync costs what has
//! changed.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use imbl::ordmap::DiffItem;

use crate::balance;
use crate::model::service::ServicePort;
use crate::model::workload::{Workload, WorkloadUid};
use crate::snapshot::{Addresses, Routing, Snapshot, Table};

/// What is compared with the next snapshot.
pub(super) struct Last {
    addresses: Addresses,
    services: Table<ServicePort>,
    local: Table<Workload>,
    routing: Arc<Routing>,
    zone: Arc<str>,
    cookies: HashMap<WorkloadUid, u64>,
}

impl Last {
    pub(super) fn of(snapshot: &Snapshot, cookies: HashMap<WorkloadUid, u64>) -> Self {
        Self {
            addresses: snapshot.addresses().clone(),
            services: snapshot.services().clone(),
            local: snapshot.local().clone(),
            routing: Arc::clone(snapshot.routing()),
            zone: balance::kernel::client(snapshot, snapshot.node()).zone,
            cookies,
        }
    }

    /// The pods of this node of which something else is true now: what they are, or by which cookie they are found.
    fn touched(&self, snapshot: &Snapshot, cookies: &HashMap<WorkloadUid, u64>) -> HashSet<WorkloadUid> {
        let local = snapshot.local().since(&self.local).filter_map(|(old, new)| old.or(new));
        let mut touched: HashSet<WorkloadUid> = local.map(|workload| Arc::clone(&workload.uid)).collect();
        let all = self.cookies.keys().chain(cookies.keys());
        touched.extend(all.filter(|uid| self.cookies.get(*uid) != cookies.get(*uid)).cloned());
        touched
    }

    /// The virtual addresses about which the kernel may have to be told something else; `None`: all of them.
    pub(super) fn vips(&self, snapshot: &Snapshot, cookies: &HashMap<WorkloadUid, u64>) -> Option<HashSet<SocketAddr>> {
        let zone = balance::kernel::client(snapshot, snapshot.node()).zone;
        if !Arc::ptr_eq(&self.routing, snapshot.routing()) || self.zone != zone {
            return None;
        }
        let changed = snapshot.services().since(&self.services).flat_map(|(old, new)| old.into_iter().chain(new));
        let mut vips: HashSet<SocketAddr> = changed.flat_map(|service| service.vip_addresses()).collect();
        let touched = self.touched(snapshot, cookies);
        if !touched.is_empty() {
            let is_there = |service: &&Arc<ServicePort>| {
                service
                    .endpoints
                    .iter()
                    .filter_map(|endpoint| endpoint.workload.as_ref())
                    .any(|uid| touched.contains(uid))
            };
            vips.extend(snapshot.services().iter().filter(is_there).flat_map(|service| service.vip_addresses()));
        }
        Some(vips)
    }

    /// The addresses of pods about which it may.
    pub(super) fn addresses(&self, snapshot: &Snapshot, cookies: &HashMap<WorkloadUid, u64>) -> HashSet<IpAddr> {
        let mut changed: HashSet<IpAddr> = self
            .addresses
            .diff(snapshot.addresses())
            .map(|item| match item {
                DiffItem::Add(ip, _) | DiffItem::Remove(ip, _) | DiffItem::Update { new: (ip, _), .. } => *ip,
            })
            .collect();
        for uid in self.touched(snapshot, cookies) {
            changed.extend(snapshot.workload(&uid).iter().flat_map(|workload| &workload.ips));
        }
        changed
    }
}
