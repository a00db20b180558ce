//! Map values. Same rules as [`crate::key`]: no implicit padding, layout asserted.

use core::mem::offset_of;

use crate::key::{Digest, FlowKey, Ip, PortKey};
use crate::tag::{open_rule, tag_rule};

/// `pod_facts`: an enrolled pod. `pods` names it by netns cookie.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodValue {
    /// Own IPv4 address (v4-mapped), all zero when it has none.
    pub ip4: Ip,
    /// Own IPv6 address, all zero when it has none.
    pub ip6: Ip,
    /// Who the pod is: see [`Digest`].
    pub identity: Digest,
    /// The rules that select the pod: see [`Digest`]. [`NO_POLICY`] when none do.
    pub policy: Digest,
    /// `POD_*` bits.
    pub flags: u32,
    /// Explicit padding, zero.
    pub pad: u32,
}

/// No rule selects the pod: everything is allowed.
pub const NO_POLICY: Digest = [0; 16];
/// The pod's rules could not be written: nothing is allowed. Never a key of `policy`.
pub const BROKEN_POLICY: Digest = [0xff; 16];

/// The agent captures this pod's outbound connections. Unset while it is joining or leaving.
pub const POD_CAPTURES: u32 = 1;
/// Plaintext from anybody is refused where no port rule says otherwise.
pub const POD_STRICT: u32 = 2;
/// An authorization policy selects the pod: inbound plaintext is steered to the agent, which decides.
pub const POD_POLICY: u32 = 4;
/// What is not in the mesh may not be reached, unless it is in `admitted`.
pub const POD_REFUSES_OUTSIDE: u32 = 8;
/// UDP into the pod is refused on every port.
pub const POD_UDP_STRICT: u32 = 16;
/// UDP into the pod is refused on the ports that `port_rules` names.
pub const POD_UDP_PORTS: u32 = 32;

/// `service_facts`: what is known of a virtual address and port. `services` names it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServiceValue {
    /// An endpoint to use while the node's agent is away and the pod may do without it; zero when none.
    pub fallback_ip: Ip,
    /// Its port.
    pub fallback_port: u16,
    /// `SERVICE_*` bits.
    pub flags: u16,
    /// Its list in `endpoints`.
    pub list: u32,
    /// How many endpoints a pod of this node may be given, wherever they are.
    pub eligible: u16,
    /// How many of them are captured pods of this node: slots `0..local` of the list.
    pub local: u16,
}

impl ServiceValue {
    /// A service of which nothing is known: the agent decides.
    pub const NOTHING: Self = Self { fallback_ip: [0; 16], fallback_port: 0, flags: 0, list: 0, eligible: 0, local: 0 };
}

/// The service has no endpoint: connections are refused, as kube-proxy refuses them.
pub const SERVICE_EMPTY: u16 = 1;

/// `endpoints`: a captured pod of this node that serves.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EndpointValue {
    /// Cookie of its network namespace.
    pub netns_cookie: u64,
    /// Its address.
    pub ip: Ip,
    /// Where it listens.
    pub port: u16,
    /// Explicit padding, zero.
    pub pad: [u16; 3],
}

/// `mesh_ips`: a captured pod's address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MeshIpValue {
    /// Cookie of its network namespace when it is on this node, zero when it is on another.
    pub netns_cookie: u64,
}

/// `policy`: what one identity may do on one port.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyValue {
    /// One of the `POLICY_*` constants; anything else refuses.
    pub verdict: u32,
}

/// Allowed without the agent.
pub const POLICY_ALLOW: u32 = 1;
/// Refused.
pub const POLICY_DENY: u32 = 2;
/// The agent must decide: the rules ask for what the kernel cannot prove.
pub const POLICY_AGENT: u32 = 3;

/// `shares`: how much of the maps a pod holds.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShareValue {
    /// Records of connections under way.
    pub records: i64,
}

/// `port_rules`: what holds for one port of one pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRule {
    word: u32,
}

