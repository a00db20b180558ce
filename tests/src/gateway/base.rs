//! The base objects of the conformance cases, read from YAML: ours, or upstream's.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};

/// The namespace of the servers and their Services.
pub const MESH: &str = "gateway-conformance-mesh";
/// The namespace that only has a client.
pub const CONSUMER: &str = "gateway-conformance-mesh-consumer";

/// What a folder of base objects declares.
#[derive(Debug, Default)]
pub struct Base {
    /// Names of namespaces.
    pub namespaces: Vec<String>,
    /// What runs.
    pub deployments: Vec<Deployment>,
    /// Services, without addresses.
    pub services: Vec<Value>,
}

/// A Deployment of one pod.
#[derive(Clone, Debug, Default)]
pub struct Deployment {
    /// `metadata.namespace`
    pub namespace: String,
    /// `metadata.name`
    pub name: String,
    /// The pod's labels.
    pub labels: BTreeMap<String, String>,
    /// Arguments of its container; without any there is no server.
    pub args: Vec<String>,
}

impl Base {
    /// Reads every document of `yaml`.
    ///
    /// # Errors
    /// When it is no YAML, or a kind is unknown: something would be missing in silence.
    pub fn read(yaml: &str) -> Result<Self> {
        let mut base = Self::default();
        for document in serde_norway::Deserializer::from_str(yaml) {
            let object = Value::deserialize(document).context("not YAML")?;
            match text(&object, "/kind") {
                "Namespace" => base.namespaces.push(text(&object, "/metadata/name").to_owned()),
                "Deployment" => base.deployments.push(Deployment::read(&object)),
                "Service" => base.services.push(object),
                other => anyhow::bail!("a base object of kind `{other}`"),
            }
        }
        Ok(base)
    }
}

impl Deployment {
    fn read(object: &Value) -> Self {
        let labels = object.pointer("/spec/template/metadata/labels").and_then(Value::as_object);
        let labels = labels.into_iter().flatten();
        let args = object.pointer("/spec/template/spec/containers/0/args").and_then(Value::as_array);
        let string = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Self {
            namespace: text(object, "/metadata/namespace").to_owned(),
            name: text(object, "/metadata/name").to_owned(),
            labels: labels.map(|(name, value)| (name.clone(), string(value))).collect(),
            args: args.into_iter().flatten().map(string).collect(),
        }
    }
}

/// A Service as a cluster has it: with addresses and slices.
#[derive(Debug)]
pub struct Allotted {
    /// `NAME.NAMESPACE`.
    pub name: String,
    /// Its cluster IPs: IPv4, IPv6; of a headless one and of a mere name none.
    pub ips: Option<[IpAddr; 2]>,
    /// The Service and its EndpointSlices, as a file of objects.
    pub yaml: String,
}

/// One endpoint of a Service: a pod's name, node and addresses.
#[derive(Debug)]
pub struct Member {
    /// The pod's name.
    pub pod: String,
    /// Its node.
    pub node: &'static str,
    /// Its addresses: IPv4, IPv6.
    pub ips: [IpAddr; 2],
}

/// What the cluster adds to the `number`th Service: addresses, and a slice of each family. `members` gives the pods of
/// a namespace that a selector selects.
#[must_use]
pub fn allot(
    service: &Value,
    number: u8,
    members: impl Fn(&str, &BTreeMap<String, String>) -> Vec<Member>,
) -> Allotted {
    let (namespace, name) = (text(service, "/metadata/namespace"), text(service, "/metadata/name"));
    let mut service = service.clone();
    let bare = text(&service, "/spec/clusterIP") == "None" || text(&service, "/spec/type") == "ExternalName";
    let ips: [IpAddr; 2] =
        [Ipv4Addr::new(10, 96, 0, number).into(), Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, number.into()).into()];
    if let (false, Some(spec)) = (bare, service.pointer_mut("/spec").and_then(Value::as_object_mut)) {
        spec.insert("clusterIPs".to_owned(), json!(ips));
    }
    let selector: BTreeMap<String, String> = service
        .pointer("/spec/selector")
        .and_then(|selector| serde_json::from_value(selector.clone()).ok())
        .unwrap_or_default();
    let members = members(namespace, &selector);
    let slices = ["IPv4", "IPv6"].into_iter().enumerate().map(|(family, kind)| {
        let endpoint = |member: &Member| {
            json!({
                "addresses": [member.ips.get(family)], "conditions": { "ready": true }, "nodeName": member.node,
                "targetRef": { "kind": "Pod", "namespace": namespace, "name": member.pod },
            })
        };
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": kind,
            "metadata": {
                "namespace": namespace, "name": format!("{name}-{}", kind.to_ascii_lowercase()),
                "labels": { "kubernetes.io/service-name": name },
            },
            "ports": slice_ports(&service),
            "endpoints": members.iter().map(endpoint).collect::<Vec<_>>(),
        })
    });
    let yaml: Vec<String> = std::iter::once(service.clone()).chain(slices).map(|object| object.to_string()).collect();
    Allotted { name: format!("{name}.{namespace}"), ips: (!bare).then_some(ips), yaml: yaml.join("\n---\n") }
}

fn slice_ports(service: &Value) -> Vec<Value> {
    let ports = service.pointer("/spec/ports").and_then(Value::as_array);
    let slice_port = |port: &Value| {
        let number = port.get("targetPort").or_else(|| port.get("port"));
        json!({ "name": port.get("name"), "port": number, "protocol": "TCP" })
    };
    ports.into_iter().flatten().map(slice_port).collect()
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}
