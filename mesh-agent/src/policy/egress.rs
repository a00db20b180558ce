//! The built-in rules: which destinations outside the mesh every pod may reach, also one that refuses the rest.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh_common::value::{ADMITTED_CLUSTER_DNS, ADMITTED_KUBERNETES, ADMITTED_NODE_LOCAL_DNS, ADMITTED_SERVICE};

use crate::model::egress::{BuiltIn, Destination};
use crate::model::service::{Protocol, ServicePort};
use crate::snapshot::{SnapshotParts, Table};

const DNS_PORT: u16 = 53;

/// What is admitted, and by which rule; where two would do, by the more particular one.
///
/// TCP to the virtual address of any Service is not in it: the kernel's `services` are.
#[must_use]
pub fn admitted(parts: &SnapshotParts) -> HashMap<Destination, BuiltIn> {
    let mut admitted: HashMap<Destination, BuiltIn> = HashMap::new();
    let mut admit = |addr: SocketAddr, protocol, rule: BuiltIn| {
        admitted.entry(Destination { addr, protocol }).and_modify(|known| *known = rule.min(*known)).or_insert(rule);
    };
    if let Some(ip) = parts.node_local_dns {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            admit(SocketAddr::new(ip, DNS_PORT), protocol, BuiltIn::NodeLocalDns);
        }
    }
    let all = tables(parts);
    for (service, protocol) in all.iter().flat_map(|(services, protocol)| services.iter().map(|one| (one, *protocol))) {
        let rule = rule_of(service);
        let named = rule != BuiltIn::Service;
        if named || protocol == Protocol::Udp {
            service.vips.iter().for_each(|vip| admit(SocketAddr::new(*vip, service.port), protocol, rule));
        }
        // Whoever dials a Service without an address dials its endpoints.
        if named || service.vips.is_empty() {
            service.endpoints.iter().for_each(|endpoint| admit(endpoint.addr.addr(), protocol, rule));
        }
    }
    admitted
}

/// Whether `now` may admit something else than `before`: looks at what has changed.
#[must_use]
pub fn differs(before: &SnapshotParts, now: &SnapshotParts) -> bool {
    let matters = |service: &Arc<ServicePort>, protocol| {
        protocol == Protocol::Udp || service.vips.is_empty() || rule_of(service) != BuiltIn::Service
    };
    let mut tables = tables(before).into_iter().zip(tables(now));
    before.node_local_dns != now.node_local_dns
        || tables.any(|((before, protocol), (now, _))| {
            let mut changed = now.since(before).flat_map(|(old, new)| old.into_iter().chain(new));
            changed.any(|service| matters(service, protocol))
        })
}

fn tables(parts: &SnapshotParts) -> [(&Table<ServicePort>, Protocol); 2] {
    [(&parts.services, Protocol::Tcp), (&parts.udp_services, Protocol::Udp)]
}

/// The rule that a Service's port comes under.
#[must_use]
pub fn rule_of(service: &ServicePort) -> BuiltIn {
    match (&*service.namespace, &*service.name) {
        ("kube-system", "kube-dns" | "coredns") if service.port == DNS_PORT => BuiltIn::ClusterDns,
        ("default", "kubernetes") => BuiltIn::Kubernetes,
        _ => BuiltIn::Service,
    }
}

/// The kernel's word for a rule.
#[must_use]
pub fn word(rule: BuiltIn) -> u32 {
    match rule {
        BuiltIn::ClusterDns => ADMITTED_CLUSTER_DNS,
        BuiltIn::NodeLocalDns => ADMITTED_NODE_LOCAL_DNS,
        BuiltIn::Kubernetes => ADMITTED_KUBERNETES,
        BuiltIn::Service => ADMITTED_SERVICE,
    }
}

/// Where kubelet's node-local DNS cache listens by convention.
pub const NODE_LOCAL_DNS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(169, 254, 20, 10));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::addr::EndpointAddr;
    use crate::model::service::Endpoint;

    fn service(name: &str, port: u16, vips: &[&str], endpoints: &[&str]) -> Arc<ServicePort> {
        let (namespace, name) = name.split_once('/').unwrap();
        Arc::new(ServicePort {
            namespace: namespace.into(),
            name: name.into(),
            port,
            vips: vips.iter().map(|vip| vip.parse().unwrap()).collect(),
            endpoints: endpoints.iter().map(|at| Endpoint::new(EndpointAddr::new(at.parse().unwrap()))).collect(),
            ..ServicePort::default()
        })
    }

    #[test]
    fn each_built_in_rule_admits_what_the_table_says_and_nothing_else() {
        let dns = |name| service(name, 53, &["10.96.0.10", "fd00::10"], &["10.0.0.3:1053"]);
        let parts = SnapshotParts {
            node_local_dns: Some(NODE_LOCAL_DNS),
            services: vec![
                dns("kube-system/kube-dns"),
                service("kube-system/kube-dns", 9153, &["10.96.0.10"], &["10.0.0.3:9153"]),
                service("default/kubernetes", 443, &["10.96.0.1"], &["192.0.2.1:6443"]),
                service("shop/web", 80, &["10.96.0.20"], &["10.0.0.4:8080"]),
                service("shop/db", 5432, &[], &["192.0.2.9:5432"]),
            ]
            .into(),
            udp_services: vec![
                dns("kube-system/coredns"),
                // As a headless Service for DNS's own pods would be.
                service("kube-system/dns-pods", 53, &[], &["10.0.0.3:1053"]),
                service("shop/game", 7000, &["10.96.0.21"], &["10.0.0.5:7000"]),
                service("shop/kubernetes", 443, &["10.96.0.22"], &[]),
            ]
            .into(),
            ..SnapshotParts::default()
        };
        let mut expected = HashMap::new();
        let rows = [
            (BuiltIn::NodeLocalDns, "tu", "169.254.20.10:53"),
            (BuiltIn::ClusterDns, "tu", "10.96.0.10:53"),
            (BuiltIn::ClusterDns, "tu", "[fd00::10]:53"),
            (BuiltIn::ClusterDns, "tu", "10.0.0.3:1053"),
            (BuiltIn::Kubernetes, "t", "10.96.0.1:443"),
            (BuiltIn::Kubernetes, "t", "192.0.2.1:6443"),
            (BuiltIn::Service, "t", "192.0.2.9:5432"),
            (BuiltIn::Service, "u", "10.96.0.21:7000"),
            (BuiltIn::Service, "u", "10.96.0.22:443"),
        ];
        for (rule, protocols, addr) in rows {
            for letter in protocols.chars() {
                let protocol = if letter == 't' { Protocol::Tcp } else { Protocol::Udp };
                expected.insert(Destination { addr: addr.parse().unwrap(), protocol }, rule);
            }
        }
        assert_eq!(admitted(&parts), expected);
    }
}
