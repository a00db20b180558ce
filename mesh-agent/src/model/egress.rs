//! What a pod may send out of the mesh, and what UDP it takes in.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use super::service::Protocol;

/// What becomes of what a pod sends to destinations that are not in the mesh, and of what is no socket's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Egress {
    /// The `PeerPolicy` by which it is refused, `namespace/name`; `None`: nothing refuses it.
    pub refused_by: Option<Arc<str>>,
    /// The `PeerPolicy` that has its packets guarded, in both directions; `None`: socket hooks are all there is.
    pub guarded_by: Option<Arc<str>>,
}

/// The ports on which a strict pod takes no UDP, each with the `PeerPolicy` that says so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UdpRefusals {
    /// Every port.
    pub all: Option<Arc<str>>,
    /// These ports, whatever [`Self::all`] says.
    pub ports: BTreeMap<u16, Arc<str>>,
}

impl UdpRefusals {
    /// The object by which UDP to `port` is refused.
    #[must_use]
    pub fn source(&self, port: u16) -> Option<&Arc<str>> {
        self.ports.get(&port).or(self.all.as_ref())
    }
}

/// A built-in rule that admits a destination outside the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BuiltIn {
    /// Port 53 of Service `kube-dns` or `coredns` of `kube-system`, and of its endpoints.
    ClusterDns,
    /// Port 53 of the node's DNS cache.
    NodeLocalDns,
    /// Service `kubernetes` of `default`, and its endpoints.
    Kubernetes,
    /// Any other Service: its addresses, or the endpoints of one that has none.
    Service,
}

impl BuiltIn {
    /// Its name in logs and answers.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClusterDns => "<cluster-dns>",
            Self::NodeLocalDns => "<node-local-dns>",
            Self::Kubernetes => "<kubernetes>",
            Self::Service => "<service>",
        }
    }
}

impl fmt::Display for BuiltIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where something goes: address, port and protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Destination {
    /// Address (canonical) and port.
    pub addr: SocketAddr,
    /// Protocol.
    pub protocol: Protocol,
}
