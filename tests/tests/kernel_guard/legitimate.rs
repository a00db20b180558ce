//! What a guarded pod may do: all that it could without the guard, as long as a socket does it.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};

use anyhow::{Result, ensure};
use mesh_common::counter::Counter;
use mesh_tests::datagram::{WAYS, of_protocol};
use mesh_tests::raw::{self, ACK, TCP};
use mesh_tests::topology::Side;
use mesh_tests::wait;
use nix::libc;

use crate::bench::*;
use crate::tricks::REFUSALS;
use crate::world::*;

/// Runs `story` in a world whose client is guarded, and wants that the guard refused nothing.
fn unhindered(story: impl FnOnce(&mut Bench, &World) -> Result<()>) -> Result<()> {
    world(|bench, world| {
        crate::guard(bench, world)?;
        story(bench, world)?;
        let refused = REFUSALS.map(|counter| (counter, bench.count(counter)));
        ensure!(refused.iter().all(|(_, count)| *count == 0), "{refused:?}");
        Ok(())
    })
}

#[test]
fn the_mesh_is_reached_and_nothing_else_as_without_a_guard() -> Result<()> {
    unhindered(|bench, world| {
        for ip in world.inside.ips() {
            served(&world.client, SocketAddr::new(ip, 8080))?;
            let to = SocketAddr::new(ip, 5353);
            for (how, way) in WAYS {
                let inbox = inbox(&world.inside, to)?;
                world.client.netns().run(|| way(to))?.map_err(|e| anyhow::anyhow!("{how} to {to}: {e}"))?;
                ensure!(arrived(&inbox)?, "{how} to {to} did not arrive");
            }
        }
        served(&world.client, format!("{VIP}:80").parse()?)?;
        for ip in world.outside.ips() {
            refused(&world.client, SocketAddr::new(ip, 8080))?;
        }
        let [dns, _, node_local, service] = world.admitted;
        for to in [dns, node_local, service] {
            let before = bench.count(Counter::GuardDatagram);
            for (how, way) in WAYS {
                world.client.netns().run(|| way(to))?.map_err(|e| anyhow::anyhow!("{how} to {to}: {e}"))?;
            }
            wait::until("they pass the guard", SOON, || {
                let passed = bench.count(Counter::GuardDatagram) - before;
                wait::holds(passed >= WAYS.len() as u64, || format!("{passed} to {to}"))
            })?;
        }
        for to in [dns, world.admitted[1]] {
            let _ = probe_briefly(&world.client, to)?;
        }
        Ok(())
    })
}

/// Both ways of a connection that the other side begins, from inside the mesh and from outside; a closed port; an end
/// by reset, whose socket is gone when its segment leaves; SYN cookies.
#[test]
fn what_others_begin_is_answered() -> Result<()> {
    unhindered(|_, world| {
        let _server = world.client.sample_server("greeter", 8080, &[])?;
        for cookies in ["1", "2"] {
            world.client.netns().sysctl("net/ipv4/tcp_syncookies", cookies)?;
            for ip in world.client.ips() {
                let to = SocketAddr::new(ip, 8080);
                for _ in 0..3 {
                    served(&world.outside, to)?;
                    served(&world.inside, to)?;
                }
                refused(&world.outside, SocketAddr::new(ip, 9))?;
            }
        }
        for ip in world.client.ips() {
            let at = SocketAddr::new(ip, 7001);
            let listener = world.client.netns().run(|| TcpListener::bind(at))??;
            let mut outside = world.outside.netns().run(|| TcpStream::connect(at))??;
            outside.set_read_timeout(Some(SOON))?;
            outside.write_all(b"never read")?;
            let (accepted, _) = listener.accept()?;
            ensure!(accepted.peek(&mut [0; 1])? == 1, "nothing came");
            drop(accepted);
            let ended = outside.read(&mut [0; 1]);
            ensure!(ended.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset), "{ended:?}");
        }
        Ok(())
    })
}

