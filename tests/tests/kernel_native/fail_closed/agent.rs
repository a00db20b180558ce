//! A pod whose agent is there: what has no record, and what nobody is found for, reaches neither it nor anybody else.

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use anyhow::{Result, ensure};
use aya::maps::{MapData, SockHash};
use mesh_agent::capture::{EnrolledPod, PodSockets};
use mesh_agent::model::workload::PeerMode;
use mesh_agent::proxy::pod_net::PodNet;
use mesh_common::counter::Counter;
use mesh_common::key::{LISTENER_OUTBOUND, ListenerKey, OrigKey};
use mesh_common::limits;
use mesh_common::value::{LANE_CAPTURED, OrigDst};
use mesh_tests::pod::Pod;

use super::{Row, each_fails_closed, forget, full, nobody, refuses};
use crate::bench::*;
use crate::pair::*;

pub(super) struct Captured {
    client: Pod,
    net: Arc<EnrolledPod>,
    sockets: PodSockets,
    /// A captured pod elsewhere.
    remote: SocketAddr,
}

pub(super) const ROWS: &[Row<Captured>] = &[
    Row::new("orig_dsts", "no room for a record", |bench, at| {
        let record = |n| (OrigKey::new(0, nobody(n), 0, 0), OrigDst { ip: [0; 16], port: 0, lane: LANE_CAPTURED });
        full(bench, "orig_dsts", limits::ORIG_DSTS, record, |b| {
            refuses(b, &at.client, at.remote, &[Counter::SockopsStoreFailed, Counter::LookupAgentPort])
        })
    }),
    Row::new("ACCEPTED", "gone when the agent asks for the destination", |bench, at| {
        let client = at.client.ask_later("probe", at.remote, &["--within-ms", "5000"])?;
        let stream = accept(&at.sockets.outbound)?;
        forget::<OrigDst>(bench, "ACCEPTED", &stream)?;
        // The proxy resets what has no destination, and counts it: `proxy::failure`, NoOrigDst.
        ensure!(at.net.original_destination(stream.as_fd()).is_none(), "a destination from nowhere");
        drop(stream);
        client.answer(SOON).map(drop)
    }),
    Row::new("listeners", "no entry", |bench, at| {
        let mut listeners: SockHash<MapData, ListenerKey> = pinned(bench, "listeners")?;
        let outbound = ListenerKey { netns_cookie: at.net.netns_cookie(), kind: LISTENER_OUTBOUND, pad: 0 };
        listeners.remove(&outbound)?;
        refuses(bench, &at.client, at.remote, &[Counter::LookupNoListener])?;
        Ok(listeners.insert(outbound, at.sockets.outbound.as_raw_fd(), 0)?)
    }),
];

#[test]
fn captured_connections_are_refused_whatever_map_fails() -> Result<()> {
    node(|bench| {
        let client = bench.pod("client")?;
        let (net, sockets) = bench.enrol(captured_workload(&client, PeerMode::Strict))?;
        let captured = Captured { client, net, sockets, remote: format!("{}:80", REMOTE[0]).parse()? };
        each_fails_closed(ROWS, bench, &captured, |at| {
            let client = at.client.ask_later("probe", at.remote, &["--within-ms", "5000"])?;
            let stream = accept(&at.sockets.outbound)?;
            ensure!(at.net.original_destination(stream.as_fd()).is_some(), "no destination");
            drop(stream);
            client.answer(SOON).map(drop)
        })
    })
}
