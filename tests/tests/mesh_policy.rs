//! Who may talk to whom, enforced between nodes: denials that name their rule, and permits that end.

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

const WITHIN: Duration = Duration::from_secs(60);
const NOT_CLIENT: &str =
    "  action: DENY\n  rules:\n  - sources:\n    - {type: ServiceAccount, serviceAccount: {name: client}}\n";

/// Waits until `from` is refused by `to`, without one byte of an answer.
fn refused(from: &Workload, to: SocketAddr) -> Result<()> {
    wait::until("it is refused", IN_FORCE_WITHIN, || {
        let found = from.ask("probe", to, &["--say", "x"], WITHIN)?;
        wait::holds(is_refused(&found), || found.to_string())
    })
}

/// Waits until `from` is served by `to`.
fn served(from: &Workload, to: SocketAddr) -> Result<()> {
    wait::until("it is served", IN_FORCE_WITHIN, || {
        let answer = from.ask("churn", to, &["--count", "1"], WITHIN)?;
        wait::holds(answer["ok"] == 1, || answer.to_string())
    })
}

#[test]
fn a_denied_call_names_its_rule_in_log_and_metric() -> Result<()> {
    scenario(|mesh| {
        let (client, server) = mesh.shop()?;
        let other = mesh.pod(Side::A, "shop/other")?;
        mesh.captured(&other)?;
        let _echo = server.sample_server("echo", 7000, &[])?;
        let to = SocketAddr::new(server.ip(), 7000);
        served(&client, to)?;
        mesh.objects().put_policy("shop", "not-client", NOT_CLIENT)?;
        refused(&client, to)?;
        // The first may have been let in and revoked, if the policy met it half-way; the next one is denied.
        refused(&client, to)?;
        served(&other, to)?;
        let line = mesh.logged(Side::B, "the denial", |line| line["outcome"] == "denied")?;
        ensure!(line["rule"] == "shop/not-client", "{line}");
        ensure!(line["source"]["identity"] == "spiffe://cluster.local/ns/shop/sa/client", "{line}");
        let metrics = mesh.agent(Side::B)?.metrics(mesh.node(Side::B))?;
        let by_rule: f64 = metrics
            .samples()
            .iter()
            .filter(|s| s.name == "mesh_denials_total" && s.labels.values().any(|v| v == "shop/not-client"))
            .map(|s| s.value)
            .sum();
        ensure!(by_rule >= 1.0, "no denial is counted for shop/not-client");
        mesh.objects().remove("authorizationpolicy-shop-not-client")?;
        served(&client, to)
    })
}

/// A connection that talks until it is ended.
fn chat(from: &Workload, to: SocketAddr) -> Result<Process> {
    from.ask_later("chat", to, &["--every-ms", "20", "--count", "3000"])
}

/// Waits until `chat` has ended with an error, within the promise of 1 s and a busy machine's delay.
fn ended(chat: Process, since: Instant) -> Result<()> {
    let answer = chat.answer(IN_FORCE_WITHIN)?;
    ensure!(answer["failed"] == 1 && answer["outcomes"]["ConnectionReset"] == 1, "{answer}");
    ensure!(since.elapsed() < Duration::from_secs(3), "it took {:?}", since.elapsed());
    Ok(())
}

fn serving(mesh: &mut Mesh) -> Result<(Arc<Workload>, Arc<Workload>, Process, SocketAddr)> {
    let (client, server) = mesh.shop()?;
    let echo = server.sample_server("echo", 7000, &[])?;
    let to = SocketAddr::new(server.ip(), 7000);
    served(&client, to)?;
    Ok((client, server, echo, to))
}

#[test]
fn a_live_connection_ends_when_a_policy_forbids_it() -> Result<()> {
    scenario(|mesh| {
        let (client, _server, _echo, to) = serving(mesh)?;
        let other = mesh.pod(Side::A, "shop/other")?;
        mesh.captured(&other)?;
        let forbidden = chat(&client, to)?;
        let mut allowed = chat(&other, to)?;
        established(mesh, 2.0)?;
        let since = Instant::now();
        mesh.objects().put_policy("shop", "not-client", NOT_CLIENT)?;
        ended(forbidden, since)?;
        let line = mesh.logged(Side::B, "the revocation", |line| line["outcome"] == "revoked")?;
        ensure!(line["rule"] == "shop/not-client", "{line}");
        allowed.check_running()
    })
}

#[test]
fn a_live_connection_ends_when_its_workload_comes_under_a_policy() -> Result<()> {
    scenario(|mesh| {
        let (client, server, _echo, to) = serving(mesh)?;
        let spec = format!("  targetRefs: [{{kind: Pod, selector: {{matchLabels: {{tier: inner}}}}}}]\n{NOT_CLIENT}");
        mesh.objects().put_policy("shop", "inner", &spec)?;
        served(&client, to)?;
        let chat = chat(&client, to)?;
        established(mesh, 1.0)?;
        let since = Instant::now();
        let mut object = server.object();
        object.labels.insert("tier".to_owned(), "inner".to_owned());
        mesh.objects().put_pod(&object)?;
        ended(chat, since)
    })
}

/// Waits until the server's agent has `count` live connections.
fn established(mesh: &Mesh, count: f64) -> Result<()> {
    wait::until("the connections stand", IN_FORCE_WITHIN, || {
        let live = mesh.agent(Side::B)?.metrics(mesh.node(Side::B))?.sum("mesh_connections_live", &[]);
        wait::holds(live >= count, || format!("{live} live"))
    })
}

#[test]
fn strict_refuses_plaintext_and_permissive_serves_it() -> Result<()> {
    scenario(|mesh| {
        mesh.objects().put_namespace("plain", false)?;
        let stranger = mesh.pod(Side::A, "plain/stranger")?;
        let (client, server) = mesh.shop()?;
        let _echo = server.sample_server("echo", 7000, &[])?;
        for ip in server.ips() {
            let to = SocketAddr::new(ip, 7000);
            served(&stranger, to)?;
            mesh.objects().put_peer_mode("shop", "Strict")?;
            wait::until("plaintext is refused at once", IN_FORCE_WITHIN, || {
                let found = stranger.ask("probe", to, &["--say", "x"], WITHIN)?;
                wait::holds(found["connect"] == "ConnectionRefused", || found.to_string())
            })?;
            served(&client, to)?;
            mesh.objects().put_peer_mode("shop", "Permissive")?;
            served(&stranger, to)?;
        }
        Ok(())
    })
}
