//! The ports that a pod's own spec tells the kubelet to dial: httpGet, tcpSocket and grpc probes, and lifecycle hooks.
//!
//! A probe with a `host` dials somebody else: it opens nothing here, and nothing there.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, PodSpec, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::decode::Mistake;

/// Ascending, without repetition.
pub(super) fn ports(spec: &PodSpec, mistakes: &mut Vec<Mistake>) -> Vec<u16> {
    let mut ports = BTreeSet::new();
    let init = spec.init_containers.as_deref().unwrap_or_default();
    let all =
        spec.containers.iter().map(|one| ("containers", one)).chain(init.iter().map(|one| ("initContainers", one)));
    for (list, container) in all {
        for (field, port) in declared(container) {
            match number(&port, container) {
                Some(port) => drop(ports.insert(port)),
                None => {
                    let field = format!("spec.{list}[{}].{field}", container.name);
                    let text = match port {
                        IntOrString::Int(number) => number.to_string(),
                        IntOrString::String(name) => name,
                    };
                    let reason = format!("`{text}` is no port (1-65535) and no name of a port of this container");
                    mistakes.push(Mistake::new(field, reason));
                }
            }
        }
    }
    ports.into_iter().collect()
}

/// Every port that the kubelet dials for this container at the pod's own address, with its field.
fn declared(container: &Container) -> Vec<(String, IntOrString)> {
    let mut found = Vec::new();
    let probes = [
        ("livenessProbe", &container.liveness_probe),
        ("readinessProbe", &container.readiness_probe),
        ("startupProbe", &container.startup_probe),
    ];
    for (name, probe) in probes {
        found.extend(probe.iter().filter_map(of_probe).map(|(action, port)| (format!("{name}.{action}.port"), port)));
    }
    let lifecycle = container.lifecycle.as_ref();
    let hooks = [
        ("postStart", lifecycle.and_then(|lifecycle| lifecycle.post_start.as_ref())),
        ("preStop", lifecycle.and_then(|lifecycle| lifecycle.pre_stop.as_ref())),
    ];
    for (name, hook) in hooks.into_iter().filter_map(|(name, hook)| Some((name, hook?))) {
        let http = hook.http_get.as_ref().filter(|get| is_own(get.host.as_deref())).map(|get| get.port.clone());
        let tcp = hook.tcp_socket.as_ref().filter(|tcp| is_own(tcp.host.as_deref())).map(|tcp| tcp.port.clone());
        found.extend(http.or(tcp).map(|port| (format!("lifecycle.{name}"), port)));
    }
    found
}

fn of_probe(probe: &Probe) -> Option<(&'static str, IntOrString)> {
    let http = probe.http_get.as_ref().filter(|get| is_own(get.host.as_deref()));
    let tcp = probe.tcp_socket.as_ref().filter(|tcp| is_own(tcp.host.as_deref()));
    http.map(|get| ("httpGet", get.port.clone()))
        .or_else(|| tcp.map(|tcp| ("tcpSocket", tcp.port.clone())))
        .or_else(|| probe.grpc.as_ref().map(|grpc| ("grpc", IntOrString::Int(grpc.port))))
}

fn is_own(host: Option<&str>) -> bool {
    host.is_none_or(str::is_empty)
}

fn number(port: &IntOrString, container: &Container) -> Option<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|port| port.name.as_ref() == Some(name));
            named.map(|port| port.container_port).or_else(|| name.parse().ok())?
        }
    };
    u16::try_from(number).ok().filter(|port| *port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(yaml: &str) -> (Vec<u16>, Vec<Mistake>) {
        let spec: PodSpec = serde_norway::from_str(yaml).unwrap();
        let mut mistakes = Vec::new();
        (ports(&spec, &mut mistakes), mistakes)
    }

    #[test]
    fn every_kind_of_probe_and_hook_is_read() {
        let (ports, mistakes) = read(
            "
containers:
- name: app
  ports: [{name: health, containerPort: 8081}]
  livenessProbe: {httpGet: {port: health}}
  readinessProbe: {tcpSocket: {port: 6379}}
  startupProbe: {grpc: {port: 9000}}
  lifecycle: {preStop: {httpGet: {port: 8082}}, postStart: {tcpSocket: {port: 8083}}}
initContainers:
- name: sidecar
  livenessProbe: {httpGet: {port: 8084}}
",
        );
        assert_eq!(ports, [6379, 8081, 8082, 8083, 8084, 9000]);
        assert_eq!(mistakes, []);
    }

    #[test]
    fn a_probe_of_somebody_else_opens_nothing() {
        let (ports, mistakes) = read(
            "containers: [{name: app, livenessProbe: {httpGet: {port: 80, host: 10.0.0.9}}, \
             readinessProbe: {tcpSocket: {port: 81, host: other}}, startupProbe: {exec: {command: [x]}}}]",
        );
        assert_eq!((ports, mistakes), (vec![], vec![]));
    }

    #[test]
    fn a_port_that_is_none_is_named() {
        let (ports, mistakes) = read("containers: [{name: app, livenessProbe: {httpGet: {port: nowhere}}}]");
        assert!(ports.is_empty(), "{ports:?}");
        assert_eq!(mistakes.len(), 1);
        assert!(format!("{mistakes:?}").contains("spec.containers[app].livenessProbe.httpGet.port"), "{mistakes:?}");
    }
}
