//! Service: what of it the mesh needs. Endpoints come from slices or pods, in [`crate::control::compile`].

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use super::decode::{Mistake, decode};
use super::{meta, protocols};
use crate::model::service::Protocol;
use crate::model::workload::List;

/// `sessionAffinityConfig.clientIP.timeoutSeconds` when it is not given (Kubernetes' default: three hours).
const DEFAULT_AFFINITY: Duration = Duration::from_secs(10_800);
/// The most that Kubernetes lets it be.
const MAX_AFFINITY_SECONDS: i32 = 86_400;

/// A Service.
#[derive(Debug, PartialEq)]
pub(in crate::control) struct Service {
    pub(in crate::control) namespace: Arc<str>,
    pub(in crate::control) name: Arc<str>,
    /// `type: ExternalName`: no address, no port, another name for something outside.
    pub(in crate::control) external_name: bool,
    /// Cluster IPs; empty when headless.
    pub(in crate::control) cluster_ips: Vec<IpAddr>,
    /// External and LoadBalancer IPs (ipMode VIP).
    pub(in crate::control) outer_ips: Vec<IpAddr>,
    /// `None`: endpoints are written by hand.
    pub(in crate::control) selector: Option<List<(Box<str>, Box<str>)>>,
    /// TCP and UDP ports.
    pub(in crate::control) ports: Vec<ServiceSpecPort>,
    pub(in crate::control) affinity: Option<Duration>,
    pub(in crate::control) local_only: bool,
    pub(in crate::control) publish_not_ready: bool,
    pub(in crate::control) distribution: Option<Distribution>,
}

/// One port of a Service.
#[derive(Debug, PartialEq)]
pub(in crate::control) struct ServiceSpecPort {
    pub(in crate::control) protocol: Protocol,
    pub(in crate::control) name: Arc<str>,
    pub(in crate::control) port: u16,
    pub(in crate::control) target: TargetPort,
    pub(in crate::control) app_protocol: Option<Arc<str>>,
}

/// `targetPort`.
#[derive(Debug, PartialEq)]
pub(in crate::control) enum TargetPort {
    Number(u16),
    Name(String),
}

/// `trafficDistribution`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::control) enum Distribution {
    /// `PreferSameZone`, or `PreferClose`, its older name.
    SameZone,
    SameNode,
}

pub(super) fn read(value: &Value, mistakes: &mut Vec<Mistake>) -> Result<Service, Mistake> {
    let (service, unknown) = decode::<v1::Service>(value);
    let v1::Service { metadata, spec, status } = service?;
    mistakes.extend(unknown);
    let spec = spec.unwrap_or_default();
    let is_name_only = spec.type_.as_deref() == Some("ExternalName");
    let outer_ips = outer_ips(&spec, status.as_ref(), mistakes);
    let mut ports = if is_name_only { Vec::new() } else { ports(&spec, mistakes) };
    protocols::declare(&metadata, &mut ports, mistakes);
    Ok(Service {
        namespace: meta::namespace(&metadata),
        name: meta::name(&metadata),
        external_name: is_name_only,
        cluster_ips: cluster_ips(&spec, mistakes),
        outer_ips: if is_name_only { Vec::new() } else { outer_ips },
        ports,
        affinity: affinity(&spec, mistakes),
        local_only: spec.internal_traffic_policy.as_deref() == Some("Local"),
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        distribution: distribution(&spec, mistakes),
        selector: spec.selector.filter(|selector| !selector.is_empty()).map(|selector| {
            let pairs = selector.into_iter().map(|(key, value)| (key.into_boxed_str(), value.into_boxed_str()));
            pairs.collect()
        }),
    })
}

fn cluster_ips(spec: &v1::ServiceSpec, mistakes: &mut Vec<Mistake>) -> Vec<IpAddr> {
    let many = spec.cluster_ips.as_deref().unwrap_or_default();
    let mut texts: Vec<(String, &str)> =
        many.iter().enumerate().map(|(at, text)| (format!("spec.clusterIPs[{at}]"), &**text)).collect();
    if let (true, Some(one)) = (many.is_empty(), &spec.cluster_ip) {
        texts.push(("spec.clusterIP".to_owned(), one));
    }
    texts.retain(|(_, text)| !matches!(*text, "" | "None"));
    addresses(texts, mistakes)
}

