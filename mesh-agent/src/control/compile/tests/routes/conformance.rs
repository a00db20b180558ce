//! Every case of the Gateway API mesh suite (v1.6.1) at the strict level: `Location`, the path that the backend gets
//! and its namespace are compared too. Each runs with our manifest, and with upstream's where it is at hand.

use super::{CONSUMER, Call, MESH, Reply, World, get, manifests};

/// Runs `cases` against each manifest of `stem`: each is a call, the backend service expected, and a look at the rest.
#[track_caller]
fn check(stem: &str, cases: &[(Call, &str)]) {
    for manifest in manifests::all(stem) {
        let world = World::good(&manifest);
        for (call, backend) in cases {
            let reply = world.send(call);
            assert_eq!((reply.status, reply.service()), (200, *backend), "{stem}: {call:?}: {reply:?}");
            assert!(reply.backend == "direct" || reply.backend.starts_with(&format!("{MESH}/")), "{reply:?}");
            assert_eq!(reply.target, call.path, "{stem}: {call:?}");
        }
    }
}

/// As [`check`], with a closer look at each reply.
#[track_caller]
fn check_replies(stem: &str, mut look: impl FnMut(&World)) {
    for manifest in manifests::all(stem) {
        look(&World::good(&manifest));
    }
}

#[test]
fn mesh_basic() {
    let reply = World::good("").send(&get("/"));
    assert_eq!((reply.status, &*reply.backend), (200, "direct"), "without routes the service answers");
}

#[test]
fn mesh_traffic_split() {
    check("mesh-split", &[(get("/v1"), "echo-v1"), (get("/v2"), "echo-v2"), (get("/v2").to("echo:8080"), "echo-v2")]);
    check_replies("mesh-split", |world| {
        assert_eq!(world.send(&get("/v1/x")).status, 404);
        assert_eq!(world.send(&get("/")).status, 404, "a route replaces the service's own endpoints");
    });
}

#[test]
fn mesh_http_route_simple_same_namespace() {
    check("httproute-simple-same-namespace", &[(get("/"), "echo-v1")]);
    check_replies("httproute-simple-same-namespace", |world| {
        assert_eq!(world.send(&get("/")).backend, format!("{MESH}/echo-v1:8080"));
    });
}

#[test]
fn mesh_http_route_weight() {
    check_replies("httproute-weight", |world| {
        let shares: Vec<usize> = world.shares(&get("/")).into_values().collect();
        assert_eq!(shares, [350, 150], "exact, not within 5 %");
    });
}

#[test]
fn mesh_grpc_route_weight() {
    let call = get("/proto.EchoTestService/Echo").to("echo:7070").method("POST");
    check_replies("grpcroute-weight", |world| {
        let shares = world.shares(&call.clone().header("content-type", "application/grpc"));
        assert_eq!(shares.into_values().collect::<Vec<_>>(), [350, 150], "weight 0 draws nothing, not even an error");
    });
}

#[test]
fn mesh_http_route_matching() {
    check(
        "httproute-matching",
        &[
            (get("/"), "echo-v1"),
            (get("/example"), "echo-v1"),
            (get("/").header("Version", "one"), "echo-v1"),
            (get("/v2"), "echo-v2"),
            (get("/v2/example"), "echo-v2"),
            (get("/").header("Version", "two"), "echo-v2"),
            (get("/v2/"), "echo-v2"),
            (get("/v2example"), "echo-v1"),
            (get("/foo/v2/example"), "echo-v1"),
        ],
    );
}

#[test]
fn mesh_http_route_query_param_matching() {
    check(
        "httproute-query-param-matching",
        &[
            (get("/?animal=whale"), "echo-v1"),
            (get("/?animal=dolphin"), "echo-v2"),
            (get("/?animal=whale&otherparam=irrelevant"), "echo-v1"),
            (get("/?animal=dolphin&color=yellow"), "echo-v2"),
            (get("/path1?animal=whale"), "echo-v1"),
            (get("/?animal=whale").header("version", "one"), "echo-v2"),
            (get("/path3?animal=shark"), "echo-v1"),
            (get("/path4?animal=kraken").header("version", "three"), "echo-v1"),
            (get("/path5?animal=hydra"), "echo-v1"),
        ],
    );
    check_replies("httproute-query-param-matching", |world| {
        for path in
            ["/?color=blue", "/?animal=dog", "/?animal=whaledolphin", "/", "/?animal=shark", "/path4?animal=kraken"]
        {
            assert_eq!(world.send(&get(path)).status, 404, "{path}");
        }
    });
}

#[test]
fn mesh_http_route_named_rule() {
    check("httproute-named-rule", &[(get("/named"), "echo-v1"), (get("/unnamed"), "echo-v2")]);
}

#[test]
fn mesh_http_route_request_header_modifier_of_rule_and_backend() {
    for stem in ["httproute-request-header-modifier", "httproute-request-header-modifier-backend"] {
        check_replies(stem, edits);
    }
}

