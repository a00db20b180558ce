//! Looking after the records of connections: what live native ones have carried so far, and what was left behind.
//!
//! A record goes with its connection, by the hooks. What they miss (a socket whose cgroup was taken from under them, a
//! program replaced at the wrong moment) would use up a pod's share: it is found by asking the pod for its sockets.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aya::maps::{HashMap as BpfHashMap, MapData};
use mesh_common::key::{FlowKey, OrigKey};
use mesh_common::value::{CLIENT_CLOSED, FlowValue, LIVE, ShareValue};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetResponse};

use super::kernel::Kernel;
use super::pod::EnrolledPod;
use super::records::Tables;
use super::sockets::dump_all;
use super::sync::key_ip;
use crate::model::addr::canonical;

/// A native connection that stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveNative {
    /// Cookie of the client's netns.
    pub client_cookie: u64,
    /// Cookie of the server's netns.
    pub server_cookie: u64,
    /// The client's end.
    pub client: SocketAddr,
    /// The server's end.
    pub server: SocketAddr,
    /// What the application dialled.
    pub dialled: SocketAddr,
    /// `CLOCK_MONOTONIC` at its SYN, in nanoseconds: tells it from an earlier one between the same ends.
    pub started_ns: u64,
    /// What it has carried so far.
    pub traffic: Traffic,
}

/// What a socket has carried, as TCP counts it for the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes that the server acknowledged.
    pub sent: u64,
    /// Bytes received.
    pub received: u64,
    /// Smoothed round-trip time.
    pub round_trip: Duration,
    /// Segments sent again.
    pub retransmits: u32,
}

/// What a sweep found.
#[derive(Debug, Default)]
pub struct Sweep {
    /// Native connections that stand.
    pub live: Vec<LiveNative>,
    /// Records that had no socket any more, and are gone now.
    pub orphans: usize,
}

/// One end of a connection and the other: what records and sockets have in common.
type Ends = (SocketAddr, SocketAddr);

impl Kernel {
    /// Reads every native connection that stands, and removes the records of enrolled pods that no socket stands for.
    ///
    /// Blocks for the length of the dumps: not for an async thread.
    #[must_use]
    pub fn sweep(&self) -> Sweep {
        let read = Read::of(&self.records.lock());
        let busy: HashSet<u64> = (read.flows.iter().map(|(_, flow)| holder(flow)))
            .chain(read.waiting.iter().map(|key| key.netns_cookie))
            .collect();
        let pods: Vec<Arc<EnrolledPod>> = self.enrolments.lock().values().cloned().collect();
        let mut sweep = Sweep::default();
        let mut suspects = HashSet::new();
        for pod in pods {
            let cookie = pod.netns.cookie;
            let sockets = if busy.contains(&cookie) { pod.sockets() } else { Ok(HashMap::new()) };
            let Ok(sockets) = sockets else { continue };
            let own = |flow: &&(FlowKey, FlowValue)| holder(&flow.1) == cookie;
            let mut tables = self.records.lock();
            // The records were read before the sockets: one without a socket has lost it.
            for (key, flow) in read.flows.iter().filter(own) {
                let (client, server) = ends(key);
                let held = if has_client(flow) { (client, server) } else { (server, client) };
                match sockets.get(&held) {
                    Some(traffic) if flow.stage & LIVE != 0 && has_client(flow) => {
                        sweep.live.push(live(key, flow, *traffic));
                    }
                    Some(_) => {}
                    None => sweep.orphans += usize::from(forget(&mut tables.flows, key, flow)),
                }
            }
            let clients: HashSet<SocketAddr> = sockets.keys().map(|(local, _)| *local).collect();
            for key in read.waiting.iter().filter(|key| key.netns_cookie == cookie) {
                if clients.contains(&canonical(SocketAddr::new(key.ip.into(), key.port))) {
                    continue;
                }
                // They do not say when they were written: a new one between the same ends is gone by the next sweep.
                if tables.suspects.contains(key) {
                    sweep.orphans += usize::from(tables.orig_dsts.remove(key).is_ok());
                } else {
                    suspects.insert(*key);
                }
            }
        }
        self.records.lock().suspects = suspects;
        self.correct_shares();
        sweep
    }

