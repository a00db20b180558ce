//! The decision of the `connect` and `sk_lookup` hooks, without the kernel.
//!
//! The programs implement [`ConnectView`] and [`LookupView`] with map look-ups; the host's tests implement
//! them with tables. Questions are asked in order of cost, and none is asked after the answer is known.
//! A miss or an error where a policy applies refuses.

use crate::counter::Counter;
use crate::egress::{self, DestinationView, Leaving};
use crate::key::{ANY_PORT, Digest, Ip, PolicyKey};
use crate::value::{
    EndpointValue, FLOW_DELIVERY, FLOW_NATIVE, FLOW_PROBE, FLOW_SELF, LANE_CAPTURED, LANE_CAPTURED_REST, MeshIpValue,
    NO_POLICY, POD_CAPTURES, POD_POLICY, POD_REFUSES_OUTSIDE, POD_STRICT, POLICY_AGENT, POLICY_ALLOW, PORT_EXCLUDED,
    PORT_PERMISSIVE, PORT_STRICT, PORT_UNREAD, SERVICE_EMPTY, ServiceValue,
};

/// What the policy maps say.
pub trait PolicyView {
    /// The verdict word of an entry of `policy`.
    fn policy(&self, key: &PolicyKey) -> Option<u32>;
}

/// What rules make of a proven client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Allowed.
    Allow,
    /// Refused.
    Deny,
    /// The agent must decide.
    Agent,
}

/// Whether the client with `identity` may reach `port` of a pod under the rules `policy`: the entry of the port, else
/// that of any port, else refusal.
#[inline(always)]
pub fn verdict(policy: &Digest, identity: &Digest, port: u16, view: &impl PolicyView) -> Verdict {
    if *policy == NO_POLICY {
        return Verdict::Allow;
    }
    let mut key = PolicyKey { policy: *policy, identity: *identity, port, pad: 0 };
    let mut word = view.policy(&key);
    if word.is_none() {
        key.port = ANY_PORT;
        word = view.policy(&key);
    }
    match word {
        Some(POLICY_ALLOW) => Verdict::Allow,
        Some(POLICY_AGENT) => Verdict::Agent,
        _ => Verdict::Deny,
    }
}

/// The pod behind a destination on this node, as far as a decision needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The rules that select it.
    pub policy: Digest,
    /// The dialled port is excluded from the mesh there.
    pub excluded: bool,
}

/// What the `connect` hook may ask about one connection of an enrolled pod.
pub trait ConnectView: PolicyView + DestinationView {
    /// The socket is the agent's own.
    fn is_agent_socket(&self) -> bool;
    /// The service behind the destination, if it is a virtual address.
    fn service(&self) -> Option<ServiceValue>;
    /// One of a service's endpoints on this node.
    fn endpoint(&self, list: u32, slot: u32) -> Option<EndpointValue>;
    /// A number drawn at random.
    fn draw(&self) -> u32;
    /// The dialled address and port.
    fn dialled(&self) -> (Ip, u16);
    /// The enrolled pod of this node with that netns, for a connection to `port` of it.
    fn destination(&self, netns_cookie: u64, port: u16) -> Option<Destination>;
    /// Who the client is.
    fn identity(&self) -> Digest;
    /// The client has used up its share of the maps.
    fn is_share_full(&self) -> bool;
    /// The pod has an address of the destination's family to rewrite to.
    fn has_family(&self) -> bool;
    /// The agent's outbound listener stands in this pod.
    fn agent_listens(&self) -> bool;
}

/// What the `connect` hook does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectVerdict {
    /// Leave it alone.
    Bypass(Counter),
    /// Rewrite to the agent, in this `LANE_*`.
    Capture(u16),
    /// Straight to this pod of the node.
    Native(EndpointValue),
    /// Rewrite a virtual address to this endpoint, without the agent.
    Fallback(ServiceValue),
    /// ECONNREFUSED.
    Refuse(Counter),
    /// What is not in the mesh may not be reached.
    RefuseOutside,
    /// The policy of this pod of the node refuses.
    Deny(EndpointValue),
}

/// Where a connection of a pod goes before its lane is chosen.
enum Place {
    /// A captured pod of this node.
    Here(EndpointValue),
    /// The agent finds out; among the endpoints that the kernel cannot serve when true.
    Agent(bool),
}

