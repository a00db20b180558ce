//! The native lane alone: connections between two pods of one node that the kernel decides, proves and carries.
//!
//! The test process plays the agent, and mostly an agent that is away: nothing here needs a proxy.

// Tests may panic: that is how they fail.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../kernel_capture/bench.rs"]
mod bench;
mod equality;
mod fail_closed;
mod inspect;
mod pair;
mod probes;
mod race;
mod revoke;
mod shares;

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use mesh_agent::capture::KernelEvent;
use mesh_agent::model::addr::{EndpointAddr, Scope};
use mesh_agent::model::policy::Action;
use mesh_agent::model::service::Endpoint;
use mesh_agent::model::workload::PeerMode;
use mesh_agent::proxy::pod_net::PodNet;
use mesh_common::counter::Counter;
use mesh_tests::{bpf, wait};

use bench::*;
use pair::*;

#[test]
fn a_connection_between_two_pods_of_the_node_needs_no_agent_and_leaves_nothing() -> Result<()> {
    node(|bench| {
        let Pair { client, server, .. } = pair(bench, PeerMode::Strict)?;
        let _app = server.sample_server("greeter", 8080, &[])?;
        let vip: SocketAddr = format!("{VIP}:80").parse()?;
        let direct = server.ips().to_vec().into_iter().map(|ip| SocketAddr::new(ip, 8080));
        let mapped: SocketAddr = format!("[::ffff:{}]:8080", server.ip()).parse()?;
        for to in direct.chain([mapped, vip]) {
            let answer = served(&client, to)?;
            let canonical = SocketAddr::new(to.ip().to_canonical(), to.port());
            assert_eq!(answer["peer"], canonical.to_string(), "the application sees what it dialled");
        }
        assert_eq!(counts(bench, [Counter::ConnectNative, Counter::LookupNative, Counter::ConnectCaptured]), [4, 4, 0]);
        nothing_left(bench)
    })
}

#[test]
fn a_pod_that_calls_its_own_service_leaves_nothing() -> Result<()> {
    node(|bench| {
        let pod = bench.pod("one")?;
        let _enrolled = bench.enrol(captured_workload(&pod, PeerMode::Permissive))?;
        let _app = pod.sample_server("greeter", 8080, &[])?;
        let mut own = service("10.96.7.9", None);
        own.endpoints = vec![Endpoint {
            workload: Some(pod.name().into()),
            node: "a".into(),
            ..Endpoint::new(EndpointAddr::new(SocketAddr::new(pod.ip(), 8080)))
        }];
        bench.services.push(Arc::new(own));
        bench.sync()?;
        for _ in 0..4 {
            served(&pod, "10.96.7.9:80".parse()?)?;
        }
        assert_eq!(counts(bench, [Counter::ConnectNative]), [4], "both ends have one address");
        nothing_left(bench)
    })
}

#[test]
fn a_policy_is_enforced_at_connect_by_account_and_port_and_the_event_names_both_pods() -> Result<()> {
    node(|bench| {
        let Pair { client, server, .. } = pair(bench, PeerMode::Permissive)?;
        let _apps = (server.sample_server("greeter", 8080, &[])?, server.sample_server("greeter", 8081, &[])?);
        let mut events = Events::of(bench)?;
        let at = |port| SocketAddr::new(server.ip(), port);

        bench.policies = vec![rule("allow-8080", Action::Allow, Some(client.name()), Some(vec![8080]))];
        bench.sync()?;
        served(&client, at(8080))?;
        refused(&client, at(8081))?;
        let denied = events.until(|event| match event {
            KernelEvent::Refused(refusal) => Some(*refusal),
            KernelEvent::Closed(_) => None,
        })?;
        assert_eq!((denied.exit, denied.peer), (Counter::ConnectDenied, at(8081)));
        let pod = |cookie| bench.kernel.pod_by_cookie(cookie).map(|uid| uid.to_string());
        assert_eq!(pod(denied.netns_cookie).as_deref(), Some(client.name()));
        assert_eq!(denied.peer_cookie.and_then(pod).as_deref(), Some(server.name()));

        bench.policies = vec![rule("somebody-else", Action::Allow, Some("nobody"), None)];
        bench.sync()?;
        refused(&client, at(8080))?;
        bench.policies = vec![rule("not-the-client", Action::Deny, Some(client.name()), None)];
        bench.sync()?;
        refused(&client, at(8080))?;
        bench.policies.clear();
        bench.sync()?;
        served(&client, at(8081))?;
        assert_eq!(counts(bench, [Counter::ConnectNative, Counter::ConnectDenied, Counter::LookupDenied]), [2, 3, 0]);
        nothing_left(bench)
    })
}

#[test]
fn rules_with_addresses_are_for_the_agent() -> Result<()> {
    node(|bench| {
        let Pair { client, server, client_net, .. } = pair(bench, PeerMode::Permissive)?;
        bench.policies = vec![cidr_rule("10.0.0.0/8")];
        bench.sync()?;
        let to = SocketAddr::new(server.ip(), 8080);
        // Nobody listens for the pair's client: `pair` has dropped the sockets of its agent.
        assert_eq!(counts(bench, [Counter::ConnectFallback, Counter::ConnectNative]), [0, 0]);
        let answer = probe(&client, to)?;
        assert_ne!(outcome(&answer), "data", "the server's agent is away: nobody can judge it");
        assert_eq!(counts(bench, [Counter::ConnectNative, Counter::ConnectDenied]), [0, 0]);
        drop(client_net);
        Ok(())
    })
}

