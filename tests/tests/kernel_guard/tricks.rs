//! Ways to send what is no socket's, each with what becomes of it. docs/security.md has the list.

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, ensure};
use mesh_common::counter::Counter;
use mesh_tests::datagram::{WORD, of_protocol};
use mesh_tests::pod::Pod;
use mesh_tests::raw::{self, ACK, By, RST, SYN, TCP, UDP};
use mesh_tests::topology::Side;
use mesh_tests::{sys, wait};
use nix::libc;

use crate::bench::*;
use crate::world::*;

/// A packet, and the exit by which it is refused.
type Trick = (&'static str, Vec<u8>, Counter);

/// The hardware address of the node's side of the world's client's veth: it is the node's first pod.
fn gateway(bench: &Bench) -> Result<[u8; 6]> {
    bench.topology.node(Side::A).netns().run(|| {
        let mut found = nix::ifaddrs::getifaddrs()?.filter(|one| one.interface_name == "pod1");
        let address = found.find_map(|one| one.address?.as_link_addr()?.addr());
        address.context("the node has no pod1")
    })?
}

/// What is tried towards `to`, by a pod with the address `from`.
fn tricks(from: IpAddr, to: IpAddr) -> Vec<Trick> {
    let (here, there) = (SocketAddr::new(from, 4321), SocketAddr::new(to, 9000));
    let segment = |flags| raw::ip(from, to, TCP, &raw::tcp(here, there, flags, WORD));
    let icmp = |kind: [u8; 2], rest: &[u8]| {
        let kind = if from.is_ipv4() { kind[0] } else { kind[1] };
        raw::ip(from, to, raw::icmp_protocol(from), &raw::icmp(from, to, kind, 0, rest))
    };
    let quoting = |quoted: Vec<u8>| [&[0; 4], &*quoted, WORD].concat();
    let stranger: IpAddr = if from.is_ipv4() { [10, 244, 1, 99].into() } else { "fd00:244:1::99".parse().unwrap() };
    let forged = SocketAddr::new(stranger, 4321);
    let mut tricks = vec![
        ("TCP, SYN", segment(SYN), Counter::GuardNoSocket),
        ("TCP, data", segment(ACK), Counter::GuardOutside),
        ("TCP, SYN and ACK with data", segment(SYN | ACK), Counter::GuardOutside),
        ("TCP, RST with data", segment(RST), Counter::GuardOutside),
        ("UDP", raw::ip(from, to, UDP, &raw::udp(here, there, WORD)), Counter::GuardOutside),
        ("ICMP, echo", icmp([8, 128], &[&[0; 4], WORD].concat()), Counter::GuardOutside),
        (
            "ICMP, unreachable",
            icmp([3, 1], &quoting(raw::ip(to, from, UDP, &raw::udp(there, here, b"")))),
            Counter::GuardOutside,
        ),
        (
            "ICMP, unreachable, of somebody else's packet",
            icmp([3, 1], &quoting(raw::ip(stranger, from, UDP, &raw::udp(forged, here, b"")))),
            Counter::GuardUnreadable,
        ),
        (
            "UDP under another's address",
            raw::ip(stranger, to, UDP, &raw::udp(forged, there, WORD)),
            Counter::GuardSource,
        ),
        (
            "TCP under another's address",
            raw::ip(stranger, to, TCP, &raw::tcp(forged, there, ACK, WORD)),
            Counter::GuardSource,
        ),
        ("SCTP", raw::ip(from, to, 132, WORD), Counter::GuardProtocol),
        ("UDP-Lite", raw::ip(from, to, 136, WORD), Counter::GuardProtocol),
        ("GRE", raw::ip(from, to, 47, WORD), Counter::GuardProtocol),
        (
            "IP in IP",
            raw::ip(from, to, 4, &raw::ip([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), UDP, WORD)),
            Counter::GuardProtocol,
        ),
        ("ESP", raw::ip(from, to, 50, WORD), Counter::GuardProtocol),
        (
            "the other version's ICMP",
            raw::ip(from, to, if from.is_ipv4() { 58 } else { 1 }, &[&[135, 0, 0, 0, 0, 0, 0, 0], WORD].concat()),
            Counter::GuardProtocol,
        ),
        ("a protocol of nobody's", raw::ip(from, to, 253, WORD), Counter::GuardProtocol),
    ];
    if from.is_ipv4() {
        let pad = [WORD, &[0; 5]].concat();
        let part = |protocol, word| raw::fragment(from, to, protocol, &pad, word, 64);
        tricks.extend([
            ("a later fragment of UDP", part(UDP, 3), Counter::GuardOutside),
            ("a later fragment of TCP", part(TCP, 3), Counter::GuardUnreadable),
            ("a later fragment of SCTP", part(132, 3), Counter::GuardProtocol),
            (
                "a first fragment of TCP",
                raw::fragment(from, to, TCP, &raw::tcp(here, there, ACK, WORD), 0x2000, 64),
                Counter::GuardUnreadable,
            ),
        ]);
    } else {
        let udp = raw::udp(here, there, WORD);
        let behind = |next: u8, header: &[u8]| raw::ip(from, to, next, &[header, &udp].concat());
        let options = [60, 0, 1, 4, 0, 0, 0, 0];
        let last = [UDP, 0, 1, 4, 0, 0, 0, 0];
        let neighbour = |kind, code, rest: &[u8], hops| {
            raw::fragment(from, to, 58, &raw::icmp(from, to, kind, code, &[rest, WORD].concat()), 0, hops)
        };
        let IpAddr::V6(target) = to else { unreachable!() };
        let about = [&[0; 4][..], &target.octets()].concat();
        tricks.extend([
            ("UDP behind destination options", behind(60, &last), Counter::GuardOutside),
            ("UDP behind three", behind(60, &[options, options, last].concat()), Counter::GuardOutside),
            ("UDP behind four", behind(60, &[options, options, options, last].concat()), Counter::GuardProtocol),
            ("a later fragment of UDP", behind(44, &[UDP, 0, 0, 8, 0, 0, 0, 1]), Counter::GuardOutside),
            ("a later fragment of TCP", behind(44, &[TCP, 0, 0, 8, 0, 0, 0, 1]), Counter::GuardUnreadable),
            ("a neighbour's question across the router", neighbour(135, 0, &about, 255), Counter::GuardOutside),
            ("a neighbour's answer for another", neighbour(136, 0, &about, 255), Counter::GuardSource),
            ("a neighbour's question from afar", neighbour(135, 0, &about, 64), Counter::GuardUnreadable),
        ]);
    }
    tricks
}

/// Sends by every kind of socket that takes packets made by hand, and looks each time.
fn every_way(
    pod: &Pod,
    to: IpAddr,
    mac: [u8; 6],
    packet: &[u8],
    mut look: impl FnMut(&str, &dyn Fn() -> Result<()>) -> Result<()>,
) -> Result<()> {
    look("a raw IP socket", &|| Ok(pod.netns().run(|| raw::send_ip(to, packet))??))?;
    let frame = raw::frame(mac, packet);
    for (how, by) in [("a packet socket", By::Queue), ("a packet socket, past the queues", By::Bypass)] {
        look(how, &|| Ok(pod.netns().run(|| raw::send_frame("eth0", &frame, by))??))?;
    }
    Ok(())
}

#[test]
fn packets_made_by_hand_do_not_leave() -> Result<()> {
    world(|bench, world| {
        let mac = gateway(bench)?;
        let wire = Wire::of(&world.outside)?;
        for is_guarded in [false, true] {
            if is_guarded {
                crate::guard(bench, world)?;
                // What the outside answers quotes it.
                while wire.carries(WORD)? {}
            }
            for (from, to) in world.client.ips().iter().zip(world.outside.ips()) {
                for (what, packet, exit) in tricks(*from, to) {
                    every_way(&world.client, to, mac, &packet, |how, send| {
                        if is_guarded {
                            return refused_by(bench, exit, &format!("{what} by {how} to {to}"), send);
                        }
                        send()?;
                        ensure!(wire.carries(WORD)?, "{what} by {how} to {to} does not arrive without a guard either");
                        Ok(())
                    })?;
                }
            }
        }
        ensure!(!wire.carries(WORD)?, "something arrived");
        Ok(())
    })
}

/// What a pod of the mesh would get: a segment of no connection, or of another port than the connection's.
#[test]
fn nothing_but_a_connections_own_segments_reaches_the_mesh() -> Result<()> {
    world(|bench, world| {
        let mac = gateway(bench)?;
        let wire = Wire::of(&world.inside)?;
        crate::guard(bench, world)?;
        for (from, to) in world.client.ips().iter().zip(world.inside.ips()) {
            let there = SocketAddr::new(to, 8080);
            let stream = world.client.netns().run(|| std::net::TcpStream::connect(there))??;
            let own = stream.local_addr()?;
            let other = SocketAddr::new(*from, own.port() ^ 1);
            for (what, end, flags) in [("a SYN", other, SYN), ("data", other, ACK), ("RST with data", other, RST)] {
                let packet = raw::ip(*from, to, TCP, &raw::tcp(end, there, flags, WORD));
                every_way(&world.client, to, mac, &packet, |how, send| {
                    refused_by(bench, Counter::GuardNoSocket, &format!("{what} by {how}"), send)
                })?;
            }
            ensure!(!wire.carries(WORD)?, "something arrived");
            // Its own ends may be used by hand as well: it is the pod's own connection.
            let packet = raw::ip(*from, to, TCP, &raw::tcp(own, there, ACK, WORD));
            world.client.netns().run(|| raw::send_ip(to, &packet))??;
            ensure!(wire.carries(WORD)?, "the connection's own ends are refused");
        }
        // The guard's question for a socket is no arrival.
        let arrivals = [Counter::LookupPermissive, Counter::LookupStrict, Counter::LookupPlaintext];
        ensure!(arrivals.iter().all(|counter| bench.count(*counter) == 0), "the pod's own look-up was asked");
        Ok(())
    })
}

/// Sockets that the hooks do not see, without privileges or with CAP_NET_RAW.
#[test]
fn sockets_that_no_hook_sees_are_seen_by_the_guard() -> Result<()> {
    const ECHO: [u8; 8] = [8, 0, 0x83, 0x6c, 0, 0, 0x74, 0x93];
    world(|bench, world| {
        world.client.netns().sysctl("net/ipv4/ping_group_range", "0 2147483647")?;
        crate::guard(bench, world)?;
        let to = SocketAddr::new(world.outside.ip(), 9000);
        type Row<'a> = (&'a str, i32, i32, &'a [u8], bool, Counter);
        let rows: [Row<'_>; 5] = [
            ("UDP-Lite, connected", libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE, b"out", true, Counter::GuardProtocol),
            ("ping socket, sendto", libc::SOCK_DGRAM, libc::IPPROTO_ICMP, &ECHO, false, Counter::GuardOutside),
            ("raw ICMP", libc::SOCK_RAW, libc::IPPROTO_ICMP, &ECHO, false, Counter::GuardOutside),
            ("raw UDP", libc::SOCK_RAW, libc::IPPROTO_UDP, &[0, 9, 0, 9, 0, 8, 0, 0], false, Counter::GuardOutside),
            ("raw IP of another protocol", libc::SOCK_RAW, 253, b"out", false, Counter::GuardProtocol),
        ];
        for (what, kind, protocol, bytes, connect, exit) in rows {
            let send = || world.client.netns().run(|| of_protocol(to, kind, protocol, bytes, connect));
            if send()?.is_err_and(|error| error.raw_os_error() == Some(libc::EPROTONOSUPPORT)) {
                eprintln!("{what}: this kernel has no such sockets");
                continue;
            }
            settle(bench)?;
            refused_by(bench, exit, what, &|| Ok(send()??))?;
        }
        // A source route: first to the hop that it names.
        let SocketAddr::V4(hop) = to else { panic!("not IPv4") };
        let [a, b, c, d] = hop.ip().octets();
        refused_by(bench, Counter::GuardUnreadable, "a source route", &|| {
            world.client.netns().run(|| -> Result<()> {
                let socket: OwnedFd = UdpSocket::bind("0.0.0.0:0")?.into();
                sys::set_ip_options(&socket, &[131, 7, 4, a, b, c, d, 0])?;
                UdpSocket::from(socket).send_to(WORD, world.admitted[0])?;
                Ok(())
            })?
        })
    })
}

/// The pod makes its own kernel believe that somebody outside has opened a connection: the answer would be a socket
/// with exactly those ends.
#[test]
fn a_connection_that_nobody_outside_has_begun_is_not_answered() -> Result<()> {
    world(|bench, world| {
        let wire = Wire::of(&world.outside)?;
        for is_guarded in [false, true] {
            if is_guarded {
                crate::guard(bench, world)?;
            }
            for (port, (own, outside)) in (443..).zip(world.client.ips().iter().zip(world.outside.ips())) {
                let _listener = world.client.netns().run(|| TcpListener::bind((*own, 5000)))??;
                let (there, here) = (SocketAddr::new(outside, port), SocketAddr::new(*own, 5000));
                let packet = raw::ip(outside, *own, TCP, &raw::tcp(there, here, SYN, b""));
                let ends = [5000_u16.to_be_bytes(), port.to_be_bytes()].concat();
                let send = || -> Result<()> { Ok(world.client.netns().run(|| raw::send_ip(*own, &packet))??) };
                if is_guarded {
                    // The kernel answers, and answers again: each is refused.
                    let before = bench.count(Counter::GuardOutside);
                    send()?;
                    ensure!(!wire.carries(&ends)?, "an answer to nobody left for {there}");
                    ensure!(bench.count(Counter::GuardOutside) > before, "it is not counted");
                } else {
                    send()?;
                    ensure!(wire.carries(&ends)?, "no answer leaves for {there} without a guard either");
                }
            }
        }
        Ok(())
    })
}

/// What a router would not carry, but a bridge.
#[test]
fn frames_that_are_no_ip_are_refused_but_for_the_links_own() -> Result<()> {
    world(|bench, world| {
        let mac = gateway(bench)?;
        crate::guard(bench, world)?;
        let (IpAddr::V4(own), IpAddr::V4(to)) = (world.client.ip(), world.outside.ip()) else { panic!("not IPv4") };
        let (here, there) = (SocketAddr::new(own.into(), 4321), SocketAddr::new(to.into(), 9000));
        let udp = raw::ip(own.into(), to.into(), UDP, &raw::udp(here, there, WORD));
        let tagged = |tag: [u8; 2]| [&tag[..], &[0x08, 0x00], &udp].concat();
        let arp = |sender: [u8; 4]| {
            [&[0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1][..], &sender, &[0; 6], &[10, 244, 1, 1]].concat()
        };
        let rows: [(&str, u16, Vec<u8>, Counter); 6] = [
            ("a VLAN tag", 0x8100, tagged([0, 5]), Counter::GuardUnreadable),
            ("a tag of no VLAN", 0x8100, tagged([0, 0]), Counter::GuardUnreadable),
            ("MPLS", 0x8847, udp.clone(), Counter::GuardProtocol),
            ("a frame with a length", 0x0026, vec![0xaa; 38], Counter::GuardProtocol),
            ("half an IP header", 0x0800, udp[..12].to_vec(), Counter::GuardUnreadable),
            ("ARP for another", raw::ARP, arp([10, 244, 1, 99]), Counter::GuardSource),
        ];
        for (what, kind, payload, exit) in rows {
            let frame = raw::framed(mac, kind, &payload);
            for by in [By::Queue, By::Bypass] {
                refused_by(bench, exit, what, &|| {
                    Ok(world.client.netns().run(|| raw::send_frame("eth0", &frame, by))??)
                })?;
            }
        }
        // By a device of the pod's own making on top of its veth.
        world.client.netns().ip("link add mine0 link eth0 type macvlan mode bridge\nlink set mine0 up")?;
        settle(bench)?;
        refused_by(bench, Counter::GuardOutside, "by a macvlan", &|| {
            Ok(world.client.netns().run(|| raw::send_frame("mine0", &raw::frame(mac, &udp), By::Queue))??)
        })?;
        let before = bench.count(Counter::GuardLink);
        let frame = raw::framed(mac, raw::ARP, &arp(own.octets()));
        world.client.netns().run(|| raw::send_frame("eth0", &frame, By::Queue))??;
        wait::until("ARP for itself passes", SOON, || {
            wait::holds(bench.count(Counter::GuardLink) > before, || "it is not counted".to_owned())
        })
    })
}

/// Exits by which the guard refuses.
pub const REFUSALS: [Counter; 7] = [
    Counter::GuardNoPod,
    Counter::GuardUnreadable,
    Counter::GuardProtocol,
    Counter::GuardSource,
    Counter::GuardOutside,
    Counter::GuardNoSocket,
    Counter::GuardStrict,
];

/// Waits for what is under way: the veth hands packets over in softirq.
fn settle(bench: &Bench) -> Result<()> {
    let mut last = None;
    wait::until("refusals settle", SOON, || {
        let now = REFUSALS.map(|counter| bench.count(counter));
        let same = last.replace(now) == Some(now);
        wait::holds(same, || format!("{now:?}"))
    })
}

/// `send` sends one packet, and that is refused by this exit and no other.
pub fn refused_by(bench: &Bench, exit: Counter, what: &str, send: &dyn Fn() -> Result<()>) -> Result<()> {
    let count = || REFUSALS.map(|counter| (counter, bench.count(counter)));
    let wanted = count().map(|(counter, count)| (counter, count + u64::from(counter == exit)));
    send().with_context(|| format!("{what} was not sent"))?;
    wait::until(&format!("{what} is refused by {exit:?}"), SOON, || {
        let now = count();
        wait::holds(now == wanted, || format!("{now:?}"))
    })
}