/// Draws among all eligible endpoints of a service, or takes those of this node while the agent is away.
#[inline(always)]
fn draw(service: &ServiceValue, view: &impl ConnectView) -> Place {
    if service.local == 0 {
        return Place::Agent(false);
    }
    let local = u32::from(service.local);
    let eligible = u32::from(service.eligible);
    let mut slot = view.draw();
    // Zero does not come together with a local endpoint; the verifier does not know.
    if eligible > local {
        slot %= eligible;
        if slot >= local && view.agent_listens() {
            return Place::Agent(true);
        }
    }
    match view.endpoint(service.list, slot % local) {
        Some(endpoint) => Place::Here(endpoint),
        // The list is being replaced: the agent knows the new one.
        None => Place::Agent(false),
    }
}

/// Decides one TCP `connect()` of a pod with the given `POD_*` flags.
#[inline(always)]
pub fn connect(flags: u32, view: &impl ConnectView) -> ConnectVerdict {
    use ConnectVerdict::{Bypass, Capture, Deny, Fallback, Native, Refuse};
    if view.is_loopback() {
        return Bypass(Counter::ConnectLoopback);
    }
    if view.is_agent_socket() {
        return Bypass(Counter::ConnectAgent);
    }
    let captures = flags & POD_CAPTURES != 0;
    if !captures && flags & POD_REFUSES_OUTSIDE == 0 {
        return Bypass(Counter::ConnectNotCapturing);
    }
    if view.is_own_ip() {
        return Bypass(Counter::ConnectOwnIp);
    }
    if view.is_excluded() {
        return Bypass(Counter::ConnectExcluded);
    }
    let service = view.service();
    if !captures {
        // Joining or leaving: as without the mesh, but nowhere else.
        let inside = service.is_some() || view.mesh_ip().is_some();
        return if inside { Bypass(Counter::ConnectNotCapturing) } else { outside(flags, view) };
    }
    let place = match &service {
        Some(service) if service.flags & SERVICE_EMPTY != 0 => return Refuse(Counter::ConnectNoEndpoints),
        Some(service) => draw(service, view),
        None => match view.mesh_ip() {
            None => return outside(flags, view),
            Some(MeshIpValue { netns_cookie: 0 }) => Place::Agent(false),
            Some(MeshIpValue { netns_cookie }) => {
                let (ip, port) = view.dialled();
                Place::Here(EndpointValue { netns_cookie, ip, port, pad: [0; 3] })
            }
        },
    };
    if view.is_share_full() {
        return Refuse(Counter::ConnectShareFull);
    }
    let lane = match place {
        Place::Here(endpoint) => match native(&endpoint, view) {
            Verdict::Allow => return Native(endpoint),
            Verdict::Deny => return Deny(endpoint),
            Verdict::Agent => LANE_CAPTURED,
        },
        Place::Agent(true) => LANE_CAPTURED_REST,
        Place::Agent(false) => LANE_CAPTURED,
    };
    if !view.has_family() {
        return Bypass(Counter::ConnectNoFamily);
    }
    if view.agent_listens() {
        return Capture(lane);
    }
    if flags & POD_STRICT != 0 {
        return Refuse(Counter::ConnectAgentAway);
    }
    match service {
        Some(service) if service.fallback_port != 0 => Fallback(service),
        _ => Bypass(Counter::ConnectFallback),
    }
}

#[inline(always)]
fn outside(flags: u32, view: &impl ConnectView) -> ConnectVerdict {
    match egress::outside(flags, view) {
        Leaving::Admitted(_) => ConnectVerdict::Bypass(Counter::ConnectAdmitted),
        Leaving::Refused => ConnectVerdict::RefuseOutside,
        _ => ConnectVerdict::Bypass(Counter::ConnectOutside),
    }
}

#[inline(always)]
fn native(endpoint: &EndpointValue, view: &impl ConnectView) -> Verdict {
    match view.destination(endpoint.netns_cookie, endpoint.port) {
        // It is leaving the mesh, or the agent has yet to enrol it.
        None => Verdict::Agent,
        Some(destination) if destination.excluded => Verdict::Allow,
        Some(destination) => verdict(&destination.policy, &view.identity(), endpoint.port, view),
    }
}

/// An enrolled pod, as its own `sk_lookup` sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receiver {
    /// `POD_*` bits.
    pub flags: u32,
    /// The rules that select it.
    pub policy: Digest,
}

