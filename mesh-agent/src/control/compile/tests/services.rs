//! Services, slices and derived endpoints.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::model::service::AppProtocol;

const WEB_SLICE: &str = "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web-1, \
namespace: shop, \
                         labels: {kubernetes.io/service-name: web}}\naddressType: IPv4\n";

fn web_service(spec: &str) -> String {
    format!("---\napiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\nspec: {spec}\n")
}

#[test]
fn a_service_is_read_field_by_field() {
    let spec = "
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1, 'fd96::1']
  externalIPs: [192.0.2.1]
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}
  internalTrafficPolicy: Local
  ports:
  - {name: http, port: 80, targetPort: 8080, appProtocol: http}
  - {name: dns, port: 53, protocol: UDP}
  - {name: admin, port: 9000}
status:
  loadBalancer:
    ingress: [{ip: 198.51.100.1}, {ip: 198.51.100.2, ipMode: Proxy}, {ip: 198.51.100.3, ipMode: VIP}, {hostname: x}]";
    let text = web_service(spec)
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
fn an_annotation_says_what_a_service_speaks() {
    use AppProtocol::{Http, Http2, Opaque, Unknown};
    const SPEC: &str = "{clusterIP: 10.96.0.1, ports: [{name: http, port: 80}, {name: a, port: 81}, \
                        {name: b, port: 82, appProtocol: http}, {name: c, port: 83, protocol: UDP}]}";
    let annotated = |value: &str| {
        let named = "name: web, namespace: shop";
        assert!(web_service(SPEC).contains(named), "{}", web_service(SPEC));
        let annotated = format!("{named}, annotations: {{mesh-agent.io/protocols: '{value}'}}");
        one(&(web_service(SPEC).replace(named, &annotated) + WEB_SLICE + "endpoints: []\n"))
    };
    let spoken = |parts: &SnapshotParts| [80, 81, 82].map(|port| service(parts, "web", port).protocol());
    for (value, expected) in [
        ("", [Http, Unknown, Http]),
        ("80=opaque, 81 = http2,82=http", [Opaque, Http2, Http]),
        ("81=http,,82=opaque,", [Http, Http, Opaque]),
    ] {
        let parts = annotated(value);
        check_problems(&parts, &[]);
        assert_eq!(spoken(&parts), expected, "{value}");
    }
    for (value, expected) in [
        ("80", "`80` is not of the form PORT=PROTOCOL"),
        ("84=http", "`84` is no TCP port of this Service"),
        ("83=http", "`83` is no TCP port of this Service"),
        ("81=grpc", "`grpc` is none of http, http2, opaque"),
    ] {
        let parts = annotated(&format!("{value},82=opaque"));
        check_problems(&parts, &[&format!("metadata.annotations[mesh-agent.io/protocols]: {expected}")]);
        assert_eq!(spoken(&parts), [Http, Unknown, Opaque], "only the part with the mistake: {value}");
    }
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
        + "ports: [{port: 8080}]\nendpoints: [{addresses: [10.0.0.1]}, {addresses: [10.0.0.2], conditions: {ready: \
        false}}]\n"
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
        + "ports: [{port: 8080}]\nendpoints:\n- {addresses: [10.0.0.1], targetRef: {kind: Pod, name: other, uid: \
        uid-other}}\n- {addresses: [10.0.0.2]}\n"
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
        "{clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: a, port: 80, targetPort: http}, {name: b, \
        port: 81}]}",
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
            "{{clusterIP: 10.96.0.1, selector: {{app: web}}, trafficDistribution: {distribution}, ports: [{{port: \
            80}}]}}"
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
            "{selector: {app: web}, ports: [{port: 0}, {port: 80, name: a}, {port: 80, name: b}, {port: 81, \
            targetPort: 70000}]}",
            vec!["spec.ports[0].port: 0", "spec.ports[2].port: 80 stands twice", "spec.ports[3].targetPort: 70000"],
        ),
        (
            "{selector: {app: web}, sessionAffinity: Cookie, trafficDistribution: Near, ports: [{port: 80}]}",
            vec!["spec.sessionAffinity: `Cookie`", "spec.trafficDistribution: `Near`"],
        ),
        (
            "{selector: {app: web}, sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: \
            0}}, ports: [{port: 80}]}",
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
            "Service shop/a-thief: spec.externalIPs: 10.96.0.1 port 80 belongs to service shop/web of all.yaml \
            (partly)",
            "Service shop/web: spec.externalIPs: 192.0.2.1 port 80 belongs to service shop/a-thief of all.yaml \
            (partly)",
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
            "---\napiVersion: mesh-agent.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, \
            namespace: shop}}\nspec: {{}}\n"
        )
    };
    let parts = compiled(&[("b.yaml", &policy("b")), ("a.yaml", &policy("a"))]);
    let names: BTreeMap<&str, bool> =
        parts.policies.iter().map(|policy| (&*policy.name, policy.broken.is_some())).collect();
    assert_eq!(names, BTreeMap::from([("a", false), ("b", false)]));
}
