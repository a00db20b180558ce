//! Rules that ask for requests: tables of single conditions, and properties over generated policies and requests.

use http::Request;
use http::request::Parts;
use proptest::prelude::*;

use super::compile::{KernelVerdict, table};
use super::tests::{flow, from, identity, policy, snapshot, verified, web};
use super::*;
use crate::model::policy::{HostMatch, IdentityMatch, RequestMatch, Rule, Source};
use crate::model::route::{HeaderMatch, PathMatch, Pattern, TextMatch};
use crate::model::workload::PeerModes;

fn head(method: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).expect("a request").into_parts().0
}

fn asking(requests: RequestMatch) -> Rule {
    Rule { requests: Some(requests), ..Rule::default() }
}

fn paths(paths: Vec<PathMatch>) -> RequestMatch {
    RequestMatch { paths: Some(paths), ..RequestMatch::default() }
}

fn prefix(path: &str) -> PathMatch {
    PathMatch::Prefix(path.into())
}

fn exact(path: &str) -> PathMatch {
    PathMatch::Exact(path.into())
}

fn header(name: &str, value: &str) -> RequestMatch {
    let value = TextMatch::Exact(value.into());
    RequestMatch { headers: vec![HeaderMatch { name: name.parse().unwrap(), value }], ..RequestMatch::default() }
}

/// Whether an ALLOW with `wanted` lets the request in, and whether a DENY with it refuses the request.
fn both(wanted: &RequestMatch, parts: &Parts) -> (bool, bool) {
    let ask = |action| {
        let snapshot = snapshot(web(PeerModes::default()), vec![policy("p", action, vec![asking(wanted.clone())])]);
        authorize_request(&flow(verified("a", "b"), 80), &RequestFacts::of(parts), &snapshot)
    };
    (ask(Action::Allow).is_ok(), ask(Action::Deny).is_err())
}

#[track_caller]
fn check(wanted: RequestMatch, parts: &Parts, allowed: bool, denied: bool) {
    assert_eq!(
        both(&wanted, parts),
        (allowed, denied),
        "(allowed, denied) {wanted:?} on {} {}",
        parts.method,
        parts.uri
    );
}

#[test]
fn a_path_that_can_be_read_in_two_ways_is_denied_and_not_allowed() {
    for (uri, allowed, denied) in [
        ("/admin", true, true),
        ("/admin/x", true, true),
        ("/admin?x=/public", true, true),
        ("/administrator", false, false),
        ("/public?/admin", false, false),
        ("/%61dmin", true, true),
        ("/%61%64min/%7Ex", true, true),
        ("/admin%2Fx", false, true),
        ("/x%5cadmin", false, true),
        ("//admin", false, true),
        ("/x//admin", false, true),
        ("/./admin", false, true),
        ("/x/../admin", false, true),
        ("/x/%2e%2e/admin", false, true),
        ("/admin/..", false, true),
        ("/x/..;/admin", false, true),
        ("/admin;a=b/x", false, true),
        ("/;/admin", false, true),
        ("/admin%00", false, true),
        ("/admin%2", false, true),
        ("/admin%zz", false, true),
        ("/x;/admin", false, false),
        ("/admin/x;a=b", true, true),
        ("/ADMIN", false, false),
        ("/admin/", true, true),
    ] {
        check(paths(vec![prefix("/admin")]), &head("GET", uri, &[]), allowed, denied);
    }
    for uri in ["//x", "/a/../b", "*", "/%zz"] {
        check(paths(vec![prefix("/")]), &head("OPTIONS", uri, &[]), true, true);
    }
}

#[test]
fn each_kind_of_path_is_compared_in_canonical_form() {
    let pattern = |text: &str| PathMatch::Regex(Pattern::new(text).unwrap());
    for (wanted, uri, holds) in [
        (exact("/a"), "/a", true),
        (exact("/a"), "/a/", false),
        (exact("/a%C3%A9"), "/a%c3%a9", true),
        (pattern("/v[0-9]+/.*"), "/v%32/x", true),
        (pattern("/v[0-9]+"), "/v1/x", false),
    ] {
        check(paths(vec![exact("/other"), wanted]), &head("GET", uri, &[]), holds, holds);
    }
}

