//! Two agents, their pods on loopback addresses, and applications: everything but the kernel half.

use std::collections::HashMap;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Notify;

use super::super::pod_net::{PodNet, SocketUse};
use super::super::{Deps, Limits, PodHandle, PodListeners, Proxy, TUNNEL_PORT, WIRE, worker};
use crate::balance::Balancer;
use crate::identity::testing::{TestCa, identity};
use crate::model::addr::{EndpointAddr, OrigDst, Scope};
use crate::model::identity::Identity;
use crate::model::policy::Policy;
use crate::model::service::{Endpoint, ServicePort};
use crate::model::workload::{Captured, Workload, WorkloadUid};
use crate::snapshot::{SnapshotParts, SnapshotStore};
use crate::telemetry::{Registry, Telemetry};
use crate::tls::Tls;

/// The two languages of tunnels: every test of what applications see is run in both.
pub(super) const RAW: &[&str] = &["mesh-raw/1"];
pub(super) const HBONE: &[&str] = &["h2"];

/// Nothing in these tests takes this long unless it hangs.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// Fails the test instead of hanging.
pub(super) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("took too long")
}

/// A loopback address that nobody else has.
pub(super) fn fresh_ip() -> IpAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let process = u8::try_from(std::process::id() % 200).unwrap() + 20;
    IpAddr::V4(Ipv4Addr::new(127, process, u8::try_from(n / 250).unwrap(), u8::try_from(n % 250 + 1).unwrap()))
}

/// As long as the kernel allows. A full queue makes it answer with SYN cookies, and then the loss of one ACK can
/// cost a client's first bytes: a cookie takes the sequence number of whatever packet comes next for granted.
const BACKLOG: i32 = 4096;

/// A non-blocking listener with a long queue.
pub(super) fn listener(addr: SocketAddr, reuse_port: bool) -> TcpListener {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking().cloexec(), None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_reuse_port(reuse_port).unwrap();
    socket.bind(&addr.into()).unwrap();
    socket.listen(BACKLOG).unwrap();
    socket.into()
}

/// Access-log lines of one agent.
#[derive(Clone, Default)]
pub(super) struct Log(Arc<(Mutex<Vec<u8>>, Notify)>);

