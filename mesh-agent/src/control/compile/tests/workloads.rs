//! Pods, their enrolment, their addresses and their modes.

use super::*;
use crate::model::workload::{Captured, Enrolment, PeerMode, PeerModes};

#[test]
fn a_pod_becomes_a_workload_field_by_field() {
    let text = [
        namespace("shop", ENABLED),
        "---\napiVersion: v1\nkind: Node\nmetadata: {name: node-a, labels: {topology.kubernetes.io/zone: z1}}\n"
            .to_owned(),
        "
---
apiVersion: v1
kind: Pod
metadata:
  name: web-7d4b9c-x2x
  namespace: shop
  uid: u-1
  labels: {app: web, pod-template-hash: 7d4b9c}
  annotations:
    mesh-agent.io/exclude-outbound-ports: '5432, 6379'
    mesh-agent.io/exclude-inbound-ports: '9100'
    mesh-agent.io/exclude-outbound-cidrs: '192.0.2.0/24,fd00::1'
    mesh-agent.io/netns: /run/netns/web
  ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web-7d4b9c, uid: r, controller: true}]
  deletionTimestamp: '2026-01-01T00:00:00Z'
spec:
  nodeName: node-a
  serviceAccountName: web
  containers:
  - {name: c, ports: [{containerPort: 8080, name: http}, {containerPort: 53, protocol: UDP}, {containerPort: 9100}]}
  initContainers:
  - {name: i, ports: [{containerPort: 1}]}
  - {name: s, restartPolicy: Always, ports: [{containerPort: 2}]}
status: {podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}
"
        .to_owned(),
        "---\napiVersion: mesh-agent.io/v1alpha1\nkind: CaptureState\nmetadata: {name: node-a}\n\
         spec: {node: node-a, pods: [{uid: u-1, name: shop/web, generation: 2, wire: [h2]}]}\n"
            .to_owned(),
    ]
    .concat();
    let parts = one(&text);
    check_problems(&parts, &[]);
    let web = workload(&parts, "web-7d4b9c-x2x");
    assert_eq!((&*web.uid, &*web.namespace, &*web.app, &*web.node, &*web.zone), ("u-1", "shop", "web", "node-a", "z1"));
    assert_eq!(web.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!(*web.ips, ["10.0.0.1".parse::<std::net::IpAddr>().expect("ip"), "fd00::1".parse().expect("ip")]);
    let ports: Vec<(&str, u16)> = web.ports.iter().map(|port| (&*port.name, port.port)).collect();
    assert_eq!(ports, [("http", 8080), ("", 9100), ("", 2)]);
    assert_eq!(web.enrolment, Enrolment::Enrolled);
    assert_eq!(web.captured, Some(Captured { generation: 2, wire: ["h2".into()].into() }));
    assert_eq!(
        (&web.exclusions.outbound_ports, &web.exclusions.inbound_ports),
        (&thin_vec::thin_vec![5432, 6379], &thin_vec::thin_vec![9100])
    );
    let cidrs: Vec<String> = web.exclusions.outbound_cidrs.iter().map(ToString::to_string).collect();
    assert_eq!(cidrs, ["192.0.2.0/24", "fd00::1/128"]);
    assert_eq!((web.netns.as_deref(), web.terminating), (Some(std::path::Path::new("/run/netns/web")), true));
}

#[test]
fn a_pod_written_by_hand_needs_little() {
    let parts = one("apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nstatus: {podIP: 10.0.0.1}\n");
    check_problems(&parts, &[]);
    let x = workload(&parts, "x");
    assert_eq!((&*x.uid, &*x.namespace, &*x.app, &*x.node), ("default/x", "default", "x", ""));
    assert_eq!((x.identity.service_account(), x.enrolment, &x.captured), ("default", Enrolment::NotAsked, &None));
}

#[test]
fn enrolment_follows_namespace_then_pod_then_what_can_be_captured() {
    let label = |value: &str| format!(", labels: {{mesh-agent.io/mode: {value}}}");
    for (of_namespace, of_pod, spec, status, expected) in [
        ("", "".to_owned(), "", "", Enrolment::NotAsked),
        (ENABLED, "".to_owned(), "", "", Enrolment::Enrolled),
        (ENABLED, label("disabled"), "", "", Enrolment::NotAsked),
        ("", label("enabled"), "", "", Enrolment::Enrolled),
        ("mesh-agent.io/mode: disabled", label("enabled"), "", "", Enrolment::Enrolled),
        (ENABLED, "".to_owned(), ", hostNetwork: true", "", Enrolment::HostNetwork),
        ("", "".to_owned(), ", hostNetwork: true", "", Enrolment::NotAsked),
        (ENABLED, "".to_owned(), "", ", phase: Succeeded", Enrolment::Gone),
        (ENABLED, "".to_owned(), "", ", phase: Failed", Enrolment::Gone),
        (ENABLED, "".to_owned(), "", ", phase: Running", Enrolment::Enrolled),
    ] {
        let parts = one(&(namespace("shop", of_namespace) + &pod("x", "10.0.0.1", &of_pod, spec, status)));
        check_problems(&parts, &[]);
        let x = workload(&parts, "x");
        assert_eq!(x.enrolment, expected, "{of_namespace} {of_pod} {spec} {status}");
        let owns = matches!(expected, Enrolment::Enrolled | Enrolment::NotAsked) && !x.host_network;
        assert_eq!(!x.ips.is_empty(), owns, "{spec} {status}");
    }
}

