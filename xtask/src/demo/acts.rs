//! What the demo shows, act by act; each looks for itself and fails when it does not see what it says.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use mesh_tests::mesh::Workload;
use mesh_tests::topology::{LINK, Side};
use mesh_tests::wait;
use mesh_tests::wire::{Capture, Frames};
use serde_json::Value;

use super::shop::Shop;
use super::show;

/// Where tunnels end.
const TUNNEL: u16 = 15008;
const TLS_1_3: u16 = 0x0304;
const MARKERS: usize = 20;

/// A visit to the shop, and what the agents wrote about it.
pub fn who_talks_to_whom(shop: &mut Shop) -> Result<()> {
    show::title("Who talks to whom, and under which identity");
    let url = format!("http://{}/", shop.front);
    show::command(&format!("curl {url}      (in the pod visitor)"));
    let page = shop.fetch(&shop.visitor, &url, "visit")?;
    for line in page.trim_end().lines() {
        show::line(line);
    }
    ensure!(page.contains("\"app\":\"shop-pay-pay\""), "the visit did not reach the last service");
    show::line("");
    show::line("The same visit in the access logs of the agents (the servers' side):");
    let mut seen = BTreeMap::new();
    for (side, count) in [(Side::A, 2), (Side::B, 2)] {
        wait::until("the visit is logged", mesh_tests::mesh::IN_FORCE_WITHIN, || {
            let inbound = inbound(shop, side)?;
            wait::holds(inbound.len() >= count, || format!("{} lines", inbound.len()))?;
            seen.insert(side.node_name(), inbound);
            Ok(())
        })?;
    }
    for (node, lines) in seen {
        for line in lines {
            ensure!(show::text(&line, "/security") == Some("mutual_tls"), "not mutual TLS: {line}");
            show::line(&format!("{node}: {}", show::connection(&line)));
        }
    }
    Ok(())
}

fn inbound(shop: &Shop, side: Side) -> Result<Vec<Value>> {
    let mut lines = shop.mesh.agent(side)?.access_log()?;
    lines.retain(|line| show::text(line, "/reporter") == Some("inbound"));
    Ok(lines)
}

/// Fetches pages whose paths are markers; gives what the link carried, and the markers.
fn marked(shop: &Shop, from: &Workload, to: &str, name: &str) -> Result<(Frames, Vec<String>)> {
    let markers: Vec<String> = (0..MARKERS).map(|n| format!("secret-{name}-{}-{n}", std::process::id())).collect();
    let capture = Capture::start(shop.mesh.node(Side::A).netns(), LINK)?;
    for marker in &markers {
        let page = shop.fetch(from, &format!("http://{to}/{marker}"), marker)?;
        ensure!(page.contains(marker.as_str()), "http://{to}/{marker}: {page}");
    }
    Ok((capture.stop()?, markers))
}

fn in_clear(frames: &Frames, markers: &[String]) -> usize {
    markers.iter().filter(|marker| frames.containing(marker.as_bytes()) > 0).count()
}

fn ports(frames: &Frames) -> String {
    let ports: Vec<String> =
        frames.bytes_by_port().iter().map(|(port, bytes)| format!("{bytes} bytes on port {port}")).collect();
    ports.join(", ")
}

/// The link between the nodes, looked at during both kinds of traffic.
pub fn what_is_on_the_wire(shop: &mut Shop) -> Result<()> {
    show::title("What is on the wire between the nodes");
    let (frames, markers) = marked(shop, &shop.visitor, &shop.front.to_string(), "shop")?;
    show::line(&format!("{MARKERS} visits to the shop: {} frames, {}", frames.len(), ports(&frames)));
    show::line(&format!("   {} of {MARKERS} secrets can be read", in_clear(&frames, &markers)));
    ensure!(in_clear(&frames, &markers) == 0, "secrets of the shop are on the wire in clear");
    ensure!(frames.bytes_by_port().keys().eq([&TUNNEL]), "the shop used other ports than {TUNNEL}");
    let versions = frames.tls_versions(TUNNEL);
    ensure!(versions.keys().all(|version| *version == TLS_1_3), "not TLS 1.3: {versions:04x?}");
    let (frames, markers) = marked(shop, &shop.report, &shop.ledger_at().to_string(), "legacy")?;
    show::line(&format!("{MARKERS} calls of the old pair: {} frames, {}", frames.len(), ports(&frames)));
    show::line(&format!("   {} of {MARKERS} secrets can be read", in_clear(&frames, &markers)));
    ensure!(in_clear(&frames, &markers) == MARKERS, "the capture missed what was sent in clear");
    Ok(())
}

