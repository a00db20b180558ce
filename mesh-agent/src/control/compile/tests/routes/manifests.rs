//! Our own manifests for the cases of the upstream mesh suite, and upstream's where they are on this machine.

use super::{CONSUMER, MESH, http, route, to};

/// Manifests to run a test with: ours, and upstream's file `stem`.yaml where `GATEWAY_API_DIR`, or the folder beside
/// the repository, has it.
pub(super) fn all(stem: &str) -> Vec<String> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/gateway-api");
    let dir = option_env!("GATEWAY_API_DIR").unwrap_or(beside);
    let file = std::path::Path::new(dir).join(format!("conformance/tests/mesh/{stem}.yaml"));
    let upstream = std::fs::read_to_string(&file).ok();
    // A folder that lacks a file would make these tests compare nothing in silence.
    assert!(upstream.is_some() || !std::path::Path::new(dir).is_dir(), "{} is missing", file.display());
    std::iter::once(own(stem)).chain(upstream).collect()
}

/// Ours.
fn own(stem: &str) -> String {
    match stem {
        "mesh-split" => route(
            "HTTPRoute",
            MESH,
            "split",
            "parentRefs: [{group: '', kind: Service, name: echo}], rules: [\
             {matches: [{path: {type: Exact, value: /v1}}], backendRefs: [{name: echo-v1, port: 80}]}, \
             {matches: [{path: {type: Exact, value: /v2}}], backendRefs: [{name: echo-v2, port: 80}]}]",
        ),
        "httproute-simple-same-namespace" => http("simple", &format!("{{{}}}", to("echo-v1"))),
        "httproute-weight" => http(
            "weight",
            "{backendRefs: [{name: echo-v1, port: 8080, weight: 70}, {name: echo-v2, port: 8080, weight: 30}]}",
        ),
        "grpcroute-weight" => route(
            "GRPCRoute",
            MESH,
            "weight",
            "parentRefs: [{group: '', kind: Service, name: echo, port: 7070}], rules: [{backendRefs: \
             [{name: echo-v1, port: 7070, weight: 70}, {name: echo-v2, port: 7070, weight: 30}, \
             {name: echo-v3, port: 7070, weight: 0}]}]",
        ),
        "httproute-matching" => http("matching", &matching()),
        "httproute-query-param-matching" => http("query", &query()),
        "httproute-named-rule" => http(
            "named",
            &format!(
                "{{name: named-rule, matches: [{{path: {{value: /named}}}}], {}}}, \
                 {{matches: [{{path: {{value: /unnamed}}}}], {}}}",
                to("echo-v1"),
                to("echo-v2")
            ),
        ),
        "httproute-request-header-modifier" => {
            let rule = |(path, edit): &(&str, &str)| {
                let filter = format!("{{type: RequestHeaderModifier, requestHeaderModifier: {edit}}}");
                format!("{{matches: [{{path: {{value: {path}}}}}], filters: [{filter}], {}}}", to("echo-v1"))
            };
            http("edit", &EDITS.iter().map(rule).collect::<Vec<_>>().join(", "))
        }
        "httproute-request-header-modifier-backend" => {
            let rule = |(path, edit): &(&str, &str)| {
                let filter = format!("{{type: RequestHeaderModifier, requestHeaderModifier: {edit}}}");
                let backend = format!("{{name: echo-v1, port: 8080, filters: [{filter}]}}");
                format!("{{matches: [{{path: {{value: {path}}}}}], backendRefs: [{backend}]}}")
            };
            http("edit", &EDITS.iter().map(rule).collect::<Vec<_>>().join(", "))
        }
        "httproute-rewrite-path" => http("rewrite", &rewrites()),
        "httproute-redirect-host-and-status" => redirects(&[
            ("/hostname-redirect", "hostname: example.org"),
            ("/host-and-status", "hostname: example.org, statusCode: 301"),
        ]),
        "httproute-redirect-path" => redirects(&[
            ("/original-prefix", PREFIX),
            ("/full", "path: {type: ReplaceFullPath, replaceFullPath: /full-path-replacement}"),
            ("/path-and-host", &format!("hostname: example.org, {PREFIX}")),
            ("/path-and-status", &format!("statusCode: 301, {PREFIX}")),
            ("/full-path-and-host", &format!("hostname: example.org, {FULL}")),
            ("/full-path-and-status", &format!("statusCode: 301, {FULL}")),
        ]),
        "httproute-redirect-port" => redirects(&[
            ("/port", "port: 8083"),
            ("/port-and-host", "port: 8083, hostname: example.org"),
            ("/port-and-status", "port: 8083, statusCode: 301"),
            ("/port-and-host-and-status", "port: 8083, hostname: example.org, statusCode: 302"),
        ]),
        "httproute-redirect-scheme" => redirects(&[
            ("/scheme", "scheme: https"),
            ("/scheme-and-host", "scheme: https, hostname: example.org"),
            ("/scheme-and-status", "scheme: https, statusCode: 301"),
            ("/scheme-and-host-and-status", "scheme: https, hostname: example.org, statusCode: 302"),
        ]),
        "httproute-303-redirect" => redirects(&[("/redirect", "statusCode: 303")]),
        "httproute-307-redirect" => redirects(&[("/temporary", "statusCode: 307")]),
        "httproute-308-redirect" => redirects(&[("/permanent", "statusCode: 308")]),
        "mesh-ports" => {
            marking(
                MESH,
                "v1",
                "{group: '', kind: Service, name: echo-v1, port: 80}",
                "v1",
                "{name: echo-v1, port: 80}",
            ) + &marking(MESH, "v2", "{group: '', kind: Service, name: echo-v2}", "v2", "{name: echo-v2, port: 80}")
        }
        "mesh-frontend" => {
            marking(MESH, "front", "{group: '', kind: Service, name: echo-v2}", "set", "{name: echo-v2, port: 80}")
        }
        "mesh-consumer-route" => {
            let parent = format!("{{group: '', kind: Service, name: echo-v1, namespace: {MESH}}}");
            let backend = format!("{{name: echo-v1, namespace: {MESH}, port: 80}}");
            marking(CONSUMER, "mark", &parent, "set", &backend)
        }
        other => panic!("no manifest for {other}"),
    }
}

