//! Map keys. Addresses are 16 bytes in network order, IPv4 as v4-mapped; ports are in host order.

/// An IPv6 address in network byte order; IPv4 as `::ffff:a.b.c.d`.
pub type Ip = [u8; 16];

/// A name by content: the first 128 bits of SHA-256 over what it names, so that nobody has to hand out numbers and
/// no two agents can disagree.
pub type Digest = [u8; 16];

/// `policy`: under these rules, this identity, on this port.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PolicyKey {
    /// The rules.
    pub policy: Digest,
    /// The client.
    pub identity: Digest,
    /// The server's port, or [`ANY_PORT`].
    pub port: u16,
    /// Explicit padding, zero.
    pub pad: u16,
}

/// Every port that has no entry of its own.
pub const ANY_PORT: u16 = 0;

/// `endpoints`: one slot of a service's list.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EndpointKey {
    /// The list, see `ServiceValue`.
    pub list: u32,
    /// The slot.
    pub slot: u32,
}

/// `services`: a virtual address and port. `admitted`: a destination outside the mesh.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServiceKey {
    /// Virtual address.
    pub ip: Ip,
    /// Service port.
    pub port: u16,
    /// IP protocol: [`TCP`] or [`UDP`].
    pub protocol: u16,
}

/// IP protocol number.
pub const TCP: u16 = 6;
/// IP protocol number.
pub const UDP: u16 = 17;

/// `port_rules`: a pod's port in one direction.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortKey {
    /// Cookie of the pod's network namespace.
    pub netns_cookie: u64,
    /// Port.
    pub port: u16,
    /// [`INBOUND`], [`OUTBOUND`], [`PROBE`] or [`UDP_IN`].
    pub direction: u16,
    /// Explicit padding, zero.
    pub pad: u32,
}

/// Direction of a [`PortKey`]: into the pod.
pub const INBOUND: u16 = 0;
/// Direction of a [`PortKey`]: out of the pod.
pub const OUTBOUND: u16 = 1;
/// Direction of a [`PortKey`]: into the pod, by the kubelet. Presence says that the pod's spec declares the port as
/// that of a probe or a lifecycle hook.
pub const PROBE: u16 = 2;
/// Direction of a [`PortKey`]: UDP into the pod. Presence says that a strict pod refuses it there.
pub const UDP_IN: u16 = 3;

/// `excluded_cidrs`: data part of the LPM key; the prefix length counts the 64 bits of the cookie as well.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CidrKey {
    /// Cookie of the pod's network namespace, in native bytes (always matched whole).
    pub netns_cookie: [u8; 8],
    /// Address.
    pub ip: Ip,
}

/// `orig_dst`: a captured connection, by its ends. The server's address is the client's own; its port is needed, since
/// the system gives one local port to several connections at a time as long as their destinations differ.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OrigKey {
    /// Cookie of the client's network namespace.
    pub netns_cookie: u64,
    /// Client address.
    pub ip: Ip,
    /// Client port.
    pub port: u16,
    /// The port of the capture range that it was sent to.
    pub capture_port: u16,
    /// Explicit padding, zero.
    pub pad: u32,
}

impl OrigKey {
    /// That of the connection from `ip` and `port` to `capture_port`.
    #[inline(always)]
    #[must_use]
    pub const fn new(netns_cookie: u64, ip: Ip, port: u16, capture_port: u16) -> Self {
        Self { netns_cookie, ip, port, capture_port, pad: 0 }
    }
}

/// `flows`: a connection's four-tuple, seen from the client.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Client address.
    pub client_ip: Ip,
    /// Server address.
    pub server_ip: Ip,
    /// Client port.
    pub client_port: u16,
    /// Server port.
    pub server_port: u16,
}

/// `plain`: who has come to a pod's port without proving anything.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PlainKey {
    /// Cookie of the pod's network namespace.
    pub netns_cookie: u64,
    /// The other side's address.
    pub ip: Ip,
    /// The pod's port.
    pub port: u16,
    /// Explicit padding, zero.
    pub pad: [u16; 3],
}

/// `known`: a connection between a guarded pod and somebody outside the mesh.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KnownKey {
    /// Cookie of the pod's network namespace.
    pub netns_cookie: u64,
    /// The other side's address.
    pub ip: Ip,
    /// The other side's port.
    pub port: u16,
    /// The pod's port.
    pub own_port: u16,
    /// Explicit padding, zero.
    pub pad: u32,
}

