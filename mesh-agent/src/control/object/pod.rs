//! Pod: what of it the mesh needs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use super::decode::{Mistake, decode};
use super::meta::{self, Mode};
use super::probes;
use crate::model::rare::Rare;
use crate::model::workload::{Exclusions, Ips, Labels, NamedPort};

/// How the names of runtime classes begin whose containers have a kernel of their own: the names that the projects'
/// own installers give.
const GUEST_KERNELS: [&str; 5] = ["kata", "gvisor", "runsc", "firecracker", "peerpods"];
/// Label of the pods that virtual machines run in (KubeVirt), with its value.
const VIRTUAL_MACHINE: (&str, &str) = ("kubevirt.io", "virt-launcher");

/// A Pod.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::control) struct Pod {
    /// `metadata.uid`; `namespace/name` for hand-written pods without one.
    pub(in crate::control) uid: Arc<str>,
    pub(in crate::control) namespace: Arc<str>,
    pub(in crate::control) name: Arc<str>,
    pub(in crate::control) app: Arc<str>,
    pub(in crate::control) node: Arc<str>,
    pub(in crate::control) labels: Labels,
    pub(in crate::control) mode: Option<Mode>,
    pub(in crate::control) service_account: Arc<str>,
    /// Canonical; of a hostNetwork pod the node's.
    pub(in crate::control) ips: Ips,
    pub(in crate::control) host_network: bool,
    /// Its sockets live in a guest kernel.
    pub(in crate::control) guest_kernel: bool,
    pub(in crate::control) ports: Arc<[NamedPort]>,
    /// Ascending.
    pub(in crate::control) probe_ports: Arc<[u16]>,
    /// Phase Succeeded or Failed.
    pub(in crate::control) finished: bool,
    /// Start time in nanoseconds since 1970; of a pod not started yet its creation; `None` when neither is known.
    pub(in crate::control) started: Option<i64>,
    pub(in crate::control) terminating: bool,
    /// The Ready condition; true without a `status.conditions`, which hand-written pods have no reason to carry.
    pub(in crate::control) ready: bool,
    pub(in crate::control) exclusions: Rare<Exclusions>,
    pub(in crate::control) netns: Option<PathBuf>,
}

impl Pod {
    /// `namespace/name`.
    pub(in crate::control) fn display_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

pub(super) fn read(value: &Value, mistakes: &mut Vec<Mistake>) -> Result<Pod, Mistake> {
    let (pod, unknown) = decode::<v1::Pod>(value);
    let v1::Pod { metadata, spec, status } = pod?;
    mistakes.extend(unknown);
    let (spec, status) = (spec.unwrap_or_default(), status.unwrap_or_default());

    let (namespace, name) = (meta::namespace(&metadata), meta::name(&metadata));
    let no_annotations = BTreeMap::new();
    let annotations = metadata.annotations.as_ref().unwrap_or(&no_annotations);
    let started = status.start_time.as_ref().or(metadata.creation_timestamp.as_ref());
    Ok(Pod {
        uid: metadata.uid.as_deref().map_or_else(|| format!("{namespace}/{name}").into(), Arc::from),
        app: app(&metadata, &name),
        node: spec.node_name.as_deref().unwrap_or_default().into(),
        mode: meta::mode(&metadata, mistakes),
        service_account: spec
            .service_account_name
            .as_deref()
            .filter(|name| !name.is_empty())
            .unwrap_or("default")
            .into(),
        ips: ips(&status, mistakes).into(),
        host_network: spec.host_network.unwrap_or(false),
        guest_kernel: has_guest_kernel(&spec, &metadata),
        ports: ports(&spec, mistakes).into(),
        probe_ports: probes::ports(&spec, mistakes).into(),
        finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
        started: started.map(|time| i64::try_from(time.0.as_nanosecond()).unwrap_or(i64::MAX)),
        terminating: metadata.deletion_timestamp.is_some(),
        ready: is_ready(&status),
        exclusions: meta::exclusions(annotations, mistakes).into(),
        netns: meta::netns(annotations, mistakes),
        labels: metadata.labels.unwrap_or_default().into(),
        namespace,
        name,
    })
}

fn has_guest_kernel(spec: &v1::PodSpec, metadata: &ObjectMeta) -> bool {
    let class = spec.runtime_class_name.as_deref().unwrap_or_default();
    let label = metadata.labels.as_ref().and_then(|labels| labels.get(VIRTUAL_MACHINE.0));
    GUEST_KERNELS.iter().any(|kernel| class.starts_with(kernel)) || label.is_some_and(|v| v == VIRTUAL_MACHINE.1)
}

/// The controlling owner (a ReplicaSet's without its template hash, which is its Deployment), else the usual
/// labels, else the pod.
fn app(metadata: &ObjectMeta, name: &Arc<str>) -> Arc<str> {
    let label = |key: &str| metadata.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str);
    let owner = metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    let owner = owner.map(|owner| {
        let hash = label("pod-template-hash").filter(|_| owner.kind == "ReplicaSet");
        let without = hash.and_then(|hash| owner.name.strip_suffix(hash)).and_then(|rest| rest.strip_suffix('-'));
        without.unwrap_or(&owner.name)
    });
    let named = owner.or_else(|| label("app.kubernetes.io/name")).or_else(|| label("app"));
    named.filter(|name| !name.is_empty()).map_or_else(|| Arc::clone(name), Arc::from)
}

