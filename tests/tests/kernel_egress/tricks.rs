//! Ways out of a pod that refuses what is outside, each with what becomes of it: what the socket hooks stop, and what
//! they cannot see. docs/security.md has the list.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;

use anyhow::{Result, ensure};
use mesh_common::counter::Counter;
use mesh_tests::datagram::{WAYS, WORD, of_protocol};
use mesh_tests::topology::Side;
use mesh_tests::{dial, sys};
use nix::libc;

use crate::bench::*;
use crate::world::*;

#[test]
fn tcp_is_refused_however_it_is_dialled() -> Result<()> {
    world(|bench, world| {
        world.client.netns().sysctl("net/ipv4/tcp_fastopen", "1543")?;
        for ip in world.outside.ips() {
            let to = SocketAddr::new(ip, 8080);
            for (how, connect) in dial::WAYS {
                let before = bench.count(Counter::ConnectEgress);
                let outcome = world.client.netns().run(|| connect(to))?.map(drop);
                let refused = outcome.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
                ensure!(refused, "{how} to {to}: {outcome:?}");
                ensure!(bench.count(Counter::ConnectEgress) == before + 1, "{how} to {to} is not counted");
            }
        }
        Ok(())
    })
}

#[test]
fn udp_is_refused_however_it_is_sent() -> Result<()> {
    world(|bench, world| {
        for ip in world.outside.ips() {
            let to = SocketAddr::new(ip, 9000);
            let inbox = inbox(&world.outside, to)?;
            inbox.set_nonblocking(true)?;
            for (how, way) in WAYS {
                let count =
                    |bench: &Bench| bench.count(Counter::SendmsgEgress) + bench.count(Counter::ConnectUdpEgress);
                let before = count(bench);
                refused_way(&world.client, how, way, to)?;
                ensure!(count(bench) == before + 1, "{how} to {to} is not counted");
                ensure!(!arrived(&inbox)?, "{how} to {to} arrived");
            }
        }
        Ok(())
    })
}

/// Multicast, broadcast, on-link addresses, the node itself, the pod's gateway: none of it is in the mesh.
#[test]
fn what_is_near_is_outside_as_well() -> Result<()> {
    world(|_, world| {
        let near = ["224.0.0.251:5353", "255.255.255.255:67", "10.244.1.1:53", "192.168.250.1:53", "[ff02::fb]:5353"];
        for to in near.map(|to| to.parse::<SocketAddr>().expect("an address")) {
            let (how, way) = WAYS[1];
            let sent = world.client.netns().run(|| way(to))?;
            ensure!(sent.is_err(), "{how} to {to} was sent");
        }
        // What stays in the pod does.
        for to in ["127.0.0.1:9", "0.0.0.0:9", "[::1]:9", "[::]:9"].map(|to| to.parse::<SocketAddr>().expect("one")) {
            world.client.netns().run(|| WAYS[1].1(to))??;
        }
        for ip in world.client.ips() {
            world.client.netns().run(|| WAYS[1].1(SocketAddr::new(ip, 9)))??;
        }
        Ok(())
    })
}

/// What the socket hooks stop of other protocols, and what they do not see.
#[test]
fn other_protocols_go_where_the_list_in_the_docs_says() -> Result<()> {
    const ECHO: [u8; 8] = [8, 0, 0xf7, 0xff, 0, 0, 0, 0];
    world(|_, world| {
        world.client.netns().sysctl("net/ipv4/ping_group_range", "0 2147483647")?;
        let to = SocketAddr::new(world.outside.ip(), 9000);
        type Row<'a> = (&'a str, i32, i32, &'a [u8], bool, bool);
        let rows: [Row<'_>; 7] = [
            ("UDP-Lite, connected", libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE, b"out", true, UDPLITE_CONNECT),
            ("UDP-Lite, sendto", libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE, b"out", false, true),
            ("ping socket, connected", libc::SOCK_DGRAM, libc::IPPROTO_ICMP, &ECHO, true, true),
            ("ping socket, sendto", libc::SOCK_DGRAM, libc::IPPROTO_ICMP, &ECHO, false, false),
            ("raw ICMP", libc::SOCK_RAW, libc::IPPROTO_ICMP, &ECHO, false, false),
            ("raw UDP", libc::SOCK_RAW, libc::IPPROTO_UDP, &[0; 8], false, false),
            ("raw IP of another protocol", libc::SOCK_RAW, 253, b"out", false, false),
        ];
        for (what, kind, protocol, bytes, connect, stopped) in rows {
            let sent = world.client.netns().run(|| of_protocol(to, kind, protocol, bytes, connect))?;
            if sent.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::EPROTONOSUPPORT)) {
                eprintln!("{what}: this kernel has no such sockets");
                continue;
            }
            let refused = sent.as_ref().is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused);
            ensure!(
                refused == stopped,
                "{what}: {sent:?}, and the list says {}",
                if stopped { "stopped" } else { "not" }
            );
        }
        Ok(())
    })
}

/// The first hop of a source route is where a packet goes, and the hooks see its last one. A node drops such packets
/// unless it is told otherwise.
#[test]
fn a_source_route_is_not_seen() -> Result<()> {
    world(|bench, world| {
        let SocketAddr::V4(hop) = SocketAddr::new(world.outside.ip(), 9000) else { panic!("not IPv4") };
        let [a, b, c, d] = hop.ip().octets();
        // Loose source route (RFC 791): type, length, pointer, one hop; end of options.
        let route = [131, 7, 4, a, b, c, d, 0];
        let wire = Wire::of(&world.outside)?;
        for accepted in [false, true] {
            let node = bench.topology.node(Side::A).netns();
            node.sysctl("net/ipv4/conf/all/accept_source_route", if accepted { "1" } else { "0" })?;
            world.client.netns().run(|| -> Result<()> {
                let socket: OwnedFd = UdpSocket::bind("0.0.0.0:0")?.into();
                sys::set_ip_options(&socket, &route)?;
                UdpSocket::from(socket).send_to(WORD, world.admitted[0])?;
                Ok(())
            })??;
            ensure!(
                wire.carries(WORD)? == accepted,
                "with accept_source_route {accepted} the list in the docs is wrong"
            );
        }
        Ok(())
    })
}

/// Connected UDP-Lite has no hook.
const UDPLITE_CONNECT: bool = false;
