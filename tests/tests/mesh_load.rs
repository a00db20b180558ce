//! Many connections at once: none lost, nothing left behind.

// Tests may panic: that is how they fail.
#![allow(clippy::panic, clippy::indexing_slicing)]

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::mesh::{Mesh, scenario};
use mesh_tests::topology::Side;
use mesh_tests::{bpf, scale, wait};
use nix::sys::signal::Signal;

const WITHIN: Duration = Duration::from_secs(180);
/// What memory may grow by after a burst has ended: buffers that allocators keep, not connections.
const RSS_SLACK_BYTES: u64 = 12 << 20;
/// Open files that a pool of tunnels may keep: for each of at most four workers eight connections that carry one
/// tunnel at a time (the agent's `raw_per_peer`), and some that are shared.
const FILES_SLACK: usize = 4 * 8 + 8;

/// What an agent holds: kernel map entries, open files and memory.
#[derive(Debug)]
struct Held {
    entries: usize,
    files: usize,
    rss_bytes: u64,
}

fn held(mesh: &Mesh, side: Side) -> Result<Held> {
    let process = mesh.agent(side)?.process();
    Ok(Held {
        entries: bpf::map_entries(mesh.node(side).bpffs())?.values().sum(),
        files: process.open_files()?,
        rss_bytes: process.rss_bytes()?,
    })
}

/// Waits until both agents hold about what they held `before`.
fn settled(mesh: &Mesh, before: &[Held]) -> Result<()> {
    for (side, before) in Side::BOTH.into_iter().zip(before) {
        wait::until("what the connections took is given back", Duration::from_secs(60), || {
            let now = held(mesh, side)?;
            let live = mesh.agent(side)?.metrics(mesh.node(side))?.sum("mesh_connections_live", &[]);
            let given_back = live == 0.0
                && now.entries <= before.entries
                && now.files <= before.files + FILES_SLACK
                && now.rss_bytes <= before.rss_bytes + RSS_SLACK_BYTES;
            wait::holds(given_back, || format!("{}: before {before:?}, now {now:?}, {live} live", side.node_name()))
        })?;
    }
    Ok(())
}

#[test]
fn a_burst_of_2000_connections_loses_none_and_leaves_nothing() -> Result<()> {
    scenario(|mesh| {
        let (client, server) = mesh.shop()?;
        let _echo = server.sample_server("echo", 7000, &[])?;
        let to = SocketAddr::new(server.ip(), 7000);
        // A first burst takes what the process keeps for ever: threads' stacks, arenas, warm caches.
        let answer = client.ask("burst", to, &["--count", "2000"], WITHIN)?;
        ensure!(answer["ok"] == 2000, "{answer}");
        wait::until("the first burst has ended", WITHIN, || {
            let live = mesh.agent(Side::B)?.metrics(mesh.node(Side::B))?.sum("mesh_connections_live", &[]);
            wait::holds(live == 0.0, || format!("{live} live"))
        })?;
        let before = [held(mesh, Side::A)?, held(mesh, Side::B)?];
        let answer = client.ask("burst", to, &["--count", "2000"], WITHIN)?;
        ensure!(answer["ok"] == 2000, "{answer}");
        settled(mesh, &before)
    })
}

/// What the agents logged of connections that did not end in order.
fn troubles(mesh: &Mesh) -> Result<String> {
    let mut text = String::new();
    for side in Side::BOTH {
        let lines = mesh.agent(side)?.access_log()?;
        text.extend(lines.iter().filter(|line| line["outcome"] != "ok").map(|line| format!("{line}\n")));
    }
    Ok(text)
}

#[test]
fn short_connections_from_one_pod_to_50_destinations_all_succeed() -> Result<()> {
    scenario(|mesh| {
        let (client, server) = mesh.shop()?;
        let _echo = server.sample_server("echo", 7000, &["--ports", "50"])?;
        let before = [held(mesh, Side::A)?, held(mesh, Side::B)?];
        // In a long run 60,000 in 60 s, else a tenth of it at the same pace.
        let count: u64 = scale::pick(6_000, 60_000);
        let targets: Vec<String> = (7000..7050).map(|port| SocketAddr::new(server.ip(), port).to_string()).collect();
        let arguments = [
            "churn",
            "--to",
            &targets.join(","),
            "--count",
            &count.to_string(),
            "--parallel",
            "64",
            "--per-second",
            "1000",
        ];
        let answer = client.sample("churn", &arguments)?.answer(WITHIN)?;
        ensure!(answer["failed"] == 0, "{answer}\n{}", troubles(mesh)?);
        ensure!(answer["ok"] == count, "{answer}");
        settled(mesh, &before)
    })
}

#[test]
fn what_is_written_while_the_agent_is_stalled_arrives() -> Result<()> {
    scenario(|mesh| {
        let (client, server) = mesh.shop()?;
        let sink = server.sample_server("sink", 7002, &[])?;
        let to = SocketAddr::new(server.ip(), 7002);
        let count: usize = scale::pick(2_000, 10_000);
        // A tunnel that stands, so that the stall meets connections and not the first handshake.
        client.ask("shout", to, &["--count", "1", "--bytes", "100"], WITHIN)?;
        let agent = mesh.agent(Side::A)?.process();
        agent.signal(Signal::SIGSTOP)?;
        let arguments = ["--count", &count.to_string(), "--bytes", "100", "--parallel", "64"];
        let mut shout = client.ask_later("shout", to, &arguments)?;
        // Clients that all got through, or as many as the queue in front of the stalled agent takes.
        let through = shout.wait(Duration::from_secs(3));
        agent.signal(Signal::SIGCONT)?;
        drop(through);
        let answer = shout.answer(WITHIN)?;
        ensure!(answer["ok"] == count && answer["failed"] == 0, "{answer}");
        wait::until("every byte arrives", WITHIN, || {
            let lines = sink.lines()?;
            let bytes: u64 = lines.iter().filter_map(|line| line["ended"]["bytes"].as_u64()).sum();
            let expected = 100 * (count as u64 + 1);
            wait::holds(bytes == expected, || format!("{bytes} of {expected} bytes in {} connections", lines.len()))
        })
        .context("connect, write, close against a stalled agent")
    })
}
