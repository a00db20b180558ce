//! Map values. Same rules as [`crate::key`]: no implicit padding, layout asserted.

use crate::key::Ip;

/// `pods`: an enrolled pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodValue {
    /// Own IPv4 address (v4-mapped), all zero when it has none.
    pub ip4: Ip,
    /// Own IPv6 address, all zero when it has none.
    pub ip6: Ip,
    /// `POD_*` bits.
    pub flags: u32,
    /// Explicit padding, zero.
    pub pad: u32,
}

/// The agent captures this pod's outbound connections. Unset while it is joining or leaving.
pub const POD_CAPTURES: u32 = 1;
/// Plaintext from anybody is refused where no port rule says otherwise.
pub const POD_STRICT: u32 = 2;
/// An authorization policy selects the pod: inbound plaintext is steered to the agent, which decides.
pub const POD_POLICY: u32 = 4;

/// `services`: what is known of a virtual address and port.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceValue {
    /// An endpoint to use while the node's agent is away and the pod may do without it; zero when none.
    pub fallback_ip: Ip,
    /// Its port.
    pub fallback_port: u16,
    /// `SERVICE_*` bits.
    pub flags: u16,
}

/// The service has no endpoint: connections are refused, as kube-proxy refuses them.
pub const SERVICE_EMPTY: u16 = 1;

/// `port_rules`: what holds for one port of one pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRule {
    /// One of the `PORT_*` constants.
    pub rule: u32,
}

/// The port is excluded from the mesh by annotation.
pub const PORT_EXCLUDED: u32 = 1;
/// Plaintext is refused on this port.
pub const PORT_STRICT: u32 = 2;
/// Plaintext passes on this port.
pub const PORT_PERMISSIVE: u32 = 3;

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

/// `flows`: proof of who opened a connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowValue {
    /// Cookie of the client's network namespace.
    pub netns_cookie: u64,
    /// One of the `FLOW_*` constants.
    pub kind: u32,
    /// Explicit padding, zero.
    pub pad: u32,
}

/// The agent delivers to the application; it decided before it connected.
pub const FLOW_DELIVERY: u32 = 1;
/// The pod connects to an address of its own.
pub const FLOW_SELF: u32 = 2;

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
}

const _: () = {
    assert!(size_of::<PodValue>() == 40);
    assert!(size_of::<ServiceValue>() == 20);
    assert!(size_of::<PortRule>() == 4);
    assert!(size_of::<OrigDst>() == 20);
    assert!(size_of::<FlowValue>() == 16);
    assert!(size_of::<Event>() == 48);
};

#[cfg(feature = "user")]
mod user {
    use super::{Event, FlowValue, OrigDst, PodValue, PortRule, ServiceValue};
    // SAFETY: all are `repr(C)`, `Copy`, of integers and byte arrays only, without implicit padding (asserted).
    unsafe impl aya::Pod for PodValue {}
    // SAFETY: as above.
    unsafe impl aya::Pod for ServiceValue {}
    // SAFETY: as above.
    unsafe impl aya::Pod for PortRule {}
    // SAFETY: as above.
    unsafe impl aya::Pod for OrigDst {}
    // SAFETY: as above.
    unsafe impl aya::Pod for FlowValue {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Event {}
}
