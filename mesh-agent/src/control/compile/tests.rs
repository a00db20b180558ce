//! Objects as YAML → parts: one table or test per field and per rule between objects.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::control::files::Files;
use crate::model::service::{Endpoint, ServicePort};
use crate::model::workload::{Captured, Enrolment, PeerMode, PeerModes, Workload};

/// The parts of `files`, each a name and its text.
fn compiled(files: &[(&str, &str)]) -> SnapshotParts {
    let mut all = Files::default();
    for (name, text) in files {
        all.apply(name, text.as_bytes());
    }
    compile(&all.objects(), &"node-a".into(), &"cluster.local".into())
}

fn one(text: &str) -> SnapshotParts {
    compiled(&[("all.yaml", text)])
}

fn workload<'a>(parts: &'a SnapshotParts, name: &str) -> &'a Workload {
    parts.workloads.iter().find(|workload| &*workload.name == name).unwrap_or_else(|| panic!("no {name}: {parts:?}"))
}

fn service<'a>(parts: &'a SnapshotParts, name: &str, port: u16) -> &'a ServicePort {
    let found = parts.services.iter().find(|service| &*service.name == name && service.port == port);
    found.unwrap_or_else(|| panic!("no {name}:{port}: {parts:?}"))
}

fn addresses(endpoints: &[Endpoint]) -> Vec<String> {
    endpoints.iter().map(|endpoint| endpoint.addr.to_string()).collect()
}

#[track_caller]
fn check_problems(parts: &SnapshotParts, expected: &[&str]) {
    let got: Vec<String> = parts.problems.iter().map(ToString::to_string).collect();
    let matches = got.len() == expected.len() && expected.iter().all(|part| got.iter().any(|text| text.contains(part)));
    assert!(matches, "expected {expected:?}, got {got:#?}");
}

fn namespace(name: &str, label: &str) -> String {
    format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{label}}}}}\n")
}

/// A pod of `shop` on node-a; `extra` are further lines at the left edge or inside `metadata`.
fn pod(name: &str, ip: &str, metadata: &str, spec: &str, status: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, uid: uid-{name}{metadata}}}\n\
         spec: {{nodeName: node-a{spec}}}\nstatus: {{podIP: {ip}{status}}}\n"
    )
}

fn peer_policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: mesh-agent.io/v1alpha1\nkind: PeerPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

const ENABLED: &str = "mesh-agent.io/mode: enabled";

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
    assert_eq!(web.ips, ["10.0.0.1".parse::<std::net::IpAddr>().expect("ip"), "fd00::1".parse().expect("ip")]);
    let ports: Vec<(&str, u16)> = web.ports.iter().map(|port| (&*port.name, port.port)).collect();
    assert_eq!(ports, [("http", 8080), ("", 9100), ("", 2)]);
    assert_eq!(web.enrolment, Enrolment::Enrolled);
    assert_eq!(web.captured, Some(Captured { generation: 2, wire: vec!["h2".into()] }));
    assert_eq!((&web.exclusions.outbound_ports, &web.exclusions.inbound_ports), (&vec![5432, 6379], &vec![9100]));
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
    let metadata = ", labels: {mesh-agent.io/mode: 'yes'}, annotations: {mesh-agent.io/exclude-outbound-ports: '80,http,0', \
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
    assert_eq!((x.enrolment, &x.exclusions.outbound_ports, &x.netns), (Enrolment::NotAsked, &vec![80], &None));
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
    assert_eq!(workload(&parts, "x").peer_mode, expected);
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

const WEB_SLICE: &str = "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web-1, namespace: shop, \
                         labels: {kubernetes.io/service-name: web}}\naddressType: IPv4\n";

fn web_service(spec: &str) -> String {
    format!("---\napiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\nspec: {spec}\n")
}

