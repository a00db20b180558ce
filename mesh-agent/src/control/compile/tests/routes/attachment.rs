//! Parents and backends: what a route is told, and what its clients meet.

use super::manifests::marking;
use super::{MESH, World, get, http, route};

#[test]
fn each_parent_is_told_what_became_of_the_route() {
    let others = "---\napiVersion: v1\nkind: Service\n\
                    metadata: {name: headless, namespace: gateway-conformance-mesh}\n\
                  spec: {clusterIP: None, selector: {app: echo}, ports: [{name: http, port: 80}]}\n\
                  ---\napiVersion: v1\nkind: Service\nmetadata: {name: outside, namespace: gateway-conformance-mesh}\n\
                  spec: {type: ExternalName, externalName: example.org}\n";
    for (parent, expected) in [
        ("name: echo", "echo: True Accepted"),
        ("name: echo, port: 80", "echo:80: True Accepted"),
        ("name: echo, port: 81", "echo:81: False NoMatchingParent"),
        ("name: echo, sectionName: http-alt", "echo port `http-alt`: True Accepted"),
        ("name: echo, sectionName: none", "echo port `none`: False NoMatchingParent"),
        ("name: echo, port: 80, sectionName: http-alt", "echo:80 port `http-alt`: False NoMatchingParent"),
        ("name: nobody", "nobody: False NoMatchingParent"),
        ("name: headless", "headless: False UnsupportedValue"),
        ("name: outside", "outside: False UnsupportedValue"),
    ] {
        let spec = format!("parentRefs: [{{group: '', kind: Service, {parent}}}]");
        let world = World::good(&format!("{}{others}", route("HTTPRoute", MESH, "r", &spec)));
        assert_eq!(world.conditions("r"), [format!("{MESH}/{expected}, True ResolvedRefs")]);
    }
}

#[test]
fn a_section_name_means_the_port_of_that_name() {
    let parent = "{group: '', kind: Service, name: echo, sectionName: http-alt}";
    let world = World::good(&marking(MESH, "r", parent, "x", "{name: echo-v1, port: 80}"));
    assert_eq!(world.send(&get("/").to("echo:8080")).answered("x-header-set"), "x");
    assert_eq!(world.send(&get("/").to("echo:80")).backend, "direct");
}

#[test]
fn the_same_generation_comes_back_in_the_status() {
    let text = http("r", "{}").replace("name: r,", "name: r, generation: 7,");
    let world = World::good(&text);
    assert_eq!(world.snapshot.route_statuses()[0].observed_generation, 7);
    assert_eq!(world.snapshot.route_statuses()[0].route.to_string(), format!("HTTPRoute {MESH}/r"));
}

#[test]
fn backends_that_lead_nowhere_are_their_share_of_errors() {
    let outside = "---\napiVersion: v1\nkind: Service\nmetadata: {name: outside, namespace: gateway-conformance-mesh}\n\
                   spec: {type: ExternalName, externalName: example.org}\n";
    for (backend, reason) in [
        ("name: nobody, port: 80", "BackendNotFound"),
        ("name: echo-v1, port: 81", "BackendNotFound"),
        ("name: echo-v1, namespace: elsewhere, port: 80", "BackendNotFound"),
        ("name: outside, port: 80", "InvalidKind"),
        ("kind: Bucket, group: example.org, name: x", "InvalidKind"),
        ("kind: ServiceImport, group: multicluster.x-k8s.io, name: x, port: 80", "InvalidKind"),
    ] {
        let rules = format!("{{backendRefs: [{{name: echo-v1, port: 80, weight: 3}}, {{{backend}}}]}}");
        let world = World::good(&format!("{}{outside}", http("r", &rules)));
        let shares: Vec<_> = world.shares(&get("/")).into_iter().collect();
        assert_eq!(shares, [(format!("{MESH}/echo-v1:80"), 375), ("invalid_backend".to_owned(), 125)], "{backend}");
        assert_eq!(world.conditions("r"), [format!("{MESH}/echo:80: True Accepted, False {reason}")], "{backend}");

        let world = World::good(&format!("{}{outside}", http("r", &format!("{{backendRefs: [{{{backend}}}]}}"))));
        let reply = world.send(&get("/"));
        assert_eq!((reply.status, &*reply.answered("x-mesh-agent-reason")), (500, "invalid_backend"), "{backend}");
    }
}

#[test]
fn a_grpc_client_is_told_in_grpc() {
    let parent = "parentRefs: [{group: '', kind: Service, name: echo, port: 7070}]";
    let rules = "rules: [{matches: [{method: {service: a.B}}], backendRefs: [{name: nobody, port: 1}]}]";
    let world = World::good(&route("GRPCRoute", MESH, "r", &format!("{parent}, {rules}")));
    let grpc = |path: &str| get(path).to("echo:7070").method("POST").header("content-type", "application/grpc+proto");
    for (path, status) in [("/a.B/C", "14"), ("/x.Y/Z", "12")] {
        let reply = world.send(&grpc(path));
        assert_eq!((reply.status, &*reply.answered("grpc-status")), (200, status), "{path}");
        assert_eq!(reply.answered("content-type"), "application/grpc");
    }
    for (path, status) in [("/a.B/C", 500), ("/x.Y/Z", 404)] {
        let plain = world.send(&get(path).to("echo:7070"));
        assert_eq!((plain.status, &*plain.answered("grpc-status")), (status, ""), "a browser understands no gRPC");
    }
}

