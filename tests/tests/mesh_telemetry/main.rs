//! What the mesh tells of requests, with real programs: one line and one count on each side, and one trace.

// Tests may panic: that is how they fail.
#![allow(clippy::panic, clippy::indexing_slicing, clippy::expect_used)]

mod collector;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use collector::{Collector, Span};
use mesh_tests::mesh::{IN_FORCE_WITHIN, Mesh, Workload, scenario};
use mesh_tests::process::Process;
use mesh_tests::topology::Side;
use mesh_tests::wait;
use serde_json::Value;

const WITHIN: Duration = Duration::from_secs(60);
const PORT: u16 = 8080;
const OTLP_PORT: u16 = 4318;
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";
const RULE: &str = "HTTPRoute shop/server rules[0]";
const SERVER: i32 = 2;
const CLIENT: i32 = 3;

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {namespace: shop, name: server}\nspec:\n  \
    clusterIPs: [10.96.7.1]\n  selector: {app: server}\n  ports: [{name: http, port: 80, targetPort: 8080}]\n";
const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: \
    {namespace: shop, name: server}\nspec:\n  parentRefs: [{group: \"\", kind: Service, name: server}]\n  rules:\n  \
    - backendRefs: [{name: server, port: 80}]\n";

/// A client and a server of two nodes; the client's node reads requests by a route, the server's by a policy.
struct Shop {
    client: Arc<Workload>,
    service: SocketAddr,
    _server: Process,
}

fn shop(mesh: &mut Mesh) -> Result<Shop> {
    let (client, server) = mesh.shop()?;
    let running = server.sample_server("gateway-echo", PORT, &[])?;
    mesh.objects().put("service-server", SERVICE)?;
    mesh.objects().put("route-server", ROUTE)?;
    mesh.objects().put_policy(
        "shop",
        "look",
        "  action: AUDIT\n  rules:\n  - requestAttributes: {paths: [{value: /nothing}]}\n",
    )?;
    let service = SocketAddr::new(IpAddr::from([10, 96, 7, 1]), 80);
    let shop = Shop { client, service, _server: running };
    for side in Side::BOTH {
        wait::until(&format!("{} reads requests", side.node_name()), IN_FORCE_WITHIN, || {
            shop.ask("http", "/warm-up", &[])?;
            let of = [("lane", "http")];
            let counted = mesh.agent(side)?.metrics(mesh.node(side))?.sum("mesh_requests_total", &of);
            wait::holds(counted > 0.0, || format!("{counted} requests"))
        })?;
    }
    Ok(shop)
}

impl Shop {
    /// Asks for `path` with these headers; what the client printed, its own lines and the server's.
    fn ask(&self, scheme: &str, path: &str, headers: &[&str]) -> Result<Vec<String>> {
        let url = format!("{scheme}://server{path}");
        let mut arguments = vec!["--url", url.as_str()];
        headers.iter().for_each(|header| arguments.extend(["-H", header]));
        let printed = self.client.ask_later("gateway-ask", self.service, &arguments)?.finish(WITHIN)?;
        Ok(printed.lines().map(str::to_owned).collect())
    }
}

/// The value of a header as the server got it.
fn got(printed: &[String], name: &str) -> Option<String> {
    let wanted = format!("RequestHeader={name}:");
    printed.iter().find_map(|line| line.split_once(&wanted)).map(|(_, value)| value.to_owned())
}

/// The one line about `path` on one side.
fn line(mesh: &Mesh, side: Side, path: &str) -> Result<Value> {
    let line = mesh.logged(side, path, |line| line["path"] == path)?;
    let lines = mesh.agent(side)?.access_log()?.into_iter().filter(|line| line["path"] == path).count();
    ensure!(lines == 1, "{lines} lines about {path}");
    Ok(line)
}

#[test]
fn without_a_collector_each_side_counts_and_logs_and_no_header_is_touched() -> Result<()> {
    scenario(|mesh| {
        let shop = shop(mesh)?;
        let given = [
            format!("traceparent: 00-{TRACE}-{SPAN}-01"),
            "tracestate: a=b".to_owned(),
            "b3: nonsense".to_owned(),
            "x-mesh-agent-reason: denied".to_owned(),
        ];
        let given: Vec<&str> = given.iter().map(String::as_str).collect();
        let printed = shop.ask("http", "/traced?token=secret", &given)?;
        for (name, expected) in [("traceparent", given[0]), ("tracestate", given[1]), ("b3", given[2])] {
            let expected = expected.split_once(": ").map(|(_, value)| value.to_owned());
            ensure!(got(&printed, name) == expected, "{name}: {printed:#?}");
        }
        ensure!(got(&printed, "x-mesh-agent-reason").is_none(), "{printed:#?}");
        let printed = shop.ask("http", "/plain", &[])?;
        ensure!(!printed.iter().any(|line| line.contains("trace") || line.contains("b3")), "{printed:#?}");
        shop.ask("grpc", "", &[])?;

        let rpc = "/proto.EchoTestService/Echo";
        for (side, reporter, route) in [(Side::A, "outbound", RULE), (Side::B, "inbound", "none")] {
            let traced = line(mesh, side, "/traced")?;
            ensure!(traced["trace_id"] == TRACE, "{traced}");
            ensure!(traced["route"].as_str().unwrap_or("none") == route, "{traced}");
            ensure!(traced["security"] == "mutual_tls" && traced["source"]["workload"] == "client", "{traced}");
            ensure!(traced["destination"]["workload"] == "server" && traced["attempts"] == 1, "{traced}");
            ensure!(traced["upstream_ms"].as_f64() > Some(0.0) && traced["own_ms"].is_number(), "{traced}");
            ensure!(line(mesh, side, "/plain")?.get("trace_id").is_none());
            let call = line(mesh, side, rpc)?;
            ensure!(call["grpc_status"] == 0 && call["protocol"] == "HTTP/2", "{call}");
            let metrics = mesh.agent(side)?.metrics(mesh.node(side))?;
            let of = [("reporter", reporter), ("route", route), ("source_workload", "client"), ("outcome", "ok")];
            let counted = |grpc| metrics.sum("mesh_requests_total", &[&of[..], &[("grpc_status", grpc)]].concat());
            ensure!(counted("0") == 1.0, "{side:?}: one call");
            let logged = mesh.agent(side)?.access_log()?;
            let logged = logged.iter().filter(|line| line["lane"] == "http" && line.get("method").is_some()).count();
            let all = metrics.sum("mesh_requests_total", &[]);
            ensure!(all == logged as f64, "{side:?}: {all} are counted and {logged} logged");
            let timed = metrics.sum("mesh_request_duration_seconds_count", &[("reporter", reporter)]);
            ensure!(timed == all, "{side:?}: {timed} are timed");
            ensure!(metrics.sum("mesh_spans_exported_total", &[]) == 0.0, "no spans");
        }
        Ok(())
    })
}

/// Both agents export to one collector, and record `ratio` of what comes without a decision.
fn traced(mesh: &mut Mesh, ratio: &str) -> Result<(Collector, Shop)> {
    let node = mesh.node(Side::A);
    let address = SocketAddr::new(node.ip(), OTLP_PORT);
    let collector = Collector::start(node.netns(), address)?;
    mesh.agents_run_with("--otlp-endpoint", &format!("http://{address}"));
    mesh.agents_run_with("--trace-ratio", ratio);
    let shop = shop(mesh)?;
    Ok((collector, shop))
}

/// The client's and the server's span of the one request for `path`.
fn pair(collector: &Collector, path: &str) -> Result<(Span, Span)> {
    wait::until(&format!("two spans of {path}"), IN_FORCE_WITHIN, || {
        let spans = collector.spans();
        let of = |kind| {
            let said = |span: &&Span| span.says("url.path") == path || span.says("url.full").ends_with(path);
            let mut found = spans.iter().filter(|span| span.kind == kind).filter(said);
            let one = found.next().cloned().with_context(|| format!("kind {kind} in {spans:#?}"))?;
            ensure!(found.next().is_none(), "more than one span of kind {kind}");
            Ok(one)
        };
        Ok((of(CLIENT)?, of(SERVER)?))
    })
}

/// One trace from the client's span to the one that the application was told.
fn follows(client: &Span, server: &Span, told: &(String, String)) -> Result<()> {
    ensure!(client.trace == server.trace && server.trace == told.0, "{client:#?}\n{server:#?}\n{told:?}");
    ensure!(server.parent == client.id && told.1 == server.id, "{client:#?}\n{server:#?}\n{told:?}");
    let within = client.start_ns <= server.start_ns && server.start_ns <= server.end_ns;
    ensure!(within && server.start_ns < client.end_ns, "{client:#?}\n{server:#?}");
    Ok(())
}

/// Trace and span of a context as the server got it.
fn told(printed: &[String], header: &str) -> Result<(String, String)> {
    let value = got(printed, header).with_context(|| format!("no {header} in {printed:#?}"))?;
    let fields: Vec<&str> = value.trim_start_matches("00-").split('-').collect();
    Ok((fields[0].to_owned(), fields.get(1).copied().unwrap_or_default().to_owned()))
}

#[test]
fn a_request_through_both_nodes_is_one_trace() -> Result<()> {
    scenario(|mesh| {
        let (collector, shop) = traced(mesh, "1")?;

        let parent = format!("traceparent: 00-{TRACE}-{SPAN}-01");
        let printed = shop.ask("http", "/continued?token=secret", &[&parent, "tracestate: a=b"])?;
        let (client, server) = pair(&collector, "/continued")?;
        follows(&client, &server, &told(&printed, "traceparent")?)?;
        ensure!(client.trace == TRACE && client.parent == SPAN, "{client:#?}");
        ensure!(got(&printed, "tracestate").as_deref() == Some("a=b"), "{printed:#?}");
        for (span, workload, side) in [(&client, "client", Side::A), (&server, "server", Side::B)] {
            ensure!(span.resource["service.name"] == workload, "{span:#?}");
            ensure!(span.resource["k8s.node.name"] == side.node_name(), "{span:#?}");
            ensure!(span.says("http.response.status_code") == "200" && !span.failed, "{span:#?}");
            ensure!(span.name == "GET" && !format!("{span:?}").contains("secret"), "{span:#?}");
            ensure!(line(mesh, side, "/continued")?["trace_id"] == TRACE);
        }
        ensure!(client.says("mesh_agent.route") == RULE, "{client:#?}");

        let printed = shop.ask("http", "/new", &[])?;
        let (client, server) = pair(&collector, "/new")?;
        follows(&client, &server, &told(&printed, "traceparent")?)?;
        ensure!(client.parent.is_empty() && client.trace != TRACE, "{client:#?}");

        let printed = shop.ask("http", "/broken", &["traceparent: 00-zz-yy-01", "tracestate: a=b"])?;
        let (client, server) = pair(&collector, "/broken")?;
        follows(&client, &server, &told(&printed, "traceparent")?)?;
        ensure!(client.parent.is_empty() && got(&printed, "tracestate").is_none(), "{printed:#?}");

        let printed = shop.ask("http", "/b3", &[&format!("b3: {TRACE}-{SPAN}-1")])?;
        let (client, server) = pair(&collector, "/b3")?;
        follows(&client, &server, &told(&printed, "b3")?)?;
        ensure!(client.parent == SPAN && got(&printed, "traceparent").is_none(), "{printed:#?}");

        let printed = shop.ask("grpc", "", &[&parent])?;
        let (client, server) = pair(&collector, "/proto.EchoTestService/Echo")?;
        follows(&client, &server, &told(&printed, "traceparent")?)?;
        ensure!(server.name == "proto.EchoTestService/Echo", "{server:#?}");
        ensure!(server.says("rpc.response.status_code") == "OK", "{server:#?}");

        let exported: f64 = Side::BOTH
            .iter()
            .map(|side| Ok(mesh.agent(*side)?.metrics(mesh.node(*side))?.sum("mesh_spans_exported_total", &[])))
            .sum::<Result<f64>>()?;
        ensure!(exported <= collector.spans().len() as f64 && exported >= 10.0, "{exported} are counted");
        Ok(())
    })
}

#[test]
fn what_is_not_recorded_goes_on_and_has_no_span() -> Result<()> {
    scenario(|mesh| {
        let (collector, shop) = traced(mesh, "0")?;
        let parent = format!("00-{TRACE}-{SPAN}-00");
        let printed = shop.ask("http", "/client-said-no", &[&format!("traceparent: {parent}")])?;
        ensure!(got(&printed, "traceparent") == Some(parent), "{printed:#?}");
        let printed = shop.ask("http", "/nobody-said", &[])?;
        let (trace, _) = told(&printed, "traceparent")?;
        ensure!(got(&printed, "traceparent").is_some_and(|text| text.ends_with("-00")), "{printed:#?}");
        for side in Side::BOTH {
            ensure!(line(mesh, side, "/nobody-said")?["trace_id"] == trace.as_str(), "both sides name one trace");
        }
        // The last is recorded: what came before it would be there.
        shop.ask("http", "/client-said-yes", &[&format!("traceparent: 00-{TRACE}-{SPAN}-01")])?;
        pair(&collector, "/client-said-yes")?;
        let spans = collector.spans();
        ensure!(spans.len() == 2, "{spans:#?}");
        Ok(())
    })
}
