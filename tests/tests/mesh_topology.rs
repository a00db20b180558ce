//! The harness itself, without any agent: what the other suites stand on.

// Tests may panic: that is how they fail.
#![allow(clippy::panic, clippy::indexing_slicing)]

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::leftovers;
use mesh_tests::topology::{LINK, Side, Topology};
use mesh_tests::wire::Capture;
use mesh_tests::{bpf, http};

const LONG_ENOUGH: Duration = Duration::from_secs(30);

fn json_line(text: &str) -> Result<serde_json::Value> {
    Ok(serde_json::from_str(text.lines().last().unwrap_or_default())?)
}

#[test]
fn pods_reach_each_other_over_both_families_and_the_wire_is_seen() -> Result<()> {
    let topology = Topology::two_nodes()?;
    let client = topology.node(Side::A).pod("client")?;
    let server = topology.node(Side::B).pod("server")?;
    let neighbour = topology.node(Side::A).pod("neighbour")?;
    let _server = server.sample_server("http", 8080, &["--name", "web"])?;
    let _neighbour = neighbour.sample_server("http", 8080, &["--name", "next-door"])?;
    let capture = Capture::start(topology.node(Side::A).netns(), LINK)?;
    for (pod, name) in [(&server, "web"), (&neighbour, "next-door")] {
        for (own, ip) in client.ips().into_iter().zip(pod.ips()) {
            let response = http::get(client.netns(), SocketAddr::new(ip, 8080), "/marker-in-clear")?;
            let body = json_line(&response.body)?;
            ensure!(response.status == 200 && body["app"] == name && body["client"] == own.to_string(), "{response:?}");
        }
    }
    let frames = capture.stop()?;
    // Request and answer name it, for each family; the neighbour's traffic does not leave the node.
    assert_eq!(frames.containing(b"marker-in-clear"), 4);
    assert_eq!(frames.bytes_by_port().keys().collect::<Vec<_>>(), [&8080]);
    assert_eq!(bpf::attached_to_cgroup(topology.node(Side::A).cgroup())?, 0);
    assert_eq!(bpf::attached_to_netns(client.netns())?, 0);
    Ok(())
}

#[test]
fn what_a_run_makes_is_found_while_it_lives_and_gone_after() -> Result<()> {
    leftovers::nothing_left()?;
    let topology = Topology::two_nodes()?;
    let pod = topology.node(Side::B).pod("app")?;
    let server = pod.sample_server("echo", 7000, &[])?;
    let found = format!("{:#}", leftovers::nothing_left().expect_err("there is a run"));
    for part in [&format!("Process({})", server.pid()), "Mount", "Netns", "Cgroup", "Folder"] {
        ensure!(found.contains(part), "{part} not in {found}");
    }
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _all = (server, pod, topology);
        panic!("as a failing test does");
    }));
    ensure!(outcome.is_err());
    leftovers::nothing_left()
}

#[test]
fn sample_applications_do_what_they_say() -> Result<()> {
    let topology = Topology::two_nodes()?;
    let client = topology.node(Side::A).pod("client")?;
    let server = topology.node(Side::B).pod("server")?;
    let bytes = "3000000";
    let mut servers = Vec::new();
    for (port, kind) in (7000..).zip(["echo", "greeter", "sink", "after-eof", "early-fin", "reset", "transfer"]) {
        servers.push(server.sample_server(kind, port, &["--bytes", bytes])?);
    }
    let cases: [(&str, u16, &[&str], &str, &str); 9] = [
        ("dial", 7000, &["--count", "20", "--every-ms", "1"], "ok", "20"),
        ("churn", 7000, &["--count", "200", "--parallel", "4", "--per-second", "2000"], "ok", "200"),
        ("burst", 7000, &["--count", "300"], "ok", "300"),
        ("probe", 7001, &[], "text", "\"220 greeter ready\\r\\n\""),
        ("shout", 7002, &["--count", "50", "--bytes", "100"], "failed", "0"),
        ("half-close", 7003, &["--bytes", bytes], "intact", bytes),
        ("late", 7004, &["--bytes", bytes], "sent", bytes),
        ("probe", 7005, &["--say", "x"], "read", "\"ConnectionReset\""),
        ("transfer", 7006, &["--bytes", bytes], "intact", bytes),
    ];
    for (number, (kind, port, arguments, field, expected)) in cases.into_iter().enumerate() {
        let to = SocketAddr::new(server.ips()[number % 2], port);
        let answer = client.ask(kind, to, arguments, LONG_ENOUGH)?;
        let found = answer[field].to_string();
        ensure!(found == expected, "{kind}: {answer}");
    }
    Ok(())
}
