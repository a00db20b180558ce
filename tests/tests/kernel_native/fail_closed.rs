//! Whatever a map lacks, a strict pod is reached by nobody whom its rules do not allow.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use mesh_agent::model::policy::Action;
use mesh_agent::model::workload::PeerMode;
use mesh_common::counter::Counter;
use mesh_common::key::{FlowKey, Ip, PolicyKey};
use mesh_common::tag::Reference;
use mesh_common::value::{FlowValue, MeshIpValue, PolicyValue, ShareValue};

use crate::bench::*;
use crate::pair::*;

/// Each row: the map, how it is spoilt, and the exit that must count the refusal.
#[test]
fn a_map_that_lacks_an_entry_refuses_and_counts() -> Result<()> {
    type Spoil = fn(&Bench, u64) -> Result<()>;
    let rows: [(&str, Spoil, Counter); 7] = [
        ("policy", |bench, _| empty::<PolicyKey, PolicyValue>(bench, "policy"), Counter::ConnectDenied),
        ("shares", |bench, _| empty::<u64, ShareValue>(bench, "shares"), Counter::ConnectShareFull),
        ("mesh_ips", |bench, _| empty::<Ip, MeshIpValue>(bench, "mesh_ips"), Counter::LookupStrict),
        ("pods, the server's", |bench, server| remove_pod(bench, server), Counter::LookupNoPod),
        ("pods, all", |bench, _| empty::<u64, Reference>(bench, "pods"), Counter::LookupNoPod),
        ("pods, the client's word", |bench, server| mistake(bench, |pod| pod != server), Counter::EntryForeign),
        ("pods, the server's word", |bench, server| mistake(bench, |pod| pod == server), Counter::EntryForeign),
    ];
    for (what, spoil, exit) in rows {
        node(|bench| {
            let Pair { client, server, server_net, .. } = pair(bench, PeerMode::Strict)?;
            let _app = server.sample_server("greeter", 8080, &[])?;
            bench.policies = vec![rule("allow", Action::Allow, Some(client.name()), None)];
            bench.sync()?;
            let to = SocketAddr::new(server.ip(), 8080);
            served(&client, to)?;
            let cookie = server_net.netns_cookie();
            let before = bench.count(exit);
            spoil(bench, cookie)?;
            let answer = probe(&client, to)?;
            ensure!(outcome(&answer) == "ConnectionRefused", "{what}: {answer}");
            ensure!(bench.count(exit) > before, "{what}: not counted as {}", exit.as_str());
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_full_map_of_records_refuses_and_counts() -> Result<()> {
    node(|bench| {
        let Pair { client, server, .. } = pair(bench, PeerMode::Strict)?;
        let _app = server.sample_server("greeter", 8080, &[])?;
        let to = SocketAddr::new(server.ip(), 8080);
        served(&client, to)?;
        let mut flows = map::<FlowKey, FlowValue>(bench, "flows")?;
        let filler = FlowValue {
            netns_cookie: 1,
            server_cookie: 1,
            started_ns: 0,
            identity: [0; 16],
            orig_port: 0,
            stage: 0,
            kind: 0,
            orig_ip: [0; 16],
        };
        let key = |n: u32| {
            let mut ip = [0; 16];
            ip[..4].copy_from_slice(&n.to_ne_bytes());
            FlowKey { client_ip: ip, server_ip: [0; 16], client_port: 0, server_port: 0 }
        };
        let full = (0..=mesh_common::limits::FLOWS).find(|n| flows.insert(key(*n), filler, 0).is_err());
        ensure!(full.is_some(), "the map takes more than its capacity");
        refused(&client, to)?;
        ensure!(bench.count(Counter::SockopsStoreFailed) == 1, "a record that could not be written is not counted");
        ensure!(bench.count(Counter::LookupStrict) >= 1, "the receiver did not refuse");
        // A full map holds up nobody for longer than it is full.
        for n in 0..full.unwrap_or(0) {
            flows.remove(&key(n))?;
        }
        served(&client, to)?;
        Ok(())
    })
}

/// A record that names another pod, or none that is enrolled, proves nothing.
#[test]
fn a_foreign_record_proves_nothing() -> Result<()> {
    node(|bench| {
        let Pair { server, server_net, .. } = pair(bench, PeerMode::Strict)?;
        let outsider = bench.pod("outsider")?;
        let _app = server.sample_server("greeter", 8080, &[])?;
        let cookie = server_net.netns_cookie();
        refused(&outsider, SocketAddr::new(server.ip(), 8080))?;
        ensure!(bench.count(Counter::LookupStrict) >= 1 && cookie != 0, "the refusal is not counted");
        Ok(())
    })
}

fn empty<K: aya::Pod, V: aya::Pod>(bench: &Bench, name: &str) -> Result<()> {
    let mut map = map::<K, V>(bench, name)?;
    let keys: Vec<K> = map.keys().collect::<Result<_, _>>()?;
    ensure!(!keys.is_empty(), "{name} was empty before");
    keys.iter().try_for_each(|key| map.remove(key)).map_err(Into::into)
}

fn remove_pod(bench: &Bench, cookie: u64) -> Result<()> {
    Ok(map::<u64, Reference>(bench, "pods")?.remove(&cookie)?)
}

/// Puts another pod's word into the entries of these: as if their memory were another's each time they are looked up.
fn mistake(bench: &Bench, whose: impl Fn(u64) -> bool) -> Result<()> {
    let mut pods = map::<u64, Reference>(bench, "pods")?;
    let cookies: Vec<u64> = pods.keys().collect::<Result<_, _>>()?;
    for cookie in cookies.into_iter().filter(|cookie| whose(*cookie)) {
        pods.insert(cookie, Reference::new(&0_u64, 0), 0)?;
    }
    Ok(())
}