impl PortRule {
    /// The rule of `key`, one of the `PORT_*` constants.
    #[inline(always)]
    #[must_use]
    pub fn new(key: &PortKey, rule: u32) -> Self {
        Self { word: tag_rule(key, rule) }
    }

    /// The rule, if it is that of `key`.
    #[inline(always)]
    #[must_use]
    pub fn open(self, key: &PortKey) -> Option<u32> {
        open_rule(key, self.word)
    }
}

/// The port is excluded from the mesh by annotation.
pub const PORT_EXCLUDED: u32 = 1;
/// Plaintext is refused on this port.
pub const PORT_STRICT: u32 = 2;
/// Plaintext passes on this port.
pub const PORT_PERMISSIVE: u32 = 3;
/// Direction `PROBE`: the port of a probe.
pub const PORT_PROBE: u32 = 4;
/// Never in the map: no rule of this port could be read. The port is not excluded, and strict.
pub const PORT_UNREAD: u32 = 5;

/// `orig`, `orig_dst`, `accepted`: where the application asked to go.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrigDst {
    /// Address.
    pub ip: Ip,
    /// Port.
    pub port: u16,
    /// One of the `LANE_*` constants.
    pub lane: u16,
}

/// Captured: the connection goes to the agent's outbound listener.
pub const LANE_CAPTURED: u16 = 1;
/// Rewritten to a service's endpoint, without the agent.
pub const LANE_FALLBACK: u16 = 2;
/// Straight to a pod of this node.
pub const LANE_NATIVE: u16 = 3;
/// Captured, and drawn for the endpoints that the kernel cannot serve: the agent balances over those only.
pub const LANE_CAPTURED_REST: u16 = 4;

/// `asked`: what the client's socket was connected to, and what the kernel made of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Where the application asked to go.
    pub orig: OrigDst,
    /// Explicit padding, zero.
    pub pad: u32,
    /// [`LANE_NATIVE`]: cookie of the server's network namespace.
    pub server_cookie: u64,
}

/// `flows`: proof of who opened a connection; a native one's stays until both ends are closed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowValue {
    /// Cookie of the client's network namespace.
    pub netns_cookie: u64,
    /// Cookie of the server's network namespace; zero when the client is the agent or the server itself.
    pub server_cookie: u64,
    /// `CLOCK_MONOTONIC` at the SYN.
    pub started_ns: u64,
    /// Who the client is; zero when the kind says it all.
    pub identity: Digest,
    /// Where the application asked to go, port.
    pub orig_port: u16,
    /// One of the `FLOW_*` constants.
    pub kind: u16,
    /// [`UNDER_WAY`], or [`LIVE`] with the ends that are closed.
    pub stage: u32,
    /// Where the application asked to go, address.
    pub orig_ip: Ip,
}

/// Between the SYN and the moment in which the receiver knows the connection: a proof.
pub const UNDER_WAY: u32 = 0;
/// The receiver has it: says who the client of this connection is, and proves nothing of another one.
pub const LIVE: u32 = 1;
/// Bit beside [`LIVE`]: the client's socket is closed. The server may not have read everything.
pub const CLIENT_CLOSED: u32 = 2;
/// Bit beside [`LIVE`]: the server's socket is closed.
pub const SERVER_CLOSED: u32 = 4;

impl FlowValue {
    /// Whether both ends are closed: the record is nobody's.
    #[inline(always)]
    #[must_use]
    pub const fn is_over(stage: u32) -> bool {
        stage & (CLIENT_CLOSED | SERVER_CLOSED) == CLIENT_CLOSED | SERVER_CLOSED
    }
}

/// The agent delivers to the application; it decided before it connected.
pub const FLOW_DELIVERY: u16 = 1;
/// The pod connects to an address of its own.
pub const FLOW_SELF: u16 = 2;
/// One pod of this node to another, let through by the kernel's policy.
pub const FLOW_NATIVE: u16 = 3;
/// The kubelet to a pod of this node.
pub const FLOW_PROBE: u16 = 4;

/// `admitted`: by which built-in rule a destination outside the mesh may be reached.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdmittedValue {
    /// One of the `ADMITTED_*` constants.
    pub rule: u32,
}