impl Write for Log {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.0.0.lock().unwrap().extend_from_slice(data);
        self.0.1.notify_waiters();
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    pub(super) fn lines(&self) -> Vec<serde_json::Value> {
        let text = String::from_utf8(self.0.0.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Waits until `count` lines are there.
    pub(super) async fn wait(&self, count: usize) -> Vec<serde_json::Value> {
        let wait = async {
            loop {
                let more = self.0.1.notified();
                let lines = self.lines();
                if lines.len() >= count {
                    return lines;
                }
                more.await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, wait).await;
        waited.unwrap_or_else(|_| panic!("{count} lines expected: {:#?}", self.lines()))
    }

    /// Waits for the only line.
    pub(super) async fn only(&self) -> serde_json::Value {
        let lines = self.wait(1).await;
        assert_eq!(lines.len(), 1, "{lines:#?}");
        lines[0].clone()
    }
}

/// One agent.
pub(super) struct Node {
    pub(super) name: &'static str,
    pub(super) proxy: Proxy,
    pub(super) registry: Arc<Registry>,
    pub(super) log: Log,
}

impl Node {
    /// The value of the metric whose line starts with `series`.
    pub(super) fn metric(&self, series: &str) -> f64 {
        let text = self.registry.encode().unwrap();
        let line = text.lines().find(|line| line.starts_with(series));
        line.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }

    /// Waits until the metric has this value.
    pub(super) async fn metric_reaches(&self, series: &str, value: f64) {
        let wait = async {
            while (self.metric(series) - value).abs() > f64::EPSILON {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, wait).await;
        assert!(waited.is_ok(), "{series} is {}, not {value}", self.metric(series));
    }
}

/// A pod's network: sockets of this process, and what its applications have dialled.
pub(super) struct LoopbackNet {
    uid: WorkloadUid,
    ip: IpAddr,
    dialled: Mutex<HashMap<SocketAddr, OrigDst>>,
}

impl PodNet for LoopbackNet {
    fn uid(&self) -> &WorkloadUid {
        &self.uid
    }

    fn original_destination(&self, accepted: BorrowedFd<'_>) -> Option<(OrigDst, Scope)> {
        let client = SockRef::from(&accepted).peer_addr().unwrap().as_socket().unwrap();
        Some((self.dialled.lock().unwrap().remove(&client)?, Scope::All))
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

/// Reset, at the latest when read from. A reset that comes quickly is already an error of `connect()`.
pub(super) async fn refused(connected: std::io::Result<TcpStream>) {
    let error = match connected {
        Ok(mut stream) => is_reset(&mut stream).await,
        Err(error) => error.kind(),
    };
    assert_eq!(error, std::io::ErrorKind::ConnectionReset);
}

/// Nothing more comes but a reset.
pub(super) async fn is_reset(stream: &mut TcpStream) -> std::io::ErrorKind {
    let read = soon(tokio::io::AsyncReadExt::read(stream, &mut [0; 1])).await;
    let error = read.expect_err("data or a clean end where a reset was due").kind();
    assert_eq!(error, std::io::ErrorKind::ConnectionReset);
    error
}

/// One pod.
pub(super) struct Pod {
    pub(super) ip: IpAddr,
    pub(super) uid: WorkloadUid,
    pub(super) net: Arc<LoopbackNet>,
    pub(super) outbound: SocketAddr,
    pub(super) plaintext: SocketAddr,
    pub(super) handle: Option<PodHandle>,
}

impl Pod {
    /// What an application of this pod gets from `connect(dialled)`.
    pub(super) async fn connect(&self, dialled: SocketAddr) -> TcpStream {
        self.dial(dialled).await.unwrap()
    }

    /// The application's connection must be reset, without a byte.
    pub(super) async fn is_refused(&self, dialled: SocketAddr) {
        refused(self.dial(dialled).await).await;
    }

    async fn dial(&self, dialled: SocketAddr) -> std::io::Result<TcpStream> {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(self.ip, 0)).unwrap();
        self.net.dialled.lock().unwrap().insert(socket.local_addr().unwrap(), OrigDst::new(dialled));
        soon(socket.connect(self.outbound)).await
    }

    /// An application's listener in this pod.
    pub(super) fn listen(&self) -> tokio::net::TcpListener {
        tokio::net::TcpListener::from_std(listener(SocketAddr::new(self.ip, 0), false)).unwrap()
    }

    pub(super) fn tunnel(&self) -> SocketAddr {
        SocketAddr::new(self.ip, TUNNEL_PORT)
    }
}

/// Two agents that share what the control plane would tell both of them.
pub(super) struct Mesh {
    pub(super) ca: TestCa,
    pub(super) snapshots: Arc<SnapshotStore>,
    parts: Mutex<SnapshotParts>,
    /// What the pods publish that they speak.
    wire: &'static [&'static str],
    pub(super) a: Node,
    pub(super) b: Node,
}

/// The service accounts of these tests, with a certificate on both nodes.
pub(super) fn accounts() -> [Identity; 3] {
    [identity("shop", "web"), identity("shop", "cart"), identity("shop", "intruder")]
}

impl Mesh {
    pub(super) fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    pub(super) fn with_limits(limits: Limits) -> Self {
        let (ca, snapshots) = (TestCa::new("mesh"), Arc::new(SnapshotStore::default()));
        let node = |name| {
            let (registry, log) = (Arc::new(Registry::default()), Log::default());
            let telemetry = Telemetry::start(Arc::clone(&registry), Box::new(log.clone()), Default::default()).unwrap();
            let certs = ca.store(&accounts().each_ref());
            let deps = Deps {
                snapshots: Arc::clone(&snapshots),
                balancer: Arc::new(Balancer::new()),
                tls: Arc::new(Tls::new(certs)),
                telemetry,
                limits: limits.clone(),
                workers: 2,
                reserved_ports: vec![],
            };
            Node { name, proxy: Proxy::new(deps).unwrap(), registry, log }
        };
        let (a, b) = (node("a"), node("b"));
        let parts = SnapshotParts { trust_domain: "cluster.local".into(), ..SnapshotParts::default() };
        Self { ca, snapshots, parts: Mutex::new(parts), wire: WIRE, a, b }
    }

    /// The same with pods that publish `wire`.
    pub(super) fn speaking(self, wire: &'static [&'static str]) -> Self {
        Self { wire, ..self }
    }

    /// Changes what the control plane says, and publishes it.
    pub(super) fn change(&self, change: impl FnOnce(&mut SnapshotParts)) {
        let mut parts = self.parts.lock().unwrap();
        change(&mut parts);
        self.snapshots.publish(self.snapshots.load().next(parts.clone()));
    }

    /// An enrolled and captured pod of `account` on `node`.
    pub(super) fn pod(&self, node: &Node, account: &str) -> Pod {
        self.pod_at(node, account, fresh_ip())
    }

    pub(super) fn pod_at(&self, node: &Node, account: &str, ip: IpAddr) -> Pod {
        let uid: WorkloadUid = format!("uid-{account}-{ip}").into();
        let net = Arc::new(LoopbackNet { uid: Arc::clone(&uid), ip, dialled: Mutex::default() });
        let listen = |port| listener(SocketAddr::new(ip, port), false);
        let (outbound, tunnel, plaintext) = (listen(0), listen(TUNNEL_PORT), listen(0));
        let pod = Pod {
            ip,
            uid: Arc::clone(&uid),
            net: Arc::clone(&net),
            outbound: outbound.local_addr().unwrap(),
            plaintext: plaintext.local_addr().unwrap(),
            handle: Some(node.proxy.add_pod(PodListeners { pod: net, outbound, tunnel, plaintext }).unwrap()),
        };
        let mut workload = workload(account, uid, node.name, ip);
        workload.captured = Some(Captured { generation: 1, wire: self.wire.iter().map(|w| (*w).into()).collect() });
        self.change(|parts| parts.workloads.put(Arc::new(workload)));
        pod
    }

    /// Changes one workload.
    pub(super) fn change_workload(&self, uid: &WorkloadUid, change: impl FnOnce(&mut Workload)) {
        self.change(|parts| {
            let mut workload = Workload::clone(parts.workloads.get(uid).unwrap());
            change(&mut workload);
            parts.workloads.put(Arc::new(workload));
        });
    }

    /// A listener of `pod` whose connections reach the agent as steered plaintext: the address dialled is, as far
    /// as anybody can tell, the application's.
    pub(super) fn plaintext(&self, node: &Node, pod: &Pod) -> (SocketAddr, PodHandle) {
        let listener = listener(SocketAddr::new(pod.ip, 0), false);
        let addr = listener.local_addr().unwrap();
        (addr, self.steer(node, pod, listener))
    }

    /// Gives `listener` to the agent as one that steered plaintext comes in by.
    pub(super) fn steer(&self, node: &Node, pod: &Pod, listener: TcpListener) -> PodHandle {
        let net = Arc::clone(&pod.net) as Arc<dyn PodNet>;
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let taken = Default::default();
        let steered = worker::Pod { net, live: Arc::default(), taken, own_ports: vec![], stopped };
        node.proxy.open_doors(steered, stop, [(worker::Door::Plaintext, listener)])
    }

    /// A service port at a virtual address of its own, with these endpoints.
    pub(super) fn service(&self, name: &str, endpoints: &[(&Pod, SocketAddr)]) -> SocketAddr {
        let vip = SocketAddr::new(fresh_ip(), 80);
        let endpoint = |(pod, addr): &(&Pod, SocketAddr)| Endpoint {
            addr: EndpointAddr::new(*addr),
            workload: Some(Arc::clone(&pod.uid)),
            node: "".into(),
            zones: thin_vec::thin_vec![],
            nodes: thin_vec::thin_vec![],
            zone: "".into(),
            ready: true,
            serving: true,
            terminating: false,
        };
        let service = ServicePort {
            namespace: "shop".into(),
            name: name.into(),
            port_name: "".into(),
            port: vip.port(),
            app_protocol: None,
            vips: vec![vip.ip()],
            affinity: None,
            local_only: false,
            prefer_zone: false,
            traffic: None,
            endpoints: endpoints.iter().map(endpoint).collect(),
        };
        self.change(|parts| parts.services.put(Arc::new(service)));
        vip
    }

    /// A pod whose agent is the test: where that is asked for tunnels, and an address of an application there.
    pub(super) async fn scripted(&self, wire: &[&str]) -> (tokio::net::TcpListener, SocketAddr) {
        let ip = fresh_ip();
        let listener = tokio::net::TcpListener::bind((ip, TUNNEL_PORT)).await.unwrap();
        let mut cart = workload("cart", "uid-scripted".into(), "b", ip);
        cart.captured = Some(Captured { generation: 1, wire: wire.iter().map(|alpn| (*alpn).into()).collect() });
        self.change(|parts| parts.workloads.put(Arc::new(cart)));
        (listener, SocketAddr::new(ip, 80))
    }

    /// Puts a policy in force.
    pub(super) fn policy(&self, policy: Policy) {
        self.change(|parts| parts.policies.push(Arc::new(policy)));
    }
}

/// A workload of namespace `shop`, not captured.
pub(super) fn workload(account: &str, uid: WorkloadUid, node: &str, ip: IpAddr) -> Workload {
    Workload {
        app: account.into(),
        node: node.into(),
        labels: std::collections::BTreeMap::from([("app".to_owned(), account.to_owned())]).into(),
        ips: smallvec::smallvec![ip],
        ..Workload::new(uid, "shop", format!("{account}-pod"), identity("shop", account))
    }
}
