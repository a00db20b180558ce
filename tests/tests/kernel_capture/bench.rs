//! A node whose agent is the test process.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_agent::capture::{EnrolledPod, Half, Kernel, KernelConfig, PodSockets, uninstall};
use mesh_agent::model::addr::EndpointAddr;
use mesh_agent::model::identity::Identity;
use mesh_agent::model::policy::Policy;
use mesh_agent::model::service::{Endpoint, ServicePort};
use mesh_agent::model::workload::{Captured, PeerMode, Workload};
use mesh_agent::policy::egress::NODE_LOCAL_DNS;
use mesh_agent::snapshot::{Snapshot, SnapshotParts};
use mesh_common::counter::Counter;
use mesh_tests::datagram::CONNECTED_TO;
use mesh_tests::pod::Pod;
use mesh_tests::topology::{Side, Topology};
use mesh_tests::{bpf, leftovers, wait};
use serde_json::Value;

pub const SOON: Duration = Duration::from_secs(10);
/// A captured pod elsewhere, and the Service before it.
pub const REMOTE: [&str; 2] = ["10.99.0.9", "fd99::9"];
pub const VIP: &str = "10.96.7.7";
pub const EMPTY_VIP: &str = "10.96.7.8";

/// A node whose agent is this process.
pub struct Bench {
    pub kernel: Kernel,
    pub config: KernelConfig,
    pub topology: Topology,
    pub workloads: Vec<Arc<Workload>>,
    pub policies: Vec<Arc<Policy>>,
    pub services: Vec<Arc<ServicePort>>,
    pub udp_services: Vec<Arc<ServicePort>>,
    pub generation: u64,
}

/// What pods may reach outside the mesh, whatever they refuse: cluster DNS, the API server, node-local DNS, and a UDP
/// Service. The addresses are nobody's.
#[allow(dead_code, reason = "not every suite looks outside")]
pub const ADMITTED: [&str; 4] = ["10.96.0.10:53", "10.96.0.1:443", "169.254.20.10:53", "10.96.7.10:7000"];

/// The UDP port of cluster DNS, with an endpoint if there is one.
pub fn cluster_dns(endpoint: Option<SocketAddr>) -> Arc<ServicePort> {
    let dns = service("10.96.0.10", endpoint);
    let vips = CONNECTED_TO.map(|ip| ip.parse().expect("an address")).to_vec();
    Arc::new(ServicePort { namespace: "kube-system".into(), name: "kube-dns".into(), port: 53, vips, ..dns })
}

impl Bench {
    pub fn new() -> Result<Self> {
        let topology = Topology::two_nodes()?;
        let node = topology.node(Side::A);
        let config = KernelConfig {
            instance: "kernel".into(),
            cgroup: node.cgroup().to_owned(),
            bpffs: node.bpffs().to_owned(),
            deny_errno: nix::libc::ECONNREFUSED,
            half: Half::Own,
        };
        let kernel = Kernel::start(config.clone())?;
        Ok(Self {
            kernel,
            config,
            topology,
            workloads: Vec::new(),
            policies: Vec::new(),
            services: vec![
                headless("kube-system", "kube-dns", ADMITTED[0]),
                headless("default", "kubernetes", ADMITTED[1]),
            ],
            udp_services: vec![cluster_dns(None), Arc::new(ServicePort { port: 7000, ..service("10.96.7.10", None) })],
            generation: 0,
        })
    }

    pub fn pod(&self, name: &str) -> Result<Pod> {
        self.topology.node(Side::A).pod(name)
    }

    pub fn enrol(&mut self, workload: Workload) -> Result<(Arc<EnrolledPod>, PodSockets)> {
        let workload = Arc::new(workload);
        self.workloads.push(Arc::clone(&workload));
        let snapshot = self.snapshot();
        let enrolled = self.kernel.enrol(&workload, &snapshot, false)?;
        self.kernel.set_captures(&enrolled.0, true)?;
        self.sync()?;
        Ok(enrolled)
    }

    /// The next generation of what the node is told.
    pub fn snapshot(&mut self) -> Snapshot {
        self.generation += 1;
        let remote =
            Workload { captured: Some(Captured { generation: 1, wire: [].into() }), ..workload("remote", &REMOTE) };
        let remote = Workload { node: "b".into(), ..remote };
        let workloads = self.workloads.iter().cloned().chain([Arc::new(remote)]).collect();
        let fallback = self.workloads.last().map(|workload| SocketAddr::new(workload.ips[0], 8080));
        let last = self.workloads.last().map(|workload| Arc::clone(&workload.uid));
        let services = [(VIP, fallback), (EMPTY_VIP, None)].map(|(vip, to)| {
            let mut service = service(vip, to);
            service.endpoints.iter_mut().for_each(|endpoint| endpoint.workload.clone_from(&last));
            Arc::new(service)
        });
        let parts = SnapshotParts {
            node: "a".into(),
            trust_domain: "cluster.local".into(),
            workloads,
            services: services.into_iter().chain(self.services.iter().cloned()).collect(),
            policies: self.policies.clone(),
            udp_services: self.udp_services.clone().into(),
            node_local_dns: Some(NODE_LOCAL_DNS),
            ..SnapshotParts::default()
        };
        Snapshot::new(self.generation, parts)
    }

