//! What the document has, and what it leaves out.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::explain::tests::pod;
use crate::model::addr::EndpointAddr;
use crate::model::policy::{Action, IdentityMatch, Policy, Rule, Source, Target};
use crate::model::problem::Effect;
use crate::model::route::{
    Backend, Candidate, Filter, HeaderEdit, Match, PathMatch, PortRoutes, RouteKind, RouteName, Rule as RouteRule,
    RuleId, ServiceRef, Target as To, Timeouts,
};
use crate::snapshot::SnapshotParts;

fn sample() -> Snapshot {
    let addr = "10.0.0.1:7000".parse().unwrap();
    let endpoint = Endpoint { workload: Some("uid-web".into()), ..Endpoint::new(EndpointAddr::new(addr)) };
    let web = ServicePort {
        namespace: "shop".into(),
        name: "web".into(),
        port: 80,
        vips: vec!["10.96.0.1".parse().unwrap()],
        endpoints: vec![endpoint],
        ..ServicePort::default()
    };
    let service = ServiceRef { namespace: "shop".into(), name: "web".into(), port: 80 };
    let secret = ("authorization".parse().unwrap(), "Bearer c3VwZXI".parse().unwrap());
    let edit = HeaderEdit { set: vec![secret], ..HeaderEdit::default() };
    let name = RouteName { kind: RouteKind::Http, namespace: "shop".into(), name: "r".into() };
    let rule = RouteRule {
        id: RuleId { route: name, index: 0, name: None },
        filters: vec![Filter::RequestHeaders(edit)],
        backends: vec![Backend { target: To::Service(service.clone()), weight: 1, filters: vec![] }],
        timeouts: Timeouts::default(),
        retry: None,
    };
    let matching = Match { path: PathMatch::Prefix("/a".into()), method: None, headers: Vec::new(), query: Vec::new() };
    let candidates = vec![Candidate { matching, rule: Arc::new(rule) }];
    let policy = |name: &str, sources| Policy {
        namespace: "shop".into(),
        name: name.into(),
        action: Action::Allow,
        target: Target::Namespace("shop".into()),
        rules: vec![Rule { sources, ports: Some(vec![7000]), requests: None }],
        broken: None,
    };
    let identity = IdentityMatch::ServiceAccount { namespace: "shop".into(), name: "front".into() };
    let front = Source { identity: Some(identity), ..Source::default() };
    let problem = Problem {
        location: "x.yaml".into(),
        object: "PeerPolicy bank/p".into(),
        field: "spec.mode".into(),
        reason: "no such mode".into(),
        effect: Effect::Denies,
    };
    Snapshot::new(
        7,
        SnapshotParts {
            node: "a".into(),
            trust_domain: "cluster.local".into(),
            namespaces: BTreeMap::from([("shop".into(), true), ("bank".into(), false)]).into(),
            workloads: vec![Arc::new(pod("web", "a", "10.0.0.1"))].into(),
            services: vec![Arc::new(web)].into(),
            policies: vec![Arc::new(policy("front", Some(vec![front]))), Arc::new(policy("nobody", Some(vec![])))],
            routes: vec![Arc::new(PortRoutes { service, consumer: None, kind: RouteKind::Http, candidates })],
            problems: vec![problem].into(),
            ..SnapshotParts::default()
        },
    )
}

#[test]
fn each_part_says_what_was_compiled() {
    let document = document(&sample(), &Wanted::default());
    let at = |path: &str| document.pointer(path).unwrap_or_else(|| panic!("{path} of {document:#}")).clone();
    assert_eq!(at("/generation"), 7);
    assert_eq!(at("/namespaces/1"), json!({"name": "shop", "optedIn": true}));
    assert_eq!(at("/workloads/0/membership"), "captured on a");
    assert_eq!(at("/workloads/0/policies"), json!(["shop/front", "shop/nobody"]));
    assert_eq!(at("/services/0/endpoints/0/pod"), "shop/web");
    assert_eq!(at("/services/0/routed"), true);
    assert_eq!(at("/routes/0/matches/0/when"), "path below /a");
    assert_eq!(at("/routes/0/matches/0/backends/0/to"), "shop/web:80");
    assert_eq!(at("/policies/0/rules/0/sources/0/identity"), "service account shop/front");
    // An empty list of sources is nobody, and must not look like one that is absent.
    assert_eq!(at("/policies/1/rules/0/sources"), "nobody");
    assert_eq!(at("/problems/0/effect"), "denies");
}

#[test]
fn what_a_route_writes_into_headers_is_not_told() {
    let text = document(&sample(), &Wanted::default()).to_string();
    assert!(text.contains("set authorization") && !text.contains("c3VwZXI"), "{text}");
}

#[test]
fn only_what_is_wanted_is_there() {
    let check = |part, namespace: Option<&str>, name: Option<&str>, expected: &[(&str, usize)]| {
        let wanted = Wanted { part, namespace: namespace.map(str::to_owned), name: name.map(str::to_owned) };
        let document = document(&sample(), &wanted);
        let lists = document.as_object().unwrap().iter();
        let found: Vec<(&str, usize)> =
            lists.filter_map(|(key, list)| Some((key.as_str(), list.as_array()?.len()))).collect();
        assert_eq!(found, expected, "{wanted:?}");
    };
    check(Some(Part::Policies), None, Some("nobody"), &[("policies", 1)]);
    check(Some(Part::Routes), Some("shop"), Some("r"), &[("routes", 1)]);
    check(Some(Part::Problems), Some("bank"), None, &[("problems", 1)]);
    check(Some(Part::Problems), Some("shop"), None, &[("problems", 0)]);
    check(Some(Part::Services), Some("bank"), None, &[("services", 0)]);
}
