//! Workloads: pods as the mesh sees them.

use super::egress::{Egress, UdpRefusals};
use super::identity::Identity;
use super::rare::{Rare, ordinary};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;
use smallvec::SmallVec;

/// The label by which a namespace or a pod asks to be in the mesh (`enabled`), or a pod to be out of it (`disabled`).
pub const MODE_LABEL: &str = "mesh-agent.io/mode";

/// A pod's uid: the key of everything that belongs to one pod (pools, permits, records).
pub type WorkloadUid = Arc<str>;

/// A list that is mostly empty or short, and of which there are hundreds of thousands: one pointer.
pub type List<T> = thin_vec::ThinVec<T>;

/// A pod's addresses: one, or one of each family.
pub type Ips = SmallVec<[IpAddr; 1]>;

/// A pod's labels; the replicas of a Deployment share them.
pub type Labels = Arc<BTreeMap<String, String>>;

/// One pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// `metadata.uid`.
    pub uid: WorkloadUid,
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
    /// The workload's name on dashboards: owner, `app.kubernetes.io/name`, `app`, else the pod name.
    pub app: Arc<str>,
    /// `spec.nodeName`; empty while unscheduled.
    pub node: Arc<str>,
    /// The node's `topology.kubernetes.io/zone`; empty when unknown.
    pub zone: Arc<str>,
    /// `metadata.labels`, for selectors.
    pub labels: Labels,
    /// Service account identity.
    pub identity: Identity,
    /// The pod IPs that this pod owns (design §5, "who owns an IP"); canonical.
    pub ips: Ips,
    /// hostNetwork pods are never enrolled and own no IP.
    pub host_network: bool,
    /// Declared container ports, by name and number (for named target ports and bounded metric labels).
    pub ports: Arc<[NamedPort]>,
    /// TCP ports of the probes and lifecycle hooks that the pod's own spec declares: the kubelet may dial these.
    pub probe_ports: Arc<[u16]>,
    /// Whether the pod is to be in the mesh, and if not, why not.
    pub enrolment: Enrolment,
    /// What its node's agent has published about it: `Some` = a tunnel destination.
    pub captured: Option<Captured>,
    /// Inbound mTLS mode, by port.
    pub peer_mode: Rare<PeerModes>,
    /// What becomes of what it sends out of the mesh.
    pub egress: Rare<Egress>,
    /// Where it takes no UDP.
    pub udp_refusals: Rare<UdpRefusals>,
    /// What never goes through the agent.
    pub exclusions: Rare<Exclusions>,
    /// Its network namespace, where somebody has named it: the container runtime, or `mesh-agent.io/netns`.
    pub netns: Option<PathBuf>,
    /// `metadata.deletionTimestamp` is set.
    pub terminating: bool,
}

ordinary!(PeerModes, Egress, UdpRefusals, Exclusions);

/// A declared container port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NamedPort {
    /// `containerPort` name; empty when it has none.
    pub name: Arc<str>,
    /// `containerPort` number.
    pub port: u16,
}

/// Opt-in state of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Enrolment {
    /// Opted in and capturable.
    Enrolled,
    /// Neither the namespace nor the pod asks for it, or the pod opts out.
    NotAsked,
    /// hostNetwork shares the node's network: there is nothing of its own to capture.
    HostNetwork,
    /// Opted in, but its sockets live in a guest kernel (Kata, gVisor, a virtual machine), where no hook sees them.
    GuestKernel,
    /// Succeeded or Failed, its sandbox is taken down, or another pod owns its IP.
    Gone,
}

/// What an agent publishes about a pod whose listeners and hooks stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// Capture generation of that pod: grows each time it is captured anew.
    pub generation: u64,
    /// ALPN protocols its listener speaks, best first (`h2` = HBONE).
    pub wire: Arc<[Arc<str>]>,
}

/// Inbound mTLS mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PeerMode {
    /// Plaintext is refused.
    Strict,
    /// Plaintext passes, as `unknown`.
    #[default]
    Permissive,
}

/// Inbound mode of a workload with its per-port exceptions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerModes {
    /// Every port not named below.
    pub default: PeerMode,
    /// Exceptions by port.
    pub ports: BTreeMap<u16, PeerMode>,
    /// The object that decided [`Self::default`], `namespace/name`; empty when none did.
    pub source: Arc<str>,
    /// The object that decided a port's exception, when it is another one.
    pub port_sources: BTreeMap<u16, Arc<str>>,
}

impl PeerModes {
    /// The mode of `port`.
    #[must_use]
    pub fn mode(&self, port: u16) -> PeerMode {
        self.ports.get(&port).copied().unwrap_or(self.default)
    }

    /// The object that decided the mode of `port`; empty when none did.
    #[must_use]
    pub fn source(&self, port: u16) -> &Arc<str> {
        self.port_sources.get(&port).unwrap_or(&self.source)
    }
}

/// Annotations that keep traffic away from the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exclusions {
    /// `mesh-agent.io/exclude-outbound-ports`.
    pub outbound_ports: List<u16>,
    /// `mesh-agent.io/exclude-inbound-ports`.
    pub inbound_ports: List<u16>,
    /// `mesh-agent.io/exclude-outbound-cidrs`.
    pub outbound_cidrs: List<IpNet>,
}

impl Workload {
    /// An enrolled pod of which nothing more is known.
    #[must_use]
    pub fn new(
        uid: impl Into<WorkloadUid>,
        namespace: impl Into<Arc<str>>,
        name: impl Into<Arc<str>>,
        identity: Identity,
    ) -> Self {
        let none = || Arc::from("");
        Self {
            uid: uid.into(),
            namespace: namespace.into(),
            name: name.into(),
            app: none(),
            node: none(),
            zone: none(),
            labels: Labels::default(),
            identity,
            ips: Ips::default(),
            host_network: false,
            ports: Arc::default(),
            probe_ports: Arc::default(),
            enrolment: Enrolment::Enrolled,
            captured: None,
            peer_mode: Rare::default(),
            egress: Rare::default(),
            udp_refusals: Rare::default(),
            exclusions: Rare::default(),
            netns: None,
            terminating: false,
        }
    }

    /// Whether the pod is to be captured by its node's agent.
    #[must_use]
    pub fn is_enrolled(&self) -> bool {
        self.enrolment == Enrolment::Enrolled
    }

    /// Whether packets are judged at its veth: a policy asks for it, and there is something to refuse.
    #[must_use]
    pub fn is_guarded(&self) -> bool {
        let refuses = self.egress.refused_by.is_some() || self.peer_mode.default == PeerMode::Strict;
        refuses && self.egress.guarded_by.is_some()
    }

    /// `namespace/name`, for messages.
    #[must_use]
    pub fn display_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}
