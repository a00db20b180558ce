//! Two pods of one node: the whole mesh stands, and the agent is not in their way.

// Tests may panic: that is how they fail.
#![allow(clippy::panic, clippy::indexing_slicing)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use mesh_tests::mesh::{IN_FORCE_WITHIN, Mesh, Workload, scenario};
use mesh_tests::pod::is_refused;
use mesh_tests::process::Process;
use mesh_tests::topology::Side;
use mesh_tests::wait;
use nix::sys::signal::Signal;

const WITHIN: Duration = Duration::from_secs(60);
const NOT_CLIENT: &str =
    "  action: DENY\n  rules:\n  - sources:\n    - {type: ServiceAccount, serviceAccount: {name: client}}\n";
const AUDIT_CLIENT: &str =
    "  action: AUDIT\n  rules:\n  - sources:\n    - {type: ServiceAccount, serviceAccount: {name: client}}\n";
const ONLY_CLIENT: &str =
    "  action: ALLOW\n  rules:\n  - sources:\n    - {type: ServiceAccount, serviceAccount: {name: client}}\n";

/// Client and server on the first node, both captured; an echo server on 7000.
fn neighbours(mesh: &mut Mesh) -> Result<(Arc<Workload>, Arc<Workload>, Process, SocketAddr)> {
    mesh.objects().put_namespace("shop", true)?;
    let client = mesh.pod(Side::A, "shop/client")?;
    let server = mesh.pod(Side::A, "shop/server")?;
    let echo = server.sample_server("echo", 7000, &[])?;
    mesh.start()?;
    mesh.captured(&client)?;
    mesh.captured(&server)?;
    let to = SocketAddr::new(server.ip(), 7000);
    goes_natively(mesh, &client, to)?;
    Ok((client, server, echo, to))
}

fn exits(mesh: &Mesh, exit: &str) -> Result<f64> {
    Ok(mesh.agent(Side::A)?.metrics(mesh.node(Side::A))?.sum("mesh_kernel_exits_total", &[("exit", exit)]))
}

/// Waits until a connection of `client` has gone to `to` without the agent.
fn goes_natively(mesh: &Mesh, client: &Workload, to: SocketAddr) -> Result<()> {
    wait::until("it goes by the native lane", IN_FORCE_WITHIN, || {
        let before = exits(mesh, "lookup_native")?;
        let answer = client.ask("churn", to, &["--count", "1"], WITHIN)?;
        let after = exits(mesh, "lookup_native")?;
        wait::holds(answer["ok"] == 1 && after > before, || answer.to_string())
    })
}

#[test]
fn neighbours_talk_without_the_agent_and_are_logged_and_counted_like_everybody() -> Result<()> {
    scenario(|mesh| {
        let (client, server, _echo, to) = neighbours(mesh)?;
        let service = mesh.service("shop/server", 80, 7000)?;
        let own = [to, SocketAddr::new(server.ip6(), 7000), service[0], service[1]];
        let captured = exits(mesh, "connect_captured")?;
        for to in own {
            goes_natively(mesh, &client, to)?;
        }
        ensure!(exits(mesh, "connect_captured")? == captured, "the agent has been in the way");
        let line = mesh.logged(Side::A, "a call of the Service", |line| {
            let called = line["lane"] == "native" && line["destination"]["service"] == "shop/server";
            called && line["bytes_sent"].as_u64() > Some(0)
        })?;
        ensure!(line["outcome"] == "ok" && line["security"] == "kernel", "{line}");
        ensure!(line["source"]["identity"] == "spiffe://cluster.local/ns/shop/sa/client", "{line}");
        ensure!(line["destination"]["identity"] == "spiffe://cluster.local/ns/shop/sa/server", "{line}");
        ensure!(line["bytes_sent"].as_u64() > Some(0) && line["bytes_sent"] == line["bytes_received"], "{line}");
        ensure!(line["round_trip_ms"].as_f64() > Some(0.0) && line["retransmits"] == 0, "{line}");
        let metrics = mesh.agent(Side::A)?.metrics(mesh.node(Side::A))?;
        for reporter in ["outbound", "inbound"] {
            let labels = [("lane", "native"), ("reporter", reporter), ("source_workload", "client")];
            let sent = metrics.sum("mesh_sent_bytes_total", &labels);
            let closed = metrics.sum("mesh_connections_closed_total", &labels);
            ensure!(sent > 0.0 && closed >= 4.0, "{reporter}: {sent} bytes, {closed} connections");
        }
        Ok(())
    })
}

