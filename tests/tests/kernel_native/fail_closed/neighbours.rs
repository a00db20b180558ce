//! Two pods of a node, whose agent is away: the client is allowed, and strictness is all that keeps it out when it
//! cannot be proven.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use anyhow::{Result, ensure};
use aya::maps::lpm_trie::Key;
use aya::maps::{HashMap, LpmTrie, MapData, PerCpuArray, PerCpuValues};
use mesh_agent::capture::EnrolledPod;
use mesh_agent::model::addr::key_ip;
use mesh_agent::model::policy::Action;
use mesh_agent::model::workload::{Exclusions, PeerMode, PeerModes, Workload};
use mesh_agent::proxy::pod_net::{PodNet, SocketUse};
use mesh_common::counter::Counter;
use mesh_common::key::{CidrKey, EndpointKey, FlowKey, INBOUND, Ip, PlainKey, PolicyKey, PortKey, ServiceKey};
use mesh_common::limits;
use mesh_common::tag::Reference;
use mesh_common::value::{
    Asked, EndpointValue, FlowValue, MeshIpValue, PlainValue, PolicyValue, PortRule, ServiceValue, ShareValue,
};
use mesh_tests::pod::Pod;
use mesh_tests::process::Process;
use mesh_tests::sys;
use mesh_tests::topology::Side;

use super::{Row, any, counted, each_fails_closed, forget, full, nobody, refuses, with_another, without};
use crate::bench::*;
use crate::pair::*;

/// A port on which rules refuse everybody.
const FORBIDDEN: u16 = 9;
/// A port that the server excludes from the mesh.
const EXCLUDED: u16 = 8081;

pub(super) struct Neighbours {
    client: Pod,
    server: Pod,
    /// Not in the mesh.
    stranger: Pod,
    client_cookie: u64,
    server_cookie: u64,
    server_net: Arc<EnrolledPod>,
    direct: SocketAddr,
    /// What the Service's address leads to without the mesh as well, as with kube-proxy: the server.
    vip: SocketAddr,
    _servers: [Process; 3],
}

