//! Into strict pods: what neither TCP nor UDP judges.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use mesh_agent::model::workload::PeerMode;
use mesh_common::counter::Counter;
use mesh_tests::datagram::WORD;
use mesh_tests::raw::{self, UDP};

use crate::bench::*;
use crate::guarded;
use crate::pair::*;
use crate::tricks::refused_by;
use crate::world::Wire;

#[test]
fn a_strict_pod_takes_nothing_but_tcp_udp_and_icmp() -> Result<()> {
    node(|bench| {
        let (server, client) = (bench.pod("server")?, bench.pod("client")?);
        let strict = captured_workload(&server, PeerMode::Strict);
        let _gone = bench.enrol(strict.clone())?;
        let wire = Wire::of(&server)?;
        for is_guarded in [false, true] {
            if is_guarded {
                bench.replace(guarded(strict.clone()))?;
                // What the server answers quotes it.
                while wire.carries(WORD)? {}
            }
            for (from, to) in client.ips().iter().zip(server.ips()) {
                for protocol in [132, 136, 47, 4, 41, 50, 253] {
                    let packet = raw::ip(*from, to, protocol, WORD);
                    let send = || -> Result<()> { Ok(client.netns().run(|| raw::send_ip(to, &packet))??) };
                    if is_guarded {
                        refused_by(bench, Counter::GuardStrict, &format!("protocol {protocol}"), &send)?;
                    } else {
                        send()?;
                        ensure!(wire.carries(WORD)?, "protocol {protocol} does not arrive without a guard either");
                    }
                }
                ensure!(!is_guarded || !wire.carries(WORD)?, "something arrived");
                // UDP is its policy's, ICMP anybody's.
                let (here, there) = (SocketAddr::new(*from, 9), SocketAddr::new(to, 9));
                let echo = raw::icmp(*from, to, if to.is_ipv4() { 8 } else { 128 }, 0, &[&[0; 4], WORD].concat());
                for packet in [
                    raw::ip(*from, to, UDP, &raw::udp(here, there, WORD)),
                    raw::ip(*from, to, raw::icmp_protocol(to), &echo),
                ] {
                    client.netns().run(|| raw::send_ip(to, &packet))??;
                    ensure!(wire.carries(WORD)?, "it does not arrive");
                }
                while wire.carries(WORD)? {}
                refused(&client, SocketAddr::new(to, 8080))?;
            }
        }
        Ok(())
    })
}
