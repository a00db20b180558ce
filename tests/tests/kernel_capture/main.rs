//! The kernel half alone: every program attached to a real cgroup and real pods, without proxy or TLS.
//!
//! The test process plays the agent: it holds the `Kernel` and accepts on the listeners itself.

// Tests may panic: that is how they fail.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod bench;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_agent::model::addr::{Scope, key_ip};
use mesh_agent::model::workload::{Captured, PeerMode, Workload};
use mesh_agent::proxy::pod_net::{PodNet, SocketUse};
use mesh_common::counter::Counter;
use mesh_common::key::capture_port;
use mesh_tests::bpf;
use mesh_tests::topology::Side;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Socket, Type};

use bench::*;

#[test]
fn a_captured_connect_reaches_the_agent_with_its_destination_and_leaves_no_record() -> Result<()> {
    node(|bench| {
        let pod = bench.pod("client")?;
        let (enrolled, sockets) = bench.enrol(workload_of(&pod, PeerMode::Permissive))?;
        let mapped = format!("[::ffff:{}]:8123", REMOTE[0]);
        let table = [format!("{}:8123", REMOTE[0]), format!("[{}]:8123", REMOTE[1]), mapped, format!("{VIP}:80")];
        for destination in table {
            let to: SocketAddr = destination.parse()?;
            let client = pod.ask_later("probe", to, &["--within-ms", "5000"])?;
            let mut stream = accept(&sockets.outbound)?;
            let (orig, scope) = enrolled.original_destination(stream.as_fd()).context("no original destination")?;
            assert_eq!(scope, Scope::All);
            assert_eq!(orig.addr(), SocketAddr::new(to.ip().to_canonical(), to.port()));
            assert!(
                pod.ips().contains(&stream.peer_addr()?.ip().to_canonical()),
                "the source is the pod's own address"
            );
            stream.write_all(b"x")?;
            drop(stream);
            let answer = client.answer(SOON)?;
            let seen: SocketAddr = answer["peer"].as_str().context("no peer")?.parse()?;
            assert_eq!(
                seen,
                SocketAddr::new(to.ip().to_canonical(), to.port()),
                "the application sees the destination it asked for: {answer}"
            );
        }
        let entries = bpf::map_entries(&bench.pins())?;
        assert_eq!((entries["flows"], entries["orig_dsts"]), (0, 0), "{entries:?}");
        Ok(())
    })
}

/// The system gives one local port to two connections whose destinations differ: the end of one must not take the
/// other's record, which is still waiting for its SYN to be let in.
#[test]
fn two_connections_from_one_port_do_not_share_a_record() -> Result<()> {
    node(|bench| {
        let pod = bench.pod("client")?;
        // A queue so short that it is full at once.
        pod.netns().sysctl("net/core/somaxconn", "1")?;
        let (enrolled, sockets) = bench.enrol(workload_of(&pod, PeerMode::Permissive))?;
        let remote: IpAddr = REMOTE[0].parse()?;
        let captured_by = |port: u16| capture_port(&key_ip(remote), port);
        let second = (81..200).find(|port| captured_by(*port) != captured_by(80)).context("one port for all")?;
        let [first, second] = [80, second].map(|port| SocketAddr::new(remote, port));
        let from = SocketAddr::new(pod.ip(), 40_000);
        let (ending, _filler, waiting) = pod.netns().run(|| -> Result<_> {
            let ending = dial_from(from, first)?;
            let filler = dial_from(SocketAddr::new(pod.ip(), 0), first)?;
            Ok((ending, filler, dial_from(from, second)?))
        })??;
        assert!(!is_connected(&waiting, 100)?, "the queue is full");
        assert_eq!(bpf::map_entries(&bench.pins())?["orig_dsts"], 1, "a record waits for the next SYN");
        // Reset: over at once.
        ending.set_linger(Some(Duration::ZERO))?;
        drop(ending);
        for _ in 0..2 {
            accept(&sockets.outbound)?;
        }
        assert!(is_connected(&waiting, 10_000)?, "the next SYN was refused");
        let stream = accept(&sockets.outbound)?;
        assert_eq!(enrolled.original_destination(stream.as_fd()).map(|(orig, _)| orig.addr()), Some(second));
        assert_eq!(bpf::map_entries(&bench.pins())?["orig_dsts"], 0);
        Ok(())
    })
}

