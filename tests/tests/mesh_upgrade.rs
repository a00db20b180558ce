//! Another agent takes a node over while clients dial: nobody notices, whoever is denied stays denied, and a successor
//! that fails leaves the one that ran in charge.

// Tests may panic: that is how they fail.
#![allow(clippy::panic, clippy::indexing_slicing)]

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::agent::{Agent, READY_WITHIN};
use mesh_tests::mesh::{Mesh, Workload, scenario};
use mesh_tests::process::Process;
use mesh_tests::scale;
use mesh_tests::topology::Side;
use mesh_tests::{programs, wait};

const WITHIN: Duration = Duration::from_secs(90);
/// Where a successor serves its metrics while its predecessor still serves its own.
const OTHER_METRICS: &str = "127.0.0.1:15021";
const NOT_DENIED: &str =
    "  action: DENY\n  rules:\n  - sources:\n    - {type: ServiceAccount, serviceAccount: {name: denied}}\n";
/// A predecessor that was succeeded ends within this: 5 s of quiet, 30 s of grace at the most, and a busy machine.
const ENDS_WITHIN: Duration = Duration::from_secs(60);

/// What a predecessor says whose successor has failed.
const GOES_ON: &str = "the other agent failed to take over; this one goes on";

/// Clients at work: one that is served, one that a policy denies, and a stranger before a strict pod.
struct Traffic {
    served: Process,
    denied: Process,
    stranger: Process,
    open: Process,
    _servers: [Process; 2],
}

impl Traffic {
    /// Makes the pods and objects and starts the agents and the clients.
    fn start(mesh: &mut Mesh) -> Result<Self> {
        mesh.objects().put_namespace("plain", false)?;
        mesh.objects().put_namespace("vault", true)?;
        mesh.objects().put_peer_mode("vault", "Strict")?;
        mesh.objects().put_policy("shop", "not-denied", NOT_DENIED)?;
        let stranger = mesh.pod(Side::A, "plain/stranger")?;
        let denied = mesh.pod(Side::A, "shop/denied")?;
        let safe = mesh.pod(Side::B, "vault/safe")?;
        let (client, server) = mesh.shop()?;
        mesh.captured(&denied)?;
        mesh.captured(&safe)?;
        let servers = [server.sample_server("echo", 7000, &[])?, safe.sample_server("echo", 7000, &[])?];
        let to = SocketAddr::new(server.ip(), 7000);
        let dials = scale::pick(1600_u32, 6000);
        let dial = |from: &Workload, to: SocketAddr, every: u32| {
            let (every, count) = (every.to_string(), (dials * 5 / every).to_string());
            from.ask_later("dial", to, &["--every-ms", &every, "--count", &count])
        };
        let chats = (dials / 4 + 100).to_string();
        let traffic = Self {
            open: client.ask_later("chat", to, &["--every-ms", "20", "--count", &chats])?,
            served: dial(&client, to, 5)?,
            denied: dial(&denied, to, 25)?,
            stranger: dial(&stranger, SocketAddr::new(safe.ip(), 7000), 25)?,
            _servers: servers,
        };
        for dialler in [&traffic.served, &traffic.denied, &traffic.stranger] {
            let printed = || dialler.stdout().lines().count();
            wait::until("the diallers dial", WITHIN, || wait::holds(printed() > 10, || dialler.stdout()))?;
        }
        Ok(traffic)
    }

    /// Waits for the clients' end; not one connection may have been lost, nor one let through.
    fn unharmed(self) -> Result<()> {
        let served = self.served.answer(WITHIN)?;
        let dialled = served["ok"].as_u64().context("no count")? + served["failed"].as_u64().context("no count")?;
        ensure!(served["failed"] == 0 && dialled >= 1600, "new connections failed: {served}");
        let open = self.open.answer(WITHIN)?;
        ensure!(open["failed"] == 0 && open["ok"].as_u64() > Some(400), "the open connection failed: {open}");
        let denied = self.denied.answer(WITHIN)?;
        ensure!(denied["ok"] == 0, "a denied client was let through: {denied}");
        let stranger = self.stranger.answer(WITHIN)?;
        ensure!(stranger["ok"] == 0, "a strict pod took plaintext: {stranger}");
        Ok(())
    }
}