/// Bulk both ways: large segments, as the kernel hands them over a veth.
#[test]
fn large_segments_pass() -> Result<()> {
    const BYTES: usize = 8 << 20;
    unhindered(|_, world| {
        for ip in world.client.ips() {
            let at = SocketAddr::new(ip, 7002);
            let listener = world.client.netns().run(|| TcpListener::bind(at))??;
            for from in [&world.outside, &world.inside] {
                let mut out = from.netns().run(|| TcpStream::connect(at))??;
                let (mut own, _) = listener.accept()?;
                std::thread::scope(|scope| -> Result<()> {
                    let sends = scope.spawn(move || out.write_all(&vec![7; BYTES]).map(|()| out));
                    let mut read = vec![0; BYTES];
                    own.read_exact(&mut read)?;
                    let mut out = sends.join().expect("no panic")?;
                    let sends = scope.spawn(move || own.write_all(&vec![8; BYTES]).map(|()| own));
                    out.read_exact(&mut read)?;
                    ensure!(read.iter().all(|byte| *byte == 8), "other bytes");
                    sends.join().expect("no panic")?;
                    Ok(())
                })?;
            }
        }
        Ok(())
    })
}

/// A connection that has ended still acknowledges what comes late.
#[test]
fn time_wait_answers() -> Result<()> {
    unhindered(|bench, world| {
        for (own, there) in world.client.ips().iter().zip(world.inside.ips()) {
            let listener = world.inside.netns().run(|| TcpListener::bind((there, 7003)))??;
            let at = listener.local_addr()?;
            let client = world.client.netns().run(|| TcpStream::connect(at))??;
            let (mut server, _) = listener.accept()?;
            let end = client.local_addr()?;
            drop(client);
            ensure!(server.read(&mut [0; 1])? == 0, "no end");
            drop(server);
            // A late segment of the server's: out of its window, so it is answered with an acknowledgement.
            let late = raw::ip(there, *own, TCP, &raw::tcp(at, end, ACK, b"late"));
            wait::until("TIME_WAIT answers", SOON, || {
                let before = bench.count(Counter::GuardSegment);
                world.inside.netns().run(|| raw::send_ip(*own, &late))??;
                wait::until("an answer", std::time::Duration::from_millis(600), || {
                    wait::holds(bench.count(Counter::GuardSegment) > before, || "nothing".to_owned())
                })
            })?;
        }
        Ok(())
    })
}

/// Pings within the mesh, ICMP errors, neighbours found anew from both sides.
#[test]
fn what_keeps_a_network_going_passes() -> Result<()> {
    const ECHO: [u8; 8] = [8, 0, 0xf7, 0xff, 0, 0, 0, 0];
    unhindered(|bench, world| {
        let node = bench.topology.node(Side::A).netns();
        world.client.netns().sysctl("net/ipv4/ping_group_range", "0 2147483647")?;
        for round in 0..3 {
            world.client.netns().ip("neigh flush dev eth0")?;
            node.ip("neigh flush dev pod1")?;
            for ip in world.inside.ips() {
                served(&world.client, SocketAddr::new(ip, 8080))?;
            }
            node.ip("neigh flush dev pod1")?;
            for ip in world.client.ips() {
                refused(&world.outside, SocketAddr::new(ip, 9 + round))?;
            }
        }
        // The node asks under the address that it sends from, so the answer goes to one that is not of the link.
        for ip in world.client.ips() {
            node.ip("neigh flush dev pod1")?;
            let closed = node.run(|| TcpStream::connect_timeout(&SocketAddr::new(ip, 9), SOON))?;
            let refused = closed.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused);
            ensure!(refused, "the node to {ip}: {closed:?}");
        }
        ensure!(bench.count(Counter::GuardLink) > 0, "no neighbour was asked for");
        let to = SocketAddr::new(world.inside.ip(), 9);
        let before = bench.count(Counter::GuardDatagram);
        world.client.netns().run(|| of_protocol(to, libc::SOCK_DGRAM, libc::IPPROTO_ICMP, &ECHO, false))??;
        // A datagram of a pod of the mesh to a closed port is answered by an ICMP error.
        let IpAddr::V4(_) = world.client.ip() else { panic!("not IPv4") };
        for ip in world.client.ips() {
            world.inside.netns().run(|| WAYS[1].1(SocketAddr::new(ip, 9)))??;
        }
        wait::until("echo and errors pass", SOON, || {
            let passed = bench.count(Counter::GuardDatagram) - before;
            wait::holds(passed >= 3, || format!("{passed}"))
        })
    })
}