/// Begins to connect from an address that another connection may have as well.
fn dial_from(from: SocketAddr, to: SocketAddr) -> Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&from.into())?;
    socket.set_nonblocking(true)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(nix::libc::EINPROGRESS) => Err(error.into()),
        _ => Ok(socket),
    }
}

/// Whether the connection stands within so many milliseconds.
fn is_connected(socket: &Socket, within_ms: u16) -> Result<bool> {
    let mut wanted = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    let ready = poll(&mut wanted, PollTimeout::from(within_ms))?;
    Ok(ready == 1 && socket.take_error()?.is_none() && socket.peer_addr().is_ok())
}

#[test]
fn a_client_that_writes_and_closes_before_the_agent_accepts_loses_nothing() -> Result<()> {
    const CLIENTS: usize = 200;
    node(|bench| {
        let pod = bench.pod("client")?;
        let (enrolled, sockets) = bench.enrol(workload_of(&pod, PeerMode::Permissive))?;
        let to: SocketAddr = format!("{}:9", REMOTE[0]).parse()?;
        let count = CLIENTS.to_string();
        pod.ask("shout", to, &["--count", &count, "--parallel", "4", "--bytes", "100"], Duration::from_secs(60))?;
        for _ in 0..CLIENTS {
            let mut stream = accept(&sockets.outbound)?;
            assert_eq!(enrolled.original_destination(stream.as_fd()).map(|(orig, _)| orig.addr()), Some(to));
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes)?;
            assert_eq!(bytes.len(), 100);
        }
        Ok(())
    })
}

#[test]
fn a_strict_pod_takes_what_the_agent_delivers_and_itself_and_nothing_else() -> Result<()> {
    node(|bench| {
        let (client, server) = (bench.pod("client")?, bench.pod("server")?);
        let (enrolled, _sockets) = bench.enrol(workload_of(&server, PeerMode::Strict))?;
        let _app = server.sample_server("greeter", 8080, &[])?;
        for ip in server.ips() {
            let app = SocketAddr::new(ip, 8080);
            for port in [8080, 19_600, 19_650, 19_664] {
                refused(&client, SocketAddr::new(ip, port))?;
            }
            for port in [19_600, 19_650, 19_664] {
                refused(&server, SocketAddr::new(ip, port))?;
            }
            served(&server, app)?;
            let source = client.ips().into_iter().find(|own| own.is_ipv4() == ip.is_ipv4()).context("both families")?;
            let socket = enrolled.socket(app, SocketUse::Delivery { client: SocketAddr::new(source, 1) })?;
            socket.set_nonblocking(false)?;
            socket.set_read_timeout(Some(SOON))?;
            socket.connect(&app.into())?;
            let mut delivered: TcpStream = socket.into();
            assert_eq!(delivered.local_addr()?.ip(), source);
            let mut greeting = [0; 1];
            delivered.read_exact(&mut greeting)?;
        }
        served(&server, "127.0.0.1:8080".parse()?)?;
        // Two families: the application's port once each, agent ports three times from outside and inside.
        assert_eq!(bench.count(Counter::LookupAgentPort), 12);
        // A late segment of a connection that was reset is looked up, and dropped, like a new one.
        ensure!(bench.count(Counter::LookupStrict) >= 2, "a refusal was not counted");
        let entries = bpf::map_entries(&bench.pins())?;
        assert_eq!((entries["flows"], entries["orig_dsts"]), (0, 0), "{entries:?}");
        Ok(())
    })
}

