//! The snapshot as the kernel's programs would see it: what `mesh_common::decide` asks, answered without maps.
//!
//! A pod's netns cookie is its number in the snapshot here, and so are the names of rules and identities: they only
//! have to be told apart. Rules are read from [`table`], of which the kernel's entries are made.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use mesh_common::decide::{ConnectView, Destination, LookupView, PolicyView, Proof, Receiver};
use mesh_common::egress::DestinationView;
use mesh_common::key::{ANY_PORT, Digest, INBOUND, Ip, OUTBOUND, PROBE, PolicyKey, is_this_host};
use mesh_common::limits::{TUNNEL_PORT, is_agent_port};
use mesh_common::value::{
    EndpointValue, MeshIpValue, NO_POLICY, POLICY_AGENT, POLICY_ALLOW, POLICY_DENY, PORT_EXCLUDED, ServiceValue,
};

use crate::balance::kernel;
use crate::model::addr::key_ip;
use crate::model::egress::{BuiltIn, Destination as Out};
use crate::model::service::Protocol;
use crate::model::workload::Workload;
use crate::policy::compile::{KernelVerdict, table};
use crate::policy::{egress, facts};
use crate::snapshot::Snapshot;

/// One node's captured pods, as its kernel knows them.
pub(super) struct NodeView<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) node: &'a str,
    captured: Vec<&'a Workload>,
    cookies: HashMap<&'a str, u64>,
}

impl<'a> NodeView<'a> {
    pub(super) fn new(snapshot: &'a Snapshot, node: &'a str) -> Self {
        let all = snapshot.workloads().iter().map(|workload| &**workload);
        let captured: Vec<&Workload> =
            all.filter(|workload| workload.captured.is_some() && *workload.node == *node).collect();
        let cookies = (1..).zip(&captured).map(|(cookie, workload)| (&*workload.uid, cookie)).collect();
        Self { snapshot, node, captured, cookies }
    }

    /// The cookie of a captured pod of this node.
    pub(super) fn cookie(&self, workload: &Workload) -> Option<u64> {
        self.cookies.get(&*workload.uid).copied()
    }

    /// The pod with this cookie.
    pub(super) fn pod(&self, cookie: u64) -> Option<&'a Workload> {
        let index = usize::try_from(cookie.checked_sub(1)?).ok()?;
        self.captured.get(index).copied()
    }

    fn rules(&self, workload: &Workload) -> Digest {
        if self.snapshot.policies_for(&workload.uid).is_empty() {
            return NO_POLICY;
        }
        self.name(workload)
    }

    /// What stands for a pod's rules, or for its identity.
    fn name(&self, workload: &Workload) -> Digest {
        let cookie = u128::from(self.cookie(workload).unwrap_or(0));
        // Neither all zeros nor all ones, which have a meaning.
        ((cookie << 1) | 1).to_be_bytes()
    }

    fn named(&self, name: &Digest) -> Option<&'a Workload> {
        self.pod(u64::try_from(u128::from_be_bytes(*name) >> 1).ok()?)
    }

    fn verdict(&self, key: &PolicyKey) -> Option<u32> {
        let (destination, client) = (self.named(&key.policy)?, self.named(&key.identity)?);
        let wanted = (key.port != ANY_PORT).then_some(key.port);
        let lines = table(self.snapshot, destination, &client.identity);
        let found = lines.into_iter().find(|(port, _)| *port == wanted)?;
        Some(match found.1 {
            KernelVerdict::Allow => POLICY_ALLOW,
            KernelVerdict::Deny => POLICY_DENY,
            KernelVerdict::Agent => POLICY_AGENT,
        })
    }
}

/// A `connect()` of a pod.
pub(super) struct Connecting<'a> {
    pub(super) node: &'a NodeView<'a>,
    pub(super) source: &'a Workload,
    pub(super) to: SocketAddr,
    pub(super) service: Option<&'a (ServiceValue, Vec<EndpointValue>)>,
    pub(super) draw: u32,
}

impl<'a> Connecting<'a> {
    /// What the kernel knows of the service at `to`.
    pub(super) fn service_at(node: &NodeView<'a>, to: SocketAddr) -> Option<(ServiceValue, Vec<EndpointValue>)> {
        let service = node.snapshot.service_by_vip(to)?;
        let client = crate::balance::Client { ip: to.ip(), ..kernel::client(node.snapshot, node.node) };
        Some(kernel::service(node.snapshot, service, &client, |workload| node.cookie(workload)))
    }

    fn own_ip(&self) -> Ip {
        let [ip4, ip6] = facts::own_ips(self.source);
        if self.to.ip().to_canonical().is_ipv4() { ip4 } else { ip6 }
    }
}

