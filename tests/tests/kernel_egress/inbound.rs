//! UDP into strict pods: refused by the pod's own look-up.

use std::net::{SocketAddr, UdpSocket};

use anyhow::{Result, ensure};
use mesh_agent::capture::KernelEvent;
use mesh_agent::model::egress::UdpRefusals;
use mesh_agent::model::workload::{PeerMode, Workload};
use mesh_common::counter::Counter;
use mesh_tests::datagram::WAYS;

use crate::bench::*;
use crate::pair::*;
use crate::world::*;

#[test]
fn a_strict_pod_takes_no_udp_on_the_ports_that_its_policy_names() -> Result<()> {
    node(|bench| {
        let (server, client) = (bench.pod("server")?, bench.pod("client")?);
        let ports = UdpRefusals { all: None, ports: [(5353, "test/udp".into())].into() };
        let strict = Workload { udp_refusals: ports.into(), ..captured_workload(&server, PeerMode::Strict) };
        let _gone = bench.enrol(strict.clone())?;
        let mut events = Events::of(bench)?;
        for ip in server.ips() {
            let (named, free) = (SocketAddr::new(ip, 5353), SocketAddr::new(ip, 5354));
            let (closed, open) = (inbox(&server, named)?, inbox(&server, free)?);
            closed.set_nonblocking(true)?;
            let before = bench.count(Counter::LookupUdpStrict);
            for (at, (how, way)) in (1..).zip(WAYS) {
                // Whoever connects may hear of it at once; the datagram leaves all the same.
                let _ = client.netns().run(|| way(named))?;
                client.netns().run(|| way(free))??;
                ensure!(arrived(&open)?, "{how} to a port that is not named did not arrive");
                ensure!(bench.count(Counter::LookupUdpStrict) == before + at, "{how} to {named} is not counted");
                ensure!(!arrived(&closed)?, "{how} to {named} arrived");
            }
            // Its own loopback is its own.
            let here: SocketAddr = if ip.is_ipv4() { "127.0.0.1:5353".parse()? } else { "[::1]:5353".parse()? };
            let own = inbox(&server, here)?;
            server.netns().run(|| WAYS[1].1(here))??;
            ensure!(arrived(&own)?, "what the pod sends to itself is refused");
        }
        let refusal = events.until(|event| match event {
            KernelEvent::Refused(refusal) => Some(*refusal),
            KernelEvent::Closed(_) => None,
        })?;
        assert_eq!((refusal.exit, refusal.local.port()), (Counter::LookupUdpStrict, 5353));

        let all = UdpRefusals { all: Some("test/udp".into()), ..UdpRefusals::default() };
        bench.replace(Workload { udp_refusals: all.into(), ..strict.clone() })?;
        let free = SocketAddr::new(server.ip(), 5354);
        let open = inbox(&server, free)?;
        open.set_nonblocking(true)?;
        client.netns().run(|| WAYS[1].1(free))??;
        ensure!(!arrived(&open)?, "`all` leaves a port open");
        bench.replace(Workload { udp_refusals: UdpRefusals::default().into(), ..strict })?;
        open.set_nonblocking(false)?;
        client.netns().run(|| WAYS[1].1(free))??;
        ensure!(arrived(&open)?, "it stays closed when nothing refuses");
        Ok(())
    })
}

/// Answers to what the pod itself asked: a connected socket gets them, an unconnected one those of admitted servers.
#[test]
fn answers_come_in_although_every_port_is_closed() -> Result<()> {
    node(|bench| {
        let (server, dns) = (bench.pod("server")?, bench.pod("dns")?);
        let all = UdpRefusals { all: Some("test/udp".into()), ..UdpRefusals::default() };
        let strict = Workload { udp_refusals: all.into(), ..captured_workload(&server, PeerMode::Strict) };
        let _gone = bench.enrol(strict)?;
        let resolver = SocketAddr::new(dns.ip(), 53);
        let asked = inbox(&dns, resolver)?;
        let ask = |connect: bool| -> Result<UdpSocket> {
            let socket = server.netns().run(|| UdpSocket::bind("0.0.0.0:0"))??;
            socket.set_read_timeout(Some(std::time::Duration::from_millis(500)))?;
            if connect {
                socket.connect(resolver)?;
            }
            socket.send_to(b"out", resolver)?;
            Ok(socket)
        };
        let answers = |bench: &mut Bench, connect: bool| -> Result<bool> {
            let _ = &bench;
            let socket = ask(connect)?;
            let (_, from) = asked.recv_from(&mut [0; 8])?;
            asked.send_to(b"out", from)?;
            arrived(&socket)
        };
        ensure!(answers(bench, true)?, "a connected socket hears no answer");
        ensure!(!answers(bench, false)?, "an unconnected one hears a stranger");
        bench.udp_services = vec![cluster_dns(Some(resolver))];
        bench.sync()?;
        ensure!(answers(bench, false)?, "an unconnected one does not hear cluster DNS");
        ensure!(bench.count(Counter::LookupUdpAdmitted) == 1, "not counted");
        Ok(())
    })
}