/// `podIPs` (which repeat `podIP`), else `podIP`.
fn ips(status: &v1::PodStatus, mistakes: &mut Vec<Mistake>) -> Vec<IpAddr> {
    let many = status.pod_ips.as_deref().unwrap_or_default();
    let mut texts: Vec<(String, &str)> =
        many.iter().enumerate().map(|(at, pod_ip)| (format!("status.podIPs[{at}].ip"), &*pod_ip.ip)).collect();
    if let (true, Some(one)) = (many.is_empty(), &status.pod_ip) {
        texts.push(("status.podIP".to_owned(), one));
    }
    let mut ips = Vec::new();
    for (field, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
        match text.parse::<IpAddr>() {
            Ok(ip) if is_pod_address(ip) => ips.push(ip.to_canonical()),
            Ok(_) => mistakes.push(Mistake::new(field, format!("`{text}` is not an address a pod can own"))),
            Err(_) => mistakes.push(Mistake::new(field, format!("`{text}` is not an IP address"))),
        }
    }
    ips.dedup();
    ips
}

/// A loopback, unspecified or multicast address would catch traffic that is nobody's.
fn is_pod_address(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast())
}

/// TCP ports of all containers, sidecars (restartable init containers) included.
fn ports(spec: &v1::PodSpec, mistakes: &mut Vec<Mistake>) -> Vec<NamedPort> {
    let init = spec.init_containers.as_deref().unwrap_or_default();
    let sidecars = init.iter().enumerate().filter(|(_, one)| one.restart_policy.as_deref() == Some("Always"));
    let containers = spec.containers.iter().enumerate().map(|(at, container)| ("containers", at, container));
    let mut ports = Vec::new();
    for (list, at, container) in containers.chain(sidecars.map(|(at, one)| ("initContainers", at, one))) {
        for (index, port) in container.ports.iter().flatten().enumerate() {
            if port.protocol.as_deref().unwrap_or("TCP") != "TCP" {
                continue;
            }
            match u16::try_from(port.container_port).ok().filter(|port| *port != 0) {
                Some(number) => {
                    ports.push(NamedPort { name: port.name.as_deref().unwrap_or_default().into(), port: number });
                }
                None => {
                    let field = format!("spec.{list}[{at}].ports[{index}].containerPort");
                    mistakes.push(Mistake::new(field, format!("{} is not a port (1-65535)", port.container_port)));
                }
            }
        }
    }
    ports
}

fn is_ready(status: &v1::PodStatus) -> bool {
    let Some(conditions) = &status.conditions else {
        return true;
    };
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