    /// Sets a pod's count right when it was wrong by the same amount twice: between two readings of a map that
    /// changes all the time nothing else is certain.
    fn correct_shares(&self) {
        let mut counted: BTreeMap<u64, i64> = BTreeMap::new();
        let read = Read::of(&self.records.lock());
        for (_, flow) in &read.flows {
            *counted.entry(flow.netns_cookie).or_default() += 1;
        }
        for key in &read.waiting {
            *counted.entry(key.netns_cookie).or_default() += 1;
        }
        let mut maps = self.lock_maps();
        let shares: Vec<(u64, ShareValue)> = maps.shares.iter().filter_map(Result::ok).collect();
        let mut drifts = BTreeMap::new();
        for (cookie, share) in shares {
            let real = counted.get(&cookie).copied().unwrap_or(0);
            let drift = share.records - real;
            if drift != 0 && maps.drifts.get(&cookie) == Some(&drift) {
                tracing::warn!(netns_cookie = cookie, drift, "a pod's count of records was wrong and is corrected");
                let _ = maps.shares.insert(cookie, ShareValue { records: real }, 0);
            } else if drift != 0 {
                drifts.insert(cookie, drift);
            }
        }
        maps.drifts = drifts;
    }
}

/// The records at one time.
struct Read {
    flows: Vec<(FlowKey, FlowValue)>,
    waiting: Vec<OrigKey>,
}

impl Read {
    fn of(tables: &Tables) -> Self {
        Self {
            flows: tables.flows.iter().filter_map(Result::ok).collect(),
            waiting: tables.orig_dsts.keys().filter_map(Result::ok).collect(),
        }
    }
}

/// Whether the client's socket stands, as far as its record knows.
fn has_client(flow: &FlowValue) -> bool {
    flow.stage & CLIENT_CLOSED == 0
}

/// Cookie of the netns with the socket that the record stands for: the server's once the client's is closed.
fn holder(flow: &FlowValue) -> u64 {
    if has_client(flow) { flow.netns_cookie } else { flow.server_cookie }
}

/// Removes a record unless it has changed: its ends may have a new one by now, or the client's end is closed.
fn forget(map: &mut BpfHashMap<MapData, FlowKey, FlowValue>, key: &FlowKey, flow: &FlowValue) -> bool {
    map.get(key, 0).is_ok_and(|now| now == *flow) && map.remove(key).is_ok()
}

impl EnrolledPod {
    /// Every TCP socket of the pod that has two ends, with what it has carried.
    fn sockets(&self) -> io::Result<HashMap<Ends, Traffic>> {
        let sockets = self.netns.within(|| dump_all(&ExtensionFlags::INFO))?;
        Ok(sockets.iter().map(|socket| (ends_of(socket), traffic(socket))).collect())
    }
}

fn live(key: &FlowKey, flow: &FlowValue, traffic: Traffic) -> LiveNative {
    let (client, server) = ends(key);
    LiveNative {
        client_cookie: flow.netns_cookie,
        server_cookie: flow.server_cookie,
        client,
        server,
        dialled: canonical(SocketAddr::new(flow.orig_ip.into(), flow.orig_port)),
        started_ns: flow.started_ns,
        traffic,
    }
}

fn ends(key: &FlowKey) -> Ends {
    let end = |ip: [u8; 16], port| canonical(SocketAddr::new(ip.into(), port));
    (end(key.client_ip, key.client_port), end(key.server_ip, key.server_port))
}

fn ends_of(socket: &InetResponse) -> Ends {
    let id = &socket.header.socket_id;
    (
        canonical(SocketAddr::new(id.source_address, id.source_port)),
        canonical(SocketAddr::new(id.destination_address, id.destination_port)),
    )
}

/// `struct tcp_info` of linux/tcp.h, as far as it is needed; SYN and FIN count as a byte each.
fn traffic(socket: &InetResponse) -> Traffic {
    let info = socket.nlas.iter().find_map(|nla| match nla {
        Nla::TcpInfo(info) => Some(info.as_slice()),
        _ => None,
    });
    let info = info.unwrap_or_default();
    let word = |at: usize| info.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes);
    let long = |at: usize| info.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes);
    Traffic {
        sent: long(120).saturating_sub(1),
        received: long(128),
        round_trip: Duration::from_micros(word(68).into()),
        retransmits: word(100),
    }
}

/// The key of a record, from its ends.
pub(super) fn flow_key(client: SocketAddr, server: SocketAddr) -> FlowKey {
    FlowKey {
        client_ip: key_ip(client.ip()),
        server_ip: key_ip(server.ip()),
        client_port: client.port(),
        server_port: server.port(),
    }
}