/// A pod that only names the netns of another one changes nothing of it, neither as one that could not be enrolled nor
/// as one that leaves.
#[test]
fn who_names_another_pods_network_does_not_rule_it() -> Result<()> {
    node(|bench| {
        let (server, stranger) = (bench.pod("server")?, bench.pod("stranger")?);
        let _enrolled = bench.enrol(workload_of(&server, PeerMode::Strict))?;
        let _app = server.sample_server("greeter", 8080, &[])?;
        let to = SocketAddr::new(server.ip(), 8080);
        refused(&stranger, to)?;
        let impostor = Workload { netns: Some(server.netns().path()), ..workload("impostor", &["10.99.0.77"]) };
        bench.workloads.push(Arc::new(impostor.clone()));
        let snapshot = bench.snapshot();
        ensure!(bench.kernel.enrol(&impostor, &snapshot, false).is_err(), "the impostor was enrolled");
        ensure!(!bench.kernel.is_hooked(&impostor), "another pod's hook is taken for its own");
        bench.kernel.guard(&impostor, &snapshot)?;
        refused(&stranger, to)?;
        ensure!(bench.kernel.take_out(&impostor), "something of it is left");
        refused(&stranger, to)?;
        Ok(())
    })
}

#[test]
fn addresses_that_the_agent_was_never_told_of_are_under_the_strict_pods_policy_too() -> Result<()> {
    node(|bench| {
        let (client, server) = (bench.pod("client")?, bench.pod("server")?);
        let (_enrolled, _sockets) = bench.enrol(workload_of(&server, PeerMode::Strict))?;
        let _app = server.sample_server("greeter", 8080, &[])?;
        // Added after enrolment, on an interface of its own.
        server
            .netns()
            .ip("link add late type veth peer name late-peer\nlink set late up\naddr add 10.250.9.9/32 dev late")?;
        let node = bench.topology.node(Side::A);
        let via = server.ip();
        node.netns().ip(&format!("route add 10.250.9.9/32 via {via}"))?;
        let late: SocketAddr = "10.250.9.9:8080".parse()?;
        refused(&client, late)?;
        served(&server, late)?;
        ensure!(bench.count(Counter::LookupStrict) >= 1, "a refusal was not counted");
        Ok(())
    })
}

#[test]
fn without_the_agents_listeners_strict_pods_are_refused_and_permissive_ones_go_on_alone() -> Result<()> {
    node(|bench| {
        let (strict, permissive, server) = (bench.pod("strict")?, bench.pod("permissive")?, bench.pod("server")?);
        let (_s, strict_sockets) = bench.enrol(workload_of(&strict, PeerMode::Strict))?;
        let (_p, permissive_sockets) = bench.enrol(workload_of(&permissive, PeerMode::Permissive))?;
        // The last workload is the Service's fallback endpoint.
        bench.workloads.push(Arc::new(workload_of(&server, PeerMode::Permissive)));
        bench.sync()?;
        let _app = server.sample_server("greeter", 8080, &[])?;
        let vip = SocketAddr::new(VIP.parse()?, 80);
        let empty = SocketAddr::new(EMPTY_VIP.parse()?, 80);
        refused(&permissive, empty)?;
        drop((strict_sockets, permissive_sockets));
        refused(&strict, vip)?;
        let answer = served(&permissive, vip)?;
        assert_eq!(answer["peer"], vip.to_string(), "it still sees the Service");
        let expected = (1, 1, 1);
        let counted = (
            bench.count(Counter::ConnectAgentAway),
            bench.count(Counter::ConnectFallback),
            bench.count(Counter::ConnectNoEndpoints),
        );
        assert_eq!(counted, expected);
        Ok(())
    })
}

#[test]
fn excluded_ports_and_cidrs_never_see_the_agent() -> Result<()> {
    node(|bench| {
        let (client, server) = (bench.pod("client")?, bench.pod("server")?);
        let mut workload = workload_of(&client, PeerMode::Permissive);
        workload.exclusions.outbound_ports = vec![8081].into();
        workload.exclusions.outbound_cidrs = vec!["fd00::/8".parse()?].into();
        let (_enrolled, _sockets) = bench.enrol(workload)?;
        let mut remote = workload_of(&server, PeerMode::Permissive);
        remote.captured = Some(Captured { generation: 1, wire: [].into() });
        bench.workloads.push(Arc::new(remote));
        bench.sync()?;
        let (_one, _two) = (server.sample_server("greeter", 8081, &[])?, server.sample_server("greeter", 8080, &[])?);
        served(&client, SocketAddr::new(server.ip(), 8081))?;
        served(&client, SocketAddr::new(server.ip6(), 8080))?;
        assert_eq!(bench.count(Counter::ConnectExcluded), 2);
        assert_eq!(bench.count(Counter::ConnectCaptured), 0);
        Ok(())
    })
}