#[test]
fn a_service_is_read_field_by_field() {
    let text = web_service(
        "{clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1, 'fd96::1'], externalIPs: [192.0.2.1], sessionAffinity: ClientIP, \
         sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}, internalTrafficPolicy: Local, ports: [{name: http, port: 80, \
         targetPort: 8080, appProtocol: http}, {name: dns, port: 53, protocol: UDP}, {name: admin, port: 9000}]}",
    ) + "status: {loadBalancer: {ingress: [{ip: 198.51.100.1}, {ip: 198.51.100.2, ipMode: Proxy}, {ip: 198.51.100.3, ipMode: VIP}, {hostname: x}]}}\n"
        + WEB_SLICE
        + "ports: [{name: admin, port: 9001}, {name: http, port: 8081}, {name: http, port: 1, protocol: UDP}]\n\
           endpoints: [{addresses: [10.0.0.1, 10.0.0.99], nodeName: node-b, zone: z2}]\n";
    let parts = one(&text);
    check_problems(&parts, &[]);
    assert_eq!(parts.services.len(), 2, "UDP is no business of ours");
    let http = service(&parts, "web", 80);
    assert_eq!((&*http.port_name, http.app_protocol.as_deref()), ("http", Some("http")));
    let vips: Vec<String> = http.vips.iter().map(ToString::to_string).collect();
    assert_eq!(vips, ["10.96.0.1", "192.0.2.1", "198.51.100.1", "198.51.100.3", "fd96::1"]);
    assert_eq!((http.affinity, http.local_only, http.prefer_zone), (Some(Duration::from_secs(60)), true, false));
    assert_eq!(addresses(&http.endpoints), ["10.0.0.1:8081"], "the slice's port of that name, the first address");
    assert_eq!((&*http.endpoints[0].node, &*http.endpoints[0].zone), ("node-b", "z2"));
    assert_eq!(addresses(&service(&parts, "web", 9000).endpoints), ["10.0.0.1:9001"]);
}

#[test]
fn service_fields_that_are_left_out_have_kubernetes_defaults() {
    for (spec, vips, affinity) in [
        ("{clusterIP: None, ports: [{port: 80}]}", 0, None),
        ("{clusterIP: 10.96.0.1, sessionAffinity: ClientIP, ports: [{port: 80}]}", 1, Some(10_800)),
        ("{clusterIP: 10.96.0.1, sessionAffinity: None, ports: [{port: 80}]}", 1, None),
    ] {
        let parts = one(&(web_service(spec) + WEB_SLICE + "endpoints: []\n"));
        check_problems(&parts, &[]);
        let web = service(&parts, "web", 80);
        assert_eq!((web.vips.len(), web.affinity), (vips, affinity.map(Duration::from_secs)), "{spec}");
        assert!(!web.local_only && web.endpoints.is_empty());
    }
    let named = web_service("{type: ExternalName, externalName: example.org, ports: [{port: 80}]}");
    assert!(one(&named).services.is_empty());
}

#[test]
fn slice_conditions_mean_what_the_api_says_when_absent() {
    for (conditions, ready, serving, terminating) in [
        ("", true, true, false),
        (", conditions: {}", true, true, false),
        (", conditions: {ready: false}", false, false, false),
        (", conditions: {ready: false, serving: true, terminating: true}", false, true, true),
    ] {
        let slice = format!("{WEB_SLICE}ports: [{{port: 8080}}]\nendpoints: [{{addresses: [10.0.0.1]{conditions}}}]\n");
        let parts = one(&(web_service("{clusterIP: 10.96.0.1, ports: [{port: 80}]}") + &slice));
        let endpoint = &service(&parts, "web", 80).endpoints[0];
        assert_eq!(
            (endpoint.ready, endpoint.serving, endpoint.terminating),
            (ready, serving, terminating),
            "{conditions}"
        );
        let published = web_service("{clusterIP: 10.96.0.1, publishNotReadyAddresses: true, ports: [{port: 80}]}");
        assert!(service(&one(&(published + &slice)), "web", 80).endpoints[0].ready, "publishNotReadyAddresses");
    }
}

#[test]
fn hints_are_carried_and_slices_join_by_address() {
    let second = WEB_SLICE.replace("web-1", "web-2");
    let text = web_service("{clusterIP: 10.96.0.1, ports: [{port: 80}]}")
        + WEB_SLICE
        + "ports: [{port: 8080}]\nendpoints:\n- {addresses: [10.0.0.1], conditions: {ready: false}}\n\
           - {addresses: [10.0.0.2], hints: {forZones: [{name: z1}, {name: z2}], forNodes: [{name: node-a}]}}\n"
        + &second
        + "ports: [{port: 8080}]\nendpoints: [{addresses: [10.0.0.1]}, {addresses: [10.0.0.2], conditions: {ready: false}}]\n"
        + &second.replace("web-2", "web-3")
        + "ports: [{port: 9090}]\nendpoints: [{addresses: [10.0.0.1]}]\n";
    let parts = one(&text);
    let web = service(&parts, "web", 80);
    assert_eq!(addresses(&web.endpoints), ["10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.1:9090"]);
    assert!(web.endpoints.iter().all(|endpoint| endpoint.ready) && web.prefer_zone);
    let names = |names: &[Arc<str>]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        (names(&web.endpoints[1].zones), names(&web.endpoints[1].nodes)),
        (vec!["z1".into(), "z2".into()], vec!["node-a".into()])
    );
}