#[test]
fn a_neighbour_is_refused_by_the_rule_that_the_log_and_the_metric_name() -> Result<()> {
    scenario(|mesh| {
        let (client, server, _echo, to) = neighbours(mesh)?;
        let other = mesh.pod(Side::A, "shop/other")?;
        mesh.captured(&other)?;
        mesh.objects().put_policy("shop", "only-client", ONLY_CLIENT)?;
        wait::until("the other one is refused", IN_FORCE_WITHIN, || {
            let found = other.ask("probe", to, &["--say", "x"], WITHIN)?;
            wait::holds(found["connect"] == "ConnectionRefused", || found.to_string())
        })?;
        mesh.objects().put_policy("shop", "watch", AUDIT_CLIENT)?;
        wait::until("what a neighbour does is audited", IN_FORCE_WITHIN, || {
            goes_natively(mesh, &client, to)?;
            let metrics = mesh.agent(Side::A)?.metrics(mesh.node(Side::A))?;
            let audited = metrics.sum("mesh_audits_total", &[("policy", "shop/watch")]);
            wait::holds(audited >= 1.0, || "nothing was".to_owned())
        })?;
        mesh.logged(Side::A, "the audit", |line| {
            line["audited"][0] == "shop/watch" && line["lane"] == "native" && line["outcome"] == "ok"
        })?;
        let line = mesh.logged(Side::A, "the denial", |line| line["outcome"] == "denied")?;
        ensure!(line["rule"] == "shop/only-client" && line["lane"] == "native", "{line}");
        ensure!(line["source"]["identity"] == "spiffe://cluster.local/ns/shop/sa/other", "{line}");
        ensure!(line["destination"]["ip"] == server.ip().to_string(), "{line}");
        let metrics = mesh.agent(Side::A)?.metrics(mesh.node(Side::A))?;
        ensure!(metrics.sum("mesh_denials_total", &[("policy", "shop/only-client")]) >= 1.0, "it is not counted");
        Ok(())
    })
}

#[test]
fn a_live_native_connection_ends_when_a_policy_forbids_it_and_others_live_on() -> Result<()> {
    scenario(|mesh| {
        let (client, _server, _echo, to) = neighbours(mesh)?;
        let other = mesh.pod(Side::A, "shop/other")?;
        mesh.captured(&other)?;
        let chat = |from: &Workload| from.ask_later("chat", to, &["--every-ms", "20", "--count", "3000"]);
        let (forbidden, mut allowed) = (chat(&client)?, chat(&other)?);
        wait::until("both talk", WITHIN, || {
            let pins = mesh.node(Side::A).bpffs().join(mesh.agent(Side::A)?.instance());
            let live = mesh_tests::bpf::map_entries(&pins)?.get("flows").copied().unwrap_or(0);
            wait::holds(live == 2, || format!("{live} live"))
        })?;
        let since = Instant::now();
        mesh.objects().put_policy("shop", "not-client", NOT_CLIENT)?;
        let answer = forbidden.answer(IN_FORCE_WITHIN)?;
        ensure!(answer["failed"] == 1 && answer["outcomes"]["ConnectionReset"] == 1, "{answer}");
        ensure!(since.elapsed() < Duration::from_secs(3), "it took {:?}", since.elapsed());
        let found = client.ask("probe", to, &["--say", "x"], WITHIN)?;
        ensure!(is_refused(&found), "{found}");
        allowed.check_running()
    })
}

