//! Rules of the specification that no test of the mesh suite covers: whose routes apply, what becomes of bad backends.

use anyhow::Result;

use super::{Class, Manifest, Test, traffic};
use crate::gateway::case::{Case, Client, call, get};
use crate::gateway::world::World;

/// The header by which our own routes mark the answers that pass them.
pub(super) const MARK: &str = "X-Mark";
/// The header by which an answer of the mesh itself says why.
pub(super) const REASON: &str = "x-mesh-agent-reason";
/// `echo-v1` as the consumer's namespace calls it.
const FULL: &str = "echo-v1.gateway-conformance-mesh";

pub(super) fn rule(name: &'static str, stem: &'static str, cases: Vec<Case>) -> Test {
    Test { name, class: Class::Rule, manifest: Manifest::Own(stem), cases, complaints: Vec::new(), afterwards: None }
}

/// All of ours.
pub(super) fn tests() -> Vec<Test> {
    let own = vec![
        rule("OmittedBackendsAreTheParentsOwn", "rule-omitted-backends", omitted()),
        rule("ConsumerRoutesReplaceTheProducers", "rule-scopes", scopes()),
        rule("ProducerRoutesAreForEveryNamespace", "rule-producer", producer()),
        vanished(),
        Test {
            afterwards: Some(("the losers are told", losers)),
            ..rule("TheMoreSpecificKindHasThePort", "rule-kinds", kinds())
        },
        rule("OnlyTheFirstLevelOfRoutesApplies", "rule-first-level", first_level()),
        rule("HostnamesAreIgnored", "rule-hostnames", hostnames()),
        Test {
            afterwards: Some(("the routes are told", rejected)),
            ..rule("ParentsWithoutAddressAreRejected", "rule-headless", headless())
        },
        Test {
            afterwards: Some(("the route is told", unresolved)),
            ..rule("BadBackendsAreTheirShare", "rule-bad-backends", bad_backends())
        }
        .complaint("its requests are answered 500"),
        rule("PrecedenceAcrossRoutes", "rule-precedence", precedence()),
        rule("UnmatchedRequestsGet404", "mesh-split", unmatched()),
    ];
    own.into_iter().chain(traffic::tests()).collect()
}

/// After a test whose route had every port of `echo-v1`.
fn vanished() -> Test {
    let plain = |to: &str| get("/v1").to(to).not_answered(MARK);
    let cases = vec![plain("echo"), plain("echo-v1").by("echo-v1"), plain("echo-v1:8080").by("echo-v1"), call()];
    Test { manifest: Manifest::None, ..rule("DeletedRoutesLeaveNothing", "", cases) }
}

fn omitted() -> Vec<Case> {
    let bare = |to: &str| get("/").to(to).by("echo-v2").answered(MARK, "bare");
    vec![bare("echo-v2"), bare("echo-v2:8080"), get("/").to("echo-v1").by("echo-v1").not_answered(MARK)]
}

fn scopes() -> Vec<Case> {
    let consumer = |path: &str| get(path).to(FULL).from(Client::Consumer);
    vec![
        consumer("/mine").by("echo-v2").answered(MARK, "consumer"),
        consumer("/other").status(404).answered(REASON, "no_route"),
        get("/mine").to("echo-v1").by("echo-v1").answered(MARK, "producer"),
        get("/other").to(FULL).by("echo-v1").answered(MARK, "producer"),
    ]
}

fn producer() -> Vec<Case> {
    let all = |case: Case| case.by("echo-v2").answered(MARK, "producer");
    vec![all(get("/").to("echo-v1")), all(get("/").to(FULL).from(Client::Consumer)), all(get("/").to("echo-v1:8080"))]
}

fn kinds() -> Vec<Case> {
    vec![
        call().to("echo-v1:7070").by("echo-v1").answered(MARK, "grpc"),
        get("/").to("echo-v1").by("echo-v1").answered(MARK, "http"),
        get("/").to("echo-v1:8080").by("echo-v1").answered(MARK, "http"),
    ]
}

fn losers(world: &World<'_>) -> Result<()> {
    world.told("TCPRoute", "tcp", ["Conflicted", "ResolvedRefs"])?;
    world.told("HTTPRoute", "http", ["Accepted", "ResolvedRefs"])
}

fn rejected(world: &World<'_>) -> Result<()> {
    world.told("HTTPRoute", "headless", ["UnsupportedValue", "ResolvedRefs"])?;
    world.told("HTTPRoute", "elsewhere", ["UnsupportedValue", "ResolvedRefs"])
}

fn unresolved(world: &World<'_>) -> Result<()> {
    world.told("GRPCRoute", "bad-grpc", ["Accepted", "BackendNotFound"])
}

fn first_level() -> Vec<Case> {
    vec![
        get("/").to("echo").by("echo-v1").not_answered(MARK),
        get("/").to("echo-v1").by("echo-v2").answered(MARK, "second"),
    ]
}

fn hostnames() -> Vec<Case> {
    let passes = |case: Case| case.by("echo-v1").answered(MARK, "hosts");
    vec![
        passes(get("/")),
        passes(get("/").header("Host", "example.org")),
        passes(get("/").header("Host", "other.example")),
    ]
}

fn headless() -> Vec<Case> {
    vec![
        get("/").to("pod:echo-v1:8080").by("echo-v1").not_answered(MARK),
        get("/").to("echo-v1").by("echo-v1").not_answered(MARK),
    ]
}

fn bad_backends() -> Vec<Case> {
    let fails = |path: &str, status, reason| get(path).status(status).answered(REASON, reason);
    vec![
        fails("/nobody", 500, "invalid_backend"),
        fails("/port", 500, "invalid_backend"),
        fails("/empty", 503, "no_endpoints"),
        fails("/zero", 500, "no_backend"),
        fails("/unknown", 500, "unsupported_filter"),
        get("/share").shares(80, &[("echo-v1", 0.75), ("500", 0.25)]),
        call().grpc_status(14).answered(REASON, "invalid_backend"),
    ]
}

fn precedence() -> Vec<Case> {
    let meets = |case: Case, mark| case.answered(MARK, mark);
    vec![
        meets(get("/"), "root").by("echo-v1"),
        meets(get("/p/y"), "prefix").by("echo-v2"),
        meets(get("/p/x"), "exact"),
        meets(get("/p/x").method("POST"), "exact"),
        meets(get("/p").method("POST"), "method"),
        meets(get("/p").method("POST").header("a", "1").header("b", "2"), "method"),
        meets(get("/p").header("a", "1"), "one-header"),
        meets(get("/p").header("a", "1").header("b", "2"), "two-headers"),
        meets(get("/p?q=1"), "query"),
        meets(get("/p?q=1").header("a", "1"), "one-header"),
        meets(get("/p/regex").header("c", "x42"), "regex"),
        meets(get("/p/regex").header("c", "y"), "prefix"),
        meets(get("/tie"), "older").by("echo-v2"),
    ]
}

fn unmatched() -> Vec<Case> {
    let unknown = |path: &str| get(path).status(404).answered(REASON, "no_route");
    vec![unknown("/"), unknown("/v1/x"), unknown("/v3").to("echo:8080"), get("/v1").to("echo:8080").by("echo-v1")]
}