#[test]
fn the_pod_behind_a_slice_address_is_the_one_that_owns_it() {
    let text = web_service("{clusterIP: 10.96.0.1, ports: [{port: 80}]}")
        + WEB_SLICE
        + "ports: [{port: 8080}]\nendpoints:\n- {addresses: [10.0.0.1], targetRef: {kind: Pod, name: other, uid: uid-other}}\n- {addresses: [10.0.0.2]}\n"
        + &pod("x", "10.0.0.1", "", "", "")
        + &pod("other", "10.0.0.9", "", "", "");
    let parts = one(&text);
    let web = service(&parts, "web", 80);
    let behind: Vec<Option<&str>> = web.endpoints.iter().map(|endpoint| endpoint.workload.as_deref()).collect();
    assert_eq!(behind, [Some("uid-x"), None], "targetRef is a label, not a proof");
    assert_eq!(&*web.endpoints[0].node, "node-a", "the node is the pod's when the slice does not say");
}

#[test]
fn without_slices_the_endpoints_are_the_selected_pods() {
    let labels = ", labels: {app: web}";
    let named = |port: u16| format!(", containers: [{{name: c, ports: [{{name: http, containerPort: {port}}}]}}]");
    let text = web_service(
        "{clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: a, port: 80, targetPort: http}, {name: b, port: 81}]}",
    ) + &pod("one", "10.0.0.1", labels, &named(8080), "")
        + &pod("two", "10.0.0.2", labels, &named(8081), ", conditions: [{type: Ready, status: 'False'}]")
        + &pod(
            "bye",
            "10.0.0.3",
            &(labels.to_owned() + ", deletionTimestamp: '2026-01-01T00:00:00Z'"),
            &named(8080),
            ", conditions: [{type: Ready, status: 'True'}]",
        )
        + &pod("end", "10.0.0.4", labels, &named(8080), ", phase: Failed")
        + &pod("not", "10.0.0.5", ", labels: {app: db}", &named(8080), "")
        + &pod("host", "192.0.2.1", labels, &(named(8082) + ", hostNetwork: true"), "");
    let parts = one(&text);
    check_problems(&parts, &[]);
    let web = service(&parts, "web", 80);
    assert_eq!(addresses(&web.endpoints), ["10.0.0.1:8080", "10.0.0.2:8081", "10.0.0.3:8080", "192.0.2.1:8082"]);
    let conditions: Vec<_> = web.endpoints.iter().map(|one| (one.ready, one.serving, one.terminating)).collect();
    assert_eq!(conditions, [(true, true, false), (false, false, false), (false, true, true), (true, true, false)]);
    assert_eq!((web.endpoints[0].workload.as_deref(), &*web.endpoints[0].node), (Some("uid-one"), "node-a"));
    assert_eq!(addresses(&service(&parts, "web", 81).endpoints)[0], "10.0.0.1:81");
}

#[test]
fn a_slice_of_a_service_replaces_what_its_selector_would_give() {
    let text = web_service("{clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80}]}")
        + &pod("one", "10.0.0.1", ", labels: {app: web}", "", "")
        + WEB_SLICE
        + "endpoints: []\n";
    assert!(service(&one(&text), "web", 80).endpoints.is_empty());
}

