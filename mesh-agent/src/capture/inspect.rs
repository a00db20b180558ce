//! What the loaded programs would decide now: the same decision over the live maps, for `mesh-agent explain`.
//!
//! It reads and never writes. That the agent listens is taken for granted: it is the one that asks.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use aya::maps::lpm_trie::Key;
use mesh_common::decide::{self, ConnectVerdict, ConnectView, Destination, LookupVerdict, LookupView, PolicyView};
use mesh_common::decide::{Proof, Receiver};
use mesh_common::egress::DestinationView;
use mesh_common::key::{CidrKey, Digest, EndpointKey, INBOUND, Ip, OUTBOUND, PROBE, PolicyKey, PortKey, ServiceKey};
use mesh_common::key::{TCP, is_this_host};
use mesh_common::limits::{RECORDS_PER_POD, TUNNEL_PORT, is_agent_port};
use mesh_common::value::{EndpointValue, MeshIpValue, PORT_EXCLUDED, PodValue, ServiceValue};

use super::kernel::{Kernel, Maps};
use super::rules;
use super::sync::key_ip;
use crate::snapshot::Snapshot;

/// Bits of the cookie in front of the address in a [`CidrKey`], plus the address.
const CIDR_BITS: u32 = 64 + 128;

impl Kernel {
    /// What a `connect()` of the pod `uid` to `to` would come to, with `draw` for a service's lot; `None` when the pod
    /// has no entry, so that nothing is captured.
    #[must_use]
    pub fn would_connect(&self, uid: &str, to: SocketAddr, draw: u32) -> Option<ConnectVerdict> {
        let cookie = self.cookie(uid)?;
        let maps = self.lock_maps();
        let pod = maps.pods.get(cookie)?;
        let view = Connecting { maps: &maps, cookie, pod, ip: key_ip(to.ip()), port: to.port(), draw };
        Some(decide::connect(pod.flags, &view))
    }

    /// What a SYN to `port` of the pod `uid` would come to, with the record that a client of this node has left for it,
    /// if any: its `FLOW_*` kind and the client. `None` when the pod is not enrolled.
    #[must_use]
    pub fn would_accept(&self, uid: &str, port: u16, record: Option<(u16, &str)>) -> Option<LookupVerdict> {
        let cookie = self.cookie(uid)?;
        let client = record.map(|(kind, uid)| self.cookie(uid).map(|cookie| (kind, cookie)));
        let maps = self.lock_maps();
        let proof = client.flatten().map(|(kind, client)| Proof {
            kind,
            netns_cookie: client,
            server_cookie: cookie,
            identity: maps.pods.get(client).map_or([0; 16], |pod| pod.identity),
        });
        Some(decide::lookup(&Arriving { maps: &maps, cookie, port, proof }))
    }

    /// Whether the rules in the entry of the pod `uid` are those of `snapshot`; `None` when it is not enrolled.
    #[must_use]
    pub fn has_rules_of(&self, uid: &str, snapshot: &Snapshot) -> Option<bool> {
        let (cookie, workload) = (self.cookie(uid)?, snapshot.workload(uid)?);
        let maps = self.lock_maps();
        let wanted = rules::name(&maps, snapshot, workload);
        Some(maps.pods.get(cookie).is_some_and(|pod| pod.policy == wanted))
    }

    fn cookie(&self, uid: &str) -> Option<u64> {
        let pod = self.enrolments.lock().get(uid).map(Arc::clone)?;
        Some(pod.netns.cookie)
    }
}

impl Maps {
    fn port_rule(&self, netns_cookie: u64, port: u16, direction: u16) -> Option<u32> {
        let key = PortKey { netns_cookie, port, direction, pad: 0 };
        self.port_rules.get(&key, 0).ok()?.open(&key)
    }

    fn verdict_word(&self, key: &PolicyKey) -> Option<u32> {
        self.policy.get(key, 0).ok().map(|value| value.verdict)
    }
}

struct Connecting<'a> {
    maps: &'a Maps,
    cookie: u64,
    pod: PodValue,
    ip: Ip,
    port: u16,
    draw: u32,
}

