//! What may not leave the mesh, end to end: from the object to the log line, the metrics, `explain`, and the time in
//! which no agent runs.

// Tests may panic: that is how they fail.
#![allow(clippy::panic, clippy::indexing_slicing)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::mesh::{IN_FORCE_WITHIN, Mesh, Workload, scenario};
use mesh_tests::topology::Side;
use mesh_tests::{raw, wait};
use serde_json::Value;

const WITHIN: Duration = Duration::from_secs(30);
const REFUSE: &str = "  egress: {default: refuse}\n";
const DNS: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: kube-dns, namespace: kube-system}\nspec:\n  \
                   clusterIP: 10.96.0.10\n  ports: [{name: dns, port: 53, protocol: UDP}]\n---\n\
                   apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: kube-dns-1, namespace: \
                   kube-system, labels: {kubernetes.io/service-name: kube-dns}}\naddressType: IPv4\n\
                   ports: [{name: dns, port: 53, protocol: UDP}]\nendpoints: [{addresses: [192.0.2.53]}]\n";

/// Every way of sending datagrams to `to` ends as `outcome`.
fn sends(from: &Workload, to: SocketAddr, outcome: &str) -> Result<()> {
    wait::until(&format!("datagrams to {to}: {outcome}"), IN_FORCE_WITHIN, || {
        let found = from.ask("send", to, &[], WITHIN)?;
        let ways = found.as_object().context("an object")?;
        wait::holds(ways.len() > 5 && ways.values().all(|one| one == outcome), || found.to_string())
    })
}

fn connects(from: &Workload, to: SocketAddr, outcome: &str) -> Result<()> {
    wait::until(&format!("connections to {to}: {outcome}"), IN_FORCE_WITHIN, || {
        let found = from.ask("probe", to, &["--say", "x"], WITHIN)?;
        wait::holds(found["connect"] == outcome, || found.to_string())
    })
}

struct World {
    client: Arc<Workload>,
    server: SocketAddr,
    outside: SocketAddr,
    _apps: [mesh_tests::process::Process; 2],
}

fn world(mesh: &mut Mesh) -> Result<World> {
    mesh.objects().put_namespace("plain", false)?;
    mesh.objects().put("dns", DNS)?;
    let outside = mesh.pod(Side::B, "plain/outside")?;
    let (client, server) = mesh.shop()?;
    let apps = [server.sample_server("echo", 7000, &[])?, outside.sample_server("echo", 7000, &[])?];
    let (server, outside) = (SocketAddr::new(server.ip(), 7000), SocketAddr::new(outside.ip(), 7000));
    Ok(World { client, server, outside, _apps: apps })
}

fn explained(mesh: &Mesh, from: &Workload, to: SocketAddr) -> Result<Value> {
    let (from, ip, port) = (from.object().display_name(), to.ip().to_string(), to.port().to_string());
    wait::until("the kernel keeps up with the snapshot", IN_FORCE_WITHIN, || {
        let (_, explanation) = mesh.agent(Side::A)?.explain(&[&from, &ip, &port])?;
        wait::holds(explanation["kernel"]["behind"] == Value::Array(Vec::new()), || format!("{explanation:#}"))?;
        Ok(explanation)
    })
}

#[test]
fn what_is_refused_names_its_cause_in_log_metrics_and_explain() -> Result<()> {
    scenario(|mesh| {
        let World { client, server, outside, _apps } = world(mesh)?;
        connects(&client, outside, "ok")?;
        sends(&client, outside, "sent")?;
        mesh.objects().put_peer_policy("shop", "inside", REFUSE)?;
        connects(&client, outside, "ConnectionRefused")?;
        sends(&client, outside, "ConnectionRefused")?;
        connects(&client, server, "ok")?;
        sends(&client, server, "sent")?;
        for admitted in ["10.96.0.10:53", "192.0.2.53:53", "169.254.20.10:53"] {
            sends(&client, admitted.parse()?, "sent")?;
        }

        for reason in ["connect()", "connect() of UDP", "sendmsg()"] {
            let reason = format!("not in the mesh; refused by the kernel at {reason}");
            let line = mesh.logged(Side::A, &reason, |line| line["reason"] == reason.as_str())?;
            ensure!(line["outcome"] == "denied" && line["rule"] == "shop/inside", "{line}");
            ensure!(line["source"]["workload"] == "client", "{line}");
            ensure!(line["destination"]["ip"] == outside.ip().to_string(), "{line}");
        }
        let metrics = mesh.agent(Side::A)?.metrics(mesh.node(Side::A))?;
        let denials = metrics.sum("mesh_denials_total", &[("policy", "shop/inside"), ("outcome", "denied")]);
        ensure!(denials >= 3.0, "{denials} denials are counted for shop/inside: {:#?}", metrics.samples());
        for exit in ["connect_egress", "connect_udp_egress", "sendmsg_egress", "datagram_admitted"] {
            let count = metrics.sum("mesh_kernel_exits_total", &[("exit", exit)]);
            ensure!(count >= 1.0, "{exit} is not counted");
        }

        let explanation = explained(mesh, &client, outside)?;
        let path = &explanation["paths"][0];
        ensure!(explanation["verdict"] == "refused" && path["rule"] == "shop/inside", "{explanation:#}");
        ensure!(path["exits"][0] == "connect_egress", "{explanation:#}");
        let explanation = explained(mesh, &client, "169.254.20.10:53".parse()?)?;
        let said = explanation["paths"][0]["egress"].as_str().unwrap_or_default();
        ensure!(said.ends_with("admitted by <node-local-dns>"), "{explanation:#}");

        mesh.objects().remove("peerpolicy-shop-inside")?;
        connects(&client, outside, "ok")?;
        sends(&client, outside, "sent")
    })
}