    pub fn sync(&mut self) -> Result<()> {
        let snapshot = self.snapshot();
        Ok(self.kernel.sync(&snapshot)?)
    }

    /// Puts another version of a workload in force.
    #[allow(dead_code, reason = "not every suite changes its pods")]
    pub fn replace(&mut self, workload: Workload) -> Result<()> {
        for known in self.workloads.iter_mut().filter(|known| known.uid == workload.uid) {
            *known = Arc::new(workload.clone());
        }
        self.sync()
    }

    pub fn pins(&self) -> std::path::PathBuf {
        self.config.bpffs.join(&self.config.instance)
    }

    pub fn count(&self, counter: Counter) -> u64 {
        self.kernel.counters()[counter as usize].1
    }

    pub fn finish(&self) -> Result<()> {
        for workload in &self.workloads {
            if let Some(pod) = self.kernel.release(&workload.uid) {
                // The pod is gone by now, and its netns with it.
                let _ = pod.remove_routes();
            }
        }
        self.kernel.leave_cgroup();
        uninstall(&self.config)?;
        assert_eq!(bpf::attached_to_cgroup(&self.config.cgroup)?, 0, "programs stayed on the cgroup");
        Ok(())
    }
}

/// Runs `story` on a new node, then checks that nothing of it is left.
pub fn node(story: impl FnOnce(&mut Bench) -> Result<()>) -> Result<()> {
    let mut bench = Bench::new()?;
    story(&mut bench)?;
    bench.finish()?;
    drop(bench);
    leftovers::nothing_left()
}

impl Drop for Bench {
    fn drop(&mut self) {
        // The topology ends whatever is left in its cgroups: not the test itself.
        self.kernel.leave_cgroup();
    }
}

pub fn workload(name: &str, ips: &[&str]) -> Workload {
    Workload {
        app: name.into(),
        node: "a".into(),
        ips: ips.iter().map(|ip| ip.parse().expect("an address")).collect(),
        ..Workload::new(name, "test", name, Identity::new("cluster.local", "test", name).expect("a name"))
    }
}

pub fn workload_of(pod: &Pod, mode: PeerMode) -> Workload {
    let mut workload = workload(pod.name(), &[]);
    workload.ips = pod.ips().into_iter().collect();
    workload.netns = Some(pod.netns().path());
    workload.peer_mode.default = mode;
    workload
}

/// A Service without an address of its own.
fn headless(namespace: &str, name: &str, endpoint: &str) -> Arc<ServicePort> {
    let endpoint: SocketAddr = endpoint.parse().expect("an address");
    let service = service("10.96.0.0", Some(endpoint));
    let (namespace, name) = (namespace.into(), name.into());
    Arc::new(ServicePort { namespace, name, port: endpoint.port(), vips: vec![], ..service })
}

pub fn service(vip: &str, to: Option<SocketAddr>) -> ServicePort {
    let endpoint = |addr| Endpoint { node: "a".into(), ..Endpoint::new(EndpointAddr::new(addr)) };
    ServicePort {
        namespace: "test".into(),
        name: vip.into(),
        port_name: "".into(),
        port: 80,
        app_protocol: None,
        vips: vec![vip.parse().expect("an address")],
        affinity: None,
        local_only: false,
        prefer_zone: false,
        traffic: None,
        endpoints: to.map(endpoint).into_iter().collect(),
    }
}

#[allow(dead_code, reason = "not every suite plays the proxy")]
pub fn accept(listener: &TcpListener) -> Result<TcpStream> {
    let stream = wait::until("a connection is accepted", SOON, || Ok(listener.accept()?.0))?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(SOON))?;
    Ok(stream)
}

pub fn probe(pod: &Pod, to: SocketAddr) -> Result<Value> {
    pod.ask("probe", to, &["--within-ms", "5000"], SOON)
}

/// What became of a connection: the error of `connect`, or what the first read saw.
pub fn outcome(answer: &Value) -> &str {
    let text = |field: &str| answer[field].as_str().unwrap_or_default();
    if text("connect") == "ok" { text("read") } else { text("connect") }
}

pub fn refused(pod: &Pod, to: SocketAddr) -> Result<()> {
    let answer = probe(pod, to)?;
    ensure!(outcome(&answer) == "ConnectionRefused", "{} to {to} is not refused: {answer}", pod.name());
    Ok(())
}

pub fn served(pod: &Pod, to: SocketAddr) -> Result<Value> {
    let answer = probe(pod, to)?;
    ensure!(outcome(&answer) == "data", "{} to {to} is not served: {answer}", pod.name());
    Ok(answer)
}
