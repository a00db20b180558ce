//! One pod behind a proxy of its own, twice, and what the control plane would say of them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use anyhow::Result;
use mesh_agent::balance::Balancer;
use mesh_agent::identity::CertStore;
use mesh_agent::model::addr::{EndpointAddr, OrigDst, Scope};
use mesh_agent::model::identity::Identity;
use mesh_agent::model::policy::{Action, Policy, RequestMatch, Rule as PolicyRule, Target as PolicyTarget};
use mesh_agent::model::route::{
    Backend, Candidate, Match, PathMatch, PortRoutes, RouteKind, RouteName, Rule, RuleId, ServiceRef, Target, Timeouts,
};
use mesh_agent::model::service::{Endpoint, ServicePort};
use mesh_agent::model::workload::{Captured, Workload, WorkloadUid};
use mesh_agent::proxy::pod_net::{PodNet, SocketUse};
use mesh_agent::proxy::{Deps, Limits, PodHandle, PodListeners, Proxy, TUNNEL_PORT, WIRE};
use mesh_agent::snapshot::{SnapshotParts, SnapshotStore};
use mesh_agent::telemetry::{Registry, Settings, Telemetry};
use mesh_agent::tls::Tls;
use socket2::{Domain, SockRef, Socket, Type};

/// A pod's network: loopback addresses, and what its clients have dialled.
pub struct Net {
    uid: WorkloadUid,
    /// Its address.
    pub ip: IpAddr,
    /// By the client's own address.
    pub dialled: Mutex<HashMap<SocketAddr, OrigDst>>,
}

impl PodNet for Net {
    fn uid(&self) -> &WorkloadUid {
        &self.uid
    }

    fn original_destination(&self, accepted: BorrowedFd<'_>) -> Option<(OrigDst, Scope)> {
        let client = SockRef::from(&accepted).peer_addr().ok()?.as_socket()?;
        Some((self.dialled.lock().ok()?.remove(&client)?, Scope::All))
    }

    fn proven_client(&self, _local: SocketAddr, _peer: SocketAddr) -> Option<WorkloadUid> {
        None
    }

    fn socket(&self, to: SocketAddr, purpose: SocketUse) -> std::io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking().cloexec(), None)?;
        let source = match purpose {
            SocketUse::Upstream => self.ip,
            SocketUse::Delivery { client } => client.ip(),
        };
        socket.bind(&SocketAddr::new(source, 0).into())?;
        Ok(socket)
    }
}

/// The pod, seen from its clients.
pub struct Pod {
    /// Its network.
    pub net: Arc<Net>,
    /// Where its connections are captured.
    pub outbound: SocketAddr,
    _handle: PodHandle,
}

/// One pod of `name` behind a proxy of its own.
pub struct Side {
    /// The pod.
    pub pod: Pod,
    /// The proxy.
    pub proxy: Proxy,
}

/// A pod at `ip` with a proxy of its own.
pub fn side(name: &str, ip: Ipv4Addr, snapshots: &Arc<SnapshotStore>, certs: &Arc<CertStore>) -> Result<Side> {
    let proxy = Proxy::new(Deps {
        snapshots: Arc::clone(snapshots),
        balancer: Arc::new(Balancer::new()),
        tls: Arc::new(Tls::new(Arc::clone(certs))),
        telemetry: Telemetry::start(Arc::new(Registry::default()), Box::new(std::io::sink()), Settings::default())?,
        limits: limits(),
        workers: 2,
        reserved_ports: vec![],
    })?;
    let listen = |port| -> Result<std::net::TcpListener> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking().cloexec(), None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::new(ip.into(), port).into())?;
        socket.listen(4096)?;
        Ok(socket.into())
    };
    let (outbound, tunnel, plaintext) = (listen(0)?, listen(TUNNEL_PORT)?, listen(0)?);
    let net = Arc::new(Net { uid: name.into(), ip: ip.into(), dialled: Mutex::default() });
    let addr = outbound.local_addr()?;
    let pod = Arc::clone(&net) as Arc<dyn PodNet>;
    let _handle = proxy.add_pod(PodListeners { pod, outbound, tunnel, plaintext })?;
    Ok(Side { pod: Pod { net, outbound: addr, _handle }, proxy })
}

/// What the control plane says of the pod.
pub fn workload(name: &str, ip: Ipv4Addr) -> Result<Arc<Workload>> {
    Ok(Arc::new(Workload {
        app: name.into(),
        node: name.into(),
        ips: smallvec::smallvec![ip.into()],
        captured: Some(Captured { generation: 1, wire: wire().into_iter().map(Into::into).collect() }),
        ..Workload::new(name, "bench", name, Identity::new("cluster.local", "bench", name)?)
    }))
}

/// The defaults, with the number of connections of their own that `RAW` in the environment gives.
fn limits() -> Limits {
    let mut limits = Limits::default();
    if let Some(count) = std::env::var("RAW").ok().and_then(|text| text.parse().ok()) {
        limits.raw_per_peer = count;
    }
    limits
}

/// What the destination publishes: everything, or the protocols that `WIRE` in the environment names.
fn wire() -> Vec<String> {
    match std::env::var("WIRE") {
        Ok(list) => list.split(',').map(str::to_owned).collect(),
        Err(_) => WIRE.iter().map(|alpn| (*alpn).to_owned()).collect(),
    }
}

/// A Service at `vip` before the application at `app`, with a route for its requests; and a rule about requests at the
/// application. So both proxies read them.
pub fn routed(parts: &mut SnapshotParts, vip: SocketAddr, app: SocketAddr, pod: &str) {
    let reference = ServiceRef { namespace: "bench".into(), name: "shop".into(), port: vip.port() };
    let endpoint = Endpoint { workload: Some(pod.into()), ..Endpoint::new(EndpointAddr::new(app)) };
    parts.services.put(Arc::new(ServicePort {
        namespace: Arc::clone(&reference.namespace),
        name: Arc::clone(&reference.name),
        port_name: "http".into(),
        port: vip.port(),
        vips: vec![vip.ip()],
        endpoints: vec![endpoint],
        ..ServicePort::default()
    }));
    let route = RouteName { kind: RouteKind::Http, namespace: "bench".into(), name: "shop".into() };
    let rule = Rule {
        id: RuleId { route, index: 0, name: None },
        filters: vec![],
        backends: vec![Backend { target: Target::Service(reference.clone()), weight: 1, filters: vec![] }],
        timeouts: Timeouts::default(),
        retry: None,
    };
    let candidate = Candidate {
        matching: Match { path: PathMatch::Prefix("/".into()), method: None, headers: vec![], query: vec![] },
        rule: Arc::new(rule),
    };
    let candidates = vec![candidate];
    parts.routes.push(Arc::new(PortRoutes { service: reference, consumer: None, kind: RouteKind::Http, candidates }));
    let denied = RequestMatch { paths: Some(vec![PathMatch::Prefix("/denied".into())]), ..RequestMatch::default() };
    parts.policies.push(Arc::new(Policy {
        namespace: "bench".into(),
        name: "requests".into(),
        action: Action::Deny,
        target: PolicyTarget::Namespace("bench".into()),
        rules: vec![PolicyRule { ports: Some(vec![app.port()]), requests: Some(denied), ..PolicyRule::default() }],
        broken: None,
    }));
}
