//! What exits and states mean, in an operator's words.

use mesh_common::counter::Counter;

use crate::model::workload::{Enrolment, PeerMode, Workload};

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
