//! Another agent takes a node over while clients dial: nobody notices, whoever is denied stays denied, and a successor
//! that fails leaves the one that ran in charge.

// Tests may panic: that is how they fail.
#![allow(clippy::panic, clippy::indexing_slicing)]

mod left;
mod other_half;
mod traffic;

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::agent::{Agent, CaSource, READY_WITHIN};
use mesh_tests::mesh::{Mesh, scenario};
use mesh_tests::topology::Side;
use mesh_tests::{programs, wait};
use traffic::Traffic;

const WITHIN: Duration = Duration::from_secs(90);
/// Where a successor serves its metrics while its predecessor still serves its own.
const OTHER_METRICS: &str = "127.0.0.1:15021";
/// What a predecessor says whose successor has failed.
const GOES_ON: &str = "the other agent failed to take over; this one goes on";

/// The agent's own programs, and others (see `--kernel-half`).
const OWN: &str = "own";
const TWIN: &str = "twin";

/// Starts another agent of the same instance, with these programs, beside the one that runs; it is not ready yet.
fn another(mesh: &Mesh, side: Side, name: &str, half: &str) -> Result<Agent> {
    let metrics = if name == "agent-2" { OTHER_METRICS } else { "127.0.0.1:15022" };
    mesh.beside(side, name, &[("--metrics", metrics), ("--kernel-half", half)])
}

/// Has the agent of one node succeeded by another; gives the one that was succeeded.
fn succeed(mesh: &mut Mesh, side: Side, name: &str, half: &str) -> Result<Agent> {
    let successor = another(mesh, side, name, half)?;
    mesh.succeed(side, successor)
}

/// Whether the agent of a node carries connections.
fn carries(mesh: &Mesh, side: Side) -> Result<()> {
    mesh.logged(side, "a connection", |line| line["outcome"] == "ok" && line["security"] == "mutual_tls").map(drop)
}

/// Waits until an agent has said something.
fn says(agent: &Agent, what: &str) -> Result<()> {
    wait::until(&format!("it says `{what}`"), READY_WITHIN, || wait::holds(agent.log().contains(what), || agent.log()))
}

fn upgrade(side: Side, half: &str) -> Result<()> {
    scenario(|mesh| {
        let traffic = Traffic::start(mesh)?;
        let predecessor = succeed(mesh, side, "agent-2", half)?;
        carries(mesh, side)?;
        traffic.unharmed()?;
        mesh.ends_well(predecessor, &[])?;
        left::one_agents_pins(mesh, side)?;
        ensure!(left::twin_runs(mesh, side)? == (half == TWIN), "the wrong programs are in force");
        let status = mesh.agent(side)?.status(mesh.node(side))?;
        ensure!(status["node"] == side.node_name(), "{status}");
        Ok(())
    })
}

#[test]
fn a_restart_beside_the_agent_that_runs_harms_no_connection() -> Result<()> {
    upgrade(Side::A, OWN)
}

#[test]
fn an_upgrade_to_other_programs_on_the_clients_node_harms_no_connection() -> Result<()> {
    upgrade(Side::A, TWIN)
}

#[test]
fn an_upgrade_to_other_programs_on_the_servers_node_harms_no_connection() -> Result<()> {
    upgrade(Side::B, TWIN)
}

#[test]
fn a_successor_is_succeeded_in_its_turn() -> Result<()> {
    scenario(|mesh| {
        let traffic = Traffic::start(mesh)?;
        let first = succeed(mesh, Side::A, "agent-2", TWIN)?;
        // At once: while the first one still serves what is queued.
        let second = succeed(mesh, Side::A, "agent-3", OWN)?;
        carries(mesh, Side::A)?;
        traffic.unharmed()?;
        mesh.ends_well(first, &[])?;
        mesh.ends_well(second, &[])?;
        left::one_agents_pins(mesh, Side::A)
    })
}

