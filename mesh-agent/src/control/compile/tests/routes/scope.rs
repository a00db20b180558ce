//! Whose clients a route is for, and which kind of route has a port.

use super::manifests::marking;
use super::{CONSUMER, MESH, World, get, route};

const ECHO: &str = "{group: '', kind: Service, name: echo, namespace: gateway-conformance-mesh}";
const BACKEND: &str = "{name: echo-v1, namespace: gateway-conformance-mesh, port: 80}";

fn mark(world: &World, from: &'static str, to: &str) -> String {
    world.send(&get("/").to(to).from(from)).answered("x-header-set")
}

#[test]
fn a_consumers_route_goes_before_the_producers_in_its_namespace_only() {
    let manifest = marking(MESH, "p", ECHO, "producer", BACKEND) + &marking(CONSUMER, "c", ECHO, "consumer", BACKEND);
    let world = World::good(&manifest);
    assert_eq!(mark(&world, CONSUMER, "echo:80"), "consumer");
    assert_eq!(mark(&world, MESH, "echo:80"), "producer");
    assert_eq!(mark(&world, "elsewhere", "echo:80"), "producer", "a producer's route is for every namespace");
    assert_eq!(world.conditions("c"), [format!("{MESH}/echo: True Accepted, True ResolvedRefs")]);
}

#[test]
fn a_consumers_routes_replace_the_producers_whole_on_their_port() {
    let only = "parentRefs: [{group: '', kind: Service, name: echo, namespace: gateway-conformance-mesh, port: 80}], \
                rules: [{matches: [{path: {value: /mine}}]}]";
    let manifest = marking(MESH, "p", ECHO, "producer", BACKEND) + &route("HTTPRoute", CONSUMER, "c", only);
    let world = World::good(&manifest);
    assert_eq!(world.send(&get("/").from(CONSUMER)).status, 404, "the producer's rules are not merged in");
    assert_eq!(mark(&world, CONSUMER, "echo:8080"), "producer", "the consumer says nothing of this port");
}

#[test]
fn a_third_namespace_cannot_change_what_others_meet() {
    let manifest = marking("third", "t", ECHO, "third", BACKEND);
    let world = World::good(&manifest);
    assert_eq!(mark(&world, CONSUMER, "echo:80"), "");
    assert_eq!(mark(&world, "third", "echo:80"), "third");
}

#[test]
fn the_more_specific_kind_has_the_port_and_the_others_are_told() {
    let l4 = |kind: &str| {
        let spec = format!("hostnames: [a.example], parentRefs: [{ECHO}], rules: [{{backendRefs: [{BACKEND}]}}]");
        route(kind, MESH, &kind.to_lowercase(), &spec)
    };
    let all = [
        ("GRPCRoute", route("GRPCRoute", MESH, "grpcroute", &format!("parentRefs: [{ECHO}], rules: [{{}}]"))),
        ("HTTPRoute", route("HTTPRoute", MESH, "httproute", &format!("parentRefs: [{ECHO}]"))),
        ("TLSRoute", l4("TLSRoute")),
        ("TCPRoute", l4("TCPRoute").replace("hostnames: [a.example], ", "")),
    ];
    for first in 0..all.len() {
        let text: String = all[first..].iter().rev().map(|(_, text)| text.as_str()).collect();
        let world = World::good(&text);
        for (at, (kind, _)) in all.iter().enumerate().skip(first) {
            let word = if at == first { "True Accepted" } else { "False Conflicted" };
            let expected = format!("{MESH}/echo: {word}, True ResolvedRefs");
            assert_eq!(world.conditions(&kind.to_lowercase()), [expected], "{kind} with {} in force", all[first].0);
        }
        let service = world.snapshot.services().iter().find(|service| &*service.name == "echo").expect("echo");
        let routes = world.snapshot.routes_for(service, MESH).expect("routes");
        assert_eq!(routes.kind.as_str(), all[first].0);
    }
}

#[test]
fn kinds_exclude_one_another_port_by_port() {
    let grpc = "parentRefs: [{group: '', kind: Service, name: echo, port: 7070}], rules: [{}]";
    let manifest = route("GRPCRoute", MESH, "g", grpc) + &marking(MESH, "h", ECHO, "http", BACKEND);
    let world = World::good(&manifest);
    assert_eq!((&*mark(&world, MESH, "echo:80"), &*mark(&world, MESH, "echo:7070")), ("http", ""));
    assert_eq!(world.conditions("h"), [format!("{MESH}/echo: True Accepted, True ResolvedRefs")]);
    let accepted =
        &world.snapshot.route_statuses().iter().find(|status| &*status.route.name == "h").unwrap().parents[0];
    assert_eq!(&*accepted.accepted.message, format!("GRPCRoute has {MESH}/echo:7070"));
}

#[test]
fn kinds_of_different_scopes_do_not_exclude_one_another() {
    let grpc = route("GRPCRoute", CONSUMER, "g", &format!("parentRefs: [{ECHO}], rules: [{{}}]"));
    let world = World::good(&(grpc + &marking(MESH, "h", ECHO, "http", BACKEND)));
    assert_eq!(mark(&world, MESH, "echo:80"), "http");
    assert_eq!(mark(&world, CONSUMER, "echo:80"), "", "its own GRPCRoute is in force");
    assert_eq!(world.conditions("h"), [format!("{MESH}/echo: True Accepted, True ResolvedRefs")]);
}

#[test]
fn backends_of_other_namespaces_need_no_grant() {
    let backend = "{name: echo-v2, namespace: gateway-conformance-mesh, port: 80}";
    let world = World::good(&marking(CONSUMER, "c", ECHO, "x", backend));
    let reply = world.send(&get("/").from(CONSUMER));
    assert_eq!((reply.status, reply.service()), (200, "echo-v2"));
}

#[test]
fn routes_of_connections_draw_by_weight() {
    let refs = "{name: echo-v1, port: 9090, weight: 3}, {name: nobody, port: 1}";
    let spec = format!("parentRefs: [{ECHO}], rules: [{{backendRefs: [{refs}]}}]");
    let world = World::good(&route("TCPRoute", MESH, "t", &spec));
    let service = world.snapshot.services().iter().find(|service| &*service.name == "echo").expect("echo");
    let routes = world.snapshot.routes_for(service, MESH).expect("routes");
    let steps: Vec<_> = (0..8).map(|_| crate::route::l4::choose(routes, |rule| world.pick(rule))).collect();
    let refused = steps.iter().filter(|step| matches!(step, crate::route::l4::L4Step::Refuse(..))).count();
    assert_eq!(refused, 2, "{steps:?}");
}