#[test]
fn methods_hosts_and_headers_are_compared() {
    let methods = RequestMatch { methods: Some(vec!["GET".parse().unwrap()]), ..RequestMatch::default() };
    check(methods.clone(), &head("GET", "/", &[]), true, true);
    check(methods, &head("POST", "/", &[]), false, false);

    let hosts = || RequestMatch {
        hosts: Some(vec![HostMatch::Exact("shop.example".into()), HostMatch::Below(".dev.example".into())]),
        ..RequestMatch::default()
    };
    for (uri, host, allowed, denied) in [
        ("/", "shop.example", true, true),
        ("/", "SHOP.example:8080", true, true),
        ("/", "shop.example.", true, true),
        ("http://shop.example/", "", true, true),
        ("http://evil.example/", "shop.example", false, false),
        ("/", "a.dev.example", true, true),
        ("/", "dev.example", false, false),
        ("/", "xshop.example", false, false),
        ("/", "", false, true),
    ] {
        let headers: &[(&str, &str)] = if host.is_empty() { &[] } else { &[("host", host)] };
        check(hosts(), &head("GET", uri, headers), allowed, denied);
    }

    for (headers, allowed, denied) in [
        (&[("x-role", "admin")][..], true, true),
        (&[("X-Role", "admin")][..], true, true),
        (&[("x-role", "user")][..], false, false),
        (&[("x-role", "user"), ("x-role", "admin")][..], false, true),
        (&[][..], false, false),
    ] {
        check(header("x-role", "admin"), &head("GET", "/", headers), allowed, denied);
    }
    let mut bytes = head("GET", "/", &[]);
    bytes.headers.insert("x-role", http::HeaderValue::from_bytes(b"\xff").unwrap());
    check(header("x-role", "admin"), &bytes, false, true);
}

#[test]
fn all_that_a_rule_asks_must_hold() {
    let all = RequestMatch {
        methods: Some(vec!["GET".parse().unwrap()]),
        hosts: Some(vec![HostMatch::Exact("a".into())]),
        paths: Some(vec![prefix("/x")]),
        ..header("h", "v")
    };
    let good = || ("GET", "/x", "a", "v");
    for (method, uri, host, value) in
        [good(), ("PUT", "/x", "a", "v"), ("GET", "/y", "a", "v"), ("GET", "/x", "b", "v"), ("GET", "/x", "a", "w")]
    {
        let holds = (method, uri, host, value) == good();
        check(all.clone(), &head(method, uri, &[("host", host), ("h", value)]), holds, holds);
    }
}

#[test]
fn an_opaque_connection_has_none_of_what_only_requests_show() {
    let rule = || Rule { ports: Some(vec![80]), ..asking(paths(vec![prefix("/x")])) };
    let world = |policies| snapshot(web(PeerModes::default()), policies);
    let cart = |port| flow(verified("shop", "cart"), port);

    let denying = world(vec![policy("d", Action::Deny, vec![rule()])]);
    let denial = authorize(&denying, cart(80)).expect_err("nobody reads its requests");
    assert!(denial.reason.contains("not read as HTTP"), "{}", denial.reason);
    assert!(authorize(&denying, cart(81)).is_ok(), "the rule is for port 80");
    assert!(authorize_http(&denying, cart(80)).is_ok(), "each request will be judged");

    let allowing = world(vec![policy("a", Action::Allow, vec![rule()])]);
    let denial = authorize(&allowing, cart(80)).expect_err("nobody reads its requests");
    assert!(denial.reason.contains("not read as HTTP"), "{}", denial.reason);
    assert!(authorize_http(&allowing, cart(80)).is_ok());
    assert!(authorize_http(&allowing, cart(81)).is_err(), "no request to port 81 could pass");

    let rest = world(vec![policy("a", Action::Allow, vec![rule(), Rule::default()])]);
    assert!(authorize(&rest, cart(80)).is_ok(), "the other rule allows every request");
}

#[test]
fn a_permit_of_a_connection_that_is_read_is_rechecked_as_such() {
    let open = snapshot(web(PeerModes::default()), vec![]);
    let opaque = authorize(&open, flow(verified("a", "b"), 80)).expect("permitted");
    let read = authorize_http(&open, flow(verified("a", "b"), 80)).expect("permitted");
    let asks = policy("d", Action::Deny, vec![asking(paths(vec![prefix("/x")]))]);
    let now = snapshot(web(PeerModes::default()), vec![asks]);
    assert!(opaque.recheck(&now).is_err(), "it bypasses what the port now enforces");
    assert!(read.recheck(&now).is_ok());
}