/// A successor that is killed after it has said `moment`. What was on its way to it may be lost with it; afterwards
/// everything is as if it had never been.
fn dies(moment: &str) -> Result<()> {
    scenario(|mesh| {
        mesh.expect_complaint(GOES_ON);
        let (client, server) = mesh.shop()?;
        let _echo = server.sample_server("echo", 7000, &[])?;
        let to = SocketAddr::new(server.ip(), 7000);
        let open = client.ask_later("chat", to, &["--every-ms", "20", "--count", "300"])?;
        for side in Side::BOTH {
            let successor = another(mesh, side, "agent-2", TWIN)?;
            says(&successor, moment)?;
            successor.kill()?;
            says(mesh.agent(side)?, GOES_ON)?;
            let answer = client.ask("churn", to, &["--count", "200", "--parallel", "4"], WITHIN)?;
            ensure!(answer["failed"] == 0, "{}: {answer}", side.node_name());
            carries(mesh, side)?;
            let status = mesh.agent(side)?.status(mesh.node(side))?;
            ensure!(status["node"] == side.node_name(), "{status}");
            // It writes again.
            let late = mesh.pod(side, &format!("shop/late-on-{}", side.node_name()))?;
            mesh.captured(&late)?;
            ensure!(!left::twin_runs(mesh, side)?, "the programs of the one that failed are in force");
        }
        let open = open.answer(WITHIN)?;
        ensure!(open["failed"] == 0 && open["ok"] == 300, "the open connection failed: {open}");
        for side in Side::BOTH {
            let predecessor = succeed(mesh, side, "agent-3", TWIN)?;
            mesh.ends_well(predecessor, &[GOES_ON])?;
        }
        Ok(())
    })
}