/// Nothing else changes after the policy: what was written for it goes by itself.
#[test]
fn entries_of_rules_that_are_gone_are_taken_away() -> Result<()> {
    scenario(|mesh| {
        neighbours(mesh)?;
        let entries = |mesh: &Mesh| -> Result<usize> {
            let all = mesh_tests::bpf::map_entries(mesh.node(Side::A).bpffs())?;
            Ok(all.get("policy").copied().unwrap_or(0))
        };
        mesh.objects().put_policy("shop", "only-client", ONLY_CLIENT)?;
        wait::until("the rules are in the kernel", IN_FORCE_WITHIN, || {
            wait::holds(entries(mesh)? > 0, || "no entry".to_owned())
        })?;
        mesh.objects().remove("authorizationpolicy-shop-only-client")?;
        wait::until("the rules have left the kernel", IN_FORCE_WITHIN, || {
            let left = entries(mesh)?;
            wait::holds(left == 0, || format!("{left} entries"))
        })
    })
}

#[test]
fn neighbours_do_not_notice_that_the_agent_dies_and_comes_back() -> Result<()> {
    scenario(|mesh| {
        let (client, _server, _echo, to) = neighbours(mesh)?;
        mesh.objects().put_namespace("plain", false)?;
        let stranger = mesh.pod(Side::A, "plain/stranger")?;
        mesh.objects().put_peer_mode("shop", "Strict")?;
        mesh.objects().put_policy("shop", "only-client", ONLY_CLIENT)?;
        let refused = |from: &Workload| -> Result<()> {
            wait::until("it is refused", IN_FORCE_WITHIN, || {
                let found = from.ask("probe", to, &["--say", "x"], WITHIN)?;
                wait::holds(found["connect"] == "ConnectionRefused", || found.to_string())
            })
        };
        refused(&stranger)?;
        let talk = client.ask_later("chat", to, &["--every-ms", "20", "--count", "400"])?;
        let dial = client.ask_later("dial", to, &["--every-ms", "5", "--count", "1600"])?;
        wait::until("the dialler dials", WITHIN, || wait::holds(dial.stdout().lines().count() > 20, || dial.stdout()))?;
        let agent = mesh.take_agent(Side::A)?;
        agent.process().signal(Signal::SIGKILL)?;
        drop(agent);
        refused(&stranger)?;
        mesh.start_agent(Side::A)?;
        mesh.ready(Side::A)?;
        let dialled = dial.answer(WITHIN)?;
        ensure!(dialled["failed"] == 0 && dialled["ok"] == 1600, "{dialled}");
        let talked = talk.answer(WITHIN)?;
        ensure!(talked["ok"] == 400, "{talked}");
        refused(&stranger)?;
        goes_natively(mesh, &client, to)
    })
}

#[test]
fn neighbours_join_and_leave_without_losing_a_connection() -> Result<()> {
    scenario(|mesh| {
        let (client, server, _echo, to) = neighbours(mesh)?;
        let dial = client.ask_later("dial", to, &["--every-ms", "5", "--count", "2400"])?;
        wait::until("the dialler dials", WITHIN, || wait::holds(dial.stdout().lines().count() > 20, || dial.stdout()))?;
        mesh.objects().put_namespace("shop", false)?;
        for pod in [&client, &server] {
            wait::until("it is released", IN_FORCE_WITHIN, || {
                let programs = mesh_tests::bpf::attached_to_netns(pod.netns())?;
                wait::holds(programs == 0, || format!("{programs} programs are attached"))
            })?;
        }
        mesh.objects().put_namespace("shop", true)?;
        mesh.captured(&client)?;
        mesh.captured(&server)?;
        goes_natively(mesh, &client, to)?;
        let dialled = dial.answer(WITHIN)?;
        ensure!(dialled["failed"] == 0 && dialled["ok"] == 2400, "{dialled}");
        Ok(())
    })
}
