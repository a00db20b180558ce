//! What may leave the mesh: precedence of policies, opt-outs that count, UDP ports of Services.

use super::*;
use crate::model::egress::{BuiltIn, Destination};
use crate::model::service::Protocol;
use crate::snapshot::Snapshot;

const ROOT: &str = "mesh-agent-system";
const REFUSE: &str = "{egress: {default: refuse}}";

/// Pod shop/x (label `app: x`) of an enabled namespace, under the policies.
fn under(policies: &[(&str, &str, &str)], metadata: &str) -> SnapshotParts {
    let policies: String = policies.iter().map(|(namespace, name, spec)| peer_policy(namespace, name, spec)).collect();
    one(&(namespace("shop", ENABLED) + &policies + &pod("x", "10.0.0.1", metadata, "", "")))
}

#[test]
fn one_policy_that_refuses_is_enough_and_the_highest_is_named() {
    let of_x = "{egress: {default: refuse}, selector: {matchLabels: {app: x}}}";
    let of_y = "{egress: {default: refuse}, selector: {matchLabels: {app: y}}}";
    let allow = "{egress: {default: allow}}";
    type Row<'a> = (&'a [(&'a str, &'a str, &'a str)], Option<&'a str>);
    let table: [Row<'_>; 9] = [
        (&[], None),
        (&[("shop", "n", "{mode: Strict}")], None),
        (&[("shop", "n", allow)], None),
        (&[("shop", "n", REFUSE)], Some("shop/n")),
        (&[("bank", "n", REFUSE)], None),
        (&[("shop", "n", allow), (ROOT, "m", REFUSE)], Some("mesh-agent-system/m")),
        (&[("shop", "n", REFUSE), (ROOT, "m", REFUSE)], Some("mesh-agent-system/m")),
        (&[("shop", "n", allow), ("shop", "x", of_x), ("shop", "y", of_y)], Some("shop/x")),
        (&[("shop", "broken", "{egress: {default: allow}, x: 1}")], Some("shop/broken")),
    ];
    for (policies, expected) in table {
        let parts = under(policies, ", labels: {app: x}");
        assert_eq!(workload(&parts, "x").egress.refused_by.as_deref(), expected, "{policies:?}");
    }
}

#[test]
fn a_pod_gets_out_only_where_every_refusal_above_it_lets_it() {
    let ways_out = ", labels: {app: x}, annotations: {mesh-agent.io/exclude-outbound-ports: '443', \
                    mesh-agent.io/exclude-outbound-cidrs: 192.0.2.0/24}";
    let leaves = ", labels: {app: x, mesh-agent.io/mode: disabled}";
    let lenient = "{egress: {default: refuse, allowOptOut: true}}";
    let of_x = "{egress: {default: refuse}, selector: {matchLabels: {app: x}}}";
    // Strict mode's own permission is another matter.
    let other = "{mode: Strict, allowOptOut: true, egress: {default: refuse}}";
    type Row<'a> = (&'a [(&'a str, &'a str, &'a str)], Option<&'a str>);
    let table: [Row<'_>; 6] = [
        (&[("shop", "n", REFUSE)], Some("shop/n")),
        (&[(ROOT, "m", REFUSE), ("shop", "n", lenient)], Some("mesh-agent-system/m")),
        (&[(ROOT, "m", lenient), ("shop", "n", REFUSE)], Some("shop/n")),
        (&[("shop", "n", other)], Some("shop/n")),
        (&[("shop", "n", lenient)], None),
        (&[("shop", "x", of_x)], None),
    ];
    for (policies, kept_in_by) in table {
        let ignored = |parts: &SnapshotParts| {
            let by =
                |by: &str| format!("ignored: PeerPolicy {by} refuses egress and has no `egress.allowOptOut: true`");
            parts.problems.iter().filter(|problem| kept_in_by.is_some_and(|name| *problem.reason == *by(name))).count()
        };
        let parts = under(policies, ways_out);
        let exclusions = &workload(&parts, "x").exclusions;
        let kept = exclusions.outbound_ports.is_empty() && exclusions.outbound_cidrs.is_empty();
        assert_eq!(kept, kept_in_by.is_some(), "{policies:?}: {exclusions:?}");
        assert_eq!(ignored(&parts), if kept { 2 } else { 0 }, "{policies:?}: {:?}", parts.problems);
        let parts = under(policies, leaves);
        assert_eq!(workload(&parts, "x").is_enrolled(), kept_in_by.is_some(), "{policies:?}");
        assert_eq!(ignored(&parts), usize::from(kept_in_by.is_some()), "{policies:?}: {:?}", parts.problems);
    }
}

#[test]
fn udp_is_refused_where_any_policy_says_so() {
    let ports = ("shop", "n", "{mode: Strict, udp: [53, 5353]}");
    let parts = under(&[ports, (ROOT, "m", "{mode: Strict, udp: [53]}")], "");
    let refusals = &workload(&parts, "x").udp_refusals;
    let source = |port| refusals.source(port).map(|source| &**source);
    assert_eq!([source(53), source(5353), source(80)], [Some("mesh-agent-system/m"), Some("shop/n"), None]);
    let parts = under(&[ports, (ROOT, "m", "{mode: Strict, udp: all}")], "");
    let refusals = &workload(&parts, "x").udp_refusals;
    assert_eq!(refusals.source(80).map(|source| &**source), Some("mesh-agent-system/m"));
}

#[test]
fn udp_ports_of_services_are_destinations_of_their_own() {
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: kube-dns, namespace: kube-system}\nspec:\n  \
                   clusterIP: 10.96.0.10\n  ports:\n  - {name: dns, port: 53, protocol: UDP, targetPort: 1053}\n  \
                   - {name: dns-tcp, port: 53, targetPort: 1053}\n  - {name: metrics, port: 9153}\n";
    let slice = "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s, namespace: \
                 kube-system, labels: {kubernetes.io/service-name: kube-dns}}\naddressType: IPv4\nports:\n\
                 - {name: dns, port: 1053, protocol: UDP}\n- {name: dns-tcp, port: 1054}\n\
                 - {name: metrics, port: 9153}\nendpoints: [{addresses: [10.0.0.3]}]\n";
    let parts = one(&(service.to_owned() + slice));
    check_problems(&parts, &[]);
    assert_eq!((parts.services.len(), parts.udp_services.len()), (2, 1));
    let snapshot = Snapshot::new(1, parts);
    let rule =
        |addr: &str, protocol| snapshot.admitted().get(&Destination { addr: addr.parse().unwrap(), protocol }).copied();
    for addr in ["10.96.0.10:53", "10.0.0.3:1053"] {
        assert_eq!(rule(addr, Protocol::Udp), Some(BuiltIn::ClusterDns), "{addr}");
    }
    assert_eq!(rule("10.0.0.3:1054", Protocol::Tcp), Some(BuiltIn::ClusterDns));
    assert_eq!(rule("10.0.0.3:1053", Protocol::Tcp), None, "the slice names another port for TCP");
    assert_eq!(rule("10.0.0.3:9153", Protocol::Tcp), None, "metrics are no DNS");
}
