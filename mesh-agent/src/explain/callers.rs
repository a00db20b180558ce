//! Who somebody is that has proven nothing: what its address says, in words that tell what to do about it.
//!
//! An address is no proof. This names callers for people, and nothing is decided by it.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::model::workload::{PeerMode, Workload};
use crate::snapshot::Snapshot;

/// What a caller is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The API server: it calls admission webhooks and aggregated APIs.
    ApiServer,
    /// A scraper of metrics.
    Prometheus,
    /// An ingress or gateway.
    Ingress,
    /// Another pod.
    Pod,
    /// An address of a node: the kubelet, a hostNetwork pod, or what a NAT of the node hides.
    Node,
    /// Nobody whom the mesh knows: from outside the cluster, or a node without pods.
    Unknown,
}

impl Kind {
    /// What is to be done before the mode is strict.
    #[must_use]
    pub fn way_out(self) -> &'static str {
        match self {
            Self::ApiServer => "exempt the webhook's port: `ports` of a PeerPolicy; the API server cannot join a mesh",
            Self::Prometheus => "opt the scraper in, or exempt the metrics port: `ports` of a PeerPolicy",
            Self::Ingress => "opt the ingress in: it is a client of the mesh then",
            Self::Pod => "opt the caller in, or take what excludes it away",
            Self::Node => {
                "probes of declared ports are let in; else give the caller a network of its own and opt it in"
            }
            Self::Unknown => "find out who has this address; let it in by an ingress, or exempt the port",
        }
    }
}

/// A caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// What it is.
    pub kind: Kind,
    /// `namespace/name` and what it lacks, or what is known of the address.
    pub name: String,
}

const SCRAPERS: &[&str] = &["prometheus", "vmagent", "grafana-agent", "grafana-alloy", "otel-collector"];
const INGRESSES: &[&str] = &["ingress", "gateway", "traefik", "contour", "haproxy", "kong", "envoy"];

/// Whom addresses belong to, as a snapshot has it. Built once for all that are asked about: Services are gone through.
#[derive(Debug)]
pub struct Directory<'a> {
    snapshot: &'a Snapshot,
    api_server: HashSet<IpAddr>,
    /// The hostNetwork pods behind endpoints: the only ones whose node's address is known here.
    on_nodes: HashMap<IpAddr, Vec<&'a Workload>>,
}

impl<'a> Directory<'a> {
    /// The directory of what is known now.
    #[must_use]
    pub fn of(snapshot: &'a Snapshot) -> Self {
        let mut directory = Self { snapshot, api_server: HashSet::new(), on_nodes: HashMap::new() };
        for service in snapshot.services().iter() {
            let is_api_server = *service.namespace == *"default" && *service.name == *"kubernetes";
            for endpoint in &service.endpoints {
                let ip = endpoint.addr.ip();
                if is_api_server {
                    directory.api_server.insert(ip);
                }
                let pod = snapshot.behind(ip, endpoint.workload.as_ref()).filter(|pod| pod.host_network);
                if let Some(pod) = pod {
                    directory.on_nodes.entry(ip).or_default().push(pod);
                }
            }
        }
        for pods in directory.on_nodes.values_mut() {
            pods.sort_by_key(|pod| pod.display_name());
            pods.dedup_by_key(|pod| &pod.uid);
        }
        directory
    }

    /// Who has the address `ip`.
    #[must_use]
    pub fn who(&self, ip: IpAddr) -> Caller {
        if self.api_server.contains(&ip) {
            return Caller {
                kind: Kind::ApiServer,
                name: "the API server (endpoint of default/kubernetes)".to_owned(),
            };
        }
        if let Some(pod) = self.snapshot.workload_by_ip(ip) {
            let name = format!("{}, {}", pod.display_name(), super::words::membership(pod));
            return Caller { kind: kind_of(pod), name };
        }
        match self.on_nodes.get(&ip).map_or(&[][..], Vec::as_slice) {
            [] => Caller { kind: Kind::Unknown, name: "no pod has this address".to_owned() },
            pods @ [first, ..] => {
                // Its address is its node's, and so is everybody else's there.
                let told = pods.iter().map(|pod| kind_of(pod)).find(|kind| *kind != Kind::Pod).unwrap_or(Kind::Node);
                let names: Vec<String> = pods.iter().map(|pod| pod.display_name()).collect();
                Caller { kind: told, name: format!("node {}, where {} has its network", first.node, names.join(", ")) }
            }
        }
    }
}