#[test]
fn traffic_distribution_becomes_hints_on_derived_endpoints() {
    let node = "---\napiVersion: v1\nkind: Node\nmetadata: {name: node-a, labels: {topology.kubernetes.io/zone: z1}}\n";
    for (distribution, zones, nodes) in [("PreferClose", 1, 0), ("PreferSameZone", 1, 0), ("PreferSameNode", 1, 1)] {
        let spec = format!(
            "{{clusterIP: 10.96.0.1, selector: {{app: web}}, trafficDistribution: {distribution}, ports: [{{port: 80}}]}}"
        );
        let parts = one(&(web_service(&spec) + node + &pod("one", "10.0.0.1", ", labels: {app: web}", "", "")));
        let web = service(&parts, "web", 80);
        assert_eq!((web.endpoints[0].zones.len(), web.endpoints[0].nodes.len(), web.prefer_zone), (zones, nodes, true));
    }
}

#[test]
fn services_that_lead_nowhere_and_fields_that_are_wrong_are_named() {
    for (spec, mistakes) in [
        ("{clusterIP: 10.96.0.1, ports: [{port: 80}]}", vec!["spec.selector: neither a selector nor an EndpointSlice"]),
        ("{clusterIP: 10.96.0.1, selector: {app: no}, ports: [{port: 80}]}", vec!["spec.selector: selects no pod"]),
        (
            "{clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80, targetPort: http}]}",
            vec!["1 of 1 selected pods have no port named `http`"],
        ),
        (
            "{clusterIP: 10.96.0, selector: {app: web}, ports: [{port: 80}]}",
            vec!["spec.clusterIP: `10.96.0` is not an IP"],
        ),
        (
            "{clusterIPs: ['::1'], selector: {app: web}, ports: [{port: 80}]}",
            vec!["spec.clusterIPs[0]: `::1` cannot be"],
        ),
        (
            "{selector: {app: web}, ports: [{port: 0}, {port: 80, name: a}, {port: 80, name: b}, {port: 81, targetPort: 70000}]}",
            vec!["spec.ports[0].port: 0", "spec.ports[2].port: 80 stands twice", "spec.ports[3].targetPort: 70000"],
        ),
        (
            "{selector: {app: web}, sessionAffinity: Cookie, trafficDistribution: Near, ports: [{port: 80}]}",
            vec!["spec.sessionAffinity: `Cookie`", "spec.trafficDistribution: `Near`"],
        ),
        (
            "{selector: {app: web}, sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}, ports: [{port: 80}]}",
            vec!["timeoutSeconds: 0 is not within"],
        ),
    ] {
        check_problems(&one(&(web_service(spec) + &pod("one", "10.0.0.1", ", labels: {app: web}", "", ""))), &mistakes);
    }
}

#[test]
fn an_address_and_port_belong_to_one_service() {
    let of = |name: &str, spec: &str| web_service(spec).replace("name: web", &format!("name: {name}"));
    let thief =
        of("a-thief", "{clusterIP: None, externalIPs: [10.96.0.1, 192.0.2.1], ports: [{port: 80}, {port: 81}]}");
    let web = of("web", "{clusterIP: 10.96.0.1, externalIPs: [192.0.2.1], ports: [{port: 80}]}");
    let slices = WEB_SLICE.to_owned()
        + "endpoints: []\n"
        + &WEB_SLICE.replace("name: web}", "name: a-thief}").replace("web-1", "t-1")
        + "endpoints: []\n";
    let parts = one(&(thief + &web + &slices));
    check_problems(
        &parts,
        &[
            "Service shop/a-thief: spec.externalIPs: 10.96.0.1 port 80 belongs to service shop/web of all.yaml (partly)",
            "Service shop/web: spec.externalIPs: 192.0.2.1 port 80 belongs to service shop/a-thief of all.yaml (partly)",
        ],
    );
    let vips = |name, port| service(&parts, name, port).vips.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(vips("web", 80), ["10.96.0.1"], "a cluster IP goes before an external one");
    assert_eq!(vips("a-thief", 80), ["192.0.2.1"]);
    assert_eq!(vips("a-thief", 81), ["10.96.0.1", "192.0.2.1"]);
}

#[test]
fn policies_of_all_files_are_in_force() {
    let policy = |name: &str| {
        format!(
            "---\napiVersion: mesh-agent.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{}}\n"
        )
    };
    let parts = compiled(&[("b.yaml", &policy("b")), ("a.yaml", &policy("a"))]);
    let names: BTreeMap<&str, bool> =
        parts.policies.iter().map(|policy| (&*policy.name, policy.broken.is_some())).collect();
    assert_eq!(names, BTreeMap::from([("a", false), ("b", false)]));
}