/// The annotation of `source` that keeps connections to `to` away from the mesh.
pub(super) fn outbound_exclusion(source: &Workload, to: SocketAddr) -> Option<String> {
    if facts::port_rules(source, false).get(&(to.port(), OUTBOUND)) == Some(&PORT_EXCLUDED) {
        return Some(format!("exclude-outbound-ports of {} names {}", source.display_name(), to.port()));
    }
    let ip = to.ip().to_canonical();
    let cidr = source.exclusions.outbound_cidrs.iter().find(|cidr| cidr.contains(&ip))?;
    Some(format!("exclude-outbound-cidrs of {} names {cidr}", source.display_name()))
}

/// The built-in rule that admits connections to `to` although it is not in the mesh.
pub(super) fn admission(snapshot: &Snapshot, to: SocketAddr) -> Option<BuiltIn> {
    let addr = SocketAddr::new(to.ip().to_canonical(), to.port());
    snapshot.admitted().get(&Out { addr, protocol: Protocol::Tcp }).copied()
}

impl PolicyView for Connecting<'_> {
    fn policy(&self, key: &PolicyKey) -> Option<u32> {
        self.node.verdict(key)
    }
}

impl DestinationView for Connecting<'_> {
    fn is_loopback(&self) -> bool {
        is_this_host(&key_ip(self.to.ip()))
    }

    fn is_own_ip(&self) -> bool {
        key_ip(self.to.ip()) == self.own_ip()
    }

    fn is_excluded(&self) -> bool {
        outbound_exclusion(self.source, self.to).is_some()
    }

    fn mesh_ip(&self) -> Option<MeshIpValue> {
        let owner = self.node.snapshot.workload_by_ip(self.to.ip().to_canonical());
        let captured = owner.filter(|workload| workload.captured.is_some())?;
        Some(MeshIpValue { netns_cookie: self.node.cookie(captured).unwrap_or(0) })
    }

    fn admitted(&self) -> Option<u32> {
        admission(self.node.snapshot, self.to).map(egress::word)
    }
}

impl ConnectView for Connecting<'_> {
    fn is_agent_socket(&self) -> bool {
        false
    }

    fn service(&self) -> Option<ServiceValue> {
        self.service.map(|(value, _)| *value)
    }

    fn endpoint(&self, _list: u32, slot: u32) -> Option<EndpointValue> {
        self.service?.1.get(usize::try_from(slot).ok()?).copied()
    }

    fn draw(&self) -> u32 {
        self.draw
    }

    fn dialled(&self) -> (Ip, u16) {
        (key_ip(self.to.ip()), self.to.port())
    }

    fn destination(&self, netns_cookie: u64, port: u16) -> Option<Destination> {
        let pod = self.node.pod(netns_cookie)?;
        let excluded = facts::port_rules(pod, false).get(&(port, INBOUND)) == Some(&PORT_EXCLUDED);
        Some(Destination { policy: self.node.rules(pod), excluded })
    }

    fn identity(&self) -> Digest {
        self.node.name(self.source)
    }

    fn is_share_full(&self) -> bool {
        false
    }

    fn has_family(&self) -> bool {
        self.own_ip() != [0; 16]
    }

    fn agent_listens(&self) -> bool {
        true
    }
}

/// A SYN to a captured pod.
pub(super) struct Arriving<'a> {
    pub(super) node: &'a NodeView<'a>,
    pub(super) pod: &'a Workload,
    pub(super) to: SocketAddr,
    /// The kind of its record, and the client that wrote it.
    pub(super) record: Option<(u16, &'a Workload)>,
}

impl PolicyView for Arriving<'_> {
    fn policy(&self, key: &PolicyKey) -> Option<u32> {
        self.node.verdict(key)
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
        self.to.port() == TUNNEL_PORT
    }

    fn is_agent_port(&self) -> bool {
        is_agent_port(self.to.port())
    }

    fn port(&self) -> u16 {
        self.to.port()
    }

    fn proof(&self) -> Option<Proof> {
        let (kind, client) = self.record?;
        let server_cookie = self.netns_cookie();
        let netns_cookie = self.node.cookie(client)?;
        Some(Proof { kind, netns_cookie, server_cookie, identity: self.node.name(client) })
    }

    fn netns_cookie(&self) -> u64 {
        self.node.cookie(self.pod).unwrap_or(0)
    }

    fn is_captured(&self) -> bool {
        false
    }

    fn receiver(&self) -> Option<Receiver> {
        let policy = self.node.rules(self.pod);
        let flags = facts::flags(self.pod, true, false, policy != NO_POLICY);
        self.node.cookie(self.pod).map(|_| Receiver { flags, policy })
    }

    fn is_probe_port(&self) -> bool {
        facts::port_rules(self.pod, false).contains_key(&(self.to.port(), PROBE))
    }

    fn port_rule(&self) -> Option<u32> {
        facts::port_rules(self.pod, false).get(&(self.to.port(), INBOUND)).copied()
    }
}

/// `addr` as text, of what the kernel calls `ip`.
pub(super) fn socket(ip: Ip, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::from(ip).to_canonical(), port)
}
