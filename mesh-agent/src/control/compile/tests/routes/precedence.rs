//! Which of several matching rules of several routes a request meets.

use super::{ECHO, MESH, World, get, http, route};

/// A rule that marks its requests by the path it rewrites them to.
fn rule(mark: &str, matching: &str) -> String {
    let filter =
        format!("{{type: URLRewrite, urlRewrite: {{path: {{type: ReplaceFullPath, replaceFullPath: /{mark}}}}}}}");
    format!("{{matches: [{{{matching}}}], filters: [{filter}]}}")
}

#[test]
fn the_more_specific_match_wins_wherever_it_stands() {
    let path = |kind: &str, value: &str| format!("path: {{type: {kind}, value: {value}}}");
    let header = |n: usize| {
        let names: Vec<String> = (0..n).map(|at| format!("{{name: h{at}, value: x}}")).collect();
        format!("headers: [{}]", names.join(", "))
    };
    let query = |n: usize| {
        let names: Vec<String> = (0..n).map(|at| format!("{{name: q{at}, value: x}}")).collect();
        format!("queryParams: [{}]", names.join(", "))
    };
    let method = "method: GET".to_owned();
    let both = |a: &str, b: &str| format!("{a}, {b}");
    let call = get("/a/b?q0=x&q1=x").header("h0", "x").header("h1", "x");
    for (winner, loser) in [
        (path("Exact", "/a/b"), both(&both(&path("PathPrefix", "/a/b"), &method), &both(&header(2), &query(2)))),
        (path("Exact", "/a/b"), path("RegularExpression", "/a/b+")),
        (path("RegularExpression", "/a/.*"), path("PathPrefix", "/a/b")),
        (path("RegularExpression", "/.*"), path("PathPrefix", "/a/b")),
        (path("RegularExpression", "/a/b.*"), path("RegularExpression", "/a/.*")),
        (path("PathPrefix", "/a/b"), both(&path("PathPrefix", "/a"), &method)),
        (path("PathPrefix", "/a"), path("PathPrefix", "/")),
        (method.clone(), both(&header(2), &query(2))),
        (header(2), both(&header(1), &query(2))),
        (header(1), query(2)),
        (query(2), query(1)),
        (query(1), "path: {}".to_owned()),
    ] {
        let (winner_rule, loser_rule) = (rule("winner", &winner), rule("loser", &loser));
        for rules in [[&winner_rule, &loser_rule], [&loser_rule, &winner_rule]] {
            let same = World::good(&http("r", &format!("{}, {}", rules[0], rules[1])));
            assert_eq!(same.send(&call).target, "/winner?q0=x&q1=x", "{winner} before {loser}, in one route");
            let several = World::good(&(http("a", rules[0]) + &http("b", rules[1])));
            assert_eq!(several.send(&call).target, "/winner?q0=x&q1=x", "{winner} before {loser}, in two routes");
        }
    }
}

#[test]
fn between_equals_the_older_route_then_the_name_then_the_place_decides() {
    let dated = |name: &str, created: &str| {
        let date = if created.is_empty() { String::new() } else { format!(", creationTimestamp: '{created}'") };
        http(name, &rule(name, "")).replace(&format!("name: {name}, "), &format!("name: {name}{date}, "))
    };
    let (old, new) = ("2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z");
    for (first, second, winner) in [
        (dated("a", new), dated("b", old), "/b"),
        (dated("a", old), dated("b", new), "/a"),
        (dated("a", old), dated("b", old), "/a"),
        (dated("b", old), dated("a", old), "/a"),
        (dated("a", ""), dated("b", old), "/b"),
        (dated("b", ""), dated("a", ""), "/a"),
    ] {
        assert_eq!(World::good(&(first + &second)).send(&get("/")).target, winner);
    }
    let world = World::good(&http("r", &format!("{}, {}", rule("first", ""), rule("second", ""))));
    assert_eq!(world.send(&get("/")).target, "/first");
}

#[test]
fn grpc_prefers_the_longer_service_then_method_then_headers() {
    let rule = |mark: &str, matching: &str| {
        let filter =
            format!("{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: mark, value: {mark}}}]}}}}");
        format!("{{matches: [{{{matching}}}], filters: [{filter}]}}")
    };
    let header = "headers: [{name: h, value: x}]";
    for (winner, loser) in [
        ("method: {service: a.B}", "method: {method: Create}"),
        ("method: {service: a.B, method: Create}", "method: {service: a.B}"),
        ("method: {service: a.B}", header),
        ("method: {method: Create}", header),
        (header, ""),
        ("method: {service: 'a[.]B+', type: RegularExpression}", "method: {service: a.B}"),
    ] {
        for rules in [[rule("winner", winner), rule("loser", loser)], [rule("loser", loser), rule("winner", winner)]] {
            let spec = format!("parentRefs: [{ECHO}], rules: [{}]", rules.join(", "));
            let world = World::good(&route("GRPCRoute", MESH, "g", &spec));
            let reply = world.send(&get("/a.B/Create").method("POST").header("h", "x"));
            assert_eq!(reply.sent("mark"), "winner", "{winner} before {loser}");
        }
    }
}