#[test]
fn the_kernel_lets_through_nothing_that_requests_decide() {
    let on = |port: Option<Vec<u16>>| Rule { ports: port, ..asking(paths(vec![prefix("/x")])) };
    for action in [Action::Allow, Action::Deny, Action::Audit] {
        for (ports, expected) in [(Some(vec![80]), vec![(Some(80), true), (None, false)]), (None, vec![(None, true)])] {
            let policies =
                vec![policy("p", action, vec![on(ports)]), policy("all", Action::Allow, vec![Rule::default()])];
            let world = snapshot(web(PeerModes::default()), policies);
            let lines = table(&world, &web(PeerModes::default()), &identity("cluster.local", "a", "b"));
            let agent: Vec<_> = lines.iter().map(|(port, v)| (*port, *v == KernelVerdict::Agent)).collect();
            assert_eq!(agent, expected, "{action}");
        }
    }
}

#[test]
fn a_port_says_how_far_its_requests_matter() {
    let on = |name: &str, action, port| {
        policy(name, action, vec![Rule { ports: Some(vec![port]), ..asking(paths(vec![])) }])
    };
    let world = snapshot(
        web(PeerModes::default()),
        vec![
            on("a", Action::Audit, 80),
            on("b", Action::Audit, 81),
            on("c", Action::Allow, 81),
            on("d", Action::Deny, 82),
        ],
    );
    let found = [79, 80, 81, 82].map(|port| requests(&world, "web-uid", port));
    assert_eq!(found, [Requests::Ignored, Requests::Audited, Requests::Enforced, Requests::Enforced]);
}

#[test]
fn an_audit_is_reported_and_decides_nothing() {
    let by = Source { identity: Some(IdentityMatch::Namespace("shop".into())), ..Source::default() };
    let audits = vec![
        policy("calls", Action::Audit, vec![from(vec![by])]),
        policy("admin", Action::Audit, vec![asking(paths(vec![prefix("/admin")]))]),
        Policy { broken: Some("x".into()), ..policy("broken", Action::Audit, vec![]) },
    ];
    let world = snapshot(web(PeerModes::default()), audits);
    let parts = head("GET", "/admin/x", &[]);
    let facts = RequestFacts::of(&parts);
    for (peer, request, expected) in [
        (verified("shop", "cart"), None, vec!["shop/calls"]),
        (verified("bank", "teller"), None, vec![]),
        (PeerIdentity::Unknown, None, vec!["shop/calls"]),
        (verified("bank", "teller"), Some(&facts), vec!["shop/admin"]),
        (verified("shop", "cart"), Some(&facts), vec!["shop/calls", "shop/admin"]),
    ] {
        let flow = flow(peer, 80);
        let found = audited(&world, &flow, request);
        assert_eq!(found.iter().map(|name| &**name).collect::<Vec<_>>(), expected);
        assert!(authorize(&world, flow.clone()).is_ok() && authorize_request(&flow, &facts, &world).is_ok());
    }
}

#[test]
fn a_denied_request_says_which_rule_and_what_stands_against_it() {
    let rule = asking(RequestMatch { methods: Some(vec!["GET".parse().unwrap()]), ..paths(vec![prefix("/x")]) });
    let world = snapshot(web(PeerModes::default()), vec![policy("p", Action::Allow, vec![rule])]);
    for (method, uri, part) in [
        ("PUT", "/x", "nearest is rules[0]: method PUT is not one of GET"),
        ("GET", "/y", "path /y is not below /x"),
        ("GET", "//x", "path //x can be read in several ways and is not below /x"),
    ] {
        let parts = head(method, uri, &[]);
        let denial = authorize_request(&flow(verified("a", "b"), 80), &RequestFacts::of(&parts), &world).unwrap_err();
        assert!(&*denial.rule == "shop/p" && denial.reason.contains(part), "{denial:?}");
    }
}

fn path() -> impl Strategy<Value = PathMatch> {
    let text = prop::sample::select(vec!["/", "/a", "/a/b", "/b"]);
    (any::<bool>(), text).prop_map(|(is_exact, text)| if is_exact { exact(text) } else { prefix(text) })
}