fn edits(world: &World) {
    let check = |call: Call, expected: &[(&str, &str)]| {
        let reply = world.send(&call);
        assert_eq!((reply.status, reply.service(), &*reply.target), (200, "echo-v1", &*call.path));
        for (name, value) in expected {
            assert_eq!(reply.sent(name), *value, "{call:?}: {name}");
        }
    };
    let other = |call: Call| call.header("Some-Other-Header", "val");
    let kept = ("Some-Other-Header", "val");
    check(other(get("/set")), &[kept, ("X-Header-Set", "set-overwrites-values")]);
    let had = other(get("/set")).header("X-Header-Set", "some-other-value");
    check(had, &[kept, ("X-Header-Set", "set-overwrites-values")]);
    check(other(get("/add")), &[kept, ("X-Header-Add", "add-appends-values")]);
    let had = other(get("/add")).header("X-Header-Add", "some-other-value");
    check(had, &[kept, ("X-Header-Add", "some-other-value,add-appends-values")]);
    check(get("/remove").header("X-Header-Remove", "val"), &[("X-Header-Remove", "")]);
    check(
        get("/multiple")
            .header("X-Header-Set-2", "set-val-2")
            .header("X-Header-Add-2", "add-val-2")
            .header("X-Header-Remove-2", "remove-val-2")
            .header("Another-Header", "another-header-val"),
        &[
            ("X-Header-Set-1", "header-set-1"),
            ("X-Header-Set-2", "header-set-2"),
            ("X-Header-Add-1", "header-add-1"),
            ("X-Header-Add-2", "add-val-2,header-add-2"),
            ("X-Header-Add-3", "header-add-3"),
            ("X-Header-Remove-1", ""),
            ("X-Header-Remove-2", ""),
            ("Another-Header", "another-header-val"),
        ],
    );
    check(
        get("/case-insensitivity")
            .header("x-header-set", "original-val-set")
            .header("x-header-add", "original-val-add")
            .header("x-header-remove", "original-val-remove")
            .header("Another-Header", "another-header-val"),
        &[
            ("X-Header-Set", "header-set"),
            ("X-Header-Add", "original-val-add,header-add"),
            ("X-Header-Remove", ""),
            ("Another-Header", "another-header-val"),
        ],
    );
}

#[test]
fn mesh_http_route_rewrite_path() {
    check_replies("httproute-rewrite-path", |world| {
        for (path, target) in [
            ("/prefix/one/two", "/one/two"),
            ("/strip-prefix/three", "/three"),
            ("/strip-prefix", "/"),
            ("/full/one/two", "/one"),
            ("/prefix/one?a=b", "/one?a=b"),
        ] {
            let reply = world.send(&get(path));
            assert_eq!((reply.status, reply.service(), &*reply.target), (200, "echo-v1", target), "{path}");
        }
        for (path, target) in [
            ("/full/rewrite-path-and-modify-headers/test", "/test"),
            ("/prefix/rewrite-path-and-modify-headers/one", "/prefix/one"),
        ] {
            let call = get(path)
                .header("X-Header-Remove", "remove-val")
                .header("X-Header-Add-Append", "append-val-1")
                .header("X-Header-Set", "set-val");
            let reply = world.send(&call);
            assert_eq!((reply.status, reply.service(), &*reply.target), (200, "echo-v1", target), "{path}");
            assert_eq!(reply.sent("X-Header-Set"), "set-overwrites-values");
            assert_eq!(reply.sent("X-Header-Add"), "header-val-1");
            assert_eq!(reply.sent("X-Header-Add-Append"), "append-val-1,header-val-2");
            assert_eq!(reply.sent("X-Header-Remove"), "");
        }
    });
}

/// Path, status and `Location` of each redirect.
#[track_caller]
fn check_redirects(stem: &str, cases: &[(&str, u16, &str)]) {
    check_replies(stem, |world| {
        for (path, status, location) in cases {
            let reply: Reply = world.send(&get(path));
            assert_eq!((reply.status, &*reply.answered("location")), (*status, *location), "{stem}: {path}");
            assert_eq!(reply.answered("x-mesh-agent-reason"), "redirect");
        }
    });
}