#[test]
fn each_endpoint_of_a_service_is_drawn_as_often_wherever_it_is() -> Result<()> {
    const CONNECTIONS: u64 = 3_000;
    node(|bench| {
        let client = bench.pod("client")?;
        let (client_net, sockets) = bench.enrol(captured_workload(&client, PeerMode::Permissive))?;
        let (one, two) = (bench.pod("one")?, bench.pod("two")?);
        let mut kept = Vec::new();
        for pod in [&one, &two] {
            kept.push((
                bench.enrol(captured_workload(pod, PeerMode::Permissive))?,
                pod.sample_server("greeter", 8080, &[])?,
            ));
        }
        let local = [&one, &two].map(|pod| Endpoint {
            workload: Some(pod.name().into()),
            node: "a".into(),
            ..Endpoint::new(EndpointAddr::new(SocketAddr::new(pod.ip(), 8080)))
        });
        let remote: SocketAddr = format!("{}:8080", REMOTE[0]).parse()?;
        let remote =
            Endpoint { workload: Some("remote".into()), node: "b".into(), ..Endpoint::new(EndpointAddr::new(remote)) };
        let mut drawn = service("10.96.7.9", None);
        drawn.endpoints = local.into_iter().chain([remote]).collect();
        bench.services.push(Arc::new(drawn));
        bench.sync()?;
        let vip: SocketAddr = "10.96.7.9:80".parse()?;
        sockets.outbound.set_nonblocking(true)?;
        let mut rest = 0;
        let dialled = client.netns().run(|| -> Result<u64> {
            let mut natively = 0;
            for _ in 0..CONNECTIONS {
                let stream = std::net::TcpStream::connect(vip)?;
                if let Ok((accepted, _)) = sockets.outbound.accept() {
                    let (orig, scope) = client_net.original_destination(accepted.as_fd()).context("no record")?;
                    ensure!((orig.addr(), scope) == (vip, Scope::Rest), "{orig} {scope:?}");
                    rest += 1;
                } else {
                    natively += 1;
                }
                drop(stream);
            }
            Ok(natively)
        })??;
        assert_eq!(counts(bench, [Counter::ConnectNative, Counter::ConnectCaptured]), [dialled, rest]);
        // A third each; 5 % of it is more than five standard deviations of the draw.
        let third = CONNECTIONS as f64 / 3.0;
        ensure!(
            (rest as f64 - third).abs() < 0.15 * third,
            "the remote endpoint was drawn {rest} times of {CONNECTIONS}"
        );
        drop((sockets, kept));
        Ok(())
    })
}

#[test]
fn an_ended_connection_is_told_with_its_bytes() -> Result<()> {
    use std::io::{Read, Write};
    node(|bench| {
        let Pair { client, server, .. } = pair(bench, PeerMode::Strict)?;
        let mut events = Events::of(bench)?;
        let to = SocketAddr::new(server.ip(), 8080);
        let listener = server.netns().run(|| std::net::TcpListener::bind(to))??;
        let mut stream = client.netns().run(|| std::net::TcpStream::connect(to))??;
        let (mut accepted, peer) = listener.accept()?;
        stream.write_all(&[1; 1000])?;
        let mut bytes = vec![0; 1000];
        accepted.read_exact(&mut bytes)?;
        accepted.write_all(&[2; 70_000])?;
        drop(accepted);
        bytes.clear();
        stream.read_to_end(&mut bytes)?;
        assert_eq!(bytes.len(), 70_000);
        drop(stream);
        let closed = events.until(|event| match event {
            KernelEvent::Closed(closed) => Some(*closed),
            KernelEvent::Refused(_) => None,
        })?;
        assert_eq!(
            (closed.connection.traffic.sent, closed.connection.traffic.received, closed.failed),
            (1000, 70_000, false)
        );
        assert_eq!((closed.connection.client, closed.connection.server, closed.connection.dialled), (peer, to, to));
        assert_eq!(bench.kernel.pod_by_cookie(closed.connection.server_cookie).as_deref(), Some(server.name()));
        ensure!(closed.lasted.as_nanos() > 0 && closed.connection.traffic.round_trip < closed.lasted, "{closed:?}");

        refused(&client, SocketAddr::new(server.ip(), 9))?;
        let failed = events.until(|event| match event {
            KernelEvent::Closed(closed) => Some(*closed),
            KernelEvent::Refused(_) => None,
        })?;
        ensure!(failed.failed && failed.connection.server.port() == 9, "{failed:?}");
        nothing_left(bench)
    })
}

/// No record stays behind connections both ends of which are closed, or will be.
fn nothing_left(bench: &Bench) -> Result<()> {
    wait::until("no record is left", SOON, || {
        let (entries, records) = (bpf::map_entries(&bench.pins())?, records(bench)?);
        let left = entries["flows"] + entries["orig_dsts"];
        wait::holds(left == 0 && records.values().all(|records| *records == 0), || format!("{entries:?} {records:?}"))
    })
}