fn request_match() -> impl Strategy<Value = RequestMatch> {
    let method = prop::sample::select(vec!["GET", "PUT"]).prop_map(|name| name.parse().unwrap());
    let host = prop::sample::select(vec!["h", "x.h"]).prop_map(|host| HostMatch::Exact(host.into()));
    let header = prop::sample::select(vec!["1", "2"]);
    (
        prop::option::of(prop::collection::vec(method, 1..3)),
        prop::option::of(prop::collection::vec(path(), 1..3)),
        prop::option::of(prop::collection::vec(host, 1..2)),
        prop::collection::vec(header, 0..2),
    )
        .prop_map(|(methods, paths, hosts, values)| {
            let name = || "v".parse().unwrap();
            let header = |value: &str| HeaderMatch { name: name(), value: TextMatch::Exact(value.into()) };
            RequestMatch { methods, paths, hosts, headers: values.into_iter().map(header).collect() }
        })
}

fn a_policy() -> impl Strategy<Value = Policy> {
    let action = prop::sample::select(vec![Action::Allow, Action::Deny, Action::Audit]);
    let port = prop::option::of(prop::sample::select(vec![vec![80_u16], vec![81]]));
    let rule =
        (port, prop::option::of(request_match())).prop_map(|(ports, requests)| Rule { sources: None, ports, requests });
    (action, prop::collection::vec(rule, 0..3)).prop_map(|(action, rules)| policy("p", action, rules))
}

fn a_request() -> impl Strategy<Value = Parts> {
    let uri = prop::sample::select(vec!["/", "/a", "/a/b", "/ab", "//a", "/a/../b", "/%61", "/a;x/b", "/a%2Fb"]);
    let method = prop::sample::select(vec!["GET", "PUT", "POST"]);
    let host = prop::option::of(prop::sample::select(vec!["h", "H:80", "x.h", "y"]));
    let values = prop::collection::vec(prop::sample::select(vec!["1", "2"]), 0..3);
    (method, uri, host, values).prop_map(|(method, uri, host, values)| {
        let host = host.into_iter().map(|host| ("host", host));
        let headers: Vec<_> = host.chain(values.into_iter().map(|value| ("v", value))).collect();
        head(method, uri, &headers)
    })
}

proptest! {
    #[test]
    fn whoever_may_connect_unread_may_send_any_request_and_who_may_send_one_may_connect(
        policies in prop::collection::vec(a_policy(), 0..4), parts in a_request(),
    ) {
        let world = snapshot(web(PeerModes::default()), policies);
        let flow = flow(verified("a", "b"), 80);
        let request = authorize_request(&flow, &RequestFacts::of(&parts), &world).is_ok();
        prop_assert!(request || authorize(&world, flow.clone()).is_err());
        prop_assert!(!request || authorize_http(&world, flow).is_ok());
    }

    #[test]
    fn for_requests_too_a_deny_never_widens_and_an_audit_changes_nothing(
        policies in prop::collection::vec(a_policy(), 0..4), more in a_policy(), parts in a_request(),
    ) {
        let flow = flow(verified("a", "b"), 80);
        let facts = RequestFacts::of(&parts);
        let permitted = |policies: Vec<Policy>| {
            authorize_request(&flow, &facts, &snapshot(web(PeerModes::default()), policies)).is_ok()
        };
        let with = |action| policies.iter().cloned().chain([Policy { action, ..more.clone() }]).collect();
        let before = permitted(policies.clone());
        prop_assert!(before || !permitted(with(Action::Deny)));
        prop_assert_eq!(before, permitted(with(Action::Audit)));
    }

    #[test]
    fn the_kernel_allows_only_what_every_request_is_allowed(
        policies in prop::collection::vec(a_policy(), 1..4), parts in a_request(),
    ) {
        let world = snapshot(web(PeerModes::default()), policies);
        let lines = table(&world, &web(PeerModes::default()), &identity("cluster.local", "a", "b"));
        let line = |wanted| lines.iter().find(|(port, _)| *port == wanted).map(|(_, verdict)| *verdict);
        let verdict = line(Some(80)).or_else(|| line(None));
        let request = authorize_request(&flow(verified("a", "b"), 80), &RequestFacts::of(&parts), &world);
        prop_assert!(verdict != Some(KernelVerdict::Allow) || request.is_ok());
    }
}
