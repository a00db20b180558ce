//! Which route, rule and backend a request meets.

use super::{Class, Test};
use crate::gateway::case::{Case, Client, SAMPLES, call, get};

/// Tests of the suite that look at backends.
pub(super) fn tests() -> Vec<Test> {
    use Class::{Core, Extended, Provisional};
    vec![
        Test::new("MeshTrafficSplit", Core, "mesh-split", vec![get("/v1").by("echo-v1"), get("/v2").by("echo-v2")]),
        Test::new(
            "MeshHTTPRouteSimpleSameNamespace",
            Core,
            "httproute-simple-same-namespace",
            vec![get("/").by("echo-v1")],
        ),
        Test::new("MeshHTTPRouteWeight", Core, "httproute-weight", vec![get("/").shares(SAMPLES, &SHARES)]),
        Test::new("MeshGRPCRouteWeight", Core, "grpcroute-weight", vec![call().shares(SAMPLES, &SHARES)])
            .complaint("echo-v3"),
        Test::new("MeshHTTPRouteMatching", Core, "httproute-matching", matching()),
        Test::new("MeshHTTPRouteQueryParamMatching", Extended, "httproute-query-param-matching", query()),
        Test::new(
            "MeshHTTPRouteNamedRule",
            Extended,
            "httproute-named-rule",
            vec![get("/named").by("echo-v1"), get("/unnamed").by("echo-v2")],
        ),
        Test::new("MeshPorts", Provisional, "mesh-ports", ports()),
        Test::new("MeshFrontend", Provisional, "mesh-frontend", frontend()),
        Test::new("MeshFrontendHostname", Provisional, "mesh-frontend", hostname()),
        Test::new("MeshConsumerRoute", Provisional, "mesh-consumer-route", consumer()),
    ]
}

const SHARES: [(&str, f64); 2] = [("echo-v1", 0.7), ("echo-v2", 0.3)];

fn matching() -> Vec<Case> {
    vec![
        get("/").by("echo-v1"),
        get("/example").by("echo-v1"),
        get("/").header("Version", "one").by("echo-v1"),
        get("/v2").by("echo-v2"),
        get("/v2/example").by("echo-v2"),
        get("/").header("Version", "two").by("echo-v2"),
        get("/v2/").by("echo-v2"),
        // Prefixes are of whole segments.
        get("/v2example").by("echo-v1"),
        get("/foo/v2/example").by("echo-v1"),
    ]
}

fn query() -> Vec<Case> {
    vec![
        get("/?animal=whale").by("echo-v1"),
        get("/?animal=dolphin").by("echo-v2"),
        get("/?animal=whale&otherparam=irrelevant").by("echo-v1"),
        get("/?animal=dolphin&color=yellow").by("echo-v2"),
        get("/?color=blue").status(404),
        get("/?animal=dog").status(404),
        get("/?animal=whaledolphin").status(404),
        get("/").status(404),
        get("/path1?animal=whale").by("echo-v1"),
        get("/?animal=whale").header("version", "one").by("echo-v2"),
        get("/path3?animal=shark").by("echo-v1"),
        get("/path4?animal=kraken").header("version", "three").by("echo-v1"),
        get("/?animal=shark").status(404),
        get("/path4?animal=kraken").status(404),
        // A path goes before a query parameter.
        get("/path5?animal=hydra").by("echo-v1"),
    ]
}

/// The header by which a route marks the answers that pass it.
const MARK: &str = "X-Header-Set";

fn ports() -> Vec<Case> {
    vec![
        get("/").to("echo-v1").answered(MARK, "v1").by("echo-v1"),
        get("/").to("echo-v1:8080").not_answered(MARK).by("echo-v1"),
        get("/").to("echo-v2").answered(MARK, "v2").by("echo-v2"),
        get("/").to("echo-v2:8080").answered(MARK, "v2").by("echo-v2"),
    ]
}

fn frontend() -> Vec<Case> {
    vec![
        get("/").to("echo-v2").answered(MARK, "set").by("echo-v2"),
        get("/").to("pod:echo-v2:8080").not_answered(MARK).by("echo-v2"),
    ]
}

/// What was dialled decides, not what is asked for.
fn hostname() -> Vec<Case> {
    vec![
        get("/").to("echo-v2").header("Host", "echo-v1").answered(MARK, "set").by("echo-v2"),
        get("/").to("echo-v1").header("Host", "echo-v2").not_answered(MARK).by("echo-v1"),
    ]
}

fn consumer() -> Vec<Case> {
    let dialled = "echo-v1.gateway-conformance-mesh";
    vec![
        get("/").from(Client::Consumer).to(dialled).answered(MARK, "set").by("echo-v1"),
        get("/").to(dialled).not_answered(MARK).by("echo-v1"),
    ]
}
