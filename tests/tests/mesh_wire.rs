//! What is on the link between the nodes, and whom each side takes the other for.

// Tests may panic: that is how they fail.
#![allow(clippy::panic, clippy::indexing_slicing)]

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::mesh::{Mesh, Workload, scenario};
use mesh_tests::topology::{LINK, Side};
use mesh_tests::wire::{Capture, Frames};

const WITHIN: Duration = Duration::from_secs(60);
const TUNNEL: u16 = 15008;
const TLS_1_3: u16 = 0x0304;

/// Strings that occur nowhere else.
fn markers(count: usize) -> Result<Vec<String>> {
    let mut random = vec![0; count * 8];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut random)?;
    Ok(random
        .chunks(8)
        .map(|chunk| format!("marker-{:016x}", u64::from_ne_bytes(chunk.try_into().unwrap_or_default())))
        .collect())
}

/// Lets `client` say each marker to `to` and hear it again, and gives what the link carried meanwhile.
fn said(mesh: &Mesh, client: &Workload, to: SocketAddr, markers: &[String]) -> Result<Frames> {
    let file = client.folder().join("markers");
    std::fs::write(&file, markers.join("\n"))?;
    let capture = Capture::start(mesh.node(Side::A).netns(), LINK)?;
    let answer = client.ask("say", to, &["--lines-file", &file.to_string_lossy()], WITHIN)?;
    ensure!(answer["ok"] == markers.len() && answer["failed"] == 0, "{answer}");
    capture.stop()
}

#[test]
fn the_link_carries_tls_1_3_on_15008_and_none_of_1000_markers() -> Result<()> {
    scenario(|mesh| {
        let (client, server) = mesh.shop()?;
        let service = mesh.service("shop/server", 80, 7000)?;
        let echo = server.sample_server("echo", 7000, &[])?;
        let targets = [service[0], service[1], SocketAddr::new(server.ip(), 7000), SocketAddr::new(server.ip6(), 7000)];
        for target in targets {
            let markers = markers(1000)?;
            let frames = said(mesh, &client, target, &markers)?;
            let found = markers.iter().filter(|marker| frames.containing(marker.as_bytes()) > 0).count();
            ensure!(found == 0, "{found} of 1000 markers of {target} were on the link in clear");
            ensure!(frames.containing(b"marker-") == 0, "part of a marker of {target} was on the link in clear");
            let ports = frames.bytes_by_port();
            ensure!(ports.keys().eq([&TUNNEL]), "bytes by port for {target}: {ports:?}");
        }
        let own: Vec<String> = client.ips().iter().map(ToString::to_string).collect();
        for line in echo.lines()? {
            let peer: SocketAddr = line["peer"].as_str().unwrap_or_default().parse()?;
            ensure!(own.contains(&peer.ip().to_string()), "the server saw {peer}, the client is {own:?}");
        }
        Ok(())
    })
}

#[test]
fn every_handshake_on_the_link_is_tls_1_3() -> Result<()> {
    scenario(|mesh| {
        mesh.objects().put_namespace("shop", true)?;
        let client = mesh.pod(Side::A, "shop/client")?;
        let server = mesh.pod(Side::B, "shop/server")?;
        let _echo = server.sample_server("echo", 7000, &[])?;
        // From before the agents run, so that the first handshake is seen.
        let capture = Capture::start(mesh.node(Side::A).netns(), LINK)?;
        mesh.start()?;
        mesh.captured(&client)?;
        mesh.captured(&server)?;
        let answer = client.ask("churn", SocketAddr::new(server.ip(), 7000), &["--count", "20"], WITHIN)?;
        ensure!(answer["ok"] == 20, "{answer}");
        let versions = capture.stop()?.tls_versions(TUNNEL);
        ensure!(versions.keys().eq([&TLS_1_3]), "ServerHello versions on the link: {versions:04x?}");
        Ok(())
    })
}

#[test]
fn a_pair_outside_the_mesh_is_left_alone() -> Result<()> {
    scenario(|mesh| {
        mesh.objects().put_namespace("plain", false)?;
        let client = mesh.pod(Side::A, "plain/client")?;
        let server = mesh.pod(Side::B, "plain/server")?;
        mesh.shop()?;
        let _echo = server.sample_server("echo", 7000, &[])?;
        let markers = markers(10)?;
        let frames = said(mesh, &client, SocketAddr::new(server.ip(), 7000), &markers)?;
        for marker in &markers {
            ensure!(frames.containing(marker.as_bytes()) > 0, "{marker} was not on the link");
        }
        ensure!(frames.bytes_by_port().keys().eq([&7000]), "{:?}", frames.bytes_by_port());
        Ok(())
    })
}

#[test]
fn both_sides_log_the_same_proven_identities() -> Result<()> {
    scenario(|mesh| {
        let (client, server) = mesh.shop()?;
        let service = mesh.service("shop/server", 80, 7000)?;
        let _echo = server.sample_server("echo", 7000, &[])?;
        let answer = client.ask("churn", service[0], &["--count", "1"], WITHIN)?;
        ensure!(answer["ok"] == 1, "{answer}");
        for (side, reporter) in [(Side::A, "outbound"), (Side::B, "inbound")] {
            let served = |line: &serde_json::Value| line["reporter"] == reporter && line["outcome"] == "ok";
            let line = mesh.logged(side, "the connection", served)?;
            ensure!(line["source"]["identity"] == "spiffe://cluster.local/ns/shop/sa/client", "{line}");
            ensure!(line["destination"]["identity"] == "spiffe://cluster.local/ns/shop/sa/server", "{line}");
            ensure!(line["security"] == "mutual_tls", "{line}");
        }
        Ok(())
    })
}
