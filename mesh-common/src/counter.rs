//! One counter for each way out of a kernel program, so that no connection disappears without a trace.

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident = $word:literal,)*) => {
        /// An exit of a kernel program; its number is the index into the `stats` map.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Counter { $($(#[$doc])* $name,)* }

        impl Counter {
            /// Every counter, in index order.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The word in metrics and logs: `<hook>_<what happened>`.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }
        }
    };
}

counters! {
    /// Not TCP.
    ConnectNotTcp = "connect_not_tcp",
    /// The agent's own socket.
    ConnectAgent = "connect_agent",
    /// Loopback.
    ConnectLoopback = "connect_loopback",
    /// The pod's own address.
    ConnectOwnIp = "connect_own_ip",
    /// Excluded by annotation.
    ConnectExcluded = "connect_excluded",
    /// The destination is not in the mesh.
    ConnectOutside = "connect_outside",
    /// The pod is joining or leaving.
    ConnectNotCapturing = "connect_not_capturing",
    /// Sent to the agent.
    ConnectCaptured = "connect_captured",
    /// Straight to a pod of this node.
    ConnectNative = "connect_native",
    /// A policy refuses it.
    ConnectDenied = "connect_denied",
    /// The pod has used up its share of the maps: refused.
    ConnectShareFull = "connect_share_full",
    /// Captured would have been right, but the pod has no address of that family.
    ConnectNoFamily = "connect_no_family",
    /// The service has no endpoints: refused.
    ConnectNoEndpoints = "connect_no_endpoints",
    /// The agent is away and the pod is strict: refused.
    ConnectAgentAway = "connect_agent_away",
    /// The agent is away and the pod is permissive: passed on without it.
    ConnectFallback = "connect_fallback",
    /// The destination is not in the mesh, but a built-in rule admits it.
    ConnectAdmitted = "connect_admitted",
    /// The destination is not in the mesh, and the pod refuses what is not: refused.
    ConnectEgress = "connect_egress",
    /// The same for a `connect()` of another protocol than TCP: refused.
    ConnectUdpEgress = "connect_udp_egress",
    /// A datagram or UDP connection to the pod itself.
    DatagramLocal = "datagram_local",
    /// A datagram or UDP connection excluded by annotation.
    DatagramExcluded = "datagram_excluded",
    /// A datagram or UDP connection to a captured pod.
    DatagramMesh = "datagram_mesh",
    /// A datagram or UDP connection that a built-in rule admits.
    DatagramAdmitted = "datagram_admitted",
    /// A datagram to what is not in the mesh: refused.
    SendmsgEgress = "sendmsg_egress",
    /// The original destination could not be stored: refused.
    ConnectStoreFailed = "connect_store_failed",
    /// A record could not be stored at SYN time: the receiver will refuse.
    SockopsStoreFailed = "sockops_store_failed",
    /// Loopback inside the pod.
    LookupLoopback = "lookup_loopback",
    /// The `connect` hook's own look-up.
    LookupLiveness = "lookup_liveness",
    /// Delivered by the agent.
    LookupDelivery = "lookup_delivery",
    /// The pod to itself.
    LookupSelf = "lookup_self",
    /// From a pod of this node, by its record, and allowed.
    LookupNative = "lookup_native",
    /// From a pod of this node, by its record, and the policy that now holds refuses it: dropped.
    LookupDenied = "lookup_denied",
    /// From a pod of this node, by its record, but only the agent can decide: steered to the plaintext listener.
    LookupProven = "lookup_proven",
    /// A probe of the kubelet, on a port that the pod declares for it.
    LookupProbe = "lookup_probe",
    /// Steered to the outbound listener.
    LookupOutbound = "lookup_outbound",
    /// Steered to the tunnel listener.
    LookupTunnel = "lookup_tunnel",
    /// Steered to the plaintext listener.
    LookupPlaintext = "lookup_plaintext",
    /// Plaintext let through: permissive, no policy.
    LookupPermissive = "lookup_permissive",
    /// Excluded by annotation.
    LookupExcluded = "lookup_excluded",
    /// Not TCP.
    LookupNotTcp = "lookup_not_tcp",
    /// An agent port dialled without a record: dropped.
    LookupAgentPort = "lookup_agent_port",
    /// The listener that should take it is gone: dropped.
    LookupNoListener = "lookup_no_listener",
    /// Plaintext to a strict port: dropped.
    LookupStrict = "lookup_strict",
    /// The pod has no entry in the map: dropped.
    LookupNoPod = "lookup_no_pod",
    /// An entry was another's each time it was looked up, or names facts that are not there: refused, or left to the
    /// agent.
    EntryForeign = "entry_foreign",
    /// A guard seeks a connection that stands, and there is none.
    LookupSought = "lookup_sought",
    /// UDP to a strict pod that takes none there: dropped.
    LookupUdpStrict = "lookup_udp_strict",
    /// UDP to a strict pod that takes none there, from a destination that is admitted: an answer.
    LookupUdpAdmitted = "lookup_udp_admitted",
    /// Guard: the pod refuses nothing any more.
    GuardUnruled = "guard_unruled",
    /// Guard: what keeps the link going: ARP, neighbour discovery.
    GuardLink = "guard_link",
    /// Guard: a segment of one of the pod's connections.
    GuardSegment = "guard_segment",
    /// Guard: UDP or ICMP to where the pod may send it.
    GuardDatagram = "guard_datagram",
    /// Guard: a packet into the pod.
    GuardEntered = "guard_entered",
    /// Guard: the pod has no entry in the map: dropped.
    GuardNoPod = "guard_no_pod",
    /// Guard: not as a pod's kernel sends it: cut short, tagged, with IPv4 options, a fragment of TCP: dropped.
    GuardUnreadable = "guard_unreadable",
    /// Guard: neither TCP, UDP nor ICMP: dropped.
    GuardProtocol = "guard_protocol",
    /// Guard: not under the pod's own address: dropped.
    GuardSource = "guard_source",
    /// Guard: to what is not in the mesh: dropped.
    GuardOutside = "guard_outside",
    /// Guard: a segment of TCP that is no socket's: dropped.
    GuardNoSocket = "guard_no_socket",
    /// Guard: neither TCP, UDP nor ICMP into a strict pod: dropped.
    GuardStrict = "guard_strict",
    /// A refusal was not reported: the pod has had its share of this second.
    EventLimited = "event_limited",
    /// A refusal was not reported: the event ring was full.
    EventLost = "event_lost",
}

/// Entries of the `stats` map.
pub const COUNT: u32 = Counter::ALL.len() as u32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_its_own_index() {
        for (index, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, index, "{}", counter.as_str());
        }
    }
}