#[test]
fn a_killed_agent_lets_nothing_out_and_neither_does_the_next_one() -> Result<()> {
    scenario(|mesh| {
        mesh.objects().put_peer_policy("shop", "inside", REFUSE)?;
        let World { client, outside, _apps, .. } = world(mesh)?;
        connects(&client, outside, "ConnectionRefused")?;
        sends(&client, outside, "ConnectionRefused")?;
        let options = mesh.take_agent(Side::A)?.kill()?;
        connects(&client, outside, "ConnectionRefused")?;
        sends(&client, outside, "ConnectionRefused")?;
        sends(&client, "169.254.20.10:53".parse()?, "sent")?;
        // While the next one comes up, at every moment.
        let mut trying =
            client.ask_later("churn", outside, &["--count", "300", "--parallel", "1", "--per-second", "60"])?;
        mesh.run_agent(Side::A, options)?;
        mesh.ready(Side::A)?;
        sends(&client, outside, "ConnectionRefused")?;
        let _ = trying.check_running();
        let answer = trying.answer(WITHIN)?;
        ensure!(answer["ok"] == 0, "some got out while the agent came back: {answer}");
        Ok(())
    })
}

const GUARD: &str = "  mode: Strict\n  egress: {default: refuse}\n  guard: true\n";
/// A Service whose only endpoint is outside the mesh: the agent carries connections there.
const LEGACY: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: legacy, namespace: shop}\nspec:\n  \
                      clusterIP: 10.96.0.77\n  ports: [{name: tcp, port: 80, protocol: TCP, targetPort: 7000}]\n---\n\
                      apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: legacy-1, namespace: \
                      shop, labels: {kubernetes.io/service-name: legacy}}\naddressType: IPv4\n\
                      ports: [{name: tcp, port: 7000, protocol: TCP}]\nendpoints: [{addresses: [ADDRESS]}]\n";

/// What the agent's own sockets carry, and what no socket does.
#[test]
fn a_guard_lets_the_mesh_through_and_nothing_made_by_hand() -> Result<()> {
    scenario(|mesh| {
        let World { client, server, outside, _apps } = world(mesh)?;
        mesh.objects().put("legacy", &LEGACY.replace("ADDRESS", &outside.ip().to_string()))?;
        mesh.objects().put_peer_policy("shop", "guard", GUARD)?;
        connects(&client, outside, "ConnectionRefused")?;
        let legacy = "10.96.0.77:80".parse()?;
        let works = || -> Result<()> {
            for to in [server, legacy] {
                connects(&client, to, "ok")?;
                let found = client.ask("churn", to, &["--count", "40", "--parallel", "4"], WITHIN)?;
                ensure!(found["ok"] == 40, "{to}: {found}");
            }
            Ok(())
        };
        let by_hand = || {
            let from = SocketAddr::new(client.ip(), 4321);
            let packet = raw::ip(from.ip(), outside.ip(), raw::UDP, &raw::udp(from, outside, b"out"));
            client.netns().run(|| raw::send_ip(outside.ip(), &packet))
        };
        let exits = |mesh: &Mesh, exit: &str| -> Result<f64> {
            let metrics = mesh.agent(Side::A)?.metrics(mesh.node(Side::A))?;
            Ok(metrics.sum("mesh_kernel_exits_total", &[("exit", exit)]))
        };
        // The guard comes a moment after the hooks: it is loaded for each pod.
        let refused = |mesh: &Mesh| {
            wait::until("a packet made by hand is refused", IN_FORCE_WITHIN, || {
                by_hand()??;
                wait::holds(exits(mesh, "guard_outside")? >= 1.0, || "it is not counted".to_owned())
            })
        };
        refused(mesh)?;
        works()?;
        let reason = "a packet to what is not in the mesh, refused by the pod's guard";
        let line = mesh.logged(Side::A, reason, |line| line["reason"] == reason)?;
        ensure!(line["outcome"] == "denied" && line["rule"] == "shop/guard", "{line}");
        ensure!(line["source"]["workload"] == "client", "{line}");
        for (exit, at_least) in [("guard_segment", 10.0), ("guard_entered", 10.0)] {
            let count = exits(mesh, exit)?;
            ensure!(count >= at_least, "{exit}: {count}");
        }
        let own = exits(mesh, "guard_no_socket")?;
        ensure!(own == 0.0, "the mesh's own segments are refused: {own}");
        let metrics = mesh.agent(Side::A)?.metrics(mesh.node(Side::A))?;
        ensure!(metrics.sum("mesh_pods", &[("stage", "captured"), ("reason", "guard")]) == 0.0, "a guard is missing");
        let options = mesh.take_agent(Side::A)?.kill()?;
        mesh.run_agent(Side::A, options)?;
        mesh.ready(Side::A)?;
        refused(mesh)?;
        works()
    })
}