#[test]
fn what_was_enrolled_is_as_before_after_release() -> Result<()> {
    node(|bench| {
        let (pod, other) = (bench.pod("pod")?, bench.pod("other")?);
        let _app = pod.sample_server("greeter", 8080, &[])?;
        let (enrolled, sockets) = bench.enrol(workload_of(&pod, PeerMode::Strict))?;
        assert_eq!(bpf::attached_to_cgroup(bench.topology.node(Side::A).cgroup())?, 5);
        assert_eq!(bpf::attached_to_netns(&pod.netns().descriptor()?)?, 1);
        let rules = || -> Result<String> {
            pod.netns().run(|| std::fs::read_to_string("/proc/sys/net/ipv4/tcp_fwmark_accept"))?.map_err(Into::into)
        };
        assert_eq!(rules()?.trim(), "0", "nothing was delivered yet");
        let client = SocketAddr::new(other.ip(), 0);
        drop(enrolled.socket(SocketAddr::new(pod.ip(), 8080), SocketUse::Delivery { client })?);
        assert_eq!(rules()?.trim(), "1");
        drop(sockets);
        bench.kernel.release(pod.name()).context("was enrolled")?;
        enrolled.remove_routes()?;
        assert_eq!(bpf::attached_to_netns(&pod.netns().descriptor()?)?, 0);
        assert_eq!(rules()?.trim(), "0");
        let entries = bpf::map_entries(&bench.pins())?;
        for map in ["pods", "listeners", "port_rules", "excluded_cidrs"] {
            assert_eq!(entries[map], 0, "{map}");
        }
        served(&other, SocketAddr::new(pod.ip(), 8080))?;
        Ok(())
    })
}

#[test]
fn a_namespace_that_is_not_the_pods_own_is_not_enrolled() -> Result<()> {
    node(|bench| {
        let (mine, theirs) = (bench.pod("mine")?, bench.pod("theirs")?);
        let (_enrolled, _sockets) = bench.enrol(workload_of(&theirs, PeerMode::Permissive))?;
        let snapshot = bench.snapshot();
        let of = |workload: Workload| bench.kernel.enrol(&workload, &snapshot, false).err().map(|why| why.as_str());
        let stolen = Workload { netns: Some(theirs.netns().path()), ..workload_of(&mine, PeerMode::Permissive) };
        assert_eq!(of(stolen), Some("netns_mismatch"), "a namespace that belongs to another pod");
        let mut foreign = workload_of(&mine, PeerMode::Permissive);
        foreign.ips = vec![IpAddr::from([10, 1, 1, 1])].into();
        assert_eq!(of(foreign), Some("netns_mismatch"), "a namespace without the pod's address");
        let gone = Workload { netns: Some("/run/netns/not-there".into()), ..workload_of(&mine, PeerMode::Permissive) };
        assert_eq!(of(gone), Some("netns_gone"));
        let unnamed = Workload { netns: None, ..workload_of(&mine, PeerMode::Permissive) };
        assert_eq!(of(unnamed), Some("netns_unknown"));
        let no_netns = Workload { netns: Some("/dev/null".into()), ..workload_of(&mine, PeerMode::Permissive) };
        assert_eq!(of(no_netns), Some("netns_gone"));
        let node = Workload { netns: Some("/proc/self/ns/net".into()), ..workload_of(&mine, PeerMode::Permissive) };
        assert_eq!(of(node), Some("netns_mismatch"), "the node's own namespace");
        let _taken = mine.sample_server("echo", 15_008, &[])?;
        assert_eq!(of(workload_of(&mine, PeerMode::Permissive)), Some("port_in_use"));
        ensure!(bpf::attached_to_netns(&mine.netns().descriptor()?)? == 0, "a failed enrolment leaves nothing");
        Ok(())
    })
}