fn outer_ips(spec: &v1::ServiceSpec, status: Option<&v1::ServiceStatus>, mistakes: &mut Vec<Mistake>) -> Vec<IpAddr> {
    let external = spec.external_ips.iter().flatten().enumerate();
    let external = external.map(|(at, text)| (format!("spec.externalIPs[{at}]"), &**text));
    let ingress = status.and_then(|status| status.load_balancer.as_ref()).and_then(|lb| lb.ingress.as_deref());
    let ingress = ingress.unwrap_or_default().iter().enumerate();
    // ipMode Proxy: packets must pass the load balancer itself. Absent is VIP.
    let vips = ingress.filter(|(_, ingress)| ingress.ip_mode.as_deref().unwrap_or("VIP") == "VIP");
    let vips = vips.filter_map(|(at, ingress)| {
        Some((format!("status.loadBalancer.ingress[{at}].ip"), ingress.ip.as_deref().filter(|ip| !ip.is_empty())?))
    });
    addresses(external.chain(vips).collect(), mistakes)
}

fn addresses(texts: Vec<(String, &str)>, mistakes: &mut Vec<Mistake>) -> Vec<IpAddr> {
    let mut ips: Vec<IpAddr> = Vec::new();
    for (field, text) in texts {
        match text.parse::<IpAddr>().map(|ip| ip.to_canonical()) {
            Ok(ip) if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() => {
                mistakes.push(Mistake::new(field, format!("`{text}` cannot be a service's address")));
            }
            Ok(ip) if ips.contains(&ip) => {}
            Ok(ip) => ips.push(ip),
            Err(_) => mistakes.push(Mistake::new(field, format!("`{text}` is not an IP address"))),
        }
    }
    ips
}

fn ports(spec: &v1::ServiceSpec, mistakes: &mut Vec<Mistake>) -> Vec<ServiceSpecPort> {
    let mut ports: Vec<ServiceSpecPort> = Vec::new();
    for (at, raw) in spec.ports.iter().flatten().enumerate() {
        let Some(protocol) = protocol(raw.protocol.as_deref()) else { continue };
        let field = |name: &str| format!("spec.ports[{at}].{name}");
        let number = |name: &str, value: i32, mistakes: &mut Vec<Mistake>| {
            let number = u16::try_from(value).ok().filter(|number| *number != 0);
            if number.is_none() {
                mistakes.push(Mistake::new(field(name), format!("{value} is not a port (1-65535)")));
            }
            number
        };
        let Some(port) = number("port", raw.port, mistakes) else { continue };
        let target = match &raw.target_port {
            None | Some(IntOrString::Int(0)) => Some(TargetPort::Number(port)),
            Some(IntOrString::Int(value)) => number("targetPort", *value, mistakes).map(TargetPort::Number),
            Some(IntOrString::String(name)) => Some(TargetPort::Name(name.clone())),
        };
        let Some(target) = target else { continue };
        if ports.iter().any(|other| (other.port, other.protocol) == (port, protocol)) {
            mistakes.push(Mistake::new(field("port"), format!("{port} stands twice")));
            continue;
        }
        let name = raw.name.as_deref().unwrap_or_default().into();
        let app_protocol = raw.app_protocol.as_deref().map(Arc::from);
        ports.push(ServiceSpecPort { protocol, name, port, target, app_protocol });
    }
    ports
}

/// The protocol of a port; `None` for those that the mesh has nothing to do with.
pub(super) fn protocol(name: Option<&str>) -> Option<Protocol> {
    match name {
        None | Some("TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        _ => None,
    }
}

fn affinity(spec: &v1::ServiceSpec, mistakes: &mut Vec<Mistake>) -> Option<Duration> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return None,
        Some("ClientIP") => {}
        Some(other) => {
            mistakes.push(Mistake::new("spec.sessionAffinity", format!("`{other}` is neither ClientIP nor None")));
            return None;
        }
    }
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let Some(seconds) = config.and_then(|client_ip| client_ip.timeout_seconds) else {
        return Some(DEFAULT_AFFINITY);
    };
    match u64::try_from(seconds) {
        Ok(seconds_given) if seconds_given > 0 && seconds <= MAX_AFFINITY_SECONDS => {
            Some(Duration::from_secs(seconds_given))
        }
        _ => {
            let reason = format!("{seconds} is not within 1-{MAX_AFFINITY_SECONDS}; the default is used");
            mistakes.push(Mistake::new("spec.sessionAffinityConfig.clientIP.timeoutSeconds", reason));
            Some(DEFAULT_AFFINITY)
        }
    }
}

fn distribution(spec: &v1::ServiceSpec, mistakes: &mut Vec<Mistake>) -> Option<Distribution> {
    match spec.traffic_distribution.as_deref()? {
        "PreferClose" | "PreferSameZone" => Some(Distribution::SameZone),
        "PreferSameNode" => Some(Distribution::SameNode),
        other => {
            mistakes
                .push(Mistake::new("spec.trafficDistribution", format!("`{other}` is not known and has no effect")));
            None
        }
    }
}