/// A node that goes on without its agent where it may: `connect()` of the client falls back.
pub(super) const ROWS: &[Row<Neighbours>] = &[
    Row::new("policy", "no entry", |bench, at| {
        without::<PolicyKey, PolicyValue>(bench, "policy", any, |b| at.direct(b, &[Counter::ConnectDenied]))
    }),
    Row::new("shares", "no entry", |bench, at| {
        without::<u64, ShareValue>(bench, "shares", any, |b| at.direct(b, &[Counter::ConnectShareFull]))
    }),
    Row::new("mesh_ips", "no entry", |bench, at| {
        without::<Ip, MeshIpValue>(bench, "mesh_ips", any, |b| at.direct(b, &[Counter::LookupStrict]))
    }),
    Row::new("pods", "not the server's", |bench, at| {
        let server = |cookie: &u64| *cookie == at.server_cookie;
        without::<u64, Reference>(bench, "pods", server, |b| at.direct(b, &[Counter::LookupNoPod]))
    }),
    Row::new("pods", "not the client's", |bench, at| {
        let client = |cookie: &u64| *cookie == at.client_cookie;
        without::<u64, Reference>(bench, "pods", client, |b| at.direct(b, &[Counter::LookupStrict]))
    }),
    Row::new("pods", "none", |bench, at| {
        without::<u64, Reference>(bench, "pods", any, |b| at.direct(b, &[Counter::LookupNoPod]))
    }),
    Row::new("pods", "another's word for the client's, each time", |bench, at| {
        let word = |_: &u64| Reference::new(&0_u64, 0);
        let client = |cookie: &u64| *cookie == at.client_cookie;
        with_another(bench, "pods", client, word, |b| at.direct(b, &[Counter::EntryForeign]))
    }),
    Row::new("pods", "another's word for the server's, each time", |bench, at| {
        let word = |_: &u64| Reference::new(&0_u64, 0);
        let server = |cookie: &u64| *cookie == at.server_cookie;
        with_another(bench, "pods", server, word, |b| at.direct(b, &[Counter::EntryForeign]))
    }),
    Row::new("pod_facts", "none where the client's word points", |bench, at| {
        let beyond = |cookie: &u64| Reference::new(cookie, limits::POD_FACTS);
        let client = |cookie: &u64| *cookie == at.client_cookie;
        with_another(bench, "pods", client, beyond, |b| at.direct(b, &[Counter::EntryForeign]))
    }),
    Row::new("pod_facts", "none where the server's word points", |bench, at| {
        let beyond = |cookie: &u64| Reference::new(cookie, limits::POD_FACTS);
        let server = |cookie: &u64| *cookie == at.server_cookie;
        with_another(bench, "pods", server, beyond, |b| at.direct(b, &[Counter::EntryForeign]))
    }),
    Row::new("services", "no entry", |bench, at| {
        without::<ServiceKey, Reference>(bench, "services", any, |b| at.by_service(b, &[Counter::LookupStrict]))
    }),
    Row::new("services", "another's word, each time", |bench, at| {
        let word = |_: &ServiceKey| Reference::new(&0_u64, 1);
        with_another(bench, "services", any, word, |b| {
            at.by_service(b, &[Counter::EntryForeign, Counter::LookupStrict])
        })
    }),
    Row::new("service_facts", "no entry", |bench, at| {
        without::<u32, ServiceValue>(bench, "service_facts", any, |b| {
            at.by_service(b, &[Counter::EntryForeign, Counter::LookupStrict])
        })
    }),
    Row::new("endpoints", "no entry", |bench, at| {
        without::<EndpointKey, EndpointValue>(bench, "endpoints", any, |b| {
            at.by_service(b, &[Counter::ConnectFallback, Counter::LookupStrict])
        })
    }),
    Row::new("port_rules", "no entry for a port that is excluded", |bench, at| {
        let excluded = SocketAddr::new(at.direct.ip(), EXCLUDED);
        served(&at.stranger, excluded)?;
        without::<PortKey, PortRule>(bench, "port_rules", any, |b| {
            refuses(b, &at.stranger, excluded, &[Counter::LookupStrict])
        })
    }),
    Row::new("port_rules", "no room for a port that becomes strict", port_rules_full),
    Row::new("excluded_cidrs", "no room when rules change", excluded_cidrs_full),
    Row::new("flows", "no room for a proof", |bench, at| {
        let proof = |n| {
            let key = FlowKey { client_ip: nobody(n), server_ip: [0; 16], client_port: 0, server_port: 0 };
            let value = FlowValue {
                netns_cookie: 1,
                server_cookie: 1,
                started_ns: 0,
                identity: [0; 16],
                orig_port: 0,
                stage: 0,
                kind: 0,
                orig_ip: [0; 16],
            };
            (key, value)
        };
        full(bench, "flows", limits::FLOWS, proof, |b| {
            at.direct(b, &[Counter::SockopsStoreFailed, Counter::LookupStrict])
        })
    }),
    Row::new("ASKED", "gone between connect() and the SYN", |bench, at| {
        let mut socket = at.client.netns().run(|| sys::fast_open_connect(at.direct))??;
        forget::<Asked>(bench, "ASKED", &socket)?;
        counted(bench, &[Counter::LookupStrict], || {
            let written = std::io::Write::write(&mut socket, b"x");
            ensure!(written.is_err(), "a SYN without a proof was taken: {written:?}");
            Ok(())
        })
    }),
    Row::new("AGENT_SK", "gone between socket() and connect()", |bench, at| {
        let client = SocketAddr::new(at.client.ip(), 0);
        let socket = at.server_net.socket(at.direct, SocketUse::Delivery { client })?;
        forget::<u32>(bench, "AGENT_SK", &socket)?;
        socket.set_nonblocking(false)?;
        counted(bench, &[Counter::LookupStrict], || {
            let connected = socket.connect_timeout(&at.direct.into(), SOON);
            ensure!(connected.is_err(), "a delivery that is nobody's was taken");
            Ok(())
        })
    }),
    Row::new("seeks", "a guard that never ends", |bench, at| {
        let mut seeks: PerCpuArray<MapData, u32> = pinned(bench, "seeks")?;
        let cpus = seeks.get(&0, 0)?.len();
        seeks.set(0, PerCpuValues::try_from(vec![1; cpus])?, 0)?;
        let outcome = at.direct(bench, &[Counter::LookupSought]);
        seeks.set(0, PerCpuValues::try_from(vec![0; cpus])?, 0)?;
        outcome
    }),
    Row::new("stats", "another number", |bench, at| {
        let mut stats: PerCpuArray<MapData, u64> = pinned(bench, "stats")?;
        let none = vec![0; stats.get(&0, 0)?.len()];
        at.forbidden(bench, &[Counter::ConnectDenied])?;
        stats.set(Counter::ConnectDenied as u32, PerCpuValues::try_from(none)?, 0)?;
        at.forbidden(bench, &[Counter::ConnectDenied])?;
        assert_eq!(bench.count(Counter::ConnectDenied), 1, "an array always has its entry, and it decides nothing");
        Ok(())
    }),
    Row::new("plain", "full of others", plain_full),
    Row::new("events", "no room, since nobody reads", |bench, at| {
        let forbidden = SocketAddr::new(at.direct.ip(), FORBIDDEN);
        // An event takes 64 bytes with its header.
        let enough = limits::EVENT_BYTES / 64 + 1;
        let refused = at.client.netns().run(|| (0..enough).all(|_| TcpStream::connect(forbidden).is_err()))?;
        ensure!(refused, "let through");
        at.forbidden(bench, &[Counter::ConnectDenied, Counter::EventLost])
    }),
];

