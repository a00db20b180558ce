//! What exits and states mean, in an operator's words.

use mesh_common::counter::Counter;

use crate::model::workload::{Enrolment, MODE_LABEL, PeerMode, Workload};

/// Why the `connect` hook left by this exit.
pub(super) fn exit(counter: Counter) -> &'static str {
    match counter {
        Counter::ConnectLoopback => "loopback never leaves the pod",
        Counter::ConnectOwnIp => "the pod's own address",
        Counter::ConnectExcluded => "excluded by annotation",
        Counter::ConnectOutside => "the destination is not in the mesh",
        Counter::ConnectAdmitted => "the destination is not in the mesh, but a built-in rule admits it",
        Counter::ConnectEgress => "the destination is not in the mesh, and the source may not leave it",
        Counter::ConnectNotCapturing => "the source is joining or leaving the mesh",
        Counter::ConnectNoFamily => "the source has no address of this family",
        Counter::ConnectNoEndpoints => "the service has no usable endpoint",
        Counter::ConnectShareFull => "the source has used up its share of the kernel's maps",
        Counter::LookupAgentPort => "a port of the agent, which takes nothing that is dialled",
        other => other.as_str(),
    }
}

/// The inbound mode of a port, and what decided it.
pub(super) fn peer_mode(pod: &Workload, port: u16) -> String {
    let mode = match pod.peer_mode.mode(port) {
        PeerMode::Strict => "strict",
        PeerMode::Permissive => "permissive",
    };
    let source = pod.peer_mode.source(port);
    if source.is_empty() { format!("{mode} (by default)") } else { format!("{mode} (by {source})") }
}

/// Whether a pod is in the mesh, and if not, why not.
pub(super) fn membership(pod: &Workload) -> String {
    let why_not = match (&pod.captured, pod.enrolment) {
        (Some(_), _) => return format!("captured on {}", pod.node),
        (None, Enrolment::Enrolled) => "opted in, but its node's agent has not published it as captured",
        (None, Enrolment::NotAsked) => "not in the mesh: neither its namespace nor the pod is opted in",
        (None, Enrolment::HostNetwork) => "not in the mesh: hostNetwork pods are never captured",
        (None, Enrolment::GuestKernel) => "not in the mesh: its sockets live in a guest kernel",
        (None, Enrolment::Gone) => "not in the mesh: it has finished, or another pod owns its address",
    };
    why_not.to_owned()
}

/// Whether a pod is to be in the mesh, and what says so; `namespace` is whether its namespace is opted in.
#[must_use]
pub fn opted_in(pod: &Workload, namespace: bool) -> (bool, String) {
    let own = pod.labels.get(MODE_LABEL).map(String::as_str);
    let (of, by_namespace) = (&pod.namespace, format!("namespace {} is labelled {MODE_LABEL}: enabled", pod.namespace));
    match (pod.enrolment, own, namespace) {
        (Enrolment::Gone, _, _) => (false, "it has finished, or another pod owns its address".to_owned()),
        (Enrolment::NotAsked, Some("disabled"), true) => {
            (false, format!("{by_namespace}, but the pod {MODE_LABEL}: disabled"))
        }
        (Enrolment::NotAsked, _, _) => {
            (false, format!("neither namespace {of} nor the pod is labelled {MODE_LABEL}: enabled"))
        }
        (_, Some("enabled"), _) => (true, format!("the pod is labelled {MODE_LABEL}: enabled")),
        (_, Some("disabled"), _) => {
            (true, format!("{by_namespace}, and a policy does not let the pod out by its label"))
        }
        (_, _, _) => (true, by_namespace),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::tests::pod as example;

    fn pod(enrolment: Enrolment, label: Option<&str>) -> Workload {
        let mut pod = Workload { enrolment, ..example("web", "a", "10.0.0.1") };
        std::sync::Arc::make_mut(&mut pod.labels).extend(label.map(|value| (MODE_LABEL.to_owned(), value.to_owned())));
        pod
    }

    #[test]
    fn what_says_that_a_pod_is_in_the_mesh_is_named() {
        let check = |enrolment, label, namespace, expected: bool, part: &str| {
            let (is_in, why) = opted_in(&pod(enrolment, label), namespace);
            assert!(is_in == expected && why.contains(part), "{enrolment:?} {label:?} {namespace}: {is_in} {why}");
        };
        check(Enrolment::Enrolled, None, true, true, "namespace shop is labelled");
        check(Enrolment::Enrolled, Some("enabled"), false, true, "the pod is labelled");
        check(Enrolment::Enrolled, Some("disabled"), true, true, "does not let the pod out");
        check(Enrolment::HostNetwork, None, true, true, "namespace shop is labelled");
        check(Enrolment::NotAsked, Some("disabled"), true, false, "but the pod");
        check(Enrolment::NotAsked, None, false, false, "neither namespace shop nor the pod");
        check(Enrolment::Gone, Some("enabled"), true, false, "finished");
    }
}