/// A route that marks what passes it by the answer header `X-Header-Set`.
pub(super) fn marking(namespace: &str, name: &str, parent: &str, mark: &str, backend: &str) -> String {
    let filter = format!(
        "{{type: ResponseHeaderModifier, responseHeaderModifier: {{set: [{{name: X-Header-Set, value: {mark}}}]}}}}"
    );
    let spec = format!("parentRefs: [{parent}], rules: [{{filters: [{filter}], backendRefs: [{backend}]}}]");
    route("HTTPRoute", namespace, name, &spec)
}

fn matching() -> String {
    let (v1, v2) = (to("echo-v1"), to("echo-v2"));
    format!(
        "{{matches: [{{path: {{value: /}}}}, {{headers: [{{name: version, value: one}}]}}], {v1}}}, \
         {{matches: [{{path: {{value: /v2}}}}, {{headers: [{{name: version, value: two}}]}}], {v2}}}"
    )
}

fn query() -> String {
    let animal = |value: &str| format!("queryParams: [{{name: animal, value: {value}}}]");
    let path = |path: &str| format!("path: {{type: PathPrefix, value: {path}}}");
    let version = |value: &str| format!("headers: [{{name: version, value: {value}}}]");
    let rule = |matches: &[&[String]], backend: &str| {
        let matches: Vec<String> = matches.iter().map(|one| format!("{{{}}}", one.join(", "))).collect();
        format!("{{matches: [{}], {}}}", matches.join(", "), to(backend))
    };
    [
        rule(&[&[animal("whale")]], "echo-v1"),
        rule(&[&[animal("dolphin")]], "echo-v2"),
        rule(&[&[path("/path1"), animal("whale")]], "echo-v1"),
        rule(&[&[version("one"), animal("whale")]], "echo-v2"),
        rule(&[&[path("/path3"), animal("shark")], &[path("/path4"), version("three"), animal("kraken")]], "echo-v1"),
        rule(&[&[path("/path5")]], "echo-v1"),
        rule(&[&[animal("hydra")]], "echo-v2"),
    ]
    .join(", ")
}

/// Path and `requestHeaderModifier` of each rule.
const EDITS: [(&str, &str); 5] = [
    ("/set", "{set: [{name: X-Header-Set, value: set-overwrites-values}]}"),
    ("/add", "{add: [{name: X-Header-Add, value: add-appends-values}]}"),
    ("/remove", "{remove: [X-Header-Remove]}"),
    (
        "/multiple",
        "{set: [{name: X-Header-Set-1, value: header-set-1}, {name: X-Header-Set-2, value: header-set-2}], \
          add: [{name: X-Header-Add-1, value: header-add-1}, {name: X-Header-Add-2, value: header-add-2}, \
                {name: X-Header-Add-3, value: header-add-3}], remove: [X-Header-Remove-1, X-Header-Remove-2]}",
    ),
    (
        "/case-insensitivity",
        "{set: [{name: X-Header-Set, value: header-set}], add: [{name: X-Header-Add, value: header-add}], \
          remove: [X-Header-Remove]}",
    ),
];

fn rewrites() -> String {
    let edit = "{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Header-Set, value: \
                set-overwrites-values}], add: [{name: X-Header-Add, value: header-val-1}, {name: X-Header-Add-Append, \
                value: header-val-2}], remove: [X-Header-Remove]}}";
    let rule = |path: &str, kind: &str, field: &str, new: &str, more: &str| {
        let filter = format!("{{type: URLRewrite, urlRewrite: {{path: {{type: {kind}, {field}: {new}}}}}}}{more}");
        let to = "backendRefs: [{name: echo-v1, port: 80}]";
        format!("{{matches: [{{path: {{value: {path}}}}}], filters: [{filter}], {to}}}")
    };
    let prefix = |path, new, more: &str| rule(path, "ReplacePrefixMatch", "replacePrefixMatch", new, more);
    let full = |path, new, more: &str| rule(path, "ReplaceFullPath", "replaceFullPath", new, more);
    let edit = format!(", {edit}");
    [
        prefix("/prefix/one", "/one", ""),
        prefix("/strip-prefix", "/", ""),
        full("/full/one", "/one", ""),
        full("/full/rewrite-path-and-modify-headers", "/test", &edit),
        prefix("/prefix/rewrite-path-and-modify-headers", "/prefix", &edit),
    ]
    .join(", ")
}

const PREFIX: &str = "path: {type: ReplacePrefixMatch, replacePrefixMatch: /replacement-prefix}";
const FULL: &str = "path: {type: ReplaceFullPath, replaceFullPath: /replacement-full}";

fn redirects(rules: &[(&str, &str)]) -> String {
    let rule = |(path, redirect): &(&str, &str)| {
        let filter = format!("{{type: RequestRedirect, requestRedirect: {{{redirect}}}}}");
        format!("{{matches: [{{path: {{value: {path}}}}}], filters: [{filter}]}}")
    };
    http("redirect", &rules.iter().map(rule).collect::<Vec<_>>().join(", "))
}
