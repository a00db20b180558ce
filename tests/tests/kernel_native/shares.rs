//! A pod that uses up its share of the maps is refused alone.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use mesh_agent::model::workload::PeerMode;
use mesh_common::counter::Counter;
use mesh_common::value::ShareValue;

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