#[test]
fn labels_and_annotations_that_make_no_sense_are_named_and_have_no_effect() {
    let metadata = ", labels: {mesh-agent.io/mode: 'yes'}, annotations: {mesh-agent.io/exclude-outbound-ports: \
    '80,http,0', \
                    mesh-agent.io/exclude-outbound-cidrs: 10.0.0.0/99, mesh-agent.io/netns: web}";
    let parts = one(&(namespace("shop", "mesh-agent.io/mode: true") + &pod("x", "10.0.0.300", metadata, "", "")));
    // The namespace's `true` is no string: the object cannot be read.
    check_problems(
        &parts,
        &[
            "Namespace shop: metadata.labels.mesh-agent.io/mode: invalid type: boolean",
            "Pod shop/x: metadata.labels[mesh-agent.io/mode]: `yes` is neither `enabled` nor `disabled` (partly)",
            "[mesh-agent.io/exclude-outbound-ports]: `http` is not a port",
            "[mesh-agent.io/exclude-outbound-ports]: `0` is not a port",
            "[mesh-agent.io/exclude-outbound-cidrs]: `10.0.0.0/99` is not a CIDR",
            "[mesh-agent.io/netns]: `web` is not an absolute path",
            "status.podIP: `10.0.0.300` is not an IP address",
        ],
    );
    let x = workload(&parts, "x");
    assert_eq!(
        (x.enrolment, &x.exclusions.outbound_ports, &x.netns),
        (Enrolment::NotAsked, &thin_vec::thin_vec![80], &None)
    );
}

#[test]
fn a_capture_state_speaks_for_the_pods_of_its_own_node_only() {
    let state = "---\napiVersion: mesh-agent.io/v1alpha1\nkind: CaptureState\nmetadata: {name: node-b}\n\
                 spec: {node: node-b, pods: [{uid: uid-x, name: shop/x, generation: 1, wire: [h2]}]}\n";
    let parts = one(&(pod("x", "10.0.0.1", "", "", "") + state));
    assert_eq!(workload(&parts, "x").captured, None);
}

#[test]
fn of_two_pods_that_claim_an_address_the_later_start_owns_it_and_the_other_nothing() {
    let at = |hour: u8| {
        format!(", podIPs: [{{ip: 10.0.0.1}}, {{ip: 'fd00::{hour}'}}], startTime: '2026-01-01T0{hour}:00:00Z'")
    };
    let old = pod("old", "10.0.0.1", "", "", &at(1));
    let new = pod("new", "10.0.0.1", "", "", &at(2));
    for text in [old.clone() + &new, new.clone() + &old] {
        let parts = one(&(namespace("shop", ENABLED) + &text));
        check_problems(&parts, &["Pod shop/old: status.podIPs: 10.0.0.1 belongs to pod shop/new of all.yaml"]);
        let (old, new) = (workload(&parts, "old"), workload(&parts, "new"));
        assert_eq!((old.ips.len(), old.enrolment), (0, Enrolment::Gone));
        assert_eq!((new.ips.len(), new.enrolment), (2, Enrolment::Enrolled));
    }
    let done = pod("done", "10.0.0.1", "", "", &(at(3) + ", phase: Succeeded"));
    let host = pod("host", "10.0.0.1", "", ", hostNetwork: true", &at(4));
    let parts = one(&(old + &done + &host));
    check_problems(&parts, &[]);
    assert_eq!(workload(&parts, "old").ips.len(), 2, "finished and hostNetwork pods claim nothing");
}

#[test]
fn a_uid_means_one_pod() {
    let twin = pod("b", "10.0.0.2", "", "", "").replace("uid-b", "uid-a");
    let parts = one(&(pod("a", "10.0.0.1", "", "", "") + &twin));
    check_problems(&parts, &["Pod shop/b: metadata.uid: uid-a is the uid of pod shop/a of all.yaml (ignored)"]);
    assert_eq!(parts.workloads.len(), 1);
}

#[test]
fn a_pod_without_a_possible_identity_is_no_workload() {
    let parts = one(&pod("x", "10.0.0.1", "", ", serviceAccountName: 'a/b'", ""));
    check_problems(
        &parts,
        &["Pod shop/x: spec.serviceAccountName: `shop/a/b` cannot be part of a SPIFFE id (ignored)"],
    );
    assert!(parts.workloads.is_empty());
}