/// The cluster's DNS: Service `kube-dns` or `coredns` of `kube-system`.
pub const ADMITTED_CLUSTER_DNS: u32 = 1;
/// The node's own DNS cache.
pub const ADMITTED_NODE_LOCAL_DNS: u32 = 2;
/// The API server: Service `kubernetes` of `default`.
pub const ADMITTED_KUBERNETES: u32 = 3;
/// Any other Service.
pub const ADMITTED_SERVICE: u32 = 4;

/// `told`: how much of a pod's refusals has been told in the present second.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ToldValue {
    /// The second, in units of 2^30 ns of `CLOCK_MONOTONIC`.
    pub second: u64,
    /// Refusals in it.
    pub refusals: u64,
}

/// `plain`: how often somebody came without proving anything.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlainValue {
    /// Connections that were begun, retransmitted SYNs included.
    pub count: u64,
    /// The last one: `CLOCK_MONOTONIC`, in nanoseconds.
    pub last_ns: u64,
}

/// `agent_sk`: the agent's own socket, to the other agents or to destinations outside the mesh.
pub const AGENT_UPSTREAM: u32 = 1;
/// `agent_sk`: the agent's own socket, to the application in this pod.
pub const AGENT_DELIVERY: u32 = 2;

/// `events`: a refusal that somebody may ask about.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Cookie of the pod's network namespace.
    pub netns_cookie: u64,
    /// The other side's address.
    pub peer_ip: Ip,
    /// The address dialled.
    pub local_ip: Ip,
    /// The other side's port.
    pub peer_port: u16,
    /// The port dialled.
    pub local_port: u16,
    /// [`crate::counter::Counter`] of the exit taken.
    pub counter: u32,
    /// Cookie of the other side's network namespace where the kernel knows it, else zero.
    pub peer_cookie: u64,
}

/// `events`: a native connection that has ended. Counts are the client's.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClosedEvent {
    /// Its record.
    pub flow: FlowValue,
    /// Bytes that the server has acknowledged; control bits are taken off as far as the last state tells them.
    pub sent: u64,
    /// Bytes received.
    pub received: u64,
    /// From the SYN to now.
    pub duration_ns: u64,
    /// Its ends.
    pub key: FlowKey,
    /// Smoothed round-trip time in microseconds.
    pub srtt_us: u32,
    /// Segments sent again.
    pub retransmits: u32,
    /// 1 when the connection never stood.
    pub failed: u32,
}

const _: () = {
    assert!(size_of::<PodValue>() == 72);
    assert!(size_of::<ServiceValue>() == 28);
    assert!(size_of::<EndpointValue>() == 32);
    assert!(size_of::<MeshIpValue>() == 8);
    assert!(size_of::<PolicyValue>() == 4);
    assert!(size_of::<ShareValue>() == 8);
    assert!(size_of::<Asked>() == 32);
    assert!(size_of::<PortRule>() == 4);
    assert!(size_of::<AdmittedValue>() == 4);
    assert!(size_of::<ToldValue>() == 16);
    assert!(size_of::<PlainValue>() == 16);
    assert!(size_of::<OrigDst>() == 20);
    assert!(size_of::<FlowValue>() == 64);
    // One aligned word, so that both ends can set bits of the stage at once.
    assert!(offset_of!(FlowValue, orig_port) % 8 == 0);
    assert!(offset_of!(FlowValue, stage) == offset_of!(FlowValue, orig_port) + 4);
    assert!(size_of::<Event>() == 56);
    assert!(size_of::<ClosedEvent>() == 136);
};

#[cfg(feature = "user")]
mod user {
    macro_rules! pod {
        ($($name:ident)*) => {
            // SAFETY: all are `repr(C)`, `Copy`, of integers and arrays only, without implicit padding (asserted).
            $(unsafe impl aya::Pod for super::$name {})*
        };
    }
    pod!(PodValue ServiceValue EndpointValue MeshIpValue PolicyValue ShareValue PortRule);
    pod!(OrigDst Asked FlowValue Event ClosedEvent AdmittedValue ToldValue PlainValue);
}