#[test]
fn a_backend_without_endpoints_answers_503_for_its_share() {
    let empty = "---\napiVersion: v1\nkind: Service\nmetadata: {name: empty, namespace: gateway-conformance-mesh}\n\
                 spec: {clusterIP: 10.96.0.9, selector: {app: nobody}, ports: [{port: 80}]}\n";
    let rules = "{backendRefs: [{name: empty, port: 80}, {name: echo-v1, port: 80}]}";
    let world = World::new(&format!("{}{empty}", http("r", rules)));
    let statuses: Vec<u16> = (0..4).map(|_| world.send(&get("/")).status).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 503).count(), 2, "{statuses:?}");
    assert_eq!(world.conditions("r"), [format!("{MESH}/echo:80: True Accepted, True ResolvedRefs")]);
}

#[test]
fn no_backend_refs_means_the_parents_own_endpoints_at_the_port_dialled() {
    for rule in ["{}", "{backendRefs: []}"] {
        let parent = "parentRefs: [{group: '', kind: Service, name: echo}]";
        let world = World::good(&route("HTTPRoute", MESH, "r", &format!("{parent}, rules: [{rule}]")));
        assert_eq!(world.send(&get("/")).backend, format!("{MESH}/echo:80"), "{rule}");
        assert_eq!(world.send(&get("/").to("echo:8080")).backend, format!("{MESH}/echo:8080"), "{rule}");
    }
}

#[test]
fn without_any_weight_there_is_no_backend() {
    for refs in
        ["{name: echo-v1, port: 80, weight: 0}", "{name: echo-v1, port: 80, weight: 0}, {name: x, port: 1, weight: 0}"]
    {
        let world = World::good(&http("r", &format!("{{backendRefs: [{refs}]}}")));
        let reply = world.send(&get("/"));
        assert_eq!((reply.status, &*reply.backend), (500, "no_backend"), "{refs}");
    }
}

#[test]
fn a_headless_backend_is_one() {
    let headless = "---\napiVersion: v1\nkind: Service\n\
                    metadata: {name: headless, namespace: gateway-conformance-mesh}\n\
                    spec: {clusterIP: None, selector: {app: echo}, ports: [{port: 8080}]}\n";
    let world = World::good(&format!("{}{headless}", http("r", "{backendRefs: [{name: headless, port: 8080}]}")));
    assert_eq!(world.send(&get("/")).backend, format!("{MESH}/headless:8080"));
}

#[test]
fn only_the_first_level_of_routes_applies() {
    let first = http("first", "{backendRefs: [{name: echo-v1, port: 80}]}");
    let second = marking(MESH, "second", "{group: '', kind: Service, name: echo-v1}", "x", "{name: echo-v2, port: 80}");
    let world = World::good(&(first + &second));
    let reply = world.send(&get("/"));
    assert_eq!((reply.service(), &*reply.answered("x-header-set")), ("echo-v1", ""));
    assert_eq!(world.send(&get("/").to("echo-v1:80")).service(), "echo-v2", "which its own clients meet");
}

#[test]
fn hostnames_have_no_effect() {
    let spec = "hostnames: [other.example], parentRefs: [{group: '', kind: Service, name: echo}]";
    let world = World::good(&route("HTTPRoute", MESH, "r", spec));
    assert_eq!(world.send(&get("/").host("echo")).status, 200);
    assert_eq!(world.send(&get("/").host("else.example")).status, 200);
}

#[test]
fn a_route_to_a_gateway_alone_is_somebody_elses() {
    let world = World::good(&route("HTTPRoute", MESH, "r", "parentRefs: [{name: gateway}]"));
    assert_eq!((world.snapshot.route_statuses().len(), &*world.send(&get("/")).backend), (0, "direct"));
}

#[test]
fn a_bad_rule_is_dropped_and_a_route_without_rules_is_as_if_absent() {
    let good = "{matches: [{path: {value: /a}}], backendRefs: [{name: echo-v1, port: 80}]}";
    let world = World::new(&http("r", &format!("{good}, {{matchs: []}}")));
    assert_eq!(world.send(&get("/a")).service(), "echo-v1");
    assert_eq!(world.send(&get("/b")).status, 404);
    let status = &world.snapshot.route_statuses()[0].parents[0];
    let flaw = status.partially_invalid.as_ref().expect("PartiallyInvalid");
    assert!(
        status.accepted.holds && flaw.message.starts_with("Dropped Rule rules[1]: spec.rules[1].matchs"),
        "{flaw:?}"
    );
    let problems: Vec<_> = world.snapshot.problems().iter().map(ToString::to_string).collect();
    assert!(problems.len() == 1 && problems[0].contains("HTTPRoute") && problems[0].contains("spec.rules[1].matchs"));

    let world = World::new(&http("r", "{matchs: []}"));
    assert_eq!(world.send(&get("/")).backend, "direct");
    assert_eq!(world.conditions("r"), [format!("{MESH}/echo:80: False UnsupportedValue, True ResolvedRefs")]);
}

#[test]
fn a_filter_that_is_not_known_is_not_skipped() {
    let rule = "{filters: [{type: ExtensionRef, extensionRef: {group: a, kind: b, name: c}}]}";
    let world = World::new(&http("r", rule));
    let reply = world.send(&get("/"));
    assert_eq!((reply.status, &*reply.backend), (500, "unsupported_filter"));
}
