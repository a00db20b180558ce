//! The snapshot in force as a document: what became of the objects, with every default filled in and every reference
//! resolved. For `mesh-agent config`.
//!
//! It has what the data path decides by, and no secret: values that a route writes into headers are left out, because
//! they may be credentials.

mod policies;
mod routes;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::words;
use crate::model::problem::Problem;
use crate::model::service::{Endpoint, ServicePort};
use crate::model::workload::{PeerMode, Workload};
use crate::snapshot::Snapshot;

/// A part of the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Which namespaces are opted in.
    Namespaces,
    /// Pods of all nodes.
    Workloads,
    /// Service ports with their endpoints.
    Services,
    /// What requests and connections to Service ports meet.
    Routes,
    /// Authorization policies.
    Policies,
    /// What pods that may not leave the mesh reach all the same.
    Admitted,
    /// Mistakes that are not mended.
    Problems,
}

impl Part {
    /// Each, with its name in the document and what it is.
    pub const ALL: [(Self, &str, &str); 7] = [
        (Self::Namespaces, "namespaces", "Which namespaces are opted in"),
        (Self::Workloads, "workloads", "Pods of all nodes"),
        (Self::Services, "services", "Service ports with their endpoints"),
        (Self::Routes, "routes", "What requests and connections to Service ports meet"),
        (Self::Policies, "policies", "Authorization policies"),
        (Self::Admitted, "admitted", "What pods that may not leave the mesh reach all the same"),
        (Self::Problems, "problems", "Mistakes that are not mended"),
    ];
}

/// What of the document is wanted; nothing given is all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// One part.
    pub part: Option<Part>,
    /// What is of this namespace. Problems and what is admitted have none.
    pub namespace: Option<String>,
    /// What has this name.
    pub name: Option<String>,
}

impl Wanted {
    fn has(&self, part: Part) -> bool {
        self.part.is_none_or(|wanted| wanted == part)
    }

    fn is(&self, namespace: &str, name: &str) -> bool {
        self.namespace.as_deref().is_none_or(|wanted| wanted == namespace)
            && self.name.as_deref().is_none_or(|wanted| wanted == name)
    }

    /// Whether `problem` is of an object that is wanted: its name is `Kind namespace/name`, as far as it could be read.
    fn is_about(&self, problem: &Problem) -> bool {
        let named = problem.object.rsplit(' ').next().unwrap_or_default();
        let (namespace, name) = named.split_once('/').unwrap_or(("", named));
        self.is(namespace, name)
    }
}

/// The document.
#[must_use]
pub fn document(snapshot: &Snapshot, wanted: &Wanted) -> Value {
    let mut document = Map::from_iter([
        ("node".to_owned(), json!(snapshot.node())),
        ("generation".to_owned(), json!(snapshot.generation())),
        ("trustDomain".to_owned(), json!(snapshot.trust_domain())),
    ]);
    for (part, name, _) in Part::ALL {
        if wanted.has(part) {
            document.insert(name.to_owned(), Value::Array(content(snapshot, part, wanted)));
        }
    }
    Value::Object(document)
}

fn content(snapshot: &Snapshot, part: Part, wanted: &Wanted) -> Vec<Value> {
    match part {
        Part::Namespaces => {
            let meant = snapshot.namespaces().iter().filter(|(name, _)| wanted.is(name, name));
            meant.map(|(name, enabled)| json!({"name": &**name, "optedIn": enabled})).collect()
        }
        Part::Workloads => {
            let meant = snapshot.workloads().iter().filter(|pod| wanted.is(&pod.namespace, &pod.name));
            meant.map(|pod| workload(snapshot, pod)).collect()
        }
        Part::Services => {
            let meant = snapshot.services().iter().filter(|service| wanted.is(&service.namespace, &service.name));
            meant.map(|port| service(snapshot, port)).collect()
        }
        Part::Routes => {
            let meant = snapshot.routes().iter().filter(|at| routes::are_wanted(at, wanted));
            meant.map(|at| routes::document(at)).collect()
        }
        Part::Policies => {
            let meant = snapshot.policies().iter().filter(|policy| wanted.is(&policy.namespace, &policy.name));
            meant.map(|policy| policies::document(policy)).collect()
        }
        Part::Admitted => admitted(snapshot),
        Part::Problems => snapshot.problems().iter().filter(|problem| wanted.is_about(problem)).map(problem).collect(),
    }
}

