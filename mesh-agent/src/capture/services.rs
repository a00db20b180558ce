//! The kernel's `services` and `endpoints`: virtual addresses, and which of their endpoints are pods of this node.
//!
//! A list of endpoints is written once and never changed: a service is switched to another list in one step, and
//! the old one goes a while after nobody refers to it.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use mesh_common::key::{EndpointKey, ServiceKey};
use mesh_common::value::{EndpointValue, ServiceValue};

use super::error::CaptureError;
use super::kernel::Maps;
use super::sync::key_ip;
use crate::balance::{self, Client};
use crate::model::service::ServicePort;
use crate::model::workload::{Workload, WorkloadUid};
use crate::snapshot::Snapshot;

const IPPROTO_TCP: u16 = 6;
/// How long a list stays that no service refers to: see `rules`.
const LINGER: Duration = Duration::from_secs(1);
/// The list of services without an endpoint on this node.
const NO_LIST: u32 = 0;

/// What the maps hold.
#[derive(Default)]
pub(super) struct Written {
    services: HashMap<ServiceKey, ServiceValue>,
    lists: HashMap<Vec<EndpointValue>, List>,
    last: u32,
}

struct List {
    id: u32,
    unwanted_since: Option<Instant>,
}

impl Written {
    /// What an earlier agent left.
    pub(super) fn of(
        services: HashMap<ServiceKey, ServiceValue>,
        endpoints: impl Iterator<Item = (EndpointKey, EndpointValue)>,
    ) -> Self {
        let mut slots: HashMap<u32, Vec<(u32, EndpointValue)>> = HashMap::new();
        for (key, value) in endpoints {
            slots.entry(key.list).or_default().push((key.slot, value));
        }
        let last = slots.keys().copied().max().unwrap_or(NO_LIST);
        let mut lists = HashMap::new();
        for (id, mut slots) in slots {
            slots.sort_unstable_by_key(|(slot, _)| *slot);
            lists.insert(slots.into_iter().map(|(_, value)| value).collect(), List { id, unwanted_since: None });
        }
        Self { services, lists, last }
    }

    /// When the first of the lists that no service refers to any more may go.
    pub(super) fn due(&self) -> Option<Instant> {
        self.lists.values().filter_map(|list| list.unwanted_since).min().map(|since| since + LINGER)
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
            let value = value(maps, snapshot, service, &Client { ip: *vip, ..client.clone() }, cookies)?;
            if maps.services_written.services.get(&key) != Some(&value) {
                maps.services.insert(key, value, 0).map_err(|e| CaptureError::map("services", &e))?;
                maps.services_written.services.insert(key, value);
            }
            wanted.insert(key);
            used.insert(value.list);
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

fn value(
    maps: &mut Maps,
    snapshot: &Snapshot,
    service: &ServicePort,
    client: &Client,
    cookies: &HashMap<WorkloadUid, u64>,
) -> Result<ServiceValue, CaptureError> {
    let here = |workload: &Workload| cookies.get(&workload.uid).copied();
    let (value, list) = balance::kernel::service(snapshot, service, client, here);
    Ok(ServiceValue { list: write_list(maps, list)?, ..value })
}

/// The number of the list with these endpoints, written if there is none yet.
fn write_list(maps: &mut Maps, endpoints: Vec<EndpointValue>) -> Result<u32, CaptureError> {
    if endpoints.is_empty() {
        return Ok(NO_LIST);
    }
    let written = &mut maps.services_written;
    if let Some(list) = written.lists.get_mut(&endpoints) {
        list.unwanted_since = None;
        return Ok(list.id);
    }
    written.last = written.last.wrapping_add(1).max(1);
    let id = written.last;
    for (slot, endpoint) in (0..).zip(&endpoints) {
        let inserted = maps.endpoints.insert(EndpointKey { list: id, slot }, endpoint, 0);
        inserted.map_err(|e| CaptureError::map("endpoints", &e))?;
    }
    written.lists.insert(endpoints, List { id, unwanted_since: None });
    Ok(id)
}

fn retire(maps: &mut Maps, used: &HashSet<u32>) {
    let now = Instant::now();
    let map = &mut maps.endpoints;
    maps.services_written.lists.retain(|endpoints, list| {
        if used.contains(&list.id) {
            return true;
        }
        if now.duration_since(*list.unwanted_since.get_or_insert(now)) < LINGER {
            return true;
        }
        for (slot, _) in (0..).zip(endpoints) {
            let _ = map.remove(&EndpointKey { list: list.id, slot });
        }
        false
    });
}