/// The mode of pod shop/x (label `app: x`) under the policies, by port.
#[track_caller]
fn check_modes(policies: &[(&str, &str, &str)], port: u16, mode: PeerMode, source: &str) {
    let policies: String = policies.iter().map(|(namespace, name, spec)| peer_policy(namespace, name, spec)).collect();
    let parts = one(&(policies + &pod("x", "10.0.0.1", ", labels: {app: x}", "", "")));
    let modes = &workload(&parts, "x").peer_mode;
    assert_eq!((modes.mode(port), &**modes.source(port)), (mode, source), "{modes:?}");
}

#[test]
fn the_strictest_peer_policy_that_applies_decides_port_by_port() {
    use PeerMode::{Permissive, Strict};
    const ROOT: &str = "mesh-agent-system";
    let of_x = "selector: {matchLabels: {app: x}}";
    check_modes(&[], 80, Permissive, "");
    check_modes(&[("shop", "n", "{mode: Strict}")], 80, Strict, "shop/n");
    check_modes(&[("bank", "n", "{mode: Strict}")], 80, Permissive, "");
    check_modes(
        &[(ROOT, "m", "{mode: Strict}"), ("shop", "n", "{mode: Permissive}")],
        80,
        Strict,
        "mesh-agent-system/m",
    );
    check_modes(&[(ROOT, "m", "{mode: Permissive}"), ("shop", "n", "{mode: Strict}")], 80, Strict, "shop/n");
    check_modes(
        &[("shop", "n", "{mode: Strict}"), ("shop", "p", &format!("{{mode: Permissive, {of_x}}}"))],
        80,
        Strict,
        "shop/n",
    );
    check_modes(&[("shop", "p", &format!("{{mode: Strict, {of_x}}}"))], 80, Strict, "shop/p");
    check_modes(&[("shop", "p", "{mode: Strict, selector: {matchLabels: {app: y}}}")], 80, Permissive, "");

    let except = [("shop", "n", "{mode: Strict, ports: {'80': {mode: Permissive}}}")];
    check_modes(&except, 80, Permissive, "shop/n");
    check_modes(&except, 81, Strict, "shop/n");
    let only = [("shop", "n", "{ports: {'80': {mode: Strict}}}")];
    check_modes(&only, 80, Strict, "shop/n");
    check_modes(&only, 81, Permissive, "");
    check_modes(&[except[0], (ROOT, "m", "{mode: Strict}")], 80, Strict, "mesh-agent-system/m");
    check_modes(&[except[0], ("shop", "o", "{ports: {'80': {mode: Strict}}}")], 80, Strict, "shop/n");
    check_modes(&[("shop", "broken", "{mode: Permissive, x: 1}")], 80, Strict, "shop/broken");
}

#[test]
fn modes_that_say_the_same_are_equal() {
    let parts = one(&(peer_policy("shop", "n", "{mode: Strict, ports: {'80': {mode: Strict}}}")
        + &pod("x", "10.0.0.1", "", "", "")));
    let expected = PeerModes { default: PeerMode::Strict, source: "shop/n".into(), ..PeerModes::default() };
    assert_eq!(*workload(&parts, "x").peer_mode, expected);
}

#[test]
fn a_pod_leaves_a_strict_mesh_only_where_the_policy_lets_it() {
    let leaves =
        ", labels: {app: x, mesh-agent.io/mode: disabled}, annotations: {mesh-agent.io/exclude-inbound-ports: '80,81'}";
    let run = |policy: String| one(&(namespace("shop", ENABLED) + &policy + &pod("x", "10.0.0.1", leaves, "", "")));
    for (namespace, spec, stays) in [
        ("shop", "{mode: Permissive}", false),
        ("shop", "{mode: Strict}", true),
        ("mesh-agent-system", "{mode: Strict}", true),
        ("shop", "{ports: {'80': {mode: Strict}}}", true),
        ("shop", "{mode: Strict, allowOptOut: true}", false),
        ("shop", "{mode: Strict, selector: {matchLabels: {app: x}}}", false),
    ] {
        let parts = run(peer_policy(namespace, "s", spec));
        let x = workload(&parts, "x");
        assert_eq!(x.enrolment == Enrolment::Enrolled, stays, "{namespace} {spec}");
        let named = parts
            .problems
            .iter()
            .any(|problem| problem.reason.contains(&format!("PeerPolicy {namespace}/s is Strict")));
        assert_eq!(named, stays, "{:?}", parts.problems);
    }
    let parts = run(peer_policy("shop", "s", "{ports: {'80': {mode: Strict}}}"));
    assert_eq!(workload(&parts, "x").exclusions.inbound_ports, [81]);
}
