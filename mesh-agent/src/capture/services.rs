//! The kernel's `services`, `service_facts` and `endpoints`: virtual addresses, and which of their endpoints are pods
//! of this node.
//!
//! Facts, and the list of endpoints with the same number, are written once and never changed: a service is switched to
//! others in one step, and the old ones go a while after no service names them.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use mesh_common::key::{EndpointKey, ServiceKey};
use mesh_common::tag::Reference;
use mesh_common::value::{EndpointValue, ServiceValue};

use super::error::CaptureError;
use super::kernel::Maps;
use super::linger::Unwanted;
use super::sync::key_ip;
use crate::balance::{self, Client};
use crate::model::service::ServicePort;
use crate::model::workload::{Workload, WorkloadUid};
use crate::snapshot::Snapshot;

const IPPROTO_TCP: u16 = 6;
/// What is known of a service: its facts, but for their number, and its endpoints on this node.
type Known = (ServiceValue, Vec<EndpointValue>);

/// What the maps hold.
#[derive(Default)]
pub(super) struct Written {
    services: HashMap<ServiceKey, u32>,
    known: HashMap<Known, Entry>,
    last: u32,
}

struct Entry {
    number: u32,
    unwanted: Unwanted,
}

impl Written {
    /// When the first of the facts that no service names any more may go.
    pub(super) fn due(&self) -> Option<Instant> {
        self.known.values().filter_map(|entry| entry.unwanted.due()).min()
    }
}

/// Makes the maps say what the snapshot says. `cookies` are the pods that connections can go to natively.
///
/// # Errors
/// The first entry that cannot be written.
pub(super) fn sync(
    maps: &mut Maps,
    snapshot: &Snapshot,
    cookies: &HashMap<WorkloadUid, u64>,
) -> Result<(), CaptureError> {
    let client = balance::kernel::client(snapshot, snapshot.node());
    let mut wanted = HashSet::new();
    let mut used = HashSet::new();
    for service in snapshot.services() {
        for vip in &service.vips {
            let key = ServiceKey { ip: key_ip(*vip), port: service.port, protocol: IPPROTO_TCP };
            let known = known(snapshot, service, &Client { ip: *vip, ..client.clone() }, cookies);
            let number = write(maps, known)?;
            if maps.services_written.services.get(&key) != Some(&number) {
                let inserted = maps.services.insert(key, Reference::new(&key, number), 0);
                inserted.map_err(|e| CaptureError::map("services", &e))?;
                maps.services_written.services.insert(key, number);
            }
            wanted.insert(key);
            used.insert(number);
        }
    }
    let services = &mut maps.services;
    maps.services_written.services.retain(|key, _| {
        let keep = wanted.contains(key);
        if !keep {
            let _ = services.remove(key);
        }
        keep
    });
    retire(maps, &used);
    Ok(())
}

fn known(snapshot: &Snapshot, service: &ServicePort, client: &Client, cookies: &HashMap<WorkloadUid, u64>) -> Known {
    let here = |workload: &Workload| cookies.get(&workload.uid).copied();
    balance::kernel::service(snapshot, service, client, here)
}

/// The number under which this is found, written if it is not there yet.
fn write(maps: &mut Maps, known: Known) -> Result<u32, CaptureError> {
    let written = &mut maps.services_written;
    if let Some(entry) = written.known.get_mut(&known) {
        entry.unwanted.wanted();
        return Ok(entry.number);
    }
    written.last = written.last.wrapping_add(1).max(1);
    let number = written.last;
    let (facts, endpoints) = &known;
    for (slot, endpoint) in (0..).zip(endpoints) {
        let inserted = maps.endpoints.insert(EndpointKey { list: number, slot }, endpoint, 0);
        inserted.map_err(|e| CaptureError::map("endpoints", &e))?;
    }
    let inserted = maps.service_facts.insert(number, ServiceValue { list: number, ..*facts }, 0);
    inserted.map_err(|e| CaptureError::map("service_facts", &e))?;
    written.known.insert(known, Entry { number, unwanted: Unwanted::default() });
    Ok(number)
}

fn retire(maps: &mut Maps, used: &HashSet<u32>) {
    let now = Instant::now();
    let Maps { service_facts, endpoints: lists, services_written, .. } = maps;
    services_written.known.retain(|(_, endpoints), entry| {
        if used.contains(&entry.number) || !entry.unwanted.may_go(now) {
            return true;
        }
        let _ = service_facts.remove(&entry.number);
        for (slot, _) in (0..).zip(endpoints) {
            let _ = lists.remove(&EndpointKey { list: entry.number, slot });
        }
        false
    });
}