impl Connecting<'_> {
    fn own_ip(&self) -> Ip {
        let v4 = IpAddr::from(self.ip).to_canonical().is_ipv4();
        if v4 { self.pod.ip4 } else { self.pod.ip6 }
    }
}

impl PolicyView for Connecting<'_> {
    fn policy(&self, key: &PolicyKey) -> Option<u32> {
        self.maps.verdict_word(key)
    }
}

impl DestinationView for Connecting<'_> {
    fn is_loopback(&self) -> bool {
        is_this_host(&self.ip)
    }

    fn is_own_ip(&self) -> bool {
        self.ip == self.own_ip()
    }

    fn is_excluded(&self) -> bool {
        let cidr = Key::new(CIDR_BITS, CidrKey { netns_cookie: self.cookie.to_ne_bytes(), ip: self.ip });
        self.maps.port_rule(self.cookie, self.port, OUTBOUND) == Some(PORT_EXCLUDED)
            || self.maps.excluded_cidrs.get(&cidr, 0).is_ok()
    }

    fn mesh_ip(&self) -> Option<MeshIpValue> {
        self.maps.mesh_ips.get(&self.ip, 0).ok()
    }

    fn admitted(&self) -> Option<u32> {
        let key = ServiceKey { ip: self.ip, port: self.port, protocol: TCP };
        self.maps.egress.admitted.get(&key, 0).ok().map(|value| value.rule)
    }
}

impl ConnectView for Connecting<'_> {
    fn is_agent_socket(&self) -> bool {
        false
    }

    fn service(&self) -> Option<ServiceValue> {
        let key = ServiceKey { ip: self.ip, port: self.port, protocol: TCP };
        let number = self.maps.services.get(&key, 0).ok()?.open(&key)?;
        self.maps.service_facts.get(&number, 0).ok()
    }

    fn endpoint(&self, list: u32, slot: u32) -> Option<EndpointValue> {
        self.maps.endpoints.get(&EndpointKey { list, slot }, 0).ok()
    }

    fn draw(&self) -> u32 {
        self.draw
    }

    fn dialled(&self) -> (Ip, u16) {
        (self.ip, self.port)
    }

    fn destination(&self, netns_cookie: u64, port: u16) -> Option<Destination> {
        let policy = self.maps.pods.get(netns_cookie)?.policy;
        let excluded = self.maps.port_rule(netns_cookie, port, INBOUND) == Some(PORT_EXCLUDED);
        Some(Destination { policy, excluded })
    }

    fn identity(&self) -> Digest {
        self.pod.identity
    }

    fn is_share_full(&self) -> bool {
        self.maps.shares.get(&self.cookie, 0).map_or(true, |share| share.records >= RECORDS_PER_POD)
    }

    fn has_family(&self) -> bool {
        self.own_ip() != [0; 16]
    }

    fn agent_listens(&self) -> bool {
        true
    }
}

struct Arriving<'a> {
    maps: &'a Maps,
    cookie: u64,
    port: u16,
    proof: Option<Proof>,
}

impl PolicyView for Arriving<'_> {
    fn policy(&self, key: &PolicyKey) -> Option<u32> {
        self.maps.verdict_word(key)
    }
}

impl LookupView for Arriving<'_> {
    fn is_loopback(&self) -> bool {
        false
    }

    fn is_liveness(&self) -> bool {
        false
    }

    fn is_tunnel_port(&self) -> bool {
        self.port == TUNNEL_PORT
    }

    fn is_agent_port(&self) -> bool {
        is_agent_port(self.port)
    }

    fn port(&self) -> u16 {
        self.port
    }

    fn proof(&self) -> Option<Proof> {
        self.proof
    }

    fn netns_cookie(&self) -> u64 {
        self.cookie
    }

    fn is_captured(&self) -> bool {
        false
    }

    fn receiver(&self) -> Option<Receiver> {
        let pod = self.maps.pods.get(self.cookie)?;
        Some(Receiver { flags: pod.flags, policy: pod.policy })
    }

    fn is_probe_port(&self) -> bool {
        self.maps.port_rule(self.cookie, self.port, PROBE).is_some()
    }

    fn port_rule(&self) -> Option<u32> {
        self.maps.port_rule(self.cookie, self.port, INBOUND)
    }
}
