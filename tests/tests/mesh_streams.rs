//! One connection at a time: what an application may rely on without the mesh, it may rely on with it.

// Tests may panic: that is how they fail.
#![allow(clippy::panic, clippy::indexing_slicing)]

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::mesh::scenario;
use mesh_tests::pod::is_refused;
use mesh_tests::scale;

const WITHIN: Duration = Duration::from_secs(60);

/// Far above what a tunnel adds, far below any wait for a client that stays silent.
const NO_WAIT_MS: f64 = 250.0;
/// A refusal that only the other node can know reaches the client as a reset within this; one busy machine
/// runs both nodes.
const REFUSED_MS: f64 = 250.0;

#[test]
fn a_server_that_speaks_first_is_heard_at_once() -> Result<()> {
    scenario(|mesh| {
        let (client, server) = mesh.shop()?;
        let service = mesh.service("shop/server", 25, 7001)?;
        let _greeter = server.sample_server("greeter", 7001, &[])?;
        for target in service {
            for _ in 0..3 {
                let found = client.ask("probe", target, &[], WITHIN)?;
                ensure!(found["text"] == "220 greeter ready\r\n", "{found}");
                ensure!(found["read_ms"].as_f64().is_some_and(|ms| ms < NO_WAIT_MS), "{found}");
                ensure!(found["peer"] == target.to_string(), "getpeername is not what was dialled: {found}");
                ensure!(
                    found["own"].as_str().is_some_and(|own| own.contains(&source(&client.ips(), target))),
                    "{found}"
                );
            }
        }
        Ok(())
    })
}

fn source(ips: &[IpAddr; 2], target: SocketAddr) -> String {
    ips[usize::from(target.is_ipv6())].to_string()
}

#[test]
fn a_real_redis_serves_requests_and_monitor() -> Result<()> {
    scenario(|mesh| {
        let (client, server) = mesh.shop()?;
        let service = mesh.service("shop/server", 6379, 6379)?;
        let mut command = Command::new("redis-server");
        command.args(["--port", "6379", "--save", "", "--protected-mode", "no", "--dir"]).arg(server.folder());
        let _redis = server.serve("redis", command, 6379)?;
        let ping = client.ask("probe", service[0], &["--say", "PING\r\n"], WITHIN)?;
        ensure!(ping["text"] == "+PONG\r\n", "{ping}");
        // MONITOR: the server speaks whenever another client does something.
        let monitor = client.ask_later("probe", service[0], &["--say", "MONITOR\r\n", "--hold-ms", "30000"])?;
        mesh_tests::wait::until("MONITOR is confirmed", WITHIN, || {
            let confirmed = monitor.lines()?.first().is_some_and(|line| line["text"] == "+OK\r\n");
            mesh_tests::wait::holds(confirmed, || monitor.stdout())
        })?;
        client.ask("probe", service[1], &["--say", "SET a b\r\n"], WITHIN)?;
        let held = monitor.answer(WITHIN)?;
        ensure!(held["held"] == "data", "{held}");
        Ok(())
    })
}

#[test]
fn either_side_may_end_its_data_first() -> Result<()> {
    scenario(|mesh| {
        let (client, server) = mesh.shop()?;
        let bytes = "5000000";
        let _after_eof = server.sample_server("after-eof", 7003, &["--bytes", bytes])?;
        let early_fin = server.sample_server("early-fin", 7004, &[])?;
        for ip in server.ips() {
            let answer = client.ask("half-close", SocketAddr::new(ip, 7003), &["--bytes", bytes], WITHIN)?;
            ensure!(answer["intact"] == 5_000_000, "{answer}");
            let answer = client.ask("late", SocketAddr::new(ip, 7004), &["--bytes", bytes], WITHIN)?;
            ensure!(answer["sent"] == 5_000_000, "{answer}");
        }
        let arrived = mesh_tests::wait::until("the server has read to the end", WITHIN, || {
            let lines = early_fin.lines()?;
            mesh_tests::wait::holds(lines.len() == 2, || format!("{lines:?}"))?;
            Ok(lines)
        })?;
        ensure!(arrived.iter().all(|line| line["ended"]["bytes"] == 5_000_000), "{arrived:?}");
        Ok(())
    })
}