/// A policy, a call that it refuses, and one that it allows.
pub fn a_denied_call(shop: &mut Shop) -> Result<()> {
    show::title("One denied call, and the rule that denied it");
    let spec = "  action: ALLOW\n  rules:\n  - sources:\n    \
                - {type: ServiceAccount, serviceAccount: {namespace: shop-cart, name: cart}}\n";
    shop.mesh.objects().put_policy("shop-pay", "only-the-cart", spec)?;
    show::line("AuthorizationPolicy shop-pay/only-the-cart: payments take calls from shop-cart/cart alone");
    let url = format!("http://{}/", shop.pay);
    show::command(&format!("curl {url}      (in the pod visitor)"));
    let mut attempt = 0;
    let answer = wait::until("the policy is in force", mesh_tests::mesh::IN_FORCE_WITHIN, || {
        attempt += 1;
        let answer = shop.fetch(&shop.visitor, &url, &format!("denied-{attempt}"))?;
        wait::holds(!answer.contains("\"app\""), || answer.clone())?;
        Ok(answer)
    })?;
    show::line(answer.trim_end());
    let line = shop.mesh.logged(Side::B, "the denial", |line| show::text(line, "/outcome") == Some("denied"))?;
    show::line(&show::connection(&line));
    show::line(&format!("   reason: {}", show::text(&line, "/reason").unwrap_or("-")));
    let page = shop.fetch(&shop.visitor, &format!("http://{}/", shop.front), "still-open")?;
    ensure!(page.contains("\"app\":\"shop-pay-pay\""), "the cart cannot pay any more: {page}");
    show::line("The cart still pays: a visit to the front goes through.");
    Ok(())
}

/// Two pods of one node talk without a proxy, also while their agent is dead.
pub fn neighbours(shop: &mut Shop) -> Result<()> {
    show::title("Two pods of one node: no proxy between them");
    let url = format!("http://{}/", shop.catalog);
    show::command(&format!("curl {url}      (in the pod visitor)"));
    let page = shop.fetch(&shop.visitor, &url, "neighbour")?;
    show::line(page.trim_end());
    ensure!(!page.trim().is_empty() && !page.contains("curl:"), "the catalog is not served: {page}");
    let native = |line: &Value| show::text(line, "/lane") == Some("native");
    let line = shop.mesh.logged(Side::A, "the visit", native)?;
    show::line(&show::connection(&line));
    show::line("   lane native: one TCP connection between the two; the kernel proved both ends");
    let agent = shop.mesh.take_agent(Side::A)?;
    show::line(&format!("node-a's agent (process {}) is killed.", agent.process().pid()));
    agent.kill()?;
    let page = shop.fetch(&shop.visitor, &url, "orphans")?;
    ensure!(!page.trim().is_empty() && !page.contains("curl:"), "neighbours need the agent: {page}");
    show::command(&format!("curl {url}      (in the pod visitor)"));
    show::line(page.trim_end());
    shop.mesh.start_agent(Side::A)?;
    shop.mesh.ready(Side::A)?;
    show::line("They went on; the agent is back.");
    Ok(())
}

/// The old pair joins by a label; neither program is restarted.
pub fn a_pod_joins_live(shop: &mut Shop) -> Result<()> {
    show::title("Two pods join, live, by a label");
    shop.mesh.objects().put_namespace("legacy", true)?;
    show::line("Namespace legacy gets the label mesh-agent.io/mode: enabled");
    shop.mesh.captured(&shop.report)?;
    shop.mesh.captured(&shop.ledger)?;
    let mut attempt = 0;
    wait::until("the old pair's calls are encrypted", mesh_tests::mesh::IN_FORCE_WITHIN, || {
        attempt += 1;
        let (frames, markers) = marked(shop, &shop.report, &shop.ledger_at().to_string(), &format!("joined{attempt}"))?;
        wait::holds(in_clear(&frames, &markers) == 0, || ports(&frames))?;
        show::line(&format!("{MARKERS} calls of the old pair: {} frames, {}", frames.len(), ports(&frames)));
        show::line(&format!("   0 of {MARKERS} secrets can be read; nothing was restarted"));
        Ok(())
    })?;
    let of_pair = |line: &Value| show::text(line, "/destination/namespace") == Some("legacy");
    let line = shop.mesh.logged(Side::B, "the pair's call", of_pair)?;
    show::line(&show::connection(&line));
    Ok(())
}

/// What the agents counted.
pub fn metrics(shop: &Shop) -> Result<()> {
    show::title("The same in numbers: /metrics of both agents");
    for side in Side::BOTH {
        let node = shop.mesh.node(side);
        let metrics = shop.mesh.agent(side)?.metrics(node)?;
        show::line(node.name());
        let mut closed: BTreeMap<String, f64> = BTreeMap::new();
        for sample in metrics.select("mesh_connections_closed_total", &[("reporter", "inbound")]) {
            let label = |name: &str| sample.labels.get(name).map_or("-", String::as_str);
            let pair = format!(
                "{}/{} -> {}/{}, {}, {}",
                label("source_namespace"),
                label("source_workload"),
                label("destination_namespace"),
                label("destination_workload"),
                label("security"),
                label("outcome"),
            );
            *closed.entry(pair).or_default() += sample.value;
        }
        for (pair, count) in &closed {
            show::line(&format!("   {count:>5} connections {pair}"));
        }
        if closed.is_empty() {
            bail!("{} has counted no connection", node.name());
        }
        for name in ["mesh_denials_total", "mesh_tunnels_open", "mesh_pods"] {
            for sample in metrics.select(name, &[]) {
                let labels: Vec<String> = sample.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
                show::line(&format!("   {name} {} {}", labels.join(" "), sample.value));
            }
        }
        let expiry = metrics.select("mesh_certificate_expiry_timestamp_seconds", &[]).count();
        show::line(&format!("   {expiry} certificates held"));
    }
    Ok(())
}
