//! The kernel's `services`, `service_facts` and `endpoints`: virtual addresses, and which of their endpoints are pods
//! of this node.
//!
//! Facts, and the list of endpoints with the same number, are written once and never changed: a service is switched to
//! others in one step, and the old ones go a while after no service names them.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use mesh_common::key::{EndpointKey, ServiceKey};
use mesh_common::tag::Reference;
use mesh_common::value::{EndpointValue, ServiceValue};

use super::error::CaptureError;
use super::kernel::Maps;
use super::linger::Unwanted;
use super::sync::key_ip;
use super::written::Last;
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
    numbers: HashMap<Arc<Known>, u32>,
    facts: HashMap<u32, Facts>,
    /// The numbers that no service has.
    idle: BTreeSet<u32>,
    last: u32,
}

struct Facts {
    known: Arc<Known>,
    /// How many services have them.
    users: usize,
    unwanted: Unwanted,
}

impl Written {
    /// When the first of the facts that no service names any more may go.
    pub(super) fn due(&self) -> Option<Instant> {
        self.idle.iter().filter_map(|number| self.facts.get(number)?.unwanted.due()).min()
    }

    /// Notes that the service at `key` has the facts of this number, or none.
    fn note(&mut self, key: ServiceKey, number: Option<u32>, now: Instant) {
        let before = match number {
            Some(number) => self.services.insert(key, number),
            None => self.services.remove(&key),
        };
        if let Some(facts) = number.and_then(|number| self.facts.get_mut(&number)) {
            facts.users += 1;
            facts.unwanted.wanted();
        }
        if let Some((number, facts)) = before.and_then(|number| Some((number, self.facts.get_mut(&number)?))) {
            facts.users = facts.users.saturating_sub(1);
            if facts.users == 0 {
                facts.unwanted.may_go(now);
                self.idle.insert(number);
            }
        }
        if let Some(number) = number {
            self.idle.remove(&number);
        }
    }
}

/// Makes the maps say what the snapshot says. `cookies` are the pods that connections can go to natively; `last` is
/// what has been written.
///
/// # Errors
/// The first entry that cannot be written.
pub(super) fn sync(
    maps: &mut Maps,
    snapshot: &Snapshot,
    cookies: &HashMap<WorkloadUid, u64>,
    last: Option<&Last>,
) -> Result<(), CaptureError> {
    let client = balance::kernel::client(snapshot, snapshot.node());
    let now = Instant::now();
    let changed = last.and_then(|last| last.vips(snapshot, cookies)).unwrap_or_else(|| {
        let all = snapshot.services().iter().flat_map(|service| service.vip_addresses());
        let all: HashSet<SocketAddr> = all.collect();
        let known: HashSet<ServiceKey> = all.iter().copied().map(key_of).collect();
        let gone = maps.services_written.services.keys().filter(|key| !known.contains(*key));
        for key in gone.copied().collect::<Vec<_>>() {
            remove(maps, key, now);
        }
        all
    });
    for vip in changed {
        let key = key_of(vip);
        let Some(service) = snapshot.service_by_vip(vip) else {
            remove(maps, key, now);
            continue;
        };
        let known = known(snapshot, service, &Client { ip: vip.ip(), ..client.clone() }, cookies);
        let number = write(maps, known)?;
        if maps.services_written.services.get(&key) != Some(&number) {
            let inserted = maps.services.insert(key, Reference::new(&key, number), 0);
            inserted.map_err(|e| CaptureError::map("services", &e))?;
            maps.services_written.note(key, Some(number), now);
        }
    }
    retire(maps, now);
    Ok(())
}

fn key_of(vip: SocketAddr) -> ServiceKey {
    ServiceKey { ip: key_ip(vip.ip()), port: vip.port(), protocol: IPPROTO_TCP }
}

fn remove(maps: &mut Maps, key: ServiceKey, now: Instant) {
    let _ = maps.services.remove(&key);
    maps.services_written.note(key, None, now);
}

fn known(snapshot: &Snapshot, service: &ServicePort, client: &Client, cookies: &HashMap<WorkloadUid, u64>) -> Known {
    let here = |workload: &Workload| cookies.get(&workload.uid).copied();
    balance::kernel::service(snapshot, service, client, here)
}

/// The number under which this is found, written if it is not there yet.
fn write(maps: &mut Maps, known: Known) -> Result<u32, CaptureError> {
    let written = &mut maps.services_written;
    if let Some(number) = written.numbers.get(&known) {
        return Ok(*number);
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
    let known = Arc::new(known);
    written.numbers.insert(Arc::clone(&known), number);
    written.facts.insert(number, Facts { known, users: 0, unwanted: Unwanted::default() });
    // Until a service has them.
    written.idle.insert(number);
    Ok(number)
}

/// Takes away the facts that no service has had for a while.
fn retire(maps: &mut Maps, now: Instant) {
    let Maps { service_facts, endpoints: lists, services_written, .. } = maps;
    let Written { idle, facts: all, numbers, .. } = services_written;
    idle.retain(|number| {
        let Some(facts) = all.get_mut(number) else { return false };
        if !facts.unwanted.may_go(now) {
            return true;
        }
        let _ = service_facts.remove(number);
        for (slot, _) in (0..).zip(&facts.known.1) {
            let _ = lists.remove(&EndpointKey { list: *number, slot });
        }
        numbers.remove(&facts.known);
        all.remove(number);
        false
    });
}