#[test]
fn a_reset_arrives_as_a_reset() -> Result<()> {
    scenario(|mesh| {
        let (client, server) = mesh.shop()?;
        let _reset = server.sample_server("reset", 7005, &[])?;
        for ip in server.ips() {
            let found = client.ask("probe", SocketAddr::new(ip, 7005), &["--say", "x"], WITHIN)?;
            ensure!(is_refused(&found), "{found}");
        }
        Ok(())
    })
}

#[test]
fn a_dead_port_is_refused_and_never_looks_alive() -> Result<()> {
    scenario(|mesh| {
        mesh.expect_complaint("selects no pod");
        let (client, server) = mesh.shop()?;
        let dead_port = mesh.service("shop/server", 81, 7999)?;
        let nobody = mesh.service("shop/nobody", 82, 7999)?;
        // The first connection also makes the tunnel, so only the second one is timed.
        for target in [dead_port[0], dead_port[1], SocketAddr::new(server.ip(), 7999)] {
            client.ask("probe", target, &[], WITHIN)?;
            let found = client.ask("probe", target, &[], WITHIN)?;
            let ms = found.get("read_ms").or(found.get("connect_ms")).and_then(serde_json::Value::as_f64);
            ensure!(is_refused(&found) && ms.is_some_and(|ms| ms < REFUSED_MS), "{target}: {found}");
        }
        mesh.logged(mesh_tests::topology::Side::A, "a refusal", |line| line["outcome"] == "connect_refused")?;
        // That a service has no endpoints is known before anything is accepted.
        for target in nobody {
            mesh_tests::wait::until("a service without endpoints refuses", mesh_tests::mesh::IN_FORCE_WITHIN, || {
                let found = client.ask("probe", target, &[], WITHIN)?;
                ensure!(found["connect"] == "ConnectionRefused", "{found}");
                Ok(())
            })?;
        }
        Ok(())
    })
}

#[test]
fn bytes_arrive_exactly_in_both_directions_at_once() -> Result<()> {
    scenario(|mesh| {
        let (client, server) = mesh.shop()?;
        let bytes: u64 = scale::pick(64 << 20, 1 << 30);
        let option = ["--bytes", &bytes.to_string()];
        let transfer = server.sample_server("transfer", 7006, &option)?;
        let within = Duration::from_secs(scale::pick(120, 900));
        for ip in server.ips() {
            let answer = client.ask("transfer", SocketAddr::new(ip, 7006), &option, within)?;
            ensure!(answer["intact"] == bytes, "{answer}");
        }
        let ended = mesh_tests::wait::until("the server has checked its side", WITHIN, || {
            let lines = transfer.lines()?;
            mesh_tests::wait::holds(lines.len() == 2, || format!("{lines:?}"))?;
            Ok(lines)
        })?;
        ensure!(ended.iter().all(|line| line["ended"]["intact"] == bytes), "{ended:?}");
        Ok(())
    })
}

#[test]
fn a_pod_reaches_itself_by_its_own_address_and_by_its_service() -> Result<()> {
    scenario(|mesh| {
        let (_, server) = mesh.shop()?;
        let service = mesh.service("shop/server", 80, 7000)?;
        let _echo = server.sample_server("echo", 7000, &[])?;
        let own = server.ips().map(|ip| SocketAddr::new(ip, 7000));
        for target in own.into_iter().chain(service) {
            let answer = server.ask("churn", target, &["--count", "5"], WITHIN)?;
            ensure!(answer["ok"] == 5, "{target}: {answer}");
        }
        Ok(())
    })
}

#[test]
fn pods_of_one_node_reach_each_other() -> Result<()> {
    scenario(|mesh| {
        let neighbour = mesh.pod(mesh_tests::topology::Side::A, "shop/neighbour")?;
        let (client, _) = mesh.shop()?;
        let service = mesh.service("shop/neighbour", 80, 7000)?;
        mesh.captured(&neighbour)?;
        let echo = neighbour.sample_server("echo", 7000, &[])?;
        for target in service.into_iter().chain(neighbour.ips().map(|ip| SocketAddr::new(ip, 7000))) {
            let answer = client.ask("churn", target, &["--count", "5"], WITHIN)?;
            ensure!(answer["ok"] == 5, "{target}: {answer}");
        }
        for line in echo.lines()? {
            let peer: SocketAddr = line["peer"].as_str().unwrap_or_default().parse()?;
            ensure!(client.ips().contains(&peer.ip()), "the server saw {peer}");
        }
        Ok(())
    })
}