#[test]
fn a_successor_that_asks_and_does_nothing_loses_its_mandate() -> Result<()> {
    scenario(|mesh| {
        mesh.expect_complaint(GOES_ON);
        let (client, server) = mesh.shop()?;
        let _echo = server.sample_server("echo", 7000, &[])?;
        let agent = mesh.agent(Side::A)?;
        let socket = agent.state().join("handover.sock");
        let mode = std::fs::metadata(&socket)?.permissions().mode();
        ensure!(mode & 0o777 == 0o600, "{mode:o}");
        let ask = |instance: &str| -> Result<(UnixStream, String)> {
            let mut stream = UnixStream::connect(&socket)?;
            writeln!(stream, r#"{{"say":"take_over","protocol":1,"instance":"{instance}"}}"#)?;
            let mut answer = String::new();
            BufReader::new(stream.try_clone()?).read_line(&mut answer)?;
            Ok((stream, answer))
        };
        let (_stranger, answer) = ask("another")?;
        ensure!(answer.contains("refused") && answer.contains(agent.instance()), "{answer}");
        let (stream, answer) = ask(agent.instance())?;
        ensure!(answer.contains("yielded"), "{answer}");
        let answer = client.ask("churn", SocketAddr::new(server.ip(), 7000), &["--count", "50"], WITHIN)?;
        ensure!(answer["failed"] == 0, "while it has yielded: {answer}");
        drop(stream);
        says(agent, GOES_ON)?;
        let late = mesh.pod(Side::A, "shop/late")?;
        mesh.captured(&late)?;
        mesh.expect_complaint("was refused");
        Ok(())
    })
}

#[test]
fn the_address_of_the_metrics_goes_over_with_the_node() -> Result<()> {
    scenario(|mesh| {
        let (client, server) = mesh.shop()?;
        let _echo = server.sample_server("echo", 7000, &[])?;
        let options = mesh.agent(Side::A)?.options().clone();
        let successor = Agent::start_program(mesh.node(Side::A), options, "agent-2", &programs::agent()?)?;
        says(&successor, "in charge of this node")?;
        let predecessor = mesh.replace_agent(Side::A, successor).context("there was no agent")?;
        mesh.ready(Side::A)?;
        let answer = client.ask("churn", SocketAddr::new(server.ip(), 7000), &["--count", "50"], WITHIN)?;
        ensure!(answer["failed"] == 0, "{answer}");
        let opened = mesh.agent(Side::A)?.metrics(mesh.node(Side::A))?.sum("mesh_connections_opened_total", &[]);
        ensure!(opened >= 50.0, "the metrics are not the successor's: {opened} connections");
        mesh.ends_well(predecessor, &[])
    })
}

#[test]
fn a_successor_that_dies_half_way_leaves_its_predecessor_in_charge() -> Result<()> {
    dies("enrolled")
}

#[test]
fn a_successor_that_dies_with_its_programs_in_force_leaves_its_predecessor_in_charge() -> Result<()> {
    dies("this agent's programs are in force")
}

#[test]
fn a_successor_that_dies_in_charge_gives_the_node_back() -> Result<()> {
    dies("in charge of this node")
}

#[test]
fn an_agent_with_another_state_directory_is_refused_while_one_runs() -> Result<()> {
    scenario(|mesh| {
        let (client, server) = mesh.shop()?;
        let _echo = server.sample_server("echo", 7000, &[])?;
        let node = mesh.node(Side::A);
        let state = node.folder().join("another-state");
        std::fs::create_dir_all(&state)?;
        let options = mesh.agent(Side::A)?.options().clone().with("--metrics", OTHER_METRICS);
        let mut options = options.with("--state-dir", &state.display().to_string());
        // The first agent has used the node's token up.
        options.ca = CaSource::Local;
        let other = Agent::start_program(node, options.clone(), "agent-2", &programs::agent()?)?;
        let said = other.gives_up()?;
        ensure!(said.contains("--state-dir") && said.contains("--instance"), "{said}");
        let answer = client.ask("churn", SocketAddr::new(server.ip(), 7000), &["--count", "50"], WITHIN)?;
        ensure!(answer["failed"] == 0, "{answer}");
        // Killed, it has it no longer.
        mesh.take_agent(Side::A)?.kill()?;
        let mut other = Agent::start_program(mesh.node(Side::A), options, "agent-3", &programs::agent()?)?;
        other.ready(mesh.node(Side::A), READY_WITHIN)?;
        mesh.replace_agent(Side::A, other);
        Ok(())
    })
}

#[test]
fn a_succeeded_agent_that_is_to_wait_ends_when_told() -> Result<()> {
    scenario(|mesh| {
        mesh.objects().put_namespace("shop", true)?;
        mesh.start_agent(Side::A)?;
        mesh.ready(Side::A)?;
        let options = mesh.take_agent(Side::A)?.stop()?.with("--wait-when-succeeded", "");
        mesh.run_agent(Side::A, options)?;
        mesh.ready(Side::A)?;
        let predecessor = succeed(mesh, Side::A, "agent-2", OWN)?;
        says(&predecessor, "waiting to be told to end")?;
        predecessor.stop().map(drop)
    })
}

#[test]
fn a_live_native_connection_is_counted_once_by_all_agents_together() -> Result<()> {
    /// Of the sample's `chat`, each way.
    const LINE_BYTES: f64 = 14.0;
    scenario(|mesh| {
        let neighbour = mesh.pod(Side::A, "shop/neighbour")?;
        let (client, _) = mesh.shop()?;
        mesh.captured(&neighbour)?;
        let _echo = neighbour.sample_server("echo", 7000, &[])?;
        let to = SocketAddr::new(neighbour.ip(), 7000);
        let chat = client.ask_later("chat", to, &["--every-ms", "5", "--count", "2000"])?;
        let counted = |agent: &Agent, mesh: &Mesh, metric: &str| -> Result<f64> {
            let metrics = agent.metrics(mesh.node(Side::A))?;
            Ok(metrics.sum(metric, &[("lane", "native"), ("reporter", "outbound")]))
        };
        let predecessor = succeed(mesh, Side::A, "agent-2", TWIN)?;
        let opened = counted(&predecessor, mesh, "mesh_connections_opened_total")?;
        let sent = counted(&predecessor, mesh, "mesh_sent_bytes_total")?;
        let chat = chat.answer(WITHIN)?;
        ensure!(chat["ok"] == 2000, "{chat}");
        mesh.logged(Side::A, "its end", |line| line["lane"] == "native" && line["bytes_sent"] == 2000 * 14)?;
        let agent = mesh.agent(Side::A)?;
        let opened = opened + counted(agent, mesh, "mesh_connections_opened_total")?;
        ensure!(opened == 1.0, "opened {opened} times");
        // What it carries while nobody is in charge is counted by nobody.
        let sent = (sent + counted(agent, mesh, "mesh_sent_bytes_total")?) / LINE_BYTES;
        ensure!((1200.0..=2000.0).contains(&sent), "{sent} lines of 2000");
        mesh.ends_well(predecessor, &[])
    })
}
