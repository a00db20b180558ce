//! What `explain` says of routes is what becomes of the request.

use super::{MESH, World, http, route};
use crate::explain::{Question, RequestQuestion, RouteReport, explain};

/// What is said of `METHOD PATH` with headers, from echo-v2's pod to `to`; no method: of the connection alone.
fn report(world: &World, to: &str, method: &str, path: &str, headers: &[(&str, &str)]) -> Option<RouteReport> {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let request = RequestQuestion { method: method.to_owned(), path: path.to_owned(), headers };
    let question = Question {
        source: format!("{MESH}/echo-v2-abc12-x1y2z"),
        destination: to.to_owned(),
        port: None,
        request: (!method.is_empty()).then_some(request),
    };
    explain(&world.snapshot, &question, &[]).expect("an answer").0.route
}

#[track_caller]
fn check(world: &World, request: (&str, &str, &[(&str, &str)]), rule: Option<&str>, said: &[&str]) {
    let (method, path, headers) = request;
    let report = report(world, &format!("{MESH}/echo:80"), method, path, headers).expect("a report");
    assert_eq!(report.rule.as_deref(), rule.map(|rule| format!("HTTPRoute {MESH}/{rule}")).as_deref(), "{report:?}");
    for part in said {
        assert!(report.said.iter().any(|line| line.contains(part)), "`{part}` is not in {:#?}", report.said);
    }
}

#[test]
fn the_rule_that_a_request_meets_or_comes_nearest_to_is_named() {
    let edit = "{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /new}}}";
    let rules = [
        format!(
            "{{name: canary, matches: [{{path: {{value: /a}}, method: GET}}], filters: [{edit}], backendRefs: \
                 [{{name: echo-v1, port: 80, weight: 9}}, {{name: nobody, port: 1}}, \
                 {{name: echo-v2, port: 80, weight: 0}}], timeouts: {{request: 2s}}, retry: {{codes: [503]}}}}"
        ),
        "{matches: [{path: {value: /b}, headers: [{name: x, value: y}]}], \
          filters: [{type: RequestRedirect, requestRedirect: {scheme: https}}]}"
            .to_owned(),
    ];
    let world = World::good(&http("r", &rules.join(", ")));
    check(
        &world,
        ("GET", "/a/b?q", &[]),
        Some("r rules[0] `canary`"),
        &[
            "echo:80 has HTTPRoute with 2 matches, for everybody",
            "by path below /a, method GET",
            &format!("goes to {MESH}/echo-v1:80 as /new?q (90.0 %)"),
            "answered 500 (invalid_backend): ",
            "(10.0 %)",
            "the whole request may take 2s",
            "tried again up to 1 times when the connection fails or after 503",
        ],
    );
    let drawn_never = report(&world, &format!("{MESH}/echo:80"), "GET", "/a", &[]).unwrap();
    assert!(!drawn_never.said.iter().any(|line| line.contains("echo-v2")), "{drawn_never:?}");
    let moved = "answered 302 (redirect): https://echo/b";
    check(&world, ("POST", "/b", &[("X", "y")]), Some("r rules[1]"), &[moved]);
    let near = format!("nearest is HTTPRoute {MESH}/r rules[1]: header x is absent, not `y`");
    check(&world, ("GET", "/b", &[]), None, &["no rule matches: answered 404", &near]);
    check(&world, ("", "", &[]), None, &["name METHOD and PATH"]);
}

#[test]
fn where_no_route_is_met_that_is_said() {
    let world = World::good(&http("r", "{}"));
    for (to, expected) in [
        (format!("{MESH}/echo:8080"), "no route is for"),
        (format!("{MESH}/echo-v1-abc12-x1y2z:8080"), "at a Service's own address only"),
    ] {
        let said = report(&world, &to, "GET", "/", &[]).expect("a report");
        assert!(said.rule.is_none() && said.said.len() == 1 && said.said[0].contains(expected), "{said:?}");
        assert_eq!(report(&world, &to, "", "", &[]), None, "nobody asked");
    }
}

#[test]
fn a_route_of_connections_names_its_backends() {
    let refs = "{name: echo-v1, port: 9090, weight: 3}, {name: nobody, port: 1}";
    let parent = "{group: '', kind: Service, name: echo, port: 9090}";
    let world = World::good(&route(
        "TCPRoute",
        MESH,
        "t",
        &format!("parentRefs: [{parent}], rules: [{{backendRefs: [{refs}]}}]"),
    ));
    let report = report(&world, &format!("{MESH}/echo:9090"), "", "", &[]).expect("a report");
    assert_eq!(report.rule, Some(format!("TCPRoute {MESH}/t rules[0]")));
    assert_eq!(report.said[1], format!("goes to {MESH}/echo-v1:9090 (75.0 %)"));
    assert!(report.said[2].starts_with("refused: there is no Service") && report.said[2].ends_with("(25.0 %)"));
}

#[test]
fn what_is_no_request_is_refused_with_a_reason() {
    let world = World::good(&http("r", "{}"));
    for (method, path, headers, expected) in [
        ("GET", "x", vec![], "`x` is not a path"),
        ("G ET", "/", vec![], "G ET /: "),
        ("GET", "/", vec![("a b".to_owned(), "c".to_owned())], "`a b: c` is not a header"),
    ] {
        let request = RequestQuestion { method: method.to_owned(), path: path.to_owned(), headers };
        let source = format!("{MESH}/echo-v2-abc12-x1y2z");
        let destination = format!("{MESH}/echo:80");
        let question = Question { source, destination, port: None, request: Some(request) };
        let error = explain(&world.snapshot, &question, &[]).expect_err("no request");
        assert!(error.contains(expected), "{error}");
    }
}
