//! Joining, leaving, dying and coming back, while clients go on dialling.

// Tests may panic: that is how they fail.
#![allow(clippy::panic, clippy::indexing_slicing)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_tests::agent::Agent;
use mesh_tests::mesh::{IN_FORCE_WITHIN, Mesh, Workload, scenario};
use mesh_tests::topology::Side;
use mesh_tests::{bpf, wait};
use nix::sys::signal::Signal;

const WITHIN: Duration = Duration::from_secs(60);
/// Issue 2: after a crash pods are back in the mesh within this.
const BACK_WITHIN: Duration = Duration::from_secs(2);

/// Waits until a connection of `client` to `to` has gone through the mesh, or around it.
fn travels(mesh: &Mesh, client: &Workload, to: SocketAddr, security: &str) -> Result<()> {
    let side = client.side();
    wait::until(&format!("connections of {} are {security}", client.name()), IN_FORCE_WITHIN, || {
        let before = mesh.agent(side)?.access_log()?.len();
        let answer = client.ask("churn", to, &["--count", "1"], WITHIN)?;
        ensure!(answer["ok"] == 1, "{answer}");
        wait::until("it is logged", Duration::from_secs(1), || {
            let lines = mesh.agent(side)?.access_log()?;
            let new = lines.iter().skip(before).any(|line| line["security"] == security);
            wait::holds(new, || format!("{:?}", lines.get(before..)))
        })
    })
}

/// Waits until nothing of the mesh is in a pod's network.
fn released(pod: &Workload) -> Result<()> {
    wait::until(&format!("{} is released", pod.name()), IN_FORCE_WITHIN, || {
        let programs = bpf::attached_to_netns(pod.netns())?;
        wait::holds(programs == 0, || format!("{programs} programs are attached"))
    })
}

/// A dialler every 5 ms over the time that `change` takes; not one attempt may fail.
fn without_loss(client: &Workload, to: SocketAddr, change: impl FnOnce() -> Result<()>) -> Result<()> {
    let dial = client.ask_later("dial", to, &["--every-ms", "5", "--count", "1600"])?;
    wait::until("the dialler dials", WITHIN, || wait::holds(dial.stdout().lines().count() > 20, || dial.stdout()))?;
    change()?;
    let answer = dial.answer(WITHIN)?;
    ensure!(answer["failed"] == 0 && answer["ok"] == 1600, "{answer}");
    Ok(())
}

fn joins_without_loss(last: Side) -> Result<()> {
    scenario(|mesh| {
        mesh.objects().put_namespace("shop", false)?;
        let client = mesh.pod(Side::A, "shop/client")?;
        let server = mesh.pod(Side::B, "shop/server")?;
        let _echo = server.sample_server("echo", 7000, &[])?;
        let service = mesh.service("shop/server", 80, 7000)?;
        mesh.start()?;
        // No kube-proxy here: outside the mesh only the pod's own address leads anywhere.
        let to = SocketAddr::new(server.ip(), 7000);
        let talk = client.ask_later("chat", to, &["--every-ms", "20", "--count", "600"])?;
        let (first, second) = if last == Side::A { (&server, &client) } else { (&client, &server) };
        without_loss(&client, to, || {
            mesh.agent(last)?.process().signal(Signal::SIGSTOP)?;
            mesh.objects().put_namespace("shop", true)?;
            let captured = mesh.captured(first);
            mesh.agent(last)?.process().signal(Signal::SIGCONT)?;
            captured?;
            mesh.captured(second)
        })?;
        travels(mesh, &client, to, "mutual_tls")?;
        let answer = client.ask("churn", service[0], &["--count", "5"], WITHIN)?;
        ensure!(answer["ok"] == 5, "{answer}");
        let talked = talk.answer(WITHIN)?;
        ensure!(talked["ok"] == 600, "the connection from before did not live on: {talked}");
        Ok(())
    })
}

#[test]
fn joining_loses_no_connection_when_the_clients_agent_is_last() -> Result<()> {
    joins_without_loss(Side::A)
}

