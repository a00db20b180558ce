//! Two enrolled pods of one node, whose agent is away, and rules between them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use aya::maps::{HashMap as BpfHashMap, Map, MapData, MapError};
use mesh_agent::capture::{EnrolledPod, EventReader, KernelEvent};
use mesh_agent::model::policy::{Action, IdentityMatch, Policy, Rule, Source, Target};
use mesh_agent::model::workload::{Captured, PeerMode, Workload};
use mesh_common::counter::Counter;
use mesh_common::value::ShareValue;
use mesh_tests::pod::Pod;

use crate::bench::{Bench, SOON, workload_of};

/// A client without rules, and a server in the given mode. Nobody accepts on the agent's listeners.
pub struct Pair {
    pub client: Pod,
    pub server: Pod,
    pub client_net: Arc<EnrolledPod>,
    pub server_net: Arc<EnrolledPod>,
}

pub fn pair(bench: &mut Bench, mode: PeerMode) -> Result<Pair> {
    let (client, server) = (bench.pod("client")?, bench.pod("server")?);
    let (client_net, _gone) = bench.enrol(captured_workload(&client, PeerMode::Permissive))?;
    // Enrolled last: the endpoint of the bench's Service.
    let (server_net, _gone) = bench.enrol(captured_workload(&server, mode))?;
    Ok(Pair { client, server, client_net, server_net })
}

/// A pod of this node that is published as captured.
pub fn captured_workload(pod: &Pod, mode: PeerMode) -> Workload {
    Workload { captured: Some(Captured { generation: 1, wire: [].into() }), ..workload_of(pod, mode) }
}

/// A policy for the whole mesh, with one rule: `account` (anybody when `None`) on `ports` (all when `None`).
pub fn rule(name: &str, action: Action, account: Option<&str>, ports: Option<Vec<u16>>) -> Arc<Policy> {
    let source = |account: &str| Source {
        identity: Some(IdentityMatch::ServiceAccount { namespace: "test".into(), name: account.into() }),
        ..Source::default()
    };
    policy(name, action, Rule { sources: account.map(|account| vec![source(account)]), ports, requests: None })
}

/// Allows an address range.
pub fn cidr_rule(cidr: &str) -> Arc<Policy> {
    let source = Source { cidrs: Some(vec![cidr.parse().unwrap()]), ..Source::default() };
    policy("by-address", Action::Allow, Rule { sources: Some(vec![source]), ..Rule::default() })
}

pub fn policy(name: &str, action: Action, rule: Rule) -> Arc<Policy> {
    Arc::new(Policy {
        namespace: "test".into(),
        name: name.into(),
        action,
        target: Target::Mesh,
        rules: vec![rule],
        broken: None,
    })
}

pub fn counts<const N: usize>(bench: &Bench, counters: [Counter; N]) -> [u64; N] {
    counters.map(|counter| bench.count(counter))
}

/// A pinned map, to look into or to tamper with.
pub fn pinned<M: TryFrom<Map, Error = MapError>>(bench: &Bench, name: &str) -> Result<M> {
    let folders = std::fs::read_dir(bench.pins())?.filter_map(Result::ok).map(|entry| entry.path());
    let pin = folders.map(|folder| folder.join(name)).find(|pin| pin.exists());
    let pin = pin.with_context(|| format!("no map {name} is pinned"))?;
    Ok(M::try_from(Map::from_map_data(MapData::from_pin(pin)?)?)?)
}

/// One with keys.
pub fn map<K: aya::Pod, V: aya::Pod>(bench: &Bench, name: &str) -> Result<BpfHashMap<MapData, K, V>> {
    pinned(bench, name)
}

/// Every pod's count of records.
pub fn records(bench: &Bench) -> Result<BTreeMap<u64, i64>> {
    let shares: BpfHashMap<_, u64, ShareValue> = map(bench, "shares")?;
    Ok(shares.iter().map(|entry| entry.map(|(cookie, share)| (cookie, share.records))).collect::<Result<_, _>>()?)
}

/// The kernel's events, in order.
pub struct Events {
    runtime: tokio::runtime::Runtime,
    reader: EventReader,
}

impl Events {
    pub fn of(bench: &Bench) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let reader = {
            let _inside = runtime.enter();
            bench.kernel.events()?
        };
        Ok(Self { runtime, reader })
    }

    /// The first event that `wanted` takes.
    pub fn until<T>(&mut self, wanted: impl Fn(&KernelEvent) -> Option<T>) -> Result<T> {
        let reader = &mut self.reader;
        let found = async {
            loop {
                let event = reader.next().await.context("the ring is gone")?;
                if let Some(found) = wanted(&event) {
                    return Ok(found);
                }
            }
        };
        self.runtime.block_on(async { tokio::time::timeout(SOON.max(Duration::from_secs(5)), found).await })?
    }
}
