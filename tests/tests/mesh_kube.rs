//! The whole mesh with `--source kube`: objects of an API server come into force, captures are published there, and
//! nothing is lost while it is away.

// Tests may panic: that is how they fail.
#![allow(clippy::panic, clippy::indexing_slicing)]

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::mesh::{IN_FORCE_WITHIN, Mesh, Workload, scenario};
use mesh_tests::pod::is_refused;
use mesh_tests::topology::Side;
use mesh_tests::wait;

const WITHIN: Duration = Duration::from_secs(60);
/// After an outage the next attempt may be some seconds away.
const RECOVERED: Duration = Duration::from_secs(40);
/// Denies everybody.
const NOBODY: &str = "  targetRefs: [{kind: Pod, selector: {matchLabels: {app: server}}}]\n  rules: [{sources: []}]\n";

fn answers(client: &Workload, to: SocketAddr, within: Duration) -> Result<()> {
    wait::until(&format!("{to} answers"), within, || {
        let answer = client.ask("churn", to, &["--count", "3"], WITHIN)?;
        wait::holds(answer["ok"] == 3, || answer.to_string())
    })
}

fn refuses(client: &Workload, to: SocketAddr, within: Duration) -> Result<()> {
    wait::until(&format!("{to} refuses"), within, || {
        let found = client.ask("probe", to, &["--say", "x"], WITHIN)?;
        wait::holds(is_refused(&found), || found.to_string())
    })
}

/// Waits until both agents are connected to the API server for all kinds, or for none.
fn connected(mesh: &Mesh, all: bool, within: Duration) -> Result<()> {
    for side in Side::BOTH {
        wait::until(&format!("{}: connected: {all}", side.node_name()), within, || {
            let metrics = mesh.agent(side)?.metrics(mesh.node(side))?;
            let of = |value: f64| metrics.select("mesh_source_connected", &[]).filter(|s| s.value == value).count();
            let (up, down) = (of(1.0), of(0.0));
            wait::holds(up + down > 0 && if all { down == 0 } else { up == 0 }, || format!("{up} of {}", up + down))
        })?;
    }
    Ok(())
}

#[test]
fn objects_of_an_api_server_come_into_force_and_captures_are_published_there() -> Result<()> {
    scenario(|mesh| {
        let api = mesh.use_api_server()?;
        let (client, server) = mesh.shop()?;
        let _echo = server.sample_server("echo", 7000, &[])?;
        let to = SocketAddr::new(server.ip(), 7000);
        answers(&client, to, IN_FORCE_WITHIN)?;
        let peer = mesh.logged(Side::B, "the client's identity", |line| line.to_string().contains("sa/client"))?;
        ensure!(peer.to_string().contains("mutual_tls"), "{peer}");
        for side in Side::BOTH {
            let state = api.get("CaptureState", "", side.node_name()).context("no CaptureState")?;
            let manager = format!("mesh-agent.io/{}", side.node_name());
            ensure!(state["metadata"]["managedFields"][0]["manager"] == *manager, "{state}");
            ensure!(state["spec"]["pods"].as_array().is_some_and(|pods| pods.len() == 1), "{state}");
        }

        let addresses = mesh.service("shop/server", 80, 7000)?;
        for address in addresses {
            answers(&client, address, IN_FORCE_WITHIN)?;
        }
        mesh.objects().put_policy("shop", "nobody", NOBODY)?;
        refuses(&client, to, IN_FORCE_WITHIN)?;
        mesh.objects().remove("authorizationpolicy-shop-nobody")?;
        answers(&client, to, IN_FORCE_WITHIN)?;

        // Out of the mesh by the label of the namespace, and in again.
        mesh.objects().put_namespace("shop", false)?;
        wait::until("the captures are withdrawn", IN_FORCE_WITHIN, || {
            let published = mesh.objects().published(Side::B.node_name());
            wait::holds(!published.contains("uid-shop"), || published.clone())
        })?;
        mesh.objects().put_namespace("shop", true)?;
        mesh.captured(&client)?;
        mesh.captured(&server)?;
        answers(&client, to, IN_FORCE_WITHIN)
    })
}

#[test]
fn an_api_server_that_is_away_or_forgets_empties_nothing() -> Result<()> {
    scenario(|mesh| {
        mesh.expect_complaint("API server");
        let api = mesh.use_api_server()?;
        let (client, server) = mesh.shop()?;
        let other = mesh.pod(Side::B, "shop/other")?;
        mesh.captured(&other)?;
        let _echo = server.sample_server("echo", 7000, &[])?;
        let _other = other.sample_server("echo", 7000, &[])?;
        let (denied, open) = (SocketAddr::new(server.ip(), 7000), SocketAddr::new(other.ip(), 7000));
        mesh.objects().put_policy("shop", "nobody", NOBODY)?;
        refuses(&client, denied, IN_FORCE_WITHIN)?;

        api.faults().refuse_connections()?;
        connected(mesh, false, IN_FORCE_WITHIN)?;
        let problems = mesh.agent(Side::A)?.status(mesh.node(Side::A))?["problems"].to_string();
        ensure!(problems.contains("API server") && problems.contains("Pod"), "{problems}");
        refuses(&client, denied, Duration::from_secs(1))?;
        answers(&client, open, Duration::from_secs(1))?;

        // What was changed meanwhile comes into force, by lists made anew: the API server has forgotten.
        mesh.objects().remove("authorizationpolicy-shop-nobody")?;
        mesh.objects().put_policy("shop", "nobody-else", &NOBODY.replace("app: server", "app: other"))?;
        api.faults().restart()?;
        answers(&client, denied, RECOVERED)?;
        refuses(&client, open, RECOVERED)?;
        connected(mesh, true, RECOVERED)?;
        let relists = mesh.agent(Side::A)?.metrics(mesh.node(Side::A))?.sum("mesh_source_relists_total", &[]);
        ensure!(relists > 0.0, "the watches were resumed although the API server had forgotten");

        // An agent that starts anew reads all of it.
        let agent = mesh.take_agent(Side::B)?.kill_and_restart(mesh.node(Side::B))?;
        mesh.replace_agent(Side::B, agent);
        mesh.ready(Side::B)?;
        mesh.captured(&server)?;
        answers(&client, denied, IN_FORCE_WITHIN)?;
        refuses(&client, open, IN_FORCE_WITHIN)
    })
}