impl Neighbours {
    fn direct(&self, bench: &mut Bench, exits: &[Counter]) -> Result<()> {
        refuses(bench, &self.client, self.direct, exits)
    }

    fn by_service(&self, bench: &mut Bench, exits: &[Counter]) -> Result<()> {
        refuses(bench, &self.client, self.vip, exits)
    }

    fn forbidden(&self, bench: &mut Bench, exits: &[Counter]) -> Result<()> {
        refuses(bench, &self.client, SocketAddr::new(self.direct.ip(), FORBIDDEN), exits)
    }

    /// The server as it is told of, in another state.
    fn server_as(&self, change: impl FnOnce(&mut Workload)) -> Workload {
        let mut workload = server(&self.server);
        change(&mut workload);
        workload
    }
}

fn server(pod: &Pod) -> Workload {
    let exclusions = Exclusions { inbound_ports: vec![EXCLUDED].into(), ..Exclusions::default() };
    Workload { exclusions: exclusions.into(), ..captured_workload(pod, PeerMode::Strict) }
}

/// A permissive pod, one port of which becomes strict while there is no room to say so.
fn port_rules_full(bench: &mut Bench, at: &Neighbours) -> Result<()> {
    const BECOMES: u16 = 8080;
    let policies = std::mem::take(&mut bench.policies);
    bench.replace(at.server_as(|server| server.peer_mode = PeerModes::default().into()))?;
    let to = SocketAddr::new(at.direct.ip(), BECOMES);
    served(&at.stranger, to)?;
    let filler = |n: u32| {
        let key = PortKey { netns_cookie: u64::MAX - u64::from(n), port: 1, direction: INBOUND, pad: 0 };
        (key, PortRule::new(&key, 1))
    };
    let outcome = full(bench, "port_rules", limits::PORT_RULES, filler, |bench| {
        let strict = at.server_as(|server| {
            server.peer_mode = PeerModes::default().into();
            server.peer_mode.ports.insert(BECOMES, PeerMode::Strict);
        });
        ensure!(bench.replace(strict).is_err(), "the map took one more");
        refuses(bench, &at.stranger, to, &[Counter::LookupStrict])?;
        refuses(bench, &at.client, to, &[Counter::ConnectDenied])
    });
    bench.policies = policies;
    bench.replace(server(&at.server))?;
    outcome
}

/// An exclusion that there is no room for, together with rules that now forbid: the rules hold.
fn excluded_cidrs_full(bench: &mut Bench, at: &Neighbours) -> Result<()> {
    let mut map: LpmTrie<MapData, CidrKey, u32> = pinned(bench, "excluded_cidrs")?;
    let key = |n: u32| Key::new(192, CidrKey { netns_cookie: [0xee; 8], ip: nobody(n) });
    let filled = (0..=limits::EXCLUDED_CIDRS).find(|n| map.insert(&key(*n), 1, 0).is_err());
    let filled = filled.expect("it takes more than its capacity");
    let policies = std::mem::replace(&mut bench.policies, vec![rule("nobody", Action::Allow, Some("nobody"), None)]);
    let cidrs = Exclusions { outbound_cidrs: vec!["198.51.100.0/24".parse()?].into(), ..Exclusions::default() };
    let behind = bench.replace(at.server_as(|server| server.exclusions = cidrs.into()));
    let outcome = behind.is_err().then(|| at.direct(bench, &[Counter::ConnectDenied]));
    (0..filled).try_for_each(|n| map.remove(&key(n)))?;
    bench.policies = policies;
    bench.replace(server(&at.server))?;
    outcome.unwrap_or_else(|| Err(anyhow::anyhow!("the map took one more")))
}