/// Starts another agent of the same instance beside the one that runs; it is not ready yet.
fn another(mesh: &Mesh, side: Side, name: &str) -> Result<Agent> {
    let metrics = if name == "agent-2" { OTHER_METRICS } else { "127.0.0.1:15022" };
    let options = mesh.agent(side)?.options().clone().with("--metrics", metrics);
    Agent::start_program(mesh.node(side), options, name, &programs::agent()?)
}

/// Has the agent of one node succeeded by another; gives the one that was succeeded.
fn succeed(mesh: &mut Mesh, side: Side, name: &str) -> Result<Agent> {
    let mut successor = another(mesh, side, name)?;
    successor.ready(mesh.node(side), READY_WITHIN)?;
    mesh.replace_agent(side, successor).context("there was no agent")
}

/// Whether the agent of a node carries connections.
fn carries(mesh: &Mesh, side: Side) -> Result<()> {
    mesh.logged(side, "a connection", |line| line["outcome"] == "ok" && line["security"] == "mutual_tls").map(drop)
}

/// Waits until an agent has said something.
fn says(agent: &Agent, what: &str) -> Result<()> {
    wait::until(&format!("it says `{what}`"), READY_WITHIN, || wait::holds(agent.log().contains(what), || agent.log()))
}

/// A predecessor ends by itself, without a complaint but those that are `expected`.
fn ends_well(predecessor: Agent, expected: &[&str]) -> Result<()> {
    let said = predecessor.ends(ENDS_WITHIN)?;
    let worrying = said.lines().filter(|line| line.contains(" WARN ") || line.contains(" ERROR "));
    let complaints: Vec<&str> = worrying.filter(|line| !expected.iter().any(|part| line.contains(part))).collect();
    ensure!(complaints.is_empty(), "{complaints:?}");
    Ok(())
}

fn upgrade(side: Side) -> Result<()> {
    scenario(|mesh| {
        let traffic = Traffic::start(mesh)?;
        let predecessor = succeed(mesh, side, "agent-2")?;
        carries(mesh, side)?;
        traffic.unharmed()?;
        ends_well(predecessor, &[])?;
        let status = mesh.agent(side)?.status(mesh.node(side))?;
        ensure!(status["node"] == side.node_name(), "{status}");
        Ok(())
    })
}

#[test]
fn an_upgrade_on_the_clients_node_harms_no_connection() -> Result<()> {
    upgrade(Side::A)
}

#[test]
fn an_upgrade_on_the_servers_node_harms_no_connection() -> Result<()> {
    upgrade(Side::B)
}

#[test]
fn a_successor_is_succeeded_in_its_turn() -> Result<()> {
    scenario(|mesh| {
        let traffic = Traffic::start(mesh)?;
        let first = succeed(mesh, Side::A, "agent-2")?;
        // At once: while the first one still serves what is queued.
        let second = succeed(mesh, Side::A, "agent-3")?;
        carries(mesh, Side::A)?;
        traffic.unharmed()?;
        ends_well(first, &[])?;
        ends_well(second, &[])
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
            let successor = another(mesh, side, "agent-2")?;
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
        }
        let open = open.answer(WITHIN)?;
        ensure!(open["failed"] == 0 && open["ok"] == 300, "the open connection failed: {open}");
        for side in Side::BOTH {
            ends_well(succeed(mesh, side, "agent-3")?, &[GOES_ON])?;
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
        ends_well(predecessor, &[])
    })
}

#[test]
fn a_successor_that_dies_half_way_leaves_its_predecessor_in_charge() -> Result<()> {
    dies("enrolled")
}

#[test]
fn a_successor_that_dies_in_charge_gives_the_node_back() -> Result<()> {
    dies("in charge of this node")
}