#[test]
fn mesh_http_route_redirects() {
    check_redirects(
        "httproute-redirect-host-and-status",
        &[
            ("/hostname-redirect", 302, "http://example.org/hostname-redirect"),
            ("/host-and-status", 301, "http://example.org/host-and-status"),
        ],
    );
    check_redirects(
        "httproute-redirect-path",
        &[
            ("/original-prefix/lemon", 302, "http://echo/replacement-prefix/lemon"),
            ("/full/path/original", 302, "http://echo/full-path-replacement"),
            ("/path-and-host", 302, "http://example.org/replacement-prefix"),
            ("/path-and-status", 301, "http://echo/replacement-prefix"),
            ("/full-path-and-host", 302, "http://example.org/replacement-full"),
            ("/full-path-and-status", 301, "http://echo/replacement-full"),
        ],
    );
    check_redirects(
        "httproute-redirect-port",
        &[
            ("/port", 302, "http://echo:8083/port"),
            ("/port-and-host", 302, "http://example.org:8083/port-and-host"),
            ("/port-and-status", 301, "http://echo:8083/port-and-status"),
            ("/port-and-host-and-status", 302, "http://example.org:8083/port-and-host-and-status"),
        ],
    );
    check_redirects(
        "httproute-redirect-scheme",
        &[
            ("/scheme", 302, "https://echo/scheme"),
            ("/scheme-and-host", 302, "https://example.org/scheme-and-host"),
            ("/scheme-and-status", 301, "https://echo/scheme-and-status"),
            ("/scheme-and-host-and-status", 302, "https://example.org/scheme-and-host-and-status"),
        ],
    );
    check_redirects("httproute-303-redirect", &[("/redirect", 303, "http://echo/redirect")]);
    check_redirects("httproute-307-redirect", &[("/temporary", 307, "http://echo/temporary")]);
    check_redirects("httproute-308-redirect", &[("/permanent", 308, "http://echo/permanent")]);
}

/// `to`, `host`, the service expected and the mark in the answer.
#[track_caller]
fn check_marks(stem: &str, cases: &[(Call, &str, &str)]) {
    check_replies(stem, |world| {
        for (call, service, mark) in cases {
            let reply = world.send(call);
            assert_eq!(
                (reply.status, reply.service(), &*reply.answered("X-Header-Set")),
                (200, *service, *mark),
                "{stem}: {call:?}"
            );
        }
    });
}

#[test]
fn mesh_ports() {
    check_marks(
        "mesh-ports",
        &[
            (get("/").to("echo-v1:80"), "echo-v1", "v1"),
            (get("/").to("echo-v1:8080"), "direct", ""),
            (get("/").to("echo-v2:80"), "echo-v2", "v2"),
            (get("/").to("echo-v2:8080"), "echo-v2", "v2"),
        ],
    );
}

#[test]
fn mesh_frontend_and_its_hostname() {
    check_marks(
        "mesh-frontend",
        &[
            (get("/").to("10.96.0.3:80"), "echo-v2", "set"),
            (get("/").to("10.0.0.2:8080"), "direct", ""),
            (get("/").to("10.96.0.3:80").host("echo-v1"), "echo-v2", "set"),
            (get("/").to("10.96.0.2:80").host("echo-v2"), "direct", ""),
        ],
    );
}

#[test]
fn mesh_consumer_route() {
    check_marks(
        "mesh-consumer-route",
        &[
            (get("/").to("echo-v1:80").from(CONSUMER), "echo-v1", "set"),
            (get("/").to("echo-v1:80"), "direct", ""),
            (get("/").to("echo-v1:80").from("elsewhere"), "direct", ""),
        ],
    );
}

#[test]
fn mesh_grpc_route_request_header_modifier() {
    let rule = |case: &str, edit: &str, backend: &str| {
        format!(
            "{{matches: [{{headers: [{{name: x-test-case, value: {case}}}]}}], filters: [{{type: \
             RequestHeaderModifier, requestHeaderModifier: {edit}}}], backendRefs: [{{name: {backend}, port: 7070}}]}}"
        )
    };
    let rules = [
        rule("set", "{set: [{name: x-set, value: new}]}", "echo-v1"),
        rule("add", "{add: [{name: x-add, value: more}]}", "echo-v1"),
        rule("remove", "{remove: [x-remove]}", "echo-v1"),
        rule(
            "multi",
            "{set: [{name: x-set, value: new}], add: [{name: x-add, value: more}], remove: [x-remove]}",
            "echo-v2",
        ),
    ];
    let parent = "parentRefs: [{group: '', kind: Service, name: echo, port: 7070}]";
    let manifest = super::route("GRPCRoute", MESH, "edit", &format!("{parent}, rules: [{}]", rules.join(", ")));
    let world = World::good(&manifest);
    for (case, service, set, add, remove) in [
        ("set", "echo-v1", "new", "old", "old"),
        ("add", "echo-v1", "old", "old,more", "old"),
        ("remove", "echo-v1", "old", "old", ""),
        ("multi", "echo-v2", "new", "old,more", ""),
    ] {
        let call = get("/a.B/C").to("echo:7070").method("POST").header("x-test-case", case);
        let call = ["x-set", "x-add", "x-remove"].iter().fold(call, |call, name| call.header(name, "old"));
        let reply = world.send(&call);
        let got = (reply.service(), reply.sent("x-set"), reply.sent("x-add"), reply.sent("x-remove"));
        assert_eq!(got, (service, set.to_owned(), add.to_owned(), remove.to_owned()), "{case}");
    }
}