/// `listeners`: one of the agent's listening sockets inside a pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenerKey {
    /// Cookie of the pod's network namespace. A listener of another netns would be accepted by
    /// `bpf_sk_assign`, and the client would hang: the agent checks the cookie when it inserts.
    pub netns_cookie: u64,
    /// One of the `LISTENER_*` constants.
    pub kind: u32,
    /// Explicit padding, zero.
    pub pad: u32,
}

/// Accepts captured outbound connections.
pub const LISTENER_OUTBOUND: u32 = 0;
/// Accepts tunnels on port 15008.
pub const LISTENER_TUNNEL: u32 = 1;
/// Accepts steered plaintext.
pub const LISTENER_PLAINTEXT: u32 = 2;

const _: () = {
    assert!(size_of::<PolicyKey>() == 36);
    assert!(size_of::<EndpointKey>() == 8);
    assert!(size_of::<ServiceKey>() == 20);
    assert!(size_of::<PortKey>() == 16);
    assert!(size_of::<CidrKey>() == 24);
    assert!(size_of::<OrigKey>() == 32);
    assert!(size_of::<FlowKey>() == 36);
    assert!(size_of::<KnownKey>() == 32);
    assert!(size_of::<ListenerKey>() == 16);
    assert!(size_of::<PlainKey>() == 32);
};

/// IPv4 (network order bytes) as a v4-mapped address.
#[must_use]
pub const fn v4_mapped(v4: [u8; 4]) -> Ip {
    let [a, b, c, d] = v4;
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// Whether `ip` is 127.0.0.0/8 or ::1.
#[must_use]
pub fn is_loopback(ip: &Ip) -> bool {
    match ip {
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, ..] => true,
        [head @ .., 1] => head.iter().all(|b| *b == 0),
        _ => false,
    }
}

/// Whether a packet to `ip` stays on the host that sends it: loopback, or no address at all, which means the same.
#[must_use]
pub fn is_this_host(ip: &Ip) -> bool {
    is_loopback(ip) || *ip == [0; 16] || *ip == v4_mapped([0; 4])
}

/// The offset into the capture range for an original destination: spreads destinations over its ports.
///
/// FNV-1a over address and port; only its spread matters, not its secrecy.
#[must_use]
pub fn capture_port(ip: &Ip, port: u16) -> u16 {
    let mut hash: u32 = 0x811c_9dc5;
    for byte in ip {
        hash = (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    }
    hash = (hash ^ u32::from(port)).wrapping_mul(0x0100_0193);
    // The low bits of FNV mix poorly with a last 16-bit step: fold the high half in.
    let folded = (hash >> 16) ^ hash;
    crate::limits::CAPTURE_PORT_FIRST + (folded as u16 & (crate::limits::CAPTURE_PORTS - 1))
}

#[cfg(feature = "user")]
mod user {
    macro_rules! pod {
        ($($name:ident)*) => {
            // SAFETY: all are `repr(C)`, `Copy`, of integers and arrays only, without implicit padding (asserted).
            $(unsafe impl aya::Pod for super::$name {})*
        };
    }
    pod!(ServiceKey EndpointKey PolicyKey PortKey CidrKey OrigKey FlowKey ListenerKey PlainKey);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::vec::Vec;

    #[test]
    fn loopback_is_127_8_and_one() {
        let mut one = [0; 16];
        one[15] = 1;
        assert!(is_loopback(&one) && is_loopback(&v4_mapped([127, 9, 9, 9])));
        assert!(
            !is_loopback(&[0; 16])
                && !is_loopback(&v4_mapped([10, 0, 0, 1]))
                && !is_loopback(&v4_mapped([128, 0, 0, 1]))
        );
        let mut high = one;
        high[0] = 0xfe;
        assert!(!is_loopback(&high));
    }

    #[test]
    fn no_address_means_this_host() {
        for ip in [[0; 16], v4_mapped([0; 4]), v4_mapped([127, 0, 0, 53])] {
            assert!(is_this_host(&ip), "{ip:?}");
        }
        assert!(!is_this_host(&v4_mapped([0, 0, 0, 1])));
    }

    #[test]
    fn destinations_spread_over_the_capture_range() {
        let mut used: HashMap<u16, u32> = HashMap::new();
        for host in 0..64_u8 {
            for port in [80, 443, 5432, 8080] {
                let chosen = capture_port(&v4_mapped([10, 96, 0, host]), port);
                assert!(crate::limits::is_agent_port(chosen));
                *used.entry(chosen).or_default() += 1;
            }
        }
        let counts: Vec<_> = used.values().copied().collect();
        assert!(used.len() > 48, "256 destinations on {} ports", used.len());
        assert!(counts.iter().all(|n| *n <= 16), "{counts:?}");
    }
}
