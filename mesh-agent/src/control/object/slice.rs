//! EndpointSlice: what of it the mesh needs.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::discovery::v1;
use serde_json::Value;

use super::decode::{Mistake, decode};
use super::meta;
use super::service::protocol;
use crate::model::service::Protocol;
use crate::model::workload::List;

/// The label by which a slice belongs to a Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// An EndpointSlice.
#[derive(Debug, PartialEq)]
pub(in crate::control) struct Slice {
    pub(in crate::control) namespace: Arc<str>,
    /// Name of its Service; `None` for a slice that belongs to none.
    pub(in crate::control) service: Option<Arc<str>>,
    /// TCP and UDP ports: protocol, name and number.
    pub(in crate::control) ports: Vec<(Protocol, Arc<str>, u16)>,
    pub(in crate::control) endpoints: Vec<SliceEndpoint>,
}

/// One endpoint of a slice.
#[derive(Debug, PartialEq)]
pub(in crate::control) struct SliceEndpoint {
    pub(in crate::control) ip: IpAddr,
    pub(in crate::control) node: Arc<str>,
    pub(in crate::control) zone: Arc<str>,
    pub(in crate::control) hinted_zones: List<Arc<str>>,
    pub(in crate::control) hinted_nodes: List<Arc<str>>,
    pub(in crate::control) ready: bool,
    pub(in crate::control) serving: bool,
    pub(in crate::control) terminating: bool,
}

pub(super) fn read(value: &Value, mistakes: &mut Vec<Mistake>) -> Result<Slice, Mistake> {
    let (slice, unknown) = decode::<v1::EndpointSlice>(value);
    let slice = slice?;
    mistakes.extend(unknown);
    let is_ip = match slice.address_type.as_str() {
        "IPv4" | "IPv6" => true,
        "FQDN" => false,
        other => return Err(Mistake::new("addressType", format!("`{other}` is none of IPv4, IPv6 and FQDN"))),
    };
    let label = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_LABEL));
    let mut endpoints = Vec::with_capacity(slice.endpoints.len());
    let read = slice.endpoints.iter().enumerate().filter(|_| is_ip);
    endpoints.extend(read.filter_map(|(at, endpoint)| read_endpoint(at, endpoint, mistakes)));
    Ok(Slice {
        namespace: meta::namespace(&slice.metadata),
        service: label.map(|name| Arc::from(name.as_str())),
        ports: ports(&slice, mistakes),
        endpoints,
    })
}

/// A port without a number is all ports to the API and none to kube-proxy, which is followed.
fn ports(slice: &v1::EndpointSlice, mistakes: &mut Vec<Mistake>) -> Vec<(Protocol, Arc<str>, u16)> {
    let mut ports = Vec::new();
    for (at, port) in slice.ports.iter().flatten().enumerate() {
        let (Some(number), Some(protocol)) = (port.port, protocol(port.protocol.as_deref())) else { continue };
        match u16::try_from(number).ok().filter(|number| *number != 0) {
            Some(number) => ports.push((protocol, Arc::from(port.name.as_deref().unwrap_or_default()), number)),
            None => {
                let reason = format!("{number} is not a port (1-65535)");
                mistakes.push(Mistake::new(format!("ports[{at}].port"), reason));
            }
        }
    }
    ports
}

/// The first address counts, as for kube-proxy; absent conditions mean what the API says they mean.
fn read_endpoint(at: usize, endpoint: &v1::Endpoint, mistakes: &mut Vec<Mistake>) -> Option<SliceEndpoint> {
    let text = endpoint.addresses.first()?;
    let Ok(ip) = text.parse::<IpAddr>() else {
        let reason = format!("`{text}` is not an IP address");
        mistakes.push(Mistake::new(format!("endpoints[{at}].addresses[0]"), reason));
        return None;
    };
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    let ready = conditions.ready.unwrap_or(true);
    let hints = endpoint.hints.as_ref();
    let zones = hints.and_then(|hints| hints.for_zones.as_deref()).unwrap_or_default();
    let nodes = hints.and_then(|hints| hints.for_nodes.as_deref()).unwrap_or_default();
    Some(SliceEndpoint {
        ip: ip.to_canonical(),
        node: endpoint.node_name.as_deref().unwrap_or_default().into(),
        zone: endpoint.zone.as_deref().unwrap_or_default().into(),
        hinted_zones: zones.iter().map(|zone| Arc::from(zone.name.as_str())).collect(),
        hinted_nodes: nodes.iter().map(|node| Arc::from(node.name.as_str())).collect(),
        ready,
        serving: conditions.serving.unwrap_or(ready),
        terminating: conditions.terminating.unwrap_or(false),
    })
}
