//! Why a connection is let through or refused: the walk of `mesh-agent explain`.
//!
//! It decides nothing anew. The lane is `mesh_common::decide`'s over views of the snapshot, endpoints are
//! [`crate::balance`]'s, permission is [`crate::policy::authorize`]'s; this room asks them in the order in which a
//! connection meets them and writes down what they say. No IO, no clock; what the live kernel would say about the
//! same questions is compared by the agent ([`Check`]).

mod outside;
mod report;
mod request;
mod resolve;
mod route;
#[cfg(test)]
mod tests;
mod view;
mod walk;
mod words;

pub mod callers;
pub mod effective;

use std::net::SocketAddr;

use mesh_common::counter::Counter;
use mesh_common::decide::{ConnectVerdict, LookupVerdict};
use serde::{Deserialize, Serialize};

pub use self::report::{Destination, Explanation, KernelState, Path, Reply, RouteReport, Source, Verdict};
use self::resolve::Found;
use self::walk::Walk;
pub use self::words::opted_in;
use crate::model::workload::{Workload, WorkloadUid};
use crate::snapshot::Snapshot;

/// One connection that somebody asks about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// `namespace/pod` or an address.
    pub source: String,
    /// `namespace/service`, `namespace/pod`, `name.namespace.svc` or an address, with `:port` if need be.
    pub destination: String,
    /// The port that the application dials.
    pub port: Option<u16>,
    /// What it then asks for.
    pub request: Option<RequestQuestion>,
}

/// A request that somebody asks about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestQuestion {
    /// Its method.
    pub method: String,
    /// Its path and query.
    pub path: String,
    /// Its headers, name and value.
    pub headers: Vec<(String, String)>,
}

/// A decision of some node's kernel, to be compared with that kernel's maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// A `connect()` of `pod`.
    Connect {
        /// The client.
        pod: WorkloadUid,
        /// What it dials.
        to: SocketAddr,
        /// The number drawn for a service.
        draw: u32,
        /// Exit and, where the hook chooses one, destination.
        decided: (Counter, Option<SocketAddr>),
    },
    /// A SYN to `pod`.
    Arrive {
        /// The server.
        pod: WorkloadUid,
        /// The address and port dialled.
        to: SocketAddr,
        /// `FLOW_*` kind of its record, with the client that wrote it.
        record: Option<(u16, WorkloadUid)>,
        /// The verdict.
        decided: LookupVerdict,
    },
}

/// Exit and destination of a `connect` verdict: what two views of one state agree on.
#[must_use]
pub fn exit_of(verdict: &ConnectVerdict) -> (Counter, Option<SocketAddr>) {
    let to = |ip, port| Some(view::socket(ip, port));
    match verdict {
        ConnectVerdict::Bypass(counter) | ConnectVerdict::Refuse(counter) => (*counter, None),
        ConnectVerdict::RefuseOutside => (Counter::ConnectEgress, None),
        ConnectVerdict::Capture(_) => (Counter::ConnectCaptured, None),
        ConnectVerdict::Native(endpoint) => (Counter::ConnectNative, to(endpoint.ip, endpoint.port)),
        ConnectVerdict::Deny(endpoint) => (Counter::ConnectDenied, to(endpoint.ip, endpoint.port)),
        ConnectVerdict::Fallback(service) => (Counter::ConnectFallback, to(service.fallback_ip, service.fallback_port)),
    }
}

/// Walks the decision on `question`. `refused_ports` are those that no tunnel is delivered to.
///
/// The kernel's state is left empty: it is the caller's to fill in, from the checks.
///
/// # Errors
/// What the question names that there is not, with what comes near.
pub fn explain(
    snapshot: &Snapshot,
    question: &Question,
    refused_ports: &[u16],
) -> Result<(Explanation, Vec<Check>), String> {
    let found = resolve::find(snapshot, question)?;
    let route = route::explain(snapshot, &found, question.request.as_ref())?;
    let mut walk = Walk::new(snapshot, refused_ports, found.source.as_deref(), found.source_ip);
    for to in &found.dialled {
        walk.dial(*to, 1.0 / found.dialled.len() as f64);
    }
    if let Some(request) = &question.request {
        let name = found.service.as_ref().map_or("", |service| &service.name);
        request::judge(snapshot, &found, &request::head(request, name)?, &mut walk.paths);
    }
    let explanation = Explanation {
        node: snapshot.node().to_owned(),
        generation: snapshot.generation(),
        verdict: Explanation::sum_up(&walk.paths),
        source: source(&found),
        destination: destination(snapshot, &found),
        exclusions: walk.exclusions,
        route,
        paths: walk.paths,
        kernel: KernelState::default(),
    };
    Ok((explanation, walk.checks))
}

fn source(found: &Found) -> Source {
    let dialled = found.dialled.first().copied();
    let own =
        |pod: &Workload| pod.ips.iter().copied().find(|ip| dialled.is_some_and(|to| to.is_ipv4() == ip.is_ipv4()));
    let ip = found.source_ip.or_else(|| found.source.as_deref().and_then(own)).map(|ip| ip.to_string());
    let Some(pod) = &found.source else {
        let state = "no pod has this address: what it sends proves nothing".to_owned();
        return Source { pod: None, ip, node: String::new(), identity: None, state };
    };
    Source {
        pod: Some(pod.display_name()),
        ip,
        node: pod.node.to_string(),
        identity: pod.captured.is_some().then(|| pod.identity.to_string()),
        state: words::membership(pod),
    }
}

fn destination(snapshot: &Snapshot, found: &Found) -> Destination {
    let dialled = found.dialled.iter().map(ToString::to_string).collect();
    let first = found.dialled.first().map(SocketAddr::ip);
    let pod = first.and_then(|ip| snapshot.workload_by_ip(ip));
    let (kind, name, state) = match (&found.service, pod) {
        (Some(service), _) => {
            let (all, ready) = (service.endpoints.len(), service.endpoints.iter().filter(|e| e.ready).count());
            let affinity =
                if service.affinity.is_some() { "; sessionAffinity keeps clients to one of them" } else { "" };
            let headless = if service.vips.is_empty() { "headless, " } else { "" };
            ("service", service.display_name(), format!("{headless}{ready} of {all} endpoints ready{affinity}"))
        }
        (None, Some(pod)) if found.source.as_ref().is_some_and(|source| source.uid == pod.uid) => {
            ("self", pod.display_name(), "the source itself".to_owned())
        }
        (None, Some(pod)) => ("pod", pod.display_name(), words::membership(pod)),
        (None, None) if first.is_some_and(|ip| ip.is_loopback()) => {
            ("loopback", String::new(), "the source's own loopback".to_owned())
        }
        (None, None) => ("outside", String::new(), "no pod and no service of the mesh has this address".to_owned()),
    };
    let name = if name.is_empty() { first.map(|ip| ip.to_string()).unwrap_or_default() } else { name };
    Destination { kind: kind.to_owned(), name, dialled, state }
}
