//! The http lane with real programs: rules about requests on every way to a pod, and what a route leaves as it was.

// Tests may panic: that is how they fail.
#![allow(clippy::panic, clippy::indexing_slicing)]

use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::apps;
use mesh_tests::mesh::{IN_FORCE_WITHIN, Mesh, Workload, scenario};
use mesh_tests::process::Process;
use mesh_tests::topology::Side;
use mesh_tests::wait;
use serde_json::Value;

const WITHIN: Duration = Duration::from_secs(60);
/// Of curl. A Service that the agent has not read yet answers nothing: another look, instead of waiting for that.
const PATIENCE: [&str; 4] = ["--connect-timeout", "1", "--max-time", "20"];
const PORT: u16 = 8080;
/// The header that the route of these tests adds.
const ROUTED: &str = "x-routed: yes";
const NO_ADMIN: &str = "  action: DENY\n  rules:\n  - requestAttributes: {paths: [{value: /admin}]}\n";

/// What curl says of one transfer: status, sizes, version, error; and the header lines of the answer.
fn transfer(from: &Workload, url: &str, arguments: &[&str]) -> Result<(Value, Vec<String>)> {
    let mut command = Command::new("sh");
    // Its exit code is in the JSON: a refused request is an answer here.
    command.args(["-c", "\"$@\" || true", "sh", "curl", "--silent", "--output", "/dev/null"]).args(PATIENCE);
    command.args(["--dump-header", "-", "--write-out", "\n%{json}\n"]).args(arguments).arg(url);
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("curl-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let said = from.spawn(&name, command)?.finish(WITHIN)?;
    let mut lines: Vec<&str> = said.lines().filter(|line| !line.is_empty()).collect();
    let found = lines.pop().with_context(|| format!("curl said nothing of {url}"))?;
    Ok((serde_json::from_str(found)?, lines.into_iter().map(str::to_owned).collect()))
}

fn curl(from: &Workload, url: &str, arguments: &[&str]) -> Result<Value> {
    Ok(transfer(from, url, arguments)?.0)
}

/// What an application can tell of an answer's head: not when it was made, and not what concerns one connection. The
/// version is compared apart: to a request of HTTP/1.0 the agent answers in HTTP/1.0, and nginx in HTTP/1.1.
fn told(lines: &[String]) -> Vec<&str> {
    let hop = ["date:", "connection:", "keep-alive:"];
    let stays = |line: &&str| !hop.iter().any(|name| line.to_ascii_lowercase().starts_with(name));
    let lines = lines.iter().map(String::as_str).filter(stays);
    lines.map(|line| line.strip_prefix("HTTP/1.").and_then(|rest| rest.get(1..)).unwrap_or(line)).collect()
}

fn url(to: SocketAddr, path: &str) -> String {
    format!("http://{to}{path}")
}

/// Waits until a request of `from` for `path` is answered with `status`; 0: not at all.
fn answered(from: &Workload, to: SocketAddr, path: &str, status: u16) -> Result<()> {
    wait::until(&format!("{path} is answered {status}"), IN_FORCE_WITHIN, || {
        let found = curl(from, &url(to, path), &[])?;
        wait::holds(found["http_code"] == status, || found.to_string())
    })
}

/// The four ways to the server: another node, the same node, without the mesh from either.
fn callers(mesh: &mut Mesh) -> Result<(Vec<std::sync::Arc<Workload>>, std::sync::Arc<Workload>)> {
    let (client, server) = mesh.shop()?;
    let neighbour = mesh.pod(Side::B, "shop/neighbour")?;
    mesh.captured(&neighbour)?;
    mesh.objects().put_namespace("plain", false)?;
    let strangers = [mesh.pod(Side::A, "plain/far")?, mesh.pod(Side::B, "plain/near")?];
    Ok((vec![client, neighbour].into_iter().chain(strangers).collect(), server))
}

#[test]
fn rules_about_requests_hold_on_every_way_to_a_pod() -> Result<()> {
    scenario(|mesh| {
        let (callers, server) = callers(mesh)?;
        let _nginx = apps::nginx(&server, PORT, "hello")?;
        for to in server.ips().map(|ip| SocketAddr::new(ip, PORT)) {
            for caller in &callers {
                answered(caller, to, "/admin", 200)?;
            }
        }
        mesh.objects().put_policy("shop", "no-admin", NO_ADMIN)?;
        for to in server.ips().map(|ip| SocketAddr::new(ip, PORT)) {
            for caller in &callers {
                answered(caller, to, "/admin/x", 403)?;
                answered(caller, to, "/", 200)?;
                answered(caller, to, "/%61dmin", 403)?;
            }
        }
        let metrics = mesh.agent(Side::B)?.metrics(mesh.node(Side::B))?;
        let denied = metrics.sum("mesh_denials_total", &[("policy", "shop/no-admin")]);
        // Two denied paths, of four callers, by two families; each may have been asked more than once.
        ensure!(denied >= 16.0, "{denied} denials are counted");
        mesh.objects().remove("authorizationpolicy-shop-no-admin")?;
        answered(&callers[1], SocketAddr::new(server.ip(), PORT), "/admin", 200)
    })
}

/// A connection on which a line goes to and fro until it is ended.
fn chat(from: &Workload, to: SocketAddr) -> Result<Process> {
    from.ask_later("chat", to, &["--every-ms", "20", "--count", "3000"])
}

#[test]
fn a_rule_about_requests_ends_the_connections_that_nobody_reads() -> Result<()> {
    scenario(|mesh| {
        let (callers, server) = callers(mesh)?;
        let _echo = server.sample_server("echo", PORT, &[])?;
        let to = SocketAddr::new(server.ip(), PORT);
        let chats: Vec<Process> = callers.iter().map(|caller| chat(caller, to)).collect::<Result<_>>()?;
        for chat in &chats {
            wait::until("it talks", IN_FORCE_WITHIN, || {
                let lines = chat.stdout();
                wait::holds(!lines.is_empty() || chat.cpu()? > Duration::ZERO, || lines)
            })?;
        }
        mesh.objects().put_policy("shop", "no-admin", NO_ADMIN)?;
        for chat in chats {
            let answer = chat.answer(IN_FORCE_WITHIN)?;
            ensure!(answer["failed"] == 1, "{answer}");
        }
        Ok(())
    })
}

/// A Service `name` for the pods labelled so, whose one port is declared as HTTP, and an HTTPRoute to it.
fn routed(mesh: &Mesh, name: &str, ip: &str) -> Result<SocketAddr> {
    mesh.objects().put(
        &format!("service-{name}"),
        &format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{namespace: shop, name: {name}}}\nspec:\n  \
             clusterIPs: [{ip}]\n  selector: {{app: {name}}}\n  ports: [{{name: http, port: 80, targetPort: {PORT}}}]\n"
        ),
    )?;
    let set = "{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-routed, value: \"yes\"}]}}";
    mesh.objects().put(
        &format!("route-{name}"),
        &format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{namespace: shop, name: {name}}}\n\
             spec:\n  parentRefs: [{{group: \"\", kind: Service, name: {name}}}]\n  rules:\n  - filters: [{set}]\n    \
             backendRefs: [{{name: {name}, port: 80}}]\n"
        ),
    )?;
    Ok(SocketAddr::new(ip.parse().with_context(|| format!("{ip} is no address"))?, 80))
}

