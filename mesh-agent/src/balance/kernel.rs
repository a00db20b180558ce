//! Endpoint choice as far as the kernel makes it: how many endpoints there are to draw among, and which of them are
//! captured pods of its own node. The rest is drawn for the agent.

use std::net::Ipv4Addr;
use std::sync::Arc;

use mesh_common::value::{EndpointValue, SERVICE_EMPTY, ServiceValue};

use super::{Client, eligible};
use crate::model::addr::key_ip;
use crate::model::service::{Endpoint, ServicePort};
use crate::model::workload::Workload;
use crate::snapshot::Snapshot;

/// For whom the kernel of `node` draws: any of its pods. The address is to be filled in for each service.
#[must_use]
pub fn client(snapshot: &Snapshot, node: &str) -> Client {
    // Every pod of a node is in the node's zone.
    let any = if *node == *snapshot.node() {
        snapshot.local_workloads().next()
    } else {
        snapshot.workloads().iter().find(|workload| *workload.node == *node)
    };
    let zone = any.map(|workload| Arc::clone(&workload.zone));
    Client { ip: Ipv4Addr::UNSPECIFIED.into(), node: node.into(), zone: zone.unwrap_or_default() }
}

/// What the kernel is told of `service` for `client`, whose address is the virtual one: its value, with a list that
/// has no number yet, and the list. `here` gives the netns cookie of a pod that connections can go to natively.
#[must_use]
pub fn service(
    snapshot: &Snapshot,
    service: &ServicePort,
    client: &Client,
    here: impl Fn(&Workload) -> Option<u64>,
) -> (ServiceValue, Vec<EndpointValue>) {
    let eligible = eligible(service, client);
    let Some(first) = eligible.first().map(|endpoint| endpoint.addr.addr()) else {
        return (ServiceValue { flags: SERVICE_EMPTY, ..ServiceValue::NOTHING }, Vec::new());
    };
    let native = |endpoint: &&Endpoint| {
        let ip = endpoint.addr.ip();
        let workload = snapshot.workload(endpoint.workload.as_ref()?);
        let netns_cookie = here(workload.filter(|w| w.captured.is_some() && w.ips.contains(&ip))?)?;
        Some(EndpointValue { netns_cookie, ip: key_ip(ip), port: endpoint.addr.port(), pad: [0; 3] })
    };
    // Who is pinned to an endpoint is the agent's to remember; where a route or a policy sends requests is the agent's
    // to see.
    let is_agents = service.affinity.is_some() || service.traffic.is_some() || snapshot.is_routed(service);
    let list: Vec<EndpointValue> = if is_agents { Vec::new() } else { eligible.iter().filter_map(native).collect() };
    let count = |len: usize| u16::try_from(len).unwrap_or(u16::MAX);
    let (eligible, local) = (count(eligible.len()), count(list.len()));
    let value = ServiceValue {
        fallback_ip: key_ip(first.ip()),
        fallback_port: first.port(),
        flags: 0,
        list: 0,
        eligible,
        local,
    };
    (value, list)
}

/// Whether `endpoint` is one that the kernel of `node` connects to by itself, so that the agent leaves it to it.
#[must_use]
pub fn is_kernels(endpoint: &Endpoint, snapshot: &Snapshot, node: &str) -> bool {
    let workload = endpoint.workload.as_ref().and_then(|uid| snapshot.workload(uid));
    workload.is_some_and(|workload| workload.captured.is_some() && *workload.node == *node)
}
