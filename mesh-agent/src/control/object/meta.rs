//! `metadata`: names, and the labels and annotations by which pods and namespaces speak to the mesh.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use super::decode::Mistake;
use super::{Key, Kind};
use crate::model::workload::Exclusions;

pub(in crate::control) use crate::model::workload::MODE_LABEL;
/// Ports of destinations that a pod's connections reach without the agent.
pub(in crate::control) const EXCLUDE_OUTBOUND_PORTS: &str = "mesh-agent.io/exclude-outbound-ports";
/// Ports of the pod that are reached without the agent.
pub(in crate::control) const EXCLUDE_INBOUND_PORTS: &str = "mesh-agent.io/exclude-inbound-ports";
/// Destinations that a pod's connections reach without the agent.
pub(in crate::control) const EXCLUDE_OUTBOUND_CIDRS: &str = "mesh-agent.io/exclude-outbound-cidrs";
/// The pod's network namespace, for the directory source.
const NETNS: &str = "mesh-agent.io/netns";

/// What [`MODE_LABEL`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::control) enum Mode {
    Enabled,
    Disabled,
}

/// The key of an object, read leniently: it is needed most when the object has mistakes.
pub(in crate::control) fn key(kind: Kind, value: &Value) -> Key {
    let text = |field: &str| match value.get("metadata").and_then(|metadata| metadata.get(field)) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        _ => String::new(),
    };
    let namespace = if kind.is_namespaced() { namespace_or_default(&text("namespace")) } else { "".into() };
    Key { kind, namespace, name: text("name").into() }
}

/// An object without a namespace is in `default`, as `kubectl apply` has it.
pub(super) fn namespace_or_default(namespace: &str) -> Arc<str> {
    if namespace.is_empty() { "default".into() } else { namespace.into() }
}

/// `metadata.namespace` of a decoded object.
pub(super) fn namespace(metadata: &ObjectMeta) -> Arc<str> {
    namespace_or_default(metadata.namespace.as_deref().unwrap_or_default())
}

/// `metadata.name` of a decoded object.
pub(super) fn name(metadata: &ObjectMeta) -> Arc<str> {
    metadata.name.as_deref().unwrap_or_default().into()
}

/// [`MODE_LABEL`]; a value that is neither is a mistake and counts as absent.
pub(super) fn mode(metadata: &ObjectMeta, mistakes: &mut Vec<Mistake>) -> Option<Mode> {
    match metadata.labels.as_ref()?.get(MODE_LABEL)?.as_str() {
        "enabled" => Some(Mode::Enabled),
        "disabled" => Some(Mode::Disabled),
        other => {
            let field = format!("metadata.labels[{MODE_LABEL}]");
            mistakes.push(Mistake::new(field, format!("`{other}` is neither `enabled` nor `disabled`")));
            None
        }
    }
}

/// The exclusions that a pod asks for; what cannot be read is a mistake and excludes nothing.
pub(super) fn exclusions(annotations: &BTreeMap<String, String>, mistakes: &mut Vec<Mistake>) -> Exclusions {
    Exclusions {
        outbound_ports: list(annotations, EXCLUDE_OUTBOUND_PORTS, port, mistakes).into(),
        inbound_ports: list(annotations, EXCLUDE_INBOUND_PORTS, port, mistakes).into(),
        outbound_cidrs: list(annotations, EXCLUDE_OUTBOUND_CIDRS, cidr, mistakes).into(),
    }
}

/// [`NETNS`]; a relative path is a mistake.
pub(super) fn netns(annotations: &BTreeMap<String, String>, mistakes: &mut Vec<Mistake>) -> Option<PathBuf> {
    let path = PathBuf::from(annotations.get(NETNS)?);
    if path.is_absolute() {
        return Some(path);
    }
    let reason = format!("`{}` is not an absolute path", path.display());
    mistakes.push(Mistake::new(format!("metadata.annotations[{NETNS}]"), reason));
    None
}

/// Takes [`NETNS`] off an object of the API server: whoever may create a pod there could make the agent open any
/// path of the node.
pub(in crate::control) fn withhold_netns(value: &mut Value) -> Option<Mistake> {
    let annotations = value.get_mut("metadata")?.get_mut("annotations")?.as_object_mut()?;
    annotations.remove(NETNS)?;
    let reason = "not believed: whoever may create pods could name any path of the node; \
                  --trust-netns-annotation where that is only operators";
    Some(Mistake::new(format!("metadata.annotations[{NETNS}]"), reason))
}

fn list<T>(
    annotations: &BTreeMap<String, String>,
    annotation: &str,
    parse: fn(&str) -> Result<T, String>,
    mistakes: &mut Vec<Mistake>,
) -> Vec<T> {
    let text = annotations.get(annotation).map_or("", String::as_str);
    let mut parsed = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        match parse(part) {
            Ok(value) => parsed.push(value),
            Err(reason) => mistakes.push(Mistake::new(format!("metadata.annotations[{annotation}]"), reason)),
        }
    }
    parsed
}

fn port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err(format!("`{text}` is not a port (1-65535)")),
        Ok(port) => Ok(port),
    }
}

/// A network, or an address as the network of that address alone.
pub(super) fn cidr(text: &str) -> Result<IpNet, String> {
    let net: IpNet = text
        .parse()
        .or_else(|_| text.parse().map(|ip: std::net::IpAddr| IpNet::from(ip)))
        .map_err(|_| format!("`{text}` is not a CIDR such as 10.0.0.0/8 or fd00::/8"))?;
    // Addresses are compared in canonical form, so a v4-mapped network must be an IPv4 one.
    match net {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => match v6.addr().to_ipv4_mapped() {
            Some(v4) => ipnet::Ipv4Net::new(v4, v6.prefix_len() - 96).map(IpNet::V4).map_err(|error| error.to_string()),
            None => Ok(net),
        },
        _ => Ok(net),
    }
}

/// Whether `metadata.namespace` is there but says nothing that could be a name.
pub(super) fn namespace_is_unreadable(value: &Value) -> bool {
    let Some(metadata) = value.get("metadata") else {
        return false;
    };
    let namespace = metadata.get("namespace").unwrap_or(&Value::Null);
    !(metadata.is_object() || metadata.is_null())
        || !matches!(namespace, Value::String(_) | Value::Number(_) | Value::Null)
}
