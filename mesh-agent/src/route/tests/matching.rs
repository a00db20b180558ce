//! Single conditions, and what a near miss says.

use super::*;
use crate::model::route::{Candidate, HeaderMatch, Pattern, QueryMatch, TextMatch};

fn only(matching: Match) -> PortRoutes {
    let mut routes = routes(vec![]);
    routes.candidates[0].matching = matching;
    routes
}

fn everything() -> Match {
    matching(PathMatch::Prefix("/".into()))
}

fn exact(text: &str) -> TextMatch {
    TextMatch::Exact(text.into())
}

fn pattern(text: &str) -> TextMatch {
    TextMatch::Regex(Pattern::new(text).unwrap())
}

#[track_caller]
fn check(matching: Match, parts: &Parts, expected: bool) {
    let routes = only(matching);
    let got = l7::select(&routes, &RequestView::of(parts)).is_some();
    assert_eq!(got, expected, "{:?} on {parts:?}", routes.candidates[0].matching);
}

#[test]
fn headers_are_compared_as_one_value() {
    let header =
        |name: &str, value| Match { headers: vec![HeaderMatch { name: name.parse().unwrap(), value }], ..everything() };
    let twice = request("GET", "/", &[("x", "a"), ("x", "b"), ("host", "a.example:80")]);
    check(header("x", exact("a,b")), &twice, true);
    check(header("x", exact("a")), &twice, false);
    check(header("x", pattern("a,.")), &twice, true);
    check(header("x", pattern("a")), &twice, false);
    check(header("y", pattern(".*")), &twice, false);
    check(header("host", exact("a.example:80")), &twice, true);
    let h2 = request("GET", "http://b.example/", &[]);
    check(header("host", exact("b.example")), &h2, true);
    let mut bytes = request("GET", "/", &[]);
    bytes.headers.insert("x", HeaderValue::from_bytes(b"\xff").unwrap());
    check(header("x", pattern("(?s).*")), &bytes, false);
}

#[test]
fn the_first_value_of_a_query_parameter_counts_decoded() {
    let query = |name: &str, value| Match { query: vec![QueryMatch { name: name.into(), value }], ..everything() };
    for (uri, name, value, expected) in [
        ("/?a=1&a=2", "a", exact("1"), true),
        ("/?a=1&a=2", "a", exact("2"), false),
        ("/?b=1&a=2", "a", exact("2"), true),
        ("/?a=%31", "a", exact("1"), true),
        ("/?%61=1", "a", exact("1"), true),
        ("/?a=x+y%20z", "a", exact("x y z"), true),
        ("/?a=%zz%4", "a", exact("%zz%4"), true),
        ("/?a=%ff", "a", pattern("(?s).*"), false),
        ("/?a", "a", pattern(""), true),
        ("/?a=b=c", "a", exact("b=c"), true),
        ("/", "a", pattern(".*"), false),
        ("/?A=1", "a", exact("1"), false),
    ] {
        check(query(name, value), &request("GET", uri, &[]), expected);
    }
}

#[test]
fn grpc_methods_are_two_segments() {
    let grpc = |service: Option<TextMatch>, method: Option<TextMatch>| matching(PathMatch::Grpc { service, method });
    for (service, method, path, expected) in [
        (Some(exact("a.B")), Some(exact("C")), "/a.B/C", true),
        (Some(exact("a.B")), None, "/a.B/C", true),
        (None, Some(exact("C")), "/a.B/C", true),
        (None, None, "/anything", true),
        (Some(exact("a.B")), None, "/a.B", false),
        (Some(exact("a.B")), None, "/a.B/C/D", false),
        (Some(exact("a.B")), None, "/a.BB/C", false),
        (Some(exact("a.B")), Some(exact("C")), "/a.B/c", false),
        (Some(pattern("a[.].+")), Some(pattern("C|D")), "/a.B/D", true),
        (Some(pattern("a[.].+")), None, "/b.a.B/D", false),
    ] {
        check(grpc(service, method), &request("POST", path, &[]), expected);
    }
}

#[test]
fn the_nearest_miss_names_what_stands_against_the_request() {
    let candidate = |path: &str, method: &str, header: &str| Candidate {
        matching: Match {
            path: PathMatch::Prefix(path.into()),
            method: Some(method.parse().unwrap()),
            headers: vec![HeaderMatch { name: "x".parse().unwrap(), value: exact(header) }],
            query: vec![],
        },
        rule: Arc::new(rule("shop", path, 0)),
    };
    let mut routes = routes(vec![]);
    routes.candidates = vec![candidate("/a", "GET", "1"), candidate("/b", "POST", "1"), candidate("/b", "GET", "2")];
    for (method, uri, header, nearest, reason) in [
        ("GET", "/c", "1", "/a", "path /c is not below /a"),
        ("GET", "/b", "1", "/b", "method GET is not POST"),
        ("POST", "/b", "3", "/b", "header x `3`, not `1`"),
        ("PUT", "/b", "1", "/b", "method PUT is not POST"),
        ("POST", "/b", "", "/b", "header x is absent, not `1`"),
    ] {
        let headers: &[(&str, &str)] = if header.is_empty() { &[] } else { &[("x", header)] };
        let parts = request(method, uri, headers);
        let view = RequestView::of(&parts);
        let (candidate, miss) = l7::nearest(&routes, &view).expect("a miss");
        assert_eq!((&*candidate.rule.id.route.name, &*miss.describe(&view)), (nearest, reason));
    }
}