/// The record of a connection, as far as a decision needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// One of the `FLOW_*` constants.
    pub kind: u16,
    /// Cookie of the client's netns.
    pub netns_cookie: u64,
    /// Cookie of the netns that the connection was let through to.
    pub server_cookie: u64,
    /// Who the client is.
    pub identity: Digest,
}

/// What the `sk_lookup` hook may ask about one SYN to an enrolled pod.
pub trait LookupView: PolicyView {
    /// It arrived on the loopback device for a loopback address.
    fn is_loopback(&self) -> bool;
    /// It is no packet but the `connect` hook's question whether the agent listens.
    fn is_liveness(&self) -> bool;
    /// The port is the tunnel port.
    fn is_tunnel_port(&self) -> bool;
    /// The port is one of the agent's own.
    fn is_agent_port(&self) -> bool;
    /// The port dialled.
    fn port(&self) -> u16;
    /// The record of this four-tuple.
    fn proof(&self) -> Option<Proof>;
    /// Cookie of this pod's netns.
    fn netns_cookie(&self) -> u64;
    /// A captured connection of this pod has this source.
    fn is_captured(&self) -> bool;
    /// This pod.
    fn receiver(&self) -> Option<Receiver>;
    /// The pod declares the dialled port as that of a probe.
    fn is_probe_port(&self) -> bool;
    /// The rule of the dialled port, if it has one.
    fn port_rule(&self) -> Option<u32>;
}

/// What the `sk_lookup` hook does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookupVerdict {
    /// The ordinary look-up goes on: the application's listener gets it.
    Pass(Counter),
    /// The agent's listener of this kind gets it; dropped when it is gone.
    Steer(u32, Counter),
    /// Refused: the client gets RST at once.
    Drop(Counter),
}

/// Decides one inbound TCP connection of a pod.
#[inline(always)]
pub fn lookup(view: &impl LookupView) -> LookupVerdict {
    use LookupVerdict::{Drop, Pass, Steer};
    if view.is_liveness() {
        return Pass(Counter::LookupLiveness);
    }
    if view.is_loopback() {
        return Pass(Counter::LookupLoopback);
    }
    let Some(pod) = view.receiver() else {
        return Drop(Counter::LookupNoPod);
    };
    if view.is_tunnel_port() {
        return Steer(crate::key::LISTENER_TUNNEL, Counter::LookupTunnel);
    }
    if view.is_agent_port() {
        return if view.is_captured() {
            Steer(crate::key::LISTENER_OUTBOUND, Counter::LookupOutbound)
        } else {
            Drop(Counter::LookupAgentPort)
        };
    }
    let rule = view.port_rule();
    if let Some(proof) = view.proof() {
        let own = proof.netns_cookie == view.netns_cookie();
        if own && proof.kind == FLOW_DELIVERY {
            return Pass(Counter::LookupDelivery);
        }
        if own && proof.kind == FLOW_SELF {
            return Pass(Counter::LookupSelf);
        }
        let meant = proof.server_cookie == view.netns_cookie();
        if meant && proof.kind == FLOW_PROBE && view.is_probe_port() {
            return Pass(Counter::LookupProbe);
        }
        if meant && proof.kind == FLOW_NATIVE && rule != Some(PORT_EXCLUDED) {
            return match verdict(&pod.policy, &proof.identity, view.port(), view) {
                Verdict::Allow => Pass(Counter::LookupNative),
                Verdict::Deny => Drop(Counter::LookupDenied),
                Verdict::Agent => Steer(crate::key::LISTENER_PLAINTEXT, Counter::LookupProven),
            };
        }
    }
    let strict = match rule {
        Some(PORT_EXCLUDED) => return Pass(Counter::LookupExcluded),
        Some(PORT_STRICT | PORT_UNREAD) => true,
        Some(PORT_PERMISSIVE) => false,
        _ => pod.flags & POD_STRICT != 0,
    };
    if strict {
        return Drop(Counter::LookupStrict);
    }
    if pod.flags & POD_POLICY != 0 {
        return Steer(crate::key::LISTENER_PLAINTEXT, Counter::LookupPlaintext);
    }
    Pass(Counter::LookupPermissive)
}

#[cfg(test)]
#[path = "decide_tests/mod.rs"]
mod tests;