#[test]
fn joining_loses_no_connection_when_the_servers_agent_is_last() -> Result<()> {
    joins_without_loss(Side::B)
}

#[test]
fn leaving_loses_no_connection_and_leaves_no_program() -> Result<()> {
    scenario(|mesh| {
        let (client, server) = mesh.shop()?;
        let _echo = server.sample_server("echo", 7000, &[])?;
        let to = SocketAddr::new(server.ip(), 7000);
        travels(mesh, &client, to, "mutual_tls")?;
        without_loss(&client, to, || {
            mesh.objects().put_namespace("shop", false)?;
            [&client, &server].into_iter().try_for_each(|pod| released(pod))
        })?;
        for side in Side::BOTH {
            let published = mesh.objects().text(&format!("captured.{}", side.node_name()));
            ensure!(!published.contains("uid-shop"), "{published}");
        }
        // And back again.
        mesh.objects().put_namespace("shop", true)?;
        mesh.captured(&client)?;
        mesh.captured(&server)?;
        travels(mesh, &client, to, "mutual_tls")
    })
}

#[test]
fn a_pods_own_label_overrides_its_namespace() -> Result<()> {
    scenario(|mesh| {
        let (client, server) = mesh.shop()?;
        let _echo = server.sample_server("echo", 7000, &[])?;
        let mut object = client.object();
        object.labels.insert(mesh_tests::objects::MODE_LABEL.to_owned(), "disabled".to_owned());
        mesh.objects().put_pod(&object)?;
        released(&client)?;
        let answer = client.ask("churn", SocketAddr::new(server.ip(), 7000), &["--count", "3"], WITHIN)?;
        ensure!(answer["ok"] == 3, "{answer}");
        mesh.objects().put_pod(&client.object())?;
        mesh.captured(&client)?;
        travels(mesh, &client, SocketAddr::new(server.ip(), 7000), "mutual_tls")
    })
}

#[test]
fn a_killed_agent_comes_back_and_permissive_pods_work_meanwhile() -> Result<()> {
    scenario(|mesh| {
        mesh.objects().put_namespace("vault", true)?;
        mesh.objects().put_peer_mode("vault", "Strict")?;
        let strict = mesh.pod(Side::A, "vault/client")?;
        let (client, server) = mesh.shop()?;
        mesh.captured(&strict)?;
        let _echo = server.sample_server("echo", 7000, &[])?;
        let to = SocketAddr::new(server.ip(), 7000);
        travels(mesh, &client, to, "mutual_tls")?;
        travels(mesh, &strict, to, "mutual_tls")?;

        let options = mesh.take_agent(Side::A)?.kill()?;
        let answer = client.ask("churn", to, &["--count", "20", "--parallel", "1"], WITHIN)?;
        ensure!(answer["ok"] == 20, "a permissive pod without its agent: {answer}");
        let found = strict.ask("probe", to, &["--say", "x"], WITHIN)?;
        ensure!(found["connect"] == "ConnectionRefused", "a strict pod without its agent: {found}");
        ensure!(found["connect_ms"].as_f64().is_some_and(|ms| ms < 100.0), "{found}");

        let since = Instant::now();
        mesh.run_agent(Side::A, options)?;
        mesh.ready(Side::A)?;
        let took = since.elapsed();
        travels(mesh, &client, to, "mutual_tls")?;
        travels(mesh, &strict, to, "mutual_tls")?;
        ensure!(took < BACK_WITHIN, "back in the mesh after {took:?}");
        Ok(())
    })
}