/// No room to remember a caller without others going: a strict pod refuses at the SYN as ever and remembers nobody, a
/// permissive one lets in as ever, and the caller is remembered in another's place.
fn plain_full(bench: &mut Bench, at: &Neighbours) -> Result<()> {
    let key = |number: u32| PlainKey { netns_cookie: u64::MAX, ip: nobody(number), port: 1, pad: [0; 3] };
    let fill = |bench: &Bench| -> Result<()> {
        let mut plain: HashMap<MapData, PlainKey, PlainValue> = pinned(bench, "plain")?;
        // Which of the old ones go when there is no room is the kernel's to say: those of the rows before go first.
        let keys: Vec<PlainKey> = plain.keys().collect::<Result<_, _>>()?;
        keys.iter().try_for_each(|key| plain.remove(key))?;
        // More than there is room for: a map of this type takes out what is old, and refuses nothing.
        Ok((0..2 * limits::PLAIN).try_for_each(|n| plain.insert(key(n), PlainValue { count: 1, last_ns: 1 }, 0))?)
    };
    let remembered = |bench: &Bench| -> Result<Vec<PlainKey>> {
        let plain: HashMap<MapData, PlainKey, PlainValue> = pinned(bench, "plain")?;
        let keys: Vec<PlainKey> = plain.keys().collect::<Result<_, _>>()?;
        ensure!(keys.iter().any(|key| key.netns_cookie == u64::MAX), "it was never full");
        Ok(keys.into_iter().filter(|key| key.netns_cookie == at.server_cookie).collect())
    };
    let policies = std::mem::take(&mut bench.policies);
    bench.sync()?;
    fill(bench)?;
    refuses(bench, &at.stranger, at.direct, &[Counter::LookupStrict])?;
    ensure!(remembered(bench)?.is_empty(), "somebody who was refused is remembered");
    bench.replace(at.server_as(|server| server.peer_mode = PeerModes::default().into()))?;
    fill(bench)?;
    counted(bench, &[Counter::LookupPermissive], || served(&at.stranger, at.direct).map(drop))?;
    let caller =
        PlainKey { netns_cookie: at.server_cookie, ip: key_ip(at.stranger.ip()), port: at.direct.port(), pad: [0; 3] };
    let found = remembered(bench)?;
    bench.policies = policies;
    bench.replace(server(&at.server))?;
    ensure!(found == [caller], "remembered: {found:?}");
    Ok(())
}

#[test]
fn neighbours_are_refused_whatever_map_fails() -> Result<()> {
    node(|bench| {
        let (client, server_pod) = (bench.pod("client")?, bench.pod("server")?);
        let stranger = bench.pod("stranger")?;
        let vip: SocketAddr = format!("{VIP}:80").parse()?;
        let node = bench.topology.node(Side::A).netns();
        node.ip(&format!("route add {VIP}/32 via {}\n", server_pod.ip()))?;
        server_pod.netns().ip(&format!("addr add {VIP}/32 dev eth0\n"))?;
        for netns in [client.netns(), server_pod.netns()] {
            netns.sysctl("net/ipv4/tcp_fastopen", "1543")?;
        }
        // The agent's sockets are closed at once.
        let client_net = bench.enrol(captured_workload(&client, PeerMode::Permissive))?.0;
        // Enrolled last: the endpoint of the bench's Service.
        let server_net = bench.enrol(server(&server_pod))?.0;
        let servers = [8080, vip.port(), EXCLUDED].map(|port| server_pod.sample_server("greeter", port, &[]));
        let [greeter, by_vip, excluded] = servers;
        bench.policies = vec![rule("allow", Action::Allow, Some(client.name()), Some(vec![8080]))];
        bench.sync()?;
        let neighbours = Neighbours {
            client_cookie: client_net.netns_cookie(),
            server_cookie: server_net.netns_cookie(),
            server_net,
            direct: SocketAddr::new(server_pod.ip(), 8080),
            vip,
            _servers: [greeter?, by_vip?, excluded?],
            client,
            server: server_pod,
            stranger,
        };
        each_fails_closed(ROWS, bench, &neighbours, |at| {
            served(&at.client, at.direct)?;
            served(&at.client, at.vip).map(drop)
        })
    })
}

/// A record that names another pod, or none that is enrolled, proves nothing.
#[test]
fn a_foreign_record_proves_nothing() -> Result<()> {
    node(|bench| {
        let Pair { server, .. } = pair(bench, PeerMode::Strict)?;
        let outsider = bench.pod("outsider")?;
        let _app = server.sample_server("greeter", 8080, &[])?;
        refuses(bench, &outsider, SocketAddr::new(server.ip(), 8080), &[Counter::LookupStrict])
    })
}
