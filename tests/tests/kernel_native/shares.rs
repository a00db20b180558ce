//! A pod that uses up its share of the maps is refused alone.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use mesh_agent::model::workload::PeerMode;
use mesh_common::counter::Counter;
use mesh_common::key::FlowKey;
use mesh_common::value::{CLIENT_CLOSED, FlowValue, LIVE, ShareValue, UNDER_WAY};

use crate::bench::*;
use crate::pair::*;

#[test]
fn a_pod_at_its_share_is_refused_and_counted_and_its_neighbour_is_not() -> Result<()> {
    node(|bench| {
        let Pair { client, server, client_net, .. } = pair(bench, PeerMode::Strict)?;
        let neighbour = bench.pod("neighbour")?;
        let _neighbour = bench.enrol(captured_workload(&neighbour, PeerMode::Permissive))?;
        let _app = server.sample_server("greeter", 8080, &[])?;
        let to = SocketAddr::new(server.ip(), 8080);
        let cookie = client_net.netns_cookie();
        let mut shares = map::<u64, ShareValue>(bench, "shares")?;
        shares.insert(cookie, ShareValue { records: mesh_common::limits::RECORDS_PER_POD - 1 }, 0)?;
        served(&client, to)?;
        shares.insert(cookie, ShareValue { records: mesh_common::limits::RECORDS_PER_POD }, 0)?;
        refused(&client, to)?;
        served(&neighbour, to)?;
        ensure!(bench.count(Counter::ConnectShareFull) == 1, "the refusal is not counted");
        Ok(())
    })
}

#[test]
fn a_sweep_reads_live_connections_removes_orphans_and_corrects_counts() -> Result<()> {
    use std::io::{Read, Write};
    node(|bench| {
        let Pair { client, server, client_net, server_net } = pair(bench, PeerMode::Strict)?;
        let (mut near, mut far) = crate::revoke::connected(&client, &server, 8080)?;
        near.write_all(&[1; 5000])?;
        far.read_exact(&mut [0; 5000])?;
        far.write_all(&[2; 3000])?;
        near.read_exact(&mut [0; 3000])?;
        let cookie = client_net.netns_cookie();
        let mut flows = map::<FlowKey, FlowValue>(bench, "flows")?;
        let (real, record) = flows.iter().next().expect("the connection's record")?;
        assert_eq!(record.stage, LIVE);
        let orphans = [(1, LIVE), (2, UNDER_WAY), (3, LIVE | CLIENT_CLOSED)]
            .map(|(client_port, stage)| (FlowKey { client_port, ..real }, FlowValue { stage, ..record }));
        for (key, value) in orphans {
            flows.insert(key, value, 0)?;
        }
        let mut shares = map::<u64, ShareValue>(bench, "shares")?;
        shares.insert(cookie, ShareValue { records: 42 }, 0)?;

        let sweep = bench.kernel.sweep();
        assert_eq!((sweep.live.len(), sweep.orphans), (1, 3));
        let live = sweep.live[0];
        assert_eq!((live.client_cookie, live.server_cookie), (cookie, server_net.netns_cookie()));
        assert_eq!((live.client, live.server), (near.local_addr()?, near.peer_addr()?));
        assert_eq!((live.traffic.sent, live.traffic.received), (5000, 3000));
        assert!(orphans.iter().all(|(key, _)| flows.get(key, 0).is_err()) && flows.get(&real, 0).is_ok());
        assert_eq!(shares.get(&cookie, 0)?.records, 42, "one reading is not enough");
        assert_eq!(bench.kernel.sweep().orphans, 0);
        assert_eq!(shares.get(&cookie, 0)?.records, 1, "the live one is counted");
        Ok(())
    })
}