/// Leaves out of an object what says nothing: nulls, empty texts, lists and objects.
fn spare(mut value: Value) -> Value {
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|_, field| match field {
            Value::Null => false,
            Value::String(text) => !text.is_empty(),
            Value::Array(list) => !list.is_empty(),
            Value::Object(map) => !map.is_empty(),
            _ => true,
        });
    }
    value
}

fn mode(mode: PeerMode) -> &'static str {
    match mode {
        PeerMode::Strict => "strict",
        PeerMode::Permissive => "permissive",
    }
}

fn workload(snapshot: &Snapshot, pod: &Workload) -> Value {
    let ports = pod.peer_mode.ports.iter().map(|(port, of)| (port.to_string(), json!(mode(*of)))).collect();
    let udp = pod.udp_refusals.ports.iter().map(|(port, by)| (port.to_string(), json!(&**by))).collect();
    spare(json!({
        "namespace": &*pod.namespace,
        "name": &*pod.name,
        "uid": &*pod.uid,
        "app": &*pod.app,
        "node": &*pod.node,
        "zone": &*pod.zone,
        "identity": pod.identity.to_string(),
        "addresses": &*pod.ips,
        "membership": words::membership(pod),
        "tunnels": pod.captured.as_ref().map(|captured| &captured.wire),
        "peerMode": mode(pod.peer_mode.default),
        "peerModeBy": &*pod.peer_mode.source,
        "peerModePorts": Value::Object(ports),
        "policies": snapshot.policies_for(&pod.uid).iter().map(|policy| policy.display_name()).collect::<Vec<_>>(),
        "egressRefusedBy": pod.egress.refused_by.as_deref(),
        "guardedBy": pod.egress.guarded_by.as_deref(),
        "udpRefusedBy": pod.udp_refusals.all.as_deref(),
        "udpRefusedPorts": Value::Object(udp),
        "probePorts": &*pod.probe_ports,
        "excludedOutboundPorts": pod.exclusions.outbound_ports,
        "excludedInboundPorts": pod.exclusions.inbound_ports,
        "excludedOutboundCidrs": pod.exclusions.outbound_cidrs.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "terminating": pod.terminating.then_some(true),
    }))
}

fn service(snapshot: &Snapshot, port: &ServicePort) -> Value {
    spare(json!({
        "namespace": &*port.namespace,
        "name": &*port.name,
        "port": port.port,
        "portName": &*port.port_name,
        "protocol": format!("{:?}", port.protocol()).to_lowercase(),
        "addresses": port.vips,
        "affinitySeconds": port.affinity.map(|affinity| affinity.as_secs()),
        "localOnly": port.local_only.then_some(true),
        "hints": port.prefer_zone.then_some(true),
        "routed": snapshot.is_routed(port),
        "traffic": port.traffic.as_deref().map(routes::traffic),
        "endpoints": port.endpoints.iter().map(|at| endpoint(snapshot, at)).collect::<Vec<_>>(),
    }))
}

fn endpoint(snapshot: &Snapshot, at: &Endpoint) -> Value {
    let pod = snapshot.behind(at.addr.ip(), at.workload.as_ref());
    spare(json!({
        "address": at.addr.to_string(),
        "pod": pod.map(|pod| pod.display_name()),
        "captured": pod.map(|pod| pod.captured.is_some()),
        "node": &*at.node,
        "zone": &*at.zone,
        "ready": at.ready,
        "serving": at.serving,
        "terminating": at.terminating.then_some(true),
        "forZones": at.zones,
        "forNodes": at.nodes,
    }))
}

fn admitted(snapshot: &Snapshot) -> Vec<Value> {
    let mut admitted: Vec<_> = snapshot.admitted().iter().collect();
    admitted.sort_by_key(|(to, _)| (to.addr, to.protocol));
    let row = |(to, by): (&crate::model::egress::Destination, &crate::model::egress::BuiltIn)| {
        let protocol = format!("{:?}", to.protocol).to_uppercase();
        json!({"address": to.addr.to_string(), "protocol": protocol, "by": by.as_str()})
    };
    admitted.into_iter().map(row).collect()
}

fn problem(problem: &Problem) -> Value {
    spare(json!({
        "location": &*problem.location,
        "object": &*problem.object,
        "field": &*problem.field,
        "reason": &*problem.reason,
        "effect": problem.effect.as_str(),
    }))
}

#[cfg(test)]
mod tests;