#[test]
fn curl_and_nginx_notice_no_route() -> Result<()> {
    scenario(|mesh| {
        let (client, server) = mesh.shop()?;
        let neighbour = mesh.pod(Side::B, "shop/neighbour")?;
        mesh.captured(&neighbour)?;
        let _nginx = apps::nginx(&server, PORT, "hello")?;
        let to = routed(mesh, "server", "10.96.3.1")?;
        let direct = SocketAddr::new(server.ip(), PORT);
        for caller in [&client, &neighbour] {
            wait::until("the route is in force", IN_FORCE_WITHIN, || {
                let (found, head) = transfer(caller, &url(to, "/"), &[])?;
                wait::holds(head.iter().any(|line| line == ROUTED), || format!("{found} {head:?}"))
            })?;
            for arguments in [
                &[][..],
                &["--head"],
                &["--http1.0"],
                &["--request", "POST", "--data", "a=b"],
                &["--header", "Transfer-Encoding: chunked", "--data", "abc"],
                &["--header", "Expect: 100-continue", "--data", "abc"],
                &["--request", "OPTIONS", "--request-target", "*"],
                &["--header", "Range: bytes=1-3"],
                &["--header", "X-Long: 0123456789"],
            ] {
                for path in ["/", "/large", "/%2F//x;y?"] {
                    let (plain, plain_head) = transfer(caller, &url(direct, path), arguments)?;
                    let (routed, routed_head) = transfer(caller, &url(to, path), arguments)?;
                    for field in ["http_code", "size_download", "content_type", "http_version", "exitcode"] {
                        let older = field == "http_version" && arguments == ["--http1.0"];
                        ensure!(
                            older || plain[field] == routed[field],
                            "{arguments:?} {path} {field}: {plain}\n{routed}"
                        );
                    }
                    let expected: Vec<&str> = told(&plain_head).into_iter().chain([ROUTED]).collect();
                    ensure!(told(&routed_head) == expected, "{arguments:?} {path}: {plain_head:?}\n{routed_head:?}");
                }
            }
        }
        Ok(())
    })
}

#[test]
fn requests_take_turns_where_a_policy_says_so() -> Result<()> {
    scenario(|mesh| {
        let (client, first) = mesh.shop()?;
        let neighbour = mesh.pod(Side::B, "shop/neighbour")?;
        let second = mesh.pod_with(Side::A, "shop/second", |pod| {
            pod.labels.insert("app".to_owned(), "server".to_owned());
        })?;
        for pod in [&neighbour, &second] {
            mesh.captured(pod)?;
        }
        let _servers = [apps::nginx(&first, PORT, "one\n")?, apps::nginx(&second, PORT, "two\n")?];
        mesh.objects().put(
            "service-server",
            &format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{namespace: shop, name: server}}\nspec:\n  \
                 clusterIPs: [10.96.3.2]\n  selector: {{app: server}}\n  ports: [{{port: 80, targetPort: {PORT}}}]\n"
            ),
        )?;
        mesh.objects().put(
            "traffic-server",
            "apiVersion: mesh-agent.io/v1alpha1\nkind: TrafficPolicy\nmetadata: {namespace: shop, name: server}\n\
             spec:\n  targetRefs: [{kind: Service, name: server}]\n  loadBalancer: {type: RoundRobin}\n",
        )?;
        // One connection each, from another node and from this one: natively the kernel would have drawn for all of it.
        for caller in [&client, &neighbour] {
            wait::until("requests take turns", IN_FORCE_WITHIN, || {
                let mut command = Command::new("curl");
                command.args(["--silent", "http://10.96.3.2/[1-6]"]).args(PATIENCE);
                let said = caller.spawn("curl-turns", command)?.finish(WITHIN)?;
                let turns: Vec<&str> = said.lines().collect();
                let alternate = turns.len() == 6 && turns.windows(2).all(|pair| pair[0] != pair[1]);
                wait::holds(alternate, || said.clone())
            })?;
        }
        Ok(())
    })
}
