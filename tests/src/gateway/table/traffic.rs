//! What rules do to requests and connections besides choosing a backend: the suite has such tests for Gateways only.

use anyhow::Result;

use super::Test;
use super::rules::{MARK, REASON, rule};
use crate::gateway::case::{Case, call, get};
use crate::gateway::world::World;
use crate::mesh::IN_FORCE_WITHIN;
use crate::wait;

/// Tests of ours that look at filters, time, copies and protocols.
pub(super) fn tests() -> Vec<Test> {
    let mirror = rule("MirrorsAreCopies", "rule-mirror", mirror());
    vec![
        rule("AnswerHeadersAreEdited", "rule-answer-headers", answer_headers()),
        rule("TimeoutsEndRequests", "rule-timeouts", timeouts()),
        rule("RetriesAreTheirCodes", "rule-retries", retries()),
        Test { afterwards: Some(("copies arrive", copies)), ..mirror },
        rule("CorsIsAnswered", "rule-cors", cors()),
        rule("HostsAreRewritten", "rule-rewrite-host", rewrite_host()),
        rule("EveryHttpIsRouted", "rule-protocols", protocols()),
        rule("ConnectionsAreRouted", "rule-tcp", tcp()),
        rule("ConnectionsOfTlsAreRouted", "rule-tls", tls()),
    ]
}

fn answer_headers() -> Vec<Case> {
    vec![
        get("/").answered("X-Set", "new").answered("X-Add", "more").by("echo-v1"),
        get("/?headers=X-Set:old,X-Add:some,X-Remove:gone,X-Other:kept")
            .answered("X-Set", "new")
            .answered("X-Add", "some,more")
            .answered("X-Other", "kept")
            .not_answered("X-Remove"),
    ]
}

fn timeouts() -> Vec<Case> {
    vec![
        get("/request").by("echo-v1"),
        get("/request?delay=1s").status(504).answered(REASON, "timeout"),
        get("/backend").by("echo-v1"),
        get("/backend?delay=1s").status(504).answered(REASON, "timeout"),
        get("/none?delay=1s").by("echo-v1"),
    ]
}

/// The server gives its codes by turns: what the client sees tells how often it was asked.
fn retries() -> Vec<Case> {
    vec![
        get("/once?codes=500:1,200:1").by("echo-v1"),
        get("/once?codes=503:1,200:1").by("echo-v1"),
        get("/once?codes=502:1").status(502),
        get("/once?codes=500:1").status(500),
        get("/thrice?codes=500:3,200:1").by("echo-v1"),
        get("/never?codes=500:1").status(500),
        get("/hurried?codes=500:9&delay=300ms").status(504).answered(REASON, "timeout"),
        get("/slow?delay=1s").status(504).answered(REASON, "timeout"),
        get("/closed").status(503),
    ]
}

/// How many requests of a case a percentage is taken of.
const MANY: usize = 200;

fn mirror() -> Vec<Case> {
    let many = |path: &str| get(path).shares(MANY, &[("echo-v1", 1.0)]);
    vec![get("/all").by("echo-v1"), get("/none").by("echo-v1"), many("/both"), many("/half"), many("/quarter")]
}

fn copies(world: &World<'_>) -> Result<()> {
    wait::until("the mirror gets its copies", IN_FORCE_WITHIN, || {
        let (requests, copies) = (world.targets_at("echo-v1")?, world.targets_at("echo-v2")?);
        let count = |at: &[String], path: &str| at.iter().filter(|to| *to == path).count();
        // Copies for each request.
        let share = |path: &str| count(&copies, path) as f64 / count(&requests, path) as f64;
        let (whole, parts) = (["/all", "/none", "/both"].map(share), ["/half", "/quarter"].map(share));
        // Five standard deviations, and more.
        let near = |share: f64, wanted: f64| (share - wanted).abs() < 0.2 && share > 0.0;
        let right = whole == [1.0, 0.0, 2.0] && near(parts[0], 0.5) && near(parts[1], 0.25);
        wait::holds(right, || format!("copies for a request: {whole:?}, {parts:?}"))
    })
}

fn cors() -> Vec<Case> {
    let from = |case: Case, origin: &str| case.header("Origin", origin);
    let allowed = "access-control-allow-origin";
    let preflight = || get("/").method("OPTIONS").header("Access-Control-Request-Method", "PUT").status(204);
    vec![
        from(preflight(), "https://shop.example")
            .answered(allowed, "https://shop.example")
            .answered("access-control-allow-methods", "GET, PUT")
            .answered("access-control-allow-headers", "x-a")
            .answered("access-control-max-age", "60"),
        from(preflight(), "https://other.example").not_answered(allowed),
        from(get("/"), "https://shop.example")
            .by("echo-v1")
            .answered(allowed, "https://shop.example")
            .answered("access-control-expose-headers", "x-out"),
        from(get("/"), "https://other.example").by("echo-v1").not_answered(allowed),
    ]
}

fn rewrite_host() -> Vec<Case> {
    vec![get("/a?b=c").by("echo-v1").as_host("one.example")]
}

fn protocols() -> Vec<Case> {
    let upgrade = || get("/v2").scheme("upgrade").status(101).fact("Echo", "hello").answered(MARK, "v2");
    vec![
        get("/v1").by("echo-v1").answered(MARK, "v1").fact("Proto", "HTTP/1.1"),
        get("/v2").scheme("h2c").by("echo-v2").answered(MARK, "v2").fact("Proto", "HTTP/2.0"),
        get("/v3").scheme("h2c").status(404).answered(REASON, "no_route"),
        get("/v1").method("POST").by("echo-v1").answered(MARK, "v1"),
        get("/v1").method("DELETE").by("echo-v1").answered(MARK, "v1"),
        upgrade(),
        call().by("echo-v1").fact("Proto", "HTTP/2.0"),
        call().header("version", "two").by("echo-v2"),
        call().at("/other.Service/Method").grpc_status(12).answered(REASON, "no_route"),
    ]
}

fn tcp() -> Vec<Case> {
    vec![
        get("/").scheme("tcp").to("echo:9090").shares(100, &[("echo-v1", 0.7), ("echo-v2", 0.3)]),
        get("/").scheme("tcp").to("echo-v1:9090").by("echo-v1"),
    ]
}

fn tls() -> Vec<Case> {
    let passed = |to: &str| get("/").scheme("tcp").to(to);
    vec![passed("echo:9090").by("echo-v2"), passed("echo-v1:9090").by("echo-v1")]
}
