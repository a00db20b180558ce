//! What the mesh tells of requests, with real programs: one line and one count on each side.

// Tests may panic: that is how they fail.
#![allow(clippy::panic, clippy::indexing_slicing, clippy::expect_used)]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::mesh::{IN_FORCE_WITHIN, Mesh, Workload, scenario};
use mesh_tests::process::Process;
use mesh_tests::topology::Side;
use mesh_tests::wait;
use serde_json::Value;

const WITHIN: Duration = Duration::from_secs(60);
const PORT: u16 = 8080;
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";
const RULE: &str = "HTTPRoute shop/server rules[0]";

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
        }
        Ok(())
    })
}