#[test]
fn permissive_servers_without_their_agent_serve_plaintext_alone() -> Result<()> {
    scenario(|mesh| {
        mesh.objects().put_namespace("plain", false)?;
        let stranger = mesh.pod(Side::A, "plain/stranger")?;
        let (client, server) = mesh.shop()?;
        let _echo = server.sample_server("echo", 7000, &[])?;
        let to = SocketAddr::new(server.ip(), 7000);
        travels(mesh, &client, to, "mutual_tls")?;
        let options = mesh.take_agent(Side::B)?.kill()?;
        let answer = stranger.ask("churn", to, &["--count", "5", "--parallel", "1"], WITHIN)?;
        ensure!(answer["ok"] == 5, "{answer}");
        // A pod published as captured is reached by mTLS or not at all.
        let found = client.ask("probe", to, &["--say", "x"], WITHIN)?;
        ensure!(found["read"] != "data", "{found}");
        mesh.run_agent(Side::B, options)?;
        mesh.ready(Side::B)?;
        travels(mesh, &client, to, "mutual_tls")
    })
}

/// What a pod's network looks like from outside: its routing rules, routes and listening sockets.
fn network(pod: &Workload) -> Result<String> {
    let mut text = String::new();
    for family in ["-4", "-6"] {
        for arguments in [&["rule"][..], &["route", "show", "table", "all"]] {
            let mut command = std::process::Command::new("ip");
            command.args([family, "-n", pod.netns().name()]).args(arguments);
            let output = command.output().context("`ip` does not start")?;
            // Cached routes of IPv6 come and go by themselves.
            let lines = String::from_utf8_lossy(&output.stdout).into_owned();
            text.extend(lines.lines().filter(|line| !line.contains("cache")).map(|line| format!("{line}\n")));
        }
    }
    for table in ["tcp", "tcp6"] {
        let path = format!("/proc/thread-self/net/{table}");
        let sockets = pod.netns().run(|| std::fs::read_to_string(&path))??;
        let listening = sockets.lines().filter(|line| line.split_ascii_whitespace().nth(3) == Some("0A"));
        let mut ports: Vec<&str> = listening.filter_map(|line| line.split_ascii_whitespace().nth(1)).collect();
        ports.sort_unstable();
        text.push_str(&format!("{table} listens: {ports:?}\n"));
    }
    for key in ["net/ipv4/tcp_fwmark_accept", "net/ipv4/ip_nonlocal_bind", "net/ipv6/ip_nonlocal_bind"] {
        let path = format!("/proc/sys/{key}");
        text.push_str(&format!("{key}: {}", pod.netns().run(|| std::fs::read_to_string(&path))??));
    }
    Ok(text)
}

#[test]
fn uninstalling_leaves_the_node_as_it_was_found() -> Result<()> {
    scenario(|mesh| {
        mesh.objects().put_namespace("shop", true)?;
        let client = mesh.pod(Side::A, "shop/client")?;
        let server = mesh.pod(Side::B, "shop/server")?;
        let _echo = server.sample_server("echo", 7000, &[])?;
        let pods = [(Side::A, &client), (Side::B, &server)];
        let before = [network(&client)?, network(&server)?];
        mesh.start()?;
        mesh.captured(&client)?;
        mesh.captured(&server)?;
        travels(mesh, &client, SocketAddr::new(server.ip(), 7000), "mutual_tls")?;
        ensure!(network(&server)?.contains("fwmark"), "nothing was delivered to the server");
        for ((side, pod), before) in pods.into_iter().zip(before) {
            let node = mesh.node(side);
            ensure!(bpf::attached_to_cgroup(node.cgroup())? > 0, "nothing was attached");
            ensure!(!bpf::pins(node.bpffs())?.is_empty(), "nothing was pinned");
            ensure!(bpf::attached_to_netns(pod.netns())? > 0, "nothing was attached to the pod");

            mesh.take_agent(side)?.stop()?;
            let node = mesh.node(side);
            Agent::uninstall(node)?;
            ensure!(bpf::attached_to_cgroup(node.cgroup())? == 0, "programs are still attached to the cgroup");
            ensure!(bpf::attached_to_netns(pod.netns())? == 0, "programs are still attached to the pod");
            let pins = bpf::pins(node.bpffs())?;
            ensure!(pins.is_empty(), "pins are left: {pins:?}");
            let after = network(pod)?;
            ensure!(after == before, "before:\n{before}\nafter:\n{after}");
        }
        Ok(())
    })
}