/// By what it is called: labels are its owner's word, which is enough for a name.
fn kind_of(pod: &Workload) -> Kind {
    let labels = ["app.kubernetes.io/name", "app.kubernetes.io/component", "app"];
    let words: Vec<String> = labels.iter().filter_map(|label| pod.labels.get(*label)).cloned().collect();
    let words = [words.join(" "), pod.app.to_string()].join(" ").to_lowercase();
    let is_one_of = |names: &[&str]| names.iter().any(|name| words.contains(name));
    if is_one_of(SCRAPERS) {
        Kind::Prometheus
    } else if is_one_of(INGRESSES) {
        Kind::Ingress
    } else {
        Kind::Pod
    }
}

/// The `PeerPolicy` by which `port` of `pod` takes plaintext whatever the mode of the namespace is.
#[must_use]
pub fn exemption(pod: &Workload, port: u16) -> Option<String> {
    let is_open = pod.peer_mode.ports.get(&port) == Some(&PeerMode::Permissive);
    is_open.then(|| format!("PeerPolicy {}", pod.peer_mode.source(port)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::explain::tests::pod;
    use crate::model::addr::EndpointAddr;
    use crate::model::service::{Endpoint, ServicePort};
    use crate::snapshot::SnapshotParts;

    fn named(name: &str, ip: &str, label: &str) -> Arc<Workload> {
        let labels = [("app.kubernetes.io/name".to_owned(), label.to_owned())];
        Arc::new(Workload { captured: None, labels: Arc::new(labels.into()), ..pod(name, "a", ip) })
    }

    fn service(namespace: &str, name: &str, address: &str, uid: Option<&str>) -> Arc<ServicePort> {
        let mut endpoint = Endpoint::new(EndpointAddr::new(address.parse().unwrap()));
        endpoint.workload = uid.map(Into::into);
        let (namespace, name) = (namespace.into(), name.into());
        Arc::new(ServicePort { namespace, name, endpoints: vec![endpoint], ..ServicePort::default() })
    }

    #[test]
    fn callers_are_named_as_what_they_are() {
        let host = Workload { host_network: true, ips: smallvec::smallvec![], ..pod("host", "b", "10.0.0.9") };
        let snapshot = Snapshot::new(
            1,
            SnapshotParts {
                workloads: vec![
                    named("web", "10.0.0.1", "web"),
                    named("scraper", "10.0.0.2", "prometheus"),
                    named("front", "10.0.0.3", "ingress-nginx"),
                    Arc::new(host),
                ]
                .into(),
                services: vec![
                    service("default", "kubernetes", "192.168.0.1:6443", None),
                    service("shop", "kubernetes", "10.0.0.7:6443", None),
                    service("shop", "host", "192.168.0.2:80", Some("uid-host")),
                ]
                .into(),
                ..SnapshotParts::default()
            },
        );
        let directory = Directory::of(&snapshot);
        let check = |ip: &str, kind: Kind, part: &str| {
            let caller = directory.who(ip.parse().unwrap());
            assert!(caller.kind == kind && caller.name.contains(part), "{ip}: {caller:?}");
        };
        check("192.168.0.1", Kind::ApiServer, "API server");
        check("10.0.0.1", Kind::Pod, "shop/web, opted in, but");
        check("10.0.0.2", Kind::Prometheus, "shop/scraper");
        check("10.0.0.3", Kind::Ingress, "shop/front");
        check("192.168.0.2", Kind::Node, "node b, where shop/host");
        check("10.0.0.7", Kind::Unknown, "no pod");
    }

    #[test]
    fn a_port_that_a_policy_opens_is_exempt_and_no_other() {
        let mut web = pod("web", "a", "10.0.0.1");
        web.peer_mode.ports.extend([(8443, PeerMode::Permissive), (80, PeerMode::Strict)]);
        web.peer_mode.port_sources.insert(8443, "shop/hooks".into());
        let exempt = [8443, 80, 7000].map(|port| exemption(&web, port));
        assert_eq!(exempt, [Some("PeerPolicy shop/hooks".to_owned()), None, None]);
    }
}
