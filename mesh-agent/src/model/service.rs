//! Services as kube-proxy understands them: (service, port, protocol), target port resolved per slice.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::addr::EndpointAddr;
use super::route::ServiceRef;
use super::traffic::Traffic;
use super::workload::{List, WorkloadUid};

/// A transport protocol of Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// One port of one Service with its endpoints; of a TCP port the unit of balancing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePort {
    /// Namespace of the Service.
    pub namespace: Arc<str>,
    /// Name of the Service.
    pub name: Arc<str>,
    /// `spec.ports[].name`; empty for a single unnamed port.
    pub port_name: Arc<str>,
    /// `spec.ports[].port`.
    pub port: u16,
    /// `spec.ports[].appProtocol`.
    pub app_protocol: Option<Arc<str>>,
    /// Cluster IPs, external IPs and LoadBalancer IPs (ipMode VIP); empty for headless.
    pub vips: Vec<IpAddr>,
    /// `sessionAffinity: ClientIP` with its timeout.
    pub affinity: Option<Duration>,
    /// `internalTrafficPolicy: Local`.
    pub local_only: bool,
    /// Some endpoint carries a hint for a zone or a node: [`crate::balance`] looks whether they are to be followed.
    pub prefer_zone: bool,
    /// What a `TrafficPolicy` says of its requests; `None`: none does, and the defaults hold where they are read.
    pub traffic: Option<Arc<Traffic>>,
    /// Every endpoint, with its conditions; filtering is [`crate::balance`]'s.
    pub endpoints: Vec<Endpoint>,
}

/// What a service port says its applications speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppProtocol {
    /// HTTP, in the version that the client chooses.
    Http,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// Something that is passed on as it is, TLS of the application's own included.
    Opaque,
    /// It does not say.
    Unknown,
}

/// One endpoint of a service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it listens.
    pub addr: EndpointAddr,
    /// The pod behind it, when the mesh knows one.
    pub workload: Option<WorkloadUid>,
    /// `nodeName` of the slice's endpoint.
    pub node: Arc<str>,
    /// Zone hints (`hints.forZones`); empty = no hint.
    pub zones: List<Arc<str>>,
    /// Node hints (`hints.forNodes`); empty = no hint.
    pub nodes: List<Arc<str>>,
    /// The endpoint's own zone; empty when unknown.
    pub zone: Arc<str>,
    /// `conditions.ready` (true with publishNotReadyAddresses).
    pub ready: bool,
    /// `conditions.serving`.
    pub serving: bool,
    /// `conditions.terminating`.
    pub terminating: bool,
}

impl Endpoint {
    /// A ready endpoint of which nothing but the address is known.
    #[must_use]
    pub fn new(addr: EndpointAddr) -> Self {
        Self {
            addr,
            workload: None,
            node: Arc::from(""),
            zones: List::new(),
            nodes: List::new(),
            zone: Arc::from(""),
            ready: true,
            serving: true,
            terminating: false,
        }
    }
}

impl ServicePort {
    /// Its name, as a route's backend has it.
    #[must_use]
    pub fn reference(&self) -> ServiceRef {
        ServiceRef { namespace: Arc::clone(&self.namespace), name: Arc::clone(&self.name), port: self.port }
    }

    /// Where it is dialled: its virtual addresses with its port.
    pub fn vip_addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.vips.iter().map(|ip| SocketAddr::new(*ip, self.port))
    }

    /// Whether both are the same port of the same Service, perhaps as they are at different times.
    #[must_use]
    pub fn is_same_port(&self, other: &Self) -> bool {
        (self.port, &self.name, &self.namespace) == (other.port, &other.name, &other.namespace)
    }

    /// `appProtocol` (GEP-1911), else the port's name up to the first `-`, as Istio reads it.
    #[must_use]
    pub fn protocol(&self) -> AppProtocol {
        match (self.app_protocol.as_deref(), self.port_name.split('-').next()) {
            (Some("http" | "kubernetes.io/ws"), _) | (None, Some("http")) => AppProtocol::Http,
            (Some("h2c" | "http2" | "grpc" | "kubernetes.io/h2c"), _) | (None, Some("h2c" | "http2" | "grpc")) => {
                AppProtocol::Http2
            }
            (None, Some("https" | "tls" | "tcp" | "mongo" | "mysql" | "redis" | "postgres" | "postgresql")) => {
                AppProtocol::Opaque
            }
            (None, _) => AppProtocol::Unknown,
            // Declared, and not as anything that we read.
            (Some(_), _) => AppProtocol::Opaque,
        }
    }

    /// `namespace/name:port`, for messages and labels.
    #[must_use]
    pub fn display_name(&self) -> String {
        format!("{}/{}:{}", self.namespace, self.name, self.port)
    }
}
